//! Answers of a [`super::Store`]: completions, and the facts that an operation reads while it is executed.
//!
//! An operation is planned (it names the facts that it will read), its facts are prefetched, then it is executed without
//! another wait: alice joins `group:tea`, so the plan is that conversation and her membership; the store has both, or
//! fetches both and completes the prefetch; then the request is judged on them.

use super::rules::{self, Contact};
use super::{
    Command, ConversationId, Counts, Delivery, DeviceCursor, DeviceInfo, DeviceNumber, GroupSettings,
    LoginDenied, LoginRule, Member, Online, Origin, Recipient, Refusal, Relation, Stored, SweepNeed, Ticket,
    UserId, Whereabouts, WhoMayAdd,
};
use crate::im::names::Names;
use bytes::Bytes;
use moorline_proto::slots::NodeId;

/// A store of conversations, members, messages, message keys, inboxes and cursors.
///
/// # Contract
/// - Commands go in by [`Self::submit`] and come back, each once, by [`Self::poll`]. A store may answer within the same
///   call of `submit`, or later. Commits of one conversation complete in the order of their submission.
/// - Facts are readable from a successful prefetch, or from the completion that covers them, until the next call of
///   [`Self::submit`] of a commit or of [`Self::poll`]. They are at least as new as every completion that was polled.
/// - A read sees every commit whose completion was polled before the read was submitted.
/// - [`Completion::Arrived`] may come at any time, and tells what others have put into streams.
///
/// [`crate::im::conformance`] checks an implementation.
pub trait Store: Facts {
    /// Fetches the facts that `plan` names. True: they are readable now, and no completion follows. False:
    /// [`Completion::Prefetched`] follows. A store that has all facts in memory does not call `plan`.
    fn prefetch(&mut self, ticket: Ticket, plan: impl FnOnce(&mut ReadSet)) -> bool;

    /// Takes a command.
    ///
    /// # Errors
    /// The command itself: too many commits wait already, or the store [is broken](Self::is_broken), in which case
    /// writes may be missing from the returned batch. Logins and reads are always taken.
    fn submit(&mut self, ticket: Ticket, command: Command) -> Result<(), Command>;

    /// Takes the next completion.
    fn poll(&mut self) -> Option<(Ticket, Completion)>;

    /// True if nothing will become durable any more: its disk is full, or cannot be read.
    fn is_broken(&self) -> bool;

    /// True if writes that may be made durable late, such as acks, are due: with the next batch, or with an empty one.
    fn wants_commit(&self, now_ms: u64) -> bool;

    /// The `last_id` of the last batch, also of an earlier life of the backend.
    fn last_id(&self) -> u64;

    /// Kind of work that a [`super::Write::Sweep`] would find.
    fn sweep_need(&self) -> SweepNeed;

    /// Time of the retention clock of the last sweep that was written down; Unix milliseconds; 0: there was none.
    fn retention_ms(&self) -> u64;

    /// Contents and counters of the store.
    fn counts(&self) -> Counts;

    /// Name that no other store has: 16 random bytes.
    fn name(&self) -> Bytes;

    /// Version of [`Facts::whereabouts`]: it changes when a user may have moved.
    fn whereabouts_version(&self) -> u64 {
        0
    }

    /// Watches users whose sessions are known elsewhere, for a while: [`Arrived::online`] tells of them.
    fn watch_presences(&mut self, _users: &[UserId]) {}

    /// Answers a [`PresenceQuestion`]. `None`: the sessions of a user are not known here.
    fn answer_presences(&mut self, _node: NodeId, _request: u64, _online: Option<Vec<Online>>) {}
}

/// Small, hot state that is read while an operation is executed. Each fact must be covered by a prefetch or by a
/// completion; see [`Store`].
pub trait Facts {
    /// The user with this name. `None`: nobody has it. Covered by [`Need::User`], [`Need::Contact`] and [`Need::NewUser`].
    fn find_user(&self, uid: &str) -> Option<UserId>;

    /// The user with this name, who becomes known: for the server API and imports. `None`: as many users are known as
    /// `users_max` allows beside `users_reserved`. Covered by [`Need::NewUser`].
    fn try_user(&mut self, uid: &str) -> Option<UserId>;

    /// Name of a user. Covered by every need that names the user, and by [`Need::Members`].
    fn uid(&self, user: UserId) -> &str;

    /// The conversation with this id. `None`: it does not exist. Covered by [`Need::Named`].
    fn find(&self, id: &str) -> Option<ConversationId>;

    /// The conversation of these two users. `None`: it does not exist. Covered by the [`Need::Named`] of its id.
    fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId>;

    /// Appends a conversation's id to `into`. Covered by [`Need::Conversation`], as are the next three.
    fn write_id(&self, conversation: ConversationId, into: &mut String);

    /// Returns a conversation's id. Covered as [`Self::write_id`] is.
    fn id(&self, conversation: ConversationId) -> String {
        let mut id = String::new();
        self.write_id(conversation, &mut id);
        id
    }

    /// True if the conversation is a group.
    fn is_group(&self, conversation: ConversationId) -> bool;

    /// Newest durable seq; 0: no message yet.
    fn latest(&self, conversation: ConversationId) -> u64;

    /// Number of members.
    fn member_count(&self, conversation: ConversationId) -> usize;

    /// Version of the members, which differs after each join and leave. `None`: the store tells none. Covered by
    /// [`Need::Conversation`].
    fn members_version(&self, _conversation: ConversationId) -> Option<u32> {
        None
    }

    /// True if only the owner and administrators speak in the group. Covered by [`Need::Conversation`].
    fn is_silent(&self, conversation: ConversationId) -> bool;

    /// Settings of a group. Covered by [`Need::Conversation`].
    fn settings(&self, conversation: ConversationId) -> GroupSettings;

    /// A membership. Covered by a [`Need::Conversation`] with this user, and by [`Need::Members`].
    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member>;

    /// Memberships in the order of their users, beginning with the first user after `after`. Covered by
    /// [`Need::Members`].
    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
    ) -> impl ExactSizeIterator<Item = Member> + '_;

    /// Relation of `user` to `other`. Covered by [`Need::Relation`], [`Need::Contact`] and [`Need::Presence`].
    fn relation(&self, user: UserId, other: UserId) -> Relation;

    /// Setting of the user: who may make the user a member of a group. Covered by [`Need::Contact`], [`Need::Presence`],
    /// [`Need::Relation`] and [`Need::Settings`].
    fn who_may_add(&self, user: UserId) -> WhoMayAdd;

    /// Groups that the user may join by invitation, oldest first. Covered by [`Need::Settings`].
    fn invitations(&self, user: UserId) -> Vec<ConversationId>;

    /// Relations between `user` and `other`, for [`rules::Rules::judge`]. Covered by [`Need::Contact`] and [`Need::Presence`].
    fn contact(&self, (user, device): Origin, other: UserId) -> Contact {
        Contact {
            is_self: user == other,
            own: self.relation(user, other),
            theirs: self.relation(other, user),
            who_may_add: self.who_may_add(other),
            is_operator: rules::is_operator(device),
        }
    }

    /// Place where the sessions of a user are known.
    fn whereabouts(&self, _user: UserId) -> Whereabouts {
        Whereabouts::Here
    }

    /// All relations of `user`, in unspecified order. Covered by [`Need::Relations`].
    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)>;

    /// Devices of a user, longest since their login first. Covered by [`Need::Devices`] and [`Need::Presence`].
    fn devices(&self, user: UserId) -> Vec<DeviceInfo>;
}

/// One part of the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A user, by name.
    User(String),
    /// A user, by name, who becomes known.
    NewUser(String),
    /// A conversation, by its id, and the membership of a user in it. Covers what [`Need::Conversation`] covers.
    Named(String, Option<UserId>),
    /// A conversation, and the membership of a user in it.
    Conversation(ConversationId, Option<UserId>),
    /// All members of a conversation, by its id, and their names. Covers what [`Need::Named`] covers.
    NamedMembers(String),
    /// All members of a conversation and their names. Covers what [`Need::Conversation`] covers.
    Members(ConversationId),
    /// Relation of the first user to the second, and the settings of the second.
    Relation(UserId, UserId),
    /// All relations of a user, and the names of the others.
    Relations(UserId),
    /// Devices of a user.
    Devices(UserId),
    /// A user, by name, the user's settings, and the relations between the user and another one.
    Contact(String, UserId),
    /// A user, by name, and the user's devices. Covers what [`Need::Contact`] covers.
    Presence(String, UserId),
    /// Numbers of relations of a user, by name, and of another one: the limits of a change of their relation.
    Relating(String, UserId),
    /// Settings and invitations of a user, and the ids of the groups.
    Settings(UserId),
}

/// Needs of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSet(pub Vec<Need>);

impl ReadSet {
    /// Adds a need.
    pub fn add(&mut self, need: Need) {
        self.0.push(need);
    }
}

/// The answer to a command or to a prefetch.
#[derive(Debug)]
pub enum Completion {
    /// The batch is durable. Covers each conversation that its outcomes name.
    Committed(Committed),
    /// The device is logged in. `None`: `users_max` users are known.
    LoggedIn(Option<LoggedIn>),
    /// The user's rule denies the login.
    LoginDenied(LoginDenied),
    /// The page, or [`Refusal::NotMember`], or [`Refusal::Unreadable`].
    Page(Result<Page, Refusal>),
    /// The list, or [`Refusal::NotFound`]: the user is not in the conversation after which it should go on.
    Listing(Result<Listing, Refusal>),
    /// The backlog.
    Backlog(Backlog),
    /// Entries of a stream. Covers the conversations of its entries and the user's memberships in them.
    Stream(StreamPage),
    /// Encoded profiles.
    Profiles(Vec<Bytes>),
    /// Presence of users whose sessions are known elsewhere, or [`Refusal::Moved`]: it could not be asked for.
    Presences(Result<Vec<Online>, Refusal>),
    /// The facts are readable.
    Prefetched,
    /// Something that no command of this asker has caused, under [`Ticket::UNASKED`]. A store that nobody else writes to gives
    /// none. Covers the conversations of its messages.
    Arrived(Arrived),
}

/// Entries that came into streams by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// New messages and events.
    pub messages: Vec<ArrivedMessage>,
    /// The inboxes of all messages.
    pub recipients: Vec<Recipient>,
    /// Streams that have grown to these positions, by entries that are to be read.
    pub grown: Vec<Recipient>,
    /// Devices that their users have removed: their logins end.
    pub removed: Vec<Origin>,
    /// Rules of users whose logins may have begun without them: those that a rule denies end.
    pub ruled: Vec<(UserId, LoginRule)>,
    /// Questions of others about the presence of users, for [`Store::answer_presences`].
    pub asked: Vec<PresenceQuestion>,
    /// Presence of users whose sessions are known elsewhere, and who are watched here.
    pub online: Vec<Online>,
}

/// A question about the presence of users whose sessions should be known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceQuestion {
    /// Node that asks.
    pub node: NodeId,
    /// Number of the question. 0: the node watches the users.
    pub request: u64,
    /// The users.
    pub users: Vec<UserId>,
}

impl Arrived {
    /// True if nothing came.
    pub fn is_empty(&self) -> bool {
        let Self { messages, recipients: _, grown, removed, ruled, asked, online } = self;
        let is_told = messages.is_empty() && grown.is_empty() && removed.is_empty() && ruled.is_empty();
        is_told && asked.is_empty() && online.is_empty()
    }
}

/// A message or event that another asker has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivedMessage {
    /// Conversation of a message. `None`: an event.
    pub conversation: Option<ConversationId>,
    /// Author, with the device.
    pub origin: Origin,
    /// Recipients of each are a range of [`Arrived::recipients`].
    pub delivery: Delivery,
}

/// A device after its login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// The user.
    pub user: UserId,
    /// Names of the user and the device.
    pub names: Names,
    /// The device and how far it has come.
    pub cursor: DeviceCursor,
}

/// Entries and groups that a device may have missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Position of the last entry that was ever put into the user's stream.
    pub end: u64,
    /// Conversations with messages that were put into no inbox and that the device has not confirmed, and the first seq
    /// that the device may miss. A device that was not known before misses no message from before its first login.
    pub unconfirmed: Vec<(ConversationId, u64)>,
}

/// Entries of a user's stream.
#[derive(Debug, Default)]
pub struct StreamPage {
    /// Entries by rising position.
    pub entries: Vec<(u64, Entry)>,
    /// Position after which the entries were read.
    pub after: u64,
    /// Position of the last entry that was ever put into the stream, as of this read.
    pub end: u64,
    /// False: the entry after the given ones cannot be read now.
    pub is_readable: bool,
}

/// A part of a user's list of conversations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Conversations, newest membership first.
    pub entries: Vec<Listed>,
    /// More conversations follow.
    pub more: bool,
}

/// One conversation of a user's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The conversation's id.
    pub id: String,
    /// Newest seq.
    pub latest: u64,
    /// Number of members.
    pub members: usize,
    /// Messages that the user has not read.
    pub unread: u64,
    /// The user has read everything up to this seq.
    pub read: u64,
    /// One to one: the other user has read everything up to this seq; else 0.
    pub peer_read: u64,
    /// The newest message, unless it is large or not for this user.
    pub last: Option<Bytes>,
}

/// A message that is larger than this is not shown in a list of conversations, in bytes.
pub const LAST_BYTES_MAX: usize = 4 << 10;

/// Outcome of a [`super::Write`].
#[derive(Debug)]
pub enum Outcome {
    /// Outcome of [`super::Write::Append`] and [`super::Write::Recall`].
    Appended(Result<Stored, Refusal>),
    /// Outcome of [`super::Write::CreateGroup`], with its event.
    Created(Result<(ConversationId, Option<Delivery>), Refusal>),
    /// Outcome of [`super::Write::Sweep`].
    Swept(Swept),
    /// Outcome of all other writes, with their event.
    Done(Result<Option<Delivery>, Refusal>),
}

impl Outcome {
    /// Nothing was done.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Appended(Err(_)) | Self::Created(Err(_)) | Self::Done(Err(_)))
    }
}

/// Outcome of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    /// When the next sweep has work.
    pub pace: Pace,
    /// Messages that were removed.
    pub removed: u64,
    /// Message that tells the members of a deletion.
    pub told: Option<Stored>,
}

/// When a sweep has more to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    #[default]
    Now,
    /// With the next tick.
    Soon,
    /// All conversations were looked at: some time later.
    Later,
}

/// A durable batch.
#[derive(Debug, Default)]
pub struct Committed {
    /// One per write, in order.
    pub outcomes: Vec<Outcome>,
    /// The inboxes of all appended messages.
    pub recipients: Vec<Recipient>,
}

/// Entry at a position of a user's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A message.
    Message {
        /// Conversation of the message.
        conversation: ConversationId,
        /// Seq of the message.
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
        /// Conversation to pull.
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
    /// Number of messages.
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
