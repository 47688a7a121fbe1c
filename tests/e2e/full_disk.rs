//! A backend whose disk takes no more: nobody is lied to, and it goes on by itself when there is room.

use crate::api::Api;
use crate::gateway::{Backend, Gateway};
use crate::process::StoreFolder;
use crate::sdk::connect;
use crate::{PATIENCE, until};
use moorline_sdk::client::Pending;
use moorline_sdk::core::Target;
use std::process::Command;

/// The most bytes a process may write to a file; its writes beyond fail, as they do on a full disk.
fn set_room(pid: u32, limit: &str) {
    let room = [format!("--pid={pid}"), format!("--fsize={limit}:unlimited")];
    let status = Command::new("prlimit").args(room).status().expect("prlimit (of util-linux) starts");
    assert!(status.success(), "it sets a limit of one's own process");
}

#[test]
fn a_full_disk_is_a_pause() {
    let folder = StoreFolder::new();
    let backend = Backend::start_with(&["listen=127.0.0.1:0", &folder.set()]);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=1s", "limits.user_rate=0"]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = |number: u32| ann.send(Target::user("ben"), 1, format!("{number}")).expect("taken");
    let stored = |sent: Pending| sent.wait_durable(PATIENCE).expect("stored").seq;
    let first: Vec<u64> = (1..=20).map(say).map(stored).collect();
    set_room(backend.process.pid(), "1");
    let waiting: Vec<Pending> = (21..=40).map(say).collect();
    let has_failed = || backend.process.log().contains("takes no more writes").then_some(());
    until("the store is broken", has_failed);
    assert!(waiting.iter().all(|sent| sent.result().is_none()), "nobody is told that it was stored");
    let page = ben.pull("c2c:ann:ben", 1, 0, 0, PATIENCE).expect("what is there can be read");
    assert_eq!(page.messages.len(), 20);
    set_room(backend.process.pid(), "unlimited");
    let later: Vec<u64> = waiting.into_iter().map(stored).collect();
    assert_eq!([first, later].concat(), (1..=40).collect::<Vec<_>>(), "dense, in order");
    for number in 1..=40 {
        let message = ben.recv_timeout(PATIENCE).expect("a message");
        assert_eq!((message.seq, &message.payload[..]), (number, number.to_string().as_bytes()));
    }
}

/// No disk has as much room as this floor asks for.
#[test]
fn below_the_floor_of_free_disk_small_messages_pass_and_large_ones_wait() {
    let folder = StoreFolder::new();
    let api = Api::start(&[&folder.set(), "im.disk_floor=1000000GiB"]);
    until("the disk was looked at", || api.backend.process.log().contains("im.disk_floor").then_some(()));
    let post = |text: &str| {
        let body = serde_json::json!({ "from": "ann", "to": { "user": "ben" }, "text": text });
        api.post("/v1/messages", &body)
    };
    assert_eq!(post("small").0, 200);
    let (status, refusal) = post(&"x".repeat(5000));
    assert_eq!((status, refusal["code"].as_str()), (503, Some("RETRY")), "{refusal}");
}
