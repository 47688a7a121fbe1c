//! One link's socket, and the block all links are read into.
//!
//! Edge-triggered: a readiness is remembered until the socket says that it would block.

use super::event::{GatewayId, LinkId};
use bytes::{Bytes, BytesMut};
use mio::net::TcpStream;
use moorline_proto::link::{LinkDecoder, LinkError};
use moorline_proto::time::Instant;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

/// Bytes of one read block. Below glibc's mmap threshold, so that blocks are recycled.
const BLOCK_BYTES: usize = 64 << 10;
/// A block with less room than this is left to those who still hold parts of it.
const BLOCK_ROOM_MIN: usize = 8 << 10;
/// An emptied output buffer larger than this is given back.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// Where bytes are read to. Frames are slices of it: nothing is copied on the way to the handler.
#[derive(Debug, Default)]
pub(super) struct ReadBlock(BytesMut);

impl ReadBlock {
    fn read(&mut self, from: &mut TcpStream) -> io::Result<Bytes> {
        if self.0.len() < BLOCK_ROOM_MIN {
            self.0 = BytesMut::zeroed(BLOCK_BYTES);
        }
        let read = from.read(&mut self.0)?;
        Ok(self.0.split_to(read).freeze())
    }

    fn room(&self) -> usize {
        self.0.len()
    }
}

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// HELLO must come before this.
    Greeting(Instant),
    /// It speaks for this gateway.
    Open(GatewayId),
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // what the socket last said: each by itself
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) peer: SocketAddr,
    pub(super) stream: TcpStream,
    pub(super) decoder: LinkDecoder,
    pub(super) phase: Phase,
    pub(super) heard_at: Instant,
    pub(super) sent_at: Instant,
    /// Over `output_max` since.
    pub(super) over_since: Option<Instant>,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// The peer will say no more than what is in the socket: read on until its end.
    pub(super) is_read_closed: bool,
    pub(super) is_listed: bool,
}

/// Why a link ended.
#[derive(Debug)]
pub(super) enum LinkEnd {
    Closed,
    Io(io::Error),
    Protocol(LinkError),
    NoHello,
    Silent,
    Stalled,
    Refused(&'static str),
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the gateway"),
            Self::Io(cause) => write!(f, "socket failed: {cause}"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::NoHello => f.write_str("no HELLO within link.hello_timeout"),
            Self::Silent => f.write_str("nothing heard within link.silence_timeout"),
            Self::Stalled => f.write_str("over link.output_max for link.stall_timeout: it does not read"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

impl From<LinkError> for LinkEnd {
    fn from(error: LinkError) -> Self {
        Self::Protocol(error)
    }
}

impl Link {
    /// The next bytes; `None` if there are none for now.
    pub(super) fn read(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Option<Bytes>, LinkEnd> {
        loop {
            match block.read(&mut self.stream) {
                Ok(bytes) if bytes.is_empty() => return Err(LinkEnd::Closed),
                Ok(bytes) => {
                    self.heard_at = now;
                    // A short read has emptied the socket: the next byte raises a new edge.
                    self.is_readable = block.room() == 0 || self.is_read_closed;
                    return Ok(Some(bytes));
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    return Ok(None);
                }
                Err(cause) => return Err(LinkEnd::Io(cause)),
            }
        }
    }

    /// One write; what the socket does not take stays in `buffer`.
    pub(super) fn write(&mut self, buffer: &mut BytesMut, now: Instant) -> Result<(), LinkEnd> {
        if !self.is_writable || buffer.is_empty() {
            return Ok(());
        }
        match self.stream.write(buffer) {
            Ok(written) if written == buffer.len() => {
                self.sent_at = now;
                buffer.clear();
                if buffer.capacity() > BUFFER_KEPT_MAX {
                    *buffer = BytesMut::new();
                }
            }
            Ok(written) => {
                self.sent_at = now;
                self.is_writable = false;
                bytes::Buf::advance(buffer, written);
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
            // Rare enough to wait for the next turn's flush.
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(LinkEnd::Io(cause)),
        }
        Ok(())
    }
}
