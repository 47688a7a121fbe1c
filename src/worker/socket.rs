//! The socket of a link: a stream that may still be connecting.
//!
//! Run-through: the router orders a connection to 10.0.0.2:7100. `connect` begins it; when the poll reports the
//! socket writable, `try_finish_connect` returns true once, and from then on bytes are read and written.

use mio::event::Event;
use mio::{Registry, Token};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream, StreamKind};
use moorline_net::unix_socket;
use moorline_proto::link::LinkAddress;
use std::io;
use std::path::Path;

/// One connection to a backend.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    is_connected: bool,
}

impl Socket {
    /// Begins to connect.
    pub(super) fn connect(address: &LinkAddress, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut stream = match address {
            LinkAddress::Ip(address) => Stream::connect(*address)?,
            LinkAddress::Unix(path) => Stream::connect_unix(Path::new(path))?,
        };
        stream.register(registry, token)?;
        Ok(Self { stream, is_connected: false })
    }

    /// Takes over a connection that another process has made.
    pub(super) fn adopt(mut stream: Stream, registry: &Registry, token: Token) -> io::Result<Self> {
        stream.register(registry, token)?;
        Ok(Self { stream, is_connected: true })
    }

    /// The connection.
    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Returns whether a process of one of these users is at the other end of a Unix socket; false: it is a TCP socket.
    ///
    /// # Errors
    /// The process is of another user.
    pub(super) fn is_known(&self, uids: &[u32]) -> io::Result<bool> {
        if self.stream.freeze() == StreamKind::Tcp {
            return Ok(false);
        }
        let uid = unix_socket::peer_uid(&self.stream)?;
        if uids.contains(&uid) {
            return Ok(true);
        }
        let why = format!("user id {uid} listens there, which is not in backend.peer_uids");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    /// Returns whether the other end is on this machine, over TCP.
    ///
    /// # Errors
    /// The other end is gone.
    pub(super) fn is_loopback(&self) -> io::Result<bool> {
        if self.stream.freeze() != StreamKind::Tcp {
            return Ok(false);
        }
        Ok(self.stream.peer_addr()?.ip().to_canonical().is_loopback())
    }

    /// Notes what the poll saw.
    pub(super) fn handle_event(&mut self, event: &Event) {
        self.stream.handle_event(event);
    }

    /// Finishes the connect. True: the connection was made by this call.
    ///
    /// # Errors
    /// The connection was refused, or the socket connected to itself.
    pub(super) fn try_finish_connect(&mut self) -> io::Result<bool> {
        if self.is_connected {
            return Ok(false);
        }
        self.is_connected = self.stream.try_finish_connect()?;
        Ok(self.is_connected)
    }

    /// Reads once.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn read(&mut self, block: &mut ReadBlock) -> io::Result<Reading> {
        if self.is_connected { self.stream.read(block) } else { Ok(Reading::Blocked) }
    }

    /// Returns whether a read may bring something.
    pub(super) const fn is_readable(&self) -> bool {
        self.is_connected && self.stream.is_readable()
    }

    /// Returns whether the stream may take bytes.
    pub(super) const fn is_writable(&self) -> bool {
        self.is_connected && self.stream.is_writable()
    }

    /// Sends as much of `bytes` as the stream takes, with at most one write. Returns the number of bytes sent.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_writable() && !bytes.is_empty() { self.stream.write(bytes) } else { Ok(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// A gateway that keeps asking for a port of its own machine gets itself in the end.
    #[test]
    fn a_socket_that_met_itself_is_not_a_backend() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let own = socket.local_addr().expect("bound");
        socket.connect(&own).expect("TCP allows it");
        socket.set_nonblocking(true).expect("nonblocking");
        let stream = Stream::tcp(mio::net::TcpStream::from_std(socket.into()));
        let mut socket = Socket { stream, is_connected: false };
        assert!(socket.try_finish_connect().is_err());
    }
}
