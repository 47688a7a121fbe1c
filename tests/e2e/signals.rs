//! Signals to each long-running command: those with a meaning do what they mean, and no other one ends a process.

use crate::gateway::{Backend, Gateway};
use crate::process::{Process, TempFile, binary, program, run};
use crate::until;
use nix::sys::signal::Signal::{self, SIGALRM, SIGHUP, SIGIO, SIGPROF, SIGQUIT, SIGUSR1, SIGUSR2, SIGVTALRM};
use std::process::Command;

/// Signals by which the system would end a process.
const OTHERS: [Signal; 4] = [SIGALRM, SIGVTALRM, SIGPROF, SIGIO];

/// Sends signals, and waits until the log names each as passed over.
fn pass_over(process: &Process, signals: &[Signal]) {
    for signal in signals {
        process.signal(*signal);
        let line = format!("signal=\"{}\"", signal.as_str());
        until(&format!("{signal} is passed over"), || process.log().contains(&line).then_some(()));
    }
}

#[test]
fn signals_without_a_meaning_are_named_and_end_neither_gateway_nor_backend_and_quit_is_term() {
    let mut backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=0s"]);
    pass_over(&gateway.process, &OTHERS);
    pass_over(&backend.process, &OTHERS);
    pass_over(&backend.process, &[SIGUSR2]);
    backend.process.signal(SIGHUP);
    until("HUP is a reload", || backend.process.log().contains("were read again").then_some(()));
    gateway.process.signal(SIGUSR1);
    gateway.process.signal(SIGHUP);
    until("HUP is a reload", || gateway.process.log().contains("were read again").then_some(()));
    for process in [&mut gateway.process, &mut backend.process] {
        process.signal(SIGQUIT);
        assert_eq!(process.end().code(), Some(0));
    }
}

#[test]
fn the_supervisor_of_a_gateway_stays_until_the_gateway_has_ended() {
    let arguments = ["run", "--supervise", "--set", "auth.mode=dev", "--set", "drain.grace=0s"];
    let places = ["--set", "listener.address=127.0.0.1:0", "--set", "admin.address=127.0.0.1:0"];
    let (mut process, _) =
        Process::start_command("moorline", program(&[&arguments[..], &places[..]].concat()));
    pass_over(&process, &OTHERS);
    process.signal(SIGUSR1);
    process.signal(SIGQUIT);
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn usr1_opens_the_audit_log_again() {
    let file = TempFile::new("");
    let moved = file.path().with_extension("1");
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[&format!("audit.file=\"{}\"", file.path().display())]);
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let reload = || run(&["reload", "--admin", &gateway.admin.to_string()]);
    assert_eq!(reload().0, Some(0));
    until("the order is written", || (lines(file.path()) > 0).then_some(()));
    std::fs::rename(file.path(), &moved).expect("ours");
    gateway.process.signal(SIGUSR1);
    until("the file is there again", || file.path().exists().then_some(()));
    assert_eq!(reload().0, Some(0));
    until("the next order is written", || (lines(file.path()) > 0).then_some(()));
    std::fs::remove_file(moved).expect("ours");
}

#[test]
fn limits_of_open_files_that_leave_nothing_are_refused_at_the_start() {
    for (arguments, wanted) in [
        (&["run", "--set", "auth.mode=dev"][..], "the open-files limit is 64"),
        (&["backend", "--set", "listen=127.0.0.1:0"], "`link.links_max`"),
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]).arg(binary()).args(arguments);
        let unproven = ["MOORLINE__BACKEND__UNPROVEN", "MOORLINE_BACKEND__LINK__UNPROVEN"];
        command.envs(unproven.map(|name| (name, "loopback")));
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(wanted) && said.contains("raise"), "{said}");
    }
}
