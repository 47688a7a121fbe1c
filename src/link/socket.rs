//! The socket of a link: edge-triggered, one output buffer, read through a shared block.

use bytes::{Buf, Bytes, BytesMut};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use moorline_net::read_block::ReadBlock;
use moorline_proto::link::{LinkDecoder, LinkError, LinkFrame};
use std::io::{self, Read, Write};
use std::net::SocketAddr;

/// An empty output buffer larger than this is given back, in bytes.
const OUTPUT_KEEP_BYTES: usize = 256 << 10;

/// What a read brought.
#[derive(Debug)]
pub enum Input {
    /// These bytes; ask again.
    Bytes(Bytes),
    /// Nothing more until the next event.
    Drained,
    /// The backend closed its side.
    Closed,
}

/// One connection to a backend.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    output: BytesMut,
    decoder: LinkDecoder,
    is_readable: bool,
    is_writable: bool,
    /// An end of stream waits behind the data: a short read does not mean drained.
    is_half_closed: bool,
}

impl Socket {
    /// Begins to connect.
    pub fn connect(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self::over(stream))
    }

    /// Takes over a connection that another process has made, with what it had not sent and not understood.
    pub fn adopt(
        mut stream: TcpStream,
        registry: &Registry,
        token: Token,
        output: &[u8],
        partial: &[u8],
    ) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut socket = Self { is_writable: true, ..Self::over(stream) };
        socket.output.extend_from_slice(output);
        let unfinished = socket.decoder.decode(&mut Bytes::copy_from_slice(partial));
        if matches!(unfinished, Ok(None)) { Ok(socket) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// The connection, what waits to be sent, and what was read of the next frame.
    pub fn parts(&self) -> (&TcpStream, &[u8], &[u8]) {
        (&self.stream, &self.output, self.decoder.partial())
    }

    fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            output: BytesMut::new(),
            decoder: LinkDecoder::new(),
            is_readable: false,
            is_writable: false,
            is_half_closed: false,
        }
    }

    /// Notes what the poll saw.
    pub fn handle_event(&mut self, event: &Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_error();
        self.is_half_closed |= event.is_read_closed();
    }

    /// Whether the connection that was begun stands now.
    ///
    /// # Errors
    /// It was refused.
    pub fn try_finish_connect(&mut self) -> io::Result<bool> {
        if !self.is_writable {
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
    pub fn read(&mut self, block: &mut ReadBlock) -> io::Result<Input> {
        if !self.is_readable {
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

    /// The next whole frame of what was read; the same contract as [`LinkDecoder::decode`].
    ///
    /// # Errors
    /// The bytes are no link frames.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<LinkFrame>, LinkError> {
        self.decoder.decode(input)
    }

    /// Where frames are written to; [`Self::flush`] sends them.
    pub const fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Bytes that wait to be sent.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Whether a read would bring something.
    pub const fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether bytes wait that the kernel would take.
    pub fn can_write_more(&self) -> bool {
        self.is_writable && !self.output.is_empty()
    }

    /// Sends what waits, with at most one write. Returns the bytes that went.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> io::Result<usize> {
        if !self.can_write_more() {
            return Ok(0);
        }
        let written = match self.stream.write(&self.output) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error),
        };
        self.output.advance(written);
        self.is_writable = self.output.is_empty();
        if self.output.is_empty() && self.output.capacity() > OUTPUT_KEEP_BYTES {
            self.output = BytesMut::new();
        }
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
