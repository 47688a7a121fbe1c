//! The gateway runs out of file descriptors, or of readers of its log: accepting rests, nothing else does.

use crate::gateway::{Backend, Gateway};
use crate::process::{Process, run};
use crate::raw::{Client, hello};
use moorline::sys::clock;
use moorline_proto::message::client::Code;
use std::process::Command;
use std::time::Duration;

const NEWCOMERS: usize = 60;
/// Descriptors that the gateway may still open.
const ROOM: usize = 5;

/// Sets the limits of open files of a running process. `None`: this machine has no `prlimit`.
pub(crate) fn limit_files(process: &Process, soft: u64, hard: u64) -> Option<()> {
    limit(process.pid(), "nofile", &format!("{soft}:{hard}"))
}

/// Sets a limit of a running process. `None`: this machine has no `prlimit`.
pub(crate) fn limit(pid: u32, name: &str, values: &str) -> Option<()> {
    let arguments = ["--pid", &pid.to_string(), &format!("--{name}={values}")];
    match Command::new("prlimit").args(arguments).status() {
        Ok(status) => {
            assert!(status.success(), "prlimit: {status}");
            Some(())
        }
        Err(error) => {
            crate::skipped(&format!("no `prlimit` (util-linux) on this machine: {error}"));
            None
        }
    }
}

pub(crate) fn hard_limit(process: &Process) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok()).expect("a number")
}

#[test]
fn without_descriptors_accepting_rests_and_then_goes_on() {
    let gateway = Gateway::alone(&["limits.handshake_timeout=60s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let hard = hard_limit(&gateway.process);
    let open = gateway.process.descriptors();
    let soft = (0..).filter(|number| !open.contains(number)).nth(ROOM).expect("numbers do not end");
    if limit_files(&gateway.process, soft.into(), hard).is_none() {
        return;
    }
    let greet = |number| Client::greet(gateway.listener, &hello(&format!("newcomer-{number}"), "d"));
    let mut newcomers: Vec<_> = (0..NEWCOMERS).map(greet).collect();
    // Two seconds of it: who is there is served, some newcomers wait, and the gateway does not spin.
    let (started, cpu) = (clock::now(), gateway.process.cpu());
    while clock::now().saturating_since(started) < Duration::from_secs(2) {
        alice.beat(30);
        newcomers.iter_mut().for_each(|client| client.listen(Duration::from_millis(1)));
    }
    let cpu = gateway.process.cpu().saturating_sub(cpu);
    let waiting = newcomers.iter().filter(|client| client.heard.welcome.is_none()).count();
    println!("{waiting} of {NEWCOMERS} newcomers wait; 2 s of it cost {cpu:?} of processor time");
    assert!(waiting > 0, "the limit was not reached");
    assert!(newcomers.iter().all(|client| client.heard.end.is_none()), "nobody is turned away");
    assert!(cpu < Duration::from_secs(1), "{cpu:?} of processor time in 2 s");

    limit_files(&gateway.process, hard, hard).expect("it was there");
    for newcomer in &mut newcomers {
        newcomer.until("WELCOME", |heard| heard.welcome.is_some());
    }
    alice.beat(30);
    gateway.until_at_least("accept_pauses_total", 1);
    gateway.until_sessions(NEWCOMERS as u64 + 1);
    crate::until("it says so", || gateway.process.log().contains("accept paused").then_some(()));
}

#[test]
fn health_and_orders_are_answered_without_a_free_descriptor() {
    let gateway = Gateway::alone(&[]);
    let open = gateway.process.descriptors();
    let soft = (0..u32::MAX).find(|number| !open.contains(number)).expect("numbers do not end");
    let hard = hard_limit(&gateway.process);
    if limit_files(&gateway.process, soft.into(), hard).is_none() {
        return;
    }
    for _ in 0..10 {
        assert_eq!(gateway.get("/healthz"), (200, "ok\n".to_owned()));
        let (code, said, error) = run(&["status", "--admin", &gateway.admin.to_string()]);
        assert!(code == Some(0) && said.contains("connections 0"), "{code:?} {said} {error}");
    }
    let (code, _, error) = run(&["upgrade", "--admin", &gateway.admin.to_string()]);
    assert!(code == Some(1) && error.contains("rolled back"), "{code:?} {error}");
    assert_eq!(gateway.get("/healthz").0, 200);
}

#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let backend = Backend::start();
    let endpoint = format!("backend.endpoints={}", backend.address);
    let mut gateway = Gateway::start_as(&[&endpoint], |command| {
        // A reader that leaves after the first byte.
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", "exec \"$0\" \"$@\" 2> >(head -c 1 >/dev/null)"]).arg(command.get_program());
        shell.args(command.get_args()).stdin(std::process::Stdio::null());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        *command = shell;
    });
    gateway.until_ready();
    let mut alice = Client::login(gateway.listener, "alice", "d");
    // Workers say that a link is down and up again, reactors nothing.
    let place = backend.kill();
    gateway.until_metric("links_up", 0);
    let _backend = Backend::start_at(&place);
    gateway.until_ready();
    assert_eq!(alice.tell(1, "alice", b"still here").code(), Code::Ok);
    assert!(gateway.process.is_running());
}
