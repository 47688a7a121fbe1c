//! Restarts the server while a run goes on: by a command, or by ending and starting it anew.

use crate::child::Server;
use crate::clock;
use crate::exit::Failure;
use crate::monitor::Markers;
use moorline_proto::time::Instant;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Length of one wait for a running command.
const GLANCE: Duration = Duration::from_millis(50);
/// A server that drains, and a command that restarts one, end within this, or are killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);

/// Restarts to perform, with their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRule {
    /// Way of restarting.
    pub how: How,
    /// From the beginning of measuring to the first time.
    pub after: Duration,
    /// From one to the next.
    pub every: Duration,
    /// Number of restarts.
    pub times: u32,
}

/// Way of restarting the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// A command of the user does it, and exits with 0 when it is done.
    Command(String),
    /// moorload runs the server, sends it a signal, and starts it again when it has ended.
    Serve {
        /// The server's command line.
        command: String,
        /// TERM or KILL.
        signal: Signal,
    },
}

/// Does it, on a thread of its own.
#[derive(Debug)]
pub struct Restarter {
    /// Dropping it ends the thread.
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Restarter {
    /// Starts the server, if it is ours to run, and waits for the beginning of measuring.
    pub fn start(
        rule: RestartRule,
        target: SocketAddr,
        measure: mpsc::Receiver<Instant>,
        markers: Markers,
    ) -> Result<Self, Failure> {
        let server = match &rule.how {
            How::Serve { command, .. } => Some(serve(command, target)?),
            How::Command(_) => None,
        };
        let (end, ended) = mpsc::channel();
        let work = Work { rule, target, markers, ended, server };
        let thread = std::thread::spawn(move || match measure.recv() {
            Ok(began) => work.run(began),
            Err(_) => Ok(()), // the run failed before
        });
        Ok(Self { end: Some(end), thread: Some(thread) })
    }

    /// The run is over: ends the server if it is ours. What went wrong with a restart, if anything.
    pub fn finish(mut self) -> Result<(), String> {
        self.end = None;
        let thread = self.thread.take().expect("it is joined once");
        thread.join().unwrap_or_else(|_| Err("the restarting thread failed".into()))
    }
}

struct Work {
    rule: RestartRule,
    target: SocketAddr,
    markers: Markers,
    ended: mpsc::Receiver<()>,
    server: Option<Server>,
}

impl Work {
    fn run(mut self, began: Instant) -> Result<(), String> {
        for time in 0..self.rule.times {
            let at = began + self.rule.after + self.rule.every * time;
            if self.is_over_before(at) {
                return Ok(());
            }
            let before = clock::now();
            self.restart()?;
            let took = clock::now().saturating_since(before).as_secs_f64();
            self.markers.add(format!("restart {} done, took {took:.2}s", time + 1));
        }
        // Keeps the server until the run is over.
        let _ = self.ended.recv();
        Ok(())
    }

    fn is_over_before(&self, at: Instant) -> bool {
        let wait = at.saturating_since(clock::now());
        self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
    }

    /// Waits for the command, but not longer than a restart may take, and not beyond the run.
    fn run_command(&self, command: &str) -> Result<(), String> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let mut child =
            shell.spawn().map_err(|error| format!("the restart command did not start: {error}"))?;
        let deadline = clock::now() + DRAIN_WITHIN;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("the restart command ended with {status}: {command}"));
                }
                Ok(None) => {}
                Err(error) => return Err(format!("the restart command is lost: {error}")),
            }
            if clock::now() > deadline || self.is_over_before(clock::now() + GLANCE) {
                let group = Pid::from_raw(i32::try_from(child.id()).expect("pids fit"));
                let _ = killpg(group, Signal::SIGKILL); // it may just have ended
                let _ = child.wait();
                return Err(format!("the restart command did not end in time: {command}"));
            }
        }
    }

    fn restart(&mut self) -> Result<(), String> {
        match self.rule.how.clone() {
            How::Command(command) => {
                self.markers.add("restart");
                self.run_command(&command)
            }
            How::Serve { command, signal } => {
                self.markers.add(signal.as_str());
                let old = self.server.take().expect("it was started before");
                old.end(signal, DRAIN_WITHIN);
                self.server = Some(serve(&command, self.target).map_err(|failure| failure.to_string())?);
                Ok(())
            }
        }
    }
}

/// `exec`, so that signals reach the server and not a shell.
fn serve(command: &str, target: SocketAddr) -> Result<Server, Failure> {
    let server = Server::start(Path::new("/bin/sh"), &["-c".to_owned(), format!("exec {command}")])?;
    if server.address() != target {
        return Err(Failure::Usage(format!(
            "the server of --serve listens at {} and the target is {target}: give both the same port",
            server.address()
        )));
    }
    Ok(server)
}
