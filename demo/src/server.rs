//! A server as a process of its own: started, waited for, watched, ended.

use crate::DemoError;
use crate::clock;
use crate::stop::Stop;
use crate::upgrade::Upgrade;
use moorline_proto::time::Duration;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};

/// From start to the readiness line.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// From TERM to KILL.
const END_WITHIN: Duration = Duration::from_secs(4);
/// Length of one look.
const LOOK: Duration = Duration::from_millis(50);
/// Readiness lines that wait to be looked at: one for each process of a series.
const LINES_MAX: usize = 16;
/// Prefixes of the environment variables that set a gateway or a backend.
const ENV_PREFIXES: [&str; 2] = ["MOORLINE__", "MOORLINE_BACKEND__"];
/// Word of a readiness line after the program's name.
const READY: &str = " ready ";

/// A running server. Dropping it ends it: TERM, a bounded wait, KILL.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    log: File,
    child: Child,
    ready: String,
    /// The process that has taken over from the child; `None`: none has.
    successor: Option<i32>,
    /// A hot restart was ordered, so the child may end before its successor is heard of.
    may_hand_over: bool,
    /// Closes when the process closes its output, which is when it ends.
    output: Receiver<String>,
}

impl Server {
    /// Starts the program and waits for its readiness line.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        log: File,
        stop: &Stop,
    ) -> Result<Self, DemoError> {
        let (child, output) = spawn(name, program, arguments, &log)?;
        // From here on a return ends the process.
        let (program, arguments) = (program.to_owned(), arguments.to_vec());
        let (ready, successor, may_hand_over) = (String::new(), None, false);
        let mut server =
            Self { name, program, arguments, log, child, ready, successor, may_hand_over, output };
        server.wait_ready(stop)?;
        Ok(server)
    }

    /// `kill -9`, and another one with these settings beside its own; it is not waited for.
    pub(crate) fn kill_and_start_again(&mut self, sets: &[String]) -> Result<(), DemoError> {
        self.child.kill().map_err(crate::system("kill a process"))?;
        self.child.wait().map_err(crate::system("wait for a process that was killed"))?;
        for set in sets {
            self.arguments.extend(["--set".to_owned(), set.clone()]);
        }
        (self.child, self.output) = spawn(self.name, &self.program, &self.arguments, &self.log)?;
        Ok(())
    }

    /// `kill -9`, for good.
    pub(crate) fn kill(mut self) -> Result<(), DemoError> {
        self.child.kill().map_err(crate::system("kill a process"))?;
        self.child.wait().map_err(crate::system("wait for a process that was killed"))?;
        Ok(())
    }

    /// An address of the readiness line.
    pub(crate) fn address(&self, field: &str) -> Result<SocketAddr, DemoError> {
        let address = value(&self.ready, field).and_then(|value| value.parse().ok());
        let problem = || format!("its readiness line has no address {field}=: {:?}", self.ready);
        address.ok_or_else(|| DemoError::Server { name: self.name, problem: problem() })
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        let successor = self.successor.and_then(|pid| u32::try_from(pid).ok());
        successor.unwrap_or_else(|| self.child.id())
    }

    /// Orders a hot restart by the command for it: `moorline upgrade`.
    pub(crate) fn upgrade(&mut self) -> Result<Upgrade, DemoError> {
        self.may_hand_over = true;
        Upgrade::start(&self.program, self.address("admin")?)
    }

    /// Returns true if another process has taken over since the start.
    pub(crate) fn has_successor(&mut self) -> bool {
        if let Ok(line) = self.output.try_recv() {
            self.successor = value(&line, "pid").and_then(|pid| pid.parse().ok());
        }
        self.successor.is_some()
    }

    /// Fails if the process is gone.
    pub(crate) fn check(&mut self) -> Result<(), DemoError> {
        if self.has_successor() || self.may_hand_over {
            // The child may have left. Whoever serves holds its output.
            return match self.output.try_recv() {
                Err(TryRecvError::Disconnected) => Err(DemoError::Server {
                    name: self.name,
                    problem: "the process that took over ended by itself".into(),
                }),
                Ok(line) => {
                    self.successor = value(&line, "pid").and_then(|pid| pid.parse().ok());
                    Ok(())
                }
                Err(TryRecvError::Empty) => Ok(()),
            };
        }
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(DemoError::Server { name: self.name, problem: error.to_string() }),
        }
    }

    /// CPU time used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration, DemoError> {
        moorline_usage::cpu_time(self.pid()).ok_or_else(|| self.unreadable())
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64, DemoError> {
        moorline_usage::resident_bytes(self.pid()).ok_or_else(|| self.unreadable())
    }

    fn wait_ready(&mut self, stop: &Stop) -> Result<(), DemoError> {
        let until = clock::now() + READY_WITHIN;
        loop {
            stop.check()?;
            match self.output.recv_timeout(LOOK) {
                Ok(line) => {
                    self.ready = line;
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) if clock::now() < until => self.check()?,
                Err(RecvTimeoutError::Timeout) => {
                    let what = format!("the {} was not ready within {} s", self.name, READY_WITHIN.as_secs());
                    return Err(DemoError::TooBusy(what));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end();
                    return Err(status.map_or(
                        DemoError::Server { name: self.name, problem: "it closed its output".into() },
                        |status| self.ended(status),
                    ));
                }
            }
        }
    }

    /// Ends the process if it runs; returns how it ended.
    fn end(&mut self) -> Option<ExitStatus> {
        self.has_successor();
        let ended = self.child.try_wait().ok().flatten();
        if let Some(pid) = self.successor.take() {
            self.end_successor(Pid::from_raw(pid));
            return ended;
        }
        if ended.is_some() {
            return ended; // reaped: its number may be somebody else's now
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        let until = clock::now() + END_WITHIN;
        while clock::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if self.output.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
                // It has closed its output, so it is as good as gone.
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        self.child.kill().ok();
        self.child.wait().ok()
    }

    /// Ends the successor. It holds the output of the first process: when that closes, the successor is gone.
    fn end_successor(&mut self, pid: Pid) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            kill(pid, signal).ok();
            let until = clock::now() + END_WITHIN;
            while clock::now() < until {
                if self.output.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
                    self.child.wait().ok(); // it left when it had handed over
                    return;
                }
            }
        }
    }

    fn ended(&self, status: ExitStatus) -> DemoError {
        DemoError::Server { name: self.name, problem: format!("it ended by itself: {status}") }
    }

    fn unreadable(&self) -> DemoError {
        DemoError::Server { name: self.name, problem: format!("/proc/{} cannot be read", self.pid()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Settings of the user's own gateway are not the demo's.
pub(crate) fn forget_settings(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if ENV_PREFIXES.iter().any(|prefix| variable.to_string_lossy().starts_with(prefix)) {
            command.env_remove(variable);
        }
    }
}

/// Starts the program; its lines of readiness come through the channel.
fn spawn(
    name: &'static str,
    program: &Path,
    arguments: &[String],
    log: &File,
) -> Result<(Child, Receiver<String>), DemoError> {
    let failed = |problem: String| DemoError::Server { name, problem };
    let log = log.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    // Each server ends when its standard input ends, so none outlives the demo (`--until-eof`).
    // A Ctrl-C at the terminal is for the demo, which ends its servers in order.
    command.process_group(0);
    forget_settings(&mut command);
    let mut child = command.spawn().map_err(|error| failed(format!("it does not start: {error}")))?;
    let stdout = child.stdout.take().expect("piped");
    let (sender, output) = sync_channel(LINES_MAX);
    let named = std::thread::Builder::new().name(format!("{name} output"));
    named.spawn(move || read(stdout, &sender)).map_err(|error| failed(error.to_string()))?;
    Ok((child, output))
}

/// Passes on the readiness line, and then reads on so that the pipe never fills.
fn read(stdout: ChildStdout, sender: &SyncSender<String>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line.contains(READY) {
            sender.try_send(line).ok(); // of more processes than that nobody wants to know
        }
    }
}

/// The value of `field=value` among the words of a line.
fn value<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    line.split_whitespace()
        .find_map(|word| word.split_once('=').filter(|(name, _)| *name == field))
        .map(|it| it.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Server, DemoError> {
        let log = tempfile();
        Server::start("shell", Path::new("/bin/sh"), &["-c".into(), script.into()], log, &Stop::never())
    }

    fn tempfile() -> File {
        File::options().write(true).open("/dev/null").expect("exists everywhere")
    }

    fn is_running(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_readiness_line_is_waited_for_and_read() {
        let script =
            "echo starting; echo moorline ready listener=127.0.0.1:4000 admin=off pid=1; exec sleep 60";
        let mut server = shell(script).expect("ready");
        assert_eq!(server.address("listener").expect("named").port(), 4_000);
        let error = server.address("admin").expect_err("no address").to_string();
        assert!(error.contains("admin="), "{error}");
        server.check().expect("it runs");
        let pid = server.pid();
        assert!(server.resident_bytes().expect("it runs") > 0 && is_running(pid));
        drop(server);
        assert!(!is_running(pid), "dropping it ends it");
    }

    #[test]
    fn one_that_ends_too_soon_is_an_error_with_its_status() {
        let error = shell("exit 3").expect_err("it is gone").to_string();
        assert!(error.contains("shell") && error.contains('3'), "{error}");
        let error = Server::start("none", Path::new("/nonexistent"), &[], tempfile(), &Stop::never());
        assert!(error.expect_err("no program").to_string().contains("does not start"));
    }

    #[test]
    fn one_that_ends_later_is_noticed() {
        let mut server = shell("echo a ready b=1; exit 3").expect("ready");
        // Its output closes when it ends.
        while server.output.recv_timeout(LOOK) != Err(RecvTimeoutError::Disconnected) {}
        while server.check().is_ok() {
            std::thread::yield_now();
        }
        assert!(server.check().expect_err("gone").to_string().contains("ended by itself"));
    }
}
