//! Rooms: subscriptions, bindings, one push for all, digests and questions.

use super::*;
use crate::messages::{Push, Target};
use moorline_proto::message::backend::{Bind, Digest, Query, QueryResult, RoomDigest, Unbind};
use moorline_proto::message::client::{Sub, SubAck};

fn bind_of(item: Downlink) -> (String, u64, Vec<ConnKey>, bool) {
    match item {
        Downlink::Bind { room, version, keys, reset } => (room.to_string(), version, keys, reset.is_some()),
        other => panic!("no binding: {other:?}"),
    }
}

#[test]
fn a_subscription_is_the_backends_to_decide_and_its_binding_comes_first() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let sub = message::encode(&Sub { id: 5, room: "hall".into() });
    world.mail(&user, vec![user.up(Command::Sub, 5, sub.clone()), user.up(Command::Unsub, 5, sub.clone())]);
    let (asked, up) = peer.up();
    assert_eq!((up.command, &up.body), (0x20, &sub));
    let (left, up) = peer.up();
    assert_eq!(up.command, 0x21);
    let handles = vec![user.key.as_u64()];
    peer.send(Kind::Bind, 0, 0, &Bind { handles, room: "hall".into(), version: 7, reset: false });
    peer.send(Kind::UpResult, asked, 0, &UpResult::default());
    let answer = message::encode(&SubAck { reason: "no".into(), ..Default::default() });
    peer.send(
        Kind::UpResult,
        left,
        0,
        &UpResult { code: Code::NotMember.into(), answer, ..Default::default() },
    );
    let shard = user.key.shard();
    assert_eq!(bind_of(world.downlink(shard)), ("hall".into(), 7, vec![user.key], false));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let Downlink::Answer { command: Command::SubAck, body, .. } = world.downlink(shard) else {
            panic!("no SUBACK")
        };
        let ack: SubAck = message::decode(&body).expect("a SUBACK");
        answers.push((ack.id, ack.code(), ack.reason));
    }
    assert_eq!(answers, [(5, Code::Ok, String::new()), (5, Code::NotMember, "no".into())]);
}

#[test]
fn one_push_to_a_room_reaches_every_shard_and_is_compressed_once() {
    let backend = Backend::bind();
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let body = Bytes::from(vec![7; 4_000]);
    let push = backend::Push {
        room: "hall".into(),
        command: 0x12,
        lane: 2,
        collapse_key: "k".into(),
        body: body.clone(),
        ..Default::default()
    };
    peer.send(Kind::Push, 3, 0, &push);
    let mut packed = Vec::new();
    for shard in 0..SHARDS {
        let shard = ShardId(u8::try_from(shard).expect("few"));
        let Downlink::Push(Push { targets, body: got, packed: small, collapse, ticket, .. }) =
            world.downlink(shard)
        else {
            panic!("no push")
        };
        assert_eq!((targets, got), (vec![Target::Room("hall".into())], body.clone()));
        assert_eq!((collapse.as_deref(), ticket), (Some("k"), None));
        packed.push(small.expect("it shrinks").as_ptr());
    }
    assert!(packed.windows(2).all(|pair| pair[0] == pair[1]), "one form for all");
    world.await_count(Count::RoomPushes, 1);
}

#[test]
fn unbinding_and_resetting_reach_whom_they_concern() {
    let (backend, user) = (Backend::bind(), User::on_shard(1));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let handles = vec![user.key.as_u64(), ConnKey::new(ShardId(200), 1, 1).as_u64()];
    peer.send(Kind::Unbind, 0, 0, &Unbind { handles, room: "hall".into(), version: 8 });
    peer.send(Kind::Bind, 0, 0, &Bind { room: "hall".into(), version: 9, reset: true, ..Default::default() });
    assert!(matches!(
        world.downlink(ShardId(1)),
        Downlink::Unbind { version: 8, keys, .. } if keys == [user.key]
    ));
    for shard in 0..SHARDS {
        let item = world.downlink(ShardId(u8::try_from(shard).expect("few")));
        assert_eq!(bind_of(item), ("hall".into(), 9, vec![], true));
    }
}

#[test]
fn digests_of_all_shards_are_summed_for_the_link_that_speaks_for_their_users() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let part = |members, hash, version| {
        (user.pin.slot(), RoomDigest { room: "hall".into(), members, hash, version })
    };
    for shard in 0..SHARDS {
        let from = ShardId(u8::try_from(shard).expect("few"));
        let rooms = vec![part(2, 1 << shard, shard as u64)];
        let first = Uplink::Digest { round: 3, rooms, is_last: false };
        let last = Uplink::Digest { round: 3, rooms: Vec::new(), is_last: true };
        world.mail.try_send(UplinkBatch { from, items: vec![first, last] }).expect("room");
    }
    let digest: Digest = peer.expect(Kind::Digest).message().expect("decodes");
    let shards = u32::try_from(SHARDS).expect("few");
    let expected = RoomDigest {
        room: "hall".into(),
        members: 2 * shards,
        hash: (1 << shards) - 1,
        version: u64::from(shards) - 1,
    };
    assert_eq!((digest.round, digest.rooms, digest.more), (3, vec![expected], false));
}

#[test]
fn a_question_is_answered_when_every_shard_has_spoken() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    peer.send(Kind::Query, 11, 0, &Query { room: "hall".into(), ..Default::default() });
    for shard in 0..SHARDS {
        let from = ShardId(u8::try_from(shard).expect("few"));
        let Downlink::Query { ticket, room, .. } = world.downlink(from) else { panic!("no question") };
        assert_eq!(&*room, "hall");
        let held = QueryResult { handles: vec![shard as u64 + 1], ..Default::default() };
        world.mail.try_send(UplinkBatch { from, items: vec![Uplink::Held { ticket, held }] }).expect("room");
    }
    let mut handles = Vec::new();
    loop {
        let frame = peer.expect(Kind::QueryResult);
        assert_eq!(frame.correlation, 11);
        let held: QueryResult = frame.message().expect("decodes");
        handles.extend(held.handles);
        if !held.more {
            break;
        }
    }
    handles.sort_unstable();
    assert_eq!(handles, (1..=SHARDS as u64).collect::<Vec<_>>());
    // A user lives on one shard, which alone is asked.
    peer.send(Kind::Query, 12, 0, &Query { uid: user.uid.clone(), ..Default::default() });
    let home = user.pin.shard(SHARDS);
    assert!(matches!(world.downlink(home), Downlink::Query { uid, .. } if *uid == *user.uid));
}
