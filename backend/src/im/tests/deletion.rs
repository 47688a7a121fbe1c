//! Room on the disk, and what is deleted.

use super::*;
use crate::im::Keep;
use moorline_proto::message::im::{
    AccountDeleteRequest, ConversationDeleteRequest, ConversationsRequest, ConversationsResponse,
    GroupChangeRequest, GroupCreateRequest, GroupCreateResponse, GroupRequest, GroupResponse, GroupSettings,
    Profile, ProfileSetRequest, PullRequest, PullResponse, ReadRequest, RecallRequest, RecallResponse,
    happened::What,
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
        let to = crate::im::PushTo::Inboxes(vec!["ben".into()], None);
        ApiCall::Push { to, kind: 0, payload: Bytes::copy_from_slice(payload) }
    };
    assert_eq!(call(&mut bench, push(&large)), Code::Retry);
    assert_eq!(call(&mut bench, push(b"small")), Code::Ok);
    let status = bench.im().status().disk;
    assert_eq!((status.free, status.is_low, status.put_off), (Some(999), true, 5));
    bench.im().handle_free_disk(Some(1100));
    assert_eq!(bench.send(ann, user("ben"), &key(1), &large).0, Code::Ok, "the same message, later");
}

/// Lets some time pass, and sweeps come to their end.
fn pass(bench: &mut Bench, secs: u64) {
    bench.pass(Duration::from_secs(secs));
    bench.fan_out();
}

fn create(bench: &mut Bench, session: SessionId, members: &[&str]) {
    let members = members.iter().map(|uid| (*uid).to_owned()).collect();
    let request = GroupCreateRequest { group: "g".into(), members };
    bench.req::<GroupCreateResponse>(session, "im.group.create", &request).expect("created");
}

fn group() -> GroupRequest {
    GroupRequest { conversation: "group:g".into(), ..Default::default() }
}

/// Seqs of messages, and voids.
type View = (Vec<u64>, Vec<(u64, u64)>);

/// Pulls a conversation.
fn pull(bench: &mut Bench, session: SessionId, of: &str) -> Result<View, Code> {
    let request = PullRequest { conversation: of.into(), ..Default::default() };
    let page: PullResponse = bench.req(session, "im.pull", &request)?;
    let voids = page.voids.iter().map(|range| (range.from, range.to)).collect();
    Ok((page.messages.iter().map(|push| push.seq).collect(), voids))
}

fn list(bench: &mut Bench, session: SessionId) -> Vec<String> {
    let request = ConversationsRequest::default();
    let list: ConversationsResponse = bench.req(session, "im.conversations", &request).expect("listed");
    list.conversations.into_iter().map(|it| it.id).collect()
}

#[test]
fn the_owner_dissolves_a_group_for_all_of_its_devices() {
    let mut bench = Bench::new(ImConfig::default());
    let (ann, ben) = (bench.login(0, "ann", "d", 1), bench.login(1, "ben", "d", 1));
    create(&mut bench, ann, &["ben"]);
    bench.send(ann, conversation("group:g"), &key(1), b"one");
    bench.out.rooms.insert((ben, "group:g".into()));
    assert_eq!(bench.req::<GroupResponse>(ben, "im.group.dissolve", &group()), Err(Code::Denied));
    bench.happened();
    bench.req::<GroupResponse>(ann, "im.group.dissolve", &group()).expect("she owns it");
    let told = bench.happened();
    assert!(matches!(&told[..], [(to, What::Dissolved(it))] if *to == ben && it.by == "ann"), "{told:?}");
    assert!(bench.out.rooms.is_empty(), "nobody is in its room");
    for method in ["im.group.join", "im.group.dissolve", "im.group.info", "im.group.members"] {
        assert_eq!(bench.req::<()>(ann, method, &group()), Err(Code::NotFound), "{method}");
    }
    assert_eq!(bench.send(ann, conversation("group:g"), &key(2), b"two").0, Code::NotFound);
    assert_eq!((pull(&mut bench, ben, "group:g"), list(&mut bench, ben)), (Err(Code::NotFound), vec![]));
    pass(&mut bench, 1);
    assert_eq!((bench.im().status().swept, bench.im().status().erasing), (1, 0));
    create(&mut bench, ben, &["ann"]);
    assert_eq!(
        bench.send(ben, conversation("group:g"), &key(1), b"three").1.seq,
        2,
        "another group of the name"
    );
    assert_eq!(pull(&mut bench, ann, "group:g").expect("a member"), (vec![2], vec![(1, 1)]));
    let dissolve = |id: &str| ApiCall::Dissolve { conversation: id.into() };
    assert_eq!(call(&mut bench, dissolve("group:g")), Code::Ok);
    assert_eq!(call(&mut bench, dissolve("group:g")), Code::NotFound);
    assert_eq!(call(&mut bench, dissolve("c2c:ann:ben")), Code::Denied);
}

#[test]
fn a_conversation_is_deleted_on_all_devices_of_one_user() {
    let mut bench = Bench::new(ImConfig::default());
    let (phone, ben) = (bench.login(0, "ann", "phone", 1), bench.login(1, "ben", "d", 1));
    let pad = bench.login(2, "ann", "pad", 1);
    bench.logout(pad);
    for number in 1..=3 {
        bench.send(ben, user("ann"), &key(number), b"hi");
    }
    let delete = |to| ConversationDeleteRequest { conversation: "c2c:ann:ben".into(), to };
    bench.happened();
    bench.req::<()>(phone, "im.conversation.delete", &delete(2)).expect("hers");
    assert_eq!(pull(&mut bench, phone, "c2c:ann:ben").expect("hers"), (vec![3], vec![(1, 2)]));
    // The pad was away: it is pushed what is left, and told.
    let pad = bench.login(2, "ann", "pad", 2);
    let pushed: Vec<_> =
        bench.pushes().into_iter().filter(|it| it.session == pad).map(|it| it.push().seq).collect();
    assert_eq!(pushed, [3, 0]);
    bench.req::<()>(pad, "im.conversation.delete", &delete(0)).expect("hers");
    let told = bench.happened();
    assert!(matches!(&told[..], [(to, What::Cleared(it))] if *to == phone && it.to == 3), "{told:?}");
    assert_eq!((list(&mut bench, phone), list(&mut bench, ben).len()), (vec![], 1));
    assert_eq!(pull(&mut bench, ben, "c2c:ann:ben").expect("his"), (vec![1, 2, 3], vec![]));
    bench.send(ben, user("ann"), &key(4), b"hi");
    assert_eq!(list(&mut bench, phone), ["c2c:ann:ben"]);
    assert_eq!(pull(&mut bench, phone, "c2c:ann:ben").expect("hers"), (vec![4], vec![(1, 3)]));
    assert_eq!(bench.req::<()>(phone, "im.conversation.delete", &group()), Err(Code::NotFound));
}

#[test]
fn messages_expire_by_the_time_that_passes_and_not_by_a_jump_of_the_clock() {
    let mut bench =
        Bench::new(ImConfig { retention: std::time::Duration::from_secs(3600), ..ImConfig::default() });
    let ann = bench.login(0, "ann", "d", 1);
    bench.know(&["ben"]);
    bench.send(ann, user("ben"), &key(1), b"old");
    pass(&mut bench, 1800);
    bench.send(ann, user("ben"), &key(2), b"new");
    pass(&mut bench, 60);
    // 40 days ahead for a minute.
    bench.now.unix_ms += 40 * 86_400_000;
    pass(&mut bench, 60);
    assert_eq!(pull(&mut bench, ann, "c2c:ann:ben").expect("hers").0, [1, 2]);
    bench.now.unix_ms -= 40 * 86_400_000;
    pass(&mut bench, 1800);
    assert_eq!(pull(&mut bench, ann, "c2c:ann:ben").expect("hers"), (vec![2], vec![(1, 1)]));
    let keep = |keep| ApiCall::Retain { conversation: "c2c:ann:ben".into(), keep };
    assert_eq!(call(&mut bench, keep(Keep::ForEver)), Code::Ok);
    pass(&mut bench, 7200);
    assert_eq!(pull(&mut bench, ann, "c2c:ann:ben").expect("hers").0, [2]);
    assert_eq!(call(&mut bench, keep(Keep::Seconds(59))), Code::Invalid);
    assert_eq!(call(&mut bench, keep(Keep::Default)), Code::Ok);
    pass(&mut bench, 61);
    assert_eq!(pull(&mut bench, ann, "c2c:ann:ben").expect("hers"), (vec![], vec![(1, 2)]));
    assert_eq!(bench.im().status().swept, 2);
}

#[test]
fn the_operator_deletes_an_account_and_others_are_told() {
    let mut bench = Bench::new(ImConfig::default());
    let (ann, ben) = (bench.login(0, "ann", "d", 1), bench.login(1, "ben", "d", 1));
    create(&mut bench, ann, &["ben"]);
    bench.send(ann, user("ben"), &key(1), b"secret");
    bench.send(ann, conversation("group:g"), &key(2), b"secret");
    assert_eq!(bench.req::<()>(ann, "im.account.delete", &AccountDeleteRequest {}), Err(Code::Denied));
    bench.pushes();
    let delete = |user: &str| ApiCall::DeleteUser { user: user.into() };
    assert_eq!(call(&mut bench, delete("nobody")), Code::NotFound);
    assert_eq!(call(&mut bench, delete("ann")), Code::Ok);
    assert_eq!(bench.kicks(), [(ann, 3531)]);
    assert_eq!(bench.send(ann, user("ben"), &key(3), b"late").0, Code::Denied);
    pass(&mut bench, 1);
    let mut told: Vec<_> = bench
        .happened()
        .into_iter()
        .map(|(to, what)| match what {
            What::Erased(it) => (to, it.user, it.to),
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort();
    assert_eq!(told, [(ben, "ann".to_owned(), 1), (ben, "ann".to_owned(), 1)]);
    assert_eq!(pull(&mut bench, ben, "c2c:ann:ben").expect("his"), (vec![2], vec![(1, 1)]));
    assert_eq!(pull(&mut bench, ben, "group:g").expect("his"), (vec![2], vec![(1, 1)]));
    let settings = GroupChangeRequest {
        conversation: "group:g".into(),
        settings: Some(GroupSettings { title: "mine".into(), ..Default::default() }),
        ..Default::default()
    };
    bench.req::<()>(ben, "im.group.change", &settings).expect("he owns it now");
    bench.logout(ann);
    let ann = bench.login(0, "ann", "d", 2);
    assert_eq!((bench.kicks(), list(&mut bench, ann)), (vec![], vec![]), "a new user");
    assert_eq!(pull(&mut bench, ann, "group:g"), Err(Code::NotMember));
    assert_eq!(bench.send(ann, user("ben"), &key(1), b"new").1.seq, 3, "seqs go on");
    assert_eq!(pull(&mut bench, ann, "c2c:ann:ben").expect("hers"), (vec![3], vec![(1, 2)]));
}

#[test]
fn a_user_deletes_the_own_account_where_the_operator_lets_it() {
    let who_may_delete = crate::config::WhoMayDelete::User;
    let mut bench = Bench::new(ImConfig { who_may_delete, ..ImConfig::default() });
    let (phone, pad) = (bench.login(0, "ann", "phone", 1), bench.login(1, "ann", "pad", 1));
    let ben = bench.login(2, "ben", "d", 1);
    bench.send(phone, user("ben"), &key(1), b"secret");
    // A message that she sends in the same breath is not the first of the next ann.
    let req = Req { id: 9, method: "im.account.delete".into(), ..Default::default() };
    bench.is_held = true;
    bench.up(phone, Command::Req, encode(&req));
    let send = Send { key: Bytes::copy_from_slice(&key(2)), target: Some(user("ben")), ..Default::default() };
    bench.up(phone, Command::Send, encode(&send));
    bench.is_held = false;
    bench.end_turn();
    bench.end_turn(); // large requests wait for a turn
    let (_, code, _) = bench.out.reqs.pop().expect("an answer");
    let (_, late, _) = bench.out.sends.pop().expect("an answer");
    assert_eq!((code, late), (Code::Ok, Code::Denied));
    let mut kicked = bench.kicks();
    kicked.sort();
    assert_eq!(kicked, [(phone, 3531), (pad, 3531)]);
    pass(&mut bench, 1);
    assert_eq!(pull(&mut bench, ben, "c2c:ann:ben").expect("his"), (vec![2], vec![(1, 1)]));
}
