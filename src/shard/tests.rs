//! Behaviours of one shard, seen from its inputs and outputs alone.

mod detached;
mod execution;
mod fanouts;
mod freezing;
mod input;
mod limits;
mod waiting;

use super::*;
use crate::messages::{Admission, Downlink, Push, PushRef, Rank, Target, Uplink};
use crate::shard_map::ShardMap;
use moorline_proto::frame::{Batch, Command, Decoder, Flags, Frame, Lane};
use moorline_proto::ids::{Pin, Seq};
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{Ack, Close, Code, Hello, Kick, Ping, Req, Resp, SendAck, Welcome};
use moorline_proto::message::{decode, frame_of, send_ack_body};
use moorline_proto::time::Duration;
use moorline_proto::window::WindowLimits;

struct World {
    shard: Shard,
    now: Instant,
    outputs: Outputs,
}

fn settings() -> Settings {
    Settings {
        downlink: WindowLimits { frames_max: 4, bytes_max: 64 << 10 },
        queue_bytes_max: 10_000,
        queue_frames_max: 100,
        devices_max: 4,
        unix_base_nanos: 1_000_000_000,
        session_keep: Duration::ZERO,
        ..Settings::default()
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        Self { shard: Shard::new(settings(), now), now, outputs: Outputs::new(1) }
    }

    fn accept(&mut self) -> ConnKey {
        self.shard.handle_accepted(self.now).expect("room")
    }

    fn bytes(&mut self, key: ConnKey, bytes: &[u8]) {
        self.shard.handle_received(self.now, key, Bytes::copy_from_slice(bytes), &mut self.outputs);
        self.shard.check();
    }

    fn frame(&mut self, key: ConnKey, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.bytes(key, &bytes);
    }

    fn downlink(&mut self, downlink: Downlink) {
        self.shard.handle_downlink(self.now, downlink, &mut self.outputs);
        self.shard.check();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.shard.handle_timeouts(self.now, &mut self.outputs);
        while self.shard.next_deadline() == Some(Instant::ZERO) {
            self.shard.handle_timeouts(self.now, &mut self.outputs);
        }
        self.shard.check();
    }

    fn login(&mut self, uid: &str, device: &str) -> ConnKey {
        self.login_as(Admission { uid: uid.into(), device: device.into(), ..Admission::default() })
    }

    fn login_as(&mut self, admission: Admission) -> ConnKey {
        let key = self.accept();
        let (uid, device) = (admission.uid.as_str(), admission.device.as_str());
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: uid.into(),
            device: device.into(),
            ..Default::default()
        };
        self.frame(key, &frame_of(Command::Hello, &hello));
        assert!(matches!(self.uplinks().last(), Some(Uplink::Login { .. })));
        self.downlink(Downlink::Verdict { key, verdict: Ok(admission) });
        let frames = self.written(key);
        assert_eq!(frames[0].header.command, Command::Welcome);
        decode::<Welcome>(&frames[0].body).expect("a WELCOME");
        key
    }

    fn uplinks(&mut self) -> Vec<Uplink> {
        std::mem::take(&mut self.outputs.uplinks[0])
    }

    /// Everything the connection has to say, as if the kernel took it all.
    fn written(&mut self, key: ConnKey) -> Vec<Frame> {
        let mut bytes = Vec::new();
        self.shard.gather(key, &mut bytes, usize::MAX);
        self.shard.handle_sent(key, bytes.len(), &mut self.outputs);
        let (mut bytes, mut decoder, mut frames) = (Bytes::from(bytes), Decoder::new(), Vec::new());
        while let Some(frame) = decoder.decode(&mut bytes, u32::MAX).expect("own frames") {
            frames.push(frame);
        }
        frames
    }

    fn close_code(&mut self, key: ConnKey) -> Option<u32> {
        let last = self.written(key).pop()?;
        (last.header.command == Command::Close).then(|| decode::<Close>(&last.body).expect("a CLOSE").code)
    }

    fn push(&mut self, key: ConnKey, correlation: u64, body: &'static [u8]) {
        self.push_on(Lane::Chat, key, correlation, body);
    }

    fn push_on(&mut self, lane: Lane, key: ConnKey, correlation: u64, body: &'static [u8]) {
        let ticket = PushRef { worker: 0, link: 0, link_generation: 0, correlation };
        self.downlink(Downlink::Push(Push {
            ticket: Some(ticket),
            targets: vec![Target::Connection(key)],
            command: Command::Push,
            lane,
            rank: Rank::of(0, lane),
            expires_at: Instant::FAR_FUTURE,
            body: Bytes::from_static(body),
            packed: None,
            except: None,
            collapse: None,
        }));
    }

    /// The operations on sockets that the shard asked for since the last call.
    fn operations(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.outputs.poll_output()).collect()
    }

    /// The sockets that the shard closed since the last call.
    fn closes(&mut self) -> Vec<ConnKey> {
        let close = |output| if let Output::Close(key) = output { Some(key) } else { None };
        self.operations().into_iter().filter_map(close).collect()
    }

    fn outcomes(&mut self) -> Vec<(u64, Outcome)> {
        let pushed = |uplink| match uplink {
            Uplink::Pushed { ticket, outcome, .. } => Some((ticket.correlation, outcome)),
            _ => None,
        };
        self.uplinks().into_iter().filter_map(pushed).collect()
    }
}

fn send(cid: Seq) -> Frame {
    Frame::new(Command::Send, Bytes::from_static(b"m")).with_seq(cid)
}

fn cids(uplinks: &[Uplink]) -> Vec<(Seq, bool)> {
    let up = |uplink: &Uplink| match uplink {
        Uplink::Up { number, is_dup, .. } => Some((*number, *is_dup)),
        _ => None,
    };
    uplinks.iter().filter_map(up).collect()
}

/// Returns the backend's answer to a SEND.
fn answer(key: ConnKey, cid: Seq, code: Code, rank: Rank) -> Downlink {
    let (command, is_final) = (Command::SendAck, code != Code::Retry);
    Downlink::Answer { key, command, cid, is_final, rank, body: send_ack_body(cid, code, b"") }
}

#[test]
fn sends_go_up_in_order_once_and_answers_come_back() {
    let mut world = World::new();
    let key = world.login("alice", "phone");
    assert!(matches!(world.uplinks()[..], [Uplink::ConnUp { .. }]));
    for cid in [2, 1, 1, 4, 3] {
        world.frame(key, &send(cid));
    }
    let ups = world.uplinks();
    assert_eq!(cids(&ups), [(1, false), (2, false), (3, false), (4, false)]);
    world.downlink(answer(key, 1, Code::Ok, Rank::First));
    let frames = world.written(key);
    assert_eq!((frames[0].header.command, frames[0].header.ack), (Command::SendAck, 4));
    // An answer is remembered; what is not, is the durable key's business.
    world.frame(key, &send(1));
    assert!(world.uplinks().is_empty() && world.written(key)[0].header.flags.contains(Flags::DUP));
    world.downlink(answer(key, 2, Code::Retry, Rank::First));
    world.written(key);
    world.frame(key, &send(2));
    assert_eq!(cids(&world.uplinks()), [(2, true)]);
    world.frame(key, &send(67));
    assert_eq!(world.close_code(key), Some(CloseReason::Window.code()));
}

#[test]
fn a_connection_moves_to_its_users_home_with_its_bytes() {
    let now = Instant::from_nanos(1_000_000_000);
    let home = Pin::of("alice").shard(2);
    let other = ShardId(1 - home.0);
    let shard = |id| Shard::new(Settings { shard: id, shard_map: ShardMap::new(2), ..settings() }, now);
    let (mut first, mut second, mut outputs) = (shard(other), shard(home), Outputs::new(1));
    let key = first.handle_accepted(now).expect("room");
    let hello = Hello {
        version_min: 1,
        version_max: 9,
        uid: "alice".into(),
        device: "d".into(),
        ..Default::default()
    };
    let mut bytes = Vec::new();
    frame_of(Command::Hello, &hello).encode(&mut bytes);
    let mut ping = Vec::new();
    frame_of(Command::Ping, &Ping { next_s: 60 }).encode(&mut ping);
    bytes.extend_from_slice(&ping[..7]);
    first.handle_received(now, key, bytes.into(), &mut outputs);
    let admission =
        Admission { uid: "alice".into(), device: "d".into(), platform: 1, ..Admission::default() };
    first.handle_downlink(now, Downlink::Verdict { key, verdict: Ok(admission) }, &mut outputs);
    first.check();
    assert_eq!(first.clients(), 0);
    let moved = std::iter::from_fn(|| outputs.poll_output()).find_map(|output| match output {
        Output::Move(key, transfer) => Some((key, transfer)),
        _ => None,
    });
    let (moved, transfer) = moved.expect("it moves");
    assert_eq!((moved, transfer.home), (key, home));
    let key = client(second.handle_moved(now, transfer, &mut outputs));
    second.handle_received(now, key, Bytes::copy_from_slice(&ping[7..]), &mut outputs);
    second.check();
    let mut world = World { shard: second, now, outputs };
    let commands: Vec<_> = world.written(key).iter().map(|frame| frame.header.command).collect();
    assert_eq!(commands, [Command::Welcome, Command::Pong]);
}

#[test]
fn a_newer_login_of_the_same_device_replaces_the_older() {
    let mut world = World::new();
    let older = world.login("alice", "phone");
    let tablet = world.login("alice", "tablet");
    world.uplinks();
    let newer = world.login("alice", "phone");
    let kick = world.written(older).pop().expect("told");
    assert_eq!(kick.header.command, Command::Kick);
    assert_eq!(decode::<Kick>(&kick.body).expect("a KICK").code, CloseReason::Replaced.code());
    assert!(world.operations().iter().any(|it| matches!(it, Output::HalfClose(key) if *key == older)));
    assert_eq!(world.shard.sessions(), 2);
    // A late kick that means the older login does not hit the newer one.
    let kick = |login_version| Downlink::Kick {
        target: Target::Device("alice".into(), "phone".into()),
        login_version,
        code: CloseReason::Kicked.code(),
        may_reconnect: false,
        reason: String::new(),
    };
    world.downlink(kick(1));
    assert_eq!(world.shard.sessions(), 2);
    world.downlink(kick(0));
    assert_eq!(world.shard.sessions(), 1);
    assert_eq!(world.written(newer).pop().expect("told").header.command, Command::Kick);
    assert!(world.written(tablet).is_empty());
}

#[test]
fn pushes_wait_for_the_window_and_their_fate_is_told() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.uplinks();
    (1..=6).for_each(|i| world.push(key, i, b"hello"));
    let sent: Vec<_> =
        world.written(key).iter().map(|frame| (frame.header.seq, frame.header.flags.0)).collect();
    assert_eq!(sent, [(1, 0), (2, 0), (3, 0), (4, Flags::ACK_REQ.0)], "the frame that fills the window asks");
    world.frame(key, &Frame::new(Command::Ack, Bytes::new()).with_ack(2));
    assert_eq!(world.outcomes(), [(1, Outcome::Acked), (2, Outcome::Acked)]);
    let seqs: Vec<_> = world.written(key).iter().map(|frame| frame.header.seq).collect();
    assert_eq!(seqs, [5, 6]);
    world.shard.handle_peer_closed(world.now, key, &mut world.outputs);
    world.shard.check();
    let lost: Vec<_> = (3..=6).map(|i| (i, Outcome::Offline)).collect();
    assert_eq!(world.outcomes(), lost);
    world.push(key, 7, b"late");
    assert_eq!(world.outcomes(), [(7, Outcome::Offline)]);
}

#[test]
fn an_ack_of_a_frame_never_sent_closes() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.frame(key, &Frame::new(Command::Ack, Bytes::new()).with_ack(1));
    assert_eq!(world.close_code(key), Some(CloseReason::Window.code()));
}

#[test]
fn a_reader_that_does_not_read_is_closed_as_slow() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.uplinks();
    for i in 0..2_000 {
        world.push(key, i, &[0; 100]);
        if world.shard.sessions() == 0 {
            break;
        }
    }
    assert!(world.outcomes().iter().any(|(_, outcome)| *outcome == Outcome::Full));
    assert_eq!(world.close_code(key), Some(CloseReason::Slow.code()));
}

/// One that is larger than all that may wait, for somebody who reads.
#[test]
fn a_push_is_never_too_large_for_an_empty_queue() {
    static LARGE: [u8; 50_000] = [0; 50_000];
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.uplinks();
    world.push(key, 1, &LARGE);
    world.frame(key, &Frame::new(Command::Ping, Bytes::new()));
    let bodies: Vec<_> = world.written(key).into_iter().map(|frame| frame.body.len()).collect();
    assert!(bodies.contains(&50_000), "{bodies:?}");
    world.frame(key, &Frame::new(Command::Ack, Bytes::new()).with_ack(1));
    assert_eq!((world.outcomes().len(), world.shard.sessions()), (1, 1));
}

#[test]
fn acks_that_are_asked_for_and_never_read_close_as_slow() {
    for ask in [Frame::new(Command::Ack, Bytes::new()), Frame::new(Command::Ignorable(0xC0), Bytes::new())] {
        let mut world = World::new();
        let key = world.login("bob", "phone");
        let ask = ask.with_flags(Flags::ACK_REQ);
        (0..100).for_each(|_| world.frame(key, &ask));
        assert_eq!(world.shard.sessions(), 1, "100 frames may wait");
        world.frame(key, &ask);
        assert_eq!(world.close_code(key), Some(CloseReason::Slow.code()));
    }
}

#[test]
fn one_client_cannot_have_any_number_of_questions_under_way() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    let ask = |id| frame_of(Command::Req, &Req { id, ..Default::default() });
    let limit = u32::from(uplink::UNANSWERED_MAX);
    (0..limit).for_each(|id| world.frame(key, &ask(id)));
    assert_eq!(cids(&world.uplinks()).len(), limit as usize);
    world.frame(key, &ask(9_999));
    assert!(cids(&world.uplinks()).is_empty());
    let refusal = decode::<Resp>(&world.written(key)[0].body).expect("a RESP");
    assert_eq!((refusal.id, refusal.code(), refusal.retry_after_ms), (9_999, Code::Retry, 500));
    // A new SEND has its own bound; a repeated one counts.
    world.frame(key, &send(1));
    let ack = |code| answer(key, 1, code, Rank::First);
    world.downlink(ack(Code::Retry));
    world.written(key);
    world.frame(key, &send(1));
    assert_eq!(cids(&world.uplinks()), [(1, false)]);
    let refusal = decode::<SendAck>(&world.written(key)[0].body).expect("a SENDACK");
    assert_eq!((refusal.cid, refusal.code()), (1, Code::Retry));
    world.downlink(Downlink::Answer {
        key,
        command: Command::Resp,
        cid: 0,
        is_final: true,
        rank: Rank::First,
        body: Bytes::new(),
    });
    world.frame(key, &send(1));
    assert_eq!(cids(&world.uplinks()), [(1, true)]);
    // Application commands have no answer to wait for.
    world.frame(key, &Frame::new(Command::App(0x40), Bytes::new()));
    assert_eq!(cids(&world.uplinks()), [(0, false)]);
}

/// A client can guess the seqs of what it does not read, and so be closed by its own ack.
#[test]
fn an_ack_may_end_the_connection_whose_frame_carries_it() {
    for frame in [send(1), frame_of(Command::Ack, &Ack { sack: 1 }), Frame::new(Command::Req, Bytes::new())] {
        let mut world = World::new();
        let key = world.login("bob", "phone");
        world.uplinks();
        (1..=8).for_each(|i| world.push(key, i, &[0; 2_000]));
        world.uplinks();
        assert_eq!(world.shard.sessions(), 1, "four are under way, four wait");
        world.frame(key, &frame.clone().with_ack(4));
        assert_eq!(world.shard.sessions(), 0, "over 10,000 bytes unread: {:?}", frame.header.command);
        assert!(cids(&world.uplinks()).is_empty(), "what a closed connection says is not passed on");
        assert_eq!(world.close_code(key), Some(CloseReason::Slow.code()));
    }
}

#[test]
fn a_request_that_does_not_decode_ends_its_connection() {
    for command in [Command::Req, Command::Sub, Command::Unsub] {
        let mut world = World::new();
        let key = world.login("alice", "phone");
        world.uplinks();
        world.frame(key, &Frame::new(command, Bytes::from_static(b"\xFF\xFF")));
        assert!(cids(&world.uplinks()).is_empty(), "the backend is not asked");
        assert_eq!(world.close_code(key), Some(CloseReason::BadMessage.code()));
        assert_eq!(world.shard.counters()[Count::BadRequests], 1);
    }
}

#[test]
fn a_dropped_command_still_acknowledges() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.uplinks();
    world.push(key, 1, b"hello");
    world.frame(key, &Frame::new(Command::Ignorable(0xC0), Bytes::from_static(b"?")).with_ack(1));
    assert_eq!(world.outcomes(), [(1, Outcome::Acked)]);
}

#[test]
fn silence_ends_a_connection_in_each_of_its_states() {
    let mut world = World::new();
    let silent = world.accept();
    world.pass(Duration::from_millis(4_900));
    assert_eq!(world.shard.clients(), 1);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.close_code(silent), Some(CloseReason::HandshakeTimeout.code()));
    world.pass(Duration::from_secs(3));
    assert_eq!((world.shard.clients(), world.closes()), (0, vec![silent]));

    let key = world.login("bob", "phone");
    world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 60 }));
    assert_eq!(world.written(key)[0].header.command, Command::Pong);
    world.pass(Duration::from_secs(89));
    world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 1 }));
    world.pass(Duration::from_secs(44));
    assert_eq!(world.shard.sessions(), 1, "an interval below the minimum counts as the minimum");
    world.pass(Duration::from_secs(2));
    let last = world.written(key).pop().expect("told");
    assert_eq!(decode::<Close>(&last.body).expect("a CLOSE").code, CloseReason::HeartbeatTimeout.code());
}

#[test]
fn who_never_beats_is_given_the_longest_interval_at_most() {
    let mut world = World::new();
    let short = Settings { heartbeat_s: (1, 2), ..settings() };
    world.shard = Shard::new(short, world.now);
    let key = world.login("bob", "phone");
    world.pass(Duration::from_millis(2_900));
    assert_eq!(world.shard.sessions(), 1);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.close_code(key), Some(CloseReason::HeartbeatTimeout.code()));
}

#[test]
fn an_overdue_ack_is_asked_for_and_then_ends_the_connection() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.uplinks();
    world.push(key, 1, b"hello");
    world.written(key);
    world.pass(Duration::from_secs(4));
    let probe = &world.written(key)[0];
    assert_eq!((probe.header.command, probe.header.flags), (Command::Ping, Flags::ACK_REQ));
    (0..20).for_each(|_| world.pass(Duration::from_secs(1)));
    assert_eq!(world.outcomes(), [(1, Outcome::Offline)]);
    assert_eq!(world.shard.counters().closes()[CloseReason::AckTimeout as usize], 1);
}

#[test]
fn a_client_that_answers_and_handles_its_messages_slowly_stays() {
    for answer in [frame_of(Command::Ping, &Ping { next_s: 600 }), Frame::new(Command::Ack, Bytes::new())] {
        let mut world = World::new();
        let key = world.login("bob", "phone");
        world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 600 }));
        world.uplinks();
        world.push(key, 1, b"hello");
        let (mut probes, mut again) = (0, 0);
        for _ in 0..500 {
            for frame in world.written(key) {
                again += u32::from(frame.header.flags.contains(Flags::DUP));
                if frame.header.command == Command::Ping {
                    probes += 1;
                    world.frame(key, &answer);
                }
            }
            world.pass(Duration::from_secs(1));
        }
        assert_eq!((world.outcomes(), world.closes()), (vec![], vec![]), "{probes}");
        assert!((8..12).contains(&probes), "about one a minute: {probes}");
        assert!(again <= 1, "{again}");
        world.frame(key, &Frame::new(Command::Ack, Bytes::new()).with_ack(1));
        assert_eq!(world.outcomes(), [(1, Outcome::Acked)]);
        // When it stops to answer, it goes.
        world.push(key, 2, b"hello");
        (0..60).for_each(|_| world.pass(Duration::from_secs(1)));
        assert_eq!(world.outcomes(), [(2, Outcome::Offline)]);
    }
}

#[test]
fn a_slow_client_that_no_longer_answers_is_ended() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 600 }));
    world.uplinks();
    world.push(key, 1, b"hello");
    for second in 0..200 {
        let is_asked = world.written(key).iter().any(|frame| frame.header.command == Command::Ping);
        if is_asked && second < 90 {
            world.frame(key, &Frame::new(Command::Ack, Bytes::new()));
        }
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.outcomes(), [(1, Outcome::Offline)]);
    assert_eq!(world.shard.counters().closes()[CloseReason::AckTimeout as usize], 1);
}

#[test]
fn pushes_during_a_probe_do_not_hurry_its_timer() {
    let mut world = World::new();
    let key = world.login("bob", "phone");
    world.push(key, 1, b"hello");
    world.pass(Duration::from_secs(4));
    let moves = world.shard.counters()[Count::TimerMoves];
    for i in 2..=4 {
        world.push(key, i, b"hello");
        world.pass(Duration::from_millis(20));
    }
    let later = world.shard.counters()[Count::TimerMoves];
    assert!(later - moves <= 1, "the answer has ten seconds, {} timer moves", later - moves);
}

#[test]
fn bad_input_ends_only_its_own_connection() {
    let mut world = World::new();
    let good = world.login("good", "phone");
    let hello = |hello: &Hello| {
        let mut bytes = Vec::new();
        frame_of(Command::Hello, hello).encode(&mut bytes);
        bytes
    };
    let named =
        Hello { version_min: 1, version_max: 1, uid: "u".into(), device: "d".into(), ..Default::default() };
    let long = Hello { token: "x".repeat(5_000), ..named.clone() };
    let cases = [
        (b"GET / HTTP/1.1\r\n".to_vec(), CloseReason::BadMagic),
        (vec![0xA2], CloseReason::BadVersion),
        (hello(&Hello { version_min: 2, version_max: 3, ..named.clone() }), CloseReason::BadVersion),
        (hello(&Hello { uid: String::new(), ..named.clone() }), CloseReason::BadMessage),
        (hello(&long), CloseReason::TooLarge),
        ([hello(&named), hello(&named)].concat(), CloseReason::Unexpected),
        (frame_of(Command::Ping, &Ping::default()).header.to_bytes().to_vec(), CloseReason::Unexpected),
    ];
    for (bytes, reason) in cases {
        let key = world.accept();
        world.bytes(key, &bytes);
        assert_eq!(world.close_code(key), Some(reason.code()), "{reason}");
    }
    assert!(world.written(good).is_empty());
    assert_eq!(world.shard.sessions(), 1);
}

#[test]
fn a_drain_asks_and_a_stop_closes() {
    let mut world = World::new();
    let (active, silent) = (world.login("a", "d"), world.accept());
    world.shard.handle_drain(world.now, &DrainOrder::within(Duration::from_secs(10)), &mut world.outputs);
    assert_eq!(world.written(active)[0].header.command, Command::GoAway);
    assert_eq!(world.close_code(silent), Some(CloseReason::GoingAway.code()));
    world.frame(active, &send(1));
    assert_eq!(cids(&world.uplinks()), [(1, false)], "a leaving client is still served");
    world.shard.handle_stop(world.now, &mut world.outputs);
    assert_eq!(world.close_code(active), Some(CloseReason::GoingAway.code()));
    world.shard.check();
}

#[test]
fn an_announcement_names_the_asked_logins() {
    let mut world = World::new();
    for i in 0..50 {
        world.login(&format!("u{i}"), "d");
    }
    world.uplinks();
    let slots = 0x0000_FFFF_0000_FFFF;
    world.downlink(Downlink::Announce { worker: 0, request: 7, slots });
    let uplinks = world.uplinks();
    let [Uplink::Announced { request: 7, logins, is_last: true }] = &uplinks[..] else { panic!("one chunk") };
    let expected = (0..50).filter(|i| slots >> Pin::of(&format!("u{i}")).slot() & 1 == 1).count();
    assert_eq!(logins.len(), expected);
}

/// The client that an arrival got.
fn client(moved: Moved) -> ConnKey {
    match moved {
        Moved::Here(key) => key,
        other => panic!("{other:?}"),
    }
}
