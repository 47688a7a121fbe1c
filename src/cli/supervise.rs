//! A gateway under a process that stays: as process 1 of a container, or with `--supervise`.
//!
//! Process 1 must not end while the service lives, and a hot restart ends the process that was started. So the
//! first process only starts the gateway, passes signals on to the one that serves, reaps what ends, and ends
//! with the last of the series. It learns who serves as systemd does, by MAINPID on a notify socket
//! (sd_notify(3)), and is itself never upgraded.

use super::Failure;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

/// Asks for it where this is not process 1.
pub(super) const FLAG: &str = "--supervise";
/// Bytes of one notification.
const NOTE_BYTES_MAX: usize = 4096;
/// Added to the number of the signal that ended the gateway.
const KILLED: u8 = 128;

/// Returns true if this process is to stay while others serve.
pub(super) fn is_wanted(until_told: bool) -> bool {
    until_told || getpid() == Pid::from_raw(1)
}

/// Starts the gateway and stays until the last process of the series has ended. Its exit code.
pub(super) fn run() -> Result<u8, Failure> {
    let failed =
        |what: &'static str| move |error: io::Error| Failure::Failed(format!("cannot {what}: {error}"));
    // Whoever takes over is a child of one that leaves: it comes to this process then.
    prctl::set_child_subreaper(true).map_err(io::Error::from).map_err(failed("become a subreaper"))?;
    let mut signals =
        Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR2]).map_err(failed("listen for signals"))?;
    let notes = Notes::open().map_err(failed("make a notify socket"))?;
    let binary = std::env::current_exe().map_err(failed("find the own executable"))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument.as_os_str() != FLAG);
    let mut command = Command::new(binary);
    command.args(arguments).env("NOTIFY_SOCKET", &notes.path);
    let child = command.spawn().map_err(failed("start the gateway"))?;
    let mut serves = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    // It ended without a word: another one may go on where it stood.
    let mut last_code = None;
    for signal in signals.forever() {
        serves = notes.main_pid().unwrap_or(serves);
        if signal != SIGCHLD {
            if let Ok(signal) = Signal::try_from(signal) {
                kill(serves, signal).ok(); // if it has ended, that is the next signal
            }
            continue;
        }
        loop {
            let ended = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code).unwrap_or(1)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, KILLED.saturating_add(u8::try_from(signal as i32).unwrap_or(0)))
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) if last_code.is_some() => return Ok(last_code.unwrap_or(1)),
                Ok(_) | Err(_) => break,
            };
            // It said who follows before it left.
            serves = notes.main_pid().unwrap_or(serves);
            if ended.0 == serves {
                last_code = Some(ended.1);
            }
        }
    }
    Err(Failure::Failed("the signals ended".into()))
}

/// A notify socket of this process.
struct Notes {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notes {
    fn open() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("moorline-notify-{}", getpid()));
        std::fs::remove_file(&path).ok(); // of a process that was killed
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    /// Process that was named last since the last look.
    fn main_pid(&self) -> Option<Pid> {
        let mut last = None;
        let mut note = [0; NOTE_BYTES_MAX];
        while let Ok(length) = self.socket.recv(&mut note) {
            let text = String::from_utf8_lossy(&note[..length]);
            let named =
                text.lines().filter_map(|line| line.strip_prefix("MAINPID=")?.parse().ok()).next_back();
            last = named.map(Pid::from_raw).or(last);
        }
        last
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}
