//! The properties, on a store in memory, on one that answers late, and on disk.

use super::*;
use crate::im::store::{Disk, Durability, scratch};
use std::path::PathBuf;

fn run(config: ImConfig, is_lossless: bool, steps: &[Step]) {
    let store = Memory::new(&config);
    World::new(config, store, is_lossless, Box::new(|store| store)).walk(steps);
}

fn run_late(config: ImConfig, is_lossless: bool, seed: u64, steps: &[Step]) {
    let store = Slow::new(Memory::new(&config), seed);
    World::new(config, store, is_lossless, Box::new(move |store| store.reopen(seed))).walk(steps);
}

/// A folder of this test, gone with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn run_on_disk(config: ImConfig, is_lossless: bool, steps: &[Step]) {
    let folder = Folder(scratch::path("oracle"));
    let (at, limits) = (folder.0.clone(), config.clone());
    let open = move || Disk::open(&at, &limits, Durability::System, scratch::waker()).expect("it opens");
    let store = open();
    World::new(config, store, is_lossless, Box::new(move |store: Disk| (drop(store), open()).1)).walk(steps);
    assert_eq!(Disk::verify(&folder.0, &small()).expect("readable").problems, Vec::<String>::new());
}

fn small() -> ImConfig {
    ImConfig { outstanding: 4, ..ImConfig::default() }
}

fn tiny_inbox() -> ImConfig {
    ImConfig { inbox_entries_max: 3, ..small() }
}

/// With two members the group goes through inboxes, with three it is read by cursor.
fn read_fanout() -> ImConfig {
    ImConfig { fanout_members_max: 2, ..small() }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..160)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_device_gets_everything_once_and_in_order(steps in steps()) {
        run(small(), true, &steps);
    }

    #[test]
    fn devices_with_a_tiny_inbox_converge_by_pulling(steps in steps()) {
        run(tiny_inbox(), false, &steps);
    }

    #[test]
    fn so_do_devices_of_a_group_that_is_read_by_cursor(steps in steps()) {
        run(read_fanout(), false, &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn on_a_store_that_answers_late_nothing_changes(seed in any::<u64>(), steps in steps()) {
        run_late(small(), true, seed, &steps);
        run_late(tiny_inbox(), false, seed, &steps);
        run_late(read_fanout(), false, seed, &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn on_disk_an_end_of_the_process_changes_nothing_of_it(steps in steps()) {
        run_on_disk(small(), true, &steps);
    }

    #[test]
    fn on_disk_an_end_of_the_process_changes_no_small_inbox(steps in steps()) {
        run_on_disk(tiny_inbox(), false, &steps);
    }

    #[test]
    fn on_disk_an_end_of_the_process_changes_no_group_that_is_read_by_cursor(steps in steps()) {
        run_on_disk(read_fanout(), false, &steps);
    }
}
