//! Memory of an embedded store: users, conversations, and the ends of everything.
//!
//! Whatever changes here says so in [`Changed`]; a store that outlives its process writes down, with each batch, what
//! those objects are by then.

mod conversations;
mod devices;
mod erasures;
mod relations;
mod users;

pub(super) use conversations::{Conversations, EVENTS_MAX, FanoutLimits, Kind};
pub(super) use devices::Device;
pub(super) use erasures::{ALL_GROUPS, Erasure, Erasures, KEYS};
pub(super) use relations::Relations;
pub(super) use users::{Rare, Users};

use super::{
    ConversationId, DeviceNumber, Friendship, KEEP_FOR_EVER, Member, Refusal, Relation, Role, UserId,
};
use crate::config::ImConfig;
use crate::im::names::{self, Conversation as Name};
use crate::im::store::rules::limits::SendLimit;
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Erasure of a deleted user's messages in a conversation, or it is done.
    Erasure(UserId, ConversationId),
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
    /// Users who are invited to a group.
    invited: BTreeMap<ConversationId, BTreeSet<UserId>>,
    pub(super) erasures: Erasures,
    /// Time of the retention clock, in Unix milliseconds; 0: it never ran.
    pub(super) retention_ms: u64,
    /// Number of the conversation that is looked at next for expired messages.
    pub(super) sweep_at: u32,
    /// Conversations whose messages expire by a time of their own.
    pub(super) keepers: usize,
    /// Conversations that are limited or frozen by order.
    pub(super) limits: HashMap<ConversationId, SendLimit>,
    /// Conversations with messages that are gone and not removed.
    pub(super) doomed: BTreeSet<ConversationId>,
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
            invited: BTreeMap::new(),
            erasures: Erasures::default(),
            retention_ms: 0,
            sweep_at: 0,
            keepers: 0,
            limits: HashMap::new(),
            doomed: BTreeSet::new(),
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
                names::write_one_to_one(into, self.users.uid(*a), self.users.uid(*b));
            }
            Kind::Group { name, .. } => {
                into.push_str("group:");
                into.push_str(name);
            }
        }
    }

    /// A new conversation. `None`: `conversations_max` are known.
    pub(super) fn open(&mut self, kind: Kind, members: &[(UserId, Role)]) -> Option<ConversationId> {
        let conversation = self.conversations.open(kind)?;
        self.changed.push(Changed::Conversation(conversation));
        let visible_from = self.conversations.get(conversation).numbered + 1;
        for (user, role) in members {
            self.add_member(conversation, Member::new(*user, *role, visible_from));
        }
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

    /// Adds an invitation; a user's oldest one makes room for it. False: it is there.
    pub(super) fn invite(&mut self, conversation: ConversationId, user: UserId) -> bool {
        let known = self.users.get_mut(user);
        if known.invitations().contains(&conversation) {
            return false;
        }
        if let Some(oldest) = known.invite(conversation) {
            self.forget_invited(oldest, user);
        }
        self.invited.entry(conversation).or_default().insert(user);
        self.changed.push(Changed::User(user));
        true
    }

    /// Removes an invitation.
    pub(super) fn uninvite(&mut self, conversation: ConversationId, user: UserId) {
        if self.users.get_mut(user).uninvite(conversation) {
            self.forget_invited(conversation, user);
            self.changed.push(Changed::User(user));
        }
    }

    /// Removes all invitations to a group.
    pub(super) fn uninvite_all(&mut self, conversation: ConversationId) {
        for user in self.invited.remove(&conversation).into_iter().flatten() {
            self.users.get_mut(user).uninvite(conversation);
            self.changed.push(Changed::User(user));
        }
    }

    fn forget_invited(&mut self, conversation: ConversationId, user: UserId) {
        if let Some(invited) = self.invited.get_mut(&conversation) {
            invited.remove(&user);
            if invited.is_empty() {
                self.invited.remove(&conversation);
            }
        }
    }

    /// Notes what follows from rows that were loaded.
    pub(super) fn complete(&mut self) {
        let known = self.conversations.len();
        for (number, user) in (0..).zip(self.users.all_mut()) {
            // A store that goes on without what it lost may have invitations to groups that it has not, and users who have left
            // such groups: the erasure of a deleted account would look for them.
            let is_there = |group: &ConversationId| (group.index() as usize) < known;
            user.change_rare(|rare| {
                rare.invitations.retain(is_there);
                rare.parted.retain(is_there);
            });
            for group in user.invitations() {
                self.invited.entry(*group).or_default().insert(UserId::of(number));
            }
        }
        for id in self.conversations.all() {
            let place = self.conversations.get_mut(id);
            if place.is_group() && place.members.is_empty() && !place.is_dissolved {
                place.dissolve(); // a version before left emptied groups as they were
            }
            self.keepers += usize::from(is_keeper(place.keep_s));
            if place.removed < place.gone {
                self.doomed.insert(id);
            }
        }
    }

    /// The order of memberships is that of the calls.
    pub(super) fn add_member(&mut self, conversation: ConversationId, member: Member) {
        self.memberships += 1;
        self.members += 1;
        let member = Member { since: self.memberships, ..member };
        self.conversations.get_mut(conversation).insert(member);
        self.users.get_mut(member.user).join(conversation);
        self.changed.push(Changed::Member(conversation, member.user));
    }

    pub(super) fn remove_member(&mut self, conversation: ConversationId, user: UserId) {
        self.members -= usize::from(self.conversations.get_mut(conversation).remove(user));
        self.users.get_mut(user).retain_conversations(|it| it != conversation);
        self.changed.push(Changed::Member(conversation, user));
    }

    /// Hides a conversation from a member, up to `to`; what was hidden stays so. Users to notify; `None`: nothing changed.
    pub(super) fn clear(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        to: u64,
    ) -> Result<Option<Vec<UserId>>, Refusal> {
        let place = self.conversations.get_mut(conversation);
        let to = to.min(place.durable);
        let member = place.member_mut(user).ok_or(Refusal::NotMember)?;
        if to <= member.cleared {
            return Ok(None);
        }
        member.cleared = to;
        self.changed.push(Changed::Member(conversation, user));
        Ok(Some(vec![user]))
    }

    /// True if the user has deleted the conversation, and nothing was said there since.
    pub(super) fn is_hidden(&self, conversation: ConversationId, user: UserId) -> bool {
        let place = self.conversations.get(conversation);
        place.member(user).is_some_and(|member| member.cleared > 0 && member.cleared >= place.durable)
    }

    /// Removes a member, whose messages stay in the group.
    pub(super) fn part(&mut self, conversation: ConversationId, user: UserId) {
        self.remove_member(conversation, user);
        if self.users.get_mut(user).part(conversation) {
            self.changed.push(Changed::User(user));
        }
    }

    /// Ends friendships of a user and requests by and to the user, and the user's own blocks. Returns the other users of
    /// friendships and requests.
    pub(super) fn end_relations(&mut self, user: UserId) -> Vec<UserId> {
        let theirs: Vec<_> = self.relations.of(user).collect();
        let mut told = Vec::new();
        for (other, relation) in theirs {
            let back = self.relations.get(other, user);
            self.relations.set(user, other, Relation::default());
            self.relations.set(other, user, Relation { friendship: Friendship::None, ..back });
            self.changed.extend([Changed::Relation(user, other), Changed::Relation(other, user)]);
            if relation.friendship != Friendship::None {
                told.push(other);
            }
        }
        told
    }

    /// Empties a user: devices, inbox, invitations, settings. Returns the conversations of the user, who is still a member.
    pub(super) fn delete_user(&mut self, user: UserId) -> Vec<ConversationId> {
        for group in self.users.get(user).invitations().to_vec() {
            self.uninvite(group, user);
        }
        let conversations = self.users.empty(user, &mut self.changed);
        let all = &self.conversations;
        self.users.get_mut(user).retain_conversations(|id| !all.get(id).is_group());
        conversations
    }

    /// Makes the owner the creator of a group that a deleted user has made.
    pub(super) fn inherit(&mut self, conversation: ConversationId, user: UserId) {
        let place = self.conversations.get_mut(conversation);
        let owner =
            place.members.iter().find(|member| member.role() == Role::Owner).map(|member| member.user);
        if place.creator() == Some(user)
            && let Some(owner) = owner
        {
            place.set_creator(owner);
            self.changed.push(Changed::Conversation(conversation));
        }
    }

    /// Sets how long messages of a conversation are kept.
    pub(super) fn set_retention(&mut self, conversation: ConversationId, keep_s: u32) {
        let place = self.conversations.get_mut(conversation);
        let was_keeper = is_keeper(std::mem::replace(&mut place.keep_s, keep_s));
        self.keepers = self.keepers + usize::from(is_keeper(keep_s)) - usize::from(was_keeper);
        self.changed.push(Changed::Conversation(conversation));
    }

    /// Sets how many messages a conversation takes from its members.
    pub(super) fn limit_sends(&mut self, conversation: ConversationId, per_minute: Option<u32>) {
        match per_minute {
            Some(per_minute) => _ = self.limits.insert(conversation, SendLimit::new(per_minute)),
            None => _ = self.limits.remove(&conversation),
        }
        self.changed.push(Changed::Conversation(conversation));
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
        let first = (member.read + 1).max(member.first_visible()).max(place.gone + 1);
        if first > place.durable {
            return 0;
        }
        (place.durable + 1 - first) - place.uncounted_in(first, place.durable)
    }
}

/// True if messages expire by a time of their conversation's own.
const fn is_keeper(keep_s: u32) -> bool {
    keep_s != 0 && keep_s != KEEP_FOR_EVER
}
