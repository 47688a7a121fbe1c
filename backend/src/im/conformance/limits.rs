//! Conversations that are limited or frozen by order.

use super::bench::Bench;
use super::event;
use crate::im::store::{
    API_DEVICE, DeviceNumber, NOBODY, Outcome, Refusal, Store, Stored, Target, UserId, Write,
};

/// Sends a message of a device at a time. Returns what becomes of it.
fn say_at<S: Store>(
    bench: &mut Bench<S>,
    (sender, device): (UserId, DeviceNumber),
    target: Target,
    key: u8,
    now_ms: u64,
) -> Result<Stored, Refusal> {
    let said = bench.draft(sender, device.0, target, key, 7);
    match bench.commit(now_ms, vec![said]).pop() {
        Some((Outcome::Appended(result), _)) => result,
        other => panic!("a message was answered by {other:?}"),
    }
}

pub(super) fn it_takes_what_is_allowed<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c] = ["a", "b", "c"].map(|uid| bench.user(uid));
    let group = bench.create(a, vec![b, c]).expect("created");
    let (target, phone) = (Target::Conversation(group), DeviceNumber(0));
    let first = say_at(bench, (a, phone), target, 1, 0).expect("nothing limits it");
    let limit = |per_minute| Write::LimitSends { conversation: group, per_minute };
    bench.done(limit(Some(12))).expect("set");
    assert_eq!(bench.store.counts().limited, 1);
    // Two at once, then one in five seconds, whoever of the members says it.
    for (user, key) in [(b, 2), (c, 3)] {
        say_at(bench, (user, phone), target, key, 1000).expect("allowed");
    }
    assert_eq!(say_at(bench, (a, phone), target, 4, 5999), Err(Refusal::TooFast));
    let again = say_at(bench, (a, phone), target, 1, 5999).expect("it was stored before");
    assert_eq!((again.seq, again.delivery), (first.seq, None));
    say_at(bench, (a, API_DEVICE), target, 5, 5999).expect("the operator is not limited");
    say_at(bench, (a, phone), Target::User(b), 6, 5999).expect("another conversation");
    say_at(bench, (a, phone), target, 4, 6000).expect("allowed");
    bench.done(limit(Some(0))).expect("set");
    assert_eq!(say_at(bench, (a, phone), target, 7, 100_000), Err(Refusal::Frozen));
    assert_eq!(say_at(bench, (c, phone), target, 3, 100_000).expect("stored before").delivery, None);
    say_at(bench, (a, API_DEVICE), target, 8, 100_000).expect("the operator may");
    bench.done(limit(None)).expect("lifted");
    for key in 9..20 {
        say_at(bench, (a, phone), target, key, 100_000).expect("nothing limits it");
    }
    bench.done(limit(Some(0))).expect("set");
    let dissolve = Write::Dissolve { conversation: group, by: (NOBODY, API_DEVICE), event: event() };
    bench.done(dissolve).expect("it is no more");
    assert_eq!(bench.store.counts().limited, 0);
}
