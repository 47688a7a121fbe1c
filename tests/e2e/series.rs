//! A gateway through its hot restarts.

use crate::gateway::{Backend, Gateway};
use crate::process::{TempFile, is_alive, program, run};
use crate::until;
use moorline::admin::{Restart, Restartz, Varz};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Command;

/// Times of a restart that no busy machine exceeds.
pub(crate) const UNHURRIED: [&str; 3] =
    ["handover.timeout=5m", "handover.quiesce_timeout=5s", "handover.pause_max=1m"];

/// A gateway through its restarts: the process that serves is ended with the test.
pub(crate) struct Series {
    pub(crate) gateway: Gateway,
    pub(crate) pid_file: TempFile,
    /// Failpoints of its processes; a build without them reads none.
    #[cfg_attr(not(any(feature = "failpoints", debug_assertions)), allow(dead_code))]
    faults: TempFile,
}

impl Series {
    pub(crate) fn start(backend: &Backend, sets: &[&str]) -> Self {
        Self::start_as(backend, sets, |_| ())
    }

    /// With the command changed by `change`.
    pub(crate) fn start_as(backend: &Backend, sets: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        Self::start_by(backend, sets, |mut command| {
            change(&mut command);
            Gateway::of_command(command)
        })
    }

    /// With the command run by `start`.
    pub(crate) fn start_by(backend: &Backend, sets: &[&str], start: impl FnOnce(Command) -> Gateway) -> Self {
        let (pid_file, faults) = (TempFile::new(""), TempFile::new(""));
        let own = [
            format!("handover.pid_file={}", pid_file.path().display()),
            format!("backend.endpoints={}", backend.address),
        ];
        // Later ones win.
        let own = [own[0].as_str(), own[1].as_str(), "limits.handshake_timeout=5m"];
        let mut command = Gateway::command(&[&UNHURRIED[..], &own, sets].concat());
        command.env(moorline::failpoint::VARIABLE, faults.path());
        let gateway = start(command);
        gateway.until_ready();
        Self { gateway, pid_file, faults }
    }

    /// With a file of settings that says where it listens.
    pub(crate) fn start_file(settings: &Path) -> Self {
        Self::start_file_as(settings, |_| ())
    }

    /// With the command changed by `change`.
    pub(crate) fn start_file_as(settings: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let (pid_file, faults) = (TempFile::new(""), TempFile::new(""));
        let sets = [
            "run".to_owned(),
            "-c".to_owned(),
            settings.display().to_string(),
            "--set=admin.address=127.0.0.1:0".to_owned(),
            format!("--set=handover.pid_file={}", pid_file.path().display()),
        ];
        let unhurried = UNHURRIED.map(|set| format!("--set={set}"));
        let mut command = program(&[&sets[..], &unhurried].concat());
        command.env(moorline::failpoint::VARIABLE, faults.path());
        change(&mut command);
        let gateway = Gateway::of_command(command);
        gateway.until_ready();
        Self { gateway, pid_file, faults }
    }

    /// Series of a gateway that the test started itself.
    pub(crate) fn of(gateway: Gateway, pid_file: TempFile) -> Self {
        Self { gateway, pid_file, faults: TempFile::new("") }
    }

    /// Sets the failpoints from now on (`moorline::failpoint`); empty: none.
    #[cfg(any(feature = "failpoints", debug_assertions))]
    pub(crate) fn set_faults(&self, faults: &str) {
        // A reader finds all of it or nothing.
        let new = TempFile::new(faults);
        std::fs::rename(new.path(), self.faults.path()).expect("one folder");
    }

    /// Path of the file of failpoints.
    #[cfg(any(feature = "failpoints", debug_assertions))]
    pub(crate) fn faults(&self) -> &Path {
        self.faults.path()
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.pid_file.path()).expect("a pid file");
        text.trim().parse().expect("a pid")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("a pid")), signal).expect("it runs");
    }

    pub(crate) fn restarts(&self) -> Restartz {
        // A visitor of the process that leaves is closed.
        let answer = until("/v1/restartz answers", || self.gateway.try_get("/v1/restartz").ok());
        let (_, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        serde_json::from_str(body).expect("JSON of this version")
    }

    /// Orders a restart as an operator does; its exit code and verdict.
    pub(crate) fn upgrade(&self, more: &[&str]) -> (Option<i32>, Restart) {
        let admin = self.gateway.admin.to_string();
        let (code, said, error) = run(&[&["upgrade", "--admin", &admin, "--json"], more].concat());
        (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said} {error}")))
    }

    /// Orders a reload as an operator does.
    pub(crate) fn reload(&self) -> (Option<i32>, String, String) {
        run(&["reload", "--admin", &self.gateway.admin.to_string()])
    }

    /// Runs an upgrade that must succeed.
    pub(crate) fn restart(&self) -> Restart {
        let before = self.pid();
        let (code, restart) = self.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(0), "committed"), "{restart:?}");
        let after = self.pid();
        assert_ne!(before, after, "another process serves");
        until("the old process leaves", || (!is_alive(before)).then_some(()));
        restart
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        // Most have the path of the pid file among their arguments. What the file says may be the process that leaves.
        let path = self.pid_file.path().display().to_string();
        let find = || processes().filter(|pid| is_alive(*pid) && has_argument(*pid, &path));
        let first: Vec<u32> = find().collect();
        first.iter().copied().for_each(end);
        if !first.is_empty() {
            return (1..ROUNDS).for_each(|_| find().for_each(end));
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let named = text.trim().parse().ok().filter(|pid| is_alive(*pid));
        // A test may have kept the pid file from being written: then the process that serves tells its own number.
        let serving = || {
            let answer = self.gateway.try_get("/v1/varz").ok()?;
            let varz: Varz = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
            Some(varz.pid)
        };
        named.or_else(serving).into_iter().for_each(end);
    }
}

/// Looks for processes of a series: one may have started another since the look before.
const ROUNDS: u32 = 3;

/// The processes of this machine.
fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// True if an argument of a process ends with `end`.
fn has_argument(pid: u32, end: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|argument| argument.ends_with(end.as_bytes()))
}

/// Ends a process of this test that its gateway has started, or was.
pub(crate) fn end(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok(); // it may be gone already
    }
}

pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}
