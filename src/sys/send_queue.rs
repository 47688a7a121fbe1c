//! Length of a socket's send queue: written bytes that the peer's system has not acknowledged.

#![allow(unsafe_code, missing_docs)] // docs of what a macro makes

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

mod raw {
    nix::ioctl_read_bad!(siocoutq, nix::libc::TIOCOUTQ, nix::libc::c_int);
}

/// Returns the number of bytes in the send queue, sent or not, that the peer's TCP has not acknowledged (SIOCOUTQ,
/// tcp(7)).
///
/// # Errors
/// `socket` is not a connected socket.
pub fn undelivered(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes one int to `bytes`.
    unsafe { raw::siocoutq(socket.as_fd().as_raw_fd(), &raw mut bytes)? };
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_nobody_took_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        assert_eq!(undelivered(&stream).expect("a socket"), 0);
        stream.set_nonblocking(true).expect("a socket");
        while stream.write(&[0; 8_192]).is_ok() {}
        assert!(undelivered(&stream).expect("a socket") > 0, "the peer's buffer is full");
    }
}
