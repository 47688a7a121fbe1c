//! The guard: a small process between the old and the new one, until the commit.
//!
//! ```text
//!  supervisor ── old ── guard ── new          before the commit: the guard sees both ends
//!  supervisor ── old, new                     after it: the guard has left, and the new one is the supervisor's child
//! ```
//!
//! The guard runs the program of the old process, starts the new one with everything that it inherited, closes all of that, and
//! waits. If the new process ends, the guard tells its exit status. If the old process dies, a new one that does not claim the
//! sockets within a second is killed, whatever it hangs in: it would keep every socket open, and nobody could listen at the
//! address. At the commit the guard leaves, so that the system gives the new process to the supervisor (a subreaper, such as
//! systemd), which then can wait for it.

use super::commit_word::CommitWord;
use crate::sys::executable::Executable;
use crate::sys::process::ProcessFd;
use crate::sys::{clock, limits, sockets};
use moorline_proto::time::{Duration, Instant};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitCode};

/// Environment variable of a guard: numbers of its descriptors and of the old process, as [`Orders`] has them.
pub(super) const GUARD: &str = "MOORLINE_HANDOVER_GUARD";
/// Environment variable that the guard gives the new process: guard, old process, and the descriptor of [`Orders::life`].
pub(super) const OLD: &str = "MOORLINE_HANDOVER_OLD";
/// Time in which a new process claims the sockets of an old one that has died.
const CLAIM_MAX: Duration = Duration::from_secs(1);
/// Interval at which a claim is looked for.
const CLAIM_LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a word or an end.
const LOOK: Duration = Duration::from_millis(20);

/// Value of [`GUARD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    /// Socket to the old process.
    pub(super) talk: RawFd,
    /// File of the commit word.
    pub(super) word: RawFd,
    /// The program to start.
    pub(super) program: RawFd,
    /// Pipe of which only the old process has the other end: it closes when that process dies.
    pub(super) life: RawFd,
    /// Process id of the old process.
    pub(super) old: i32,
    /// 1: the program reads [`OLD`]. 0: it looks at its parent's process, and the guard must end with the old one.
    pub(super) knows_guard: i32,
}

impl std::fmt::Display for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { talk, word, program, life, old, knows_guard } = self;
        write!(f, "{talk} {word} {program} {life} {old} {knows_guard}")
    }
}

impl Orders {
    fn read(text: &str) -> Option<Self> {
        let numbers: Vec<i32> = text.split(' ').map_while(|number| number.parse().ok()).collect();
        let [talk, word, program, life, old, knows_guard] = numbers[..] else { return None };
        Some(Self { talk, word, program, life, old, knows_guard })
    }
}

/// Runs the guard if this process is one. Its arguments are the path of the program and the arguments of the gateway.
pub(in crate::gateway) fn run_if_asked() -> Option<ExitCode> {
    let orders = std::env::var(GUARD).ok()?;
    let mut arguments = std::env::args_os().skip(1);
    let (Some(orders), Some(path)) = (Orders::read(&orders), arguments.next()) else {
        return Some(ExitCode::FAILURE);
    };
    Some(match guard(orders, &path, arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // the old process sees that the socket closes
    })
}

fn guard(orders: Orders, path: &OsString, arguments: Vec<OsString>) -> io::Result<()> {
    // One for all processes of the service is the serving one's. The new process listens for itself in a moment.
    limits::ignore_signals();
    let mut talk = UnixStream::from(sockets::take(orders.talk)?);
    let word = CommitWord::map(&sockets::duplicate(orders.word)?)?;
    let mut child = match start(orders, path, arguments) {
        Ok(child) => child,
        Err(error) => return writeln!(talk, "failed cannot run {}: {error}", path.display()),
    };
    // The new process has them now.
    let own = talk.as_raw_fd();
    sockets::open_fds()?.into_iter().filter(|fd| *fd != own).for_each(sockets::close_unowned);
    let process = ProcessFd::open(child.id()).ok(); // without it an end is seen a little later
    let died = |child: &mut Child| if orders.knows_guard == 0 { Ok(()) } else { outlive(child, &word) };
    // The new process is not waited for before the old one has opened it: its number is its own until then.
    let is_known = writeln!(talk, "started {}", child.id()).and_then(|()| talk.read_exact(&mut [0]));
    if is_known.and_then(|()| talk.set_nonblocking(true)).is_err() {
        return died(&mut child);
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return writeln!(talk, "ended {status}");
        }
        let mut byte = [0];
        match talk.read(&mut byte) {
            Ok(0) => return died(&mut child),
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return died(&mut child),
        }
        let ends = [Some(own), process.as_ref().map(ProcessFd::fd)];
        sockets::wait_readable(&ends.into_iter().flatten().collect::<Vec<_>>(), LOOK).ok();
    }
}

/// Starts the program with every descriptor that this process inherited.
fn start(orders: Orders, path: &OsString, arguments: Vec<OsString>) -> io::Result<Child> {
    let program = Executable::of(sockets::take(orders.program)?, path.into());
    let mut command = program.command()?;
    let old = format!("{} {} {}", std::process::id(), orders.old, orders.life);
    command.args(arguments).env_remove(GUARD).env(OLD, old).spawn()
}

/// Waits until a new process has claimed the sockets of a dead old one, and kills one that does not.
fn outlive(child: &mut Child, word: &CommitWord) -> io::Result<()> {
    let until: Instant = clock::machine_now() + CLAIM_MAX;
    while child.try_wait()?.is_none() && !word.is_touched() {
        if clock::machine_now() >= until {
            child.kill()?;
            return child.wait().map(drop);
        }
        std::thread::park_timeout(CLAIM_LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_written() {
        let orders = Orders { talk: 5, word: 6, program: 7, life: 8, old: 4711, knows_guard: 1 };
        assert_eq!(Orders::read(&orders.to_string()), Some(orders));
        for text in ["", "5 6 7 8 4711", "5 6 7 8 4711 1 2", "5 6 x 8 4711 1"] {
            assert_eq!(Orders::read(text), None, "{text}");
        }
    }
}
