//! Makes the threads, and the mailboxes between them.

use super::GatewayError;
use crate::admin::{self, Admin, Status};
use crate::auth;
use crate::config::{Balance, Config};
use crate::freeze::{self, Conductor, Order};
use crate::handoff::{DownlinkBatch, ShardSink, UplinkBatch};
use crate::link::{LinkSettings, LinkTimes};
use crate::mailbox::{self, SendError, Sender};
use crate::metrics::{Board, Registry};
use crate::reactor::{self, Door, DoorLimits, Reactor, ReactorMail, ReactorParts};
use crate::shard::{Birth, Settings};
use crate::snapshot::{
    AddressRecord, GatewayHead, Item, Records, Section, SectionKind, Snapshot, SocketRef, SocketsRecord,
    Writer,
};
use crate::sys::{clock, limits, sockets};
use crate::worker::{
    self, Berth, Clock, LINK_OUTPUT_MAX, OverloadLimits, PARKED_CHANGES_MAX, ParkingLimits, Worker,
    WorkerParts, WorkerSettings,
};
use bytes::Bytes;
use crossbeam_channel::bounded;
use mio::Poll;
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::message::backend::LinkHello;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Messages in a reactor's mailbox.
const REACTOR_MAIL_MAX: usize = 4096;
/// Descriptors kept for everything that is no client connection.
const RESERVED_FDS: u64 = 100;
/// Connections without a file limit that says otherwise.
const CONNECTIONS_DEFAULT: usize = 1 << 20;
/// Descriptors in one record.
const SOCKETS_PER_RECORD: usize = 4096;
/// Between looks at whether a thread stands still.
const LOOK: Duration = Duration::from_micros(50);
/// Pause between tries to put an order into a full mailbox.
const ORDER_RETRY: Duration = Duration::from_millis(1);
/// Tries, after which a reactor counts as stuck.
const ORDER_TRIES: usize = 5_000;

/// The running gateway.
pub(super) struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    admin_listener: Option<TcpListener>,
    admin: Option<Admin>,
    pub(super) status: Arc<Status>,
    metrics: Arc<Registry>,
    door: Arc<Door>,
    birth: Birth,
    gateway_id: String,
    reactors: Vec<(Sender<ReactorMail>, Conductor, JoinHandle<io::Result<()>>)>,
    workers: Vec<(Sender<UplinkBatch>, Conductor, JoinHandle<()>)>,
    workers_stop: Arc<AtomicBool>,
}

/// A gateway whose threads have not begun: until then it reads and writes nothing.
pub(super) struct Prepared {
    listener: TcpListener,
    address: SocketAddr,
    admin_listener: Option<TcpListener>,
    status: Arc<Status>,
    metrics: Arc<Registry>,
    door: Arc<Door>,
    birth: Birth,
    gateway_id: String,
    reactors: Vec<(Sender<ReactorMail>, Conductor, Reactor)>,
    workers: Vec<(Sender<UplinkBatch>, Conductor, Worker)>,
    workers_stop: Arc<AtomicBool>,
    cap: usize,
    /// Where newcomers wait who came to an address that is not in the settings any more.
    retired: Option<TcpListener>,
    /// Connections that came with their socket.
    pub(super) connections_taken: u64,
}

/// What a process before this one hands over.
pub(super) struct Taken {
    pub(super) snapshot: Snapshot,
    pub(super) head: GatewayHead,
    pub(super) addresses: Vec<AddressRecord>,
}

/// Berths of the reactors in a process that is about to take over, and the sockets that they watch already.
pub(super) struct Warm {
    reactors: Vec<(Sender<ReactorMail>, ReactorBerth)>,
    streams: HashMap<u64, mio::net::TcpStream>,
}

impl Warm {
    /// Watches every socket of `lists`, by shard, that `take` gives.
    pub(super) fn up(
        lists: Vec<Vec<SocketsRecord>>,
        take: &mut dyn FnMut(&SocketRef) -> Option<OwnedFd>,
    ) -> Result<Self, GatewayError> {
        let mut warm = Self { reactors: Vec::new(), streams: HashMap::new() };
        for list in lists {
            let (sender, (poll, inbox)) =
                reactor_berth().map_err(GatewayError::system("make a reactor's epoll"))?;
            for SocketsRecord { keys, fds, cookies } in list {
                for ((key, fd), cookie) in keys.into_iter().zip(fds).zip(cookies) {
                    let Some(fd) = take(&SocketRef { fd, cookie }) else { continue };
                    let mut stream = stream_of(fd);
                    reactor::watch(poll.registry(), &mut stream, ConnKey::from_u64(key))
                        .map_err(GatewayError::system("watch a socket"))?;
                    warm.streams.insert(key, stream);
                }
            }
            warm.reactors.push((sender, (poll, inbox)));
        }
        Ok(warm)
    }
}

/// Where a gateway comes from that does not begin with nothing.
struct Origin<'a, 'b> {
    taken: &'a Taken,
    take: &'a mut Take<'b>,
    streams: &'a mut HashMap<u64, mio::net::TcpStream>,
    connections: u64,
}

/// Gives the socket that a snapshot names.
pub(super) type Take<'a> = dyn FnMut(&SocketRef) -> io::Result<OwnedFd> + 'a;

impl Prepared {
    /// A gateway that begins with nothing.
    pub(super) fn fresh(config: &Config) -> Result<Self, GatewayError> {
        let (listener, _) = bind(config)?;
        let admin_listener = bind_admin(config)?;
        let mut ticket_key = [0; 32];
        getrandom::fill(&mut ticket_key)
            .map_err(|error| GatewayError::system("ask for random bytes")(error.into()))?;
        let birth = birth(ticket_key);
        let berths = Berths::open(config, config.reactors(), config.workers())?;
        Self::assemble(config, listener, admin_listener, birth, berths, None)
    }

    /// A gateway that goes on where another process was. Its sockets are watched, and not read or written.
    pub(super) fn taken(
        config: &Config,
        warm: Warm,
        taken: &Taken,
        take: &mut Take<'_>,
    ) -> Result<Self, GatewayError> {
        let failed = |name| GatewayError::system(name);
        let listener =
            taken.head.listener.as_ref().ok_or(GatewayError::Takeover("no listening socket".into()))?;
        let listener = TcpListener::from(take(listener).map_err(failed("take over the listening socket"))?);
        let (listener, retired) = relocate(config, listener)?;
        let admin_listener = match &taken.head.admin {
            Some(socket) if config.admin.enabled => {
                Some(TcpListener::from(take(socket).map_err(failed("take over the admin socket"))?))
            }
            _ => bind_admin(config)?,
        };
        let head = &taken.head;
        let ticket_key = head.ticket_key[..].try_into();
        let ticket_key =
            ticket_key.map_err(|_| GatewayError::Takeover("the ticket key has not 32 bytes".into()))?;
        let counts = [("reactor.count", head.shards, config.reactors()), ("worker.count", head.workers, config.workers())];
        for (key, is, wanted) in counts.into_iter().filter(|(_, is, wanted)| *is as usize != *wanted) {
            tracing::warn!(key, is, wanted, "it stays as it is: the users of a thread cannot be moved to another; it changes with a cold start");
        }
        let birth = Birth { epoch: head.epoch, unix_base_nanos: 0, ticket_key };
        if warm.reactors.len() != head.shards as usize {
            return Err(GatewayError::Takeover("the lists of sockets are not one for each shard".into()));
        }
        let Warm { reactors, mut streams } = warm;
        let berths = Berths { reactors, ..Berths::open(config, 0, head.workers as usize)? };
        let origin = Origin { taken, take, streams: &mut streams, connections: 0 };
        let mut prepared = Self::assemble(config, listener, admin_listener, birth, berths, Some(origin))?;
        prepared.retired = retired;
        // Connections that ended since: nobody must hear of them.
        for (key, mut stream) in streams {
            let shard = ConnKey::from_u64(key).shard().index();
            if let Some((.., reactor)) = prepared.reactors.get(shard) {
                reactor.unwatch(&mut stream);
            }
        }
        Ok(prepared)
    }

    fn assemble(
        config: &Config,
        listener: TcpListener,
        admin_listener: Option<TcpListener>,
        birth: Birth,
        berths: Berths,
        mut origin: Option<Origin<'_, '_>>,
    ) -> Result<Self, GatewayError> {
        let cap = connections_max(config.limits.connections_max);
        let address = listener.local_addr().map_err(GatewayError::system("name the listening socket"))?;
        let judge = auth::judge(&config.auth)?;
        let metrics = Arc::new(Registry::new());
        let mut random = Random::new(getrandom::u64().unwrap_or(birth.epoch));
        let door = door(config, cap);
        if let Some(Origin { taken, .. }) = &origin {
            door.thaw(taken.head.accepted_until);
            taken.addresses.iter().for_each(|address| door.thaw_address(address));
        }
        let gateway_id = match &origin {
            Some(Origin { taken, .. }) => taken.head.gateway_id.clone(),
            None => config.gateway_id(),
        };
        let Berths { reactors: reactor_berths, workers: worker_berths } = berths;
        let reactor_senders: Vec<_> = reactor_berths.iter().map(|(sender, _)| sender.clone()).collect();
        let worker_senders: Vec<_> = worker_berths.iter().map(|(sender, _)| sender.clone()).collect();
        let workers_stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for (number, (sender, berth)) in worker_berths.into_iter().enumerate() {
            let sinks =
                reactor_senders.iter().map(|sender| Box::new(Sink(sender.clone())) as Box<dyn ShardSink>);
            let (conductor, post) = freeze::post();
            let mut worker = Worker::new(WorkerParts {
                settings: worker_settings(config, &gateway_id, number, birth.epoch, random.next_u64()),
                berth,
                shards: sinks.collect(),
                judge: judge.clone(),
                clock: Clock { now: clock::now, unix_now_s: clock::unix_seconds },
                stop: Arc::clone(&workers_stop),
                board: board(&metrics, worker::series()),
                post,
                registry: Some(Arc::clone(&metrics)),
            });
            if let Some(Origin { taken, take, .. }) = &mut origin {
                let now = Instant::from_nanos(taken.snapshot.header.frozen_at);
                let mut records = section(&taken.snapshot, SectionKind::Worker, number)?;
                let mut stream = |socket: &SocketRef| Ok(stream_of(take(socket)?));
                worker.thaw(&mut records, now, &mut stream)?;
            }
            workers.push((sender, conductor, worker));
        }
        let mut reactors = Vec::new();
        for (number, (sender, (poll, inbox))) in reactor_berths.into_iter().enumerate() {
            let shard = ShardId(u8::try_from(number).expect("at most 256 reactors"));
            let (shards, seed) = (reactor_senders.len(), random.next_u64());
            let settings = Settings::new(config, shard, shards, worker_senders.len(), birth, seed);
            let cloned = listener.try_clone().map_err(GatewayError::system("share the listening socket"))?;
            let (conductor, post) = freeze::post();
            let parts = ReactorParts {
                listener: mio::net::TcpListener::from_std(cloned),
                door: Arc::clone(&door),
                clock: clock::now,
                inbox,
                reactors: reactor_senders.clone(),
                workers: worker_senders.clone(),
                board: board(&metrics, reactor::series()),
                read_budget: config.reactor.read_budget.as_usize(),
                accept_budget: config.reactor.accept_budget,
                post,
            };
            let reactor = match &mut origin {
                None => {
                    Reactor::new(poll, settings, parts).map_err(GatewayError::system("watch the listener"))?
                }
                Some(Origin { taken, take, streams, connections }) => {
                    let now = Instant::from_nanos(taken.snapshot.header.frozen_at);
                    let mut records = section(&taken.snapshot, SectionKind::Shard, number)?;
                    let mut watched = |registry: &mio::Registry, key: ConnKey, socket: &SocketRef| {
                        *connections += 1;
                        let warm = streams.remove(&key.as_u64());
                        if let Some(stream) = warm {
                            if socket.cookie == 0 && stream.as_raw_fd() == socket.fd {
                                return Ok(stream);
                            }
                            let mut stream = stream;
                            registry.deregister(&mut stream)?;
                        }
                        let mut stream = stream_of(take(socket)?);
                        reactor::watch(registry, &mut stream, key)?;
                        Ok(stream)
                    };
                    Reactor::thaw(poll, settings, parts, now, &mut records, &mut watched)?
                }
            };
            reactors.push((sender, conductor, reactor));
        }
        let status = Arc::new(Status::new(config, &gateway_id).listening_at(address));
        metrics.add(status.restarts.board());
        if origin.as_ref().is_some_and(|origin| origin.taken.head.is_draining) {
            status.set_draining();
        }
        Ok(Self {
            listener,
            address,
            admin_listener,
            status,
            metrics,
            door,
            birth,
            gateway_id,
            reactors,
            workers,
            workers_stop,
            cap,
            retired: None,
            connections_taken: origin.map_or(0, |origin| origin.connections),
        })
    }

    /// Where restarts are remembered.
    pub(super) fn desk(&self) -> &crate::admin::RestartDesk {
        &self.status.restarts
    }

    /// Begins all threads.
    pub(super) fn launch(self) -> Result<Gateway, GatewayError> {
        let unix_base_nanos = unix_base();
        let mut workers = Vec::new();
        for (sender, conductor, worker) in self.workers {
            let handle = worker.spawn().map_err(GatewayError::system("start a worker"))?;
            workers.push((sender, conductor, handle));
        }
        let mut reactors = Vec::new();
        for (number, (sender, conductor, mut reactor)) in self.reactors.into_iter().enumerate() {
            reactor.handle_thawed(unix_base_nanos);
            let named = std::thread::Builder::new().name(format!("reactor-{number}"));
            let handle =
                named.spawn(move || reactor.run()).map_err(GatewayError::system("start a reactor"))?;
            reactors.push((sender, conductor, handle));
        }
        if let (Some(retired), Some((reactor, ..))) = (self.retired, reactors.first()) {
            while let Ok((socket, _)) = retired.accept() {
                socket.set_nonblocking(true).ok();
                reactor.try_send(ReactorMail::Newcomer(mio::net::TcpStream::from_std(socket))).ok();
            }
        }
        let admin = match &self.admin_listener {
            None => None,
            Some(listener) => {
                let cloned = listener.try_clone().map_err(GatewayError::system("share the admin socket"))?;
                let spawned = admin::spawn(cloned, Arc::clone(&self.status), Arc::clone(&self.metrics));
                Some(spawned.map_err(GatewayError::system("start the admin thread"))?)
            }
        };
        tracing::info!(listener = %self.address, reactors = reactors.len(), workers = workers.len(), connections_max = self.cap, "serving");
        Ok(Gateway {
            listener: self.listener,
            address: self.address,
            admin_listener: self.admin_listener,
            admin,
            status: self.status,
            metrics: self.metrics,
            door: self.door,
            birth: self.birth,
            gateway_id: self.gateway_id,
            reactors,
            workers,
            workers_stop: self.workers_stop,
        })
    }
}

impl Gateway {
    /// One line for people, scripts and tests.
    #[allow(clippy::print_stdout)] // the readiness line is this program's output
    pub(super) fn announce_ready(&self) {
        let admin = self.admin.as_ref().map_or_else(|| "off".to_owned(), |admin| admin.address().to_string());
        let shown = self.status.restarts.show();
        let generation = shown.generation;
        let last = shown.restarts.last().filter(|_| generation > 0);
        let moved = last.map_or_else(String::new, |last| {
            format!(" sockets={} pause_ms={:.1}", last.sockets, last.pause_seconds * 1e3)
        });
        println!(
            "moorline ready listener={} admin={admin} pid={} generation={generation}{moved}",
            self.address,
            std::process::id()
        );
    }

    /// Open client connections.
    pub(super) fn connections(&self) -> u64 {
        self.metrics.sum(crate::metrics::names::CONNECTIONS)
    }

    /// The name of a thread that ended though nobody asked it to.
    pub(super) fn ended_thread(&self) -> Option<String> {
        let reactors = self.reactors.iter().map(|(.., handle)| (handle.is_finished(), handle.thread()));
        let workers = self.workers.iter().map(|(.., handle)| (handle.is_finished(), handle.thread()));
        let (_, thread) = reactors.chain(workers).find(|(is_finished, _)| *is_finished)?;
        Some(thread.name().unwrap_or("unnamed").to_owned())
    }

    /// No more logins; asks every client to leave within `window`.
    pub(super) fn drain(&self, window: Duration) {
        self.status.set_draining();
        self.order(|| ReactorMail::Drain(window));
    }

    /// Ends every connection and thread.
    pub(super) fn stop(&self) {
        self.status.set_draining();
        self.order(|| ReactorMail::Stop);
    }

    /// Waits for the threads: first the reactors, which still hand over, then the workers.
    pub(super) fn join(self) {
        for (.., handle) in self.reactors {
            if let Ok(Err(error)) = handle.join() {
                tracing::error!(%error, "a reactor failed");
            }
        }
        self.workers_stop.store(true, Ordering::SeqCst);
        for (sender, _, handle) in self.workers {
            sender.wake().ok();
            handle.join().ok();
        }
        if let Some(admin) = self.admin {
            admin.stop();
        }
    }

    /// Has every thread stand still, with no message under way, and writes everything down.
    ///
    /// # Errors
    /// What went wrong; [`Self::thaw`] then.
    pub(super) fn freeze(&self, deadline: std::time::Instant) -> Result<(Instant, Writer), String> {
        if let Some(admin) = &self.admin {
            admin.set_paused(true);
        }
        self.conductors().for_each(|(_, conductor)| conductor.call());
        self.workers.iter().for_each(|(sender, ..)| _ = sender.wake());
        self.reactors.iter().for_each(|(sender, ..)| _ = sender.wake());
        for (name, conductor) in self.conductors() {
            while !conductor.stands() {
                if std::time::Instant::now() >= deadline {
                    return Err(format!("{name} did not stand still in time"));
                }
                std::thread::park_timeout(LOOK);
            }
        }
        let frozen_at = clock::now();
        loop {
            let mut is_busy = false;
            for (name, conductor) in self.conductors() {
                let (reply, replied) = bounded(1);
                conductor.order(Order::Step(reply));
                is_busy |= replied
                    .recv_deadline(deadline)
                    .map_err(|_| format!("{name} did not hand over what it had in time"))?;
            }
            if !is_busy {
                break;
            }
            if std::time::Instant::now() >= deadline {
                return Err("messages between threads did not come to rest in time".into());
            }
        }
        let mut replies = Vec::new();
        for (name, conductor) in self.conductors() {
            let (reply, replied) = bounded(1);
            conductor.order(Order::Freeze(reply));
            replies.push((name, replied));
        }
        let mut writer = Writer::default();
        for (place, (name, replied)) in replies.into_iter().enumerate() {
            let section = replied
                .recv_deadline(deadline)
                .map_err(|_| format!("{name} was not written down in time"))?;
            let section = section.map_err(|error| format!("{name} cannot be written down: {error}"))?;
            let number = |place: usize| u32::try_from(place).expect("some dozens of threads");
            match place.checked_sub(self.reactors.len()) {
                None => writer.add(SectionKind::Shard, number(place), section),
                Some(worker) => writer.add(SectionKind::Worker, number(worker), section),
            }
        }
        Ok((frozen_at, writer))
    }

    /// The sockets of all connections, for a process that shall watch them before anything stops.
    ///
    /// # Errors
    /// A reactor that does not answer.
    pub(super) fn list_sockets(&self, deadline: std::time::Instant) -> Result<Writer, String> {
        let mut writer = Writer::default();
        for (number, (sender, ..)) in (0u32..).zip(&self.reactors) {
            let (reply, replied) = bounded(1);
            let list = sender.try_send(ReactorMail::List(reply)).ok();
            let all = list.and_then(|()| replied.recv_deadline(deadline).ok());
            let all = all.ok_or_else(|| format!("reactor {number} did not name its sockets in time"))?;
            let mut section = Section::default();
            for chunk in all.chunks(SOCKETS_PER_RECORD) {
                let mut record = SocketsRecord::default();
                for (key, fd) in chunk {
                    // One that was closed meanwhile has none, or is another: the new process compares.
                    let Some(cookie) = sockets::cookie_of(*fd) else { continue };
                    record.keys.push(key.as_u64());
                    record.fds.push(*fd);
                    record.cookies.push(cookie);
                }
                section.put(Item::Sockets(record));
            }
            writer.add(SectionKind::Sockets, number, section);
        }
        Ok(writer)
    }

    /// What the process has once, written down.
    pub(super) fn freeze_head(&self, mut head: GatewayHead) -> io::Result<Section> {
        let mut section = Section::default();
        let mut addresses = Section::default();
        head.accepted_until = self.door.freeze(&mut addresses);
        head.epoch = self.birth.epoch;
        head.ticket_key = Bytes::copy_from_slice(&self.birth.ticket_key);
        head.shards = u32::try_from(self.reactors.len()).expect("at most 256");
        head.workers = u32::try_from(self.workers.len()).expect("at most 256");
        head.listener = Some(sockets::name_of(&self.listener)?.into());
        if let Some(listener) = &self.admin_listener {
            head.admin = Some(sockets::name_of(listener)?.into());
        }
        head.is_draining = self.status.is_draining();
        head.gateway_id.clone_from(&self.gateway_id);
        section.put(Item::Gateway(head));
        section.append(&addresses);
        Ok(section)
    }

    /// Goes on from `frozen_at`, as if nothing had happened.
    pub(super) fn thaw(&self, frozen_at: Option<Instant>) {
        if let Some(frozen_at) = frozen_at {
            clock::go_on_from(frozen_at);
        }
        let unix_base_nanos = unix_base();
        self.conductors().for_each(|(_, conductor)| conductor.dismiss(unix_base_nanos));
        if let Some(admin) = &self.admin {
            admin.set_paused(false);
        }
    }

    fn conductors(&self) -> impl Iterator<Item = (String, &Conductor)> {
        let reactors = self.reactors.iter().enumerate();
        let reactors = reactors.map(|(number, (_, conductor, _))| (format!("reactor {number}"), conductor));
        let workers = self.workers.iter().enumerate();
        reactors.chain(workers.map(|(number, (_, conductor, _))| (format!("worker {number}"), conductor)))
    }

    fn order(&self, make: impl Fn() -> ReactorMail) {
        for (reactor, _, handle) in &self.reactors {
            let is_taken = (0..ORDER_TRIES).any(|_| match reactor.try_send(make()) {
                Err(SendError::Full(_)) => {
                    std::thread::park_timeout(ORDER_RETRY);
                    false
                }
                Ok(()) | Err(SendError::Gone(_)) => true,
            });
            if !is_taken {
                let thread = handle.thread().name().unwrap_or("unnamed");
                tracing::error!(thread, "a reactor is stuck: its mailbox stays full");
            }
        }
    }
}

struct Sink(Sender<ReactorMail>);

impl ShardSink for Sink {
    fn try_deliver(&self, batch: DownlinkBatch) -> Result<(), DownlinkBatch> {
        match self.0.try_send(ReactorMail::Downlink(batch)) {
            Err(SendError::Full(ReactorMail::Downlink(batch))) => Err(batch),
            // The reactor ended, and its connections with it.
            _ => Ok(()),
        }
    }
}

/// Where a reactor will wait; made before its thread, so that others can be given the sender.
type ReactorBerth = (Poll, mailbox::Receiver<ReactorMail>);

fn reactor_berth() -> io::Result<(Sender<ReactorMail>, ReactorBerth)> {
    let poll = Poll::new()?;
    let waker = reactor::waker(poll.registry())?;
    let (sender, inbox) = mailbox::mailbox(REACTOR_MAIL_MAX, waker);
    Ok((sender, (poll, inbox)))
}

fn board(metrics: &Registry, series: Vec<crate::metrics::Series>) -> Arc<Board> {
    let board = Arc::new(Board::new(series));
    metrics.add(Arc::clone(&board));
    board
}

fn door(config: &Config, connections_max: usize) -> Arc<Door> {
    let listener = &config.listener;
    Door::new(DoorLimits {
        connections_max,
        accept_rate: listener.accept_rate,
        handshakes_max: listener.handshakes_max,
        address_connections: listener.address_connections,
        address_rate: listener.address_rate,
    })
}

/// One listening socket for all reactors: one queue, which a reactor that is busy or gone cannot hold
/// back (docs/adr/0002). Accepted sockets inherit `TCP_NODELAY`.
fn bind(config: &Config) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let address = config.listener.address;
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(config.listener.backlog).unwrap_or(i32::MAX))?;
        let listener = TcpListener::from(socket);
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| GatewayError::Bind { key: "listener.address", address, source })
}

/// The inherited listening socket, unless the settings name another address by now: then one that is bound
/// there, and the inherited one, at which nobody listens any more when those who wait there are let in.
fn relocate(
    config: &Config,
    inherited: TcpListener,
) -> Result<(TcpListener, Option<TcpListener>), GatewayError> {
    let wanted = config.listener.address;
    let bound = inherited.local_addr().map_err(GatewayError::system("name the listening socket"))?;
    let is_same = wanted == bound || (wanted.port() == 0 && wanted.ip() == bound.ip());
    if is_same {
        return Ok((inherited, None));
    }
    let (listener, address) = bind(config)?;
    tracing::warn!(%bound, %address, "listener.address has changed; the old one is given up");
    Ok((listener, Some(inherited)))
}

/// The admin address, if it is wanted.
fn bind_admin(config: &Config) -> Result<Option<TcpListener>, GatewayError> {
    if !config.admin.enabled {
        return Ok(None);
    }
    let address = config.admin.address;
    let failed = |source| GatewayError::Bind { key: "admin.address", address, source };
    TcpListener::bind(address).map(Some).map_err(failed)
}

/// Where all threads will wait.
struct Berths {
    reactors: Vec<(Sender<ReactorMail>, ReactorBerth)>,
    workers: Vec<(Sender<UplinkBatch>, Berth)>,
}

impl Berths {
    fn open(config: &Config, reactors: usize, workers: usize) -> Result<Self, GatewayError> {
        let reactor = |_| reactor_berth().map_err(GatewayError::system("make a reactor's epoll"));
        let worker = |_| {
            Berth::open(config.worker.queue_batches).map_err(GatewayError::system("make a worker's epoll"))
        };
        Ok(Self {
            reactors: (0..reactors).map(reactor).collect::<Result<_, _>>()?,
            workers: (0..workers).map(worker).collect::<Result<_, _>>()?,
        })
    }
}

fn section(snapshot: &Snapshot, kind: SectionKind, number: usize) -> Result<Records, GatewayError> {
    let found = snapshot.sections(kind)?.into_iter().find(|(other, _)| *other as usize == number);
    let missing = || GatewayError::Takeover(format!("the snapshot has no section {kind:?} {number}"));
    found.map(|(_, records)| records).ok_or_else(missing)
}

fn stream_of(fd: OwnedFd) -> mio::net::TcpStream {
    mio::net::TcpStream::from_std(std::net::TcpStream::from(fd))
}

/// Unix nanoseconds at the gateway's own time zero.
fn unix_base() -> u64 {
    clock::unix_nanos().saturating_sub(clock::now().as_nanos())
}

fn worker_settings(config: &Config, node: &str, number: usize, epoch: u64, seed: u64) -> WorkerSettings {
    let backend = &config.backend;
    WorkerSettings {
        number: u16::try_from(number).expect("at most 256 workers"),
        endpoints: backend.endpoints.clone(),
        links_per_endpoint: backend.links_per_worker,
        balance: match backend.balance {
            Balance::LeastLoaded => worker::Balance::LeastLoaded,
            Balance::Hash => worker::Balance::Hash,
            // An embedded backend is one endpoint, whatever weights were meant for others.
            Balance::Weighted if backend.embedded => worker::Balance::LeastLoaded,
            Balance::Weighted => worker::Balance::Weighted(backend.weights.clone()),
        },
        link: LinkSettings {
            hello: LinkHello {
                version_min: u32::from(moorline_proto::link::LINK_VERSION),
                version_max: u32::from(moorline_proto::link::LINK_VERSION),
                node: node.to_owned(),
                epoch,
                capacity: u32::try_from(config.limits.connections_max).unwrap_or(u32::MAX),
                agent: concat!("moorline/", env!("CARGO_PKG_VERSION")).to_owned(),
            },
            times: LinkTimes::default(),
            reconnect_min: backend.reconnect_min,
            reconnect_max: backend.reconnect_max,
            up_timeout: backend.up_timeout,
            output_max: LINK_OUTPUT_MAX,
        },
        parking: ParkingLimits {
            frames: backend.parked_frames,
            bytes: backend.parked_bytes.as_usize(),
            changes: PARKED_CHANGES_MAX,
        },
        overload: OverloadLimits {
            latency: config.overload.latency,
            queue_frames: config.overload.queue_frames,
            hold: config.overload.hold,
        },
        compress_min: config.limits.compress_min.as_usize(),
        seed,
    }
}

/// The configured cap, or what the open-files limit leaves; never more than that.
fn connections_max(configured: usize) -> usize {
    let room = usize::try_from(limits::raise_open_files().saturating_sub(RESERVED_FDS)).unwrap_or(usize::MAX);
    match configured {
        0 => room.min(CONNECTIONS_DEFAULT),
        wanted if wanted > room => {
            tracing::warn!(
                wanted,
                room,
                "limits.connections_max lowered to what the open-files limit allows; raise it (ulimit -n)"
            );
            room
        }
        wanted => wanted,
    }
}

fn birth(ticket_key: [u8; 32]) -> Birth {
    let unix = clock::unix_nanos();
    Birth { epoch: unix, unix_base_nanos: unix.saturating_sub(clock::now().as_nanos()), ticket_key }
}
