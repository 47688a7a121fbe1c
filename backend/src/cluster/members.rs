//! The nodes of a cluster as one of them sees them: its own lease, who else has one, and which node should own which slot.
//!
//! Node 2 tells that it is to end: the slots go to nodes 1 and 3 by rendezvous hashing, while node 2 still has its lease and
//! gives them away. A process with the number of node 1 finds that another life has the lease, and owns nothing.

use super::cell::{CellRequest, Life};
use super::lease::Lease;
use super::owners::Preferences;
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Members {
    own: Life,
    lease: Lease,
    /// Lives of nodes that have a lease.
    living: Vec<Life>,
    preferences: Preferences,
}

impl Members {
    /// The nodes as a life knows them that has just begun: none.
    pub fn new(own: Life) -> Self {
        let (lease, living, preferences) = (Lease::default(), Vec::new(), Preferences::default());
        Self { own, lease, living, preferences }
    }

    /// Lives of nodes that have a lease, as far as this node knows.
    pub fn living(&self) -> &[Life] {
        &self.living
    }

    /// The other nodes that have a lease.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        self.living.iter().map(|life| life.node).filter(|node| *node != self.own.node)
    }

    /// Another life of this node that has the lease: another process, or an earlier one.
    pub fn twin(&self) -> Option<&Life> {
        self.living.iter().find(|life| life.node == self.own.node && !life.is(&self.own))
    }

    /// True while this node has a lease.
    pub fn is_held(&self, now: Instant) -> bool {
        self.lease.is_held(now)
    }

    /// True if this node may claim slots and give them away: it has a lease, and is not the twin of another one.
    pub(super) fn may_plan(&self, now: Instant) -> bool {
        self.lease.is_held(now) && self.living.iter().any(|life| life.is(&self.own))
    }

    /// True if this node is to end.
    pub const fn is_stopping(&self) -> bool {
        self.own.is_stopping
    }

    /// The node that should own each slot.
    pub(super) const fn preferences(&self) -> &Preferences {
        &self.preferences
    }

    /// The request that renews the lease.
    pub(super) fn renewal(&self) -> CellRequest {
        CellRequest::Renew(self.own.clone())
    }

    /// The request that ends the lease; nobody waits for its reply.
    pub fn release(&self) -> CellRequest {
        CellRequest::Release(self.own.clone())
    }

    /// True: renew the lease now.
    pub(super) fn try_renew(&mut self, now: Instant) -> bool {
        self.lease.try_renew(now)
    }

    /// Takes the answer to a renewal that was asked for at `asked`. True: nodes have come or gone.
    pub(super) fn handle_renewed(&mut self, asked: Instant, living: Vec<Life>) -> bool {
        // Another process with this number may have the lease, or an earlier life whose lease has not ended yet.
        if living.iter().any(|life| life.is(&self.own)) {
            self.lease.handle_renewed(asked);
        }
        let is_news = self.living != living;
        self.living = living;
        self.prefer();
        is_news
    }

    /// Takes the word of a node that it is to end.
    pub(super) fn handle_stopping(&mut self, node: NodeId) {
        self.living.iter_mut().filter(|life| life.node == node).for_each(|life| life.is_stopping = true);
        self.prefer();
    }

    /// This node is to end.
    pub(super) fn stop(&mut self) {
        self.own.is_stopping = true;
        self.handle_stopping(self.own.node);
    }

    /// Forgets who should own what: the lease has ended.
    pub(super) fn handle_lease_ended(&mut self) {
        self.preferences = Preferences::default();
    }

    /// Time of the next renewal, or of the end of the lease if that is earlier.
    pub(super) fn next_deadline(&self, now: Instant) -> Instant {
        self.lease.next_deadline(now)
    }

    /// Decides which nodes should own slots: those that are not to end. If all are, the slots stay where they are.
    fn prefer(&mut self) {
        let own = &self.own;
        let known = self.living.iter().filter(|life| life.is(own) || life.node != own.node);
        let stay: Vec<_> = known.clone().filter(|life| !life.is_stopping).map(|life| life.node).collect();
        let nodes = if stay.is_empty() { known.map(|life| life.node).collect() } else { stay };
        if self.preferences.living() != nodes {
            self.preferences = Preferences::of(nodes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::slots::Slot;

    fn life(node: u16, number: u64) -> Life {
        Life { node: NodeId(node), number, address: "".into(), is_stopping: false }
    }

    fn owners(members: &Members) -> Vec<u16> {
        let mut nodes: Vec<_> =
            Slot::all().filter_map(|slot| members.preferences().of_slot(slot)).map(|node| node.0).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    #[test]
    fn a_node_that_is_to_end_should_own_nothing() {
        let (mut members, t0) = (Members::new(life(1, 7)), Instant::ZERO);
        assert!(members.handle_renewed(t0, vec![life(1, 7), life(2, 8)]));
        assert!(!members.handle_renewed(t0, vec![life(1, 7), life(2, 8)]), "nothing is new");
        assert_eq!(owners(&members), [1, 2]);
        members.handle_stopping(NodeId(2));
        assert_eq!(owners(&members), [1]);
        members.stop();
        assert_eq!(owners(&members), [1, 2], "all are to end: nothing moves");
        assert!(members.is_stopping() && members.may_plan(t0));
    }

    #[test]
    fn a_twin_has_no_lease_and_owns_nothing() {
        let (mut members, t0) = (Members::new(life(1, 7)), Instant::ZERO);
        members.handle_renewed(t0, vec![life(1, 6), life(2, 8)]);
        assert!(!members.is_held(t0) && !members.may_plan(t0));
        assert_eq!((members.twin(), owners(&members)), (Some(&life(1, 6)), vec![2]));
        members.handle_renewed(t0, vec![life(1, 7), life(2, 8)]);
        assert!(members.may_plan(t0) && members.twin().is_none());
    }
}
