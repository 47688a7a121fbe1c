//! Slots in the bodies of link frames: SLOTS and MOVED.

use super::{Moved, NodeId, Owner, SLOTS, Slot, SlotTable};
use crate::message::backend;
use core::num::TryFromIntError;

/// Writes a node that may be nobody: its number, and 1 more; 0: nobody.
pub fn number_of(node: Option<NodeId>) -> u32 {
    node.map_or(0, |node| u32::from(node.0) + 1)
}

/// Reads a node that may be nobody.
///
/// # Errors
/// The number is larger than that of any node.
pub fn node_of(number: u32) -> Result<Option<NodeId>, TryFromIntError> {
    number.checked_sub(1).map(|number| u16::try_from(number).map(NodeId)).transpose()
}

impl From<&SlotTable> for backend::Slots {
    fn from(table: &SlotTable) -> Self {
        let owners = || Slot::all().map(|slot| table.owner(slot));
        Self {
            nodes: owners().map(|owner| number_of(owner.node)).collect(),
            epochs: owners().map(|owner| owner.epoch).collect(),
            addresses: alloc::vec::Vec::new(),
        }
    }
}

impl SlotTable {
    /// Reads SLOTS. `None`: it does not name an owner for each slot.
    pub fn of(slots: &backend::Slots) -> Option<Self> {
        let backend::Slots { nodes, epochs, addresses: _ } = slots;
        if nodes.len() != SLOTS || epochs.len() != SLOTS {
            return None;
        }
        let mut table = Self::default();
        for (slot, (node, epoch)) in Slot::all().zip(nodes.iter().zip(epochs)) {
            // A sum of epochs is the version, and has to fit.
            let epoch = (*epoch <= u64::MAX / SLOTS as u64).then_some(*epoch)?;
            table.learn(slot, Owner { node: node_of(*node).ok()?, epoch });
        }
        Some(table)
    }
}

impl From<Moved> for backend::Moved {
    fn from(moved: Moved) -> Self {
        let Moved { slot, owner } = moved;
        Self { slot: slot.number().into(), node: number_of(owner.node), epoch: owner.epoch }
    }
}

impl Moved {
    /// Reads MOVED. `None`: it names no slot, or no node.
    pub fn of(moved: &backend::Moved) -> Option<Self> {
        let slot = Slot::from_number(moved.slot.into())?;
        let epoch = (moved.epoch <= u64::MAX / SLOTS as u64).then_some(moved.epoch)?;
        Some(Self { slot, owner: Owner { node: node_of(moved.node).ok()?, epoch } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_table_survives_the_wire(owners in proptest::collection::vec((0_u64..1024, proptest::option::of(any::<u16>()), 1_u64..1 << 40), 0..60)) {
            let mut table = SlotTable::default();
            for (slot, node, epoch) in owners {
                let slot = Slot::from_number(slot).expect("below 1024");
                table.learn(slot, Owner { node: node.map(NodeId), epoch });
                let moved = Moved { slot, owner: table.owner(slot) };
                prop_assert_eq!(Moved::of(&moved.into()), Some(moved));
            }
            prop_assert_eq!(SlotTable::of(&(&table).into()), Some(table));
        }
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let whole = backend::Slots { nodes: vec![1; SLOTS], epochs: vec![1; SLOTS], addresses: vec![] };
        assert!(SlotTable::of(&whole).is_some());
        let short = backend::Slots { nodes: vec![1; SLOTS - 1], ..whole.clone() };
        let (mut no_node, mut no_epoch) = (whole.clone(), whole);
        (no_node.nodes[7], no_epoch.epochs[7]) = (1 << 16 | 1, u64::MAX);
        for wrong in [short, no_node, no_epoch] {
            assert_eq!(SlotTable::of(&wrong), None);
        }
        assert_eq!(Moved::of(&backend::Moved { slot: 1024, node: 1, epoch: 1 }), None);
        assert_eq!(Moved::of(&backend::Moved { slot: 1, node: 1 << 17, epoch: 1 }), None);
    }
}
