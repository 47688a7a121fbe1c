//! Backpressure and overload: whom shards are told not to read, and what is shed.

use super::*;
use moorline_proto::frame::Lane;

#[test]
fn a_line_that_grows_holds_its_own_clients_lane_by_lane_and_lets_go_again() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.link.up_timeout = PATIENCE;
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(1);
    let (shard, bit) = (user.key.shard(), 1u64 << user.pin.slot());
    let held = |lanes: &[Lane]| {
        let mut slots = [0; Lane::ALL.len()];
        lanes.iter().for_each(|lane| slots[*lane as usize] = bit);
        slots
    };
    let hold = || match world.any_downlink(shard) {
        Downlink::Hold { worker: 4, slots } => slots,
        other => panic!("{other:?}"),
    };
    world.mail(&user, vec![user.send(1), user.send(2)]);
    let (first, _) = peer.up();
    assert_eq!(hold(), held(&[Lane::Bulk]), "one waits for credit");
    world.mail(&user, (3..=70).map(|cid| user.send(cid)).collect());
    assert_eq!(hold(), held(&[Lane::Chat, Lane::Group, Lane::Bulk]), "69 wait");
    // Credit for all: the line empties, everybody may be read again.
    peer.send(Kind::Credit, 0, 1_000, &());
    peer.answer(first, 1);
    let mut last = held(&[Lane::Bulk]);
    while last != [0; Lane::ALL.len()] {
        last = match world.any_downlink(shard) {
            Downlink::Hold { slots, .. } => slots,
            Downlink::Answer { .. } => last,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(world.counter_set.get(Count::UpsRefused as usize), 0, "nothing was turned away");
}

#[test]
fn slow_answers_raise_the_level_and_shards_are_told() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.overload = OverloadLimits {
        latency: Duration::from_millis(1),
        queue_frames: 1_000,
        hold: Duration::from_secs(60),
    };
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(0);
    let mut level = 0;
    for cid in 1..200 {
        world.mail(&user, vec![user.send(cid)]);
        let (correlation, _) = peer.up();
        std::thread::park_timeout(std::time::Duration::from_millis(5));
        peer.answer(correlation, 1);
        match world.downlink(user.key.shard()) {
            Downlink::Overload { worker: 4, level: now } => level = now,
            Downlink::Answer { .. } => {}
            other => panic!("{other:?}"),
        }
        if level == 3 {
            return;
        }
    }
    panic!("the level stays {level}");
}
