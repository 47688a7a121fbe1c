//! A set of slots of a cluster.

use super::{SLOTS, Slot};

const WORDS: usize = SLOTS / 64;

/// A set of slots: 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet([u64; WORDS]);

impl SlotSet {
    /// Adds a slot. False: it was in.
    pub const fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, 1 << (slot.index() % 64));
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    /// Returns whether a slot is in.
    pub const fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    /// Returns whether no slot is in.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Lists the slots, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + use<'_> {
        Slot::all().filter(|slot| self.contains(*slot))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| _ = set.insert(slot));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let slots: Vec<_> = Slot::all().filter(|slot| slot.number() % 37 == 5).collect();
        let mut set: SlotSet = slots.iter().copied().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), slots);
        assert!(!set.insert(slots[0]) && set.insert(Slot::of("alice")) && set.contains(Slot::of("alice")));
        assert!(SlotSet::default().is_empty() && !set.is_empty());
    }
}
