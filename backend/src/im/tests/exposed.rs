//! Being able to log in grants nothing: who makes users, what one user may make others store, who may say something to whom.

use super::social::create;
use super::*;
use crate::config::{QuotaConfig, WhoMayWrite};
use crate::im::work::{LARGE_UNITS, TURN_UNITS};
use moorline_proto::message::client::Sub;
use moorline_proto::message::im::{
    ConversationsRequest, ConversationsResponse, GroupChangeRequest, GroupChangeResponse, GroupCreateRequest,
    GroupCreateResponse, GroupRequest, GroupResponse, GroupSettings, PresenceRequest, PresenceResponse,
    ReadRequest, ReceiptsRequest, ReceiptsResponse, RelationChange, RelationRequest, RelationResponse,
    SettingsGetRequest, SettingsGetResponse, SettingsSetRequest, Signal, UserSettings, WhoMayAdd,
    happened::What,
};

const SIGNAL: Command = Command::App(0x40);

fn three(config: ImConfig) -> (Bench, [SessionId; 3]) {
    let mut bench = Bench::new(config);
    let names = [(0, "ann"), (1, "ben"), (2, "eve")];
    let sessions = names.map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    (bench, sessions)
}

fn names(uids: &[&str]) -> Vec<String> {
    uids.iter().map(|uid| (*uid).to_owned()).collect()
}

fn new_group(name: &str, members: &[&str]) -> GroupCreateRequest {
    GroupCreateRequest { group: name.into(), members: names(members) }
}

fn change(add: &[&str]) -> GroupChangeRequest {
    GroupChangeRequest { conversation: "group:g".into(), add: names(add), ..Default::default() }
}

fn group() -> GroupRequest {
    GroupRequest { conversation: "group:g".into(), ..Default::default() }
}

fn relate(bench: &mut Bench, by: SessionId, user: &str, change: RelationChange) -> Result<(), Code> {
    let request = RelationRequest { user: user.into(), change: change.into(), text: String::new() };
    bench.req::<RelationResponse>(by, "im.relation", &request).map(drop)
}

fn befriend(bench: &mut Bench, (a, a_name): (SessionId, &str), (b, b_name): (SessionId, &str)) {
    relate(bench, a, b_name, RelationChange::Befriend).expect("asks");
    relate(bench, b, a_name, RelationChange::Befriend).expect("agrees");
}

fn enter(bench: &mut Bench, session: SessionId, room: &str) -> Code {
    bench.up(session, Command::Sub, encode(&Sub { id: 7, room: room.into() }));
    bench.out.subs.pop().expect("an answer").1
}

/// Signals that reach a room.
fn signal(bench: &mut Bench, session: SessionId, room: &str) -> usize {
    let body = encode(&Signal { conversation: room.into(), payload: b"x"[..].into(), ..Signal::default() });
    bench.event(Event::Up(Up { session, command: SIGNAL, seq: 0, dup: false, body, reply: None }));
    std::mem::take(&mut bench.out.said).len()
}

impl Bench {
    fn users(&mut self) -> usize {
        self.im().status().users
    }
}

#[test]
fn a_send_to_a_new_user_waits_a_moment_for_the_login() {
    let mut bench = Bench::new(ImConfig::default());
    let ann = bench.login(1, "ann", "d", 1);
    let body = |to: &str, number| {
        let target = Some(conversation(to));
        encode(&Send { key: Bytes::copy_from_slice(&key(number)), target, r#type: 1, payload: Bytes::new() })
    };
    let first = bench.up(ann, Command::Send, body("c2c:ann:new", 1));
    let second = bench.up(ann, Command::Send, body("c2c:ann:ann", 2));
    assert!(bench.out.sends.is_empty(), "the second waits behind the first");
    bench.login(2, "new", "d", 1);
    let answers: Vec<_> = bench.out.sends.drain(..).map(|(question, code, _)| (question, code)).collect();
    assert_eq!(answers, [(first, Code::Ok), (second, Code::Ok)]);

    // Nobody comes: refused after a second, and what waited behind goes on.
    let third = bench.up(ann, Command::Send, body("c2c:ann:nobody", 3));
    let fourth = bench.up(ann, Command::Send, body("c2c:ann:ann", 4));
    bench.pass(Duration::from_millis(999));
    assert!(bench.out.sends.is_empty());
    bench.pass(Duration::from_millis(1));
    let answers: Vec<_> = bench.out.sends.drain(..).map(|(question, code, _)| (question, code)).collect();
    assert_eq!(answers, [(third, Code::NotFound), (fourth, Code::Ok)]);
}

#[test]
fn no_request_makes_a_user() {
    let (mut bench, [ann, ..]) = three(ImConfig::default());
    create(&mut bench, ann, &["ben"]);
    let uids: Vec<String> = (0..900).map(|number| format!("nobody-{number}")).collect();
    let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
    assert_eq!(bench.req::<()>(ann, "im.group.create", &new_group("h", &uids)), Err(Code::NotFound));
    assert_eq!(bench.req::<()>(ann, "im.group.change", &change(&uids)), Err(Code::NotFound));
    let remove = GroupChangeRequest { add: Vec::new(), remove: names(&uids), ..change(&[]) };
    assert_eq!(bench.req::<()>(ann, "im.group.change", &remove), Ok(()), "none of them is a member");
    let role = GroupChangeRequest { user: "nobody".into(), role: 2, ..change(&[]) };
    assert_eq!(bench.req::<()>(ann, "im.group.change", &role), Err(Code::NotFound));
    for change in [RelationChange::Befriend, RelationChange::Block, RelationChange::Unblock] {
        assert_eq!(relate(&mut bench, ann, "nobody", change), Err(Code::NotFound));
    }
    let (code, ack) = bench.send(ann, user("nobody"), &key(1), b"hi");
    assert!(code == Code::NotFound && ack.reason.contains("no user is called `nobody`"), "{}", ack.reason);
    assert_eq!(bench.send(ann, conversation("c2c:ann:nobody"), &key(1), b"hi").0, Code::NotFound);
    assert_eq!(enter(&mut bench, ann, "c2c:ann:nobody"), Code::NotFound);
    let presence = PresenceRequest { users: names(&uids[..100]), watch: true };
    let seen: PresenceResponse = bench.req(ann, "im.presence", &presence).expect("nobody is there");
    assert_eq!((seen.presences.len(), bench.users()), (0, 3));
    assert_eq!(bench.req::<()>(ann, "im.group.join", &group()), Ok(()), "what is refused leaves no trace");
}

#[test]
fn a_share_of_all_users_is_for_logins() {
    let config = ImConfig { users_max: 20, users_reserved: 50, ..ImConfig::default() };
    let (mut bench, [ann, ..]) = three(config);
    let uids: Vec<String> = (0..7).map(|number| format!("made-{number}")).collect();
    bench.know(&uids.iter().map(String::as_str).collect::<Vec<_>>());
    let (answer, answered) = std::sync::mpsc::channel();
    let reply = ApiReply::new(move |given| answer.send(given).expect("it waits"));
    let call =
        ApiCall::Request { user: "one-more".into(), method: "im.devices".into(), payload: Bytes::new() };
    let now = bench.now;
    bench.im().handle_api(now, call, reply);
    bench.perform();
    bench.end_turn();
    let given = answered.try_recv().expect("an answer");
    assert!(given.code == Code::Denied && given.reason.contains("im.users_reserved"), "{}", given.reason);
    assert_eq!(bench.send(ann, user("made-6"), &key(1), b"hi").0, Code::Ok);
    for slot in 10..20 {
        bench.login(slot, &format!("newcomer-{slot}"), "d", 1);
    }
    assert_eq!((bench.kicks(), bench.users()), (vec![], 20), "newcomers come in");
    let status = bench.im().status();
    let users = status.caps.iter().find(|cap| cap.name == "users_max").expect("a cap");
    assert_eq!((users.used, users.max), (20, 20));
}

#[test]
fn a_day_has_quotas_for_each_user() {
    let quota =
        QuotaConfig { groups: 2, members: 5, group_changes: 3, conversations: 1, relations: 1, bytes: 2000 };
    let (mut bench, [ann, ben, _]) = three(ImConfig { quota, ..ImConfig::default() });
    bench.know(&["cem"]);
    let make = |bench: &mut Bench, by, name: &str, members: &[&str]| {
        bench.req::<GroupCreateResponse>(by, "im.group.create", &new_group(name, members)).map(drop)
    };
    assert_eq!(make(&mut bench, ann, "g", &["ben", "eve"]), Ok(()));
    assert_eq!(make(&mut bench, ann, "h", &["ben", "eve"]), Err(Code::Denied), "six memberships");
    assert_eq!(make(&mut bench, ann, "h", &["ben"]), Ok(()));
    assert_eq!(make(&mut bench, ann, "i", &[]), Err(Code::Denied));
    assert_eq!(make(&mut bench, ann, "g", &[]), Ok(()), "it is there");
    assert_eq!(make(&mut bench, ben, "i", &[]), Ok(()), "another user");
    for _ in 0..3 {
        bench.req::<()>(ben, "im.group.leave", &group()).expect("twice is fine");
    }
    assert_eq!(bench.req::<()>(ben, "im.group.leave", &group()), Err(Code::Denied), "the fourth change");
    assert_eq!(bench.send(ann, user("ben"), &key(1), &[0; 700]).0, Code::Ok);
    let (code, ack) = bench.send(ann, user("cem"), &key(2), b"");
    assert!(code == Code::Denied && ack.reason.contains("im.quota.conversations"), "{}", ack.reason);
    assert_eq!(bench.send(ann, user("ann"), &key(3), b"").0, Code::Ok, "notes to oneself begin none");
    let (code, ack) = bench.send(ann, user("ben"), &key(4), &[0; 1500]);
    assert!(code == Code::Denied && ack.reason.contains("im.quota.bytes"), "{}", ack.reason);
    assert_eq!(relate(&mut bench, ann, "ben", RelationChange::Befriend), Ok(()));
    assert_eq!(relate(&mut bench, ann, "ben", RelationChange::Befriend), Ok(()), "asked already");
    assert_eq!(relate(&mut bench, ann, "eve", RelationChange::Befriend), Err(Code::Denied));
    assert_eq!(relate(&mut bench, ann, "eve", RelationChange::Block), Ok(()), "a block has no quota");
    let refused: u64 = bench.im().status().quotas.iter().map(|quota| quota.refused).sum();
    assert_eq!(refused, 6);
    bench.pass(Duration::from_secs(86_400));
    assert_eq!(make(&mut bench, ann, "i2", &[]), Ok(()), "another day");
}

#[test]
fn all_memberships_together_have_a_cap() {
    let (mut bench, [ann, ben, _]) = three(ImConfig { members_total_max: 4, ..ImConfig::default() });
    create(&mut bench, ann, &["ben"]);
    assert_eq!(bench.req::<()>(ann, "im.group.create", &new_group("h", &["ben", "eve"])), Err(Code::Denied));
    assert_eq!(bench.send(ann, user("ben"), &key(1), b"").0, Code::Ok);
    assert_eq!(bench.send(ann, user("eve"), &key(2), b"").0, Code::Denied);
    assert_eq!(bench.req::<()>(ann, "im.group.change", &change(&["eve"])), Err(Code::Denied));
    bench.req::<()>(ben, "im.group.leave", &group()).expect("left");
    assert_eq!(bench.req::<GroupChangeResponse>(ann, "im.group.change", &change(&["eve"])).map(drop), Ok(()));
    assert_eq!(bench.im().status().members, 4);
}

#[test]
fn a_block_holds_in_every_place() {
    let (mut bench, [ann, ben, eve]) = three(ImConfig::default());
    let room = "c2c:ben:eve";
    for key in 1..=2 {
        bench.send(ben, user("eve"), &self::key(key), b"hi");
    }
    assert_eq!([ben, eve].map(|session| enter(&mut bench, session, room)), [Code::Ok; 2]);
    assert_eq!(signal(&mut bench, eve, room), 1);
    create(&mut bench, ann, &["ben"]);
    relate(&mut bench, ben, "eve", RelationChange::Block).expect("blocked");
    bench.pushes();
    for (session, other) in [(eve, "ben"), (ben, "eve")] {
        assert_eq!(bench.send(session, user(other), &key(9), b"hi").0, Code::Denied);
        assert_eq!(signal(&mut bench, session, room), 0, "they are in the room still");
        assert_eq!(enter(&mut bench, session, room), Code::Denied);
        let with = new_group("trap", &[other]);
        assert_eq!(bench.req::<()>(session, "im.group.create", &with), Err(Code::Denied));
        let presence = PresenceRequest { users: names(&[other]), watch: true };
        let seen: PresenceResponse = bench.req(session, "im.presence", &presence).expect("an answer");
        assert_eq!(
            (seen.presences[0].platforms.len(), seen.presences[0].seen_ms),
            (0, 0),
            "{other} is hidden"
        );
        let asked = ReceiptsRequest { conversation: room.into(), seq: 1 };
        let receipts = bench.req::<ReceiptsResponse>(session, "im.receipts", &asked);
        assert_eq!(receipts, Err(Code::Denied));
    }
    bench.req::<()>(eve, "im.group.join", &group()).expect("no business of ben's");
    bench.req::<()>(eve, "im.group.leave", &group()).expect("left");
    bench.pushes();
    let read = ReadRequest { conversation: room.into(), seq: 2 };
    bench.req::<()>(eve, "im.read", &read).expect("her own mark");
    assert_eq!(bench.happened(), [], "ben is not told");
    let all: ConversationsResponse =
        bench.req(ben, "im.conversations", &ConversationsRequest::default()).expect("listed");
    let theirs = all.conversations.iter().find(|it| it.id == room).expect("listed");
    assert_eq!((theirs.read, theirs.peer_read), (2, 0), "nor by the list");
    bench.logout(eve);
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.happened(), [], "nor that she went");
    let eve = bench.login(2, "eve", "d", 2);
    assert_eq!(bench.req::<()>(ann, "im.group.change", &change(&["eve"])).map(drop), Ok(()), "ann may");
    assert_eq!(bench.send(eve, conversation("group:g"), &key(3), b"").0, Code::Ok, "a group is ann's affair");
    relate(&mut bench, ben, "eve", RelationChange::Unblock).expect("free");
    assert_eq!(bench.send(eve, user("ben"), &key(9), b"hi").0, Code::Ok);
}

#[test]
fn among_friends_a_stranger_gets_nowhere() {
    let who_may_write = WhoMayWrite::Friends;
    let (mut bench, [ann, ben, eve]) = three(ImConfig { who_may_write, ..ImConfig::default() });
    befriend(&mut bench, (ann, "ann"), (ben, "ben"));
    bench.pushes();
    assert_eq!(bench.send(eve, user("ben"), &key(1), b"").0, Code::Denied);
    assert_eq!(enter(&mut bench, eve, "c2c:ben:eve"), Code::Denied);
    let presence = PresenceRequest { users: names(&["ben"]), watch: true };
    let seen: PresenceResponse = bench.req(eve, "im.presence", &presence).expect("an answer");
    assert_eq!(seen.presences[0].seen_ms, 0);
    bench.pushes();
    let made: GroupCreateResponse =
        bench.req(eve, "im.group.create", &new_group("g", &["ben"])).expect("alone in it");
    assert_eq!(made.invited, ["ben"]);
    bench.send(eve, conversation("group:g"), &key(2), b"spam");
    let told = bench.happened();
    assert!(matches!(&told[..], [(to, What::Invited(it))] if *to == ben && it.by == "eve"), "{told:?}");
    let made: GroupCreateResponse =
        bench.req(ann, "im.group.create", &new_group("h", &["ben", "eve"])).expect("created");
    assert_eq!(made.invited, ["eve"], "ann and ben are friends");
    bench.logout(ben);
    bench.pass(Duration::from_secs(6));
    assert!(!bench.happened().iter().any(|(to, what)| *to == eve && matches!(what, What::Presence(_))));
}

#[test]
fn whoever_wants_to_be_asked_is_invited() {
    let (mut bench, [ann, ben, eve]) = three(ImConfig::default());
    let settings = Some(UserSettings { who_may_add: WhoMayAdd::AddFriends.into() });
    bench.req::<()>(ben, "im.settings.set", &SettingsSetRequest { settings }).expect("set");
    befriend(&mut bench, (ann, "ann"), (ben, "ben"));
    create(&mut bench, eve, &[]);
    let by_invitation = GroupChangeRequest {
        settings: Some(GroupSettings { by_invitation: true, ..Default::default() }),
        ..change(&[])
    };
    bench.req::<()>(eve, "im.group.change", &by_invitation).expect("the owner");
    bench.pushes();
    for expected in [1, 0] {
        let done: GroupChangeResponse =
            bench.req(eve, "im.group.change", &change(&["ben", "ann"])).expect("done");
        assert_eq!(done.invited, ["ben"]);
        let told = bench.happened();
        let invited = told.iter().filter(|(to, what)| *to == ben && matches!(what, What::Invited(_)));
        assert_eq!(invited.count(), expected, "once");
        let wrong = told.iter().any(|(to, what)| *to == ben && !matches!(what, What::Invited(_)));
        assert!(!wrong, "he is in no group: {told:?}");
    }
    let own = |bench: &mut Bench| -> (Option<UserSettings>, Vec<String>) {
        let own: SettingsGetResponse =
            bench.req(ben, "im.settings.get", &SettingsGetRequest {}).expect("his");
        (own.settings, own.invitations)
    };
    assert_eq!(own(&mut bench), (settings, vec!["group:g".to_owned()]));
    assert_eq!(bench.req::<GroupResponse>(ben, "im.group.join", &group()).map(drop), Ok(()), "he consents");
    assert_eq!(own(&mut bench).1, [""; 0]);
    bench.req::<()>(ben, "im.group.leave", &group()).expect("left");
    assert_eq!(bench.req::<()>(ben, "im.group.join", &group()), Err(Code::Denied), "once");
    bench.req::<GroupChangeResponse>(eve, "im.group.change", &change(&["ben"])).expect("asked again");
    bench.req::<()>(ben, "im.group.leave", &group()).expect("he declines");
    assert_eq!(
        (own(&mut bench).1, bench.req::<()>(ben, "im.group.join", &group())),
        (vec![], Err(Code::Denied))
    );
    let made: GroupCreateResponse =
        bench.req(ann, "im.group.create", &new_group("h", &["ben"])).expect("created");
    assert_eq!(made.invited, [""; 0], "a friend adds");
    let wrong = SettingsSetRequest { settings: Some(UserSettings { who_may_add: 9 }) };
    assert_eq!(bench.req::<()>(ben, "im.settings.set", &wrong), Err(Code::Invalid));
}

#[test]
fn who_is_silenced_says_nothing_by_signals_either() {
    let (mut bench, [ann, ben, _]) = three(ImConfig::default());
    create(&mut bench, ann, &["ben"]);
    assert_eq!([ann, ben].map(|session| enter(&mut bench, session, "group:g")), [Code::Ok; 2]);
    assert_eq!(signal(&mut bench, ben, "group:g"), 1);
    let silence = GroupChangeRequest { user: "ben".into(), silent_until_ms: Some(u64::MAX), ..change(&[]) };
    bench.req::<()>(ann, "im.group.change", &silence).expect("the owner");
    assert_eq!([ann, ben].map(|session| signal(&mut bench, session, "group:g")), [1, 0]);
    let speak = GroupChangeRequest { silent_until_ms: Some(0), ..silence };
    bench.req::<()>(ann, "im.group.change", &speak).expect("the owner");
    let settings = Some(GroupSettings { is_silent: true, ..Default::default() });
    bench.req::<()>(ann, "im.group.change", &GroupChangeRequest { settings, ..change(&[]) }).expect("quiet");
    assert_eq!([ann, ben].map(|session| signal(&mut bench, session, "group:g")), [1, 0]);
}

#[test]
fn the_operators_server_needs_no_friendship_and_no_consent() {
    let who_may_write = WhoMayWrite::Friends;
    let (mut bench, [_, ben, _]) = three(ImConfig { who_may_write, ..ImConfig::default() });
    let call = |bench: &mut Bench, call: ApiCall| {
        let (answer, answered) = std::sync::mpsc::channel();
        let now = bench.now;
        bench.im().handle_api(now, call, ApiReply::new(move |given| answer.send(given).expect("it waits")));
        bench.perform();
        bench.end_turn();
        answered.try_recv().expect("an answer").code
    };
    let send = Send { key: Bytes::copy_from_slice(&key(1)), target: Some(user("ben")), ..Default::default() };
    let from_shop = || ApiCall::Send { from: "shop".into(), send: send.clone(), may_repeat: false };
    assert_eq!(call(&mut bench, from_shop()), Code::Ok);
    let payload = encode(&new_group("team", &["ben", "newcomer"]));
    let create = ApiCall::Request { user: "shop".into(), method: "im.group.create".into(), payload };
    assert_eq!(call(&mut bench, create), Code::Ok);
    let team = GroupRequest { conversation: "group:team".into(), ..Default::default() };
    let members: GroupResponse = bench.req(ben, "im.group.members", &team).expect("a member");
    assert_eq!(members.members, ["ben", "newcomer", "shop"]);
    relate(&mut bench, ben, "shop", RelationChange::Block).expect("blocked");
    let send = Send { key: Bytes::copy_from_slice(&key(2)), ..send };
    let another = ApiCall::Send { from: "shop".into(), send, may_repeat: false };
    assert_eq!(call(&mut bench, another), Code::Denied, "a block holds");
}

#[test]
fn signals_are_small_and_few() {
    let (mut bench, [ann, ben, _]) = three(ImConfig { signal_rate: 3, ..ImConfig::default() });
    create(&mut bench, ann, &["ben"]);
    for session in [ann, ben] {
        assert_eq!(enter(&mut bench, session, "group:g"), Code::Ok);
        assert_eq!(enter(&mut bench, session, "c2c:ann:ben"), Code::Ok);
    }
    let say = |bench: &mut Bench, by: SessionId, bytes: usize| {
        let payload = vec![0; bytes].into();
        let body = encode(&Signal { conversation: "group:g".into(), payload, ..Signal::default() });
        let up = Up { session: by, command: SIGNAL, seq: 0, dup: false, body, reply: None };
        bench.event(Event::Up(up));
        std::mem::take(&mut bench.out.said).len()
    };
    assert_eq!([1025, 1024, 1].map(|bytes| say(&mut bench, ann, bytes)), [0, 1, 1]);
    assert_eq!([1, 1, 1].map(|bytes| say(&mut bench, ann, bytes)), [1, 0, 0], "three in a second");
    assert_eq!(
        (say(&mut bench, ben, 1), signal(&mut bench, ann, "c2c:ann:ben")),
        (1, 1),
        "per user and room"
    );
    bench.pass(Duration::from_secs(1));
    assert_eq!(say(&mut bench, ann, 1), 1);
    assert_eq!(signal(&mut bench, ann, &"x".repeat(60_000)), 0, "not a room");
    let status = bench.im().status().signals;
    assert_eq!((status.passed, status.too_large, status.too_many, status.refused), (6, 1, 2, 1));
}

/// Requests of one session in one turn; their answers come by and by.
fn ask_at_once(bench: &mut Bench, by: SessionId, method: &str, payload: &Bytes, count: usize) {
    for _ in 0..count {
        let req = Req { id: 9, method: method.into(), payload: payload.clone() };
        bench.up(by, Command::Req, encode(&req));
    }
}

#[test]
fn large_requests_wait_for_each_other_and_nobody_for_them() {
    if !IS_PROMPT {
        return; // about what one turn does
    }
    let mut bench = Bench::new(ImConfig { fanout_members_max: 10, ..ImConfig::default() });
    let uids: Vec<String> = (0..9_000).map(|number| format!("u{number}")).collect();
    let ann = bench.login(0, "ann", "d", 1);
    create(&mut bench, ann, &uids.iter().map(String::as_str).collect::<Vec<_>>());
    let six: Vec<SessionId> = (0..6).map(|at| bench.login(10 + at, &format!("u{at}"), "d", 1)).collect();
    let payload = encode(&group());
    bench.is_held = true;
    for by in &six {
        for method in ["im.group.members", "im.group.info"] {
            ask_at_once(&mut bench, *by, method, &payload, 7);
        }
    }
    assert_eq!(bench.out.reqs.len(), 0, "nothing is done before it is somebody's turn");
    let (mut turns, mut answers) = (0, 0);
    while answers < 84 {
        let key = Bytes::copy_from_slice(&key(turns));
        bench.up(ann, Command::Send, encode(&Send { key, target: Some(user("u7")), ..Default::default() }));
        let now = bench.now;
        bench.im().handle_turn_end(now);
        bench.perform();
        let said = bench.out.sends.pop().map(|(_, code, _)| code);
        assert_eq!(said, Some(Code::Ok), "somebody's chat waits for no more than a turn");
        let now = bench.out.reqs.len();
        assert!((1..=TURN_UNITS.div_ceil(LARGE_UNITS)).contains(&(now as u64)), "{now} answers in a turn");
        assert!(bench.out.reqs.drain(..).all(|(_, code, _)| code == Code::Ok));
        (turns, answers) = (turns + 1, answers + now);
    }
    assert!(turns > 20, "{answers} answers in {turns} turns");
    assert_eq!(bench.im().status().work.waiting, 0);
}

#[test]
fn one_user_has_a_share_of_the_time() {
    if !IS_PROMPT {
        return; // about what is done
    }
    let config = ImConfig { fanout_members_max: 10, ..ImConfig::default() };
    let (mut bench, [ann, ben, _]) = three(config);
    let uids: Vec<String> = (0..9_000).map(|number| format!("u{number}")).collect();
    let request = new_group("g", &uids.iter().map(String::as_str).collect::<Vec<_>>());
    let call =
        ApiCall::Request { user: "ann".into(), method: "im.group.create".into(), payload: encode(&request) };
    let now = bench.now;
    bench.im().handle_api(now, call, ApiReply::new(|answer| assert_eq!(answer.code, Code::Ok)));
    bench.perform();
    bench.end_turn();
    let payload = encode(&group());
    let mut answered = [0, 0];
    for _ in 0..20 {
        // 100 in 100 ms, for two seconds.
        bench.is_held = true;
        ask_at_once(&mut bench, ann, "im.group.info", &payload, 100);
        bench.is_held = false;
        bench.end_turn();
        bench.fan_out();
        for (_, code, resp) in bench.out.reqs.drain(..) {
            answered[usize::from(code == Code::Retry)] += 1;
            assert!(
                code == Code::Ok || code == Code::Retry && (1..=2000).contains(&resp.retry_after_ms),
                "{resp:?}"
            );
        }
        bench.pass(Duration::from_millis(100));
    }
    let units = 20 + 9_001 / 8;
    let most = (2_000_000 / 5 + 50_000) / units;
    assert!(answered[0] <= most && answered[0] > most / 2, "{answered:?}, at most {most}");
    assert_eq!(bench.im().status().work.put_off, answered[1]);
    assert_eq!(bench.send(ben, user("ann"), &key(1), b"hi").0, Code::Ok, "others have theirs");
}
