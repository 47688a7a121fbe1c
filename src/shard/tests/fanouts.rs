//! One payload for many: slices, order, and pushes that go out together.

use super::*;

const RECEIVERS: usize = 600;

fn many(world: &mut World) -> Vec<ConnKey> {
    (0..RECEIVERS).map(|number| world.login(&format!("user-{number}"), "phone")).collect()
}

fn push_to_all(world: &mut World, keys: &[ConnKey], body: &'static [u8]) {
    world.downlink(Downlink::Push(Push {
        ticket: None,
        targets: keys.iter().copied().map(Target::Connection).collect(),
        command: Command::Push,
        lane: Lane::Group,
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
    assert!(turn(&mut world, &keys).iter().all(|bodies| bodies == &["first"]));
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
    assert_eq!((alone, together), (RECEIVERS - 64, RECEIVERS));
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
    let began = world.now;
    let mut heard = 0;
    for millisecond in 1..=5 {
        world.push(chatting, 1 + millisecond, b"to one");
        while world.shard.has_fanout(world.now) {
            let slice = turn(&mut world, &keys).len();
            assert!(slice <= 16, "{slice}");
            heard += slice;
        }
        assert_eq!(heard as u64, 32 * millisecond);
        let next = world.shard.next_deadline().expect("the rest waits");
        assert_eq!(next, world.now + Duration::from_millis(1));
        world.now = next;
    }
    // Nobody chats any more: as fast as it goes.
    world.now = began + Duration::from_millis(100);
    assert_eq!(turn(&mut world, &keys).len(), 64);
}
