//! Counters of a shard: plain numbers, which its reactor publishes once per turn.

use crate::metrics::{counts, names};
use crate::snapshot::ShardHead;
use moorline_proto::error::CloseReason;
use std::ops::{Index, IndexMut};

counts! {
    /// One counter or level of a shard.
    pub enum Count {
        /// Open client connections.
        Connections = gauge "connections";
        /// Detached sessions: their connection was lost, and their client may resume.
        Detached = gauge "detached";
        /// Connections whose reading is paused.
        Paused = gauge "read_paused";
        /// Logged-in sessions.
        Sessions = gauge "sessions";
        /// Users with at least one session.
        Users = gauge "users";
        /// Connections accepted.
        Accepted = counter "accepted";
        /// Connections moved to the shard that owns their user.
        Moved = counter "moved";
        /// Logins admitted.
        Logins = counter "logins";
        /// Logins ended by a newer login of the same device.
        Replaced = counter "logins_replaced";
        /// Sessions detached because their connection was lost.
        Detaches = counter "detaches";
        /// Detached sessions that expired before their client resumed.
        DetachedExpired = counter "detached_expired";
        /// Sessions ended because their token expired longer ago than `auth.session_max`.
        SessionsExpired = counter "sessions_token_expired";
        /// Sessions resumed on another connection.
        Resumes = counter "resumes";
        /// Sessions resumed while their older connection was still open.
        Takeovers = counter "takeovers";
        /// Logins that asked to resume a session and got a new one.
        ResumesRefused = counter "resumes_refused";
        /// Detached sessions that ended early because there were too many.
        DetachedOverMax = counter "detached_over_max";
        /// Connections closed because they had not said HELLO and their place was needed.
        HandshakesEvicted = counter "handshakes_evicted";
        /// Connections closed because their input would wait while too much memory is in use.
        InputShed = counter "input_shed";
        /// Pauses of reading because a connection exceeded its rate limit.
        RatePauses = counter "frame_rate_exceeded";
        /// Uplinks refused because their user exceeded the rate limit.
        UserRefusals = counter "user_rate_exceeded";
        /// Application frames dropped because of the rate limit, or in overload.
        AppsDropped = counter "apps_dropped";
        /// THROTTLE frames sent.
        Throttles = counter "throttles";
        /// Pauses of reading because the worker of a connection has no room.
        BackpressurePauses = counter "backpressure_pauses";
        /// Uplinks refused because the backend is overloaded.
        Shed = counter "uplinks_shed";
        /// Logins refused because the backend is overloaded, or too much memory is in use.
        LoginsShed = counter "logins_shed";
        /// Frames received from clients.
        FramesIn = counter "frames_received";
        /// Frames queued toward clients.
        FramesOut = counter "frames_queued";
        /// Bytes received from clients.
        BytesIn = counter "client_received_bytes";
        /// Bytes written to clients.
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
        /// Requests and repeated SENDs answered RETRY because too many of their client are outstanding.
        RefusedHere = counter "uplinks_refused";
        /// Client requests that did not decode.
        BadRequests = counter "bad_requests";
        /// Answers whose connection was gone.
        AnswersStale = counter "answers_stale";
        /// Pushes accepted for a session.
        Pushes = counter "pushes";
        /// Pushes acknowledged by their client.
        PushesAcked = counter "pushes_acked";
        /// Pushes whose target was not connected.
        PushesOffline = counter "pushes_offline";
        /// Pushes refused by a full queue.
        PushesFull = counter "pushes_full";
        /// Pushes that expired while they waited.
        PushesExpired = counter "pushes_expired";
        /// Pushes that became a NOTIFY because their client reads too slowly.
        PushesCollapsed = counter "pushes_collapsed";
        /// Unacknowledged pushes, such as signals, dropped because their client reads too slowly.
        PushesDropped = counter "pushes_dropped";
        /// Pushes replaced by a later one with the same collapse key.
        PushesSuperseded = counter "pushes_superseded";
        /// BATCH frames sent.
        Batches = counter "batches";
        /// Retransmitted reliable frames.
        PushesAgain = counter "pushes_again";
        /// Pushes to many sessions at once.
        Fanouts = counter "fanouts";
        /// Pushes to many sessions that were refused because too many wait.
        FanoutsRefused = counter "fanouts_refused";
        /// Deliveries of pushes of the first rank that waited for their share.
        FanoutDeliveriesFirst = counter "fanout_deliveries_first";
        /// Deliveries of pushes of the second rank that waited for their share.
        FanoutDeliveriesSecond = counter "fanout_deliveries_second";
        /// Deliveries of pushes of the last rank that waited for their share.
        FanoutDeliveriesLast = counter "fanout_deliveries_last";
        /// Deliveries of the first rank that wait now.
        FanoutWaitingFirst = gauge "fanout_waiting_first";
        /// Deliveries of the second rank that wait now.
        FanoutWaitingSecond = gauge "fanout_waiting_second";
        /// Deliveries of the last rank that wait now.
        FanoutWaitingLast = gauge "fanout_waiting_last";
        /// Deliveries a second of the ranks after the first that people who chat bear; without a chat there is no limit.
        FanoutPace = gauge "fanout_pace";
        /// Rooms with a member here.
        Rooms = gauge "rooms";
        /// Sessions that could not enter a room because of a limit.
        RoomsRefused = counter "rooms_refused";
        /// Bytes that wait for clients: in sockets' queues, unacknowledged, behind windows, and in fan-outs.
        QueuedBytes = gauge "queued_bytes";
        /// Memory of input that waits, in bytes: unfinished frames, frames above the rate limit, SENDs before their turn.
        InputBytes = gauge "input_bytes";
        /// Plain bytes that compressed frames of clients announced.
        UnpackedBytes = counter "client_unpacked_bytes";
        /// Probes for overdue acks.
        AckProbes = counter "ack_probes";
        /// Entries in the timing wheel.
        Timers = gauge "timers";
        /// Timer wheel insertions, moves included.
        TimerMoves = counter "timer_moves";
    }
}

impl Count {
    /// Counters that tell that a limit was reached.
    pub const LIMITS: &'static [Self] = &[
        Self::DetachedOverMax,
        Self::HandshakesEvicted,
        Self::InputShed,
        Self::RatePauses,
        Self::UserRefusals,
        Self::AppsDropped,
        Self::BackpressurePauses,
        Self::Shed,
        Self::LoginsShed,
        Self::RefusedHere,
        Self::PushesFull,
        Self::PushesCollapsed,
        Self::PushesDropped,
        Self::FanoutsRefused,
        Self::RoomsRefused,
    ];
}

/// Counters of one shard.
#[derive(Clone, Debug)]
pub struct Counters {
    counts: [u64; Count::ALL.len()],
    closes: [u64; CloseReason::ALL.len()],
    /// Connections that the peer ended without CLOSE.
    pub closed_by_peer: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { counts: [0; Count::ALL.len()], closes: [0; CloseReason::ALL.len()], closed_by_peer: 0 }
    }
}

impl Counters {
    /// Counters in the order of [`Count::ALL`].
    pub const fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Connections ended, in the order of [`CloseReason::ALL`].
    pub const fn closes(&self) -> &[u64] {
        &self.closes
    }

    /// Name and number of connections closed because their client did not read: the limit that no [`Count`] tells.
    pub const fn slow(&self) -> (&'static str, u64) {
        (CloseReason::Slow.label(), self.closes[CloseReason::Slow as usize])
    }

    /// Writes the counters by name: a later build may have other counters.
    pub(super) fn freeze(&self, head: &mut ShardHead) {
        let Self { counts, closes, closed_by_peer } = self;
        head.counts = counts.to_vec();
        head.count_names = Count::METRICS.iter().map(|metric| metric.name.to_owned()).collect();
        let codes = CloseReason::ALL.iter().map(|reason| u64::from(reason.code()));
        head.closes = codes.zip(closes).flat_map(|(code, count)| [code, *count]).collect();
        head.closed_by_peer = *closed_by_peer;
    }

    /// Reads the counters.
    pub(super) fn thaw(head: &ShardHead) -> Self {
        let mut counters = Self { closed_by_peer: head.closed_by_peer, ..Self::default() };
        for (name, value) in head.count_names.iter().zip(&head.counts) {
            let name = names::current(name);
            if let Some(index) = Count::METRICS.iter().position(|metric| metric.name == name) {
                counters.counts[index] = *value;
            }
        }
        for [code, count] in head.closes.as_chunks().0 {
            let code = u32::try_from(*code).unwrap_or(0);
            if let Some(index) = CloseReason::ALL.iter().position(|reason| reason.code() == code) {
                counters.closes[index] = *count;
            }
        }
        counters
    }

    /// Counts an ended connection.
    pub(super) fn closed(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }
}

impl Index<Count> for Counters {
    type Output = u64;
    fn index(&self, count: Count) -> &u64 {
        &self.counts[count as usize]
    }
}

impl IndexMut<Count> for Counters {
    fn index_mut(&mut self, count: Count) -> &mut u64 {
        &mut self.counts[count as usize]
    }
}
