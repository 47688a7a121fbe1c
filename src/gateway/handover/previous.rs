//! The program that served before, as a descriptor: a path would name another file after the next replacement.
//!
//! For example, a package manager replaces `/usr/bin/moorline`, and `moorline upgrade` starts the new file. The new process
//! inherits a descriptor of the old file, which nobody finds by a path any more; `moorline rollback` runs it.

use crate::sys::executable::Executable;
use crate::sys::sockets;
use nix::unistd::getpid;
use std::collections::HashSet;
use std::os::fd::RawFd;

/// Environment variable with the process that gives the descriptor, the descriptor's number, and the path of the program.
pub(super) const PREVIOUS: &str = "MOORLINE_HANDOVER_PREVIOUS";

/// Returns the value of [`PREVIOUS`] for a child.
pub(super) fn name(program: &Executable) -> String {
    format!("{} {} {}", getpid(), program.fd(), program.path().display())
}

/// Takes the inherited descriptor; `None`: there is none, or the variable is not from `old`, the process before this one.
pub(super) fn take(inherited: &mut HashSet<RawFd>, old: i32) -> Option<Executable> {
    let value = std::env::var(PREVIOUS).ok()?;
    let (fd, path) = named_by(old, &value)?;
    if !inherited.remove(&fd) {
        return None;
    }
    sockets::take(fd).ok().map(|fd| Executable::of(fd, path.into()))
}

/// Reads a descriptor and the rest of a value `PID FD REST`; `None`: it is not from the process `old`. A version that does not
/// know a variable passes it on to its own children.
pub(super) fn named_by(old: i32, value: &str) -> Option<(RawFd, &str)> {
    let (pid, rest) = value.split_once(' ')?;
    let (fd, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    (pid.parse() == Ok(old)).then_some((fd.parse().ok()?, rest))
}
