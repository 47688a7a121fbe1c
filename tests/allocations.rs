//! A heartbeat allocates nothing and touches no timer, and neither does an ack on an idle connection; a message
//! costs as many allocations as stated here.
//!
//! Counts what this thread asks of the allocator while a shard handles frames.

use bytes::Bytes;
use moorline::messages::{Admission, Downlink, Push, Rank, Target};
use moorline::shard::{Count, Output, Outputs, Settings, Shard};
use moorline_proto::frame::{Command, Frame, Lane};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::{Code, Hello, Ping};
use moorline_proto::message::{frame_of, send_ack_body};
use moorline_proto::time::{Duration, Instant};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
struct Counting;

thread_local! {
    /// Counter of this thread only: the test harness allocates in its own threads.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
#[allow(unsafe_code)] // the trait is unsafe to implement
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Not there any more while the thread ends.
        ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).ok();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BEATS: u64 = 10_000;

fn bytes_of(frame: &Frame) -> Bytes {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes.into()
}

struct Rig {
    shard: Shard,
    outputs: Outputs,
    written: Vec<u8>,
    now: Instant,
}

impl Rig {
    /// Runs a turn: these bytes arrive, and everything is written.
    fn turn(&mut self, key: ConnKey, bytes: Bytes) {
        self.now += Duration::from_secs(1);
        self.shard.handle_received(self.now, key, bytes, &mut self.outputs);
        self.shard.handle_timeouts(self.now, &mut self.outputs);
        self.write();
    }

    /// Writes what connections have, as if the system took it all.
    fn write(&mut self) {
        while let Some(output) = self.outputs.poll_output() {
            if let Output::Write(key) = output {
                self.written.clear();
                self.shard.gather(key, &mut self.written, 64 << 10);
                self.shard.handle_sent(key, self.written.len(), &mut self.outputs);
            }
        }
    }

    fn login(&mut self) -> ConnKey {
        let key = self.shard.handle_accepted(self.now).expect("room");
        let names = Hello {
            version_min: 1,
            version_max: 1,
            uid: "alice".into(),
            device: "phone".into(),
            ..Hello::default()
        };
        self.turn(key, bytes_of(&frame_of(Command::Hello, &names)));
        let admission =
            Admission { uid: names.uid, device: names.device, platform: 0, ..Admission::default() };
        let verdict = Downlink::Verdict { key, verdict: Ok(admission) };
        self.shard.handle_downlink(self.now, verdict, &mut self.outputs);
        key
    }
}

#[test]
fn a_heartbeat_allocates_nothing_and_touches_no_timer() {
    let now = Instant::from_nanos(1_000_000_000);
    let mut rig = Rig {
        shard: Shard::new(Settings::default(), now),
        outputs: Outputs::new(1),
        written: Vec::new(),
        now,
    };
    let key = rig.login();
    let ping = bytes_of(&frame_of(Command::Ping, &Ping { next_s: 30 }));
    let ack = bytes_of(&Frame::new(Command::Ack, Bytes::new()));
    // The first ones fill the pool, and let the login's own timer pass.
    for _ in 0..100 {
        rig.turn(key, ping.clone());
        rig.turn(key, ack.clone());
    }
    let moves = rig.shard.counters()[Count::TimerMoves];
    let beats = rig.shard.counters()[Count::Pings];
    let allocations = ALLOCATIONS.get();
    for _ in 0..BEATS {
        rig.now += Duration::from_millis(10); // within the rate of one connection
        rig.shard.handle_received(rig.now, key, ping.clone(), &mut rig.outputs);
        rig.shard.handle_received(rig.now, key, ack.clone(), &mut rig.outputs);
        rig.write();
    }
    let asked = ALLOCATIONS.get() - allocations;
    assert_eq!(rig.shard.counters()[Count::Pings] - beats, BEATS);
    assert_eq!(asked, 0, "allocations for {BEATS} heartbeats and as many acks");
    assert_eq!(rig.shard.counters()[Count::TimerMoves], moves, "timer operations");
}

/// In a shard, from a SEND to its UP and from the backend's answer to SENDACK: the counter that a buffer gets when
/// a first body is sliced from it, here for each, else once per read. The connection's queue is pooled.
const ALLOCATIONS_PER_SEND: u64 = 1;
/// From a PUSH of the backend to its bytes and the ack that settles it: the flight and its two queues, which exist
/// only while something is in flight.
const ALLOCATIONS_PER_PUSH: u64 = 4;

/// Counts what `round` asks for, with everything it is given made before.
fn count<T>(inputs: Vec<T>, mut round: impl FnMut(T)) -> u64 {
    let (warm_up, mut asked) = (inputs.len() / 2, 0);
    for (index, input) in inputs.into_iter().enumerate() {
        let before = ALLOCATIONS.get();
        round(input);
        asked += if index >= warm_up { ALLOCATIONS.get() - before } else { 0 };
    }
    asked
}

#[test]
fn a_message_allocates_as_often_as_stated() {
    const MESSAGES: u32 = 2_000;
    let now = Instant::from_nanos(1_000_000_000);
    let settings = Settings { user_rate: 0, frame_rate: 0, ..Settings::default() };
    let mut rig =
        Rig { shard: Shard::new(settings, now), outputs: Outputs::new(1), written: Vec::new(), now };
    let key = rig.login();
    rig.outputs.uplinks[0] = Vec::with_capacity(16);
    let write = |rig: &mut Rig| {
        rig.write();
        rig.outputs.uplinks[0].clear();
    };

    let send = |cid| {
        let body = Bytes::from_static(&[7; 128]);
        let answer = send_ack_body(cid, Code::Ok, b"");
        (cid, bytes_of(&Frame::new(Command::Send, body).with_seq(cid)), answer)
    };
    let asked = count((1..=MESSAGES).map(send).collect(), |(cid, bytes, body)| {
        rig.shard.handle_received(rig.now, key, bytes, &mut rig.outputs);
        let answer =
            Downlink::Answer { key, command: Command::SendAck, cid, is_final: true, rank: Rank::First, body };
        rig.shard.handle_downlink(rig.now, answer, &mut rig.outputs);
        write(&mut rig);
    });
    let per_send = asked / u64::from(MESSAGES / 2);

    let push = |seq| {
        let push = Push {
            ticket: None,
            targets: vec![Target::Connection(key)],
            command: Command::Push,
            lane: Lane::Chat,
            rank: Rank::of(0, Lane::Chat),
            expires_at: Instant::FAR_FUTURE,
            body: Bytes::from_static(&[7; 128]),
            packed: None,
            except: None,
            collapse: None,
        };
        (push, bytes_of(&Frame::new(Command::Ack, Bytes::new()).with_ack(seq)))
    };
    let asked = count((1..=MESSAGES).map(push).collect(), |(push, ack)| {
        rig.shard.handle_downlink(rig.now, Downlink::Push(push), &mut rig.outputs);
        write(&mut rig);
        rig.shard.handle_received(rig.now, key, ack, &mut rig.outputs);
        write(&mut rig);
    });
    let per_push = asked / u64::from(MESSAGES / 2);
    println!("{per_send} allocations per SEND with its answer, {per_push} per PUSH with its ack");
    assert_eq!((per_send, per_push), (ALLOCATIONS_PER_SEND, ALLOCATIONS_PER_PUSH));
    assert_eq!(rig.shard.counters()[Count::PushesAcked], u64::from(MESSAGES));
}
