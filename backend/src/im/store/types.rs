//! Values of the boundary: ids, members, relations, devices, refusals.

use bytes::Bytes;
use moorline_proto::message::im::{Friendship, Role};
use std::fmt;
use std::ops::Range;

/// Defines a name that a store gives, of 48 bits: in three parts, so that it takes no room beside a small field.
macro_rules! name {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u16; 3]);

        impl $name {
            /// The largest one.
            pub const MAX: Self = Self([u16::MAX; 3]);

            /// Returns the name with this number, at most 2^48 - 1: of a larger one the lower 48 bits count.
            #[allow(clippy::cast_possible_truncation)] // three parts of 16 bits
            pub const fn new(number: u64) -> Self {
                Self([(number >> 32) as u16, (number >> 16) as u16, number as u16])
            }

            /// Returns the number.
            pub const fn number(self) -> u64 {
                let [high, middle, low] = self.0;
                (high as u64) << 32 | (middle as u64) << 16 | low as u64
            }

            /// Returns the name of this number of the store in this process.
            pub(in crate::im) const fn of(index: u32) -> Self {
                if index == u32::MAX { Self::MAX } else { Self::new(OFFSET + index as u64) }
            }

            /// Returns the number of the store in this process; `u32::MAX`: it gave no such name.
            #[allow(clippy::cast_possible_truncation)] // checked
            pub(in crate::im) const fn index(self) -> u32 {
                let index = self.number().wrapping_sub(OFFSET);
                if index > u32::MAX as u64 { u32::MAX } else { index as u32 }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.number())
            }
        }
    };
}

/// Name of the number 0 of the store in this process. In tests no name is small, so a number that is taken for a name, or
/// a name for a place in a table, is found.
const OFFSET: u64 = if cfg!(test) { 5 << 32 } else { 0 };

name! {
    /// A user. The store gives it; nobody else reads anything from it.
    UserId
}

name! {
    /// A conversation. The store gives it; nobody else reads anything from it.
    ConversationId
}

/// A device of one user; never used again for another device of that user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber(pub u32);

/// Device number of everything that the server API or an import does: the operator's server. No user has that many devices,
/// so all of them are notified.
pub(crate) const API_DEVICE: DeviceNumber = DeviceNumber(u32::MAX);

/// User of everything that the operator's server does for nobody.
pub(crate) const NOBODY: UserId = UserId::MAX;

/// A user's device.
pub type Origin = (UserId, DeviceNumber);

/// A membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: UserId,
    /// A [`Role`], in one byte.
    pub(super) role: u8,
    /// First seq of this membership; from 1.
    pub visible_from: u64,
    /// Last seq that the member has deleted for himself; 0: none.
    pub cleared: u64,
    /// Read mark of the member.
    pub read: u64,
    /// Unix time in milliseconds before which the member may not send.
    pub silent_until_ms: u64,
    /// Grows with each membership of anybody: the order of a user's conversations.
    pub since: u64,
}

impl Member {
    /// A new membership: everything before `visible_from`, at least 1, counts as read.
    pub const fn new(user: UserId, role: Role, visible_from: u64) -> Self {
        let (cleared, read, role) = (0, visible_from - 1, role as u8);
        Self { user, role, visible_from, cleared, read, silent_until_ms: 0, since: 0 }
    }

    /// Role of the member; [`Role::Member`] in a conversation of two.
    pub fn role(&self) -> Role {
        Role::try_from(i32::from(self.role)).unwrap_or_default()
    }

    /// Gives the member a role.
    pub(crate) fn set_role(&mut self, role: Role) {
        self.role = role as u8;
    }

    /// First seq that the member may read.
    pub const fn first_visible(&self) -> u64 {
        if self.visible_from > self.cleared { self.visible_from } else { self.cleared + 1 }
    }
}

/// Retention of a conversation whose messages are kept, whatever `im.retention` says.
pub const KEEP_FOR_EVER: u32 = u32::MAX;

/// Work that a store has for sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepNeed {
    /// No message is to be removed.
    Nothing,
    /// Messages may have expired.
    Expiry,
    /// Messages of deleted users and of dissolved groups.
    Removal,
}

/// Relation of one user to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// Agreed by both, or asked by one.
    pub friendship: Friendship,
    /// The other one can write nothing here.
    pub is_blocked: bool,
}

/// A device that a user is known to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device id from the client.
    pub name: String,
    /// Number of the device.
    pub number: DeviceNumber,
    /// Platform from the client: a [`moorline_proto::message::client::Platform`].
    pub platform: u32,
    /// When it came, or went, in Unix milliseconds.
    pub seen_ms: u64,
}

/// Contents of a store, and its counters since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Users that are known.
    pub users: usize,
    /// Conversations that are known.
    pub conversations: usize,
    /// Memberships of all conversations.
    pub members: usize,
    /// Conversations that are limited or frozen by order.
    pub limited: usize,
    /// Messages removed by sweeps.
    pub swept: u64,
    /// Erasures of deleted users and dissolved groups that are not done.
    pub erasing: usize,
    /// Commits that became durable.
    pub commits: u64,
    /// Commits before which writing had to wait, the engine being behind.
    pub stalls: u64,
    /// Part and whole of the caps that hold for these counts: slots of a node, and of its cluster. `None`: the whole caps hold.
    pub share: Option<(usize, usize)>,
}

impl Counts {
    /// Returns the part of a cap that holds for these counts, rounded up.
    pub fn share_of(&self, cap: usize) -> usize {
        let (part, whole) = self.share.unwrap_or((1, 1));
        let share = (cap as u128 * part as u128).div_ceil(whole.max(1) as u128);
        usize::try_from(share).unwrap_or(usize::MAX)
    }
}

/// Logins of a user that are not admitted, whatever their tokens say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginRule {
    /// Tokens issued before this Unix time, in seconds, are revoked; 0: none are.
    pub valid_from_s: u64,
    /// Unix time in seconds until which the user is banned; 0: the user is not banned; `u64::MAX`: for good.
    pub banned_until_s: u64,
}

impl LoginRule {
    /// The reason to refuse a login with a token that was issued at `issued_s`; 0: the time is not known, and counts
    /// as the oldest.
    pub const fn denies(&self, issued_s: u64, now_ms: u64) -> Option<LoginDenied> {
        if now_ms / 1000 < self.banned_until_s {
            Some(LoginDenied::Banned)
        } else if issued_s < self.valid_from_s {
            Some(LoginDenied::Revoked)
        } else {
            None
        }
    }
}

impl LoginRule {
    /// Returns the rule after a change.
    #[must_use]
    pub fn changed(self, change: LoginChange) -> Self {
        match change {
            LoginChange::ValidFrom(0) => Self { valid_from_s: 0, ..self },
            LoginChange::ValidFrom(from_s) => Self { valid_from_s: self.valid_from_s.max(from_s), ..self },
            LoginChange::BannedUntil(banned_until_s) => Self { banned_until_s, ..self },
        }
    }
}

/// A change of a [`LoginRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginChange {
    /// Revokes tokens issued before this time, and those that were revoked before; 0: revokes no token any more.
    ValidFrom(u64),
    /// Bans the user until this time; 0: ends the ban.
    BannedUntil(u64),
}

/// Reason why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginDenied {
    /// The token was issued before the user's tokens were revoked.
    Revoked,
    /// The user is banned.
    Banned,
}

/// Reason why an operation is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user is not a member.
    NotMember,
    /// The conversation or message does not exist.
    NotFound,
    /// The key is known with other content, or the group belongs to another creator.
    Conflict,
    /// Not for this kind of conversation, or not with oneself.
    Denied,
    /// The operation needs a role that the user does not have.
    NotAllowed,
    /// The user may not speak here now.
    Silent,
    /// One of the two has blocked the other.
    Blocked,
    /// Only friends may write, and these users are not friends.
    NotFriends,
    /// The message is older than `recall_window`.
    TooLate,
    /// The group has `group_members_max` members.
    GroupFull,
    /// `conversations_max` are known.
    StoreFull,
    /// The user has `relations_max` friends and requests.
    TooManyRelations,
    /// `requests_max` requests wait for the other user.
    TooManyRequests,
    /// The user has `blocks_max` blocks.
    TooManyBlocks,
    /// All conversations together have `members_total_max` members.
    MembersFull,
    /// The disk does not give it.
    Unreadable,
    /// The conversation is frozen by order of the operator.
    Frozen,
    /// By order of the operator the conversation takes no more messages now.
    TooFast,
    /// Another node owns the conversation now, or is about to. Nothing is known of the outcome: the same message key may be
    /// stored.
    Moved,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The conversation.
    pub conversation: ConversationId,
    /// Seq in the conversation, dense from 1.
    pub seq: u64,
    /// Message id; for a duplicate, the id of the first try.
    pub id: u64,
    /// Time that clients are told, in Unix milliseconds; for a duplicate, that of the first try.
    pub time_ms: u64,
    /// `None`: a duplicate, stored before. Else what is to be delivered.
    pub delivery: Option<Delivery>,
}

/// Effects of a new message or a conversation event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The encoded push.
    pub body: Bytes,
    /// Whose inboxes: a range of [`super::Committed::recipients`].
    pub recipients: Range<usize>,
    /// True for a message that is in no inbox: online members get a push, the others pull it.
    pub is_read_fanout: bool,
}

/// One inbox that got one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub user: UserId,
    /// At which position of the user's stream.
    pub position: u64,
}

/// Result of a device's login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCursor {
    /// Number of the device.
    pub device: DeviceNumber,
    /// Acknowledged position; 0 for a new device, which gets everything in the inbox.
    pub acked: u64,
    /// True for a new device.
    pub is_new: bool,
    /// Forgotten in its favour: the device of this user whose login is longest ago.
    pub forgotten: Option<DeviceNumber>,
}

/// Place where the sessions of a user are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In this process.
    Here,
    /// In another process of the backend.
    Elsewhere,
    /// Nowhere at present: the user moves.
    Unknown,
}

/// Presence of a user, as the process knows it that has the user's sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Online {
    /// The user.
    pub user: UserId,
    /// Platforms on which the user is online, in order.
    pub platforms: Vec<u32>,
    /// Unix time in milliseconds at which a device came or went last, as far as it is known there; 0: it is not.
    pub seen_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_48_bits_and_takes_no_room_beside_a_small_field() {
        let largest = (1 << 48) - 1;
        assert_eq!((UserId::MAX.number(), UserId::new(largest + 1).number()), (largest, 0));
        for index in [0, 1, 0xFFFF, 0x1_0000, u32::MAX - 1, u32::MAX] {
            assert_eq!(ConversationId::of(index).index(), index);
        }
        assert_eq!(UserId::new(7).index(), u32::MAX, "the name of another store is nobody's here");
        assert!(UserId::of(0) < UserId::of(1) && UserId::of(0xFFFF) < UserId::of(0x1_0000));
        assert_eq!((size_of::<Member>(), size_of::<Option<Origin>>()), (48, 16));
    }
}
