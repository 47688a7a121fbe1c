//! Commands to a [`super::Store`]: writes in batches, logins and reads.
//!
//! alice sends `hi` to bob: at the end of the turn the batch with her [`Write::Append`] is submitted as one
//! [`Command::Commit`]; [`super::Completion::Committed`] follows once the batch is durable.

use super::{ConversationId, DeviceNumber, Entry, LoginChange, Origin, PageLimits, UserId, WhoMayAdd};
use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::im::{self, RelationChange, Role};
use std::num::NonZeroU64;

/// Correlates a command, or a prefetch, with its completion. Chosen by the asker, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub NonZeroU64);

impl Ticket {
    /// The first ticket.
    pub const FIRST: Self = Self(NonZeroU64::MIN);
    /// Ticket of completions that no command has asked for.
    pub const UNASKED: Self = Self(NonZeroU64::MAX);

    /// The ticket after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One command for a store. Every accepted command has exactly one [`super::Completion`].
#[derive(Debug)]
pub enum Command {
    /// Makes a batch durable.
    Commit(Batch),
    /// Registers a login of a device.
    Login(Login),
    /// Reads something that is too large, or too cold, for [`super::Facts`].
    Read(Read),
}

/// Writes that become durable together.
#[derive(Debug)]
pub struct Batch {
    /// Unix time in milliseconds.
    pub now_ms: u64,
    /// The last message id that was given out.
    pub last_id: u64,
    /// Writes in the order of their effect: each is judged on the state that the writes before it left.
    pub writes: Vec<Write>,
}

/// A login of a device, unless the user's [`super::LoginRule`] denies it: then nothing changes. An unknown user, or an unknown device, becomes known, and the user's inbox then waits for the
/// acks of the device.
#[derive(Debug)]
pub struct Login {
    /// Name of the user.
    pub uid: String,
    /// Name of the device.
    pub device: String,
    /// Platform as the client names it.
    pub platform: u32,
    /// Unix time in milliseconds.
    pub now_ms: u64,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    pub issued_s: u64,
}

/// A read that is answered by a completion.
#[derive(Debug)]
pub enum Read {
    /// Reads messages of a conversation, as a reader may see them. Answered by [`super::Completion::Page`].
    Page {
        /// The conversation.
        conversation: ConversationId,
        /// The reader, a member.
        reader: UserId,
        /// First and last seq; at most to the newest.
        range: (u64, u64),
        /// Limits of the page.
        limits: PageLimits,
    },
    /// Lists the conversations of a user, newest membership first. Answered by [`super::Completion::Listing`].
    Conversations {
        /// The user.
        user: UserId,
        /// Id of the conversation after which the list goes on; empty: from the first.
        after: String,
        /// Bytes of entries after which the list is cut.
        bytes: usize,
    },
    /// Reads how far a user's stream goes, and what a device has missed beside it. Answered by
    /// [`super::Completion::Backlog`].
    Backlog {
        /// The user and the device.
        of: Origin,
    },
    /// Reads entries of a user's stream. Answered by [`super::Completion::Stream`].
    Stream {
        /// The user.
        user: UserId,
        /// Entries after this position.
        after: u64,
        /// At most this many entries.
        limit: usize,
        /// Empty list to fill, so that its memory is used again.
        into: Vec<(u64, Entry)>,
    },
    /// Reads profiles by the names of their users; of unknown users, and of users without a profile, none. Answered by
    /// [`super::Completion::Profiles`].
    Profiles {
        /// Names that the facts must cover.
        uids: Vec<String>,
    },
    /// Asks for the presence of users whose sessions are known [elsewhere](super::Whereabouts). Answered by
    /// [`super::Completion::Presences`].
    Presences {
        /// The users.
        users: Vec<UserId>,
    },
}

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
    /// Author of the message.
    pub sender: UserId,
    /// On which device; it is not pushed there.
    pub device: DeviceNumber,
    /// To whom.
    pub target: Target,
    /// True: the message may be stored already. A store that looks up each key does not need it.
    pub is_repeat: bool,
    /// The client's name for it.
    pub key: MessageKey,
    /// The message id.
    pub id: u64,
    /// Time that clients are told, in Unix milliseconds.
    pub time_ms: u64,
    /// Digest of the content; the same key with another digest or target is a conflict.
    pub digest: u64,
    /// An encoded [`moorline_proto::message::client::Push`] without its seq, with
    /// [`SEQ_BYTES_MAX`] of spare room.
    pub body: BytesMut,
}

/// Name of something that is said to users beside all conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TellKey {
    /// The caller's name for it.
    pub key: MessageKey,
    /// Digest of the content; the same key with another digest is a conflict.
    pub digest: u64,
    /// The message id of the event.
    pub id: u64,
}

/// A message that takes another one back.
#[derive(Debug)]
pub struct Recall {
    /// Message that announces the recall; its target is the conversation, its sender recalls.
    pub draft: Draft,
    /// Seq of the message.
    pub seq: u64,
    /// Id of the message.
    pub message_id: u64,
}

/// Spare room that [`seal`] needs.
pub const SEQ_BYTES_MAX: usize = 11;

/// Completes a draft's body with its seq. Protobuf fields may come in any order.
pub fn seal(mut body: BytesMut, seq: u64) -> Bytes {
    put_number(&mut body, 3, seq);
    body.freeze()
}

/// Completes a draft's body with its seq, and with another time than the one that it has: of a field that comes twice, the last
/// one counts.
pub(crate) fn seal_at(mut body: BytesMut, seq: u64, time_ms: Option<u64>) -> Bytes {
    if let Some(time_ms) = time_ms {
        put_number(&mut body, 8, time_ms);
    }
    seal(body, seq)
}

fn put_number(body: &mut BytesMut, field: u8, number: u64) {
    body.put_u8(field << 3); // varint
    prost::encode_length_delimiter(usize::try_from(number).expect("64-bit platform"), body)
        .expect("BytesMut grows");
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
        /// Valid name of the group.
        name: String,
        /// Creator, with the device.
        creator: Origin,
        /// Other members.
        members: Vec<UserId>,
        /// Event for all members.
        event: Bytes,
    },
    /// Invites users to a group that is made or changed by an earlier write: they may join it, also where that takes an
    /// invitation. Members, invited users, and users who have blocked the inviting one are left out, as is everybody if
    /// the inviting user may not add members.
    Invite {
        /// Name of the group.
        group: String,
        /// By whom, on which device.
        by: Origin,
        /// The users.
        users: Vec<UserId>,
        /// Event for the users.
        event: Bytes,
    },
    /// Changes a group as a whole or not at all. Members, and removed users, are notified if anything changed; of
    /// a group that is read by cursor nobody is.
    ChangeGroup {
        /// A group.
        conversation: ConversationId,
        /// By whom, on which device.
        by: Origin,
        /// The change.
        change: GroupChange,
        /// Event for all members.
        event: Bytes,
    },
    /// The user has read everything up to `seq`. The user's other devices are told, and one to one the other user.
    Read {
        /// The conversation.
        conversation: ConversationId,
        /// User, with the device.
        by: Origin,
        /// Up to here, at most to the newest.
        seq: u64,
        /// Event for the receivers.
        event: Bytes,
    },
    /// Ends a group: its members, messages, events and settings go, and its name is nobody's. By the owner, or by the
    /// operator's server. All members are told.
    Dissolve {
        /// A group.
        conversation: ConversationId,
        /// By whom, on which device.
        by: Origin,
        /// Event for all members.
        event: Bytes,
    },
    /// Hides the conversation from the user alone, up to `to`. The user's other devices are told of a change.
    Clear {
        /// The conversation.
        conversation: ConversationId,
        /// User, with the device.
        by: Origin,
        /// Up to here, at most to the newest.
        to: u64,
        /// Event for the receivers.
        event: Bytes,
    },
    /// Changes the relation of one user to another. The user's other devices are notified of a change, and the other user unless it
    /// is a block.
    Relate {
        /// User, with the device.
        by: Origin,
        /// The other user.
        other: UserId,
        /// The change.
        change: RelationChange,
        /// Event for the receivers.
        event: Bytes,
    },
    /// Something is said to a user beside all conversations.
    Tell {
        /// The users.
        users: Vec<UserId>,
        /// The encoded event.
        event: Bytes,
        /// Key of the caller: a user who has the event under it is told nothing. `None`: each call is another one.
        key: Option<TellKey>,
    },
    /// Sets who may make a user a member of a group.
    SetSettings {
        /// The user.
        user: UserId,
        /// The rule.
        who_may_add: WhoMayAdd,
    },
    /// Replaces the profile of a user.
    SetProfile {
        /// The user.
        user: UserId,
        /// The profile, for `Facts::profile`.
        profile: Bytes,
    },
    /// Deletes a user: devices, inbox, relations, memberships, profile, invitations and settings at once; messages with ids
    /// up to `to_id`, and message keys, by later sweeps. The rule for logins, and blocks of others, stay. The user of this
    /// name is a new one from then on.
    DeleteUser {
        /// The user.
        user: UserId,
        /// The last message id that was given out.
        to_id: u64,
        /// Event for those who have a relation to the user.
        event: Bytes,
    },
    /// Sets how long messages of a conversation are kept.
    SetRetention {
        /// The conversation.
        conversation: ConversationId,
        /// In seconds; 0: as `im.retention` says; [`super::KEEP_FOR_EVER`]: for ever.
        keep_s: u32,
    },
    /// Sets how many messages a conversation takes from its members.
    LimitSends {
        /// The conversation.
        conversation: ConversationId,
        /// Messages a minute; 0: it is frozen; `None`: no limit.
        per_minute: Option<u32>,
    },
    /// Removes a bounded piece of what is gone: see [`super::SweepNeed`].
    Sweep(Sweep),
    /// Removes a device of the user. Unknown: no change.
    RemoveDevice {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceNumber,
    },
    /// Changes the logins of a user that are admitted.
    RuleLogins {
        /// The user.
        user: UserId,
        /// The change.
        change: LoginChange,
    },
    /// The device has everything up to this position of its user's stream. May be made durable later
    /// than its outcome says: losing it means that messages are pushed again.
    Acked {
        /// The user.
        user: UserId,
        /// Number of the device; a forgotten device has no effect.
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
        /// The conversation.
        conversation: ConversationId,
        /// Up to here.
        seq: u64,
    },
}

impl Write {
    /// Author, with the device, of a write that names one.
    pub(crate) const fn author(&self) -> Option<Origin> {
        match self {
            Self::CreateGroup { creator: by, .. }
            | Self::Invite { by, .. }
            | Self::ChangeGroup { by, .. }
            | Self::Read { by, .. }
            | Self::Dissolve { by, .. }
            | Self::Clear { by, .. }
            | Self::Relate { by, .. }
            | Self::Confirm { by, .. } => Some(*by),
            Self::Append(draft) | Self::Recall(Recall { draft, .. }) => Some((draft.sender, draft.device)),
            _ => None,
        }
    }
}

/// Clocks of a sweep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    /// Message id of an event that members may be told.
    pub id: u64,
    /// Messages are as old as they are at this Unix time, in milliseconds; 0: none expires.
    pub judged_ms: u64,
    /// Time of the retention clock, to be kept over the end of the process; Unix milliseconds.
    pub clock_ms: u64,
}

/// A change of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// The user becomes a member from the next message on. A member: no change.
    Join,
    /// The user leaves. Not a member: no change. After the owner the administrator, else the member, that
    /// has been in it longest is the owner.
    Leave,
    /// By an administrator or the owner; by any member to add somebody, unless that takes an invitation.
    Edit(GroupEdit),
}

impl GroupChange {
    /// True if the change sets the settings, and nothing else.
    pub(crate) fn is_settings(&self) -> bool {
        let Self::Edit(GroupEdit { add, remove, role, silence, settings }) = self else { return false };
        let others = add.is_empty() && remove.is_empty() && role.is_none() && silence.is_none();
        others && settings.is_some()
    }
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

/// Settings of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSettings {
    /// Title of the group.
    pub title: String,
    /// Notice for the members.
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
