//! Bad weather between clients and the gateway, and between the gateway and its backend: every message
//! arrives once, in order, byte for byte; afterwards nothing is left of it.

use crate::gateway::{Backend, Gateway};
use crate::proxy::{Proxy, Weather};
use crate::{PATIENCE, until};
use moorline_proto::random::Random;
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, Incoming, Pending};
use moorline_sdk::core::{Backoff, Target};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between clients and the gateway.
const MOBILE: Weather = Weather { drip: 4, delay: 4, stall: 60, cut: 40, half_close: 150 };
/// Between the gateway and its backend, where chunks hold many frames.
const CABLE: Weather = Weather { drip: 6, delay: 6, stall: 100, cut: 60, half_close: 0 };
/// Messages of each client.
const MESSAGES: usize = 120;

fn connect(gateway: SocketAddr, uid: &str) -> Client {
    let client = Client::builder(&format!("tcp://{gateway}"))
        .user(uid)
        .device("d", Platform::Linux)
        .backoff(Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(300) })
        .build()
        .expect("a client");
    until("the login", || client.is_logged_in().then_some(()));
    client
}

/// Message of `who` in a round: any bytes, mostly few.
fn payloads(who: u64, round: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(who << 32 | round);
    let mut payload = || {
        let most = if random.one_in(10) { 6_000 } else { 300 };
        let length = random.below(most);
        (0..length).map(|_| random.next_u64().to_le_bytes()[0]).collect()
    };
    (0..count).map(|_| payload()).collect()
}

/// Both say everything to each other and hear everything.
fn converse(pair: &[Client; 2], round: u64, count: usize) {
    let names = ["ann", "ben"];
    let said = [0, 1].map(|who| payloads(who, round, count));
    let sent: Vec<Pending> = (0..2)
        .flat_map(|who| {
            let to = Target::user(names[1 - who]);
            said[who]
                .iter()
                .map(move |payload| pair[who].send(to.clone(), 1, payload.clone()).expect("taken"))
        })
        .collect();
    let (before, mut last_seq) = (round * 2 * count as u64, 0);
    for who in 0..2 {
        for (number, expected) in said[1 - who].iter().enumerate() {
            let heard = hear(&pair[who], before)
                .unwrap_or_else(|error| panic!("{}, message {number} of round {round}: {error}", names[who]));
            assert_eq!(heard.sender, names[1 - who]);
            assert!(heard.payload == expected[..], "message {number} of round {round} is another");
        }
    }
    for pending in sent {
        let receipt = pending.wait_durable(PATIENCE).expect("stored");
        last_seq = last_seq.max(receipt.seq);
    }
    assert_eq!(last_seq, (round + 1) * 2 * count as u64, "each is stored once");
}

/// The next message behind those of earlier rounds: an ack that was lost with a link brings one of them to
/// the next client of the same device.
fn hear(client: &Client, before: u64) -> Result<Incoming, String> {
    loop {
        let heard = client.recv_timeout(PATIENCE).map_err(|error| format!("{error:?}"))?;
        if heard.seq > before {
            return Ok(heard);
        }
    }
}

#[test]
fn clients_in_bad_weather_lose_nothing() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let proxy = Proxy::start(gateway.listener, MOBILE, 1);
    let pair = [connect(proxy.address, "ann"), connect(proxy.address, "ben")];
    converse(&pair, 0, MESSAGES);
    let seen = proxy.seen();
    gateway.until_at_least("resumes_total", 1);
    println!("{seen:?}, {} sessions resumed", gateway.metric("resumes_total"));
    assert!(seen.cuts() >= 3 && seen.drips.load(Ordering::SeqCst) >= 10, "{seen:?}");
}

#[test]
fn links_in_bad_weather_lose_nothing() {
    let backend = Backend::start();
    let proxy = Proxy::start(backend.address, CABLE, 2);
    let endpoint = format!("backend.endpoints={}", proxy.address);
    // Two ways to the same backend, so that users move between links.
    let gateway = Gateway::start_bare(&[&endpoint, "backend.links_per_worker=2", "backend.up_timeout=1s"]);
    gateway.until_ready();
    let pair = [connect(gateway.listener, "ann"), connect(gateway.listener, "ben")];
    converse(&pair, 0, MESSAGES);
    println!("{:?}, {} UPs rerouted", proxy.seen(), gateway.metric("reroutes_total"));
    assert!(proxy.seen().cuts() >= 3, "{:?}", proxy.seen());
    gateway.until_at_least("link_failures_total", 3);
}

#[test]
fn after_bad_weather_everything_is_as_before() {
    let backend = Backend::start();
    let cable = Proxy::start(backend.address, CABLE, 3);
    cable.calm_down();
    let endpoint = format!("backend.endpoints={}", cable.address);
    let gateway = Gateway::start_bare(&[&endpoint, "session.keep=1s", "backend.up_timeout=1s"]);
    gateway.until_ready();
    let mobile = Proxy::start(gateway.listener, MOBILE, 4);
    let fds = gateway.process.descriptors().len();
    let mut resident = Vec::new();
    for round in 0..3 {
        let pair = [connect(mobile.address, "ann"), connect(mobile.address, "ben")];
        [&mobile, &cable].into_iter().for_each(Proxy::storm_again);
        converse(&pair, round, MESSAGES / 2);
        [&mobile, &cable].into_iter().for_each(Proxy::calm_down);
        for client in pair {
            until("it logs in again", || client.is_logged_in().then_some(()));
            client.logout(PATIENCE);
        }
        gateway.until_metric("sessions", 0);
        gateway.until_metric("connections", 0);
        gateway.until_metric("links_up", 1);
        let descriptors = || gateway.process.descriptors().len();
        until(&format!("at most {fds} descriptors are open"), || (descriptors() <= fds).then_some(()));
        for name in
            ["detached", "queued_bytes", "timers", "read_paused", "rooms", "ups_pending", "ups_parked"]
        {
            gateway.until_metric(name, 0);
        }
        resident.push(gateway.process.resident_kib());
    }
    println!("{resident:?} KiB after each round, {:?} and {:?}", mobile.seen(), cable.seen());
    assert!(resident[2] <= resident[0] + 2_048, "memory grows: {resident:?} KiB");
}
