//! Fuzz body of the records on disk: rows of arbitrary bytes in a real database, loaded as a backend loads them, and then used.
//!
//! An input is rows: one byte for the table, one for the length of the key, two for the length of the value (little-endian),
//! then the key and the value. Rows are refused with an error, or the store that they make can be read and written. Inputs
//! of other lengths than multiples of 8 are read only. [`files`] has the files beside the database.

pub mod files;
mod using;

use super::committer::Files;
use super::high_water::HighWaterFile;
use super::journal::Follower;
use super::journals::Journals;
use super::mark::{Mark, MarkFile};
use super::*;
use fjall::{AbstractTree as _, PersistMode};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use using::{look_at, use_store};

/// Inputs after which the database is made anew: its journal grows, and is read whenever a store is made.
const USES_MAX: u32 = 400;
const NOW_MS: u64 = 1_700_000_000_000;
/// Number of the table of keys in an input; tables that came later are behind it.
const KEYS_AT: usize = 14;
/// Longest inbox that is trimmed here; a longer one only takes time.
const INBOX_MAX: u64 = 10_000;

/// A database that many inputs use one after the other.
struct World {
    folder: PathBuf,
    tables: Tables,
    keys: fjall::Keyspace,
    uses: u32,
}

impl World {
    fn new() -> Self {
        let folder = scratch::path("fuzz-disk");
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).expect("a writable temporary folder");
        let mut tables = Tables::open(&folder, &folder.join(DATABASE), false).expect("a new database");
        let keys = tables.keys_of(NOW_MS, u64::MAX / 4).expect("a table of keys");
        Self { folder, tables, keys, uses: 0 }
    }

    /// All tables, in the order of their numbers in an input.
    fn all(&self) -> Vec<&fjall::Keyspace> {
        let mut all = self.tables.lasting().to_vec();
        all.insert(KEYS_AT, &self.keys);
        all
    }

    /// Forgets all rows: none has left memory, for [`USES_MAX`] inputs are far below a full memtable. Removed one by one,
    /// they would stay as tombstones, and each later input would read them.
    fn clear(&self) {
        self.all().iter().for_each(|table| table.tree.clear_active_memtable());
        std::fs::remove_file(self.folder.join(HIGH_WATER)).ok();
    }

    /// True if the tables are those of the beginning: a store makes and drops tables of keys.
    fn is_as_made(&self) -> bool {
        let Tables { db, .. } = &self.tables;
        db.keyspace_count() == self.all().len() && db.keyspace_exists(self.keys.name())
    }

    fn fill(&self, mut input: &[u8]) {
        let mut batch = self.tables.db.batch().durability(Some(PersistMode::Buffer));
        let all = self.all();
        while let Some(([table, key_len, low, high], rest)) = input.split_first_chunk() {
            let (key, rest) = rest.split_at(rest.len().min(usize::from(*key_len)));
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (value, rest) = rest.split_at(rest.len().min(length));
            input = rest;
            if !key.is_empty() {
                batch.insert(all[usize::from(*table) % all.len()], key, value);
            }
        }
        batch.commit().expect("writable");
    }

    /// Reads the rows as [`Disk::open`] does.
    fn load(&self, config: &ImConfig) -> Result<(StreamTails, Directory), DiskError> {
        let (tails, written) = StreamTails::load(&self.tables)?;
        let directory = load::directory(&self.tables, &written, config)?;
        tails.check(&directory)?;
        check::directory(&directory)?;
        let is_long = |user: &UserId| directory.users.get(*user).held() > INBOX_MAX;
        let users = (0..u32::try_from(directory.users.len()).unwrap_or(u32::MAX)).map(UserId::of);
        if let Some(user) = users.into_iter().find(is_long) {
            let problem = format!("the inbox of {user:?} is too long for this body");
            return Err(DiskError::Damaged { what: "an inbox", problem });
        }
        Ok((tails, directory))
    }

    /// The store that the rows make, as [`Disk::open`] makes it.
    fn open(&self, config: &ImConfig) -> Result<Disk, DiskError> {
        let (tails, directory) = self.load(config)?;
        let (high_water, marks) = HighWaterFile::open(&self.folder.join(HIGH_WATER)).expect("readable");
        let found = check::counter(self.tables.number(tables::COMMITS)?)?;
        let database = self.folder.join(DATABASE);
        let journal = Follower::start(&database).expect("a journal");
        let mark = Mark { commits: found, end: Some(journal.end()), is_sound: true };
        let mark_file = MarkFile::create(&self.folder.join(SIDE_FILE), mark).expect("writable");
        let (high_water_path, marks_of_commits) = (self.folder.join(HIGH_WATER), Arc::new(mark_file));
        let files = Files { marks: marks_of_commits, high_water: marks, high_water_path, journal };
        let committer =
            Committer::start(self.tables.clone(), Durability::System, files, found, scratch::waker());
        let journals = Journals::of(&self.folder, &database);
        let threads =
            (committer.expect("a thread"), Memtables::start(Vec::new(), journals, None).expect("a thread"));
        let lived = Lived::load(&self.tables)?;
        let engine = DiskEngine::new(
            self.tables.clone(),
            threads,
            None,
            tails,
            high_water,
            (config, lived),
            Bytes::new(),
        );
        Ok(Disk::over(directory, engine, config))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Loads rows, and uses the store that they make.
pub fn body(input: &[u8]) {
    thread_local! {
        static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    }
    /// Made once: the defaults are read from text.
    static CONFIG: LazyLock<ImConfig> =
        LazyLock::new(|| ImConfig { inbox_entries_max: 100, ..ImConfig::default() });
    // Taken out, so that a panic leaves nothing behind for the next input.
    let known = WORLD.with_borrow_mut(Option::take).filter(|world| world.uses < USES_MAX);
    let mut world = known.unwrap_or_else(World::new);
    world.uses += 1;
    world.fill(input);
    // A store has threads, and writes; to read alone takes a tenth of the time.
    let is_used = input.len().is_multiple_of(8);
    let used = if is_used {
        world.open(&CONFIG).map(use_store)
    } else {
        world.load(&CONFIG).map(|(_, directory)| look_at(&world.tables, &directory))
    };
    if let Err(error) = used {
        assert!(!error.to_string().is_empty());
    }
    if is_used && !world.is_as_made() {
        return;
    }
    world.clear();
    WORLD.with_borrow_mut(|kept| *kept = Some(world));
}

/// Rows of an ordinary life, and parts of them.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    use super::super::{Batch, Command, Login, Store as _, Ticket, Write};
    use using::{ask, stream_end, writes_of};
    let mut world = World::new();
    let config = ImConfig { inbox_entries_max: 3, ..ImConfig::default() };
    let mut store = world.open(&config).expect("an empty store");
    for uid in ["ann", "ben", "cat"] {
        for device in ["phone", "desk"] {
            let login =
                Login { uid: uid.into(), device: device.into(), platform: 1, now_ms: NOW_MS, issued_s: 0 };
            ask(&mut store, Command::Login(login));
        }
    }
    let (ann, ben, cat) = (UserId::of(0), UserId::of(1), UserId::of(2));
    let by = (ann, DeviceNumber(0));
    let commit = |store: &mut Disk, writes| {
        let batch = Batch { now_ms: NOW_MS, last_id: 9, writes };
        assert!(store.submit(Ticket::FIRST, Command::Commit(batch)).is_ok());
        while store.poll().is_none() {
            scratch::wait();
        }
    };
    let (name, event) = ("tea".to_owned(), Bytes::from_static(b"event"));
    commit(
        &mut store,
        vec![Write::CreateGroup { name, creator: by, members: vec![ben, cat], event: event.clone() }],
    );
    for _ in 0..3 {
        let end = stream_end(&mut store, by);
        let writes = writes_of(&store, by, end, &[ann, ben, cat], &[ConversationId::of(0)]);
        let is_kept = |write: &Write| !matches!(write, Write::ChangeGroup { .. });
        commit(&mut store, writes.into_iter().filter(is_kept).collect());
    }
    drop(store);
    let mut rows = Vec::new();
    for (number, table) in (0u8..).zip(world.all()) {
        for entry in table.iter() {
            let (key, value) = entry.into_inner().expect("readable");
            let length = u16::try_from(value.len()).expect("a short value").to_le_bytes();
            let mut row = vec![number, u8::try_from(key.len()).expect("a short key"), length[0], length[1]];
            row.extend_from_slice(&key);
            row.extend_from_slice(&value);
            rows.push((number, row));
        }
    }
    world.uses = USES_MAX;
    let whole = |keep: &dyn Fn(u8) -> bool| -> Vec<u8> {
        rows.iter().filter(|(number, _)| keep(*number)).flat_map(|(_, row)| row.clone()).collect()
    };
    let mut seeds = vec![Vec::new(), whole(&|_| true)];
    // Without one of the tables, and with the users and one of the tables.
    for table in 0..17 {
        seeds.push(whole(&|number| number != table));
        seeds.push(whole(&|number| number == 1 || number == table));
    }
    seeds
}

#[test]
fn every_input_of_the_corpus_passes() {
    let seeds = seeds();
    assert!(seeds[1].len() > 1_000, "a store of {} bytes", seeds[1].len());
    let whole = &seeds[1];
    (0..whole.len()).step_by(499).for_each(|cut| body(&whole[..cut]));
    crate::fuzz::corpus("backend_disk", &seeds).iter().for_each(|input| body(input));
}

/// The corpus has a user who left group 64 of a store with six: the account is deleted, and its messages are erased.
#[test]
fn an_account_whose_user_left_a_group_that_is_lost_is_deleted() {
    body(include_bytes!("../../../../../fuzz/corpus/backend_disk/left-a-group-that-is-not-there"));
}
