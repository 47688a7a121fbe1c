//! `backend.embedded = true`: the backend is a process that lives and ends with the gateway.

use crate::gateway::Gateway;
use crate::process::is_alive;
use crate::raw::{Client, message, send_frame};
use moorline_proto::message::client::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SETS: &[&str] = &["backend.embedded=true"];

/// A gateway whose backend is linked, and the backend's process id.
fn start() -> (Gateway, u32) {
    let gateway = Gateway::start_bare(SETS);
    gateway.until_ready();
    let children = gateway.process.children();
    assert_eq!(children.len(), 1, "one child, the backend: {children:?}");
    (gateway, children[0])
}

fn until_gone(pid: u32) {
    crate::until("the backend ends", || (!is_alive(pid)).then_some(()));
}

#[test]
fn it_is_started_again_when_it_is_killed() {
    let (gateway, first) = start();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    assert_eq!(alice.tell(1, "bob", b"before").code(), Code::Ok);
    kill(Pid::from_raw(i32::try_from(first).expect("a pid")), Signal::SIGKILL).expect("our child's child");
    until_gone(first);
    crate::until("another backend", || gateway.process.children().pop());
    let send = message(2, "bob", b"after");
    let cid = alice.send(&send);
    let mut answer = alice.answer(cid);
    for tries in 2..20 {
        if answer.code() != Code::Retry {
            break;
        }
        alice.put(&send_frame(cid, &send));
        alice.until("an answer to this try", |heard| heard.answers(cid).len() == tries);
        answer = alice.heard.answers(cid)[tries - 1].clone();
    }
    assert_eq!(answer.code(), Code::Ok);
    bob.until("both messages", |heard| heard.payloads() == [&b"before"[..], b"after"]);
}

#[test]
fn it_ends_with_the_gateway() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut gateway, backend) = start();
        gateway.process.signal(signal);
        assert_eq!(gateway.process.end().code(), Some(0), "{signal}");
        assert!(!is_alive(backend), "{signal}: the gateway waits for it");
    }
}

#[test]
fn it_ends_even_when_the_gateway_is_killed() {
    let (mut gateway, backend) = start();
    gateway.process.kill();
    until_gone(backend);
}
