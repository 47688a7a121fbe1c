//! Files of another store of the same kind in the place of the own ones, as a careless copy leaves them.

use super::*;
use std::fs;

/// A store with this number of messages.
fn store_of(messages: u8) -> (Folder, [UserId; 2]) {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let people = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    for key in 0..messages {
        committed(&mut store, vec![draft(people[0], Target::User(people[1]), key, key.into())]);
    }
    (folder, people)
}

fn replace(folder: &Folder, name: &str, other: &Folder) {
    fs::copy(other.0.join(name), folder.0.join(name)).expect("both are there");
}

#[test]
fn the_mark_of_another_store_is_refused_by_its_name() {
    for (own, foreign) in [(20, 3), (20, 19), (3, 20)] {
        let ((folder, [ann, ben]), (other, _)) = (store_of(own), store_of(foreign));
        replace(&folder, SIDE_FILE, &other);
        let refused = folder.open().map(drop).expect_err("it is another one's").to_string();
        assert!(refused.contains("/commits"), "{own} {foreign}: {refused}");
        // The way out that the message names.
        fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
        let mut store = folder.open().expect("it goes on");
        let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 99, 300)]).pop());
        assert!(next.seq > high_water::STEP, "{}", next.seq);
    }
}

#[test]
fn the_numbers_of_another_store_never_give_a_seq_again() {
    let ((folder, [ann, ben]), (other, _)) = (store_of(20), store_of(3));
    identity::mark_copy(&folder.0).expect("ours");
    let mut store = folder.open().expect("a copy goes on far behind");
    let far = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 99, 300)]).pop()).seq;
    assert!(far > high_water::JUMP, "{far}");
    drop(store);
    replace(&folder, HIGH_WATER, &other);
    let refused = folder.open().map(drop).expect_err("it is another one's").to_string();
    assert!(refused.contains("/sequences") && refused.contains("not of this store"), "{refused}");
    fs::remove_file(folder.0.join(SIDE_FILE)).expect("ours");
    let mut store = folder.open().expect("it goes on");
    let next = stored(committed(&mut store, vec![draft(ann, Target::User(ben), 100, 301)]).pop()).seq;
    assert!(next > far + high_water::JUMP, "{next}");
    drop(store);
    drop(folder.open().expect("its own again"));
}

#[test]
fn a_list_of_journals_that_the_store_does_not_have_is_refused() {
    let (folder, _) = store_of(3);
    fs::write(folder.0.join("journals"), "complete journals\n7.jnl 12 00000000\n").expect("ours");
    let refused = folder.open().map(drop).expect_err("it is another one's").to_string();
    assert!(refused.contains("/journals") && refused.contains("not of this store"), "{refused}");
}
