//! Other commands of a logged-in client, with and without a backend.

use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Acks, Client, bytes_of, hello, message, send_frame};
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame, encode_batch};
use moorline_proto::message::client::{Code, Ping, Req, Send, Sub, send};
use moorline_proto::message::{encode, frame_of};
use std::time::Duration;

fn ping() -> Frame {
    frame_of(Command::Ping, &Ping { next_s: 30 })
}

#[test]
fn a_batch_is_handled_as_if_its_frames_had_come_alone() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    let sends =
        (1..=120).map(|cid| send_frame(cid, &message(cid.into(), "bob", format!("{cid}").as_bytes())));
    let frames: Vec<_> = sends.collect();
    for batch in frames.chunks(60) {
        let batch: Vec<_> = [ping()].into_iter().chain(batch.iter().cloned()).chain([ping()]).collect();
        alice.put(&encode_batch(&batch));
        let wanted = alice.heard.send_acks.len() + 60;
        alice.until("its answers", |heard| heard.send_acks.len() == wanted);
    }
    assert_eq!(alice.heard.pongs, 4);
    assert!(alice.heard.send_acks.iter().all(|ack| ack.code() == Code::Ok));
    bob.until("all messages", |heard| heard.pushes.len() == 120);
    assert!(bob.heard.pushes.iter().all(|push| push.payload == format!("{}", push.seq)));
    // As many as one may hold.
    alice.put(&encode_batch(&vec![ping(); 128]));
    alice.until("128 more", |heard| heard.pongs == 132);
}

#[test]
fn frames_may_be_cut_anywhere() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut bob = Client::login(gateway.listener, "bob", "d");
    let mut alice = Client::connect(gateway.listener);
    let mut bytes = bytes_of(&frame_of(Command::Hello, &hello("alice", "d")));
    for byte in bytes.drain(..) {
        alice.write(&[byte]);
    }
    alice.until("WELCOME", |heard| heard.welcome.is_some());
    for cid in 1..=30 {
        bytes.extend(bytes_of(&send_frame(cid, &message(cid.into(), "bob", &[b'x'; 300]))));
    }
    for part in bytes.chunks(7) {
        alice.write(part);
    }
    alice.until("30 answers", |heard| heard.send_acks.len() == 30);
    bob.until("30 messages", |heard| heard.pushes.len() == 30);
}

#[test]
fn an_unknown_method_is_answered_so() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let resp = alice.request(41, "no.such.method", Bytes::from_static(b"?"));
    assert_eq!((resp.id, resp.code()), (41, Code::Unsupported));
    assert!(!resp.reason.is_empty());
}

#[test]
fn without_a_backend_nobody_can_say_who_may_enter_a_room() {
    let gateway = Gateway::alone(&["backend.up_timeout=300ms"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    for (id, command) in [(1, Command::Sub), (2, Command::Unsub)] {
        alice.put(&frame_of(command, &Sub { id, room: "lobby".into() }));
    }
    alice.until("two SUBACKs", |heard| heard.sub_acks.len() == 2);
    let answers: Vec<_> = alice.heard.sub_acks.iter().map(|ack| (ack.id, ack.code())).collect();
    assert_eq!(answers, [(1, Code::Retry), (2, Code::Retry)]);
}

#[test]
fn application_commands_and_unknown_ones_do_no_harm() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    for byte in [0x40, 0x77, 0xBF, 0xC0, 0xEE, 0xFF] {
        let command = Command::from_byte(byte).expect("a lawful byte");
        alice.put(&Frame::new(command, Bytes::from_static(b"whatever it is")));
        alice.beat(30);
    }
    gateway.until_metric("ups_total", 3); // the application's are passed on, the unknown dropped
    assert_eq!(alice.tell(1, "bob", b"still here").code(), Code::Ok);
    // The header of a dropped frame still acknowledges.
    bob.acks = Acks::Withheld;
    bob.until("the message", |heard| heard.pushes.len() == 1);
    bob.put(&Frame::new(Command::Ignorable(0xC1), Bytes::from_static(b"?")).with_ack(1));
    gateway.until_metric("pushes_acked_total", 1);
}

#[test]
fn a_request_for_an_ack_is_answered_with_the_cids_taken() {
    let gateway = Gateway::alone(&[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    alice.send(&message(1, "bob", b"?"));
    alice.send(&message(2, "bob", b"?"));
    alice.put(&ping().with_flags(Flags::ACK_REQ));
    alice.until("ACK and PONG", |heard| heard.acks.len() == 1 && heard.pongs == 1);
    assert_eq!(alice.heard.acks, [2]);
}

#[test]
fn without_a_backend_the_answer_is_retry() {
    let gateway = Gateway::alone(&["backend.up_timeout=1s"]);
    assert_eq!(gateway.get("/readyz").0, 503);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let started = clock::now();
    let send = message(1, "bob", b"anybody?");
    for _ in 0..3 {
        alice.send(&send);
    }
    alice.put(&frame_of(Command::Req, &Req { id: 9, method: "im.pull".into(), payload: Bytes::new() }));
    alice.beat(30);
    assert!(alice.heard.send_acks.is_empty(), "it waits for a backend to come");
    alice.until("answers", |heard| heard.send_acks.len() == 3 && heard.responses.len() == 1);
    let took = clock::now().saturating_since(started);
    assert!(took >= Duration::from_millis(900), "not before its time: {took:?}");
    for ack in &alice.heard.send_acks {
        assert_eq!(ack.code(), Code::Retry);
        assert!(ack.retry_after_ms > 0);
    }
    assert_eq!((alice.heard.responses[0].id, alice.heard.responses[0].code()), (9, Code::Retry));
    // The same cid may be sent again, and waits again.
    alice.put(&send_frame(1, &send).with_flags(Flags::DUP));
    alice.until("RETRY again", |heard| heard.answers(1).len() == 2);
    gateway.until_metric("up_timeouts_total", 5);
    gateway.until_metric("links_up", 0);
}

#[test]
fn the_echo_backend_echoes() {
    let backend = Backend::start_with(&["listen=127.0.0.1:0", "handler=echo"]);
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let resp = alice.request(1, "echo", Bytes::from_static(b"hello?"));
    assert_eq!((resp.code(), &resp.payload[..]), (Code::Ok, &b"hello?"[..]));
    for number in 1..=100u32 {
        alice.send(&message(number.into(), "alice", format!("{number}").as_bytes()));
        if number % 50 == 0 {
            let wanted = usize::try_from(number).expect("small");
            alice.until("echoes", |heard| heard.pushes.len() == wanted && heard.send_acks.len() == wanted);
        }
    }
    assert!(alice.heard.pushes.iter().all(|push| push.payload == format!("{}", push.seq)));
}

#[test]
fn silence_is_noticed_within_one_and_a_half_of_the_promise() {
    let gateway = Gateway::alone(&["heartbeat.min=1s", "heartbeat.max=2s"]);
    // (what was promised, seconds of silence that are allowed)
    for (promise, allowed) in [(None, 3.0), (Some(1), 1.5), (Some(9), 3.0)] {
        let mut alice = Client::login(gateway.listener, "alice", &format!("{promise:?}"));
        let mut beating = Client::login(gateway.listener, "beating", "d");
        if let Some(next_s) = promise {
            alice.beat(next_s);
        }
        let (started, lateness) = (clock::now(), Lateness::start());
        while alice.heard.end.is_none() {
            beating.beat(1);
            alice.listen(Duration::from_millis(200));
        }
        let took = clock::now().saturating_since(started).as_secs_f64();
        assert_eq!(alice.end().code(), CloseReason::HeartbeatTimeout.code(), "{promise:?}");
        assert!(took > allowed - 0.3, "{promise:?}: too early, after {took:.1} s");
        let most = allowed + 2.0 + 8.0 * lateness.finish().as_secs_f64();
        assert!(took < most, "{promise:?}: too late, after {took:.1} s, at most {most:.1} s are allowed");
        beating.beat(1);
    }
    gateway.until_closed("heartbeat_timeout", 3);
}

/// Bodies that only the backend judges do not end a connection.
#[test]
fn a_send_without_a_meaning_is_answered_invalid() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    alice.put(&Frame::new(Command::Send, Bytes::from_static(&[0xFF; 9])).with_seq(1));
    alice.put(&Frame::new(Command::Send, Bytes::new()).with_seq(2));
    let nobody = Send { target: Some(send::Target::User("a:b".into())), ..message(3, "", b"") };
    alice.put(&Frame::new(Command::Send, encode(&nobody)).with_seq(3));
    alice.until("three answers", |heard| heard.send_acks.len() == 3);
    assert!(alice.heard.send_acks.iter().all(|ack| ack.code() == Code::Invalid), "{:?}", alice.heard);
    alice.beat(30);
}
