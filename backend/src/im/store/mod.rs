//! Where conversations, inboxes and cursors live: the [`Store`] trait and its memory implementation.
//!
//! The trait speaks operations of instant messaging, not get and put: a store can then turn a whole
//! batch into one commit. Writes go in as batches and come back, in order, when they are durable;
//! reads answer at once from what is committed.
//!
//! Users, devices and conversations have small numbers here, valid for this process's life: a store
//! interns names once, and everything hot works on numbers.

mod disk;
mod dropped;
mod membership;
mod memory;

pub use disk::{Disk, DiskError, Durability};
pub use memory::Memory;

use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use std::ops::Range;

/// A user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub u32);

/// A conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationId(pub u32);

/// A device of one user; never used again for another device of that user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber(pub u32);

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One to one; the conversation comes into being with its first message.
    User(UserId),
    /// A conversation that exists.
    Conversation(ConversationId),
}

/// A message that wants a seq.
#[derive(Debug)]
pub struct Draft {
    /// Who wrote it.
    pub sender: UserId,
    /// On which device; it is not pushed there.
    pub device: DeviceNumber,
    /// To whom.
    pub target: Target,
    /// The client's name for it.
    pub key: MessageKey,
    /// The message id.
    pub id: u64,
    /// Of its content; the same key with another digest or target is a conflict.
    pub digest: u64,
    /// An encoded [`moorline_proto::message::client::Push`] without its seq, with
    /// [`SEQ_BYTES_MAX`] of spare room.
    pub body: BytesMut,
}

/// Spare room that [`seal`] needs.
pub const SEQ_BYTES_MAX: usize = 11;

/// Completes a draft's body with its seq. Protobuf fields may come in any order.
pub fn seal(mut body: BytesMut, seq: u64) -> Bytes {
    body.put_u8(3 << 3); // field 3, varint
    prost::encode_length_delimiter(usize::try_from(seq).expect("64-bit platform"), &mut body)
        .expect("BytesMut grows");
    body.freeze()
}

/// Something to be made durable.
#[derive(Debug)]
pub enum Write {
    /// Gives a message its seq, stores it, and puts it into the inbox of every member (of the
    /// sender's only if there is another device than the sending one).
    Append(Draft),
    /// A group; the creator is its first member. By the same creator again: no change, the same id.
    CreateGroup {
        /// Its name, valid.
        name: String,
        /// Who makes it.
        creator: UserId,
        /// Who else is in it.
        members: Vec<UserId>,
    },
    /// Makes `user` a member from the next message on. Already a member: no change.
    Join {
        /// A group.
        conversation: ConversationId,
        /// Who.
        user: UserId,
    },
    /// Ends a membership. No member: no change.
    Leave {
        /// A group.
        conversation: ConversationId,
        /// Who.
        user: UserId,
    },
    /// The device has everything up to this position of its user's stream. May be made durable later
    /// than its outcome says: losing it means that messages are pushed again.
    Acked {
        /// Whose.
        user: UserId,
        /// Which device; one that is forgotten does nothing.
        device: DeviceNumber,
        /// Up to here.
        position: u64,
    },
}

/// Why an operation is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user is no member.
    NotMember,
    /// There is no such conversation.
    NotFound,
    /// The key is known with other content, or the group belongs to another creator.
    Conflict,
    /// Not for this kind of conversation.
    Denied,
    /// The group has `group_members_max` members.
    GroupFull,
    /// `conversations_max` are known.
    StoreFull,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub conversation: ConversationId,
    /// Its number there, dense from 1.
    pub seq: u64,
    /// Its id: of a duplicate, that of the first try.
    pub id: u64,
    /// `None`: a duplicate, stored before. Else what is to be delivered.
    pub delivery: Option<Delivery>,
}

/// What a new message brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The encoded push.
    pub body: Bytes,
    /// Whose inboxes: a range of [`Committed::recipients`].
    pub recipients: Range<usize>,
}

/// One inbox that got one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Whose.
    pub user: UserId,
    /// At which position of the user's stream.
    pub position: u64,
}

/// What became of one [`Write`].
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Write::Append`].
    Appended(Result<Stored, Refusal>),
    /// Of the group operations.
    Group(Result<ConversationId, Refusal>),
    /// Of [`Write::Acked`].
    Acked,
}

/// A durable batch.
#[derive(Debug, Default)]
pub struct Committed {
    /// One per write, in order.
    pub outcomes: Vec<Outcome>,
    /// The inboxes of all appended messages.
    pub recipients: Vec<Recipient>,
}

/// What a device's login found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCursor {
    /// Its number.
    pub device: DeviceNumber,
    /// It has everything up to here; 0 for a new device, which gets what the inbox still holds.
    pub acked: u64,
    /// Forgotten in its favour: the device of this user whose login is longest ago.
    pub forgotten: Option<DeviceNumber>,
}

/// What stands at one position of a user's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A message.
    Message {
        /// Where it belongs.
        conversation: ConversationId,
        /// The encoded push.
        body: Bytes,
        /// The user's own device that wrote it.
        origin: Option<DeviceNumber>,
    },
    /// Messages of this conversation were dropped from the inbox, the last of them here. They are in
    /// the history.
    Dropped {
        /// Which to pull.
        conversation: ConversationId,
    },
}

/// Limits of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of messages; one message is always given.
    pub bytes: usize,
}

/// A piece of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Encoded pushes, by rising seq.
    pub messages: Vec<Bytes>,
    /// Inclusive ranges of seqs that hold no message for this reader.
    pub voids: Vec<(u64, u64)>,
    /// Newest seq of the conversation.
    pub latest: u64,
    /// A limit cut the page: what follows its last message was not looked at.
    pub more: bool,
}

/// Conversations, members, messages, keys, inboxes and cursors.
///
/// [`crate::im::conformance`] checks an implementation.
pub trait Store {
    /// The number of a user, who need not have been seen before. `None`: `users_max` are known.
    fn try_user(&mut self, uid: &str) -> Option<UserId>;

    /// A user's name.
    fn uid(&self, user: UserId) -> &str;

    /// A device of `user` is here. Unknown devices become known, and inboxes then wait for their acks.
    fn login(&mut self, user: UserId, device: &str) -> DeviceCursor;

    /// Starts a batch at Unix time `now_ms`. Writes take effect in order, each judged on what those
    /// before it left.
    ///
    /// # Errors
    /// The batch itself: too many wait already.
    fn try_commit(&mut self, now_ms: u64, batch: Vec<Write>) -> Result<(), Vec<Write>>;

    /// The next durable batch, in the order of [`Self::try_commit`].
    fn poll_committed(&mut self) -> Option<Committed>;

    /// The number of a conversation that exists.
    fn find(&self, id: &str) -> Option<ConversationId>;

    /// Appends a conversation's id to `into`.
    fn write_id(&self, conversation: ConversationId, into: &mut String);

    /// Whether it is a group.
    fn is_group(&self, conversation: ConversationId) -> bool;

    /// Newest seq; 0: no message yet.
    fn latest(&self, conversation: ConversationId) -> u64;

    /// How many members.
    fn member_count(&self, conversation: ConversationId) -> usize;

    /// The members, if `asker` is one of them.
    ///
    /// # Errors
    /// [`Refusal::NotMember`].
    fn members(&self, conversation: ConversationId, asker: UserId) -> Result<Vec<UserId>, Refusal>;

    /// The conversations of a user, oldest membership first.
    fn conversations(&self, user: UserId) -> Vec<ConversationId>;

    /// Messages `from..=to` (at most to the newest) as `reader` may see them: from its membership on.
    ///
    /// # Errors
    /// [`Refusal::NotMember`].
    fn read_range(
        &self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal>;

    /// Appends to `into` up to `limit` entries of a user's stream after a position.
    fn read_stream(&self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>);

    /// Position of the last entry ever put into a user's stream.
    fn stream_end(&self, user: UserId) -> u64;
}
