//! Layers on a pair of sockets of this process. TLS has its own tests (`crate::tls`), and real clients in `tests/e2e/tls.rs`.

use super::*;
use crate::proxy::Fault;
use crate::upgrade::Origins;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

const NOW: Instant = Instant::from_nanos(7_000_000_000);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: chat.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: moorline.v1\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
const WEBSOCKET: OpeningKind = OpeningKind { is_proxied: false, has_tls: false, has_websocket: true };

/// A stream as its owner has it, and the peer's end.
fn pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("two descriptors");
    ours.set_nonblocking(true).expect("a socket");
    theirs.set_nonblocking(true).expect("a socket");
    (Stream::unix(mio::net::UnixStream::from_std(ours)), theirs)
}

fn edge(stream: &mut Stream) {
    stream.note_edge_for_test();
}

/// A binary message of a client, with a mask of zeros.
fn message(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    [&[0x82, 0x80 | length, 0, 0, 0, 0][..], payload].concat()
}

fn read_all(peer: &mut UnixStream) -> Vec<u8> {
    let (mut all, mut block) = (Vec::new(), [0; 8 << 10]);
    while let Ok(count) = peer.read(&mut block) {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&block[..count]);
    }
    all
}

#[test]
fn a_websocket_costs_nothing_at_rest_and_reads_messages_that_come_by_the_byte() {
    let (mut stream, mut peer) = pair();
    let mut layer = Layer::WebSocket(Framing::default());
    let (mut block, mut got) = (ReadBlock::default(), Vec::new());
    for byte in [message(b"hello"), message(b"world")].concat() {
        peer.write_all(&[byte]).expect("room");
        edge(&mut stream);
        if let Reading::Bytes(bytes) = layer.read(&mut stream, &mut block, NOW).expect("lawful") {
            got.extend_from_slice(&bytes);
        }
    }
    assert_eq!(got, b"helloworld");
    assert!(
        matches!(layer, Layer::WebSocket(Framing::Resting(_))),
        "no memory of its own between two messages"
    );
}

#[test]
fn a_blocked_socket_keeps_whole_messages_and_one_answer_to_pings() {
    let (mut stream, mut peer) = pair();
    let mut layer = Layer::WebSocket(Framing::default());
    let (body, mut scratch) = (vec![7; 60_000], Vec::new());
    let mut taken = 0;
    loop {
        let count =
            layer.write(&mut stream, &[IoSlice::new(&body)], body.len(), &mut scratch).expect("it stands");
        taken += count;
        if count < body.len() {
            break;
        }
    }
    assert!(matches!(layer, Layer::WebSocket(Framing::Busy(_))), "in the middle of a message");
    // Pings come while nothing goes out: the last one is answered, behind the message.
    for number in 0..5 {
        peer.write_all(&[0x89, 0x81, 0, 0, 0, 0, number]).expect("room");
        edge(&mut stream);
        let reading = layer.read(&mut stream, &mut ReadBlock::default(), NOW).expect("lawful");
        assert_eq!(reading, Reading::Blocked);
    }
    assert!(layer.pending() < 16, "{}", layer.pending());
    let mut frozen = layer.freeze().expect("ours");
    let mut received = read_all(&mut peer);
    let mut layer = Layer::thaw(std::mem::take(&mut frozen)).expect("lawful").expect("whole");
    layer.resume();
    let rest = taken % body.len();
    while !matches!(layer, Layer::WebSocket(Framing::Resting(_))) {
        layer
            .write(&mut stream, &[IoSlice::new(&body[rest..])], body.len() - rest, &mut scratch)
            .expect("it stands");
        layer.flush(&mut stream).expect("it stands");
        received.extend(read_all(&mut peer));
    }
    let mut at = 0;
    while received[at] == 0x82 {
        assert_eq!(received[at + 1..at + 4], [126, 0xEA, 0x60], "60,000 bytes");
        assert!(received[at + 4..at + 60_004].iter().all(|byte| *byte == 7));
        at += 60_004;
    }
    assert_eq!(received[at..], [0x8A, 1, 4], "one pong");
}

#[test]
fn a_handshake_waits_in_its_socket_until_its_first_byte_is_read() {
    let tls = OpeningKind { has_tls: true, ..OpeningKind::default() };
    assert!(!Opening::new(OpeningKind { is_proxied: true, ..tls }, 0).can_wait(), "the header is due");
    assert!(!Opening::new(WEBSOCKET, 0).can_wait(), "no thread is needed");
    let mut opening = Opening::new(tls, 0);
    let (mut stream, mut peer) = pair();
    assert!(opening.can_wait());
    peer.write_all(&[22, 3, 1, 0, 1, 1]).expect("room");
    edge(&mut stream);
    assert!(opening.read(&mut stream, &mut ReadBlock::default()).expect("it stands"));
    assert!(!opening.can_wait());
    // No thread has room: the bytes are there again, and come to the next one.
    assert!(matches!(opening.advance(&Origins::default(), NOW, true), Ok(Step::Job)));
    let job = opening.take_job();
    assert!(!opening.is_held());
    opening.put_back(job);
    assert!(opening.is_held() && matches!(opening.advance(&Origins::default(), NOW, true), Ok(Step::Job)));
}

#[test]
fn an_upgrade_is_answered_and_what_followed_it_belongs_to_the_frames() {
    let mut opening = Opening::new(WEBSOCKET, 0);
    let (mut stream, mut peer) = pair();
    let (mut block, origins) = (ReadBlock::default(), Origins::default());
    for part in [&REQUEST[..50], &[&REQUEST[50..], &message(b"early")].concat()] {
        assert!(matches!(opening.advance(&origins, NOW, true), Ok(Step::Wait)));
        peer.write_all(part).expect("room");
        edge(&mut stream);
        assert!(opening.read(&mut stream, &mut block).expect("it stands"));
    }
    let Ok(Step::Done(Done { layer: Some(mut layer), rest })) = opening.advance(&origins, NOW, true) else {
        panic!("an upgrade");
    };
    assert!(rest.is_empty() && layer.wants_read());
    assert!(layer.flush(&mut stream).expect("it stands"));
    let reading = layer.read(&mut stream, &mut block, NOW).expect("lawful");
    assert_eq!(reading, Reading::Bytes(bytes::Bytes::from_static(b"early")));
    assert!(read_all(&mut peer).starts_with(b"HTTP/1.1 101 "));
}

#[test]
fn an_opening_goes_to_another_process_as_the_bytes_that_came() {
    let (mut stream, mut peer) = pair();
    let proxied = OpeningKind { is_proxied: true, ..WEBSOCKET };
    let (mut block, origins) = (ReadBlock::default(), Origins::default());
    let header = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let wire = [&header[..], REQUEST].concat();
    let (mut opening, mut is_done) = (Opening::new(proxied, 3), false);
    for byte in wire {
        peer.write_all(&[byte]).expect("room");
        edge(&mut stream);
        opening.read(&mut stream, &mut block).expect("it stands");
        while let step = opening.advance(&origins, NOW, true).expect("lawful")
            && !matches!(step, Step::Wait)
        {
            is_done = matches!(step, Step::Done(_));
            if is_done {
                break;
            }
        }
        if !is_done {
            let frozen = opening.freeze().expect("ours");
            opening = Opening::thaw(frozen).expect("lawful").expect("whole");
            assert_eq!(opening.listener(), 3);
        }
    }
    assert!(is_done);
}

#[test]
fn a_client_hello_without_end_wakes_no_thread_and_holds_eight_kib_at_most() {
    let (mut stream, mut peer) = pair();
    let kind = OpeningKind { has_tls: true, ..OpeningKind::default() };
    let (mut opening, mut block, origins) = (Opening::new(kind, 0), ReadBlock::default(), Origins::default());
    peer.write_all(&[22, 3, 1, 0x40, 0]).expect("room"); // a record of 16 KiB
    let mut sent = 5;
    let fault = loop {
        edge(&mut stream);
        if let Err(fault) = opening.read(&mut stream, &mut block) {
            break fault;
        }
        assert!(matches!(opening.advance(&origins, NOW, true), Ok(Step::Wait)), "after {sent} bytes");
        peer.write_all(&[1; 512]).expect("room");
        sent += 512;
        assert!(sent < 10_000, "nobody ends it");
    };
    assert!(matches!(fault, OpeningFault::TooLong), "{fault}");
    assert!(opening.flush(&mut stream).expect("it stands"));
    assert_eq!(read_all(&mut peer), [21, 3, 3, 0, 2, 2, 22], "the alert record_overflow");
    // What is not TLS is refused at once.
    let mut opening = Opening::new(kind, 0);
    peer.write_all(&[0xA1]).expect("room");
    edge(&mut stream);
    opening.read(&mut stream, &mut block).expect("it stands");
    assert!(matches!(opening.advance(&origins, NOW, true), Ok(Step::Job)));
}

#[test]
fn what_is_no_proxy_header_is_refused() {
    let (mut stream, mut peer) = pair();
    let mut opening = Opening::new(OpeningKind { is_proxied: true, ..OpeningKind::default() }, 0);
    peer.write_all(REQUEST).expect("room");
    edge(&mut stream);
    opening.read(&mut stream, &mut ReadBlock::default()).expect("it stands");
    let fault = opening.advance(&Origins::default(), NOW, true).expect_err("no header");
    assert!(matches!(fault, OpeningFault::Proxy(Fault::NotProxy)), "{fault}");
}

#[test]
fn a_layer_of_contradictions_is_refused() {
    for (frozen, what) in [
        (FrozenLayer::default(), "neither"),
        (FrozenLayer { websocket: vec![1; 5], ..FrozenLayer::default() }, "WebSocket"),
        (FrozenLayer { records: vec![1; 5], ..FrozenLayer::default() }, "TLS"),
        (FrozenLayer { is_opening: true, kind: 99, ..FrozenLayer::default() }, "kind"),
    ] {
        let problem = Layer::thaw(frozen).expect_err("refused");
        assert!(problem.contains(what), "{problem}");
    }
    let half = FrozenLayer { is_opening: true, kind: 8, ..FrozenLayer::default() };
    assert!(Layer::thaw(half).expect("lawful").is_none(), "a handshake cannot go there");
}

/// Two ends of a link over a pair of sockets, whose handshake threads are this thread.
struct Link {
    ends: [(Layer, Stream); 2],
    block: ReadBlock,
    scratch: Vec<u8>,
    server: crate::tls::Server,
}

impl Link {
    fn shaken(ends: &crate::tls::tests::client::Ends) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("two descriptors");
        let stream = |socket: UnixStream| {
            socket.set_nonblocking(true).expect("a socket");
            Stream::unix(mio::net::UnixStream::from_std(socket))
        };
        let mut link = Self {
            ends: [
                (Layer::dialling(ends.client().into(), "server.example"), stream(ours)),
                (Layer::awaiting(), stream(theirs)),
            ],
            block: ReadBlock::default(),
            scratch: Vec::new(),
            server: ends.server(),
        };
        for _ in 0..20 {
            for (layer, stream) in &mut link.ends {
                edge(stream);
                if let Driven::Job(job) = layer.drive(stream, &mut link.block, NOW).expect("lawful") {
                    assert_eq!(layer.read(stream, &mut link.block, NOW).expect("lawful"), Reading::Blocked);
                    layer.handle_result(stream, job.run(Some(&link.server))).expect("lawful");
                }
            }
        }
        assert!(link.ends.iter().all(|(layer, _)| !layer.is_opening()));
        link
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, from: usize, bytes: &[u8]) -> usize {
        let (layer, stream) = &mut self.ends[from];
        edge(stream);
        layer.write_bulk(stream, bytes, &mut self.scratch).expect("it stands")
    }

    fn read(&mut self, to: usize, all: &mut Vec<u8>) {
        let (layer, stream) = &mut self.ends[to];
        edge(stream);
        while let Reading::Bytes(bytes) = layer.read(stream, &mut self.block, NOW).expect("lawful") {
            all.extend_from_slice(&bytes);
        }
    }
}

#[test]
fn a_link_takes_much_at_once_and_goes_over_to_another_process_in_the_middle_of_records() {
    let ends = crate::tls::tests::client::Ends::new();
    let mut link = Link::shaken(&ends);
    let text: Vec<u8> = (0..2_000_000_u32).map(|number| (number >> 5).to_le_bytes()[0]).collect();
    for from in [0, 1] {
        let (mut sent, mut got, mut handovers) = (0, Vec::new(), 0);
        while got.len() < text.len() {
            sent += link.write(from, &text[sent..]);
            if link.ends[from].0.pending() > 0 {
                handovers += 1;
                let (layer, _) = &mut link.ends[from];
                let frozen = layer.freeze().expect("ours");
                assert!(!frozen.pending.is_empty() && !frozen.records.is_empty());
                link.ends[from].0 = Layer::thaw(frozen).expect("lawful").expect("whole");
                link.ends[from].0.resume();
            }
            link.read(1 - from, &mut got);
        }
        assert!(got == text && handovers > 0, "{handovers} handovers");
    }
    // The end in due form.
    let (layer, stream) = &mut link.ends[0];
    layer.shut(stream, 0);
    edge(&mut link.ends[1].1);
    let (layer, stream) = &mut link.ends[1];
    assert_eq!(layer.read(stream, &mut link.block, NOW).expect("lawful"), Reading::End);
}
