//! A client's socket with TLS on it.

use mio::event::Event as Readiness;
use mio::net::TcpStream;
use rustls::{ClientConnection, ProtocolVersion};
use std::io::{self, ErrorKind, Read as _, Write as _};

/// A connection: its socket, and TLS by rustls, which shares no code with the gateway's records.
#[derive(Debug)]
pub(super) struct Carrier {
    socket: TcpStream,
    tls: Box<ClientConnection>,
}

impl Carrier {
    /// Takes a socket that is connected or will be.
    pub(super) fn new(socket: TcpStream, mut tls: ClientConnection) -> Self {
        tls.set_buffer_limit(None); // bounded by the client's sends under way
        Self { socket, tls: Box::new(tls) }
    }

    /// Returns whether the socket is connected now; `None`: the event was of before.
    pub(super) fn is_connected(&self, ready: &Readiness) -> Option<bool> {
        let has_failed = ready.is_error() || self.socket.take_error().ok().flatten().is_some();
        if !has_failed && !ready.is_writable() {
            return None;
        }
        match self.socket.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected && !has_failed => None,
            peer => Some(!has_failed && peer.is_ok() && self.socket.set_nodelay(true).is_ok()),
        }
    }

    /// Returns whether the handshake is done, with TLS 1.3.
    pub(super) fn is_secure(&self) -> bool {
        !self.tls.is_handshaking() && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Reads until the socket is empty, since edges come once, and hands over what was encrypted. `buffer` is the loop's.
    /// False: the gateway has closed the connection.
    pub(super) fn read(&mut self, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let is_open = match self.tls.read_tls(&mut self.socket) {
                Ok(len) => len > 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.tls.process_new_packets().map_err(io::Error::other)?;
            loop {
                match self.tls.reader().read(buffer) {
                    Ok(0) => return Ok(false),
                    Ok(len) => take(&buffer[..len]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if !is_open {
                return Ok(false);
            }
        }
    }

    /// Encrypts these bytes behind the others, and writes what the socket takes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(bytes)?;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
