//! Links, gateways and sessions come and go.

use crate::gateway::{Gateway, login, send_body};
use crate::{Backend, config, next};
use bytes::Bytes;
use moorline_backend::server::{Event, PushSpec, SessionId};
use moorline_backend::{BackendConfig, config::HandlerKind};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{Announce, ConnDown, LinkHello, Outcome};
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::{decode, encode};
use std::sync::mpsc;
use std::time::Duration;

const SPEC: PushSpec = PushSpec { want_ack: true, ..PushSpec::new(Command::Push, Lane::Chat) };

fn session_up(told: &mpsc::Receiver<Event>) -> (SessionId, bool) {
    match next(told) {
        Event::ConnUp { session, is_new, .. } => (session, is_new),
        other => panic!("no ConnUp: {other:?}"),
    }
}

macro_rules! assert_next {
    ($told:expr, $pattern:pat) => {{
        let event = next(&$told);
        assert!(matches!(event, $pattern), "{event:?}");
    }};
}

#[test]
fn a_hello_is_answered_with_credit_and_a_ping_with_a_pong() {
    let mut config = config();
    config.link.credit = 77;
    config.node = "b1".into();
    let (backend, told, _) = Backend::spy(&config);
    let mut gateway = Gateway::connect(backend.address);
    gateway.hello("g1", 5);
    let frame = gateway.expect(Kind::Hello);
    let hello: LinkHello = frame.message().expect("a LinkHello");
    assert_eq!((frame.credit, hello.node.as_str(), hello.epoch > 0), (77, "b1", true));
    let event = next(&told);
    assert!(matches!(&event, Event::GatewayUp { node, epoch: 5, .. } if node == "g1"), "{event:?}");
    assert_next!(told, Event::LinkUp { .. });
    gateway.say(Kind::Ping, 9, &());
    assert_eq!(gateway.expect(Kind::Pong).correlation, 9);
}

#[test]
fn echo_answers_counts_and_echoes() {
    let backend = Backend::run(BackendConfig { handler: HandlerKind::Echo, ..config() });
    let mut gateway = backend.gateway("g", 1);
    gateway.conn_up(1, "alice", "phone", 1);
    gateway.conn_up(2, "bob", "phone", 1);
    assert_eq!(gateway.send(1, "bob", 1, b"hi").1.seq, 1);
    assert_eq!(gateway.send(2, "alice", 1, b"hi").1.seq, 1, "each session counts for itself");
    let (code, ack) = gateway.send(1, "alice", 2, b"note");
    assert_eq!((code, ack.seq), (Code::Ok, 2));
    let (_, push) = gateway.push();
    assert_eq!((push.handles, push.command), (vec![1], Command::Push.byte().into()));
    let echo: Push = decode(&push.body).expect("a Push");
    assert_eq!((echo.conversation.as_str(), echo.message_id), ("c2c:alice:alice", ack.message_id));
    assert_eq!((&echo.payload[..], echo.sender_device.as_str()), (&b"note"[..], "phone"));
    assert_eq!(gateway.req(1, "echo", Bytes::from_static(b"x")), (Code::Ok, Bytes::from_static(b"x")));
    assert_eq!(gateway.req(1, "sing", Bytes::new()).0, Code::Unsupported);
    assert_eq!(gateway.send(3, "alice", 1, b"").0, Code::Retry, "a handle that nobody announced");
}

#[test]
fn an_acker_answers_a_burst_in_order() {
    let backend = Backend::run(BackendConfig { handler: HandlerKind::Acker, ..config() });
    let mut gateway = backend.gateway("g", 1);
    gateway.conn_up(1, "alice", "phone", 1);
    let questions: Vec<_> =
        (0..1000).map(|_| gateway.up(1, Command::Send, send_body("alice", 1, b"hi"))).collect();
    for (seq, question) in (1..).zip(questions) {
        let result = gateway.answer(question);
        let ack: moorline_proto::message::client::SendAck = decode(&result.answer).expect("a SendAck");
        assert_eq!((result.code(), ack.seq), (Code::Ok, seq));
    }
    assert_eq!(gateway.req(1, "echo", Bytes::new()).0, Code::Ok, "and nothing was pushed");
}

#[test]
fn one_push_serves_many_sessions_with_one_frame_per_link() {
    let (backend, told, remote) = Backend::spy(&config());
    let (mut one, mut two) = (backend.gateway("g1", 1), backend.gateway("g2", 1));
    one.say(
        Kind::Announce,
        0,
        &Announce { connections: vec![login(1, "a", "p", 1), login(2, "b", "p", 1)], more: false },
    );
    two.conn_up(1, "c", "p", 1);
    let mut sessions: Vec<_> = std::iter::from_fn(|| Some(next(&told)))
        .filter_map(|event| match event {
            Event::ConnUp { session, login, .. } => Some((login.uid, session)),
            _ => None,
        })
        .take(3)
        .collect();
    sessions.sort();
    let targets: Vec<_> = sessions.iter().map(|(_, session)| *session).collect();
    let order = move |out: &mut moorline_backend::server::Outbox| {
        out.push(&targets, SPEC, &encode(&Push { seq: 7, ..Default::default() }));
    };
    assert!(remote.try_send(Box::new(order)).is_ok());
    let (correlation, push) = one.push();
    assert_eq!((push.handles, push.want_ack, push.lane), (vec![1, 2], true, 1));
    let (same, push) = two.push();
    assert_eq!((push.handles, same), (vec![1], correlation));
    one.outcome(correlation, 2, Outcome::Acked.into());
    let b = sessions[1].1;
    let event = std::iter::from_fn(|| Some(next(&told))).find(|it| matches!(it, Event::Pushed { .. }));
    let event = event.expect("endless");
    assert!(
        matches!(event, Event::Pushed { session, outcome: Outcome::Acked, .. } if session == b),
        "{event:?}"
    );
}

#[test]
fn a_session_that_its_gateway_calls_offline_has_ended() {
    let (backend, told, remote) = Backend::spy(&config());
    let mut gateway = backend.gateway("g", 1);
    assert_next!(told, Event::GatewayUp { .. });
    assert_next!(told, Event::LinkUp { .. });
    gateway.conn_up(1, "alice", "phone", 1);
    let (session, _) = session_up(&told);
    let order = move |out: &mut moorline_backend::server::Outbox| {
        out.push(&[session], SPEC, &Bytes::new());
    };
    assert!(remote.try_send(Box::new(order)).is_ok());
    let (correlation, _) = gateway.push();
    gateway.outcome(correlation, 1, Outcome::Offline.into());
    assert_next!(told, Event::Pushed { outcome: Outcome::Offline, .. });
    assert_next!(told, Event::ConnDown { code: 0, .. });
    gateway.say(Kind::ConnDown, 0, &ConnDown { handle: 1, code: 0 });
    gateway.conn_up(2, "alice", "phone", 2);
    assert!(session_up(&told).1, "the late CONN_DOWN was no news");
}

#[test]
fn a_session_outlives_its_link_and_moves_to_another() {
    let (backend, told, remote) = Backend::spy(&config());
    let mut first = backend.gateway("g", 1);
    assert_next!(told, Event::GatewayUp { .. });
    assert_next!(told, Event::LinkUp { .. });
    first.conn_up(1, "alice", "phone", 1);
    let (session, is_new) = session_up(&told);
    assert!(is_new);
    drop(first);
    assert_next!(told, Event::LinkDown { .. });
    let push = move || {
        let order = move |out: &mut moorline_backend::server::Outbox| {
            out.push(&[session], SPEC, &Bytes::new());
        };
        assert!(remote.try_send(Box::new(order)).is_ok());
    };
    push();
    assert_next!(told, Event::Pushed { outcome: Outcome::Offline, .. });
    let mut second = backend.gateway("g", 1);
    assert_next!(told, Event::LinkUp { .. });
    second.say(
        Kind::Announce,
        0,
        &Announce { connections: vec![login(1, "alice", "phone", 1)], more: false },
    );
    assert_eq!(session_up(&told), (session, false));
    assert_next!(told, Event::Announced { sessions: 1, more: false, .. });
    push();
    assert_eq!(second.push().1.handles, [1]);
    second.say(Kind::ConnDown, 0, &ConnDown { handle: 1, code: 3532 });
    assert_next!(told, Event::ConnDown { code: 3532, .. });
}

#[test]
fn without_a_link_sessions_and_gateway_end_with_their_lease() {
    let mut config = config();
    config.link.lease = Duration::from_millis(50);
    let (backend, told, _) = Backend::spy(&config);
    let mut gateway = backend.gateway("g", 1);
    gateway.conn_up(1, "alice", "phone", 1);
    drop(gateway);
    assert_next!(told, Event::GatewayUp { .. });
    assert_next!(told, Event::LinkUp { .. });
    assert_next!(told, Event::ConnUp { .. });
    assert_next!(told, Event::LinkDown { .. });
    assert_next!(told, Event::ConnDown { code: 0, .. });
    assert_next!(told, Event::GatewayDown { .. });
}

#[test]
fn a_newer_epoch_ends_the_older_one_and_an_older_is_refused() {
    let (backend, told, _) = Backend::spy(&config());
    let mut old = backend.gateway("g", 5);
    old.conn_up(1, "alice", "phone", 1);
    let mut new = backend.gateway("g", 6);
    assert_next!(told, Event::GatewayUp { epoch: 5, .. });
    assert_next!(told, Event::LinkUp { .. });
    assert_next!(told, Event::ConnUp { .. });
    assert_next!(told, Event::LinkDown { .. });
    assert_next!(told, Event::ConnDown { .. });
    assert_next!(told, Event::GatewayDown { .. });
    assert_next!(told, Event::GatewayUp { epoch: 6, .. });
    assert!(old.is_closed());
    let mut late = Gateway::connect(backend.address);
    late.hello("g", 5);
    assert!(late.is_closed());
    new.say(Kind::Ping, 1, &());
    new.expect(Kind::Pong);
}
