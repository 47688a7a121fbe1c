//! Rate limits, paused reading, batches, and load shedding.

use super::*;
use crate::shard_map::{Pins, UserKey};
use moorline_proto::message::client::send::Target as SendTarget;
use moorline_proto::message::client::{Resume, Send, Sub, SubAck, Throttle};
use moorline_proto::message::encode;

pub(super) fn world(change: impl FnOnce(&mut Settings)) -> World {
    let mut settings = settings();
    change(&mut settings);
    let now = Instant::from_nanos(1_000_000_000);
    World { shard: Shard::new(settings, now), now, outputs: Outputs::new(1) }
}

impl World {
    /// Connections whose reading the shard paused (true) or resumed since the last call.
    pub(super) fn pauses(&mut self) -> Vec<(ConnKey, bool)> {
        let pause = |output| match output {
            Output::PauseReads(key) => Some((key, true)),
            Output::ResumeReads(key) => Some((key, false)),
            _ => None,
        };
        self.operations().into_iter().filter_map(pause).collect()
    }
}

pub(super) fn ping() -> Frame {
    frame_of(Command::Ping, &Ping { next_s: 30 })
}

#[test]
fn a_strict_listener_takes_one_send_at_a_time() {
    let mut world = world(|settings| settings.uplink_window = 1);
    let key = world.login("alice", "phone");
    world.frame(key, &send(1));
    world.frame(key, &send(1));
    assert_eq!(cids(&world.uplinks()), [(1, false)], "the copy waits for the same answer");
    world.downlink(answer(key, 1, Code::Ok, Rank::First));
    world.frame(key, &send(2));
    assert_eq!(cids(&world.uplinks()), [(2, false)]);
    world.frame(key, &send(3));
    assert_eq!(world.close_code(key), Some(CloseReason::Window.code()));
}

#[test]
fn a_connection_over_its_rate_is_not_read_for_a_while() {
    let mut world = world(|settings| settings.frame_rate = 10);
    let key = world.login("alice", "phone");
    (0..20).for_each(|_| world.frame(key, &ping()));
    assert!(world.pauses().is_empty(), "a burst of twice the rate");
    world.frame(key, &ping());
    assert_eq!(world.pauses(), [(key, true)]);
    assert_eq!(world.written(key).len(), 21, "the frame that exceeds the rate is the last one");
    let frames = [ping(), ping(), ping()];
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    world.bytes(key, &bytes);
    assert!(world.written(key).is_empty(), "the rate is judged per frame, not per read");
    world.pass(Duration::from_millis(50));
    assert!(world.pauses().is_empty());
    world.pass(Duration::from_millis(100));
    assert_eq!(world.pauses(), [(key, false), (key, true)], "one more, and then it is above the rate again");
    assert_eq!(world.written(key).len(), 1);
    (0..10).for_each(|_| world.pass(Duration::from_millis(50)));
    assert_eq!((world.written(key).len(), world.pauses().last()), (2, Some(&(key, false))));
    assert_eq!(world.shard.counters()[Count::Paused], 0);
    // Not being read is not silence.
    assert_eq!(world.shard.sessions(), 1);
}

#[test]
fn a_user_over_the_rate_is_told_once_and_answered_retry() {
    let mut world = world(|settings| settings.user_rate = 5);
    let (phone, desk) = (world.login("alice", "phone"), world.login("alice", "desk"));
    world.uplinks();
    (1..=8).for_each(|cid| world.frame(phone, &send(cid)));
    (1..=4).for_each(|cid| world.frame(desk, &send(cid)));
    assert_eq!(cids(&world.uplinks()).len(), 10, "all devices together, twice the rate at once");
    let frames = world.written(desk);
    let throttle: Throttle = decode(&frames[0].body).expect("a THROTTLE");
    assert!(frames[0].header.command == Command::Throttle && throttle.retry_after_ms >= 1_000);
    for (frame, cid) in frames[1..].iter().zip(3..) {
        let ack: SendAck = decode(&frame.body).expect("a SENDACK");
        assert_eq!((ack.cid, ack.code()), (cid, Code::Retry));
        assert!(ack.retry_after_ms >= 500);
    }
    assert_eq!(frames.len(), 3, "said once");
    // The cid was answered: it comes again, and is taken then.
    world.pass(Duration::from_secs(2));
    world.frame(desk, &send(3).with_flags(Flags::DUP));
    assert_eq!(cids(&world.uplinks()), [(3, true)]);
    // Rooms and requests are refused likewise, application commands are lost.
    (9..=30).for_each(|cid| world.frame(phone, &send(cid)));
    world.written(phone);
    world.frame(phone, &frame_of(Command::Sub, &Sub { id: 7, room: "r".into() }));
    let refusal: SubAck = decode(&world.written(phone)[0].body).expect("a SUBACK");
    assert_eq!((refusal.id, refusal.code()), (7, Code::Retry));
    world.frame(phone, &Frame::new(Command::App(0x40), Bytes::new()));
    assert_eq!(world.shard.counters()[Count::AppsDropped], 1);
}

#[test]
fn a_user_who_chose_a_colliding_id_silences_nobody() {
    let mut uids = std::collections::HashMap::new();
    let mut pairs = (0..).map(|number| format!("m-{number}"));
    let (mallory, victim) = pairs
        .find_map(|uid| uids.insert(Pin::of(&uid).0, uid.clone()).map(|other| (other, uid)))
        .expect("of so many some are alike");
    let keys = [UserKey::NONE, UserKey::new([7; 16], Pins::Plain), UserKey::new([7; 16], Pins::Keyed)];
    for key in keys {
        let mut world = world(|settings| {
            settings.user_rate = 5;
            settings.shard_map = ShardMap::new(1).with_key(key);
        });
        let (loud, quiet) = (world.login(&mallory, "d"), world.login(&victim, "d"));
        world.uplinks();
        (1..=30).for_each(|cid| world.frame(loud, &send(cid)));
        assert_eq!(cids(&world.uplinks()).len(), 10, "mallory is at the limit");
        (1..=10).for_each(|cid| world.frame(quiet, &send(cid)));
        assert_eq!(cids(&world.uplinks()).len(), 10, "and the other one's rate is untouched");
    }
}

#[test]
fn overload_sheds_the_last_rank_then_the_second_then_logins_and_never_single_chat() {
    let mut world = world(|_| ());
    let key = world.login("alice", "phone");
    world.uplinks();
    let send_to = |cid, name: &str| {
        let target = Some(SendTarget::Conversation(format!("group:{name}")));
        Frame::new(Command::Send, encode(&Send { target, ..Send::default() }))
            .with_lane(Lane::Group)
            .with_seq(cid)
    };
    // The answers tell the ranks.
    let (mut cid, groups) = (0, [("three", Rank::First), ("school", Rank::Second), ("all", Rank::Last)]);
    for (name, rank) in groups {
        cid += 1;
        world.frame(key, &send_to(cid, name));
        let answer = SendAck { conversation: format!("group:{name}"), ..SendAck::default() };
        let body = send_ack_body(cid, Code::Ok, &encode(&answer));
        world.downlink(Downlink::Answer { key, command: Command::SendAck, cid, is_final: true, rank, body });
    }
    let (chat, bulk) = (send(0).with_lane(Lane::Chat), send(0).with_lane(Lane::Bulk));
    for level in 0..=3 {
        world.downlink(Downlink::Overload { worker: 0, level });
        let frames = groups.map(|(name, _)| send_to(0, name)).into_iter().chain([chat.clone(), bulk.clone()]);
        let taken: Vec<bool> = frames
            .map(|frame| {
                cid += 1;
                world.uplinks();
                world.frame(key, &frame.with_seq(cid));
                let is_taken = !cids(&world.uplinks()).is_empty();
                world.downlink(answer(key, cid, Code::Ok, Rank::First));
                world.written(key);
                is_taken
            })
            .collect();
        assert_eq!(taken, [true, level < 2, level < 1, true, level < 1], "at level {level}");
    }
    let hello = |resume| Hello {
        version_min: 1,
        version_max: 1,
        uid: "bob".into(),
        device: "d".into(),
        resume,
        ..Hello::default()
    };
    let newcomer = world.accept();
    world.frame(newcomer, &frame_of(Command::Hello, &hello(None)));
    let last = world.written(newcomer).pop().expect("a CLOSE");
    let close: Close = decode(&last.body).expect("a CLOSE");
    assert_eq!(close.code, CloseReason::Busy.code());
    assert!((1_000..5_000).contains(&close.retry_after_ms), "the gateway chooses the spread");
    let returner = world.accept();
    world.frame(returner, &frame_of(Command::Hello, &hello(Some(Resume::default()))));
    assert!(matches!(world.uplinks().last(), Some(Uplink::Login { .. })), "coming back stays possible");
    world.downlink(Downlink::Overload { worker: 0, level: 0 });
    world.login("carol", "phone");
}

#[test]
fn too_much_memory_in_use_shrinks_queues_and_then_refuses_logins() {
    let mut world = world(|settings| settings.memory_bytes_max = 41_000);
    let (alice, bob) = (world.login("alice", "d"), world.login("bob", "d"));
    // Four are under way for each, and two wait: over the watermark at the last.
    for key in [alice, bob] {
        (1..=6).for_each(|i| world.push(key, i, &[0; 2_000]));
    }
    assert_eq!(world.shard.sessions(), 2, "each alone is within its limit");
    world.push(bob, 7, &[0; 2_000]);
    assert_eq!(world.shard.sessions(), 1, "which counts as a quarter now");
    let newcomer = world.accept();
    let hello =
        Hello { version_min: 1, version_max: 1, uid: "eve".into(), device: "d".into(), ..Hello::default() };
    world.shard.clients.ledger.settings.memory_bytes_max = 100;
    world.frame(newcomer, &frame_of(Command::Hello, &hello));
    assert_eq!(world.close_code(newcomer), Some(CloseReason::Busy.code()));
}

#[test]
fn only_clients_whose_frames_would_wait_are_held() {
    let mut world = world(|_| ());
    let (alice, bob) = (world.login("alice", "d"), world.login("bob", "d"));
    let slot_of = |uid| 1u64 << Pin::of(uid).slot();
    let mut slots = [0; Lane::ALL.len()];
    slots[Lane::Group as usize] = slot_of("alice");
    assert_ne!(slot_of("alice"), slot_of("bob"));
    world.downlink(Downlink::Hold { worker: 0, slots });
    world.frame(bob, &send(1).with_lane(Lane::Group));
    world.frame(alice, &send(1).with_lane(Lane::Chat));
    assert!(world.pauses().is_empty(), "another user, a lane that matters more");
    world.frame(alice, &send(2).with_lane(Lane::Group));
    assert_eq!(world.pauses(), [(alice, true)]);
    assert_eq!(cids(&world.uplinks()).len(), 3, "what was read is passed on all the same");
    // However long it takes, a held client is not given up.
    (0..1_000).for_each(|_| world.pass(Duration::from_secs(1)));
    assert_eq!(world.shard.counters()[Count::Paused], 1);
    world.downlink(Downlink::Hold { worker: 0, slots: [0; Lane::ALL.len()] });
    assert_eq!(world.pauses(), [(alice, false)]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.shard.counters()[Count::Sessions], 1, "bob said nothing for long, alice could not");
}

#[test]
fn a_newer_device_of_a_kind_ends_the_oldest_of_that_kind() {
    let mut world = world(|settings| (settings.devices_of_kind, settings.devices_max) = ([1, 2, 0], 9));
    let mut login = |device: &str, platform| {
        let (uid, device) = ("alice".into(), device.into());
        world.login_as(Admission { uid, device, platform, ..Admission::default() })
    };
    let (phone, laptop, _desk) = (login("phone", 1), login("laptop", 3), login("desk", 4));
    let (_tablet, _third, _tabs) =
        (login("tablet", 2), login("third", 5), [login("tab1", 6), login("tab2", 6)]);
    for gone in [phone, laptop] {
        let last = world.written(gone).pop().expect("a word");
        let kick: Kick = decode(&last.body).expect("a KICK");
        assert_eq!((last.header.command, kick.code), (Command::Kick, CloseReason::Replaced.code()));
    }
    assert_eq!(world.shard.sessions(), 5, "browsers have no limit of their own here");
}

#[test]
fn what_may_wait_goes_out_together() {
    let mut world = world(|settings| {
        (settings.batch_age, settings.batch_frames) = (Duration::from_secs(1), 3);
        settings.downlink.frames_max = 8;
    });
    let (uid, device) = ("alice".into(), "phone".into());
    let key = world.login_as(Admission { uid, device, accepts_lz4: true, ..Admission::default() });
    world.push_on(Lane::Group, key, 1, &[7; 400]);
    world.push_on(Lane::Group, key, 2, &[7; 400]);
    assert!(world.written(key).is_empty(), "they wait for a third");
    world.push(key, 3, b"urgent");
    let frames = world.written(key);
    assert_eq!((frames.len(), frames[0].header.seq, frames[0].header.lane), (1, 1, Lane::Chat));
    world.push_on(Lane::Bulk, key, 4, b"third");
    let [batch] = &world.written(key)[..] else { panic!("one frame") };
    assert!(batch.header.flags.contains(Flags::BATCH.with(Flags::COMPRESSED)) && batch.body.len() < 400);
    let plain = batch.clone().into_plain(64 << 10).expect("LZ4");
    let seqs: Vec<Seq> = Batch::new(plain.body).map(|frame| frame.expect("whole").header.seq).collect();
    assert_eq!(seqs, [2, 3, 4]);
    world.push_on(Lane::Group, key, 5, b"alone");
    assert!(world.written(key).is_empty());
    world.pass(Duration::from_millis(1_050));
    let [alone] = &world.written(key)[..] else { panic!("one frame") };
    assert!(!alone.header.flags.contains(Flags::BATCH) && alone.header.seq == 5);
    assert_eq!(world.shard.counters()[Count::Batches], 1);
}

#[test]
fn of_a_crowd_that_is_due_at_once_a_turn_serves_some_dozens() {
    let mut world = World::new();
    let crowd = 200;
    (0..crowd).for_each(|_| _ = world.accept());
    world.now += Duration::from_secs(60);
    let mut turns = Vec::new();
    for _ in 0..2 {
        world.operations();
        world.shard.handle_timeouts(world.now, &mut world.outputs);
        world.shard.check();
        turns.push(world.operations().iter().filter(|it| matches!(it, Output::Write(_))).count());
    }
    assert_eq!(turns, [166, 34], "a millisecond of writes, by what a write costs");
}
