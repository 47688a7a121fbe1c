//! TERM asks everybody to leave, INT does not ask.

use crate::gateway::{Backend, Gateway};
use crate::process::run;
use crate::raw::{Client, End};
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Close, Code};
use moorline_proto::message::frame_of;
use nix::sys::signal::Signal;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Grace of the tests in which something else ends the drain: longer than any machine is slow.
const GRACE: Duration = Duration::from_secs(600);

#[test]
fn a_draining_gateway_serves_until_everybody_has_left() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=600s"]);
    let mut silent = Client::connect(gateway.listener);
    let mut people = ["alice", "bob"].map(|uid| Client::login(gateway.listener, uid, "d"));
    gateway.until_metric("connections", 3);
    let started = clock::now();
    gateway.process.signal(Signal::SIGTERM);
    for person in &mut people {
        person.until("GOAWAY", |heard| heard.goaway.is_some());
        assert_eq!(person.heard.goaway.as_ref().expect("just heard").window_ms, 600_000);
    }
    assert_eq!(silent.end().code(), CloseReason::GoingAway.code());
    let (code, text) = gateway.get("/readyz");
    assert!(code == 503 && text.contains("draining"), "{code} {text}");
    assert_eq!(gateway.get("/healthz").0, 200);
    // Nobody listens any more, so that another process can; but everything else goes on.
    let knock = || TcpStream::connect(gateway.listener).err().map(|error| error.kind());
    crate::until("newcomers are refused", || knock().filter(|kind| *kind == ErrorKind::ConnectionRefused));
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
    assert!(took < GRACE / 2, "it does not wait for the grace: {took:?}");
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
    assert!(took > Duration::from_millis(800) && took < GRACE, "closed after {took:?}");
    drop(alice);
    assert_eq!(gateway.process.end().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_drain() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=600s"]);
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
    let mut gateway = Gateway::start(&backend, &["drain.grace=600s"]);
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
    assert!(took < GRACE, "{took:?}");
    drop(people);
}

#[test]
fn hup_without_other_settings_changes_nothing() {
    let gateway = Gateway::alone(&[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    gateway.process.signal(Signal::SIGHUP);
    let told = "settings and keys were read again";
    crate::until("it says so", || gateway.process.log().contains(told).then_some(()));
    alice.beat(30);
}

fn order(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = gateway.admin.to_string();
    let (code, said, error) = run(&[arguments, &["--admin", &admin]].concat());
    (code, said + &error)
}

#[test]
fn a_drain_at_a_rate_sends_people_elsewhere_one_by_one() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["gateway.alternates=[\"gw2.example:7000\"]"]);
    let mut people: Vec<_> =
        (0..12).map(|number| Client::login(gateway.listener, &format!("u{number}"), "d")).collect();
    let started = clock::now();
    let drained = std::thread::scope(|scope| {
        let order = || {
            order(&gateway, &["drain", "--rate", "10/s", "--grace", "60s", "--redirect", "gw2.example:7000"])
        };
        let drain = scope.spawn(order);
        for person in &mut people {
            person.until("GOAWAY", |heard| heard.goaway.is_some());
            let goaway = person.heard.goaway.clone().expect("just heard");
            assert_eq!((goaway.window_ms, goaway.alternates), (0, vec!["gw2.example:7000".to_owned()]));
            // Until it leaves it is served.
            person.beat(30);
        }
        let took = clock::now().saturating_since(started);
        assert!(took >= Duration::from_millis(500), "12 at 10/s were asked within {took:?}");
        assert_eq!(gateway.get("/readyz").0, 503);
        for person in &mut people {
            person.put(&frame_of(Command::Close, &Close::default()));
            assert_eq!(person.end(), End::Eof);
        }
        drain.join().expect("no panic")
    });
    assert_eq!(drained.0, Some(0), "{}", drained.1);
    assert!(drained.1.contains("12 connections left"), "{}", drained.1);
    assert!(TcpStream::connect(gateway.listener).is_err());
    // A hot restart would have nobody to hand over.
    let (code, said) = order(&gateway, &["upgrade"]);
    assert!(code == Some(1) && said.contains("undrain"), "{said}");
    assert_eq!(order(&gateway, &["undrain"]), (Some(0), "clients may come again\n".into()));
    gateway.until_ready();
    Client::login(gateway.listener, "u0", "d").beat(30);
}

#[test]
fn who_stays_longer_than_the_grace_is_closed_and_the_process_serves_on() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let (code, said) = order(&gateway, &["drain", "--no-wait", "--grace", "300ms"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(alice.end().code(), CloseReason::GoingAway.code());
    assert!(alice.heard.goaway.is_some());
    drop(alice);
    assert_eq!(order(&gateway, &["drain"]).0, Some(0), "it waits until nobody is left");
    assert_eq!(gateway.get("/healthz").0, 200);
}

#[test]
fn a_successor_listens_where_a_draining_gateway_did_and_undrain_says_so() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    assert_eq!(order(&gateway, &["drain", "--no-wait", "--grace", "60s"]).0, Some(0));
    alice.until("GOAWAY", |heard| heard.goaway.is_some());
    // The standard library sets SO_REUSEADDR, as the gateway does.
    let successor = crate::until("the port is free", || TcpListener::bind(gateway.listener).ok());
    let (code, said) = order(&gateway, &["undrain"]);
    assert!(code == Some(1) && said.contains("cannot listen at"), "{said}");
    alice.beat(30);
    drop(successor);
    assert_eq!(order(&gateway, &["undrain"]).0, Some(0));
    Client::login(gateway.listener, "bob", "d").beat(30);
}

#[test]
fn an_order_that_cannot_be_is_refused_with_what_was_expected() {
    let gateway = Gateway::alone(&[]);
    for (arguments, expected) in [
        (["drain", "--rate", "fast"], "1/s to 1000000/s"),
        (["drain", "--rate", "0/s"], "1/s to 1000000/s"),
        (["drain", "--redirect", "nowhere"], "host:port"),
        (["drain", "--grace", "2h"], "at most 1h"),
    ] {
        let (code, said) = order(&gateway, &arguments);
        assert!(code == Some(2) && said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(gateway.get("/v1/drain").0, 405, "a GET orders nothing");
}
