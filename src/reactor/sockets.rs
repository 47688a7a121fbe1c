//! The sockets of one reactor's connections.
//!
//! Example: the shard emits `Reattach { from, to }`. The socket leaves the slot of `from`, epoll reports it
//! under the key `to` from now on, and the slot of `to` holds it.

use super::block::WriteBlock;
use super::listener::Listeners;
use super::stream::{Socket, Streams, write_block};
use super::token::Source;
use super::warm::Warm;
use crate::shard::{self, Gather as _, Shard, Transfer, Written};
use crate::sys::send_queue;
use bytes::Bytes;
use mio::Registry;
use moorline_net::layer::{Layer, LayerError};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream};
use moorline_proto::frame::{Command, Decoder};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::{Close, Kick};
use moorline_proto::time::Instant;
use prost::Message as _;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice};

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
    pub(super) leaving: VecDeque<(Socket, Box<Transfer>)>,
    /// Connections whose socket was attached since [`super::ReactorMail::List`]; `None`: no list was asked for.
    pub(super) newcomers: Option<HashSet<ConnKey>>,
    /// A connection has ended or left since the latest hand-over.
    pub(super) has_ended: bool,
    /// Sockets to be closed behind the next hand-over, each with the close code that it was told, or 0.
    closing: Vec<(Socket, u32)>,
    /// Connections whose writing half is to be shut down then.
    half_closing: Vec<ConnKey>,
    /// Close codes of connections that have a layer and end.
    codes: HashMap<ConnKey, u32>,
    /// Connections whose layer has memory that it needs only in use.
    warm: Warm,
    /// Connections ended because their peer does not keep to TLS or to the WebSocket protocol.
    pub(super) layer_faults: u64,
    /// Time of this turn.
    pub(super) now: Instant,
    write_block: WriteBlock,
    /// Encrypted records of one write.
    scratch: Vec<u8>,
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
            codes: HashMap::new(),
            warm: Warm::default(),
            layer_faults: 0,
            now,
            write_block: WriteBlock::with_capacity(WRITE_BYTES),
            scratch: Vec::new(),
        })
    }

    /// Puts a socket into its connection's slot, which must be free, and watches it. False: epoll refuses it.
    pub(super) fn attach(&mut self, key: ConnKey, mut socket: Socket) -> bool {
        let registered = watch(&self.epoll, &mut socket.stream, key);
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
            if let Some((stream, layer)) = self.streams.pair(key) {
                let code = self.codes.get(&key).copied().unwrap_or_default();
                if let Some(layer) = layer {
                    layer.shut(stream, code);
                }
                stream.shutdown_write();
            }
        }
        for (Socket { mut stream, layer }, code) in self.closing.drain(..) {
            if let Some(mut layer) = layer {
                layer.shut(&mut stream, code);
                stream.forget_unread(); // so that an alert arrives
            }
        }
    }

    /// Reads once from a connection, through its layer.
    ///
    /// # Errors
    /// The connection is broken, or its peer does not keep to the protocol of the layer.
    pub(super) fn read(&mut self, key: ConnKey, block: &mut ReadBlock) -> Result<Reading, LayerError> {
        let Some((stream, layer)) = self.streams.pair(key) else { return Ok(Reading::Blocked) };
        let Some(layer) = layer else { return Ok(stream.read(block)?) };
        let reading = layer.read(stream, block, self.now);
        if layer.has_keys() {
            self.warm.note(key, self.now, &mut self.streams);
        }
        self.layer_faults += u64::from(matches!(reading, Err(LayerError::Tls(_) | LayerError::WebSocket(_))));
        reading
    }

    /// Returns whether a read may bring something without an edge.
    pub(super) fn wants_read(&mut self, key: ConnKey) -> bool {
        let Some((stream, layer)) = self.streams.pair(key) else { return false };
        stream.is_readable() || layer.is_some_and(|layer| layer.wants_read())
    }

    /// Gives back the memory of layers that were not used for a while.
    pub(super) fn cool(&mut self) {
        self.warm.cool(self.now, &mut self.streams);
    }

    /// Goes on behind a freeze, which has made all layers give back what they kept.
    pub(super) fn resume(&mut self, now: Instant) {
        self.now = now;
        self.newcomers = None;
        self.warm.forget_kept();
    }

    /// Notes that a socket may have bytes to read.
    pub(super) fn set_ready(&mut self, key: ConnKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !std::mem::replace(&mut stream.marks().is_listed, true) {
            self.ready.push_back(key);
        }
    }

    fn put(&mut self, key: ConnKey, mut socket: Socket, registered: io::Result<()>) -> bool {
        if let Some(layer) = &mut socket.layer {
            layer.cool(); // another reactor may have warmed it
        }
        let wants_read = socket.layer.as_ref().is_some_and(Layer::wants_read);
        self.streams.insert(key, socket);
        if wants_read {
            self.set_ready(key); // no edge will tell
        }
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
        let Some((stream, mut layer)) = self.streams.pair(key) else { return Written::Nothing };
        if !stream.is_writable() {
            return Written::Blocked;
        }
        if let Some(layer) = &mut layer {
            match layer.flush(stream) {
                Ok(true) if !matches!(layer, Layer::Opening(_)) => {}
                Ok(_) => return Written::Blocked,
                Err(_) => return Written::Failed,
            }
        }
        shard.gather(key, &mut self.write_block, WRITE_BYTES);
        if self.write_block.is_empty() {
            return Written::Nothing;
        }
        let has_keys = layer.as_ref().is_some_and(|layer| layer.has_keys());
        let length = self.write_block.gathered();
        let outcome = write_block(stream, layer, &self.write_block, &mut self.scratch);
        self.write_block.clear(); // drops the shared bodies with their frames
        if has_keys {
            self.warm.note(key, self.now, &mut self.streams);
        }
        match outcome {
            Ok(sent) if sent == length && length < WRITE_BYTES => Written::Fully(sent),
            Ok(sent) => Written::Partly(sent),
            Err(_) => Written::Failed,
        }
    }

    fn write_final(&mut self, key: ConnKey, bytes: &[u8]) {
        let Some((stream, layer)) = self.streams.pair(key) else { return };
        // The socket is closed next, whatever the outcome.
        match layer {
            None => _ = stream.write(bytes),
            Some(layer) => {
                layer.write(stream, &[IoSlice::new(bytes)], bytes.len(), &mut self.scratch).ok();
                if let Some(code) = close_code(bytes) {
                    self.codes.insert(key, code);
                }
            }
        }
    }

    fn set_code(&mut self, key: ConnKey, code: u32) {
        if matches!(self.streams.pair(key), Some((_, Some(_)))) {
            self.codes.insert(key, code);
        }
    }

    fn half_close(&mut self, key: ConnKey) {
        self.has_ended = true;
        self.half_closing.push(key);
    }

    fn close(&mut self, key: ConnKey) {
        self.has_ended = true;
        let code = self.codes.remove(&key).unwrap_or_default();
        if let Some(socket) = self.streams.remove(key) {
            self.release(&socket.stream);
            self.closing.push((socket, code));
        }
    }

    fn reattach(&mut self, from: ConnKey, to: ConnKey) -> bool {
        let Some(mut socket) = self.streams.remove(from) else { return false };
        let registered = socket.stream.reregister(&self.epoll, Source::Connection(to).into());
        self.put(to, socket, registered)
    }

    fn move_away(&mut self, key: ConnKey, transfer: Box<Transfer>) {
        let Some(mut socket) = self.streams.remove(key) else { return };
        self.has_ended = true;
        if socket.stream.deregister(&self.epoll).is_ok() {
            self.leaving.push_back((socket, transfer));
        } else {
            self.release(&socket.stream);
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
        let undelivered = send_queue::undelivered(stream).unwrap_or(usize::MAX);
        Some(undelivered.saturating_add(self.streams.pending(key)))
    }
}

/// Returns the code of an encoded CLOSE or KICK, which ends a connection.
fn close_code(frame: &[u8]) -> Option<u32> {
    let frame = Decoder::new().decode(&mut Bytes::copy_from_slice(frame), u32::MAX).ok()??;
    match frame.header.command {
        Command::Close => Close::decode(frame.body).ok().map(|close| close.code),
        Command::Kick => Kick::decode(frame.body).ok().map(|kick| kick.code),
        _ => None,
    }
}
