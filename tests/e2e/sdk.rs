//! The SDK's client over the real thing: chats, reconnects, loses nothing.

use crate::gateway::{Backend, Gateway};
use crate::{PATIENCE, until};
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, Incoming, Notice};
use moorline_sdk::core::{ClosedWhy, Happened, Target};
use nix::sys::signal::Signal;
use std::net::SocketAddr;

fn connect(gateway: SocketAddr, uid: &str, device: &str) -> Client {
    let endpoint = format!("tcp://{gateway}");
    let client = Client::builder(&endpoint).user(uid).device(device, Platform::Linux).build();
    let client = client.expect("a client");
    until("the login", || client.is_logged_in().then_some(()));
    client
}

/// The payloads of the next `count` messages; each is acknowledged.
fn receive(client: &Client, count: usize) -> Vec<String> {
    let text = |incoming: Incoming| String::from_utf8(incoming.payload.to_vec()).expect("text");
    (0..count).map(|_| text(client.recv_timeout(PATIENCE).expect("a message"))).collect()
}

#[test]
fn two_people_and_a_group_chat() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let bens_laptop = connect(gateway.listener, "ben", "laptop");
    let said: Vec<_> = (1..=50).map(|number| format!("{number}")).collect();
    let sent: Vec<_> =
        said.iter().map(|text| ann.send(Target::user("ben"), 1, text.clone()).expect("taken")).collect();
    for (seq, pending) in (1..).zip(sent) {
        let receipt = pending.wait_durable(PATIENCE).expect("stored");
        assert_eq!((receipt.seq, &*receipt.conversation), (seq, "c2c:ann:ben"));
    }
    assert_eq!((receive(&ben, 50), receive(&bens_laptop, 50)), (said.clone(), said.clone()));
    let group = ann.create_group("tea", &["ben"], PATIENCE).expect("made");
    for told in [&ben, &bens_laptop] {
        let told = told.recv_timeout(PATIENCE).expect("that it was made");
        assert!(
            matches!(told.happened.as_deref(), Some(Happened::Group(changed)) if changed.by == "ann"),
            "{told:?}"
        );
    }
    assert_eq!(ben.members(&group, PATIENCE).expect("known"), ["ann", "ben"]);
    for text in &said {
        ben.send(Target::group("tea"), 1, text.clone()).expect("taken");
    }
    assert_eq!((receive(&ann, 50), receive(&bens_laptop, 50)), (said.clone(), said));
    let history = ann.pull(&group, 1, 0, 0, PATIENCE).expect("a page");
    assert_eq!((history.messages.len(), history.latest), (50, 50));
    assert_eq!(ann.logout(PATIENCE), Some(ClosedWhy::LoggedOut));
}

/// The gateway drains and ends, and another takes its place: what was sent meanwhile arrives once.
#[test]
fn a_gateway_that_goes_is_a_pause() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=2s"]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let say = |from, to| -> Vec<String> {
        let said: Vec<_> = (from..to).map(|number| format!("{number}")).collect();
        for text in &said {
            ann.send(Target::user("ben"), 1, text.clone()).expect("taken");
        }
        said
    };
    let mut said = say(0, 100);
    gateway.process.signal(Signal::SIGTERM);
    said.extend(say(100, 200));
    assert_eq!(gateway.process.end().code(), Some(0));
    said.extend(say(200, 300));
    let address = format!("listener.address={}", gateway.listener);
    let _gateway = Gateway::start(&backend, &[&address]);
    assert_eq!(receive(&ben, 300), said);
    until("all is answered", || {
        (ann.send(Target::user("ben"), 1, "end").ok()?.wait_durable(PATIENCE).ok()).map(drop)
    });
    assert_eq!(receive(&ben, 1), ["end"]);
}

#[test]
fn the_older_login_of_a_device_is_closed_for_good() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let older = connect(gateway.listener, "ann", "d");
    let newer = connect(gateway.listener, "ann", "d");
    let closed = |notice: Notice| match notice {
        Notice::Closed(why) => Some(why),
        _ => None,
    };
    let why = older.notices().iter().find_map(closed).expect("the last notice");
    assert!(matches!(why, ClosedWhy::Told { code: 3530, .. }), "{why:?}");
    assert!(newer.is_logged_in());
    newer.send(Target::user("ann"), 1, "alone").expect("taken").wait_durable(PATIENCE).expect("stored");
}
