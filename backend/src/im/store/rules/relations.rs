//! The rules of relations: what a change makes of both users, and the limits of each. Pure; each store applies the outcome.
//!
//! alice asks bob to be friends: she has asked, he was asked. He asks her: they are friends.

use crate::config::ImConfig;
use crate::im::store::{Friendship, Refusal, Relation, RelationChange};

/// Limits of one user, each for what only the user's own deeds, or only the deeds of others, fill.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Friends and requests of the user's own.
    pub relations: usize,
    /// Requests of others.
    pub requests: usize,
    /// Blocks of the user's own.
    pub blocks: usize,
}

/// Relations of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Friends and requests of the user's own.
    pub relations: usize,
    /// Requests of others.
    pub requests: usize,
    /// Blocks of the user's own.
    pub blocks: usize,
}

/// Something of each of two users: of the one who changes their relation, and of the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Both<T> {
    /// Part of the user who changes the relation.
    pub own: T,
    /// Part of the other user.
    pub theirs: T,
}

impl Limits {
    /// The limits of `config`.
    pub const fn new(config: &ImConfig) -> Self {
        Self { relations: config.relations_max, requests: config.requests_max, blocks: config.blocks_max }
    }
}

impl Counts {
    /// Counts one relation.
    pub fn of(relation: Relation) -> Self {
        let is_own = matches!(relation.friendship, Friendship::Asked | Friendship::Friends);
        Self {
            relations: usize::from(is_own),
            requests: usize::from(relation.friendship == Friendship::WasAsked),
            blocks: usize::from(relation.is_blocked),
        }
    }

    /// Counts after one relation has changed, of what it adds to; 0: it adds nothing.
    fn grown(self, before: Relation, after: Relation) -> Self {
        let (before, after) = (Self::of(before), Self::of(after));
        let grown = |count: usize, before: usize, after: usize| if after > before { count + 1 } else { 0 };
        Self {
            relations: grown(self.relations, before.relations, after.relations),
            requests: grown(self.requests, before.requests, after.requests),
            blocks: grown(self.blocks, before.blocks, after.blocks),
        }
    }
}

/// Relations of both users after a change. `counts` are those of before it. What others have done to a user fills no limit of the
/// user's own deeds.
///
/// # Errors
/// [`Refusal::Blocked`]: nobody asks somebody to be friends whom one of the two has blocked. [`Refusal::TooManyRelations`],
/// [`Refusal::TooManyBlocks`], [`Refusal::TooManyRequests`].
pub fn judge(
    limits: Limits,
    before: Both<Relation>,
    counts: Both<Counts>,
    change: RelationChange,
) -> Result<Both<Relation>, Refusal> {
    let Both { mut own, mut theirs } = before;
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
    let grown = counts.own.grown(before.own, own);
    if grown.relations > limits.relations {
        return Err(Refusal::TooManyRelations);
    }
    if grown.blocks > limits.blocks {
        return Err(Refusal::TooManyBlocks);
    }
    if counts.theirs.grown(before.theirs, theirs).requests > limits.requests {
        return Err(Refusal::TooManyRequests);
    }
    Ok(Both { own, theirs })
}

/// True if the other user is not told of a change.
pub const fn is_private(change: RelationChange) -> bool {
    matches!(change, RelationChange::Block | RelationChange::Unblock)
}
