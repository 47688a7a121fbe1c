//! The IM backend by itself: events in, answers and pushes out.

mod late;
mod prompt;
mod property;
mod slow;

use super::store::{Memory, Store};
use super::{ApiCall, ApiReply, Im, Output, WebhookCall, conformance};
use crate::config::ImConfig;
use crate::server::{Event, GatewayId, LinkId, Now, PushId, PushSpec, ReplyTo, RoomNumber, SessionId, Up};
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::message::client::{Code, Push, Req, Resp, Send, SendAck, send};
use moorline_proto::message::{decode, encode};
use moorline_proto::time::{Duration, Instant};
use prost::Message;
use slow::Slow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[test]
fn the_memory_store_conforms() {
    conformance::check(Memory::new);
    conformance::check(|config| Slow::new(Memory::new(config), 11));
    let config = ImConfig { idempotency_entries_max: 2, ..ImConfig::default() };
    conformance::check_few_keys(Memory::new(&config));
}

#[derive(Clone, Debug, PartialEq)]
struct Pushed {
    id: PushId,
    session: SessionId,
    command: Command,
    want_ack: bool,
    /// True if the push went to the room of a group.
    is_to_room: bool,
    body: Bytes,
}

impl Pushed {
    fn push(&self) -> Push {
        assert_eq!(self.command, Command::Push);
        decode(&self.body).expect("a Push")
    }
}

#[derive(Debug, Default)]
struct Recorder {
    sends: Vec<(u64, Code, SendAck)>,
    reqs: Vec<(u64, Code, Resp)>,
    refused: Vec<Code>,
    pushes: Vec<Pushed>,
    /// Calls of `push`, whatever the number of sessions.
    payloads: usize,
    kicks: Vec<(SessionId, u32)>,
    subs: Vec<(u64, Code)>,
    rooms: BTreeSet<(SessionId, String)>,
    /// Sessions that have ended.
    gone: BTreeSet<SessionId>,
    /// Members of the rooms of groups.
    group_rooms: BTreeMap<RoomNumber, BTreeSet<SessionId>>,
    /// Pushes to rooms of groups.
    to_rooms: usize,
    /// Pushes to rooms.
    said: Vec<(String, PushSpec, Bytes)>,
    /// Deliveries of webhooks.
    calls: VecDeque<WebhookCall>,
    comes_back: bool,
}

impl Recorder {
    /// Performs an output as the link server does.
    fn perform(&mut self, output: Output) {
        match output {
            Output::AnswerSend { reply, code, answer, .. } => {
                self.sends.push((reply.correlation, code, answer));
            }
            Output::AnswerReq { reply, code, answer } => self.reqs.push((reply.correlation, code, answer)),
            Output::AnswerSub { reply, code, reason } => {
                assert_eq!(code == Code::Ok, reason.is_empty(), "{code:?}: {reason}");
                self.subs.push((reply.correlation, code));
            }
            Output::Refuse { code, .. } => self.refused.push(code),
            Output::AnswerApi { reply, answer } => reply.give(answer),
            Output::Push { push: id, sessions, room: _, spec, body } => {
                assert!(!sessions.is_empty());
                self.payloads += 1;
                assert_eq!(id, PushId(self.payloads as u64), "pushes are numbered in their order");
                let (command, want_ack) = (spec.command, spec.want_ack);
                let pushed = |session: SessionId| Pushed {
                    id,
                    session,
                    command,
                    want_ack,
                    is_to_room: false,
                    body: body.clone(),
                };
                self.pushes.extend(sessions.into_iter().map(pushed));
            }
            Output::PushRoom { room, from, spec, body } => {
                if from.is_none_or(|from| self.rooms.contains(&(from, room.clone()))) {
                    self.said.push((room, spec, body));
                }
            }
            Output::FillRoom { room, sessions } => {
                self.group_rooms.insert(room, sessions.into_iter().collect());
            }
            Output::ChangeRoom { room, enter, leave } => {
                if let Some(members) = self.group_rooms.get_mut(&room) {
                    leave.iter().for_each(|session| _ = members.remove(session));
                    members.extend(enter);
                }
            }
            Output::PushToRoom { room, push: id, except, spec, body } => {
                self.payloads += 1;
                self.to_rooms += 1;
                assert_eq!(id, PushId(self.payloads as u64), "pushes are numbered in their order");
                let (command, want_ack) = (spec.command, spec.want_ack);
                let members = self.group_rooms.get(&room).into_iter().flatten();
                let members =
                    members.filter(|session| Some(**session) != except && !self.gone.contains(session));
                let pushed = |session: &SessionId| {
                    let body = body.clone();
                    Pushed { id, session: *session, command, want_ack, is_to_room: true, body }
                };
                self.pushes.extend(members.map(pushed));
            }
            Output::CloseRoom { room } => _ = self.group_rooms.remove(&room),
            Output::Kick { session, kick } => self.kicks.push((session, kick.code)),
            Output::EnterRoom { reply, session, room } => {
                self.rooms.insert((session, room));
                self.subs.push((reply.correlation, Code::Ok));
            }
            Output::LeaveRoom { session, room } => _ = self.rooms.remove(&(session, room)),
            Output::CallWebhook(call) => self.calls.push_back(call),
            Output::TurnAgain => self.comes_back = true,
        }
    }
}

/// An [`Im`] on the memory store, and a hand on the link.
struct BenchOf<S> {
    /// `None`: between two lives.
    im: Option<Im<S>>,
    config: ImConfig,
    out: Recorder,
    now: Now,
    questions: u64,
    generations: u32,
    /// Time of issue of the tokens of later logins, in Unix seconds.
    issued_s: u64,
    /// Several events come in one turn.
    is_held: bool,
}

impl BenchOf<Memory> {
    fn new(config: ImConfig) -> Self {
        let store = Memory::new(&config);
        Self::over(config, store)
    }
}

impl BenchOf<Slow<Memory>> {
    fn new(config: ImConfig) -> Self {
        let store = Slow::new(Memory::new(&config), 7);
        let mut bench = Self::over(config, store);
        bench.end_turn(); // logins of webhooks
        bench
    }
}

impl<S: Store> BenchOf<S> {
    fn over(config: ImConfig, store: S) -> Self {
        let now = Now { instant: Instant::from_nanos(1), unix_ms: 1_800_000_000_000 };
        let im = Some(Im::new(config.clone(), 3, store));
        let out = Recorder::default();
        Self { im, config, out, now, questions: 0, generations: 0, issued_s: 0, is_held: false }
    }

    fn im(&mut self) -> &mut Im<S> {
        self.im.as_mut().expect("alive")
    }

    /// The backend ends, whatever it has not given its store, and begins anew on it.
    fn restart(&mut self, reopen: &mut dyn FnMut(S) -> S) {
        let store = self.im.take().expect("alive").into_store();
        self.im = Some(Im::new(self.config.clone(), 3, reopen(store)));
        self.out.payloads = 0;
        self.out.group_rooms.clear();
        self.out.calls.clear();
    }

    fn event(&mut self, event: Event) {
        if let Event::ConnDown { session, .. } = &event {
            self.out.gone.insert(*session);
        }
        let im = self.im.as_mut().expect("alive");
        im.handle(self.now, event);
        self.perform();
        if !self.is_held {
            self.end_turn();
        }
    }

    fn perform(&mut self) {
        let im = self.im.as_mut().expect("alive");
        while let Some(output) = im.poll_output() {
            self.out.perform(output);
        }
    }

    fn end_turn(&mut self) {
        loop {
            let now = self.now;
            self.im().handle_turn_end(now);
            self.perform();
            if self.im().storage.open.is_empty()
                && (self.im().queues.is_empty() || !self.im().newcomers.is_empty())
                && self.im().storage.writes.is_empty()
            {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// The next delivery of a webhook.
    fn poll_webhook(&mut self) -> Option<WebhookCall> {
        self.end_turn();
        self.out.calls.pop_front()
    }

    /// Turns until nothing is under way any more.
    fn fan_out(&mut self) {
        while std::mem::take(&mut self.out.comes_back) {
            self.end_turn();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).expect("short");
        self.event(Event::Tick);
    }

    fn login(&mut self, slot: u32, uid: &str, device: &str, version: u64) -> SessionId {
        self.generations += 1;
        let session = SessionId { slot, generation: self.generations };
        self.conn_up(session, uid, device, version, true);
        session
    }

    fn conn_up(&mut self, session: SessionId, uid: &str, device: &str, version: u64, is_new: bool) {
        let (uid, device) = (uid.to_owned(), device.to_owned());
        let (login_version, issued_at) = (version, self.issued_s);
        let login = ConnUp { uid, device, login_version, issued_at, ..Default::default() };
        self.event(Event::ConnUp { session, gateway: GatewayId(0), login, is_new });
    }

    /// Makes users, as the operator's server does.
    fn know(&mut self, uids: &[&str]) {
        for uid in uids {
            let method = "im.devices".to_owned();
            let call = ApiCall::Request { user: (*uid).to_owned(), method, payload: Bytes::new() };
            let now = self.now;
            self.im().handle_api(now, call, ApiReply::new(|answer| assert_eq!(answer.code, Code::Ok)));
            self.perform();
            self.end_turn();
        }
    }

    fn logout(&mut self, session: SessionId) {
        self.event(Event::ConnDown { session, code: 0 });
    }

    fn up(&mut self, session: SessionId, command: Command, body: Bytes) -> u64 {
        self.questions += 1;
        let link = LinkId { slot: 0, generation: 0 };
        let reply = Some(ReplyTo { link, correlation: self.questions });
        self.event(Event::Up(Up { session, command, seq: 0, dup: false, body, reply }));
        self.questions
    }

    fn send(&mut self, session: SessionId, to: send::Target, key: &[u8], payload: &[u8]) -> (Code, SendAck) {
        let (key, payload) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(payload));
        let send = Send { key, target: Some(to), r#type: 1, payload };
        self.send_body(session, encode(&send))
    }

    fn send_body(&mut self, session: SessionId, body: Bytes) -> (Code, SendAck) {
        let question = self.up(session, Command::Send, body);
        if self.out.sends.is_empty() {
            self.pass(Duration::from_secs(1)); // it waits for a login
        }
        let (answered, code, ack) = self.out.sends.pop().expect("an answer");
        assert_eq!((answered, self.out.sends.len()), (question, 0), "one answer each");
        assert_eq!((ack.cid, ack.code), (0, 0), "left to the gateway");
        (code, ack)
    }

    fn req<A: Message + Default>(
        &mut self,
        session: SessionId,
        method: &str,
        payload: &impl Message,
    ) -> Result<A, Code> {
        let req = Req { id: 9, method: method.into(), payload: encode(payload) };
        let question = self.up(session, Command::Req, encode(&req));
        let (answered, code, resp) = self.out.reqs.pop().expect("an answer");
        assert_eq!((answered, self.out.reqs.len()), (question, 0), "one answer each");
        match code {
            Code::Ok => Ok(decode(&resp.payload).expect("the method's response")),
            code => {
                assert!(!resp.reason.is_empty(), "{code:?} without a reason");
                Err(code)
            }
        }
    }

    fn outcome(&mut self, pushed: &Pushed, outcome: Outcome) {
        if pushed.want_ack {
            self.event(Event::Pushed { session: pushed.session, push: pushed.id, outcome });
        }
    }

    /// Pushes since the last call.
    fn pushes(&mut self) -> Vec<Pushed> {
        std::mem::take(&mut self.out.pushes)
    }

    fn kicks(&mut self) -> Vec<(SessionId, u32)> {
        std::mem::take(&mut self.out.kicks)
    }

    fn stream_of(&mut self, uid: &str) -> usize {
        conformance::stream_of(&mut self.im().storage.store, uid)
    }
}

fn user(uid: &str) -> send::Target {
    send::Target::User(uid.into())
}

fn conversation(id: &str) -> send::Target {
    send::Target::Conversation(id.into())
}

fn key(number: u8) -> [u8; 16] {
    [number; 16]
}
