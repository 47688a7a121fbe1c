//! Counters of a worker: plain numbers, published to its counter set once per loop turn.

use crate::metrics::{Metric, SECONDS, counts, names};
use crate::snapshot::WorkerHead;
use moorline_proto::time::{Duration, nanos_of};
use std::ops::{Index, IndexMut};

/// Upper bounds of the latency buckets, in nanoseconds.
const LATENCY_BOUNDS: &[u64] = &[
    250_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    3_000_000_000,
];
const UP_LATENCY: Metric = Metric::histogram(
    "up_seconds",
    "From a client frame taken by a worker to the backend's answer.",
    LATENCY_BOUNDS,
    SECONDS,
);
/// Number of counters.
const COUNTS: usize = Count::ALL.len();
/// Buckets, one more for what is above, and the sum.
const CELLS: usize = COUNTS + LATENCY_BOUNDS.len() + 2;

/// Contents of a worker's [`CounterSet`](crate::metrics::CounterSet).
pub fn metrics() -> Vec<Metric> {
    Count::METRICS.iter().copied().chain([UP_LATENCY]).collect()
}

counts! {
    /// One number of a worker.
    pub enum Count {
        /// Links that exchange frames with a backend.
        LinksUp = gauge "links_up";
        /// Links that exchange frames with a backend over TLS.
        LinksEncrypted = gauge "links_encrypted";
        /// Connections made to backends.
        LinkConnects = counter "link_connects";
        /// Links lost, or tried in vain.
        LinkFailures = counter "link_failures";
        /// Links closed because the backend sent what it must not.
        LinkErrors = counter "link_protocol_errors";
        /// Links refused because their backend has another store than the backends that serve.
        LinkStoresRefused = counter "link_stores_refused";
        /// Endpoints that are left alone because they do not answer.
        BreakersOpen = gauge "breakers_open";
        /// Times that an endpoint began to be left alone.
        BreakerTrips = counter "breaker_trips";
        /// Bytes received from backends.
        LinkBytesIn = counter "link_received_bytes";
        /// Bytes the kernel took toward backends.
        LinkBytesOut = counter "link_sent_bytes";
        /// Frames received from backends.
        LinkFramesIn = counter "link_frames_received";
        /// Client frames taken for the backend.
        Ups = counter "ups";
        /// UPs on links that have no answer yet.
        UpsPending = gauge "ups_pending";
        /// Bodies of the UPs on links that have no answer yet, in bytes.
        UpsPendingBytes = gauge "ups_pending_bytes";
        /// UPs that wait for a link, for credit or for room in its output.
        UpsParked = gauge "ups_parked";
        /// Bodies of the UPs that wait, in bytes.
        UpsParkedBytes = gauge "ups_parked_bytes";
        /// Ends of logins that backends may not have read, on all links.
        EndsUnconfirmed = gauge "ends_unconfirmed";
        /// UPs refused because too many waited.
        UpsRefused = counter "ups_refused";
        /// UPs that had no answer in time.
        UpTimeouts = counter "up_timeouts";
        /// Answers from the backend given on.
        UpResults = counter "up_results";
        /// Answers from the backend that came after their time was up.
        LateResults = counter "up_results_late";
        /// Answers from the backend that are larger than clients accept, and became TOO_LARGE.
        AnswersTooLarge = counter "up_results_too_large";
        /// RETRY answers given to clients.
        Retries = counter "retries";
        /// Unanswered UPs taken back from a dead link to be sent again.
        Reroutes = counter "reroutes";
        /// Application frames lost with a link or for want of one; nobody waits for them.
        UpsDropped = counter "ups_dropped";
        /// Answers of nodes that they do not own a user's slot.
        SlotsMoved = counter "link_slots_moved";
        /// Questions to nodes for the owners of slots.
        SlotsAsked = counter "link_slots_asked";
        /// Nodes of the cluster that the settings do not name, and that have links.
        NodesLearned = counter "link_nodes_learned";
        /// Nodes of the cluster that were named and have no link: there are too many.
        NodesRefused = counter "link_nodes_refused";
        /// Announcements of slots to links begun.
        Announces = counter "announces";
        /// Logins named to backends in announcements.
        LoginsAnnounced = counter "logins_announced";
        /// Login changes not told to a backend one by one, because an announcement says it all.
        ChangesSkipped = counter "login_changes_skipped";
        /// PUSH frames from backends.
        Pushes = counter "link_pushes";
        /// Targets of those.
        PushTargets = counter "link_push_targets";
        /// PUSH frames with a body that is larger than clients accept; they were not sent to clients.
        PushesTooLarge = counter "link_pushes_too_large";
        /// Targets of those that no shard can hold.
        PushUnroutable = counter "link_push_unroutable";
        /// Outcomes of pushes told to backends.
        PushOutcomes = counter "link_push_outcomes";
        /// Outcomes of pushes whose link is gone.
        OutcomesStale = counter "link_push_outcomes_stale";
        /// Pushes to rooms.
        RoomPushes = counter "link_room_pushes";
        /// Digests of rooms sent to backends.
        Digests = counter "link_digests";
        /// Digests not sent because there are too many rooms.
        DigestsDropped = counter "link_digests_dropped";
        /// Bodies compressed for many receivers.
        Compressed = counter "link_pushes_compressed";
        /// Times that it changed whose clients are not read.
        HoldChanges = counter "backpressure_changes";
        /// Overload level: 0 normal, 1 the last rank is shed, 2 also the second, 3 logins are refused.
        Overload = gauge "overload_level";
        /// Times that this changed.
        OverloadChanges = counter "overload_changes";
        /// Times that a backend was told the load.
        StatsSent = counter "link_stats";
        /// KICK frames from backends.
        Kicks = counter "link_kicks";
        /// HELLOs admitted.
        LoginsOk = counter "auth_admitted";
        /// HELLOs refused.
        LoginsRefused = counter "auth_refused";
        /// HELLOs turned away because too many waited to be judged.
        LoginsBusy = counter "auth_busy";
        /// HELLOs turned away because no backend judged them in time.
        LoginsUnjudged = counter "auth_unavailable";
        /// Batches that a shard's full mailbox did not take at once.
        MailboxFull = counter "worker_mailbox_full";
        /// Turns of workers' loops.
        Turns = counter "worker_turns";
    }
}

/// All numbers of one worker.
#[derive(Clone, Debug)]
pub struct Counters {
    cells: [u64; CELLS],
}

impl Default for Counters {
    fn default() -> Self {
        Self { cells: [0; CELLS] }
    }
}

impl Counters {
    /// The numbers, as [`metrics`] lays them out.
    pub const fn cells(&self) -> &[u64] {
        &self.cells
    }

    /// Goes on counting, by name; the latencies if they have the same buckets.
    pub(super) fn thaw(&mut self, head: &WorkerHead) {
        for (name, value) in head.count_names.iter().zip(&head.counts) {
            let name = names::current(name);
            if let Some(index) = Count::METRICS.iter().position(|metric| metric.name == name) {
                self.cells[index] = *value;
            }
        }
        let theirs = head.counts.get(head.count_names.len()..).unwrap_or_default();
        if theirs.len() == CELLS - COUNTS {
            self.cells[COUNTS..].copy_from_slice(theirs);
        }
    }

    /// Counts how long an answer took.
    pub(super) fn record_latency(&mut self, took: Duration) {
        let nanos = nanos_of(took);
        self.cells[COUNTS + LATENCY_BOUNDS.partition_point(|bound| *bound < nanos)] += 1;
        self.cells[CELLS - 1] += nanos;
    }
}

impl Index<Count> for Counters {
    type Output = u64;
    fn index(&self, count: Count) -> &u64 {
        &self.cells[count as usize]
    }
}

impl IndexMut<Count> for Counters {
    fn index_mut(&mut self, count: Count) -> &mut u64 {
        &mut self.cells[count as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{CounterSet, Registry};
    use std::sync::Arc;

    #[test]
    fn numbers_reach_the_page_under_their_names() {
        let mut counters = Counters::default();
        counters[Count::LinksUp] = 2;
        counters[Count::Turns] = 7;
        for micros in [0, 250, 251, 4_000_000] {
            counters.record_latency(Duration::from_micros(micros));
        }
        let (registry, counter_set) = (Registry::new(), Arc::new(CounterSet::new(metrics())));
        counter_set.publish(counters.cells());
        registry.add(counter_set);
        assert_eq!((registry.sum(names::LINKS_UP), registry.sum("worker_turns")), (2, 7));
        let page = registry.page();
        for line in [
            "moorline_links_up 2",
            "moorline_up_seconds_bucket{le=\"0.00025\"} 2",
            "moorline_up_seconds_bucket{le=\"0.0005\"} 3",
            "moorline_up_seconds_count 4",
        ] {
            assert!(page.lines().any(|got| got == line), "{line} in {page}");
        }
    }

    #[test]
    fn every_series_has_a_name_of_its_own_and_a_text() {
        let all = metrics();
        for (i, metric) in all.iter().enumerate() {
            assert!(metric.help.ends_with('.'), "{}: {:?}", metric.name, metric.help);
            assert!(all[..i].iter().all(|other| other.name != metric.name), "{} twice", metric.name);
        }
        assert_eq!(all.iter().map(Metric::cells).sum::<usize>(), CELLS);
    }
}
