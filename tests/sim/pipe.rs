//! A TCP connection: two directions that hold a bounded number of bytes, cut and join them at will,
//! stand still, end in halves, or break, with one end or both being told.

use crate::scene::{Scene, What};
use crate::tap::Tap;
use bytes::Bytes;
use moorline_backend::server::LinkId;
use moorline_proto::frame::{Decoder, HEADER_BYTES};
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Index of a connection in the world's list.
pub(crate) type PipeId = usize;

/// Direction of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Client to gateway.
    Up,
    /// Gateway to client.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// No more will be written; the queue still arrives.
    Sent,
    /// The reader has come to the end.
    Arrived,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Taken by the writer's kernel.
    queue: VecDeque<u8>,
    /// With the reader's kernel.
    arrived: Vec<u8>,
    end: End,
    stalled_until: Instant,
    is_under_way: bool,
    /// The writer waits for room.
    is_writer_blocked: bool,
}

/// Client at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Client(usize),
    Hostile(usize),
    /// A link of this worker: the backend is at the other end.
    Link(usize),
}

/// Reactor at the gateway's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Backlog,
    On(usize, ConnKey),
    /// The other end of a link.
    Host(LinkId),
    Moving,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) caller: Caller,
    pub(crate) place: Place,
    pub(crate) tap: Tap,
    pub(crate) is_client_open: bool,
    /// Nothing arrives any more.
    is_broken: bool,
    /// The gateway's kernel knows that it broke.
    is_gateway_told: bool,
    room: usize,
    latency_micros: u64,
    cut: u64,
    up: Flow,
    down: Flow,
    /// The connection breaks behind an exact byte.
    knife: Option<Knife>,
}

/// Ends a connection behind this many more bytes of one direction.
#[derive(Debug)]
struct Knife {
    way: Way,
    left: usize,
    /// Knows how far into a frame that is.
    decoder: Decoder,
}

/// Result of a read.
#[derive(Debug)]
pub(crate) enum Read {
    Bytes(Vec<u8>),
    Blocked,
    Ended,
}

/// Result of a delivery.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    /// For the client; bytes for the gateway wait to be read.
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_end: bool,
    /// The writer waited for room, and there is some.
    pub(crate) has_room: bool,
    /// Behind these bytes the connection breaks.
    pub(crate) is_cut: bool,
}

impl Flow {
    const fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            arrived: Vec::new(),
            end: End::Open,
            stalled_until: Instant::ZERO,
            is_under_way: false,
            is_writer_blocked: false,
        }
    }
}

impl Pipe {
    pub(crate) fn new(scene: &mut Scene, caller: Caller) -> Self {
        let is_honest = matches!(caller, Caller::Client(_));
        Self {
            caller,
            place: Place::Backlog,
            tap: Tap::new(is_honest),
            is_client_open: true,
            is_broken: false,
            is_gateway_told: false,
            room: if matches!(caller, Caller::Link(_)) { scene.faults.link_room } else { scene.faults.room },
            latency_micros: [100, 5_000, 30_000][scene.index(3)],
            cut: scene.faults.cut,
            up: Flow::new(),
            down: Flow::new(),
            knife: None,
        }
    }

    /// The connection will break behind any byte of its first few hundred, of its first header every third time.
    pub(crate) fn sharpen(&mut self, scene: &mut Scene) {
        let (way, at) = ([Way::Up, Way::Down][scene.index(2)], scene.index(600));
        let left = 1 + if at < 200 { at % HEADER_BYTES } else { at };
        self.knife = Some(Knife { way, left, decoder: Decoder::new() });
    }

    /// Shortens `bytes` to those before the cut; true: they are the last.
    fn cut(&mut self, scene: &mut Scene, way: Way, bytes: &mut Vec<u8>) -> bool {
        let Some(knife) = self.knife.as_mut().filter(|knife| knife.way == way) else { return false };
        let passes = bytes.len().min(knife.left);
        let mut passed = Bytes::copy_from_slice(&bytes[..passes]);
        knife.left -= passes;
        while let Ok(Some(_)) = knife.decoder.decode(&mut passed, u32::MAX) {}
        if knife.left > 0 {
            return false;
        }
        bytes.truncate(passes);
        let offset = knife.decoder.partial_len();
        match scene.coverage.header_cuts.get_mut(offset) {
            Some(count) => *count += 1,
            None => scene.coverage.body_cuts += 1,
        }
        self.knife = None;
        self.up.queue.clear();
        self.down.queue.clear();
        true
    }

    fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// The kernel takes what it has room for.
    pub(crate) fn write(&mut self, scene: &mut Scene, id: PipeId, way: Way, bytes: &[u8]) -> usize {
        let room = self.room;
        let flow = self.flow(way);
        assert_eq!(flow.end, End::Open, "nobody writes after the end");
        let taken = bytes.len().min(room.saturating_sub(flow.queue.len() + flow.arrived.len()));
        flow.queue.extend(&bytes[..taken]);
        if taken < bytes.len() {
            flow.is_writer_blocked = true;
            scene.coverage.partial_writes += u64::from(taken > 0);
        }
        self.set_off(scene, id, way);
        taken
    }

    /// The writer is done; the rest still arrives.
    pub(crate) fn finish(&mut self, scene: &mut Scene, id: PipeId, way: Way) {
        let flow = self.flow(way);
        if flow.end == End::Open {
            flow.end = End::Sent;
            self.set_off(scene, id, way);
        }
    }

    /// True if the writer is done.
    pub(crate) fn is_finished(&mut self, way: Way) -> bool {
        self.flow(way).end != End::Open
    }

    fn set_off(&mut self, scene: &mut Scene, id: PipeId, way: Way) {
        let wait = scene.micros(self.latency_micros);
        let flow = self.flow(way);
        let has_work = !flow.queue.is_empty() || flow.end == End::Sent;
        if has_work && !flow.is_under_way {
            flow.is_under_way = true;
            let at = flow.stalled_until.max(scene.now + wait);
            scene.at(at, What::Deliver(id, way));
        }
    }

    /// Bytes arrive.
    pub(crate) fn deliver(&mut self, scene: &mut Scene, id: PipeId, way: Way) -> Delivery {
        let (is_broken, cut) = (self.is_broken, self.cut);
        let flow = self.flow(way);
        flow.is_under_way = false;
        if is_broken {
            return Delivery::default();
        }
        if flow.stalled_until > scene.now {
            self.set_off(scene, id, way);
            return Delivery::default();
        }
        let is_cut = scene.random.one_in(cut);
        let count = if is_cut { 1 + scene.index(24) } else { flow.queue.len() };
        let mut bytes: Vec<u8> = flow.queue.drain(..count.min(flow.queue.len())).collect();
        let mut delivery = Delivery { is_cut: self.cut(scene, way, &mut bytes), ..Delivery::default() };
        let flow = self.flow(way);
        if flow.queue.is_empty() && flow.end == End::Sent {
            flow.end = End::Arrived;
            delivery.is_end = true;
        }
        match way {
            Way::Up => flow.arrived.extend(bytes),
            Way::Down => {
                delivery.has_room = std::mem::take(&mut flow.is_writer_blocked);
                delivery.bytes = bytes;
            }
        }
        self.set_off(scene, id, way);
        delivery
    }

    /// The gateway reads; true beside it: the client, who waited for room, may write again.
    pub(crate) fn read(&mut self, scene: &mut Scene) -> (Read, bool) {
        if self.is_gateway_told && (self.up.arrived.is_empty() || scene.random.one_in(2)) {
            return (Read::Ended, false);
        }
        let is_end = self.up.end == End::Arrived;
        let flow = &mut self.up;
        if flow.arrived.is_empty() {
            return (if is_end { Read::Ended } else { Read::Blocked }, false);
        }
        let is_cut = scene.random.one_in(self.cut);
        let count = if is_cut { 1 + scene.index(flow.arrived.len()) } else { flow.arrived.len() };
        let bytes = flow.arrived.drain(..count).collect();
        (Read::Bytes(bytes), std::mem::take(&mut flow.is_writer_blocked))
    }

    /// Bytes toward the client that its kernel has not received, as the gateway's kernel knows.
    pub(crate) fn undelivered(&self) -> usize {
        if self.is_broken { usize::MAX } else { self.down.queue.len() }
    }

    /// True if a read would not block.
    pub(crate) fn is_readable(&self) -> bool {
        self.is_gateway_told || !self.up.arrived.is_empty() || self.up.end == End::Arrived
    }

    /// Both directions, or one of them, stand still for a time.
    pub(crate) fn stall(&mut self, scene: &mut Scene, time: Duration) {
        let until = scene.now + time;
        let which = scene.index(3);
        if which != 0 {
            self.up.stalled_until = until;
        }
        if which != 1 {
            self.down.stalled_until = until;
        }
    }

    /// This direction never moves again: its reader does not read.
    pub(crate) fn stop_reading(&mut self, way: Way) {
        self.flow(way).stalled_until = Instant::FAR_FUTURE;
    }

    /// The network is gone between the two ends; part of what was under way may still arrive.
    pub(crate) fn break_off(&mut self, scene: &mut Scene) {
        if std::mem::replace(&mut self.is_broken, true) {
            return;
        }
        let last = scene.index(self.up.queue.len() + 1);
        if self.up.end != End::Arrived {
            let bytes: Vec<u8> = self.up.queue.drain(..last).collect();
            self.up.arrived.extend(bytes);
        }
        self.up.queue.clear();
        self.down.queue.clear();
    }

    pub(crate) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// The gateway's kernel learns that the connection broke.
    pub(crate) const fn tell_gateway(&mut self) {
        self.is_gateway_told = true;
    }

    /// Both ends' kernels have let go of it.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_client_open && self.place == Place::Closed
    }
}
