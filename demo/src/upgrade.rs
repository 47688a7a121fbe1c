//! One hot restart, ordered by `moorline upgrade` as an operator would.

use crate::DemoError;
use serde::Deserialize;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Bytes of the answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Words of a problem that name the machine as its cause: too slow, or too full.
const SLOW_WORDS: &[&str] = &["in time", "of memory are needed", "descriptors are needed"];

/// The verdict on a hot restart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Upgraded {
    /// A new process serves.
    Committed(Restarted),
    /// The old process serves on.
    Undone {
        why: String,
        /// The reason says more about the machine than about the gateway.
        is_slowness: bool,
    },
}

/// Figures of a hot restart.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Restarted {
    /// Time in which nothing was read or written.
    pub(crate) pause_ms: f64,
    /// Sockets that moved.
    pub(crate) sockets: u64,
}

/// A running `moorline upgrade`. Dropping it ends it; the restart that it ordered goes on.
#[derive(Debug)]
pub(crate) struct Upgrade {
    child: Child,
    verdict: Option<Upgraded>,
}

/// The part of the command's JSON that the demo shows.
#[derive(Deserialize)]
struct Answer {
    verdict: String,
    problem: String,
    sockets: u64,
    pause_seconds: f64,
}

impl Upgrade {
    pub(crate) fn start(program: &Path, admin: SocketAddr) -> Result<Self, DemoError> {
        let mut command = Command::new(program);
        command.args(["upgrade", "--json", "--admin", &admin.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(crate::system("start `moorline upgrade`"))?;
        Ok(Self { child, verdict: None })
    }

    /// The verdict, once there is one.
    pub(crate) fn poll(&mut self) -> Result<Option<Upgraded>, DemoError> {
        let is_running =
            self.child.try_wait().map_err(crate::system("wait for `moorline upgrade`"))?.is_none();
        if is_running || self.verdict.is_some() {
            return Ok(self.verdict.clone());
        }
        let (mut answer, mut error) = (String::new(), String::new());
        if let Some(output) = self.child.stdout.take() {
            output.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).ok();
        }
        if let Some(output) = self.child.stderr.take() {
            output.take(ANSWER_BYTES_MAX).read_to_string(&mut error).ok();
        }
        self.verdict = Some(read(&answer, &error));
        Ok(self.verdict.clone())
    }
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(answer: &str, error: &str) -> Upgraded {
    match serde_json::from_str(answer) {
        Ok(Answer { verdict, pause_seconds, sockets, .. }) if verdict == "committed" => {
            Upgraded::Committed(Restarted { pause_ms: pause_seconds * 1e3, sockets })
        }
        Ok(Answer { problem: why, .. }) => {
            let is_slowness = SLOW_WORDS.iter().any(|word| why.contains(word));
            Upgraded::Undone { why, is_slowness }
        }
        // The gateway did not take the order, or gave no verdict in time.
        Err(_) => Upgraded::Undone { why: error.trim().to_owned(), is_slowness: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_s_json_becomes_a_verdict() {
        let answer = |verdict: &str, problem: &str| {
            format!(
                r#"{{"number":1,"verdict":"{verdict}","problem":"{problem}","sockets":7,"pause_seconds":0.5,"steps":[]}}"#
            )
        };
        let committed = Upgraded::Committed(Restarted { pause_ms: 500.0, sockets: 7 });
        assert_eq!(read(&answer("committed", ""), ""), committed);
        let undone = |why: &str, is_slowness| Upgraded::Undone { why: why.into(), is_slowness };
        let slow = "worker-0 did not stand still in time";
        assert_eq!(read(&answer("rolled_back", slow), "moorline: rolled back"), undone(slow, true));
        let fault = "the new process ended with exit status: 1";
        assert_eq!(read(&answer("rolled_back", fault), "moorline: rolled back"), undone(fault, false));
        let unheard = "moorline: cannot order a hot restart";
        assert_eq!(read("", &format!("{unheard}\n")), undone(unheard, true));
    }
}
