//! Logs and ready lines whose reader is stuck, gone or a full disk: nobody who is served notices.

use crate::gateway::{Backend, Gateway};
use crate::process::{is_alive, program, run};
use crate::raw::Client;
use crate::{PATIENCE, until};
use moorline_proto::message::client::Code;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const SETS: &[&str] = &["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0", "auth.mode=dev"];
const SMALL: &[&str] = &["reactor.count=2", "worker.count=1", "log.level=debug"];

/// A pipe that takes no byte more. Its reader is kept and does not read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our pipe");
    while nix::unistd::write(&writer, &[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("our pipe");
    (reader, writer)
}

fn command(name: &str, sets: &[&str]) -> Command {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    program(&std::iter::once(name).chain(sets).collect::<Vec<_>>())
}

/// The process that took over, ended with the test.
struct Successor(Pid);

impl Drop for Successor {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).ok();
    }
}

/// Has the gateway at `admin` hand everything over, and the new process answer.
fn upgrade(gateway: &mut Gateway) -> Successor {
    let (code, out, err) = run(&["upgrade", "--admin", &gateway.admin.to_string()]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("committed: generation 1"), "{out}");
    let pid = i32::try_from(gateway.varz().pid).expect("a pid");
    let successor = Successor(Pid::from_raw(pid));
    assert!(gateway.process.end().success(), "the old process leaves though nobody reads its last words");
    successor
}

/// Logs `count` users in and has each say something to the next.
fn chat(listener: SocketAddr, names: &str, count: usize) {
    let name = |number: usize| format!("{names}-{}", number % count);
    let mut clients: Vec<_> = (0..count).map(|it| Client::login(listener, &name(it), "d")).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.tell(number as u128, &name(number + 1), b"hi").code(), Code::Ok);
    }
    clients.iter_mut().for_each(|client| client.until("a message", |heard| heard.pushes.len() == 1));
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let ((_kept, backend_log), (_kept_too, gateway_log)) = (full_pipe(), full_pipe());
    let backend =
        Backend::of_command_logging(command("backend", &["listen=127.0.0.1:0"]), backend_log.into()).0;
    let endpoint = format!("backend.endpoints={}", backend.address);
    let sets = [SETS, SMALL, &[endpoint.as_str()]].concat();
    let mut gateway = Gateway::of_command_logging(command("run", &sets), gateway_log.into());
    gateway.until_ready();
    chat(gateway.listener, "before", 20);
    assert_eq!(gateway.get("/healthz").0, 200);
    let successor = upgrade(&mut gateway);
    gateway.until_ready();
    chat(gateway.listener, "after", 20);
    kill(successor.0, Signal::SIGINT).expect("it runs");
    let pid = successor.0.as_raw().unsigned_abs();
    until("the new process ends within the deadline of its log", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_full_disk_under_the_log_is_counted() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").expect("Linux"));
    let backend = Backend::of_command_logging(command("backend", &["listen=127.0.0.1:0"]), full()).0;
    let endpoint = format!("backend.endpoints={}", backend.address);
    let sets = [SETS, SMALL, &[endpoint.as_str()]].concat();
    let mut gateway = Gateway::of_command_logging(command("run", &sets), full());
    gateway.until_ready();
    chat(gateway.listener, "before", 10);
    until("lost lines are counted", || {
        (gateway.metric("log_lines_dropped_total{reason=\"write_failed\"}") > 0).then_some(())
    });
    assert_eq!(gateway.metric("log_lines_dropped_total{reason=\"queue_full\"}"), 0);
    let _successor = upgrade(&mut gateway);
    chat(gateway.listener, "after", 10);
}

/// TCP ports of 127.0.0.1 where a process listens.
fn listening(pid: u32) -> Vec<SocketAddr> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = targets
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let address = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_ours = *fields.get(3)? == "0A" && sockets.iter().any(|inode| inode == fields[9]);
        let port = u16::from_str_radix(fields[1].strip_prefix("0100007F:")?, 16).ok()?;
        is_ours.then_some(SocketAddr::from(([127, 0, 0, 1], port)))
    };
    table.lines().filter_map(address).collect()
}

#[test]
fn a_standard_output_that_is_gone_or_stuck_holds_up_nobody() {
    let backend = Backend::start();
    let endpoint = format!("backend.endpoints={}", backend.address);
    let sets = [SETS, SMALL, &[endpoint.as_str()]].concat();
    let (_kept, full) = full_pipe();
    let (reader, gone) = io::pipe().expect("a pipe");
    drop(reader);
    for (name, output) in [("stuck", Stdio::from(full)), ("gone", Stdio::from(gone))] {
        let process = crate::process::Process::spawn("gateway", command("run", &sets), output);
        let addresses = until("it listens", || {
            let addresses = listening(process.pid());
            (addresses.len() == 2).then_some(addresses)
        });
        let answers = |address: &&SocketAddr| {
            let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().new_agent();
            agent.get(format!("http://{address}/healthz")).call().is_ok()
        };
        let admin = *addresses.iter().find(answers).expect("one is the admin address");
        let listener = *addresses.iter().find(|address| **address != admin).expect("two");
        let mut gateway = Gateway::of_process(process, listener, admin);
        gateway.until_ready();
        chat(gateway.listener, name, 5);
        let successor = upgrade(&mut gateway);
        gateway.until_ready();
        chat(gateway.listener, &format!("{name}-after"), 5);
        drop(successor);
    }
    let (reader, gone) = io::pipe().expect("a pipe");
    drop(reader);
    let backend = command("backend", &["listen=127.0.0.1:0"]);
    let backend = crate::process::Process::spawn("backend", backend, gone.into());
    until("the backend serves", || listening(backend.pid()).first().copied());
    until("the failure is logged", || backend.log().contains("cannot write the ready line").then_some(()));
}
