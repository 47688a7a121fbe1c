//! `moorline dev`: a gateway and a backend for development, supervised from outside.

use crate::gateway::{Gateway, field};
use crate::process::{family, is_alive, run};
use crate::raw::Client;
use crate::until;
use moorline_proto::message::client::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running `moorline dev` and its processes.
struct Dev {
    gateway: Gateway,
    gateway_pid: u32,
    backend_pid: u32,
}

impl Dev {
    fn start() -> Self {
        let (gateway, line) = Gateway::in_dev();
        gateway.until_ready();
        let (gateway_pid, backend_pid) = (field(&line, "gateway_pid="), field(&line, "backend_pid="));
        assert!(is_alive(gateway_pid) && is_alive(backend_pid), "{line}");
        Self { gateway, gateway_pid, backend_pid }
    }

    fn until_gone(&self) {
        for pid in [self.gateway_pid, self.backend_pid] {
            until("the processes end", || (!is_alive(pid)).then_some(()));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("it runs");
}

#[test]
fn it_starts_both_and_a_signal_ends_both() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut dev = Dev::start();
        let mut alice = Client::login(dev.gateway.listener, "alice", "d");
        let mut bob = Client::login(dev.gateway.listener, "bob", "d");
        assert_eq!(alice.tell(1, "bob", b"hello").code(), Code::Ok);
        bob.until("the message", |heard| heard.payloads() == [b"hello"]);
        drop((alice, bob));
        dev.gateway.process.signal(signal);
        assert_eq!(dev.gateway.process.end().code(), Some(0), "{signal}");
        for pid in [dev.gateway_pid, dev.backend_pid] {
            assert!(!is_alive(pid), "{signal}: dev waits for its children");
        }
    }
}

#[test]
fn with_tls_it_makes_a_certificate_that_clients_are_told_of_and_removes_it() {
    let folder = std::env::temp_dir().join(format!("moorline-dev-test-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let mut command = crate::process::program(&["dev", "--tls"]);
    let free =
        ["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0", "drain.grace=1s", "reactor.count=2"];
    command.args(free.iter().flat_map(|set| ["--set", set]));
    command.env("TMPDIR", &folder);
    let (mut process, line) = crate::process::Process::start_command("dev", command);
    let listener: std::net::SocketAddr = field(&line, "listener=");
    let made = std::fs::read_dir(&folder).expect("a folder").next().expect("one").expect("an entry").path();
    let pem = std::fs::read(made.join("certificate.pem")).expect("the certificate");
    let client = moorline_sdk::client::Client::builder(&format!("tls://{listener}"))
        .roots_pem(&pem)
        .user("alice")
        .device("d", moorline_sdk::Platform::Linux)
        .build()
        .expect("a client");
    let sent = client.send(moorline_sdk::core::Target::user("alice"), 1, "hello").expect("taken");
    sent.wait_durable(crate::PATIENCE).expect("stored");
    drop(client);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(0), "{}", process.log());
    std::fs::remove_dir(&folder).expect("nothing is left");
}

#[test]
fn the_end_of_one_is_said_and_ends_the_other() {
    for is_backend in [true, false] {
        let mut dev = Dev::start();
        let (name, pid) =
            if is_backend { ("backend", dev.backend_pid) } else { ("gateway", dev.gateway_pid) };
        signal(pid, Signal::SIGKILL);
        assert_eq!(dev.gateway.process.end().code(), Some(1), "{name}");
        let said = dev.gateway.process.log();
        assert!(said.contains(&format!("the {name} ended by itself")), "{said}");
        for pid in [dev.gateway_pid, dev.backend_pid] {
            assert!(!is_alive(pid), "{name}: dev waits for its children");
        }
    }
}

#[test]
fn both_end_even_when_it_is_killed() {
    let mut dev = Dev::start();
    let all = family(dev.gateway.process.pid());
    dev.gateway.process.kill();
    dev.until_gone();
    until("all processes end", || all.iter().all(|pid| !is_alive(*pid)).then_some(()));
}

#[test]
fn the_gateway_restarts_under_it_without_a_dropped_connection() {
    let mut dev = Dev::start();
    let mut alice = Client::login(dev.gateway.listener, "alice", "d");
    let mut bob = Client::login(dev.gateway.listener, "bob", "d");
    assert_eq!(alice.tell(1, "bob", b"before").code(), Code::Ok);
    dev.gateway.process.signal(Signal::SIGUSR2);
    until("the old process leaves", || (!is_alive(dev.gateway_pid)).then_some(()));
    assert_eq!(alice.tell(2, "bob", b"after").code(), Code::Ok);
    bob.until("both messages", |heard| heard.payloads() == [&b"before"[..], b"after"]);
    until("dev says who serves", || dev.gateway.process.log().contains("generation=1").then_some(()));
    assert!(is_alive(dev.backend_pid));
    dev.gateway.process.signal(Signal::SIGINT);
    assert_eq!(dev.gateway.process.end().code(), Some(0));
    dev.until_gone();
}

#[test]
fn addresses_of_other_machines_are_refused() {
    for arguments in [
        ["dev", "--set", "listener.address=0.0.0.0:0"],
        ["dev", "--set", "admin.address=0.0.0.0:0"],
        ["dev", "--backend-set", "listen=0.0.0.0:0"],
    ] {
        let (code, _, said) = run(&arguments);
        assert_eq!(code, Some(2), "{said}");
    }
    let (_, _, said) = run(&["dev", "--backend-set", "listen=10.0.0.1:0"]);
    assert!(said.contains("this machine only"), "{said}");
}

#[test]
fn a_gateway_with_an_embedded_backend_is_not_taken_over_and_says_how_to_move() {
    let mut command =
        crate::process::program(&["run", "--set", "auth.mode=dev", "--set", "backend.embedded=true"]);
    let output = command.env("MOORLINE_HANDOVER", "check").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains("backend.embedded") && said.contains("moorline dev"), "{said}");
}
