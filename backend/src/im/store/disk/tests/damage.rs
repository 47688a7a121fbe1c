//! Damage that the engine does not see: commits that are lost, journals that are cut off, tables that are gone.

use super::*;
use std::collections::BTreeSet;

#[test]
fn a_database_that_lost_commits_is_refused() {
    let (folder, _) = spoken();
    // One byte in the middle of the journal: the engine reads up to there, and says nothing.
    let journal = std::fs::read_dir(folder.0.join(DATABASE))
        .expect("the database")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .expect("a journal");
    let mut bytes = std::fs::read(&journal).expect("it is there");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    bytes[used / 2] ^= 0xFF;
    std::fs::write(&journal, bytes).expect("ours");
    let refused = folder.open().map(drop).expect_err("writes are missing");
    let said = refused.to_string();
    assert!(matches!(&refused, DiskError::Altered { path, .. } if *path == journal), "{said}");
}

/// However short it ran, and however it ended.
#[test]
fn a_journal_that_is_cut_off_is_refused() {
    let (folder, [ann, ben]) = spoken();
    let journal = folder.0.join(DATABASE).join("0.jnl");
    let bytes = std::fs::read(&journal).expect("a journal");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    std::fs::write(&journal, &bytes[..used / 2]).expect("ours");
    let refused = folder.open().map(drop).expect_err("writes are missing");
    assert!(matches!(&refused, DiskError::Altered { path, .. } if *path == journal), "{refused}");
    // What is to say so is damaged itself.
    for text in ["", "20\n", "twenty"] {
        std::fs::write(folder.0.join(SIDE_FILE), text).expect("ours");
        let refused = folder.open().map(drop).expect_err("it is not known what is missing");
        assert!(matches!(refused, DiskError::SideFile { .. }), "{text:?}: {refused}");
    }
    std::fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
    let mut store = folder.open().expect("it goes on");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 30, 300)]).pop());
    assert!(next.seq > high_water::STEP, "{}", next.seq);
}

#[test]
fn a_complete_journal_that_is_not_what_it_was_is_refused() {
    const AT_ONCE: u64 = 64;
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    let list = folder.0.join("journals");
    let mut number = 0;
    let is_written = || std::fs::read_to_string(&list).is_ok_and(|text| text.lines().count() > 1);
    // The engine packs what it can.
    let mut random = Random::new(1);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| random.next_u64().to_ne_bytes()).take(60 << 7).flatten().collect();
    // Many messages a commit: what fills a journal is bytes, and each commit waits for the disk.
    while !is_written() && number < 3000 {
        let append = |number: u64| {
            let body = BytesMut::from(&noise[..]);
            let key = MessageKey(u128::from(number).to_be_bytes());
            let (target, device) = (Target::User(ben), DeviceNumber(0));
            Write::Append(Draft {
                is_repeat: false,
                sender: ann,
                device,
                target,
                key,
                id: number + 1,
                time_ms: 1,
                digest: 0,
                body,
            })
        };
        committed(&mut store, (number..number + AT_ONCE).map(append).collect());
        number += AT_ONCE;
    }
    drop(store);
    let text = std::fs::read_to_string(&list).expect("there are complete ones");
    let name = text.lines().nth(1).and_then(|line| line.split(' ').next()).expect("one at least");
    let journal = folder.0.join(DATABASE).join(name);
    let bytes = std::fs::read(&journal).expect("it is not written out yet");
    let mut spoiled = bytes.clone();
    spoiled[bytes.len() / 2] ^= 0xFF;
    for wrong in [&bytes[..bytes.len() / 2], &spoiled] {
        std::fs::write(&journal, wrong).expect("ours");
        let refused = folder.open().map(drop).expect_err("it is damaged").to_string();
        assert!(refused.contains(name) && refused.contains("restore a backup"), "{refused}");
    }
    // The engine gives back the room it made in advance.
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("something") + 1;
    std::fs::write(&journal, [&bytes[..used], &[0; 100]].concat()).expect("ours");
    let store = folder.open().expect("it is whole");
    assert_eq!(store.latest(store.find("c2c:ann:ben").expect("they spoke")), number);
}

#[test]
fn a_table_that_is_gone_is_missed() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    committed(&mut store, vec![draft(ann, Target::User(ben), 1, 1)]);
    drop(store);
    let tables = folder.0.join(DATABASE).join("keyspaces");
    let (mut gone, whole) = (0, Folder::new());
    copy(&folder.0, &whole.0);
    for number in 1..=15 {
        std::fs::remove_dir_all(folder.0.join(DATABASE)).expect("ours");
        copy(&whole.0, &folder.0);
        std::fs::remove_dir_all(tables.join(number.to_string())).expect("a table");
        // And again: nothing was made in its place.
        for _ in 0..2 {
            match folder.open().map(drop) {
                Err(DiskError::Altered { problem, .. }) if problem == "it is gone" => gone += 1,
                other => panic!("table {number}: {other:?}"),
            }
        }
    }
    assert_eq!(gone, 30);
    std::fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
    folder.open().expect("it goes on without");
}

/// The device is told to ask, and gets the rest.
#[test]
fn a_damaged_entry_of_an_inbox_is_not_passed_over() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    store.login(ben, "phone", 0, 0);
    for key in 1..=5 {
        committed(&mut store, vec![draft(ann, Target::User(ben), key, key.into())]);
    }
    drop(store);
    let tables = Tables::open(&folder.0, &folder.0.join(DATABASE), true).expect("the database");
    tables.streams.insert(tables::place(ben.index(), 3), [0xFF; 3]).expect("written");
    drop(tables);
    let mut store = folder.open().expect("the same store");
    let mut entries = Vec::new();
    assert!(store.see_stream(ben, 0, 100, &mut entries));
    let is_message: Vec<bool> =
        entries.iter().map(|(_, entry)| matches!(entry, Entry::Message { .. })).collect();
    assert_eq!(is_message, [true, true, false, true, true]);
    assert_eq!(entries[2], (3, Entry::EventsDropped));
}

/// 4 MB of starts, each of which is a batch up to the end of the file: read one by one, they are 250 GB.
#[test]
fn a_journal_made_to_be_read_again_and_again_is_refused_at_once() {
    let folder = Folder::new();
    let database = folder.0.join(DATABASE);
    std::fs::create_dir_all(&database).expect("ours");
    let whole = fuzz::files::batch(1, Some(1), b"whole");
    let mut start = vec![1];
    start.extend(u32::MAX.to_le_bytes());
    start.extend(2_u64.to_le_bytes());
    // An item without a key, whose value is the next start.
    let item = [&[2][..], &[0; 16], &u32::try_from(start.len()).expect("short").to_le_bytes()].concat();
    let nested = [start, item].concat().repeat(120_000);
    let journal = journal::path_of(&database, 0);
    let bytes = [&whole[..], &nested].concat();
    std::fs::write(&journal, &bytes).expect("ours");
    let end = mark::End { journal: 0, offset: whole.len() as u64, seqno: 1 };
    let mark = mark::Mark { commits: 1, end: Some(end), is_sound: true };
    let mend = |noted| tail::mend(&folder.0, &database, &noted, &BTreeSet::new());
    let refused = mend(mark::Noted::Mark(mark)).expect_err("nobody knows what it is").to_string();
    let expected = format!("it is damaged at byte {}, and more behind it looks like commits", whole.len());
    assert!(refused.contains("0.jnl") && refused.contains(&expected), "{refused}");
    assert_eq!(std::fs::metadata(&journal).expect("there").len(), bytes.len() as u64, "nothing is cut off");
    mend(mark::Noted::Nothing).expect("a store that goes on without it");
    assert_eq!(std::fs::metadata(&journal).expect("there").len(), whole.len() as u64);
}
