//! Rooms of conversations: who may enter, who hears a signal [P-2.5] [P-11.5].

use super::{Bench, key, user};
use crate::config::ImConfig;
use crate::server::{Event, SessionId, Up};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::client::{Code, Sub};
use moorline_proto::message::im::{
    GroupCreateRequest, GroupCreateResponse, GroupRequest, GroupResponse, Signal,
};
use moorline_proto::message::{decode, encode};

const SIGNAL: Command = Command::App(0x40);

fn enter(bench: &mut Bench, session: SessionId, room: &str) -> Code {
    let question = bench.up(session, Command::Sub, encode(&Sub { id: 7, room: room.into() }));
    let (answered, code) = bench.out.subs.pop().expect("an answer");
    assert_eq!(answered, question);
    assert_eq!(bench.out.rooms.contains(&(session, room.to_owned())), code == Code::Ok);
    code
}

fn signal(bench: &mut Bench, session: SessionId, signal: &Signal) {
    let (command, body) = (SIGNAL, encode(signal));
    bench.event(Event::Up(Up { session, command, seq: 0, dup: false, body, reply: None }));
}

fn with_group() -> (Bench, [SessionId; 3]) {
    let mut bench = Bench::new(ImConfig::default());
    let sessions =
        [(0, "alice"), (1, "bob"), (2, "eve")].map(|(slot, uid)| bench.login(slot, uid, "phone", 1));
    let create = GroupCreateRequest { group: "g".into(), members: vec!["bob".into()] };
    let made: Result<GroupCreateResponse, _> = bench.req(sessions[0], "im.group.create", &create);
    assert_eq!(made.expect("made").conversation, "group:g");
    (bench, sessions)
}

#[test]
fn members_enter_and_others_are_told_why_not() {
    let (mut bench, [alice, bob, eve]) = with_group();
    for session in [alice, bob, bob] {
        assert_eq!(enter(&mut bench, session, "group:g"), Code::Ok);
    }
    assert_eq!(enter(&mut bench, alice, "c2c:alice:bob"), Code::Ok, "before its first message");
    for (room, code) in [
        ("group:g", Code::NotMember),
        ("c2c:alice:bob", Code::NotMember),
        ("group:none", Code::NotFound),
        ("c2c:eve:alice", Code::NotFound),
        ("hall", Code::NotFound),
    ] {
        assert_eq!(enter(&mut bench, eve, room), code, "{room}");
    }
    let question = bench.up(bob, Command::Unsub, encode(&Sub { id: 8, room: "group:g".into() }));
    assert_eq!(bench.out.subs.pop(), Some((question, Code::Ok)));
    assert!(!bench.out.rooms.contains(&(bob, "group:g".into())));
}

#[test]
fn who_leaves_a_group_leaves_its_room_on_every_device() {
    let (mut bench, [_, bob, _]) = with_group();
    let tablet = bench.login(3, "bob", "tablet", 2);
    for session in [bob, tablet] {
        assert_eq!(enter(&mut bench, session, "group:g"), Code::Ok);
    }
    let leave = GroupRequest { conversation: "group:g".into(), ..Default::default() };
    bench.req::<GroupResponse>(bob, "im.group.leave", &leave).expect("left");
    assert!(bench.out.rooms.is_empty());
    assert_eq!(enter(&mut bench, tablet, "group:g"), Code::NotMember);
}

#[test]
fn a_signal_says_who_it_is_from_and_is_not_stored() {
    let (mut bench, [alice, _, eve]) = with_group();
    assert_eq!(enter(&mut bench, alice, "group:g"), Code::Ok);
    let forged = Signal {
        conversation: "group:g".into(),
        payload: b"typing"[..].into(),
        sender: "bob".into(),
        sender_device: "x".into(),
    };
    signal(&mut bench, eve, &forged); // is in no room: dropped
    assert!(bench.out.said.is_empty());
    signal(&mut bench, alice, &forged);
    let [(room, spec, body)] = &bench.out.said[..] else { panic!("{:?}", bench.out.said) };
    assert_eq!((room.as_str(), spec.command, spec.lane), ("group:g", SIGNAL, Lane::Chat));
    assert_eq!((spec.want_ack, spec.ttl_ms), (false, 5_000));
    let heard: Signal = decode(body).expect("a Signal");
    assert_eq!(heard, Signal { sender: "alice".into(), sender_device: "phone".into(), ..forged });
    assert_eq!((bench.stream_of("alice"), bench.stream_of("bob")), (0, 1), "the group, not the signal");
    let (code, ack) = bench.send(alice, user("bob"), &key(1), b"real");
    assert_eq!((code, ack.seq), (Code::Ok, 1));
}
