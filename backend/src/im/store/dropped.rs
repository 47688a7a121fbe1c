//! Marks of inbox entries that made room for newer ones: per conversation, the position of the last, and the seq
//! of the first.
//!
//! There a device is told to pull. At most one position for each conversation of the user.

use super::ConversationId;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// A conversation, and a seq there.
pub(super) type Place = (ConversationId, u64);

/// Positions of one user's stream at which entries were dropped.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    by_position: BTreeMap<u64, Place>,
    last: HashMap<ConversationId, u64>,
}

impl Dropped {
    /// The entry at `position`, the oldest, was dropped.
    pub(super) fn push(&mut self, position: u64, (conversation, seq): Place) {
        let before =
            self.last.insert(conversation, position).and_then(|before| self.by_position.remove(&before));
        let first = before.map_or(seq, |(_, first)| first);
        self.by_position.insert(position, (conversation, first));
    }

    /// Everything up to `position` is acked by everyone.
    pub(super) fn trim(&mut self, position: u64) {
        while let Some(first) = self.by_position.first_entry()
            && *first.key() <= position
        {
            let (conversation, _) = first.remove();
            self.last.remove(&conversation);
        }
    }

    /// True if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.by_position.is_empty()
    }

    /// Marks of entries dropped after `position`, in order.
    pub(super) fn after(&self, position: u64) -> impl Iterator<Item = (u64, Place)> + '_ {
        let later = (Bound::Excluded(position), Bound::Unbounded);
        self.by_position.range(later).map(|(position, place)| (*position, *place))
    }
}
