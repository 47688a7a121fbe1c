//! Caps of the cluster (`im.users_max`, `im.conversations_max`), judged by each node for its share of the slots.
//!
//! A node with 341 of 1,024 slots makes a third of the users that the cluster may have, and refuses further ones, though another node may
//! have room: names are spread evenly, so the shares fill at about the same time. Numbers that were given count, also those of groups
//! that are gone: the owner of a slot has that count in memory, and nobody has to ask.

use super::ops::Build;
use super::slot::OwnedSlot;
use crate::config::ImConfig;
use crate::im::store::{Counts, Refusal};
use moorline_proto::slots::{SLOTS, Slot};
use std::collections::BTreeMap;

/// Caps of the whole cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    users: usize,
    /// Users that may be there before the server API makes another one.
    users_of_calls: usize,
    conversations: usize,
}

/// Ways in which a user comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Login,
    Call,
}

impl Caps {
    pub(super) fn of(config: &ImConfig) -> Self {
        let reserved = config.users_max as u64 * config.users_reserved as u64 / 100;
        let reserved = usize::try_from(reserved).unwrap_or(usize::MAX);
        Self {
            users: config.users_max,
            users_of_calls: config.users_max.saturating_sub(reserved),
            conversations: config.conversations_max,
        }
    }
}

/// Numbers that were given in the slots of a node.
pub(super) fn counts(slots: &BTreeMap<Slot, OwnedSlot>) -> Counts {
    let ready = slots.values().filter(|owned| owned.is_ready);
    ready.fold(Counts { share: Some((0, SLOTS)), ..Counts::default() }, |sum, owned| {
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Counts {
            users: sum.users.saturating_add(count(owned.users_count)),
            conversations: sum.conversations.saturating_add(count(owned.conversations_count)),
            share: sum.share.map(|(part, whole)| (part + 1, whole)),
            ..sum
        }
    })
}

impl Build<'_> {
    /// Judges whether a user may come to be.
    pub(super) fn judge_user(&self, by: By) -> Result<(), Refusal> {
        let Caps { users, users_of_calls, .. } = self.limits.caps;
        let counts = counts(self.slots);
        let max = counts.share_of(if by == By::Login { users } else { users_of_calls });
        if counts.users < max { Ok(()) } else { Err(Refusal::StoreFull) }
    }

    /// Judges whether a conversation may come to be.
    pub(super) fn judge_conversation(&self) -> Result<(), Refusal> {
        let counts = counts(self.slots);
        let max = counts.share_of(self.limits.caps.conversations);
        if counts.conversations < max { Ok(()) } else { Err(Refusal::StoreFull) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_nodes_are_the_whole_cap_and_hardly_more() {
        for (max, parts) in [(10, [341, 341, 342]), (1, [1, 1, 1022]), (10_000_000, [1024, 0, 0])] {
            let share = |part| Counts { share: Some((part, SLOTS)), ..Counts::default() }.share_of(max);
            let sum: usize = parts.into_iter().map(share).sum();
            assert!((max..max + 3).contains(&sum), "{max}: {sum}");
        }
        assert_eq!(Counts::default().share_of(7), 7, "a store of one process has all of it");
    }
}
