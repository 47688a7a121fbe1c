//! The sockets of one reactor and the edge-trigger contract.
//!
//! An edge says "something changed", once. So a stream remembers what the last edge allowed, until a
//! read or write says otherwise: a short read or `WouldBlock` ends readability, a short write or
//! `WouldBlock` ends writability, and only the next edge restores them. After the peer's end of stream
//! was announced, reading goes on to the end even behind a short read.

use super::block::{SLICES_MAX, WriteBlock};
use crate::read_block::ReadBlock;
use bytes::Bytes;
use mio::net::TcpStream;
use moorline_proto::ids::ConnKey;
use std::io::{self, IoSlice, Read, Write};

/// One client's socket: 12 bytes in its slot.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts, a byte each
pub(super) struct Stream {
    socket: Option<TcpStream>,
    generation: u32,
    pub(super) is_writable: bool,
    /// It stands in the reactor's ready list.
    pub(super) is_ready: bool,
    /// It is not to be read for now.
    pub(super) is_held: bool,
    /// End of stream or an error was announced.
    pub(super) is_read_closed: bool,
}

/// What a read gave.
#[derive(Debug)]
pub(super) enum ReadOutcome {
    /// Bytes, and perhaps more.
    More(Bytes),
    /// Bytes, and no more until the next edge.
    Last(Bytes),
    /// Nothing until the next edge.
    Blocked,
    /// The peer is gone.
    Ended,
}

impl Stream {
    /// Reads once into the block.
    pub(super) fn read(&mut self, block: &mut ReadBlock) -> ReadOutcome {
        let Some(socket) = self.socket.as_mut() else { return ReadOutcome::Ended };
        let room = block.room();
        let asked = room.len();
        loop {
            return match socket.read(room) {
                Ok(0) => ReadOutcome::Ended,
                Ok(count) if count == asked || self.is_read_closed => ReadOutcome::More(block.take(count)),
                Ok(count) => ReadOutcome::Last(block.take(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => ReadOutcome::Ended,
            };
        }
    }

    /// Writes once; answers how many bytes the kernel took.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_by(bytes.len(), |socket| socket.write(bytes))
    }

    /// The same for a block, with the large bodies in it uncopied.
    pub(super) fn write_block(&mut self, block: &WriteBlock) -> io::Result<usize> {
        if let Some(bytes) = block.plain() {
            return self.write(bytes);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = block.slices(&mut slices);
        let length = slices[..count].iter().map(|slice| slice.len()).sum();
        self.write_by(length, |socket| socket.write_vectored(&slices[..count]))
    }

    fn write_by(
        &mut self,
        length: usize,
        mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let Some(socket) = self.socket.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
        loop {
            match write(socket) {
                Ok(count) => {
                    self.is_writable = count == length;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_writable = false;
                    return Ok(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The socket, while it is here.
    pub(super) const fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    /// Bytes that the peer's system has not acknowledged, if the system tells.
    pub(super) fn undelivered(&self) -> Option<usize> {
        crate::sys::send_queue::undelivered(self.socket.as_ref()?).ok()
    }

    /// Tells the peer that no more bytes follow.
    pub(super) fn shutdown_write(&self) {
        if let Some(socket) = &self.socket {
            // Fails only when the peer is gone already, which reading will show.
            socket.shutdown(std::net::Shutdown::Write).ok();
        }
    }
}

/// Sockets by the slot of their connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    open: usize,
}

impl Streams {
    /// Puts a socket at its connection's slot. Panics if the last tenant's socket is still there.
    pub(super) fn insert(&mut self, key: ConnKey, socket: TcpStream) {
        let slot = key.slot() as usize;
        while self.slots.len() <= slot {
            self.slots.push(Stream::vacant());
        }
        let stream = &mut self.slots[slot];
        assert!(stream.socket.is_none(), "a slot is released before it is given away");
        self.open += 1;
        *stream = Stream {
            socket: Some(socket),
            generation: key.generation(),
            is_writable: true,
            ..Stream::vacant()
        };
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Stream> {
        let stream = self.slots.get(key.slot() as usize)?;
        (stream.socket.is_some() && stream.generation == key.generation()).then_some(stream)
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(key.slot() as usize)?;
        (stream.socket.is_some() && stream.generation == key.generation()).then_some(stream)
    }

    /// Takes a socket out; dropping it closes it.
    pub(super) fn remove(&mut self, key: ConnKey) -> Option<TcpStream> {
        let socket = self.get_mut(key)?.socket.take();
        self.open -= 1;
        if self.open == 0 {
            self.slots = Vec::new();
        }
        socket
    }
}

impl Stream {
    const fn vacant() -> Self {
        Self {
            socket: None,
            generation: 0,
            is_writable: false,
            is_ready: false,
            is_held: false,
            is_read_closed: false,
        }
    }
}

// Debug builds of mio keep a check in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Stream>() <= 12, "memory per idle connection is what we are chosen for");
