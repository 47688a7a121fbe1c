//! Owners of slots: which node should own a slot, and what a node does about it.
//!
//! Nodes 1, 2 and 3 live. Rendezvous hashing gives each slot to the node with the largest hash of slot and node. Node 3 dies: its
//! slots go to the nodes with the second largest hash, and no other slot moves.

use moorline_proto::random::mix;
use moorline_proto::slots::{NodeId, Slot, SlotTable};

/// Hand-overs of one plan: further slots follow with later plans, so that a new node does not stop all slots at once.
pub const HAND_OVERS_MAX: usize = 64;

/// Returns the node that should own a slot. `None`: no node lives.
pub fn preferred(slot: Slot, living: &[NodeId]) -> Option<NodeId> {
    // The node's number decides between equal hashes.
    living.iter().copied().max_by_key(|node| (weight(slot, *node), *node))
}

fn weight(slot: Slot, node: NodeId) -> u64 {
    mix(mix(u64::from(node.0)) ^ u64::from(slot.number()))
}

/// The node that should own each slot, for one set of living nodes.
#[derive(Debug, Default)]
pub struct Preferences {
    living: Vec<NodeId>,
    by_slot: Vec<Option<NodeId>>,
}

impl Preferences {
    /// Computes the preferences of these nodes.
    pub fn of(living: Vec<NodeId>) -> Self {
        let by_slot = Slot::all().map(|slot| preferred(slot, &living)).collect();
        Self { living, by_slot }
    }

    /// Returns the nodes.
    pub fn living(&self) -> &[NodeId] {
        &self.living
    }

    /// Returns the node that should own a slot. `None`: no node lives.
    pub fn of_slot(&self, slot: Slot) -> Option<NodeId> {
        self.by_slot.get(slot.index()).copied().flatten()
    }
}

/// Order of a node about a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take the slot over: its owner is dead, or is this node in an earlier life.
    Claim {
        /// The slot.
        slot: Slot,
        /// Epoch at which the slot has no living owner.
        seen: u64,
    },
    /// Give the slot, which this node owns, to the node that should own it.
    HandOver {
        /// The slot.
        slot: Slot,
        /// Epoch at which this node owns the slot.
        epoch: u64,
        /// The next owner.
        to: NodeId,
    },
}

/// Plans the steps of node `me`. `preferences` are those of the nodes with a lease, by the clock of the database; `holds` says at
/// which epoch this node has a slot in its memory.
pub fn plan(
    me: NodeId,
    preferences: &Preferences,
    table: &SlotTable,
    holds: impl Fn(Slot) -> Option<u64>,
) -> Vec<Step> {
    let (mut steps, mut hand_overs) = (Vec::new(), 0);
    for slot in Slot::all() {
        let (owner, preferred) = (table.owner(slot), preferences.of_slot(slot));
        match owner.node {
            // Another node took it over, or gave it to this one: the next epoch is what a claim begins.
            Some(node) if node == me && holds(slot) != Some(owner.epoch) => {
                steps.push(Step::Claim { slot, seen: owner.epoch });
            }
            Some(node) if node == me => {
                if let Some(to) = preferred.filter(|to| *to != me)
                    && hand_overs < HAND_OVERS_MAX
                {
                    hand_overs += 1;
                    steps.push(Step::HandOver { slot, epoch: owner.epoch, to });
                }
            }
            Some(node) if preferences.living.contains(&node) => {}
            _ if preferred == Some(me) => steps.push(Step::Claim { slot, seen: owner.epoch }),
            _ => {}
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::slots::{Owner, SLOTS};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn plan(
        me: NodeId,
        living: &[NodeId],
        table: &SlotTable,
        holds: impl Fn(Slot) -> Option<u64>,
    ) -> Vec<Step> {
        super::plan(me, &Preferences::of(living.to_vec()), table, holds)
    }

    fn shares(living: &[NodeId]) -> Vec<usize> {
        let of = |node: &NodeId| Slot::all().filter(|slot| preferred(*slot, living) == Some(*node)).count();
        living.iter().map(of).collect()
    }

    #[test]
    fn nodes_have_about_equal_shares() {
        assert!(shares(&NODES).iter().all(|share| (280..=400).contains(share)), "{:?}", shares(&NODES));
        assert_eq!(preferred(Slot::of("a"), &[]), None);
    }

    #[test]
    fn a_node_claims_what_is_its_own_and_has_no_living_owner() {
        let mut table = SlotTable::default();
        let mine = shares(&NODES)[0];
        assert_eq!(plan(NODES[0], &NODES, &table, |_| None).len(), mine);
        for slot in Slot::all() {
            table.learn(slot, Owner { node: Some(NODES[1]), epoch: 4 });
        }
        assert_eq!(plan(NODES[0], &NODES, &table, |_| None), [], "node 2 lives");
        let claims = plan(NODES[0], &[NODES[0], NODES[2]], &table, |_| None);
        assert_eq!(claims.len(), shares(&[NODES[0], NODES[2]])[0]);
        assert!(claims.iter().all(|step| matches!(step, Step::Claim { seen: 4, .. })));
    }

    #[test]
    fn a_node_claims_again_what_it_lost_from_its_memory_and_gives_away_what_is_not_its_own() {
        let mut table = SlotTable::default();
        let slot = Slot::all().find(|slot| preferred(*slot, &NODES) == Some(NODES[0])).expect("one");
        table.learn(slot, Owner { node: Some(NODES[0]), epoch: 6 });
        let only = |holds: Option<u64>, living: &[NodeId]| -> Vec<Step> {
            let steps = plan(NODES[0], living, &table, |_| holds);
            let is_it = |step: &Step| match step {
                Step::Claim { slot: of, .. } | Step::HandOver { slot: of, .. } => *of == slot,
            };
            steps.into_iter().filter(is_it).collect()
        };
        assert_eq!(only(Some(6), &NODES), []);
        for holds in [None, Some(5)] {
            assert_eq!(only(holds, &NODES), [Step::Claim { slot, seen: 6 }]);
        }
        let to = preferred(slot, &NODES[1..]).expect("one");
        let without_me: Vec<_> = NODES[1..].to_vec();
        assert_eq!(only(Some(6), &without_me), [Step::HandOver { slot, epoch: 6, to }]);
    }

    #[test]
    fn hand_overs_are_bounded() {
        let mut table = SlotTable::default();
        for slot in Slot::all() {
            table.learn(slot, Owner { node: Some(NODES[0]), epoch: 1 });
        }
        let steps = plan(NODES[0], &NODES[1..], &table, |_| Some(1));
        assert_eq!(steps.len(), HAND_OVERS_MAX);
    }

    proptest! {
        #[test]
        fn only_the_slots_of_a_node_that_goes_or_comes_move(
            nodes in proptest::collection::btree_set(0_u16..1024, 2..12),
            which in any::<prop::sample::Index>(),
        ) {
            let nodes: Vec<_> = nodes.into_iter().map(NodeId).collect();
            let gone = nodes[which.index(nodes.len())];
            let left: Vec<_> = nodes.iter().copied().filter(|node| *node != gone).collect();
            let mut moved = BTreeSet::new();
            for slot in Slot::all() {
                let (before, after) = (preferred(slot, &nodes), preferred(slot, &left));
                prop_assert!(before == after || before == Some(gone), "slot {:?} moved for nothing", slot);
                if before != after {
                    moved.insert(slot);
                }
            }
            prop_assert!(moved.len() < 2 * SLOTS / nodes.len() + 64);
        }

        #[test]
        fn two_nodes_never_plan_to_claim_one_slot_if_they_see_the_same(
            dead in 0_usize..3,
            epochs in proptest::collection::vec((0_u64..1024, 0_usize..3, 1_u64..9), 0..200),
        ) {
            let living: Vec<_> = NODES.iter().copied().filter(|node| *node != NODES[dead]).collect();
            let mut table = SlotTable::default();
            for (slot, node, epoch) in epochs {
                let owner = Owner { node: Some(NODES[node]), epoch };
                table.learn(Slot::from_number(slot).expect("below 1024"), owner);
            }
            let mut claimed = BTreeSet::new();
            for node in &living {
                for step in plan(*node, &living, &table, |_| None) {
                    if let Step::Claim { slot, .. } = step {
                        prop_assert!(claimed.insert(slot), "{:?} is claimed twice", slot);
                    }
                }
            }
            let unowned = Slot::all().filter(|slot| table.owner(*slot).node.is_none_or(|node| node == NODES[dead]));
            prop_assert!(unowned.into_iter().all(|slot| claimed.contains(&slot)), "each slot is claimed");
        }
    }
}
