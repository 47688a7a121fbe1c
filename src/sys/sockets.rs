//! Sockets that go from one process to another.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Descriptors of one message; the system takes 253 and loses the rest (unix(7)).
const FDS_PER_MESSAGE: usize = 253;

/// Number and cookie of a socket. The cookie (`SO_COOKIE`) is never another socket's.
///
/// # Errors
/// It is no socket.
pub fn name_of(socket: &impl AsFd) -> io::Result<(RawFd, u64)> {
    Ok((socket.as_fd().as_raw_fd(), socket2::SockRef::from(socket).cookie()?))
}

/// The cookie of an inherited descriptor; `None`: it is not open, or no socket.
pub fn cookie_of(fd: RawFd) -> Option<u64> {
    // SAFETY: borrowed for one getsockopt, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    socket2::SockRef::from(&borrowed).cookie().ok()
}

/// Waits until one of these open descriptors can be read, or the time is over.
///
/// # Errors
/// The system's: no memory.
pub fn wait_readable(fds: &[RawFd], timeout: Duration) -> io::Result<()> {
    // SAFETY: borrowed for one poll; one that is not open is reported by it as such.
    let borrow = |fd: &RawFd| unsafe { BorrowedFd::borrow_raw(*fd) };
    let mut polls: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::new(borrow(fd), PollFlags::POLLIN)).collect();
    // Rounded up, so that a deadline is past when it returns.
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    match poll(&mut polls, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes an inherited descriptor, which will not be inherited further.
///
/// # Errors
/// It is not open.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one fcntl, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, and whoever takes over takes each descriptor once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Open descriptors above the standard ones.
///
/// # Errors
/// `/proc` cannot be read.
pub fn open_fds() -> io::Result<Vec<RawFd>> {
    let mut fds = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok())
            && fd > 2
        {
            fds.push(fd);
        }
    }
    // The one that read the directory is closed again.
    fds.retain(|fd| is_open(*fd));
    Ok(fds)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: borrowed for one fcntl, which fails if it is not open.
    fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD).is_ok()
}

/// Closes an inherited descriptor that nobody here owns.
pub fn close_unowned(fd: RawFd) {
    // SAFETY: the caller knows of no owner: it was inherited and not taken.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Sends descriptors along, in messages of one byte each.
///
/// # Errors
/// The other end is gone, or takes nothing for as long as `stream` waits.
pub fn send_fds(stream: &UnixStream, fds: &[RawFd]) -> io::Result<()> {
    for chunk in fds.chunks(FDS_PER_MESSAGE) {
        let rights = [ControlMessage::ScmRights(chunk)];
        let byte = [IoSlice::new(&[1])];
        sendmsg::<UnixAddr>(stream.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    }
    Ok(())
}

/// Receives so many descriptors.
///
/// # Errors
/// The other end is gone, or some were lost on the way.
pub fn receive_fds(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let mut byte = [0];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; FDS_PER_MESSAGE]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        if message.bytes == 0 || message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the system has just given them to this process.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    Ok(fds)
}
