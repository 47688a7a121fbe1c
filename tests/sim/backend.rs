//! The real instant-messaging backend behind simulated links: sessions and their reachability as the
//! link server keeps them, and dice that make it answer RETRY, late or never.

use crate::ledger::Ledger;
use crate::scene::{Scene, What};
use bytes::Bytes;
use moorline::handoff::Target;
use moorline_backend::config::ImConfig;
use moorline_backend::im::store::Memory;
use moorline_backend::im::{Im, Output};
use moorline_backend::server::{Event, GatewayId, Kick, LinkId, Now, PushId, ReplyTo, SessionId, Up};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::message::client::{self, Code, Req, SendAck, send};
use moorline_proto::message::im::GroupCreateRequest;
use moorline_proto::message::{self, encode};
use moorline_proto::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

/// The close code of a kick that names a device.
pub(crate) const KICKED_BY_NAME: u32 = 4501;
/// How often the backend is told that time passes.
const TICK: Duration = Duration::from_millis(250);
/// A login that no gateway holds: it speaks for the system.
const SYSTEM: SessionId = SessionId::new(0, 1);

/// From a gateway's worker.
pub(crate) enum ToBackend {
    Up { correlation: u64, handle: u64, command: Command, is_dup: bool, body: Bytes },
    ConnUp(ConnUp),
    ConnDown { handle: u64 },
    Announce(Vec<ConnUp>),
    Pushed { correlation: u64, handle: u64, outcome: Outcome },
}

/// To a gateway's worker.
#[derive(Clone)]
pub(crate) enum FromBackend {
    Answer {
        correlation: u64,
        code: Code,
        answer: Bytes,
    },
    Push {
        correlation: u64,
        handles: Vec<u64>,
        lane: Lane,
        body: Bytes,
    },
    Kick {
        target: Target,
        login_version: u64,
        code: u32,
        may_reconnect: bool,
    },
    /// In: the session enters the room; else it leaves.
    Bind {
        handle: u64,
        room: String,
        version: u64,
        is_in: bool,
    },
    /// To everybody in a room but one.
    PushRoom {
        room: String,
        except: u64,
        body: Bytes,
    },
}

/// uid and device.
pub(crate) type Device = (String, String);

struct Session {
    id: SessionId,
    device: Device,
    version: u64,
    worker: usize,
    /// A link speaks for it.
    is_reachable: bool,
}

/// Worker, life of its link, number there.
type Place = (usize, u32, u64);

/// A client's frame.
struct Question {
    command: Command,
    is_dup: bool,
    body: Bytes,
}

/// Who waits for an answer.
struct Asker {
    /// `None`: the system.
    place: Option<Place>,
    device: Device,
    send: Option<client::Send>,
}

/// What the backend says in one turn.
#[derive(Default)]
struct Said {
    sends: Vec<(u64, Code, SendAck)>,
    others: Vec<(u64, Code, Bytes)>,
    pushes: Vec<(PushId, u64, Vec<SessionId>, Lane, Bytes)>,
    kicks: Vec<(SessionId, Kick)>,
    bound: BTreeSet<(SessionId, String)>,
    /// Who enters or leaves a room, in order.
    moves: Vec<(SessionId, String, bool)>,
    signals: Vec<(String, SessionId, Bytes)>,
}

impl Said {
    fn put(&mut self, output: Output) {
        match output {
            Output::AnswerSend { reply, code, answer } => {
                self.sends.push((reply.correlation(), code, answer));
            }
            Output::AnswerReq { reply, code, answer } => {
                self.others.push((reply.correlation(), code, encode(&answer)));
            }
            Output::AnswerSub { reply, code, .. } | Output::Refuse { reply, code } => {
                self.others.push((reply.correlation(), code, Bytes::new()));
            }
            Output::Push { push, sessions, spec, body } => {
                self.pushes.push((push, push.number(), sessions, spec.lane, body));
            }
            Output::PushRoom { room, from, body, .. } => {
                let from = from.expect("nobody asks by the server API here");
                if self.bound.contains(&(from, room.clone())) {
                    self.signals.push((room, from, body));
                }
            }
            Output::Kick { session, kick } => self.kicks.push((session, kick)),
            Output::EnterRoom { reply, session, room } => {
                self.bound.insert((session, room.clone()));
                self.moves.push((session, room, true));
                self.others.push((reply.correlation(), Code::Ok, Bytes::new()));
            }
            Output::LeaveRoom { session, room } => {
                if self.bound.remove(&(session, room.clone())) {
                    self.moves.push((session, room, false));
                }
            }
            Output::AnswerApi { .. } => unreachable!("nobody asks by the server API here"),
            Output::TurnAgain => unreachable!("no group is large here"),
        }
    }
}

pub(crate) struct Backend {
    config: ImConfig,
    im: Im<Memory>,
    said: Said,
    pub(crate) ledger: Ledger,
    users: Vec<String>,
    /// By handle.
    sessions: BTreeMap<u64, Session>,
    handles: BTreeMap<SessionId, u64>,
    free_slots: Vec<u32>,
    sessions_ever: u32,
    askers: BTreeMap<u64, Asker>,
    last_question: u64,
    /// Pushes without an outcome, by number and handle.
    outstanding: BTreeSet<(u64, u64)>,
    pushed: BTreeSet<(Device, String, u64)>,
    is_turn_due: bool,
    /// Of bindings; rises over all lives of the process.
    room_version: u64,
    /// Answers that wait for their time, with the life of the link they belong to.
    late: BTreeMap<u64, (usize, u32, FromBackend)>,
    last_late: u64,
    pub(crate) out: Vec<(usize, FromBackend)>,
}

/// Whether a client waits for an answer to it.
pub(crate) const fn is_question(command: Command) -> bool {
    matches!(command, Command::Send | Command::Req | Command::Sub | Command::Unsub)
}

fn now(scene: &Scene) -> Now {
    Now { instant: scene.now, unix_ms: 1_700_000_000_000 + scene.now.as_nanos() / 1_000_000 }
}

impl Backend {
    pub(crate) fn new(users: &[&str], scene: &mut Scene) -> Self {
        // Fewer or more than fit the window at the gateway; fewer than its queue.
        let config = ImConfig { outstanding: [8, 64, 96][scene.index(3)], ..ImConfig::default() };
        let mut backend = Self {
            config: config.clone(),
            im: Im::new(config.clone(), 1, Memory::new(&config)),
            said: Said::default(),
            ledger: Ledger::new(users),
            users: users.iter().map(|uid| (*uid).to_owned()).collect(),
            sessions: BTreeMap::new(),
            handles: BTreeMap::new(),
            free_slots: Vec::new(),
            sessions_ever: 1,
            askers: BTreeMap::new(),
            last_question: 0,
            outstanding: BTreeSet::new(),
            pushed: BTreeSet::new(),
            is_turn_due: false,
            room_version: 0,
            late: BTreeMap::new(),
            last_late: 0,
            out: Vec::new(),
        };
        backend.admit_system(scene);
        let members = backend.users.clone();
        let payload = encode(&GroupCreateRequest { group: "g".into(), members });
        let create = Req { id: 1, method: "im.group.create".into(), payload };
        backend.ask_as_system(scene, Command::Req, encode(&create));
        backend.turn(scene);
        scene.after(TICK, What::Tick);
        backend
    }

    fn admit_system(&mut self, scene: &Scene) {
        let login = ConnUp { uid: "system".into(), device: "desk".into(), ..ConnUp::default() };
        let (session, gateway) = (SYSTEM, GatewayId::new(0));
        self.tell(scene, Event::ConnUp { session, gateway, login, is_new: true });
    }

    /// The process dies, and another one takes its place with what is durable.
    pub(crate) fn die(&mut self, scene: &Scene) {
        let empty = Im::new(self.config.clone(), 1, Memory::new(&self.config));
        let store = std::mem::replace(&mut self.im, empty).into_store();
        self.im = Im::new(self.config.clone(), 1, store);
        self.said = Said::default();
        self.sessions.clear();
        self.handles.clear();
        self.free_slots.clear();
        self.askers.clear();
        self.outstanding.clear();
        self.late.clear();
        self.out.clear();
        self.admit_system(scene);
    }

    pub(crate) fn handle(&mut self, scene: &mut Scene, worker: usize, generation: u32, item: ToBackend) {
        match item {
            ToBackend::Up { correlation, handle, command, is_dup, body } => {
                let question = Question { command, is_dup, body };
                self.on_up(scene, (worker, generation, correlation), handle, question);
            }
            ToBackend::ConnUp(login) => self.on_login(scene, worker, login),
            ToBackend::ConnDown { handle } => self.on_logout(scene, handle),
            ToBackend::Announce(logins) => {
                let is_named = |handle: &u64| logins.iter().any(|login| login.handle == *handle);
                let here = self.sessions.iter().filter(|(_, session)| session.worker == worker);
                let gone: Vec<u64> =
                    here.map(|(handle, _)| *handle).filter(|handle| !is_named(handle)).collect();
                gone.into_iter().for_each(|handle| self.on_logout(scene, handle));
                logins.into_iter().for_each(|login| self.on_login(scene, worker, login));
            }
            ToBackend::Pushed { correlation, handle, outcome } => {
                if outcome == Outcome::Queued {
                    scene.coverage.queued_pushes += 1;
                } else {
                    self.outstanding.remove(&(correlation, handle));
                }
                if let Some(session) = self.sessions.get(&handle).map(|session| session.id) {
                    self.tell(scene, Event::Pushed { session, push: PushId::new(correlation), outcome });
                    if outcome == Outcome::Offline {
                        self.on_logout(scene, handle);
                    }
                }
            }
        }
        // Several events may share one turn.
        if scene.random.one_in(2) {
            self.turn(scene);
        } else if !std::mem::replace(&mut self.is_turn_due, true) {
            scene.within(2, What::BackendTurn);
        }
    }

    fn on_up(&mut self, scene: &mut Scene, place: Place, handle: u64, question: Question) {
        let command = question.command;
        let wants_answer = is_question(command);
        let retry = scene.faults.retry;
        let is_put_off = wants_answer && scene.fault(retry);
        scene.coverage.backend_retries += u64::from(is_put_off);
        if command == Command::Req {
            let req = message::decode::<Req>(&question.body).ok();
            scene.coverage.pulls += u64::from(req.is_some_and(|req| req.method == "im.pull"));
        }
        match self.sessions.get(&handle) {
            Some(session) if !is_put_off => {
                let (id, device) = (session.id, session.device.clone());
                let asker = wants_answer.then_some((Some(place), device));
                self.ask(scene, id, asker, question);
            }
            // Nobody hears it if the client has left.
            _ if wants_answer => self.reply(scene, place, Code::Retry, Bytes::new()),
            _ => {}
        }
    }

    fn ask(
        &mut self,
        scene: &Scene,
        session: SessionId,
        asker: Option<(Option<Place>, Device)>,
        question: Question,
    ) {
        let Question { command, is_dup: dup, body } = question;
        let reply = asker.map(|(place, device)| {
            self.last_question += 1;
            let send = (command == Command::Send).then(|| message::decode(&body).ok()).flatten();
            self.askers.insert(self.last_question, Asker { place, device, send });
            ReplyTo::new(LinkId::new(0, 1), self.last_question)
        });
        self.tell(scene, Event::Up(Up { session, command, seq: 0, dup, body, reply }));
    }

    fn ask_as_system(&mut self, scene: &Scene, command: Command, body: Bytes) {
        let asker = Some((None, ("system".into(), "desk".into())));
        self.ask(scene, SYSTEM, asker, Question { command, is_dup: false, body });
    }

    fn tell(&mut self, scene: &Scene, event: Event) {
        self.im.handle(now(scene), event);
        self.gather();
    }

    /// Takes what the backend says.
    fn gather(&mut self) {
        while let Some(output) = self.im.poll_output() {
            self.said.put(output);
        }
    }

    fn on_login(&mut self, scene: &mut Scene, worker: usize, login: ConnUp) {
        let device = (login.uid.clone(), login.device.clone());
        self.ledger.on_device(&device);
        let (handle, version) = (login.handle, login.login_version);
        let known = self.sessions.get(&handle).map(|session| session.id);
        let id = known.unwrap_or_else(|| {
            self.sessions_ever += 1;
            let slot = self.free_slots.pop().unwrap_or(self.sessions_ever);
            SessionId::new(slot, self.sessions_ever)
        });
        self.sessions.insert(handle, Session { id, device, version, worker, is_reachable: true });
        self.handles.insert(id, handle);
        self.outstanding.retain(|(_, other)| *other != handle);
        let (gateway, is_new) = (GatewayId::new(0), known.is_none());
        // What was said of its rooms may have been lost with the last link.
        let rooms = self.said.bound.iter().filter(|(session, _)| *session == id);
        let again: Vec<_> = rooms.map(|(session, room)| (*session, room.clone(), true)).collect();
        self.said.moves.extend(again);
        self.tell(scene, Event::ConnUp { session: id, gateway, login, is_new });
    }

    fn on_logout(&mut self, scene: &Scene, handle: u64) {
        let Some(Session { id, .. }) = self.sessions.remove(&handle) else { return };
        self.handles.remove(&id);
        self.said.bound.retain(|(session, _)| *session != id);
        self.free_slots.push(u32::try_from(id.slot()).expect("small"));
        self.outstanding.retain(|(_, other)| *other != handle);
        self.tell(scene, Event::ConnDown { session: id, code: 0 });
    }

    /// A link died: nobody on it can be reached before it is announced again.
    pub(crate) fn on_link_down(&mut self, worker: usize) {
        for session in self.sessions.values_mut().filter(|session| session.worker == worker) {
            session.is_reachable = false;
        }
        self.out.retain(|(to, _)| *to != worker);
    }

    pub(crate) fn tick(&mut self, scene: &mut Scene) {
        self.tell(scene, Event::Tick);
        self.turn(scene);
        scene.after(TICK, What::Tick);
    }

    /// The end of a turn: what the backend said goes out.
    pub(crate) fn turn(&mut self, scene: &mut Scene) {
        self.is_turn_due = false;
        self.im.handle_turn_end(now(scene));
        self.gather();
        for (question, code, answer) in std::mem::take(&mut self.said.sends) {
            let asker = self.askers.remove(&question).expect("each question has one answer");
            if let Some(send) = asker.send {
                scene.coverage.duplicate_uplinks += u64::from(code == Code::Dup);
                self.ledger.on_answer(&asker.device, send, code, &answer);
            }
            if let Some(place) = asker.place {
                self.reply(scene, place, code, encode(&answer));
            }
        }
        for (question, code, answer) in std::mem::take(&mut self.said.others) {
            let asker = self.askers.remove(&question).expect("each question has one answer");
            if let Some(place) = asker.place {
                self.reply(scene, place, code, answer);
            }
        }
        self.tell_rooms();
        for (push, number, sessions, lane, body) in std::mem::take(&mut self.said.pushes) {
            self.push(scene, (push, number, lane), &sessions, &body);
        }
        for (session, kick) in std::mem::take(&mut self.said.kicks) {
            let Some(handle) = self.handles.get(&session) else { continue };
            let Session { version, worker, is_reachable, .. } = &self.sessions[handle];
            let (code, may_reconnect) = (kick.code, kick.may_reconnect);
            let (target, login_version) = (Target::Connection(ConnKey::from_u64(*handle)), *version);
            if *is_reachable {
                self.out.push((*worker, FromBackend::Kick { target, login_version, code, may_reconnect }));
            }
        }
        if !self.said.sends.is_empty() || !self.said.pushes.is_empty() {
            self.turn(scene); // an outcome that was known at once led to more
        }
    }

    /// Bindings and what is said in rooms, by the link of the session concerned.
    fn tell_rooms(&mut self) {
        for (session, room, is_in) in std::mem::take(&mut self.said.moves) {
            self.room_version += 1;
            let version = self.room_version;
            if let Some((handle, worker)) = self.reach(session) {
                self.out.push((worker, FromBackend::Bind { handle, room, version, is_in }));
            }
        }
        for (room, from, body) in std::mem::take(&mut self.said.signals) {
            if let Some((except, worker)) = self.reach(from) {
                self.out.push((worker, FromBackend::PushRoom { room, except, body }));
            }
        }
    }

    /// Handle and worker of a session that a link speaks for.
    fn reach(&self, session: SessionId) -> Option<(u64, usize)> {
        let handle = *self.handles.get(&session)?;
        let Session { worker, is_reachable, .. } = self.sessions[&handle];
        is_reachable.then_some((handle, worker))
    }

    fn push(
        &mut self,
        scene: &mut Scene,
        (push, number, lane): (PushId, u64, Lane),
        sessions: &[SessionId],
        body: &Bytes,
    ) {
        let message: client::Push = message::decode(body).expect("a PUSH");
        let stored = self.ledger.stored(&message.conversation, message.seq).map(|stored| &stored.push);
        // That the group was made is stored too, but is no message.
        let is_said = message.happened.is_empty();
        assert!(!is_said || stored == Some(&message), "what is pushed is what was stored");
        let mut by_worker: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for session in sessions {
            if *session == SYSTEM {
                self.tell(scene, Event::Pushed { session: SYSTEM, push, outcome: Outcome::Acked });
                continue;
            }
            let handle = self.handles.get(session).copied();
            match handle.map(|handle| (handle, &self.sessions[&handle])) {
                Some((handle, Session { device, worker, is_reachable: true, .. })) => {
                    let name = (device.clone(), message.conversation.clone(), message.seq);
                    scene.coverage.repeated_pushes += u64::from(!self.pushed.insert(name));
                    self.outstanding.insert((number, handle));
                    by_worker.entry(*worker).or_default().push(handle);
                }
                _ => self.tell(scene, Event::Pushed { session: *session, push, outcome: Outcome::Offline }),
            }
        }
        for (worker, handles) in by_worker {
            scene.coverage.shared_pushes += u64::from(handles.len() > 1);
            let body = body.clone();
            self.out.push((worker, FromBackend::Push { correlation: number, handles, lane, body }));
        }
    }

    /// Gives an answer now, late, or never.
    fn reply(&mut self, scene: &mut Scene, place: Place, code: Code, answer: Bytes) {
        let (worker, generation, correlation) = place;
        let answer = FromBackend::Answer { correlation, code, answer };
        let (lost, late) = (scene.faults.lost, scene.faults.late);
        if scene.fault(lost) {
            scene.note(|| "  an answer is lost".into());
        } else {
            let wait = if scene.fault(late) { 5_000_000 } else { 0 };
            self.last_late += 1;
            self.late.insert(self.last_late, (worker, generation, answer));
            let wait = scene.micros(wait);
            scene.after(wait, What::Answer(self.last_late));
        }
    }

    /// An answer's time has come; it is void if its link died meanwhile.
    pub(crate) fn on_answer_due(&mut self, number: u64, generations: &[u32]) {
        // Of an earlier life of the backend nothing is left.
        let Some((worker, generation, answer)) = self.late.remove(&number) else { return };
        if generations[worker] == generation {
            self.out.push((worker, answer));
        }
    }

    /// The system speaks to a group, several times.
    pub(crate) fn announce(&mut self, scene: &mut Scene, count: u64) {
        for _ in 0..count {
            let key = [scene.random.next_u64(), scene.random.next_u64()].map(u64::to_be_bytes).concat();
            let send = client::Send {
                payload: Bytes::from(format!("news {}", self.last_question)),
                key: key.into(),
                target: Some(send::Target::Conversation("group:g".into())),
                ..client::Send::default()
            };
            self.ask_as_system(scene, Command::Send, encode(&send));
        }
        self.turn(scene);
    }

    /// Ends a login of somebody, by its handle or by name.
    pub(crate) fn kick_somebody(&mut self, scene: &mut Scene) {
        let is_honest = |session: &Session| self.users.contains(&session.device.0) && session.is_reachable;
        let sessions: Vec<_> = self.sessions.iter().filter(|(_, session)| is_honest(session)).collect();
        if sessions.is_empty() {
            return;
        }
        let (handle, session) = sessions[scene.index(sessions.len())];
        let (uid, device) = session.device.clone();
        let (target, code) = match scene.index(2) {
            0 => (Target::Connection(ConnKey::from_u64(*handle)), CloseReason::Kicked.code()),
            _ => (Target::Device(uid.into(), device.into()), KICKED_BY_NAME),
        };
        // A kick that means an older login must not hit this one.
        let login_version = session.version - u64::from(scene.random.one_in(3));
        let may_reconnect = scene.random.one_in(2);
        scene.coverage.kicks_by_backend += 1;
        self.out.push((session.worker, FromBackend::Kick { target, login_version, code, may_reconnect }));
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Nothing is under way from or to it.
    pub(crate) fn is_idle(&self) -> bool {
        self.late.is_empty() && self.out.is_empty() && self.outstanding.is_empty() && !self.is_turn_due
    }
}
