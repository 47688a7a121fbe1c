//! What a shard counts: plain numbers, published by its reactor once per loop turn.

use moorline_proto::error::CloseReason;
use std::ops::{Index, IndexMut};

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident = $metric:literal, $kind:ident;)+) => {
        /// One number of a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count { $($(#[doc = $doc])+ $name,)+ }

        impl Count {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Metric name (without the prefix), what it means, and whether it may fall.
            pub const fn describe(self) -> (&'static str, &'static str, CountKind) {
                match self { $(Self::$name => ($metric, concat!($($doc,)+), CountKind::$kind),)+ }
            }
        }
    };
}

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountKind {
    /// Only grows.
    Counter,
    /// A level.
    Gauge,
}

counts! {
    /// Open client connections.
    Connections = "connections", Gauge;
    /// Logged-in sessions.
    Sessions = "sessions", Gauge;
    /// Users with at least one session.
    Users = "users", Gauge;
    /// Connections accepted.
    Accepted = "accepted", Counter;
    /// Connections moved to their user's home shard.
    Moved = "moved", Counter;
    /// Logins admitted.
    Logins = "logins", Counter;
    /// Older logins ended by a newer one of the same device.
    Replaced = "logins_replaced", Counter;
    /// Frames received from clients.
    FramesIn = "frames_received", Counter;
    /// Frames queued toward clients.
    FramesOut = "frames_queued", Counter;
    /// Bytes received from clients.
    BytesIn = "client_received_bytes", Counter;
    /// Bytes the kernel took toward clients.
    BytesOut = "client_sent_bytes", Counter;
    /// Heartbeats received.
    Pings = "heartbeats", Counter;
    /// SENDs taken in order.
    Sends = "sends", Counter;
    /// SENDs received again before or after their answer.
    SendsAgain = "sends_duplicate", Counter;
    /// SENDs held because an earlier cid was missing.
    SendsEarly = "sends_early", Counter;
    /// Answers given to SEND and REQ.
    Answers = "answers", Counter;
    /// Answers whose connection was gone.
    AnswersStale = "answers_stale", Counter;
    /// Pushes taken for a session.
    Pushes = "pushes", Counter;
    /// Pushes acknowledged by their client.
    PushesAcked = "pushes_acked", Counter;
    /// Pushes whose target was not connected.
    PushesOffline = "pushes_offline", Counter;
    /// Pushes refused by a full queue.
    PushesFull = "pushes_full", Counter;
    /// Pushes that waited longer than their time to live.
    PushesExpired = "pushes_expired", Counter;
    /// Overdue acks that were asked for.
    AckProbes = "ack_probes", Counter;
    /// Entries in the timing wheel.
    Timers = "timers", Gauge;
    /// Timer wheel insertions, moves included.
    TimerMoves = "timer_moves", Counter;
}

/// A shard's numbers.
#[derive(Clone, Debug)]
pub struct Tally {
    counts: [u64; Count::ALL.len()],
    closes: [u64; CloseReason::ALL.len()],
    /// Ended by the peer without a word.
    pub closed_by_peer: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: [0; Count::ALL.len()], closes: [0; CloseReason::ALL.len()], closed_by_peer: 0 }
    }
}

impl Tally {
    /// Numbers in the order of [`Count::ALL`].
    pub const fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Connections ended, in the order of [`CloseReason::ALL`].
    pub const fn closes(&self) -> &[u64] {
        &self.closes
    }

    /// Counts an ended connection.
    pub(super) fn closed(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }
}

impl Index<Count> for Tally {
    type Output = u64;
    fn index(&self, count: Count) -> &u64 {
        &self.counts[count as usize]
    }
}

impl IndexMut<Count> for Tally {
    fn index_mut(&mut self, count: Count) -> &mut u64 {
        &mut self.counts[count as usize]
    }
}
