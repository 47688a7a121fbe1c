//! Clients that are there, and do not acknowledge what they get.

use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Acks, Client};
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Flags;
use moorline_proto::message::client::Code;
use std::time::Duration;

/// Threads that run one after the other between a deadline of the gateway and its client.
const HOPS: u32 = 8;

#[test]
fn more_than_the_queue_holds_ends_the_connection_and_loses_nothing() {
    let backend = Backend::start();
    // Less than the backend pushes ahead; the other gateway holds more than that.
    let small = Gateway::start(
        &backend,
        &["gateway.id=small", "limits.downlink_bytes=16KiB", "limits.queue_bytes=64KiB"],
    );
    let large = Gateway::start(&backend, &["gateway.id=large"]);
    let mut bob = Client::login(small.listener, "bob", "d");
    let mut alice = Client::login(large.listener, "alice", "d");
    bob.acks = Acks::Withheld;
    for number in 0..8u8 {
        assert_eq!(alice.tell(number.into(), "bob", &vec![number; 30_000]).code(), Code::Ok);
    }
    assert_eq!(bob.end().code(), CloseReason::Slow.code());
    assert!(bob.heard.pushes.len() < 8, "one may be under way, two wait");
    small.until_closed("slow", 1);
    let mut bob = Client::login(large.listener, "bob", "d");
    bob.until("all of it", |heard| heard.pushes.len() == 8);
    for (number, push) in (0..8u8).zip(&bob.heard.pushes) {
        assert!(push.payload == vec![number; 30_000] && push.seq == u64::from(number) + 1);
    }
}

#[test]
fn an_ack_that_never_comes_is_asked_for_and_then_ends_the_connection() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut bob = Client::login(gateway.listener, "bob", "d");
    let mut alice = Client::login(gateway.listener, "alice", "d");
    bob.acks = Acks::Withheld;
    let (started, lateness) = (clock::now(), Lateness::start());
    assert_eq!(alice.tell(1, "bob", b"there?").code(), Code::Ok);
    bob.until("the question", |heard| !heard.pings.is_empty());
    assert!(bob.heard.pings[0].header.flags.contains(Flags::ACK_REQ));
    let asked = clock::now().saturating_since(started);
    assert!(asked.as_secs() >= 2, "asked after {asked:?}");
    // It answers nothing more.
    assert_eq!(bob.end().code(), CloseReason::AckTimeout.code());
    assert_eq!(bob.heard.again, 1, "TCP had delivered it, so it was sent again");
    let ended = clock::now().saturating_since(started + asked);
    let late = HOPS * lateness.finish();
    assert!(asked < Duration::from_secs(6) + late, "asked after {asked:?}");
    let most = Duration::from_secs(14) + late;
    assert!(ended > Duration::from_secs(9) && ended < most, "ended after {ended:?} more");
    gateway.until_metric("ack_probes_total", 1);
    let mut bob = Client::login(gateway.listener, "bob", "d");
    bob.until("the message again", |heard| heard.payloads() == [b"there?"]);
}
