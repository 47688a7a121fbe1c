//! Rooms of large groups.

use super::*;
use crate::server::{PushId, RoomNumber};
use moorline_proto::message::backend::{Bind, Digest, Push, Unbind};

const ROOM: RoomNumber = RoomNumber::new(1);
const SAID: PushSpec = PushSpec::new(Command::Push, Lane::Group);

/// Frames of a turn with their links.
fn frames(desk: &mut Desk) -> Vec<(LinkId, LinkFrame)> {
    let frames = desk.turn_end_by_link();
    desk.host.check();
    frames
}

/// A link of another gateway.
fn greeted_as(desk: &mut Desk, node: &str) -> LinkId {
    let link = desk.open();
    desk.say(link, Kind::Hello, 0, &LinkHello { node: node.into(), ..hello(1, 1) });
    desk.drain();
    desk.turn_end();
    link
}

fn say(desk: &mut Desk, number: u64, except: Option<SessionId>, spec: PushSpec) {
    let body = Bytes::from_static(b"hi");
    desk.host.outbox().push_to_room(ROOM, PushId::new(number), except, spec, &body);
}

fn handles_of<M: Message + Default>(frame: &LinkFrame, handles: impl Fn(M) -> Vec<u64>) -> Vec<u64> {
    let mut handles = handles(frame.message().expect("a body"));
    handles.sort_unstable();
    handles
}

/// Events of lost rooms.
fn lost(outputs: &[Output]) -> usize {
    outputs.iter().filter(|it| matches!(it, Output::Event(Event::RoomLost { room: ROOM }))).count()
}

#[test]
fn a_message_is_one_frame_for_each_gateway_on_the_link_of_the_bindings() {
    let mut desk = Desk::new(&LinkConfig::default());
    let (first, second) = (desk.greeted(1), desk.greeted(1));
    let other = greeted_as(&mut desk, "h");
    let [alice, bob] = [(first, 1), (second, 2)].map(|(link, handle)| desk.log_in(link, handle));
    let carol = desk.log_in(other, 3);
    desk.host.outbox().fill_room(ROOM, vec![alice, bob, carol]);
    say(&mut desk, 1, Some(alice), SAID);
    let frames = frames(&mut desk);
    let of = |is_other: bool| -> Vec<_> {
        frames.iter().filter(|(link, _)| (*link == other) == is_other).collect()
    };
    let [(at, bind), (then_at, push)] = of(false)[..] else { panic!("{frames:?}") };
    assert_eq!((at, bind.kind, push.kind), (then_at, Kind::Bind, Kind::Push));
    assert_eq!(handles_of(bind, |bind: Bind| bind.handles), [1, 2]);
    let (bind, push) = (bind.message::<Bind>().expect("a BIND"), push.message::<Push>().expect("a PUSH"));
    assert_eq!((&push.room, push.except, push.handles.len()), (&bind.room, 1, 0));
    let [(_, bind), (_, push)] = of(true)[..] else { panic!("{frames:?}") };
    assert_eq!(handles_of(bind, |bind: Bind| bind.handles), [3]);
    assert_eq!(push.message::<Push>().expect("a PUSH").except, 0);
    // Each member's outcome is wanted.
    say(&mut desk, 2, Some(alice), PushSpec { want_ack: true, ..SAID });
    let pushes = frames_of_pushes(&mut desk);
    assert_eq!(pushes, [vec![2], vec![3]]);
    // bob leaves; a room is filled anew by its differences.
    desk.host.outbox().fill_room(ROOM, vec![alice, carol]);
    let frames = super::group_rooms::frames(&mut desk);
    let [(_, frame)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((frame.kind, handles_of(frame, |unbind: Unbind| unbind.handles)), (Kind::Unbind, vec![2]));
}

fn frames_of_pushes(desk: &mut Desk) -> Vec<Vec<u64>> {
    let frames = frames(desk);
    let mut pushes: Vec<_> =
        frames.iter().map(|(_, frame)| handles_of(frame, |push: Push| push.handles)).collect();
    pushes.sort_unstable();
    pushes
}

#[test]
fn a_room_is_lost_with_its_link_and_not_with_another_one() {
    let mut desk = Desk::new(&LinkConfig::default());
    let links = [desk.greeted(1), desk.greeted(1)];
    let sessions = vec![desk.log_in(links[0], 1), desk.log_in(links[1], 2)];
    desk.host.outbox().fill_room(ROOM, sessions.clone());
    let frames = frames(&mut desk);
    let [(used, _)] = frames[..] else { panic!("{frames:?}") };
    let unused = links.into_iter().find(|link| *link != used).expect("two links");
    desk.host.handle_link_closed(desk.now, unused, LinkEnd::Closed);
    assert_eq!(lost(&desk.drain()), 0);
    say(&mut desk, 1, None, SAID);
    let pushed = super::group_rooms::frames(&mut desk);
    assert_eq!(pushed.len(), 1, "also for the session whose own link has ended");
    desk.host.handle_link_closed(desk.now, used, LinkEnd::Closed);
    assert_eq!(lost(&desk.drain()), 1);
    say(&mut desk, 2, None, SAID);
    assert!(super::group_rooms::frames(&mut desk).is_empty(), "to a lost room nothing is sent");
    // The handler may not have heard of it yet: its gateway would still hold who has left meanwhile.
    desk.host.outbox().fill_room(ROOM, sessions);
    say(&mut desk, 3, None, SAID);
    assert!(super::group_rooms::frames(&mut desk).is_empty(), "and it is not filled again");
}

#[test]
fn a_room_is_lost_when_the_output_of_its_link_is_full() {
    let mut desk = Desk::new(&LinkConfig { output_max: 1000, ..LinkConfig::default() });
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    desk.host.outbox().fill_room(ROOM, vec![session]);
    let body = Bytes::from(vec![0; 2000]);
    desk.host.outbox().push(&[session], SPEC, &body);
    say(&mut desk, 9, None, SAID);
    assert_eq!(lost(&desk.drain()), 1);
    desk.host.check();
}

#[test]
fn a_room_is_given_up_when_its_gateway_holds_other_members() {
    let mut desk = Desk::new(&LinkConfig::default());
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    desk.host.outbox().fill_room(ROOM, vec![session]);
    frames(&mut desk);
    for round in 0..2 {
        assert_eq!(lost(&desk.drain()), 0);
        desk.say(link, Kind::Digest, 0, &Digest { round, ..Digest::default() });
    }
    assert_eq!(lost(&desk.drain()), 1, "two digests without the room");
    let frames = frames(&mut desk);
    assert!(frames.iter().all(|(_, frame)| frame.kind == Kind::Unbind), "{frames:?}");
}

#[test]
fn who_is_in_as_many_rooms_as_may_be_is_pushed_to_by_name() {
    let mut desk = Desk::new(&LinkConfig::default());
    let link = desk.greeted(1);
    let sessions = [1, 2].map(|handle| desk.log_in(link, handle));
    for number in 0..256 {
        assert!(desk.host.outbox().bind(sessions[0], &format!("group:{number}")));
    }
    frames(&mut desk);
    desk.host.outbox().fill_room(ROOM, sessions.to_vec());
    say(&mut desk, 1, None, SAID);
    let frames = frames(&mut desk);
    let pushes: Vec<Push> = frames
        .iter()
        .filter(|(_, frame)| frame.kind == Kind::Push)
        .map(|(_, frame)| frame.message().expect("a PUSH"))
        .collect();
    let by_name: Vec<_> = pushes.iter().filter(|push| push.room.is_empty()).collect();
    assert_eq!((pushes.len(), by_name.len(), &by_name[0].handles[..]), (2, 1, &[1][..]));
    assert_eq!(lost(&desk.drain()), 0);
}

#[test]
fn another_life_of_the_backend_gives_its_rooms_other_names() {
    let names = [1, 2].map(|epoch| {
        let config = LinkConfig { unproven: Unproven::Loopback, ..LinkConfig::default() };
        let mut desk = Desk { host: LinkHost::new(&config, "b".into(), epoch), now: Now::default() };
        desk.tick();
        let link = desk.greeted(1);
        let session = desk.log_in(link, 1);
        desk.host.outbox().fill_room(ROOM, vec![session]);
        let frames = frames(&mut desk);
        frames[0].1.message::<Bind>().expect("a BIND").room
    });
    assert_ne!(names[0], names[1]);
}

/// A message that is in no inbox: nothing else would tell of it, while a session without a link is announced again.
#[test]
fn a_message_that_a_full_link_does_not_take_comes_back() {
    let mut desk = Desk::new(&LinkConfig { output_max: 1000, ..LinkConfig::default() });
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    let body = Bytes::from(vec![0; 2000]);
    desk.host.outbox().push(&[session], SAID, &body);
    let signal = PushSpec::new(Command::App(0x40), Lane::Chat);
    for (spec, comes_back) in [(SAID, true), (signal, false)] {
        let id = desk.host.outbox().push(&[session], spec, &body);
        let outputs = desk.tick();
        let is_it = |output: &Output| matches!(output, Output::Event(Event::Pushed { push, outcome: Outcome::Full, .. }) if *push == id);
        assert_eq!(outputs.iter().any(is_it), comes_back, "{outputs:?}");
    }
}
