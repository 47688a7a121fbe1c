//! A reactor's snapshot, from which it goes on in another process (`docs/handover.md`).
//!
//! Example: the gateway is upgraded with alice connected. The reactor writes its shard and, for alice's key, the
//! number of her socket; the child takes the inherited socket under that number and watches it.

use super::listener::address_of;
use super::stream::{Socket, Streams};
use super::token::Source;
use super::{Reactor, ReactorParts, is_handshake};
use crate::shard::{Outputs, Settings, Shard};
use crate::snapshot::{Item, LayerRecord, Records, Section, SnapshotError, SocketRef, SocketsRecord};
use crate::sys::sockets as system_sockets;
use crossbeam_channel::Sender;
use mio::event::Event;
use mio::{Events, Poll, Registry};
use moorline_net::layer::{FrozenLayer, Layer};
use moorline_net::stream::Stream;
use moorline_proto::connection::server::State;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

/// Returns a connection's socket, watched by the reactor's poll.
pub type TakeWatched<'a> = dyn FnMut(&Registry, ConnKey, &SocketRef) -> io::Result<Stream> + 'a;

/// Descriptors in one record at most.
const SOCKETS_PER_RECORD: usize = 4096;
/// Bytes of the record of an idle connection with TLS.
const LAYER_BYTES_USUAL: usize = 128;
/// Events that a new process takes at once before the pause.
const FIRST_EVENTS: usize = 1024;

/// Takes the first events of sockets that a new process watches, and gives them to `note`.
///
/// Every socket that is watched anew tells at once that it can be written. Eight thousand such events would be the first
/// thing that the reactors do after the pause, before the messages that wait. A socket that can be read tells that too, and
/// the reactor goes on with it; bytes that come later are another event.
///
/// # Errors
/// The system's.
pub fn note_first_events(
    poll: &mut Poll,
    watched: usize,
    note: &mut dyn FnMut(ConnKey, &Event),
) -> io::Result<()> {
    let mut events = Events::with_capacity(FIRST_EVENTS);
    // Sockets in use tell again and again.
    for _ in 0..=watched / FIRST_EVENTS + 1 {
        match poll.poll(&mut events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            outcome => outcome?,
        }
        for event in &events {
            if let Source::Connection(key) = Source::from(event.token()) {
                note(key, event);
            }
        }
        if events.is_empty() {
            break;
        }
    }
    Ok(())
}

impl Reactor {
    /// Writes the shard and the names of its sockets.
    ///
    /// # Errors
    /// A socket that cannot be named.
    pub(super) fn write_snapshot(&mut self, out: &mut Section) -> io::Result<()> {
        let Self {
            shard,
            outputs: _,  // performed and handed over, like everything in the mailbox
            executor: _, // the shard emits the waiting writes again
            sockets,
            openings: _, // their bytes are in their layers, and what they wait for begins anew
            handshakes,
            ease: _,
            clock: _,
            inbox: _,
            reactors: _,
            outboxes: _,
            counter_set: _,
            limit_log: _,
            kept: _, // noted in each turn
            kept_max: _,
            read_budget: _,
            accept_budget: _,
            read_block: _,
            turns: _,
            outcomes_due: _,
            is_stopping: _,
        } = self;
        shard.freeze(out);
        handshakes.freeze(|key| is_handshake(shard, key), out);
        let keys: Vec<ConnKey> = shard.with_sockets().collect();
        for keys in keys.chunks(SOCKETS_PER_RECORD) {
            let mut record = SocketsRecord::default();
            for key in keys {
                let stream = sockets.streams.get(*key).ok_or(io::ErrorKind::NotConnected)?;
                let is_known = sockets.newcomers.as_ref().is_some_and(|newcomers| !newcomers.contains(key));
                let (fd, cookie) =
                    if is_known { (stream.as_raw_fd(), 0) } else { system_sockets::name_of(stream)? };
                record.keys.push(key.as_u64());
                record.fds.push(fd);
                record.cookies.push(cookie);
            }
            out.put(Item::Sockets(record));
        }
        let layered = sockets.streams.layered(shard.id());
        out.reserve(layered.len() * LAYER_BYTES_USUAL);
        for key in layered {
            let Some((_, Some(layer))) = sockets.streams.pair(key) else { continue };
            let frozen = layer.freeze().map_err(io::Error::other)?;
            out.put(Item::Layer(Box::new(LayerRecord::new(key.as_u64(), frozen))));
        }
        Ok(())
    }

    /// Goes on with the layers: behind a restart that was undone, or in the process that takes over.
    pub(super) fn resume_layers(&mut self) {
        let (now, shard) = (self.sockets.now, self.shard.id());
        for key in self.sockets.streams.layered(shard) {
            let Some((_, Some(layer))) = self.sockets.streams.pair(key) else { continue };
            layer.resume();
            let (is_opening, wants_read) = (matches!(layer, Layer::Opening(_)), layer.wants_read());
            if layer.pending() > 0 {
                self.executor.handle_writable(key);
            }
            if is_opening {
                self.openings.go_on(now, key);
            }
            if is_opening || wants_read {
                self.sockets.set_ready(key);
            }
        }
    }

    /// Lists all open sockets. Sockets attached after this call are recorded, so that the snapshot can mark
    /// them as not yet inherited.
    pub(super) fn list(&mut self, reply: &Sender<Vec<(ConnKey, RawFd)>>) {
        let fd_of = |key: ConnKey| Some((key, self.sockets.streams.get(key)?.as_raw_fd()));
        let all = self.shard.with_sockets().filter_map(fd_of).collect();
        if reply.try_send(all).is_ok() {
            self.sockets.newcomers = Some(HashSet::new());
        }
    }

    /// Number of connections in the middle of a TLS handshake, which the process before could not hand over.
    pub fn handshakes_lost(&self) -> usize {
        self.openings.lost()
    }

    /// Stops watching a socket that has no connection.
    pub fn unwatch(&self, socket: &mut Stream) {
        socket.deregister(&self.sockets.epoll).ok(); // it may be gone already
    }

    /// Reads a reactor from another process's snapshot. Its sockets are watched, and not yet read or written.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn thaw(
        poll: &Poll,
        settings: Settings,
        parts: ReactorParts,
        now: Instant,
        records: &mut Records,
        take: &mut TakeWatched<'_>,
    ) -> Result<Self, SnapshotError> {
        let mut outputs = Outputs::new(settings.workers);
        let (mut sockets, mut layers, mut named) = (Vec::new(), Layers::new(), Vec::new());
        let keep = |item| match item {
            Item::Sockets(record) => {
                sockets.push(record);
                Ok(())
            }
            Item::Handshakes(record) => {
                named.push(record);
                Ok(())
            }
            Item::Layer(record) => {
                read_layer(&mut layers, &sockets, *record);
                Ok(())
            }
            _ => Err(SnapshotError::Unknown { section: "a shard's section".into() }),
        };
        let shard = Shard::thaw(settings.clone(), now, records, &mut outputs, keep)?;
        let problem = |error: io::Error| records.contradiction(format!("a socket: {error}"));
        let mut reactor = Self::new(poll, settings, parts).map_err(problem)?;
        (reactor.shard, reactor.outputs, reactor.sockets.now) = (shard, outputs, now);
        let (mut streams, mut readable) = (Streams::default(), Vec::new());
        for SocketsRecord { keys, fds, cookies } in sockets {
            for ((key, fd), cookie) in keys.into_iter().zip(fds).zip(cookies) {
                let key = ConnKey::from_u64(key);
                if !has_socket(&reactor.shard, key) || streams.get(key).is_some() {
                    return Err(records.contradiction(format!("{key:?} has a socket too many")));
                }
                let stream = take(&reactor.sockets.epoll, key, &SocketRef { fd, cookie }).map_err(problem)?;
                if is_handshake(&reactor.shard, key)
                    && let Some(from) = address_of(&stream)
                {
                    let Self { handshakes, shard, .. } = &mut reactor;
                    handshakes.begin(now, key, from, |key| is_handshake(shard, key));
                }
                let layer = match layers.remove(&key.as_u64()) {
                    None => None,
                    Some(layer) => {
                        let layer = layer.map_err(|problem| {
                            records.contradiction(format!("the layer of {key:?}: {problem}"))
                        })?;
                        if layer.is_none() {
                            reactor.openings.lose(key);
                        }
                        // A stream without its layer must not be taken for a plain one.
                        Some(layer.unwrap_or_else(Layer::closed))
                    }
                };
                // A proxy that has not spoken yet will name the address.
                let is_named = !matches!(&layer, Some(Layer::Opening(opening)) if opening.awaits_proxy());
                reactor.sockets.listeners.readmit(fd, &stream, is_named, now);
                readable.extend(stream.is_readable().then_some(key)); // the event is taken
                streams.insert(key, Socket { stream, layer });
            }
        }
        if let Some(key) = layers.keys().next() {
            return Err(records.contradiction(format!("connection {key:x} has a layer and no socket")));
        }
        for record in named {
            let Self { handshakes, shard, .. } = &mut reactor;
            handshakes.thaw(now, &record, |key| is_handshake(shard, key));
        }
        reactor.sockets.streams = streams;
        readable.into_iter().for_each(|key| reactor.sockets.set_ready(key));
        let is_there = |key: &ConnKey| reactor.sockets.streams.get(*key).is_some();
        if let Some(key) = reactor.shard.with_sockets().find(|key| !is_there(key)) {
            return Err(records.contradiction(format!("{key:?} has no socket")));
        }
        reactor.perform();
        // Nobody may see zeros before the first turn.
        reactor.publish_counters();
        Ok(reactor)
    }
}

/// Layers of connections whose sockets are not here yet, by key, or what is wrong with one. `None`: it could not be handed over.
type Layers = HashMap<u64, Result<Option<Layer>, String>>;

/// Makes a layer as soon as its record is there: thousands of records that wait for their sockets would be cold memory.
fn read_layer(layers: &mut Layers, sockets: &[SocketsRecord], record: LayerRecord) {
    if layers.is_empty() {
        layers.reserve(sockets.iter().map(|record| record.keys.len()).sum());
    }
    layers.insert(record.key, FrozenLayer::try_from(record).and_then(Layer::thaw));
}

/// True if the connection exists and has a socket.
fn has_socket(shard: &Shard, key: ConnKey) -> bool {
    shard.state(key).is_some_and(|state| state != State::Detached)
}
