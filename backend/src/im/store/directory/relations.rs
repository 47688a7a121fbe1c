//! Relations between users: friends, requests, blocks.

use crate::im::store::{Friendship, Refusal, Relation, RelationChange, UserId};
use std::collections::BTreeMap;

/// Both directions of a pair are kept: each is what one makes of the other.
#[derive(Debug)]
pub(in crate::im::store) struct Relations {
    all: BTreeMap<(UserId, UserId), Relation>,
    /// Relations of one user.
    max: usize,
}

impl Relations {
    pub(super) fn new(max: usize) -> Self {
        Self { all: BTreeMap::new(), max }
    }

    /// Relation of `user` to `other`.
    pub(in crate::im::store) fn get(&self, user: UserId, other: UserId) -> Relation {
        self.all.get(&(user, other)).copied().unwrap_or_default()
    }

    pub(in crate::im::store) fn set(&mut self, user: UserId, other: UserId, relation: Relation) {
        if relation == Relation::default() {
            self.all.remove(&(user, other));
        } else {
            self.all.insert((user, other), relation);
        }
    }

    /// Users that have a relation to somebody; one may come more than once.
    pub(in crate::im::store) fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.all.keys().map(|(user, _)| *user)
    }

    /// Those of a user, in the order of the others.
    pub(in crate::im::store) fn of(&self, user: UserId) -> impl Iterator<Item = (UserId, Relation)> + '_ {
        let all = self.all.range((user, UserId(0))..=(user, UserId(u32::MAX)));
        all.map(|((_, other), relation)| (*other, *relation))
    }

    fn has_room(&self, user: UserId, other: UserId) -> bool {
        self.all.contains_key(&(user, other)) || self.of(user).count() < self.max
    }

    /// Relations of both users after the change.
    pub(in crate::im::store) fn judge(
        &self,
        user: UserId,
        other: UserId,
        change: RelationChange,
    ) -> Result<(Relation, Relation), Refusal> {
        if user == other {
            return Err(Refusal::Denied);
        }
        let (mut own, mut theirs) = (self.get(user, other), self.get(other, user));
        match change {
            RelationChange::Befriend => {
                if own.is_blocked || theirs.is_blocked {
                    return Err(Refusal::Blocked);
                }
                (own.friendship, theirs.friendship) = match own.friendship {
                    Friendship::None | Friendship::Asked => (Friendship::Asked, Friendship::WasAsked),
                    Friendship::WasAsked | Friendship::Friends => (Friendship::Friends, Friendship::Friends),
                };
            }
            RelationChange::Unfriend => {
                (own.friendship, theirs.friendship) = (Friendship::None, Friendship::None);
            }
            RelationChange::Block => own.is_blocked = true,
            RelationChange::Unblock => own.is_blocked = false,
        }
        let grows = |relation: Relation| relation != Relation::default();
        if grows(own) && !self.has_room(user, other) || grows(theirs) && !self.has_room(other, user) {
            return Err(Refusal::TooManyRelations);
        }
        Ok((own, theirs))
    }
}
