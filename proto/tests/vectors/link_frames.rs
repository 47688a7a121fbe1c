//! Vectors of link frames: every kind, every refusal of the link decoder, and cut-off input.

use crate::{Vector, reflect};
use bytes::{Bytes, BytesMut};
use moorline_proto::link::{
    BODY_BYTES_MAX, HEADER_BYTES, Kind, LinkDecoder, LinkError, LinkFrame, NONCE_BYTES, Role, Secret,
    Transcript, encode, encode_empty,
};
use moorline_proto::message::backend::{
    Announce, Auth, AuthResult, Bind, ConnDown, ConnUp, Digest, Drain, Kick, Leave, LinkChallenge, LinkHello,
    LinkNotice, LinkProof, Moved, NodeAddress, Notice, Outcome, Peer, Push, PushOutcome, PushResult, Query,
    QueryResult, Rank, RoomDigest, Slots, Stats, Unbind, Up, UpResult,
};
use moorline_proto::message::client::{Code, Platform};
use prost::Message;
use serde_json::json;
use std::fmt::Debug;

const HANDLE: u64 = 0x0100_0002_0000_0003;

pub(crate) fn all() -> Vec<Vector> {
    let mut vectors = logins();
    vectors.extend(traffic());
    vectors.extend(rest());
    vectors.extend(greetings());
    vectors.extend(refusals());
    vectors.extend(cluster());
    vectors
}

/// Every kind must appear.
pub(crate) fn check_coverage(vectors: &[Vector]) {
    for kind in Kind::ALL {
        let is_there = vectors.iter().any(|vector| vector.meaning["frame"]["kind"] == json!(kind.byte()));
        assert!(is_there, "no vector of {kind:?}");
    }
}

fn decode_one(bytes: &[u8]) -> Result<Option<LinkFrame>, LinkError> {
    let mut input = Bytes::copy_from_slice(bytes);
    let frame = LinkDecoder::new().decode(&mut input)?;
    assert!(input.is_empty(), "one frame per vector");
    Ok(frame)
}

fn header_json(frame: &LinkFrame) -> serde_json::Value {
    json!({
        "kind": frame.kind.byte(),
        "body_len": frame.body.len(),
        "correlation": frame.correlation.to_string(),
        "credit": frame.credit,
    })
}

fn typed<M>(name: &'static str, kind: Kind, schema: &str, correlation: u64, message: &M) -> Vector
where
    M: Message + Default + PartialEq + Debug,
{
    let mut bytes = BytesMut::new();
    encode(&mut bytes, kind, correlation, 0, message);
    let frame = decode_one(&bytes).expect("valid").expect("whole");
    assert_eq!((frame.kind, frame.correlation, frame.credit), (kind, correlation, 0), "{name}");
    assert_eq!(frame.message::<M>().as_ref(), Ok(message), "{name}");
    let schema = format!("moorline.link.v1.{schema}");
    let body = reflect::body(&schema, &frame.body);
    let meaning = json!({ "frame": header_json(&frame), "message": schema, "body": body });
    Vector { name, bytes: bytes.to_vec(), meaning }
}

fn empty(name: &'static str, kind: Kind, credit: u32) -> Vector {
    let mut bytes = BytesMut::new();
    encode_empty(&mut bytes, kind, 0, credit);
    let frame = decode_one(&bytes).expect("valid").expect("whole");
    assert_eq!((frame.kind, frame.credit, frame.body.len()), (kind, credit, 0), "{name}");
    Vector { name, bytes: bytes.to_vec(), meaning: json!({ "frame": header_json(&frame), "body_hex": "" }) }
}

fn logins() -> Vec<Vector> {
    let hello = LinkHello {
        version_min: 1,
        version_max: 1,
        node: "gw-1".into(),
        epoch: 1_700_000_000_000_000_000,
        capacity: 1_000_000,
        agent: "moorline/0.1.0".into(),
        ..LinkHello::default()
    };
    let up = |handle, device: &str| ConnUp {
        handle,
        uid: "alice".into(),
        device: device.into(),
        platform: Platform::Android.into(),
        login_version: 7,
        issued_at: 0,
    };
    let dated = ConnUp { issued_at: 1_700_000_000, ..up(HANDLE, "phone") };
    let admitted = AuthResult {
        uid: "alice".into(),
        issued_at: 1_700_000_000,
        expires_at: 1_700_003_600,
        ..AuthResult::default()
    };
    let auth = Auth {
        token: "t".into(),
        uid: "alice".into(),
        device: "phone".into(),
        platform: Platform::Web.into(),
    };
    let verdict = AuthResult { code: 3520, reason: "unknown user".into(), ..AuthResult::default() };
    let announce = Announce { connections: vec![up(HANDLE, "phone"), up(HANDLE + 1, "pad")], more: true };
    vec![
        typed("hello", Kind::Hello, "LinkHello", 0, &hello),
        typed("conn up", Kind::ConnUp, "ConnUp", 0, &up(HANDLE, "phone")),
        typed("conn up, with the time of its token", Kind::ConnUp, "ConnUp", 0, &dated),
        typed("conn down", Kind::ConnDown, "ConnDown", 0, &ConnDown { handle: HANDLE, code: 3004 }),
        typed("announce", Kind::Announce, "Announce", 0, &announce),
        typed("auth", Kind::Auth, "Auth", 1, &auth),
        typed("auth result", Kind::AuthResult, "AuthResult", 1, &verdict),
        typed("auth result, admitted", Kind::AuthResult, "AuthResult", 2, &admitted),
    ]
}

fn greetings() -> Vec<Vector> {
    let hello = LinkHello {
        version_min: 1,
        version_max: 1,
        node: "g1".into(),
        epoch: 7,
        nonce: vec![1; NONCE_BYTES].into(),
        ..LinkHello::default()
    };
    let secret = Secret::new(b"0123456789abcdef0123456789abcdef").expect("long enough");
    let link =
        Transcript { gateway: ("g1", 7), backend: ("b1", 3), nonces: ([1; NONCE_BYTES], [2; NONCE_BYTES]) };
    let challenge = LinkChallenge {
        node: "b1".into(),
        epoch: 3,
        nonce: vec![2; NONCE_BYTES].into(),
        proofs: vec![link.prove(&secret, Role::Backend).to_vec().into()],
    };
    let proof = LinkProof { proof: link.prove(&secret, Role::Gateway).to_vec().into() };
    let notice = LinkNotice { notice: Notice::Duplicate.into(), text: "two of one name".into() };
    let of_backend = LinkHello {
        version_min: 1,
        version_max: 1,
        node: "b1".into(),
        epoch: 3,
        outcome_max: 5,
        store: vec![3; 16].into(),
        ..LinkHello::default()
    };
    vec![
        typed("hello, with a nonce", Kind::Hello, "LinkHello", 0, &hello),
        typed("hello of a backend, with its store", Kind::Hello, "LinkHello", 0, &of_backend),
        typed("challenge", Kind::Challenge, "LinkChallenge", 0, &challenge),
        typed("proof", Kind::Proof, "LinkProof", 0, &proof),
        typed("notice", Kind::Notice, "LinkNotice", 0, &notice),
    ]
}

fn traffic() -> Vec<Vector> {
    let up = Up { handle: HANDLE, command: 0x10, seq: 1, dup: true, body: Bytes::from_static(&[0x0A, 0]) };
    let stored =
        UpResult { code: Code::Ok.into(), answer: Bytes::from_static(&[0x28, 1]), ..Default::default() };
    let of_last_rank = UpResult { rank: Rank::Last.into(), ..stored.clone() };
    let push = Push {
        handles: vec![HANDLE, HANDLE + 1],
        uids: vec!["bob".into()],
        command: 0x12,
        lane: 1,
        want_ack: true,
        ttl_ms: 60_000,
        body: Bytes::from_static(&[0x18, 1]),
        ..Default::default()
    };
    let of_rank =
        Push { handles: vec![HANDLE], uids: Vec::new(), lane: 2, rank: Rank::First.into(), ..push.clone() };
    let outcome = |handle, outcome: Outcome| PushOutcome { correlation: 9, handle, outcome: outcome.into() };
    let outcomes =
        PushResult { outcomes: vec![outcome(HANDLE, Outcome::Acked), outcome(HANDLE + 1, Outcome::Offline)] };
    vec![
        typed("up", Kind::Up, "Up", u64::MAX, &up),
        typed("up result", Kind::UpResult, "UpResult", u64::MAX, &stored),
        typed("up result, all default", Kind::UpResult, "UpResult", 2, &UpResult::default()),
        typed("up result of the last rank", Kind::UpResult, "UpResult", 3, &of_last_rank),
        typed("push", Kind::Push, "Push", 9, &push),
        typed("push of a rank", Kind::Push, "Push", 10, &of_rank),
        typed("push result", Kind::PushResult, "PushResult", 0, &outcomes),
    ]
}

fn rest() -> Vec<Vector> {
    let room = || "stadium".to_owned();
    let kick = Kick {
        uid: "alice".into(),
        device: "phone".into(),
        login_version: 7,
        code: 3531,
        reason: "signed out elsewhere".into(),
        ..Default::default()
    };
    let bind = Bind { handles: vec![HANDLE], room: room(), version: 1, reset: true };
    let unbind = Unbind { handles: vec![HANDLE], room: room(), version: 2 };
    let rooms = vec![RoomDigest { room: room(), members: 2, hash: 3, version: 4 }];
    let digest = Digest { round: 7, rooms, more: true };
    let stats = Stats { connections: 3, sessions: 2, load_permille: 500, ..Default::default() };
    let held = QueryResult { handles: vec![HANDLE], ..Default::default() };
    vec![
        typed("bind", Kind::Bind, "Bind", 0, &bind),
        typed("unbind", Kind::Unbind, "Unbind", 0, &unbind),
        typed("digest", Kind::Digest, "Digest", 0, &digest),
        typed("kick", Kind::Kick, "Kick", 0, &kick),
        typed("query", Kind::Query, "Query", 5, &Query { uid: "alice".into(), room: String::new() }),
        typed("stats", Kind::Stats, "Stats", 0, &stats),
        typed("query result", Kind::QueryResult, "QueryResult", 5, &held),
        typed("drain", Kind::Drain, "Drain", 0, &Drain { grace_ms: 10_000 }),
        empty("credit", Kind::Credit, 4096),
        empty("ping", Kind::Ping, 0),
        empty("pong, with credit", Kind::Pong, 4096),
    ]
}

/// Frames of clusters.
fn cluster() -> Vec<Vector> {
    let of_node = LinkHello {
        version_min: 1,
        version_max: 1,
        node: "b1".into(),
        epoch: 3,
        store: "cluster try".into(),
        cluster_node: 2,
        ..LinkHello::default()
    };
    let to_node = LinkHello { node: "node-1".into(), cluster_node: 0, peer: 2, ..of_node.clone() };
    let of_gateway = LinkHello { node: "g1".into(), cluster_node: 0, knows_slots: true, ..of_node.clone() };
    // The first two slots of 1,024.
    let addresses = vec![NodeAddress { node: 2, address: "10.0.0.5:7100".into() }];
    let slots = Slots { nodes: vec![2, 0], epochs: vec![7, 0], addresses: Vec::new() };
    let named = Slots { addresses, ..slots.clone() };
    vec![
        typed("hello of a node", Kind::Hello, "LinkHello", 0, &of_node),
        typed("hello of a node to another one", Kind::Hello, "LinkHello", 0, &to_node),
        typed("hello of a gateway that follows slots", Kind::Hello, "LinkHello", 0, &of_gateway),
        typed("slots, cut off", Kind::Slots, "Slots", 0, &slots),
        typed("slots, cut off, and a node's address", Kind::Slots, "Slots", 0, &named),
        typed("moved", Kind::Moved, "Moved", 9, &Moved { slot: 604, node: 3, epoch: 8 }),
        typed("leave", Kind::Leave, "Leave", 12, &Leave { slots: vec![604, 492] }),
        typed("peer", Kind::Peer, "Peer", 0, &Peer { message: Bytes::from_static(b"hi") }),
    ]
}

fn refusals() -> Vec<Vector> {
    let mut ping = BytesMut::new();
    encode_empty(&mut ping, Kind::Ping, 0, 0);
    let patched = |name, at: usize, value: &[u8], expected| {
        let mut bytes = ping.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        assert_eq!(decode_one(&bytes), Err(expected), "{name}");
        Vector { name, bytes, meaning: json!({ "refused": expected.to_string() }) }
    };
    let over = BODY_BYTES_MAX + 1;
    let cut = |name, len: usize| {
        assert_eq!(decode_one(&ping[..len]), Ok(None), "{name}");
        Vector { name, bytes: ping[..len].to_vec(), meaning: json!({ "incomplete": true }) }
    };
    vec![
        patched("version 2", 4, &[2], LinkError::Version(2)),
        patched("kind 00", 5, &[0], LinkError::Kind(0)),
        patched("kind 1D", 5, &[0x1D], LinkError::Kind(0x1D)),
        patched("body one byte over the limit", 0, &over.to_be_bytes(), LinkError::TooLarge(over)),
        cut("cut off after one byte", 1),
        cut("cut off before the end of the header", HEADER_BYTES - 1),
    ]
}
