//! Backups, restored and cloned stores, and the proof that a store agrees with itself.

use super::*;
use crate::im::store::Verified;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn verify(folder: &Path) -> Verified {
    Disk::verify(folder, &ImConfig::default()).expect("readable")
}

fn is_whole(report: &Verified) -> bool {
    assert_eq!(report.problems, Vec::<String>::new(), "{report:?}");
    report.problem_count == 0
}

#[test]
fn a_store_agrees_with_itself_while_it_is_open_and_after() {
    let (folder, [ann, ben]) = spoken();
    let mut store = folder.open().expect("the same store");
    store.login(ben, "phone", 0, 0);
    let create = Write::CreateGroup {
        name: "g".into(),
        creator: (ann, DeviceNumber(0)),
        members: vec![ben],
        event: Bytes::from_static(b"made"),
    };
    committed(&mut store, vec![create]);
    let report = verify(&folder.0);
    assert!(is_whole(&report));
    assert_eq!((report.users, report.conversations, report.messages, report.keys), (2, 2, 20, 20));
    drop(store);
    assert_eq!(verify(&folder.0), report);
    assert_eq!(verify(&folder.0), report, "nothing was changed");
    let left = std::fs::read_dir(&folder.0)
        .expect("ours")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert!(left.into_iter().all(|name| !name.starts_with("snapshot")));
}

#[test]
fn rows_that_contradict_each_other_are_named() {
    let (folder, [_, ben]) = spoken();
    let tables = Tables::open(&folder.0, &folder.0.join(DATABASE), true).expect("the database");
    tables.messages.remove(tables::place(0, 7)).expect("removed");
    tables.streams.remove(tables::place(ben.index(), 3)).expect("removed");
    let other = tables.messages.get(tables::place(0, 2)).expect("readable").expect("there");
    tables.messages.insert(tables::place(0, 9), other).expect("written");
    drop(tables);
    let report = verify(&folder.0);
    let said = report.problems.join("\n");
    assert!(said.contains("the seqs 7 to 7 are neither messages nor voids"), "{said}");
    assert!(said.contains("has an entry 4 in the place of 3"), "{said}");
    assert!(said.contains("the message 9 of c2c:ann:ben says that it is the message 2 "), "{said}");
}

/// Messages are stored while backups are made; each backup is a prefix of them.
#[test]
fn a_backup_of_a_store_that_is_written_is_whole() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    committed(&mut store, vec![draft(ann, Target::User(ben), 0, 1)]);
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut number = 1_u64;
        while !stopper.load(Ordering::SeqCst) {
            let body = BytesMut::from(&Push { message_id: 1, ..Push::default() }.encode_to_vec()[..]);
            let (target, device, id) = (Target::User(ben), DeviceNumber(0), 1);
            let key = MessageKey((u128::from(number) + 1000).to_be_bytes());
            let said =
                Draft { is_repeat: false, sender: ann, device, target, key, id, time_ms: 1, digest: 1, body };
            committed(&mut store, vec![Write::Append(said)]);
            number += 1;
        }
        number
    });
    let mut last = 0;
    for _ in 0..3 {
        let to = Folder::new();
        let report = Disk::backup(&folder.0, &to.0, &ImConfig::default()).expect("a backup");
        assert!(is_whole(&report));
        assert!(report.messages >= last && report.messages > 0, "{report:?}");
        assert_eq!(report.messages, report.keys);
        last = report.messages;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writer.join().expect("no panic") >= last);
}

#[test]
fn a_restored_backup_goes_on_far_behind_what_was_given_since() {
    let (folder, [ann, ben]) = spoken();
    let (backup, restored) = (Folder::new(), Folder::new());
    Disk::backup(&folder.0, &backup.0, &ImConfig::default()).expect("a backup");
    let mut store = folder.open().expect("the same store");
    for key in 20..40 {
        committed(&mut store, vec![draft(ann, Target::User(ben), key, key.into())]);
    }
    drop(store);
    let restore = |from, to: &Folder| Disk::restore(from, &to.0, &ImConfig::default());
    assert!(matches!(restore(Some(&*backup.0), &folder), Err(DiskError::Taken { .. })), "a store is there");
    restore(Some(&*backup.0), &restored).expect("restored");
    let mut store = restored.open().expect("the copy");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 50, 50)]).pop());
    assert!(next.seq > high_water::JUMP, "{}", next.seq);
    let pair = store.find("c2c:ann:ben").expect("they spoke");
    let wide = PageLimits { messages: 100, bytes: 1 << 20 };
    let page = store.read_range(pair, ben, (1, u64::MAX), wide).expect("a member");
    assert_eq!((page.messages.len(), page.voids), (21, vec![(21, next.seq - 1)]));
    drop(store);
    // Once: the next start goes on from there.
    let mut store = restored.open().expect("the same store");
    let after = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 51, 51)]).pop());
    assert_eq!(after.seq, next.seq + 1);
}

/// A whole old folder agrees with itself: `cp`, `rsync` and backup tools put one back.
#[test]
fn a_whole_old_folder_is_known_for_a_copy() {
    let (folder, [ann, ben]) = spoken();
    let old = Folder::new();
    copy(&folder.0, &old.0);
    std::fs::copy(folder.0.join("identity"), old.0.join("identity")).expect("ours");
    let mut store = folder.open().expect("the same store");
    let same = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 60, 60)]).pop());
    assert_eq!(same.seq, 21, "the store itself goes on");
    drop(store);
    let mut store = old.open().expect("the copy");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 61, 61)]).pop());
    assert!(next.seq > high_water::JUMP, "{}", next.seq);
    let new = store.try_user("new").expect("room");
    let other = stored(committed(&mut store, vec![draft(ann, Target::User(new), 62, 62)]).pop());
    assert!(other.seq > high_water::JUMP, "a conversation that the original may have had: {}", other.seq);
}

/// Gateways compare the name: two copies must not pass for one store, and a store must not pass for two.
#[test]
fn a_store_keeps_its_name_and_a_copy_gets_another() {
    let (folder, _) = spoken();
    let name = folder.open().expect("the store").name();
    assert_eq!(name.len(), 16);
    assert_eq!(folder.open().expect("the same store").name(), name);
    let (copied, backup, restored) = (Folder::new(), Folder::new(), Folder::new());
    copy(&folder.0, &copied.0);
    for file in ["identity", "name"] {
        std::fs::copy(folder.0.join(file), copied.0.join(file)).expect("ours");
    }
    Disk::backup(&folder.0, &backup.0, &ImConfig::default()).expect("a backup");
    Disk::restore(Some(&*backup.0), &restored.0, &ImConfig::default()).expect("restored");
    let names = [&copied, &restored].map(|folder| folder.open().expect("a copy").name());
    assert!(names[0] != names[1] && !names.contains(&name), "{names:?}");
    assert_eq!(restored.open().expect("the same copy").name(), names[1]);
    for text in ["", "short\n", "not hexadecimal, but as long as it\n"] {
        std::fs::write(folder.0.join("name"), text).expect("ours");
        let new = folder.open().expect("the same store").name();
        assert!(new.len() == 16 && new != name);
        assert_eq!(folder.open().expect("the same store").name(), new);
    }
}

/// Every file of the database, damaged or removed, one after the other: whoever is refused is told which it is.
#[test]
fn a_refusal_names_the_damaged_file() {
    let (folder, _) = spoken();
    // Everything goes into tables, as it does with time.
    let tables = Tables::open(&folder.0, &folder.0.join(DATABASE), true).expect("the database");
    for table in tables.busy().iter().chain([&tables.users, &tables.conversations, &tables.meta]) {
        table.rotate_memtable_and_wait().expect("written out");
    }
    drop(tables);
    assert_eq!(blame::damaged(&folder.0.join(DATABASE)), None, "a whole store has no damaged file");
    let mut files = Vec::new();
    for table in std::fs::read_dir(folder.0.join(DATABASE).join(renew::TABLES)).expect("tables") {
        let table = table.expect("a table").path();
        for file in std::fs::read_dir(&table)
            .expect("files")
            .chain(std::fs::read_dir(table.join("tables")).expect("files"))
        {
            let path = file.expect("a file").path();
            let name = path.strip_prefix(&folder.0).expect("inside").to_owned();
            files.extend(path.is_file().then_some(name));
        }
    }
    let (mut refused, mut named) = (0, 0);
    for name in &files {
        for is_removed in [false, true] {
            let copied = Folder::new();
            copy(&folder.0, &copied.0);
            let path = copied.0.join(name);
            let mut bytes = std::fs::read(&path).expect("ours");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            if is_removed { std::fs::remove_file(&path) } else { std::fs::write(&path, bytes) }
                .expect("ours");
            if let Err(error) = copied.open() {
                refused += 1;
                let is_named = error.to_string().contains(&path.display().to_string());
                named += usize::from(is_named);
                assert!(is_named, "{}, removed: {is_removed}: {error}", name.display());
            }
        }
    }
    assert!(files.len() > 30 && refused > files.len() / 2, "{refused} of {} files were missed", files.len());
    assert_eq!(named, refused);
}
