//! Ten thousand streams of rubbish and five thousand connections that say nothing, beside a chat.

use crate::beside::{CHAT_HOPS, Chat};
use crate::descriptors;
use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Client, End, bytes_of, hello, message, send_frame};
use crate::until;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

const STREAMS: u64 = 10_000;
const SILENT: usize = 5_000;
/// Memory that may stay in use afterwards. Everything is given back to the allocator, which keeps some of
/// it, and each reactor keeps a few hundred empty queues for reuse: about 1 MiB was seen. What 15,000
/// connections left behind would be over this from 280 bytes each.
const KEPT_KIB: u64 = 4 << 10;

/// Outcomes of the random byte streams.
#[derive(Debug, Default)]
struct Fates {
    /// Streams that were read to their end, and ended with a code.
    told: u64,
    /// Connections without a CLOSE: the client closed first, in the middle of a frame or logged in.
    untold: u64,
    /// Connections that the client dropped at once.
    dropped: u64,
}

/// Bytes that may be anything: noise, noise behind a good first byte, a HELLO with a few bytes changed, or
/// a login with noise behind it.
pub(crate) fn stream(random: &mut Random) -> Vec<u8> {
    let mut noise = |bytes_max| {
        let length = random.below(bytes_max) + 1;
        (0..length).map(|_| random.next_u64().to_be_bytes()[0]).collect::<Vec<_>>()
    };
    let (mut bytes, tail) = (noise(300), noise(80));
    let mut greeting = bytes_of(&frame_of(Command::Hello, &hello(&format!("noise-{}", tail[0]), "d")));
    match random.below(4) {
        0 => {}
        1 => bytes[0] = 0xA1,
        2 => {
            for _ in 0..random.below(4) {
                let at = random.below(greeting.len() as u64);
                greeting[usize::try_from(at).expect("small")] ^= 1 << random.below(8);
            }
            bytes = greeting;
        }
        _ => {
            greeting.extend(bytes_of(&send_frame(1, &message(1, "noise-0", &tail))));
            greeting.extend(bytes);
            bytes = greeting;
        }
    }
    bytes
}

/// Sends `count` streams, one after the other; the seed decides everything.
fn rubbish(gateway: SocketAddr, seed: u64, count: u64) -> Fates {
    let (mut random, mut fates) = (Random::new(seed), Fates::default());
    for number in 0..count {
        let bytes = stream(&mut random);
        let mut client = Client::connect(gateway);
        let cut = usize::try_from(random.below(bytes.len() as u64)).expect("small");
        // The gateway may have closed after the first part.
        client.stream.write_all(&bytes[..cut]).and_then(|()| client.stream.write_all(&bytes[cut..])).ok();
        match random.below(4) {
            // Says that this was all, and reads to the end.
            0 => {
                client.stream.shutdown(std::net::Shutdown::Write).ok();
                match client.end() {
                    End::Eof | End::Reset => fates.untold += 1,
                    end => {
                        let is_known = CloseReason::from_code(end.code()).is_some();
                        assert!(is_known, "seed {seed}, stream {number}: {end:?} for {bytes:02x?}");
                        fates.told += 1;
                    }
                }
            }
            // Vanishes with a reset.
            1 => {
                SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a socket");
                fates.dropped += 1;
            }
            _ => fates.dropped += 1,
        }
    }
    fates
}

/// Connections that ended, by reason.
fn closed(metrics: &BTreeMap<String, f64>) -> impl Iterator<Item = (&str, f64)> {
    let of_reasons = metrics.iter().filter(|(name, _)| name.starts_with("closed_total"));
    of_reasons.map(|(name, count)| (name.as_str(), *count))
}

#[test]
fn rubbish_and_silence_leave_no_trace() {
    let (_many, silent) = descriptors::many(SILENT);
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["limits.handshake_timeout=2s", "log.level=info"]);
    let chat = Chat::start(gateway.listener);
    // Everything has been used once.
    rubbish(gateway.listener, 1, 200);
    gateway.until_metric("connections", 2);
    chat.go_on(20);
    let before = (gateway.process.resident_kib(), gateway.process.descriptors().len());

    let lateness = Lateness::start();
    let mut held: Vec<_> = (0..silent).map(|_| Client::connect(gateway.listener)).collect();
    let crews: Vec<_> = (0..2)
        .map(|seed| {
            let gateway = gateway.listener;
            std::thread::spawn(move || rubbish(gateway, 100 + seed, STREAMS / 2))
        })
        .collect();
    for client in &mut held {
        assert_eq!(client.end().code(), CloseReason::HandshakeTimeout.code());
    }
    let peak = gateway.process.resident_kib();
    drop(held);
    let fates: Vec<_> = crews.into_iter().map(|crew| crew.join().expect("went through")).collect();
    gateway.until_metric("connections", 2);
    chat.go_on(20);
    let metrics = until("every connection ended once", || {
        let metrics = gateway.metrics();
        let ended: f64 = closed(&metrics).map(|(_, count)| count).sum();
        ((metrics["accepted_total"] - ended - 2.0).abs() < 0.5).then_some(metrics)
    });
    let after = (gateway.process.resident_kib(), gateway.process.descriptors().len());
    let report = chat.finish();
    let slowest = Duration::from_secs(10) + CHAT_HOPS * lateness.finish();
    println!("(KiB, descriptors) before {before:?}, most seen {peak} KiB, after {after:?}");
    println!("{fates:?}; beside them {report:?}");
    assert!(after.0 <= before.0 + KEPT_KIB, "memory: before {before:?}, after {after:?}, peak {peak}");
    assert!(after.1 <= before.1 + 1, "descriptors: before {before:?}, after {after:?}");
    assert!(fates.iter().all(|fates| fates.told > 2 * fates.untold), "{fates:?}");
    assert!(report.slowest < slowest, "{report:?}");

    let closed: Vec<_> = closed(&metrics).collect();
    let of = |reason: &str| metrics[&format!("closed_total{{reason=\"{reason}\"}}")];
    println!("{:?}", closed.iter().filter(|(_, count)| *count > 0.0).collect::<Vec<_>>());
    assert!(of("handshake_timeout") >= f64::from(u32::try_from(silent).expect("small")));
    for reason in
        ["bad_magic", "bad_version", "unsupported", "too_large", "bad_header", "bad_message", "peer"]
    {
        assert!(of(reason) > 0.0, "{reason}: {closed:?}");
    }
}
