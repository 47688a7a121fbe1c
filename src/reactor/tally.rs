//! What a reactor publishes: its shard's numbers, and a few of its own.

use crate::metrics::{Board, Series};
use crate::shard::{Count, CountKind, Tally};
use moorline_proto::error::CloseReason;

/// A number of the reactor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReactorCount {
    /// Turns of the loop.
    Turns,
    /// Times that accepting rested because the system gave no descriptor.
    AcceptPauses,
    /// Connections refused at the cap.
    AcceptRefused,
    /// Times that a worker's mailbox was full.
    WorkerMailboxFull,
    /// Connections whose bytes wait for their turn.
    ReadsWaiting,
}

const OWN: [Series; 5] = [
    Series::counter("reactor_turns", "Turns of the reactor loops."),
    Series::counter("accept_pauses", "Times that accepting rested because the system gave no descriptor."),
    Series::counter("accept_refused", "Connections refused at the connection cap."),
    Series::counter("worker_mailbox_full", "Times that a worker's mailbox was full."),
    Series::gauge("reads_waiting", "Connections whose bytes wait for their turn."),
];

/// What is counted under `moorline_closed` beside the close reasons.
const BY_PEER: &str = "peer";

/// The series of one reactor's board.
pub fn series() -> Vec<Series> {
    let counts = Count::ALL.iter().map(|count| {
        let (name, help, kind) = count.describe();
        match kind {
            CountKind::Counter => Series::counter(name, help),
            CountKind::Gauge => Series::gauge(name, help),
        }
    });
    let closed = |label| Series::counter("closed", "Connections ended, by reason.").labelled("reason", label);
    let closes = CloseReason::ALL.iter().map(|reason| closed(reason.label()));
    counts.chain(closes).chain([closed(BY_PEER)]).chain(OWN).collect()
}

/// Publishes everything, in the order of [`series`].
pub(super) fn publish(board: &Board, tally: &Tally, own: &[(ReactorCount, u64)]) {
    let shard = tally.counts().iter().chain(tally.closes()).chain([&tally.closed_by_peer]);
    for (index, value) in shard.enumerate() {
        board.set(index, *value);
    }
    let first = Count::ALL.len() + CloseReason::ALL.len() + 1;
    for (count, value) in own {
        board.set(first + *count as usize, *value);
    }
}
