//! The SDK's client over the real thing: chats, reconnects, loses nothing.

use crate::gateway::{Backend, Gateway};
use crate::process::TempFile;
use crate::{PATIENCE, until};
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, Incoming, Notice};
use moorline_sdk::core::{ClosedWhy, ConversationEvent, SendRefused, Target};
use moorline_sdk::im::{Friendship, GroupChangeRequest, GroupSettings, Profile, RelationChange};
use moorline_sdk::store::FileStore;
use nix::sys::signal::Signal;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

pub(crate) fn connect(gateway: SocketAddr, uid: &str, device: &str) -> Client {
    let endpoint = format!("tcp://{gateway}");
    let client = Client::builder(&endpoint).user(uid).device(device, Platform::Linux).build();
    let client = client.expect("a client");
    until("the login", || client.is_logged_in().then_some(()));
    client
}

/// A life of an application of ann's, with what it keeps in a file.
fn with_store(gateway: SocketAddr, path: &Path) -> Client {
    let store = FileStore::open(path).expect("nobody else has it");
    let client = Client::builder(&format!("tcp://{gateway}")).user("ann").device("phone", Platform::Ios);
    client.store(store).build().expect("starts")
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
            matches!(told.happened.as_deref(), Some(ConversationEvent::Group(changed)) if changed.by == "ann"),
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

/// The backend forgets the device, answers, and ends the login; the next login is a new device's.
#[test]
fn a_device_signs_itself_out() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let (phone, pad) = (connect(gateway.listener, "ann", "phone"), connect(gateway.listener, "ann", "pad"));
    let ben = connect(gateway.listener, "ben", "d");
    phone.sign_out(PATIENCE).expect("signed out");
    let names = |client: &Client| -> Vec<String> {
        client.devices(PATIENCE).expect("hers").into_iter().map(|device| device.device).collect()
    };
    assert_eq!(names(&pad), ["pad"]);
    ben.send(Target::user("ann"), 1, "after").expect("taken").wait_durable(PATIENCE).expect("stored");
    assert_eq!(receive(&pad, 1), ["after"]);
    assert_eq!(names(&connect(gateway.listener, "ann", "phone")), ["pad", "phone"], "it may come again");
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

/// A device whose application ends goes on where it was, with a store: nothing is sent twice, nothing is missed, also in
/// a group that is in no inbox.
#[test]
fn an_application_that_ends_goes_on_where_it_was() {
    let backend = Backend::start_with(&["listen=127.0.0.1:0", "im.fanout_members_max=1"]);
    let gateway = Gateway::start(&backend, &[]);
    let place = TempFile::new("");
    let path = place.path().with_extension("store");
    let ann = |endpoint: SocketAddr| with_store(endpoint, &path);
    let ben = connect(gateway.listener, "ben", "d");
    let first = ann(gateway.listener);
    let group = first.create_group("tea", &["ben"], PATIENCE).expect("made");
    let say = |from: u32, to: u32| {
        for number in from..=to {
            let sent = ben.send(Target::group("tea"), 1, format!("{number}")).expect("taken");
            sent.wait_durable(PATIENCE).expect("stored");
        }
    };
    say(1, 5);
    assert_eq!(receive(&first, 5), ["1", "2", "3", "4", "5"]);
    drop(first);
    say(6, 60);
    // Nobody is there: what is sent waits, over the end of two applications.
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    for text in ["offline 1", "offline 2"] {
        let offline = ann(nobody);
        let sent = offline.send(Target::user("ben"), 1, text).expect("taken");
        assert!(sent.result().is_none());
    }
    let again = ann(gateway.listener);
    let seqs: Vec<u64> = again
        .restored()
        .iter()
        .map(|sent| sent.wait_durable(PATIENCE).expect("it is sent now").seq)
        .collect();
    assert_eq!(seqs, [1, 2]);
    assert_eq!(receive(&ben, 2), ["offline 1", "offline 2"]);
    let expected: Vec<String> = (6..=60).map(|number| number.to_string()).collect();
    assert_eq!(receive(&again, 55), expected, "what was said meanwhile, once, in order");
    say(61, 61);
    assert_eq!(receive(&again, 1), ["61"]);
    let tea = || {
        let listed = again.conversations(PATIENCE).expect("hers");
        let tea = listed.iter().find(|it| it.id == group).expect("the group");
        (tea.latest, tea.unread, tea.members)
    };
    assert_eq!(tea(), (61, 61, 2));
    again.read(&group, 60, PATIENCE).expect("read");
    assert_eq!(tea(), (61, 1, 2));
    drop(again);
    assert!(ann(gateway.listener).restored().is_empty());
    std::fs::remove_file(&path).ok();
}

/// A large message that this gateway takes is sent again by the next run; one that no gateway takes does not harm the store.
#[test]
fn large_messages_outlive_an_application() {
    let backend = Backend::start_with(&["listen=127.0.0.1:0", "im.payload_max=\"200KiB\""]);
    let mut gateway = Gateway::start(&backend, &["limits.body_max=256KiB"]);
    let place = TempFile::new("");
    let path = place.path().with_extension("store");
    drop(crate::raw::Client::login(gateway.listener, "ben", "d"));
    let ann = |endpoint: SocketAddr| with_store(endpoint, &path);
    let first = ann(gateway.listener);
    until("the login", || first.is_logged_in().then_some(()));
    gateway.process.kill();
    let large = first.send(Target::user("ben"), 1, vec![7; 100 << 10]).expect("so much it takes");
    let refused = first.send(Target::user("ben"), 1, vec![7; 5 << 20]);
    assert!(matches!(refused, Err(SendRefused::TooLarge { .. })));
    assert!(large.result().is_none());
    drop(first);
    let address = format!("listener.address={}", gateway.listener);
    let gateway = Gateway::start(&backend, &["limits.body_max=256KiB", &address]);
    let again = ann(gateway.listener);
    let seqs: Vec<u64> =
        again.restored().iter().map(|sent| sent.wait_durable(PATIENCE).expect("sent").seq).collect();
    assert_eq!(seqs, [1]);
    drop(again);
    std::fs::remove_file(&path).ok();
}

/// The whole of what an application does with the IM backend, over real processes.
#[test]
fn friends_groups_receipts_and_recalls() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let (ann, ben) = (connect(gateway.listener, "ann", "d"), connect(gateway.listener, "ben", "d"));
    let pad = connect(gateway.listener, "ben", "pad");
    let told = |client: &Client| -> ConversationEvent {
        let message = client.recv_timeout(PATIENCE).expect("comes");
        message.happened.as_deref().unwrap_or_else(|| panic!("{:?}", *message)).clone()
    };
    let asked = ann.relate("ben", RelationChange::Befriend, "from school", PATIENCE).expect("asked");
    assert_eq!(asked.friendship(), Friendship::Asked);
    for client in [&ben, &pad] {
        assert!(
            matches!(told(client), ConversationEvent::Relation(it) if it.by == "ann" && it.text == "from school")
        );
    }
    let agreed = ben.relate("ann", RelationChange::Befriend, "", PATIENCE).expect("agreed");
    assert_eq!(agreed.friendship(), Friendship::Friends);
    assert!(matches!(told(&ann), ConversationEvent::Relation(it) if it.by == "ben"));
    assert!(matches!(told(&pad), ConversationEvent::Relation(it) if it.by == "ben"), "his other device");
    assert_eq!(ann.relations(PATIENCE).expect("hers")[0].friendship(), Friendship::Friends);

    let sent =
        ann.send(Target::user("ben"), 1, "secret").expect("taken").wait_durable(PATIENCE).expect("stored");
    assert_eq!((receive(&ben, 1), receive(&pad, 1)), (vec!["secret".to_owned()], vec!["secret".to_owned()]));
    ben.read(&sent.conversation, sent.seq, PATIENCE).expect("read");
    for client in [&ann, &pad] {
        assert!(matches!(told(client), ConversationEvent::Read(it) if it.user == "ben" && it.seq == 1));
    }
    ann.recall(&sent.conversation, sent.seq, sent.message_id, PATIENCE).expect("taken back");
    for client in [&ben, &pad] {
        assert!(
            matches!(told(client), ConversationEvent::Recalled(it) if it.seq == 1 && it.message_id == sent.message_id)
        );
    }
    let history = pad.pull(&sent.conversation, 1, 0, 0, PATIENCE).expect("a page");
    assert!(history.messages.iter().all(|push| push.payload.is_empty()), "nothing of it is left");
    // The place of the recall is her own: no hole is left behind it.
    let next = ben.send(Target::user("ann"), 1, "what was that?").expect("taken");
    assert_eq!(next.wait_durable(PATIENCE).expect("stored").seq, 3);
    assert_eq!(receive(&ann, 1), ["what was that?"]);

    let group = ann.create_group("tea", &["ben"], PATIENCE).expect("made");
    let change = GroupChangeRequest {
        conversation: group.clone(),
        settings: Some(GroupSettings { title: "Tea".into(), is_silent: true, ..Default::default() }),
        ..Default::default()
    };
    ann.change_group(&change, PATIENCE).expect("she owns it");
    let refused = ben.send(Target::group("tea"), 1, "hm").expect("taken").wait_durable(PATIENCE);
    assert!(refused.is_err_and(|error| error.to_string().contains("silenced")));
    let info = ben.group_info(&group, "", PATIENCE).expect("a member");
    assert_eq!((info.settings.expect("set").title.as_str(), info.count), ("Tea", 2));
    let sent =
        ann.send(Target::group("tea"), 1, "hear").expect("taken").wait_durable(PATIENCE).expect("stored");
    ben.read(&group, sent.seq, PATIENCE).expect("read");
    let receipts = ann.receipts(&group, sent.seq, PATIENCE).expect("hers");
    assert_eq!((receipts.read, receipts.unread_count), (vec!["ben".to_owned()], 0));
    until("she is told that one has read", || {
        let message = ann.recv_timeout(PATIENCE).expect("comes");
        matches!(message.happened.as_deref(), Some(ConversationEvent::ReadCounts(it)) if it.counts[0].count == 1)
            .then_some(())
    });
    let there = ann.presence(&["ben"], true, PATIENCE).expect("a friend");
    assert!(!there[0].platforms.is_empty());
    ben.set_profile(Profile { name: "Ben".into(), ..Default::default() }, PATIENCE).expect("set");
    assert_eq!(ann.profiles(&["ben", "nobody"], PATIENCE).expect("found")[0].name, "Ben");
    ben.remove_device("pad", PATIENCE).expect("removed");
    assert_eq!(ben.devices(PATIENCE).expect("his").len(), 1);
    until("the pad is logged out", || {
        let notice = pad.notices().recv_timeout(PATIENCE).expect("a notice");
        matches!(notice, Notice::Closed(_)).then_some(())
    });
}
