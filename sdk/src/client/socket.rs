//! The client's one socket: connecting, writing the core's bytes, reading the gateway's.
//!
//! Run-through: attempt 1 connects to a gateway. When the socket becomes writable, `try_finish_connect` says
//! whether the connection stands; a socket that connected to itself does not. With TLS it stands when the handshake has
//! ended well. The core's HELLO is appended to `out` and `flush` writes it. At the end `finish` gives the last bytes some
//! time to leave.

use super::tls::Secured;
use super::token::Source;
use crate::core::TlsFault;
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
    /// TLS; `None`: plain TCP.
    secured: Option<Secured>,
    pub(super) attempt: usize,
    /// The socket is connected; with TLS the handshake may be under way.
    is_open: bool,
    /// The core may speak.
    pub(super) is_connected: bool,
    /// Bytes that the core has written and the stream has not taken yet.
    pub(super) out: BytesMut,
}

impl Socket {
    pub(super) fn connect(
        address: SocketAddr,
        attempt: usize,
        secured: Option<Secured>,
        registry: &Registry,
    ) -> io::Result<Self> {
        let mut stream = Stream::connect(address)?;
        stream.register(registry, Source::Socket(attempt).into())?;
        Ok(Self::new(stream, secured, attempt))
    }

    fn new(stream: Stream, secured: Option<Secured>, attempt: usize) -> Self {
        Self { stream, secured, attempt, is_open: false, is_connected: false, out: BytesMut::new() }
    }

    /// Notes what the poll has seen.
    pub(super) fn handle_event(&mut self, event: &Event) -> Edge {
        self.stream.handle_event(event)
    }

    /// Returns whether the connection stands now, and goes on with the handshake.
    pub(super) fn try_finish_connect(&mut self, block: &mut ReadBlock) -> io::Result<bool> {
        if !self.is_open {
            self.is_open = self.stream.try_finish_connect()?;
        }
        self.is_connected = self.is_open && self.shake_hands(block)?;
        Ok(self.is_connected)
    }

    /// Returns whether the handshake has ended well; at once without TLS.
    fn shake_hands(&mut self, block: &mut ReadBlock) -> io::Result<bool> {
        let Some(secured) = &mut self.secured else { return Ok(true) };
        secured.seal(&mut self.out)?; // the first message; the core has written nothing yet
        loop {
            flush_sealed(secured, &mut self.stream)?;
            if secured.is_open().map_err(io::Error::other)? {
                return Ok(true);
            }
            match self.stream.read(block)? {
                Reading::Bytes(bytes) => take(secured, &mut self.stream, &bytes)?,
                Reading::Blocked => return Ok(false),
                Reading::End => return Err(io::Error::other(TlsFault::CutOff)),
            }
        }
    }

    /// Writes until everything is out or the stream takes no more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.is_connected {
            return Ok(());
        }
        if let Some(secured) = &mut self.secured {
            secured.seal(&mut self.out)?;
            self.out = BytesMut::new(); // an idle connection holds no buffer
            return flush_sealed(secured, &mut self.stream);
        }
        while self.stream.is_writable() && !self.out.is_empty() {
            self.stream.write_output(&mut self.out, 0)?; // an idle connection holds no buffer
        }
        Ok(())
    }

    /// Reads what the gateway has said; with TLS the end of a connection that it did not say is a fault.
    pub(super) fn read(&mut self, block: &mut ReadBlock) -> io::Result<Reading> {
        let Some(secured) = &mut self.secured else { return self.stream.read(block) };
        loop {
            if let Some(opened) = secured.poll_opened() {
                return Ok(Reading::Bytes(opened.freeze()));
            }
            if secured.has_left {
                return Ok(Reading::End);
            }
            match self.stream.read(block)? {
                Reading::Bytes(bytes) => take(secured, &mut self.stream, &bytes)?,
                Reading::Blocked => return Ok(Reading::Blocked),
                Reading::End => return Err(io::Error::other(TlsFault::CutOff)),
            }
        }
    }

    /// Ends the connection. What is owed to the gateway gets `linger` to leave; with TLS a goodbye is tried in any case.
    pub(super) fn finish(mut self, registry: &Registry, linger: Duration) {
        let _ = self.stream.deregister(registry);
        let owed = match &mut self.secured {
            _ if !self.is_connected => BytesMut::new(),
            None => self.out,
            Some(secured) => {
                if linger.is_zero() {
                    self.out.clear();
                }
                // Who cannot be told is gone.
                let _ = secured.seal(&mut self.out);
                secured.say_goodbye();
                let _ = flush_sealed(secured, &mut self.stream);
                std::mem::take(&mut secured.sealed)
            }
        };
        self.stream.finish(&owed, linger);
    }
}

/// Takes bytes of the gateway, and answers them if TLS has to.
fn take(secured: &mut Secured, stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    let taken = secured.receive(bytes);
    let flushed = flush_sealed(secured, stream);
    taken.map_err(io::Error::other).and(flushed)
}

fn flush_sealed(secured: &mut Secured, stream: &mut Stream) -> io::Result<()> {
    while stream.is_writable() && !secured.sealed.is_empty() {
        stream.write_output(&mut secured.sealed, 0)?;
    }
    Ok(())
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
        let mut socket = Socket::new(stream, None, 1);
        assert!(socket.try_finish_connect(&mut ReadBlock::default()).is_err() && !socket.is_connected);
    }
}
