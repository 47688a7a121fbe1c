//! Pushes that wait: whom they may cost the connection, and what memory they keep.

use super::limits::world;
use super::*;
use moorline_proto::message::client;

impl World {
    fn deliver(&mut self, push: Push) {
        self.downlink(Downlink::Push(push));
    }

    fn count_of(&mut self, count: Count) -> u64 {
        self.shard.counters()[count]
    }
}

fn push(targets: Vec<Target>, body: Bytes) -> Push {
    Push {
        ticket: None,
        targets,
        command: Command::App(0x41),
        lane: Lane::Chat,
        rank: Rank::of(0, Lane::Chat),
        expires_at: Instant::FAR_FUTURE,
        body,
        packed: None,
        except: None,
        collapse: None,
    }
}

fn ticket(correlation: u64) -> PushRef {
    PushRef { worker: 0, link: 0, link_generation: 0, correlation }
}

#[test]
fn unacknowledged_pushes_never_close_a_connection_and_leave_room_for_the_others() {
    let mut world = world(|_| ());
    let reader = world.login("alice", "d");
    let speakers: Vec<_> = (0..9).map(|number| world.login(&format!("s{number}"), "d")).collect();
    let room: std::sync::Arc<str> = "r".into();
    let keys = [vec![reader], speakers.clone()].concat();
    world.downlink(Downlink::Bind { room: std::sync::Arc::clone(&room), version: 1, keys, reset: None });
    // Nobody reads or acknowledges: of 900 signals of 900 bytes, most are dropped, and nobody is closed.
    for number in 0..900 {
        let except = Some(speakers[number % speakers.len()]);
        let body = Bytes::from(vec![7; 900]);
        world.deliver(Push { except, ..push(vec![Target::Room(std::sync::Arc::clone(&room))], body) });
    }
    assert_eq!(world.shard.sessions(), 10);
    assert!(world.count_of(Count::PushesDropped) > 5_000 && world.count_of(Count::PushesFull) == 0);
    // A sender's later signal replaces the earlier one that waits.
    assert!(world.count_of(Count::PushesSuperseded) > 0);
    // Messages that the backend waits for have the whole queue: signals make room.
    for correlation in 0..4 {
        let body = Bytes::from(vec![1; 2_400]);
        world.deliver(Push {
            ticket: Some(ticket(correlation)),
            ..push(vec![Target::Connection(reader)], body)
        });
    }
    assert_eq!(world.shard.sessions(), 10);
    let body = Bytes::from(vec![1; 2_400]);
    world.deliver(Push { ticket: Some(ticket(4)), ..push(vec![Target::Connection(reader)], body) });
    assert_eq!(world.shard.sessions(), 9, "these the client must read");
}

#[test]
fn a_live_message_that_is_too_much_becomes_a_hint() {
    let mut world = world(|settings| settings.collapse_bytes_max = 100_000);
    let reader = world.login("alice", "d");
    for seq in 1..=50 {
        let live = client::Push {
            conversation: "live:1".into(),
            seq,
            payload: vec![1; 500].into(),
            ..Default::default()
        };
        let body = moorline_proto::message::encode(&live);
        let (command, lane) = (Command::Push, Lane::Group);
        world.deliver(Push { command, lane, ..push(vec![Target::Connection(reader)], body) });
    }
    assert_eq!((world.shard.sessions(), world.count_of(Count::PushesDropped)), (1, 0));
    assert!(world.count_of(Count::PushesCollapsed) > 20);
}

/// Nothing else would tell a client of the last message of a group: it has no outcome, and the connection stays.
#[test]
fn signals_make_room_for_others_and_messages_are_not_dropped() {
    let mut world = world(|settings| settings.collapse_bytes_max = 100_000);
    let reader = world.login("alice", "d");
    let message = |seq: u64, size: usize| {
        let live = client::Push {
            conversation: "group:g".into(),
            seq,
            payload: vec![1; size].into(),
            ..Default::default()
        };
        moorline_proto::message::encode(&live)
    };
    let (command, lane) = (Command::Push, Lane::Group);
    let to = || vec![Target::Connection(reader)];
    // Behind a full window: three messages whose outcome nobody waits for, and a signal.
    for correlation in 0..4 {
        world.deliver(Push { ticket: Some(ticket(correlation)), ..push(to(), Bytes::from(vec![1; 10])) });
    }
    for seq in 1..=3 {
        world.deliver(Push { command, lane, ..push(to(), message(seq, 500)) });
    }
    world.deliver(push(to(), Bytes::from(vec![7; 500])));
    // What the backend waits for takes the whole queue.
    for correlation in 4..8 {
        world.deliver(Push { ticket: Some(ticket(correlation)), ..push(to(), Bytes::from(vec![1; 2_400])) });
    }
    assert_eq!((world.shard.sessions(), world.count_of(Count::PushesDropped)), (1, 1), "the signal");
}

#[test]
fn what_waits_keeps_no_block_of_a_link() {
    let mut world = world(|settings| settings.session_keep = Duration::from_secs(60));
    let block = Bytes::from(vec![5; 64 << 10]);
    let small = |at: usize| block.slice(at * 41..(at + 1) * 41);
    // Behind a full window.
    let alice = world.login("alice", "d");
    for correlation in 0..4 {
        let body = Bytes::from(vec![1; 10]);
        world.deliver(Push {
            ticket: Some(ticket(correlation)),
            ..push(vec![Target::Connection(alice)], body)
        });
    }
    world.deliver(Push { ticket: Some(ticket(9)), ..push(vec![Target::Connection(alice)], small(0)) });
    world.written(alice);
    assert!(block.is_unique(), "behind a window");
    // Toward a device that is away, and of several devices.
    let (bob, desk) = (world.login("bob", "d"), world.login("bob", "desk"));
    world.deliver(Push { ticket: Some(ticket(10)), ..push(vec![Target::Connection(bob)], small(1)) });
    assert!(!block.is_unique(), "under way, it is not copied");
    for key in [bob, desk] {
        world.shard.handle_peer_closed(world.now, key, &mut world.outputs);
    }
    assert!(block.is_unique(), "in flight to a device that is away");
    world.deliver(Push { ticket: Some(ticket(11)), ..push(vec![Target::User("bob".into())], small(2)) });
    assert!(block.is_unique(), "toward devices that are away");
    // In the queue of a socket that takes nothing.
    let carol = world.login("carol", "d");
    world.frame(carol, &send(1));
    let answer = |body| Downlink::Answer {
        key: carol,
        command: Command::SendAck,
        cid: 1,
        is_final: false,
        rank: Rank::First,
        body,
    };
    world.downlink(answer(small(3)));
    assert!(!block.is_unique());
    world.shard.handle_sent(carol, 0, &mut world.outputs);
    assert!(block.is_unique(), "a socket that takes nothing");
    world.downlink(answer(small(4)));
    assert!(block.is_unique(), "and goes on taking nothing");
    // A client that does not acknowledge.
    let dave = world.login("dave", "d");
    world.deliver(Push { ticket: Some(ticket(12)), ..push(vec![Target::Connection(dave)], small(5)) });
    world.written(dave);
    assert!(!block.is_unique());
    world.pass(Duration::from_secs(4));
    assert!(block.is_unique(), "when the ack is overdue");
    // A large fan-out.
    let crowd: Vec<_> = (0..70).map(|number| world.login(&format!("u{number}"), "d")).collect();
    let targets = crowd.iter().map(|key| Target::Connection(*key)).collect();
    world.deliver(Push { rank: Rank::Second, ..push(targets, small(6)) });
    assert!(block.is_unique() && world.count_of(Count::QueuedBytes) > 70 * 8, "a fan-out that waits");
    world.shard.handle_fanout(world.now, &mut world.outputs);
    world.shard.handle_fanout(world.now, &mut world.outputs);
    assert!(!world.shard.has_fanout(world.now));
}

#[test]
fn everything_under_way_is_counted() {
    let mut world = world(|_| ());
    let key = world.login("alice", "d");
    world.written(key);
    let idle = world.count_of(Count::QueuedBytes);
    world.deliver(Push {
        ticket: Some(ticket(1)),
        ..push(vec![Target::Connection(key)], Bytes::from(vec![1; 900]))
    });
    world.written(key);
    assert!(
        (idle + 900..idle + 1_300).contains(&world.count_of(Count::QueuedBytes)),
        "sent, and not acknowledged"
    );
    world.frame(key, &Frame::new(Command::Ack, Bytes::new()).with_ack(1));
    assert_eq!(world.count_of(Count::QueuedBytes), idle);
}

/// The round trip was forgotten whenever nothing was under way: acks of a quiet chat were overdue after 3 s, not 2.
#[test]
fn the_round_trip_outlives_the_frames_that_it_was_measured_with() {
    let mut world = World::new();
    let bob = world.login("bob", "d");
    let ack = |seq| Frame::new(Command::Ack, Bytes::new()).with_ack(seq);
    world.push(bob, 1, b"first");
    world.written(bob);
    world.pass(Duration::from_millis(2_300));
    assert_eq!(world.count_of(Count::AckProbes), 0, "nothing was measured: 3 s");
    world.frame(bob, &ack(1));
    world.push(bob, 2, b"second");
    world.written(bob);
    world.pass(Duration::from_millis(10));
    for seq in 2..40 {
        world.frame(bob, &ack(seq));
        world.push(bob, u64::from(seq) + 1, b"more");
        world.written(bob);
        world.pass(Duration::from_millis(10));
    }
    world.frame(bob, &ack(40));
    world.pass(Duration::from_secs(10));
    world.push(bob, 41, b"after a while");
    world.written(bob);
    world.pass(Duration::from_millis(1_900));
    assert_eq!(world.count_of(Count::AckProbes), 0);
    world.pass(Duration::from_millis(400));
    assert_eq!(world.count_of(Count::AckProbes), 1);
}
