//! A worker's router against backends that keep no rule, between shards that ask, answer announcements and refuse batches at
//! random.
//!
//! For example, a script opens both links, sends a SEND of a user of slot 3, lets one backend answer it twice and the other
//! one answer a question that was never asked, and loses both links. The router must not panic, must write valid frames only,
//! and must answer each SEND once and judge each login once, at the latest when its time is over.

use crate::script::Script;
use bytes::{Bytes, BytesMut};
use moorline::auth::Judge;
use moorline::messages::{Downlink, DownlinkBatch, PushRef, Uplink, UplinkBatch};
use moorline::router::{
    Balance, Connected, Failure, LinkIndex, LinkSettings, LinkTimes, Load, Output, OverloadLimits,
    ParkingLimits, Router, RouterSettings, Stores, Trust, Unproven,
};
use moorline::shard_map::ShardMap;
use moorline::snapshot::{Section, SocketRef};
use moorline_proto::frame::Command;
use moorline_proto::ids::{ConnKey, Pin, ShardId};
use moorline_proto::link::{Kind, LinkDecoder, NONCE_BYTES, encode, encode_empty};
use moorline_proto::message::backend::{
    AuthResult, Bind, ConnUp, Drain, Kick, LinkHello, Outcome, Push, Query, QueryResult, RoomDigest, Unbind,
    UpResult,
};
use moorline_proto::message::client::Hello;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::LazyLock;

const SHARDS: usize = 2;
const LINKS: usize = 2;
/// Users, each with one connection.
const USERS: u8 = 6;
/// Turns at one moment.
const TURNS_MAX: usize = 200;
/// Time of the clock at the start.
const START: Instant = Instant::from_nanos(5_000_000_000);

static GOLDEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| crate::golden::golden("link.json"));

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    Connecting,
    Open,
}

/// A backend's end of a link.
#[derive(Default)]
struct Backend {
    phase: Phase,
    decoder: LinkDecoder,
    /// Numbers of UPs and of AUTHs that were read.
    ups: Vec<u64>,
    auths: Vec<u64>,
}

struct World {
    router: Router,
    now: Instant,
    backends: [Backend; LINKS],
    logins: BTreeMap<ConnKey, ConnUp>,
    /// Answers by SEND, and verdicts by HELLO.
    sends: BTreeMap<(ConnKey, u32), u32>,
    hellos: BTreeMap<ConnKey, u32>,
    /// Announcements that shards owe.
    requests: Vec<(ShardId, u32, u64)>,
    /// Tickets of pushes and questions.
    tickets: Vec<PushRef>,
    last_number: u32,
    /// Batches that shards refuse.
    refusals: u8,
}

/// Settings with two endpoints and small limits.
pub(crate) fn settings() -> RouterSettings {
    let hello =
        LinkHello { version_min: 1, version_max: 1, node: "gw".into(), epoch: 5, ..LinkHello::default() };
    RouterSettings {
        shard_map: ShardMap::new(SHARDS),
        number: 0,
        endpoints: [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)).into()).into(),
        stores: Stores::default(),
        links_per_endpoint: 1,
        balance: Balance::LeastLoaded,
        link: LinkSettings {
            hello,
            times: LinkTimes::default(),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_secs(1),
            up_timeout: Duration::from_secs(3),
            output_max: 2_000,
            pending_bytes: 2_000,
            body_max: 1 << 20,
        },
        parking: ParkingLimits { frames: 8, bytes: 500, changes: 6 },
        overload: OverloadLimits {
            latency: Duration::from_millis(500),
            queue_frames: 6,
            hold: Duration::from_secs(2),
        },
        compress_min: 100,
        seed: 1,
    }
}

fn user(number: u8) -> (String, Pin, ConnKey) {
    let uid = format!("u{}", number % USERS);
    let pin = Pin::of(&uid);
    let key = ConnKey::new(pin.shard(SHARDS), u32::from(number % USERS), 1);
    (uid, pin, key)
}

fn ticket(number: u8) -> PushRef {
    let generation = u32::from(number / 4);
    PushRef {
        worker: 0,
        link: u16::from(number % 4),
        link_generation: generation,
        correlation: number.into(),
    }
}

impl World {
    fn new() -> Self {
        Self {
            router: Router::new(settings(), Judge::Backend, START),
            now: START,
            backends: Default::default(),
            logins: BTreeMap::new(),
            sends: BTreeMap::new(),
            hellos: BTreeMap::new(),
            requests: Vec::new(),
            tickets: Vec::new(),
            last_number: 0,
            refusals: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 24 {
            0 | 1 => self.connect(script),
            2..=11 => self.backend(script),
            12..=18 => {
                let (shard, item) = self.shard(script);
                self.router.handle_uplink(self.now, UplinkBatch { from: shard, items: vec![item] });
            }
            19 => self.now += Duration::from_millis(u64::from(script.byte()) * 4),
            20 if script.byte() < 64 => self.now += Duration::from_secs(u64::from(script.byte() / 8)),
            21 => {
                let link = LinkIndex(u16::from(script.byte() % 2));
                self.lose(link);
            }
            22 => self.refusals = script.byte() % 4,
            _ => {}
        }
        self.turn(script);
    }

    fn backend_of(&mut self, link: LinkIndex) -> &mut Backend {
        &mut self.backends[link.index()]
    }

    fn connect(&mut self, script: &mut Script<'_>) {
        let (link, fate) = (LinkIndex(u16::from(script.byte() % 2)), script.byte());
        if self.backend_of(link).phase != Phase::Connecting {
            return;
        }
        if fate < 32 {
            return self.lose(link);
        }
        *self.backend_of(link) = Backend { phase: Phase::Open, ..Backend::default() };
        let trust = Trust { secrets: Vec::new(), unproven: Unproven::Loopback };
        let connected = Connected {
            trust,
            nonce: [fate; NONCE_BYTES],
            is_known: false,
            is_encrypted: false,
            is_loopback: true,
            unix_base_nanos: 0,
        };
        self.router.handle_link_connected(self.now, link, connected);
        if fate < 224 {
            let hello = LinkHello {
                version_min: 1,
                version_max: 1,
                node: "b".into(),
                epoch: 1,
                ..LinkHello::default()
            };
            let mut wire = BytesMut::new();
            encode(&mut wire, Kind::Hello, 0, u32::from(fate % 8), &hello);
            self.router.handle_link_bytes(self.now, link, wire.freeze());
        }
    }

    fn lose(&mut self, link: LinkIndex) {
        if self.backend_of(link).phase != Phase::Closed {
            self.backend_of(link).phase = Phase::Closed;
            self.router.handle_link_closed(self.now, link, &Failure::Closed);
        }
    }

    /// Says something on a link.
    fn backend(&mut self, script: &mut Script<'_>) {
        let link = LinkIndex(u16::from(script.byte() % 2));
        let (number, credit) = (script.byte(), u32::from(script.byte() / 32));
        let mut wire = BytesMut::new();
        match number % 16 {
            0 => wire.extend_from_slice(script.bytes()),
            1 => wire.extend_from_slice(&GOLDEN[script.below(GOLDEN.len())]),
            2..=6 => {
                let (code, answer) = (i32::from(script.byte() % 12), Bytes::copy_from_slice(script.bytes()));
                let ups = &self.backends[link.index()].ups;
                let known = ups.iter().rev().nth(usize::from(number / 16) % 4).copied();
                encode(
                    &mut wire,
                    Kind::UpResult,
                    known.unwrap_or_else(|| number.into()),
                    credit,
                    &UpResult { code, answer, ..Default::default() },
                );
            }
            7 => {
                let (uid, ..) = user(number / 16);
                let code = if number >= 128 { 4_000 + u32::from(script.byte()) } else { 0 };
                let (issued_at, expires_at) = (u64::from(code), u64::from(code) * 2);
                let result = AuthResult { code, uid, reason: "why".into(), issued_at, expires_at };
                let known = self.backends[link.index()].auths.last().copied();
                encode(&mut wire, Kind::AuthResult, known.unwrap_or(1), credit, &result);
            }
            8 | 9 => encode(&mut wire, Kind::Push, script.byte().into(), credit, &push(script)),
            10 => {
                encode(&mut wire, Kind::Kick, 0, credit, &kick(number, script));
            }
            11 | 12 => {
                let handles = (0..script.byte() % 4).map(|_| handle(script)).collect();
                let (room, version) = ("hall".into(), script.byte().into());
                if number < 128 {
                    encode(
                        &mut wire,
                        Kind::Bind,
                        0,
                        credit,
                        &Bind { handles, room, version, reset: number < 32 },
                    );
                } else {
                    encode(&mut wire, Kind::Unbind, 0, credit, &Unbind { handles, room, version });
                }
            }
            13 => {
                let (uid, ..) = user(number / 16);
                encode(
                    &mut wire,
                    Kind::Query,
                    script.byte().into(),
                    credit,
                    &Query { uid, room: "hall".into() },
                );
            }
            14 => encode(&mut wire, Kind::Drain, 0, credit, &Drain { grace_ms: script.byte().into() }),
            _ => {
                let kind = Kind::ALL[script.below(Kind::ALL.len())];
                encode_empty(&mut wire, kind, script.byte().into(), credit);
            }
        }
        if self.backend_of(link).phase == Phase::Open {
            self.router.handle_link_bytes(self.now, link, wire.freeze());
        }
    }

    /// An item of a shard.
    fn shard(&mut self, script: &mut Script<'_>) -> (ShardId, Uplink) {
        let (kind, (uid, pin, key)) = (script.byte(), user(script.byte()));
        self.last_number += 1;
        let number = self.last_number;
        let item = match kind % 12 {
            0..=3 => {
                let command =
                    [Command::Send, Command::Req, Command::App(0x40), Command::Sub][usize::from(kind >> 6)];
                if command == Command::Send {
                    self.sends.insert((key, number), 0);
                }
                let body = Bytes::copy_from_slice(script.bytes());
                Uplink::Up { key, pin, command, number, is_dup: kind & 16 != 0, body }
            }
            4 | 5 => {
                let login_version = u64::from(kind / 16);
                let login = ConnUp {
                    handle: key.as_u64(),
                    uid,
                    device: "d".into(),
                    login_version,
                    ..ConnUp::default()
                };
                self.logins.insert(key, login.clone());
                Uplink::ConnUp { pin, login: Box::new(login) }
            }
            6 => {
                self.logins.remove(&key);
                Uplink::ConnDown { key, pin, code: u32::from(kind) }
            }
            7 => {
                let outcome = Outcome::try_from(i32::from(kind % 5)).expect("one of five");
                Uplink::Pushed { ticket: self.ticket(script), key, outcome }
            }
            8 => {
                let rooms = vec![(pin.slot(), RoomDigest { room: "hall".into(), ..RoomDigest::default() })];
                Uplink::Digest { round: u32::from(kind / 32), rooms, is_last: kind & 16 == 0 }
            }
            9 => Uplink::Held {
                ticket: self.ticket(script),
                held: QueryResult { handles: vec![key.as_u64()], ..QueryResult::default() },
            },
            10 => {
                // A key of its own: each HELLO is judged once.
                let key = ConnKey::new(key.shard(), 1_000 + number, 1);
                self.hellos.insert(key, 0);
                let hello = Hello { uid, device: "d".into(), token: "t".into(), ..Hello::default() };
                Uplink::Login { key, pin, hello: Box::new(hello) }
            }
            _ => return self.announced(script),
        };
        (key.shard(), item)
    }

    fn ticket(&self, script: &mut Script<'_>) -> PushRef {
        let number = script.byte();
        let known = self.tickets.iter().rev().nth(usize::from(number % 4)).copied();
        known.filter(|_| number < 200).unwrap_or_else(|| ticket(number))
    }

    /// Answers an announcement, or one that nobody asked for.
    fn announced(&mut self, script: &mut Script<'_>) -> (ShardId, Uplink) {
        let number = script.byte();
        let is_last = number < 200;
        let (shard, request, slots) = if self.requests.is_empty() {
            (ShardId(number % 2), u32::from(number), u64::MAX)
        } else if is_last {
            self.requests.remove(script.below(self.requests.len()))
        } else {
            self.requests[0]
        };
        (shard, Uplink::Announced { request, logins: self.named(shard, slots), is_last })
    }

    fn named(&self, shard: ShardId, slots: u64) -> Vec<(Pin, ConnUp)> {
        let all = self.logins.iter().map(|(key, login)| (key, Pin::of(&login.uid), login.clone()));
        let asked = all.filter(|(key, pin, _)| key.shard() == shard && slots >> pin.slot() & 1 == 1);
        asked.map(|(_, pin, login)| (pin, login)).collect()
    }

    /// Ends turns until nothing is due.
    fn turn(&mut self, script: &mut Script<'_>) {
        for _ in 0..TURNS_MAX {
            if self.router.has_logins() {
                self.router.handle_logins(self.now, 1, 32);
            }
            self.router.handle_timeouts(self.now);
            self.router.handle_turn_end(self.now);
            self.settle(script);
            if self.router.next_deadline() > self.now || self.refusals > 0 {
                return;
            }
        }
        panic!("time stands still at {:?}", self.now);
    }

    fn settle(&mut self, script: &mut Script<'_>) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Connect { link, .. } => {
                    assert_eq!(self.backend_of(link).phase, Phase::Closed, "one connection at a time");
                    self.backend_of(link).phase = Phase::Connecting;
                }
                Output::Close(link) => self.backend_of(link).phase = Phase::Closed,
                Output::Write(link) => self.write(link, script),
                Output::Deliver { shard, batch } => self.deliver(shard, batch),
                Output::MeasureLoad => {
                    let load = Load { connections: 1, sessions: 1, detached: 0, queued_bytes: 0 };
                    self.router.handle_load(load);
                }
            }
        }
    }

    fn write(&mut self, link: LinkIndex, script: &mut Script<'_>) {
        let backend = &mut self.backends[link.index()];
        if backend.phase != Phase::Open {
            return;
        }
        let output = self.router.link_output(link);
        let most = match script.0.len() % 8 {
            0 => usize::from(script.byte()),
            _ => usize::MAX,
        };
        let count = output.len().min(most);
        let mut written = Bytes::copy_from_slice(&output[..count]);
        while let Some(frame) = backend.decoder.decode(&mut written).expect("valid frames") {
            match frame.kind {
                Kind::Up if frame.correlation != 0 => backend.ups.push(frame.correlation),
                Kind::Auth => backend.auths.push(frame.correlation),
                _ => {}
            }
        }
        self.router.handle_link_sent(self.now, link, count);
    }

    fn deliver(&mut self, shard: ShardId, batch: DownlinkBatch) {
        assert!(shard.index() < SHARDS, "{shard:?}");
        if self.refusals > 0 {
            self.refusals -= 1;
            return self.router.handle_batch_refused(shard, batch);
        }
        for item in batch.items {
            match item {
                Downlink::Announce { worker, request, slots } => {
                    assert_eq!(worker, 0);
                    self.requests.push((shard, request, slots));
                }
                Downlink::Answer { key, command: Command::SendAck, cid, .. } => {
                    let answers = self.sends.get_mut(&(key, cid)).expect("an answer to a SEND");
                    *answers += 1;
                    assert_eq!(*answers, 1, "{key:?}, cid {cid}");
                }
                Downlink::Verdict { key, .. } => {
                    let verdicts = self.hellos.get_mut(&key).expect("a verdict on a HELLO");
                    *verdicts += 1;
                    assert_eq!(*verdicts, 1, "{key:?}");
                }
                Downlink::Push(push) => self.tickets.extend(push.ticket),
                Downlink::Query { ticket, .. } => self.tickets.push(ticket),
                _ => {}
            }
        }
    }

    /// The backends are gone and time passes: each question has its answer.
    fn end(mut self) {
        self.refusals = 0;
        for _ in 0..100 {
            (0..2).for_each(|link| self.lose(LinkIndex(link)));
            self.turn(&mut Script(&[]));
            if self.is_answered() {
                return;
            }
            self.now += Duration::from_secs(1);
        }
        let open: Vec<_> = self.sends.iter().filter(|(_, answers)| **answers == 0).collect();
        assert!(open.is_empty(), "{open:?} have no answer");
        let open: Vec<_> = self.hellos.iter().filter(|(_, verdicts)| **verdicts == 0).collect();
        assert!(open.is_empty(), "{open:?} have no verdict");
    }

    /// True if each question has its answer.
    fn is_answered(&self) -> bool {
        let mut counts = self.sends.values().chain(self.hellos.values());
        counts.all(|count| *count > 0)
    }
}

fn kick(number: u8, script: &mut Script<'_>) -> Kick {
    let (uid, _, key) = user(script.byte());
    Kick {
        handle: if number < 128 { key.as_u64() } else { 0 },
        uid,
        device: if number < 64 { "d".into() } else { String::new() },
        login_version: script.byte().into(),
        code: 4_000 + u32::from(script.byte()),
        may_reconnect: number % 32 < 16,
        reason: "why".into(),
    }
}

/// The handle of a connection that is there, or any number.
fn handle(script: &mut Script<'_>) -> u64 {
    let number = script.byte();
    if number < 224 { user(number).2.as_u64() } else { u64::from(number) << 56 }
}

fn push(script: &mut Script<'_>) -> Push {
    let kind = script.byte();
    let (uid, _, key) = user(script.byte());
    Push {
        handles: if kind & 1 == 0 { vec![key.as_u64(), handle(script)] } else { Vec::new() },
        uids: if kind & 2 == 0 { vec![uid, "somebody".into()] } else { Vec::new() },
        room: if kind & 4 == 0 { "hall".into() } else { String::new() },
        command: [0x12, 0x14, 0x41, 0x200][usize::from(kind >> 6)],
        lane: u32::from(script.byte() % 5),
        want_ack: kind & 8 != 0,
        ttl_ms: if kind & 16 == 0 { 0 } else { u32::from(script.byte()) },
        collapse_key: if kind & 32 == 0 { String::new() } else { "key".into() },
        body: vec![kind; usize::from(script.byte()) * 2].into(),
        except: if kind & 128 == 0 { 0 } else { key.as_u64() },
        rank: i32::from(kind % 5),
    }
}

pub(crate) fn body(input: &[u8]) {
    run(input).end();
}

fn run(input: &[u8]) -> World {
    let (mut script, mut world) = (Script(input), World::new());
    world.turn(&mut script);
    while !script.0.is_empty() {
        world.step(&mut script);
    }
    world
}

/// The section of a router that has run a script.
pub(crate) fn frozen(input: &[u8]) -> Section {
    let mut world = run(input);
    world.refusals = 0;
    world.turn(&mut Script(&[]));
    let mut section = Section::default();
    let mut name = |link: LinkIndex| Ok((SocketRef { fd: 10 + i32::from(link.0), cookie: 1 }, None));
    world.router.freeze(&mut section, &mut name).expect("every socket has a name");
    section
}

/// Scripts in which both links open and users log in, then anything happens.
pub(crate) fn scripts() -> Vec<Vec<u8>> {
    let mut random = moorline_proto::random::Random::new(23);
    let mut byte = || random.next_u64().to_le_bytes()[0];
    let mut script = || {
        let mut script = vec![0, 0, 100, 0, 1, 100];
        // Both shards name their logins for both links.
        script.extend([12, 11, 0, 0, 0].repeat(4));
        for number in 0..USERS {
            script.extend([12, 4, number, 12, 0, number, 1, 7]);
        }
        script.extend((0..100 + usize::from(byte())).map(|_| byte()));
        script
    };
    (0..32).map(|_| script()).collect()
}
