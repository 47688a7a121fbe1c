//! TLS, WebSocket and PROXY listeners: clients of every kind chat, and a hot restart keeps them all.

use crate::gateway::Backend;
use crate::process::TempFile;
use crate::raw::{Client, bytes_of, hello};
use crate::series::Series;
use crate::tunnel::{Authority, NAME, Tunnel, masked, proxy_header};
use crate::{PATIENCE, until};
use moorline_proto::frame::Command;
use moorline_proto::message::client::Code;
use moorline_proto::message::frame_of;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

/// A page that may connect.
const ORIGIN: &str = "https://chat.example";
/// Kinds of the listeners, in order.
pub(crate) const KINDS: [&str; 4] = ["tcp", "tls", "ws", "wss"];

/// A gateway with one listener of each kind.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) series: Series,
    _settings: TempFile,
    _backend: Backend,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With more lines for the last listener, and then others.
    pub(crate) fn start_with(more: &str) -> Self {
        Self::start_as(more, |_| ())
    }

    /// With the command changed by `change`, too.
    pub(crate) fn start_as(more: &str, change: impl FnOnce(&mut std::process::Command)) -> Self {
        let (authority, backend, settings) = (Authority::new(&[NAME]), Backend::start(), TempFile::new(""));
        let listener = |kind: &&str| {
            format!("[[listener]]\nname = \"{kind}\"\nkind = \"{kind}\"\naddress = \"127.0.0.1:0\"\n")
        };
        let text = format!(
            "{}{more}\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n[websocket]\norigins = [\"{ORIGIN}\"]\n\
             [tls]\ncertificates = [\"{}\"]\nkeys = [\"{}\"]\n[reactor]\ncount = 3\n[log]\nlevel = \"debug\"\n",
            KINDS.iter().map(listener).collect::<String>(),
            backend.address,
            authority.certificate.path().display(),
            authority.key.path().display(),
        );
        std::fs::write(settings.path(), text).expect("our file");
        let series = Series::start_file_as(settings.path(), change);
        Self { authority, series, _settings: settings, _backend: backend }
    }

    pub(crate) fn address(&self, kind: &str) -> SocketAddr {
        let number = KINDS.iter().position(|other| *other == kind).expect("a kind");
        self.series.gateway.listeners[number]
    }

    pub(crate) fn connect(&self, kind: &str) -> TcpStream {
        let stream = TcpStream::connect(self.address(kind)).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    fn tunnel(&self, kind: &str, stream: &mut TcpStream) -> Tunnel {
        let has_tls = matches!(kind, "tls" | "wss");
        let protocol = if kind == "tls" { "moorline/1" } else { "http/1.1" };
        let tunnel = if has_tls {
            Tunnel::tls(stream, self.authority.client(protocol)).expect("a handshake")
        } else {
            Tunnel::default()
        };
        if kind.starts_with("ws") { tunnel.upgrade(stream, ORIGIN).expect("an answer") } else { tunnel }
    }

    pub(crate) fn login(&self, kind: &str, uid: &str) -> Client {
        let mut stream = self.connect(kind);
        let tunnel = self.tunnel(kind, &mut stream);
        Client::login_over(stream, tunnel, uid)
    }
}

/// Everybody writes to everybody else, and each hears it.
pub(crate) fn chat(clients: &mut [(String, Client)], key: &mut u128) {
    for from in 0..clients.len() {
        for to in (0..clients.len()).filter(|to| *to != from) {
            *key += 1;
            let (name, before) = (clients[to].0.clone(), clients[to].1.heard.pushes.len());
            let ack = clients[from].1.tell(*key, &name, format!("message {key}").as_bytes());
            assert_eq!(ack.code(), Code::Ok, "{} to {name}: {ack:?}", clients[from].0);
            clients[to].1.until("the message", |heard| heard.pushes.len() > before);
        }
    }
}

#[test]
fn clients_of_every_kind_chat_with_each_other_over_restarts_with_fresh_keys() {
    let world = World::start();
    let mut key = 0;
    let mut clients: Vec<_> =
        KINDS.iter().map(|kind| ((*kind).to_owned(), world.login(kind, kind))).collect();
    chat(&mut clients, &mut key);
    for round in 0..4 {
        let restart = world.series.restart();
        assert!(restart.sockets >= 8, "{restart:?}");
        for (_, client) in &mut clients {
            if let Some(tunnel) = client.tunnel.as_mut().filter(|_| round % 2 == 0) {
                tunnel.update_keys(&mut client.stream).expect("it stands");
            }
        }
        chat(&mut clients, &mut key);
    }
    for (name, client) in &mut clients {
        client.beat(30);
        assert_eq!((client.heard.repeats, client.heard.again, &client.heard.end), (0, 0, &None), "{name}");
        assert_eq!(client.heard.pushes.len(), usize::try_from(key / 4).expect("small"), "{name}");
    }
}

#[test]
fn large_messages_and_slow_readers_are_whole_over_tls_and_websockets() {
    let world = World::start();
    let body: Vec<u8> =
        (0..60_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    for kind in KINDS {
        let (mut alice, mut bob) =
            (world.login(kind, &format!("alice-{kind}")), world.login(kind, &format!("bob-{kind}")));
        // bob reads nothing while 40 messages of 60 KB come, and a restart is in between.
        let cids: Vec<_> = (0..40)
            .map(|number| {
                let cid = alice.send(&crate::raw::message(number, &format!("bob-{kind}"), &body));
                if number == 20 {
                    alice.until("half of the answers", |heard| heard.send_acks.len() > 10);
                    world.series.restart();
                }
                cid
            })
            .collect();
        alice.until("all answers", |heard| cids.iter().all(|cid| !heard.answers(*cid).is_empty()));
        bob.until("all messages", |heard| heard.pushes.len() == 40);
        assert!(bob.heard.pushes.iter().all(|push| push.payload == body), "{kind}: a body has changed");
        assert_eq!((bob.heard.repeats, bob.heard.again), (0, 0), "{kind}");
    }
}

#[test]
fn records_and_messages_may_come_byte_by_byte_over_restarts() {
    let world = World::start_with("[limits]\nhandshake_timeout = \"5m\"\n");
    for kind in ["tls", "ws", "wss"] {
        let mut stream = world.connect(kind);
        let mut tunnel = world.tunnel(kind, &mut stream);
        // What would go out is caught, and sent by the byte.
        let frame = bytes_of(&frame_of(Command::Hello, &hello(&format!("drip-{kind}"), "d")));
        let wire = match kind {
            "ws" => masked(0x82, &frame),
            _ => tunnel.seal(&if kind == "tls" { frame } else { masked(0x82, &frame) }),
        };
        for (number, byte) in wire.iter().enumerate() {
            stream.write_all(&[*byte]).expect("it stands");
            if number % 40 == 10 {
                world.series.restart();
            }
        }
        let mut client = Client::over(stream, Some(tunnel));
        client.until("WELCOME", |heard| heard.welcome.is_some());
        client.beat(30);
    }
}

#[test]
fn a_handshake_that_nobody_has_answered_goes_to_the_new_process_and_a_half_done_one_is_counted() {
    // On a busy machine the new process may take longer than the usual 5 s to be ready.
    let world = World::start_with("[limits]\nhandshake_timeout = \"5m\"\n");
    let mut stream = world.connect("tls");
    let mut hello = Tunnel::client_hello(&world.authority.client("moorline/1"));
    let rest = hello.split_off(hello.len() / 2);
    stream.write_all(&hello).expect("it stands");
    // Another client has its answer, and does not go on.
    let mut half = world.connect("tls");
    half.write_all(&Tunnel::client_hello(&world.authority.client("moorline/1"))).expect("it stands");
    half.read_exact(&mut [0; 5]).expect("a record");
    // A third one has sent half of its HTTP request.
    let mut browser = world.connect("ws");
    browser.write_all(b"GET /chat HTTP/1.1\r\nHost: gate").expect("it stands");

    let restart = world.series.restart();
    let step = restart.steps.iter().find(|step| step.name == "handshakes").expect("the verdict tells");
    assert!(step.detail.starts_with("1 connections"), "{step:?}");
    world.series.gateway.until_metric("tls_handshakes_lost_total", 1);
    let mut end = Vec::new();
    half.read_to_end(&mut end).ok();
    stream.write_all(&rest).expect("it stands");
    stream.read_exact(&mut [0; 5]).expect("the answer of the new process");
    browser.write_all(b"way.test\r\n\r\n").expect("it stands");
    let mut answer = String::new();
    browser.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[test]
fn a_websocket_needs_its_origin_its_protocol_and_its_rules() {
    let world = World::start();
    let refused = |origin: &str| {
        let mut stream = world.connect("ws");
        Tunnel::default().ask_upgrade(&mut stream, origin).expect("an answer")
    };
    let answer = refused("https://evil.example");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    world.series.gateway.until_metric("websocket_upgrades_refused_total", 1);

    let mut client = world.login("ws", "pinger");
    let tunnel = client.tunnel.as_mut().expect("a WebSocket");
    tunnel.write_raw(&mut client.stream, &masked(0x89, b"are you there")).expect("it stands");
    client.beat(30);
    // Text is not spoken here: 1003.
    let tunnel = client.tunnel.as_mut().expect("a WebSocket");
    tunnel.write_raw(&mut client.stream, &masked(0x81, b"text")).expect("it stands");
    client.end();
    assert_eq!(client.tunnel.as_ref().and_then(Tunnel::close_code), Some(1003));
    world.series.gateway.until_metric("layer_faults_total", 1);

    // A close of the gateway says its code: 4000 + (code - 3000).
    let mut client = world.login("wss", "faulty");
    client.write(b"no frame");
    let code = client.end().code();
    client.read_close();
    assert_eq!(
        client.tunnel.as_ref().and_then(Tunnel::close_code),
        Some(u16::try_from(code + 1000).expect("a code"))
    );
}

#[test]
fn a_plain_client_at_a_tls_listener_and_a_wrong_name_or_protocol_are_refused_at_once() {
    let world = World::start();
    let mut stream = world.connect("tls");
    stream.write_all(&bytes_of(&frame_of(Command::Hello, &hello("plain", "d")))).expect("it stands");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    for (name, protocol) in [("other.test", "moorline/1"), (NAME, "h2")] {
        let mut stream = world.connect("tls");
        let error = Tunnel::tls_to(&mut stream, world.authority.client(protocol), name).err();
        assert!(error.is_some(), "{name} {protocol}");
    }
    // A ClientHello that does not end.
    let mut stream = world.connect("tls");
    stream.write_all(&[22, 3, 1, 0x40, 0]).expect("it stands");
    stream.write_all(&[1; 9_000]).expect("it stands");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end, and no reset that overtakes the alert");
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 22], "record_overflow");
    world.series.gateway.until_metric("tls_handshakes_failed_total", 4);
}

#[test]
fn the_memory_of_a_process_with_keys_is_hidden_also_after_a_restart() {
    let world = World::start();
    for _ in 0..2 {
        check_hidden(world.series.pid());
        world.series.restart();
    }
}

/// Fails unless the memory of a process comes into no core file and is root's.
pub(crate) fn check_hidden(pid: u32) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_ascii_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    let owner = std::fs::metadata(format!("/proc/{pid}/mem")).expect("it runs");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
}

#[test]
fn a_session_is_resumed_by_a_ticket_also_at_the_process_after_a_restart() {
    let world = World::start();
    let config = world.authority.client("moorline/1");
    for round in 0..3 {
        let mut stream = world.connect("tls");
        let tunnel = Tunnel::tls(&mut stream, config.clone()).expect("a handshake");
        Client::login_over(stream, tunnel, "returning").beat(30);
        world.series.gateway.until_metric("tls_resumed_total", round);
        world.series.restart();
    }
}

#[test]
fn behind_a_proxy_the_header_names_the_client_and_nobody_else_comes_in() {
    let more = "proxy_trusted = [\"127.0.0.0/8\"]\naddress_connections = 2\n";
    let world = World::start_with(more);
    let from = |host: u8| SocketAddr::from(([192, 0, 2, host], 1234));
    let login = |host: u8, uid: &str| {
        let mut stream = world.connect("wss");
        stream.write_all(&proxy_header(from(host))).expect("it stands");
        let tunnel = Tunnel::tls(&mut stream, world.authority.client("http/1.1"))?;
        let tunnel = tunnel.upgrade(&mut stream, ORIGIN)?;
        Ok::<_, std::io::Error>(Client::login_over(stream, tunnel, uid))
    };
    let mut first: Vec<_> = (0..2).map(|number| login(1, &format!("p{number}")).expect("let in")).collect();
    assert!(login(1, "p2").is_err(), "the third one of this address");
    let mut other = login(2, "p3").expect("another address");
    world.series.restart();
    first.iter_mut().chain([&mut other]).for_each(|client| client.beat(30));
    assert!(login(1, "p2").is_err(), "two of this address came over");
    // An opening whose proxy has not spoken yet belongs to nobody, over a restart too.
    let mut silent = world.connect("wss");
    silent.write_all(&proxy_header(from(3))[..8]).expect("it stands");
    world.series.restart();
    first.pop();
    let mut next = until("its place is free", || login(1, "p2").ok());
    assert!(login(1, "p4").is_err(), "two are there again");
    first.iter_mut().chain([&mut other, &mut next]).for_each(|client| client.beat(30));
    drop(silent);
    let refused = world.series.gateway.metric("proxies_refused_total");

    // Without a header, nothing; and no header within a second ends the connection too.
    let mut stream = world.connect("wss");
    stream.write_all(&Tunnel::client_hello(&world.authority.client("http/1.1"))).expect("it stands");
    assert!(is_closed(&mut stream));
    assert!(is_closed(&mut world.connect("wss")));
    world.series.gateway.until_at_least("proxies_refused_total", refused + 2);
}

/// Waits for the end of a connection of which nothing comes.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_certificate_is_replaced_by_a_reload_and_connections_stay() {
    let world = World::start();
    let mut client = world.login("tls", "staying");
    let new = Authority::new(&[NAME]);
    std::fs::copy(new.certificate.path(), world.authority.certificate.path()).expect("our file");
    // A certificate without its key is refused, and the old one stays.
    let (code, _, error) = world.series.reload();
    assert!(code != Some(0) && error.contains("key"), "{code:?} {error}");
    let tls = |authority: &Authority| {
        let mut stream = world.connect("tls");
        Tunnel::tls(&mut stream, authority.client("moorline/1")).is_ok()
    };
    assert!(tls(&world.authority) && !tls(&new));
    std::fs::copy(new.key.path(), world.authority.key.path()).expect("our file");
    let (code, _, error) = world.series.reload();
    assert_eq!(code, Some(0), "{error}");
    assert!(tls(&new) && !tls(&world.authority));
    client.beat(30);
}

#[test]
fn openssl_as_a_client_is_served_by_both_suites_and_ends_in_due_form() {
    let has_openssl = std::process::Command::new("openssl").arg("version").output().is_ok();
    let is_required = std::env::var("MOORLINE_OPENSSL").is_ok_and(|value| value == "require");
    assert!(has_openssl || !is_required, "install openssl");
    if !has_openssl {
        println!("SKIPPED: there is no openssl on this machine");
        return;
    }
    let world = World::start();
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let mut openssl = std::process::Command::new("openssl")
            .args(["s_client", "-quiet", "-alpn", "moorline/1", "-servername", NAME, "-ciphersuites", suite])
            .args(["-verify_return_error", "-CAfile"])
            .arg(world.authority.certificate.path())
            .args(["-connect", &world.address("tls").to_string()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("openssl runs");
        let (mut input, mut output) =
            (openssl.stdin.take().expect("piped"), openssl.stdout.take().expect("piped"));
        let frame = bytes_of(&frame_of(Command::Hello, &hello(suite, "d")));
        input.write_all(&frame).expect("it listens");
        let mut head = [0; 16];
        output.read_exact(&mut head).expect("WELCOME");
        assert_eq!((head[0], head[1]), (0xA1, Command::Welcome.byte()), "{suite}");
        world.series.restart();
        // A byte that no frame begins with: CLOSE, and then the end, which openssl takes for one in due form.
        input.write_all(b"x").expect("it stands");
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).expect("the end");
        assert!(!rest.is_empty() && openssl.wait().expect("ours").success(), "{suite}");
    }
}

#[test]
fn a_listener_without_tls_off_loopback_needs_to_be_asked_for() {
    let (code, _, error) = crate::process::run(&[
        "check",
        "--set",
        "auth.mode=backend",
        "--set",
        "listener.address=192.0.2.1:7000",
    ]);
    assert!(code != Some(0) && error.contains("listener.kind") && error.contains("plain"), "{error}");
}
