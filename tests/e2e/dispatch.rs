//! `moorline dispatch` as a process: which gateways it gives while they drain, die and come.

use crate::gateway::{Backend, Gateway, field};
use crate::process::{Process, TempFile, program, run};
use crate::tunnel::{Authority, NAME, Tunnel};
use crate::{PATIENCE, until};
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, ClientBuilder};
use moorline_sdk::core::Target;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A running dispatch with short times, and its settings file.
pub(crate) struct Dispatch {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    settings: TempFile,
}

/// A gateway in the settings: name, region, endpoint and admin address.
pub(crate) type Entry<'a> = (&'a str, &'a str, SocketAddr, SocketAddr);

const HEAD: &str = "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\npoll_interval = '100ms'\n";

fn text_of(head: &str, entries: &[Entry<'_>]) -> String {
    let entry = |(name, region, endpoint, admin): &Entry<'_>| {
        format!("[gateway.{name}]\nendpoint = 'tcp://{endpoint}'\nregion = '{region}'\nadmin = '{admin}'\n")
    };
    format!("{head}{}", entries.iter().map(entry).collect::<String>())
}

impl Dispatch {
    pub(crate) fn start(entries: &[Entry<'_>]) -> Self {
        // Tests look often.
        Self::start_with(&format!("{HEAD}address_rate = 0\n"), entries)
    }

    fn start_with(head: &str, entries: &[Entry<'_>]) -> Self {
        let settings = TempFile::new(text_of(head, entries));
        let path = settings.path().display().to_string();
        let (process, line) = Process::start_command("dispatch", program(&["dispatch", "-c", &path]));
        let listen: String = field(&line, "listen=");
        let (_, address) = listen.split_once("://").expect("a scheme");
        let (address, admin) = (address.parse().expect("an address"), field(&line, "admin="));
        Self { process, address, admin, settings }
    }

    fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(crate::PATIENCE)).expect("a socket");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
    }

    /// Asks for a list: status and body.
    fn ask(&self, query: &str) -> (u16, Value) {
        let (status, body) = Self::get(self.address, &format!("/v1/endpoints{query}"));
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// Endpoints of a list.
    fn endpoints(&self, query: &str) -> BTreeSet<String> {
        let (_, list) = self.ask(query);
        let endpoints = list["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().map(|one| one["endpoint"].as_str().expect("text").to_owned()).collect()
    }

    fn until_given(&self, query: &str, expected: &[SocketAddr]) {
        let expected: BTreeSet<_> = expected.iter().map(|address| format!("tcp://{address}")).collect();
        until("the expected list", || (self.endpoints(query) == expected).then_some(()));
    }

    fn page(&self) -> String {
        Self::get(self.admin, "/metrics").1
    }
}

#[test]
fn a_gateway_that_drains_or_dies_is_left_out_and_a_dispatch_without_gateways_still_answers() {
    let backend = Backend::start();
    let near = Gateway::start(&backend, &[]);
    let mut far = Gateway::start(&backend, &["drain.grace=600s"]);
    let entries = [("near", "eu", near.listener, near.admin), ("far", "eu", far.listener, far.admin)];
    let mut dispatch = Dispatch::start(&entries);
    dispatch.until_given("?region=eu", &[near.listener, far.listener]);
    until("reports of both", || (dispatch.ask("").1["degraded"] == Value::Bool(false)).then_some(()));
    let (status, list) = dispatch.ask("?region=eu");
    assert_eq!((status, &list["lifetime_s"], &list["degraded"]), (200, &60.into(), &false.into()), "{list}");
    assert!(list["age_ms"].as_u64().is_some_and(|age| age < 60_000), "{list}");
    // A client holds the drain open: the gateway goes on saying that it drains.
    let _held = crate::raw::Client::login(far.listener, "alice", "d");
    far.until_sessions(1);
    far.process.signal(Signal::SIGTERM);
    dispatch.until_given("?region=eu", &[near.listener]);
    let page = dispatch.page();
    assert!(page.contains("moorline_dispatch_gateways{state=\"not_ready\"} 1\n"), "{page}");
    far.process.kill();
    let near_listener = near.listener;
    drop(near);
    // After 6 s nothing is known any more: both may live.
    dispatch.until_given("?region=eu", &[near_listener, far.listener]);
    let (status, list) = dispatch.ask("?region=eu");
    assert_eq!((status, &list["degraded"]), (200, &true.into()));
    assert!(list["age_ms"].as_u64().is_some_and(|age| age >= 6_000), "{list}");
    assert_eq!(Dispatch::get(dispatch.address, "/readyz").0, 200);
    let page = dispatch.page();
    assert!(page.contains("moorline_dispatch_gateways{state=\"silent\"} 2\n"), "{page}");
    dispatch.process.signal(Signal::SIGTERM);
    assert_eq!(dispatch.process.end().code(), Some(0));
}

#[test]
fn a_reload_takes_gateways_and_keeps_the_rest_when_the_file_is_wrong() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let dispatch = Dispatch::start(&[("old", "eu", nobody, nobody)]);
    assert_eq!(dispatch.endpoints(""), BTreeSet::from([format!("tcp://{nobody}")]), "from the file");
    assert_eq!(dispatch.ask("").1["age_ms"], Value::Null);
    std::fs::write(dispatch.settings.path(), "nonsense = 1\n").expect("our file");
    dispatch.process.signal(Signal::SIGHUP);
    until("the refusal", || dispatch.process.log().contains("nothing has changed").then_some(()));
    assert_eq!(dispatch.endpoints("").len(), 1);
    let entries = [("new", "eu", gateway.listener, gateway.admin)];
    std::fs::write(dispatch.settings.path(), text_of(HEAD, &entries)).expect("our file");
    dispatch.process.signal(Signal::SIGHUP);
    dispatch.until_given("", &[gateway.listener]);
    until("its report", || (dispatch.ask("").1["degraded"] == Value::Bool(false)).then_some(()));
}

#[test]
fn bad_and_frequent_questions_are_refused_by_their_reason() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let head = format!("{HEAD}address_rate = 1\n");
    let dispatch = Dispatch::start_with(&head, &[("a", "eu", nobody, nobody)]);
    for query in ["?region=a%20b", "?region=eu&region=us"] {
        let (status, body) = dispatch.ask(query);
        assert_eq!((status, &body["code"]), (400, &"INVALID".into()), "{query}");
    }
    let statuses: Vec<_> = (0..20).map(|_| dispatch.ask("?region=eu").0).collect();
    assert!(statuses.contains(&429) && statuses[0] == 200, "{statuses:?}");
    assert_eq!(Dispatch::get(dispatch.address, "/healthz").0, 200, "health has no rate");
    assert_eq!(Dispatch::get(dispatch.address, "/metrics").0, 404, "figures are for operators");
    let page = dispatch.page();
    for series in ["dispatch_refused_total{reason=\"bad_question\"} 2", "dispatch_addresses 1"] {
        assert!(page.contains(series), "{page}");
    }
}

#[test]
fn dispatch_answers_over_tls_and_not_without_it() {
    let authority = Authority::new(&[NAME]);
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let head = format!(
        "{HEAD}certificate_file = '{}'\nkey_file = '{}'\nnames = ['{NAME}']\n",
        authority.certificate.path().display(),
        authority.key.path().display()
    );
    let dispatch = Dispatch::start_with(&head, &[("a", "eu", nobody, nobody)]);
    let mut stream = TcpStream::connect(dispatch.address).expect("it listens");
    let mut tunnel = Tunnel::tls(&mut stream, authority.client("http/1.1")).expect("a handshake");
    let request = format!("GET /v1/endpoints HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
    tunnel.write(&mut stream, request.as_bytes()).expect("written");
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = tunnel.read(&mut stream, &mut block) {
        answer.extend_from_slice(&block[..count]);
    }
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"degraded\":true"), "{answer}");
    let mut plain = TcpStream::connect(dispatch.address).expect("it listens");
    plain.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    plain.write_all(request.as_bytes()).expect("written");
    let mut bytes = Vec::new();
    plain.read_to_end(&mut bytes).ok();
    assert!(!bytes.starts_with(b"HTTP/"), "{bytes:?}");
}

#[test]
fn settings_are_checked_and_printed() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let settings = TempFile::new(text_of("", &[("a", "eu", nobody, nobody)]));
    let path = settings.path().display().to_string();
    assert_eq!(
        run(&["dispatch", "check", "-c", &path]),
        (Some(0), format!("{path}: valid\n"), String::new())
    );
    let (code, out, _) =
        run(&["dispatch", "config", "effective", "-c", &path, "--set", "gateway.a.weight=7"]);
    assert!(code == Some(0) && out.contains("weight = 7 # --set gateway.a.weight\n"), "{out}");
    let (code, _, err) = run(&["dispatch", "--set", "listen=0.0.0.0:0"]);
    assert!(
        code == Some(2) && err.contains("answers without TLS") && err.contains("gateway: 0 gateways"),
        "{err}"
    );
}

/// A client whose own endpoint is dead, so that it finds a gateway only by what dispatch says.
fn lost_client(uid: &str, dispatch: &str, gateways: &[SocketAddr]) -> ClientBuilder {
    let places: Vec<String> = gateways.iter().map(|address| format!("tcp://{address}")).collect();
    let client = Client::builder("tcp://127.0.0.1:1").user(uid).device("d", Platform::Linux);
    client.alternates(places.iter().map(String::as_str)).dispatch([dispatch]).region("eu")
}

fn is_there(gateway: &Gateway, sessions: u64) -> bool {
    gateway.varz().sessions == sessions
}

#[test]
fn a_client_asks_dispatch_over_tls_and_leaves_a_gateway_that_drains() {
    let (authority, backend) = (Authority::new(&["localhost"]), Backend::start());
    // A client leaves at a random moment of the grace.
    let gateways =
        [Gateway::start(&backend, &["drain.grace=2s"]), Gateway::start(&backend, &["drain.grace=2s"])];
    let entries = gateways.each_ref().map(|gateway| ("", "eu", gateway.listener, gateway.admin));
    let [mut one, mut two] = entries;
    (one.0, two.0) = ("one", "two");
    let head = format!(
        "{HEAD}address_rate = 0\ncertificate_file = '{}'\nkey_file = '{}'\n",
        authority.certificate.path().display(),
        authority.key.path().display()
    );
    let dispatch = Dispatch::start_with(&head, &[one, two]);
    let url = format!("https://localhost:{}", dispatch.address.port());
    let places = gateways.each_ref().map(|gateway| gateway.listener);
    let pem = std::fs::read(authority.certificate.path()).expect("our file");
    let ann = lost_client("ann", &url, &places).roots_pem(&pem).build().expect("starts");
    // Nobody knows beforehand which one it is.
    let is_at = |index: usize| is_there(&gateways[index], 1).then_some([index, 1 - index]);
    let [first, second] = until("the login", || is_at(0).or_else(|| is_at(1)));
    gateways[first].process.signal(Signal::SIGTERM);
    until("the move", || (is_there(&gateways[second], 1) && ann.is_logged_in()).then_some(()));
    let sent = ann.send(Target::user("ann"), 1, "still here").expect("taken");
    sent.wait_durable(PATIENCE).expect("stored");
    // A newcomer is not sent to it at all: dispatch knows within a poll interval.
    until("dispatch knows", || {
        let page = Dispatch::get(dispatch.admin, "/metrics").1;
        page.contains("moorline_dispatch_gateways{state=\"ready\"} 1\n").then_some(())
    });
    let ben = lost_client("ben", &url, &places).roots_pem(&pem).build().expect("starts");
    until("the login", || (ben.is_logged_in() && is_there(&gateways[second], 2)).then_some(()));
}

#[test]
fn a_client_that_is_sent_to_a_full_gateway_goes_to_the_next_one() {
    let backend = Backend::start();
    let full = Gateway::start(&backend, &["limits.connections_max=1"]);
    let free = Gateway::start(&backend, &[]);
    let _held = crate::raw::Client::login(full.listener, "carl", "d");
    full.until_sessions(1);
    // This dispatch reaches nobody, so it gives both by chance.
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let dispatch =
        Dispatch::start(&[("full", "eu", full.listener, nobody), ("free", "eu", free.listener, nobody)]);
    let url = format!("http://{}", dispatch.address);
    let places = [full.listener, free.listener];
    let names: Vec<String> = (0..8).map(|number| format!("ann{number}")).collect();
    let clients: Vec<Client> =
        names.iter().map(|uid| lost_client(uid, &url, &places).build().expect("starts")).collect();
    free.until_sessions(8);
    assert!(clients.iter().all(Client::is_logged_in) && is_there(&full, 1));
}
