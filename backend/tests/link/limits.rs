//! Limits, and the end of links that break the rules.

use crate::gateway::{Gateway, send_body};
use crate::{Backend, Order, config, next};
use bytes::Bytes;
use moorline_backend::server::{Event, PushSpec};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::link::{self, Kind};
use moorline_proto::message::backend::{ConnDown, LinkHello, Outcome, Query, UpResult};
use moorline_proto::message::client::Code;
use std::sync::mpsc;
use std::time::Duration;

#[test]
fn garbage_closes_its_link_and_no_other() {
    let (backend, _told, _) = Backend::spy(&config());
    let mut good = backend.gateway("good", 1);
    let mut too_large = vec![0xFF, 0xFF, 0xFF, 0xFF, link::LINK_VERSION, Kind::Up.byte()];
    too_large.resize(link::HEADER_BYTES, 0);
    let mut unknown = vec![0, 0, 0, 0, link::LINK_VERSION, 0xEE];
    unknown.resize(link::HEADER_BYTES, 0);
    for garbage in [&b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..], &too_large, &unknown] {
        let mut bad = backend.gateway("bad", 1);
        bad.say_raw(garbage);
        assert!(bad.is_closed());
        let mut bad = Gateway::connect(backend.address);
        bad.say_raw(garbage);
        assert!(bad.is_closed());
    }
    good.say(Kind::Ping, 1, &());
    good.expect(Kind::Pong);
}

#[test]
fn frames_out_of_place_close_the_link() {
    let (backend, _told, _) = Backend::spy(&config());
    let mut early = Gateway::connect(backend.address);
    early.say(Kind::Ping, 1, &());
    assert!(early.is_closed());
    let mut foreign = Gateway::connect(backend.address);
    foreign.say(
        Kind::Hello,
        0,
        &LinkHello { version_min: 2, version_max: 3, node: "g".into(), ..Default::default() },
    );
    assert!(foreign.is_closed());
    let mut nameless = Gateway::connect(backend.address);
    nameless.hello("", 1);
    assert!(nameless.is_closed());
    let mut twice = backend.gateway("g", 1);
    twice.hello("g", 1);
    assert!(twice.is_closed());
    for kind in [Kind::UpResult, Kind::Push, Kind::Kick, Kind::Query, Kind::AuthResult] {
        let mut upside_down = backend.gateway("g", 1);
        upside_down.say(kind, 0, &Query::default());
        assert!(upside_down.is_closed(), "{kind:?}");
    }
    let mut bad_body = backend.gateway("g", 1);
    bad_body.say_raw(&[
        0,
        0,
        0,
        1,
        link::LINK_VERSION,
        Kind::Up.byte(),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0xFF,
    ]);
    assert!(bad_body.is_closed());
}

#[test]
fn silence_ends_a_link_before_and_after_hello() {
    let mut config = config();
    config.link.hello_timeout = Duration::from_millis(100);
    let (backend, _told, _) = Backend::spy(&config);
    assert!(Gateway::connect(backend.address).is_closed());
    // A time in which even a slow machine says HELLO.
    config.link.hello_timeout = Duration::from_secs(60);
    config.link.silence_timeout = Duration::from_millis(300);
    let (backend, told, _) = Backend::spy(&config);
    let mut gateway = backend.gateway("g", 1);
    assert!(gateway.is_closed());
    let event = std::iter::from_fn(|| Some(next(&told))).find(|it| matches!(it, Event::LinkDown { .. }));
    assert!(event.is_some());
}

#[test]
fn links_and_sessions_over_their_limit_are_turned_away() {
    let mut config = config();
    config.link.links_max = 2;
    config.link.sessions_max = 1;
    let (backend, _told, _) = Backend::spy(&config);
    let mut first = backend.gateway("g", 1);
    let _second = backend.gateway("g", 1);
    assert!(Gateway::connect(backend.address).is_closed());
    first.conn_up(1, "alice", "phone", 1);
    first.conn_up(2, "bob", "phone", 7);
    let kick: moorline_proto::message::backend::Kick = first.expect(Kind::Kick).message().expect("a Kick");
    assert_eq!((kick.handle, kick.login_version, kick.code, kick.may_reconnect), (2, 7, 3001, true));
}

#[test]
fn over_its_credit_a_link_waits_for_answers_from_another_thread() {
    let mut config = config();
    config.link.credit = 2;
    let (backend, told, remote) = Backend::spy(&config);
    let mut gateway = backend.gateway("g", 1);
    gateway.conn_up(1, "alice", "phone", 1);
    // One more than its credit: the frames of a gateway that keeps to it are never left unread.
    let mut questions: Vec<_> =
        (0..3).map(|_| gateway.up(1, Command::Send, send_body("bob", 1, b""))).collect();
    let mut replies = Vec::new();
    while replies.len() < 3 {
        if let Event::Up(up) = next(&told) {
            replies.push(up.reply.expect("a SEND wants an answer"));
        }
    }
    questions.push(gateway.up(1, Command::Send, send_body("bob", 1, b"")));
    let (tell, unread) = mpsc::channel();
    let order: Order = Box::new(move |out| {
        // The fourth stays in its socket until there is credit.
        tell.send(told.try_recv().is_err()).expect("the test waits");
        for reply in replies {
            out.answer(reply, Code::Denied, Bytes::new());
        }
        // Not answered in this test, so the link keeps credit for one.
        std::mem::forget(told);
    });
    assert!(remote.try_send(order).is_ok());
    assert_eq!(unread.recv(), Ok(true));
    for question in &questions[..3] {
        assert_eq!(
            gateway.answer(*question),
            UpResult { code: Code::Denied.into(), answer: Bytes::new(), ..Default::default() }
        );
    }
    gateway.say(Kind::Ping, 5, &());
    assert_eq!(gateway.expect(Kind::Pong).correlation, 5, "the link is read again");
}

#[test]
fn a_gateway_that_does_not_read_fills_its_link_and_loses_it() {
    let mut config = config();
    config.link.output_max = 64 << 10;
    config.link.stall_timeout = Duration::from_millis(100);
    let (backend, told, remote) = Backend::spy(&config);
    let mut gateway = backend.gateway("g", 1);
    gateway.conn_up(1, "gone", "phone", 1);
    gateway.say(Kind::ConnDown, 0, &ConnDown { handle: 1, code: 0 });
    gateway.conn_up(2, "alice", "phone", 1);
    let mut sessions = std::iter::from_fn(|| Some(next(&told))).filter_map(|event| match event {
        Event::ConnUp { session, .. } => Some(session),
        _ => None,
    });
    let (gone, alice) = (sessions.next().expect("endless"), sessions.next().expect("endless"));
    let spec = PushSpec { want_ack: true, ..PushSpec::new(Command::Push, Lane::Bulk) };
    // The outcome for the session that is gone comes in the same turn: then what was pushed to alice
    // has been written, as far as her gateway's socket took it.
    let push = || {
        let order: Order = Box::new(move |out| {
            out.push(&[alice, gone], spec, &Bytes::from(vec![0; 128 << 10]));
        });
        assert!(remote.try_send(order).is_ok());
    };
    push();
    loop {
        match next(&told) {
            Event::Pushed { outcome: Outcome::Offline, session, .. } => {
                assert_eq!(session, gone);
                push();
            }
            Event::Pushed { outcome, session, .. } => {
                assert_eq!((outcome, session), (Outcome::Full, alice));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let down = std::iter::from_fn(|| Some(next(&told))).find(|it| matches!(it, Event::LinkDown { .. }));
    assert!(down.is_some());
    assert!(gateway.is_closed());
}
