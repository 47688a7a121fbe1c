//! Makes the threads, and the mailboxes between them.

use super::GatewayError;
use crate::admin::{self, Admin, Status};
use crate::auth;
use crate::config::{Balance, Config};
use crate::handoff::{DownlinkBatch, ShardSink, UplinkBatch};
use crate::link::{LinkSettings, LinkTimes};
use crate::mailbox::{self, SendError, Sender};
use crate::metrics::{Board, Registry};
use crate::reactor::{self, Door, DoorLimits, Reactor, ReactorMail, ReactorParts};
use crate::shard::{Birth, Settings};
use crate::sys::{clock, limits};
use crate::worker::{
    self, Berth, Clock, LINK_OUTPUT_MAX, OverloadLimits, PARKED_CHANGES_MAX, ParkingLimits, WorkerParts,
    WorkerSettings,
};
use mio::Poll;
use moorline_proto::ids::ShardId;
use moorline_proto::message::backend::LinkHello;
use moorline_proto::random::Random;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
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
/// Pause between tries to put an order into a full mailbox.
const ORDER_RETRY: Duration = Duration::from_millis(1);
/// Tries, after which a reactor counts as stuck.
const ORDER_TRIES: usize = 5_000;

/// The running gateway.
pub(super) struct Gateway {
    listener: SocketAddr,
    admin: Option<Admin>,
    status: Arc<Status>,
    metrics: Arc<Registry>,
    reactors: Vec<(Sender<ReactorMail>, JoinHandle<io::Result<()>>)>,
    workers: Vec<(Sender<UplinkBatch>, JoinHandle<()>)>,
    workers_stop: Arc<AtomicBool>,
}

impl Gateway {
    /// Binds, makes all threads, and serves.
    pub(super) fn start(config: &Config) -> Result<Self, GatewayError> {
        let cap = connections_max(config.limits.connections_max);
        let (listener, address) = bind(config)?;
        let judge = auth::judge(&config.auth)?;
        let metrics = Arc::new(Registry::new());
        let mut ticket_key = [0; 32];
        getrandom::fill(&mut ticket_key)
            .map_err(|error| GatewayError::system("ask for random bytes")(error.into()))?;
        let base = birth(ticket_key);
        let mut random = Random::new(getrandom::u64().unwrap_or(base.epoch));

        let mut reactor_berths = Vec::new();
        let mut reactor_senders = Vec::new();
        for _ in 0..config.reactors() {
            let (sender, berth) = reactor_berth().map_err(GatewayError::system("make a reactor's epoll"))?;
            reactor_senders.push(sender);
            reactor_berths.push(berth);
        }
        let workers_stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for number in 0..config.workers() {
            let sinks =
                reactor_senders.iter().map(|sender| Box::new(Sink(sender.clone())) as Box<dyn ShardSink>);
            let opened = Berth::open(config.worker.queue_batches);
            let (sender, berth) = opened.map_err(GatewayError::system("make a worker's epoll"))?;
            let parts = WorkerParts {
                settings: worker_settings(config, number, base.epoch, random.next_u64()),
                berth,
                shards: sinks.collect(),
                judge: judge.clone(),
                clock: Clock { now: clock::now, unix_now_s: clock::unix_seconds },
                stop: Arc::clone(&workers_stop),
                board: board(&metrics, worker::series()),
                registry: Some(Arc::clone(&metrics)),
            };
            let handle = worker::spawn(parts).map_err(GatewayError::system("start a worker"))?;
            workers.push((sender, handle));
        }

        let door = door(config, cap);
        let shards = reactor_senders.len();
        let mut reactors = Vec::new();
        for (number, (poll, inbox)) in reactor_berths.into_iter().enumerate() {
            let shard = ShardId(u8::try_from(number).expect("at most 256 reactors"));
            let settings = Settings::new(config, shard, shards, workers.len(), base, random.next_u64());
            let cloned = listener.try_clone().map_err(GatewayError::system("share the listening socket"))?;
            let parts = ReactorParts {
                listener: mio::net::TcpListener::from_std(cloned),
                door: Arc::clone(&door),
                clock: clock::now,
                inbox,
                reactors: reactor_senders.clone(),
                workers: workers.iter().map(|(sender, _)| sender.clone()).collect(),
                board: board(&metrics, reactor::series()),
                read_budget: config.reactor.read_budget.as_usize(),
                accept_budget: config.reactor.accept_budget,
            };
            let reactor =
                Reactor::new(poll, settings, parts).map_err(GatewayError::system("watch the listener"))?;
            let named = std::thread::Builder::new().name(format!("reactor-{number}"));
            let handle =
                named.spawn(move || reactor.run()).map_err(GatewayError::system("start a reactor"))?;
            reactors.push((reactor_senders[number].clone(), handle));
        }
        let status = Arc::new(Status::new(config).listening_at(address));
        let admin = start_admin(config, &status, &metrics)?;
        tracing::info!(listener = %address, reactors = reactors.len(), workers = workers.len(), connections_max = cap, "serving");
        Ok(Self { listener: address, admin, status, metrics, reactors, workers, workers_stop })
    }

    /// One line for people, scripts and tests.
    #[allow(clippy::print_stdout)] // the readiness line is this program's output
    pub(super) fn announce_ready(&self) {
        let admin = self.admin.as_ref().map_or_else(|| "off".to_owned(), |admin| admin.address().to_string());
        println!("moorline ready listener={} admin={admin} pid={}", self.listener, std::process::id());
    }

    /// Open client connections.
    pub(super) fn connections(&self) -> u64 {
        self.metrics.sum(crate::metrics::names::CONNECTIONS)
    }

    /// The name of a thread that ended though nobody asked it to.
    pub(super) fn ended_thread(&self) -> Option<String> {
        let reactors = self.reactors.iter().map(|(_, handle)| (handle.is_finished(), handle.thread()));
        let workers = self.workers.iter().map(|(_, handle)| (handle.is_finished(), handle.thread()));
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
        for (_, handle) in self.reactors {
            if let Ok(Err(error)) = handle.join() {
                tracing::error!(%error, "a reactor failed");
            }
        }
        self.workers_stop.store(true, Ordering::SeqCst);
        for (sender, handle) in self.workers {
            sender.wake().ok();
            handle.join().ok();
        }
        if let Some(admin) = self.admin {
            admin.stop();
        }
    }

    fn order(&self, make: impl Fn() -> ReactorMail) {
        for (reactor, handle) in &self.reactors {
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

/// The admin thread, if it is wanted.
fn start_admin(
    config: &Config,
    status: &Arc<Status>,
    metrics: &Arc<Registry>,
) -> Result<Option<Admin>, GatewayError> {
    if !config.admin.enabled {
        return Ok(None);
    }
    let address = config.admin.address;
    let listener = TcpListener::bind(address).map_err(|source| GatewayError::Bind {
        key: "admin.address",
        address,
        source,
    })?;
    let spawned = admin::spawn(listener, Arc::clone(status), Arc::clone(metrics));
    spawned.map(Some).map_err(GatewayError::system("start the admin thread"))
}

fn worker_settings(config: &Config, number: usize, epoch: u64, seed: u64) -> WorkerSettings {
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
                node: config.gateway_id(),
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
