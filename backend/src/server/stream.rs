//! One link's socket, and the block all links are read into.
//!
//! Edge-triggered: a readiness is remembered until the socket says that it would block.

use super::event::LinkId;
use super::links::LinkEnd;
use bytes::{Bytes, BytesMut};
use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

/// Bytes of one read block. Below glibc's mmap threshold, so that blocks are recycled.
const BLOCK_BYTES: usize = 64 << 10;
/// A block with less room than this is left to those who still hold parts of it.
const BLOCK_ROOM_MIN: usize = 8 << 10;

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

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // readiness as the socket reported it, and two marks of the loop
pub(super) struct Socket {
    pub(super) id: LinkId,
    pub(super) peer: SocketAddr,
    pub(super) stream: TcpStream,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// The gateway will send no more than the socket holds: read on until its end.
    pub(super) is_read_closed: bool,
    /// The loop's list of readable sockets holds this one.
    pub(super) is_listed: bool,
    /// The link host asked not to read this socket.
    pub(super) is_paused: bool,
}

impl Socket {
    /// The next bytes; `None` if there are none for now.
    pub(super) fn read(&mut self, block: &mut ReadBlock) -> Result<Option<Bytes>, LinkEnd> {
        loop {
            match block.read(&mut self.stream) {
                Ok(bytes) if bytes.is_empty() => return Err(LinkEnd::Closed),
                Ok(bytes) => {
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

    /// Writes once. Returns the number of bytes that the socket took.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkEnd> {
        while self.is_writable && !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => {
                    self.is_writable = written == bytes.len();
                    return Ok(written);
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(LinkEnd::Io(cause)),
            }
        }
        Ok(0)
    }
}
