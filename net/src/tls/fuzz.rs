//! Fuzz body of TLS: records of a hostile peer, frozen states, and the first bytes of a client.
//!
//! The first byte of an input chooses: a script of records, which a peer that has the keys seals and changes, bytes to be
//! thawed, or bytes of a client that begins.

use super::provider::Suite;
use super::records::{End, RECORD_BYTES_MAX, Records};
use super::secret::Secret;
use super::{Fault, HandshakeError, Progress, Protocols, Server, TicketKeySet, TicketKeys};
use crate::clock::Clock;
use moorline_proto::time::Instant;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, LazyLock};

/// Looks at a script, at a frozen state, or at a client's first bytes.
pub fn body(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => thaw(rest),
        1 => begin(usize::from(kind / 4), rest),
        _ => records(*kind, rest),
    }
}

/// A state that is taken is written as it was read, and whatever its numbers are, it opens and seals or says why not.
fn thaw(bytes: &[u8]) {
    let Ok(mut records) = Records::thaw(bytes) else { return };
    assert_eq!(records.seal(&[b"x"], &mut Vec::new()), Err(Fault::NotOwner));
    let frozen = records.freeze().expect("not retired");
    assert_eq!(frozen.as_ref(), bytes, "written as it was read");
    records.resume().expect("not retired");
    let mut out = Vec::new();
    for _ in 0..3 {
        records.seal(&[b"text"], &mut out).ok();
    }
    let _ = records.open(&mut out, Instant::ZERO);
    records.close_notify(&mut out).ok();
    records.retire();
    assert!(records.freeze().is_err());
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let keys = TicketKeySet::random(0).expect("random bytes");
    let keys = Arc::new(TicketKeys::new(keys, Clock::default()));
    Server::new(Arc::new(NoCertificate), keys, Protocols::required("moorline/1"), None)
});

/// However bytes are cut, the verdict is the same, and it is told in one alert.
fn begin(step: usize, bytes: &[u8]) {
    let run = |step: usize| {
        let mut handshake = SERVER.handshake().expect("a server");
        let mut out = Vec::new();
        for chunk in bytes.chunks(step) {
            match handshake.advance(chunk, &mut out) {
                Ok(Progress::More) => assert!(out.is_empty() && handshake.unanswered().is_some()),
                Ok(Progress::Done(_)) => panic!("there is no certificate"),
                Err(error) => {
                    assert!(matches!(
                        handshake.advance(b"\x16", &mut Vec::new()),
                        Err(HandshakeError::Ended)
                    ));
                    return (error.to_string(), out);
                }
            }
        }
        (String::new(), out)
    };
    let whole = run(bytes.len().max(1));
    assert!(whole.1.is_empty() || (whole.1.len() == 7 && whole.1[..6] == [21, 3, 3, 0, 2, 2]), "{whole:?}");
    assert_eq!(run(1), whole);
    assert_eq!(run(2 + step), whole);
}

enum Event {
    Bytes(Vec<u8>),
    Time(u8),
    Handover,
    Keep,
    KeepBytes,
    Cool,
}

/// However bytes are cut, the text and the end are the same.
fn records(kind: u8, script: &[u8]) {
    let suite = if kind & 4 == 0 { Suite::Aes256 } else { Suite::ChaCha20 };
    let secret = |byte| Secret::new(suite, &vec![byte; suite.secret_bytes()]).expect("its length");
    let mut peer = Records::new(suite, secret(2), secret(1), 0);
    let events = events(&mut peer, script);
    let run = |step: usize| {
        let mut records = Records::new(suite, secret(1), secret(2), 0);
        let (text, end) = open_all(&mut records, &events, step);
        let frozen = records.freeze().expect("not retired");
        (text, end, frozen.as_ref().to_vec())
    };
    let whole = run(usize::MAX);
    assert_eq!(run(1), whole);
    assert_eq!(run(2 + usize::from(kind / 8)), whole);

    // The peer is told.
    let Some(End::Fault(fault)) = whole.1 else { return };
    let mut records = Records::thaw(&whole.2).expect("ours");
    records.resume().expect("thawed");
    let mut out = Vec::new();
    records.alert(fault, &mut out).expect("sealed");
    let told = peer.open(&mut out, Instant::ZERO).end;
    assert_eq!(told, fault.alert().map(|alert| End::Fault(Fault::Alert(alert))));
}

fn events(peer: &mut Records, script: &[u8]) -> Vec<Event> {
    let mut script = script.iter().copied();
    let mut events = Vec::new();
    while let Some(what) = script.next() {
        let number = script.next().unwrap_or(0);
        events.push(match what % 8 {
            0 => {
                let mut bytes = Vec::new();
                peer.seal(&[&vec![number; 1 + usize::from(number)]], &mut bytes).expect("an honest record");
                Event::Bytes(bytes)
            }
            1 => {
                let content: Vec<_> = script.by_ref().take(usize::from(what / 8)).collect();
                Event::Bytes(peer.seal_raw(number, &content))
            }
            2 => Event::Bytes(peer.seal_raw_update(number % 2 == 1)),
            3 => Event::Bytes(script.by_ref().take(usize::from(number)).collect()),
            4 => {
                if let Some(Event::Bytes(bytes)) = events.last_mut() {
                    let at = usize::from(number) % bytes.len().max(1);
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (what / 8 % 8));
                }
                continue;
            }
            5 => Event::Time(number),
            6 => Event::Handover,
            _ if number % 4 == 3 => Event::KeepBytes,
            _ if number % 2 == 1 => Event::Keep,
            _ => Event::Cool,
        });
    }
    events
}

fn open_all(records: &mut Records, events: &[Event], step: usize) -> (Vec<u8>, Option<End>) {
    let (mut text, mut tail, mut quarters) = (Vec::new(), Vec::new(), 0);
    for event in events {
        match event {
            Event::Bytes(bytes) => {
                for chunk in bytes.chunks(step) {
                    tail.extend_from_slice(chunk);
                    let opened = records.open(&mut tail, Instant::from_nanos(quarters * 250_000_000));
                    text.extend_from_slice(&tail[opened.plain]);
                    tail.drain(..opened.consumed);
                    if opened.end.is_some() {
                        return (text, opened.end);
                    }
                    assert!(tail.len() < RECORD_BYTES_MAX, "{} bytes wait", tail.len());
                }
            }
            Event::Time(passed) => quarters += u64::from(*passed),
            Event::Handover => {
                let frozen = records.freeze().expect("not retired");
                records.retire();
                *records = Records::thaw(frozen.as_ref()).expect("ours");
                records.resume().expect("thawed");
            }
            Event::Keep => records.keep(),
            Event::KeepBytes => records.keep_bytes(),
            Event::Cool => records.cool(),
        }
    }
    (text, None)
}

/// Scripts that reach every kind of record, states of both suites, and a client's first bytes.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    let scripts: [&[u8]; 13] = [
        &[0, 9, 0, 200, 0, 3],
        &[0, 9, 2, 1, 0, 9, 6, 0, 2, 0, 0, 9],
        &[6, 0, 0, 9, 7, 0, 0, 9, 6, 0, 0, 9],
        &[7, 1, 0, 9, 2, 1, 0, 9, 6, 0, 0, 9, 7, 1, 1, 23, 7, 0, 0, 9],
        &[0, 9, 4, 20, 0, 9],
        &[0, 9, 3, 6, 23, 3, 3, 0, 20, 1],
        &[1, 23, 1, 23, 1, 23, 5, 4, 1, 23],
        &[2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0],
        &[0, 9, 17, 21, 1, 0, 0, 9],
        &[0, 9, 17, 21, 2, 80],
        &[41, 22, 24, 0, 0, 1, 2],
        &[33, 22, 4, 0, 0, 0],
        &[0, 9, 9, 20, 1],
    ];
    let mut seeds: Vec<_> =
        scripts.iter().flat_map(|script| [2, 6].map(|kind| [&[kind][..], script].concat())).collect();
    for suite in Suite::ALL {
        let secret = |byte| Secret::new(suite, &vec![byte; suite.secret_bytes()]).expect("its length");
        let mut records = Records::new(suite, secret(1), secret(2), 7);
        seeds.push([&[0][..], records.freeze().expect("owner").as_ref()].concat());
    }
    let hello = [&[1, 22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 2, 1, 0]].concat();
    seeds.push(hello);
    seeds.push(b"\x01GET / HTTP/1.1\r\n".to_vec());
    seeds.push(vec![1, 22, 3, 1, 0x41, 1]);
    seeds
}

#[test]
fn every_input_of_the_corpus_passes() {
    use std::fs;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/tls_records");
    let seeds = seeds();
    if std::env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).expect("the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the folder is committed") {
        body(&fs::read(entry.expect("an entry").path()).expect("a file"));
        count += 1;
    }
    assert!(count >= 10, "{count} inputs");
}

#[cfg(test)]
proptest::proptest! {
    #[test]
    fn arbitrary_scripts_pass(kind in 0..32u8, script in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        body(&[&[kind][..], &script].concat());
    }

    /// Few kinds and contents, so that scripts get beyond the first record.
    #[test]
    fn scripts_of_plausible_records_pass(
        kind in 0..8u8,
        steps in proptest::collection::vec((0..8u8, proptest::num::u8::ANY, 0..4u8), 0..60),
    ) {
        let mut script = vec![kind * 4 + 2];
        for (what, number, length) in steps {
            if what == 1 {
                script.extend([1 + 8 * length, 20 + number % 5]);
                script.extend((0..length).map(|at| at % 2 * 24));
            } else {
                script.extend([what, number]);
            }
        }
        body(&script);
    }
}
