//! Room on the disk, and what is deleted.

use super::*;
use moorline_proto::message::im::{
    GroupChangeRequest, GroupCreateRequest, GroupCreateResponse, GroupRequest, GroupSettings, Profile,
    ProfileSetRequest, ReadRequest, RecallRequest, RecallResponse,
};
use std::sync::mpsc;

/// The answer to a call of the server API.
fn call(bench: &mut Bench, call: ApiCall) -> Code {
    let (give, answers) = mpsc::channel();
    let now = bench.now;
    bench.im().handle_api(now, call, ApiReply::new(move |answer| _ = give.send(answer.code)));
    bench.perform();
    bench.end_turn();
    answers.try_recv().expect("one answer")
}

#[test]
fn below_the_floor_of_the_disk_only_small_writes_pass() {
    let mut bench = Bench::new(ImConfig { disk_floor: 1000, ..ImConfig::default() });
    let ann = bench.login(0, "ann", "d", 1);
    bench.know(&["ben"]);
    let group = GroupCreateRequest { group: "g".into(), members: vec!["ben".into()] };
    bench.req::<GroupCreateResponse>(ann, "im.group.create", &group).expect("there is room");
    bench.im().handle_free_disk(Some(999));
    let large = vec![7; 5000];
    let (code, ack) = bench.send(ann, user("ben"), &key(1), &large);
    assert_eq!((code, ack.retry_after_ms), (Code::Retry, 5000));
    assert_eq!(bench.send(ann, user("ben"), &key(2), &large[..4096]).0, Code::Ok, "a small one");
    let other = GroupCreateRequest { group: "h".into(), members: Vec::new() };
    let made = bench.req::<GroupCreateResponse>(ann, "im.group.create", &other);
    assert_eq!(made.expect_err("it grows"), Code::Retry);
    let profile = ProfileSetRequest { profile: Some(Profile::default()) };
    assert_eq!(bench.req::<()>(ann, "im.profile.set", &profile), Err(Code::Retry));
    let group = || "group:g".to_owned();
    let settings = Some(GroupSettings { title: "t".into(), ..Default::default() });
    let change = GroupChangeRequest { conversation: group(), settings, ..Default::default() };
    assert_eq!(bench.req::<()>(ann, "im.group.change", &change), Err(Code::Retry));
    let remove = vec!["ben".into()];
    let change = GroupChangeRequest { conversation: group(), remove, ..Default::default() };
    bench.req::<()>(ann, "im.group.change", &change).expect("it frees room");
    let read = ReadRequest { conversation: "c2c:ann:ben".into(), seq: 1 };
    bench.req::<()>(ann, "im.read", &read).expect("a read mark");
    let (_, ack) = bench.send(ann, user("ben"), &key(3), b"small");
    let ids = (ack.conversation, ack.seq, ack.message_id);
    let recall = RecallRequest { conversation: ids.0, seq: ids.1, message_id: ids.2 };
    bench.req::<RecallResponse>(ann, "im.recall", &recall).expect("a recall");
    let leave = GroupRequest { conversation: group(), ..Default::default() };
    bench.req::<()>(ann, "im.group.leave", &leave).expect("it frees room");
    let push = |payload: &[u8]| {
        let to = crate::im::PushTo::Inboxes(vec!["ben".into()]);
        ApiCall::Push { to, kind: 0, payload: Bytes::copy_from_slice(payload) }
    };
    assert_eq!(call(&mut bench, push(&large)), Code::Retry);
    assert_eq!(call(&mut bench, push(b"small")), Code::Ok);
    let status = bench.im().status().disk;
    assert_eq!((status.free, status.is_low, status.put_off), (Some(999), true, 5));
    bench.im().handle_free_disk(Some(1100));
    assert_eq!(bench.send(ann, user("ben"), &key(1), &large).0, Code::Ok, "the same message, later");
}
