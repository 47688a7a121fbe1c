//! What a conversation is, and who is in it, whatever stores it.

use super::UserId;

#[derive(Debug)]
pub(super) enum Kind {
    OneToOne(UserId, UserId),
    Group { name: Box<str>, creator: UserId },
}

impl Kind {
    pub(super) fn creator(&self) -> Option<UserId> {
        match self {
            Self::OneToOne(..) => None,
            Self::Group { creator, .. } => Some(*creator),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) user: UserId,
    /// First seq that this membership may read.
    pub(super) visible_from: u64,
}
