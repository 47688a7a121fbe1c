//! Sockets that move from one process to another.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use socket2::SockFilter;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Descriptors of one message; the system accepts at most 253 (unix(7)).
const FDS_PER_MESSAGE: usize = 253;

/// Returns the number and the cookie (`SO_COOKIE`) of a socket; no other socket ever has the same cookie.
///
/// # Errors
/// The descriptor is not a socket.
pub fn name_of(socket: &impl AsFd) -> io::Result<(RawFd, u64)> {
    Ok((socket.as_fd().as_raw_fd(), socket2::SockRef::from(socket).cookie()?))
}

/// Returns whether a socket is a Unix-domain one.
///
/// # Errors
/// The descriptor is not a socket.
pub fn is_unix(socket: &impl AsFd) -> io::Result<bool> {
    Ok(socket2::SockRef::from(socket).local_addr()?.domain() == socket2::Domain::UNIX)
}

/// Returns the cookie of an inherited descriptor; `None`: the descriptor is not open, or not a socket.
pub fn cookie_of(fd: RawFd) -> Option<u64> {
    // SAFETY: borrowed for one getsockopt, which fails if the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    socket2::SockRef::from(&borrowed).cookie().ok()
}

/// Waits until one of these open descriptors can be read, or the timeout has passed.
///
/// # Errors
/// The system has no memory.
pub fn wait_readable(fds: &[RawFd], timeout: Duration) -> io::Result<()> {
    // SAFETY: borrowed for one poll, which reports a descriptor that is not open.
    let borrow = |fd: &RawFd| unsafe { BorrowedFd::borrow_raw(*fd) };
    let mut polls: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::new(borrow(fd), PollFlags::POLLIN)).collect();
    // Rounded up, so that a deadline has passed when `poll` returns.
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    match poll(&mut polls, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a descriptor can be read, or its peer has closed it, within the timeout.
///
/// # Errors
/// The system's.
pub fn is_readable(fd: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    match poll(&mut polls, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies an inherited descriptor, which keeps its number and its mark.
///
/// # Errors
/// The descriptor is not open, or there is none left.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one fcntl, which fails if the descriptor is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Takes ownership of an inherited descriptor, and marks it as not inherited by further processes.
///
/// # Errors
/// The descriptor is not open.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one fcntl, which fails if the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the descriptor is open, and the caller takes each descriptor once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lists the open descriptors above the three standard ones.
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
    // The descriptor that read the directory is closed again.
    fds.retain(|fd| is_open(*fd));
    Ok(fds)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: borrowed for one fcntl, which fails if the descriptor is not open.
    fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD).is_ok()
}

/// Has the system drop everything by which a client begins a connection to a listening socket. Connections that are being
/// made are finished, and wait to be accepted. The system of a client tries again after a second.
///
/// # Errors
/// The system has no memory, or no such filter.
pub fn drop_newcomers(socket: &impl AsFd) -> io::Result<()> {
    /// Byte of a TCP header that has the flags.
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // Classic BPF, as in filter(7): code, jumps if true and if false, operand.
    socket2::SockRef::from(socket).attach_filter(&[
        SockFilter::new(0x30, 0, 0, FLAGS_AT),  // load the byte
        SockFilter::new(0x54, 0, 0, SYN | ACK), // and with
        SockFilter::new(0x15, 0, 1, SYN),       // SYN without ACK: the next one, else the one behind it
        SockFilter::new(0x06, 0, 0, 0),         // keep no byte
        SockFilter::new(0x06, 0, 0, u32::MAX),  // keep all
    ])
}

/// Returns whether an inherited descriptor holds a lock of a file (`flock`), which ends when its last copy is closed.
pub fn holds_lock(fd: RawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    info.lines().any(|line| line.starts_with("lock:"))
}

/// Closes an inherited descriptor that has no owner in this process.
pub fn close_unowned(fd: RawFd) {
    // SAFETY: the descriptor was inherited and not taken, so it has no owner.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Sends descriptors, in messages of one byte each.
///
/// # Errors
/// The peer has closed the socket, or reads nothing until the write timeout of `stream`.
pub fn send_fds(stream: &UnixStream, fds: &[RawFd]) -> io::Result<()> {
    for chunk in fds.chunks(FDS_PER_MESSAGE) {
        let rights = [ControlMessage::ScmRights(chunk)];
        let byte = [IoSlice::new(&[1])];
        sendmsg::<UnixAddr>(stream.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    }
    Ok(())
}

/// Receives `count` descriptors.
///
/// # Errors
/// The peer has closed the socket, or the system has lost a descriptor for want of room.
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
