//! Adoption: makes a gateway from the snapshot and the sockets of another process.

use super::GatewayError;
use super::admin_sockets::{AdminSockets, InheritedSocket};
use super::assembly::{Inboxes, Leftovers, Prepared, ReactorInbox, reactor_inbox};
use super::listening::{self, InheritedListener, Matched};
use crate::config::{Balance, Config};
use crate::metrics::Counted;
use crate::reactor::{self, Reactor, ReactorMail, ReactorParts};
use crate::shard::{Birth, Settings};
use crate::shard_map::{Pins, ShardMap, USER_KEY_BYTES, UserKey};
use crate::snapshot::{
    AddressRecord, CountedRecord, FileRecord, GROWN, GatewayHead, LAYERED, ListenerRecord, PinsRecord,
    Records, RetiredRecord, SEALED_LINKS, SectionKind, Snapshot, SocketRef, SocketsRecord,
};
use crate::sys::{clock, sockets};
use crate::worker::Worker;
use bytes::Bytes;
use mio::{Poll, Registry};
use moorline_net::layer::OpeningKind;
use moorline_net::mailbox::Sender;
use moorline_net::stream::{Stream, StreamKind};
use moorline_net::unix_socket::FileId;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::PoisonError;

/// State that the old process hands over.
pub(super) struct Inherited {
    pub(super) snapshot: Snapshot,
    pub(super) head: GatewayHead,
    pub(super) addresses: Vec<AddressRecord>,
}

/// Mailboxes and polls of the reactors before the takeover, and the sockets that they already watch.
pub(super) struct Warm {
    reactors: Vec<(Sender<ReactorMail>, ReactorInbox)>,
    streams: Vec<Watched>,
}

/// Already watched sockets of one shard, with their cookies, in the order of their slots. A list has one entry for each
/// socket, however high its slot is.
#[derive(Default)]
pub(super) struct Watched {
    sockets: Vec<(ConnKey, u64, Option<Stream>)>,
    /// Place behind the socket that was taken last: the snapshot has the same order.
    next: usize,
}

impl Watched {
    fn of(mut sockets: Vec<(ConnKey, u64, Option<Stream>)>) -> Self {
        sockets.sort_by_key(|(key, ..)| key.slot());
        Self { sockets, next: 0 }
    }

    fn get_mut(&mut self, key: ConnKey) -> Option<&mut Stream> {
        let place = self.sockets.partition_point(|(other, ..)| other.slot() < key.slot());
        let (other, _, stream) = self.sockets.get_mut(place)?;
        stream.as_mut().filter(|_| *other == key)
    }

    fn take(&mut self, key: ConnKey) -> Option<(u64, Stream)> {
        if self.sockets.get(self.next).is_none_or(|(other, ..)| *other != key) {
            self.next = self.sockets.partition_point(|(other, ..)| other.slot() < key.slot());
        }
        let (other, cookie, stream) = self.sockets.get_mut(self.next)?;
        let taken = stream.take_if(|_| *other == key)?;
        self.next += 1;
        Some((*cookie, taken))
    }
}

impl Warm {
    /// Watches the listed sockets of each shard, as far as `take` still has them.
    pub(super) fn up(
        lists: Vec<Vec<SocketsRecord>>,
        take: &mut dyn FnMut(&SocketRef) -> Option<OwnedFd>,
    ) -> Result<Self, GatewayError> {
        let mut warm = Self { reactors: Vec::new(), streams: Vec::new() };
        for list in lists {
            let (sender, (mut poll, inbox)) =
                reactor_inbox().map_err(GatewayError::system("make a reactor's epoll"))?;
            let mut watched = Vec::new();
            for SocketsRecord { keys, fds, cookies } in list {
                for ((key, fd), cookie) in keys.into_iter().zip(fds).zip(cookies) {
                    let Some(fd) = take(&SocketRef { fd, cookie }) else { continue };
                    let (key, mut stream) = (ConnKey::from_u64(key), Stream::thaw(StreamKind::Tcp, fd));
                    reactor::watch(poll.registry(), &mut stream, key)
                        .map_err(GatewayError::system("watch a socket"))?;
                    watched.push((key, cookie, Some(stream)));
                }
            }
            let mut watched = Watched::of(watched);
            let count = watched.sockets.len();
            reactor::note_first_events(&mut poll, count, &mut |key, event| {
                if let Some(stream) = watched.get_mut(key) {
                    stream.handle_event(event);
                }
            })
            .map_err(GatewayError::system("take the first events of sockets"))?;
            warm.streams.push(watched);
            warm.reactors.push((sender, (poll, inbox)));
        }
        Ok(warm)
    }
}

/// Source of a gateway that continues another process.
pub(super) struct Origin<'a, 'b> {
    pub(super) inherited: &'a Inherited,
    pub(super) take: &'a mut SocketSource<'b>,
    /// Time up to which each listener's accept rate is used, in nanoseconds.
    pub(super) accepted: Vec<u64>,
    pub(super) streams: &'a mut Vec<Watched>,
    pub(super) connections: u64,
}

/// Source of the sockets that a snapshot names.
pub(super) type SocketSource<'a> = dyn FnMut(&SocketRef) -> io::Result<OwnedFd> + 'a;

impl Origin<'_, '_> {
    fn frozen_at(&self) -> Instant {
        Instant::from_nanos(self.inherited.snapshot.header.frozen_at)
    }

    /// Restores the worker of this number; a worker beyond the old number begins empty.
    pub(super) fn thaw_worker(&mut self, number: usize, worker: &mut Worker) -> Result<(), GatewayError> {
        if number >= self.inherited.head.workers as usize {
            return Ok(()); // a new worker
        }
        let now = self.frozen_at();
        let mut records = section(&self.inherited.snapshot, SectionKind::Worker, number)?;
        let mut stream = |socket: &SocketRef| {
            let socket = (self.take)(socket)?;
            let is_unix = sockets::is_unix(&socket)?;
            Ok(Stream::thaw(if is_unix { StreamKind::Unix } else { StreamKind::Tcp }, socket))
        };
        Ok(worker.thaw(&mut records, now, &mut stream)?)
    }

    /// Makes the reactor of this number, restored; a reactor beyond the old number begins empty.
    pub(super) fn thaw_reactor(
        &mut self,
        number: usize,
        poll: &Poll,
        settings: Settings,
        parts: ReactorParts,
    ) -> Result<Reactor, GatewayError> {
        if number >= self.inherited.head.shards as usize {
            return Reactor::new(poll, settings, parts).map_err(GatewayError::system("watch the listeners"));
        }
        let now = self.frozen_at();
        let mut records = section(&self.inherited.snapshot, SectionKind::Shard, number)?;
        let mut watched = |registry: &Registry, key: ConnKey, socket: &SocketRef| {
            self.connections += 1;
            let known = self.streams.get_mut(number).and_then(|watched| watched.take(key));
            if let Some((cookie, mut stream)) = known {
                // A cookie of 0: the socket is the one that the list of sockets named.
                let is_same = socket.cookie == 0 || socket.cookie == cookie;
                if is_same && stream.as_raw_fd() == socket.fd {
                    return Ok(stream);
                }
                stream.deregister(registry)?;
            }
            let mut stream = Stream::thaw(StreamKind::Tcp, (self.take)(socket)?);
            reactor::watch(registry, &mut stream, key)?;
            Ok(stream)
        };
        Ok(Reactor::thaw(poll, settings, parts, now, &mut records, &mut watched)?)
    }
}

impl Prepared {
    /// Makes a gateway that continues another process. Its sockets are watched, and neither read nor written yet.
    pub(super) fn adopted(
        config: &Config,
        warm: Warm,
        inherited: &Inherited,
        take: &mut SocketSource<'_>,
    ) -> Result<Self, GatewayError> {
        let failed = |name| GatewayError::system(name);
        let Matched { sockets, accepted, retired, changed } =
            listening::inherit(config, listeners_of(&inherited.head, take)?)?;
        let mut admin_fd = |socket: &Option<SocketRef>| {
            let taken = socket.as_ref().map(&mut *take).transpose();
            taken.map_err(failed("take over an admin socket"))
        };
        let head = &inherited.head;
        let admin = admin_fd(&head.admin)?;
        let mut old = Vec::new();
        if let Some(socket) = admin_fd(&head.admin_socket)? {
            let file = head.admin_socket_file.as_ref().map(file_of);
            old.push(InheritedSocket { listener: UnixListener::from(socket), until: None, file });
        }
        for RetiredRecord { socket, until_nanos, file } in &head.retired_sockets {
            let Some(socket) = admin_fd(socket)? else { continue };
            let (until, file) = (Some(Instant::from_nanos(*until_nanos)), file.as_ref().map(file_of));
            old.push(InheritedSocket { listener: UnixListener::from(socket), until, file });
        }
        let admin_sockets = AdminSockets::inherit(config, admin.map(TcpListener::from), old)?;
        let ticket_key = head.ticket_key[..].try_into();
        let ticket_key = ticket_key.map_err(|_| {
            GatewayError::Takeover("the key of the resumption tokens does not have 32 bytes".into())
        })?;
        let birth = Birth { epoch: head.epoch, unix_base_nanos: 0, ticket_key };
        if warm.reactors.len() != head.shards as usize {
            return Err(GatewayError::Takeover("there is not one list of sockets for each shard".into()));
        }
        let known = if head.shard_map.is_empty() { vec![head.shards] } else { head.shard_map.clone() };
        let shard_map = ShardMap::thaw(&known).filter(|shard_map| shard_map.shards() == head.shards as usize);
        let key = user_key(head)?;
        let shard_map = shard_map
            .ok_or_else(|| GatewayError::Takeover(format!("the shard counts {known:?} are not valid")))?;
        // Existing shards and workers stay: fewer threads share them, and more threads bring new ones.
        let shard_map = shard_map.with_key(key).grown_to(config.reactors());
        let workers = config.workers().max(head.workers as usize);
        let Warm { mut reactors, mut streams } = warm;
        let more = Inboxes::open(config, shard_map.shards() - reactors.len(), workers)?;
        reactors.extend(more.reactors);
        let inboxes = Inboxes { reactors, ..more };
        let origin = Origin { inherited, take, accepted, streams: &mut streams, connections: 0 };
        let mut prepared = Self::assemble(
            config,
            sockets,
            admin_sockets,
            (birth, clock::machine_clock()),
            (shard_map, inboxes),
            Some(origin),
        )?;
        let counted =
            |it: &CountedRecord| Counted { name: it.name.clone(), label: it.label.clone(), value: it.value };
        prepared.metrics.go_on(head.counted.iter().map(counted).collect());
        let handshakes = prepared.reactors.iter().map(|(_, reactor)| reactor.handshakes_lost()).sum();
        prepared.left = Leftovers { retired, changed, kept: kept(config, head), handshakes };
        let has_more = prepared.shard_map.shards() > head.shards as usize || workers > head.workers as usize;
        prepared.has_layers = inherited.snapshot.header.critical & LAYERED != 0;
        if inherited.snapshot.header.critical & SEALED_LINKS != 0 {
            prepared.credentials.write().unwrap_or_else(PoisonError::into_inner).had_tls = true;
        }
        prepared.has_grown = has_more || inherited.snapshot.header.critical & GROWN != 0;
        // These connections have ended since they were listed.
        for (watched, (_, reactor)) in streams.into_iter().zip(&prepared.reactors) {
            let left = watched.sockets.into_iter().filter_map(|(.., stream)| stream);
            left.for_each(|mut stream| reactor.unwatch(&mut stream));
        }
        Ok(prepared)
    }
}

const fn file_of(record: &FileRecord) -> FileId {
    FileId { device: record.device, number: record.number }
}

/// Returns the settings that the state of the process before decides, and not the new settings, for people.
fn kept(config: &Config, head: &GatewayHead) -> Vec<String> {
    let mut kept = Vec::new();
    let (wanted, id) = (&config.gateway.id, &head.gateway_id);
    if !wanted.is_empty() && wanted != id {
        kept.push(format!(
            "gateway.id stays {id:?}, because the links stay: {wanted:?} needs a full restart"
        ));
    }
    if config.backend.balance == Balance::Hash && head.pins() == PinsRecord::Keyed {
        kept.push(
            "backend.balance = \"hash\" deals users by a key that other gateways do not have, until a full restart"
                .to_owned(),
        );
    }
    if (config.backend.balance == Balance::Cluster) != (head.pins() == PinsRecord::Cluster) {
        kept.push(
            "backend.balance to or from \"cluster\" needs a full restart: users stay in the slots that they have"
                .to_owned(),
        );
    }
    kept
}

/// Makes the key of the hash that decides between users.
pub(super) fn new_user_key(pins: Pins) -> Result<UserKey, GatewayError> {
    let mut key = [0; USER_KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| GatewayError::system("ask for random bytes")(error.into()))?;
    Ok(UserKey::new(key, pins))
}

/// The form of the key for the snapshot.
pub(super) fn record_of(key: UserKey) -> (Bytes, PinsRecord) {
    let pins = match key.pins() {
        Pins::Plain => PinsRecord::Plain,
        Pins::Keyed => PinsRecord::Keyed,
        Pins::KeyedButSlot => PinsRecord::KeyedButSlot,
        Pins::Cluster => PinsRecord::Cluster,
    };
    (Bytes::copy_from_slice(key.bytes()), pins)
}

/// Takes over the key of the hash that decides between users; a snapshot without one gets a new key for the users' rates.
fn user_key(head: &GatewayHead) -> Result<UserKey, GatewayError> {
    if head.user_key.is_empty() {
        return new_user_key(Pins::Plain);
    }
    let key = head.user_key[..].try_into();
    let key =
        key.map_err(|_| GatewayError::Takeover("the key of the users' hash does not have 16 bytes".into()))?;
    let pins = match head.pins() {
        PinsRecord::Plain => Pins::Plain,
        PinsRecord::Keyed => Pins::Keyed,
        PinsRecord::KeyedButSlot => Pins::KeyedButSlot,
        PinsRecord::Cluster => Pins::Cluster,
    };
    Ok(UserKey::new(key, pins))
}

/// Takes the listening sockets that the snapshot names.
fn listeners_of(
    head: &GatewayHead,
    take: &mut SocketSource<'_>,
) -> Result<Vec<InheritedListener>, GatewayError> {
    let mut records = head.listeners.clone();
    if records.is_empty() {
        let (socket, accepted_until) = (head.listener, head.accepted_until);
        records.push(ListenerRecord { socket, name: String::new(), accepted_until, kind: 0 });
    }
    let inherit = |ListenerRecord { socket, name, accepted_until, kind }| {
        let socket = socket.ok_or(GatewayError::Takeover("the snapshot has no listening socket".into()))?;
        let socket = take(&socket).map_err(GatewayError::system("take over a listening socket"))?;
        let kind = OpeningKind::of_number(kind)
            .ok_or_else(|| GatewayError::Takeover(format!("the listener {name:?} has an unknown kind")))?;
        Ok(InheritedListener { name, socket: TcpListener::from(socket), accepted_until, kind })
    };
    records.into_iter().map(inherit).collect()
}

fn section(snapshot: &Snapshot, kind: SectionKind, number: usize) -> Result<Records, GatewayError> {
    let found = snapshot.sections(kind)?.into_iter().find(|(other, _)| *other as usize == number);
    let missing = || GatewayError::Takeover(format!("the snapshot has no section {kind:?} {number}"));
    found.map(|(_, records)| records).ok_or_else(missing)
}
