//! Non-blocking connect, and the orderly end of a connection.
//!
//! Run-through: a client connects to `127.0.0.1:40000`, where nobody listens. The kernel may choose 40000 as
//! the client's own port; TCP then opens the connection to itself (simultaneous open), and the client would
//! talk to its own echo for ever. [`Stream::try_finish_connect`] compares both ends and refuses:
//!
//! ```text
//! connect(addr)           -> Stream, not writable
//! poll: writable          -> try_finish_connect() = Ok(true)   connected, TCP_NODELAY is set
//!                                                 = Ok(false)  a spurious edge: wait for the next one
//!                                                 = Err(..)    refused, unreachable, or connected to itself
//! ```

use crate::stream::{Blocking, Stream};
use mio::net::TcpStream;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

impl Stream {
    /// Begins to connect. The stream becomes writable when the attempt has ended.
    ///
    /// # Errors
    /// The system's: no descriptor, or no route.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut stream = Self::tcp(TcpStream::connect(address)?);
        stream.block();
        Ok(stream)
    }

    /// Begins to connect to the Unix-domain socket at `path`.
    ///
    /// # Errors
    /// The system's: no descriptor, nobody listens, or the listener's queue is full.
    #[cfg(unix)]
    pub fn connect_unix(path: &std::path::Path) -> io::Result<Self> {
        let mut stream = Self::unix(mio::net::UnixStream::connect(path)?);
        stream.block();
        Ok(stream)
    }

    /// Returns whether the connection stands now.
    ///
    /// # Errors
    /// The attempt failed, or the socket connected to itself.
    pub fn try_finish_connect(&mut self) -> io::Result<bool> {
        if !self.is_writable() {
            return Ok(false);
        }
        if let Some(error) = self.take_error()? {
            return Err(error);
        }
        let Some(socket) = self.as_tcp() else { return Ok(true) };
        match socket.peer_addr() {
            Ok(peer) if socket.local_addr()? == peer => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "nobody listens: the socket connected to itself",
            )),
            Ok(_) => {
                socket.set_nodelay(true)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.block();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the connection: `owed` has at most `linger` to leave, then the peer is told that no more follows.
    /// Blocks the thread meanwhile. Zero `linger`: `owed` is dropped.
    pub fn finish(self, owed: &[u8], linger: Duration) {
        // An error means that the peer is gone: it is owed nothing any more.
        if let Ok(connection) = self.into_blocking() {
            connection.finish(owed, linger).ok();
        }
    }
}

impl Blocking {
    fn finish(self, owed: &[u8], linger: Duration) -> io::Result<()> {
        let is_owed = !owed.is_empty() && !linger.is_zero();
        match self {
            Self::Tcp(mut socket) => {
                if is_owed {
                    socket.set_write_timeout(Some(linger))?;
                    socket.write_all(owed).ok();
                }
                socket.shutdown(Shutdown::Write)
            }
            #[cfg(unix)]
            Self::Unix(mut socket) => {
                if is_owed {
                    socket.set_write_timeout(Some(linger))?;
                    socket.write_all(owed).ok();
                }
                socket.shutdown(Shutdown::Write)
            }
        }
    }
}
