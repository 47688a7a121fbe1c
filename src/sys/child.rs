//! Child processes that do not outlive this one.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The child gets TERM when the thread that starts it ends, even by KILL: start it from a thread that
/// lives as long as the process.
#[allow(unsafe_code)]
pub fn end_with_parent(command: &mut Command) {
    let parent = getpid();
    let ask = move || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        // The parent may have ended before the kernel was asked.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// The child inherits these descriptors under their numbers. This process's are not changed.
#[allow(unsafe_code)]
pub fn inherit(command: &mut Command, fds: Vec<RawFd>) {
    let clear = move || {
        for fd in &fds {
            // SAFETY: borrowed for one fcntl; one that was closed meanwhile is none.
            let borrowed = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::empty())).ok();
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and allocates nothing.
    unsafe { command.pre_exec(clear) };
}
