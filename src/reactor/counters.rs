//! Counters that a reactor publishes: its shard's, and a few of its own.

use crate::config::LISTENERS_MAX;
use crate::metrics::{CounterSet, Metric, counts};
use crate::shard::{Count, Counters};
use moorline_proto::error::CloseReason;

counts! {
    /// One counter of the reactor itself.
    pub enum ReactorCount {
        /// Turns of the reactor loops.
        Turns = counter "reactor_turns";
        /// Times that accepting rested because the system gave no descriptor.
        AcceptPauses = counter "accept_pauses";
        /// Connections refused at the connection cap.
        AcceptRefused = counter "accept_refused";
        /// Connections refused because their address has too many, or they come too fast.
        AddressesRefused = counter "addresses_refused";
        /// Times that newcomers waited because connections came faster than they are accepted.
        AcceptRateWaits = counter "accept_rate_exceeded";
        /// Times that newcomers waited because too many connections were not logged in.
        HandshakeWaits = counter "handshakes_exceeded";
        /// Connections refused because their address has its share of those that are not logged in.
        HandshakesRefused = counter "handshakes_refused";
        /// Times that a worker's mailbox was full.
        WorkerMailboxFull = counter "reactor_mailbox_full";
        /// Connections whose bytes wait for their turn.
        ReadsWaiting = gauge "reads_waiting";
        /// TLS handshakes that ended well.
        TlsHandshakes = counter "tls_handshakes";
        /// TLS handshakes that resumed an earlier session by a ticket.
        TlsResumed = counter "tls_resumed";
        /// TLS handshakes that failed.
        TlsHandshakesFailed = counter "tls_handshakes_failed";
        /// Connections in the middle of a TLS handshake that a hot restart closed.
        TlsHandshakesLost = counter "tls_handshakes_lost";
        /// Times that the queue of the threads for TLS handshakes was full.
        TlsQueueFull = counter "tls_queue_full";
        /// WebSocket upgrades that were refused.
        UpgradesRefused = counter "websocket_upgrades_refused";
        /// Connections refused because they do not come from a trusted proxy, or without a valid PROXY header.
        ProxiesRefused = counter "proxies_refused";
        /// Connections ended because their client does not keep to TLS or to the WebSocket protocol.
        LayerFaults = counter "layer_faults";
    }
}

/// Label of connections closed by the peer, in `moorline_closed` beside the close reasons.
const BY_PEER: &str = "peer";

/// Numbers of listeners, as the label `listener` has them.
const LISTENERS: [&str; LISTENERS_MAX] =
    ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

/// The series of one reactor's counter set, with `listeners` listeners.
pub fn metrics(listeners: usize) -> Vec<Metric> {
    let closed = |label| Metric::counter("closed", "Connections ended, by reason.").labelled("reason", label);
    let closes = CloseReason::ALL.iter().map(|reason| closed(reason.label()));
    let counts = Count::METRICS.iter().copied();
    counts.chain(closes).chain([closed(BY_PEER)]).chain(own_metrics(listeners)).collect()
}

/// The series that a reactor counts beside its shard. They begin at zero in each process.
pub fn own_metrics(listeners: usize) -> Vec<Metric> {
    let admitted = |number| {
        Metric::counter("admitted", "Connections admitted, by number of the listener.")
            .labelled("listener", number)
    };
    let admitted = LISTENERS.into_iter().take(listeners).map(admitted);
    ReactorCount::METRICS.iter().copied().chain(admitted).collect()
}

/// Publishes all counters, in the order of [`metrics`].
pub(super) fn publish(
    counter_set: &CounterSet,
    counters: &Counters,
    own: &[(ReactorCount, u64)],
    admitted: &[u64],
) {
    let (counts, closes) = (Count::ALL.len(), CloseReason::ALL.len());
    counter_set.set_all(0, counters.counts());
    counter_set.set_all(counts, counters.closes());
    counter_set.set(counts + closes, counters.closed_by_peer);
    let first = counts + closes + 1;
    for (count, value) in own {
        counter_set.set(first + *count as usize, *value);
    }
    counter_set.set_all(first + ReactorCount::ALL.len(), admitted);
}
