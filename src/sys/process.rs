//! Another process, by a descriptor: its number may become another process's, the descriptor never does.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

/// A descriptor of a process.
#[derive(Debug)]
pub struct ProcessFd(OwnedFd);

impl ProcessFd {
    /// Opens a process. The caller knows that the number is still that process's.
    ///
    /// # Errors
    /// The process is gone, or there is no descriptor left.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// The descriptor's number, for a poll.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Ends the process by KILL.
    ///
    /// # Errors
    /// The process has ended.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::KILL)?)
    }

    /// Returns whether the process has ended.
    pub fn has_ended(&self) -> bool {
        super::sockets::is_readable(&self.0, Duration::ZERO).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_end_is_seen_without_being_the_parent() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("it starts");
        let process = ProcessFd::open(child.id()).expect("it runs");
        assert!(!process.has_ended());
        process.kill().expect("it runs");
        while !process.has_ended() {
            std::thread::yield_now();
        }
        child.wait().expect("ours");
        assert!(process.kill().is_err() && process.has_ended());
        assert!(ProcessFd::open(0).is_err());
    }
}
