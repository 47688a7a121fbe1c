//! Fuzz body of the records on disk: rows of arbitrary bytes in a real database, loaded as a backend loads them, and then used.
//!
//! An input is rows: one byte for the table, one for the length of the key, two for the length of the value (little-endian),
//! then the key and the value. Rows are refused with an error, or the store that they make can be read and written. Inputs
//! of other lengths than multiples of 8 are read only.

use super::committer::Files;
use super::high_water::HighWaterFile;
use super::journal::Follower;
use super::journals::Journals;
use super::mark::{Mark, MarkFile};
use super::*;
use crate::im::store::{
    Batch, Command, Completion, Draft, Facts as _, GroupChange, Login, Origin, PageLimits, Read, Recall,
    RelationChange, SEQ_BYTES_MAX, Store as _, Target, Ticket, Write,
};
use bytes::BytesMut;
use moorline_proto::message::client::Push;
use moorline_proto::message::encode;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Inputs after which the database is made anew: the engine keeps what was overwritten for a while.
const USES_MAX: u32 = 500;
/// Users and conversations of an input that are looked at.
const LOOKED_AT: usize = 4;
/// Entries of one read.
const ENTRIES_MAX: usize = 16;
/// Reads are answered within this.
const PAGE: PageLimits = PageLimits { messages: ENTRIES_MAX, bytes: 1 << 16 };
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("moorline-fuzz-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
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

    fn clear(&self) {
        for table in self.all() {
            let keys: Vec<_> = table.iter().map(|entry| entry.key().expect("readable")).collect();
            keys.into_iter().for_each(|key| table.remove(key).expect("writable"));
        }
    }

    fn fill(&self, mut input: &[u8]) {
        while let Some(([table, key_len, low, high], rest)) = input.split_first_chunk() {
            let (key, rest) = rest.split_at(rest.len().min(usize::from(*key_len)));
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (value, rest) = rest.split_at(rest.len().min(length));
            input = rest;
            let all = self.all();
            if !key.is_empty() {
                all[usize::from(*table) % all.len()].insert(key, value).expect("writable");
            }
        }
    }

    /// Reads the rows as [`Disk::open`] does.
    fn load(&self, config: &ImConfig) -> Result<(StreamTails, Directory), DiskError> {
        let (tails, written) = StreamTails::load(&self.tables)?;
        let directory = load::directory(&self.tables, &written, config)?;
        tails.check(&directory)?;
        check::directory(&directory)?;
        let is_long = |user: &UserId| directory.users.get(*user).held() > INBOX_MAX;
        let users = (0..u32::try_from(directory.users.len()).unwrap_or(u32::MAX)).map(UserId);
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
        let found = self.tables.number(tables::COMMITS)?.min(1 << 60);
        let database = self.folder.join(DATABASE);
        let journal = Follower::start(&database).expect("a journal");
        let mark = Mark { commits: found, end: Some(journal.end()), is_sound: true };
        let mark_file = MarkFile::create(&self.folder.join(SIDE_FILE), mark).expect("writable");
        let (high_water_path, marks_of_commits) = (self.folder.join(HIGH_WATER), Arc::new(mark_file));
        let files = Files { marks: marks_of_commits, high_water: marks, high_water_path, journal };
        let committer = Committer::start(self.tables.clone(), Durability::System, files, found, || ());
        let journals = Journals::of(&self.folder, &database);
        let threads =
            (committer.expect("a thread"), Memtables::start(Vec::new(), journals).expect("a thread"));
        let lived = Lived::load(&self.tables)?;
        let engine = DiskEngine::new(self.tables.clone(), threads, None, tails, high_water, (config, lived));
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
    // Taken out, so that a panic leaves nothing behind for the next input.
    let known = WORLD.with_borrow_mut(Option::take).filter(|world| world.uses < USES_MAX);
    let mut world = known.unwrap_or_else(World::new);
    world.uses += 1;
    world.fill(input);
    let config = ImConfig { inbox_entries_max: 100, ..ImConfig::default() };
    // A store has threads, and writes; to read alone takes a tenth of the time.
    let used = if input.len().is_multiple_of(8) {
        world.open(&config).map(use_store)
    } else {
        world.load(&config).map(|(_, directory)| look_at(&world.tables, &directory))
    };
    if let Err(error) = used {
        assert!(!error.to_string().is_empty());
    }
    world.clear();
    WORLD.with_borrow_mut(|kept| *kept = Some(world));
}

/// Looks at everything that was read, and makes rows of it again.
fn look_at(tables: &Tables, directory: &Directory) {
    let users = (0..u32::try_from(directory.users.len()).unwrap_or(u32::MAX)).map(UserId);
    for user in users.take(LOOKED_AT) {
        let known = directory.users.get(user);
        assert_eq!(directory.users.find(&known.uid), Some(user));
        let mut changed = vec![Changed::User(user), Changed::Inbox(user)];
        changed.extend(known.devices.iter().map(|device| Changed::Device(user, device.number)));
        changed.extend(directory.relations.of(user).map(|(other, _)| Changed::Relation(user, other)));
        changed.into_iter().for_each(|changed| drop(rows::change(tables, directory, changed)));
        known.conversations.iter().for_each(|conversation| _ = directory.unread(*conversation, user));
    }
    for conversation in directory.conversations.all().take(LOOKED_AT) {
        let mut id = String::new();
        directory.write_id(conversation, &mut id);
        let place = directory.conversations.get(conversation);
        let mut changed = vec![Changed::Conversation(conversation)];
        changed.extend(place.uncounted().map(|(first, _)| Changed::Uncounted(conversation, first)));
        changed.extend(place.members.iter().map(|member| Changed::Member(conversation, member.user)));
        changed.into_iter().for_each(|changed| drop(rows::change(tables, directory, changed)));
    }
}

fn ask(store: &mut Disk, command: Command) -> Completion {
    assert!(store.submit(Ticket::FIRST, command).is_ok(), "logins and reads are always taken");
    store.poll().expect("at once").1
}

fn stream_end(store: &mut Disk, of: Origin) -> u64 {
    match ask(store, Command::Read(Read::Backlog { of })) {
        Completion::Backlog(backlog) => backlog.end,
        other => panic!("{other:?}"),
    }
}

/// Does with a store what clients cause: every read, a login, and a batch with every kind of write.
fn use_store(mut store: Disk) {
    let counts = store.counts();
    let users: Vec<UserId> =
        (0..counts.users.min(LOOKED_AT)).filter_map(|at| u32::try_from(at).ok()).map(UserId).collect();
    let places: Vec<ConversationId> = (0..counts.conversations.min(LOOKED_AT))
        .filter_map(|at| u32::try_from(at).ok())
        .map(ConversationId)
        .collect();
    for place in &places {
        let id = store.id(*place);
        assert!(!id.is_empty());
        store.settings(*place);
        let members: Vec<_> = store.members(*place, None).collect();
        assert_eq!(members.len(), store.member_count(*place));
        members.iter().for_each(|member| _ = store.uid(member.user).len());
    }
    let mut writes = Vec::new();
    for user in &users {
        read_all(&mut store, *user, &places);
        let uid = store.uid(*user).to_owned();
        assert_eq!(store.find_user(&uid), Some(*user));
        let login = Login { uid, device: "fuzz".into(), platform: 1, now_ms: NOW_MS, issued_s: 0 };
        let Completion::LoggedIn(login) = ask(&mut store, Command::Login(login)) else { panic!("a login") };
        let device = login.expect("a known user").cursor.device;
        let by = (*user, device);
        let end = stream_end(&mut store, by);
        writes.extend(writes_of(&store, by, end, &users, &places));
    }
    let last_id = store.last_id();
    let batch = Batch { now_ms: NOW_MS, last_id, writes };
    if let Err(command) = store.submit(Ticket::FIRST, Command::Commit(batch)) {
        assert!(store.is_broken(), "refused {command:?}");
        return;
    }
    while store.poll().is_none() {
        assert!(!store.is_broken(), "the database takes no writes");
        std::thread::yield_now();
    }
    users.iter().for_each(|user| read_all(&mut store, *user, &places));
}

fn read_all(store: &mut Disk, user: UserId, places: &[ConversationId]) {
    store.relations(user);
    let uid = store.uid(user).to_owned();
    let devices = store.devices(user).into_iter().take(LOOKED_AT);
    let mut reads: Vec<Read> = devices.map(|device| Read::Backlog { of: (user, device.number) }).collect();
    reads.push(Read::Conversations { user, after: String::new(), bytes: 1 << 12 });
    reads.push(Read::Stream { user, after: 0, limit: ENTRIES_MAX, into: Vec::new() });
    reads.push(Read::Profiles { uids: vec![uid] });
    for conversation in places {
        let range = (0, u64::MAX);
        reads.push(Read::Page { conversation: *conversation, reader: user, range, limits: PAGE });
    }
    for read in reads {
        match ask(store, Command::Read(read)) {
            Completion::Page(Ok(page)) => assert!(page.messages.len() <= ENTRIES_MAX),
            Completion::Stream(page) => assert!(page.entries.len() <= ENTRIES_MAX),
            Completion::Prefetched | Completion::Committed(_) => panic!("a read"),
            _ => {}
        }
    }
}

fn writes_of(store: &Disk, by: Origin, end: u64, users: &[UserId], places: &[ConversationId]) -> Vec<Write> {
    let event = || Bytes::from_static(b"event");
    let draft = |number: u8, target| {
        let push = encode(&Push { payload: Bytes::from_static(b"hi"), ..Push::default() });
        let mut body = BytesMut::with_capacity(push.len() + SEQ_BYTES_MAX);
        body.extend_from_slice(&push);
        let key = MessageKey([number; 16]);
        Draft {
            sender: by.0,
            device: by.1,
            target,
            key,
            id: store.last_id().saturating_add(1),
            time_ms: NOW_MS,
            digest: 7,
            body,
        }
    };
    let mut writes = vec![
        Write::Acked { user: by.0, device: by.1, position: end, gone_ms: NOW_MS },
        Write::SetProfile { user: by.0, profile: event() },
        Write::Tell { users: users.to_vec(), event: event() },
    ];
    for (number, other) in (0..).zip(users) {
        writes.push(Write::Append(draft(number, Target::User(*other))));
        for change in [RelationChange::Befriend, RelationChange::Block, RelationChange::Unblock] {
            writes.push(Write::Relate { by, other: *other, change, event: event() });
        }
    }
    for (number, conversation) in (100..).zip(places) {
        let (conversation, latest) = (*conversation, store.latest(*conversation));
        writes.push(Write::Append(draft(number, Target::Conversation(conversation))));
        writes.push(Write::Read { conversation, by, seq: latest, event: event() });
        writes.push(Write::Confirm { by, conversation, seq: latest });
        let recalled = draft(number + 50, Target::Conversation(conversation));
        writes.push(Write::Recall(Recall { draft: recalled, seq: latest, message_id: 1 }));
        if store.is_group(conversation) {
            for change in [GroupChange::Join, GroupChange::Leave] {
                writes.push(Write::ChangeGroup { conversation, by, change, event: event() });
            }
        }
    }
    writes
}

/// Rows of an ordinary life, and parts of them.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
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
    let (ann, ben, cat) = (UserId(0), UserId(1), UserId(2));
    let by = (ann, DeviceNumber(0));
    let commit = |store: &mut Disk, writes| {
        let batch = Batch { now_ms: NOW_MS, last_id: 9, writes };
        assert!(store.submit(Ticket::FIRST, Command::Commit(batch)).is_ok());
        while store.poll().is_none() {
            std::thread::yield_now();
        }
    };
    let (name, event) = ("tea".to_owned(), Bytes::from_static(b"event"));
    commit(
        &mut store,
        vec![Write::CreateGroup { name, creator: by, members: vec![ben, cat], event: event.clone() }],
    );
    for _ in 0..3 {
        let end = stream_end(&mut store, by);
        let writes = writes_of(&store, by, end, &[ann, ben, cat], &[ConversationId(0)]);
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
    for table in 0..15 {
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
