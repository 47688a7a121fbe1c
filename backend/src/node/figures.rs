//! Figures of a node, for the metrics page.

use crate::cluster::calls::CallStatus;
use crate::cluster::store::ClusterStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Figures since the start, and of the last tick.
#[derive(Debug, Default)]
pub(crate) struct NodeFigures {
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    last: Mutex<Tick>,
}

/// Figures of one tick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tick {
    pub(crate) slots: u64,
    pub(crate) nodes: u64,
    pub(crate) has_lease: bool,
    /// Another process has the lease of this node's number.
    pub(crate) has_twin: bool,
    pub(crate) status: ClusterStatus,
    pub(crate) calls: CallStatus,
}

impl NodeFigures {
    pub(crate) fn set(&self, tick: Tick) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = tick;
    }

    /// Returns why this node cannot serve anybody. `None`: it has its lease.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        match self.last() {
            Tick { has_lease: true, .. } => None,
            Tick { has_twin: true, .. } => {
                Some("another process has the lease of this `node_number`; give each node its own")
            }
            _ => Some("this node has no lease: the first cell of `store.cells` does not renew it"),
        }
    }

    /// Values that go up and down: name, help, value.
    pub(crate) fn gauges(&self) -> [(&'static str, &'static str, u64); 3] {
        let Tick { slots, nodes, has_lease, .. } = self.last();
        [
            ("node_slots", "Slots that this node serves.", slots),
            ("node_nodes", "Nodes of the cluster that have a lease, this one included.", nodes),
            ("node_has_lease", "1 while this node has its lease.", u64::from(has_lease)),
        ]
    }

    /// Values that go up alone: name, help, value.
    pub(crate) fn counters(&self) -> [(&'static str, &'static str, u64); 25] {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let Tick { status: it, calls, .. } = self.last();
        [
            ("cell_requests", "Requests to cells.", of(&self.requests)),
            ("cell_failures", "Requests to cells of which no answer came.", of(&self.failures)),
            ("cell_transactions", "Transactions that were durable.", it.transactions),
            ("cell_messages", "Messages in them.", it.messages),
            ("cell_unknown", "Transactions of unknown outcome.", it.unknown),
            ("cell_found", "Messages that a transaction of unknown outcome had stored.", it.found),
            ("node_claimed", "Slots taken over.", it.claimed),
            ("node_fenced", "Slots that a fence did not return.", it.fenced),
            ("node_handed_over", "Slots given to another node.", it.handed_over),
            ("node_leases_ended", "Slots forgotten because the lease ended.", it.leases_ended),
            ("node_voids", "Numbers of messages that became voids.", it.voids),
            ("node_direct", "Messages that went into a stream with their transaction.", it.direct),
            ("node_delivers", "Messages sent to the nodes of receivers, also again.", it.delivers),
            ("node_delivers_ignored", "Messages of other nodes that were there, or too early.", it.ignored),
            ("node_forwarded", "SENDs that another node stored.", it.forwarded),
            ("node_rows_read", "Rows that were read from cells into the memory of slots.", it.rows_read),
            ("node_rows_forgotten", "Rows forgotten because there were too many.", it.rows_forgotten),
            ("node_calls_forwarded", "Parts of API calls sent to other nodes.", calls.forwarded),
            (
                "node_calls_put_off",
                "API calls answered RETRY: a slot moved, or its cell was away.",
                calls.put_off,
            ),
            (
                "node_calls_unanswered",
                "Parts of API calls that another node did not answer.",
                calls.unanswered,
            ),
            ("node_swept", "Messages that were emptied since their groups are gone.", it.swept),
            (
                "node_presences_asked",
                "Users of whom other nodes were asked whether they are online.",
                it.presences_asked,
            ),
            ("node_presences_told", "Users of whom other nodes were told.", it.presences_told),
            (
                "node_presences_unanswered",
                "Questions of clients about presence that another node did not answer.",
                it.presences_unanswered,
            ),
            ("node_moved", "SENDs answered RETRY because their slot moved.", it.moved),
        ]
    }

    fn last(&self) -> Tick {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
