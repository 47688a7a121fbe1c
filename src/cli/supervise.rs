//! A gateway under a process that stays: as process 1 of a container, or with `--supervise`.
//!
//! Process 1 must not end while the service lives, and a hot restart ends the process that was started. So the
//! first process only starts the gateway, passes signals on to the one that serves, reaps what ends, and ends
//! with the last of the series. It learns who serves as systemd does, by MAINPID on a notify socket
//! (sd_notify(3)), and is itself never upgraded. The socket lies in a private folder, and only a process of the service
//! is believed, and only about a process of the service.

use super::Failure;
use crate::sys::executable::started_by;
use crate::sys::notify;
use crate::sys::signals::{listened, name};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, mkdtemp};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::Command;

/// Asks for it where this is not process 1.
pub(super) const FLAG: &str = "--supervise";
/// Bytes of one notification.
const NOTE_BYTES_MAX: usize = 4096;
/// Generations between a process of the service and this one.
const GENERATIONS_MAX: usize = 64;
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
    // The process that serves knows what each of them means.
    let mut signals = Signals::new(listened().chain([SIGCHLD])).map_err(failed("listen for signals"))?;
    let notes = Notes::open().map_err(failed("make a notify socket"))?;
    // Not resolved: an upgrade follows links anew.
    let binary = started_by(false);
    let arguments = std::env::args_os().skip(1).filter(|argument| argument.as_os_str() != FLAG);
    let mut command = Command::new(binary);
    command.args(arguments).env(notify::VARIABLE, &notes.name);
    let child = command.spawn().map_err(failed("start the gateway"))?;
    let mut series = Series { serves: i32::try_from(child.id()).ok().map(Pid::from_raw), code: None };
    for signal in signals.forever() {
        series.read(&notes);
        if signal != SIGCHLD {
            match (series.serves, Signal::try_from(signal)) {
                (Some(serves), Ok(signal)) => drop(kill(serves, signal)), // if it has ended, that is the next signal
                (_, Err(_)) => super::note(&format!(
                    "moorline: passed over the signal {}, which has no meaning here",
                    name(signal)
                )),
                (None, Ok(_)) => {}
            }
            continue;
        }
        // The process is looked at before it is reaped: until then its number is its own.
        while let Some(ended) = next_ended() {
            series.read(&notes);
            series.reap(ended);
        }
        if let Some(code) = series.code
            && !has_children()
        {
            return Ok(code);
        }
    }
    Err(Failure::Failed("the signals ended".into()))
}

/// Processes of which one serves after the other.
struct Series {
    /// The process that serves; `None`: it has ended, and none has followed yet.
    serves: Option<Pid>,
    /// Exit code of the last one that served; `None`: it still serves.
    code: Option<u8>,
}

impl Series {
    /// Follows the notifications that have come in.
    fn read(&mut self, notes: &Notes) {
        while let Some(note) = notes.next() {
            let Note { sender, main_pid: Some(named) } = note else { continue };
            let own = getpid();
            let is_ours = Some(sender) == self.serves || is_descendant(sender, own);
            // 0, 1 and negative numbers are not one process.
            if is_ours && named.as_raw() > 1 && is_descendant(named, own) {
                self.serves = Some(named);
            } else {
                super::note(&format!(
                    "moorline: pid {sender} names pid {named} as the serving process; that is ignored, because it is not of this service"
                ));
            }
        }
    }

    /// Takes the exit status of a process that has ended.
    fn reap(&mut self, pid: Pid) {
        let code = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(1),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                KILLED.saturating_add(u8::try_from(signal as i32).unwrap_or(0))
            }
            Ok(_) | Err(_) => return,
        };
        if self.serves == Some(pid) {
            // It ended without a word: another one may go on where it stood.
            (self.serves, self.code) = (None, Some(code));
        }
    }
}

/// Returns a child that has ended, and does not reap it.
fn next_ended() -> Option<Pid> {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(status) => return status.pid(),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

/// Returns true if a process is a child of `ancestor`, or a child of a child.
fn is_descendant(pid: Pid, ancestor: Pid) -> bool {
    let mut pid = pid;
    for _ in 0..GENERATIONS_MAX {
        let Some(parent) = parent_of(pid) else { return false };
        if parent == ancestor {
            return true;
        }
        pid = parent;
    }
    false
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

/// One notification.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    /// Process that sent it, by the kernel's word.
    sender: Pid,
    /// Process that serves from now on; `None`: it says something else.
    main_pid: Option<Pid>,
}

/// The notify socket of this process.
struct Notes {
    socket: UnixDatagram,
    /// Value of `NOTIFY_SOCKET`.
    name: OsString,
    /// Private folder of the socket; `None`: the name is abstract.
    folder: Option<PathBuf>,
}

impl Notes {
    /// Makes the socket in a private folder, or with an abstract name where no folder can be written.
    fn open() -> io::Result<Self> {
        let session =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let fixed = ["/run", "/dev/shm"].map(PathBuf::from);
        Self::open_in(session.into_iter().chain(fixed).chain([std::env::temp_dir()]))
    }

    fn open_in(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let made = folders.into_iter().find_map(|folder| {
            let folder = mkdtemp(&folder.join(format!("moorline-notify-{}", "X".repeat(6)))).ok()?; // with mode 0700
            if let Ok(socket) = UnixDatagram::bind(folder.join("socket")) {
                return Some((socket, folder));
            }
            std::fs::remove_dir(&folder).ok();
            None
        });
        let notes = if let Some((socket, folder)) = made {
            Self { socket, name: folder.join("socket").into(), folder: Some(folder) }
        } else {
            let secret = getrandom::u64().map_err(io::Error::from)?;
            let name = format!("moorline-notify-{}-{secret:016x}", getpid());
            let address = SocketAddr::from_abstract_name(&name)?;
            Self { socket: UnixDatagram::bind_addr(&address)?, name: format!("@{name}").into(), folder: None }
        };
        notes.socket.set_nonblocking(true)?;
        setsockopt(&notes.socket, sockopt::PassCred, &true)?;
        Ok(notes)
    }

    /// Takes the next notification; `None`: all are read.
    fn next(&self) -> Option<Note> {
        let (mut bytes, mut control) = ([0; NOTE_BYTES_MAX], nix::cmsg_space!(UnixCredentials));
        loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            let sender = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|one| match one {
                    ControlMessageOwned::ScmCredentials(from) => Some(Pid::from_raw(from.pid())),
                    _ => None,
                })
            });
            let length = message.bytes;
            // Without the kernel's word it is nobody's.
            let Some(sender) = sender else { continue };
            let text = String::from_utf8_lossy(&bytes[..length]);
            let named =
                text.lines().filter_map(|line| line.strip_prefix("MAINPID=")?.parse().ok()).next_back();
            return Some(Note { sender, main_pid: named.map(Pid::from_raw) });
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            std::fs::remove_dir_all(folder).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Child, Stdio};

    /// A child that lives until it is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("it starts"))
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    /// Sends from this process.
    fn send(notes: &Notes, text: &str) {
        let name = notes.name.to_str().expect("text");
        let socket = UnixDatagram::unbound().expect("a socket");
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(name),
        };
        socket.send_to_addr(text.as_bytes(), &address.expect("an address")).expect("sent");
    }

    #[test]
    fn the_socket_lies_in_a_private_folder_that_goes_with_it() {
        let notes = Notes::open_in([PathBuf::from("/nonexistent"), std::env::temp_dir()]).expect("made");
        let folder = notes.folder.clone().expect("a folder");
        assert_eq!(std::fs::metadata(&folder).expect("there").mode() & 0o777, 0o700);
        send(&notes, "READY=1\nMAINPID=42\n");
        let own = getpid();
        assert_eq!(notes.next(), Some(Note { sender: own, main_pid: Some(Pid::from_raw(42)) }));
        assert_eq!(notes.next(), None);
        drop(notes);
        assert!(!folder.exists());
    }

    #[test]
    fn where_no_folder_can_be_written_the_name_is_abstract() {
        let notes = Notes::open_in([PathBuf::from("/nonexistent"), PathBuf::from("/proc")]).expect("made");
        assert!(notes.folder.is_none() && notes.name.to_str().expect("text").starts_with('@'));
        send(&notes, "MAINPID=7");
        assert_eq!(notes.next().and_then(|note| note.main_pid), Some(Pid::from_raw(7)));
    }

    #[test]
    fn only_a_process_of_the_service_names_a_process_of_the_service() {
        let notes = Notes::open_in([std::env::temp_dir()]).expect("made");
        let (first, second) = (Sleeper::start(), Sleeper::start());
        let own = getpid();
        // This process is not a descendant of itself, so it may speak only while it serves.
        let mut series = Series { serves: Some(first.pid()), code: None };
        send(&notes, &format!("MAINPID={}", second.pid()));
        series.read(&notes);
        assert_eq!(series.serves, Some(first.pid()), "a stranger said so");
        for named in [0, 1, -1, own.as_raw(), nix::unistd::getppid().as_raw(), i32::MAX] {
            series.serves = Some(own);
            send(&notes, &format!("MAINPID={named}"));
            series.read(&notes);
            assert_eq!(series.serves, Some(own), "{named}");
        }
        for text in ["MAINPID=", "MAINPID=x", "MAINPID=99999999999999999999", "READY=1", "\u{fffd}"] {
            send(&notes, text);
            series.read(&notes);
            assert_eq!(series.serves, Some(own), "{text}");
        }
        send(&notes, &format!("MAINPID={}\n", second.pid()));
        series.read(&notes);
        assert_eq!(series.serves, Some(second.pid()));
    }
}
