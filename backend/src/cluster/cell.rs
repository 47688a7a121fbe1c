//! Requests to a cell and its replies, as values. A driver turns them into SQL; the simulator performs them on tables in memory.
//!
//! Node 2 stores `hi` of alice for bob: a [`Transaction`] with the fences of both slots, one [`MessageRow`] with bob as its
//! recipient. The cell writes what belongs to slots that are still node 2's, and says which are not.
//!
//! Every row names its slot: that of the conversation or user whose name it has ([`slot_of`]).

pub use super::rows::*;

use crate::im::store::rules::relations::{Both, Counts};
use crate::im::store::{ConversationId, LoginRule, Member, Relation, UserId, WhoMayAdd};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Owner, Slot};
use std::sync::Arc;

/// Bits of a name behind those of its slot: a counter.
const COUNTER_BITS: u32 = 38;

/// Returns the name with this counter, from 1, in a slot: of a user or of a conversation.
pub fn number_in(slot: Slot, counter: u64) -> u64 {
    debug_assert!(counter < 1 << COUNTER_BITS, "a slot gives at most 2^38 names");
    u64::from(slot.number()) << COUNTER_BITS | counter
}

/// Returns the slot of a name's number.
pub fn slot_of(number: u64) -> Slot {
    Slot::from_number(number >> COUNTER_BITS).expect("a name has 48 bits")
}

/// Returns the counter of a name's number.
pub const fn counter_of(number: u64) -> u64 {
    number & ((1 << COUNTER_BITS) - 1)
}

/// Number of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellId(pub u16);

/// Correlates a request with its reply; used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The answer to a request: a reply, or nothing is known of its outcome.
pub type CellResult = Result<CellReply, UnknownOutcome>;

/// The connection ended before the answer came: the request was done, was not done, or is still being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownOutcome;

/// A request to a cell.
#[derive(Clone, Debug)]
pub enum CellRequest {
    /// Renews the lease of a node, unless another life of the node has one; only in the first cell. Answered by
    /// [`CellReply::Renewed`].
    Renew(Life),
    /// Ends the lease of a node; only in the first cell. Answered by [`CellReply::Renewed`].
    Release(Life),
    /// Reads the owners of all slots of the cell. Answered by [`CellReply::Owners`].
    Owners,
    /// Takes slots over that still have these epochs. Answered by [`CellReply::Claimed`].
    Claim(NodeId, Vec<(Slot, u64)>),
    /// Gives slots that a node has at these epochs to other nodes. Answered by [`CellReply::Owners`] of these slots.
    HandOver(NodeId, Vec<(Slot, u64, NodeId)>),
    /// Writes. Answered by [`CellReply::Applied`].
    Commit(Arc<Transaction>),
    /// Reads. Answered by [`CellReply::Loaded`].
    Load(Vec<Load>),
    /// Empties messages of a group that is gone, of the slots that a node has at these epochs: the oldest ones of one group, at most this
    /// many. Their keys stay. Answered by [`CellReply::Swept`].
    Sweep(NodeId, Vec<(Slot, u64)>, usize),
}

/// The reply to a request.
#[derive(Clone, Debug)]
pub enum CellReply {
    /// Lives of nodes that have a lease, by the number of the node. Another life of the asking node: the lease is not renewed.
    Renewed(Vec<Life>),
    /// Owners of slots.
    Owners(Vec<(Slot, Owner)>),
    /// Slots that were taken over, and the owners of those that were not.
    Claimed(Vec<SlotHead>, Vec<(Slot, Owner)>),
    /// The transaction is durable.
    Applied(Applied),
    /// One for each [`Load`], in order.
    Loaded(Vec<Loaded>),
    /// Number of messages that were emptied. `None`: there is nothing to do.
    Swept(Option<u64>),
}

/// One life of a node: from the start of its process to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Number of the life, which no other life of the node has: random.
    pub number: u64,
    /// Address where other nodes connect.
    pub address: Arc<str>,
    /// The node gives its slots away: it should own none.
    pub is_stopping: bool,
}

impl Life {
    /// Returns whether both are the same life.
    pub fn is(&self, other: &Self) -> bool {
        (self.node, self.number) == (other.node, other.number)
    }
}

/// A slot at the moment of its take-over.
#[derive(Clone, Debug)]
pub struct SlotHead {
    /// The slot.
    pub slot: Slot,
    /// The new epoch.
    pub epoch: u64,
    /// Counter of the newest user; 0: there is no user.
    pub users: u64,
    /// Counter of the newest conversation; 0: there is no conversation.
    pub conversations: u64,
    /// Messages and events on their way to members, by rising order of each conversation.
    pub outbox: Vec<Deliver>,
}

/// Outcome of a [`Transaction`] that is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Slots that are not the node's any more: nothing of them was written.
    pub lost: Vec<Slot>,
    /// Messages, by their place in the transaction, whose keys were there already.
    pub known: Vec<(usize, Known)>,
}

/// The first result of a message key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Seq of the message.
    pub seq: u64,
    /// The message id.
    pub id: u64,
    /// Time that clients are told, in Unix milliseconds.
    pub time_ms: u64,
    /// Digest of the content.
    pub digest: u64,
}

/// One read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// Number of a user, by name.
    Name(Arc<str>),
    /// A user, by name.
    User(Arc<str>),
    /// A user, by number.
    UserNumber(UserId),
    /// A conversation, by its id.
    Conversation(Arc<str>),
    /// A conversation, by number.
    ConversationNumber(ConversationId),
    /// Result of a message key: conversation, sender, key.
    Key(ConversationId, UserId, MessageKey),
    /// Digest of a push into the inbox of a user, by its key.
    Pushed(UserId, MessageKey),
    /// Entries of a stream: of a user, after a position, up to a position, at most this many.
    Stream(UserId, u64, u64, usize),
    /// Messages and events of conversations.
    Bodies(Vec<(ConversationId, Content)>),
    /// Messages of a conversation, from one seq to another, at most this many.
    Page(ConversationId, u64, u64, usize),
    /// Conversations of a user, newest membership first: behind that with this id (empty: from the first), at most this many.
    Listing(UserId, Arc<str>, usize),
    /// Profiles of users, by name.
    Profiles(Vec<Arc<str>>),
    /// Conversations as a member sees them in a list.
    Listed(UserId, Vec<ConversationId>),
    /// Users of whom somebody wants something, by name.
    Contacts(Vec<Arc<str>>),
    /// Relations of the two users of conversations, by the ids of these.
    Pairs(Vec<Arc<str>>),
    /// Relations of a user.
    Relations(UserId),
    /// Numbers of relations of a user, by name.
    RelationCounts(Arc<str>),
    /// Settings of a user, and the list of invitations.
    Settings(UserId),
    /// Devices of users, by name.
    Devices(Vec<Arc<str>>),
    /// Those of these groups to which a user is invited.
    InvitedTo(UserId, Vec<ConversationId>),
    /// Those of these users who are invited to a group.
    Invited(ConversationId, Vec<UserId>),
}

/// The answer to one [`Load`].
#[derive(Clone, Debug)]
pub enum Loaded {
    /// Number of a user. `None`: nobody has this name.
    Name(Arc<str>, Option<UserId>),
    /// A user. `None`: nobody has this name.
    User(Option<Box<UserState>>),
    /// A conversation and its ends. `None`: it does not exist.
    Conversation(Option<Box<(ConversationRow, Ends)>>),
    /// Result of a message key.
    Key(Option<Known>),
    /// Digest of a push. `None`: the key is not known.
    Pushed(Option<u64>),
    /// Entries of a stream, by rising position.
    Stream(Vec<EntryRow>),
    /// Messages and events that are there, and their conversations.
    Bodies(Vec<(ConversationId, Content, Bytes)>, Vec<(ConversationRow, Ends)>),
    /// Messages that are there, by rising seq.
    Page(Vec<(u64, Bytes)>),
    /// Conversations of a user. `None`: the user is not in that behind which the list should go on.
    Listing(Option<Vec<ConversationId>>),
    /// Profiles of those users who have one, with their names.
    Profiles(Vec<(Arc<str>, Bytes)>),
    /// Conversations that are there, and that the user is in.
    Listed(Vec<ListedState>),
    /// Users who are known, with their names, and who may make them members of groups.
    Contacts(Vec<(Arc<str>, UserId, WhoMayAdd)>),
    /// Relations of two users to each other, one list for each id; of who makes nothing of the other one, none.
    Pairs(Vec<(Arc<str>, Vec<OwnRelation>)>),
    /// Relations of a user to others, with their names, in the order of their numbers.
    Relations(UserId, Vec<(UserId, Arc<str>, Relation)>),
    /// Numbers of relations. `None`: nobody has this name.
    RelationCounts(Option<(UserId, Counts)>),
    /// Settings of a user, and the newest [`INVITATIONS_MAX`] of the user's list, oldest first.
    Settings(UserId, WhoMayAdd, Vec<ConversationId>),
    /// Devices of those users who have one, in the order of their numbers.
    Devices(Vec<(UserId, DeviceRow)>),
    /// Groups that are there and to which the user is invited, in the order of the question.
    InvitedTo(UserId, Vec<(ConversationId, Arc<str>)>),
    /// Users who are invited, in the order of their numbers.
    Invited(Vec<UserId>),
}

/// A user, and what the user makes of another one.
pub type OwnRelation = (UserId, Relation);

/// A user as the cell has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserState {
    /// The user.
    pub user: UserId,
    /// Name of the user.
    pub uid: Arc<str>,
    /// Devices, in the order of their numbers.
    pub devices: Vec<DeviceRow>,
    /// Largest number of a device that is gone; 0: none is.
    pub last_gone: u32,
    /// Rule for logins.
    pub rule: LoginRule,
    /// Position of the last entry that was ever put into the stream.
    pub end: u64,
    /// Last order of each conversation that was ever put into the stream.
    pub arrived: Vec<(ConversationId, u64)>,
}

/// A conversation in a member's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedState {
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// Newest seq.
    pub latest: u64,
    /// Number of members.
    pub members: usize,
    /// The member.
    pub own: Member,
    /// The other member of a conversation of two.
    pub peer: Option<Member>,
    /// Relations of both members of a conversation of two to each other.
    pub relations: Both<Relation>,
    /// Messages that the member has not read, at most [`UNREAD_MAX`].
    pub unread: u64,
    /// The newest message, unless it is large or not for this member.
    pub last: Option<Bytes>,
}

/// Unread messages of a conversation are counted up to this number.
pub const UNREAD_MAX: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_slot_in_front() {
        let slot = Slot::of("alice");
        let number = number_in(slot, 7);
        assert_eq!((slot_of(number), counter_of(number)), (slot, 7));
        let last = number_in(Slot::all().last().expect("one"), (1 << 38) - 1);
        assert_eq!(UserId::new(last), UserId::MAX, "the last name of the last slot is nobody's");
    }

    #[test]
    fn a_slot_has_one_fence_in_a_transaction() {
        let mut transaction = Transaction::new(NodeId(1));
        transaction.fence(Slot::of("a"), 4);
        transaction.fence(Slot::of("a"), 5);
        assert_eq!((transaction.fences, transaction.messages.len()), (vec![(Slot::of("a"), 4)], 0));
    }
}
