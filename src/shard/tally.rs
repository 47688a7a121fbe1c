//! Counters of a shard: plain numbers, which its reactor publishes once per turn.

use crate::metrics::counts;
use crate::snapshot::ShardHead;
use moorline_proto::error::CloseReason;
use std::ops::{Index, IndexMut};

counts! {
    /// One number of a shard.
    pub enum Count {
        /// Open client connections.
        Connections = gauge "connections";
        /// Sessions that wait for their client to come back.
        Detached = gauge "detached";
        /// Connections that are not read for now.
        Held = gauge "held";
        /// Logged-in sessions.
        Sessions = gauge "sessions";
        /// Users with at least one session.
        Users = gauge "users";
        /// Connections accepted.
        Accepted = counter "accepted";
        /// Connections moved to their user's home shard.
        Moved = counter "moved";
        /// Logins admitted.
        Logins = counter "logins";
        /// Older logins ended by a newer one of the same device.
        Replaced = counter "logins_replaced";
        /// Sessions whose connection was lost and that wait for their client.
        Detaches = counter "detaches";
        /// Sessions that nobody came back to in time.
        KeptInVain = counter "kept_in_vain";
        /// Sessions that went on with another connection.
        Resumes = counter "resumes";
        /// Of those, with the older connection still open.
        Takeovers = counter "takeovers";
        /// Logins that asked to go on with a session and got a new one.
        ResumesRefused = counter "resumes_refused";
        /// Sessions that ended before their time because too many waited.
        KeptOverMax = counter "kept_over_max";
        /// Times that a connection was not read for a while because it said too much.
        RateHolds = counter "frame_rate_exceeded";
        /// Uplinks refused because their user said too much.
        UserRefusals = counter "user_rate_exceeded";
        /// Application frames dropped because their user said too much, or in overload.
        AppsDropped = counter "apps_dropped";
        /// THROTTLEs said.
        Throttles = counter "throttles";
        /// Times that a connection was not read because its worker has no room.
        BackpressureHolds = counter "backpressure_holds";
        /// Uplinks refused because the backend is overloaded.
        Shed = counter "uplinks_shed";
        /// Logins refused because the backend is overloaded, or too much memory in use.
        LoginsShed = counter "logins_shed";
        /// Frames received from clients.
        FramesIn = counter "frames_received";
        /// Frames queued toward clients.
        FramesOut = counter "frames_queued";
        /// Bytes received from clients.
        BytesIn = counter "client_received_bytes";
        /// Bytes the kernel took toward clients.
        BytesOut = counter "client_sent_bytes";
        /// Heartbeats received.
        Pings = counter "heartbeats";
        /// SENDs taken in order.
        Sends = counter "sends";
        /// SENDs received again before or after their answer.
        SendsAgain = counter "sends_duplicate";
        /// SENDs received again and answered from memory.
        SendsReplayed = counter "sends_replayed";
        /// SENDs held because an earlier cid was missing.
        SendsEarly = counter "sends_early";
        /// Answers given to SEND and REQ.
        Answers = counter "answers";
        /// Requests and repetitions answered RETRY because too many of their client are under way.
        RefusedHere = counter "uplinks_refused";
        /// Answers whose connection was gone.
        AnswersStale = counter "answers_stale";
        /// Pushes taken for a session.
        Pushes = counter "pushes";
        /// Pushes acknowledged by their client.
        PushesAcked = counter "pushes_acked";
        /// Pushes whose target was not connected.
        PushesOffline = counter "pushes_offline";
        /// Pushes refused by a full queue.
        PushesFull = counter "pushes_full";
        /// Pushes that waited longer than their time to live.
        PushesExpired = counter "pushes_expired";
        /// Pushes that became a NOTIFY because their client reads too slowly.
        PushesCollapsed = counter "pushes_collapsed";
        /// Pushes whose place a later one with the same key took.
        PushesSuperseded = counter "pushes_superseded";
        /// BATCHes sent.
        Batches = counter "batches";
        /// Reliable frames sent again.
        PushesAgain = counter "pushes_again";
        /// Pushes to many sessions at once.
        Fanouts = counter "fanouts";
        /// Of those, refused because too many wait.
        FanoutsRefused = counter "fanouts_refused";
        /// Rooms with a member here.
        Rooms = gauge "rooms";
        /// Sessions that could not enter a room: a limit.
        RoomsRefused = counter "rooms_refused";
        /// Bytes that wait for clients.
        QueuedBytes = gauge "queued_bytes";
        /// Overdue acks that were asked for.
        AckProbes = counter "ack_probes";
        /// Entries in the timing wheel.
        Timers = gauge "timers";
        /// Timer wheel insertions, moves included.
        TimerMoves = counter "timer_moves";
    }
}

impl Count {
    /// Those that say that a limit was hit.
    pub const LIMITS: &'static [Self] = &[
        Self::KeptOverMax,
        Self::RateHolds,
        Self::UserRefusals,
        Self::AppsDropped,
        Self::BackpressureHolds,
        Self::Shed,
        Self::LoginsShed,
        Self::RefusedHere,
        Self::PushesFull,
        Self::PushesCollapsed,
        Self::FanoutsRefused,
        Self::RoomsRefused,
    ];
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

    /// Connections ended because their client did not read, with a name: the limit that no count tells.
    pub const fn slow(&self) -> (&'static str, u64) {
        (CloseReason::Slow.label(), self.closes[CloseReason::Slow as usize])
    }

    /// Writes them down, by name: a later build may count other things.
    pub(super) fn freeze(&self, head: &mut ShardHead) {
        let Self { counts, closes, closed_by_peer } = self;
        head.counts = counts.to_vec();
        head.count_names = Count::SERIES.iter().map(|series| series.name.to_owned()).collect();
        let codes = CloseReason::ALL.iter().map(|reason| u64::from(reason.code()));
        head.closes = codes.zip(closes).flat_map(|(code, count)| [code, *count]).collect();
        head.closed_by_peer = *closed_by_peer;
    }

    /// Reads them.
    pub(super) fn thaw(head: &ShardHead) -> Self {
        let mut tally = Self { closed_by_peer: head.closed_by_peer, ..Self::default() };
        for (name, value) in head.count_names.iter().zip(&head.counts) {
            if let Some(index) = Count::SERIES.iter().position(|series| series.name == name) {
                tally.counts[index] = *value;
            }
        }
        for [code, count] in head.closes.as_chunks().0 {
            let code = u32::try_from(*code).unwrap_or(0);
            if let Some(index) = CloseReason::ALL.iter().position(|reason| reason.code() == code) {
                tally.closes[index] = *count;
            }
        }
        tally
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
