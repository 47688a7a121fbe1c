//! Deletion over real processes: an account whose erasure is cut off by `kill -9`, and a group that is dissolved by its owner.

use crate::api::Api;
use crate::gateway::Gateway;
use crate::process::{StoreFolder, run};
use crate::sdk::connect;
use crate::{PATIENCE, until};
use moorline_sdk::core::{ConversationEvent, Target};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Messages of a user in the history of a group, as another member pulls it.
fn said_by(api: &Api, reader: &str, group: &str, user: &str) -> usize {
    let (mut count, mut from) = (0, 1);
    loop {
        let request = json!({ "conversation": group, "from": from });
        let (status, answer) =
            api.post("/v1/requests", &json!({ "user": reader, "method": "im.pull", "request": request }));
        assert_eq!(status, 200, "{answer}");
        let page = &answer["response"];
        let messages = page["messages"].as_array().expect("a list");
        let is_theirs = |push: &&Value| push["sender"] == user && push["happened"] == "";
        count += messages.iter().filter(is_theirs).count();
        let seq_of = |value: &Value| value.as_str().and_then(|seq| seq.parse::<u64>().ok()).expect("a seq");
        let last = messages.last().map_or(0, |push| seq_of(&push["seq"]));
        let voids = page["voids"].as_array().expect("a list").iter().map(|range| seq_of(&range["to"]));
        from = voids.fold(last, u64::max) + 1;
        if page["more"] != true {
            return count;
        }
    }
}

#[test]
fn an_account_is_erased_though_the_process_is_killed_in_the_middle() {
    let folder = StoreFolder::new();
    let set = folder.set();
    let seed = ["backend", "seed", "--users", "3", "--groups", "1", "--members", "3", "--messages", "4000"];
    let (code, _, error) = run(&[&seed[..], &["--set", &set]].concat());
    assert_eq!(code, Some(0), "{error}");
    let mut api = Api::start(&[&set]);
    let before = said_by(&api, "user-1", "group:group-0", "user-0");
    assert!(before > 500, "more than one sweep takes: {before}");
    let others = said_by(&api, "user-1", "group:group-0", "user-2");
    let (status, answer) = api.post("/v1/users/delete", &json!({ "user": "user-0" }));
    assert_eq!(status, 200, "{answer}");
    api.backend.process.kill();
    let mut api = Api::start(&[&set]);
    until("everything is erased", || (api.status()["limits"]["erasing"] == 0).then_some(()));
    assert_eq!(said_by(&api, "user-1", "group:group-0", "user-0"), 0);
    assert_eq!(said_by(&api, "user-1", "group:group-0", "user-2"), others, "nothing of others");
    let (_, answer) =
        api.post("/v1/requests", &json!({ "user": "user-0", "method": "im.conversations", "request": {} }));
    assert_eq!(answer["response"]["conversations"], json!([]), "a new user: {answer}");
    let (code, _, error) = run(&["backend", "compact", "--set", &set]);
    assert_ne!(code, Some(0), "a backend has the store open");
    assert!(error.contains("open in another process"), "{error}");
    api.backend.process.signal(Signal::SIGTERM);
    api.backend.process.end();
    let (code, said, error) = run(&["backend", "compact", "--set", &set]);
    assert_eq!((code, said.contains("problems 0")), (Some(0), true), "{said}{error}");
}

#[test]
fn members_hear_that_their_group_is_no_more() {
    let api = Api::start(&[]);
    let gateway = Gateway::start(&api.backend, &[]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let group = ann.create_group("tea", &["ben"], PATIENCE).expect("made");
    ann.send(Target::group("tea"), 1, "secret").expect("taken").wait_durable(PATIENCE).expect("stored");
    ben.dissolve_group(&group, PATIENCE).expect_err("he does not own it");
    ann.dissolve_group(&group, PATIENCE).expect("hers");
    until("ben is told", || {
        let message = ben.recv_timeout(PATIENCE).expect("comes");
        matches!(message.happened.as_deref(), Some(ConversationEvent::Dissolved(it)) if it.by == "ann")
            .then_some(())
    });
    ben.pull(&group, 1, 0, 0, PATIENCE).expect_err("it is gone");
    until("its message is removed", || (api.status()["limits"]["swept"] == 1).then_some(()));
    ann.send(Target::user("ben"), 1, "hi").expect("taken").wait_durable(PATIENCE).expect("stored");
    ben.delete_conversation("c2c:ann:ben", 0, PATIENCE).expect("his");
    assert!(ben.conversations(PATIENCE).expect("his").is_empty());
    assert_eq!(ann.pull("c2c:ann:ben", 1, 0, 0, PATIENCE).expect("hers").messages.len(), 1);
    ben.delete_account(PATIENCE).expect_err("only the operator may");
}
