//! A non-blocking socket with its unfinished input and its unsent output.

use super::wire::{self, Kind, Malformed};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use std::io::{ErrorKind, Read, Write};

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

/// 24 bytes while nothing is under way.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    partial: Kept,
    unsent: Kept,
}

impl Stream {
    /// Registers for input; output is tried first and waited for only when it does not fit.
    pub(super) fn new(mut tcp: TcpStream, registry: &Registry, token: Token) -> std::io::Result<Self> {
        tcp.set_nodelay(true)?;
        registry.register(&mut tcp, token, Interest::READABLE)?;
        Ok(Self { tcp, partial: None, unsent: None })
    }

    /// Reads once; returns the number of bytes put into `input`, 0 when the socket is empty.
    #[inline]
    pub(super) fn read(&mut self, input: &mut [u8]) -> Result<usize, Gone> {
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
    pub(super) fn write(&mut self, mut bytes: &[u8], registry: &Registry, token: Token) -> Result<(), Gone> {
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
        self.write(&unsent, registry, token)
    }
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
