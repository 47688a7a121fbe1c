//! The part of an embedded store that is behind the [`Engine`] trait: messages, keys, inbox entries, profiles.

use crate::im::store::directory::{Changed, Directory};
use crate::im::store::dropped::Place;
use crate::im::store::{Committed, ConversationId, DeviceNumber, UserId};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

/// The first result of a message key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub(in crate::im::store) conversation: ConversationId,
    pub(in crate::im::store) seq: u64,
    pub(in crate::im::store) id: u64,
    pub(in crate::im::store) time_ms: u64,
    pub(in crate::im::store) digest: u64,
}

/// Entry of an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    pub(in crate::im::store) content: Content,
    /// The user's own device that it comes from.
    pub(in crate::im::store) origin: Option<DeviceNumber>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::im::store) enum Content {
    Message(ConversationId, u64),
    Event(Bytes),
    /// An event that is stored once for all who are told of it: whose log of events, and its number there.
    Shared(ConversationId, u64),
    /// Something that is damaged: whoever it was for has to ask.
    Lost,
}

/// In the place of a conversation: the log of events that belong to none; and where things that happened were dropped from an inbox.
pub(in crate::im::store) const EVENTS: ConversationId = ConversationId::of(u32::MAX);

impl Content {
    pub(in crate::im::store) const fn place(&self) -> Place {
        match self {
            Self::Message(conversation, seq) => (*conversation, *seq),
            Self::Event(_) | Self::Shared(..) | Self::Lost => (EVENTS, 0),
        }
    }
}

/// Changes of a batch for readers, once it is durable.
#[derive(Debug, Default)]
pub struct Progress {
    pub(in crate::im::store) messages: Vec<(ConversationId, u64)>,
    pub(in crate::im::store) entries: Vec<(UserId, u64)>,
    /// Deleted users.
    pub(in crate::im::store) deleted: Vec<UserId>,
}

/// The time of a store's last commit.
pub(in crate::im::store) const AT_LAST: u64 = u64::MAX;

/// Storage of messages, keys, inbox entries and profiles, with their durability.
pub trait Engine {
    /// Reason why it cannot be read.
    type Error: Display;

    /// Name that no other store has.
    fn name(&self) -> Bytes;

    /// A key that is not older than the window.
    fn key(&mut self, now_ms: u64, user: UserId, key: MessageKey) -> Result<Option<Known>, Self::Error>;
    /// Remembers a key.
    fn put_key(
        &mut self,
        now_ms: u64,
        user: UserId,
        key: MessageKey,
        known: Known,
    ) -> Result<(), Self::Error>;
    /// The next message of a conversation.
    fn put_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes);
    /// Another one in the place of an old one.
    fn replace_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes);
    /// Leaves an empty row in the place of a message.
    fn erase_message(&mut self, conversation: ConversationId, seq: u64);
    /// Removes the oldest messages of a conversation, by rising seq, with the empty rows between them.
    fn remove_messages(&mut self, conversation: ConversationId, seqs: &[u64]);
    /// `None`: it is gone.
    fn message(&self, conversation: ConversationId, seq: u64) -> Option<Bytes>;
    /// True if the message was erased.
    fn is_erased(&self, conversation: ConversationId, seq: u64) -> bool;
    /// Those that are there, by rising seq, until `each` says false; of an erased one an empty row. False: some could not be
    /// read.
    fn messages(
        &self,
        conversation: ConversationId,
        seqs: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, Bytes) -> bool,
    ) -> bool;
    /// The next entry of an inbox.
    fn put_entry(&mut self, user: UserId, position: u64, entry: StreamEntry);
    /// They are not needed any more.
    fn remove_entries(&mut self, user: UserId, positions: Range<u64>);
    /// Meaning of a stored entry.
    fn place_of(&self, user: UserId, position: u64) -> Result<Place, Self::Error>;
    /// Those that are there, by rising position, until `each` says false. False: the next one could not be read.
    fn entries(
        &self,
        user: UserId,
        positions: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, StreamEntry) -> bool,
    ) -> bool;
    /// The next event of a log.
    fn put_event(&mut self, log: ConversationId, number: u64, body: &Bytes);
    /// Removes an event that is not needed any more; it may be gone.
    fn remove_event(&mut self, log: ConversationId, number: u64);
    /// `None`: it is gone.
    fn event(&self, log: ConversationId, number: u64) -> Result<Option<Bytes>, Self::Error>;
    /// Instead of an earlier one.
    fn put_profile(&mut self, user: UserId, profile: Bytes);
    /// There is none any more.
    fn remove_profile(&mut self, user: UserId);
    /// Removes keys of a user whose messages have ids up to `to_id`, at most `limit`. True: there may be more.
    fn remove_keys(&mut self, user: UserId, to_id: u64, limit: usize) -> Result<bool, Self::Error>;
    /// A profile.
    fn profile(&self, user: UserId) -> Option<Bytes>;
    /// True if a batch may be begun.
    fn is_ready(&self) -> bool;
    /// Nothing may become durable any more.
    fn give_up(&mut self);
    /// Nothing will.
    fn is_broken(&self) -> bool;
    /// See [`Counts`].
    fn commits_and_stalls(&self) -> (u64, u64);
    /// Makes durable what was put since the last call, and what is changed in the directory. False: it never will be. At
    /// [`AT_LAST`] no other commit follows.
    fn commit(
        &mut self,
        now_ms: u64,
        directory: &Directory,
        changed: Vec<Changed>,
        done: (Committed, Progress),
    ) -> bool;
    /// The next batch that is durable.
    fn poll(&mut self) -> Option<(Committed, Progress)>;
}
