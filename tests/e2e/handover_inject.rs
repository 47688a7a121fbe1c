//! Hot restart whose system calls fail or are slow behind the point of no return: the system itself refuses, by `strace`.
//!
//! The new process stops at `new.touched`, when the sockets are its own. `strace` is attached to all its threads, and from
//! then on each call of one name fails or waits: those that nobody needs to serve. Calls on sockets of clients are left alone:
//! a fault there is a fault of one connection. `MOORLINE_SOAK_SECONDS=1000` stages all of them.

use crate::beside::Chat;
use crate::gateway::Backend;
use crate::process::TempFile;
use crate::raw::Client;
use crate::series::Series;
use crate::{soak, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// Calls, and what happens to each of them. The first ones are staged in every test run.
const FAULTS: &[&str] = &[
    "openat:error=EMFILE",
    "clone3:error=EAGAIN",
    "rename:delay_enter=3000000",
    "openat:error=EIO",
    "openat:error=ENFILE",
    "openat:error=ENOMEM",
    "openat:delay_enter=2000000",
    "clone:error=EAGAIN",
    "brk:error=ENOMEM",
    "mprotect:error=ENOMEM",
    "madvise:error=EAGAIN",
    "rename:error=EROFS",
    "rename:error=EIO",
    "unlink:error=EIO",
    "unlink:delay_enter=3000000",
    "socket:error=EMFILE",
    "socket:error=ENOBUFS",
    "socket:delay_enter=3000000",
    "sendmsg:error=EAGAIN",
    "sendmsg:delay_enter=3000000",
    "fsync:error=EIO",
    "fsync:delay_enter=3000000",
    "statx:error=ENOMEM",
    "fcntl:error=EINVAL",
    "getrandom:error=EAGAIN",
    "prlimit64:error=EPERM",
    "kill:error=EPERM",
    "pidfd_send_signal:error=EPERM",
];
/// Number of them in a short run.
const SHORT: usize = 3;

/// A `strace` that is attached to a process, and what it writes.
struct Tracer(Child, TempFile);

impl Tracer {
    /// `None`: this machine has none, or lets nobody trace.
    fn attach(pid: &str, fault: &str) -> Option<Self> {
        let call = fault.split(':').next().expect("a call");
        let (mut command, written) = (Command::new("strace"), TempFile::new(""));
        command.args(["-f", "-p", pid, "-o"]).arg(written.path()).args(["-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={fault}")]).stdin(Stdio::null());
        let mut child = match command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                crate::skipped(&format!("no `strace` on this machine: {error}"));
                return None;
            }
        };
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        for line in lines.by_ref() {
            if line.contains("attached") {
                std::thread::spawn(move || lines.for_each(drop));
                return Some(Self(child, written));
            }
            said.push_str(&line);
        }
        child.wait().expect("our child");
        crate::skipped(&format!("strace cannot trace here: {said}"));
        None
    }

    /// Lets the process alone. Returns the number of calls that met the fault.
    fn detach(mut self) -> usize {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("our child");
        self.0.wait().expect("our child");
        let written = std::fs::read_to_string(self.1.path()).expect("our file");
        written.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_system_call_that_fails_or_waits_behind_the_commit_ends_no_service() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["log.level=info"]);
    let chat = Chat::start(series.gateway.listener);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let faults = if soak::is_long() { FAULTS } else { &FAULTS[..SHORT] };
    for (generation, fault) in (1..).zip(faults) {
        series.set_faults("new.touched sleep:1500\n");
        let log = || series.gateway.process.log();
        let marks = log().matches("new.touched").count();
        let traced = std::thread::scope(|scope| {
            let restart = scope.spawn(|| series.upgrade(&[]));
            until("it has the sockets", || (log().matches("new.touched").count() > marks).then_some(()));
            let log = log();
            let pid = log.rsplit_once("detail=\"pid ").and_then(|(_, rest)| rest.split('"').next());
            let tracer = Tracer::attach(pid.expect("the step tells it"), fault);
            let (code, restart) = restart.join().expect("no panic");
            assert_eq!((code, restart.verdict.as_str()), (Some(0), "committed"), "{fault}: {restart:?}");
            tracer.map(|tracer| {
                // Everything that is told when it begins to serve meets the fault.
                chat.go_on(20);
                idle.beat(30);
                tracer.detach()
            })
        });
        let Some(met) = traced else { return };
        series.set_faults("");
        chat.go_on(5);
        idle.beat(30);
        assert_eq!(series.restarts().generation, generation, "{fault}");
        println!("{fault}: {met} calls met it");
        assert!(met > 0 || !fault.starts_with("openat"), "a pid file is opened then");
    }
    series.set_faults("");
    // What could not be told then is told now.
    series.restart();
    chat.finish();
}
