//! A client core against a gateway that keeps no rule: any bytes at any time, then any frames in any order.
//!
//! For example, a script connects, lets the gateway send a WELCOME with a window of 0 and a PUSH with place 2^64 - 1,
//! sends a message, loses the connection and lets an hour pass. The core must not panic, must write valid frames only, must
//! not ask for a timer in the past for ever or for one in days, must connect to listed addresses only, must bound what it
//! hands out, and must give each send and each request one result.

use crate::script::Script;
use bytes::{Bytes, BytesMut};
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{BODY_BYTES_CEILING, Command, Decoder, Flags, Frame, Lane, encode_batch};
use moorline_proto::message::client::{
    Ack, Close, GoAway, Kick, Notify, Platform, Push, Resp, SendAck, SubAck, Throttle, Welcome,
};
use moorline_proto::message::encode;
use moorline_proto::message::frame_of;
use moorline_proto::message::im::{Conversation, ConversationsResponse, PullResponse, VoidRange};
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::{
    ConversationCursor, Core, CoreConfig, Event, NetworkId, Newest, Notice, Repeat, RequestId, SendId,
    Target, Token, TokenSource, Tuning,
};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// Deadlines that may be due at one moment.
const DEADLINES_MAX: usize = 1_000;
/// Events that may follow from one input.
const EVENTS_MAX: usize = 10_000;
/// Values at which places, times and limits tend to be wrong.
const EDGES: [u64; 8] = [0, 1, 63, (1 << 63) - 1, 1 << 63, 0xffff_ffff, u64::MAX - 1, u64::MAX];
/// Longest time that a core may wait for anything: a heartbeat of an hour, with its jitter. Requests are asked for less.
const WAIT_MAX: Duration = Duration::from_secs(2 * 3600);
/// Addresses that the application has listed.
const LISTED: [&str; 2] = ["other:1", "third:1"];
/// Bytes that the application may hold without giving anything back.
const UNHANDLED_BYTES_MAX: usize = 20_000;
/// Notices that may follow from one input: those that nobody asked for, and those of rooms, holes and connections.
const NOTICES_MAX: usize = 256 + 1_024;

/// An empty message in the list of a [`PullResponse`].
const EMPTY_MESSAGE: &[u8] = &[1 << 3 | 2, 0];

static GOLDEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| crate::golden::golden("frames.json"));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    None,
    Connecting,
    Up,
}

struct World {
    core: Core,
    now: Instant,
    socket: Socket,
    sends: BTreeSet<SendId>,
    requests: BTreeSet<RequestId>,
    /// Messages with the application, and their bytes.
    tokens: Vec<(Token, usize)>,
    decoder: Decoder,
    is_closed: bool,
    /// Answers of thousands of messages that the gateway may still give: they take as long as 200 steps.
    large_answers: u32,
}

fn tuning() -> Tuning {
    Tuning {
        outbox_sends_max: 8,
        outbox_bytes_max: 2_000,
        requests_max: 4,
        conversations_max: 4,
        held_bytes_max: 3_000,
        unhandled_bytes_max: UNHANDLED_BYTES_MAX,
        compress_min: 100,
        ..Tuning::default()
    }
}

fn number(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        small @ 0..224 => u64::from(small % 32),
        edge => EDGES[usize::from(edge % 8)],
    }
}

fn short(script: &mut Script<'_>) -> u32 {
    u32::try_from(number(script) & u64::from(u32::MAX)).expect("32 bits")
}

fn conversation(script: &mut Script<'_>) -> String {
    let names = ["c2c:alice:bob", "group:g", "group:h", "c2c:alice:carol", "group:i", "", "nonsense"];
    match script.byte() {
        at @ 0..248 => names[usize::from(at) % names.len()].into(),
        length => "n".repeat(usize::from(length - 248) * 64), // up to 192 is a name
    }
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let kind = script.byte();
        let token = if kind & 1 == 0 { TokenSource::Ask } else { TokenSource::Fixed("t".into()) };
        let mut config = CoreConfig::new("alice", "phone", Platform::Linux, token);
        config.tuning = Arc::new(tuning());
        config.alternates = LISTED.iter().map(|address| Arc::from(*address)).collect();
        let mut core = Core::new(config, u64::from(kind));
        let mut sends = BTreeSet::new();
        if kind & 2 != 0 {
            let newest = Newest { place: number(script), stored_ms: number(script) };
            let cursor = ConversationCursor { start: number(script), next: number(script), newest };
            core.restore(&conversation(script), cursor);
            let key = core.fresh_key();
            let payload = Bytes::from_static(b"from an earlier run");
            sends.extend(core.restore_send(Instant::ZERO, key, Target::user("bob"), 1, payload).ok());
        }
        let mut world = Self {
            core,
            now: Instant::ZERO,
            socket: Socket::None,
            sends,
            requests: BTreeSet::new(),
            tokens: Vec::new(),
            decoder: Decoder::new(),
            is_closed: false,
            large_answers: 2,
        };
        world.settle();
        world.fire();
        world
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 24 {
            0 | 1 => self.connect(script),
            2 => self.hear(script.bytes()),
            3 => self.hear(&GOLDEN[script.below(GOLDEN.len())]),
            4 => self.welcome(script),
            5..=8 => self.push(script),
            9 => {
                let (cid, code) = (short(script), i32::from(script.byte() % 12));
                let (conversation, seq) = (conversation(script), number(script));
                let retry_after_ms = short(script);
                let ack = SendAck { cid, code, conversation, seq, retry_after_ms, ..SendAck::default() };
                self.say(script, &frame_of(Command::SendAck, &ack));
            }
            10 | 11 => self.answer(script),
            12 => {
                let (conversation, latest, first) = (conversation(script), number(script), number(script));
                self.say(script, &frame_of(Command::Notify, &Notify { conversation, latest, first }));
            }
            13 => {
                let ack = frame_of(Command::Ack, &Ack { sack: number(script) }).with_ack(short(script));
                self.say(script, &ack);
            }
            14 => self.farewell(script),
            15 if self.socket != Socket::None && script.byte() < 200 => {
                self.socket = Socket::None;
                self.core.handle_disconnected(self.now, None);
            }
            16 => self.send(script),
            17 => self.request(script),
            18 if !self.tokens.is_empty() => {
                let (token, _) = self.tokens.swap_remove(script.below(self.tokens.len()));
                self.core.handled(self.now, token);
            }
            19 => self.now += Duration::from_millis(u64::from(script.byte()) * 4),
            20 => self.now += Duration::from_secs(number(script).min(100_000)),
            21 => self.core.network_changed(
                self.now,
                Some(script.byte() % 5).filter(|it| *it < 4).map(|it| NetworkId(it.into())),
            ),
            22 => self.surroundings(script),
            _ => match script.byte() {
                255 => self.core.logout(self.now),
                254 => self.core.close(self.now),
                253 => self.core.handled(self.now, Token(number(script))),
                _ => self.say(script, &Frame::new(Command::Pong, Bytes::new())),
            },
        }
        self.settle();
        self.fire();
    }

    fn connect(&mut self, script: &mut Script<'_>) {
        if self.socket != Socket::Connecting {
            return;
        }
        if script.byte() < 32 {
            self.socket = Socket::None;
            self.core.handle_disconnected(self.now, None);
        } else {
            self.socket = Socket::Up;
            self.decoder = Decoder::new();
            self.core.handle_connected(self.now);
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.socket == Socket::Up {
            self.core.handle_bytes(self.now, Bytes::copy_from_slice(bytes));
        }
    }

    /// Sends a frame as it is, compressed, or in a batch.
    fn say(&mut self, script: &mut Script<'_>, frame: &Frame) {
        let mut bytes = Vec::new();
        match script.byte() % 8 {
            0 => {
                let packed = try_compress(&frame.body).unwrap_or_else(|| frame.body.clone());
                let packed = Frame::new(frame.header.command, packed).with_seq(frame.header.seq);
                packed.with_flags(Flags::COMPRESSED).encode(&mut bytes);
            }
            1 => {
                let mut inner = Vec::new();
                (0..=script.byte() % 3).for_each(|_| frame.encode(&mut inner));
                Frame::new(frame.header.command, inner.into()).with_flags(Flags::BATCH).encode(&mut bytes);
            }
            2 => {
                // Compressed frames in a compressed batch, or plain ones.
                let packed = try_compress(&frame.body).filter(|_| script.byte().is_multiple_of(2));
                let inner = match packed {
                    Some(packed) => Frame::new(frame.header.command, packed)
                        .with_seq(frame.header.seq)
                        .with_flags(Flags::COMPRESSED),
                    None => frame.clone(),
                };
                let batch = encode_batch(&vec![inner; 1 + script.below(128)]);
                let packed = try_compress(&batch.body);
                let flags =
                    if packed.is_some() { Flags::BATCH.with(Flags::COMPRESSED) } else { Flags::BATCH };
                Frame::new(batch.header.command, packed.unwrap_or(batch.body))
                    .with_flags(flags)
                    .encode(&mut bytes);
            }
            _ => frame.encode(&mut bytes),
        }
        self.hear(&bytes);
    }

    fn welcome(&mut self, script: &mut Script<'_>) {
        let kind = script.byte();
        let welcome = Welcome {
            version: 1,
            session: vec![kind % 4; 8].into(),
            epoch: u64::from(kind % 4),
            ticket: Bytes::from_static(b"ticket"),
            resumed: kind & 4 != 0,
            heartbeat_min_s: if kind & 8 == 0 { 30 } else { short(script) },
            heartbeat_max_s: if kind & 8 == 0 { 300 } else { short(script) },
            uplink_window: if kind & 16 == 0 { 64 } else { short(script) },
            downlink_window: if kind & 16 == 0 { 64 } else { short(script) },
            body_max: if kind & 32 == 0 { 65_536 } else { short(script) },
            cid_answered: if kind & 64 == 0 { 0 } else { short(script) },
            server_time_ms: number(script),
            alternates: if kind & 128 == 0 { Vec::new() } else { vec!["other:1".into(), String::new()] },
            accept: u32::from(kind >> 7),
            replay: if kind & 64 == 0 { 0 } else { short(script) },
        };
        self.say(script, &frame_of(Command::Welcome, &welcome));
    }

    fn message(script: &mut Script<'_>) -> Push {
        let kind = script.byte();
        Push {
            message_id: number(script),
            conversation: conversation(script),
            seq: number(script),
            sender: if kind & 1 == 0 { "bob".into() } else { "alice".into() },
            sender_device: if kind & 2 == 0 { "desk".into() } else { "phone".into() },
            payload: vec![kind; usize::from(kind & 0xF0)].into(),
            time_ms: number(script),
            happened: if kind & 0x0C == 0x0C { Bytes::copy_from_slice(script.bytes()) } else { Bytes::new() },
            ..Push::default()
        }
    }

    fn push(&mut self, script: &mut Script<'_>) {
        let push = Self::message(script);
        let lane = Lane::ALL[script.below(Lane::ALL.len())];
        let frame = frame_of(Command::Push, &push).with_seq(short(script)).with_lane(lane);
        self.say(script, &frame);
    }

    /// Answers a request, mostly as if it were a pull.
    fn answer(&mut self, script: &mut Script<'_>) {
        let (id, code) = (short(script), i32::from(script.byte() % 16).saturating_sub(5).max(0));
        if script.byte().is_multiple_of(4) {
            let answer = SubAck { id, code, ..SubAck::default() };
            return self.say(script, &frame_of(Command::SubAck, &answer));
        }
        let kind = script.byte() % 8;
        let payload = if kind == 0 {
            Bytes::copy_from_slice(script.bytes())
        } else if kind == 1 {
            let of = |script: &mut Script<'_>| Conversation {
                id: conversation(script),
                latest: number(script),
                ..Conversation::default()
            };
            let conversations = (0..script.byte() % 4).map(|_| of(script)).collect();
            encode(&ConversationsResponse { conversations, more: script.byte().is_multiple_of(2) })
        } else if kind == 2 {
            // Empty messages, two bytes each on the wire; now and then thousands.
            let few = 1 + script.below(200);
            let is_large = few == 200 && self.large_answers > 0;
            self.large_answers -= u32::from(is_large);
            let messages = EMPTY_MESSAGE.repeat(if is_large { 40 * few } else { few });
            [&messages[..], &encode(&pull_response(Vec::new(), Vec::new(), script))].concat().into()
        } else {
            let messages = (0..script.byte() % 4).map(|_| Self::message(script)).collect();
            let voids = (0..script.byte() % 3)
                .map(|_| VoidRange { from: number(script), to: number(script) })
                .collect();
            encode(&pull_response(messages, voids, script))
        };
        let answer = Resp { id, code, payload, retry_after_ms: short(script), ..Resp::default() };
        self.say(script, &frame_of(Command::Resp, &answer));
    }

    fn farewell(&mut self, script: &mut Script<'_>) {
        let (kind, reason) = (script.byte(), String::from("why"));
        let code = 4_000 + u32::from(script.byte() % 32);
        let frame = match kind % 4 {
            0 => frame_of(Command::Close, &Close { code, reason, retry_after_ms: short(script) }),
            1 => frame_of(Command::Kick, &Kick { code, may_reconnect: kind & 4 != 0, reason }),
            2 => {
                frame_of(Command::GoAway, &GoAway { window_ms: short(script), alternates: addresses(script) })
            }
            _ => frame_of(Command::Throttle, &Throttle { retry_after_ms: short(script), reason }),
        };
        self.say(script, &frame);
    }

    fn send(&mut self, script: &mut Script<'_>) {
        let target = if script.byte().is_multiple_of(2) { Target::user("bob") } else { Target::group("g") };
        let payload = Bytes::from(vec![7; usize::from(script.byte()) * 2]);
        if let Ok((id, _)) = self.core.send(self.now, target, 1, payload) {
            assert!(self.sends.insert(id), "{id:?} twice");
        }
    }

    fn request(&mut self, script: &mut Script<'_>) {
        let repeat = if script.byte().is_multiple_of(2) { Repeat::Once } else { Repeat::UntilAnswered };
        let timeout = Duration::from_secs(number(script).min(7_000));
        if let Ok(id) = self.core.request(self.now, "m", Bytes::from_static(b"what"), repeat, timeout) {
            assert!(self.requests.insert(id), "{id:?} twice");
        }
    }

    fn surroundings(&mut self, script: &mut Script<'_>) {
        let room = conversation(script);
        match script.byte() % 4 {
            0 => _ = self.core.enter_room(self.now, &room),
            1 => self.core.leave_room(self.now, &room),
            2 => _ = self.core.try_signal(self.now, &room, Bytes::from_static(b"typing")),
            _ => self.core.on_own_place(self.now, &room, number(script)),
        }
    }

    /// Drains the core, as its driver does after every call.
    fn settle(&mut self) {
        let mut notices = 0;
        for count in 0.. {
            assert!(count < EVENTS_MAX, "events without end");
            let Some(event) = self.core.poll_event() else { break };
            notices += usize::from(matches!(event, Event::Notice(_)));
            self.on_event(event);
        }
        assert!(!self.core.poll_transmit(&mut BytesMut::new()), "frames that no event announced");
        assert!(notices <= NOTICES_MAX, "{notices} notices of one input");
        // One message may be above the limit, and what waited behind a hole comes at once.
        let held: usize = self.tokens.iter().map(|(_, bytes)| bytes + 256).sum();
        assert!(held <= UNHANDLED_BYTES_MAX + 70_000, "the application holds {held} bytes");
        if let Some(at) = self.core.next_deadline() {
            let wait = at.saturating_since(self.now);
            assert!(wait <= WAIT_MAX, "waits for {wait:?}");
        }
    }

    /// Writes what the core has to say, if there is somebody to hear it.
    fn transmit(&mut self) {
        let mut written = BytesMut::new();
        self.core.poll_transmit(&mut written);
        if self.socket == Socket::Up {
            let mut written = written.freeze();
            while let Some(frame) =
                self.decoder.decode(&mut written, BODY_BYTES_CEILING).expect("valid frames")
            {
                frame.into_plain(BODY_BYTES_CEILING).expect("a valid body");
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        assert!(!self.is_closed, "{event:?} behind Closed");
        match event {
            Event::Transmit => self.transmit(),
            Event::Connect { alternate } => {
                let is_listed = alternate.as_deref().is_none_or(|address| LISTED.contains(&address));
                assert!(is_listed, "connects to {alternate:?}");
                assert_eq!(self.socket, Socket::None, "one connection at a time");
                self.socket = Socket::Connecting;
            }
            Event::Hangup => {
                assert_ne!(self.socket, Socket::None, "nothing to hang up");
                self.socket = Socket::None;
            }
            Event::TokenNeeded(_) => self.core.handle_token(self.now, Some("t".into()), None),
            Event::Sent(receipt) => assert!(self.sends.remove(&receipt.id), "{receipt:?}"),
            Event::SendFailed { id, .. } => assert!(self.sends.remove(&id), "{id:?}"),
            Event::Response { id, .. } => assert!(self.requests.remove(&id), "{id:?}"),
            Event::Message(message) => {
                let bytes = message.payload.len() + message.sender.len() + message.conversation.len();
                self.tokens.push((message.token, bytes));
            }
            Event::Notice(Notice::Closed(_)) => self.is_closed = true,
            Event::EndpointsNeeded { .. } | Event::Notice(_) => {}
        }
    }

    /// Calls the core at each deadline that is due.
    fn fire(&mut self) {
        for _ in 0..DEADLINES_MAX {
            match self.core.next_deadline() {
                Some(at) if at <= self.now => self.core.handle_timeout(self.now),
                _ => return,
            }
            self.settle();
        }
        panic!("time stands still at {:?}: {:?}", self.now, self.core.next_deadline());
    }

    /// The application closes the client: everything that is open gets its result.
    fn end(mut self) {
        self.core.close(self.now);
        self.settle();
        assert!(self.is_closed && self.core.is_closed());
        assert!(self.sends.is_empty(), "{:?} have no result", self.sends);
        assert!(self.requests.is_empty(), "{:?} have no result", self.requests);
        assert_eq!(self.core.sends_open(), 0);
    }
}

fn addresses(script: &mut Script<'_>) -> Vec<String> {
    let known = ["other:1", "THIRD:1", "evil:1", ""];
    (0..script.byte() % 4).map(|_| known[script.below(known.len())].to_owned()).collect()
}

fn pull_response(messages: Vec<Push>, voids: Vec<VoidRange>, script: &mut Script<'_>) -> PullResponse {
    PullResponse { messages, voids, latest: number(script), ..PullResponse::default() }
}

pub(crate) fn body(input: &[u8]) {
    let mut script = Script(input);
    let mut world = World::new(&mut script);
    while !script.0.is_empty() {
        world.step(&mut script);
    }
    world.end();
}

/// Scripts in which the gateway admits the client, then does anything.
pub(crate) fn scripts() -> Vec<Vec<u8>> {
    let mut random = moorline_proto::random::Random::new(17);
    let mut byte = || random.next_u64().to_le_bytes()[0];
    let script = |kind: u8| {
        let mut script = vec![kind];
        script.extend((0..if kind & 2 == 0 { 0 } else { 5 }).map(|_| byte()));
        // The connection stands, WELCOME with usual limits, a message comes, a message goes.
        script.extend([0, 255, 4, 4, 0, 7, 5, 0, 1, 0, 1, 9, 0, 1, 7, 16, 0, 9]);
        script.extend((0..100 + usize::from(byte())).map(|_| byte()));
        script
    };
    (0..32).map(script).collect()
}
