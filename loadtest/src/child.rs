//! Starts a server as a process of its own, waits for its ready line, and ends it.

use crate::exit::Failure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A server prints its ready line within this, or has failed.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// A server ends within this after TERM, or is killed.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Length of one wait for an ending child.
const END_POLL: Duration = Duration::from_millis(20);

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    ready: ReadyLine,
    /// Keeps the reader's end alive: closes when the child's output ends.
    output: mpsc::Receiver<String>,
}

/// Ready line of a server: "... ready listener=127.0.0.1:7000 pid=42".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyLine {
    /// Listening address: the value of `listener` or `link`.
    pub address: SocketAddr,
}

impl ReadyLine {
    /// Reads such a line; `None` for any other.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        words.find(|word| *word == "ready")?;
        let address = words.find_map(|word| match word.split_once('=') {
            Some(("listener" | "link", value)) => value.parse().ok(),
            _ => None,
        })?;
        Some(Self { address })
    }
}

impl Server {
    /// Starts `program` and waits until it is ready.
    pub fn start(program: &Path, arguments: &[String]) -> Result<Self, Failure> {
        let failed = |why: String| Failure::Start { program: PathBuf::from(program), why };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0) // a Ctrl-C at the terminal reaches the generator, which then ends it in order
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if ReadyLine::parse(&line).is_some() && sender.send(line).is_err() {
                    return;
                }
            }
        });
        let line = output.recv_timeout(READY_WITHIN).ok();
        if let Some(ready) = line.and_then(|line| ReadyLine::parse(&line)) {
            return Ok(Self { child, ready, output });
        }
        let _ = child.kill();
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        Err(failed(format!("no ready line within {READY_WITHIN:?}; {status}")))
    }

    /// Listening address.
    pub const fn address(&self) -> SocketAddr {
        self.ready.address
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids fit")
    }
}

impl Server {
    /// Ends it with this signal, and waits until it has ended; kills it after `within`.
    pub fn end(mut self, signal: Signal, within: Duration) {
        self.end_with(signal, within);
    }

    fn end_with(&mut self, signal: Signal, within: Duration) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
        let rounds = within.as_millis() / END_POLL.as_millis();
        for _ in 0..rounds {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            // Returns at once when the child's output has ended.
            if self.output.recv_timeout(END_POLL) == Err(mpsc::RecvTimeoutError::Disconnected) {
                break;
            }
        }
        // Its output is closed, so it is past its own shutdown, or it is stuck.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end_with(Signal::SIGTERM, END_WITHIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines() {
        let ready =
            ReadyLine::parse("moorline ready listener=127.0.0.1:4000 admin=127.0.0.1:1 pid=7").unwrap();
        assert_eq!(ready.address.port(), 4000);
        let ready = ReadyLine::parse("moorline backend ready link=127.0.0.1:5000 pid=7").unwrap();
        assert_eq!(ready.address.port(), 5000);
        for other in ["", "moorline starting", "ready", "ready listener=here", "listener=127.0.0.1:1 ready"] {
            assert_eq!(ReadyLine::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_child_that_says_nothing_is_a_failure() {
        let failure = Server::start(Path::new("/bin/true"), &[]).unwrap_err();
        assert!(failure.to_string().contains("/bin/true"), "{failure}");
    }
}
