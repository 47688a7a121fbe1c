//! Reading, taking back, roles, friends, profiles, devices, presence.

use super::*;
use moorline_proto::frame::Command;
use moorline_proto::message::client::Sub;
use moorline_proto::message::im::{
    ConversationsRequest, ConversationsResponse, DeviceRemoveRequest, DevicesRequest, DevicesResponse,
    GroupChangeRequest, GroupCreateRequest, GroupCreateResponse, GroupInfoResponse, GroupRequest,
    GroupResponse, GroupSettings, Happened, PresenceRequest, PresenceResponse, Profile, ProfileGetRequest,
    ProfileGetResponse, ProfileSetRequest, ReadRequest, RecallRequest, RecallResponse, ReceiptsRequest,
    ReceiptsResponse, RelationChange, RelationRequest, RelationResponse, RelationsRequest, RelationsResponse,
    Role, happened::What,
};

fn bench() -> Bench {
    Bench::new(ImConfig::default())
}

impl Bench {
    /// Conversation events by session, among the pushes since the last call.
    pub(super) fn happened(&mut self) -> Vec<(SessionId, What)> {
        let pushes = self.pushes().into_iter().filter(|it| it.command == Command::Push);
        let told = pushes.filter_map(|it| {
            let happened: Happened = decode(&it.push().happened).expect("a Happened");
            Some((it.session, happened.what?))
        });
        told.collect()
    }

    fn list(&mut self, session: SessionId) -> Vec<(String, u64, u32, u64, u64)> {
        let answer: ConversationsResponse =
            self.req(session, "im.conversations", &ConversationsRequest::default()).expect("listed");
        let entry = |it: moorline_proto::message::im::Conversation| {
            (it.id, it.latest, it.unread, it.read, it.peer_read)
        };
        answer.conversations.into_iter().map(entry).collect()
    }
}

fn read(conversation: &str, seq: u64) -> ReadRequest {
    ReadRequest { conversation: conversation.into(), seq }
}

pub(super) fn create(bench: &mut Bench, by: SessionId, members: &[&str]) {
    bench.know(members);
    let members = members.iter().map(|uid| (*uid).to_owned()).collect();
    let request = GroupCreateRequest { group: "g".into(), members };
    bench.req::<GroupCreateResponse>(by, "im.group.create", &request).expect("created");
}

#[test]
fn what_is_read_follows_to_other_devices_and_to_the_other_user() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    let bob = bench.login(1, "bob", "phone", 1);
    let pad = bench.login(2, "bob", "pad", 1);
    for number in 1..=3 {
        bench.send(alice, user("bob"), &key(number), b"hi");
    }
    let id = "c2c:alice:bob";
    assert_eq!(bench.list(bob), [(id.into(), 3, 3, 0, 3)], "alice has read what she said");
    bench.pushes();
    bench.req::<()>(bob, "im.read", &read(id, 2)).expect("read");
    let told = bench.happened();
    let who: BTreeSet<_> = told.iter().map(|(session, _)| *session).collect();
    assert_eq!(who, BTreeSet::from([alice, pad]), "not the device that said so");
    assert!(told.iter().all(|(_, what)| matches!(what, What::Read(it) if it.user == "bob" && it.seq == 2)));
    assert_eq!((bench.list(bob)[0].2, bench.list(alice)[0].4), (1, 2));
    bench.req::<()>(bob, "im.read", &read(id, 99)).expect("at most the newest");
    assert!(matches!(&bench.happened()[0].1, What::Read(it) if it.seq == 3));
    bench.req::<()>(bob, "im.read", &read(id, 1)).expect("never back");
    assert_eq!((bench.happened(), bench.list(bob)[0].2), (vec![], 0));
    let eve = bench.login(3, "eve", "phone", 1);
    assert_eq!(bench.req::<()>(eve, "im.read", &read(id, 1)), Err(Code::NotMember));
    assert_eq!(bench.req::<()>(eve, "im.read", &read("group:none", 1)), Err(Code::NotFound));
}

#[test]
fn receipts_say_who_has_read_and_senders_are_told_how_many() {
    let mut bench = bench();
    let [alice, bob, cem] =
        [(0, "alice"), (1, "bob"), (2, "cem")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    create(&mut bench, alice, &["bob", "cem", "dan"]);
    bench.send(alice, conversation("group:g"), &key(1), b"hi");
    bench.send(alice, conversation("group:g"), &key(2), b"ho");
    bench.pushes();
    for (session, seq) in [(bob, 2), (cem, 1)] {
        bench.req::<()>(session, "im.read", &read("group:g", seq)).expect("read");
    }
    let asked = ReceiptsRequest { conversation: "group:g".into(), seq: 2 };
    let receipts: ReceiptsResponse = bench.req(alice, "im.receipts", &asked).expect("known");
    assert_eq!((receipts.read_count, receipts.unread_count), (1, 2));
    assert_eq!((receipts.read, receipts.unread), (vec!["bob".to_owned()], vec!["cem".into(), "dan".into()]));
    assert_eq!(bench.happened(), [], "no word of it yet");
    bench.pass(Duration::from_millis(250));
    let told = bench.happened();
    let [(session, What::ReadCounts(counts))] = &told[..] else { panic!("one hint for all: {told:?}") };
    let counts: Vec<_> = counts.counts.iter().map(|it| (it.seq, it.count)).collect();
    assert_eq!((*session, counts), (alice, vec![(1, 2), (2, 1)]));
    let missing = ReceiptsRequest { conversation: "group:g".into(), seq: 9 };
    assert_eq!(bench.req::<ReceiptsResponse>(alice, "im.receipts", &missing), Err(Code::NotFound));
}

#[test]
fn a_recall_reaches_everybody_who_has_the_message() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "phone", 1);
    let bob = bench.login(1, "bob", "phone", 1);
    let (_, said) = bench.send(alice, user("bob"), &key(1), b"oops");
    bench.pushes();
    let wish = RecallRequest { conversation: said.conversation.clone(), seq: 1, message_id: said.message_id };
    assert_eq!(bench.req::<RecallResponse>(bob, "im.recall", &wish), Err(Code::Denied));
    let done: RecallResponse = bench.req(alice, "im.recall", &wish).expect("taken back");
    assert_eq!(done.seq, 2);
    let told = bench.happened();
    assert!(
        matches!(&told[..], [(session, What::Recalled(it))]
            if *session == bob && it.seq == 1 && it.message_id == said.message_id && it.by == "alice"),
        "{told:?}"
    );
    assert_eq!(bench.req::<RecallResponse>(alice, "im.recall", &wish), Ok(done), "twice is OK");
    assert_eq!(bench.happened(), [], "once");
    let pad = bench.login(2, "alice", "pad", 2);
    let other = RecallResponse { seq: 2, by_other_device: true };
    assert_eq!(bench.req::<RecallResponse>(pad, "im.recall", &wish), Ok(other));
    assert_eq!(bench.list(bob)[0].2, 0, "nothing is left to read");
}

#[test]
fn administrators_change_groups_and_members_are_told() {
    let mut bench = bench();
    let [alice, bob, cem] =
        [(0, "alice"), (1, "bob"), (2, "cem")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    create(&mut bench, alice, &["bob"]);
    let told = bench.happened();
    assert!(matches!(&told[..], [(session, What::Group(it))] if *session == bob && it.added == ["bob"]));
    let change = |add: &[&str], remove: &[&str]| GroupChangeRequest {
        conversation: "group:g".into(),
        add: add.iter().map(|uid| (*uid).to_owned()).collect(),
        remove: remove.iter().map(|uid| (*uid).to_owned()).collect(),
        ..Default::default()
    };
    assert_eq!(bench.req::<()>(cem, "im.group.change", &change(&["cem"], &[])), Err(Code::NotMember));
    bench.req::<()>(bob, "im.group.change", &change(&["cem"], &[])).expect("any member adds");
    assert_eq!(bench.happened().len(), 2, "alice and cem");
    assert_eq!(bench.req::<()>(bob, "im.group.change", &change(&[], &["cem"])), Err(Code::Denied));
    let settings = GroupSettings { title: "tea".into(), by_invitation: true, ..Default::default() };
    let promote = GroupChangeRequest {
        user: "bob".into(),
        role: Role::Admin.into(),
        settings: Some(settings),
        ..change(&[], &[])
    };
    bench.req::<()>(alice, "im.group.change", &promote).expect("the owner");
    let half = GroupChangeRequest { role: Role::Admin.into(), ..change(&[], &[]) };
    assert_eq!(bench.req::<()>(alice, "im.group.change", &half), Err(Code::Invalid), "whose?");
    bench.up(cem, Command::Sub, encode(&Sub { id: 1, room: "group:g".into() }));
    bench.pushes();
    bench.req::<()>(bob, "im.group.change", &change(&[], &["cem"])).expect("now he may");
    assert!(bench.happened().iter().any(|(session, _)| *session == cem), "whoever is removed is told");
    assert!(bench.out.rooms.is_empty(), "and leaves the room");
    let group = GroupRequest { conversation: "group:g".into(), ..Default::default() };
    assert_eq!(bench.req::<GroupResponse>(cem, "im.group.join", &group), Err(Code::Denied), "by invitation");
    let info: GroupInfoResponse = bench.req(alice, "im.group.info", &group).expect("a member");
    let roles: Vec<_> = info.members.iter().map(|it| (it.uid.as_str(), it.role())).collect();
    assert_eq!(roles, [("alice", Role::Owner), ("bob", Role::Admin)]);
    assert_eq!((info.settings.expect("set").title.as_str(), info.count, info.more), ("tea", 2, false));
}

#[test]
fn long_lists_come_in_pages() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "d", 1);
    let uids: Vec<String> = (0..3000).map(|number| format!("{number:0>60}")).collect();
    create(&mut bench, alice, &uids.iter().map(String::as_str).collect::<Vec<_>>());
    let (mut all, mut pages) = (Vec::new(), 0);
    loop {
        let after = all.last().cloned().unwrap_or_default();
        let request = GroupRequest { conversation: "group:g".into(), after };
        let page: GroupResponse = bench.req(alice, "im.group.members", &request).expect("a page");
        all.extend(page.members);
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert_eq!((all.len(), pages), (3001, 4));
    assert!(all.is_sorted());
    let wrong = ConversationsRequest { after: "group:none".into() };
    assert_eq!(bench.req::<ConversationsResponse>(alice, "im.conversations", &wrong), Err(Code::NotFound));
}

#[test]
fn friends_are_asked_and_told() {
    let mut bench = bench();
    let [alice, bob] = [(0, "alice"), (1, "bob")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    let wish = |user: &str, change: RelationChange, text: &str| RelationRequest {
        user: user.into(),
        change: change.into(),
        text: text.into(),
    };
    let friendship = |answer: RelationResponse| answer.relation.expect("it has one").friendship;
    let asked = bench.req(alice, "im.relation", &wish("bob", RelationChange::Befriend, "it is me"));
    assert_eq!(asked.map(friendship), Ok(1));
    let told = bench.happened();
    assert!(matches!(&told[..], [(session, What::Relation(it))] if *session == bob && it.text == "it is me"));
    let agreed = bench.req(bob, "im.relation", &wish("alice", RelationChange::Befriend, ""));
    assert_eq!((agreed.map(friendship), bench.happened().len()), (Ok(3), 1));
    bench
        .req::<RelationResponse>(bob, "im.relation", &wish("alice", RelationChange::Block, ""))
        .expect("blocked");
    assert_eq!(bench.happened(), [], "who is blocked is not told");
    assert_eq!(bench.send(alice, user("bob"), &key(1), b"hi").0, Code::Denied);
    let list: RelationsResponse =
        bench.req(bob, "im.relations", &RelationsRequest::default()).expect("his own");
    let list: Vec<_> =
        list.relations.iter().map(|it| (it.user.as_str(), it.friendship, it.is_blocked)).collect();
    assert_eq!(list, [("alice", 3, true)]);
    let long = "x".repeat(257);
    let refused =
        bench.req::<RelationResponse>(alice, "im.relation", &wish("bob", RelationChange::Befriend, &long));
    assert_eq!(refused, Err(Code::TooLarge));
    let presence = PresenceRequest { users: vec!["bob".into()], watch: false };
    let there: PresenceResponse = bench.req(alice, "im.presence", &presence).expect("an answer");
    assert_eq!((there.presences[0].platforms.len(), there.presences[0].seen_ms), (0, 0), "hidden");
}

#[test]
fn profiles_and_devices() {
    let mut bench = bench();
    let phone = bench.login(0, "alice", "phone", 1);
    let pad = bench.login(1, "alice", "pad", 1);
    let profile = Profile { user: "forged".into(), name: "Alice".into(), ..Default::default() };
    bench.req::<()>(phone, "im.profile.set", &ProfileSetRequest { profile: Some(profile) }).expect("set");
    let asked = ProfileGetRequest { users: vec!["alice".into(), "nobody".into()] };
    let found: ProfileGetResponse = bench.req(pad, "im.profile.get", &asked).expect("found");
    let names: Vec<_> = found.profiles.iter().map(|it| (it.user.as_str(), it.name.as_str())).collect();
    assert_eq!(names, [("alice", "Alice")]);
    let devices: DevicesResponse = bench.req(pad, "im.devices", &DevicesRequest {}).expect("hers");
    assert_eq!(devices.devices.iter().filter(|it| it.is_online).count(), 2);
    let remove = |device: &str| DeviceRemoveRequest { device: device.into() };
    bench.req::<()>(pad, "im.device.remove", &remove("phone")).expect("removed");
    assert_eq!(bench.kicks().len(), 1);
    // Its gateway has not heard of it, and announces it again.
    bench.conn_up(phone, "alice", "phone", 1, false);
    assert_eq!(bench.kicks().len(), 1);
    assert_eq!(bench.req::<()>(phone, "im.devices", &DevicesRequest {}), Err(Code::Denied));
    bench.send(pad, user("bob"), &key(1), b"secret");
    assert_eq!(bench.pushes(), []);
    bench.logout(phone);
    bench.req::<()>(pad, "im.device.remove", &remove("phone")).expect("twice");
    let devices: DevicesResponse = bench.req(pad, "im.devices", &DevicesRequest {}).expect("hers");
    assert_eq!(devices.devices.len(), 1);
}

#[test]
fn a_device_signs_itself_out_and_hears_so_first() {
    let mut bench = bench();
    let (phone, pad) = (bench.login(0, "alice", "phone", 1), bench.login(1, "alice", "pad", 1));
    let bob = bench.login(2, "bob", "d", 1);
    bench.logout(phone);
    bench.send(bob, user("alice"), &key(1), b"for both");
    bench.pushes().iter().for_each(|pushed| bench.outcome(pushed, Outcome::Acked));
    assert_eq!(bench.stream_of("alice"), 1, "the phone does not have it");
    let phone = bench.login(0, "alice", "phone", 2);
    bench.pushes();
    let remove = DeviceRemoveRequest { device: "phone".into() };
    let req = Req { id: 9, method: "im.device.remove".into(), payload: encode(&remove) };
    bench.is_held = true;
    bench.up(phone, Command::Req, encode(&req));
    assert_eq!((bench.out.reqs.len(), bench.kicks().len()), (0, 0), "it is not durable");
    bench.is_held = false;
    bench.end_turn();
    let (_, code, _) = bench.out.reqs.pop().expect("an answer");
    assert_eq!((code, bench.kicks()), (Code::Ok, vec![(phone, 3531)]));
    assert_eq!(bench.stream_of("alice"), 0, "nobody waits for the phone");
    // Its gateway has not heard of it, and announces it again.
    bench.conn_up(phone, "alice", "phone", 2, false);
    assert_eq!(bench.kicks(), [(phone, 3531)]);
    bench.logout(phone);
    let devices: DevicesResponse = bench.req(pad, "im.devices", &DevicesRequest {}).expect("hers");
    assert_eq!(devices.devices.iter().map(|it| &*it.device).collect::<Vec<_>>(), ["pad"]);
    let phone = bench.login(0, "alice", "phone", 3);
    assert_eq!((bench.kicks(), bench.pushes()), (vec![], vec![]), "a new device");
    bench.send(bob, user("alice"), &key(2), b"for both again");
    let told: Vec<_> = bench.pushes().iter().map(|pushed| pushed.session).collect();
    assert_eq!(told.iter().filter(|to| [phone, pad].contains(to)).count(), 2);
}

/// Entries in the inbox of a user who has left a group, or has joined again.
#[test]
fn who_has_left_reads_no_more() {
    let mut bench = bench();
    let (alice, bob) = (bench.login(0, "alice", "d", 1), bench.login(1, "bob", "d", 1));
    bench.login(2, "bob", "pad", 1);
    create(&mut bench, alice, &["bob"]);
    bench.logout(bob);
    bench.send(alice, conversation("group:g"), &key(1), b"to a member");
    let group = GroupRequest { conversation: "group:g".into(), ..Default::default() };
    let pad = bench.login(2, "bob", "pad", 2);
    bench.req::<GroupResponse>(pad, "im.group.leave", &group).expect("leaves");
    bench.send(alice, conversation("group:g"), &key(2), b"to others");
    bench.req::<GroupResponse>(pad, "im.group.join", &group).expect("joins");
    bench.send(alice, conversation("group:g"), &key(3), b"to a new one");
    bench.pushes();
    let bob = bench.login(1, "bob", "d", 2);
    let pushes = bench.pushes().into_iter().filter(|pushed| pushed.session == bob).map(|it| it.push());
    let seqs: Vec<u64> = pushes.map(|push| push.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(seqs, [3]);
}

#[test]
fn whoever_watches_is_told_of_what_lasts() {
    let mut bench = bench();
    let alice = bench.login(0, "alice", "d", 1);
    let watch = PresenceRequest { users: vec!["bob".into()], watch: true };
    let nobody: PresenceResponse = bench.req(alice, "im.presence", &watch).expect("an answer");
    assert_eq!(nobody.presences, [], "never seen");
    let bob = bench.login(1, "bob", "d", 1);
    let there: PresenceResponse = bench.req(alice, "im.presence", &watch).expect("an answer");
    assert_eq!(there.presences[0].platforms, [0]);
    bench.logout(bob);
    bench.pass(Duration::from_secs(3));
    let bob = bench.login(1, "bob", "d", 2);
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.happened(), [], "he was away for a moment");
    bench.logout(bob);
    bench.pass(Duration::from_secs(6));
    let told = bench.happened();
    assert!(
        matches!(&told[..], [(session, What::Presence(it))] if *session == alice && it.platforms.is_empty())
    );
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.happened(), []);
}
