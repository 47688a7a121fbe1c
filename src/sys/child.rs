//! Child processes: their end with this process, and the descriptors that they inherit.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the child get TERM when the thread that starts it ends, even by KILL. Start the child from a thread that
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

/// Makes the child ignore the signals that are for the serving process of a service, until it listens itself.
#[allow(unsafe_code)]
pub fn ignore_signals(command: &mut Command) {
    let ignore = || {
        super::limits::ignore_signals();
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and allocates nothing.
    unsafe { command.pre_exec(ignore) };
}

/// A descriptor that a child inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Number of the descriptor, in both processes.
    pub fd: RawFd,
    /// Cookie of a socket that another thread may close before the child starts; if the number then belongs to another
    /// descriptor, that one is not inherited. `None`: no thread closes the descriptor.
    pub cookie: Option<u64>,
}

/// Makes the child inherit these descriptors under their numbers. The descriptors of this process do not change.
#[allow(unsafe_code)]
pub fn inherit(command: &mut Command, inherited: Vec<Inherited>) {
    let clear = move || {
        for Inherited { fd, cookie } in &inherited {
            // The standard library makes sockets of its own between the list and the fork. If the child inherited one
            // of those, `spawn` would wait for the end of the child.
            if cookie.is_some() && super::sockets::cookie_of(*fd) != *cookie {
                continue;
            }
            // SAFETY: borrowed for one fcntl, which fails if the descriptor was closed meanwhile.
            let borrowed = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::empty())).ok();
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and allocates nothing.
    unsafe { command.pre_exec(clear) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_number_that_became_another_ones_is_not_inherited() {
        for _ in 0..20 {
            // The next descriptors that anybody opens have these numbers.
            let closed: Vec<UdpSocket> =
                (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bound")).collect();
            let name = |socket: &UdpSocket| {
                let (fd, cookie) = crate::sys::sockets::name_of(socket).expect("a socket");
                Inherited { fd, cookie: Some(cookie) }
            };
            let names = closed.iter().map(name).collect();
            drop(closed);
            let mut command = Command::new("sleep");
            inherit(command.arg("10"), names);
            let mut child = command.spawn().expect("it starts");
            assert!(child.try_wait().expect("ours").is_none(), "spawn waited for the child's end");
            child.kill().expect("it runs");
            child.wait().expect("ours");
        }
    }

    #[test]
    fn a_socket_that_is_still_the_same_is_inherited() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let (fd, cookie) = crate::sys::sockets::name_of(&socket).expect("a socket");
        let mut command = Command::new("sleep");
        inherit(command.arg("10"), vec![Inherited { fd, cookie: Some(cookie) }]);
        let mut child = command.spawn().expect("it starts");
        let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", child.id()));
        let own = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        assert_eq!(link.expect("it has it"), own.expect("ours"));
        child.kill().expect("it runs");
        child.wait().expect("ours");
    }
}
