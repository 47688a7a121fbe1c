//! The check before a hot restart: who can change the binary, room for a second process, versions of snapshots.
//!
//! For example, `MOORLINE_HANDOVER=check ./new run -c gateway.toml` prints
//! `moorline-handover version=0.2.0 reads=1-1 writes=1.1 guard=1 bodies=1 later=1 partials=1 retired=1`, and a process that
//! writes version 1 accepts the binary.

use super::super::signals::Signals;
use super::upgrade::ENDING;
use super::{CHECK, VARIABLE};
use crate::failpoint;
use crate::metrics::process::Figures;
use crate::snapshot::{MAJOR_MIN, VERSION};
use crate::sys::executable::Executable;
use crate::sys::room::{self, Room};
use crate::sys::{child, clock, limits};
use moorline_proto::time::Instant;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// First word of the line that answers the check.
const ANSWER: &str = "moorline-handover";
/// Bytes of each output of a checked binary; one that writes more is ended.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Lines of its standard error that the verdict has.
const ERROR_LINES_MAX: usize = 4;
/// Descriptors that must be free: those that a restart opens, and some for clients that connect meanwhile.
const FILES_NEEDED: u64 = 32;
/// Memory that a new process takes, in percent of the resident size of this process, beside the queued bytes.
const MEMORY_PERCENT: u64 = 120;
/// Bytes of addresses that a process takes for a restart beside copies of the snapshot.
const ADDRESSES_MIN: u64 = 8 << 20;
/// Length of the shortest file in memory.
const FILE_MIN: u64 = 4096;
/// Interval at which the end of the checked binary is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// Returns the answer to the check: the versions of snapshots that this build reads and writes.
pub(in crate::gateway) fn check_line() -> String {
    let (major, minor) = VERSION;
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{ANSWER} version={version} reads={MAJOR_MIN}-{major} writes={major}.{minor} guard=1 bodies=1 later=1 \
         partials=1 retired=1"
    )
}

/// Facts about a binary that passed the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) version: String,
    pub(super) knows: Knows,
}

/// Parts of the handover that came later, which a program knows or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Knows {
    /// True if its process knows that its parent is a guard.
    pub(super) guard: bool,
    /// Bodies that its process reads before the snapshot.
    pub(super) bodies: ReadsBodies,
    /// True if its process takes over admin sockets that the settings have given up.
    pub(super) retired: bool,
}

/// Bodies that a process reads before the snapshot. Each kind came after the one before it, and has that one too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadsBodies {
    /// No bodies.
    #[default]
    Never,
    /// Those that wait when it starts.
    First,
    /// Also further ones, after it has said that it is warm.
    Later,
    /// Also beginnings of frames that are not whole.
    Partials,
}

/// Opens the binary of an order, and judges it.
///
/// # Errors
/// The cause, for people.
pub(super) fn open(binary: &Path) -> Result<Executable, String> {
    let executable = Executable::open(binary).map_err(|error| format!("check: {error}"))?;
    // A program of root's that is not this one, such as a shell, would take the arguments for its own.
    match executable.contains(VARIABLE.as_bytes()) {
        Ok(true) => Ok(executable),
        Ok(false) => Err(format!("check: {} is not a moorline that can take over", binary.display())),
        Err(error) => Err(format!("check: cannot read {}: {error}", binary.display())),
    }
}

/// Checks a binary until `deadline`. `queued_bytes`: of all clients.
///
/// # Errors
/// The cause, for people.
pub(super) fn check(
    binary: &Executable,
    arguments: &[OsString],
    deadline: Instant,
    queued_bytes: u64,
    signals: &Signals,
) -> Result<Checked, String> {
    check_room(queued_bytes)?;
    let answer = ask(binary, arguments, deadline, signals)?;
    facts_of(&answer)
}

/// Refuses a restart for which descriptors or memory would not suffice. `queued_bytes`: they are in the snapshot, and once
/// more in the new process.
fn check_room(queued_bytes: u64) -> Result<(), String> {
    let free =
        limits::free_files().map_err(|error| format!("check: cannot count the open descriptors: {error}"))?;
    if free < FILES_NEEDED {
        return Err(format!(
            "check: {FILES_NEEDED} descriptors are needed, {free} are free; raise the open-files limit"
        ));
    }
    let resident = Figures::read().resident_bytes.unwrap_or(0);
    check_memory(resident * MEMORY_PERCENT / 100 + 2 * queued_bytes, queued_bytes)
        .map_err(|problem| format!("check: {problem}"))
}

/// Refuses a restart that needs more memory than there is. `wanted`: of both processes together, beyond what they have.
/// `snapshot`: length of the snapshot, or a guess.
///
/// # Errors
/// The cause, for people.
pub(super) fn check_memory(wanted: u64, snapshot: u64) -> Result<(), String> {
    let none = Room { bytes: 0, limit: 0, by: "failpoint".into() };
    let room = failpoint::try_reach("old.room").map_or(Some(none), |()| room::of_memory());
    // A process has its copy of the snapshot, and its own buffers. Even with nothing queued there are lists of sockets.
    let addresses = 2 * snapshot + ADDRESSES_MIN;
    let needs =
        [(wanted, room), (addresses, room::of_addresses()), (snapshot.max(FILE_MIN), room::of_file())];
    for (wanted, room) in needs {
        if let Some(room) = room.filter(|room| room.bytes < wanted) {
            return Err(format!(
                "{wanted} bytes of memory are needed, {room}; raise that limit, or wait until fewer bytes are queued"
            ));
        }
    }
    Ok(())
}

/// Runs the binary, and returns the line that answers the check.
///
/// Its process group is ended when it has answered, whoever else is in it and whatever they hold open.
fn ask(
    binary: &Executable,
    arguments: &[OsString],
    deadline: Instant,
    signals: &Signals,
) -> Result<String, String> {
    let path = binary.path().display();
    let failed = |error: io::Error| format!("check: cannot run {path}: {error}");
    let mut command = binary.command().map_err(failed)?;
    command.args(arguments).env(VARIABLE, CHECK).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    child::ignore_signals(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let outcome = listen(&mut child, deadline, signals);
    // The child is not reaped before, so that the group's number is still its own.
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    group.ok().map(|group| killpg(group, Signal::SIGKILL));
    let status = child.wait().map_err(|error| format!("check: cannot wait for {path}: {error}"))?;
    let Said { output, errors } = outcome?;
    let answer = output.lines().find_map(|line| line.strip_prefix(ANSWER));
    answer.map(str::to_owned).ok_or_else(|| {
        let reason = if errors.is_empty() { "check that the settings are valid for it" } else { &errors };
        format!(
            "check: {path} ended with {status} and did not answer as a moorline that can take over: {reason}"
        )
    })
}

/// Output of a checked binary.
struct Said {
    output: String,
    /// The last lines of its standard error.
    errors: String,
}

/// Reads what the binary says until it ends.
fn listen(child: &mut Child, deadline: Instant, signals: &Signals) -> Result<Said, String> {
    let failed = |error: io::Error| format!("check: cannot read what the binary says: {error}");
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let mut pipes =
        [stdout, stderr].map(|pipe| pipe.map(|fd| Pipe { file: File::from(fd), bytes: Vec::new() }));
    for pipe in pipes.iter().flatten() {
        let is_set = fcntl(&pipe.file, FcntlArg::F_SETFL(OFlag::O_RDONLY | OFlag::O_NONBLOCK));
        is_set.map_err(|errno| failed(errno.into()))?;
    }
    loop {
        // Looked for first: what it wrote before its end is in the pipe then.
        let has_ended = has_ended(child)?;
        for pipe in pipes.iter_mut().flatten() {
            pipe.read().map_err(failed)?;
            if pipe.bytes.len() > OUTPUT_BYTES_MAX {
                return Err(format!("check: the binary writes more than {OUTPUT_BYTES_MAX} bytes"));
            }
        }
        if has_ended {
            let [output, errors] = pipes.map(|pipe| pipe.map_or_else(Vec::new, |pipe| pipe.bytes));
            let errors = String::from_utf8_lossy(&errors);
            let lines: Vec<_> = errors.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines.len().saturating_sub(ERROR_LINES_MAX);
            return Ok(Said {
                output: String::from_utf8_lossy(&output).into(),
                errors: lines[last..].join("; "),
            });
        }
        if clock::machine_now() >= deadline {
            return Err("check: the binary did not end in time".into());
        }
        if signals.is_ending() {
            return Err(format!("check: {ENDING}"));
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Returns true if the child has ended, and does not reap it.
fn has_ended(child: &Child) -> Result<bool, String> {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::StillAlive) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) => Err(format!("check: cannot wait for the binary: {error}")),
    }
}

/// One of the binary's outputs.
struct Pipe {
    file: File,
    bytes: Vec<u8>,
}

impl Pipe {
    /// Reads what there is, up to a little more than the limit.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while self.bytes.len() <= OUTPUT_BYTES_MAX {
            match self.file.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads an answer, if its version reads the snapshots of this build.
fn facts_of(answer: &str) -> Result<Checked, String> {
    let value = |name: &str| answer.split_whitespace().find_map(|word| word.strip_prefix(name));
    let (version, reads) = (value("version=").unwrap_or("?"), value("reads=").unwrap_or("?"));
    let range = reads.split_once('-').and_then(|(a, b)| Some(a.parse::<u32>().ok()?..=b.parse().ok()?));
    if range.is_none_or(|range| !range.contains(&VERSION.0)) {
        return Err(format!(
            "check: {version} reads snapshots of versions {reads}, and this process writes version {}",
            VERSION.0
        ));
    }
    let knows = |name: &str| value(name) == Some("1");
    let bodies = match (knows("bodies="), knows("later="), knows("partials=")) {
        (true, true, true) => ReadsBodies::Partials,
        (true, true, false) => ReadsBodies::Later,
        (true, false, _) => ReadsBodies::First,
        (false, _, _) => ReadsBodies::Never,
    };
    let knows = Knows { guard: knows("guard="), bodies, retired: knows("retired=") };
    Ok(Checked { version: version.to_owned(), knows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_answer_is_accepted_and_another_range_is_not() {
        let line = check_line();
        let answer = line.strip_prefix(ANSWER).expect("begins so");
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let all =
            Checked { version, knows: Knows { guard: true, bodies: ReadsBodies::Partials, retired: true } };
        assert_eq!(facts_of(answer), Ok(all));
        let old =
            facts_of(" version=0.1.0 reads=1-1 writes=1.2").expect("it reads the snapshots of this build");
        assert_eq!(old.knows, Knows::default());
        for answer in [" version=9.0 reads=900-901 writes=901.0", " version=9.0", " reads=x-y", ""] {
            assert!(facts_of(answer).is_err(), "{answer:?}");
        }
    }
}
