//! A heartbeat allocates nothing and touches no timer, and neither does an ack on an idle connection.
//!
//! Counts what this thread asks of the allocator while a shard handles frames.

use bytes::Bytes;
use moorline::handoff::{Admission, Downlink};
use moorline::shard::{Count, Outputs, Settings, Shard};
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::{Hello, Ping};
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
struct Counting;

thread_local! {
    /// Of this thread: the test harness allocates in its own.
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
    /// One turn: these bytes come, everything is written.
    fn turn(&mut self, key: ConnKey, bytes: Bytes) {
        self.now += Duration::from_secs(1);
        self.shard.handle_received(self.now, key, bytes, &mut self.outputs);
        self.shard.handle_timeouts(self.now, &mut self.outputs);
        for key in std::mem::take(&mut self.outputs.transmits) {
            self.written.clear();
            self.shard.gather(key, &mut self.written, 64 << 10);
            self.shard.handle_sent(key, self.written.len(), &mut self.outputs);
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
    rig.outputs.transmits = Vec::with_capacity(16);

    let moves = rig.shard.tally()[Count::TimerMoves];
    let beats = rig.shard.tally()[Count::Pings];
    let allocations = ALLOCATIONS.get();
    for _ in 0..BEATS {
        rig.now += Duration::from_millis(10); // within the rate of one connection
        rig.shard.handle_received(rig.now, key, ping.clone(), &mut rig.outputs);
        rig.shard.handle_received(rig.now, key, ack.clone(), &mut rig.outputs);
        while let Some(key) = rig.outputs.transmits.pop() {
            rig.written.clear();
            rig.shard.gather(key, &mut rig.written, 64 << 10);
            rig.shard.handle_sent(key, rig.written.len(), &mut rig.outputs);
        }
    }
    let asked = ALLOCATIONS.get() - allocations;
    assert_eq!(rig.shard.tally()[Count::Pings] - beats, BEATS);
    assert_eq!(asked, 0, "allocations for {BEATS} heartbeats and as many acks");
    assert_eq!(rig.shard.tally()[Count::TimerMoves], moves, "timer operations");
}
