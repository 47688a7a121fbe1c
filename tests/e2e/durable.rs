//! A backend that stores on disk is killed again and again: what was acknowledged is there, once, under its number.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, run};
use crate::raw::{Client, message, send_frame};
use crate::sdk::connect;
use crate::{PATIENCE, soak};
use moorline::sys::clock;
use moorline_proto::message::client::{Code, Push, SendAck};
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{decode, encode};
use moorline_proto::random::Random;
use moorline_sdk::client::Notice;
use moorline_sdk::core::Target;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A backend that stores there.
fn start(folder: &StoreFolder, listen: &str, more: &[&str]) -> Backend {
    let sets = [format!("listen={listen}"), folder.set()];
    Backend::start_with(&[&[sets[0].as_str(), sets[1].as_str()], more].concat())
}

fn history(client: &mut Client, id: u32, conversation: &str) -> Vec<Push> {
    let (mut all, mut from) = (Vec::new(), 1);
    loop {
        let request = PullRequest { conversation: conversation.into(), from, ..PullRequest::default() };
        let answer = client.request(id + u32::try_from(from).expect("small"), "im.pull", encode(&request));
        assert_eq!(answer.code(), Code::Ok, "{answer:?}");
        let page: PullResponse = decode(&answer.payload).expect("a page");
        assert!(page.voids.is_empty(), "{:?}", page.voids);
        from += page.messages.len() as u64;
        all.extend(page.messages);
        if !page.more {
            return all;
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_after_any_number_of_kills() {
    let kills = if soak::is_long() { 100 } else { 6 };
    let folder = StoreFolder::new();
    let mut backend = start(&folder, "127.0.0.1:0", &[]);
    let address: SocketAddr = backend.address;
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s", "limits.user_rate=0"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    let mut random = Random::new(soak::seed());
    let mut acked: BTreeMap<u32, SendAck> = BTreeMap::new();
    let (mut last, mut slowest) = (0u32, Duration::ZERO);
    for round in 0..=kills {
        // Messages that are under way when it dies, wherever they are.
        let batch = last + 1..=last + 20;
        for cid in batch.clone() {
            alice.put(&send_frame(cid, &message(cid.into(), "bob", format!("{cid}").as_bytes())));
        }
        last = *batch.end();
        if round < kills {
            std::thread::park_timeout(Duration::from_micros(random.below(15_000)));
            backend.process.signal(Signal::SIGKILL);
            let died = clock::now();
            drop(backend);
            backend = start(&folder, &address.to_string(), &[]);
            let wanted = *batch.start();
            alice.until("the first answer", |heard| !heard.answers(wanted).is_empty());
            slowest = slowest.max(clock::now().saturating_since(died));
        }
        assert!(bob.is_quiet_for(Duration::from_millis(5)), "who listens and acknowledges stays connected");
        // Whoever is told to try again does, with the same key.
        for cid in batch {
            let answer = alice.answer(cid);
            match answer.code() {
                Code::Ok | Code::Dup => _ = acked.insert(cid, answer),
                Code::Retry => {}
                other => panic!("{cid}: {other:?}"),
            }
        }
        for cid in (1..=last).filter(|cid| !acked.contains_key(cid)).collect::<Vec<_>>() {
            last += 1;
            let send = message(cid.into(), "bob", format!("{cid}").as_bytes());
            alice.put(&send_frame(last, &send));
            let answer = alice.answer(last);
            if matches!(answer.code(), Code::Ok | Code::Dup) {
                acked.insert(cid, answer);
            }
            acked.entry(last).or_default(); // no message of its own
        }
    }
    println!("{kills} kills, {} messages; at most {slowest:?} from a kill to the next answer", acked.len());
    let acked: BTreeMap<u64, SendAck> =
        acked.into_iter().filter(|(_, ack)| ack.seq > 0).map(|(cid, ack)| (cid.into(), ack)).collect();
    let stored = history(&mut bob, 1, "c2c:alice:bob");
    let by_payload: BTreeMap<u64, &Push> = stored
        .iter()
        .map(|push| (std::str::from_utf8(&push.payload).expect("text").parse().expect("a number"), push))
        .collect();
    assert_eq!(by_payload.len(), stored.len(), "nothing is stored twice");
    for (key, ack) in &acked {
        let push = by_payload.get(key).unwrap_or_else(|| panic!("{key} was acknowledged and is not there"));
        assert_eq!((push.seq, push.message_id), (ack.seq, ack.message_id), "{key}");
    }
    assert!(stored.iter().zip(1..).all(|(push, seq)| push.seq == seq), "dense, in order");
    bob.until("every message", |heard| heard.pushes.len() >= stored.len());
    let heard: BTreeMap<u64, &[u8]> =
        bob.heard.pushes.iter().map(|push| (push.seq, &push.payload[..])).collect();
    assert!(stored.iter().all(|push| heard.get(&push.seq) == Some(&&push.payload[..])), "and was heard");
}

#[test]
fn groups_and_cursors_outlive_the_process_too() {
    use moorline_proto::message::im::GroupCreateRequest;
    let folder = StoreFolder::new();
    let backend = start(&folder, "127.0.0.1:0", &["im.durability=system"]);
    let address = backend.address;
    let gateway = Gateway::start(&backend, &[]);
    let mut ann = Client::login(gateway.listener, "ann", "d");
    drop(Client::login(gateway.listener, "ben", "d"));
    let create = GroupCreateRequest { group: "tea".into(), members: vec!["ben".into()] };
    assert_eq!(ann.request(1, "im.group.create", encode(&create)).code(), Code::Ok);
    let say = |client: &mut Client, key: u128, text: &str| {
        let cid = client.send(&crate::raw::message_into(key, "group:tea", text.as_bytes()));
        client.answer(cid)
    };
    assert_eq!(say(&mut ann, 1, "before").seq, 1);
    let mut ben = Client::login(gateway.listener, "ben", "d");
    ben.until("what waited", |heard| heard.payloads() == [b"before"]);
    drop(backend);
    let _backend = start(&folder, &address.to_string(), &["im.durability=system"]);
    crate::until("it answers", || (say(&mut ann, 2, "after").seq == 2).then_some(()));
    ben.until("the second", |heard| heard.payloads() == [&b"before"[..], b"after"]);
    // An ack may be lost with the process: then the message comes again, and the client drops it [P-6.6].
    // So may what was told of the new group.
    assert!(ben.heard.repeats <= 2);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("ours");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("ours");
        }
    }
}

/// The database is an old copy. It is refused; told to go on, the backend jumps over what was given, and whoever has the
/// messages that are gone takes the next one as the next.
#[test]
fn a_store_that_lost_its_end_is_refused_and_then_goes_on_behind_it() {
    let (folder, old) = (StoreFolder::new(), StoreFolder::new());
    let database = folder.path().join("database");
    let mut backend = start(&folder, "127.0.0.1:0", &[]);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s"]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = |text: &str| {
        let sent = ann.send(Target::user("ben"), 1, text.to_owned()).expect("taken");
        sent.wait_durable(PATIENCE).expect("stored").seq
    };
    let heard = || {
        let message = ben.recv_timeout(PATIENCE).expect("a message");
        (message.seq, String::from_utf8(message.payload.to_vec()).expect("text"))
    };
    assert_eq!((say("1"), heard()), (1, (1, "1".to_owned())));
    let place = backend.kill();
    copy_folder(&database, old.path());
    backend = start(&folder, &place.to_string(), &[]);
    for seq in 2..=20 {
        assert_eq!((say("kept by those who have it"), heard().0), (seq, seq));
    }
    let place = backend.kill();
    std::fs::remove_dir_all(&database).expect("ours");
    copy_folder(old.path(), &database);
    let listen = format!("listen={place}");
    let (code, _, said) = run(&["backend", "--set", &listen, "--set", &folder.set()]);
    assert_eq!(code, Some(1), "{said}");
    let commits = folder.path().join("commits");
    assert!(said.contains("has lost writes") && said.contains(&commits.display().to_string()), "{said}");
    std::fs::remove_file(&commits).expect("it is there");
    let _backend = start(&folder, &place.to_string(), &[]);
    let seq = say("after");
    assert!(seq > 20, "{seq} was given before");
    assert_eq!(heard(), (seq, "after".to_owned()));
    let page = ben.pull("c2c:ann:ben", 1, 0, 0, PATIENCE).expect("a page");
    let voids: Vec<_> = page.voids.iter().map(|range| (range.from, range.to)).collect();
    assert_eq!((page.messages.len(), voids), (2, vec![(2, seq - 1)]));
    let holes = ben.notices().try_iter().filter(|notice| matches!(notice, Notice::Hole { .. })).count();
    assert_eq!(holes, 0, "what is void is no hole");
    let unread = ben.conversations(PATIENCE).expect("his")[0].unread;
    assert_eq!(unread, 2);
}

#[test]
fn a_backend_whose_folder_is_removed_ends() {
    let folder = StoreFolder::new();
    let mut backend = start(&folder, "127.0.0.1:0", &[]);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=1s"]);
    let (ann, _ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = || ann.send(Target::user("ben"), 1, "hi".to_owned()).expect("taken");
    say().wait_durable(PATIENCE).expect("stored");
    std::fs::remove_dir_all(folder.path()).expect("ours");
    let lost = say();
    crate::until("it ends", || (!backend.process.is_running()).then_some(()));
    assert!(lost.result().is_none(), "nobody is told that it was stored");
    assert!(backend.process.log().contains("is no longer there: it was removed or moved"));
}

/// Runs an action of `moorline backend` on the store in a folder: its exit code and what it printed.
fn keep(action: &[&str], folder: &StoreFolder) -> (Option<i32>, String) {
    let set = folder.set();
    let (code, out, said) = run(&[&["backend"], action, &["--set", &set]].concat());
    (code, out + &said)
}

#[test]
fn a_backup_of_a_running_backend_is_restored_and_goes_on_behind_it() {
    let (folder, backup) = (StoreFolder::new(), StoreFolder::new());
    let backend = start(&folder, "127.0.0.1:0", &[]);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s", "limits.user_rate=0"]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = |text: &str| {
        let sent = ann.send(Target::user("ben"), 1, text.to_owned()).expect("taken");
        sent.wait_durable(PATIENCE).expect("stored").seq
    };
    let mut last = 0;
    for number in 1..=20 {
        last = say(&format!("{number}"));
    }
    let monday = backup.path().join("monday").display().to_string();
    std::fs::create_dir_all(backup.path()).expect("ours");
    let (code, said) = keep(&["backup", &monday], &folder);
    assert!(code == Some(0) && said.contains("messages 20") && said.contains("problems 0"), "{said}");
    let (code, said) = keep(&["verify"], &folder);
    assert!(code == Some(0) && said.contains("problems 0"), "{said}");
    for number in 21..=30 {
        last = say(&format!("{number}"));
    }
    let place = backend.kill();
    let (code, said) = keep(&["restore", &monday], &folder);
    assert!(code == Some(1) && said.contains("there is a store"), "{said}");
    std::fs::remove_dir_all(folder.path().join("database")).expect("ours");
    let (code, said) = keep(&["restore", &monday], &folder);
    assert!(code == Some(0) && said.contains("problems 0"), "{said}");
    let _backend = start(&folder, &place.to_string(), &[]);
    let seq = say("after");
    assert!(seq > last, "{seq} was given before");
    let page = ben.pull("c2c:ann:ben", 1, 0, 0, PATIENCE).expect("a page");
    let voids: Vec<_> = page.voids.iter().map(|range| (range.from, range.to)).collect();
    assert_eq!((page.messages.len(), voids), (21, vec![(21, seq - 1)]));
    let mut messages = std::iter::from_fn(|| ben.recv_timeout(PATIENCE).ok());
    assert!(
        messages.by_ref().take(40).any(|message| message.seq == seq),
        "whoever has the others gets the new one"
    );
}

/// A kill in the middle of a restore leaves the file `unfinished`.
#[test]
fn an_unfinished_restore_is_refused_until_it_was_repeated() {
    let (folder, backup) = (StoreFolder::new(), StoreFolder::new());
    let (code, said) = keep(&["seed", "--users", "5", "--groups", "1", "--messages", "50"], &folder);
    assert_eq!(code, Some(0), "{said}");
    std::fs::create_dir_all(backup.path()).expect("ours");
    let place = backup.path().join("monday").display().to_string();
    let (code, said) = keep(&["backup", &place], &folder);
    assert_eq!(code, Some(0), "{said}");
    std::fs::remove_dir_all(folder.path().join("database")).expect("ours");
    let (code, said) = keep(&["restore", &backup.path().display().to_string()], &folder);
    assert!(code == Some(1) && said.contains("is not a whole backup: commits is missing"), "{said}");
    let (code, said) = keep(&["restore", &place], &folder);
    assert!(code == Some(0) && said.contains("messages 50"), "{said}");
    std::fs::write(folder.path().join("unfinished"), "restore\n").expect("ours");
    for action in [&["--set", "listen=127.0.0.1:0"][..], &["verify"], &["compact"]] {
        let (code, said) = keep(action, &folder);
        assert!(code == Some(1) && said.contains("run `moorline backend restore` again"), "{said}");
    }
    let (code, said) = keep(&["restore", &place], &folder);
    assert!(code == Some(0) && said.contains("messages 50"), "{said}");
    let (code, said) = keep(&["verify"], &folder);
    assert!(code == Some(0) && said.contains("messages 50"), "{said}");
}

#[test]
fn a_backend_whose_lock_is_removed_lets_nobody_in_and_opens_its_store_anew() {
    let folder = StoreFolder::new();
    let backend = start(&folder, "127.0.0.1:0", &[]);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s"]);
    let (ann, _ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = || ann.send(Target::user("ben"), 1, "hi".to_owned()).expect("taken");
    say().wait_durable(PATIENCE).expect("stored");
    for name in ["lock", "database/lock"] {
        std::fs::remove_file(folder.path().join(name)).expect("it is there");
    }
    let (code, said) = keep(&["--set", "listen=127.0.0.1:0"], &folder);
    assert!(code == Some(1) && said.contains("is open in another process"), "{said}");
    let is_noticed = || backend.process.log().contains("a lock file is never stale");
    crate::until("it is noticed", || is_noticed().then_some(()));
    say().wait_durable(PATIENCE).expect("stored once it is open again");
}
