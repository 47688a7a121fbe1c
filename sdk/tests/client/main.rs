//! The threaded client over real sockets, against a small server in this process.

#![allow(clippy::unwrap_used)] // a test says what is wrong by failing

mod dispatch;
mod server;
mod tls;

use moorline_proto::frame::Command;
use moorline_sdk::client::{BuildError, CallError, Client, ClientBuilder, Notice, RecvError, SendError};
use moorline_sdk::core::{
    Backoff, ClosedWhy, Repeat, RequestError, SendFailure, SendRefused, Target, TokenWhy,
};
use moorline_sdk::{Bytes, Code, MessageKey, Platform};
use server::{PATIENCE, Server};
use std::sync::mpsc;
use std::time::Duration;

fn builder(server: &Server, uid: &str) -> ClientBuilder {
    let quick = Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) };
    Client::builder(&server.endpoint()).user(uid).device("test", Platform::Linux).backoff(quick)
}

fn client(server: &Server, uid: &str) -> Client {
    builder(server, uid).build().expect("starts")
}

fn wait_for(client: &Client, mut is_it: impl FnMut(&Notice) -> bool) -> Notice {
    loop {
        let notice = client.notices().recv_timeout(PATIENCE).expect("the notice comes");
        if is_it(&notice) {
            return notice;
        }
    }
}

fn say(client: &Client, to: &str, text: &str) -> moorline_sdk::client::Pending {
    client.send(Target::user(to), 1, Bytes::copy_from_slice(text.as_bytes())).expect("taken")
}

#[test]
fn two_people_chat_and_a_message_is_acked_when_it_is_dropped() {
    let server = Server::start();
    let (alice, bob) = (client(&server, "alice"), client(&server, "bob"));
    let receipt = say(&alice, "bob", "hello").wait_durable(PATIENCE).expect("durable");
    assert_eq!((&*receipt.conversation, receipt.seq, receipt.is_repeat), ("c2c:alice:bob", 1, false));
    let message = bob.recv_timeout(PATIENCE).expect("comes");
    assert_eq!((&*message.sender, &message.payload[..], message.kind), ("alice", &b"hello"[..], 1));
    let second = say(&bob, "alice", "hi").wait_durable(PATIENCE).expect("durable");
    assert_eq!(second.seq, 2);
    assert_eq!(server.state().acked.get("bob"), None, "still held");
    drop(message);
    server.wait("the ack", |state| state.acked.get("bob") == Some(&1));
    assert_eq!(&alice.recv_timeout(PATIENCE).expect("comes").payload[..], b"hi");
    assert_eq!(bob.recv_timeout(Duration::ZERO).unwrap_err(), RecvError::TimedOut);
}

#[test]
fn sends_made_offline_arrive_and_messages_held_over_a_reconnect_come_once() {
    let server = Server::start();
    let (alice, bob) = (client(&server, "alice"), client(&server, "bob"));
    say(&alice, "bob", "1").wait_durable(PATIENCE).expect("durable");
    let first = bob.recv_timeout(PATIENCE).expect("comes");
    server.break_connection("bob");
    server.state().is_mute = true;
    let sent: Vec<_> = (2..10).map(|at| say(&alice, "bob", &at.to_string())).collect();
    assert_eq!(sent[0].wait_durable(Duration::ZERO).unwrap_err(), SendError::NotYet);
    server.wait("the unanswered send", |state| {
        state.heard.iter().filter(|(uid, command)| uid == "alice" && *command == Command::Send).count() == 2
    });
    server.state().is_mute = false;
    server.break_connection("alice");
    for pending in &sent {
        pending.wait_durable(PATIENCE).expect("durable");
    }
    let texts: Vec<Bytes> =
        (2..10).map(|_| bob.recv_timeout(PATIENCE).expect("comes").payload.clone()).collect();
    assert_eq!(texts, (2..10).map(|at| Bytes::from(at.to_string())).collect::<Vec<_>>());
    drop(first);
    server.wait("all acks", |state| state.acked.get("bob") == Some(&9));
}

#[test]
fn many_threads_send_in_their_own_order() {
    let server = Server::start();
    let (alice, bob) = (client(&server, "alice"), client(&server, "bob"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let alice = &alice;
            scope.spawn(move || {
                let sent: Vec<_> =
                    (0..50).map(|at| say(alice, "bob", &format!("{thread}/{at:02}"))).collect();
                sent.iter().for_each(|pending| drop(pending.wait_durable(PATIENCE).expect("durable")));
            });
        }
    });
    let texts: Vec<Bytes> =
        (0..200).map(|_| bob.recv_timeout(PATIENCE).expect("comes").payload.clone()).collect();
    for thread in 0..4_u8 {
        let own: Vec<&Bytes> = texts.iter().filter(|text| text[0] == b'0' + thread).collect();
        assert!(own.len() == 50 && own.is_sorted());
    }
}

#[test]
fn a_handler_is_called_for_each_message_and_its_return_is_the_ack() {
    let server = Server::start();
    let (sender, called) = mpsc::channel();
    let (go_on, may_return) = mpsc::channel::<()>();
    let bob = builder(&server, "bob").on_message(move |message| {
        sender.send(message.seq).unwrap();
        let _ = may_return.recv_timeout(PATIENCE);
    });
    let bob = bob.build().expect("starts");
    assert_eq!(bob.recv_timeout(Duration::ZERO).unwrap_err(), RecvError::HasHandler);
    let alice = client(&server, "alice");
    say(&alice, "bob", "1").wait_durable(PATIENCE).expect("durable");
    assert_eq!(called.recv_timeout(PATIENCE), Ok(1));
    assert_eq!(server.state().acked.get("bob"), None);
    go_on.send(()).unwrap();
    server.wait("the ack", |state| state.acked.get("bob") == Some(&1));
}

#[test]
fn requests_are_answered_refused_or_time_out() {
    let server = Server::start();
    let alice = client(&server, "alice");
    for text in ["1", "2", "3"] {
        say(&alice, "bob", text).wait_durable(PATIENCE).expect("durable");
    }
    let page = alice.pull("c2c:alice:bob", 2, 0, 0, PATIENCE).expect("history");
    assert_eq!(page.messages.iter().map(|push| push.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(alice.members("group:g", PATIENCE).expect("members"), ["alice", "group:g"]);
    let refused = alice.create_group("g", &["bob"], PATIENCE).unwrap_err();
    assert!(matches!(refused, CallError::Failed(RequestError::Refused { code: Code::Unsupported, .. })));
    let late = alice.request("silence", Bytes::new(), Repeat::UntilAnswered, Duration::from_millis(30));
    assert_eq!(late.unwrap_err(), CallError::Failed(RequestError::TimedOut));
}

#[test]
fn refusals_reach_the_sender_and_a_key_is_stored_once() {
    let server = Server::start();
    let alice = client(&server, "alice");
    let refused = alice.send(Target::group("g"), 1, "x").unwrap().wait_durable(PATIENCE).unwrap_err();
    assert!(matches!(refused, SendError::Failed(SendFailure::Refused { code: Code::NotMember, .. })));
    let send = || alice.send_with_key(MessageKey([7; 16]), Target::user("bob"), 1, "x").unwrap();
    let receipts = [send(), send()].map(|pending| pending.wait_durable(PATIENCE).expect("durable"));
    assert_eq!(receipts.map(|receipt| (receipt.seq, receipt.is_repeat)), [(1, false), (1, true)]);
    let huge = alice.send(Target::user("bob"), 1, vec![0; 70_000]).unwrap_err();
    assert!(matches!(huge, SendRefused::TooLarge { .. }));
}

#[test]
fn an_expired_token_is_fetched_anew() {
    let server = Server::start();
    server.state().expired = Some("old".to_owned());
    let alice = builder(&server, "alice").token_provider(|why| match why {
        TokenWhy::First => Some("old".to_owned()),
        TokenWhy::Expired | TokenWhy::Refused => Some("new".to_owned()),
    });
    let alice = alice.build().expect("starts");
    wait_for(&alice, |notice| *notice == Notice::LoggedIn { resumed: false });
    assert!(alice.is_logged_in());
    assert_eq!(server.state().hellos, 2);
}

#[test]
fn promised_times_hold_while_the_token_provider_blocks() {
    let server = Server::start();
    let (asked, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let alice = builder(&server, "alice").token_provider(move |_| {
        asked.send(()).ok();
        may_go_on.recv().ok();
        Some("late".to_owned())
    });
    let alice = alice.build().expect("starts");
    is_asked.recv_timeout(PATIENCE).expect("the provider is asked");
    let payload = Bytes::from_static(b"x");
    let answer = alice.request("im.devices", payload, Repeat::UntilAnswered, Duration::from_millis(20));
    assert!(matches!(answer, Err(CallError::Failed(RequestError::TimedOut))), "{answer:?}");
    // What was sent meanwhile leaves when the token has come.
    let pending = say(&alice, "bob", "hello");
    go_on.send(()).expect("it waits");
    pending.wait_durable(PATIENCE).expect("durable");
    drop(alice);

    let (asked, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let ben = builder(&server, "ben").token_provider(move |_| {
        asked.send(()).ok();
        may_go_on.recv().ok();
        None
    });
    let ben = ben.build().expect("starts");
    is_asked.recv_timeout(PATIENCE).expect("the provider is asked");
    assert!(ben.logout(PATIENCE).is_some(), "without a login there is nothing to wait for");
    // The provider is still at work: it was not waited for.
    drop(go_on);
}

#[test]
fn a_name_is_resolved_and_a_token_that_expires_is_replaced_before_the_next_login() {
    let server = Server::start();
    let port = server.endpoint().rsplit_once(':').expect("a port").1.to_owned();
    let (asked, whys) = mpsc::channel();
    let alice =
        Client::builder(&format!("tcp://localhost:{port}")).user("alice").token_provider(move |why| {
            asked.send(why).ok();
            // {"alg":"none"} {"exp":1}: expired in 1970, as a device with a wrong clock sees a good one.
            Some("eyJhbGciOiJub25lIn0.eyJleHAiOjF9.c2ln".to_owned())
        });
    let quick = Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) };
    let alice = alice.backoff(quick).build().expect("starts");
    wait_for(&alice, |notice| matches!(notice, Notice::LoggedIn { .. }));
    assert_eq!(whys.recv_timeout(PATIENCE), Ok(TokenWhy::First));
    server.break_connection("alice");
    wait_for(&alice, |notice| matches!(notice, Notice::LoggedIn { .. }));
    assert_eq!(whys.recv_timeout(PATIENCE), Ok(TokenWhy::Expired));
}

#[test]
fn a_refused_login_ends_everything_aloud() {
    let server = Server::start();
    server.state().is_banned = true;
    let alice = client(&server, "alice");
    let closed = wait_for(&alice, |notice| matches!(notice, Notice::Closed(_)));
    assert!(matches!(closed, Notice::Closed(ClosedWhy::Told { code: 3520, .. })), "{closed:?}");
    assert_eq!(alice.recv_timeout(PATIENCE).unwrap_err(), RecvError::Closed);
    assert_eq!(alice.send(Target::user("bob"), 1, "x").unwrap_err(), SendRefused::Closed);
    assert_eq!(server.state().hellos, 1, "it does not come back");
}

#[test]
fn logout_is_heard_and_what_is_open_fails() {
    let server = Server::start();
    let alice = client(&server, "alice");
    wait_for(&alice, |notice| matches!(notice, Notice::LoggedIn { .. }));
    server.state().is_mute = true;
    let pending = say(&alice, "bob", "x");
    assert_eq!(alice.logout(PATIENCE), Some(ClosedWhy::LoggedOut));
    assert_eq!(pending.result(), Some(Err(SendFailure::Closed)));
    assert!(server.state().heard.contains(&("alice".to_owned(), Command::Logout)));
}

#[test]
fn dropping_the_client_says_goodbye_with_the_last_ack() {
    let server = Server::start();
    let (alice, bob) = (client(&server, "alice"), client(&server, "bob"));
    say(&alice, "bob", "1").wait_durable(PATIENCE).expect("durable");
    drop(bob.recv_timeout(PATIENCE).expect("comes"));
    let pending = {
        server.state().is_mute = true;
        say(&bob, "alice", "x")
    };
    drop(bob);
    assert_eq!(pending.result(), Some(Err(SendFailure::Closed)));
    server.wait("goodbye", |state| state.heard.contains(&("bob".to_owned(), Command::Close)));
    assert_eq!(server.state().acked.get("bob"), Some(&1));
}

#[test]
fn nobody_at_the_address_is_told_and_tried_again() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let quick = Backoff { base: Duration::from_millis(1), cap: Duration::from_millis(2) };
    let alice = Client::builder(&format!("tcp://{address}")).user("alice").backoff(quick).build().unwrap();
    for _ in 0..3 {
        wait_for(&alice, |notice| matches!(notice, Notice::Disconnected { .. }));
    }
    let pending = say(&alice, "bob", "kept");
    drop(alice);
    assert_eq!(pending.wait_durable(PATIENCE).unwrap_err(), SendError::Failed(SendFailure::Closed));
}

#[test]
fn wrong_settings_are_refused_with_a_reason() {
    for endpoint in ["", "tcp://host", "http://host:80", "tcp://:1", "tls://h:99999"] {
        let built = Client::builder(endpoint).user("alice").build();
        assert!(matches!(built, Err(BuildError::Endpoint { .. })), "{endpoint}");
    }
    for uid in ["", "a:b", "a\nb", &"x".repeat(65)] {
        let built = Client::builder("tcp://127.0.0.1:1").user(uid).build();
        assert!(matches!(built, Err(BuildError::Name(_))), "{uid}");
    }
}
