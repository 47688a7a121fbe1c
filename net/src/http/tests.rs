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
        Refusal::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Refusal::NoLength => StatusCode::LENGTH_REQUIRED,
        Refusal::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
    };
    Response::new(status, "text/plain", format!("{refusal:?}\n"))
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let counts = Arc::new(Counts::default());
        let theirs = Arc::clone(&counts);
        let settings = Settings { thread: "http-test", limits, refuse };
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
        let stream = TcpStream::connect(self.server.address()).expect("connects");
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

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\nuser-agent: test\r\n\r\n";

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
    let last = b"POST http://x/b?c HTTP/1.1\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
    stream.write_all(last).expect("written");
    assert!(rest(&mut stream).ends_with("\r\n\r\nPOST /b 3\n"));
    assert_eq!(rig.counts.of(Event::Answered), 7);
}

#[test]
fn a_request_of_the_old_command_line_ends_its_connection() {
    let rig = Rig::new(LIMITS);
    let mut stream = rig.connect();
    stream.write_all(b"GET /v1/varz HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    assert!(rest(&mut stream).contains("\r\nconnection: close\r\n"));
}

#[test]
fn bad_requests_get_their_answer() {
    let rig = Rig::new(LIMITS);
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    for (bytes, status) in [
        (&b"\x16\x03\x01 hello\r\n\r\n"[..], "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 101\r\n\r\n", "413"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", "200"),
    ] {
        let answer = rig.raw(bytes);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    let head = rig.raw(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(head.contains("\r\ncontent-length: 16\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(rig.raw(b"POST / HTTP/1.1\r\ncontent-length: 50\r\n\r\n{"), "", "half a request");
    let huge = [&b"POST / HTTP/1.1\r\ncontent-length: 200000\r\n\r\n"[..], &vec![b'x'; 200_000]].concat();
    assert!(rig.raw(&huge).starts_with("HTTP/1.1 413 "), "the answer outlives the unread body");
}

#[test]
fn a_body_may_wait_to_be_asked_for() {
    let rig = Rig::new(LIMITS);
    let mut stream = rig.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
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
    body.write_all(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc").expect("written");
    assert!(rest(&mut body).starts_with("HTTP/1.1 408 "));
    assert_eq!(rig.counts.of(Event::TooSlow), 3);
    let rig = Rig::new(Limits { idle: short, ..LIMITS });
    let mut idle = rig.connect();
    idle.write_all(GET).expect("written");
    assert!(rest(&mut idle).ends_with("GET /a 0\n"), "closed, though it was to be kept");
}

#[test]
fn the_connection_that_is_idle_longest_makes_room() {
    let rig = Rig::new(LIMITS);
    let mut open: Vec<_> = (0..LIMITS.connections_max).map(|_| rig.connect()).collect();
    let answer = rest(&mut rig.connect());
    assert!(answer.starts_with("HTTP/1.1 503 "), "nobody is idle after an answer: {answer}");
    for stream in &mut open[1..3] {
        stream.write_all(GET).expect("written");
        one(stream);
    }
    let mut newer = rig.connect();
    newer.write_all(GET).expect("written");
    assert!(one(&mut newer).ends_with("GET /a 0\n"));
    assert_eq!(rest(&mut open[1]), "", "it was idle longest");
    open[2].write_all(GET).expect("written");
    assert!(one(&mut open[2]).ends_with("GET /a 0\n"));
    assert_eq!((rig.counts.of(Event::TooMany), rig.counts.of(Event::Evicted)), (1, 1));
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
    let address = rig.server.address();
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
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound");
    let error = ask(address, &Question::get("/"), Duration::from_millis(50)).expect_err("no answer");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(silent);
    ask(address, &Question::get("/"), Duration::from_secs(20)).expect_err("nobody listens");
}

#[test]
fn a_token_must_be_right_in_every_byte() {
    let request = |value: Option<&str>| Request {
        method: Method::GET,
        headers: value
            .map(|value| (header::AUTHORIZATION, value.parse().expect("a value")))
            .into_iter()
            .collect(),
        body: bytes::Bytes::new(),
        peer: None,
        uri: hyper::Uri::default(),
    };
    for right in ["Bearer secret", "bearer secret"] {
        assert!(has_bearer(&request(Some(right)), b"secret"));
    }
    for wrong in ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secret2", "Bearer sEcret", "Basic secret"]
    {
        assert!(!has_bearer(&request(Some(wrong)), b"secret"), "{wrong}");
    }
    assert!(!has_bearer(&request(None), b"secret"));
}

/// Pieces of requests, right and wrong.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(GET.to_vec()),
        2 => Just(b"POST /p HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc".to_vec()),
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
