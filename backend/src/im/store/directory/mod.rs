//! Memory of an embedded store: users, conversations, and the ends of everything.
//!
//! Whatever changes here says so in [`Changed`]; a store that outlives its process writes down, with each batch, what
//! those objects are by then.

mod conversations;
mod relations;
mod users;

pub(super) use conversations::{Conversations, EVENTS_MAX, FanoutLimits, Kind};
pub(super) use relations::Relations;
pub(super) use users::{Device, Users};

use super::{ConversationId, DeviceNumber, Member, Refusal, UserId};
use crate::config::ImConfig;
use crate::im::names::{self, Conversation as Name};

/// Changed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    /// A new object.
    User(UserId),
    /// A device of a user, new, changed or removed.
    Device(UserId, DeviceNumber),
    /// Confirmed seq of a device in a conversation.
    Confirmed(UserId, DeviceNumber, ConversationId),
    /// Trimmed position of a user's inbox.
    Inbox(UserId),
    /// Kind, settings and fan-out of a conversation.
    Conversation(ConversationId),
    /// A member, or it is gone.
    Member(ConversationId, UserId),
    /// A seq that does not count as unread.
    Uncounted(ConversationId, u64),
    /// Relation of the first user to the second.
    Relation(UserId, UserId),
}

/// See the module.
#[derive(Debug)]
pub struct Directory {
    pub(super) users: Users,
    pub(super) conversations: Conversations,
    pub(super) relations: Relations,
    /// Memberships ever.
    pub(super) memberships: u64,
    /// Memberships that there are.
    pub(super) members: usize,
    /// Memberships that there may be.
    members_max: usize,
    /// The last number in the log of events that belong to no conversation.
    pub(super) shared_events: u64,
    /// The last message id that was given out.
    pub(super) last_id: u64,
    pub(super) changed: Vec<Changed>,
}

impl Directory {
    /// Empty, with the limits of `config`.
    pub(super) fn new(config: &ImConfig) -> Self {
        let reserved = (config.users_max as u64 * config.users_reserved as u64 / 100).try_into();
        let reserved = reserved.unwrap_or(usize::MAX);
        Self {
            users: Users::new(config.users_max, reserved, config.devices_max),
            conversations: Conversations::new(config.conversations_max),
            relations: Relations::new(config),
            memberships: 0,
            members: 0,
            members_max: config.members_total_max,
            shared_events: 0,
            last_id: 0,
            changed: Vec::new(),
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<ConversationId> {
        match Name::parse(id)? {
            Name::Group(name) => self.conversations.group(name),
            Name::OneToOne(a, b) => self.conversations.one_to_one(self.users.find(a)?, self.users.find(b)?),
        }
    }

    pub(super) fn write_id(&self, conversation: ConversationId, into: &mut String) {
        match &self.conversations.get(conversation).kind {
            Kind::OneToOne(a, b) => {
                names::write_one_to_one(into, &self.users.get(*a).uid, &self.users.get(*b).uid);
            }
            Kind::Group { name, .. } => {
                into.push_str("group:");
                into.push_str(name);
            }
        }
    }

    /// A new conversation. `None`: `conversations_max` are known.
    pub(super) fn open(&mut self, kind: Kind, members: &[Member]) -> Option<ConversationId> {
        let conversation = self.conversations.open(kind)?;
        self.changed.push(Changed::Conversation(conversation));
        members.iter().for_each(|member| self.add_member(conversation, *member));
        Some(conversation)
    }

    /// The user with this name, who becomes known. `None`: there is no room.
    pub(super) fn make_user(&mut self, uid: &str, is_login: bool) -> Option<UserId> {
        if let Some(known) = self.users.find(uid) {
            return Some(known);
        }
        let user = self.users.insert(uid, is_login)?;
        self.changed.push(Changed::User(user));
        Some(user)
    }

    /// Requires room for more memberships.
    pub(super) fn require_members(&self, more: usize) -> Result<(), Refusal> {
        let is_room = self.members.saturating_add(more) <= self.members_max;
        if is_room { Ok(()) } else { Err(Refusal::MembersFull) }
    }

    /// Makes a user a member of a group, who is then not invited any more.
    pub(super) fn admit(&mut self, conversation: ConversationId, member: Member) {
        self.add_member(conversation, member);
        self.uninvite(conversation, member.user);
    }

    /// Removes an invitation.
    pub(super) fn uninvite(&mut self, conversation: ConversationId, user: UserId) {
        if self.users.get_mut(user).uninvite(conversation) {
            self.changed.push(Changed::User(user));
        }
    }

    /// The order of memberships is that of the calls.
    pub(super) fn add_member(&mut self, conversation: ConversationId, member: Member) {
        self.memberships += 1;
        self.members += 1;
        let member = Member { since: self.memberships, ..member };
        self.conversations.get_mut(conversation).insert(member);
        self.users.get_mut(member.user).conversations.push(conversation);
        self.changed.push(Changed::Member(conversation, member.user));
    }

    pub(super) fn remove_member(&mut self, conversation: ConversationId, user: UserId) {
        self.members -= usize::from(self.conversations.get_mut(conversation).remove(user));
        self.users.get_mut(user).conversations.retain(|it| *it != conversation);
        self.changed.push(Changed::Member(conversation, user));
    }

    /// True: it moved.
    pub(super) fn read(&mut self, conversation: ConversationId, user: UserId, seq: u64) -> bool {
        let place = self.conversations.get_mut(conversation);
        let numbered = place.numbered;
        let Some(member) = place.member_mut(user) else { return false };
        let seq = seq.min(numbered);
        let has_moved = seq > member.read;
        if has_moved {
            member.read = seq;
            self.changed.push(Changed::Member(conversation, user));
        }
        has_moved
    }

    /// Messages of others that `member` may read and has not.
    pub(super) fn unread(&self, conversation: ConversationId, user: UserId) -> u64 {
        let place = self.conversations.get(conversation);
        let Some(member) = place.member(user) else { return 0 };
        let first = member.read.max(member.visible_from - 1) + 1;
        if first > place.durable {
            return 0;
        }
        (place.durable + 1 - first) - place.uncounted_in(first, place.durable)
    }
}
