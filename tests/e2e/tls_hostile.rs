//! TLS handshakes that somebody makes for their cost: a flood of whole ones, and openings that drip.

use crate::beside::{CHAT_HOPS, Chat};
use crate::lateness::Lateness;
use crate::soak;
use crate::tls::World;
use crate::tunnel::Tunnel;
use moorline::sys::clock;
use moorline_proto::time::Instant;
use std::io::{Read as _, Write as _};
use std::time::Duration;

/// A message of the chat beside takes less, 99 times of 100.
const CHAT_WITHIN: Duration = Duration::from_millis(500);
/// Connections that drip at once.
const DRIPPING: usize = 30;

/// Whole handshakes, one behind the other, without a frame behind them.
fn flood(world: &World, until: Instant) -> u64 {
    // The flood shares the machine with the gateway, as it does nowhere else.
    rustix::process::setpriority_process(None, 19).expect("less is always allowed");
    let mut handshakes = 0;
    while clock::now() < until {
        let mut stream = world.connect("tls");
        if Tunnel::tls(&mut stream, world.authority.client("moorline/1")).is_ok() {
            handshakes += 1;
        }
    }
    handshakes
}

/// Openings of which a byte comes now and then, until the gateway closes them.
fn drip(world: &World, until: Instant) -> u64 {
    let mut closed = 0;
    while clock::now() < until {
        let hello = Tunnel::client_hello(&world.authority.client("moorline/1"));
        let mut streams: Vec<_> = (0..DRIPPING).map(|_| world.connect("tls")).collect();
        // Each has the handshake's time from its first byte, whatever it sends.
        let mut bytes = hello.iter();
        while let Some(byte) = bytes.next().filter(|_| !streams.is_empty()) {
            let wait = Duration::from_millis(20) / u32::try_from(streams.len()).expect("few");
            streams.retain_mut(|stream| {
                stream.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).expect("a socket");
                let is_open = stream.write_all(&[*byte]).is_ok();
                let has_ended = |count: std::io::Result<usize>| match count {
                    Ok(count) => count == 0,
                    Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
                };
                let is_over = !is_open || has_ended(stream.read(&mut [0; 64]));
                closed += u64::from(is_over);
                !is_over
            });
        }
    }
    closed
}

#[test]
fn a_flood_of_handshakes_and_openings_that_drip_leave_a_chat_alone() {
    let world = World::start_with("[limits]\nhandshake_timeout = \"1s\"\n");
    let gateway = &world.series.gateway;
    let chat = Chat::start_unhurried(world.address("tcp"), Duration::from_millis(25));
    chat.go_on(20);
    let alone = chat.lap();
    let lateness = Lateness::start();
    let until = clock::now() + soak::time(5);
    let (handshakes, closed) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&world, until));
        let drip = scope.spawn(|| drip(&world, until));
        (flood.join().expect("the flood"), drip.join().expect("the drip"))
    });
    let beside = chat.lap();
    let chat_within = CHAT_WITHIN + CHAT_HOPS * lateness.finish();
    println!(
        "{handshakes} handshakes, {closed} dripping openings closed; alone {alone:?}, beside {beside:?}"
    );
    chat.go_on(5);
    chat.finish();
    assert!(beside.p99 <= chat_within, "the chat: {beside:?}, {chat_within:?} allowed");
    assert!(handshakes > 0 && closed > 0, "{handshakes} handshakes, {closed} closed");
    gateway.until_at_least("tls_handshakes_total", handshakes);
    gateway.until_at_least("closed_total{reason=\"handshake_timeout\"}", closed);
    gateway.until_metric("connections", 0);
}
