//! Costs of TLS: memory of an idle connection, records, keys made anew, and handshakes beside those of rustls alone.
//!
//! `cargo bench -p moorline-net --features tls --bench tls`. Each line is the median of [`SAMPLES`] timed loops, with the
//! fastest and the slowest.
#![allow(clippy::disallowed_methods)] // a bench times by the clock

use moorline_net::clock::Clock;
use moorline_net::tls::{Progress, Protocols, Records, Server, Suite, TicketKeySet, TicketKeys, provider};
use moorline_proto::time::Instant;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant as Time};

/// Timed loops per line.
const SAMPLES: usize = 15;
/// Connections whose memory is counted.
const IDLE: usize = 400_000;

fn print(name: &str, mut nanos: Vec<f64>) {
    nanos.sort_by(f64::total_cmp);
    let (median, fastest, slowest) = (nanos[nanos.len() / 2], nanos[0], nanos[nanos.len() - 1]);
    println!("{name:<44} {median:>9.0} ns   ({fastest:.0}-{slowest:.0})");
}

fn bench(name: &str, operations: u32, mut work: impl FnMut()) {
    work(); // warm
    let time = |_| {
        let begun = Time::now();
        (0..operations).for_each(|_| work());
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(operations)
    };
    print(name, (0..SAMPLES).map(time).collect());
}

struct Ends {
    client: Arc<ClientConfig>,
    own: Server,
    library: Arc<ServerConfig>,
}

/// Both servers with one certificate of P-256, and a client without tickets, so that each handshake is a full one.
fn ends(suite: Suite) -> Ends {
    let pair = KeyPair::generate().expect("a P-256 key");
    let params = CertificateParams::new(vec!["chat.example".to_owned()]).expect("a name");
    let certificate = params.self_signed(&pair).expect("signed").der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let key = PrivateKeyDer::try_from(pair.serialize_der()).expect("PKCS 8");
    let key = CertifiedKey::from_der(vec![certificate], key, &provider()).expect("a pair");
    let resolver = Arc::new(SingleCertAndKey::from(key));
    let keys = TicketKeySet::random(Clock::default().unix_seconds()).expect("random bytes");
    let tickets = Arc::new(TicketKeys::new(keys, Clock::default()));

    let number = Suite::ALL.iter().position(|other| *other == suite).expect("one of both");
    let all = provider();
    let provider =
        Arc::new(CryptoProvider { cipher_suites: vec![all.cipher_suites[number]], ..(*all).clone() });
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    let mut library = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(resolver.clone());
    library.ticketer = tickets.clone();
    library.send_tls13_tickets = 1;
    let own = Server::new(resolver, tickets, Protocols::default(), None);
    Ends { client: Arc::new(client), own, library: Arc::new(library) }
}

fn connect(ends: &Ends) -> ClientConnection {
    let name = ServerName::try_from("chat.example").expect("a name");
    ClientConnection::new(ends.client.clone(), name).expect("a client")
}

fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

fn give(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory");
        client.process_new_packets().expect("valid");
    }
}

/// Returns the record layer, and the time that the server's end took.
fn shake(ends: &Ends) -> (Records, Duration) {
    let mut client = connect(ends);
    let mut spent = Duration::ZERO;
    let mut out = Vec::new();
    let hello = sent_by(&mut client);
    let begun = Time::now();
    let mut handshake = ends.own.handshake().expect("a server");
    assert!(matches!(handshake.advance(&hello, &mut out), Ok(Progress::More)));
    spent += begun.elapsed();
    give(&mut client, &out);
    let flight = sent_by(&mut client);
    let begun = Time::now();
    let Ok(Progress::Done(done)) = handshake.advance(&flight, &mut out) else { panic!("not done") };
    spent += begun.elapsed();
    (done.records, spent)
}

/// Returns the time that rustls takes for the same.
fn shake_library(ends: &Ends) -> Duration {
    let mut client = connect(ends);
    let mut spent = Duration::ZERO;
    let hello = sent_by(&mut client);
    let mut out = Vec::new();
    let begun = Time::now();
    let mut server = ServerConnection::new(ends.library.clone()).expect("a server");
    server.read_tls(&mut &hello[..]).expect("memory");
    server.process_new_packets().expect("valid");
    while server.wants_write() {
        server.write_tls(&mut out).expect("memory");
    }
    spent += begun.elapsed();
    give(&mut client, &out);
    let flight = sent_by(&mut client);
    let begun = Time::now();
    server.read_tls(&mut &flight[..]).expect("memory");
    server.process_new_packets().expect("valid");
    while server.wants_write() {
        server.write_tls(&mut out).expect("memory");
    }
    spent += begun.elapsed();
    assert!(!server.is_handshaking());
    spent
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// A state of the other end: the secrets change their places.
fn mirror(records: &mut Records) -> Records {
    let frozen = records.freeze().expect("owner");
    records.resume().expect("frozen");
    let bytes = frozen.as_ref();
    let secret = (bytes.len() - 20) / 2;
    let (head, secrets) = bytes.split_at(20);
    let (read, write) = secrets.split_at(secret);
    let head = [&head[..4], &head[12..20], &head[4..12]].concat();
    let mut other = Records::thaw(&[&head, write, read].concat()).expect("valid");
    other.resume().expect("thawed");
    other
}

fn main() {
    for suite in Suite::ALL {
        println!("{suite:?}");
        let ends = ends(suite);
        let samples: Vec<_> = (0..SAMPLES * 20).map(|_| (shake(&ends).1, shake_library(&ends))).collect();
        let nanos = |time: Duration| time.as_secs_f64() * 1e9;
        print("handshake, full, P-256, server's end", samples.iter().map(|(own, _)| nanos(*own)).collect());
        print("the same by rustls alone", samples.iter().map(|(_, library)| nanos(*library)).collect());

        let (mut records, _) = shake(&ends);
        let mut peer = mirror(&mut records);
        let mut out = Vec::with_capacity(1 << 20);
        bench("KeyUpdate sealed, and a record with the new key", 2_000, || {
            out.clear();
            records.request_update(&mut out).expect("owner");
            records.seal(&[&[7; 128]], &mut out).expect("owner");
        });
        let (mut records, _) = shake(&ends);
        let mut peer_of = mirror(&mut records);
        std::mem::swap(&mut peer, &mut peer_of);
        for length in [128, 1024] {
            let text = vec![7; length];
            for is_kept in [true, false] {
                let anew = if is_kept { "" } else { ", key made anew" };
                records.cool();
                if is_kept {
                    records.keep();
                }
                bench(&format!("seal {length} bytes{anew}"), 2_000, || {
                    out.clear();
                    records.seal(&[black_box(&text)], &mut out).expect("owner");
                });
            }
            for is_kept in [true, false] {
                // The other end seals as many as are opened.
                let mut wire = Vec::new();
                let mut nanos = Vec::new();
                let (mut records, _) = shake(&ends);
                let mut peer = mirror(&mut records);
                peer.keep();
                if is_kept {
                    records.keep();
                }
                for _ in 0..SAMPLES {
                    wire.clear();
                    (0..2_000).for_each(|_| peer.seal(&[&text], &mut wire).expect("owner"));
                    let record = length + 22;
                    let begun = Time::now();
                    for wire in wire.chunks_mut(record) {
                        let opened = records.open(wire, Instant::ZERO);
                        assert_eq!(opened.plain.len(), length);
                    }
                    nanos.push(begun.elapsed().as_secs_f64() * 1e9 / 2_000.0);
                }
                let anew = if is_kept { "" } else { ", key made anew" };
                print(&format!("open {length} bytes{anew}"), nanos);
            }
        }

        let frozen = records.freeze().expect("owner");
        let before = resident_bytes();
        let idle: Vec<_> =
            (0..IDLE).map(|_| Box::new(Records::thaw(frozen.as_ref()).expect("valid"))).collect();
        let pointers = IDLE * size_of::<Box<Records>>();
        let grown = (resident_bytes() - before).saturating_sub(pointers) / IDLE;
        println!("{:<44} {:>9} bytes", "an idle connection, as a type", size_of::<Records>());
        println!("{:<44} {grown:>9} bytes", format!("resident for each of {IDLE} in boxes"));
        drop(idle);
    }
}
