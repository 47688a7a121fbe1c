//! The server over real sockets.

use super::*;
use proptest::prelude::*;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMITS: Limits = Limits {
    connections_max: 4,
    head_bytes_max: 8 << 10,
    body_bytes_max: 100,
    first_idle: Duration::from_secs(30),
    idle: Duration::from_secs(30),
    transfer: Duration::from_secs(30),
    handler: Duration::from_secs(30),
};

#[derive(Default)]
struct Counts([AtomicUsize; 4]);

impl Counts {
    fn of(&self, event: Event) -> usize {
        self.0[event as usize].load(Ordering::SeqCst)
    }
}

struct Rig {
    server: Server,
    counts: Arc<Counts>,
}

fn refuse(refusal: Refusal) -> Response {
    let status = match refusal {
        Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::BadHead => StatusCode::BAD_REQUEST,
        Refusal::WrongHost => StatusCode::MISDIRECTED_REQUEST,
        Refusal::ForeignOrigin => StatusCode::FORBIDDEN,
        Refusal::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Refusal::NoLength => StatusCode::LENGTH_REQUIRED,
        Refusal::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
    };
    Response::new(status, "text/plain", format!("{refusal:?}\n"))
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let counts = Arc::new(Counts::default());
        let theirs = Arc::clone(&counts);
        let judge = |head: &Head<'_>| match bearer(head.headers) {
            Some(b"right") => Ok(Caller::Known("tester".into())),
            Some(_) => Err(Box::new(Response::new(StatusCode::UNAUTHORIZED, "text/plain", "wrong\n"))),
            None => Ok(Caller::Stranger),
        };
        let settings = Settings::new("http-test", limits, refuse).with_judge(judge);
        // Answers what it was asked.
        let handler = || {
            |request: Request| async move {
                let text = format!("{} {} {}\n", request.method, request.path(), request.body.len());
                Response::new(StatusCode::OK, "text/plain", text)
            }
        };
        let count = move |event| _ = theirs.0[event as usize].fetch_add(1, Ordering::SeqCst);
        let server = Server::start(listener, settings, handler, count).expect("starts");
        Self { server, counts }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address().tcp().expect("TCP")).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream
    }

    /// Sends any bytes and returns all bytes that come back.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).ok(); // it may close before it has read all
        stream.shutdown(Shutdown::Write).ok();
        rest(&mut stream)
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered and closed, not reset");
    String::from_utf8_lossy(&answer).into_owned()
}

/// One answer on a connection that goes on.
fn one(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).expect("in time"), 1, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&byte);
    }
    String::from_utf8(answer).expect("text")
}

const AUTHORISED: &[u8] =
    b"GET /a HTTP/1.1\r\nhost: localhost\r\nuser-agent: t\r\nauthorization: Bearer right\r\n\r\n";
const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: localhost\r\nuser-agent: test\r\n\r\n";

#[test]
fn a_connection_is_kept_and_requests_may_come_at_once() {
    let rig = Rig::new(LIMITS);
    let mut stream = rig.connect();
    for _ in 0..3 {
        stream.write_all(GET).expect("written");
        assert!(one(&mut stream).ends_with("\r\n\r\nGET /a 0\n"));
    }
    stream.write_all(&GET.repeat(3)).expect("written");
    for _ in 0..3 {
        assert!(one(&mut stream).ends_with("\r\n\r\nGET /a 0\n"));
    }
    let last = b"POST http://localhost/b?c HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
    stream.write_all(last).expect("written");
    assert!(rest(&mut stream).ends_with("\r\n\r\nPOST /b 3\n"));
    assert_eq!(rig.counts.of(Event::Answered), 7);
}

#[test]
fn a_request_of_the_old_command_line_ends_its_connection() {
    let rig = Rig::new(LIMITS);
    let mut stream = rig.connect();
    stream.write_all(b"GET /v1/varz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("written");
    assert!(rest(&mut stream).contains("\r\nconnection: close\r\n"));
}

#[test]
fn bad_requests_get_their_answer() {
    let rig = Rig::new(LIMITS);
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    for (bytes, status) in [
        (&b"\x16\x03\x01 hello\r\n\r\n"[..], "400"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 101\r\n\r\n", "413"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", "200"),
    ] {
        let answer = rig.raw(bytes);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    let head = rig.raw(b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(head.contains("\r\ncontent-length: 16\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(
        rig.raw(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"),
        "",
        "half a request"
    );
    let huge =
        [&b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n"[..], &vec![b'x'; 200_000]]
            .concat();
    assert!(rig.raw(&huge).starts_with("HTTP/1.1 413 "), "the answer outlives the unread body");
}

#[test]
fn a_body_may_wait_to_be_asked_for() {
    let rig = Rig::new(LIMITS);
    let mut stream = rig.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        .expect("written");
    let mut go = [0; 25];
    stream.read_exact(&mut go).expect("asked for");
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ab").expect("written");
    assert!(one(&mut stream).ends_with("POST / 2\n"));
}

#[test]
fn a_request_may_come_byte_by_byte_from_a_half_closed_connection() {
    let rig = Rig::new(LIMITS);
    let mut slow = rig.connect();
    slow.set_nodelay(true).expect("set");
    for byte in GET {
        slow.write_all(&[*byte]).expect("written");
    }
    slow.shutdown(Shutdown::Write).expect("half-closed");
    assert!(rest(&mut slow).ends_with("GET /a 0\n"));
}

#[test]
fn slow_and_silent_visitors_are_closed_at_their_deadlines() {
    let short = Duration::from_millis(50);
    let rig = Rig::new(Limits { first_idle: short, transfer: short, ..LIMITS });
    assert_eq!(rest(&mut rig.connect()), "");
    let mut halfway = rig.connect();
    halfway.write_all(b"GET /healthz HT").expect("written");
    assert!(rest(&mut halfway).starts_with("HTTP/1.1 408 "));
    let mut body = rig.connect();
    body.write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc").expect("written");
    assert!(rest(&mut body).starts_with("HTTP/1.1 408 "));
    assert_eq!(rig.counts.of(Event::TooSlow), 3);
    let rig = Rig::new(Limits { idle: short, ..LIMITS });
    let mut idle = rig.connect();
    idle.write_all(AUTHORISED).expect("written");
    assert!(rest(&mut idle).ends_with("GET /a 0\n"), "closed, though it was to be kept");
}

#[test]
fn the_stranger_that_is_silent_longest_makes_room() {
    let rig = Rig::new(LIMITS);
    let mut known = rig.connect();
    known.write_all(AUTHORISED).expect("written");
    one(&mut known);
    let mut silent = rig.connect();
    let mut halfway = rig.connect();
    halfway.write_all(&GET[..10]).expect("written");
    let mut idle = rig.connect();
    idle.write_all(GET).expect("written");
    one(&mut idle);
    // Each of three newcomers takes the place of one stranger; the known caller stays.
    let mut newer: Vec<_> = (0..3).map(|_| rig.connect()).collect();
    for stream in &mut newer {
        stream.write_all(AUTHORISED).expect("written");
        assert!(one(stream).ends_with("GET /a 0\n"));
    }
    for stream in [&mut silent, &mut halfway, &mut idle] {
        assert_eq!(rest(stream), "", "it made room");
    }
    assert_eq!((rig.counts.of(Event::TooMany), rig.counts.of(Event::Evicted)), (0, 3));
    // Among known callers, the one that is idle longest goes.
    let mut last = rig.connect();
    last.write_all(AUTHORISED).expect("written");
    one(&mut last);
    assert_eq!(rest(&mut known), "");
    newer[0].write_all(AUTHORISED).expect("written");
    assert!(one(&mut newer[0]).ends_with("GET /a 0\n"));
}

#[test]
fn health_has_places_of_its_own_while_everybody_is_being_answered() {
    let (entered, in_handler) = std::sync::mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let theirs = Arc::clone(&gate);
    let handler = move || {
        move |request: Request| {
            let (entered, gate) = (entered.clone(), Arc::clone(&theirs));
            async move {
                if request.path() == "/slow" {
                    entered.send(()).expect("the test waits");
                    gate.acquire().await.expect("open").forget();
                }
                Response::new(StatusCode::OK, "text/plain", "done\n")
            }
        }
    };
    let settings = Settings::new("http-test", LIMITS, refuse);
    let server = Server::start(listener, settings, handler, |_| ()).expect("starts");
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(server.address().tcp().expect("TCP")).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: t\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        stream
    };
    let mut slow: Vec<_> = (0..LIMITS.connections_max).map(|_| ask("/slow")).collect();
    for _ in &slow {
        in_handler.recv_timeout(Duration::from_secs(20)).expect("each has a handler");
    }
    let mut other = ask("/other");
    assert!(rest(&mut other).starts_with("HTTP/1.1 503 "));
    for path in ["/healthz", "/readyz"].iter().cycle().take(20) {
        assert!(rest(&mut ask(path)).ends_with("done\n"), "{path}");
    }
    // Silent visitors take these places from nobody either.
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(server.address().tcp().expect("TCP")).expect("the kernel takes it"))
        .collect();
    assert!(rest(&mut ask("/healthz")).ends_with("done\n"));
    drop(silent);
    gate.add_permits(slow.len());
    slow.iter_mut().for_each(|stream| assert!(one(stream).ends_with("done\n")));
}

#[test]
fn a_paused_server_answers_what_it_has_and_lets_others_wait() {
    let rig = Rig::new(LIMITS);
    let (mut idle, mut asking) = (rig.connect(), rig.connect());
    idle.write_all(GET).expect("written");
    one(&mut idle);
    asking.write_all(&GET[..10]).expect("written");
    // The pause must come after the half request, so that the connection is known: its answer shows it.
    let mut known = rig.connect();
    known.write_all(GET).expect("written");
    one(&mut known);
    rig.server.set_paused(true);
    assert_eq!(rest(&mut idle), "");
    let mut later = rig.connect();
    later.write_all(GET).expect("the kernel takes it");
    asking.write_all(&GET[10..]).expect("written");
    assert!(rest(&mut asking).contains("\r\nconnection: close\r\n"));
    assert_eq!(rig.counts.of(Event::Answered), 3);
    rig.server.set_paused(false);
    assert!(one(&mut later).ends_with("GET /a 0\n"));
}

#[test]
fn a_server_stops_whatever_its_visitors_do() {
    let rig = Rig::new(LIMITS);
    let (mut silent, mut halfway, mut idle) = (rig.connect(), rig.connect(), rig.connect());
    halfway.write_all(b"GET /healthz HT").expect("written");
    idle.write_all(GET).expect("written");
    one(&mut idle);
    let address = rig.server.address().tcp().expect("TCP");
    drop(rig);
    TcpStream::connect(address).expect_err("nobody listens");
    for stream in [&mut silent, &mut halfway, &mut idle] {
        assert_eq!(rest(stream), "");
    }
}

#[test]
fn the_client_asks_and_is_answered_in_time() {
    let rig = Rig::new(LIMITS);
    let question = Question { method: Method::POST, json: Some("{}".into()), ..Question::get("/x?y") };
    let answer = ask(rig.server.address(), &question, Duration::from_secs(20)).expect("answered");
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "POST /x 2\n"));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound").into();
    let error = ask(&address, &Question::get("/"), Duration::from_millis(50)).expect_err("no answer");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(silent);
    ask(&address, &Question::get("/"), Duration::from_secs(20)).expect_err("nobody listens");
}

#[test]
fn a_visitor_of_a_unix_socket_is_known_by_its_user() {
    let path = std::env::temp_dir().join(format!("moorline-http-{}.sock", std::process::id()));
    std::fs::remove_file(&path).ok();
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let settings = Settings::new("http-test", LIMITS, refuse);
    let handler = || {
        |request: Request| async move { Response::new(StatusCode::OK, "text/plain", request.peer.to_string()) }
    };
    let server = Server::start(listener, settings, handler, |_| ()).expect("starts");
    let answer = ask(server.address(), &Question::get("/"), Duration::from_secs(20)).expect("answered");
    let uid = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    assert_eq!(answer.body, format!("uid {}, pid {}", uid.expect("proc"), std::process::id()));
    assert_eq!("/a/b".parse(), Ok(Address::Unix("/a/b".into())));
    assert_eq!(server.address().to_string().parse().as_ref(), Ok(server.address()));
    drop(server);
    std::fs::remove_file(&path).ok();
}

#[test]
fn a_bearer_token_stands_there_once() {
    let given = |values: &[&str]| {
        let value = |value: &&str| (header::AUTHORIZATION, value.parse().expect("a value"));
        let headers: hyper::HeaderMap = values.iter().map(value).collect();
        bearer(&headers).map(<[u8]>::to_vec)
    };
    for right in ["Bearer secret", "bearer secret"] {
        assert_eq!(given(&[right]).as_deref(), Some(&b"secret"[..]));
    }
    assert_eq!(given(&["Bearer "]).as_deref(), Some(&b""[..]));
    for wrong in [&[][..], &[""], &["Bearer"], &["Basic secret"], &["Bearer secret", "Bearer secret"]] {
        assert_eq!(given(wrong), None, "{wrong:?}");
    }
}

#[test]
fn a_request_is_for_this_server_and_from_no_foreign_page() {
    let rig = Rig::new(LIMITS);
    let head =
        |lines: &str| rig.raw(format!("GET /a HTTP/1.1\r\nuser-agent: test\r\n{lines}\r\n").as_bytes());
    let own = rig.server.address().tcp().expect("TCP");
    for (lines, status) in [
        (String::new(), "400"),
        ("host: localhost\r\n".into(), "200"),
        (format!("host: {own}\r\norigin: http://{own}\r\n"), "200"),
        ("host: evil.example\r\n".into(), "421"),
        (format!("host: evil.example:{}\r\n", own.port()), "421"),
        ("host: localhost\r\nhost: evil.example\r\n".into(), "400"),
        (format!("host: {own}\r\norigin: http://evil.example\r\n"), "403"),
        (format!("host: {own}\r\norigin: null\r\n"), "403"),
        (format!("host: {own}\r\norigin: http://{own}\r\norigin: null\r\n"), "400"),
        ("host: localhost\r\nauthorization: Bearer right\r\n".into(), "200"),
        ("host: localhost\r\nauthorization: Bearer right\r\nauthorization: Bearer x\r\n".into(), "400"),
        ("host: localhost\n".into(), "400"),
    ] {
        let answer = head(&lines);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{lines:?}: {answer}");
    }
    let absolute = rig.raw(b"GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(absolute.starts_with("HTTP/1.1 421 "), "{absolute}");
    let named = Settings::new("x", LIMITS, refuse).with_names(vec!["gw.internal".into()]);
    assert_eq!(named.names, ["gw.internal"]);
}

#[test]
fn a_wrong_token_is_refused_before_its_body_is_read() {
    let rig = Rig::new(Limits { body_bytes_max: 1 << 20, ..LIMITS });
    let post = |token: &str, length: usize| {
        format!(
            "POST /b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    // No byte of the body is ever sent.
    let mut wrong = rig.connect();
    wrong.write_all(post("wrong", 1 << 20).as_bytes()).expect("written");
    assert!(rest(&mut wrong).starts_with("HTTP/1.1 401 "));
    let stranger = b"POST /b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 70000\r\n\r\n";
    let mut unknown = rig.connect();
    unknown.write_all(stranger).expect("written");
    assert!(rest(&mut unknown).starts_with("HTTP/1.1 413 "), "a stranger's body is small");
    let mut right = rig.connect();
    right.write_all(post("right", 70_000).as_bytes()).expect("written");
    right.write_all(&vec![b'x'; 70_000]).expect("written");
    assert!(one(&mut right).ends_with("POST /b 70000\n"));
}

#[test]
fn only_a_known_caller_may_be_idle_for_long() {
    let rig = Rig::new(Limits { first_idle: Duration::from_millis(50), ..LIMITS });
    let mut known = rig.connect();
    known.write_all(AUTHORISED).expect("written");
    one(&mut known);
    let mut stranger = rig.connect();
    stranger.write_all(GET).expect("written");
    assert!(rest(&mut stranger).ends_with("GET /a 0\n"), "closed after its wait, though it was to be kept");
    known.write_all(AUTHORISED).expect("written");
    assert!(one(&mut known).ends_with("GET /a 0\n"), "still there");
}

/// Pieces of requests, right and wrong.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(GET.to_vec()),
        2 => Just(b"POST /p HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc".to_vec()),
        1 => Just(b"POST /p HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec()),
        1 => Just(b"POST /p HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec()),
        1 => Just(b"HEAD / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".to_vec()),
        1 => Just(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        1 => Just(b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n".to_vec()),
        1 => Just(b"CONNECT x:1 HTTP/1.1\r\n\r\n".to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

#[test]
fn no_bytes_stop_the_server() {
    let rig = Rig::new(Limits { transfer: Duration::from_millis(500), ..LIMITS });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let input = (prop::collection::vec(piece(), 1..5), any::<prop::sample::Index>());
    runner
        .run(&input, |(pieces, cut)| {
            let mut bytes = pieces.concat();
            bytes.truncate(cut.index(2 * bytes.len() + 1)); // half of the inputs are whole
            let mut stream = rig.connect();
            stream.write_all(&bytes).ok();
            stream.shutdown(Shutdown::Write).ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
            let text = String::from_utf8_lossy(&answer);
            prop_assert!(text.is_empty() || text.starts_with("HTTP/1."), "{}", text);
            Ok(())
        })
        .expect("whatever comes is answered or closed");
    assert!(rig.raw(GET).ends_with("GET /a 0\n"), "and the next one is served");
}

#[test]
fn several_servers_are_asked_at_once_and_a_silent_one_costs_its_own_answer_only() {
    let rig = Rig::new(LIMITS);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let place_of_silent = Address::Tcp(silent.local_addr().expect("bound"));
    let place = rig.server.address().clone();
    let questions = [(place.clone(), "/a"), (place_of_silent, "/b"), (place, "/c")];
    let answers = ask_all(&questions, Duration::from_millis(300), 2).expect("a poll");
    let bodies: Vec<_> = answers.into_iter().map(|answer| answer.ok().map(|answer| answer.body)).collect();
    assert_eq!(bodies, [Some("GET /a 0\n".into()), None, Some("GET /c 0\n".into())]);
}
