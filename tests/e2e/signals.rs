//! Signals to each long-running command: those with a meaning do what they mean, and no other one ends a process.

use crate::gateway::{Backend, Gateway};
use crate::process::{Process, TempFile, become_pipe, binary, program, run};
use crate::until;
use moorline_usage::signals::without_meaning;
use nix::sys::signal::Signal::{SIGHUP, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::consts::SIGUSR2;
use std::path::Path;
use std::process::Command;

/// Sends signals by which the system would end a process, and waits until the log names each as passed over.
fn pass_over(process: &Process, signals: impl IntoIterator<Item = i32>) {
    for signal in signals {
        // By its number: the system has no names for those that are free.
        let number = format!("-{signal}");
        let sent = Command::new("kill").args([&number, "--", &process.pid().to_string()]).status();
        assert!(sent.expect("a shell command").success());
        let name = moorline::sys::signals::name(signal);
        until(&format!("{name} is passed over"), || process.log().contains(&*name).then_some(()));
    }
}

fn has_open(pid: u32, path: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    files.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|open| open == path))
}

#[test]
fn signals_without_a_meaning_are_named_and_end_neither_gateway_nor_backend_and_quit_is_term() {
    let mut backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=0s"]);
    pass_over(&gateway.process, without_meaning());
    pass_over(&backend.process, without_meaning().chain([SIGUSR2]));
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
    pass_over(&process, without_meaning());
    process.signal(SIGUSR1);
    process.signal(SIGQUIT);
    assert_eq!(process.end().code(), Some(0));
}

/// Pipes stand for files on a disk or in a network that does not answer.
#[test]
fn settings_that_cannot_be_read_for_long_keep_nobody_from_hearing_that_it_shall_end() {
    let (ours, theirs) = (TempFile::new(""), TempFile::new(""));
    let file = |file: &TempFile| file.path().display().to_string();
    let (mut backend, _) =
        Backend::of_command(program(&["backend", "--set", "listen=127.0.0.1:0", "-c", &file(&theirs)]));
    let mut gateway = Gateway::start_as(
        &["drain.grace=0s", &format!("backend.endpoints={}", backend.address)],
        |command| {
            command.args(["-c", &file(&ours)]);
        },
    );
    gateway.until_ready();
    for (process, settings) in [(&mut gateway.process, &ours), (&mut backend.process, &theirs)] {
        become_pipe(settings.path());
        process.signal(SIGHUP);
        until("the files are read", || has_open(process.pid(), settings.path()).then_some(()));
        process.signal(SIGTERM);
        assert_eq!(process.end().code(), Some(0));
    }
}

#[test]
fn a_key_file_that_is_a_pipe_is_named_at_the_start_and_by_a_reload() {
    let key = TempFile::new("0123456789abcdef0123456789abcdef");
    let backend = Backend::start();
    let place = format!("auth.key_file=\"{}\"", key.path().display());
    let gateway = Gateway::start(&backend, &["auth.mode=jwt", &place]);
    become_pipe(key.path());
    let (code, said, error) = run(&["reload", "--admin", &gateway.admin.to_string()]);
    assert_eq!(code, Some(1), "{said} {error}");
    assert!(error.contains("is not a regular file"), "{error}");
    let (code, said, error) = run(&["run", "--set", "auth.mode=jwt", "--set", &place]);
    assert_eq!(code, Some(2), "{said} {error}");
    assert!(error.contains("is not a regular file"), "{error}");
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
