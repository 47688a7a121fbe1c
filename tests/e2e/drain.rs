//! TERM asks everybody to leave, INT does not ask.

use crate::gateway::{Backend, Gateway};
use crate::raw::{Client, End, hello};
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Close, Code};
use moorline_proto::message::frame_of;
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_draining_gateway_serves_until_everybody_has_left() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=60s"]);
    let mut silent = Client::connect(gateway.listener);
    let mut people = ["alice", "bob"].map(|uid| Client::login(gateway.listener, uid, "d"));
    gateway.until_metric("connections", 3);
    let started = clock::now();
    gateway.process.signal(Signal::SIGTERM);
    for person in &mut people {
        person.until("GOAWAY", |heard| heard.goaway.is_some());
        assert_eq!(person.heard.goaway.as_ref().expect("just heard").window_ms, 60_000);
    }
    assert_eq!(silent.end().code(), CloseReason::GoingAway.code());
    let (code, text) = gateway.get("/readyz");
    assert!(code == 503 && text.contains("draining"), "{code} {text}");
    assert_eq!(gateway.get("/healthz").0, 200);
    // No newcomers, but everything else.
    assert_eq!(Client::refused(gateway.listener, &hello("carol", "d")).code(), CloseReason::GoingAway.code());
    let [alice, bob] = &mut people;
    assert_eq!(alice.tell(1, "bob", b"still here?").code(), Code::Ok);
    bob.until("the message", |heard| heard.payloads() == [b"still here?"]);
    alice.beat(30);
    assert!(gateway.process.is_running());
    for person in &mut people {
        person.put(&frame_of(Command::Close, &Close::default()));
        assert_eq!(person.end(), End::Eof);
    }
    assert_eq!(gateway.process.end().code(), Some(0));
    let took = clock::now().saturating_since(started);
    assert!(took < Duration::from_secs(25), "it does not wait for the grace: {took:?}");
}

#[test]
fn when_the_grace_is_over_who_stayed_is_closed() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=1s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let started = clock::now();
    gateway.process.signal(Signal::SIGTERM);
    alice.until("GOAWAY", |heard| heard.goaway.is_some());
    assert_eq!(alice.end().code(), CloseReason::GoingAway.code());
    let took = clock::now().saturating_since(started);
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(6), "closed after {took:?}");
    drop(alice);
    assert_eq!(gateway.process.end().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_drain() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=60s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    gateway.process.signal(Signal::SIGTERM);
    alice.until("GOAWAY", |heard| heard.goaway.is_some());
    gateway.process.signal(Signal::SIGTERM);
    assert_eq!(alice.end().code(), CloseReason::GoingAway.code());
    drop(alice);
    assert_eq!(gateway.process.end().code(), Some(0));
}

#[test]
fn int_closes_and_ends() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=60s"]);
    let mut people: Vec<_> =
        (0..50).map(|number| Client::login(gateway.listener, &format!("u{number}"), "d")).collect();
    let started = clock::now();
    gateway.process.signal(Signal::SIGINT);
    for person in &mut people {
        assert_eq!(person.end().code(), CloseReason::GoingAway.code());
        assert!(person.heard.goaway.is_none());
    }
    // Nobody closes their side: the linger ends it.
    assert_eq!(gateway.process.end().code(), Some(0));
    let took = clock::now().saturating_since(started);
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop(people);
}

#[test]
fn hup_changes_nothing() {
    let gateway = Gateway::alone(&[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    gateway.process.signal(Signal::SIGHUP);
    crate::until("it says so", || gateway.process.log().contains("SIGHUP").then_some(()));
    alice.beat(30);
}
