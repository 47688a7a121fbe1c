//! Where conversations, inboxes and cursors live: the [`Store`] trait and its memory implementation.
//!
//! The trait speaks operations of instant messaging, not get and put: a store can then turn a whole
//! batch into one commit. Writes go in as batches and come back, in order, when they are durable;
//! reads answer at once from what is committed.
//!
//! Users, devices and conversations have small numbers here, valid for this process's life: a store
//! interns names once, and everything hot works on numbers.

mod directory;
mod disk;
mod dropped;
mod embedded;
mod memory;

pub use disk::{Disk, DiskError, Durability};
pub use memory::Memory;
pub use moorline_proto::message::im::{Friendship, RelationChange, Role};

use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::im;
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

/// A message that takes another one back.
#[derive(Debug)]
pub struct Recall {
    /// What says so; its target is the conversation, its sender who takes it back.
    pub draft: Draft,
    /// Which one.
    pub seq: u64,
    /// Its id.
    pub message_id: u64,
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
    /// Empties a message and appends one that says so, once. By its sender, or by an administrator or the owner of
    /// a group; within `recall_window` of its sending.
    Recall(Recall),
    /// A group; the creator is its first member and its owner. By the same creator again: no change, the same id.
    CreateGroup {
        /// Its name, valid.
        name: String,
        /// Who makes it, on which device.
        creator: Origin,
        /// Who else is in it.
        members: Vec<UserId>,
        /// What all are told.
        event: Bytes,
    },
    /// Changes a group as a whole or not at all. Members, and who is none any more, are told if anything changed; of
    /// a group that is read by cursor nobody is.
    ChangeGroup {
        /// A group.
        conversation: ConversationId,
        /// By whom, on which device.
        by: Origin,
        /// How.
        change: GroupChange,
        /// What all are told.
        event: Bytes,
    },
    /// The user has read everything up to `seq`. The user's other devices are told, and one to one the other user.
    Read {
        /// Where.
        conversation: ConversationId,
        /// Who, on which device.
        by: Origin,
        /// Up to here, at most to the newest.
        seq: u64,
        /// What they are told.
        event: Bytes,
    },
    /// What one user makes of another. The user's other devices are told if that changed, and the other user unless it
    /// is a block.
    Relate {
        /// Who, on which device.
        by: Origin,
        /// Of whom.
        other: UserId,
        /// How it changes.
        change: RelationChange,
        /// What they are told.
        event: Bytes,
    },
    /// Something is said to a user beside all conversations.
    Tell {
        /// Whom.
        users: Vec<UserId>,
        /// What.
        event: Bytes,
    },
    /// What a user says of himself, instead of what was said before.
    SetProfile {
        /// Who.
        user: UserId,
        /// What, for [`Store::profile`].
        profile: Bytes,
    },
    /// The device is none of the user's any more. Unknown: no change.
    RemoveDevice {
        /// Whose.
        user: UserId,
        /// Which.
        device: DeviceNumber,
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
        /// When it went, in Unix milliseconds; 0: it is still there.
        gone_ms: u64,
    },
    /// The device has everything of a conversation up to `seq`. May be lost, as an ack may.
    Confirm {
        /// Whose, and which device.
        by: Origin,
        /// Of which conversation.
        conversation: ConversationId,
        /// Up to here.
        seq: u64,
    },
}

/// A change of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// Who asks becomes a member from the next message on. A member: no change.
    Join,
    /// Who asks is no member any more. No member: no change. After the owner the administrator, else the member, that
    /// has been in it longest is the owner.
    Leave,
    /// By an administrator or the owner; by any member to add somebody, unless that takes an invitation.
    Edit(GroupEdit),
}

/// Changes of a group that somebody makes for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupEdit {
    /// New members. Members: no change.
    pub add: Vec<UserId>,
    /// No members any more. Not the owner; administrators only by the owner.
    pub remove: Vec<UserId>,
    /// A member's role, by the owner. A new owner makes the old one an administrator.
    pub role: Option<(UserId, Role)>,
    /// Until when, in Unix milliseconds, a member with less of a role may not speak.
    pub silence: Option<(UserId, u64)>,
    /// The settings, all of them.
    pub settings: Option<GroupSettings>,
}

/// What a group says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSettings {
    /// What it is called.
    pub title: String,
    /// What its members should know.
    pub notice: String,
    /// Nobody joins by himself.
    pub by_invitation: bool,
    /// Only the owner and administrators speak.
    pub is_silent: bool,
}

impl From<GroupSettings> for im::GroupSettings {
    fn from(settings: GroupSettings) -> Self {
        let GroupSettings { title, notice, by_invitation, is_silent } = settings;
        Self { title, notice, by_invitation, is_silent }
    }
}

impl From<im::GroupSettings> for GroupSettings {
    fn from(settings: im::GroupSettings) -> Self {
        let im::GroupSettings { title, notice, by_invitation, is_silent } = settings;
        Self { title, notice, by_invitation, is_silent }
    }
}

/// A user's device.
pub type Origin = (UserId, DeviceNumber);

/// A membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whose.
    pub user: UserId,
    /// [`Role::Member`] in a conversation of two.
    pub role: Role,
    /// First seq that this membership may read; from 1.
    pub visible_from: u64,
    /// It has read everything up to here.
    pub read: u64,
    /// It may not speak before this Unix time in milliseconds.
    pub silent_until_ms: u64,
    /// Grows with each membership of anybody: the order of a user's conversations.
    pub since: u64,
}

impl Member {
    const fn new(user: UserId, role: Role, visible_from: u64) -> Self {
        Self { user, role, visible_from, read: visible_from - 1, silent_until_ms: 0, since: 0 }
    }
}

/// What one user makes of another.
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
    /// As the client calls it.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// As the client said: a [`moorline_proto::message::client::Platform`].
    pub platform: u32,
    /// When it came, or went, in Unix milliseconds.
    pub seen_ms: u64,
}

/// How much is in a store, and what it has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Users that are known.
    pub users: usize,
    /// Conversations that are known.
    pub conversations: usize,
    /// Commits that became durable.
    pub commits: u64,
    /// Commits before which writing had to wait, the engine being behind.
    pub stalls: u64,
}

/// Why an operation is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user is no member.
    NotMember,
    /// There is no such conversation or message.
    NotFound,
    /// The key is known with other content, or the group belongs to another creator.
    Conflict,
    /// Not for this kind of conversation, or not with oneself.
    Denied,
    /// It takes a role that the user does not have.
    NotAllowed,
    /// The user may not speak here now.
    Silent,
    /// One of the two has blocked the other.
    Blocked,
    /// Only friends may write, and these are none.
    NotFriends,
    /// It is older than `recall_window`.
    TooLate,
    /// The group has `group_members_max` members.
    GroupFull,
    /// `conversations_max` are known.
    StoreFull,
    /// One of the two has `relations_max` relations.
    TooManyRelations,
    /// The disk does not give it.
    Unreadable,
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

/// What a new message, or something that happened, brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The encoded push.
    pub body: Bytes,
    /// Whose inboxes: a range of [`Committed::recipients`].
    pub recipients: Range<usize>,
    /// It is in no inbox: whoever is a member and online is to hear of it, the others pull it.
    pub is_read_fanout: bool,
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
    /// Of [`Write::Append`] and [`Write::Recall`].
    Appended(Result<Stored, Refusal>),
    /// Of [`Write::CreateGroup`], and who is told of it.
    Created(Result<(ConversationId, Option<Delivery>), Refusal>),
    /// Of all others, and who is told of it.
    Done(Result<Option<Delivery>, Refusal>),
}

impl Outcome {
    /// Nothing was done.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Appended(Err(_)) | Self::Created(Err(_)) | Self::Done(Err(_)))
    }
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
    /// It was not known before.
    pub is_new: bool,
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
        /// Its number there.
        seq: u64,
        /// The encoded push.
        body: Bytes,
        /// The user's own device that wrote it.
        origin: Option<DeviceNumber>,
    },
    /// Something that happened.
    Event {
        /// The encoded push.
        body: Bytes,
        /// The user's own device that did it.
        origin: Option<DeviceNumber>,
    },
    /// Messages of this conversation were dropped from the inbox, the last of them here. They are in
    /// the history.
    Dropped {
        /// Which to pull.
        conversation: ConversationId,
        /// The seq of the first of them.
        first: u64,
    },
    /// Things that happened were dropped from the inbox, the last of them here.
    EventsDropped,
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

    /// The number of a user who has been seen before.
    fn find_user(&self, uid: &str) -> Option<UserId>;

    /// A user's name.
    fn uid(&self, user: UserId) -> &str;

    /// A device of `user` is here at this Unix time. Unknown devices become known, and inboxes then wait for their acks.
    fn login(&mut self, user: UserId, device: &str, platform: u32, now_ms: u64) -> DeviceCursor;

    /// The devices of a user, longest since their logins first.
    fn devices(&self, user: UserId) -> Vec<DeviceInfo>;

    /// Starts a batch at Unix time `now_ms`. Writes take effect in order, each judged on what those
    /// before it left. `last_id` is the last message id that was given out.
    ///
    /// # Errors
    /// The batch itself: too many wait already.
    fn try_commit(&mut self, now_ms: u64, last_id: u64, batch: Vec<Write>) -> Result<(), Vec<Write>>;

    /// Whether nothing will become durable any more: its disk is full, or cannot be read.
    fn is_broken(&self) -> bool;

    /// Whether something that may be made durable late, such as acks, is due: with the next batch, or an empty one.
    fn wants_commit(&self, now_ms: u64) -> bool;

    /// The `last_id` of the last batch, also of an earlier life.
    fn last_id(&self) -> u64;

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

    /// A membership.
    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member>;

    /// All memberships, by user.
    fn members(&self, conversation: ConversationId) -> &[Member];

    /// What a group says of itself.
    fn settings(&self, conversation: ConversationId) -> GroupSettings;

    /// How many messages a member has not read.
    fn unread(&self, conversation: ConversationId, user: UserId) -> u64;

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

    /// Appends to `into` up to `limit` entries of a user's stream after a position. False: what comes next cannot be read
    /// now.
    #[must_use]
    fn read_stream(&self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>) -> bool;

    /// Position of the last entry ever put into a user's stream.
    fn stream_end(&self, user: UserId) -> u64;

    /// Conversations with messages that were put into no inbox and that this device has not confirmed, and the first seq
    /// it may miss. A device that was not known before misses nothing of before.
    fn unconfirmed(&self, user: UserId, device: DeviceNumber) -> Vec<(ConversationId, u64)>;

    /// What `user` makes of `other`.
    fn relation(&self, user: UserId, other: UserId) -> Relation;

    /// Of everybody of whom `user` makes anything, in no order that means something.
    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)>;

    /// What a user has said of himself.
    fn profile(&self, user: UserId) -> Option<Bytes>;

    /// How much there is, and was done.
    fn counts(&self) -> Counts;
}
