//! The tables of the database: their keys, their records, and reading all of the small ones.
//!
//! | table | key, numbers big-endian | value |
//! |---|---|---|
//! | `users` | user | [`UserRecord`] |
//! | `devices` | user, device | [`DeviceRecord`] |
//! | `confirmed` | user, device, conversation | seq, 8 bytes |
//! | `profiles` | user | as it was given |
//! | `relations` | user, other user | [`RelationRecord`] |
//! | `inboxes` | user | [`InboxRecord`], once entries were trimmed |
//! | `conversations` | conversation | [`ConversationRecord`] |
//! | `members` | conversation, user | [`MemberRecord`] |
//! | `messages` | conversation, seq | the encoded push; nothing: it was erased |
//! | `uncounted` | conversation, seq | up to which seq nothing counts as unread, 8 bytes; nothing: this one |
//! | `streams` | user, position | [`EntryRecord`] |
//! | `events` | conversation, number; of no conversation 2^32 - 1, number | the encoded push, which inboxes name |
//! | `erasures` | user, conversation | [`ErasureRecord`] of a deleted user |
//! | `keys-DAY` | sender, message key | [`KeyRecord`]; a day's table is dropped whole |
//! | `ends`, `touched` | see `ends` | |
//! | `meta` | `commits`, `last_id`, `keys_end`, `lived_ms`, `retention`, `format` | batches that were committed, the last message id, the day after the newest with keys, the store's life, the time of the retention clock, [`FORMAT_NOW`], 8 bytes each |

use super::{DiskError, blame};
use crate::im::store::{Friendship, Role, WhoMayAdd};
use bytes::Bytes;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, UserValue};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::im;
use prost::Message;
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Memory of one table before it is written out; the journal is short then, and opening quick.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Journals together, as the engine would like them. It lets them grow, and memory with them, when its threads fall behind.
pub(super) const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// The whole database, in errors.
pub(super) const WHOLE: &str = "the database";
/// The thread that opens the engine, and starts its threads.
const OPENER: &str = "opens the store";
/// Niceness of background threads.
const NICENESS: i32 = 5;
/// Blocks that were read.
const CACHE_BYTES: u64 = 64 << 20;
/// Milliseconds that share one table of keys.
pub(super) const DAY_MS: u64 = 86_400_000;
const KEYS: &str = "keys-";
const META: &str = "meta";
/// All but those that are dropped with their day.
const LASTING: [&str; 16] = [
    META,
    "users",
    "devices",
    "confirmed",
    "profiles",
    "relations",
    "inboxes",
    "conversations",
    "members",
    "messages",
    "uncounted",
    "ends",
    "touched",
    "streams",
    "events",
    "erasures",
];
/// Tables that a database has since this format.
const ADDED: [(&str, u64); 2] = [("events", 1), ("erasures", 2)];
pub(super) const COMMITS: &[u8] = b"commits";
/// Format of the database: which tables it must have.
const FORMAT: &[u8] = b"format";
const FORMAT_NOW: u64 = 2;
pub(super) const LAST_ID: &[u8] = b"last_id";
/// Milliseconds of the store's life.
pub(super) const LIVED: &[u8] = b"lived_ms";
/// Time of the retention clock, in Unix milliseconds.
pub(super) const RETENTION: &[u8] = b"retention";
/// The day after the newest that has keys.
pub(super) const KEYS_END: &[u8] = b"keys_end";

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UserRecord {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
    /// Next device number; numbers of removed devices are not used again.
    #[prost(uint32, tag = "2")]
    pub(super) next_device: u32,
    #[prost(enumeration = "WhoMayAdd", tag = "3")]
    pub(super) who_may_add: i32,
    /// Groups that the user may join, oldest first.
    #[prost(uint32, repeated, tag = "4")]
    pub(super) invitations: Vec<u32>,
    /// Tokens issued before this Unix time, in seconds, are revoked.
    #[prost(uint64, tag = "5")]
    pub(super) valid_from_s: u64,
    /// Unix time in seconds until which the user is banned.
    #[prost(uint64, tag = "6")]
    pub(super) banned_until_s: u64,
    /// Groups that the user has left.
    #[prost(uint32, repeated, tag = "7")]
    pub(super) parted: Vec<u32>,
    /// `parted` names all of them. Versions before noted none.
    #[prost(bool, tag = "8")]
    pub(super) knows_parted: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeviceRecord {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint64, tag = "2")]
    pub(super) acked: u64,
    /// Grows with each login; the smallest is forgotten first.
    #[prost(uint64, tag = "3")]
    pub(super) login: u64,
    #[prost(uint32, tag = "4")]
    pub(super) platform: u32,
    #[prost(uint64, tag = "5")]
    pub(super) seen_ms: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RelationRecord {
    #[prost(enumeration = "Friendship", tag = "1")]
    pub(super) friendship: i32,
    #[prost(bool, tag = "2")]
    pub(super) is_blocked: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InboxRecord {
    /// Entries up to this position are gone.
    #[prost(uint64, tag = "1")]
    pub(super) trimmed: u64,
    /// Dropped entries: position, conversation and first seq, three numbers each.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) dropped: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConversationRecord {
    /// One to one: the users.
    #[prost(uint32, tag = "1")]
    pub(super) first: u32,
    #[prost(uint32, tag = "2")]
    pub(super) second: u32,
    /// A group: its name, and its creator in `first`.
    #[prost(string, optional, tag = "3")]
    pub(super) group: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) settings: Option<im::GroupSettings>,
    #[prost(bool, tag = "5")]
    pub(super) is_read_fanout: bool,
    /// Seq of the last change of the fan-out; while the group is read by cursor, the newest seq.
    #[prost(uint64, tag = "6")]
    pub(super) unstreamed: u64,
    #[prost(uint64, tag = "7")]
    pub(super) unstreamed_from: u64,
    #[prost(uint64, tag = "8")]
    pub(super) began_after: u64,
    /// The last number in the log of events.
    #[prost(uint64, tag = "9")]
    pub(super) events: u64,
    /// The newest event that changes nothing but settings.
    #[prost(uint64, tag = "10")]
    pub(super) settings_event: u64,
    /// Seqs up to this one hold no message for anybody.
    #[prost(uint64, tag = "11")]
    pub(super) gone: u64,
    /// Seqs up to this one have no row in `messages`.
    #[prost(uint64, tag = "12")]
    pub(super) removed: u64,
    #[prost(bool, tag = "13")]
    pub(super) is_dissolved: bool,
    /// Seconds for which messages are kept.
    #[prost(uint32, tag = "14")]
    pub(super) keep_s: u32,
    /// Messages a minute that it takes by order, 0: none.
    #[prost(uint32, optional, tag = "15")]
    pub(super) send_limit: Option<u32>,
}

/// Progress of an erasure. Conversation 2^32 - 1 stands for all groups, 2^32 - 2 for message keys.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ErasureRecord {
    #[prost(fixed64, tag = "1")]
    pub(super) to_id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) next: u64,
    #[prost(bool, tag = "3")]
    pub(super) is_told: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MemberRecord {
    /// First seq that this membership may read.
    #[prost(uint64, tag = "1")]
    pub(super) visible_from: u64,
    /// Grows with each membership of anybody: the order of a user's conversations.
    #[prost(uint64, tag = "2")]
    pub(super) since: u64,
    /// Unset: of the creator [`Role::Owner`], of others [`Role::Member`].
    #[prost(enumeration = "Role", tag = "3")]
    pub(super) role: i32,
    #[prost(uint64, tag = "4")]
    pub(super) read: u64,
    #[prost(uint64, tag = "5")]
    pub(super) silent_until_ms: u64,
    /// Last seq that the member has deleted for himself.
    #[prost(uint64, tag = "6")]
    pub(super) cleared: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EntryRecord {
    #[prost(uint32, tag = "1")]
    pub(super) conversation: u32,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    /// The user's own device that it comes from.
    #[prost(uint32, optional, tag = "3")]
    pub(super) origin: Option<u32>,
    /// Something that happened, instead of a message.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) event: Option<Bytes>,
    /// Number of an event in the log of `conversation`, instead of a message.
    #[prost(uint64, optional, tag = "5")]
    pub(super) shared: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct KeyRecord {
    #[prost(uint32, tag = "1")]
    pub(super) conversation: u32,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) id: u64,
    #[prost(fixed64, tag = "4")]
    pub(super) digest: u64,
    /// When it was stored, in milliseconds of the store's life ([`super::lived`]).
    #[prost(uint64, tag = "5")]
    pub(super) at_ms: u64,
    /// Time that clients were told, in Unix milliseconds; 0: an earlier version wrote it, and it is that of the id.
    #[prost(uint64, tag = "6")]
    pub(super) time_ms: u64,
}

/// One change of one table.
pub(super) struct Change {
    pub(super) table: Keyspace,
    pub(super) key: Vec<u8>,
    /// `None`: it is removed.
    pub(super) value: Option<UserValue>,
}

impl Change {
    pub(super) fn put(table: &Keyspace, key: Vec<u8>, value: impl AsRef<[u8]>) -> Self {
        Self { table: table.clone(), key, value: Some(value.as_ref().into()) }
    }

    pub(super) fn remove(table: &Keyspace, key: Vec<u8>) -> Self {
        Self { table: table.clone(), key, value: None }
    }
}

/// The open database.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    pub(super) meta: Keyspace,
    pub(super) users: Keyspace,
    pub(super) devices: Keyspace,
    pub(super) confirmed: Keyspace,
    pub(super) profiles: Keyspace,
    pub(super) relations: Keyspace,
    pub(super) inboxes: Keyspace,
    pub(super) conversations: Keyspace,
    pub(super) members: Keyspace,
    pub(super) messages: Keyspace,
    pub(super) uncounted: Keyspace,
    pub(super) ends: Keyspace,
    pub(super) touched: Keyspace,
    pub(super) streams: Keyspace,
    pub(super) events: Keyspace,
    pub(super) erasures: Keyspace,
    /// By day, oldest first.
    pub(super) keys: VecDeque<(u64, Keyspace)>,
}

/// Threads that this starts leave the processor to those whom somebody waits for: they are as nice as the thread that starts
/// them.
pub(super) fn nicely<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let run = || {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::warn!(%error, "the store's own threads are as important as all others");
        }
        start()
    };
    std::thread::scope(|scope| {
        let named = std::thread::Builder::new().name(OPENER.into()).spawn_scoped(scope, run);
        named.expect("a thread").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The engine returns errors for most damage, and panics for some kinds. That ends a process that does not
/// unwind, so what it means is said before.
fn open_engine(
    folder: &Path,
    database: &Path,
    open: impl FnOnce() -> Result<Database, fjall::Error> + Send,
) -> Result<Database, DiskError> {
    thread_local! {
        /// Database that this thread opens.
        static OPENING: Cell<Option<PathBuf>> = const { Cell::new(None) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(database) = OPENING.take() {
                // A process that does not unwind ends here, so the file is named now.
                let (path, problem) = blame::damaged(&database).unzip();
                let path = path.unwrap_or(database);
                tracing::error!(
                    %panic,
                    path = %path.display(),
                    problem,
                    "the store is damaged, or its engine at fault; restore a backup (moorline backend restore)"
                );
            }
            before(panic);
        }));
    });
    let opened = nicely(|| {
        OPENING.set(Some(database.to_owned()));
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
        OPENING.set(None);
        opened
    });
    let Ok(opened) = opened else {
        let problem = "its engine gave up, as the log says".to_owned();
        return Err(DiskError::Damaged { what: WHOLE, problem });
    };
    opened.map_err(|error| DiskError::open(folder, error))
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

impl Tables {
    /// `is_whole`: it should have all that it ever had.
    pub(super) fn open(folder: &Path, database: &Path, is_whole: bool) -> Result<Self, DiskError> {
        let builder =
            Database::builder(database).max_journaling_size(JOURNAL_BYTES_MAX).cache_size(CACHE_BYTES);
        // The length of a batch in the journal is known then without reading it.
        let builder = builder.journal_compression(CompressionType::None);
        let pointers = blame::without_pointer(database);
        let db = open_engine(folder, database, || builder.open())?;
        let missing = |table: &str| blame::gone(folder, database, &pointers, table);
        let names = db.list_keyspace_names();
        let table = |name: &str| db.keyspace(name, options).map_err(DiskError::engine("open a table"));
        let mut keys = VecDeque::new();
        let mut days: Vec<u64> =
            names.iter().filter_map(|name| name.strip_prefix(KEYS)?.parse().ok()).collect();
        days.sort_unstable();
        for day in days {
            keys.push_back((day, table(&format!("{KEYS}{day:08}"))?));
        }
        if is_whole {
            // Before they are made anew. Whatever was committed was so when all of them had been made, `meta` first.
            let is_there = |name: &str| names.iter().any(|known| **known == *name);
            let format = if is_there(META) { Self::number_in(&table(META)?, FORMAT)? } else { FORMAT_NOW };
            let is_later = |name: &str| ADDED.iter().any(|(added, since)| *added == name && *since > format);
            let gone = LASTING.iter().find(|name| !is_there(name) && !is_later(name));
            let gone = gone.filter(|_| !names.is_empty());
            if let Some(gone) = gone
                && (!is_there(META) || Self::number_in(&table(META)?, COMMITS)? > 0)
            {
                return Err(missing(gone));
            }
            // Older ones go when a newer one has come.
            let end = keys.back().map_or(0, |(day, _)| *day + 1);
            let keys_end = if names.is_empty() { 0 } else { Self::number_in(&table(META)?, KEYS_END)? };
            if end < keys_end {
                return Err(missing(&format!("{KEYS}{:08}", keys_end - 1)));
            }
        }
        let tables = Self {
            meta: table(META)?,
            users: table("users")?,
            devices: table("devices")?,
            confirmed: table("confirmed")?,
            profiles: table("profiles")?,
            relations: table("relations")?,
            inboxes: table("inboxes")?,
            conversations: table("conversations")?,
            members: table("members")?,
            messages: table("messages")?,
            uncounted: table("uncounted")?,
            ends: table("ends")?,
            touched: table("touched")?,
            streams: table("streams")?,
            events: table("events")?,
            erasures: table("erasures")?,
            keys,
            db,
        };
        if tables.number(FORMAT)? < FORMAT_NOW {
            tables.write(vec![Change::put(&tables.meta, FORMAT.to_vec(), FORMAT_NOW.to_be_bytes())])?;
        }
        Ok(tables)
    }

    /// Those that grow with each message.
    pub(super) fn busy(&self) -> Vec<Keyspace> {
        let few = [
            &self.messages,
            &self.streams,
            &self.devices,
            &self.inboxes,
            &self.members,
            &self.touched,
            &self.ends,
        ];
        few.into_iter().chain(self.keys.iter().map(|(_, table)| table)).cloned().collect()
    }

    /// The oldest and the newest day that has a table of keys.
    pub(super) fn days(&self) -> Option<(u64, u64)> {
        Some((self.keys.front()?.0, self.keys.back()?.0))
    }

    /// The table for keys of this time; tables that are older than `window_ms` are dropped.
    pub(super) fn keys_of(&mut self, now_ms: u64, window_ms: u64) -> Result<Keyspace, DiskError> {
        let day = now_ms / DAY_MS;
        while let Some((oldest, _)) = self.keys.front()
            && (oldest + 1).saturating_mul(DAY_MS).saturating_add(window_ms) <= now_ms
            && let Some((_, table)) = self.keys.pop_front()
        {
            self.db.delete_keyspace(table).map_err(DiskError::engine("drop a table of old keys"))?;
        }
        if let Some((_, table)) = self.keys.iter().rev().find(|(known, _)| *known >= day) {
            return Ok(table.clone());
        }
        let name = format!("{KEYS}{day:08}");
        let table = self.db.keyspace(&name, options).map_err(DiskError::engine("make a table of keys"))?;
        self.keys.push_back((day, table.clone()));
        Ok(table)
    }

    /// A key that is not older than `window_ms`.
    pub(super) fn key(
        &self,
        key: &[u8],
        now_ms: u64,
        window_ms: u64,
    ) -> Result<Option<KeyRecord>, DiskError> {
        for (_, table) in self.keys.iter().rev() {
            if let Some(value) = table.get(key).map_err(DiskError::engine("look up a key"))? {
                let record: KeyRecord = decode("a key", &value)?;
                let is_old = record.at_ms.saturating_add(window_ms) <= now_ms;
                return Ok((!is_old).then_some(record));
            }
        }
        Ok(None)
    }

    /// Removals of keys of a sender whose messages have ids up to `to_id`, at most `limit`. True: there may be more.
    pub(super) fn keys_up_to(
        &self,
        sender: u32,
        to_id: u64,
        limit: usize,
    ) -> Result<(Vec<Change>, bool), DiskError> {
        let mut removed = Vec::new();
        for (_, table) in &self.keys {
            for entry in table.prefix(sender.to_be_bytes()) {
                let (key, value) = entry.into_inner().map_err(DiskError::engine("look up a key"))?;
                // A damaged one is nobody's any more.
                if decode::<KeyRecord>("a key", &value).is_ok_and(|record| record.id > to_id) {
                    continue;
                }
                if removed.len() == limit {
                    return Ok((removed, true));
                }
                removed.push(Change::remove(table, key.to_vec()));
            }
        }
        Ok((removed, false))
    }

    /// A number of the table `meta`; 0: not there.
    pub(super) fn number(&self, name: &[u8]) -> Result<u64, DiskError> {
        Self::number_in(&self.meta, name)
    }

    fn number_in(meta: &Keyspace, name: &[u8]) -> Result<u64, DiskError> {
        let value = meta.get(name).map_err(DiskError::engine("read a table"))?;
        Ok(value.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    /// Every record of a table, in the order of their keys.
    pub(super) fn all<R: Message + Default>(
        table: &Keyspace,
        what: &'static str,
        mut each: impl FnMut(&[u8], R) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        for entry in table.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            each(&key, decode(what, &value)?)?;
        }
        Ok(())
    }

    /// Commits all of this at once, before anything else is; on the disk when it returns.
    pub(super) fn write(&self, changes: Vec<Change>) -> Result<(), DiskError> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for Change { table, key, value } in changes {
            match value {
                Some(value) => batch.insert(&table, key, value),
                None => batch.remove(&table, key),
            }
        }
        batch.commit().map_err(DiskError::engine("write"))
    }

    /// The second number of the last key that begins with `first`.
    pub(super) fn last(table: &Keyspace, first: u32) -> Result<Option<u64>, DiskError> {
        let Some(entry) = table.prefix(first.to_be_bytes()).next_back() else { return Ok(None) };
        let key = entry.key().map_err(DiskError::engine("read a table"))?;
        numbers(&key).map(|(_, last)| Some(last))
    }
}

pub(super) fn decode<R: Message + Default>(what: &'static str, value: &[u8]) -> Result<R, DiskError> {
    R::decode(value).map_err(|error| DiskError::Damaged { what, problem: error.to_string() })
}

/// user, device; conversation, user.
pub(super) fn pair(first: u32, second: u32) -> Vec<u8> {
    [first.to_be_bytes(), second.to_be_bytes()].concat()
}

/// conversation, seq; user, position.
pub(super) fn place(first: u32, second: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(12);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&second.to_be_bytes());
    key
}

/// user, device, conversation.
pub(super) fn triple(first: u32, second: u32, third: u32) -> Vec<u8> {
    [first.to_be_bytes(), second.to_be_bytes(), third.to_be_bytes()].concat()
}

/// sender, message key.
pub(super) fn key_of(sender: u32, key: MessageKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend_from_slice(&sender.to_be_bytes());
    bytes.extend_from_slice(&key.0);
    bytes
}

/// Reads the numbers of [`pair`] and [`place`]; a single number has 0 behind it.
pub(super) fn numbers(key: &[u8]) -> Result<(u32, u64), DiskError> {
    let damaged = || DiskError::Damaged { what: "a key of a table", problem: format!("{} bytes", key.len()) };
    let (first, rest) = key.split_first_chunk().ok_or_else(damaged)?;
    let second = match rest.len() {
        0 => 0,
        4 => u32::from_be_bytes(rest.try_into().map_err(|_| damaged())?).into(),
        8 => u64::from_be_bytes(rest.try_into().map_err(|_| damaged())?),
        _ => return Err(damaged()),
    };
    Ok((u32::from_be_bytes(*first), second))
}

/// Makes a database one of the version before [`FORMAT`].
#[cfg(test)]
pub(super) fn make_old(database: &Path) {
    remove_table(database, "events");
    let db = Database::builder(database).open().expect("a database");
    db.keyspace(META, options).expect("a table").remove(FORMAT).expect("removed");
    db.persist(PersistMode::SyncAll).expect("on the disk");
}

#[cfg(test)]
pub(super) fn remove_table(database: &Path, name: &str) {
    let db = Database::builder(database).open().expect("a database");
    let table = db.keyspace(name, options).expect("a table");
    db.delete_keyspace(table).expect("removed");
    db.persist(PersistMode::SyncAll).expect("on the disk");
}
