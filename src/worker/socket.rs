//! The socket of a link: edge-triggered, read through a shared block.

use bytes::Bytes;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use moorline_net::read_block::ReadBlock;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

/// What a read brought.
#[derive(Debug)]
pub(super) enum Input {
    /// These bytes; ask again.
    Bytes(Bytes),
    /// Nothing more until the next event.
    Drained,
    /// The backend closed its side.
    Closed,
}

/// Progress of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Connected,
}

/// One connection to a backend.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    stage: Stage,
    is_readable: bool,
    is_writable: bool,
    /// An end of stream waits behind the data: a short read does not mean drained.
    is_half_closed: bool,
}

impl Socket {
    /// Begins to connect.
    pub(super) fn connect(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self::over(stream))
    }

    /// Takes over a connection that another process has made.
    pub(super) fn adopt(mut stream: TcpStream, registry: &Registry, token: Token) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stage: Stage::Connected, is_writable: true, ..Self::over(stream) })
    }

    /// The connection.
    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            stage: Stage::Connecting,
            is_readable: false,
            is_writable: false,
            is_half_closed: false,
        }
    }

    /// Notes what the poll saw.
    pub(super) fn handle_event(&mut self, event: &Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_error();
        self.is_half_closed |= event.is_read_closed();
    }

    /// Finishes the connect. True: the connection was made by this call.
    ///
    /// # Errors
    /// It was refused.
    pub(super) fn try_finish_connect(&mut self) -> io::Result<bool> {
        if self.stage == Stage::Connected || !self.is_writable {
            return Ok(false);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            // A free port of this machine may be given to the connection that asks for that very port.
            Ok(peer) if self.stream.local_addr()? == peer => Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(_) => {
                self.stream.set_nodelay(true)?;
                self.stage = Stage::Connected;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.is_writable = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads once.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn read(&mut self, block: &mut ReadBlock) -> io::Result<Input> {
        if !self.is_readable() {
            return Ok(Input::Drained);
        }
        let room = block.room();
        let wanted = room.len();
        match self.stream.read(room) {
            Ok(0) => Ok(Input::Closed),
            Ok(read) => {
                // Edge-triggered: a short read has emptied the socket, the next byte is a new event.
                self.is_readable = read == wanted || self.is_half_closed;
                Ok(Input::Bytes(block.take(read)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(Input::Drained)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Input::Bytes(Bytes::new())),
            Err(error) => Err(error),
        }
    }

    /// Whether a read would bring something.
    pub(super) const fn is_readable(&self) -> bool {
        self.is_readable && matches!(self.stage, Stage::Connected)
    }

    /// Whether the kernel would take bytes.
    pub(super) const fn is_writable(&self) -> bool {
        self.is_writable && matches!(self.stage, Stage::Connected)
    }

    /// Sends as much of `bytes` as the kernel takes, with at most one write. Returns the number of bytes sent.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_writable() || bytes.is_empty() {
            return Ok(0);
        }
        let written = match self.stream.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error),
        };
        self.is_writable = written == bytes.len();
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway that keeps asking for a port of its own machine gets itself in the end.
    #[test]
    fn a_socket_that_met_itself_is_no_backend() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let own = socket.local_addr().expect("bound");
        socket.connect(&own).expect("TCP allows it");
        socket.set_nonblocking(true).expect("nonblocking");
        let stream = TcpStream::from_std(socket.into());
        let mut socket = Socket { is_writable: true, ..Socket::over(stream) };
        assert!(socket.try_finish_connect().is_err());
    }
}
