//! The sockets of one reactor's connections.
//!
//! Example: the shard emits `Reattach { from, to }`. The socket leaves the slot of `from`, epoll reports it
//! under the key `to` from now on, and the slot of `to` holds it.

use super::block::WriteBlock;
use super::listener::Listeners;
use super::stream::{Streams, write_block};
use super::token::Source;
use crate::shard::{self, Gather as _, Shard, Transfer, Written};
use crate::sys::send_queue;
use mio::Registry;
use moorline_net::stream::Stream;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;
use std::collections::{HashSet, VecDeque};
use std::io;

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 64 << 10;

/// Has a reactor's poll report a connection's socket.
///
/// # Errors
/// The system's.
pub fn watch(registry: &Registry, socket: &mut Stream, key: ConnKey) -> io::Result<()> {
    socket.register(registry, Source::Connection(key).into())
}

/// Open sockets by connection, and the lists that they stand in.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Registration with the poll of the thread.
    pub(super) epoll: Registry,
    pub(super) listeners: Listeners,
    pub(super) streams: Streams,
    /// Connections that may have bytes to read.
    pub(super) ready: VecDeque<ConnKey>,
    /// Connections on their way to another reactor.
    pub(super) leaving: VecDeque<(Stream, Box<Transfer>)>,
    /// Connections whose socket was attached since [`super::ReactorMail::List`]; `None`: no list was asked for.
    pub(super) newcomers: Option<HashSet<ConnKey>>,
    /// A connection has ended or left since the latest hand-over.
    pub(super) has_ended: bool,
    /// Sockets to be closed, and connections whose writing half is to be shut down, behind the next hand-over.
    closing: Vec<Stream>,
    half_closing: Vec<ConnKey>,
    /// Time of this turn.
    pub(super) now: Instant,
    write_block: WriteBlock,
}

impl Sockets {
    /// No sockets yet. Watches the listeners.
    ///
    /// # Errors
    /// The system's, when a listener cannot be registered.
    pub(super) fn new(epoll: Registry, mut listeners: Listeners, now: Instant) -> io::Result<Self> {
        listeners.register(&epoll)?;
        Ok(Self {
            epoll,
            listeners,
            streams: Streams::default(),
            ready: VecDeque::new(),
            leaving: VecDeque::new(),
            newcomers: None,
            has_ended: false,
            closing: Vec::new(),
            half_closing: Vec::new(),
            now,
            write_block: WriteBlock::with_capacity(WRITE_BYTES),
        })
    }

    /// Puts a socket into its connection's slot, which must be free, and watches it. False: epoll refuses it.
    pub(super) fn attach(&mut self, key: ConnKey, mut socket: Stream) -> bool {
        let registered = watch(&self.epoll, &mut socket, key);
        self.put(key, socket, registered)
    }

    /// Closes a socket that has no connection.
    pub(super) fn release(&self, socket: &Stream) {
        self.listeners.release(socket, self.now);
    }

    /// Lets clients see the ends of this turn. Called behind a hand-over: a client that sees the end logs in again, and the
    /// worker must have been told of what the client acknowledged by then.
    pub(super) fn finish_closing(&mut self) {
        for key in self.half_closing.drain(..) {
            if let Some(stream) = self.streams.get(key) {
                stream.shutdown_write();
            }
        }
        self.closing.clear();
    }

    /// Notes that a socket may have bytes to read.
    pub(super) fn set_ready(&mut self, key: ConnKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !std::mem::replace(&mut stream.marks().is_listed, true) {
            self.ready.push_back(key);
        }
    }

    fn put(&mut self, key: ConnKey, socket: Stream, registered: io::Result<()>) -> bool {
        self.streams.insert(key, socket);
        if self.newcomers.is_some() && !self.listeners.is_handing_over() {
            self.newcomers = None; // the hot restart that asked has ended
        }
        if let Some(newcomers) = &mut self.newcomers {
            newcomers.insert(key);
        }
        registered.inspect_err(|error| tracing::error!(%error, ?key, "epoll refused a connection")).is_ok()
    }
}

impl shard::Sockets for Sockets {
    fn write(&mut self, key: ConnKey, shard: &Shard) -> Written {
        let Some(stream) = self.streams.get_mut(key) else { return Written::Nothing };
        if !stream.is_writable() {
            return Written::Blocked;
        }
        shard.gather(key, &mut self.write_block, WRITE_BYTES);
        if self.write_block.is_empty() {
            return Written::Nothing;
        }
        let (length, outcome) = (self.write_block.gathered(), write_block(stream, &self.write_block));
        self.write_block.clear(); // drops the shared bodies with their frames
        match outcome {
            Ok(sent) if sent == length && length < WRITE_BYTES => Written::Fully(sent),
            Ok(sent) => Written::Partly(sent),
            Err(_) => Written::Failed,
        }
    }

    fn write_final(&mut self, key: ConnKey, bytes: &[u8]) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.write(bytes).ok(); // the socket is closed next, whatever the outcome
        }
    }

    fn half_close(&mut self, key: ConnKey) {
        self.has_ended = true;
        self.half_closing.push(key);
    }

    fn close(&mut self, key: ConnKey) {
        self.has_ended = true;
        if let Some(socket) = self.streams.remove(key) {
            self.release(&socket);
            self.closing.push(socket);
        }
    }

    fn reattach(&mut self, from: ConnKey, to: ConnKey) -> bool {
        let Some(mut socket) = self.streams.remove(from) else { return false };
        let registered = socket.reregister(&self.epoll, Source::Connection(to).into());
        self.put(to, socket, registered)
    }

    fn move_away(&mut self, key: ConnKey, transfer: Box<Transfer>) {
        let Some(mut socket) = self.streams.remove(key) else { return };
        self.has_ended = true;
        if socket.deregister(&self.epoll).is_ok() {
            self.leaving.push_back((socket, transfer));
        } else {
            self.release(&socket);
        }
    }

    fn set_paused(&mut self, key: ConnKey, is_paused: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.marks().is_held = is_paused;
        if !is_paused {
            self.set_ready(key); // an edge may have passed meanwhile, and will not come again
        }
    }

    fn undelivered(&self, key: ConnKey) -> Option<usize> {
        let stream = self.streams.get(key)?;
        // Unknown counts as something under way: then nothing is sent again.
        Some(send_queue::undelivered(stream).unwrap_or(usize::MAX))
    }
}
