//! A backend that stores on disk is killed again and again: what was acknowledged is there, once, under its number.

use crate::gateway::{Backend, Gateway};
use crate::process::StoreFolder;
use crate::raw::{Client, message, send_frame};
use crate::soak;
use moorline::sys::clock;
use moorline_proto::message::client::{Code, Push, SendAck};
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{decode, encode};
use moorline_proto::random::Random;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
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
