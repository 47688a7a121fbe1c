//! Rows of a cell: what a [`Transaction`] writes, and what passes from conversations to streams.
//!
//! bob adds carol to `group:tea`: one [`EventRow`] with the next order of the group, a [`Membership`] of carol, and for each
//! member a [`RecipientRow`]. Members whose slots are elsewhere get a [`Deliver`].

use crate::im::store::{
    ConversationId, DeviceNumber, Friendship, GroupSettings, LoginRule, Member, Origin, Relation, UserId,
    WhoMayAdd,
};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Slot};
use std::sync::Arc;

/// A message or event on its way to a member whose slot another node owns, or owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// The member.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// True for a group.
    pub is_group: bool,
    /// Number of members.
    pub members: usize,
    /// First seq of the member's membership.
    pub visible_from: u64,
    /// Order of the message or event in the conversation.
    pub order: u64,
    /// Order before it that the member was sent; 0: there was none.
    pub after: u64,
    /// The message or event.
    pub content: Content,
    /// Effect on the member.
    pub passage: Passage,
    /// Author of the message or event, with the device.
    pub origin: Origin,
    /// The encoded push. Empty: an event that is not kept any more.
    pub body: Bytes,
}

/// Content of an entry of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Message with this seq of the conversation.
    Message(u64),
    /// Event with this number in the log of the conversation; see [`EVENTS_MAX`].
    Event(u64),
    /// Event that the entry holds itself.
    Own,
}

/// Effect of a message or event on a receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// The user stays a member, or stays outside.
    #[default]
    Stays,
    /// The membership begins.
    Enters,
    /// The membership has ended.
    Leaves,
    /// The user makes this of another one from now on.
    Relates(UserId, Relation),
    /// The user is invited to the group.
    Invited,
}

/// A relation as one number: the friendship in two bits, and 4 for a block.
pub fn relation_code(relation: Relation) -> u32 {
    let friendship = match relation.friendship {
        Friendship::None => 0,
        Friendship::Asked => 1,
        Friendship::WasAsked => 2,
        Friendship::Friends => 3,
    };
    friendship | u32::from(relation.is_blocked) << 2
}

/// The relation with this number; see [`relation_code`].
pub const fn relation_of(code: u32) -> Relation {
    let friendship = match code & 3 {
        0 => Friendship::None,
        1 => Friendship::Asked,
        2 => Friendship::WasAsked,
        _ => Friendship::Friends,
    };
    Relation { friendship, is_blocked: code & 4 != 0 }
}

/// Events of one conversation that are kept. A device that is further behind is told to ask for everything again.
pub const EVENTS_MAX: u64 = 64;

/// Ends of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Time of the newest message: that of a later one is not before it, whatever the clocks of nodes say.
    pub time_ms: u64,
    /// Newest seq; 0: there is no message.
    pub seq: u64,
    /// Newest order: all messages and events count.
    pub order: u64,
    /// Newest order that all members of then were sent.
    pub all: u64,
    /// Number of the newest event in the log; 0: there was none.
    pub events: u64,
}

/// Writes that become durable together, as far as their slots are still the node's.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The node.
    pub node: NodeId,
    /// The last message id that the node gave out.
    pub last_id: u64,
    /// Slots of all rows, with the epochs at which the node owns them.
    pub fences: Vec<(Slot, u64)>,
    /// New users.
    pub users: Vec<(UserId, Arc<str>)>,
    /// Profiles, of each user once.
    pub profiles: Vec<(UserId, Bytes)>,
    /// New devices.
    pub devices: Vec<(UserId, DeviceRow)>,
    /// New conversations.
    pub conversations: Vec<ConversationRow>,
    /// New messages, by rising seq of each conversation.
    pub messages: Vec<MessageRow>,
    /// Messages that are emptied.
    pub emptied: Vec<EmptiedRow>,
    /// New events, by rising order of each conversation.
    pub events: Vec<EventRow>,
    /// Conversations whose settings, creator or end have changed; members do not count.
    pub groups: Vec<ConversationRow>,
    /// New and changed members of conversations that are not new.
    pub members: Vec<(ConversationId, Membership)>,
    /// Users who have left, or were removed.
    pub parted: Vec<(ConversationId, UserId)>,
    /// Messages and events of other nodes' conversations that go into streams.
    pub arrivals: Vec<ArrivalRow>,
    /// Changes of users' lists of conversations, each once.
    pub listed: Vec<ListedRow>,
    /// Changes of users' lists of relations.
    pub related: Vec<RelatedRow>,
    /// Settings of users, of each once.
    pub settings: Vec<(UserId, WhoMayAdd)>,
    /// Rules for logins of users, of each once.
    pub rules: Vec<(UserId, LoginRule)>,
    /// Users who are invited to groups, and those who are not any more (false), each once.
    pub invited: Vec<(ConversationId, UserId, bool)>,
    /// Groups to which nobody is invited any more: those who were invited before the transaction are not.
    pub uninvited: Vec<ConversationId>,
    /// Invitations for users' lists.
    pub invitations: Vec<InvitationRow>,
    /// Keys of pushes into inboxes.
    pub pushed: Vec<PushedRow>,
    /// Acks of devices, and their ends.
    pub cursors: Vec<CursorRow>,
    /// Outbox rows that are not needed any more.
    pub confirmed: Vec<ConfirmedRow>,
}

impl Transaction {
    /// An empty one.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            last_id: 0,
            fences: Vec::new(),
            users: Vec::new(),
            profiles: Vec::new(),
            devices: Vec::new(),
            conversations: Vec::new(),
            messages: Vec::new(),
            emptied: Vec::new(),
            events: Vec::new(),
            groups: Vec::new(),
            members: Vec::new(),
            parted: Vec::new(),
            listed: Vec::new(),
            related: Vec::new(),
            settings: Vec::new(),
            rules: Vec::new(),
            invited: Vec::new(),
            uninvited: Vec::new(),
            invitations: Vec::new(),
            arrivals: Vec::new(),
            pushed: Vec::new(),
            cursors: Vec::new(),
            confirmed: Vec::new(),
        }
    }

    /// True if nothing is written.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
            && self.profiles.is_empty()
            && self.settings.is_empty()
            && self.rules.is_empty()
            && self.invited.is_empty()
            && self.devices.is_empty()
            && self.messages.is_empty()
            && self.events.is_empty()
            && self.groups.is_empty()
            && self.members.is_empty()
            && self.parted.is_empty()
            && self.arrivals.is_empty()
            && self.cursors.is_empty()
            && self.confirmed.is_empty()
    }

    /// Adds the fence of a slot, once.
    pub fn fence(&mut self, slot: Slot, epoch: u64) {
        if !self.fences.iter().any(|(known, _)| *known == slot) {
            self.fences.push((slot, epoch));
        }
    }
}

/// A device of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Number of the device.
    pub number: DeviceNumber,
    /// Name of the device.
    pub name: Arc<str>,
    /// Platform as the client names it.
    pub platform: u32,
    /// Position of the stream up to which the device has everything.
    pub acked: u64,
    /// Unix time in milliseconds at which the device came first, or went last.
    pub seen_ms: u64,
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// True for a group.
    pub is_group: bool,
    /// Creator of a group. `None`: a conversation of two.
    pub creator: Option<UserId>,
    /// Settings of a group.
    pub settings: GroupSettings,
    /// True once the group is gone; the next group of this name has the same number.
    pub is_dissolved: bool,
    /// Members, in the order of their numbers.
    pub members: Vec<Membership>,
}

impl ConversationRow {
    /// Returns the membership of a user.
    pub fn member(&self, user: UserId) -> Option<&Membership> {
        let index = self.members.binary_search_by_key(&user, |it| it.member.user).ok()?;
        self.members.get(index)
    }
}

/// A membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The user's part in the conversation.
    pub member: Member,
    /// Name of the user.
    pub uid: Arc<str>,
    /// Order from which on the member is sent everything.
    pub entered: u64,
    /// Relation of the member to the other one of a conversation of two; else the default.
    pub relation: Relation,
}

/// A message with its key. One whose key is there already is not written, nor is anything for its recipients.
#[derive(Clone, Debug)]
pub struct MessageRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Seq of the message.
    pub seq: u64,
    /// Order of the message in the conversation.
    pub order: u64,
    /// Author of the message, with the device.
    pub origin: Origin,
    /// The client's name for it.
    pub key: MessageKey,
    /// The message id.
    pub id: u64,
    /// Time that clients are told, in Unix milliseconds.
    pub time_ms: u64,
    /// Digest of the content.
    pub digest: u64,
    /// The encoded push.
    pub body: Bytes,
    /// The message counts as unread.
    pub is_counted: bool,
    /// Members who get it.
    pub recipients: Vec<RecipientRow>,
}

/// A message that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptiedRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Seq of the message.
    pub seq: u64,
    /// Seq of the message that says so. If that is not stored, nothing is emptied.
    pub by: u64,
    /// Emptied push.
    pub body: Bytes,
}

/// A receiver of a message or event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientRow {
    /// The user.
    pub user: UserId,
    /// Position in the stream that the message gets directly. `None`, and also if the user's slot is not the node's any more: it
    /// goes into the outbox.
    pub position: Option<u64>,
    /// Order from which on the user is sent everything.
    pub entered: u64,
    /// Effect on the user's membership.
    pub passage: Passage,
}

/// An event of a conversation.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Order of the event in the conversation.
    pub order: u64,
    /// Number in the log. `None`: it is told to few, whose entries hold it themselves.
    pub number: Option<u64>,
    /// The event says nothing but the settings: it takes the place of the one before.
    pub is_settings: bool,
    /// All members get it.
    pub is_for_all: bool,
    /// Author of the event, with the device.
    pub origin: Origin,
    /// The encoded push.
    pub body: Bytes,
    /// Users who get it.
    pub recipients: Vec<RecipientRow>,
}

/// A delivered message or event in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivalRow {
    /// The user.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Order in the conversation.
    pub order: u64,
    /// The message or event.
    pub content: Content,
    /// Position in the stream.
    pub position: u64,
    /// The user's own device that wrote it. `None`: another user did.
    pub origin: Option<DeviceNumber>,
    /// Body of [`Content::Own`]; else empty.
    pub body: Bytes,
}

/// An entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Position in the stream.
    pub position: u64,
    /// The conversation.
    pub conversation: ConversationId,
    /// The message or event.
    pub content: Content,
    /// The user's own device that wrote it. `None`: another user did.
    pub origin: Option<DeviceNumber>,
    /// Body of [`Content::Own`]; else empty.
    pub body: Bytes,
}

/// A conversation in a user's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRow {
    /// The user.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// Position of the entry of the user's stream by which the membership began or ended. The row is written with that entry.
    pub position: u64,
    /// True: the membership began there. False: it has ended.
    pub is_member: bool,
}

/// A relation in a user's list. It is written with the entry of the user's stream that has this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelatedRow {
    /// The user.
    pub user: UserId,
    /// The conversation of both.
    pub conversation: ConversationId,
    /// Order of the event.
    pub order: u64,
    /// The other user.
    pub other: UserId,
    /// Name of the other user.
    pub uid: Arc<str>,
    /// Relation of the user to the other one. The default: the list does not name the other one.
    pub relation: Relation,
}

/// An invitation in a user's list. It is written with the entry of the user's stream that has this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvitationRow {
    /// The user.
    pub user: UserId,
    /// The group.
    pub conversation: ConversationId,
    /// Order of the event.
    pub order: u64,
}

/// Key of a push into an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedRow {
    /// The user.
    pub user: UserId,
    /// The caller's name for it.
    pub key: MessageKey,
    /// Digest of the content.
    pub digest: u64,
    /// Position of the push in the stream.
    pub position: u64,
}

/// Keys of pushes that an inbox keeps beside those of a transaction: the newest ones.
pub const PUSHED_MAX: usize = 63;

/// Invitations in a user's list; the oldest one makes room.
pub const INVITATIONS_MAX: usize = 64;

/// An ack of a device, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorRow {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceNumber,
    /// Position up to which the device has everything.
    pub acked: u64,
    /// Position up to which every device of the user has everything.
    pub trimmed: u64,
    /// Unix time in milliseconds at which the device went; 0: it is there.
    pub seen_ms: u64,
    /// The user does not have the device any more; its number is not given again.
    pub is_gone: bool,
}

/// Outbox rows of a member up to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmedRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The member.
    pub user: UserId,
    /// Up to here.
    pub order: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_relation_has_a_number() {
        for code in 0..8 {
            assert_eq!(relation_code(relation_of(code)), code);
        }
        assert_eq!(relation_code(Relation::default()), 0);
    }
}
