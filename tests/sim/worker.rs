//! A worker with one link to the backend, as messages: the rules of `moorline::worker` for what is
//! pending, parked, announced and sent again, without its sockets.

use crate::scene::{Scene, What};
use bytes::Bytes;
use moorline::handoff::{Admission, Downlink, Push, PushTicket, Target, Uplink};
use moorline::homes::Homes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::{ACCEPT_LZ4, try_compress};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::{ConnKey, Pin, ShardId};
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::message::client::{Code, Resp, SendAck, SubAck};
use moorline_proto::message::encode;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

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

/// True if a client waits for an answer to it.
pub(crate) const fn is_question(command: Command) -> bool {
    matches!(command, Command::Send | Command::Req | Command::Sub | Command::Unsub)
}

/// Time after which an UP without an answer is answered RETRY.
const UP_TIMEOUT: Duration = Duration::from_secs(3);

/// A client's frame on its way to the backend.
struct Up {
    key: ConnKey,
    command: Command,
    number: u32,
    is_dup: bool,
    deadline: Instant,
    body: Bytes,
}

enum Parked {
    Up(Up),
    Change(ToBackend),
}

enum Link {
    Down,
    /// Shards that have not yet named their logins.
    Announcing {
        request: u32,
        silent: Vec<bool>,
        logins: Vec<ConnUp>,
    },
    Live,
}

pub(crate) struct Worker {
    number: usize,
    shards: usize,
    homes: Homes,
    link: Link,
    pub(crate) generation: u32,
    next_request: u32,
    next_correlation: u64,
    pending: BTreeMap<u64, Up>,
    parked: VecDeque<Parked>,
    timed_out: Vec<u64>,
    armed: Option<Instant>,
    pub(crate) to_backend: Vec<ToBackend>,
    pub(crate) to_shards: Vec<(ShardId, Downlink)>,
}

impl Up {
    const fn is_question(&self) -> bool {
        is_question(self.command)
    }

    fn answer(&self, code: i32, retry_after_ms: u32, answer: &[u8]) -> (ShardId, Downlink) {
        let (command, cid, mut body) = match self.command {
            Command::Req => {
                let lead = Resp { id: self.number, code, retry_after_ms, ..Resp::default() };
                (Command::Resp, 0, encode(&lead).to_vec())
            }
            Command::Sub | Command::Unsub => {
                let lead = SubAck { id: self.number, code, ..SubAck::default() };
                (Command::SubAck, 0, encode(&lead).to_vec())
            }
            _ => {
                let lead = SendAck { cid: self.number, code, retry_after_ms, ..SendAck::default() };
                (Command::SendAck, self.number, encode(&lead).to_vec())
            }
        };
        body.extend_from_slice(answer);
        let is_final = code != i32::from(Code::Retry);
        (self.key.shard(), Downlink::Answer { key: self.key, command, cid, is_final, body: body.into() })
    }
}

impl Worker {
    pub(crate) fn new(number: usize, shards: usize, homes: Homes) -> Self {
        Self {
            number,
            shards,
            homes,
            link: Link::Down,
            generation: 0,
            next_request: 0,
            next_correlation: 0,
            pending: BTreeMap::new(),
            parked: VecDeque::new(),
            timed_out: Vec::new(),
            armed: None,
            to_backend: Vec::new(),
            to_shards: Vec::new(),
        }
    }

    pub(crate) fn handle_uplink(&mut self, scene: &mut Scene, from: ShardId, item: Uplink) {
        match item {
            Uplink::Login { key, pin, hello } => {
                assert_eq!(
                    pin.worker(scene.faults.workers),
                    self.number,
                    "a login comes to its pin's worker"
                );
                let admission = Admission {
                    uid: hello.uid,
                    device: hello.device,
                    platform: hello.platform,
                    accepts_lz4: hello.accept & ACCEPT_LZ4 != 0,
                    resume: hello.resume.map(Box::new),
                };
                let verdict = if scene.fault(30) {
                    scene.coverage.refusals += 1;
                    Err(CloseReason::Busy)
                } else {
                    Ok(admission)
                };
                self.to_shards.push((key.shard(), Downlink::Verdict { key, verdict }));
            }
            Uplink::Up { key, command, number, is_dup: dup, body, .. } => {
                let is_same = |up: &Up| (up.key, up.command, up.number) == (key, Command::Send, number);
                let is_pending = self.pending.values().any(is_same);
                assert!(
                    dup || command != Command::Send || !is_pending,
                    "cid {number} of {key:?} comes twice"
                );
                let deadline = scene.now + UP_TIMEOUT;
                let up = Up { key, command, number, is_dup: dup, deadline, body };
                if matches!(self.link, Link::Live) {
                    self.send(up);
                } else {
                    self.parked.push_back(Parked::Up(up));
                }
                self.arm(scene);
            }
            Uplink::ConnUp { login, .. } => self.change(ToBackend::ConnUp(*login)),
            Uplink::ConnDown { key, .. } => self.change(ToBackend::ConnDown { handle: key.as_u64() }),
            Uplink::Pushed { ticket, key, outcome } => {
                if ticket.link_generation == self.generation && !matches!(self.link, Link::Down) {
                    let (correlation, handle) = (ticket.correlation, key.as_u64());
                    self.to_backend.push(ToBackend::Pushed { correlation, handle, outcome });
                }
            }
            Uplink::Digest { .. } | Uplink::Held { .. } => {}
            Uplink::Announced { request, logins, is_last } => {
                self.on_announced(from, request, logins, is_last);
            }
        }
    }

    fn change(&mut self, change: ToBackend) {
        match self.link {
            Link::Down => {} // the announcement to come names who is there then
            Link::Announcing { .. } => self.parked.push_back(Parked::Change(change)),
            Link::Live => self.to_backend.push(change),
        }
    }

    fn send(&mut self, up: Up) {
        self.next_correlation += 1;
        let correlation = self.next_correlation;
        self.to_backend.push(ToBackend::Up {
            correlation,
            handle: up.key.as_u64(),
            command: up.command,
            is_dup: up.is_dup,
            body: up.body.clone(),
        });
        if up.is_question() {
            self.pending.insert(correlation, up);
        }
    }

    fn on_announced(&mut self, from: ShardId, asked: u32, named: Vec<(Pin, ConnUp)>, is_last: bool) {
        let Link::Announcing { request, silent, logins } = &mut self.link else { return };
        if asked != *request {
            return;
        }
        logins.extend(named.into_iter().map(|(_, login)| login));
        silent[from.index()] &= !is_last;
        if silent.contains(&true) {
            return;
        }
        self.to_backend.push(ToBackend::Announce(std::mem::take(logins)));
        self.link = Link::Live;
        for parked in std::mem::take(&mut self.parked) {
            match parked {
                Parked::Up(up) => self.send(up),
                Parked::Change(change) => self.to_backend.push(change),
            }
        }
    }

    /// A new life of the link: who is here?
    pub(crate) fn on_link_up(&mut self) {
        assert!(matches!(self.link, Link::Down));
        self.generation += 1;
        self.next_request += 1;
        let request = self.next_request;
        self.link = Link::Announcing { request, silent: vec![true; self.shards], logins: Vec::new() };
        for shard in 0..self.shards {
            let worker = u16::try_from(self.number).expect("few workers");
            let ask = Downlink::Announce { worker, request, slots: u64::MAX };
            self.to_shards.push((ShardId(u8::try_from(shard).expect("few shards")), ask));
        }
    }

    /// The link is gone: what was not answered goes out again, in order, before all else.
    pub(crate) fn on_link_down(&mut self, scene: &mut Scene) {
        self.link = Link::Down;
        self.parked.retain(|parked| matches!(parked, Parked::Up(_)));
        for (_, mut up) in std::mem::take(&mut self.pending).into_iter().rev() {
            up.is_dup = true;
            scene.coverage.link_resends += 1;
            self.parked.push_front(Parked::Up(up));
        }
    }

    pub(crate) fn handle_backend(&mut self, scene: &mut Scene, item: FromBackend) {
        match item {
            FromBackend::Answer { correlation, code, answer } => {
                if let Some(up) = self.pending.remove(&correlation) {
                    let retry_after_ms = if code == Code::Retry { 100 } else { 0 };
                    self.to_shards.push(up.answer(code.into(), retry_after_ms, &answer));
                } else {
                    scene.coverage.late_answers += u64::from(self.timed_out.contains(&correlation));
                }
            }
            FromBackend::Push { correlation, handles, lane, body } => {
                let ticket = PushTicket {
                    worker: u16::try_from(self.number).expect("few workers"),
                    link: 0,
                    link_generation: self.generation,
                    correlation,
                };
                let mut by_shard: BTreeMap<ShardId, Vec<Target>> = BTreeMap::new();
                for key in handles.into_iter().map(ConnKey::from_u64) {
                    by_shard.entry(key.shard()).or_default().push(Target::Connection(key));
                }
                for (shard, targets) in by_shard {
                    let (command, body) = (Command::Push, body.clone());
                    let expires_at = Instant::FAR_FUTURE;
                    let (packed, collapse, ticket) = (try_compress(&body), None, Some(ticket));
                    let except = None;
                    let push =
                        Push { ticket, targets, command, lane, expires_at, body, packed, except, collapse };
                    self.to_shards.push((shard, Downlink::Push(push)));
                }
            }
            FromBackend::Bind { handle, room, version, is_in } => {
                let (key, room) = (ConnKey::from_u64(handle), room.into());
                let keys = vec![key];
                let order = if is_in {
                    Downlink::Bind { room, version, keys, reset: None }
                } else {
                    Downlink::Unbind { room, version, keys }
                };
                self.to_shards.push((key.shard(), order));
            }
            FromBackend::PushRoom { room, except, body } => {
                let room: Arc<str> = room.into();
                for shard in (0..self.shards).map(|shard| ShardId(u8::try_from(shard).expect("few shards"))) {
                    let push = Push {
                        ticket: None,
                        targets: vec![Target::Room(Arc::clone(&room))],
                        command: Command::App(0x40),
                        lane: Lane::Chat,
                        expires_at: Instant::FAR_FUTURE,
                        body: body.clone(),
                        packed: None,
                        except: Some(ConnKey::from_u64(except)),
                        collapse: None,
                    };
                    self.to_shards.push((shard, Downlink::Push(push)));
                }
            }
            FromBackend::Kick { target, login_version, code, may_reconnect } => {
                let shard = match &target {
                    Target::Connection(key) => key.shard(),
                    Target::Room(_) => panic!("a kick names a login"),
                    Target::User(uid) | Target::Device(uid, _) => self.homes.first(Pin::of(uid)),
                };
                let reason = String::from("told by the backend");
                self.to_shards
                    .push((shard, Downlink::Kick { target, login_version, code, may_reconnect, reason }));
            }
        }
    }

    /// Other clients of this worker are not to be read, and other load is shed, than before.
    pub(crate) fn press(&mut self, scene: &mut Scene, is_over: bool) {
        let worker = u16::try_from(self.number).expect("few workers");
        let mask = |scene: &mut Scene| match scene.index(3) {
            _ if is_over => 0,
            0 => scene.random.next_u64(),
            1 => u64::MAX,
            _ => 0,
        };
        let slots = [(); 4].map(|()| mask(scene));
        let level = if is_over { 0 } else { u8::try_from(scene.index(4)).expect("small") };
        for shard in (0..self.shards).map(|shard| ShardId(u8::try_from(shard).expect("few shards"))) {
            self.to_shards.push((shard, Downlink::Hold { worker, slots }));
            self.to_shards.push((shard, Downlink::Overload { worker, level }));
        }
    }

    /// Answers RETRY to what waited too long, sent or not.
    pub(crate) fn handle_timeout(&mut self, scene: &mut Scene) {
        if self.armed.is_none_or(|armed| armed > scene.now) {
            return;
        }
        self.armed = None;
        let now = scene.now;
        let mut gone = Vec::new();
        for (correlation, up) in std::mem::take(&mut self.pending) {
            if up.deadline <= now {
                self.timed_out.push(correlation);
                gone.push(up);
            } else {
                self.pending.insert(correlation, up);
            }
        }
        for parked in std::mem::take(&mut self.parked) {
            match parked {
                Parked::Up(up) if up.deadline <= now => gone.push(up),
                other => self.parked.push_back(other),
            }
        }
        for up in gone.iter().filter(|up| up.is_question()) {
            scene.coverage.timeout_retries += 1;
            let retry_after_ms = 100 + u32::try_from(scene.random.below(400)).expect("small");
            self.to_shards.push(up.answer(Code::Retry.into(), retry_after_ms, b""));
        }
        self.arm(scene);
    }

    fn arm(&mut self, scene: &mut Scene) {
        let parked = self.parked.iter().filter_map(|parked| match parked {
            Parked::Up(up) => Some(up.deadline),
            Parked::Change(_) => None,
        });
        let Some(at) = self.pending.values().map(|up| up.deadline).chain(parked).min() else { return };
        if self.armed.is_none_or(|armed| armed > at || armed < scene.now) {
            self.armed = Some(at);
            scene.at(at, What::WorkerTimer(self.number));
        }
    }

    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.link, Link::Live)
    }

    /// Nothing waits for the backend.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.parked.is_empty() && self.to_backend.is_empty()
    }
}
