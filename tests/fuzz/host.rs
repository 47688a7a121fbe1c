//! A whole link host, driven by a script: frames of gateways, whole or cut, and everything that a handler, sockets
//! and time do to it. After each step all parts must agree; at the end nothing is left.

use crate::shard::Script;
use bytes::{Bytes, BytesMut};
use moorline_backend::config::LinkConfig;
use moorline_backend::server::{
    Event, JudgeTo, Kick, LinkEnd, LinkHost, LinkId, Now, Output, PushSpec, ReplyTo, SessionId,
};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::link::{Kind, encode};
use moorline_proto::message::backend::{Announce, ConnDown, ConnUp, Digest, LinkHello, RoomDigest, Up};
use moorline_proto::message::client::Code;
use moorline_proto::random::{Random, mix};
use moorline_proto::time::Duration;
use prost::Message;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Frames that gateways may say whole.
static GOLDEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| crate::corpus::golden("link.json"));
/// Room of all sessions.
const ROOM: &str = "hall";
/// Handles and gateways of a script.
const NAMES: usize = 3;

/// Results that scripts must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Session,
    SessionEnded,
    GatewayDown,
    Auth,
    Answer,
    Undelivered,
    Pause,
    Resume,
    Stalled,
    Silent,
    NoHello,
    Protocol,
    Refused,
    LinkRefused,
    Repair,
}

const ALL: [Reached; 15] = [
    Reached::Session,
    Reached::SessionEnded,
    Reached::GatewayDown,
    Reached::Auth,
    Reached::Answer,
    Reached::Undelivered,
    Reached::Pause,
    Reached::Resume,
    Reached::Stalled,
    Reached::Silent,
    Reached::NoHello,
    Reached::Protocol,
    Reached::Refused,
    Reached::LinkRefused,
    Reached::Repair,
];

thread_local! {
    static REACHED: RefCell<BTreeSet<Reached>> = const { RefCell::new(BTreeSet::new()) };
}

fn reach(what: Reached) {
    REACHED.with_borrow_mut(|reached| _ = reached.insert(what));
}

struct World {
    host: LinkHost,
    now: Now,
    links: Vec<LinkId>,
    replies: Vec<ReplyTo>,
    judges: Vec<JudgeTo>,
    sessions: BTreeSet<SessionId>,
    gateways: usize,
    is_timeout: bool,
}

fn config() -> LinkConfig {
    LinkConfig {
        credit: 2,
        links_max: 4,
        gateways_max: 2,
        sessions_max: 3,
        rooms_max: 2,
        output_max: 300,
        stall_timeout: Duration::from_secs(2),
        hello_timeout: Duration::from_secs(1),
        silence_timeout: Duration::from_secs(6),
        lease: Duration::from_secs(3),
        ..LinkConfig::default()
    }
}

impl World {
    fn say(&mut self, script: &mut Script<'_>, kind: Kind, correlation: u64, body: &impl Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, correlation, 0, body);
        self.feed(script, wire.freeze());
    }

    fn feed(&mut self, script: &mut Script<'_>, mut input: Bytes) {
        let Some(link) = self.links.get(script.below(self.links.len())).copied() else { return };
        while !input.is_empty() {
            let before = input.len();
            self.host.handle_link_bytes(self.now, link, &mut input);
            self.drain();
            assert!(input.len() < before, "bytes are taken or the link is closed");
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.below(24) {
            0 => self.open(),
            1..=3 => {
                let (node, epoch) = (format!("g{}", script.below(NAMES)), script.below(3) as u64);
                let version_max = u32::from(script.below(8) != 0);
                let hello = LinkHello { version_min: 1, version_max, node, epoch, ..LinkHello::default() };
                self.say(script, Kind::Hello, 0, &hello);
            }
            4 => {
                let frame = &GOLDEN[script.below(GOLDEN.len())];
                self.feed(script, Bytes::from_static(frame));
            }
            5 => {
                let bytes = Bytes::copy_from_slice(script.bytes());
                self.feed(script, bytes);
            }
            6 | 7 => {
                let login = login(script.below(NAMES));
                self.say(script, Kind::ConnUp, 0, &login);
            }
            8 => {
                let connections = (0..script.below(NAMES + 1)).map(login).collect();
                self.say(script, Kind::Announce, 0, &Announce { connections, more: false });
            }
            9 => {
                let handle = script.below(NAMES) as u64;
                self.say(script, Kind::ConnDown, 0, &ConnDown { handle, code: 0 });
            }
            10..=12 => {
                let (handle, command) = (script.below(NAMES) as u64, Command::Send.byte().into());
                let correlation = script.byte().into();
                self.say(script, Kind::Up, correlation, &Up { handle, command, ..Up::default() });
            }
            13 => self.digest(script),
            14 => self.answer(),
            15..=17 => self.speak(script),
            18 => {
                let Some(link) = self.links.get(script.below(self.links.len())).copied() else { return };
                let count = self.host.unsent(link).len().min(usize::from(script.byte()) * 4);
                self.host.handle_link_sent(self.now, link, count);
                self.host.handle_link_writable(link);
            }
            19 => {
                let Some(link) = self.links.get(script.below(self.links.len())).copied() else { return };
                self.host.handle_link_closed(self.now, link, LinkEnd::Closed);
            }
            20 | 21 => self.pass(Duration::from_millis(u64::from(script.byte()) * 20)),
            _ => self.host.handle_turn_end(self.now),
        }
        self.drain();
    }

    fn open(&mut self) {
        match self.host.handle_link_opened(self.now) {
            Some(link) => self.links.push(link),
            None => reach(Reached::LinkRefused),
        }
    }

    fn digest(&mut self, script: &mut Script<'_>) {
        let (members, hash) = (1, mix(script.below(NAMES) as u64));
        let room = RoomDigest { room: ROOM.into(), members, hash, version: 1 };
        let (rooms, more) = (vec![room; script.below(3)], script.below(4) == 0);
        let before = self.host.outbox().room_repairs();
        self.say(script, Kind::Digest, 0, &Digest { rooms, more, ..Digest::default() });
        if self.host.outbox().room_repairs() > before {
            reach(Reached::Repair);
        }
    }

    fn answer(&mut self) {
        if let Some(reply) = self.replies.pop() {
            reach(Reached::Answer);
            self.host.outbox().answer(reply, Code::Ok, Bytes::new());
        }
        if let Some(judge) = self.judges.pop() {
            self.host.outbox().admit(judge, "user");
        }
    }

    /// A handler speaks to a session, perhaps one that has ended.
    fn speak(&mut self, script: &mut Script<'_>) {
        let slot = u32::try_from(script.below(NAMES)).expect("small");
        let known = self.sessions.iter().find(|session| session.slot() == slot as usize).copied();
        let session = known.unwrap_or(SessionId::new(slot, 0));
        let spec = PushSpec { command: Command::Push, lane: Lane::Chat, want_ack: true, ttl_ms: 0 };
        let body = Bytes::from(vec![0; usize::from(script.byte())]);
        let out = self.host.outbox();
        match script.below(6) {
            0 | 1 => _ = out.push(&[session], spec, &body),
            2 | 3 => _ = out.bind(session, ROOM),
            4 => out.push_room(ROOM, Some(session), spec, &body),
            _ if script.below(2) == 0 => out.unbind(session, ROOM),
            _ => out.kick(session, Kick::of(CloseReason::Kicked)),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.is_timeout = true;
        self.host.handle_timeouts(self.now);
        self.drain();
        self.is_timeout = false;
    }

    fn drain(&mut self) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Event(event) => self.on_event(event),
                Output::Auth { judge, .. } => {
                    reach(Reached::Auth);
                    self.judges.push(judge);
                }
                Output::Close { link, end } => {
                    self.links.retain(|open| *open != link);
                    match end {
                        LinkEnd::Stalled => reach(Reached::Stalled),
                        LinkEnd::Silent => reach(Reached::Silent),
                        LinkEnd::NoHello => reach(Reached::NoHello),
                        LinkEnd::Protocol(_) => reach(Reached::Protocol),
                        LinkEnd::Refused(_) => reach(Reached::Refused),
                        LinkEnd::Closed | LinkEnd::Io(_) => {}
                    }
                }
                Output::Pause(_) => reach(Reached::Pause),
                Output::Resume(_) => reach(Reached::Resume),
                Output::Write(link) => assert!(self.links.contains(&link), "{link:?} is closed"),
                Output::Again => {}
            }
        }
        self.host.check();
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::ConnUp { session, is_new, .. } => {
                reach(Reached::Session);
                assert_eq!(self.sessions.insert(session), is_new);
            }
            Event::ConnDown { session, .. } => {
                reach(Reached::SessionEnded);
                assert!(self.sessions.remove(&session), "{session:?} ends once");
            }
            Event::GatewayUp { .. } => self.gateways += 1,
            Event::GatewayDown { .. } => {
                reach(Reached::GatewayDown);
                self.gateways -= 1;
            }
            Event::Up(up) => {
                assert!(self.sessions.contains(&up.session), "{up:?} of nobody");
                self.replies.extend(up.reply);
            }
            Event::Pushed { .. } if self.is_timeout => reach(Reached::Undelivered),
            _ => {}
        }
    }

    /// All links end, and time passes: nothing is left.
    fn finish(mut self) {
        for link in self.links.clone() {
            self.host.handle_link_closed(self.now, link, LinkEnd::Closed);
        }
        self.drain();
        self.pass(config().lease + Duration::from_secs(1));
        assert!(self.links.is_empty() && self.sessions.is_empty() && self.gateways == 0, "something is left");
    }
}

fn login(handle: usize) -> ConnUp {
    let (handle, uid) = (handle as u64, format!("user{handle}"));
    ConnUp { handle, uid, device: "phone".into(), login_version: 1, ..ConnUp::default() }
}

/// Runs one script.
pub(crate) fn body(input: &[u8]) {
    let mut world = World {
        host: LinkHost::new(&config(), "b".into(), 1),
        now: Now::default(),
        links: Vec::new(),
        replies: Vec::new(),
        judges: Vec::new(),
        sessions: BTreeSet::new(),
        gateways: 0,
        is_timeout: false,
    };
    let mut script = Script(input);
    while !script.is_empty() {
        world.step(&mut script);
    }
    world.finish();
}

/// Scripts that begin with a gateway and its sessions, and go on at random.
pub(crate) fn scripts() -> Vec<Vec<u8>> {
    let mut random = Random::new(13);
    let mut byte = || random.next_u64().to_le_bytes()[0];
    let script = |kind: usize| {
        // A link, its HELLO as g0 of epoch 1, two logins.
        let mut script = vec![0, 1, 0, 1, 1, 0, 6, 0, 0, 6, 1, 0];
        if kind.is_multiple_of(4) {
            // Two pushes that nobody reads, the end of the turn, and 2.2 s.
            script.extend([15, 0, 255, 0, 15, 0, 255, 0, 22, 20, 110]);
        }
        script.extend((0..60 + 2 * usize::from(byte())).map(|_| byte()));
        script
    };
    (0..64).map(script).collect()
}

/// Panics unless everything that protects a link host was reached: scripts that only knock at the door prove nothing.
pub(crate) fn check_reach() {
    let reached = REACHED.with_borrow(Clone::clone);
    let missing: Vec<_> = ALL.iter().filter(|what| !reached.contains(*what)).collect();
    assert!(missing.is_empty(), "no script came to {missing:?}");
}
