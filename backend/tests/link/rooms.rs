//! Rooms on real sockets: who is told what, and when.

use crate::gateway::{Gateway, login};
use crate::{Backend, config};
use bytes::Bytes;
use moorline_backend::{BackendConfig, config::HandlerKind};
use moorline_proto::frame::Command;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{Announce, Bind, ConnDown, Digest, RoomDigest, Unbind};
use moorline_proto::message::client::{Code, Push, Send, Sub, SubAck, send};
use moorline_proto::message::im::{GroupCreateRequest, GroupRequest, Signal};
use moorline_proto::message::{decode, encode};
use moorline_proto::random::mix;

fn sub_body(room: &str) -> Bytes {
    encode(&Sub { id: 1, room: room.into() })
}

/// The code, and the BIND that came before it.
fn sub(gateway: &mut Gateway, handle: u64, room: &str) -> (Code, Option<Bind>) {
    let question = gateway.up(handle, Command::Sub, sub_body(room));
    let mut frame = gateway.next().expect("open");
    let bind = (frame.kind == Kind::Bind).then(|| frame.message().expect("a Bind"));
    if bind.is_some() {
        frame = gateway.expect(Kind::UpResult);
    }
    assert_eq!((frame.kind, frame.correlation), (Kind::UpResult, question));
    let result: moorline_proto::message::backend::UpResult = frame.message().expect("an UpResult");
    let ack: SubAck = decode(&result.answer).expect("a SubAck");
    assert_eq!((ack.id, ack.code), (0, 0), "left to the gateway");
    (result.code(), bind)
}

fn quiet(gateway: &mut Gateway) {
    gateway.say(Kind::Ping, 77, &());
    assert_eq!(gateway.expect(Kind::Pong).correlation, 77, "and nothing before it");
}

fn digest(gateway: &mut Gateway, round: u32, room: &str, handles: &[u64]) {
    let hash = handles.iter().fold(0, |hash, handle| hash ^ mix(*handle));
    let members = u32::try_from(handles.len()).expect("few");
    let rooms = match members {
        0 => vec![],
        _ => vec![RoomDigest { room: room.into(), members, hash, version: 1 }],
    };
    gateway.say(Kind::Digest, 0, &Digest { round, rooms, more: false });
}

fn echo() -> BackendConfig {
    BackendConfig { handler: HandlerKind::Echo, ..config() }
}

fn to_room(room: &str, payload: &'static [u8]) -> Bytes {
    let target = Some(send::Target::Conversation(room.into()));
    encode(&Send { key: vec![1; 16].into(), target, r#type: 1, payload: Bytes::from_static(payload) })
}

#[test]
fn a_bind_goes_before_the_answer_and_a_room_push_once_to_each_gateway() {
    let backend = Backend::run(echo());
    let (mut one, mut two) = (backend.gateway("g1", 1), backend.gateway("g2", 1));
    let mut second = backend.gateway("g1", 1);
    for handle in 1..=3 {
        one.conn_up(handle, "u", &format!("d{handle}"), 1);
        let (code, bind) = sub(&mut one, handle, "room:x");
        let bind = bind.expect("told before the answer");
        assert_eq!((code, bind.handles, bind.room.as_str()), (Code::Ok, vec![handle], "room:x"));
    }
    two.conn_up(1, "v", "d", 1);
    assert_eq!(sub(&mut two, 1, "room:x").0, Code::Ok);
    for seq in 1..=2 {
        let question = two.up(1, Command::Send, to_room("room:x", b"hi"));
        let (mut answers, mut pushes) = (0, Vec::new());
        for _ in 0..2 {
            let frame = two.next().expect("open");
            match frame.kind {
                Kind::UpResult => answers += usize::from(frame.correlation == question),
                Kind::Push => {
                    pushes.push(frame.message::<moorline_proto::message::backend::Push>().expect("a Push"));
                }
                kind => panic!("{kind:?}"),
            }
        }
        assert_eq!((answers, pushes.len()), (1, 1));
        assert_eq!((pushes[0].room.as_str(), pushes[0].lane, pushes[0].want_ack), ("room:x", 2, false));
        assert_eq!(decode::<Push>(&pushes[0].body).expect("a Push").seq, seq, "counts for the room");
        // Exactly one of the two links of g1 gets it.
        let mut of_g1 = 0;
        for link in [&mut one, &mut second] {
            link.say(Kind::Ping, 5, &());
            let frame = link.next().expect("open");
            if frame.kind == Kind::Push {
                of_g1 += 1;
                link.expect(Kind::Pong);
            }
        }
        assert_eq!(of_g1, 1);
    }
}

#[test]
fn the_count_of_a_room_is_its_own() {
    let backend = Backend::run(echo());
    let mut one = backend.gateway("g1", 1);
    one.conn_up(1, "u", "d", 1);
    one.conn_up(2, "v", "d", 1);
    assert_eq!(sub(&mut one, 1, "room:x").0, Code::Ok);
    assert_eq!(one.send(2, "u", 1, b"elsewhere").0, Code::Ok);
    one.up(2, Command::Send, to_room("room:x", b"hi"));
    let push = std::iter::from_fn(|| one.next()).find(|it| it.kind == Kind::Push).expect("endless");
    let push: moorline_proto::message::backend::Push = push.message().expect("a Push");
    assert_eq!(decode::<Push>(&push.body).expect("a Push").seq, 1);
}

#[test]
fn what_differs_in_two_rounds_is_told_anew() {
    let backend = Backend::run(echo());
    let mut one = backend.gateway("g1", 1);
    for handle in [1, 2] {
        one.conn_up(handle, "u", &format!("d{handle}"), 1);
        assert_eq!(sub(&mut one, handle, "room:x").0, Code::Ok);
    }
    digest(&mut one, 1, "room:x", &[1, 2]);
    digest(&mut one, 2, "room:x", &[1]);
    quiet(&mut one);
    digest(&mut one, 3, "room:x", &[1]);
    let mut bind: Bind = one.expect(Kind::Bind).message().expect("a Bind");
    bind.handles.sort_unstable();
    assert_eq!((bind.reset, bind.handles, bind.room.as_str()), (true, vec![1, 2], "room:x"));
    digest(&mut one, 4, "room:x", &[]);
    digest(&mut one, 5, "room:x", &[]);
    let bind: Bind = one.expect(Kind::Bind).message().expect("a Bind");
    assert!(bind.reset && bind.handles.len() == 2, "not named at all: {bind:?}");
    one.say(Kind::ConnDown, 0, &ConnDown { handle: 1, code: 0 });
    one.say(Kind::ConnDown, 0, &ConnDown { handle: 2, code: 0 });
    digest(&mut one, 6, "room:x", &[9]);
    digest(&mut one, 7, "room:x", &[9]);
    let bind: Bind = one.expect(Kind::Bind).message().expect("a Bind");
    assert!(bind.reset && bind.handles.is_empty(), "unknown here: {bind:?}");
}

#[test]
fn an_announced_session_keeps_its_bindings_without_a_word() {
    let backend = Backend::run(echo());
    let mut one = backend.gateway("g1", 1);
    one.conn_up(1, "u", "d", 1);
    for room in 0..256 {
        assert_eq!(sub(&mut one, 1, &format!("room:{room}")).0, Code::Ok);
    }
    drop(one);
    let mut next = backend.gateway("g1", 1);
    next.say(Kind::Announce, 0, &Announce { connections: vec![login(1, "u", "d", 1)], more: false });
    quiet(&mut next);
}

#[test]
fn limits_have_answers_and_entering_twice_does_no_harm() {
    let mut config = echo();
    config.link.rooms_max = 300;
    let backend = Backend::run(config);
    let mut one = backend.gateway("g1", 1);
    one.conn_up(1, "u", "d", 1);
    for room in 0..256 {
        assert_eq!(sub(&mut one, 1, &format!("room:{room}")).0, Code::Ok);
    }
    assert_ne!(sub(&mut one, 1, "room:256").0, Code::Ok);
    assert_ne!(sub(&mut one, 1, "").0, Code::Ok);
    assert_ne!(sub(&mut one, 1, &"x".repeat(129)).0, Code::Ok);
    assert_eq!(sub(&mut one, 1, "room:0").0, Code::Ok, "it is in that one already");
}

#[test]
fn members_enter_the_room_of_a_group_and_signal_to_the_others() {
    let backend = Backend::run(config());
    let mut one = backend.gateway("g1", 1);
    for (handle, uid) in [(1, "alice"), (2, "bob"), (3, "eve")] {
        one.conn_up(handle, uid, "phone", 1);
    }
    let create = GroupCreateRequest { group: "g".into(), members: vec!["bob".into()] };
    assert_eq!(one.req(1, "im.group.create", encode(&create)).0, Code::Ok);
    assert_eq!(one.push().1.handles, [2], "bob is told of the group");
    assert_eq!(sub(&mut one, 1, "group:g").0, Code::Ok);
    assert_eq!(sub(&mut one, 2, "group:g").0, Code::Ok);
    assert!(matches!(sub(&mut one, 3, "group:g"), (Code::NotMember, None)));
    assert!(matches!(sub(&mut one, 3, "group:none"), (Code::NotFound, None)));
    assert!(matches!(sub(&mut one, 3, "c2c:alice:bob"), (Code::NotMember, None)));
    assert_eq!(sub(&mut one, 3, "c2c:bob:eve").0, Code::Ok);
    let typing = |sender: &str| {
        let (conversation, payload) = ("group:g".to_owned(), Bytes::from_static(b"typing"));
        Signal { conversation, payload, sender: sender.into(), sender_device: String::new() }
    };
    for handle in [3, 1] {
        let (command, body) = (0x40, encode(&typing("mallory")));
        one.say(
            Kind::Up,
            0,
            &moorline_proto::message::backend::Up { handle, command, body, ..Default::default() },
        );
    }
    let (_, push) = one.push();
    assert_eq!((push.room.as_str(), push.command, push.lane, push.want_ack), ("group:g", 0x40, 1, false));
    assert_eq!((push.ttl_ms, push.except), (5000, 1));
    let heard: Signal = decode(&push.body).expect("a Signal");
    assert_eq!(heard, Signal { sender_device: "phone".into(), ..typing("alice") });
    quiet(&mut one);
    let leave = GroupRequest { conversation: "group:g".into(), ..Default::default() };
    let question = one.up(
        2,
        Command::Req,
        encode(&moorline_proto::message::client::Req {
            id: 1,
            method: "im.group.leave".into(),
            payload: encode(&leave),
        }),
    );
    let unbind: Unbind = one.expect(Kind::Unbind).message().expect("an Unbind");
    assert_eq!((unbind.handles, unbind.room.as_str()), (vec![2], "group:g"));
    assert_eq!(one.answer(question).code(), Code::Ok);
}
