//! One socket's protocol state. An idle one is these 40 bytes and nothing on the heap.

use super::bucket::{Spent, Stamp};
use super::outbound::Outbound;
use moorline_proto::connection::server::State;
use moorline_proto::frame::Decoder;
use moorline_proto::time::Instant;
use moorline_proto::wheel::TimerKey;

/// No session attached.
pub(super) const NO_SESSION: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    /// Whether [`super::Output::Write`] was emitted and not yet answered by a write.
    pub(super) is_transmit_due: bool,
    /// The client's promised interval, in seconds.
    pub(super) heartbeat_s: u16,
    /// Slot of its session, or [`NO_SESSION`].
    pub(super) session: u32,
    pub(super) generation: u32,
    /// Its one entry in the wheel.
    pub(super) timer: TimerKey,
    /// When bytes last came; before the login, while detached and while closing: when that state began.
    pub(super) heard: Stamp,
    /// Of the frames that it may send, as of `heard`.
    pub(super) spent: Spent,
    pub(super) decoder: Decoder,
    /// Frames on their way out; `None` when there is none.
    pub(super) outbound: Option<Box<Outbound>>,
}

impl Connection {
    pub(super) fn new(generation: u32, timer: TimerKey, now: Instant) -> Self {
        Self {
            state: State::AwaitHello,
            is_transmit_due: false,
            heartbeat_s: 0,
            session: NO_SESSION,
            generation,
            timer,
            heard: Stamp::of(now),
            spent: Spent::default(),
            decoder: Decoder::new(),
            outbound: None,
        }
    }
}

const _: () = assert!(size_of::<Connection>() <= 40, "memory per idle connection is what we are chosen for");
