//! The store on disk: as every store, across its own end, and with damage.

mod backups;
mod copies;
mod damage;
mod deletion;
mod events;
mod failed_syncs;
mod foreign;
mod power_cuts;
mod whole;

use super::*;
use crate::im::conformance;
use crate::im::store::{
    Backlog, Batch, Command, Completion, DeviceCursor, Draft, Entry, Facts as _, GroupChange, Listed, Login,
    LoginChange, LoginDenied, Origin, Outcome, Page, PageLimits, Read, Refusal, SEQ_BYTES_MAX, Store as _,
    Stored, Target, Ticket, Write,
};
use bytes::BytesMut;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::random::Random;
use std::path::{Path, PathBuf};

/// A folder of this test, gone with it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(scratch::path("disk"))
    }

    fn open(&self) -> Result<Disk, DiskError> {
        Disk::open(&self.0, &ImConfig::default(), Durability::Disk, scratch::waker())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

impl Disk {
    /// Gives in a batch. False: it is not taken.
    fn commit(&mut self, now_ms: u64, last_id: u64, writes: Vec<Write>) -> bool {
        self.submit(Ticket::FIRST, Command::Commit(Batch { now_ms, last_id, writes })).is_ok()
    }

    fn committed(&mut self) -> Option<Committed> {
        match self.poll()? {
            (_, Completion::Committed(committed)) => Some(committed),
            other => panic!("nothing else is open: {other:?}"),
        }
    }

    fn ask(&mut self, command: Command) -> Completion {
        assert!(self.submit(Ticket::FIRST, command).is_ok(), "always taken");
        self.poll().expect("at once").1
    }

    fn login(&mut self, user: UserId, device: &str, platform: u32, now_ms: u64) -> DeviceCursor {
        let (uid, device) = (self.uid(user).to_owned(), device.to_owned());
        match self.ask(Command::Login(Login { uid, device, platform, now_ms, issued_s: 0 })) {
            Completion::LoggedIn(Some(login)) => login.cursor,
            other => panic!("{other:?}"),
        }
    }

    fn see_stream(&mut self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>) -> bool {
        let read = Read::Stream { user, after, limit, into: std::mem::take(into) };
        match self.ask(Command::Read(read)) {
            Completion::Stream(page) => {
                *into = page.entries;
                page.is_readable
            }
            other => panic!("{other:?}"),
        }
    }

    fn read_range(
        &mut self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal> {
        match self.ask(Command::Read(Read::Page { conversation, reader, range, limits })) {
            Completion::Page(page) => page,
            other => panic!("{other:?}"),
        }
    }

    fn backlog(&mut self, of: Origin) -> Backlog {
        match self.ask(Command::Read(Read::Backlog { of })) {
            Completion::Backlog(backlog) => backlog,
            other => panic!("{other:?}"),
        }
    }

    fn stream_end(&mut self, user: UserId) -> u64 {
        self.backlog((user, DeviceNumber(0))).end
    }

    fn list_of(&mut self, user: UserId) -> Vec<Listed> {
        let read = Read::Conversations { user, after: String::new(), bytes: 1 << 20 };
        match self.ask(Command::Read(read)) {
            Completion::Listing(Ok(listing)) => listing.entries,
            other => panic!("{other:?}"),
        }
    }

    fn conversations(&mut self, user: UserId) -> Vec<String> {
        self.list_of(user).into_iter().map(|listed| listed.id).collect()
    }

    fn unread(&mut self, conversation: ConversationId, user: UserId) -> u64 {
        let mut id = String::new();
        self.write_id(conversation, &mut id);
        self.list_of(user).into_iter().find(|listed| listed.id == id).map_or(0, |listed| listed.unread)
    }
}

#[test]
fn it_does_what_a_store_does() {
    let mut folders = Vec::new();
    conformance::check(|config| {
        let folder = Folder(scratch::path_on_disk("disk"));
        let store = Disk::open(&folder.0, config, Durability::System, scratch::waker()).expect("a new store");
        folders.push(folder);
        store
    });
}

fn committed(store: &mut Disk, batch: Vec<Write>) -> Vec<Outcome> {
    committed_at(store, 1, batch)
}

fn committed_at(store: &mut Disk, now_ms: u64, batch: Vec<Write>) -> Vec<Outcome> {
    assert!(store.commit(now_ms, 77, batch));
    loop {
        if let Some(committed) = store.committed() {
            return committed.outcomes;
        }
        scratch::wait();
    }
}

fn draft(sender: UserId, target: Target, key: u8, id: u64) -> Write {
    let mut body = BytesMut::with_capacity(64 + SEQ_BYTES_MAX);
    body.extend_from_slice(&Push { message_id: id, ..Push::default() }.encode_to_vec());
    let (device, key) = (DeviceNumber(0), MessageKey([key; 16]));
    Write::Append(Draft { is_repeat: false, sender, device, target, key, id, time_ms: 1, digest: 7, body })
}

fn stored(outcome: Option<Outcome>) -> Stored {
    match outcome {
        Some(Outcome::Appended(Ok(stored))) => stored,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_is_there_again_after_it_was_opened_anew() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let users = ["ann", "ben", "cem"].map(|uid| store.try_user(uid).expect("room"));
    let [ann, ben, cem] = users;
    let (phone, desk) = (store.login(ben, "phone", 0, 0).device, store.login(ben, "desk", 0, 0).device);
    let create = Write::CreateGroup {
        name: "g".into(),
        creator: (ann, DeviceNumber(0)),
        members: vec![ben],
        event: Bytes::from_static(b"made"),
    };
    let Some(Outcome::Created(Ok((group, _)))) = committed(&mut store, vec![create]).pop() else {
        panic!("a group")
    };
    let batch = (1..=5).map(|key| draft(ann, Target::User(ben), key, 100 + u64::from(key))).collect();
    committed(&mut store, batch);
    let said = stored(committed(&mut store, vec![draft(ann, Target::Conversation(group), 9, 200)]).pop());
    let (by, change, event) = ((cem, DeviceNumber(0)), GroupChange::Join, Bytes::from_static(b"joined"));
    let join = Write::ChangeGroup { conversation: group, by, change, event };
    committed(&mut store, vec![join, Write::Acked { user: ben, device: phone, position: 3, gone_ms: 0 }]);
    committed(&mut store, vec![Write::Acked { user: ben, device: desk, position: 2, gone_ms: 0 }]);
    let see = |store: &mut Disk| {
        let (mut stream, pair) = (Vec::new(), store.find("c2c:ann:ben").expect("they spoke"));
        assert!(store.see_stream(ben, 0, 100, &mut stream));
        let wide = PageLimits { messages: 100, bytes: 1 << 20 };
        (
            stream,
            store.stream_end(ben),
            store.read_range(pair, ben, (1, u64::MAX), wide),
            store.read_range(group, cem, (1, u64::MAX), wide),
            store.members(group, None).collect::<Vec<_>>(),
            store.conversations(ben),
            (store.latest(pair), store.latest(group), store.find("group:g")),
        )
    };
    let before = see(&mut store);
    assert_eq!((before.1, before.0.first().map(|(position, _)| *position)), (8, Some(3)));
    drop(store);
    let mut store = folder.open().expect("the same store");
    assert_eq!(["ann", "ben", "cem"].map(|uid| store.try_user(uid).expect("known")), users);
    assert_eq!(see(&mut store), before);
    assert_eq!(store.last_id(), 77);
    assert_eq!((store.login(ben, "phone", 0, 0).device, store.login(ben, "phone", 0, 0).acked), (phone, 3));
    // A key that was used is answered as it was; numbers go on.
    let again = stored(committed(&mut store, vec![draft(ann, Target::Conversation(group), 9, 999)]).pop());
    assert_eq!((again.seq, again.id, again.delivery), (said.seq, 200, None));
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 6, 300)]).pop());
    assert_eq!((next.seq, store.stream_end(ben)), (6, 9));
    assert_eq!(store.login(ben, "tablet", 0, 0).device, DeviceNumber(2), "no number is given twice");
}

/// A store in which ann has told ben twenty things, a commit each.
fn spoken() -> (Folder, [UserId; 2]) {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    for key in 0..20 {
        committed(&mut store, vec![draft(ann, Target::User(ben), key, key.into())]);
    }
    (folder, [ann, ben])
}

#[test]
fn the_number_of_a_device_that_was_removed_is_not_given_again() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let ben = store.try_user("ben").expect("room");
    let laptop = [store.login(ben, "phone", 0, 0), store.login(ben, "laptop", 0, 0)][1].device;
    committed(&mut store, vec![Write::RemoveDevice { user: ben, device: laptop }]);
    drop(store);
    let mut store = folder.open().expect("the same store");
    assert_eq!(store.login(ben, "desk", 0, 0).device, DeviceNumber(2));
}

#[test]
fn batches_that_wait_are_judged_on_what_those_before_them_left() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    let mut wanted = 0;
    for key in 0..40 {
        // The same key twice, in two batches that both wait.
        for id in [1, 2] {
            let draft = draft(ann, Target::User(ben), key, u64::from(key) * 10 + id);
            wanted += usize::from(store.commit(1, 77, vec![draft]));
        }
    }
    let (mut seqs, mut got) = (Vec::new(), 0);
    while got < wanted {
        let Some(Committed { outcomes, .. }) = store.committed() else {
            scratch::wait();
            continue;
        };
        got += 1;
        let stored = stored(outcomes.into_iter().next());
        if stored.delivery.is_some() {
            seqs.push(stored.seq);
        } else {
            assert_eq!(seqs.last(), Some(&stored.seq), "the first result");
        }
    }
    let dense: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, dense);
}

#[test]
fn what_one_commit_changes_twice_is_as_it_was_last() {
    let folder = Folder::new();
    let config = ImConfig { inbox_entries_max: 2, ..ImConfig::default() };
    let open = || Disk::open(&folder.0, &config, Durability::System, scratch::waker()).expect("it opens");
    let mut store = open();
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    let phone = store.login(ben, "phone", 0, 0).device;
    // Entries are put and removed, a cursor and a number move, all in one commit.
    let mut batch: Vec<Write> =
        (0..20).map(|key| draft(ann, Target::User(ben), key, 100 + u64::from(key))).collect();
    for position in [3, 19] {
        batch.push(Write::Acked { user: ben, device: phone, position, gone_ms: 0 });
    }
    committed(&mut store, batch);
    // And in several that may become one.
    for key in 20..60u8 {
        store.commit(1, 100 + u64::from(key), vec![draft(ann, Target::User(ben), key, key.into())]);
    }
    let see = |store: &mut Disk| {
        let mut stream = Vec::new();
        assert!(store.see_stream(ben, 0, 100, &mut stream));
        (stream, store.stream_end(ben), store.devices(ben), store.last_id())
    };
    while store.committed().is_some() || store.stream_end(ben) < 60 {
        scratch::wait();
    }
    let before = see(&mut store);
    assert_eq!((before.0.len(), before.3), (3, 159), "two, and where the others were");
    drop(store);
    assert_eq!(see(&mut open()), before);
}

/// A conversation that was quiet for long enough has its end written down; whatever was written down how far, numbers go on.
#[test]
fn ends_are_right_whether_they_were_written_down_or_not() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben, cem] = ["ann", "ben", "cem"].map(|uid| store.try_user(uid).expect("room"));
    let (mut now_ms, mut key, mut ends) = (1, 0, [0, 0]);
    for round in 0..12 {
        for (peer, end) in [ben, cem].into_iter().zip(&mut ends) {
            let is_quiet = peer == ben && round % 6 > 2; // for 1.5 seconds, and then for 3
            if !is_quiet {
                key += 1;
                let said = vec![draft(ann, Target::User(peer), key, key.into())];
                let said = stored(committed_at(&mut store, now_ms, said).pop());
                *end += 1;
                assert_eq!(said.seq, *end, "round {round}");
            }
        }
        now_ms += if round < 6 { 500 } else { 1_000 };
        if round % 4 == 3 {
            drop(store);
            store = folder.open().expect("the same store");
            assert_eq!([store.stream_end(ben), store.stream_end(cem)], ends, "round {round}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("ours");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("ours");
        }
    }
    // As an earlier version has it: a copy is told by it.
    for name in ["identity", "generation-0", "generation-1"] {
        std::fs::remove_file(to.join(name)).ok();
    }
}

/// A store whose database is an old copy: what was given since is not given again, in conversations that the copy has
/// and in those that it has not.
#[test]
fn a_store_that_goes_on_without_what_it_lost_gives_no_seq_twice() {
    let (folder, old) = (Folder::new(), Folder::new());
    let say = |store: &mut Disk, from: UserId, to: UserId, key: u8| {
        stored(committed(store, vec![draft(from, Target::User(to), key, key.into())]).pop()).seq
    };
    let mut store = folder.open().expect("a new store");
    let [ann, ben, cem] = ["ann", "ben", "cem"].map(|uid| store.try_user(uid).expect("room"));
    assert_eq!([1, 2].map(|key| say(&mut store, ann, ben, key)), [1, 2]);
    drop(store);
    copy(&folder.0.join(DATABASE), &old.0);
    let mut store = folder.open().expect("the same store");
    assert_eq!([3, 4].map(|key| say(&mut store, ann, ben, key)), [3, 4]);
    assert_eq!([5, 6].map(|key| say(&mut store, ann, cem, key)), [1, 2]);
    drop(store);
    std::fs::remove_dir_all(folder.0.join(DATABASE)).expect("ours");
    copy(&old.0, &folder.0.join(DATABASE));
    assert!(matches!(folder.open().map(drop), Err(DiskError::Lost { .. })), "not without being told to");
    std::fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
    let mut store = folder.open().expect("it goes on");
    let wide = PageLimits { messages: 100, bytes: 1 << 20 };
    let pair = store.find("c2c:ann:ben").expect("they spoke");
    let end = store.latest(pair);
    assert!(end >= 4, "{end}");
    assert_eq!(store.unread(pair, ben), 2);
    let first = say(&mut store, ann, ben, 7);
    assert_eq!((first, store.unread(pair, ben)), (end + 1, 3));
    let page = store.read_range(pair, ben, (1, u64::MAX), wide).expect("a member");
    assert_eq!((page.messages.len(), page.voids), (3, vec![(3, end)]));
    let other = say(&mut store, ann, cem, 8);
    assert!(other > 2, "it is not known how far it was: {other}");
    let lost = store.find("c2c:ann:cem").expect("they spoke again");
    let page = store.read_range(lost, cem, (1, u64::MAX), wide).expect("a member");
    assert_eq!((page.messages.len(), page.voids, store.unread(lost, cem)), (1, vec![(1, other - 1)], 1));
    drop(store);
    // From then on it is whole: no further jump, and all of it is remembered.
    let mut store = folder.open().expect("the same store");
    assert_eq!((store.unread(pair, ben), say(&mut store, ann, ben, 9)), (3, end + 2));
    assert_eq!((store.unread(lost, cem), say(&mut store, ann, cem, 10)), (1, other + 1));
    let dan = store.try_user("dan").expect("room");
    assert!(say(&mut store, ann, dan, 11) > 2, "this one may have been lost too");
    // Without the file nothing is known: a step behind what is there.
    drop(store);
    for name in [SIDE_FILE, HIGH_WATER] {
        std::fs::remove_file(folder.0.join(name)).expect("ours");
    }
    let mut store = folder.open().expect("it goes on");
    assert!(say(&mut store, ann, ben, 12) > end + 2 + high_water::STEP);
    assert_eq!(store.unread(pair, ben), 5);
}

#[test]
fn a_device_with_the_last_of_all_numbers_is_damage() {
    for (number, is_whole) in [(u32::MAX - 2, true), (u32::MAX - 1, false), (u32::MAX, false)] {
        let folder = Folder::new();
        drop(folder.open().expect("new"));
        let tables = Tables::open(&folder.0, &folder.0.join(DATABASE), true).expect("nobody has it");
        let user = tables::UserRecord { uid: "ann".into(), ..tables::UserRecord::default() };
        let device = tables::DeviceRecord { name: "phone".into(), ..tables::DeviceRecord::default() };
        let rows = [
            Change::put(&tables.users, 0_u32.to_be_bytes().to_vec(), user.encode_to_vec()),
            Change::put(&tables.devices, tables::pair(0, number), device.encode_to_vec()),
        ];
        tables.write(rows.into()).expect("written");
        drop(tables);
        // The next login would have a number that there is not.
        let opened = folder.open();
        assert_eq!(opened.is_ok(), is_whole, "number {number}: {:?}", opened.err());
    }
}

#[test]
fn a_user_without_a_number_for_another_device_logs_in_on_known_ones() {
    let folder = Folder::new();
    drop(folder.open().expect("new"));
    let tables = Tables::open(&folder.0, &folder.0.join(DATABASE), true).expect("nobody has it");
    let next_device = u32::MAX - 2; // the last one that can be given
    let user = tables::UserRecord { uid: "ann".into(), next_device, ..tables::UserRecord::default() };
    let row = Change::put(&tables.users, 0_u32.to_be_bytes().to_vec(), user.encode_to_vec());
    tables.write(vec![row]).expect("written");
    drop(tables);
    for round in 0..2 {
        let mut store = folder.open().expect("what was given is no damage");
        let mut login = |device: &str| {
            let (uid, device) = ("ann".to_owned(), device.to_owned());
            match store.ask(Command::Login(Login { uid, device, platform: 0, now_ms: 1, issued_s: 0 })) {
                Completion::LoggedIn(login) => login.map(|login| login.cursor.device.0),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            ["phone", "laptop", "phone"].map(&mut login),
            [Some(next_device), None, Some(next_device)],
            "{round}"
        );
        let ann = store.try_user("ann").expect("known");
        committed(
            &mut store,
            vec![draft(ann, Target::User(ann), 1 + u8::try_from(round).expect("small"), 1)],
        );
    }
}

#[test]
fn a_ban_and_a_revocation_outlive_the_process() {
    let folder = Folder::new();
    let config = ImConfig::default();
    let open = || Disk::open(&folder.0, &config, Durability::System, scratch::waker()).expect("opens");
    let mut store = open();
    let user = store.try_user("bob").expect("room");
    let changes = [LoginChange::ValidFrom(77), LoginChange::BannedUntil(99)];
    committed(&mut store, changes.map(|change| Write::RuleLogins { user, change }).into());
    drop(store);
    let mut store = open();
    let mut login = |issued_s, now_ms| {
        let (uid, device) = ("bob".to_owned(), "phone".to_owned());
        match store.ask(Command::Login(Login { uid, device, platform: 0, now_ms, issued_s })) {
            Completion::LoggedIn(Some(_)) => None,
            Completion::LoginDenied(denied) => Some(denied),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(login(77, 98_999), Some(LoginDenied::Banned));
    assert_eq!(login(76, 99_000), Some(LoginDenied::Revoked));
    assert_eq!(login(77, 99_000), None);
}

/// Keys are kept for days that pass while the store is open, and not for days of the clock.
#[test]
fn a_clock_that_jumps_makes_the_store_forget_no_key() {
    const DAY_MS: u64 = 86_400_000;
    const START_MS: u64 = 20_000 * DAY_MS;
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    let say = |store: &mut Disk, now_ms, key| {
        let said = committed_at(store, now_ms, vec![draft(ann, Target::User(ben), key, 1)]);
        stored(said.into_iter().next()).delivery.is_some()
    };
    // The clock is 400 days behind, then right, then 40 days ahead: each time at a start.
    for (round, now_ms) in [START_MS - 400 * DAY_MS, START_MS, START_MS + 40 * DAY_MS].into_iter().enumerate()
    {
        let number = u8::try_from(round).expect("small");
        assert!(say(&mut store, now_ms, number), "a new key");
        for known in 0..=number {
            assert!(!say(&mut store, now_ms + 1, known), "round {round}: key {known} is forgotten");
        }
        drop(store);
        store = folder.open().expect("the same store");
    }
    // Seven days later they are.
    let now_ms = START_MS + 50 * DAY_MS;
    assert!(!say(&mut store, now_ms, 0));
    assert!(!say(&mut store, now_ms + 6 * DAY_MS, 1), "6 days");
    assert!(say(&mut store, now_ms + 8 * DAY_MS, 2), "8 days");
}
