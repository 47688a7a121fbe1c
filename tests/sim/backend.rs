//! A stub of the instant-messaging backend: conversations that store each key once, one stream of
//! entries per user, one cursor per device. It answers RETRY, late or never when the dice say so.

use crate::cursor::{Cursor, Seat};
use crate::scene::{Scene, What};
use bytes::Bytes;
use moorline::handoff::Target;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::message::client::{self, Code, Req, Resp, SendAck, send};
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{self, encode};
use prost::Message as _;
use std::collections::BTreeMap;

/// The close code of a kick that names a device.
pub(crate) const KICKED_BY_NAME: u32 = 4501;

/// From a gateway's worker.
pub(crate) enum ToBackend {
    Up { correlation: u64, handle: u64, command: Command, body: Bytes },
    ConnUp(ConnUp),
    ConnDown { handle: u64 },
    Announce(Vec<ConnUp>),
    Pushed { correlation: u64, handle: u64, outcome: Outcome },
}

/// To a gateway's worker.
#[derive(Clone)]
pub(crate) enum FromBackend {
    Answer { correlation: u64, code: Code, answer: Bytes },
    Push { correlation: u64, handle: u64, body: Bytes },
    Kick { target: Target, login_version: u64, code: u32, may_reconnect: bool },
}

/// A stored message; its place is its index plus one.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) key: Bytes,
    pub(crate) push: client::Push,
}

/// One entry of a user's stream.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) conversation: String,
    pub(crate) seq: u64,
    sender: Device,
}

/// uid and device.
pub(crate) type Device = (String, String);

struct Session {
    device: Device,
    seat: Seat,
    /// A link speaks for it.
    is_reachable: bool,
}

#[derive(Default)]
pub(crate) struct Backend {
    users: Vec<String>,
    pub(crate) conversations: BTreeMap<String, Vec<Stored>>,
    keys: BTreeMap<Bytes, (String, u64)>,
    pub(crate) streams: BTreeMap<String, Vec<Entry>>,
    pub(crate) cursors: BTreeMap<Device, Cursor>,
    sessions: BTreeMap<u64, Session>,
    next_correlation: u64,
    /// Answers that wait for their time, with the life of the link they belong to.
    late: BTreeMap<u64, (usize, u32, FromBackend)>,
    next_late: u64,
    pub(crate) out: Vec<(usize, FromBackend)>,
}

impl Backend {
    pub(crate) fn new(users: &[&str]) -> Self {
        Self { users: users.iter().map(|uid| (*uid).to_owned()).collect(), ..Self::default() }
    }

    pub(crate) fn handle(&mut self, scene: &mut Scene, worker: usize, generation: u32, item: ToBackend) {
        match item {
            ToBackend::Up { correlation, handle, command, body } => {
                let answer = self.answer(scene, handle, command, &body);
                if let Some((code, answer)) = answer {
                    let answer = FromBackend::Answer { correlation, code, answer };
                    self.reply(scene, worker, generation, answer);
                }
            }
            ToBackend::ConnUp(login) => self.on_login(worker, login),
            ToBackend::ConnDown { handle } => self.on_logout(handle),
            ToBackend::Announce(logins) => {
                let is_named = |handle: &u64| logins.iter().any(|login| login.handle == *handle);
                let here = self.sessions.iter().filter(|(_, session)| session.seat.worker == worker);
                let gone: Vec<u64> =
                    here.map(|(handle, _)| *handle).filter(|handle| !is_named(handle)).collect();
                gone.into_iter().for_each(|handle| self.on_logout(handle));
                logins.into_iter().for_each(|login| self.on_login(worker, login));
            }
            ToBackend::Pushed { correlation, handle, outcome } => {
                let device = self.sessions.get(&handle).map(|session| session.device.clone());
                if let Some(device) = device {
                    let cursor = self.cursors.get_mut(&device).expect("a session has its device");
                    match outcome {
                        Outcome::Acked => cursor.on_acked(correlation),
                        _ => cursor.on_returned(correlation),
                    }
                    self.pump(&device);
                }
            }
        }
    }

    /// Gives an answer now, late, or never.
    fn reply(&mut self, scene: &mut Scene, worker: usize, generation: u32, answer: FromBackend) {
        let (lost, late) = (scene.faults.lost, scene.faults.late);
        if scene.fault(lost) {
            scene.note(|| "an answer is lost".into());
        } else if scene.fault(late) {
            self.next_late += 1;
            self.late.insert(self.next_late, (worker, generation, answer));
            scene.within(5_000, What::LateAnswer(self.next_late));
        } else {
            self.out.push((worker, answer));
        }
    }

    /// A late answer's time has come; it is void if its link died meanwhile.
    pub(crate) fn on_late(&mut self, number: u64, generations: &[u32]) {
        let (worker, generation, answer) = self.late.remove(&number).expect("kept for its time");
        if generations[worker] == generation {
            self.out.push((worker, answer));
        }
    }

    fn on_login(&mut self, worker: usize, login: ConnUp) {
        let device = (login.uid, login.device);
        let seat = Seat { version: login.login_version, handle: login.handle, worker };
        let entries = self.streams.get(&device.0).map_or(0, Vec::len);
        self.cursors.entry(device.clone()).or_insert_with(|| Cursor::new(entries));
        self.sessions.insert(login.handle, Session { device: device.clone(), seat, is_reachable: true });
        self.seat(&device);
    }

    /// A link died: nobody on it can be reached before it is announced again.
    pub(crate) fn on_link_down(&mut self, worker: usize) {
        let here = self.sessions.values_mut().filter(|session| session.seat.worker == worker);
        let lost = here.map(|session| {
            session.is_reachable = false;
            session.device.clone()
        });
        lost.collect::<Vec<_>>().iter().for_each(|device| self.seat(device));
    }

    fn on_logout(&mut self, handle: u64) {
        let Some(session) = self.sessions.remove(&handle) else { return };
        let cursor = self.cursors.get(&session.device).expect("a session has its device");
        if cursor.seat().is_some_and(|seat| seat.handle == handle) {
            self.seat(&session.device);
        }
    }

    /// The newest login of a device gets what is unacked.
    fn seat(&mut self, device: &Device) {
        let here = |session: &&Session| session.device == *device && session.is_reachable;
        let newest =
            self.sessions.values().filter(here).map(|session| session.seat).max_by_key(|seat| seat.version);
        self.cursors.get_mut(device).expect("registered").sit(newest);
        self.pump(device);
    }

    fn pump(&mut self, device: &Device) {
        let Some(stream) = self.streams.get(&device.0) else { return };
        let cursor = self.cursors.get_mut(device).expect("registered");
        loop {
            self.next_correlation += 1;
            let correlation = self.next_correlation;
            let Some(at) = cursor.next(correlation, stream.len()) else { return };
            let entry = &stream[at];
            if entry.sender == *device {
                cursor.skip(correlation);
                continue;
            }
            let seat = cursor.seat().expect("it may push");
            let place = usize::try_from(entry.seq - 1).expect("small");
            let body = encode(&self.conversations[&entry.conversation][place].push);
            self.out.push((seat.worker, FromBackend::Push { correlation, handle: seat.handle, body }));
        }
    }

    fn answer(
        &mut self,
        scene: &mut Scene,
        handle: u64,
        command: Command,
        body: &Bytes,
    ) -> Option<(Code, Bytes)> {
        let is_question = matches!(command, Command::Send | Command::Req);
        let device = self.sessions.get(&handle).map(|session| session.device.clone());
        // A login that ended meanwhile: nobody waits for the answer.
        let device = device.filter(|_| is_question)?;
        if scene.fault(scene.faults.retry) {
            scene.coverage.backend_retries += 1;
            return Some((Code::Retry, Bytes::new()));
        }
        if command == Command::Req {
            return Some(self.on_request(scene, body));
        }
        let send: Option<client::Send> = message::decode(body).ok();
        let Some((send, target)) = send.and_then(|mut send| send.target.take().map(|target| (send, target)))
        else {
            return Some((Code::Invalid, Bytes::new()));
        };
        let conversation = match target {
            send::Target::Conversation(id) => id,
            send::Target::User(to) if to < device.0 => format!("c2c:{to}:{}", device.0),
            send::Target::User(to) => format!("c2c:{}:{to}", device.0),
        };
        let (place, is_repeat) = self.append(scene, &device, conversation, send);
        scene.coverage.duplicate_uplinks += u64::from(is_repeat);
        let push = &self.conversations[&place.0][usize::try_from(place.1 - 1).expect("small")].push;
        let ack = SendAck {
            message_id: push.message_id,
            conversation: place.0,
            seq: place.1,
            time_ms: push.time_ms,
            ..SendAck::default()
        };
        Some((if is_repeat { Code::Dup } else { Code::Ok }, encode(&ack)))
    }

    fn on_request(&mut self, scene: &mut Scene, body: &Bytes) -> (Code, Bytes) {
        let Ok(req) = message::decode::<Req>(body) else { return (Code::Invalid, Bytes::new()) };
        let payload = match &*req.method {
            "im.pull" => {
                scene.coverage.pulls += 1;
                let Ok(pull) = PullRequest::decode(req.payload) else {
                    return (Code::Invalid, Bytes::new());
                };
                encode(&self.pull(&pull))
            }
            "echo" => req.payload,
            _ => return (Code::Unsupported, Bytes::new()),
        };
        (Code::Ok, encode(&Resp { payload, ..Resp::default() }))
    }

    fn pull(&self, pull: &PullRequest) -> PullResponse {
        let stored = self.conversations.get(&pull.conversation).map_or(&[][..], |stored| stored);
        let latest = stored.len() as u64;
        let wanted = stored.iter().filter(|stored| (pull.from..=pull.to).contains(&stored.push.seq));
        let messages: Vec<_> = wanted.take(5).map(|stored| stored.push.clone()).collect();
        let more = messages.last().is_some_and(|last| last.seq < pull.to.min(latest));
        PullResponse { messages, latest, more, ..PullResponse::default() }
    }

    /// Stores a message once per key, and puts it into the streams of the conversation's members.
    fn append(
        &mut self,
        scene: &Scene,
        from: &Device,
        conversation: String,
        send: client::Send,
    ) -> ((String, u64), bool) {
        if let Some(place) = self.keys.get(&send.key) {
            let known = &self.conversations[&place.0][usize::try_from(place.1 - 1).expect("small")].push;
            assert_eq!((&place.0, &known.payload), (&conversation, &send.payload), "one key, one message");
            return (place.clone(), true);
        }
        let places = self.conversations.entry(conversation.clone()).or_default();
        let seq = places.len() as u64 + 1;
        let push = client::Push {
            message_id: self.keys.len() as u64 + 1,
            conversation: conversation.clone(),
            seq,
            sender: from.0.clone(),
            sender_device: from.1.clone(),
            r#type: send.r#type,
            payload: send.payload,
            time_ms: scene.now.as_nanos() / 1_000_000,
        };
        places.push(Stored { key: send.key.clone(), push });
        self.keys.insert(send.key, (conversation.clone(), seq));
        for uid in self.users.clone() {
            let is_member =
                conversation.starts_with("group:") || conversation.split(':').skip(1).any(|name| name == uid);
            if is_member {
                let entry = Entry { conversation: conversation.clone(), seq, sender: from.clone() };
                self.streams.entry(uid.clone()).or_default().push(entry);
                let devices = self.cursors.keys().filter(|device| device.0 == uid);
                for device in devices.cloned().collect::<Vec<_>>() {
                    self.pump(&device);
                }
            }
        }
        ((conversation, seq), false)
    }

    /// The system speaks to a group, several times.
    pub(crate) fn announce(&mut self, scene: &Scene, count: u64) {
        for _ in 0..count {
            let number = self.keys.len() as u64;
            let send = client::Send {
                key: Bytes::from(format!("system {number}")),
                payload: Bytes::from(format!("news {number}")),
                ..client::Send::default()
            };
            self.append(scene, &("system".into(), String::new()), "group:g".into(), send);
        }
    }

    /// Ends a login of somebody, by its handle or by name.
    pub(crate) fn kick_somebody(&mut self, scene: &mut Scene) {
        let honest = self.sessions.values().filter(|session| self.users.contains(&session.device.0));
        let sessions: Vec<&Session> = honest.collect();
        if sessions.is_empty() {
            return;
        }
        let session = sessions[scene.index(sessions.len())];
        let Seat { version, handle, worker } = session.seat;
        let (uid, device) = session.device.clone();
        let (target, code) = match scene.index(2) {
            0 => (Target::Connection(ConnKey::from_u64(handle)), CloseReason::Kicked.code()),
            _ => (Target::Device(uid.into(), device.into()), KICKED_BY_NAME),
        };
        let may_reconnect = scene.random.one_in(2);
        scene.coverage.kicks_by_backend += 1;
        self.out.push((worker, FromBackend::Kick { target, login_version: version, code, may_reconnect }));
    }

    /// The entries of its stream that a device is to hear of.
    pub(crate) fn expected(&self, device: &Device) -> impl Iterator<Item = &Entry> {
        let start = self.cursors.get(device).map_or(usize::MAX, |cursor| cursor.start);
        let stream = self.streams.get(&device.0).into_iter().flatten();
        stream.skip(start).filter(move |entry| entry.sender != *device)
    }

    /// Whether a device has acked everything.
    pub(crate) fn is_caught_up(&self, device: &Device) -> bool {
        let entries = self.streams.get(&device.0).map_or(0, Vec::len);
        self.cursors.get(device).is_some_and(|cursor| cursor.acked() == entries)
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn stored(&self, conversation: &str, seq: u64) -> Option<&Stored> {
        let place = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.conversations.get(conversation)?.get(place)
    }

    /// No answer is kept for later.
    pub(crate) fn is_idle(&self) -> bool {
        self.late.is_empty() && self.out.is_empty()
    }
}
