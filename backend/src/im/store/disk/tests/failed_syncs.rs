//! Syncs that fail: nothing that was written before them is trusted until it is in a file of its own that was synced.

use super::*;
use crate::im::store::disk::sync::faults;
use std::os::unix::fs::MetadataExt as _;

/// A store of two users who have spoken.
fn spoken_open() -> (Folder, Disk, [UserId; 2]) {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    for key in 0..5 {
        committed(&mut store, vec![draft(ann, Target::User(ben), key, key.into())]);
    }
    (folder, store, [ann, ben])
}

pub(super) fn until_broken(store: &Disk) {
    while !store.is_broken() {
        scratch::wait();
    }
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).expect("it is there").ino()
}

/// Content of the page cache that is not on the disk looks as if it were there. Only a new file, synced, is.
#[test]
fn after_a_failed_sync_the_journal_is_a_new_file_before_anything_is_acknowledged() {
    let (folder, mut store, [ann, ben]) = spoken_open();
    let journal = folder.0.join(DATABASE).join("0.jnl");
    let pointers: Vec<PathBuf> = std::fs::read_dir(folder.0.join(DATABASE).join(renew::TABLES))
        .expect("tables")
        .map(|table| table.expect("a table").path().join("current"))
        .collect();
    let high_water = folder.0.join(HIGH_WATER);
    let inodes = |folder: &Folder| {
        let all = pointers.iter().chain([&journal, &high_water]);
        (folder.0.clone(), all.map(|path| inode(path)).collect::<Vec<_>>()).1
    };
    let before = inodes(&folder);
    faults::fail_next(&journal);
    assert!(store.commit(1, 77, vec![draft(ann, Target::User(ben), 5, 5)]));
    until_broken(&store);
    assert!(store.committed().is_none(), "nothing is acknowledged");
    drop(store);
    // The disk fails again: the store stays closed, also for a new process.
    for _ in 0..2 {
        faults::fail_next(&journal);
        let refused = folder.open().map(drop).expect_err("it cannot be trusted").to_string();
        assert!(refused.contains("failed sync"), "{refused}");
    }
    let mut store = folder.open().expect("written anew");
    let after = inodes(&folder);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    // What was written counts, once.
    let again = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 5, 9)]).pop());
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 6, 10)]).pop());
    assert_eq!((again.seq, next.seq), (6, 7));
    drop(store);
    drop(folder.open().expect("it is whole"));
    assert_eq!(inode(&journal), after[after.len() - 2], "once is enough");
}

#[test]
fn a_failed_sync_of_any_file_beside_the_database_ends_the_store() {
    for name in [SIDE_FILE, HIGH_WATER] {
        let folder = Folder::new();
        let mut store = folder.open().expect("a new store");
        let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
        // The first message raises the maximum; every commit syncs the mark.
        faults::fail_next(&folder.0.join(name));
        assert!(store.commit(1, 77, vec![draft(ann, Target::User(ben), 1, 1)]));
        until_broken(&store);
        assert!(store.committed().is_none(), "{name}: nothing is acknowledged");
        drop(store);
        let noted = mark::Noted::read(&folder.0.join(SIDE_FILE)).expect("readable");
        assert!(noted.mark().is_some_and(|mark| !mark.is_sound), "{name}: {noted:?}");
    }
}

/// A message key of a new day makes a table. Its folder would be gone after a power cut, and with it the keys of that day.
#[test]
fn a_table_that_is_made_while_the_store_runs_is_on_the_disk_before_anything_in_it_is_acknowledged() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    let tables = folder.0.join(DATABASE).join(renew::TABLES);
    let count = || std::fs::read_dir(&tables).expect("tables").count();
    let before = count();
    faults::fail_next(&tables);
    assert!(store.commit(1, 77, vec![draft(ann, Target::User(ben), 1, 1)]));
    assert_eq!(count(), before + 1, "the first key of its day");
    until_broken(&store);
    assert!(store.committed().is_none(), "nothing is acknowledged");
    drop(store);
    let mut store = folder.open().expect("synced at the start");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    stored(committed(&mut store, vec![draft(ann, Target::User(ben), 1, 1)]).pop());
}

#[test]
fn a_failed_sync_of_a_folder_is_an_error_of_the_start() {
    let (folder, store, _) = spoken_open();
    drop(store);
    for path in [folder.0.clone(), folder.0.join(DATABASE), folder.0.join(DATABASE).join(renew::TABLES)] {
        faults::fail_next(&path);
        let refused = folder.open().map(drop).expect_err("it is not on the disk").to_string();
        assert!(refused.contains(&path.display().to_string()), "{refused}");
    }
    folder.open().expect("and then it is");
}

#[test]
fn a_store_whose_folder_was_removed_acknowledges_nothing_more() {
    let (folder, mut store, [ann, ben]) = spoken_open();
    std::fs::remove_dir_all(&folder.0).expect("ours");
    assert!(store.commit(1, 77, vec![draft(ann, Target::User(ben), 5, 5)]));
    until_broken(&store);
    assert!(store.committed().is_none());
}

#[test]
fn a_missing_lock_file_of_the_engine_is_made_again() {
    let (folder, store, _) = spoken_open();
    assert!(matches!(folder.open().map(drop), Err(DiskError::Locked { .. })), "one at a time");
    drop(store);
    std::fs::remove_file(folder.0.join(DATABASE).join("lock")).expect("it is there");
    folder.open().expect("the lock is empty: many copies leave it out");
}
