//! Slots of a cluster: which part of a store a conversation or a user belongs to, and which node owns that part.
//!
//! There are 1,024 slots, for ever. `Slot::of("alice")` is slot 604, on each node and each gateway: the hash is FNV-1a of 64
//! bits over the bytes of the name, then the finaliser of SplitMix64, then the lowest 10 bits. A uid has no colon and the id of
//! a conversation has one, so no uid is also the id of a conversation.
//!
//! A [`SlotTable`] says which node owns each slot. Each take-over raises the epoch of its slot, so of two statements about one
//! slot the one with the larger epoch is newer, whoever made it.

mod routes;
mod set;
mod wire;

pub use set::SlotSet;
pub use wire::{node_of, number_of};

pub use routes::{ASK_EVERY, MOVED_MAX, Moved, NodeRoutes, PAUSE, Route};

use crate::random::mix;
use alloc::vec;
use alloc::vec::Vec;

/// Number of slots of a cluster.
pub const SLOTS: usize = 1024;
/// Offset basis of FNV-1a with 64 bits.
const FNV_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
/// Prime of FNV-1a with 64 bits.
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// One slot of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// The slot with the number 0.
    pub const FIRST: Self = Self(0);

    /// Returns the slot of a uid, or of the id of a conversation.
    #[allow(clippy::cast_possible_truncation)] // below 1024
    pub const fn of(name: &str) -> Self {
        let (bytes, mut hash, mut at) = (name.as_bytes(), FNV_BASIS, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
            at += 1;
        }
        Self((mix(hash) % SLOTS as u64) as u16)
    }

    /// Returns the slot with this number. `None`: the number is not below [`SLOTS`].
    pub fn from_number(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|number| usize::from(*number) < SLOTS).map(Self)
    }

    /// Returns the slot with this index. `None`: there are fewer.
    pub fn at(index: usize) -> Option<Self> {
        u16::try_from(index).ok().filter(|number| usize::from(*number) < SLOTS).map(Self)
    }

    /// Returns the number, below [`SLOTS`].
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Returns the index into a table of all slots.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Lists all slots.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).take(SLOTS).map(Self)
    }
}

/// Number of a node of a cluster, below 1024; message ids hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// Owner of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The node. `None`: no node has the slot.
    pub node: Option<NodeId>,
    /// Number of take-overs of the slot; 0: no node ever had it.
    pub epoch: u64,
}

/// Owners of all slots, as far as their holder knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    owners: Vec<Owner>,
    version: u64,
}

impl Default for SlotTable {
    fn default() -> Self {
        Self { owners: vec![Owner::default(); SLOTS], version: 0 }
    }
}

impl SlotTable {
    /// Returns the owner of a slot.
    pub fn owner(&self, slot: Slot) -> Owner {
        self.owners.get(slot.index()).copied().unwrap_or_default()
    }

    /// Returns the version: the sum of all epochs. Of two tables that were read from one store, the one with the larger
    /// version is newer.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Takes a newer owner of one slot. False: the table knows this owner, or a newer one.
    pub fn learn(&mut self, slot: Slot, owner: Owner) -> bool {
        let Some(known) = self.owners.get_mut(slot.index()) else { return false };
        if owner.epoch <= known.epoch {
            return false;
        }
        self.version += owner.epoch - known.epoch;
        *known = owner;
        true
    }

    /// Takes what is newer in another table. Returns the slots whose node is another one now.
    pub fn merge(&mut self, other: &Self) -> Vec<Slot> {
        let mut moved = Vec::new();
        for slot in Slot::all() {
            let before = self.owner(slot).node;
            if self.learn(slot, other.owner(slot)) && self.owner(slot).node != before {
                moved.push(slot);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::format;

    #[test]
    fn the_hash_of_a_name_never_changes() {
        let vectors = [
            ("", 155),
            ("a", 248),
            ("alice", 604),
            ("bob", 492),
            ("c2c:alice:bob", 134),
            ("group:tea", 66),
            ("Zo\u{eb}", 606),
        ];
        let found = vectors.map(|(name, _)| (name, Slot::of(name).number()));
        assert_eq!(found, vectors);
    }

    #[test]
    fn names_spread_over_all_slots() {
        let mut counts = BTreeMap::<Slot, u32>::new();
        for number in 0..102_400 {
            *counts.entry(Slot::of(&format!("user{number}"))).or_default() += 1;
        }
        assert_eq!(counts.len(), SLOTS);
        // 100 on average; the standard deviation of a fair draw is 10.
        let (least, most) = (counts.values().min(), counts.values().max());
        assert!(least > Some(&50) && most < Some(&150), "{least:?} to {most:?}");
    }

    #[test]
    fn a_slot_has_a_number_below_1024() {
        assert_eq!(Slot::from_number(1023).map(Slot::number), Some(1023));
        assert_eq!((Slot::from_number(1024), Slot::from_number(u64::MAX)), (None, None));
        assert_eq!(Slot::all().count(), SLOTS);
    }

    #[test]
    fn a_merge_names_the_slots_that_moved() {
        let (mut known, mut news) = (SlotTable::default(), SlotTable::default());
        let [first, second, third] = [1, 2, 3].map(Slot);
        let owner = |node, epoch| Owner { node: Some(NodeId(node)), epoch };
        assert!(known.learn(first, owner(7, 2)) && known.learn(second, owner(7, 9)));
        assert!(!known.learn(second, owner(8, 9)), "the same epoch");
        news.learn(first, owner(8, 3));
        news.learn(second, owner(8, 4));
        news.learn(third, owner(7, 1));
        assert_eq!(known.merge(&news), [first, third]);
        assert_eq!((known.owner(second), known.version()), (owner(7, 9), 13));
        assert_eq!(known.merge(&news), [], "known");
        news.learn(first, owner(8, 5));
        assert_eq!((known.merge(&news), known.version()), (Vec::new(), 15), "the same node");
    }

    proptest! {
        #[test]
        fn tables_agree_whatever_the_order_of_news(
            news in proptest::collection::vec((0_u64..8, 1_u64..6), 0..40),
            seed in any::<u64>(),
        ) {
            // The node follows from slot and epoch: a store gives each epoch to one node.
            let told = |(slot, epoch): (u64, u64)| {
                let node = Some(NodeId(u16::try_from(mix(slot * 8 + epoch) % 5).expect("small")));
                (Slot::from_number(slot).expect("small"), Owner { node, epoch })
            };
            let mut shuffled = news.clone();
            let mut random = crate::random::Random::new(seed);
            for at in (1..shuffled.len()).rev() {
                let other = usize::try_from(random.below(at as u64 + 1)).expect("small");
                shuffled.swap(at, other);
            }
            let (mut one, mut other) = (SlotTable::default(), SlotTable::default());
            for (slot, owner) in news.into_iter().map(told) {
                one.learn(slot, owner);
            }
            for (slot, owner) in shuffled.into_iter().map(told) {
                other.learn(slot, owner);
            }
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(one.version(), Slot::all().map(|slot| one.owner(slot).epoch).sum::<u64>());
            prop_assert!(one.merge(&other).is_empty());
        }
    }
}
