//! One payload for many: slices, order, and pushes that go out together.

use super::*;

const RECEIVERS: usize = 600;

fn many(world: &mut World) -> Vec<ConnKey> {
    (0..RECEIVERS).map(|number| world.login(&format!("user-{number}"), "phone")).collect()
}

fn push_to_all(world: &mut World, keys: &[ConnKey], body: &'static [u8]) {
    push_ranked(world, keys, Rank::Second, body);
}

fn push_ranked(world: &mut World, keys: &[ConnKey], rank: Rank, body: &'static [u8]) {
    world.downlink(Downlink::Push(Push {
        ticket: None,
        targets: keys.iter().copied().map(Target::Connection).collect(),
        command: Command::Push,
        lane: Lane::Group,
        rank,
        expires_at: Instant::FAR_FUTURE,
        body: Bytes::from_static(body),
        packed: None,
        except: None,
        collapse: None,
    }));
}

/// One slice: who got what in it.
fn turn(world: &mut World, keys: &[ConnKey]) -> Vec<Vec<Bytes>> {
    world.shard.handle_fanout(world.now, &mut world.outputs);
    let written = keys.iter().map(|key| world.written(*key));
    let bodies = |frames: Vec<Frame>| frames.into_iter().map(|frame| frame.body).collect::<Vec<_>>();
    written.map(bodies).filter(|bodies| !bodies.is_empty()).collect()
}

#[test]
fn what_comes_for_the_same_receivers_goes_out_together_and_in_order() {
    let mut world = World::new();
    let keys = many(&mut world);
    push_to_all(&mut world, &keys, b"first");
    let begun = turn(&mut world, &keys);
    assert!(!begun.is_empty() && begun.iter().all(|bodies| bodies == &["first"]));
    // The first is under way: these wait for its end, and then go together.
    push_to_all(&mut world, &keys, b"second");
    push_to_all(&mut world, &keys, b"third");
    let (mut alone, mut together) = (0, 0);
    while world.shard.has_fanout(world.now) {
        for bodies in turn(&mut world, &keys) {
            match bodies.iter().map(Bytes::as_ref).collect::<Vec<_>>()[..] {
                [b"first"] => alone += 1,
                [b"second", b"third"] => together += 1,
                ref other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((alone, together), (RECEIVERS - begun.len(), RECEIVERS));
}

#[test]
fn other_receivers_are_another_fan_out() {
    let mut world = World::new();
    let keys = many(&mut world);
    push_to_all(&mut world, &keys, b"all");
    push_to_all(&mut world, &keys[1..], b"not the first");
    push_to_all(&mut world, &keys, b"all again");
    let mut heard = Vec::new();
    while world.shard.has_fanout(world.now) {
        world.shard.handle_fanout(world.now, &mut world.outputs);
        heard.extend(world.written(keys[0]).into_iter().map(|frame| frame.body));
    }
    assert_eq!(heard, ["all", "all again"]);
}

#[test]
fn while_people_chat_slices_are_small_and_come_at_a_pace() {
    let mut world = World::new();
    let keys = many(&mut world);
    let chatting = world.login("someone", "phone");
    push_to_all(&mut world, &keys, b"all");
    world.push(chatting, 1, b"to one");
    let (mut heard, began) = (0, world.now);
    for turn_of in 1..=20u64 {
        world.push(chatting, 1 + turn_of, b"to one");
        while world.shard.has_fanout(world.now) {
            let slice = turn(&mut world, &keys).len();
            assert!(slice <= 16, "{slice}");
            heard += slice;
        }
        world.now = world.shard.next_deadline().expect("the rest waits");
    }
    let each_second = heard as u64 * 1_000_000_000 / (world.now.as_nanos() - began.as_nanos());
    assert!((20_000..60_000).contains(&each_second), "{each_second}");
    // Nobody chats any more: as fast as it goes.
    world.now += Duration::from_millis(100);
    assert!(turn(&mut world, &keys).len() > 100);
}

/// A group's answers set the pace of the group itself: it crawled on a machine that had nothing else to do.
#[test]
fn a_group_that_is_alone_has_no_pace() {
    let mut world = World::new();
    let keys = many(&mut world);
    let writer = world.login("writer", "phone");
    world.frame(writer, &send(1));
    push_to_all(&mut world, &keys, b"all");
    world.downlink(answer(writer, 1, Code::Ok, Rank::Second));
    let mut heard = 0;
    while world.shard.has_fanout(world.now) {
        heard += turn(&mut world, &keys).len();
    }
    assert_eq!(heard, RECEIVERS, "at one moment: no slice waited for its time");
}

#[test]
fn each_rank_has_its_share_of_a_slice_and_the_first_goes_first() {
    let mut world = World::new();
    let keys = many(&mut world);
    push_ranked(&mut world, &keys, Rank::Last, b"last");
    push_ranked(&mut world, &keys, Rank::Second, b"second");
    push_ranked(&mut world, &keys, Rank::First, b"first");
    let count =
        |bodies: &[Vec<Bytes>], which: &str| bodies.iter().flatten().filter(|body| *body == which).count();
    let slice = turn(&mut world, &keys);
    let (first, second, last) = (count(&slice, "first"), count(&slice, "second"), count(&slice, "last"));
    assert!(first > second && second > last && last > 0, "{first} {second} {last}");
    let mut turns = Vec::new();
    // A push of the first rank means that people chat, so the others have a pace.
    while world.shard.fanouts.deadline().is_some() {
        turns.push(turn(&mut world, &keys));
        world.now += Duration::from_millis(1);
    }
    let end = |which: &str| turns.iter().rposition(|turn| count(turn, which) > 0).expect("delivered");
    assert!(end("first") < end("last") && (end("first")..=end("last")).contains(&end("second")));
    let total =
        |which: &str, begun: usize| begun + turns.iter().map(|turn| count(turn, which)).sum::<usize>();
    assert_eq!((total("first", first), total("last", last)), (RECEIVERS, RECEIVERS));
    let counters = world.shard.counters();
    assert_eq!(counters[Count::FanoutDeliveriesSecond], RECEIVERS as u64);
    assert_eq!(counters[Count::FanoutWaitingLast], 0);
}

#[test]
fn a_push_to_one_session_does_not_overtake_a_fan_out_of_its_rank() {
    let mut world = World::new();
    let keys = many(&mut world);
    push_to_all(&mut world, &keys, b"first");
    let begun = turn(&mut world, &keys).len();
    let last = keys[RECEIVERS - 1];
    push_ranked(&mut world, &[last], Rank::Second, b"second");
    assert!(world.written(last).is_empty(), "the first message has not reached it, of {begun}");
    let mut got = Vec::new();
    while world.shard.has_fanout(world.now) {
        got.extend(turn(&mut world, &[last]).into_iter().flatten());
    }
    assert_eq!(got, ["first", "second"]);
}
