//! Bad HTTP against the two HTTP servers of running processes: the admin address and the server API.

use crate::PATIENCE;
use crate::gateway::{Backend, Gateway};
use crate::process::TempFile;
use crate::raw::Client;
use crate::until;
use moorline_proto::message::client::Code;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nuser-agent: test\r\n\r\n";

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered and closed, not reset");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whatever bytes, and all that comes back.
fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(bytes).ok(); // it may close before it has read all
    stream.shutdown(Shutdown::Write).ok();
    rest(&mut stream)
}

fn expect_healthy(address: SocketAddr) {
    assert!(raw(address, GET).ends_with("\r\n\r\nok\n"), "{address}");
}

/// Behaviour that both servers share.
fn attack(address: SocketAddr) {
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], "400"),
        (b"GET /healthz\r\n\r\n", "400"),
        (b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        (
            b"POST /v1/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "400",
        ),
        (b"POST /v1/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n", "413"),
        (b"POST /v1/drain HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
    ] {
        let answer = raw(address, bytes);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    // Half-closed before and in the middle of a request, and HEAD.
    assert_eq!(raw(address, b""), "");
    assert_eq!(raw(address, b"GET /hea"), "");
    assert_eq!(raw(address, b"POST /v1/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"), "");
    let head = raw(address, b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    // Requests at once are answered in order.
    let answers =
        raw(address, &[GET, b"GET /no HTTP/1.1\r\nhost: localhost\r\nuser-agent: x\r\n\r\n", GET].concat());
    let statuses: Vec<_> = answers.matches("HTTP/1.1 ").collect();
    assert!(statuses.len() == 3 && answers.contains(" 404 ") && answers.ends_with("ok\n"), "{answers}");
    // A large body that nobody wants does not reset the connection before the answer is read.
    let huge = [
        &b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000\r\n\r\n"[..],
        &vec![b'x'; 100_000],
    ]
    .concat();
    assert!(raw(address, &huge).starts_with("HTTP/1.1 413 "));
    expect_healthy(address);
}

#[test]
fn bad_http_is_answered_and_the_chat_goes_on() {
    let token = TempFile::new("a token of sixteen bytes and more");
    let file = format!("api.token_file=\"{}\"", token.path().display());
    let (backend, line) = Backend::start_saying(&["listen=127.0.0.1:0", "api.listen=127.0.0.1:0", &file]);
    let api = line.split_whitespace().find_map(|word| word.strip_prefix("api=")?.parse().ok());
    let api: SocketAddr = api.expect("an address of the API");
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    attack(gateway.admin);
    attack(api);
    assert_eq!(alice.tell(1, "alice", b"still here").code(), Code::Ok);
}

#[test]
fn slow_and_idle_visitors_of_the_admin_address_shut_out_nobody() {
    let gateway = Gateway::alone(&[]);
    let mut halfway = connect(gateway.admin);
    halfway.write_all(b"GET /healthz HT").expect("written");
    // More visitors than there are places: whoever was silent longest makes room, asked or not.
    let silent: Vec<_> = (0..20).map(|_| connect(gateway.admin)).collect();
    // On a slow machine its time for a request may be over before.
    let end = rest(&mut halfway);
    assert!(end.is_empty() || end.starts_with("HTTP/1.1 408 "), "it made room: {end}");
    let mut kept: Vec<_> = (0..15).map(|_| connect(gateway.admin)).collect();
    for stream in &mut kept {
        stream.write_all(GET).expect("written");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("answered");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    for _ in 0..5 {
        expect_healthy(gateway.admin);
    }
    until("idle ones were evicted", || (gateway.metric("admin_evicted_total") > 0).then_some(()));
    assert_eq!(gateway.metric("admin_refused_total{reason=\"too_many\"}"), 0);
    drop(silent);
}
