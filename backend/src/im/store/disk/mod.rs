//! Everything on disk: an LSM tree (fjall), one commit with one fsync for whatever waits.
//!
//! ```text
//! try_commit: judge each write, number it ──changes──► committer thread ──fsync──► poll_committed
//!             (names, members, numbers in memory)        one commit for all        readers see it
//!                                                         that wait
//! ```
//!
//! In memory: users, devices, conversations, members, relations, and how far streams and conversations go. On disk,
//! and read from there: messages, keys, inbox entries, profiles.
//!
//! The engine drops everything behind a damaged byte of its journal without a word, or refuses a batch that a power cut
//! left incomplete. So each commit counts and is [marked](mark) with its place in the journal before it is acknowledged,
//! and the journals are [judged](tail) before the engine opens them: an incomplete end is cut off, damage is refused.
//! Without the mark the store goes on without what it lost, behind every seq that was given ([`high_water`]).
//!
//! Example: ann's message is commit 41. It is written to the journal, synced, marked, and then answered OK. The power
//! goes while commit 42 is written: the next start finds 41 up to the mark, and cuts off what there is of 42.

mod backup;
mod blame;
mod check;
mod committer;
mod compact;
mod error;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod generation;
mod high_water;
mod identity;
mod journal;
mod journals;
mod lived;
mod load;
mod lock;
mod mark;
mod memtables;
mod open;
mod renew;
mod rows;
#[cfg(any(test, fuzzing))]
pub(in crate::im) mod scratch;
mod snapshot;
mod stream_tails;
mod sync;
mod tables;
mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod whole;
mod zeros;

use super::directory::{Changed, Directory};
use super::dropped::Place;
use super::embedded::{AT_LAST, Content, Engine, EngineStore, Known, Progress, StreamEntry};
use super::{Committed, ConversationId, DeviceNumber, UserId};
use crate::config::ImConfig;
use bytes::Bytes;
use committer::{Committer, Job};
pub use error::DiskError;
use high_water::{HighWater, HighWaterFile};
use lived::Lived;
use lock::Lock;
use memtables::Memtables;
use moorline_proto::ids::MessageKey;
use prost::Message;
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stream_tails::StreamTails;
use tables::{Change, EntryRecord, KeyRecord, Tables};
pub use verify::Verified;
pub use whole::Work;

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The disk says that it has it (fsync).
    #[default]
    Disk,
    /// The system has it: it survives the end of the process, not that of the machine.
    System,
}

/// See the module.
pub type Disk = EngineStore<DiskEngine>;

/// Messages, keys, inboxes and profiles on disk.
pub struct DiskEngine {
    tables: Tables,
    committer: Committer,
    memtables: Memtables,
    /// Behind the threads: dropped after them.
    _lock: Option<Arc<Lock>>,
    /// Keys of batches that are not durable yet.
    new_keys: HashMap<Vec<u8>, KeyRecord>,
    /// Inbox entries that are not durable yet.
    new_entries: HashMap<(UserId, u64), Place>,
    /// Changes of the next batch.
    changes: Vec<Change>,
    keys: Vec<Vec<u8>>,
    tails: StreamTails,
    high_water: HighWaterFile,
    /// High water marks of the next batch.
    new_high_water: Vec<HighWater>,
    /// Folder in which a table for the next batch was made; `None`: none was made.
    new_in: Option<PathBuf>,
    window_ms: u64,
    lived: Lived,
    /// Time of the retention clock as written.
    retention_ms: u64,
    /// Name of the store.
    name: Bytes,
}

const SIDE_FILE: &str = "commits";
const HIGH_WATER: &str = "sequences";
const DATABASE: &str = "database";

impl DiskEngine {
    fn new(
        tables: Tables,
        (committer, memtables): (Committer, Memtables),
        lock: Option<Arc<Lock>>,
        tails: StreamTails,
        high_water: HighWaterFile,
        (config, lived): (&ImConfig, Lived),
        name: Bytes,
    ) -> Self {
        let window_ms = u64::try_from(config.idempotency_window.as_millis()).unwrap_or(u64::MAX);
        Self {
            tables,
            committer,
            memtables,
            _lock: lock,
            new_keys: HashMap::new(),
            new_entries: HashMap::new(),
            changes: Vec::new(),
            keys: Vec::new(),
            tails,
            high_water,
            new_high_water: Vec::new(),
            new_in: None,
            window_ms,
            lived,
            retention_ms: 0,
            name,
        }
    }

    fn put(&mut self, table: &fjall::Keyspace, key: Vec<u8>, value: impl AsRef<[u8]>) {
        self.changes.push(Change::put(table, key, value));
    }
}

impl Engine for DiskEngine {
    type Error = DiskError;

    fn name(&self) -> Bytes {
        self.name.clone()
    }

    fn key(&mut self, now_ms: u64, user: UserId, key: MessageKey) -> Result<Option<Known>, DiskError> {
        let (key, now_ms) = (tables::key_of(user.index(), key), self.lived.at(now_ms));
        let is_young = |record: &&KeyRecord| record.at_ms.saturating_add(self.window_ms) > now_ms;
        let record = match self.new_keys.get(&key).filter(is_young) {
            Some(known) => Some(*known),
            None => self.tables.key(&key, now_ms, self.window_ms)?,
        };
        Ok(record.map(|KeyRecord { conversation, seq, id, digest, time_ms, .. }| Known {
            conversation: ConversationId::of(conversation),
            seq,
            id,
            time_ms: if time_ms == 0 { crate::im::time_ms(id) } else { time_ms },
            digest,
        }))
    }

    fn put_key(&mut self, now_ms: u64, user: UserId, key: MessageKey, known: Known) -> Result<(), DiskError> {
        let (key, now_ms) = (tables::key_of(user.index(), key), self.lived.at(now_ms));
        let Known { conversation, seq, id, time_ms, digest } = known;
        let record =
            KeyRecord { conversation: conversation.index(), seq, id, digest, at_ms: now_ms, time_ms };
        let before = self.tables.days();
        let table = self.tables.keys_of(now_ms, self.window_ms)?;
        let days = self.tables.days();
        if days != before {
            self.memtables.watch(self.tables.busy());
            self.new_in = table.path().parent().map(Path::to_owned);
            let end = days.map_or(0, |(_, newest)| newest + 1).to_be_bytes();
            self.changes.push(Change::put(&self.tables.meta, tables::KEYS_END.to_vec(), end));
        }
        self.put(&table, key.clone(), record.encode_to_vec());
        self.new_keys.insert(key.clone(), record);
        self.keys.push(key);
        Ok(())
    }

    fn put_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes) {
        self.new_high_water.extend(self.high_water.raise(conversation, seq));
        let key = tables::place(conversation.index(), seq);
        self.changes.push(Change::put(&self.tables.messages, key, body));
    }

    fn replace_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes) {
        self.put_message(conversation, seq, body);
    }

    fn erase_message(&mut self, conversation: ConversationId, seq: u64) {
        let key = tables::place(conversation.index(), seq);
        self.changes.push(Change::put(&self.tables.messages, key, []));
    }

    fn remove_messages(&mut self, conversation: ConversationId, seqs: &[u64]) {
        let remove =
            |seq: &u64| Change::remove(&self.tables.messages, tables::place(conversation.index(), *seq));
        self.changes.extend(seqs.iter().map(remove));
    }

    fn message(&self, conversation: ConversationId, seq: u64) -> Option<Bytes> {
        match self.tables.messages.get(tables::place(conversation.index(), seq)) {
            Ok(value) => value.filter(|it| !it.is_empty()).map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => {
                tracing::error!(%error, conversation = conversation.index(), seq, "a message cannot be read");
                None
            }
        }
    }

    fn is_erased(&self, conversation: ConversationId, seq: u64) -> bool {
        let value = self.tables.messages.get(tables::place(conversation.index(), seq));
        value.is_ok_and(|value| value.is_some_and(|value| value.is_empty()))
    }

    fn messages(
        &self,
        conversation: ConversationId,
        seqs: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, Bytes) -> bool,
    ) -> bool {
        let keys = tables::place(conversation.index(), *seqs.start())
            ..=tables::place(conversation.index(), *seqs.end());
        for entry in self.tables.messages.range(keys) {
            let read = entry.into_inner().map_err(DiskError::engine("read a message"));
            match read.and_then(|(key, value)| Ok((tables::numbers(&key)?.1, value))) {
                Ok((seq, value)) => {
                    if !each(seq, Bytes::copy_from_slice(&value)) {
                        break;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, conversation = conversation.index(), from = seqs.start(), "history cannot be read");
                    return false;
                }
            }
        }
        true
    }

    fn put_entry(&mut self, user: UserId, position: u64, StreamEntry { content, origin }: StreamEntry) {
        self.new_entries.insert((user, position), content.place());
        let origin = origin.map(|origin| origin.0);
        let record = match content {
            Content::Message(conversation, seq) => {
                EntryRecord { conversation: conversation.index(), seq, origin, ..EntryRecord::default() }
            }
            Content::Event(event) => EntryRecord { origin, event: Some(event), ..EntryRecord::default() },
            Content::Shared(log, number) => EntryRecord {
                conversation: log.index(),
                origin,
                shared: Some(number),
                ..EntryRecord::default()
            },
            Content::Lost => unreachable!("nobody writes what is damaged"),
        };
        let key = tables::place(user.index(), position);
        self.changes.push(Change::put(&self.tables.streams, key, record.encode_to_vec()));
    }

    fn remove_entries(&mut self, user: UserId, positions: Range<u64>) {
        let removed = positions
            .map(|position| Change::remove(&self.tables.streams, tables::place(user.index(), position)));
        self.changes.extend(removed);
    }

    fn put_event(&mut self, log: ConversationId, number: u64, body: &Bytes) {
        self.changes.push(Change::put(&self.tables.events, tables::place(log.index(), number), body));
    }

    fn remove_event(&mut self, log: ConversationId, number: u64) {
        self.changes.push(Change::remove(&self.tables.events, tables::place(log.index(), number)));
    }

    fn event(&self, log: ConversationId, number: u64) -> Result<Option<Bytes>, DiskError> {
        let value = self.tables.events.get(tables::place(log.index(), number));
        let value = value.map_err(DiskError::engine("read an event"))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn place_of(&self, user: UserId, position: u64) -> Result<Place, DiskError> {
        if let Some(place) = self.new_entries.get(&(user, position)) {
            return Ok(*place);
        }
        let value = self.tables.streams.get(tables::place(user.index(), position));
        let value = value.map_err(DiskError::engine("read an inbox"))?;
        let missing = || DiskError::Damaged { what: "an inbox", problem: format!("no entry {position}") };
        let record = value.ok_or_else(missing).and_then(|value| tables::decode("an entry", &value));
        match record {
            Ok(record) => Ok(content(record).place()),
            Err(error) => {
                tracing::error!(%error, user = user.index(), position, "an entry of an inbox is damaged");
                Ok(Content::Lost.place())
            }
        }
    }

    fn entries(
        &self,
        user: UserId,
        positions: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, StreamEntry) -> bool,
    ) -> bool {
        let keys =
            tables::place(user.index(), *positions.start())..=tables::place(user.index(), *positions.end());
        for entry in self.tables.streams.range(keys) {
            let read = entry.into_inner().map_err(DiskError::engine("read an inbox"));
            let (position, value) = match read.and_then(|(key, value)| Ok((tables::numbers(&key)?.1, value)))
            {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, user = user.index(), from = positions.start(), "an inbox cannot be read");
                    return false;
                }
            };
            let entry = match tables::decode::<EntryRecord>("an entry", &value) {
                Ok(record) => {
                    StreamEntry { origin: record.origin.map(DeviceNumber), content: content(record) }
                }
                Err(error) => {
                    tracing::error!(%error, user = user.index(), position, "an entry of an inbox is damaged");
                    StreamEntry { origin: None, content: Content::Lost }
                }
            };
            if !each(position, entry) {
                break;
            }
        }
        true
    }

    fn put_profile(&mut self, user: UserId, profile: Bytes) {
        let key = user.index().to_be_bytes().to_vec();
        self.changes.push(Change::put(&self.tables.profiles, key, profile));
    }

    fn remove_profile(&mut self, user: UserId) {
        self.changes.push(Change::remove(&self.tables.profiles, user.index().to_be_bytes().to_vec()));
    }

    fn remove_keys(&mut self, user: UserId, to_id: u64, limit: usize) -> Result<bool, DiskError> {
        let (removed, has_more) = self.tables.keys_up_to(user.index(), to_id, limit)?;
        self.changes.extend(removed);
        Ok(has_more)
    }

    fn profile(&self, user: UserId) -> Option<Bytes> {
        match self.tables.profiles.get(user.index().to_be_bytes()) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => {
                tracing::error!(%error, user = user.index(), "a profile cannot be read");
                None
            }
        }
    }

    fn is_ready(&self) -> bool {
        !self.committer.jobs.is_full() && !self.is_broken()
    }

    fn is_broken(&self) -> bool {
        self.committer.is_broken.load(Ordering::SeqCst)
    }

    fn give_up(&mut self) {
        self.committer.marks.distrust();
        self.committer.is_broken.store(true, Ordering::SeqCst);
    }

    fn commits_and_stalls(&self) -> (u64, u64) {
        let counters = &self.committer.counters;
        (counters.commits.load(Ordering::Relaxed), counters.stalls.load(Ordering::Relaxed))
    }

    fn commit(
        &mut self,
        now_ms: u64,
        directory: &Directory,
        mut changed: Vec<Changed>,
        done: (Committed, Progress),
    ) -> bool {
        changed.sort_unstable();
        changed.dedup();
        self.changes.extend(changed.into_iter().map(|change| rows::change(&self.tables, directory, change)));
        self.tails.note(now_ms, &done.1, directory, &self.tables, &mut self.changes);
        if now_ms == AT_LAST {
            self.tails.write_all(directory, &self.tables, &mut self.changes);
        }
        if !self.changes.is_empty() {
            let last_id = directory.last_id.to_be_bytes();
            self.changes.push(Change::put(&self.tables.meta, tables::LAST_ID.to_vec(), last_id));
            let lived = self.lived.last().to_be_bytes();
            self.changes.push(Change::put(&self.tables.meta, tables::LIVED.to_vec(), lived));
            if self.retention_ms != directory.retention_ms {
                self.retention_ms = directory.retention_ms;
                let clock = self.retention_ms.to_be_bytes();
                self.changes.push(Change::put(&self.tables.meta, tables::RETENTION.to_vec(), clock));
            }
        }
        let changes = std::mem::take(&mut self.changes);
        let (keys, new_high_water) =
            (std::mem::take(&mut self.keys), std::mem::take(&mut self.new_high_water));
        let job = Job { changes, done, keys, new_high_water, new_in: self.new_in.take() };
        let is_taken = self.committer.jobs.try_send(job).is_ok();
        if !is_taken {
            self.committer.is_broken.store(true, Ordering::SeqCst);
        }
        is_taken
    }

    fn poll(&mut self) -> Option<(Committed, Progress)> {
        let Job { done, keys, .. } = self.committer.done.try_recv().ok()?;
        keys.iter().for_each(|key| _ = self.new_keys.remove(key));
        done.1.entries.iter().for_each(|entry| _ = self.new_entries.remove(entry));
        Some(done)
    }
}

fn content(record: EntryRecord) -> Content {
    match (record.event, record.shared) {
        (Some(event), _) => Content::Event(event),
        (None, Some(number)) => Content::Shared(ConversationId::of(record.conversation), number),
        (None, None) => Content::Message(ConversationId::of(record.conversation), record.seq),
    }
}
