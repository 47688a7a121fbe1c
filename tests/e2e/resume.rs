//! Sessions outlive their connections: nothing lost, nothing twice, and the backend notices nothing.

use crate::gateway::{Backend, Gateway};
use crate::raw::{Acks, Client, End, bytes_of, hello, message, send_frame};
use crate::until;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags};
use moorline_proto::message::client::{Close, Code, Hello, Resume, Welcome};
use moorline_proto::message::frame_of;

fn start() -> (Backend, Gateway) {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    (backend, gateway)
}

/// `resume` of a client that has handled everything up to `last_seq`.
fn claim(client: &Client, last_seq: u32) -> Resume {
    let Welcome { session, epoch, ticket, .. } = client.heard.welcome.clone().expect("logged in");
    Resume { session, epoch, ticket, last_seq, sack: 0 }
}

/// Back with a claim; what it knew of seqs goes on, if the gateway says so.
fn back(gateway: &Gateway, uid: &str, resume: Resume) -> Client {
    let last_seq = resume.last_seq;
    let mut client = Client::connect(gateway.listener);
    client.last_seq = last_seq;
    let greeting = Hello { resume: Some(resume), ..hello(uid, "d") };
    client.put(&frame_of(Command::Hello, &greeting));
    client.until("WELCOME", |heard| heard.welcome.is_some());
    client
}

#[test]
fn a_lost_connection_is_resumed_and_what_was_missed_is_replayed() {
    let (_backend, gateway) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    bob.acks = Acks::Withheld;
    assert_eq!(alice.tell(1, "bob", b"1").code(), Code::Ok);
    assert_eq!(alice.tell(2, "bob", b"2").code(), Code::Ok);
    bob.until("two", |heard| heard.pushes.len() == 2);
    // The first was handled, its ack was lost with the connection.
    let resume = claim(&bob, 1);
    drop(bob);
    gateway.until_metric("detached", 1);
    gateway.until_sessions(2); // the session waits
    assert_eq!(alice.tell(3, "bob", b"3").code(), Code::Ok);
    let mut bob = back(&gateway, "bob", resume);
    let welcome = bob.heard.welcome.clone().expect("heard");
    assert!(welcome.resumed && welcome.replay == 1);
    bob.until("the rest", |heard| heard.pushes.len() == 2);
    assert_eq!(bob.heard.payloads(), [b"2", b"3"]);
    gateway.until_metric("resumes_total", 1);
    gateway.until_metric("logins_total", 2); // no new login
    gateway.until_metric("pushes_acked_total", 3);
}

#[test]
fn an_answer_that_was_lost_comes_from_memory_and_cids_go_on() {
    let (_backend, gateway) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let first = alice.tell(1, "alice", b"hi");
    let resume = claim(&alice, 0);
    drop(alice);
    gateway.until_metric("detached", 1);
    let mut alice = back(&gateway, "alice", resume);
    assert_eq!(alice.heard.welcome.clone().expect("heard").cid_answered, 1);
    alice.put(&send_frame(1, &message(1, "alice", b"hi")).with_flags(Flags::DUP));
    assert_eq!(alice.answer(1), first);
    alice.put(&send_frame(2, &message(2, "alice", b"again")));
    assert_eq!(alice.answer(2).seq, 2);
    gateway.until_metric("sends_replayed_total", 1);
}

#[test]
fn a_half_dead_connection_is_taken_over() {
    let (_backend, gateway) = start();
    let mut old = Client::login(gateway.listener, "alice", "d");
    let fresh = back(&gateway, "alice", claim(&old, 0));
    assert!(fresh.heard.welcome.clone().expect("heard").resumed);
    let End::Kick(kick) = old.end() else { panic!("{:?}", old.heard.end) };
    assert_eq!((kick.code, kick.may_reconnect), (CloseReason::Replaced.code(), false));
    gateway.until_metric("takeovers_total", 1);
    gateway.until_metric("connections", 1);
    gateway.until_sessions(1);
}

#[test]
fn a_ticket_that_is_not_good_begins_anew_and_says_so() {
    let (_backend, gateway) = start();
    let alice = Client::login(gateway.listener, "alice", "d");
    let mut resume = claim(&alice, 0);
    drop(alice);
    gateway.until_metric("detached", 1);
    let mut forged = resume.ticket.to_vec();
    forged[10] ^= 1;
    resume.ticket = forged.into();
    let alice = back(&gateway, "alice", resume);
    assert!(!alice.heard.welcome.clone().expect("heard").resumed);
    gateway.until_metric("resumes_refused_total", 1);
}

#[test]
fn after_a_crash_of_the_gateway_nothing_is_resumed_and_nothing_is_lost() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["gateway.id=g1"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    bob.acks = Acks::Withheld;
    assert_eq!(alice.tell(1, "bob", b"1").code(), Code::Ok);
    bob.until("it", |heard| heard.pushes.len() == 1);
    let (of_alice, of_bob) = (claim(&alice, 0), claim(&bob, 1));
    gateway.process.kill();
    let gateway = Gateway::start(&backend, &["gateway.id=g1"]);
    let mut bob = back_anew(&gateway, "bob", &of_bob);
    bob.until("it again", |heard| heard.payloads() == [b"1"]);
    let mut alice = back_anew(&gateway, "alice", &of_alice);
    let again = alice.tell(1, "bob", b"1");
    assert_eq!((again.code(), again.seq), (Code::Dup, 1), "the same key, stored once");
}

/// Back at a gateway that must not know the session.
fn back_anew(gateway: &Gateway, uid: &str, resume: &Resume) -> Client {
    let mut client = Client::connect(gateway.listener);
    let greeting = Hello { resume: Some(resume.clone()), ..hello(uid, "d") };
    client.put(&frame_of(Command::Hello, &greeting));
    client.until("WELCOME", |heard| heard.welcome.is_some());
    let welcome = client.heard.welcome.clone().expect("heard");
    assert!(!welcome.resumed && welcome.epoch > resume.epoch);
    client
}

#[test]
fn goodbye_ends_a_session_and_time_does() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["session.keep=1s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    alice.write(&bytes_of(&frame_of(Command::Close, &Close::default())));
    gateway.until_sessions(0);
    drop(Client::login(gateway.listener, "bob", "d"));
    gateway.until_metric("detached", 1);
    gateway.until_metric("detached_expired_total", 1);
    until("nothing is left", || {
        let metrics = gateway.metrics();
        let is_empty =
            ["sessions", "timers", "queued_bytes", "detached"].iter().all(|name| metrics[*name] == 0.0);
        is_empty.then_some(())
    });
}
