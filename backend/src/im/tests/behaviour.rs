//! One behaviour per test.

use super::*;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{
    ConversationsRequest, ConversationsResponse, GroupCreateRequest, GroupCreateResponse, GroupRequest,
    GroupResponse, PullRequest, PullResponse, VoidRange,
};

fn bench() -> Bench {
    Bench::new(ImConfig::default())
}

fn pull(conversation: &str, from: u64, to: u64, limit: u32) -> PullRequest {
    PullRequest { conversation: conversation.into(), from, to, limit, confirmed: 0 }
}

fn group(conversation: &str) -> GroupRequest {
    GroupRequest { conversation: conversation.into(), ..Default::default() }
}

fn create(bench: &mut Bench, by: SessionId, name: &str, members: &[&str]) -> Result<String, Code> {
    let members = members.iter().map(|it| (*it).to_owned()).collect();
    let request = GroupCreateRequest { group: name.into(), members };
    bench.req::<GroupCreateResponse>(by, "im.group.create", &request).map(|it| it.conversation)
}

#[test]
fn a_message_is_answered_and_pushed_to_every_other_device() {
    let mut bench = bench();
    let phone = bench.login(0, "alice", "phone", 1);
    let pad = bench.login(1, "alice", "pad", 1);
    let bob = bench.login(2, "bob", "phone", 1);
    let (code, ack) = bench.send(phone, user("bob"), &key(1), b"hi");
    assert_eq!(
        (code, ack.conversation.as_str(), ack.seq, ack.time_ms),
        (Code::Ok, "c2c:alice:bob", 1, bench.now.unix_ms)
    );
    let pushes = bench.pushes();
    assert_eq!(
        pushes.iter().map(|it| it.session).collect::<Vec<_>>(),
        [pad, bob],
        "not to the sending device"
    );
    assert_eq!(bench.out.payloads, 1, "one payload, encoded once, for both");
    let push = pushes[1].push();
    assert_eq!((push.message_id, push.seq, push.time_ms), (ack.message_id, 1, ack.time_ms));
    assert_eq!((push.sender.as_str(), push.sender_device.as_str(), push.r#type), ("alice", "phone", 1));
    assert_eq!((push.conversation.as_str(), &push.payload[..]), ("c2c:alice:bob", &b"hi"[..]));
    let (_, second) = bench.send(bob, conversation("c2c:alice:bob"), &key(1), b"hello");
    assert_eq!((second.seq, second.message_id > ack.message_id), (2, true));
}

#[test]
fn a_key_counts_once_and_other_content_is_a_conflict() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    bench.login(1, "bob", "phone", 1);
    let first = bench.send(alice, user("bob"), &key(1), b"hi");
    bench.pushes();
    assert_eq!(bench.send(alice, user("bob"), &key(1), b"hi"), (Code::Dup, first.1));
    assert_eq!(bench.send(alice, user("bob"), &key(1), b"ho").0, Code::Conflict);
    assert_eq!(bench.send(alice, user("alice"), &key(1), b"hi").0, Code::Conflict);
    assert_eq!(bench.pushes(), [], "nothing is delivered twice");
}

#[test]
fn each_bad_send_has_its_code() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    let eve = bench.login(1, "eve", "phone", 1);
    create(&mut bench, alice, "g", &[]).expect("created");
    let large = vec![0; ImConfig::default().payload_max + 1];
    for (target, key, payload, expected) in [
        (user("bob"), &key(1)[..15], &b""[..], Code::Invalid),
        (user("bob"), &[], b"", Code::Invalid),
        (user("b:b"), &key(1), b"", Code::Invalid),
        (user(""), &key(1), b"", Code::Invalid),
        (user("bob"), &key(1), &large[..], Code::TooLarge),
        (conversation("group:none"), &key(1), b"", Code::NotFound),
        (conversation("nonsense"), &key(1), b"", Code::NotFound),
        (conversation("c2c:bob:alice"), &key(1), b"", Code::NotFound), // not in byte order
        (conversation("c2c:alice:bob"), &key(1), b"", Code::NotMember),
        (conversation("group:g"), &key(1), b"", Code::NotMember),
    ] {
        let (code, ack) = bench.send(eve, target.clone(), key, payload);
        assert_eq!(code, expected, "{target:?}");
        assert!(!ack.reason.is_empty() && ack.seq == 0);
    }
    let no_target = Send { key: Bytes::copy_from_slice(&key(1)), ..Default::default() };
    assert_eq!(bench.send_body(eve, encode(&no_target)).0, Code::Invalid);
    assert_eq!(bench.send_body(eve, Bytes::from_static(b"\xff\xff")).0, Code::Invalid);
    let question = bench.up(eve, Command::Sub, Bytes::new());
    assert_eq!(bench.out.subs, [(question, Code::NotFound)]);
    bench.up(eve, Command::Ping, Bytes::new());
    assert_eq!(bench.out.refused, [Code::Unsupported]);
    assert_eq!(bench.send(eve, user("bob"), &key(1), b"").0, Code::Ok, "a refused key is free");
}

#[test]
fn each_bad_request_has_its_code() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    let eve = bench.login(1, "eve", "phone", 1);
    let g = create(&mut bench, alice, "g", &["bob"]).expect("created");
    assert_eq!(g, "group:g");
    bench.send(alice, user("bob"), &key(1), b"");
    for (request, expected) in [
        (pull("group:g", 5, 4, 0), Code::Invalid),
        (pull("group:none", 1, 0, 0), Code::NotFound),
        (pull("none", 1, 0, 0), Code::NotFound),
        (pull("group:g", 1, 0, 0), Code::NotMember),
        (pull("c2c:alice:bob", 1, 0, 0), Code::NotMember),
    ] {
        assert_eq!(bench.req::<PullResponse>(eve, "im.pull", &request), Err(expected), "{request:?}");
    }
    assert_eq!(bench.req::<GroupResponse>(eve, "im.group.members", &group(&g)), Err(Code::NotMember));
    assert_eq!(bench.req::<GroupResponse>(eve, "im.group.join", &group("group:none")), Err(Code::NotFound));
    assert_eq!(
        bench.req::<GroupResponse>(eve, "im.group.join", &group("c2c:alice:bob")),
        Err(Code::NotMember)
    );
    assert_eq!(
        bench.req::<GroupResponse>(alice, "im.group.leave", &group("c2c:alice:bob")),
        Err(Code::Denied)
    );
    assert_eq!(create(&mut bench, eve, "g", &[]), Err(Code::Conflict));
    assert_eq!(create(&mut bench, eve, "a:b", &[]), Err(Code::Invalid));
    assert_eq!(create(&mut bench, eve, "h", &["a:b"]), Err(Code::Invalid));
    let crowd: Vec<_> = (0..10_001).map(|i| format!("u{i}")).collect();
    let crowd: Vec<_> = crowd.iter().map(String::as_str).collect();
    assert_eq!(create(&mut bench, eve, "h", &crowd), Err(Code::Denied));
    assert_eq!(bench.req::<GroupResponse>(eve, "im.dance", &group("")), Err(Code::Unsupported));
    let garbage = Req { payload: Bytes::from_static(b"\xff"), method: "im.pull".into(), id: 1 };
    bench.up(eve, Command::Req, encode(&garbage));
    assert_eq!(bench.out.reqs.pop().expect("answered").1, Code::Invalid);
}

#[test]
fn groups_are_created_joined_listed_and_left() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    let carol = bench.login(1, "carol", "phone", 1);
    assert_eq!(create(&mut bench, alice, "g", &["bob", "alice"]).as_deref(), Ok("group:g"));
    assert_eq!(create(&mut bench, alice, "g", &[]).as_deref(), Ok("group:g"), "again");
    bench.send(alice, conversation("group:g"), &key(1), b"before carol");
    assert_eq!(bench.pushes(), []);
    let members = |bench: &mut Bench, by, method| {
        let answer = bench.req::<GroupResponse>(by, method, &group("group:g"));
        answer.map(|mut it| {
            it.members.sort();
            it.members.join(" ")
        })
    };
    assert_eq!(members(&mut bench, carol, "im.group.join").as_deref(), Ok("alice bob carol"));
    assert_eq!(members(&mut bench, carol, "im.group.members").as_deref(), Ok("alice bob carol"));
    assert_eq!(bench.pushes().iter().map(|it| it.session).collect::<Vec<_>>(), [alice], "she is told");
    bench.send(alice, conversation("group:g"), &key(2), b"hello carol");
    let pushes = bench.pushes();
    assert_eq!((pushes.len(), pushes[0].session, pushes[0].push().seq), (1, carol, 2));
    let page: PullResponse = bench.req(carol, "im.pull", &pull("group:g", 1, 0, 0)).expect("a member");
    assert_eq!(page.voids, [VoidRange { from: 1, to: 1 }]);
    assert_eq!(page.messages, [pushes[0].push()]);
    let listed: ConversationsResponse =
        bench.req(carol, "im.conversations", &ConversationsRequest::default()).expect("listed");
    let listed: Vec<_> =
        listed.conversations.iter().map(|it| (it.id.as_str(), it.latest, it.members)).collect();
    assert_eq!(listed, [("group:g", 2, 3)]);
    assert_eq!(members(&mut bench, carol, "im.group.leave").as_deref(), Ok(""));
    assert_eq!(members(&mut bench, carol, "im.group.leave").as_deref(), Ok(""), "twice is fine");
    assert_eq!(bench.pushes().len(), 1, "alice is told, once");
    bench.send(alice, conversation("group:g"), &key(3), b"after carol");
    assert_eq!(bench.pushes(), []);
    assert_eq!(bench.req::<PullResponse>(carol, "im.pull", &pull("group:g", 1, 0, 0)), Err(Code::NotMember));
}

#[test]
fn pages_are_capped_by_count_and_bytes_and_say_so() {
    let mut bench = Bench::new(ImConfig { pull_messages_max: 3, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob", "zoe"]);
    for i in 1..=5 {
        bench.send(alice, user("bob"), &key(i), &vec![i; 30 << 10]);
    }
    let seqs = |bench: &mut Bench, request| {
        let page: PullResponse = bench.req(alice, "im.pull", &request).expect("a member");
        assert_eq!(page.latest, 5);
        (page.messages.iter().map(|it| it.seq).collect::<Vec<_>>(), page.more)
    };
    let id = "c2c:alice:bob";
    assert_eq!(seqs(&mut bench, pull(id, 1, 0, 1)), (vec![1], true));
    assert_eq!(seqs(&mut bench, pull(id, 1, 0, u32::MAX)), (vec![1, 2], true), "two of 30 KiB fit an answer");
    assert_eq!(seqs(&mut bench, pull(id, 5, 0, 0)), (vec![5], false));
    assert_eq!(seqs(&mut bench, pull(id, 0, 1, 0)), (vec![1], false));
    assert_eq!(seqs(&mut bench, pull(id, 6, 0, 0)), (vec![], false));
    let unspoken: PullResponse = bench.req(alice, "im.pull", &pull("c2c:alice:zoe", 1, 0, 0)).expect("hers");
    assert_eq!(unspoken, PullResponse::default());
    let first = bench.send(alice, conversation("c2c:alice:zoe"), &key(9), b"").1;
    assert_eq!(
        (first.conversation.as_str(), first.seq),
        ("c2c:alice:zoe", 1),
        "the id is as good as the user"
    );
}

#[test]
fn notes_to_oneself_reach_the_other_devices() {
    let mut bench = bench();
    let phone = bench.login(0, "alice", "phone", 1);
    let pad = bench.login(1, "alice", "pad", 1);
    assert_eq!(bench.send(phone, user("alice"), &key(1), b"milk").1.conversation, "c2c:alice:alice");
    let pushes = bench.pushes();
    assert_eq!((pushes.len(), pushes[0].session), (1, pad));
}

#[test]
fn an_inbox_is_kept_until_every_device_has_acked() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    let phone = bench.login(1, "bob", "phone", 1);
    let pad = bench.login(2, "bob", "pad", 1);
    bench.logout(pad);
    bench.send(alice, user("bob"), &key(1), b"1");
    bench.send(alice, user("bob"), &key(2), b"2");
    for pushed in bench.pushes() {
        assert_eq!(pushed.session, phone);
        bench.outcome(&pushed, Outcome::Acked);
    }
    assert_eq!(bench.stream_of("bob"), 2, "the pad has nothing");
    let pad = bench.login(2, "bob", "pad", 2);
    let pushes = bench.pushes();
    assert_eq!(pushes.iter().map(|it| (it.session, it.push().seq)).collect::<Vec<_>>(), [(pad, 1), (pad, 2)]);
    bench.outcome(&pushes[0], Outcome::Acked);
    assert_eq!(bench.stream_of("bob"), 1);
    bench.logout(pad);
    bench.outcome(&pushes[1], Outcome::Acked);
    let pad = bench.login(2, "bob", "pad", 3);
    let again = bench.pushes();
    assert_eq!(again.len(), 1, "an ack after the end counts for nothing");
    assert_eq!((again[0].session, again[0].push().seq), (pad, 2));
    bench.outcome(&again[0], Outcome::Acked);
    assert_eq!(bench.stream_of("bob"), 0);
}

#[test]
fn what_is_unacked_is_pushed_again_when_a_session_is_announced_again() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    let bob = bench.login(1, "bob", "phone", 1);
    for i in 1..=3 {
        bench.send(alice, user("bob"), &key(i), b"");
    }
    let first = bench.pushes();
    bench.outcome(&first[0], Outcome::Acked);
    bench.outcome(&first[1], Outcome::Offline);
    assert_eq!(bench.pushes(), [], "nothing goes out before the next ConnUp");
    bench.conn_up(bob, "bob", "phone", 1, false);
    assert_eq!(bench.pushes().iter().map(|it| it.push().seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_window_bounds_what_is_in_flight_and_a_full_gateway_is_tried_again() {
    let config = ImConfig { outstanding: 2, ..ImConfig::default() };
    let mut bench = Bench::new(config);
    let alice = bench.login(0, "alice", "phone", 1);
    bench.login(1, "bob", "phone", 1);
    for i in 1..=5 {
        bench.send(alice, user("bob"), &key(i), b"");
    }
    let seqs = |pushes: &[Pushed]| pushes.iter().map(|it| it.push().seq).collect::<Vec<_>>();
    let first = bench.pushes();
    assert_eq!(seqs(&first), [1, 2]);
    bench.outcome(&first[0], Outcome::Acked);
    let second = bench.pushes();
    assert_eq!(seqs(&second), [3]);
    bench.outcome(&first[1], Outcome::Full);
    bench.outcome(&second[0], Outcome::Full);
    bench.pass(Duration::from_millis(900));
    assert_eq!(bench.pushes(), []);
    bench.pass(Duration::from_millis(200));
    let third = bench.pushes();
    assert_eq!(seqs(&third), [2, 3]);
    for pushed in &third {
        bench.outcome(pushed, Outcome::Acked);
    }
    assert_eq!(seqs(&bench.pushes()), [4, 5]);
}

#[test]
fn large_pushes_count_by_their_bytes() {
    let mut bench = Bench::new(ImConfig { outstanding_bytes: 1000, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "phone", 1);
    bench.login(1, "bob", "phone", 1);
    for i in 1..=3 {
        bench.send(alice, user("bob"), &key(i), &[0; 2000]);
    }
    let first = bench.pushes();
    assert_eq!(first.len(), 1, "one is always allowed");
    bench.outcome(&first[0], Outcome::Acked);
    assert_eq!(bench.pushes().len(), 1);
}

/// A gateway closes a connection for which over `limits.queue_bytes` wait; a large inbox must not
/// make it do so at every login.
#[test]
fn a_large_inbox_never_has_more_than_the_bound_outstanding() {
    let config = ImConfig::default();
    let (pushes_max, bytes_max) = (config.outstanding, config.outstanding_bytes);
    let mut bench = Bench::new(config);
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    let pad = bench.login(1, "alice", "pad", 1);
    bench.logout(pad);
    for i in 0..200 {
        bench.send(alice, user("bob"), &key(i), &vec![i; 50_000]);
    }
    for i in 200..=255 {
        bench.send(alice, user("bob"), &key(i), b"small");
    }
    let bob = bench.login(2, "bob", "phone", 1);
    let pad = bench.login(3, "alice", "pad", 2);
    let mut outstanding: [std::collections::VecDeque<Pushed>; 2] = Default::default();
    let mut seqs: [Vec<u64>; 2] = Default::default();
    loop {
        for pushed in bench.pushes() {
            outstanding[usize::from(pushed.session == pad)].push_back(pushed);
        }
        for device in &outstanding {
            let bytes: usize = device.iter().map(|it| it.body.len()).sum();
            assert!(device.len() <= pushes_max && bytes <= bytes_max, "{} with {bytes} bytes", device.len());
        }
        let device = usize::from(outstanding[0].is_empty());
        let Some(pushed) = outstanding[device].pop_front() else { break };
        assert_eq!(pushed.session, [bob, pad][device]);
        seqs[device].push(pushed.push().seq);
        bench.outcome(&pushed, Outcome::Acked);
        if seqs[0].len() == 100 && device == 0 {
            // One of 50 KB more finds no room, and comes in its turn.
            bench.send(alice, conversation("c2c:alice:bob"), b"another key 16 b", &vec![0; 50_000]);
        }
    }
    assert!(seqs.iter().all(|seqs| seqs.iter().copied().eq(1..=257)), "everything, in order");
}

#[test]
fn an_overflown_inbox_notifies_once_per_conversation() {
    let mut bench = Bench::new(ImConfig { inbox_entries_max: 2, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    for i in 1..=5 {
        bench.send(alice, user("bob"), &key(i), b"");
    }
    let bob = bench.login(1, "bob", "phone", 1);
    let pushes = bench.pushes();
    assert_eq!((pushes.len(), pushes[0].session, pushes[0].command), (3, bob, Command::Notify));
    let notify: Notify = decode(&pushes[0].body).expect("a Notify");
    assert_eq!(notify, Notify { conversation: "c2c:alice:bob".into(), latest: 5, first: 1 });
    assert_eq!([pushes[1].push().seq, pushes[2].push().seq], [4, 5]);
    let page: PullResponse = bench.req(bob, "im.pull", &pull("c2c:alice:bob", 1, 3, 0)).expect("his");
    assert_eq!(page.messages.len(), 3, "the history has them");
    for pushed in &pushes {
        bench.outcome(pushed, Outcome::Acked);
    }
    assert_eq!(bench.stream_of("bob"), 0);
}

#[test]
fn dropped_history_reads_as_a_void_range() {
    let mut bench = Bench::new(ImConfig { history_max: 5000, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    for i in 1..=5 {
        bench.send(alice, user("bob"), &key(i), &[0; 2000]);
    }
    let page: PullResponse = bench.req(alice, "im.pull", &pull("c2c:alice:bob", 1, 0, 0)).expect("hers");
    assert_eq!(page.voids, [VoidRange { from: 1, to: 3 }]);
    assert_eq!(page.messages.iter().map(|it| it.seq).collect::<Vec<_>>(), [4, 5]);
    bench.login(1, "bob", "phone", 1);
    let commands: Vec<_> = bench.pushes().iter().map(|it| it.command).collect();
    assert_eq!(commands, [Command::Notify, Command::Notify, Command::Notify, Command::Push, Command::Push]);
}

#[test]
fn the_newest_login_of_a_device_stays_whatever_comes_late() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    let old = bench.login(1, "bob", "phone", 10);
    let new = bench.login(2, "bob", "phone", 11);
    assert_eq!(bench.kicks(), [(old, 3530)]);
    let late = bench.login(3, "bob", "phone", 9);
    assert_eq!(bench.kicks(), [(late, 3530)], "an older login that is heard of late is the one to go");
    bench.conn_up(old, "bob", "phone", 10, false);
    assert_eq!(bench.kicks(), [(old, 3530)], "and is kicked again when its link changes");
    bench.send(alice, user("bob"), &key(1), b"");
    assert_eq!(bench.pushes().iter().map(|it| it.session).collect::<Vec<_>>(), [new]);
    for session in [old, late] {
        bench.logout(session);
    }
    bench.send(alice, user("bob"), &key(2), b"");
    assert_eq!(bench.pushes().iter().map(|it| it.session).collect::<Vec<_>>(), [new]);
    bench.login(1, "bob", "pad", 1);
    assert_eq!(bench.kicks(), [], "another device is another login");
}

#[test]
fn refused_logins_are_kicked_and_may_do_nothing() {
    let mut bench = Bench::new(ImConfig { users_max: 2, devices_max: 1, ..ImConfig::default() });
    let bad = bench.login(0, "a:b", "phone", 1);
    assert_eq!(bench.kicks(), [(bad, 3531)]);
    assert_eq!(bench.send(bad, user("bob"), &key(1), b"").0, Code::Denied);
    let phone = bench.login(1, "alice", "phone", 1);
    let pad = bench.login(2, "alice", "pad", 1);
    assert_eq!(bench.kicks(), [(phone, 3531)], "one device only");
    bench.know(&["bob"]);
    assert_eq!(bench.send(pad, user("bob"), &key(1), b"").0, Code::Ok);
    let (code, ack) = bench.send(pad, user("carol"), &key(2), b"");
    assert_eq!((code, ack.retry_after_ms), (Code::NotFound, 0), "nobody is called so");
    assert_eq!(create(&mut bench, pad, "g", &["carol"]), Err(Code::NotFound));
    let api = bench.login(4, "alice", "api", 1);
    assert_eq!(bench.kicks(), [(api, 3531)], "the backend's own name");
    let carol = bench.login(3, "carol", "phone", 1);
    assert_eq!(bench.kicks(), [(carol, 3001)]);
}

#[test]
fn a_full_table_of_conversations_is_no_reason_to_try_again() {
    let mut bench = Bench::new(ImConfig { conversations_max: 1, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob", "carol"]);
    assert_eq!(bench.send(alice, user("bob"), &key(1), b"").0, Code::Ok);
    let (code, ack) = bench.send(alice, user("carol"), &key(2), b"");
    assert_eq!((code, ack.retry_after_ms), (Code::Denied, 0));
    assert!(ack.reason.contains("im.conversations_max"), "{}", ack.reason);
    assert_eq!(create(&mut bench, alice, "g", &[]), Err(Code::Denied));
    assert_eq!(bench.send(alice, user("bob"), &key(2), b"").0, Code::Ok, "what is known goes on");
}
