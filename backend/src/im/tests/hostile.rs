//! Requests that mean no good: each gets one answer, with a reason, and changes nothing.

use super::*;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{
    ConversationsRequest, GroupChangeRequest, GroupCreateRequest, GroupCreateResponse, GroupRequest,
    PullRequest, PullResponse, ReadRequest, RecallRequest, ReceiptsRequest, RelationRequest,
};
use proptest::prelude::*;

const METHODS: [&str; 23] = [
    "im.pull",
    "im.conversations",
    "im.read",
    "im.receipts",
    "im.recall",
    "im.group.create",
    "im.group.join",
    "im.group.leave",
    "im.group.members",
    "im.group.change",
    "im.group.info",
    "im.relation",
    "im.relations",
    "im.profile.set",
    "im.profile.get",
    "im.devices",
    "im.device.remove",
    "im.presence",
    "im.settings.set",
    "im.settings.get",
    "im.group.dissolve",
    "im.conversation.delete",
    "im.account.delete",
];

fn world() -> (Bench, SessionId, SessionId) {
    let mut bench = Bench::new(ImConfig::default());
    let alice = bench.login(0, "alice", "d", 1);
    let eve = bench.login(1, "eve", "d", 1);
    bench.know(&["bob"]);
    let request = GroupCreateRequest { group: "g".into(), members: vec!["bob".into()] };
    bench.req::<GroupCreateResponse>(alice, "im.group.create", &request).expect("created");
    for number in 1..=3 {
        bench.send(alice, conversation("group:g"), &key(number), b"hi");
        bench.send(alice, user("bob"), &key(10 + number), b"hi");
    }
    (bench, alice, eve)
}

impl Bench {
    /// The code that a request is answered with.
    fn code(&mut self, session: SessionId, method: &str, payload: Bytes) -> Code {
        let question = self.up(session, Command::Req, encode(&Req { id: 1, method: method.into(), payload }));
        let (answered, code, resp) = self.out.reqs.pop().expect("an answer");
        assert_eq!((answered, self.out.reqs.len()), (question, 0), "one answer each");
        assert_eq!(code == Code::Ok, resp.reason.is_empty(), "{code:?}: {}", resp.reason);
        code
    }
}

#[test]
fn numbers_without_sense_have_a_code_and_no_effect() {
    let (mut bench, alice, eve) = world();
    let id = || "group:g".to_owned();
    let pull =
        |from, to, limit| encode(&PullRequest { conversation: id(), from, to, limit, confirmed: u64::MAX });
    assert_eq!(bench.code(alice, "im.pull", pull(9, 3, 1)), Code::Invalid);
    assert_eq!(
        bench.code(alice, "im.pull", pull(u64::MAX, u64::MAX, u32::MAX)),
        Code::Ok,
        "after the newest"
    );
    assert_eq!(bench.code(alice, "im.pull", pull(0, 0, u32::MAX)), Code::Ok);
    assert_eq!(bench.code(eve, "im.pull", pull(0, 0, 0)), Code::NotMember);
    let read = |seq| encode(&ReadRequest { conversation: id(), seq });
    assert_eq!([0, u64::MAX].map(|seq| bench.code(alice, "im.read", read(seq))), [Code::Ok; 2]);
    assert_eq!(bench.code(eve, "im.read", read(1)), Code::NotMember);
    let receipts = |seq| encode(&ReceiptsRequest { conversation: id(), seq });
    assert_eq!(
        [0, 4, u64::MAX].map(|seq| bench.code(alice, "im.receipts", receipts(seq))),
        [Code::NotFound; 3]
    );
    assert_eq!(bench.code(eve, "im.receipts", receipts(1)), Code::NotMember);
    let recall = |seq, message_id| encode(&RecallRequest { conversation: id(), seq, message_id });
    for (seq, message_id) in [(0, 0), (1, 0), (4, 1), (u64::MAX, u64::MAX)] {
        assert_eq!(bench.code(alice, "im.recall", recall(seq, message_id)), Code::NotFound, "{seq}");
    }
    assert_eq!(bench.code(eve, "im.recall", recall(1, 1)), Code::NotMember);
    let change = |user: &str, role| GroupChangeRequest {
        conversation: id(),
        user: user.into(),
        role,
        ..GroupChangeRequest::default()
    };
    assert_eq!(bench.code(eve, "im.group.change", encode(&change("eve", 3))), Code::NotMember);
    assert_eq!(
        bench.code(alice, "im.group.change", encode(&change("bob", 99))),
        Code::Invalid,
        "no such role"
    );
    let many = GroupChangeRequest { conversation: id(), add: vec!["x".into(); 1001], ..Default::default() };
    assert_eq!(bench.code(alice, "im.group.change", encode(&many)), Code::TooLarge);
    let relation =
        |user: &str, change| encode(&RelationRequest { user: user.into(), change, text: String::new() });
    assert_eq!(bench.code(alice, "im.relation", relation("bob", 77)), Code::Invalid);
    assert_eq!(bench.code(alice, "im.relation", relation("a:b", 0)), Code::Invalid);
    assert_eq!(bench.code(alice, "im.relation", relation("alice", 0)), Code::Denied);
    let after = encode(&ConversationsRequest { after: "c2c:x:y".into() });
    assert_eq!(bench.code(alice, "im.conversations", after), Code::NotFound);
    let other = encode(&GroupRequest { conversation: "c2c:alice:bob".into(), after: String::new() });
    assert_eq!(bench.code(eve, "im.group.members", other), Code::NotMember, "of two others");
    // A key of another user's message is nothing but a key of one's own.
    let (code, ack) = bench.send(eve, user("bob"), &key(1), b"hi");
    assert_eq!((code, ack.seq), (Code::Ok, 1));
    let latest = |bench: &mut Bench| {
        ["group:g", "c2c:alice:bob"].map(|id| {
            let pull = PullRequest { conversation: id.into(), from: 1, ..Default::default() };
            bench.req::<PullResponse>(alice, "im.pull", &pull).expect("hers").latest
        })
    };
    assert_eq!(latest(&mut bench), [3, 3], "nothing was said by all that");
}

proptest! {
    #[test]
    fn garbage_has_one_answer_each(requests in proptest::collection::vec(
        (0..METHODS.len(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..120)), 1..30,
    )) {
        let (mut bench, alice, eve) = world();
        for (method, is_eve, payload) in requests {
            let session = if is_eve { eve } else { alice };
            bench.code(session, METHODS[method], payload.into());
        }
        bench.send_body(eve, Bytes::from_static(b"\x0a\x10"));
        let (code, _) = bench.send(alice, user("bob"), &key(99), b"still here");
        prop_assert_eq!(code, Code::Ok);
    }
}

/// The conversation and the seq, or the range, that each push and each NOTIFY names.
fn named(pushes: &[Pushed]) -> Vec<(Command, u64)> {
    let named = |it: &Pushed| match it.command {
        Command::Notify => decode::<Notify>(&it.body).expect("a NOTIFY").first,
        _ => it.push().seq,
    };
    pushes.iter().map(|it| (it.command, named(it))).collect()
}

#[test]
fn a_message_that_ends_its_client_each_time_is_replaced_and_the_next_ones_go_on() {
    let mut bench = Bench::new(ImConfig::default());
    let alice = bench.login(0, "alice", "phone", 1);
    bench.know(&["bob"]);
    for number in 1..=4 {
        bench.send(alice, user("bob"), &key(number), b"hi");
    }
    // bob's client takes message 1 and fails at message 2, life after life; its acks come in order.
    let (mut tries, mut version) = (0, 1);
    let notified = loop {
        (tries, version) = (tries + 1, version + 1);
        assert!(tries < 20, "message 2 comes for ever");
        let bob = bench.login(1, "bob", "phone", version);
        let pushes = bench.pushes();
        if let Some(notify) = pushes.iter().find(|it| it.command == Command::Notify) {
            break notify.clone();
        }
        if pushes[0].push().seq == 1 && tries > 2 {
            bench.outcome(&pushes[0], Outcome::Acked);
            bench.pushes();
        }
        bench.logout(bob);
    };
    assert_eq!(named(std::slice::from_ref(&notified)), [(Command::Notify, 2)], "after {tries} sessions");
    assert_eq!(bench.pushes(), [], "one at a time");
    bench.outcome(&notified, Outcome::Acked);
    let rest = bench.pushes();
    assert_eq!(named(&rest), [(Command::Push, 3), (Command::Push, 4)]);
    assert_eq!(bench.im().status().replaced, 1);
    // A client that only loses its network is pushed everything, however often.
    rest.iter().for_each(|push| bench.outcome(push, Outcome::Acked));
    bench.logout(notified.session);
    for life in 0..20 {
        let bob = bench.login(1, "bob", "phone", 100 + life);
        assert_eq!(bench.pushes(), []);
        bench.logout(bob);
    }
    bench.send(alice, user("bob"), &key(9), b"hi");
    bench.login(1, "bob", "phone", 200);
    assert_eq!(named(&bench.pushes()), [(Command::Push, 5)]);
}
