//! Everything on disk: an LSM tree (fjall), one commit with one fsync for whatever waits.
//!
//! ```text
//! try_commit: judge each write, number it ──changes──► committer thread ──fsync──► poll_committed
//!             (names, members, numbers in memory)        one commit for all        readers see it
//!                                                         that wait
//! ```
//!
//! In memory: users, devices, conversations, members, and how far streams and conversations go. On disk, and read
//! from there: messages, keys, inbox entries. What readers see is durable; what is judged is what was numbered, so
//! that batches need not wait for each other.
//!
//! The engine drops everything behind a damaged byte of its journal without a word. So each commit counts, the count
//! goes to a side file about once a second, and a database that has fewer commits than that is refused.

mod committer;
mod conversations;
mod tables;
#[cfg(test)]
mod tests;
mod users;

use super::membership::{Kind, Member};
use super::{
    Committed, ConversationId, Delivery, DeviceCursor, Draft, Entry, Outcome, Page, PageLimits, Recipient,
    Refusal, Store, Stored, Target, UserId, Write, seal,
};
use crate::config::ImConfig;
use crate::im::names::{self, Conversation as Name};
use bytes::Bytes;
use committer::{Committer, Job};
use conversations::{Conversation, Conversations};
use prost::Message;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tables::{Change, ConversationRecord, EntryRecord, KeyRecord, MemberRecord, Tables};
use users::Users;

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The disk says that it has it (fsync).
    #[default]
    Disk,
    /// The system has it: it survives the end of the process, not that of the machine.
    System,
}

/// Why a store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder or the side file.
    #[error("cannot {operation} {}: {cause}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// The database.
    #[error("the store cannot {operation}: {cause}")]
    Engine {
        /// What was tried.
        operation: &'static str,
        /// The engine's word.
        cause: Box<fjall::Error>,
    },
    /// A record that cannot be.
    #[error("the store is damaged: {what}: {problem}; restore it from a copy")]
    Damaged {
        /// Which record.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Commits are missing.
    #[error(
        "the store in {} has lost writes that were acknowledged: {found} commits are there, {known} were made; restore \
         it from a copy, or remove {} to go on without them", folder.display(), side_file.display()
    )]
    Lost {
        /// Where.
        folder: PathBuf,
        /// What says so.
        side_file: PathBuf,
        /// Commits that are there.
        found: u64,
        /// Commits that there were.
        known: u64,
    },
}

impl DiskError {
    fn engine(operation: &'static str) -> impl FnOnce(fjall::Error) -> Self {
        move |cause| Self::Engine { operation, cause: Box::new(cause) }
    }
}

/// See the module.
pub struct Disk {
    tables: Tables,
    committer: Committer,
    users: Users,
    conversations: Conversations,
    /// Keys of batches that are not durable yet.
    new_keys: HashMap<Vec<u8>, KeyRecord>,
    /// Of inbox entries that are not durable yet: their conversations.
    new_entries: HashMap<(UserId, u64), ConversationId>,
    /// Memberships ever.
    memberships: u64,
    /// Of the next batch.
    changes: Vec<Change>,
    window_ms: u64,
    inbox_entries_max: usize,
    group_members_max: usize,
}

/// What a batch changes for readers once it is durable.
#[derive(Debug, Default)]
pub(super) struct Progress {
    messages: Vec<(ConversationId, u64)>,
    entries: Vec<(UserId, u64)>,
    keys: Vec<Vec<u8>>,
}

const SIDE_FILE: &str = "commits";
const DATABASE: &str = "database";

impl Disk {
    /// Opens the store in a folder, which is made if it is not there. `notify` is called by another thread when
    /// something has become durable.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(
        folder: &Path,
        config: &ImConfig,
        durability: Durability,
        notify: impl Fn() + Send + 'static,
    ) -> Result<Self, DiskError> {
        let file_error = |operation, path: &Path| {
            let path = path.to_owned();
            move |cause| DiskError::File { operation, path, cause }
        };
        std::fs::create_dir_all(folder).map_err(file_error("make the folder", folder))?;
        let tables = Tables::open(&folder.join(DATABASE))?;
        let side_file = folder.join(SIDE_FILE);
        let (found, known) = (tables.commits()?, committer::read_side_file(&side_file));
        if found < known {
            return Err(DiskError::Lost { folder: folder.to_owned(), side_file, found, known });
        }
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&side_file);
        let file = open.map_err(file_error("open", &side_file))?;
        let mut users = Users::load(&tables, config)?;
        let (conversations, memberships) =
            Conversations::load(&tables, config.conversations_max, &mut users)?;
        let committer = Committer::start(tables.clone(), durability, file, found, notify)
            .map_err(file_error("start a thread for", folder))?;
        let window_ms = u64::try_from(config.idempotency_window.as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            tables,
            committer,
            users,
            conversations,
            new_keys: HashMap::new(),
            new_entries: HashMap::new(),
            memberships,
            changes: Vec::new(),
            window_ms,
            inbox_entries_max: config.inbox_entries_max,
            group_members_max: config.group_members_max,
        })
    }

    fn put(&mut self, table: &fjall::Keyspace, key: Vec<u8>, value: impl AsRef<[u8]>) {
        let value = Some(value.as_ref().into());
        self.changes.push(Change { table: table.clone(), key, value });
    }

    fn write(&mut self, now_ms: u64, write: Write, batch: &mut Batch) -> Result<Outcome, DiskError> {
        Ok(match write {
            Write::Append(draft) => Outcome::Appended(self.append(now_ms, draft, batch)?),
            Write::CreateGroup { name, creator, members } => {
                Outcome::Group(self.create_group(&name, creator, &members))
            }
            Write::Join { conversation, user } => Outcome::Group(self.join(conversation, user)),
            Write::Leave { conversation, user } => Outcome::Group(self.leave(conversation, user)),
            Write::Acked { user, device, position } => {
                self.users.on_acked(user, device, position, &self.tables, &mut self.changes);
                Outcome::Acked
            }
        })
    }

    fn append(
        &mut self,
        now_ms: u64,
        draft: Draft,
        batch: &mut Batch,
    ) -> Result<Result<Stored, Refusal>, DiskError> {
        let known_target = match draft.target {
            Target::User(peer) => self.conversations.one_to_one(draft.sender, peer),
            Target::Conversation(conversation) => Some(conversation),
        };
        let key = tables::key_of(draft.sender.0, draft.key);
        let is_young = |record: &&KeyRecord| record.at_ms.saturating_add(self.window_ms) > now_ms;
        let known = match self.new_keys.get(&key).filter(is_young) {
            Some(known) => Some(*known),
            None => self.tables.key(&key, now_ms, self.window_ms)?,
        };
        if let Some(KeyRecord { conversation, seq, id, digest, .. }) = known {
            let conversation = ConversationId(conversation);
            let is_same = digest == draft.digest && known_target == Some(conversation);
            let same = Stored { conversation, seq, id, delivery: None };
            return Ok(if is_same { Ok(same) } else { Err(Refusal::Conflict) });
        }
        let conversation = match (known_target, draft.target) {
            (Some(conversation), _) => conversation,
            (None, Target::User(peer)) => match self.open_one_to_one(draft.sender, peer) {
                Ok(conversation) => conversation,
                Err(refusal) => return Ok(Err(refusal)),
            },
            (None, Target::Conversation(_)) => return Ok(Err(Refusal::NotFound)),
        };
        let place = self.conversations.get_mut(conversation);
        if place.member(draft.sender).is_none() {
            return Ok(Err(Refusal::NotMember));
        }
        place.numbered += 1;
        let seq = place.numbered;
        let body = seal(draft.body, seq);
        let messages = self.tables.messages.clone();
        self.put(&messages, tables::place(conversation.0, seq), &body);
        batch.progress.messages.push((conversation, seq));
        let record = KeyRecord {
            conversation: conversation.0,
            seq,
            id: draft.id,
            digest: draft.digest,
            at_ms: now_ms,
        };
        let keys = self.tables.keys_of(now_ms, self.window_ms)?;
        self.put(&keys, key.clone(), record.encode_to_vec());
        self.new_keys.insert(key.clone(), record);
        batch.progress.keys.push(key);
        let first = batch.recipients.len();
        let members: Vec<UserId> =
            self.conversations.get(conversation).members.iter().map(|member| member.user).collect();
        for user in members {
            let origin = (user == draft.sender).then_some(draft.device);
            if let Some(position) = self.deliver(user, (conversation, seq), origin)? {
                batch.recipients.push(Recipient { user, position });
                batch.progress.entries.push((user, position));
            }
        }
        let delivery = Some(Delivery { body, recipients: first..batch.recipients.len() });
        Ok(Ok(Stored { conversation, seq, id: draft.id, delivery }))
    }

    /// Puts an entry into an inbox; `None` if its only device wrote it.
    fn deliver(
        &mut self,
        user: UserId,
        (conversation, seq): (ConversationId, u64),
        origin: Option<super::DeviceNumber>,
    ) -> Result<Option<u64>, DiskError> {
        if origin.is_some_and(|origin| self.users.get(user).is_only(origin)) {
            return Ok(None);
        }
        while self.users.get(user).held() >= self.inbox_entries_max as u64 {
            let oldest = self.users.get(user).trimmed + 1;
            let of = match self.new_entries.get(&(user, oldest)) {
                Some(conversation) => *conversation,
                None => ConversationId(self.entry(user, oldest)?.conversation),
            };
            self.users.drop_oldest(user, of, &self.tables, &mut self.changes);
        }
        let position = self.users.number(user);
        let record = EntryRecord { conversation: conversation.0, seq, origin: origin.map(|origin| origin.0) };
        let streams = self.tables.streams.clone();
        self.put(&streams, tables::place(user.0, position), record.encode_to_vec());
        self.new_entries.insert((user, position), conversation);
        Ok(Some(position))
    }

    fn entry(&self, user: UserId, position: u64) -> Result<EntryRecord, DiskError> {
        let value = self.tables.streams.get(tables::place(user.0, position));
        let value = value.map_err(DiskError::engine("read an inbox"))?;
        let missing = || DiskError::Damaged { what: "an inbox", problem: format!("no entry {position}") };
        tables::decode("an entry", &value.ok_or_else(missing)?)
    }

    fn add_member(&mut self, conversation: ConversationId, user: UserId, visible_from: u64) {
        self.memberships += 1;
        let record = MemberRecord { visible_from, since: self.memberships };
        let members = self.tables.members.clone();
        self.put(&members, tables::pair(conversation.0, user.0), record.encode_to_vec());
        self.conversations.get_mut(conversation).insert(Member { user, visible_from });
        self.users.get_mut(user).conversations.push(conversation);
    }

    fn open_conversation(&mut self, kind: Kind, members: &[UserId]) -> Result<ConversationId, Refusal> {
        let record = match &kind {
            Kind::OneToOne(a, b) => ConversationRecord { first: a.0, second: b.0, group: None },
            Kind::Group { name, creator } => {
                ConversationRecord { first: creator.0, second: 0, group: Some(name.to_string()) }
            }
        };
        let conversation = self.conversations.open(kind).ok_or(Refusal::StoreFull)?;
        let conversations = self.tables.conversations.clone();
        self.put(&conversations, conversation.0.to_be_bytes().to_vec(), record.encode_to_vec());
        members.iter().for_each(|user| self.add_member(conversation, *user, 1));
        Ok(conversation)
    }

    fn open_one_to_one(&mut self, a: UserId, b: UserId) -> Result<ConversationId, Refusal> {
        let (first, second) = (a.min(b), a.max(b));
        let members = if first == second { &[first][..] } else { &[first, second][..] };
        self.open_conversation(Kind::OneToOne(first, second), members)
    }

    fn create_group(
        &mut self,
        name: &str,
        creator: UserId,
        members: &[UserId],
    ) -> Result<ConversationId, Refusal> {
        if let Some(known) = self.conversations.group(name) {
            let is_same = self.conversations.get(known).kind.creator() == Some(creator);
            return if is_same { Ok(known) } else { Err(Refusal::Conflict) };
        }
        let mut all: Vec<_> = members.iter().copied().chain([creator]).collect();
        all.sort_unstable();
        all.dedup();
        if all.len() > self.group_members_max {
            return Err(Refusal::GroupFull);
        }
        self.open_conversation(Kind::Group { name: name.into(), creator }, &all)
    }

    fn join(&mut self, conversation: ConversationId, user: UserId) -> Result<ConversationId, Refusal> {
        let place = self.group(conversation)?;
        if place.member(user).is_some() {
            return Ok(conversation);
        }
        if place.members.len() >= self.group_members_max {
            return Err(Refusal::GroupFull);
        }
        let visible_from = place.numbered + 1;
        self.add_member(conversation, user, visible_from);
        Ok(conversation)
    }

    fn leave(&mut self, conversation: ConversationId, user: UserId) -> Result<ConversationId, Refusal> {
        if self.group(conversation)?.member(user).is_some() {
            self.conversations.get_mut(conversation).remove(user);
            self.users.get_mut(user).conversations.retain(|it| *it != conversation);
            let (table, key) = (self.tables.members.clone(), tables::pair(conversation.0, user.0));
            self.changes.push(Change { table, key, value: None });
        }
        Ok(conversation)
    }

    fn group(&self, conversation: ConversationId) -> Result<&Conversation, Refusal> {
        let place = self.conversations.get(conversation);
        if matches!(place.kind, Kind::Group { .. }) { Ok(place) } else { Err(Refusal::Denied) }
    }

    fn message(&self, conversation: u32, seq: u64) -> Option<Bytes> {
        match self.tables.messages.get(tables::place(conversation, seq)) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => {
                tracing::error!(%error, conversation, seq, "a message cannot be read");
                None
            }
        }
    }
}

/// What a batch comes to.
#[derive(Debug, Default)]
struct Batch {
    recipients: Vec<Recipient>,
    progress: Progress,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("users", &self.users)
            .field("conversations", &self.conversations)
            .finish_non_exhaustive()
    }
}

impl Store for Disk {
    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.users.try_intern(uid, &self.tables, &mut self.changes)
    }

    fn uid(&self, user: UserId) -> &str {
        &self.users.get(user).uid
    }

    fn login(&mut self, user: UserId, device: &str) -> DeviceCursor {
        self.users.login(user, device, &self.tables, &mut self.changes)
    }

    fn try_commit(&mut self, now_ms: u64, batch: Vec<Write>) -> Result<(), Vec<Write>> {
        // What was numbered cannot be taken back, so there must be room before anything is.
        if self.committer.jobs.is_full() || self.committer.is_broken.load(Ordering::SeqCst) {
            return Err(batch);
        }
        let (mut outcomes, mut result) = (Vec::with_capacity(batch.len()), Batch::default());
        for write in batch {
            match self.write(now_ms, write, &mut result) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    // Numbers were given that will not be stored: nothing more may be.
                    tracing::error!(%error, "the store cannot be read; restart the backend");
                    self.committer.is_broken.store(true, Ordering::SeqCst);
                    return Err(Vec::new());
                }
            }
        }
        let committed = Committed { outcomes, recipients: result.recipients };
        let changes = std::mem::take(&mut self.changes);
        let job = Job { changes, committed, progress: result.progress };
        if self.committer.jobs.try_send(job).is_err() {
            self.committer.is_broken.store(true, Ordering::SeqCst);
            return Err(Vec::new());
        }
        Ok(())
    }

    fn poll_committed(&mut self) -> Option<Committed> {
        let (committed, progress) = self.committer.done.try_recv().ok()?;
        for (conversation, seq) in progress.messages {
            self.conversations.get_mut(conversation).durable = seq;
        }
        for (user, position) in progress.entries {
            self.users.get_mut(user).durable_end = position;
            self.new_entries.remove(&(user, position));
        }
        progress.keys.iter().for_each(|key| _ = self.new_keys.remove(key));
        Some(committed)
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        match Name::parse(id)? {
            Name::Group(name) => self.conversations.group(name),
            Name::OneToOne(a, b) => self.conversations.one_to_one(self.users.find(a)?, self.users.find(b)?),
        }
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        match &self.conversations.get(conversation).kind {
            Kind::OneToOne(a, b) => names::write_one_to_one(into, self.uid(*a), self.uid(*b)),
            Kind::Group { name, .. } => {
                into.push_str("group:");
                into.push_str(name);
            }
        }
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        matches!(self.conversations.get(conversation).kind, Kind::Group { .. })
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.conversations.get(conversation).durable
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.conversations.get(conversation).members.len()
    }

    fn members(&self, conversation: ConversationId, asker: UserId) -> Result<Vec<UserId>, Refusal> {
        let place = self.conversations.get(conversation);
        place.member(asker).ok_or(Refusal::NotMember)?;
        Ok(place.members.iter().map(|member| member.user).collect())
    }

    fn conversations(&self, user: UserId) -> Vec<ConversationId> {
        self.users.get(user).conversations.clone()
    }

    fn read_range(
        &self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal> {
        let place = self.conversations.get(conversation);
        let member = place.member(reader).ok_or(Refusal::NotMember)?;
        let (from, to) = (range.0.max(1), range.1.min(place.durable));
        let mut page = Page { latest: place.durable, ..Page::default() };
        let first = from.max(member.visible_from);
        if from < first && from <= to {
            page.voids.push((from, to.min(first - 1)));
        }
        if first > to {
            return Ok(page);
        }
        let (mut bytes, mut next) = (0, first);
        let keys = tables::place(conversation.0, first)..=tables::place(conversation.0, to);
        for entry in self.tables.messages.range(keys) {
            let read = entry.into_inner().map_err(DiskError::engine("read a message"));
            let read = read.and_then(|(key, value)| Ok((tables::numbers(&key)?.1, value)));
            let (seq, value) = match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, "history cannot be read");
                    page.more = true;
                    break;
                }
            };
            if next < seq {
                page.voids.push((next, seq - 1));
            }
            bytes += value.len();
            let is_full = page.messages.len() >= limits.messages || bytes > limits.bytes;
            if is_full && !page.messages.is_empty() {
                page.more = true;
                break;
            }
            page.messages.push(Bytes::copy_from_slice(&value));
            next = seq + 1;
        }
        Ok(page)
    }

    fn read_stream(&self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>) {
        let state = self.users.get(user);
        let dropped = state.dropped_after(after).take(limit);
        into.extend(dropped.map(|(position, conversation)| (position, Entry::Dropped { conversation })));
        let first = after.max(state.trimmed) + 1;
        if first > state.durable_end {
            return;
        }
        let keys = tables::place(user.0, first)..=tables::place(user.0, state.durable_end);
        for entry in self.tables.streams.range(keys) {
            if into.len() >= limit {
                return;
            }
            let read = entry.into_inner().map_err(DiskError::engine("read an inbox"));
            let read = read.and_then(|(key, value)| {
                Ok((tables::numbers(&key)?.1, tables::decode::<EntryRecord>("an entry", &value)?))
            });
            match read {
                Ok((position, EntryRecord { conversation, seq, origin })) => {
                    let origin = origin.map(super::DeviceNumber);
                    let entry = match self.message(conversation, seq) {
                        Some(body) => {
                            Entry::Message { conversation: ConversationId(conversation), body, origin }
                        }
                        None => Entry::Dropped { conversation: ConversationId(conversation) },
                    };
                    into.push((position, entry));
                }
                Err(error) => return tracing::error!(%error, "an inbox cannot be read"),
            }
        }
    }

    fn stream_end(&self, user: UserId) -> u64 {
        self.users.get(user).durable_end
    }
}
