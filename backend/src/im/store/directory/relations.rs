//! Relations between users: friends, requests, blocks.

use crate::config::ImConfig;
use crate::im::store::rules::relations::{self, Both, Counts, Limits};
use crate::im::store::{Refusal, Relation, RelationChange, UserId};
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// Both directions of a pair are kept: each is what one makes of the other.
#[derive(Debug)]
pub(in crate::im::store) struct Relations {
    all: BTreeMap<(UserId, UserId), Relation>,
    counts: HashMap<UserId, Counts>,
    limits: Limits,
}

impl Relations {
    pub(super) fn new(config: &ImConfig) -> Self {
        Self { all: BTreeMap::new(), counts: HashMap::new(), limits: Limits::new(config) }
    }

    /// Relation of `user` to `other`.
    pub(in crate::im::store) fn get(&self, user: UserId, other: UserId) -> Relation {
        self.all.get(&(user, other)).copied().unwrap_or_default()
    }

    pub(in crate::im::store) fn set(&mut self, user: UserId, other: UserId, relation: Relation) {
        let before = if relation == Relation::default() {
            self.all.remove(&(user, other))
        } else {
            self.all.insert((user, other), relation)
        };
        let (before, after) = (Counts::of(before.unwrap_or_default()), Counts::of(relation));
        let counts = self.counts.entry(user).or_default();
        counts.relations = counts.relations + after.relations - before.relations;
        counts.requests = counts.requests + after.requests - before.requests;
        counts.blocks = counts.blocks + after.blocks - before.blocks;
        if *counts == Counts::default() {
            self.counts.remove(&user);
        }
    }

    /// Users that have a relation to somebody; one may come more than once.
    pub(in crate::im::store) fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.all.keys().map(|(user, _)| *user)
    }

    /// Those of a user, in the order of the others.
    pub(in crate::im::store) fn of(&self, user: UserId) -> impl Iterator<Item = (UserId, Relation)> + '_ {
        let all = self.all.range((user, UserId::of(0))..=(user, UserId::of(u32::MAX)));
        all.map(|((_, other), relation)| (*other, *relation))
    }

    /// Relations of both users after the change. What others have done to a user fills no limit of the user's own deeds.
    pub(in crate::im::store) fn judge(
        &self,
        user: UserId,
        other: UserId,
        change: RelationChange,
    ) -> Result<(Relation, Relation), Refusal> {
        if user == other {
            return Err(Refusal::Denied);
        }
        let counts = |user| self.counts.get(&user).copied().unwrap_or_default();
        let before = Both { own: self.get(user, other), theirs: self.get(other, user) };
        let counts = Both { own: counts(user), theirs: counts(other) };
        let Both { own, theirs } = relations::judge(self.limits, before, counts, change)?;
        Ok((own, theirs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_fills_no_limit_of_ones_own_deeds() {
        let config = ImConfig { relations_max: 2, requests_max: 3, blocks_max: 1, ..ImConfig::default() };
        let mut all = Relations::new(&config);
        let mut change = |user, other, change| {
            let judged = all.judge(UserId::of(user), UserId::of(other), change);
            let is_done = judged.map(|(own, theirs)| {
                all.set(UserId::of(user), UserId::of(other), own);
                all.set(UserId::of(other), UserId::of(user), theirs);
            });
            (is_done, all.counts.get(&UserId::of(0)).copied().unwrap_or_default())
        };
        for stranger in 1..=3 {
            assert_eq!(change(stranger, 0, RelationChange::Befriend).0, Ok(()));
        }
        assert_eq!(change(4, 0, RelationChange::Befriend).0, Err(Refusal::TooManyRequests));
        assert_eq!(change(0, 4, RelationChange::Block).0, Ok(()), "strangers do not keep me from blocking");
        assert_eq!(change(0, 5, RelationChange::Block).0, Err(Refusal::TooManyBlocks));
        assert_eq!(change(0, 5, RelationChange::Befriend).0, Ok(()), "nor from asking");
        assert_eq!(change(0, 1, RelationChange::Befriend).0, Ok(()), "nor from agreeing");
        assert_eq!(change(0, 6, RelationChange::Befriend).0, Err(Refusal::TooManyRelations));
        let (done, counts) = change(0, 4, RelationChange::Unblock);
        assert_eq!((done, counts), (Ok(()), Counts { relations: 2, requests: 2, blocks: 0 }));
        for other in 1..=5 {
            assert_eq!(change(0, other, RelationChange::Unfriend).0, Ok(()));
        }
        assert_eq!(change(0, 1, RelationChange::Unfriend).1, Counts::default());
        assert!(all.all.is_empty() && all.counts.is_empty());
    }
}
