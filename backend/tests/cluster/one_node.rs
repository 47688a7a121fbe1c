//! One node with its backend, step by step: what chance alone seldom brings about in a whole run.

use crate::cells::Cells;
use bytes::Bytes;
use moorline_backend::cluster::cell::{CellRequest, Life, Load, RequestId, UnknownOutcome};
use moorline_backend::cluster::store::{ClusterStore, Layout, Output};
use moorline_backend::config::ImConfig;
use moorline_backend::im::store::{LoginRule, UserId};
use moorline_backend::im::{ApiAnswer, ApiBody, ApiCall, ApiReply, Im, Output as ImOutput, PushTo};
use moorline_backend::server::{Event, GatewayId, LinkId, Now, ReplyTo, SessionId, Up};
use moorline_proto::frame::Command;
use moorline_proto::message::backend::ConnUp;
use moorline_proto::message::client::{Code, Send, send};
use moorline_proto::message::{encode, im};
use moorline_proto::slots::{NodeId, Slot};
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

const ME: NodeId = NodeId(1);
const UNIX_MS: u64 = 1_800_000_000_000;

struct OneNode {
    im: Im<ClusterStore>,
    cells: Cells,
    now_ms: u64,
    /// Transactions that are done, and whose answers get lost.
    to_lose: u32,
    /// User who is read slowly.
    slow: Option<UserId>,
    /// Reads of that user, each with the time of its answer.
    late: VecDeque<(u64, RequestId, CellRequest)>,
    /// Answers to SENDs: number, code.
    sent: Vec<(u64, Code)>,
}

impl OneNode {
    /// A node that owns all slots.
    fn start() -> Self {
        Self::start_with(ImConfig::default())
    }

    fn start_with(config: ImConfig) -> Self {
        let life = Life { node: ME, number: 1, address: "a".into(), is_stopping: false };
        let store = ClusterStore::new(life, Layout { cells: 1 }, 0).with_limits(&config);
        let im = Im::new(config, 1, store);
        let (cells, slow, late, sent) = (Cells::default(), None, VecDeque::new(), Vec::new());
        let mut node = Self { im, cells, now_ms: 0, to_lose: 0, slow, late, sent };
        node.pass(3000);
        assert!(Slot::all().all(|slot| node.im.store().owns(slot)), "it is the only node");
        node
    }

    fn now(&self) -> Now {
        let instant = Instant::ZERO + Duration::from_millis(self.now_ms);
        Now { instant, unix_ms: UNIX_MS + self.now_ms }
    }

    /// Makes a call. Returns the place of its answer.
    fn call(&mut self, call: ApiCall) -> Arc<Mutex<Option<ApiAnswer>>> {
        let answer = Arc::new(Mutex::new(None));
        let place = Arc::clone(&answer);
        let reply = ApiReply::new(move |answer| *place.lock().expect("one thread") = Some(answer));
        let now = self.now();
        self.im.handle_api(now, call, reply);
        answer
    }

    /// Makes a call, and waits for its answer.
    fn ask(&mut self, call: ApiCall) -> ApiAnswer {
        let answer = self.call(call);
        self.pass(200);
        answer.lock().expect("one thread").take().expect("an answer")
    }

    /// Lets time pass, and answers each request at once. Returns the sessions that are kicked, with the codes.
    fn pass(&mut self, ms: u64) -> Vec<(SessionId, u32)> {
        self.pass_with(ms, |_| {})
    }

    /// Does what [`Self::pass`] does, and `each` behind each answer of the cell.
    fn pass_with(&mut self, ms: u64, mut each: impl FnMut(&mut Self)) -> Vec<(SessionId, u32)> {
        let mut kicks = Vec::new();
        for _ in 0..ms {
            self.now_ms += 1;
            let now = self.now();
            self.im.store_mut().handle_time(now.instant);
            self.end_turn(&mut kicks);
            let is_due = self.late.front().is_some_and(|(at, ..)| *at <= self.now_ms);
            if is_due && let Some((_, request, body)) = self.late.pop_front() {
                let reply = self.cells.perform(self.now_ms, |_| true, &body);
                self.im.store_mut().handle_cell(request, Ok(reply));
            }
            while let Some(output) = self.im.store_mut().poll_output() {
                let Output::Cell(_, request, body) = output else { panic!("there is no other node") };
                let is_slow =
                    |load: &Load| matches!(load, Load::UserNumber(user) if self.slow == Some(*user));
                if matches!(&body, CellRequest::Load(loads) if loads.iter().any(is_slow)) {
                    self.late.push_back((self.now_ms + 500, request, body));
                    continue;
                }
                let reply = self.cells.perform(self.now_ms, |_| true, &body);
                let is_lost = self.to_lose > 0 && matches!(body, CellRequest::Commit(_));
                self.to_lose -= u32::from(is_lost);
                let result = if is_lost { Err(UnknownOutcome) } else { Ok(reply) };
                self.im.store_mut().handle_cell(request, result);
                self.end_turn(&mut kicks);
                each(self);
            }
        }
        kicks
    }

    fn end_turn(&mut self, kicks: &mut Vec<(SessionId, u32)>) {
        let now = self.now();
        self.im.handle_committed();
        self.im.handle_turn_end(now);
        while let Some(output) = self.im.poll_output() {
            match output {
                ImOutput::Kick { session, kick } => kicks.push((session, kick.code)),
                ImOutput::AnswerApi { reply, answer } => reply.give(answer),
                ImOutput::AnswerSend { reply, code, .. } => self.sent.push((reply.correlation(), code)),
                _ => {}
            }
        }
    }

    /// Logs a device of a user in.
    fn log_in(&mut self, uid: &str, session: SessionId) {
        let login = ConnUp { uid: uid.into(), device: "phone".into(), ..ConnUp::default() };
        let event = Event::ConnUp { session, gateway: GatewayId::new(0), login, is_new: true };
        let now = self.now();
        self.im.handle(now, event);
        assert_eq!(self.pass(100), [], "{uid} is there");
    }

    /// A SEND of a session to a user. Its answer will have the same number.
    fn send(&mut self, session: SessionId, to: &str, number: u64) {
        let mut key = vec![0; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let target = Some(send::Target::User(to.into()));
        let body = encode(&Send { key: key.into(), target, r#type: 1, payload: Bytes::from_static(b"hi") });
        let reply = Some(ReplyTo::new(LinkId::new(0, 1), number));
        let (now, command) = (self.now(), Command::Send);
        self.im.handle(now, Event::Up(Up { session, command, seq: 1, dup: false, body, reply }));
    }
}

#[test]
fn who_was_banned_while_the_slot_was_elsewhere_leaves_when_it_comes_back() {
    let mut node = OneNode::start();
    let slot = Slot::of("bob");
    let session = SessionId::new(0, 1);
    node.log_in("bob", session);
    for (until_s, kicks) in [(UNIX_MS / 1000, vec![]), (u64::MAX, vec![(session, 3531)])] {
        node.cells.steal(slot, NodeId(2));
        let bob = node.cells.users.values_mut().find(|user| *user.uid == *"bob").expect("stored");
        bob.rule = LoginRule { banned_until_s: until_s, ..LoginRule::default() };
        node.cells.steal(slot, ME);
        assert_eq!(node.pass(5000), kicks, "banned until {until_s}");
        assert!(node.im.store().owns(slot), "it is back");
    }
}

#[test]
fn who_was_banned_while_the_slot_was_elsewhere_says_nothing_when_it_comes_back() {
    let mut node = OneNode::start();
    let (slot, session) = (Slot::of("bob"), SessionId::new(0, 1));
    node.log_in("ann", SessionId::new(1, 1));
    node.log_in("bob", session);
    node.send(session, "ann", 0);
    node.pass(100);
    assert_eq!(std::mem::take(&mut node.sent), [(0, Code::Ok)]);
    // The facts of this one are read when the slot is away, or back.
    node.send(session, "ann", 1);
    node.cells.steal(slot, NodeId(2));
    let (bob, row) = node.cells.users.iter_mut().find(|(_, user)| *user.uid == *"bob").expect("stored");
    row.rule = LoginRule { banned_until_s: u64::MAX, ..LoginRule::default() };
    node.slow = Some(*bob);
    node.cells.steal(slot, ME);
    let (mut number, mut is_back) = (1, false);
    let kicks = node.pass_with(5000, |node| {
        // A gateway is told MOVED while the slot is not served.
        let is_this_epoch = node.im.store().table().owner(slot) == node.cells.owner(slot);
        if node.im.store().owns(slot) && is_this_epoch && number < 100 {
            is_back = true;
            number += 1;
            node.send(session, "ann", number);
        }
    });
    assert_eq!((kicks.first(), is_back), (Some(&(session, 3531)), true));
    assert_eq!(node.sent.iter().map(|(number, _)| number).max(), Some(&number), "each is answered");
    let stored: Vec<_> = node.sent.iter().filter(|(_, code)| *code == Code::Ok).collect();
    assert!(stored.iter().all(|(number, _)| *number == 1), "{stored:?}");
}

#[test]
fn a_push_whose_transaction_has_no_answer_is_in_each_inbox_once() {
    let mut node = OneNode::start();
    let users: Vec<_> = (0..5).map(|number| format!("user{number}")).collect();
    for (lost, number) in [(0, 1), (1, 2), (1, 3)] {
        let payload = Bytes::from(vec![number]);
        let answer = node.call(ApiCall::Push { to: PushTo::Inboxes(users.clone(), None), kind: 0, payload });
        if number == 1 {
            node.pass(50); // the users come to be
        }
        node.to_lose = lost;
        assert_eq!(node.pass(5000), []);
        assert_eq!(node.to_lose, 0, "the transaction was done");
        let answer = answer.lock().expect("one thread").take().expect("an answer");
        assert!(matches!(answer.body, ApiBody::Reached(5)), "{answer:?}");
        for account in node.cells.users.values() {
            let got: Vec<_> = account.pushes.iter().map(|(_, push)| push.payload[0]).collect();
            assert_eq!(got, (1..=number).collect::<Vec<u8>>(), "{}", account.uid);
        }
    }
}

#[test]
fn a_call_that_is_repeated_with_its_key_gets_its_first_answer_whatever_has_changed() {
    let mut node = OneNode::start();
    let group = "group:tea".to_owned();
    let request = |user: &str, method: &str, payload: Bytes| ApiCall::Request {
        user: user.into(),
        method: method.into(),
        payload,
    };
    let create = im::GroupCreateRequest { group: "tea".into(), members: vec!["ann".into()] };
    assert_eq!(node.ask(request("bob", "im.group.create", encode(&create))).code, Code::Ok);
    let say = |from: &str, key: u8| {
        let target = Some(send::Target::Conversation(group.clone()));
        let send = Send { key: vec![key; 16].into(), target, r#type: 1, payload: Bytes::from_static(b"hi") };
        ApiCall::Send { from: from.into(), send, may_repeat: true }
    };
    let seq = |answer: &ApiAnswer| match &answer.body {
        ApiBody::Stored(ack) => ack.seq,
        body => panic!("{:?} {}: {body:?}", answer.code, answer.reason),
    };
    let first = node.ask(say("ann", 1));
    assert_eq!((first.code, seq(&first)), (Code::Ok, 1));
    let leave = im::GroupRequest { conversation: group.clone(), after: String::new() };
    assert_eq!(node.ask(request("ann", "im.group.leave", encode(&leave))).code, Code::Ok);
    let again = node.ask(say("ann", 1));
    assert_eq!((again.code, seq(&again)), (Code::Dup, 1));
    assert_eq!(node.ask(say("ann", 2)).code, Code::NotMember);
    assert_eq!(seq(&node.ask(say("bob", 3))), 2, "a repetition takes no seq");
}

#[test]
fn users_and_conversations_come_to_be_up_to_the_caps() {
    let config = ImConfig { users_max: 4, users_reserved: 50, conversations_max: 2, ..ImConfig::default() };
    let mut node = OneNode::start_with(config);
    let profile = |user: &str| ApiCall::Request {
        user: user.into(),
        method: "im.profile.set".into(),
        payload: encode(&im::ProfileSetRequest { profile: Some(im::Profile::default()) }),
    };
    for (user, code) in [("ann", Code::Ok), ("bob", Code::Ok), ("cat", Code::Denied), ("bob", Code::Ok)] {
        let answer = node.ask(profile(user));
        assert_eq!(answer.code, code, "{user}: {}", answer.reason);
        let is_named = answer.reason.contains("im.users_max") && answer.reason.contains("im.users_reserved");
        assert_eq!(code == Code::Denied, is_named, "{}", answer.reason);
    }
    node.log_in("cat", SessionId::new(0, 1));
    node.log_in("dan", SessionId::new(1, 1));
    let login = ConnUp { uid: "eve".into(), device: "phone".into(), ..ConnUp::default() };
    let session = SessionId::new(2, 1);
    let event = Event::ConnUp { session, gateway: GatewayId::new(0), login, is_new: true };
    let now = node.now();
    node.im.handle(now, event);
    assert_eq!(node.pass(200).iter().map(|(session, _)| *session).collect::<Vec<_>>(), [session]);
    let cat = SessionId::new(0, 1);
    for (number, to) in (0..).zip(["ann", "bob", "dan", "ann"]) {
        node.send(cat, to, number);
        node.pass(100);
    }
    assert_eq!(node.sent, [(0, Code::Ok), (1, Code::Ok), (2, Code::Denied), (3, Code::Ok)]);
    let create = im::GroupCreateRequest { group: "tea".into(), members: vec![] };
    let (user, method) = ("ann".into(), "im.group.create".into());
    let answer = node.ask(ApiCall::Request { user, method, payload: encode(&create) });
    assert!(answer.reason.contains("im.conversations_max"), "{:?} {}", answer.code, answer.reason);
    let caps = node.im.status().caps;
    assert!(caps[..2].iter().all(|cap| cap.used == cap.max), "{caps:?}");
}
