//! One non-blocking byte stream, and the edge-trigger contract.
//!
//! A poll's edge says "something changed" once. A stream remembers the permission that an edge gave until a
//! read or a write takes the permission back:
//!
//! | event | effect |
//! |---|---|
//! | edge: readable, read side closed, or error | readable |
//! | edge: writable, or error | writable |
//! | edge: read side closed, or error | short reads no longer end readability: the end of stream is behind them |
//! | a read fills its whole room | stays readable |
//! | short read, or the read would block | not readable until the next edge |
//! | a read of 0 bytes | end of stream |
//! | short write, or the write would block | not writable until the next edge |
//! | interrupted by a signal (`EINTR`) | repeated at once |
//! | any other error | the stream is broken: its owner closes it |
//!
//! Windows has no edges of its own and mio arms the next one only after a call that would block, so there a
//! short read or write keeps its permission and the next call finds out.
//!
//! Run-through: 100 bytes arrive. `handle_event` sets readable; `read` offers 64 KiB of room, gets 100 bytes,
//! and clears readable without a second `read(2)`. The owner writes 8 KiB and the socket takes 5 KiB: `write`
//! returns 5,120 and clears writable; the owner keeps 3 KiB and waits for the edge.
//!
//! A stream is an enum with one variant per kind of socket. It owns nothing but its descriptor, so
//! [`Stream::freeze`] names only that. TLS and WebSocket stand between a stream and its owner
//! (`crate::layer`), and have a place of their own: the reactor keeps one stream for each idle connection, of
//! 12 bytes, asserted below.

use crate::read_block::ReadBlock;
use bytes::{Buf as _, Bytes, BytesMut};
use mio::event::{Event, Source as _};
use mio::net::TcpStream;
#[cfg(unix)]
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};

/// Short reads and writes take the permission back: the system raises a new edge for what comes later.
const SHORT_ENDS_EDGE: bool = cfg!(not(windows));

/// One non-blocking byte stream.
#[derive(Debug)]
pub struct Stream(Kind);

/// Fields stand in the variants, because Rust then packs them beside the tag.
#[derive(Debug)]
enum Kind {
    Tcp {
        socket: TcpStream,
        tag: u32,
        edges: Edges,
        marks: Marks,
    },
    #[cfg(unix)]
    Unix {
        socket: UnixStream,
        tag: u32,
        edges: Edges,
        marks: Marks,
    },
}

/// Two flags of the loop that owns the stream, in bytes that would be padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The stream stands in the owner's list of streams to read.
    pub is_listed: bool,
    /// The owner does not read the stream for now.
    pub is_held: bool,
}

/// Permissions that the last edges gave.
#[derive(Clone, Copy, Debug, Default)]
struct Edges(u8);

impl Edges {
    const READABLE: u8 = 1;
    const WRITABLE: u8 = 2;
    const READ_CLOSED: u8 = 4;

    const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    const fn set(&mut self, bit: u8, is_set: bool) {
        self.0 = if is_set { self.0 | bit } else { self.0 & !bit };
    }
}

/// Result of one read.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// Bytes. [`Stream::is_readable`] tells whether there may be more.
    Bytes(Bytes),
    /// No bytes until the next edge.
    Blocked,
    /// End of stream.
    End,
}

/// Result of one read into memory of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// This number of bytes.
    Bytes(usize),
    /// No bytes until the next edge.
    Blocked,
    /// End of stream.
    End,
}

/// Permissions that one event gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The stream can be read.
    pub is_readable: bool,
    /// The stream can be written, and could not be before.
    pub became_writable: bool,
}

/// Kind of a stream, for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A TCP socket.
    Tcp,
    /// Unix-domain socket.
    Unix,
}

/// Evaluates one expression for the socket of any kind.
macro_rules! on_socket {
    ($kind:expr, $socket:ident => $value:expr) => {
        match $kind {
            Kind::Tcp { socket: $socket, .. } => $value,
            #[cfg(unix)]
            Kind::Unix { socket: $socket, .. } => $value,
        }
    };
}

/// Names one field of any kind.
macro_rules! field {
    ($kind:expr, $field:ident) => {
        match $kind {
            Kind::Tcp { $field, .. } => $field,
            #[cfg(unix)]
            Kind::Unix { $field, .. } => $field,
        }
    };
}

impl Stream {
    /// Wraps a TCP socket: not yet readable, writable until a write says otherwise.
    pub const fn tcp(socket: TcpStream) -> Self {
        let edges = Edges(Edges::WRITABLE);
        Self(Kind::Tcp { socket, tag: 0, edges, marks: Marks { is_listed: false, is_held: false } })
    }

    /// Wraps a Unix-domain socket, with the permissions of [`Self::tcp`].
    #[cfg(unix)]
    pub const fn unix(socket: UnixStream) -> Self {
        let edges = Edges(Edges::WRITABLE);
        Self(Kind::Unix { socket, tag: 0, edges, marks: Marks { is_listed: false, is_held: false } })
    }

    /// Returns a number of the owner's, such as the generation of the slot that holds the stream; 0 at first.
    pub const fn tag(&self) -> u32 {
        *field!(&self.0, tag)
    }

    /// Sets the owner's number, and resets permissions and marks: the stream has a new place, and the poll
    /// that watches it there raises its edges anew.
    pub const fn place(&mut self, to: u32) {
        *field!(&mut self.0, tag) = to;
        *field!(&mut self.0, edges) = Edges(Edges::WRITABLE);
        *field!(&mut self.0, marks) = Marks { is_listed: false, is_held: false };
    }

    /// Returns the owner's flags.
    pub const fn marks(&mut self) -> &mut Marks {
        field!(&mut self.0, marks)
    }

    /// Returns whether a read may bring bytes or the end of stream.
    pub const fn is_readable(&self) -> bool {
        field!(&self.0, edges).has(Edges::READABLE)
    }

    /// Returns whether the stream may take bytes.
    pub const fn is_writable(&self) -> bool {
        field!(&self.0, edges).has(Edges::WRITABLE)
    }

    /// Has `registry`'s poll tell of both directions under `token`.
    ///
    /// # Errors
    /// The system's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        on_socket!(&mut self.0, socket => socket.register(registry, token, BOTH))
    }

    /// Changes the token of a stream that the poll watches already.
    ///
    /// # Errors
    /// The system's.
    pub fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        on_socket!(&mut self.0, socket => socket.reregister(registry, token, BOTH))
    }

    /// Ends the poll's watch.
    ///
    /// # Errors
    /// The system's.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        on_socket!(&mut self.0, socket => socket.deregister(registry))
    }

    /// Notes the permissions that an event gives.
    pub fn handle_event(&mut self, event: &Event) -> Edge {
        let is_over = event.is_read_closed() || event.is_error();
        self.handle_edge(event.is_readable() || is_over, event.is_writable() || event.is_error(), is_over)
    }

    /// Notes what a poll would tell: bytes may have come, and there may be room.
    #[cfg(test)]
    pub(crate) fn note_edge_for_test(&mut self) {
        self.handle_edge(true, true, false);
    }

    fn handle_edge(&mut self, is_readable: bool, is_writable: bool, is_read_closed: bool) -> Edge {
        let edges = field!(&mut self.0, edges);
        let became_writable = is_writable && !edges.has(Edges::WRITABLE);
        for (bit, is_given) in [
            (Edges::READABLE, is_readable),
            (Edges::WRITABLE, is_writable),
            (Edges::READ_CLOSED, is_read_closed),
        ] {
            if is_given {
                edges.set(bit, true);
            }
        }
        Edge { is_readable, became_writable }
    }

    /// Reads once into the block; makes no system call while the stream is not readable.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn read(&mut self, block: &mut ReadBlock) -> io::Result<Reading> {
        Ok(match self.read_into(block.room())? {
            Filled::Bytes(count) => Reading::Bytes(block.take(count)),
            Filled::Blocked => Reading::Blocked,
            Filled::End => Reading::End,
        })
    }

    /// Reads once into `room`, likewise.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn read_into(&mut self, room: &mut [u8]) -> io::Result<Filled> {
        if !self.is_readable() {
            return Ok(Filled::Blocked);
        }
        let asked = room.len();
        loop {
            let outcome = on_socket!(&mut self.0, socket => socket.read(room));
            let edges = field!(&mut self.0, edges);
            match outcome {
                Ok(0) => return Ok(Filled::End),
                Ok(count) => {
                    let is_short = SHORT_ENDS_EDGE && count < asked && !edges.has(Edges::READ_CLOSED);
                    edges.set(Edges::READABLE, !is_short);
                    return Ok(Filled::Bytes(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    edges.set(Edges::READABLE, false);
                    return Ok(Filled::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets bytes that have come and were not read, at most 32 KiB of them. For a stream that is closed next: with bytes
    /// unread the system resets the connection, and the peer may lose what was written last.
    pub fn forget_unread(&mut self) {
        let mut room = [0; 4 << 10];
        for _ in 0..8 {
            if !matches!(self.read_into(&mut room), Ok(Filled::Bytes(_))) {
                return;
            }
        }
    }

    /// Writes once. Returns how many bytes the stream took; 0 if it takes none for now. Tries even if the
    /// stream is not writable: ask [`Self::is_writable`] first where a system call for nothing matters.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_with(bytes.len(), |kind| on_socket!(kind, socket => socket.write(bytes)))
    }

    /// Writes once, from several pieces of `length` bytes in all. Returns how many bytes the stream took.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn write_vectored(&mut self, pieces: &[IoSlice<'_>], length: usize) -> io::Result<usize> {
        self.write_with(length, |kind| on_socket!(kind, socket => socket.write_vectored(pieces)))
    }

    fn write_with(
        &mut self,
        length: usize,
        mut write: impl FnMut(&mut Kind) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let outcome = write(&mut self.0);
            let edges = field!(&mut self.0, edges);
            match outcome {
                Ok(count) => {
                    edges.set(Edges::WRITABLE, count == length || (!SHORT_ENDS_EDGE && count > 0));
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    edges.set(Edges::WRITABLE, false);
                    return Ok(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes `output` with at most one system call, and keeps in it what the stream did not take. Returns
    /// how many bytes the stream took. An emptied buffer of more than `kept_max` bytes is given back.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn write_output(&mut self, output: &mut BytesMut, kept_max: usize) -> io::Result<usize> {
        if !self.is_writable() || output.is_empty() {
            return Ok(0);
        }
        let count = self.write(output)?;
        output.advance(count);
        if output.is_empty() && output.capacity() > kept_max {
            *output = BytesMut::new();
        }
        Ok(count)
    }

    /// Sends small writes at once (`TCP_NODELAY`); other kinds do so anyway.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.as_tcp().map_or(Ok(()), |socket| socket.set_nodelay(true))
    }

    /// Tells the peer that no more bytes follow.
    pub fn shutdown_write(&self) {
        // Fails only when the peer is gone already, which a read will show.
        on_socket!(&self.0, socket => socket.shutdown(Shutdown::Write)).ok();
    }

    /// Ends the connection for every process that has the descriptor.
    pub fn shutdown_both(&self) {
        // Fails only when the peer is gone already.
        on_socket!(&self.0, socket => socket.shutdown(Shutdown::Both)).ok();
    }

    /// Returns the peer's address.
    ///
    /// # Errors
    /// The peer is gone, or the stream is not one of an IP network.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Kind::Tcp { socket, .. } => socket.peer_addr(),
            #[cfg(unix)]
            Kind::Unix { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        on_socket!(&self.0, socket => socket.take_error())
    }

    /// Returns the TCP socket; `None` for other kinds.
    pub(crate) const fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.0 {
            Kind::Tcp { socket, .. } => Some(socket),
            #[cfg(unix)]
            Kind::Unix { .. } => None,
        }
    }

    pub(crate) const fn block(&mut self) {
        field!(&mut self.0, edges).set(Edges::WRITABLE, false);
    }

    /// Returns a blocking handle to the connection.
    pub(crate) fn into_blocking(self) -> io::Result<Blocking> {
        match self.0 {
            Kind::Tcp { socket, .. } => {
                let socket = std::net::TcpStream::from(socket);
                socket.set_nonblocking(false)?;
                Ok(Blocking::Tcp(socket))
            }
            #[cfg(unix)]
            Kind::Unix { socket, .. } => {
                let socket = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(socket));
                socket.set_nonblocking(false)?;
                Ok(Blocking::Unix(socket))
            }
        }
    }
}

/// A connection whose calls block, at its end.
pub(crate) enum Blocking {
    Tcp(std::net::TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

#[cfg(unix)]
mod descriptors {
    //! A stream's descriptor, and what a snapshot needs to make the stream again.

    use super::{Kind, Stream, StreamKind};
    use mio::net::{TcpStream, UnixStream};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

    impl AsFd for Stream {
        fn as_fd(&self) -> BorrowedFd<'_> {
            on_socket!(&self.0, socket => socket.as_fd())
        }
    }

    impl AsRawFd for Stream {
        fn as_raw_fd(&self) -> RawFd {
            on_socket!(&self.0, socket => socket.as_raw_fd())
        }
    }

    impl Stream {
        /// Returns what the stream owns beside its descriptor: the kind, and nothing more for a plain stream.
        pub const fn freeze(&self) -> StreamKind {
            match self.0 {
                Kind::Tcp { .. } => StreamKind::Tcp,
                Kind::Unix { .. } => StreamKind::Unix,
            }
        }

        /// Makes the stream again from the descriptor that another process has handed over. The descriptor
        /// is non-blocking already: the flag belongs to the socket, not to the process.
        pub fn thaw(kind: StreamKind, fd: OwnedFd) -> Self {
            match kind {
                StreamKind::Tcp => Self::tcp(TcpStream::from(fd)),
                StreamKind::Unix => Self::unix(UnixStream::from(fd)),
            }
        }
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

// Debug builds of mio keep a check in each socket.
#[cfg(all(unix, not(debug_assertions)))]
const _: () = {
    assert!(
        size_of::<Option<Stream>>() <= 12,
        "memory per idle connection is what the gateway is chosen for"
    );
};

#[cfg(test)]
mod tests;
