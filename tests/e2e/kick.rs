//! Logins that end other logins, and logins that end themselves.

use crate::gateway::{Backend, Gateway};
use crate::raw::{Client, End, bytes_of, hello};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::message::client::{Close, Code, Kick};
use moorline_proto::message::frame_of;
use std::time::Duration;

fn kicked(client: &mut Client) -> Kick {
    match client.end() {
        End::Kick(kick) => kick,
        other => panic!("expected a KICK: {other:?}"),
    }
}

#[test]
fn the_newer_login_of_a_device_stays() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut others = ["laptop", "tablet"].map(|device| Client::login(gateway.listener, "alice", device));
    let mut phone = Client::login(gateway.listener, "alice", "phone");
    for number in 0..10u32 {
        let newer = Client::login(gateway.listener, "alice", "phone");
        let kick = kicked(&mut std::mem::replace(&mut phone, newer));
        assert_eq!((kick.code, kick.may_reconnect), (CloseReason::Replaced.code(), false));
        assert!(!kick.reason.is_empty());
        assert_eq!(phone.tell(number.into(), "alice", format!("{number}").as_bytes()).code(), Code::Ok);
    }
    for other in &mut others {
        other.until("notes to oneself", |heard| heard.pushes.len() == 10);
        other.beat(30);
    }
    gateway.until_metric("logins_replaced_total", 10);
    gateway.until_closed("replaced", 10);
    gateway.until_sessions(3);
}

#[test]
fn the_newer_login_of_a_device_stays_across_gateways() {
    let backend = Backend::start();
    let first = Gateway::start(&backend, &["gateway.id=first"]);
    let second = Gateway::start(&backend, &["gateway.id=second"]);
    let mut laptop = Client::login(first.listener, "alice", "laptop");
    let mut phone = Client::login(first.listener, "alice", "phone");
    for (number, gateway) in (0..6u32).zip([&second, &first].into_iter().cycle()) {
        // The backend knows the older login once it has answered it.
        assert_eq!(phone.tell(number.into(), "alice", b"here").code(), Code::Ok);
        let newer = Client::login(gateway.listener, "alice", "phone");
        let kick = kicked(&mut std::mem::replace(&mut phone, newer));
        assert_eq!((kick.code, kick.may_reconnect), (CloseReason::Replaced.code(), false), "login {number}");
    }
    assert_eq!(phone.tell(99, "alice", b"still here").code(), Code::Ok);
    laptop.until("notes from both gateways", |heard| heard.pushes.len() == 7);
    first.until_sessions(2);
    second.until_sessions(0);
}

#[test]
fn logout_ends_the_login_with_a_word() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    assert_eq!(bob.tell(1, "alice", b"bye?").code(), Code::Ok);
    bob.put(&Frame::new(Command::Logout, Bytes::new()));
    let End::Close(close) = bob.end() else { panic!("{:?}", bob.heard.end) };
    assert_eq!(close.code, CloseReason::LoggedOut.code());
    // It speaks last: nothing follows but the end of its bytes.
    bob.heard.end = None;
    assert_eq!(bob.end(), End::Eof);
    gateway.until_sessions(1);
    assert_eq!(alice.tell(2, "bob", b"bye").code(), Code::Ok);
    let mut bob = Client::login(gateway.listener, "bob", "d");
    bob.until("what came meanwhile", |heard| heard.payloads() == [b"bye"]);
}

#[test]
fn a_clients_own_close_is_not_answered() {
    let gateway = Gateway::alone(&[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    alice.put(&frame_of(Command::Close, &Close::default()));
    assert_eq!(alice.end(), End::Eof);
    gateway.until_closed("peer", 1);
    gateway.until_sessions(0);
}

#[test]
fn a_user_has_at_most_32_devices_here() {
    let gateway = Gateway::alone(&[]);
    let mut devices: Vec<_> =
        (0..32).map(|number| Client::login(gateway.listener, "alice", &format!("d{number}"))).collect();
    let End::Close(close) = Client::refused(gateway.listener, &hello("alice", "d32")) else {
        panic!("a word")
    };
    assert_eq!(close.code, CloseReason::Throttled.code());
    assert!(close.retry_after_ms > 0);
    Client::login(gateway.listener, "bob", "d");
    // A device that is there already is replaced, not refused.
    devices[7] = Client::login(gateway.listener, "alice", "d7");
    devices.iter_mut().for_each(|device| device.beat(30));
}

/// HELLOs of one device that come together on many connections: one stays.
#[test]
fn logins_at_the_same_moment_leave_one() {
    let gateway = Gateway::alone(&[]);
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(gateway.listener)).collect();
    let bytes = bytes_of(&frame_of(Command::Hello, &hello("alice", "phone")));
    clients.iter_mut().for_each(|client| client.write(&bytes));
    clients.iter_mut().for_each(|client| client.until("WELCOME", |heard| heard.welcome.is_some()));
    let standing = |client: &mut Client| {
        client.listen(Duration::from_millis(1));
        client.heard.end.is_none()
    };
    crate::until("all but one are kicked", || {
        let left = clients.iter_mut().filter_map(|client| standing(client).then_some(())).count();
        (left <= 1).then_some(())
    });
    let left: Vec<_> = clients.iter_mut().filter(|client| client.heard.end.is_none()).collect();
    assert_eq!(left.len(), 1);
    gateway.until_sessions(1);
    left.into_iter().for_each(|client| client.beat(30));
    gateway.until_closed("replaced", 49);
}
