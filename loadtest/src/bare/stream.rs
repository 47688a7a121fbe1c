//! A non-blocking socket with its unfinished input and its unsent output.

use super::wire::{self, Kind, Malformed};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::{ServerConfig, ServerConnection};
use std::io::{BufRead as _, ErrorKind, Read, Write};
use std::sync::Arc;

/// Bytes that wait for a peer that does not read; over it the stream is closed.
const UNSENT_BYTES_MAX: usize = 8 << 20;

/// Bytes kept aside: 8 bytes instead of 24 in every stream that has none.
#[allow(clippy::box_collection)]
pub(super) type Kept = Option<Box<Vec<u8>>>;

/// The stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl From<Malformed> for Gone {
    fn from(_: Malformed) -> Self {
        Self
    }
}

/// 32 bytes while nothing is under way, and rustls's connection with TLS.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    tls: Option<Box<ServerConnection>>,
    partial: Kept,
    unsent: Kept,
}

impl Stream {
    /// Registers for input; output is tried first and waited for only when it does not fit.
    pub(super) fn new(
        mut tcp: TcpStream,
        tls: Option<&Arc<ServerConfig>>,
        registry: &Registry,
        token: Token,
    ) -> std::io::Result<Self> {
        tcp.set_nodelay(true)?;
        let tls = tls.map(|config| ServerConnection::new(Arc::clone(config)));
        let mut tls = tls.transpose().map_err(std::io::Error::other)?.map(Box::new);
        if let Some(tls) = &mut tls {
            tls.set_buffer_limit(None); // what is not sent is bounded below
        }
        registry.register(&mut tcp, token, Interest::READABLE)?;
        Ok(Self { tcp, tls, partial: None, unsent: None })
    }

    /// Reads once, with TLS until the socket is empty; returns the number of bytes put into `input`, 0 when there are none.
    #[inline]
    pub(super) fn read(
        &mut self,
        input: &mut [u8],
        registry: &Registry,
        token: Token,
    ) -> Result<usize, Gone> {
        if self.tls.is_some() {
            return self.read_records(input, registry, token);
        }
        loop {
            match self.tcp.read(input) {
                Ok(0) => return Err(Gone),
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    fn read_records(&mut self, input: &mut [u8], registry: &Registry, token: Token) -> Result<usize, Gone> {
        let Some(mut tls) = self.tls.take() else { return Err(Gone) };
        let mut filled = 0;
        let read = loop {
            match tls.reader().fill_buf() {
                Ok([]) => break Err(Gone),
                Ok(chunk) => {
                    let count = chunk.len().min(input.len() - filled);
                    input[filled..filled + count].copy_from_slice(&chunk[..count]);
                    filled += count;
                    tls.reader().consume(count);
                    if filled == input.len() {
                        break Ok(());
                    }
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break Err(Gone),
            }
            match tls.read_tls(&mut self.tcp) {
                Ok(1..) if tls.process_new_packets().is_ok() => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break Err(Gone),
            }
        };
        // Messages of a handshake, or an answer to a new key.
        let sealed = sealed_by(&mut tls);
        self.tls = Some(tls);
        self.write_to_socket(&sealed, registry, token)?;
        // What came before an end is served first; the next read finds the end again.
        if filled > 0 { Ok(filled) } else { read.map(|()| 0) }
    }

    /// Bytes of an incomplete frame from earlier reads.
    #[inline]
    pub(super) fn take_partial(&mut self) -> Kept {
        self.partial.take()
    }

    /// Keeps what is not a whole frame yet.
    #[inline]
    pub(super) fn keep_partial(&mut self, rest: Vec<u8>) {
        if !rest.is_empty() {
            self.partial = Some(Box::new(rest));
        }
    }

    /// Sends, or keeps what does not fit.
    #[inline]
    pub(super) fn write(&mut self, bytes: &[u8], registry: &Registry, token: Token) -> Result<(), Gone> {
        let Some(tls) = &mut self.tls else { return self.write_to_socket(bytes, registry, token) };
        tls.writer().write_all(bytes).map_err(|_| Gone)?;
        let sealed = sealed_by(tls);
        self.write_to_socket(&sealed, registry, token)
    }

    fn write_to_socket(&mut self, mut bytes: &[u8], registry: &Registry, token: Token) -> Result<(), Gone> {
        if let Some(unsent) = &mut self.unsent {
            unsent.extend_from_slice(bytes);
            return if unsent.len() > UNSENT_BYTES_MAX { Err(Gone) } else { Ok(()) };
        }
        while !bytes.is_empty() {
            match self.tcp.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent = Some(Box::new(bytes.to_vec()));
                    let both = Interest::READABLE | Interest::WRITABLE;
                    return registry.reregister(&mut self.tcp, token, both).map_err(|_| Gone);
                }
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// The socket takes bytes again.
    pub(super) fn handle_writable(&mut self, registry: &Registry, token: Token) -> Result<(), Gone> {
        let Some(unsent) = self.unsent.take() else { return Ok(()) };
        registry.reregister(&mut self.tcp, token, Interest::READABLE).map_err(|_| Gone)?;
        self.write_to_socket(&unsent, registry, token)
    }
}

/// Records that are ready for the socket.
fn sealed_by(tls: &mut ServerConnection) -> Vec<u8> {
    let mut sealed = Vec::new();
    while tls.wants_write() && tls.write_tls(&mut sealed).is_ok() {}
    sealed
}

/// Hands every whole frame in `input`, which follows on `partial`, to `each`; returns the rest.
#[inline]
pub(super) fn each_frame(
    input: &[u8],
    partial: Kept,
    mut each: impl FnMut(Kind, &[u8]) -> Result<(), Malformed>,
) -> Result<Vec<u8>, Gone> {
    let joined;
    let mut rest = input;
    if let Some(mut partial) = partial {
        partial.extend_from_slice(input);
        joined = partial;
        rest = joined.as_slice();
    }
    while let Some((kind, body)) = wire::next(&mut rest)? {
        each(kind, body)?;
    }
    Ok(rest.to_vec()) // no allocation when empty, which is nearly always
}
