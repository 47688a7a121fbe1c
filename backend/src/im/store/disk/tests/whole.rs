//! Folders that are not whole: interrupted backups and restores, foreign folders, missing files and locks.

use super::failed_syncs::until_broken;
use super::*;
use crate::im::store::Verified;
use crate::im::store::disk::sync::faults;
use std::fs;

fn config() -> ImConfig {
    ImConfig::default()
}

fn restore(from: &Folder, to: &Folder) -> Result<Verified, DiskError> {
    Disk::restore(Some(&from.0), &to.0, &config())
}

fn refused<T>(outcome: Result<T, DiskError>) -> String {
    outcome.map(drop).expect_err("it is not whole").to_string()
}

fn is_whole(report: &Verified) -> bool {
    assert_eq!((report.messages, &report.problems), (20, &Vec::new()));
    true
}

fn backup_of(folder: &Folder) -> Folder {
    let backup = Folder::new();
    assert!(is_whole(&Disk::backup(&folder.0, &backup.0, &config()).expect("a backup")));
    backup
}

/// Nothing that opens a store takes the folder, and each error says the same way out.
fn is_refused_by_all(folder: &Folder, way_out: &str) {
    let to = Folder::new();
    for said in [
        refused(folder.open()),
        refused(Disk::verify(&folder.0, &config())),
        refused(Disk::backup(&folder.0, &to.0, &config())),
        refused(Disk::compact(&folder.0, &config())),
        refused(Disk::restore(None, &folder.0, &config())),
        refused(restore(folder, &to)),
    ] {
        assert!(said.contains(way_out) && said.contains(&folder.0.display().to_string()), "{said}");
    }
    assert!(!to.0.exists(), "nothing is made of it");
}

#[test]
fn what_is_no_backup_is_not_restored_and_the_error_names_what_is_missing() {
    let (folder, _) = spoken();
    let (from, to) = (Folder::new(), Folder::new());
    let said = refused(restore(&from, &to));
    assert!(said.contains("read the backup") && said.contains(&from.0.display().to_string()), "{said}");
    fs::create_dir(&from.0).expect("ours");
    assert!(refused(restore(&from, &to)).contains("commits is missing"));
    fs::write(from.0.join("letter.txt"), "dear").expect("ours");
    assert!(refused(restore(&from, &to)).contains("commits is missing"));
    for name in ["commits", "database/version", "database/keyspaces/0/current", "database/0.jnl"] {
        fs::remove_dir_all(&from.0).expect("ours");
        copy(&folder.0, &from.0);
        fs::remove_file(from.0.join(name)).expect("it is there");
        let (said, wanted) =
            (refused(restore(&from, &to)), name.replace('0', "*").replace("keyspaces/*", "keyspaces/0"));
        assert!(
            said.contains(&format!("{wanted} is missing")) || said.contains("database/*.jnl, are missing"),
            "{said}"
        );
    }
    let empty = Folder::new();
    drop(empty.open().expect("a new store"));
    assert!(refused(restore(&empty, &to)).contains("nothing was ever stored"));
    assert!(!to.0.exists(), "nothing was copied");
}

#[test]
fn a_copy_of_a_closed_store_is_restored_without_what_others_put_into_it() {
    let (folder, _) = spoken();
    let (from, to) = (Folder::new(), Folder::new());
    copy(&folder.0, &from.0);
    fs::write(from.0.join("letter.txt"), "dear").expect("ours");
    fs::create_dir_all(from.0.join("snapshot-7-0/store/database")).expect("ours");
    assert!(is_whole(&restore(&from, &to).expect("restored")));
    assert!(!to.0.join("letter.txt").exists() && !to.0.join("snapshot-7-0").exists());
}

#[test]
fn a_restore_that_stops_anywhere_is_refused_until_it_was_repeated() {
    let (folder, [ann, ben]) = spoken();
    let backup = backup_of(&folder);
    // The target knows of newer seqs than the backup.
    let mut store = folder.open().expect("the same store");
    committed(&mut store, vec![draft(ann, Target::User(ben), 77, 77)]);
    drop(store);
    let path = folder.0.join(HIGH_WATER);
    let (mut maxima, file) = HighWaterFile::open(&path).expect("readable");
    maxima.raise(ConversationId::of(0), 5_000_000).expect("higher");
    maxima.write(&file, &path).expect("written");
    fs::remove_dir_all(folder.0.join(DATABASE)).expect("ours");
    let names: Vec<_> = super::super::whole::files_of(&backup.0).expect("readable").into_keys().collect();
    assert!(names.len() > 40, "{names:?}");
    let stops = names.iter().filter(|name| **name != HIGH_WATER).step_by(9).map(|name| folder.0.join(name));
    for stop in stops.chain([folder.0.join("unfinished"), folder.0.join("identity")]) {
        faults::fail_next(&stop);
        let said = refused(restore(&backup, &folder));
        assert!(said.contains(&folder.0.display().to_string()), "{said}");
        is_refused_by_all(&folder, "run `moorline backend restore` again");
    }
    assert!(is_whole(&restore(&backup, &folder).expect("restored")));
    let mut store = folder.open().expect("the copy");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 50, 50)]).pop());
    assert!(next.seq > high_water::JUMP + 5_000_000, "{}", next.seq);
    assert!(matches!(restore(&backup, &folder), Err(DiskError::Taken { .. })), "it is finished");
}

/// Everything is copied; it is not known yet that the copy opens.
#[test]
fn a_restore_that_stops_before_it_is_verified_is_refused_until_it_was_repeated() {
    let (folder, _) = spoken();
    let (backup, to) = (backup_of(&folder), Folder::new());
    for stop in ["name", "generation-1", "generation-0", "journals"] {
        fs::remove_dir_all(&to.0).ok();
        faults::fail_next(&to.0.join(stop));
        if stop == "journals" {
            faults::fail_next(&to.0.join("name"));
        }
        let said = refused(restore(&backup, &to));
        assert!(said.contains("run `moorline backend restore` again"), "{said}");
        is_refused_by_all(&to, "run `moorline backend restore` again");
        assert!(is_whole(&restore(&backup, &to).expect("restored")));
        drop(to.open().expect("it is finished"));
    }
}

#[test]
fn two_restores_into_one_folder_do_not_meet() {
    use super::super::whole::{Work, begin};
    let (folder, _) = spoken();
    let (backup, to) = (backup_of(&folder), Folder::new());
    fs::create_dir_all(&to.0).expect("made");
    let other = begin(&to.0, Work::Restore).expect("nobody is there");
    let said = refused(restore(&backup, &to));
    assert!(said.contains("begin to restore into") && said.contains("another one is under way"), "{said}");
    drop(other);
    assert!(is_whole(&restore(&backup, &to).expect("restored")));
}

#[test]
fn a_damaged_backup_is_named_and_leaves_no_store() {
    let (folder, _) = spoken();
    let in_journal = backup_of(&folder);
    Disk::compact(&folder.0, &config()).expect("compacted");
    let in_tables = backup_of(&folder);
    let names = |backup: &Folder, part: &str| -> Vec<String> {
        let files = super::super::whole::files_of(&backup.0).expect("readable");
        files.into_iter().filter(|(name, length)| name.contains(part) && *length > 0).map(|it| it.0).collect()
    };
    let journals = names(&in_journal, ".jnl").into_iter().map(|name| (&in_journal, name));
    let tables = names(&in_tables, "/tables/").into_iter().take(3).map(|name| (&in_tables, name));
    let cases: Vec<_> = journals.chain(tables).collect();
    assert_eq!(cases.len(), 4, "{cases:?}");
    for (backup, name) in cases {
        let (damaged, to) = (Folder::new(), Folder::new());
        copy(&backup.0, &damaged.0);
        fs::copy(backup.0.join("identity"), damaged.0.join("identity")).expect("ours");
        let path = damaged.0.join(&name);
        let mut bytes = fs::read(&path).expect("readable");
        let at = if name.contains(".jnl") { bytes.len() / 2 } else { 9 };
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("ours");
        let error = restore(&damaged, &to).expect_err("it is damaged");
        let said = error.to_string();
        assert!(matches!(error, DiskError::DamagedBackup { .. }), "{name}: {said}");
        assert!(said.contains(&format!("the backup in {} is damaged", damaged.0.display())), "{said}");
        assert!(said.contains(&path.display().to_string()) && !said.contains("commits to go on"), "{said}");
        is_refused_by_all(&to, "run `moorline backend restore` again");
        assert!(is_whole(&restore(backup, &to).expect("restored")));
    }
}

#[test]
fn a_backup_and_a_store_in_each_other_are_refused() {
    let (folder, _) = spoken();
    let (backup, link) = (backup_of(&folder), Folder::new());
    std::os::unix::fs::symlink(folder.0.join(DATABASE), &link.0).expect("ours");
    let inner = |path: &str| folder.0.join(path);
    for to in [inner("sub"), inner("database/sub"), inner("database/../sub"), link.0.join("sub")] {
        let said = refused(Disk::backup(&folder.0, &to, &config()));
        assert!(said.contains("cannot be in each other") && !to.exists(), "{said}");
    }
    fs::remove_file(&link.0).expect("ours");
    copy(&backup.0, &inner("sub"));
    let said = refused(Disk::restore(Some(&inner("sub")), &folder.0, &config()));
    assert!(said.contains("cannot be in each other"), "{said}");
    let said = refused(Disk::restore(Some(&backup.0), &backup.0.join("store"), &config()));
    assert!(said.contains("cannot be in each other") && !backup.0.join("store").exists(), "{said}");
    // A name that only begins with that of the store is another folder.
    let beside = Folder(PathBuf::from(format!("{}-backup", folder.0.display())));
    Disk::backup(&folder.0, &beside.0, &config()).expect("outside");
}

#[test]
fn verify_reports_what_the_start_refuses_with_the_same_words() {
    let (folder, _) = spoken();
    for (name, is_folder) in [
        ("commits", false),
        ("journals", false),
        ("commits", true),
        ("journals", true),
        ("identity", true),
        ("name", true),
        ("sequences", true),
        ("generation-0", true),
    ] {
        let (broken, path) = (Folder::new(), |folder: &Folder| folder.0.join(name));
        copy(&folder.0, &broken.0);
        fs::remove_file(path(&broken)).ok();
        if is_folder {
            fs::create_dir(path(&broken)).expect("ours");
        } else {
            fs::write(path(&broken), "").expect("ours");
        }
        let verified = refused(Disk::verify(&broken.0, &config()));
        assert_eq!(verified, refused(broken.open()), "{name}");
    }
}

#[test]
fn verify_reports_sequences_that_are_missing_or_empty() {
    let (folder, _) = spoken();
    for is_removed in [false, true] {
        fs::write(folder.0.join(HIGH_WATER), "").expect("ours");
        if is_removed {
            fs::remove_file(folder.0.join(HIGH_WATER)).expect("ours");
        }
        let report = Disk::verify(&folder.0, &config()).expect("readable");
        assert!(report.problems[0].contains("`sequences` is missing or empty"), "{report:?}");
    }
}

#[test]
fn a_backup_that_stops_anywhere_is_no_backup() {
    let (folder, _) = spoken();
    let whole = backup_of(&folder);
    let names: Vec<_> = super::super::whole::files_of(&whole.0).expect("readable").into_keys().collect();
    for name in names.iter().step_by(9).map(|name| &**name).chain(["unfinished", "identity", "backup"]) {
        let to = Folder::new();
        faults::fail_next(&to.0.join(name));
        refused(Disk::backup(&folder.0, &to.0, &config()));
        is_refused_by_all(&to, "make another backup");
        let again = refused(Disk::backup(&folder.0, &to.0, &config()));
        assert!(again.contains("remove the folder"), "{again}");
    }
}

#[test]
fn a_backup_from_which_a_file_is_missing_is_refused_by_its_name() {
    let (folder, _) = spoken();
    let backup = backup_of(&folder);
    let files = super::super::whole::files_of(&backup.0).expect("readable");
    let names: Vec<_> = files.iter().filter(|(name, _)| !name.ends_with('/')).collect();
    let cut = Folder::new();
    for (name, length) in names.iter().step_by(5) {
        for is_removed in [true, false] {
            fs::remove_dir_all(&cut.0).ok();
            copy(&backup.0, &cut.0);
            fs::copy(backup.0.join("identity"), cut.0.join("identity")).expect("ours");
            let path = cut.0.join(name);
            if is_removed {
                fs::remove_file(&path).expect("it is there");
            } else {
                fs::write(&path, vec![b'x'; usize::try_from(**length).expect("small") + 1]).expect("ours");
            }
            let to = Folder::new();
            for said in [refused(restore(&cut, &to)), refused(cut.open())] {
                assert!(said.contains("not a whole backup") && said.contains(name.as_str()), "{said}");
            }
            assert!(!to.0.exists());
        }
    }
    fs::write(backup.0.join("backup"), "files of a backup\n").expect("ours");
    assert!(refused(restore(&backup, &cut)).contains("is damaged"));
}

/// An earlier version has made it: it has no list.
#[test]
fn a_backup_without_a_list_is_taken_and_one_that_is_opened_becomes_a_store() {
    let (folder, _) = spoken();
    let (backup, to) = (backup_of(&folder), Folder::new());
    fs::remove_file(backup.0.join("backup")).expect("it is there");
    assert!(is_whole(&restore(&backup, &to).expect("restored")));
    let other = backup_of(&folder);
    for _ in 0..2 {
        drop(other.open().expect("a copy"));
        assert!(!other.0.join("backup").exists(), "its files change from now on");
    }
}

#[test]
fn what_an_interrupted_verify_left_is_removed_at_the_next_start() {
    let (folder, _) = spoken();
    let left = ["snapshot-999999999", "snapshot-999999999-0", "snapshot-1-0"].map(|name| folder.0.join(name));
    let mine = folder.0.join(format!("snapshot-{}", std::process::id()));
    let others = [folder.0.join("snapshot-of-monday"), mine, folder.0.join("snapshot-8-0")];
    let make = || {
        for path in left.iter().chain(&others) {
            fs::create_dir_all(path.join("store")).expect("ours");
        }
    };
    make();
    let lock = fs::File::open(&others[2]).expect("ours");
    lock.try_lock().expect("nobody else has it");
    drop(folder.open().expect("the store"));
    assert!(left.iter().all(|path| !path.exists()) && others.iter().all(|path| path.exists()));
    make();
    Disk::verify(&folder.0, &config()).expect("readable");
    assert!(left.iter().all(|path| !path.exists()) && others.iter().all(|path| path.exists()));
    drop(lock);
    drop(folder.open().expect("the store"));
    assert!(!others[2].exists(), "its process has ended");
}

#[test]
fn removed_lock_files_let_nobody_in_and_the_holder_stops() {
    let (folder, [ann, ben]) = spoken();
    let mut store = folder.open().expect("the store");
    for name in ["lock", "database/lock"] {
        fs::remove_file(folder.0.join(name)).expect("it is there");
    }
    assert!(matches!(folder.open(), Err(DiskError::Locked { .. })), "the folder is locked too");
    assert!(matches!(Disk::compact(&folder.0, &config()), Err(DiskError::Locked { .. })));
    assert!(matches!(Disk::restore(None, &folder.0, &config()), Err(DiskError::Locked { .. })));
    fs::remove_file(folder.0.join("lock")).ok();
    until_broken(&store);
    store.commit(1, 99, vec![draft(ann, Target::User(ben), 99, 99)]);
    assert!(store.committed().is_none(), "nothing more is acknowledged");
    drop(store);
    let mut store = folder.open().expect("nobody else has it");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 98, 98)]).pop());
    assert_eq!(next.seq, 21, "and nothing was lost");
}

#[test]
fn a_missing_part_is_named_before_the_engine_gives_up() {
    let (folder, _) = spoken();
    let version = folder.0.join("database/version");
    let content = fs::read(&version).expect("it is there");
    fs::remove_file(&version).expect("it is there");
    for said in [refused(folder.open()), refused(Disk::verify(&folder.0, &config()))] {
        assert!(said.contains(&format!("{} is gone", version.display())), "{said}");
    }
    fs::write(&version, content).expect("ours");
    let current = folder.0.join("database/keyspaces/3/current");
    fs::remove_file(&current).expect("it is there");
    for said in [refused(Disk::verify(&folder.0, &config())), refused(folder.open())] {
        assert!(said.contains(&format!("{} is gone", current.display())), "{said}");
    }
    let nowhere = Folder::new();
    fs::create_dir(&nowhere.0).expect("ours");
    let said = refused(Disk::verify(&nowhere.0, &config()));
    assert!(said.contains("there is no store in") && said.contains("check im.folder"), "{said}");
    assert!(refused(Disk::restore(None, &nowhere.0, &config())).contains("there is no store in"));
}

#[test]
fn a_database_whose_making_was_interrupted_is_made_again() {
    let folder = Folder::new();
    fs::create_dir_all(folder.0.join("database/keyspaces")).expect("ours");
    fs::write(folder.0.join("database/lock"), "").expect("ours");
    fs::write(folder.0.join("database/0.jnl"), [0; 4096]).expect("ours");
    drop(folder.open().expect("nothing is lost"));
    drop(folder.open().expect("a store"));
}
