//! Old copies that programs put back over a store.

use super::failed_syncs::until_broken;
use super::*;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

/// A way in which programs write a copy over what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `cp`: into the files that are there.
    Into,
    /// `rsync --inplace`: the same, but for files of the same length and time.
    IntoOthers,
    /// `rsync`: a new file in the place of each, but for those of the same length and time.
    Replace,
}

const WAYS: [Way; 3] = [Way::Into, Way::IntoOthers, Way::Replace];
const FILES: [&str; 2] = ["generation-0", "generation-1"];

/// Copies everything, with the times of the files, and removes what is not in the copy.
fn put(from: &Path, to: &Path, way: Way) {
    fs::create_dir_all(to).expect("ours");
    for entry in fs::read_dir(to).expect("a folder") {
        let path = entry.expect("an entry").path();
        if !from.join(path.file_name().expect("a name")).exists() {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
    for entry in fs::read_dir(from).expect("a folder") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.extension().is_some_and(|extension| extension == "new") {
            continue; // may be renamed meanwhile
        }
        if from.is_dir() {
            put(&from, &to, way);
            continue;
        }
        let found = fs::metadata(&from).expect("there");
        let modified = found.modified().expect("a time");
        let is_same = |to: fs::Metadata| to.len() == found.len() && to.modified().ok() == Some(modified);
        if way != Way::Into && fs::metadata(&to).is_ok_and(is_same) {
            continue;
        }
        let fresh = to.with_extension("rsync");
        let place = if way == Way::Replace { &fresh } else { &to };
        fs::copy(&from, place).expect("ours");
        File::options().write(true).open(place).expect("ours").set_modified(modified).expect("ours");
        if way == Way::Replace {
            fs::rename(&fresh, &to).expect("ours");
        }
    }
}

fn say(store: &mut Disk, [ann, ben]: [UserId; 2], key: u8) -> u64 {
    stored(committed(store, vec![draft(ann, Target::User(ben), key, key.into())]).pop()).seq
}

/// Has the store end as a kill does: nothing is noted at the end.
fn kill(folder: &Folder, store: Disk) {
    fs::remove_file(folder.0.join("lock")).expect("it is there");
    until_broken(&store);
    drop(store);
}

fn numbers(folder: &Path) -> [Vec<u8>; 2] {
    FILES.map(|name| fs::read(folder.join(name)).expect("written"))
}

#[test]
fn an_old_copy_that_was_put_back_in_place_is_known_for_one() {
    for way in WAYS {
        let (folder, users) = spoken();
        let old = Folder::new();
        put(&folder.0, &old.0, Way::Into);
        let mut store = folder.open().expect("the same store");
        assert_eq!([30, 31].map(|key| say(&mut store, users, key)), [21, 22]);
        drop(store);
        put(&old.0, &folder.0, way);
        let mut store = folder.open().expect("a copy");
        let next = say(&mut store, users, 32);
        assert!(next > high_water::JUMP, "{way:?}: seq {next}");
        drop(store);
        let mut store = folder.open().expect("the same copy");
        assert_eq!(say(&mut store, users, 33), next + 1, "{way:?}: once");
    }
}

/// The copy is made while the backend runs, and put back after a kill.
#[test]
fn a_copy_of_an_earlier_generation_of_the_same_process_is_known_for_one() {
    for way in WAYS {
        let (folder, users) = spoken();
        let old = Folder::new();
        let mut store = folder.open().expect("the same store");
        put(&folder.0, &old.0, Way::Into);
        assert_eq!(say(&mut store, users, 30), 21);
        while numbers(&folder.0) == numbers(&old.0) {
            scratch::wait();
        }
        kill(&folder, store);
        put(&old.0, &folder.0, way);
        let mut store = folder.open().expect("a copy");
        let next = say(&mut store, users, 31);
        assert!(next > high_water::JUMP, "{way:?}: seq {next}");
    }
}

#[test]
fn the_store_itself_goes_on_after_a_stop_a_kill_and_work_on_it() {
    let (folder, users) = spoken();
    let config = ImConfig::default();
    let mut next = 20;
    let mut goes_on = |is_killed: bool, work: &str| {
        let mut store = folder.open().expect("the same store");
        next += 1;
        assert_eq!(say(&mut store, users, u8::try_from(next + 30).expect("small")), next, "{work}");
        if is_killed { kill(&folder, store) } else { drop(store) }
    };
    for is_killed in [true, false, true, false, false] {
        goes_on(is_killed, "a start");
    }
    Disk::verify(&folder.0, &config).expect("readable");
    goes_on(true, "verify");
    Disk::backup(&folder.0, &Folder::new().0, &config).expect("a backup");
    goes_on(false, "backup");
    Disk::compact(&folder.0, &config).expect("compacted");
    goes_on(true, "compact");
    // The folder is closed again at the start, and its files are as they should be.
    for name in FILES {
        fs::set_permissions(folder.0.join(name), Permissions::from_mode(0o600)).expect("ours");
    }
    drop(folder.open().expect("a copy by what chmod changed"));
    let mut store = folder.open().expect("the same copy");
    let after = say(&mut store, users, 200);
    assert!(after > high_water::JUMP, "{after}");
    drop(store);
    fs::set_permissions(&folder.0, Permissions::from_mode(0o755)).expect("ours");
    let mut store = folder.open().expect("the same copy");
    assert_eq!(say(&mut store, users, 201), after + 1, "what the start changes itself is no copy");
}

#[test]
fn a_store_of_an_earlier_version_opens_without_the_files_once() {
    let (folder, users) = spoken();
    let old = Folder::new();
    put(&folder.0, &old.0, Way::Into);
    for name in FILES {
        fs::remove_file(old.0.join(name)).expect("it is there");
        fs::remove_file(folder.0.join(name)).expect("it is there");
    }
    let mut store = folder.open().expect("of an earlier version");
    assert_eq!(say(&mut store, users, 30), 21);
    drop(store);
    let files = numbers(&folder.0);
    // Its copy from before the files were there leaves them as they are: the number of commits tells.
    for entry in ["commits", "sequences"] {
        fs::copy(old.0.join(entry), folder.0.join(entry)).expect("ours");
    }
    put(&old.0.join(DATABASE), &folder.0.join(DATABASE), Way::Into);
    assert_eq!(numbers(&folder.0), files, "nobody touched them");
    let mut store = folder.open().expect("a copy");
    let next = say(&mut store, users, 31);
    assert!(next > high_water::JUMP, "{next}");
    drop(store);
    fs::remove_file(folder.0.join(FILES[0])).expect("it is there");
    let mut store = folder.open().expect("one file alone proves nothing");
    assert!(say(&mut store, users, 32) > next + high_water::JUMP);
}

#[test]
fn what_is_put_back_under_an_open_store_is_seen_at_the_next_start() {
    let (folder, users) = spoken();
    let mut store = folder.open().expect("the same store");
    assert_eq!(say(&mut store, users, 30), 21);
    for name in FILES {
        let path = folder.0.join(name);
        fs::write(&path, fs::read(&path).expect("written")).expect("ours");
    }
    assert_eq!(say(&mut store, users, 31), 22);
    drop(store);
    let mut store = folder.open().expect("a copy");
    assert!(say(&mut store, users, 32) > high_water::JUMP);
}

#[test]
fn nothing_is_noted_in_a_folder_that_another_process_may_have() {
    let (folder, users) = spoken();
    let mut store = folder.open().expect("the store");
    fs::remove_file(folder.0.join("lock")).expect("it is there");
    until_broken(&store);
    let before = numbers(&folder.0);
    store.commit(1, 99, vec![draft(users[0], Target::User(users[1]), 99, 99)]);
    drop(store);
    assert_eq!(numbers(&folder.0), before);
}
