//! A whole shard, driven by a script: what clients say, byte by byte or frame by frame, and everything that
//! workers, time and the system do to it. After each step all parts must agree; at the end nothing is left.

use crate::script::Script;
use bytes::Bytes;
use moorline::config::Retransmit;
use moorline::messages::{Admission, Downlink, Push, PushRef, Rank, Target, Uplink};
use moorline::shard::{Count, DrainOrder, Output, Outputs, Settings, Shard};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Decoder, Frame, Lane};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::{Ack, Code, Hello, Push as Message, Req, Resume, Sub, Welcome};
use moorline_proto::message::{decode, encode, frame_of, resp_body, send_ack_body};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::window::WindowLimits;
use std::cell::{OnceCell, RefCell};
use std::sync::{Arc, LazyLock};

/// Open sockets of one script.
const SOCKETS_MAX: usize = 6;
/// Users; each has two devices.
const USERS: u8 = 3;
/// Frames that clients may say whole.
static GOLDEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| crate::golden::golden("frames.json"));

struct World {
    shard: Shard,
    outputs: Outputs,
    now: Instant,
    /// Connections with bytes to write, and those whose send queue is to be looked at.
    writes: Vec<ConnKey>,
    checks: Vec<ConnKey>,
    sockets: Vec<ConnKey>,
    logins: Vec<(ConnKey, Box<Hello>)>,
    questions: Vec<(ConnKey, Command, u32)>,
    pushes: u64,
    /// Sessions that can be resumed, with their users.
    welcomes: Vec<(Welcome, u8)>,
    /// Users by the connection of their HELLO.
    names: Vec<(ConnKey, u8)>,
}

fn small_settings() -> Settings {
    Settings {
        body_bytes_max: 1_024,
        hello_bytes_max: 256,
        downlink: WindowLimits { frames_max: 4, bytes_max: 2_000 },
        queue_bytes_max: 4_000,
        queue_frames_max: 16,
        collapse_bytes_max: 1_000,
        memory_bytes_max: 6_000,
        session_keep: Duration::from_secs(20),
        kept_max: 2,
        devices_max: 2,
        heartbeat_s: (30, 300),
        frame_rate: 50,
        user_rate: 20,
        devices_of_kind: [1, 1, 1],
        batch_age: Duration::from_millis(200),
        batch_frames: 3,
        compress_min: 100,
        thaw_slots_max: 4_096,
        ..Settings::default()
    }
}

thread_local! {
    /// Sums over all scripts of this thread: a shard's counts, then the close reasons.
    static REACHED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// Made once: the defaults are read from text.
    static SETTINGS: OnceCell<Settings> = const { OnceCell::new() };
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let mut settings = settings();
        let kind = script.byte();
        settings.retransmit = if kind & 1 == 0 { Retransmit::Probe } else { Retransmit::Classic };
        settings.uplink_window = if kind & 2 == 0 { 64 } else { 1 };
        let now = Instant::from_nanos(5_000_000_000);
        Self {
            shard: Shard::new(settings, now),
            outputs: Outputs::new(1),
            now,
            writes: Vec::new(),
            checks: Vec::new(),
            sockets: Vec::new(),
            logins: Vec::new(),
            questions: Vec::new(),
            pushes: 0,
            welcomes: Vec::new(),
            names: Vec::new(),
        }
    }

    fn socket(&self, script: &mut Script<'_>) -> Option<ConnKey> {
        (!self.sockets.is_empty()).then(|| self.sockets[script.below(self.sockets.len())])
    }

    /// A socket that is there, or a key that is not.
    fn key(&self, script: &mut Script<'_>) -> ConnKey {
        let number = script.byte();
        let known = self.sockets.get(usize::from(number % 8)).copied();
        known.unwrap_or_else(|| ConnKey::from_u64(u64::from(number) << 32 | u64::from(number / 8)))
    }

    fn say(&mut self, key: Option<ConnKey>, bytes: &[u8]) {
        if let Some(key) = key {
            self.shard.handle_received(self.now, key, Bytes::copy_from_slice(bytes), &mut self.outputs);
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 32 {
            0 if self.sockets.len() < SOCKETS_MAX => {
                self.sockets.extend(self.shard.handle_accepted(self.now));
            }
            0..=2 => self.hello(script),
            3 => {
                let (key, bytes) = (self.socket(script), script.bytes());
                self.say(key, bytes);
            }
            4 => {
                let (key, index) = (self.socket(script), script.below(GOLDEN.len()));
                self.say(key, &GOLDEN[index]);
            }
            5..=12 => self.speak(script),
            13 | 14 => self.judge(script),
            15..=17 => self.answer(script),
            18..=22 => self.push(script),
            23 => self.now += Duration::from_millis(u64::from(script.byte())),
            24 if script.byte() < 64 => self.now += Duration::from_secs(u64::from(script.byte() / 2)),
            25 => {
                if let Some(key) = self.socket(script) {
                    self.shard.handle_peer_closed(self.now, key, &mut self.outputs);
                    self.sockets.retain(|socket| *socket != key);
                }
            }
            26 => self.order(script),
            27 => self.shard.handle_fanout(self.now, &mut self.outputs),
            28 => {
                let undelivered = script.below(2);
                for key in std::mem::take(&mut self.checks) {
                    self.shard.handle_send_queue(self.now, key, undelivered, &mut self.outputs);
                }
            }
            29 | 30 => {
                let most = script.byte();
                self.transmit(if most < 128 { usize::MAX } else { usize::from(most) });
            }
            _ if script.byte() == 255 => {
                let rate = (script.byte() & 1 == 1).then(|| u32::from(script.byte()));
                let order = DrainOrder { rate, ..DrainOrder::within(Duration::from_secs(1)) };
                self.shard.handle_drain(self.now, &order, &mut self.outputs);
            }
            _ if script.byte() == 254 => self.shard.handle_undrain(),
            _ => {}
        }
        self.shard.handle_timeouts(self.now, &mut self.outputs);
        self.settle();
        self.shard.check();
    }

    /// The ticket is that of a session, at times, and at times nobody's.
    fn hello(&mut self, script: &mut Script<'_>) {
        let (key, number) = (self.socket(script), script.byte());
        let (resume, who) = self.resume(script).map_or((None, number), |(it, who)| (Some(it), who));
        self.names.extend(key.map(|key| (key, who)));
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: format!("u{}", who % USERS),
            device: format!("d{}", who / USERS % 3),
            platform: i32::from(who / 16 % 8),
            accept: u32::from(who >> 7),
            resume,
            ..Hello::default()
        };
        let mut bytes = Vec::new();
        frame_of(Command::Hello, &hello).encode(&mut bytes);
        self.say(key, &bytes);
    }

    /// Frames as clients mean them, once or many times.
    fn speak(&mut self, script: &mut Script<'_>) {
        let (key, kind, number) = (self.socket(script), script.byte(), script.byte());
        let lane = Lane::ALL[usize::from(kind >> 6)];
        let (frame, times) = match kind % 16 {
            0..=7 => {
                let send =
                    Frame::new(Command::Send, Bytes::from_static(b"m")).with_seq(u32::from(number % 9));
                (send, 1)
            }
            8..=10 => {
                let sack = u64::from(script.byte() / 32);
                let mut ack = frame_of(Command::Ack, &Ack { sack });
                ack.header.ack = u32::from(number % 12);
                (ack, 1)
            }
            11 => (Frame::new(Command::App(0x40), Bytes::new()), usize::from(number)),
            12 => (Frame::new(Command::Ping, Bytes::new()), usize::from(number)),
            13 if number >= 240 => (Frame::new(Command::Req, Bytes::from_static(b"\xFF\xFF")), 1),
            13 => {
                let req = Req { id: number.into(), method: "m".into(), ..Req::default() };
                (frame_of(Command::Req, &req), usize::from(number / 8))
            }
            14 => (frame_of(Command::Sub, &Sub { id: number.into(), room: "room".into() }), 1),
            _ if number < 32 => (Frame::new(Command::Logout, Bytes::new()), 1),
            _ => (Frame::new(Command::Ping, Bytes::new()), 1),
        };
        let mut bytes = Vec::new();
        (0..times).for_each(|_| frame.clone().with_lane(lane).encode(&mut bytes));
        self.say(key, &bytes);
    }

    fn resume(&self, script: &mut Script<'_>) -> Option<(Resume, u8)> {
        let number = script.byte();
        let (welcome, who) =
            self.welcomes.iter().rev().nth(usize::from(number % 4)).filter(|_| number < 200)?;
        let (last_seq, sack) = (u32::from(script.byte() % 8), u64::from(script.byte() / 64));
        let (session, ticket) = (welcome.session.clone(), welcome.ticket.clone());
        Some((Resume { session, epoch: welcome.epoch, ticket, last_seq, sack }, *who))
    }

    fn judge(&mut self, script: &mut Script<'_>) {
        let Some((key, hello)) = self.logins.pop() else { return };
        let verdict = if script.byte() == 255 {
            Err(CloseReason::AuthFailed)
        } else {
            Ok(Admission {
                uid: hello.uid.clone(),
                device: hello.device.clone(),
                platform: hello.platform,
                accepts_lz4: hello.accept & 1 == 1,
                resume: hello.resume.clone().map(Box::new),
                ..Admission::default()
            })
        };
        self.shard.handle_downlink(self.now, Downlink::Verdict { key, verdict }, &mut self.outputs);
    }

    fn answer(&mut self, script: &mut Script<'_>) {
        if self.questions.is_empty() {
            return;
        }
        let at = script.below(self.questions.len());
        let (key, command, number) = self.questions.swap_remove(at);
        let code = [Code::Ok, Code::Dup, Code::Retry, Code::Invalid][script.below(4)];
        let (command, cid, body) = match command {
            Command::Send => (Command::SendAck, number, send_ack_body(number, code, b"")),
            _ => (Command::Resp, 0, resp_body(number, code, b"")),
        };
        let (is_final, rank) = (code != Code::Retry, Rank::ALL[number as usize % 3]);
        let answer = Downlink::Answer { key, command, cid, is_final, rank, body };
        self.shard.handle_downlink(self.now, answer, &mut self.outputs);
    }

    fn target(&self, script: &mut Script<'_>) -> Target {
        let uid = |script: &mut Script<'_>| format!("u{}", script.byte() % USERS).into_boxed_str();
        match script.byte() % 4 {
            0 => Target::User(uid(script)),
            1 => Target::Device(uid(script), format!("d{}", script.byte() % 2).into_boxed_str()),
            2 => Target::Room("room".into()),
            _ => Target::Connection(self.key(script)),
        }
    }

    fn push(&mut self, script: &mut Script<'_>) {
        self.pushes += 1;
        let (kind, length) = (script.byte(), usize::from(script.byte()) * 4);
        let conversation = format!("group:{}", kind % 3);
        let message = Message {
            conversation,
            seq: self.pushes,
            payload: vec![kind; length].into(),
            ..Message::default()
        };
        let body = encode(&message);
        let lane = Lane::ALL[usize::from(kind >> 2) % Lane::ALL.len()];
        let ticket = (kind & 1 == 1).then_some(PushRef {
            worker: 0,
            link: 0,
            link_generation: 0,
            correlation: self.pushes,
        });
        let push = Push {
            ticket,
            targets: (0..=script.byte() % 3).map(|_| self.target(script)).collect(),
            command: if kind & 64 == 0 { Command::Push } else { Command::App(0x41) },
            lane,
            rank: Rank::of(0, lane),
            expires_at: if kind & 2 == 0 { Instant::FAR_FUTURE } else { self.now + Duration::from_secs(1) },
            packed: moorline_proto::frame::compress::try_compress(&body),
            body,
            except: (kind & 128 != 0).then(|| self.key(script)),
            collapse: (kind & 32 != 0).then(|| "key".into()),
        };
        self.shard.handle_downlink(self.now, Downlink::Push(push), &mut self.outputs);
    }

    /// Inputs from workers.
    fn order(&mut self, script: &mut Script<'_>) {
        let (room, version): (Arc<str>, u64) = ("room".into(), script.byte().into());
        let order = match script.byte() % 7 {
            0 => {
                let keys = vec![self.key(script), self.key(script)];
                let reset = (script.byte() == 0).then_some((0, u64::MAX));
                Downlink::Bind { room, version, keys, reset }
            }
            1 => Downlink::Unbind { room, version, keys: vec![self.key(script)] },
            2 => {
                let (target, code) = (self.target(script), 4_000 + u32::from(script.byte()));
                let (login_version, may_reconnect) = (u64::from(script.byte()), code % 2 == 0);
                Downlink::Kick { target, login_version, code, may_reconnect, reason: "why".into() }
            }
            3 => {
                let slots = [0; 4].map(|_: u64| u64::from(script.byte()).wrapping_mul(0x0101_0101_0101_0101));
                Downlink::Hold { worker: 0, slots }
            }
            4 => Downlink::Overload { worker: 0, level: script.byte() % 4 },
            5 => Downlink::Announce { worker: 0, request: 1, slots: u64::MAX },
            _ => {
                let ticket = PushRef { worker: 0, link: 0, link_generation: 0, correlation: 1 };
                Downlink::Query { ticket, uid: "u1".into(), room: "room".into() }
            }
        };
        self.shard.handle_downlink(self.now, order, &mut self.outputs);
    }

    /// Writes like a kernel that takes at most this many bytes of each frame.
    fn transmit(&mut self, most: usize) {
        for key in std::mem::take(&mut self.writes) {
            let mut bytes = Vec::new();
            self.shard.gather(key, &mut bytes, 1 << 16);
            let mut whole = Bytes::copy_from_slice(&bytes);
            if let Ok(Some(frame)) = Decoder::new().decode(&mut whole, u32::MAX)
                && frame.header.command == Command::Welcome
            {
                let who = self.names.iter().rev().find(|(named, _)| *named == key).map_or(0, |(_, who)| *who);
                self.welcomes.push((decode(&frame.body).expect("a WELCOME"), who));
            }
            let sent = bytes.len().min(most);
            self.shard.handle_sent(key, sent, &mut self.outputs);
            if sent < bytes.len() {
                self.writes.push(key);
            }
        }
    }

    /// Takes what the shard wants done.
    fn settle(&mut self) {
        while let Some(output) = self.outputs.poll_output() {
            match output {
                Output::Write(key) => self.writes.push(key),
                Output::CheckSendQueue(key) => self.checks.push(key),
                Output::Close(key) => self.sockets.retain(|socket| *socket != key),
                Output::Reattach { from, to } => {
                    let socket = self.sockets.iter_mut().find(|socket| **socket == from);
                    *socket.expect("only a socket that is there is given to a session") = to;
                }
                Output::Move(..) => panic!("there is one shard only"),
                Output::FinalBytes(..)
                | Output::Ending(..)
                | Output::HalfClose(_)
                | Output::PauseReads(_)
                | Output::ResumeReads(_) => {}
            }
        }
        for uplink in self.outputs.uplinks[0].drain(..) {
            match uplink {
                Uplink::Login { key, hello, .. } => self.logins.push((key, hello)),
                Uplink::Up { key, command, number, .. } => self.questions.push((key, command, number)),
                _ => {}
            }
        }
    }

    /// All sockets close and time goes by: nothing is left.
    fn end(mut self) {
        for key in std::mem::take(&mut self.sockets) {
            self.shard.handle_peer_closed(self.now, key, &mut self.outputs);
        }
        for _ in 0..200 {
            self.now += Duration::from_secs(1);
            self.shard.handle_timeouts(self.now, &mut self.outputs);
            self.shard.handle_fanout(self.now, &mut self.outputs);
            if self.shard.clients() == 0 && !self.shard.has_fanout(self.now) {
                break;
            }
        }
        self.shard.check();
        assert_eq!((self.shard.clients(), self.shard.sessions()), (0, 0), "seats and sessions are left");
        let counters = self.shard.counters();
        assert_eq!(counters[Count::QueuedBytes], 0, "bytes are left");
        assert_eq!(counters[Count::Rooms], 0, "rooms are left");
        REACHED.with_borrow_mut(|reached| {
            let counts = counters.counts().iter().chain(counters.closes());
            reached.resize(counts.clone().count(), 0);
            reached.iter_mut().zip(counts).for_each(|(reached, count)| *reached += count);
        });
    }
}

pub(crate) fn body(input: &[u8]) {
    let mut script = Script(input);
    let mut world = World::new(&mut script);
    while !script.0.is_empty() {
        world.step(&mut script);
    }
    world.end();
}

/// Returns settings with small limits.
pub(crate) fn settings() -> Settings {
    SETTINGS.with(|cell| cell.get_or_init(small_settings).clone())
}

/// Panics unless all that protects a shard was reached: scripts that only knock at the door prove nothing.
pub(crate) fn check_reach() {
    let reached = REACHED.with_borrow(Clone::clone);
    let counts = Count::ALL.iter().map(|count| format!("{count:?}"));
    let closes = CloseReason::ALL.iter().map(|reason| format!("{reason:?}"));
    let never: Vec<String> =
        counts.chain(closes).zip(reached).filter(|(_, count)| *count == 0).map(|(name, _)| name).collect();
    // Another shard, the worker or the reactor does these; scripts are too short for them; or, as for compressed bodies,
    // another target has them.
    let elsewhere = "Connections Detached Paused Sessions Users Rooms QueuedBytes Timers Moved Fanouts FanoutsRefused \
                     RoomsRefused RefusedHere Unavailable Internal TokenExpired SessionsExpired HandshakesEvicted \
                     InputBytes UnpackedBytes FanoutDeliveriesFirst FanoutDeliveriesSecond FanoutDeliveriesLast \
                     FanoutWaitingFirst FanoutWaitingSecond FanoutWaitingLast";

    let is_missing = |name: &&String| elsewhere.split(' ').all(|known| known != name.as_str());
    let missing: Vec<_> = never.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "no script came to {missing:?}");
}

/// Accept, HELLO, verdict, and the WELCOME is written.
fn login(socket: u8, who: u8) -> [u8; 9] {
    [0, 1, socket, who, 255, 13, 0, 29, 0]
}

/// For each golden frame and each of its truncations: a client logs in and says it.
pub(crate) fn golden_scripts() -> Vec<Vec<u8>> {
    let mut scripts = Vec::new();
    for frame in &*GOLDEN {
        for cut in 0..=frame.len().min(255) {
            let mut script = vec![0];
            script.extend(login(0, 0));
            script.extend([3, 0, u8::try_from(cut).expect("at most 255")]);
            script.extend_from_slice(&frame[..cut]);
            script.extend([29, 0]);
            scripts.push(script);
        }
    }
    scripts
}

/// Scripts in which much happens: everybody logs in, then steps at random.
pub(crate) fn scripts() -> Vec<Vec<u8>> {
    let mut random = Random::new(11);
    let mut byte = || random.next_u64().to_le_bytes()[0];
    let script = |kind: u8| {
        let mut script = vec![kind];
        for (socket, who) in (0..).zip([0, 1, 3, 130, 6]) {
            script.extend(login(socket, who));
        }
        if kind % 4 == 3 {
            // One push that nobody acknowledges, however long.
            script.extend([18, 0, 10, 0, 0, 0, 29, 0].into_iter().chain([24, 0, 20, 28, 1, 29, 0].repeat(5)));
        }
        script.extend((0..200 + 2 * usize::from(byte())).map(|_| byte()));
        script
    };
    (0..64).map(script).collect()
}
