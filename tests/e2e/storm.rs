//! Everybody's connection breaks in the same moment, and everybody is back at once.
//!
//! `MOORLINE_STORM_CLIENTS=15000 cargo test --release --test e2e storm -- --nocapture` is the long form; it
//! needs an open-files limit of 16,000 for each of two processes.

use crate::beside::{CHAT_HOPS, Chat};
use crate::descriptors;
use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Client, bytes_of, hello};
use crate::{soak, until};
use moorline::sys::clock;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Hello, Resume};
use moorline_proto::message::frame_of;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::time::Duration;

const CLIENTS: usize = 1_500;
/// 99 of 100 are back within this.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// Threads that run one after the other for one login: client, reactor, worker, and back.
const LOGIN_HOPS: u32 = 4;
/// A chat that is not part of it has its message there within this, 99 times of 100, on a machine where the
/// two cores have to play all the others as well.
const CHAT_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_storm_of_reconnects_passes_and_nobody_stays_out() {
    let (_many, count) = descriptors::many(soak::storm_clients().unwrap_or(CLIENTS));
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["limits.handshake_timeout=60s", "log.level=info"]);
    let mut clients: Vec<_> = (0..count)
        .map(|number| Client::greet(gateway.listener, &hello(&format!("user-{number}"), "d")))
        .collect();
    clients.iter_mut().for_each(|client| client.until("WELCOME", |heard| heard.welcome.is_some()));
    let claims: Vec<Resume> = clients
        .iter()
        .map(|client| client.heard.welcome.clone().expect("logged in"))
        .map(|it| Resume { session: it.session, epoch: it.epoch, ticket: it.ticket, last_seq: 0, sack: 0 })
        .collect();
    let chat = Chat::start(gateway.listener);
    chat.go_on(50);
    let calm = chat.lap();

    let greetings: Vec<_> = (0..count)
        .map(|number| Hello { resume: Some(claims[number].clone()), ..hello(&format!("user-{number}"), "d") })
        .map(|hello| bytes_of(&frame_of(Command::Hello, &hello)))
        .collect();
    drop(clients);
    let (started, lateness) = (clock::now(), Lateness::start());
    let mut back: Vec<Client> = greetings
        .iter()
        .map(|greeting| {
            let mut client = Client::connect(gateway.listener);
            client.write(greeting);
            client
        })
        .collect();
    let mut times: Vec<Duration> = back
        .iter_mut()
        .map(|client| {
            client.until("WELCOME", |heard| heard.welcome.is_some());
            clock::now().saturating_since(started)
        })
        .collect();
    let stormy = chat.lap();
    let lateness = lateness.finish();
    chat.go_on(50);
    let report = chat.finish();
    times.sort_unstable();
    let most = times[(count * 99 / 100).min(count - 1)];
    println!(
        "{count} back: 99% within {most:?}, all within {:?}; {} messages beside it, {calm:?} before and \
         {stormy:?} meanwhile, slowest {:?}",
        times[count - 1],
        report.messages,
        report.slowest
    );
    assert!(most < BACK_WITHIN + LOGIN_HOPS * lateness, "99% were back only within {most:?}");
    assert!(stormy.p99 < CHAT_WITHIN + CHAT_HOPS * lateness, "the chat beside: {stormy:?}");
    // Everybody is back, nobody twice.
    gateway.until_sessions(count as u64 + 2);
    // A socket's end may be noticed after its client is back: then it is a takeover.
    gateway.until_metric("resumes_total", count as u64);
}

/// The settings limit concurrent logins; further clients wait their turn, and none is refused.
#[test]
fn a_narrow_door_lets_everybody_in_one_after_the_other() {
    let (_many, count) = descriptors::many(600);
    let backend = Backend::start();
    let sets = [
        "listener.handshakes_max=16",
        "listener.address_handshakes=0",
        "listener.accept_rate=2000",
        "limits.handshake_timeout=60s",
    ];
    let gateway = Gateway::start(&backend, &sets);
    let mut clients: Vec<_> = (0..count)
        .map(|number| Client::greet(gateway.listener, &hello(&format!("user-{number}"), "d")))
        .collect();
    clients.iter_mut().for_each(|client| client.until("WELCOME", |heard| heard.welcome.is_some()));
    gateway.until_sessions(count as u64);
    let metrics = until("the door was too narrow for some", || {
        let metrics = gateway.metrics();
        let exceeded = metrics["handshakes_exceeded_total"] + metrics["accept_rate_exceeded_total"];
        (exceeded > 0.0).then_some(metrics)
    });
    assert_eq!((metrics["accept_refused_total"], metrics["addresses_refused_total"]), (0.0, 0.0));
}

/// Clients that say nothing hold all places without a login; others are let in, each for the oldest silent one.
#[test]
fn silent_connections_keep_nobody_out() {
    let backend = Backend::start();
    let sets =
        ["listener.handshakes_max=32", "listener.address_handshakes=0", "limits.handshake_timeout=300s"];
    let gateway = Gateway::start(&backend, &sets);
    let _silent: Vec<_> = (0..60).map(|_| Client::connect(gateway.listener)).collect();
    gateway.until_at_least("handshakes_exceeded_total", 1);
    for number in 0..5 {
        Client::login(gateway.listener, &format!("user-{number}"), "d");
    }
    gateway.until_at_least("handshakes_evicted_total", 1);
}

/// One host that says nothing has its share of the places, so a client of another host need not wait.
#[test]
fn a_silent_host_has_its_share_of_the_places() {
    let backend = Backend::start();
    let sets = ["listener.handshakes_max=32", "limits.handshake_timeout=300s"];
    let gateway = Gateway::start(&backend, &sets);
    let silent = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("loopback");
        socket.connect(&gateway.listener.into()).expect("the system queues it");
        socket
    };
    let _silent: Vec<_> = (0..60).map(silent).collect();
    gateway.until_at_least("handshakes_refused_total", 1);
    Client::login(gateway.listener, "alice", "d");
}

/// An address has its share; the gateway tells further clients when to come back, and a closed connection frees a place.
#[test]
fn one_address_has_its_share() {
    let gateway = Gateway::alone(&["listener.address_connections=3"]);
    let first: Vec<_> = (0..3).map(|n| Client::login(gateway.listener, &format!("u{n}"), "d")).collect();
    let crate::raw::End::Close(close) = Client::refused(gateway.listener, &hello("u3", "d")) else {
        panic!("a CLOSE says why")
    };
    assert_eq!(close.code, moorline_proto::error::CloseReason::Throttled.code());
    assert!((2_000..4_000).contains(&close.retry_after_ms));
    drop(first);
    gateway.until_metric("connections", 0);
    Client::login(gateway.listener, "u3", "d");
    gateway.until_metric("addresses_refused_total", 1);
}
