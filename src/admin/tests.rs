//! The responder over real sockets.

use super::*;
use crate::config::Config;
use crate::metrics::{Metric, names};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

const METRICS: &[Metric] = &[
    Metric::gauge(names::CONNECTIONS, "Open client connections."),
    Metric::gauge(names::SESSIONS, "Sessions."),
    Metric::gauge(names::LINKS_UP, "Links that are up."),
];
const LINKS: usize = 2;

struct Rig {
    admin: Option<Admin>,
    counter_set: Arc<CounterSet>,
    status: Arc<Status>,
    registry: Arc<Registry>,
    folder: PathBuf,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let (registry, counter_set) = (Arc::new(Registry::new()), Arc::new(CounterSet::new(METRICS)));
        registry.add(Arc::clone(&counter_set));
        let mut config = Config::default();
        config.gateway.id = "g1".into();
        config.gateway.alternates = vec!["h:1".into()];
        let status = Arc::new(
            Status::new(&config, &config.gateway.id)
                .listening_at([("1".to_owned(), ([127, 0, 0, 1], 4).into())]),
        );
        let address = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = address.local_addr().expect("bound").port();
        let folder = std::env::temp_dir().join(format!("moorline-admin-{port}"));
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir(&folder).expect("made");
        let socket = UnixListener::bind(folder.join("admin.sock")).expect("bound");
        let listeners = Listeners { address, socket: Some((socket, None)) };
        let admin = spawn_limited(listeners, &status, &registry, limits).expect("starts");
        admin.set_paused(false);
        Self { admin: Some(admin), counter_set, status, registry, folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.admin.as_ref().expect("runs").address()).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("written");
        read(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }

    /// Asks at the socket.
    fn ask_known(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.folder.join("admin.sock")).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.write_all(request.as_bytes()).expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered and closed in time");
        text
    }

    fn get_known(&self, path: &str) -> String {
        self.ask_known(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.admin.take().expect("runs").stop();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn read(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered and closed in time");
    text
}

const PATIENCE: Duration = Duration::from_secs(30);
const PATIENT: Limits = Limits { first_idle: PATIENCE, transfer: PATIENCE, handler: PATIENCE, ..LIMITS };

#[test]
fn health_and_readiness() {
    let rig = Rig::new(PATIENT);
    assert!(rig.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    let said = rig.get("/readyz");
    assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("no link to a backend is up\n"), "{said}");
    rig.counter_set.set(LINKS, 1);
    let said = rig.get("/readyz");
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("\r\n\r\nready\n"), "{said}");
    rig.status.set_draining(true);
    let said = rig.get("/readyz");
    assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("draining\n"), "{said}");
    assert!(rig.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn metrics_and_status() {
    let rig = Rig::new(PATIENT);
    rig.counter_set.publish(&[7, 5, 2]);
    let said = rig.get("/metrics?x=1");
    assert!(
        said.contains("content-type: application/openmetrics-text; version=1.0.0")
            && said.ends_with("# EOF\n")
    );
    assert!(
        said.contains("\nmoorline_connections 7\n") && said.contains("\nmoorline_admin_requests_total 0\n")
    );
    let said = rig.get_known("/v1/varz");
    let (_, body) = said.split_once("\r\n\r\n").expect("a head and a body");
    let varz: Varz = serde_json::from_str(body).expect("JSON");
    assert_eq!((varz.connections, varz.sessions, varz.links_up, varz.generation), (7, 5, 2, 0));
    assert_eq!((varz.phase, varz.pid, varz.gateway.as_str()), (Phase::Ready, std::process::id(), "g1"));
    assert_eq!((varz.listener, varz.listeners.len()), (Some(([127, 0, 0, 1], 4).into()), 1));
    assert_eq!(rig.registry.sum("admin_requests"), 2);
}

#[test]
fn anything_else_is_refused_in_clear_words() {
    let rig = Rig::new(PATIENT);
    let said = rig.get("/metric");
    assert!(
        said.starts_with("HTTP/1.1 404 ") && said.contains("no /metric here; there are /healthz"),
        "{said}"
    );
    let said = rig.ask("POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc");
    assert!(said.starts_with("HTTP/1.1 405 ") && said.contains("\r\nallow: GET, HEAD\r\n"), "{said}");
    let said = rig.ask("HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(said.contains("content-length: 3\r\n") && said.ends_with("\r\n\r\n"), "{said}");
    assert!(rig.ask("\x16\x03\x01 hello\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let huge = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert!(rig.ask(&huge).starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    assert!(rig.ask(&many).starts_with("HTTP/1.1 431 "));
}

#[test]
fn a_request_may_come_byte_by_byte_and_a_visitor_may_leave() {
    let rig = Rig::new(PATIENT);
    let mut slow = rig.connect();
    slow.set_nodelay(true).expect("set");
    drop(rig.connect());
    for byte in b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" {
        slow.write_all(&[*byte]).expect("written");
    }
    slow.shutdown(Shutdown::Write).expect("half-closed");
    assert!(read(&mut slow).ends_with("\r\n\r\nok\n"));
}

#[test]
fn silent_visitors_are_closed_at_their_deadline() {
    let short = Duration::from_millis(20);
    let rig = Rig::new(Limits { first_idle: short, transfer: short, ..LIMITS });
    let (mut silent, mut halfway) = (rig.connect(), rig.connect());
    halfway.write_all(b"GET /healthz HT").expect("written");
    assert_eq!(read(&mut silent), "");
    read(&mut halfway); // 408, unless its first bytes came too late

    assert_eq!(rig.registry.sum("admin_refused"), 2);
}

#[test]
fn a_silent_visitor_makes_room_and_foreign_pages_are_refused() {
    let rig = Rig::new(Limits { connections_max: 3, ..PATIENT });
    let mut open: Vec<_> = (0..3).map(|_| rig.connect()).collect();
    assert!(rig.get("/healthz").ends_with("ok\n"), "a silent visitor makes room");
    assert_eq!(read(&mut open.remove(0)), "", "the one that was silent longest");
    open[0].write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("written");
    assert!(read(&mut open[0]).ends_with("ok\n"));
    assert_eq!((rig.registry.sum("admin_refused"), rig.registry.sum("admin_evicted")), (0, 1));
    for (head, status) in
        [("host: evil.example\r\n", 421), ("host: localhost\r\norigin: http://evil.example\r\n", 403)]
    {
        let said = rig.ask(&format!("GET /v1/varz HTTP/1.1\r\n{head}\r\n"));
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    }
}

#[test]
fn whoever_reaches_the_address_gets_health_and_metrics_and_nothing_else() {
    let rig = Rig::new(PATIENT);
    for path in ["/v1/varz", "/v1/restartz", "/v1/drainz", "/v1/nothing"] {
        let said = rig.get(path);
        assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("admin.sock"), "{path}: {said}");
    }
    for path in ["/v1/upgrade", "/v1/drain", "/v1/undrain"] {
        for head in ["content-type: application/json\r\n", "moorline-order: upgrade\r\n", ""] {
            let request =
                format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: 2\r\n\r\n{{}}");
            let said = rig.ask(&request);
            assert!(said.starts_with("HTTP/1.1 403 "), "{path}: {said}");
        }
    }
    assert!(rig.status.restarts.orders().is_empty() && rig.status.drains.orders().is_empty());
    assert!(rig.get_known("/v1/drainz").starts_with("HTTP/1.1 200 "));
    assert!(rig.get_known("/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn orders_take_json_within_the_bounds_of_the_settings() {
    let rig = Rig::new(PATIENT);
    let post = |path: &str, head: &str, body: &str| {
        let length = body.len();
        rig.ask_known(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: {length}\r\n\r\n{body}"
        ))
    };
    let json = "content-type: application/json\r\n";
    let answer = post("/v1/upgrade", json, r#"{"binary": "/b", "timeout_ms": 1500, "dry_run": true}"#);
    assert!(answer.starts_with("HTTP/1.1 202 ") && answer.ends_with("\r\n\r\n1\n"), "{answer}");
    let timeout = Some(Duration::from_millis(1500));
    let order = RestartOrder { target: Target::File("/b".into()), timeout, is_dry_run: true };
    assert_eq!(rig.status.restarts.orders().try_recv(), Ok(order));

    let drain = DrainArguments { grace_ms: Some(5), rate: Some(7), redirect: Some("h:1".into()) };
    let body = serde_json::to_string(&drain).expect("JSON");
    assert!(post("/v1/drain", json, &body).starts_with("HTTP/1.1 202 "));
    assert!(post("/v1/undrain", json, "").starts_with("HTTP/1.1 409 "), "one at a time");
    let wish =
        DrainWish { grace: Some(Duration::from_millis(5)), rate: Some(7), redirect: Some("h:1".into()) };
    assert_eq!(rig.status.drains.orders().try_recv(), Ok(ClientsOrder::Drain(wish)));
    assert!(post("/v1/undrain", json, "").starts_with("HTTP/1.1 202 "));
    assert_eq!(rig.status.drains.orders().try_recv(), Ok(ClientsOrder::Undrain));

    for (path, head, body, word) in [
        ("/v1/upgrade", "", "{}", "application/json"),
        ("/v1/upgrade", "content-type: text/plain\r\n", "{}", "application/json"),
        ("/v1/upgrade", "moorline-order: upgrade\r\n", "", "application/json"),
        ("/v1/upgrade", json, "{", "cannot decode"),
        ("/v1/upgrade", json, r#"["/b", 1500, true]"#, "not a JSON object"),
        ("/v1/undrain", json, "[]", "not a JSON object"),
        ("/v1/upgrade", json, r#"{"binry": "/b"}"#, "binry"),
        ("/v1/upgrade", json, r#"{"binary": "moorline"}"#, "absolute path"),
        ("/v1/upgrade", json, r#"{"binary": "./moorline"}"#, "absolute path"),
        ("/v1/upgrade", json, r#"{"binary": "/b", "previous": true}"#, "not together"),
        ("/v1/upgrade", json, r#"{"timeout_ms": 999}"#, "timeout_ms"),
        ("/v1/upgrade", json, r#"{"timeout_ms": 99999999999}"#, "timeout_ms"),
        ("/v1/undrain", json, r#"{"rate": 1}"#, "rate"),
        ("/v1/drain", json, r#"{"rate": 0}"#, "rate"),
        ("/v1/drain", json, r#"{"grace_ms": 3600001}"#, "grace_ms"),
        ("/v1/drain", json, r#"{"redirect": "x"}"#, "gateway.alternates"),
        ("/v1/drain", json, r#"{"redirect": "evil.example:7000"}"#, "gateway.alternates"),
    ] {
        let answer = post(path, head, body);
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains(word),
            "{path} {head} {body}: {answer}"
        );
    }
    assert!(rig.get_known("/v1/upgrade").starts_with("HTTP/1.1 405 "));
}
