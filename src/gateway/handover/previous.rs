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
    let mut words = value.splitn(3, ' ');
    let (pid, fd, path) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    // A version that does not know the variable passes it on to its own children.
    if pid.parse() != Ok(old) || !inherited.remove(&fd) {
        return None;
    }
    sockets::take(fd).ok().map(|fd| Executable::of(fd, path.into()))
}
