//! The backend's link host against gateways that keep no rule, under a handler that answers, pushes and binds at random.
//!
//! For example, a script opens two links, greets as epoch 2 of gateway `g0` on one and as epoch 1 on the other, announces
//! handle 3 on both, and cuts one of them in the middle of a frame. After each step all parts must agree; at the end, when
//! every lease is over, no session is left.

use crate::script::Script;
use bytes::{Bytes, BytesMut};
use moorline_backend::config::{LinkConfig, Unproven};
use moorline_backend::server::{
    Event, JudgeTo, Kick, LinkEnd, LinkHost, LinkId, Now, Output, Peer, PushSpec, ReplyTo, SessionId, Visitor,
};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::link::{Kind, LinkDecoder, NONCE_BYTES, encode, encode_empty};
use moorline_proto::message::backend::{
    Announce, Auth, ConnDown, ConnUp, Digest, LinkHello, PushOutcome, PushResult, Rank, RoomDigest, Stats, Up,
};
use moorline_proto::message::client::Code;
use moorline_proto::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

static GOLDEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| crate::golden::golden("link.json"));

struct World {
    host: LinkHost,
    now: Now,
    /// Open links, with the decoder of each gateway.
    links: BTreeMap<LinkId, LinkDecoder>,
    /// Links with bytes to write.
    writes: BTreeSet<LinkId>,
    paused: BTreeSet<LinkId>,
    sessions: BTreeSet<SessionId>,
    replies: Vec<ReplyTo>,
    judges: Vec<JudgeTo>,
}

/// Small limits. Made once: the defaults are read from text.
static CONFIG: LazyLock<LinkConfig> = LazyLock::new(small_config);

fn small_config() -> LinkConfig {
    LinkConfig {
        credit: 4,
        links_max: 4,
        visitors_max: 3,
        unproven: Unproven::Loopback,
        gateways_max: 2,
        sessions_max: 6,
        rooms_max: 3,
        output_max: 2_000,
        ..LinkConfig::default()
    }
}

fn room(script: &mut Script<'_>) -> &'static str {
    ["hall", "attic", "yard", "shed", ""][script.below(5)]
}

impl World {
    fn new() -> Self {
        Self {
            host: LinkHost::new(&CONFIG, "b".into(), 1),
            now: Now::default(),
            links: BTreeMap::new(),
            writes: BTreeSet::new(),
            paused: BTreeSet::new(),
            sessions: BTreeSet::new(),
            replies: Vec::new(),
            judges: Vec::new(),
        }
    }

    fn link(&self, script: &mut Script<'_>) -> Option<LinkId> {
        self.links.keys().nth(script.below(self.links.len())).copied()
    }

    /// A session that is there, or an id that is not.
    fn session(&self, script: &mut Script<'_>) -> SessionId {
        let number = script.byte();
        let known = self.sessions.iter().nth(usize::from(number % 8)).copied();
        known.unwrap_or_else(|| SessionId::new(u32::from(number % 8), u32::from(number / 8)))
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 28 {
            0 | 1 => {
                let visitor = Visitor { peer: Peer::Loopback, nonce: [7; NONCE_BYTES] };
                if let Some(link) = self.host.handle_link_opened(self.now, visitor) {
                    assert!(self.links.insert(link, LinkDecoder::new()).is_none(), "{link:?} twice");
                }
            }
            2..=12 => self.gateway(script),
            13 => {
                if let Some(link) = self.link(script) {
                    self.host.handle_link_closed(self.now, link, LinkEnd::Closed);
                }
            }
            14..=22 => self.handler(script),
            23 => self.pass(Duration::from_millis(u64::from(script.byte()) * 2)),
            24 if script.byte() < 64 => self.pass(Duration::from_secs(u64::from(script.byte() / 8))),
            _ => self.turn_end(script),
        }
        self.host.handle_timeouts(self.now);
        self.settle();
        self.host.check();
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).unwrap_or(0);
    }

    fn gateway(&mut self, script: &mut Script<'_>) {
        let Some(link) = self.link(script) else { return };
        let mut wire = BytesMut::new();
        let correlation = u64::from(script.byte());
        match script.byte() % 16 {
            0 => return self.hear(link, Bytes::copy_from_slice(script.bytes())),
            1 => return self.hear(link, Bytes::copy_from_slice(&GOLDEN[script.below(GOLDEN.len())])),
            2 | 3 => {
                let (kind, epoch) = (script.byte(), u64::from(script.byte() % 4));
                let version = if kind >= 240 { 2 } else { 1 };
                let node = ["g0", "g1", "g2", ""][usize::from(kind % 4)].into();
                let hello = LinkHello {
                    version_min: version,
                    version_max: version,
                    node,
                    epoch,
                    ..LinkHello::default()
                };
                encode(&mut wire, Kind::Hello, correlation, 0, &hello);
            }
            4 | 5 => {
                let login = login(script);
                encode(&mut wire, Kind::ConnUp, correlation, 0, &login);
            }
            6 => {
                let down = ConnDown { handle: u64::from(script.byte() % 8), code: u32::from(script.byte()) };
                encode(&mut wire, Kind::ConnDown, correlation, 0, &down);
            }
            7..=9 => {
                let command = [0x10, 0x15, 0x40, 0, 255, 1_000][script.below(6)];
                let body = Bytes::copy_from_slice(script.bytes());
                let (handle, seq) = (u64::from(script.byte() % 8), u32::from(script.byte()));
                let up = Up { handle, command, seq, dup: seq % 2 == 0, body };
                encode(&mut wire, Kind::Up, correlation, 0, &up);
            }
            10 => {
                let one = |script: &mut Script<'_>| PushOutcome {
                    correlation: u64::from(script.byte()),
                    handle: u64::from(script.byte() % 8),
                    outcome: i32::from(script.byte() % 7),
                };
                let outcomes = (0..script.byte() % 4).map(|_| one(script)).collect();
                let result = PushResult { outcomes };
                encode(&mut wire, Kind::PushResult, correlation, 0, &result);
            }
            11 => {
                let connections = (0..script.byte() % 8).map(|_| login(script)).collect();
                let announce = Announce { connections, more: script.byte().is_multiple_of(2) };
                encode(&mut wire, Kind::Announce, correlation, 0, &announce);
            }
            12 => encode(&mut wire, Kind::Digest, correlation, 0, &digest(script)),
            13 => {
                let auth = Auth { uid: "alice".into(), ..Auth::default() };
                encode(&mut wire, Kind::Auth, correlation, 0, &auth);
            }
            14 => {
                let stats = Stats { connections: script.byte().into(), ..Stats::default() };
                encode(&mut wire, Kind::Stats, correlation, 0, &stats);
            }
            _ => {
                let kind = Kind::ALL[script.below(Kind::ALL.len())];
                let credit = u32::from(script.byte());
                encode_empty(&mut wire, kind, correlation, credit);
            }
        }
        self.hear(link, wire.freeze());
    }

    /// One frame after the other, as the contract of the host wants it.
    fn hear(&mut self, link: LinkId, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let before = bytes.len();
            self.host.handle_link_bytes(self.now, link, &mut bytes);
            assert!(bytes.len() < before, "{before} bytes are left again and again");
            self.settle();
        }
    }

    /// Outputs of a handler, about live sessions and about others.
    fn handler(&mut self, script: &mut Script<'_>) {
        let (kind, session) = (script.byte(), self.session(script));
        let spec = PushSpec {
            command: if kind & 16 == 0 { Command::Push } else { Command::Notify },
            lane: Lane::ALL[usize::from(kind >> 6) % Lane::ALL.len()],
            want_ack: kind & 32 == 0,
            ttl_ms: 0,
            rank: [Rank::ByLane, Rank::First, Rank::Second, Rank::Last][usize::from(kind % 4)],
        };
        let length = usize::from(script.byte()) * 4;
        let out = self.host.outbox();
        match kind % 9 {
            0 | 1 if !self.replies.is_empty() => {
                let reply = self.replies.swap_remove(length % self.replies.len());
                out.answer(reply, Code::Ok, vec![1; length].into());
            }
            2 => {
                if let Some(judge) = self.judges.pop() {
                    if length % 8 == 0 {
                        out.admit(judge, "alice");
                    } else {
                        out.refuse(judge, CloseReason::AuthFailed, "no");
                    }
                }
            }
            3 | 4 => {
                let sessions: Vec<SessionId> =
                    [session].into_iter().chain(self.sessions.iter().copied()).collect();
                let count = 1 + length % sessions.len();
                out.push(&sessions[..count], spec, &vec![2; length].into());
            }
            5 => _ = out.bind(session, room(script)),
            6 => out.unbind(session, room(script)),
            7 => {
                let except = (length % 8 == 0).then_some(session);
                out.push_room(room(script), except, spec, &vec![3; length].into());
            }
            _ if length > 900 => out.come_back(),
            _ => out.kick(session, Kick::of(CloseReason::Kicked)),
        }
    }

    /// Writes what waits, to sockets that take everything or a part.
    fn turn_end(&mut self, script: &mut Script<'_>) {
        self.host.handle_turn_end(self.now);
        self.settle();
        for link in std::mem::take(&mut self.writes) {
            let most = match script.byte() {
                few @ 192.. => usize::from(few),
                _ => usize::MAX,
            };
            self.write(link, most);
        }
    }

    fn write(&mut self, link: LinkId, most: usize) {
        let Some(decoder) = self.links.get_mut(&link) else { return };
        let unsent = self.host.unsent(link);
        let count = unsent.len().min(most);
        let mut written = Bytes::copy_from_slice(&unsent[..count]);
        while decoder.decode(&mut written).expect("valid frames").is_some() {}
        if count < unsent.len() {
            self.writes.insert(link);
        }
        self.host.handle_link_sent(self.now, link, count);
        if most < usize::MAX {
            self.host.handle_link_writable(link);
        }
    }

    /// Takes what the host wants done.
    fn settle(&mut self) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Event(event) => self.on_event(event),
                Output::Auth { judge, .. } => self.judges.push(judge),
                Output::Write(link) => _ = self.writes.insert(link),
                Output::Close { link, .. } => {
                    assert!(self.links.remove(&link).is_some(), "{link:?} was closed before");
                    self.paused.remove(&link);
                }
                Output::Pause(link) => assert!(self.paused.insert(link), "{link:?} is paused"),
                Output::Resume(link) => assert!(self.paused.remove(&link), "{link:?} is read"),
                Output::Again => {}
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::ConnUp { session, is_new, .. } => {
                assert_eq!(self.sessions.insert(session), is_new, "{session:?}");
                assert!(self.sessions.len() <= CONFIG.sessions_max, "too many sessions");
            }
            Event::ConnDown { session, .. } => assert!(self.sessions.remove(&session), "{session:?} is gone"),
            Event::Up(up) => {
                assert!(self.sessions.contains(&up.session), "{up:?} of nobody");
                self.replies.extend(up.reply);
            }
            _ => {}
        }
    }

    /// All links close and every lease ends: nothing is left.
    fn end(mut self) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.host.handle_link_closed(self.now, link, LinkEnd::Closed);
        }
        for _ in 0..4 {
            self.settle();
            self.pass(Duration::from_secs(30));
            self.host.handle_timeouts(self.now);
            self.host.handle_turn_end(self.now);
        }
        self.settle();
        self.host.check();
        assert!(self.links.is_empty() && self.sessions.is_empty(), "{:?} are left", self.sessions);
    }
}

fn digest(script: &mut Script<'_>) -> Digest {
    let one = |script: &mut Script<'_>| RoomDigest {
        room: room(script).into(),
        members: script.byte().into(),
        hash: script.byte().into(),
        version: script.byte().into(),
    };
    let rooms = (0..script.byte() % 4).map(|_| one(script)).collect();
    Digest { round: script.byte().into(), rooms, more: script.byte().is_multiple_of(2) }
}

fn login(script: &mut Script<'_>) -> ConnUp {
    let number = script.byte();
    ConnUp {
        handle: u64::from(number % 8),
        uid: format!("u{}", number % 3),
        device: format!("d{}", number / 64),
        platform: i32::from(number % 8),
        login_version: u64::from(number / 32),
        issued_at: u64::from(number % 5),
    }
}

pub(crate) fn body(input: &[u8]) {
    let (mut script, mut world) = (Script(input), World::new());
    while !script.0.is_empty() {
        world.step(&mut script);
    }
    world.end();
}

/// Scripts in which two gateways greet and announce sessions, then anything happens.
pub(crate) fn scripts() -> Vec<Vec<u8>> {
    let mut random = moorline_proto::random::Random::new(19);
    let mut byte = || random.next_u64().to_le_bytes()[0];
    let mut script = || {
        let mut script = vec![0, 0];
        for (link, node) in [(0, 0), (1, 1)] {
            // HELLO, then two sessions.
            script.extend([2, link, 0, 2, node, 1, 2, link, 0, 4, 1 + link, 2, link, 0, 4, 3 + link, 25]);
        }
        script.extend((0..100 + usize::from(byte())).map(|_| byte()));
        script
    };
    (0..32).map(|_| script()).collect()
}

/// Each golden frame, said on a link that has greeted.
pub(crate) fn golden_scripts() -> Vec<Vec<u8>> {
    let script = |index: usize| {
        let number = u8::try_from(index).expect("at most 255 golden frames");
        vec![0, 2, 0, 0, 2, 0, 1, 2, 0, 0, 4, 1, 2, 0, 0, 1, number, 25]
    };
    (0..GOLDEN.len()).map(script).collect()
}
