//! Heartbeats: when the client must speak, and when the server stops waiting (`docs/protocol.md` section 7).

use crate::random::Random;
use crate::time::{Duration, Instant};

/// Bounds of the interval, given by the server's WELCOME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Shortest interval.
    pub min: Duration,
    /// Longest interval.
    pub max: Duration,
}

/// How long a server waits for a client that promised to speak within `interval`: half as much again.
pub fn server_patience(interval: Duration) -> Duration {
    interval + interval / 2
}

/// The client's schedule: speak when idle for one interval; the first beat comes early, at a random part of it.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    interval: Duration,
    next: Instant,
}

impl Heartbeat {
    /// Starts after WELCOME, at `now`, with the bounds' minimum.
    pub fn new(bounds: Bounds, now: Instant, random: &mut Random) -> Self {
        let _ = (bounds, now, random);
        todo!()
    }
    /// A frame was sent: the next beat is one interval away.
    pub fn sent(&mut self, now: Instant) {
        let _ = now;
        todo!()
    }
    /// When to beat.
    pub const fn deadline(&self) -> Instant {
        self.next
    }
    /// The promise that PING carries.
    pub const fn interval(&self) -> Duration {
        self.interval
    }
}
