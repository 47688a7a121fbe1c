//! A set of slots.

use super::{SLOTS, Slot};

const WORDS: usize = SLOTS / 64;

/// A set of slots: 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet([u64; WORDS]);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// The set of these bits: bit i of word w is slot 64 w + i. Missing words are empty, further ones are left out.
    pub fn of_words(words: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::EMPTY;
        set.0.iter_mut().zip(words).for_each(|(word, bits)| *word = bits);
        set
    }

    /// Bits for [`Self::of_words`], without the empty words at the end.
    pub fn words(&self) -> &[u64] {
        let used = self.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        &self.0[..used]
    }

    /// Bit i is set if a slot is in whose number is i modulo 64.
    pub fn folded(&self) -> u64 {
        self.0.iter().fold(0, |bits, word| bits | word)
    }

    /// Adds a slot. False: it was in.
    pub const fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, 1 << (slot.index() % 64));
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    /// Takes a slot out.
    pub const fn remove(&mut self, slot: Slot) {
        self.0[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    /// Returns whether a slot is in.
    pub const fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    /// Returns whether no slot is in.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Union of both sets.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, bits)| *word |= bits);
        self
    }

    /// Lists the slots, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + use<> {
        let words = self.0;
        (0..WORDS).flat_map(move |word| {
            let mut rest = words[word];
            core::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Slot::at(64 * word + bit)
            })
        })
    }

    /// Lists each slot once, beginning at number `first`, modulo 1,024, and going round.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = Slot> + use<> {
        let first = first % SLOTS;
        let (behind, before) = (self.iter(), self.iter());
        let behind = behind.filter(move |slot| slot.index() >= first);
        behind.chain(before.filter(move |slot| slot.index() < first))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        slots.into_iter().for_each(|slot| _ = set.insert(slot));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in(
            numbers in proptest::collection::btree_set(0_u64..1024, 0..60),
            others in proptest::collection::btree_set(0_u64..1024, 0..60),
            first in 0_usize..3000,
        ) {
            let slots = |numbers: &BTreeSet<u64>| -> SlotSet {
                numbers.iter().filter_map(|number| Slot::from_number(*number)).collect()
            };
            let numbers_of = |set: &SlotSet| -> BTreeSet<u64> { set.iter().map(|slot| slot.number().into()).collect() };
            let mut set = slots(&numbers);
            prop_assert_eq!(numbers_of(&set), numbers.clone());
            prop_assert_eq!(SlotSet::of_words(set.words().iter().copied()), set);
            let both = numbers_of(&set.union(slots(&others)));
            prop_assert_eq!(both, numbers.union(&others).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(set.folded(), numbers.iter().fold(0, |bits, number| bits | 1 << (number % 64)));
            let round: Vec<_> = set.iter_from(first).map(Slot::index).collect();
            let turned = round.iter().map(|at| (at + 1024 - first % 1024) % 1024);
            prop_assert!(turned.is_sorted() && round.len() == numbers.len());
            for other in slots(&others).iter() {
                set.remove(other);
                prop_assert!(!set.contains(other) && set.insert(other) && !set.insert(other));
                set.remove(other);
            }
            prop_assert_eq!(set.is_empty(), numbers.is_subset(&others));
        }
    }
}
