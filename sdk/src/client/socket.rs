//! The client's one socket: connecting, writing the core's bytes, reading the gateway's.
//!
//! Run-through: attempt 1 connects to a gateway. When the socket becomes writable, `try_finish_connect` says
//! whether the connection stands; a socket that connected to itself does not. The core's HELLO is appended to
//! `out` and `flush` writes it. At the end `finish` gives the last bytes some time to leave.

use super::token::Source;
use bytes::BytesMut;
use mio::Registry;
use mio::event::Event;
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Edge, Reading, Stream};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    pub(super) attempt: usize,
    pub(super) is_connected: bool,
    /// Bytes that the core has written and the stream has not taken yet.
    pub(super) out: BytesMut,
}

impl Socket {
    pub(super) fn connect(address: SocketAddr, attempt: usize, registry: &Registry) -> io::Result<Self> {
        let mut stream = Stream::connect(address)?;
        stream.register(registry, Source::Socket(attempt).into())?;
        Ok(Self { stream, attempt, is_connected: false, out: BytesMut::new() })
    }

    /// Notes what the poll has seen.
    pub(super) fn handle_event(&mut self, event: &Event) -> Edge {
        self.stream.handle_event(event)
    }

    /// Returns whether the connection stands now.
    pub(super) fn try_finish_connect(&mut self) -> io::Result<bool> {
        self.is_connected = self.stream.try_finish_connect()?;
        Ok(self.is_connected)
    }

    /// Writes until everything is out or the stream takes no more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.is_connected && self.stream.is_writable() && !self.out.is_empty() {
            self.stream.write_output(&mut self.out, 0)?; // an idle connection holds no buffer
        }
        Ok(())
    }

    pub(super) fn read(&mut self, block: &mut ReadBlock) -> io::Result<Reading> {
        self.stream.read(block)
    }

    /// Ends the connection. What is owed to the gateway gets `linger` to leave.
    pub(super) fn finish(mut self, registry: &Registry, linger: Duration) {
        let _ = self.stream.deregister(registry);
        let owed: &[u8] = if self.is_connected { &self.out } else { &[] };
        self.stream.finish(owed, linger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that keeps asking for a port of its own machine gets itself in the end.
    #[test]
    fn a_client_that_connected_to_itself_has_no_gateway() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let own = socket.local_addr().expect("bound");
        socket.connect(&own).expect("TCP allows it");
        socket.set_nonblocking(true).expect("nonblocking");
        let stream = Stream::tcp(mio::net::TcpStream::from_std(socket.into()));
        let mut socket = Socket { stream, attempt: 1, is_connected: false, out: BytesMut::new() };
        assert!(socket.try_finish_connect().is_err() && !socket.is_connected);
    }
}
