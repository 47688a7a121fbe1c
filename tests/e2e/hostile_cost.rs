//! Cost of hostile clients: CPU for each byte that they send, and memory that no limit counts.
//!
//! The memory is asserted. The CPU is printed: a debug build and a busy machine say little about it. In a release build,
//! `cargo test --release --test e2e -- hostile_cost --nocapture` prints the figures of docs/benchmarks.md.

use crate::flood::stream;
use crate::gateway::{Backend, Gateway};
use crate::raw::{Acks, Client, bytes_of, hello, message, send_frame};
use crate::tls::World;
use crate::tunnel::Tunnel;
use crate::{soak, until};
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{Command, Flags, Frame, encode_batch};
use moorline_proto::message::client::{Ping, Req};
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Clients of each kind whose memory is looked at.
const CLIENTS: usize = 300;
/// Memory beside what the metrics count, for each hostile client.
const UNCOUNTED_MAX: u64 = 8 << 10;

/// Brings a client into a state that holds memory at the gateway, by its number.
type Hold = fn(SocketAddr, &mut Client, usize);

/// Most of a large frame.
fn half_a_frame(_: SocketAddr, client: &mut Client, number: usize) {
    let me = format!("u{number}");
    client.write(&bytes_of(&send_frame(1, &message(1, &me, &vec![1; 60_000])))[..50_000]);
}

/// SENDs behind a missing one.
fn early_sends(_: SocketAddr, client: &mut Client, number: usize) {
    let me = format!("u{number}");
    for cid in 2..=60 {
        client.put(&send_frame(cid, &message(cid.into(), &me, b"early")));
    }
}

/// Small pushes that are neither read nor acknowledged.
fn pushes_unread(gateway: SocketAddr, client: &mut Client, number: usize) {
    client.acks = Acks::Withheld;
    let mut speaker = Client::login(gateway, &format!("s{number}"), "d");
    for key in 0..20 {
        speaker.tell(key, &format!("u{number}"), b"hi");
    }
}

fn nothing(_: SocketAddr, _: &mut Client, _: usize) {}

const HOLDS: &[(&str, Hold)] = &[
    ("silent", nothing),
    ("half a frame of 60 KB", half_a_frame),
    ("59 SENDs behind a hole", early_sends),
    ("20 pushes unread", pushes_unread),
];

#[test]
fn a_hostile_client_holds_little_memory_that_no_limit_counts() {
    for (name, hold) in HOLDS {
        let backend = Backend::start();
        let gateway = Gateway::start(&backend, &["limits.frame_timeout=60s"]);
        let counted = || gateway.metric("queued_bytes") + gateway.metric("input_bytes");
        let login = |number: usize| Client::login(gateway.listener, &format!("u{number}"), "d");
        // Buffers that are used again are warm.
        let mut first = login(CLIENTS);
        hold(gateway.listener, &mut first, CLIENTS);
        let before = (gateway.process.resident_kib() << 10, counted());
        let mut clients: Vec<_> = (0..CLIENTS).map(login).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            hold(gateway.listener, client, number);
        }
        let measure = || {
            let after = (gateway.process.resident_kib() << 10, counted());
            let (resident, counted) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            (resident.saturating_sub(counted) / CLIENTS as u64, counted / CLIENTS as u64)
        };
        // The figures are published once per turn, and bodies are copied when their ack is overdue.
        let mut last = measure();
        until(&format!("{name}: little memory is uncounted"), || {
            last = measure();
            (last.0 <= UNCOUNTED_MAX).then_some(())
        });
        println!("{name}: {} bytes uncounted and {} counted for each client", last.0, last.1);
    }
}

#[test]
fn a_half_done_tls_handshake_holds_little_memory_that_no_limit_counts() {
    let world = World::start_with("[limits]\nhandshake_timeout = \"60s\"\n");
    let gateway = &world.series.gateway;
    let hold = || {
        let mut stream = world.connect("tls");
        let hello = Tunnel::client_hello(&world.authority.client("moorline/1"));
        stream.write_all(&hello).expect("it stands");
        stream.read_exact(&mut [0; 5]).expect("an answer");
        stream
    };
    let measure = || (gateway.process.resident_kib() << 10, gateway.metric("input_bytes"));
    let _warm: Vec<_> = (0..20).map(|_| hold()).collect();
    let before = measure();
    let _held: Vec<_> = (0..CLIENTS).map(|_| hold()).collect();
    let per_client = || {
        let after = measure();
        let (resident, counted) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
        (resident.saturating_sub(counted) / CLIENTS as u64, counted / CLIENTS as u64)
    };
    let mut last = per_client();
    until("little memory is uncounted", || {
        last = per_client();
        (last.0 <= UNCOUNTED_MAX).then_some(())
    });
    println!("half a handshake: {} bytes uncounted and {} counted for each client", last.0, last.1);
}

/// Bytes that one hostile client repeats.
fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let req = Req { id: 1, method: "no.such".into(), payload: vec![0; 63 << 10].into() };
    let body = try_compress(&frame_of(Command::Req, &req).body).expect("zeros");
    let bomb = Frame::new(Command::Req, body).with_flags(Flags::COMPRESSED);
    let ping = frame_of(Command::Ping, &Ping { next_s: 30 });
    let batch = try_compress(&encode_batch(&vec![ping.clone(); 128]).body).expect("alike");
    let batch = Frame::new(Command::Ping, batch).with_flags(Flags::BATCH.with(Flags::COMPRESSED));
    let send = send_frame(1, &message(1, "nobody", b"hi"));
    let large = Frame::new(Command::Req, Bytes::from(vec![7; 60_000]));
    vec![
        ("bombs", bytes_of(&bomb).repeat(50)),
        ("compressed batches", bytes_of(&batch).repeat(50)),
        ("PINGs", bytes_of(&ping).repeat(1000)),
        ("the same SEND", bytes_of(&send).repeat(500)),
        ("large REQs that are not valid", bytes_of(&large)),
        ("garbage behind the login", stream(&mut Random::new(7))),
    ]
}

/// Sends `bytes` over and over until the time is up; logs in again when it was closed.
fn repeat(gateway: SocketAddr, uid: &str, bytes: &[u8], time: Duration) {
    let until = clock::now() + time;
    while clock::now() < until {
        let Ok(mut stream) = TcpStream::connect(gateway) else { continue };
        stream.set_nonblocking(true).expect("a socket");
        let greeting = bytes_of(&frame_of(Command::Hello, &hello(uid, "d")));
        let (mut rest, mut answers) = (&greeting[..], [0; 4096]);
        while clock::now() < until {
            match stream.write(rest) {
                Ok(0) => break,
                Ok(count) => rest = if count == rest.len() { bytes } else { &rest[count..] },
                // The rate holds it: wait for what the gateway does next.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => break,
            }
            match stream.read(&mut answers) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
}

#[test]
fn the_cpu_of_hostile_bytes_is_printed_and_the_gateway_lives() {
    for (name, bytes) in attacks() {
        let backend = Backend::start();
        let gateway = Gateway::start(&backend, &[]);
        let before = (gateway.process.cpu(), gateway.metric("client_received_bytes_total"));
        repeat(gateway.listener, "eve", &bytes, soak::time(1));
        let cpu = gateway.process.cpu().saturating_sub(before.0);
        let mut received = 0;
        until("bytes were read", || {
            received = gateway.metric("client_received_bytes_total") - before.1;
            (received > 0).then_some(())
        });
        let nanos = cpu.as_nanos() * 1000 / u128::from(received);
        println!("{name}: {received} bytes, {nanos} ns of CPU for 1,000 of them");
        drop(Client::login(gateway.listener, "alice", "d"));
    }
}
