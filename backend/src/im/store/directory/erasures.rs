//! Messages of deleted users that are still to be erased, by user and conversation.
//!
//! ann deletes her account: a row for each conversation that she was in, and one for her message keys. The rows are durable with
//! the deletion, and each goes when its conversation is done, so an end of the process in between loses nothing. Messages of a
//! later user of the same name have larger ids than `to_id`, and stay.

use crate::im::store::{ConversationId, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// In the place of a conversation: all groups that a version before this one may have known the user in.
pub(in crate::im::store) const ALL_GROUPS: ConversationId = ConversationId::of(u32::MAX);
/// In the place of a conversation: the message keys of the user.
pub(in crate::im::store) const KEYS: ConversationId = ConversationId::of(u32::MAX - 1);

/// Progress of one erasure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::im::store) struct Erasure {
    /// Message ids up to this one belong to the deleted user.
    pub(in crate::im::store) to_id: u64,
    /// The seq from which it goes on; of [`ALL_GROUPS`] the number of the next group.
    pub(in crate::im::store) next: u64,
    /// The members have something to forget, or a member less.
    pub(in crate::im::store) is_told: bool,
}

/// All that are to be done.
#[derive(Debug, Default)]
pub(in crate::im::store) struct Erasures {
    all: BTreeMap<(UserId, ConversationId), Erasure>,
    /// Users whose deletion is durable.
    ready: BTreeSet<UserId>,
}

impl Erasures {
    pub(in crate::im::store) fn get(&self, user: UserId, conversation: ConversationId) -> Option<&Erasure> {
        self.all.get(&(user, conversation))
    }

    /// Adds an erasure, or goes on with one.
    pub(in crate::im::store) fn set(&mut self, user: UserId, conversation: ConversationId, erasure: Erasure) {
        self.all.insert((user, conversation), erasure);
    }

    /// The erasure is done.
    pub(in crate::im::store) fn remove(&mut self, user: UserId, conversation: ConversationId) {
        self.all.remove(&(user, conversation));
    }

    /// The deletion of the user is durable, and so is everything that was written before.
    pub(in crate::im::store) fn begin(&mut self, user: UserId) {
        self.ready.insert(user);
    }

    /// The next one to go on with.
    pub(in crate::im::store) fn next(&mut self) -> Option<(UserId, ConversationId, Erasure)> {
        while let Some(user) = self.ready.first().copied() {
            let theirs = (user, ConversationId::of(0))..=(user, ConversationId::of(u32::MAX));
            if let Some(((_, conversation), erasure)) = self.all.range(theirs).next() {
                return Some((user, *conversation, *erasure));
            }
            self.ready.remove(&user);
        }
        None
    }

    /// True if there is one to go on with.
    pub(in crate::im::store) fn is_due(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Number of those that are not done.
    pub(in crate::im::store) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erasures_begin_when_their_deletion_is_durable_and_end_one_by_one() {
        let mut erasures = Erasures::default();
        let (ann, ben, tea) = (UserId::of(1), UserId::of(2), ConversationId::of(7));
        erasures.set(ann, tea, Erasure { to_id: 9, ..Erasure::default() });
        erasures.set(ann, KEYS, Erasure::default());
        erasures.set(ben, tea, Erasure::default());
        assert!(!erasures.is_due() && erasures.next().is_none());
        erasures.begin(ann);
        assert_eq!(erasures.next().map(|(user, at, it)| (user, at, it.to_id)), Some((ann, tea, 9)));
        erasures.remove(ann, tea);
        assert_eq!(erasures.next().map(|(_, at, _)| at), Some(KEYS));
        erasures.remove(ann, KEYS);
        assert!(erasures.is_due() && erasures.next().is_none() && !erasures.is_due());
        assert_eq!(erasures.len(), 1, "ben's is not durable");
    }
}
