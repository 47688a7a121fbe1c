//! Events that many users are told, on the disk.

use super::*;
use crate::im::store::{GroupEdit, GroupSettings};

/// 200 members, 300 notices of 4 KiB: by value they would be 240 MB.
#[test]
fn what_many_are_told_is_stored_once_and_outlives_the_process() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let users: Vec<UserId> = (0..200).map(|it| store.try_user(&format!("u{it}")).expect("room")).collect();
    let by = (users[0], DeviceNumber(0));
    let (name, members, event) = ("g".into(), users.clone(), Bytes::from_static(b"made"));
    let create = Write::CreateGroup { name, creator: by, members, event };
    let Some(Outcome::Created(Ok((group, _)))) = committed(&mut store, vec![create]).pop() else {
        panic!("a group")
    };
    let notice = |number: u32| format!("{number:04096}");
    for number in 0..300 {
        let settings = GroupSettings { notice: notice(number), ..GroupSettings::default() };
        let change = GroupChange::Edit(GroupEdit { settings: Some(settings), ..GroupEdit::default() });
        let event = notice(number).into();
        let done = committed(&mut store, vec![Write::ChangeGroup { conversation: group, by, change, event }]);
        assert!(matches!(&done[..], [Outcome::Done(Ok(Some(told)))] if told.recipients.len() == 200));
    }
    drop(store);
    let mut store = folder.open().expect("the same store");
    let mut stream = Vec::new();
    assert!(store.see_stream(users[7], 0, 1000, &mut stream));
    let bodies: Vec<_> = stream.into_iter().map(|(_, entry)| entry).collect();
    let [Entry::EventsDropped, Entry::Event { body: last, .. }] = &bodies[..] else {
        panic!("{} entries", bodies.len())
    };
    assert_eq!(&last[..], notice(299).as_bytes(), "what came before is told by one word");
    drop(store);
    let bytes = bytes_in(&folder.0);
    assert!(bytes < 24 << 20, "{bytes} bytes");
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let bytes = |entry: std::fs::DirEntry| match entry.metadata().expect("there") {
        it if it.is_dir() => bytes_in(&entry.path()),
        it => it.len(),
    };
    entries.map(bytes).sum()
}

/// A store of a version before the table `events`.
#[test]
fn an_old_store_gets_the_tables_that_it_does_not_have() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    committed(&mut store, vec![draft(ann, Target::User(ben), 1, 1)]);
    drop(store);
    tables::make_old(&folder.0.join("database"));
    let mut store = folder.open().expect("an old store");
    assert_eq!(store.find_user("ben"), Some(ben));
    committed(&mut store, vec![draft(ann, Target::User(ben), 2, 2)]);
    drop(store);
    tables::remove_table(&folder.0.join("database"), "events");
    assert!(matches!(folder.open(), Err(DiskError::Altered { .. })), "now it must be there");
}
