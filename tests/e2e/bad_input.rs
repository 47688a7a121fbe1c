//! Everything a client can do wrong has its close code, and nobody else notices.

use crate::beside::Chat;
use crate::gateway::{Backend, Gateway};
use crate::raw::{Client, End, bytes_of, hello, message, send_frame};
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame, encode_batch};
use moorline_proto::message::client::{Hello, Ping, Sub};
use moorline_proto::message::frame_of;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

/// Bad input and the expected end of its connection.
struct Case {
    what: &'static str,
    is_logged_in: bool,
    bytes: Vec<u8>,
    reason: CloseReason,
}

fn stranger(what: &'static str, bytes: impl Into<Vec<u8>>, reason: CloseReason) -> Case {
    Case { what, is_logged_in: false, bytes: bytes.into(), reason }
}

fn member(what: &'static str, bytes: impl Into<Vec<u8>>, reason: CloseReason) -> Case {
    Case { what, is_logged_in: true, bytes: bytes.into(), reason }
}

fn ping() -> Frame {
    frame_of(Command::Ping, &Ping { next_s: 30 })
}

fn greeting(hello: &Hello) -> Vec<u8> {
    bytes_of(&frame_of(Command::Hello, hello))
}

/// A PING's header with another byte at one place.
fn header_with(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = bytes_of(&Frame::new(Command::Ping, Bytes::new()));
    bytes[at] = byte;
    bytes
}

/// A header that announces a body which does not come.
fn announced(command: Command, body_len: u32) -> Vec<u8> {
    let mut frame = Frame::new(command, Bytes::new());
    frame.header.body_len = body_len;
    frame.header.to_bytes().to_vec()
}

fn batch_of(body: impl Into<Bytes>) -> Vec<u8> {
    bytes_of(&Frame::new(Command::Ping, body.into()).with_flags(Flags::BATCH))
}

fn headers() -> Vec<Case> {
    let mut cases = vec![
        stranger("HTTP", *b"GET / HTTP/1.1\r\nhost: moorline\r\n\r\n", CloseReason::BadMagic),
        stranger("TLS", [0x16, 0x03, 0x01, 0x02, 0x00, 0x01], CloseReason::BadMagic),
        stranger("one zero byte", [0], CloseReason::BadMagic),
        stranger("version 2, one byte", [0xA2], CloseReason::BadVersion),
        stranger("version 0", header_with(0, 0xA0), CloseReason::BadVersion),
        stranger("class bit 3", header_with(3, 0x08), CloseReason::BadHeader),
        stranger("reliable without a seq", header_with(3, 0x04), CloseReason::BadHeader),
        stranger("a seq and not reliable", header_with(11, 1), CloseReason::BadHeader),
        stranger("HELLO over 4 KiB", announced(Command::Hello, 4097), CloseReason::TooLarge),
        stranger("4 GiB", announced(Command::Hello, u32::MAX), CloseReason::TooLarge),
        member("a body over the limit", announced(Command::Send, (64 << 10) + 1), CloseReason::TooLarge),
        member("HTTP after the login", *b"POST / HTTP/1.1\r\n", CloseReason::BadMagic),
        member("class bit 7", header_with(3, 0x80), CloseReason::BadHeader),
    ];
    for byte in [0x00, 0x03, 0x0F, 0x17, 0x3E] {
        cases.push(stranger("no such command", header_with(1, byte), CloseReason::Unsupported));
        cases.push(member("no such command", header_with(1, byte), CloseReason::Unsupported));
    }
    let packed = |body: &'static [u8]| {
        bytes_of(&Frame::new(Command::Ping, Bytes::from_static(body)).with_flags(Flags::COMPRESSED))
    };
    cases.push(stranger(
        "a compressed frame before the login",
        packed(b"\0\0\0\x01\x10a"),
        CloseReason::Unexpected,
    ));
    cases.push(member("a broken block", packed(b"\0\0\0\x09\xFFa"), CloseReason::BadMessage));
    cases.push(member("a block without its length", packed(b"\0\0"), CloseReason::BadMessage));
    cases.push(member("a bomb", packed(b"\x40\0\0\0\x10a"), CloseReason::TooLarge));
    for flag in [0x10, 0x20, 0x40, 0x80] {
        cases.push(stranger("a reserved flag", header_with(2, flag), CloseReason::Unsupported));
        cases.push(member("a reserved flag", header_with(2, flag), CloseReason::Unsupported));
    }
    cases
}

fn logins() -> Vec<Case> {
    let good = hello("mallory", "d");
    let versions = |version_min, version_max| greeting(&Hello { version_min, version_max, ..good.clone() });
    let twice = [greeting(&good), greeting(&good)].concat();
    let early = [greeting(&good), bytes_of(&ping())].concat();
    vec![
        stranger(
            "HELLO is no message",
            bytes_of(&Frame::new(Command::Hello, Bytes::from_static(&[0xFF; 40]))),
            CloseReason::BadMessage,
        ),
        stranger("no uid", greeting(&hello("", "d")), CloseReason::BadMessage),
        stranger("no device", greeting(&hello("mallory", "")), CloseReason::BadMessage),
        stranger("a long uid", greeting(&hello(&"u".repeat(65), "d")), CloseReason::BadMessage),
        stranger("a long device", greeting(&hello("mallory", &"d".repeat(65))), CloseReason::BadMessage),
        stranger("a forbidden uid", greeting(&hello("mal:lory", "d")), CloseReason::AuthFailed),
        stranger("versions to come", versions(2, 9), CloseReason::BadVersion),
        stranger("no version", versions(0, 0), CloseReason::BadVersion),
        stranger("a range upside down", versions(2, 1), CloseReason::BadVersion),
        stranger("HELLO twice in one segment", twice, CloseReason::Unexpected),
        stranger("PING before WELCOME", early, CloseReason::Unexpected),
        stranger(
            "SEND before HELLO",
            bytes_of(&send_frame(1, &message(1, "bob", b"hi"))),
            CloseReason::Unexpected,
        ),
        stranger("PING before HELLO", bytes_of(&ping()), CloseReason::Unexpected),
        stranger(
            "CLOSE before HELLO",
            bytes_of(&Frame::new(Command::Close, Bytes::new())),
            CloseReason::Unexpected,
        ),
        stranger(
            "an application's before HELLO",
            bytes_of(&Frame::new(Command::App(0x40), Bytes::new())),
            CloseReason::Unexpected,
        ),
        stranger(
            "a dropped command before HELLO",
            bytes_of(&Frame::new(Command::Ignorable(0xC0), Bytes::new())),
            CloseReason::Unexpected,
        ),
        stranger(
            "HELLO in a batch",
            bytes_of(&encode_batch(&[frame_of(Command::Hello, &good)])),
            CloseReason::Unexpected,
        ),
        member("a second HELLO", greeting(&good), CloseReason::Unexpected),
    ]
}

fn frames() -> Vec<Case> {
    let mut cases = vec![
        member(
            "PING is no message",
            bytes_of(&Frame::new(Command::Ping, Bytes::from_static(&[0xFF]))),
            CloseReason::BadMessage,
        ),
        member(
            "ACK is no message",
            bytes_of(&Frame::new(Command::Ack, Bytes::from_static(&[0x08]))),
            CloseReason::BadMessage,
        ),
        member(
            "SUB is no message",
            bytes_of(&Frame::new(Command::Sub, Bytes::from_static(&[0x12, 9]))),
            CloseReason::BadMessage,
        ),
        member("cid 0", bytes_of(&Frame::new(Command::Send, Bytes::new())), CloseReason::Window),
        member("cid 65", bytes_of(&send_frame(65, &message(1, "bob", b"hi"))), CloseReason::Window),
        member(
            "the last cid of all",
            bytes_of(&send_frame(u32::MAX, &message(1, "bob", b"hi"))),
            CloseReason::Window,
        ),
        member("an ack of nothing", bytes_of(&ping().with_ack(1)), CloseReason::Window),
        member(
            "a sack of nothing",
            bytes_of(&Frame::new(Command::Ack, Bytes::new()).with_ack(u32::MAX)),
            CloseReason::Window,
        ),
        member("an empty batch", batch_of(Bytes::new()), CloseReason::BadBatch),
        member("a batch of rubbish", batch_of(&[0xA1, 0x05, 0][..]), CloseReason::BadBatch),
        member("half a frame in a batch", batch_of(bytes_of(&ping())[..17].to_vec()), CloseReason::BadBatch),
        member(
            "a batch in a batch",
            bytes_of(&encode_batch(&[encode_batch(&[ping()])])),
            CloseReason::BadBatch,
        ),
        member("129 frames in a batch", batch_of(bytes_of(&ping()).repeat(129)), CloseReason::BadBatch),
        member("a bad frame in a batch", batch_of(header_with(0, 0x47)), CloseReason::BadMagic),
    ];
    let large = vec![0; 60_000];
    let early = (2..=6).flat_map(|cid| bytes_of(&send_frame(cid, &message(cid.into(), "bob", &large))));
    cases.push(member("300 KB out of order", early.collect::<Vec<_>>(), CloseReason::Window));
    for command in [
        Command::Welcome,
        Command::Pong,
        Command::SendAck,
        Command::Push,
        Command::Notify,
        Command::Resp,
        Command::SubAck,
        Command::Kick,
        Command::GoAway,
        Command::Throttle,
    ] {
        let bytes = bytes_of(&Frame::new(command, Bytes::new()));
        cases.push(stranger("a gateway's command", bytes.clone(), CloseReason::Unexpected));
        cases.push(member("a gateway's command", bytes, CloseReason::Unexpected));
    }
    cases
}

#[test]
fn every_fault_has_its_code_and_the_chat_beside_goes_on() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["limits.handshake_timeout=20s"]);
    let chat = Chat::start(gateway.listener);
    let mut expected = BTreeMap::new();
    for case in headers().into_iter().chain(logins()).chain(frames()) {
        let Case { what, is_logged_in, bytes, reason } = case;
        let mut client = if is_logged_in {
            Client::login(gateway.listener, "mallory", what)
        } else {
            Client::connect(gateway.listener)
        };
        client.write(&bytes);
        let End::Close(close) = client.end() else { panic!("{what}: {:?}", client.heard.end) };
        assert_eq!(close.code, reason.code(), "{what}, logged in: {is_logged_in}");
        assert!(!close.reason.is_empty(), "{what}");
        client.heard.end = None;
        assert_eq!(client.end(), End::Eof, "{what}: CLOSE comes last");
        *expected.entry(reason.label()).or_insert(0) += 1;
    }
    chat.go_on(20);
    for (reason, count) in &expected {
        gateway.until_closed(reason, *count);
    }
    println!("{expected:?}; beside them {:?}", chat.finish());
}

/// The end of the client's bytes comes together with the fault.
#[test]
fn who_has_said_all_still_hears_why() {
    let gateway = Gateway::alone(&[]);
    for _ in 0..20 {
        let mut client = Client::connect(gateway.listener);
        client.write(b"GET / HTTP/1.1\r\n\r\n");
        client.stream.shutdown(std::net::Shutdown::Write).expect("a socket");
        assert_eq!(client.end().code(), CloseReason::BadMagic.code());
    }
    gateway.until_metric("connections", 0);
}

#[test]
fn who_does_not_finish_a_hello_in_time_is_closed() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["limits.handshake_timeout=1s"]);
    let chat = Chat::start(gateway.listener);
    let greeting = greeting(&hello("mallory", "d"));
    let mut silent = Client::connect(gateway.listener);
    let mut halfway = Client::connect(gateway.listener);
    halfway.write(&greeting[..greeting.len() - 1]);
    let mut announcing = Client::connect(gateway.listener);
    announcing.write(&announced(Command::Hello, 4096));
    // One byte every 100 ms: alive all the time, and never done.
    let mut slow = Client::connect(gateway.listener);
    let started = clock::now();
    for byte in &greeting {
        if slow.heard.end.is_some() || slow.stream.write_all(&[*byte]).is_err() {
            break;
        }
        slow.listen(Duration::from_millis(100));
    }
    let took = clock::now().saturating_since(started);
    assert_eq!(slow.end().code(), CloseReason::HandshakeTimeout.code());
    assert!(took > Duration::from_millis(700), "after {took:?}");
    for client in [&mut silent, &mut halfway, &mut announcing] {
        assert_eq!(client.end().code(), CloseReason::HandshakeTimeout.code());
    }
    gateway.until_closed("handshake_timeout", 4);
    chat.go_on(10);
    chat.finish();
}

#[test]
fn over_the_cap_a_newcomer_is_told_to_come_later() {
    let gateway = Gateway::alone(&["limits.connections_max=3"]);
    let mut held: Vec<_> =
        ["a", "b", "c"].map(|uid| Client::login(gateway.listener, uid, "d")).into_iter().collect();
    let End::Close(close) = Client::connect(gateway.listener).end() else { panic!("closed without a word") };
    assert_eq!(close.code, CloseReason::Busy.code());
    assert!(close.retry_after_ms > 0);
    gateway.until_metric("accept_refused_total", 1);
    held.iter_mut().for_each(|client| client.beat(30));
    held.pop();
    gateway.until_metric("connections", 2);
    held.push(Client::login(gateway.listener, "d", "d"));
    held.iter_mut().for_each(|client| client.beat(30));
}

/// Asks and asks, and reads nothing: the answers fill the kernel's buffers, then the gateway's queue.
#[test]
fn who_asks_and_does_not_read_is_closed_as_slow() {
    let gateway = Gateway::alone(&["limits.queue_bytes=64KiB", "limits.frame_rate=0"]);
    let mut beside = Client::login(gateway.listener, "bob", "d");
    let mut client = Client::login(gateway.listener, "mallory", "d");
    let subs: Vec<_> = (0..64).map(|id| frame_of(Command::Sub, &Sub { id, room: String::new() })).collect();
    let block = bytes_of(&encode_batch(&subs)).repeat(16);
    client.stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a socket");
    let mut asked = 0;
    while asked < 200 << 20 && client.stream.write_all(&block).is_ok() {
        asked += block.len();
        if gateway.closed("slow") > 0 {
            break;
        }
        beside.beat(30);
    }
    gateway.until_closed("slow", 1);
    assert_eq!(client.end().code(), CloseReason::Slow.code(), "after {asked} bytes of questions");
    beside.beat(30);
}
