//! Chats of two users and of groups: every device gets every message once, in order.

use crate::gateway::{Backend, Gateway};
use crate::raw::{Acks, Client, End, bytes_of, hello, message, message_into, send_frame};
use bytes::Bytes;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::message::client::{Close, Code, Resp, SendAck};
use moorline_proto::message::im::{
    ConversationsRequest, ConversationsResponse, GroupCreateRequest, GroupRequest, GroupResponse,
    PullRequest, PullResponse,
};
use moorline_proto::message::{decode, encode, frame_of};
use std::collections::BTreeSet;
use std::time::Duration;

/// Long enough to see that nothing more comes.
const QUIET: Duration = Duration::from_millis(300);

fn start() -> (Backend, Gateway) {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    (backend, gateway)
}

fn group(conversation: &str) -> Bytes {
    encode(&GroupRequest { conversation: conversation.into(), ..GroupRequest::default() })
}

fn payload<M: prost::Message + Default>(resp: &Resp) -> M {
    assert_eq!(resp.code(), Code::Ok, "{}", resp.reason);
    decode(&resp.payload).expect("the method's answer")
}

#[test]
fn a_message_reaches_every_device_but_the_one_that_sent_it() {
    let (_backend, gateway) = start();
    let login = |uid, device| Client::login(gateway.listener, uid, device);
    let (mut phone, mut laptop) = (login("alice", "phone"), login("alice", "laptop"));
    let mut bobs = [login("bob", "phone"), login("bob", "laptop")];
    for number in 1..=20u64 {
        let said = format!("hello {number}");
        let answer = phone.tell(number.into(), "bob", said.as_bytes());
        assert_eq!(
            (answer.code(), answer.seq, &answer.conversation[..]),
            (Code::Ok, number, "c2c:alice:bob")
        );
        assert!(answer.message_id != 0 && answer.time_ms != 0);
    }
    for listener in bobs.iter_mut().chain([&mut laptop]) {
        listener.until("20 messages", |heard| heard.pushes.len() >= 20);
        for (push, answer) in listener.heard.pushes.iter().zip(&phone.heard.send_acks) {
            assert_eq!(
                (push.seq, push.message_id, push.time_ms),
                (answer.seq, answer.message_id, answer.time_ms)
            );
            assert_eq!((&push.sender[..], &push.sender_device[..]), ("alice", "phone"));
            assert_eq!((&push.payload[..], push.r#type), (format!("hello {}", push.seq).as_bytes(), 1));
        }
    }
    assert!(phone.is_quiet_for(QUIET) && phone.heard.pushes.is_empty(), "the sender's device knows it");
    assert!(laptop.is_quiet_for(QUIET) && laptop.heard.pushes.len() == 20, "once");
    assert!(bobs.iter().chain([&laptop]).all(|listener| listener.heard.repeats == 0), "once");
}

#[test]
fn a_group_sees_one_order() {
    let (_backend, gateway) = start();
    let names = ["ann", "ben", "cid"];
    let mut people = names.map(|name| Client::login(gateway.listener, name, "d"));
    let create = GroupCreateRequest { group: "tea".into(), members: vec!["ben".into(), "cid".into()] };
    assert_eq!(people[0].request(1, "im.group.create", encode(&create)).code(), Code::Ok);
    assert_eq!(people[0].request(2, "im.group.create", encode(&create)).code(), Code::Ok, "again");
    assert_eq!(people[1].request(2, "im.group.create", encode(&create)).code(), Code::Conflict);
    for round in 0..20u128 {
        for (name, speaker) in names.iter().zip(&mut people) {
            // A key has to be unique for its sender only.
            speaker.send(&message_into(round, "group:tea", format!("{name} {round}").as_bytes()));
        }
    }
    let mut story: Vec<Option<Bytes>> = vec![None; 60];
    for (name, person) in names.iter().zip(&mut people) {
        person.until("own and others' messages", |heard| heard.send_acks.len() + heard.pushes.len() == 60);
        assert!(person.heard.send_acks.iter().all(|ack| ack.code() == Code::Ok));
        let seqs: Vec<_> = person.heard.pushes.iter().map(|push| push.seq).collect();
        assert!(seqs.is_sorted_by(|a, b| a < b), "{name}: {seqs:?}");
        let mut filled: Vec<_> =
            seqs.into_iter().chain(person.heard.send_acks.iter().map(|ack| ack.seq)).collect();
        filled.sort_unstable();
        assert_eq!(filled, (1..=60).collect::<Vec<_>>(), "{name}: own and others' fill every place");
        for push in &person.heard.pushes {
            let place = &mut story[usize::try_from(push.seq).expect("small") - 1];
            assert_eq!(place.get_or_insert(push.payload.clone()), &push.payload, "all see the same");
        }
    }
    for name in names {
        let told = |said: &&Bytes| said.starts_with(name.as_bytes());
        let own: Vec<_> = story.iter().flatten().filter(told).cloned().collect();
        let expected: Vec<_> = (0..20).map(|round| Bytes::from(format!("{name} {round}"))).collect();
        assert_eq!(own, expected, "each speaker's order is kept");
    }
}

#[test]
fn who_is_no_member_neither_speaks_nor_reads() {
    let (_backend, gateway) = start();
    let mut ann = Client::login(gateway.listener, "ann", "d");
    let mut eve = Client::login(gateway.listener, "eve", "d");
    let create = GroupCreateRequest { group: "tea".into(), members: vec![] };
    assert_eq!(ann.request(1, "im.group.create", encode(&create)).code(), Code::Ok);
    let speak = |who: &mut Client, key, to: &str| {
        let cid = who.send(&message_into(key, to, b"hm"));
        who.answer(cid).code()
    };
    assert_eq!(speak(&mut eve, 1, "group:tea"), Code::NotMember);
    assert_eq!(speak(&mut eve, 2, "group:coffee"), Code::NotFound);
    assert_eq!(speak(&mut eve, 3, "c2c:ann:bob"), Code::NotMember, "other people's talk");
    let pull =
        |conversation: &str| encode(&PullRequest { conversation: conversation.into(), ..Default::default() });
    assert_eq!(eve.request(1, "im.pull", pull("group:tea")).code(), Code::NotMember);
    assert_eq!(eve.request(2, "im.pull", pull("group:coffee")).code(), Code::NotFound);
    assert_eq!(eve.request(3, "im.group.members", group("group:tea")).code(), Code::NotMember);

    assert_eq!(eve.request(4, "im.group.join", group("group:tea")).code(), Code::Ok);
    let members: GroupResponse = payload(&eve.request(5, "im.group.members", group("group:tea")));
    assert_eq!(BTreeSet::from_iter(members.members), ["ann", "eve"].map(str::to_owned).into());
    assert_eq!(speak(&mut eve, 4, "group:tea"), Code::Ok);
    ann.until("eve's message", |heard| heard.payloads() == [b"hm"]);
    let list = eve.request(6, "im.conversations", encode(&ConversationsRequest::default()));
    let list: ConversationsResponse = payload(&list);
    assert_eq!(list.conversations.iter().map(|one| &one.id[..]).collect::<Vec<_>>(), ["group:tea"]);
    assert_eq!(eve.request(7, "im.group.leave", group("group:tea")).code(), Code::Ok);
    assert_eq!(speak(&mut eve, 5, "group:tea"), Code::NotMember);
    assert_eq!(speak(&mut ann, 5, "group:tea"), Code::Ok);
    assert!(eve.is_quiet_for(QUIET) && eve.heard.pushes.is_empty(), "who left hears nothing");
}

#[test]
fn a_message_sent_again_is_stored_once() {
    let (_backend, gateway) = start();
    let mut bob = Client::login(gateway.listener, "bob", "d");
    let mut alice = Client::login(gateway.listener, "alice", "phone");
    let first = alice.tell(7, "bob", b"once");
    alice.put(&send_frame(1, &message(7, "bob", b"once")));
    alice.until("a second answer", |heard| heard.answers(1).len() == 2);
    let again = SendAck { code: Code::Dup.into(), ..first.clone() };
    assert_eq!(*alice.heard.answers(1)[1], first, "the same cid, answered from memory");
    drop(alice);
    let mut alice = Client::login(gateway.listener, "alice", "laptop");
    assert_eq!(alice.tell(7, "bob", b"once"), again, "a new session, another device");
    assert_eq!(alice.tell(7, "bob", b"twice").code(), Code::Conflict, "the same key, another content");
    let short =
        moorline_proto::message::client::Send { key: Bytes::from_static(b"short"), ..message(8, "bob", b"") };
    let cid = alice.send(&short);
    assert_eq!(alice.answer(cid).code(), Code::Invalid);
    assert_eq!(alice.tell(9, "bob", &vec![0; 61_441]).code(), Code::TooLarge);
    bob.until("the message", |heard| !heard.pushes.is_empty());
    assert!(bob.is_quiet_for(QUIET));
    assert_eq!((bob.heard.payloads(), bob.heard.repeats), (vec![&b"once"[..]], 0));
}

#[test]
fn cids_that_overtake_wait_for_their_turn() {
    let (_backend, gateway) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    for cid in [3, 2, 64, 1] {
        alice.put(&send_frame(cid, &message(cid.into(), "bob", format!("{cid}").as_bytes())));
    }
    bob.until("three messages", |heard| heard.pushes.len() >= 3);
    for cid in (4..64).rev() {
        alice.put(&send_frame(cid, &message(cid.into(), "bob", format!("{cid}").as_bytes())));
    }
    bob.until("all messages", |heard| heard.pushes.len() >= 64);
    let expected: Vec<_> = (1..=64).map(|cid| format!("{cid}")).collect();
    assert_eq!(bob.heard.payloads(), expected.iter().map(String::as_bytes).collect::<Vec<_>>());
    alice.until("all answers", |heard| heard.send_acks.len() == 64);
}

#[test]
fn history_is_pulled_in_pages() {
    let (_backend, gateway) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    drop(Client::login(gateway.listener, "bob", "d"));
    for number in 1..=30u32 {
        assert_eq!(alice.tell(number.into(), "bob", format!("{number}").as_bytes()).code(), Code::Ok);
    }
    let mut pull = |id, from, to, limit| -> PullResponse {
        let request = PullRequest { conversation: "c2c:alice:bob".into(), from, to, limit, confirmed: 0 };
        payload(&alice.request(id, "im.pull", encode(&request)))
    };
    let seqs = |page: &PullResponse| page.messages.iter().map(|push| push.seq).collect::<Vec<_>>();
    let all = pull(1, 1, 0, 0);
    assert_eq!((seqs(&all), all.latest, all.more), ((1..=30).collect(), 30, false));
    assert!(
        all.messages.iter().all(|push| push.payload == format!("{}", push.seq) && push.sender == "alice")
    );
    let page = pull(2, 11, 25, 10);
    assert_eq!((seqs(&page), page.more), ((11..=20).collect(), true));
    let rest = pull(3, 21, 25, 10);
    assert_eq!((seqs(&rest), rest.more), ((21..=25).collect(), false));
    assert!(pull(4, 31, 0, 0).messages.is_empty());
}

#[test]
fn what_was_not_acknowledged_waits_for_the_next_login() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["session.keep=0s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "phone");
    alice.tell(1, "bob", b"1");
    bob.until("the first", |heard| heard.pushes.len() == 1);
    gateway.until_metric("pushes_acked_total", 1);
    drop(bob);
    gateway.until_sessions(1);
    for number in 2..=6u32 {
        assert_eq!(alice.tell(number.into(), "bob", format!("{number}").as_bytes()).code(), Code::Ok);
    }
    let missed: [&[u8]; 5] = [b"2", b"3", b"4", b"5", b"6"];
    // Heard, not acknowledged, and then cut off.
    let mut bob = Client::greet(gateway.listener, &hello("bob", "phone"));
    bob.acks = Acks::Withheld;
    bob.until("what was missed", |heard| heard.pushes.len() == 5);
    assert_eq!(bob.heard.payloads(), missed);
    drop(bob);
    gateway.until_sessions(1);
    let mut bob = Client::login(gateway.listener, "bob", "phone");
    bob.until("the same again", |heard| heard.pushes.len() == 5);
    assert_eq!(bob.heard.payloads(), missed);
    gateway.until_metric("pushes_acked_total", 6);
    drop(bob);
    gateway.until_sessions(1);
    let mut bob = Client::login(gateway.listener, "bob", "phone");
    assert!(bob.is_quiet_for(QUIET) && bob.heard.pushes.is_empty(), "what was acknowledged is done");
}

/// The ack and the end of the connection are read together.
#[test]
fn an_ack_counts_even_as_the_last_word() {
    let (_backend, gateway) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    drop(Client::login(gateway.listener, "bob", "phone"));
    for number in 1..=30u32 {
        let payload = number.to_be_bytes();
        assert_eq!(alice.tell(number.into(), "bob", &payload).code(), Code::Ok);
        let mut bob = Client::greet(gateway.listener, &hello("bob", "phone"));
        bob.acks = Acks::Withheld;
        bob.until("the message", |heard| !heard.pushes.is_empty());
        assert_eq!(bob.heard.payloads(), [payload], "the one before is done with");
        let ack = Frame::new(Command::Ack, Bytes::new()).with_ack(bob.last_seq);
        let close = frame_of(Command::Close, &Close::default());
        bob.write(&[bytes_of(&ack), bytes_of(&close)].concat());
        assert_eq!(bob.end(), End::Eof);
    }
}

#[test]
fn a_message_that_one_gateway_does_not_send_blocks_nobody_and_closes_nobody() {
    let backend = Backend::start();
    let wide = Gateway::start(&backend, &["gateway.id=wide"]);
    let narrow = Gateway::start(
        &backend,
        &[
            "gateway.id=narrow",
            "limits.body_max=1KiB",
            "limits.hello_max=1KiB",
            "limits.downlink_bytes=16KiB",
        ],
    );
    let mut alice = Client::login(wide.listener, "alice", "phone");
    let mut near = Client::login(wide.listener, "bob", "pad");
    let mut far = Client::login(narrow.listener, "bob", "phone");
    let large = alice.tell(1, "bob", &[b'x'; 4096]);
    let small = alice.tell(2, "bob", b"hi");
    assert_eq!((large.code(), small.code()), (Code::Ok, Code::Ok));
    near.until("both messages", |heard| heard.pushes.len() == 2);
    far.until("the small message", |heard| heard.pushes.iter().any(|push| push.seq == small.seq));
    assert_eq!(far.heard.pushes.len(), 1, "{:?}", far.heard.pushes);
    narrow.until_at_least("link_pushes_too_large_total", 1);
    // The large one does not come back with the next login.
    drop(far);
    let again = alice.tell(3, "bob", b"ho");
    let mut far = Client::login(narrow.listener, "bob", "phone");
    far.until("the newest message", |heard| heard.pushes.iter().any(|push| push.seq == again.seq));
    assert!(far.heard.pushes.iter().all(|push| push.seq != large.seq), "{:?}", far.heard.pushes);
    assert_eq!(narrow.metric("link_pushes_too_large_total"), 1);
}
