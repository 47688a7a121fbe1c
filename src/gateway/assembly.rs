//! Assembles the threads and the mailboxes between them.

use super::GatewayError;
use super::admin_sockets::AdminSockets;
use super::adopt::{self, Origin};
use super::backends::Backends;
use super::listening::{self, ChangedListener, ListeningSocket};
use super::retired_sockets::RetiredSockets;
use super::threads::Thread;
use super::tls;
use super::trust;
use crate::admin::{Admin, Status};
use crate::auth;
use crate::config::{Balance, Config};
use crate::messages::{DownlinkBatch, ShardSink, UplinkBatch};
use crate::metrics::{CounterSet, Registry};
use crate::reactor::{self, Door, OpeningRules, Reactor, ReactorMail, ReactorParts};
use crate::router::{
    self, LINK_OUTPUT_MAX, LinkSettings, LinkTimes, OverloadLimits, PARKED_CHANGES_MAX, ParkingLimits,
    RouterSettings, Stores,
};
use crate::shard::{Birth, DrainOrder, Settings};
use crate::shard_map::{Pins, ShardMap};
use crate::sys::{clock, limits};
use crate::worker::{Inbox, SharedCredentials, Worker, WorkerParts};
use mio::Poll;
use moorline_net::cap::CapWatch;
use moorline_net::clock::Clock;
use moorline_net::layer::OpeningKind;
use moorline_net::mailbox::{self, SendError, Sender};
use moorline_proto::ids::ShardId;
use moorline_proto::message::backend::LinkHello;
use moorline_proto::random::Random;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Messages in a reactor's mailbox.
const REACTOR_MAIL_MAX: usize = 4096;
/// Descriptors that are reserved for everything except client connections.
const RESERVED_FDS: u64 = 100;
/// Limit of connections, unless the settings or the open-files limit are lower.
const CONNECTIONS_DEFAULT: usize = 1 << 20;
/// Longest wait for the end of the admin sockets of the settings before.
pub(super) const RETIRED_END_MAX: Duration = Duration::from_millis(500);
/// Interval of the attempts to put an order into a full mailbox.
const ORDER_RETRY: Duration = Duration::from_millis(1);
/// Attempts after which a reactor counts as stuck.
const ORDER_TRIES: usize = 5_000;

/// The running gateway.
pub(super) struct Gateway {
    /// Listening sockets, by number in the settings.
    pub(super) listeners: Vec<ListeningSocket>,
    pub(super) admin_sockets: AdminSockets,
    pub(super) admin: Option<Admin>,
    /// Admin sockets of the settings before.
    pub(super) retired_sockets: Arc<RetiredSockets>,
    pub(super) status: Arc<Status>,
    pub(super) metrics: Arc<Registry>,
    pub(super) door: Arc<Door>,
    pub(super) clock: Clock,
    pub(super) birth: Birth,
    pub(super) judge: auth::Judge,
    pub(super) identity: Option<tls::Identity>,
    pub(super) credentials: SharedCredentials,
    pub(super) node: String,
    /// Mailboxes of the reactors, by shard, and of the workers.
    pub(super) reactor_mail: Vec<Sender<ReactorMail>>,
    pub(super) worker_mail: Vec<Sender<UplinkBatch>>,
    /// Shard counts of this gateway's life, oldest first.
    pub(super) shard_map: ShardMap,
    /// True if there were fewer shards or workers in an earlier process of this series.
    pub(super) has_grown: bool,
    /// Connections of an earlier process of this series may have a layer.
    pub(super) has_layers: bool,
    /// Limit of connections.
    pub(super) cap: usize,
    pub(super) reactor_threads: Vec<Thread>,
    pub(super) worker_threads: Vec<Thread>,
    pub(super) workers_stop: Arc<AtomicBool>,
}

/// A gateway whose threads have not started ([`super::launch`]): it reads and writes nothing yet.
pub(super) struct Prepared {
    /// Listening sockets, by number in the settings.
    pub(super) listeners: Vec<ListeningSocket>,
    pub(super) admin_sockets: AdminSockets,
    pub(super) status: Arc<Status>,
    pub(super) metrics: Arc<Registry>,
    pub(super) door: Arc<Door>,
    pub(super) clock: Clock,
    pub(super) birth: Birth,
    pub(super) judge: auth::Judge,
    pub(super) identity: Option<tls::Identity>,
    pub(super) credentials: SharedCredentials,
    pub(super) node: String,
    pub(super) shard_map: ShardMap,
    pub(super) has_grown: bool,
    /// Connections of an earlier process of this series may have a layer.
    pub(super) has_layers: bool,
    pub(super) reactor_mail: Vec<Sender<ReactorMail>>,
    pub(super) reactors: Vec<(Poll, Reactor)>,
    pub(super) worker_mail: Vec<Sender<UplinkBatch>>,
    pub(super) workers: Vec<(Poll, Worker)>,
    /// Threads for reactors, and for workers.
    pub(super) threads: (usize, usize),
    pub(super) workers_stop: Arc<AtomicBool>,
    pub(super) cap: usize,
    pub(super) left: Leftovers,
    /// Number of connections that were adopted with their socket.
    pub(super) connections_taken: u64,
}

/// Things of the process before that the settings do not have any more.
#[derive(Default)]
pub(super) struct Leftovers {
    /// Listening sockets; connections that wait in their queues are admitted.
    pub(super) retired: Vec<(TcpListener, OpeningKind)>,
    /// Listeners of another kind; connections that wait in their queues are served as the kind of before.
    pub(super) changed: Vec<ChangedListener>,
    /// Settings that do not count until a full restart, for people.
    pub(super) kept: Vec<String>,
    /// Connections in the middle of a TLS handshake, which are closed.
    pub(super) handshakes: usize,
}

/// Parts that all threads share.
struct Common<'a> {
    config: &'a Config,
    birth: Birth,
    shard_map: &'a ShardMap,
    node: &'a str,
    metrics: &'a Arc<Registry>,
    door: &'a Arc<Door>,
    clock: &'a Clock,
    judge: auth::Judge,
    credentials: SharedCredentials,
    backends: Backends,
    openings: OpeningRules,
    reactors: Vec<Sender<ReactorMail>>,
    workers: Vec<Sender<UplinkBatch>>,
    workers_stop: Arc<AtomicBool>,
}

impl Common<'_> {
    fn worker(&self, number: usize, inbox: Inbox, seed: u64) -> (Poll, Worker) {
        let sinks = self.reactors.iter().map(|sender| Box::new(Sink(sender.clone())) as Box<dyn ShardSink>);
        Worker::new(WorkerParts {
            settings: router_settings(
                self.config,
                self.node,
                number,
                self.birth.epoch,
                seed,
                self.shard_map.clone(),
                self.backends.stores.clone(),
            ),
            inbox,
            shards: sinks.collect(),
            judge: self.judge.clone(),
            clock: self.clock.clone(),
            unix_base_nanos: self.birth.unix_base_nanos,
            stop: Arc::clone(&self.workers_stop),
            counter_set: counter_set(self.metrics, router::metrics()),
            peer_uids: trust::peer_uids(self.config),
            credentials: Arc::clone(&self.credentials),
            resolver: self.backends.resolver.clone(),
            registry: Some(Arc::clone(self.metrics)),
        })
    }

    /// Makes the workers, in order; those of the process before go on where they stood.
    fn workers(
        &self,
        inboxes: Vec<(Sender<UplinkBatch>, Inbox)>,
        random: &mut Random,
        mut origin: Option<&mut Origin<'_, '_>>,
    ) -> Result<Vec<(Poll, Worker)>, GatewayError> {
        let mut workers = Vec::new();
        for (number, (_, inbox)) in inboxes.into_iter().enumerate() {
            let (poll, mut worker) = self.worker(number, inbox, random.next_u64());
            if let Some(origin) = &mut origin {
                origin.thaw_worker(number, &mut worker)?;
            }
            workers.push((poll, worker));
        }
        Ok(workers)
    }

    /// Makes the reactors, in order; those of the process before go on where they stood.
    fn reactors(
        &self,
        inboxes: Vec<(Sender<ReactorMail>, ReactorInbox)>,
        listeners: &[ListeningSocket],
        random: &mut Random,
        mut origin: Option<&mut Origin<'_, '_>>,
    ) -> Result<Vec<(Poll, Reactor)>, GatewayError> {
        let mut reactors = Vec::new();
        for (number, (_, (poll, inbox))) in inboxes.into_iter().enumerate() {
            let (settings, parts) = self.reactor_parts(number, inbox, listeners, random.next_u64())?;
            let reactor = match &mut origin {
                None => Reactor::new(&poll, settings, parts)
                    .map_err(GatewayError::system("watch the listeners"))?,
                Some(origin) => origin.thaw_reactor(number, &poll, settings, parts)?,
            };
            reactors.push((poll, reactor));
        }
        Ok(reactors)
    }

    fn reactor_parts(
        &self,
        number: usize,
        inbox: mailbox::Receiver<ReactorMail>,
        listeners: &[ListeningSocket],
        seed: u64,
    ) -> Result<(Settings, ReactorParts), GatewayError> {
        let shard = ShardId(u8::try_from(number).expect("at most 256 reactors"));
        let settings =
            Settings::new(self.config, shard, self.shard_map.clone(), self.workers.len(), self.birth, seed);
        self.metrics.carry(&reactor::own_metrics(listeners.len()));
        let share =
            |listener: &ListeningSocket| listener.socket.try_clone().map(mio::net::TcpListener::from_std);
        let shared = listeners.iter().map(share).collect::<io::Result<Vec<_>>>();
        let parts = ReactorParts {
            listeners: shared.map_err(GatewayError::system("share a listening socket"))?,
            openings: self.openings.clone(),
            door: Arc::clone(self.door),
            clock: self.clock.clone(),
            inbox,
            reactors: self.reactors.clone(),
            workers: self.workers.clone(),
            counter_set: counter_set(self.metrics, reactor::metrics(listeners.len())),
            kept: self.metrics.show_cap(Arc::new(CapWatch::new("session.kept_max"))),
            read_budget: self.config.reactor.read_budget.as_usize(),
            accept_budget: self.config.reactor.accept_budget,
        };
        Ok((settings, parts))
    }
}

impl Prepared {
    /// Makes a gateway without connections.
    pub(super) fn fresh(config: &Config) -> Result<Self, GatewayError> {
        let listeners = listening::bind_all(config)?;
        let admin_sockets = AdminSockets::bind(config)?;
        let mut ticket_key = [0; 32];
        getrandom::fill(&mut ticket_key)
            .map_err(|error| GatewayError::system("ask for random bytes")(error.into()))?;
        let clock = clock::machine_clock();
        let birth = birth(ticket_key, &clock);
        let inboxes = Inboxes::open(config, config.reactors(), config.workers())?;
        // The same endpoint speaks for a user in every gateway only if all of them know the user's slot.
        let pins = match config.backend.balance {
            Balance::Hash => Pins::KeyedButSlot,
            Balance::Cluster => Pins::Cluster,
            Balance::LeastLoaded | Balance::Weighted => Pins::Keyed,
        };
        let key = adopt::new_user_key(pins)?;
        let shard_map = ShardMap::new(config.reactors()).with_key(key);
        Self::assemble(config, listeners, admin_sockets, (birth, clock), (shard_map, inboxes), None)
    }

    pub(super) fn assemble(
        config: &Config,
        listeners: Vec<ListeningSocket>,
        admin_sockets: AdminSockets,
        (birth, clock): (Birth, Clock),
        (shard_map, inboxes): (ShardMap, Inboxes),
        mut origin: Option<Origin<'_, '_>>,
    ) -> Result<Self, GatewayError> {
        let (cap, judge) = (connections_max(config.limits.connections_max)?, auth::judge(&config.auth)?);
        let metrics = Arc::new(Registry::new());
        let ticket_keys = origin.as_ref().map_or(&[][..], |origin| &origin.inherited.head.tls_ticket_keys);
        let identity = tls::Identity::load(config, &clock, ticket_keys, &metrics)?;
        let mut random = Random::new(getrandom::u64().unwrap_or(birth.epoch));
        let door = Door::new(cap, listening::limits(config));
        door.caps().iter().for_each(|watch| drop(metrics.show_cap(Arc::clone(watch))));
        let gateway_id = match &origin {
            Some(Origin { inherited, accepted, .. }) => {
                (0..).zip(accepted).for_each(|(listener, until)| door.thaw(listener, *until));
                inherited.addresses.iter().for_each(|address| door.thaw_address(address));
                inherited.head.gateway_id.clone()
            }
            None => config.gateway_id(),
        };
        let workers: Vec<_> = inboxes.workers.iter().map(|(sender, _)| sender.clone()).collect();
        let common = Common {
            config,
            birth,
            shard_map: &shard_map,
            node: &gateway_id,
            metrics: &metrics,
            door: &door,
            clock: &clock,
            judge,
            credentials: trust::shared(config, &gateway_id, &clock)?,
            openings: tls::opening_rules(config, identity.as_ref())?,
            backends: Backends::start(config, workers.clone(), &metrics)?,
            reactors: inboxes.reactors.iter().map(|(sender, _)| sender.clone()).collect(),
            workers,
            workers_stop: Arc::new(AtomicBool::new(false)),
        };
        let workers = common.workers(inboxes.workers, &mut random, origin.as_mut())?;
        let reactors = common.reactors(inboxes.reactors, &listeners, &mut random, origin.as_mut())?;
        door.end_readmission();
        let credentials = Arc::clone(&common.credentials);
        let Common { reactors: reactor_mail, workers: worker_mail, workers_stop, judge, backends, .. } =
            common;
        let status = Arc::new(Status::new(config, &gateway_id).listening_at(listening::named(&listeners)));
        status.watch_backends(backends.problems());
        metrics.add(status.restarts.counter_set());
        Ok(Self {
            listeners,
            admin_sockets,
            status,
            metrics,
            door,
            clock,
            birth,
            judge,
            identity,
            credentials,
            node: gateway_id,
            shard_map,
            has_grown: false,
            has_layers: false,
            reactor_mail,
            reactors,
            worker_mail,
            workers,
            threads: (config.reactors(), config.workers()),
            workers_stop,
            cap,
            left: Leftovers::default(),
            connections_taken: origin.map_or(0, |origin| origin.connections),
        })
    }
}

impl Gateway {
    /// Open client connections.
    pub(super) fn connections(&self) -> u64 {
        self.metrics.sum(crate::metrics::names::CONNECTIONS)
    }

    /// Returns the name of a thread that ended without an order; `None`: all threads run.
    pub(super) fn ended_thread(&self) -> Option<String> {
        let mut threads = self.reactor_threads.iter().chain(&self.worker_threads);
        threads.find(|thread| thread.handle.is_finished()).map(|thread| thread.name.clone())
    }

    /// Refuses logins and asks every client to leave. `rate`: clients per second of all reactors together; `None`: all
    /// at once.
    pub(super) fn drain(&self, grace: Duration, rate: Option<u32>, alternates: &Arc<[String]>) {
        self.status.set_draining(true);
        let reactors = u32::try_from(self.reactor_mail.len()).unwrap_or(1);
        let rate = rate.map(|rate| rate.div_ceil(reactors));
        let order = DrainOrder { grace, rate, alternates: Arc::clone(alternates) };
        self.order(|| ReactorMail::Drain(order.clone()));
    }

    /// Ends a drain, and listens again.
    ///
    /// # Errors
    /// Another process listens at one of the addresses now.
    pub(super) fn undrain(&self, config: &Config) -> Result<(), String> {
        listening::reopen_all(&self.listeners, config)
            .map_err(|(address, error)| format!("cannot listen at {address} again: {error}"))?;
        (0..).zip(&self.listeners).for_each(|(listener, _)| _ = self.door.set_listening(listener, true));
        self.order(|| ReactorMail::Undrain);
        self.status.set_draining(false);
        Ok(())
    }

    /// Puts the limits of these settings in force, as far as they may change while clients are connected.
    pub(super) fn set_limits(&self, config: &Config) {
        self.door.set_limits(listening::limits(config));
        let workers = self.worker_mail.len();
        for (number, reactor) in (0u8..).zip(&self.reactor_mail) {
            let map = self.shard_map.clone();
            let settings = Settings::new(config, ShardId(number), map, workers, self.birth, 0);
            send(usize::from(number), reactor, || ReactorMail::Reload(Box::new(settings.clone())));
        }
    }

    /// Ends every connection and thread.
    pub(super) fn stop(&self) {
        self.status.set_draining(true);
        self.order(|| ReactorMail::Stop);
    }

    /// Waits for the threads: first the reactors, which still hand over, then the workers.
    pub(super) fn join(self) {
        for Thread { name, handle, .. } in self.reactor_threads {
            if let Ok(Err(error)) = handle.join() {
                tracing::error!(%error, name, "a reactor failed");
            }
        }
        self.workers_stop.store(true, Ordering::SeqCst);
        self.worker_mail.iter().for_each(|sender| _ = sender.wake());
        for Thread { handle, .. } in self.worker_threads {
            _ = handle.join();
        }
        self.retired_sockets.end_within(RETIRED_END_MAX);
        if let Some(admin) = self.admin {
            admin.stop();
        }
    }

    fn order(&self, make: impl Fn() -> ReactorMail) {
        for (number, reactor) in self.reactor_mail.iter().enumerate() {
            send(number, reactor, &make);
        }
    }
}

/// Sends an order to a reactor; waits while its mailbox is full.
fn send(number: usize, reactor: &Sender<ReactorMail>, make: impl Fn() -> ReactorMail) {
    let is_taken = (0..ORDER_TRIES).any(|_| match reactor.try_send(make()) {
        Err(SendError::Full(_)) => {
            std::thread::park_timeout(ORDER_RETRY);
            false
        }
        Ok(()) | Err(SendError::Gone(_)) => true,
    });
    if !is_taken {
        tracing::error!(reactor = number, "a reactor is stuck: its mailbox stays full");
    }
}

struct Sink(Sender<ReactorMail>);

impl ShardSink for Sink {
    fn try_deliver(&self, batch: DownlinkBatch, may_run: bool) -> Result<(), DownlinkBatch> {
        let mail = ReactorMail::Downlink(batch);
        match if may_run { self.0.try_send_and_run(mail) } else { self.0.try_send(mail) } {
            Err(SendError::Full(ReactorMail::Downlink(batch))) => Err(batch),
            // The reactor ended, and its connections with it.
            _ => Ok(()),
        }
    }
}

/// Poll and mailbox of a reactor, made before its thread so that other threads get the sender.
pub(super) type ReactorInbox = (Poll, mailbox::Receiver<ReactorMail>);

pub(super) fn reactor_inbox() -> io::Result<(Sender<ReactorMail>, ReactorInbox)> {
    let poll = Poll::new()?;
    let waker = reactor::waker(poll.registry())?;
    let (sender, inbox) = mailbox::mailbox(REACTOR_MAIL_MAX, waker);
    Ok((sender, (poll, inbox)))
}

fn counter_set(registry: &Registry, metrics: Vec<crate::metrics::Metric>) -> Arc<CounterSet> {
    let counter_set = Arc::new(CounterSet::new(metrics));
    registry.add(Arc::clone(&counter_set));
    counter_set
}

/// Polls and mailboxes of all threads.
pub(super) struct Inboxes {
    pub(super) reactors: Vec<(Sender<ReactorMail>, ReactorInbox)>,
    pub(super) workers: Vec<(Sender<UplinkBatch>, Inbox)>,
}

impl Inboxes {
    pub(super) fn open(config: &Config, reactors: usize, workers: usize) -> Result<Self, GatewayError> {
        let reactor = |_| reactor_inbox().map_err(GatewayError::system("make a reactor's epoll"));
        let worker = |_| {
            Inbox::open(config.worker.queue_batches).map_err(GatewayError::system("make a worker's epoll"))
        };
        Ok(Self {
            reactors: (0..reactors).map(reactor).collect::<Result<_, _>>()?,
            workers: (0..workers).map(worker).collect::<Result<_, _>>()?,
        })
    }
}

/// Returns the Unix time of zero on the gateway's own clock, in nanoseconds.
pub(super) fn unix_base(clock: &Clock) -> u64 {
    clock.unix_nanos().saturating_sub(clock.now().as_nanos())
}

fn router_settings(
    config: &Config,
    node: &str,
    number: usize,
    epoch: u64,
    seed: u64,
    shard_map: ShardMap,
    stores: Stores,
) -> RouterSettings {
    let backend = &config.backend;
    let is_cluster = shard_map.key().pins() == Pins::Cluster;
    RouterSettings {
        number: u16::try_from(number).expect("at most 256 workers"),
        endpoints: backend.endpoints.clone(),
        stores,
        links_per_endpoint: backend.links_per_worker,
        // Slots stay what they were in the process before.
        balance: match backend.balance {
            _ if is_cluster => router::Balance::Cluster,
            Balance::LeastLoaded | Balance::Cluster => router::Balance::LeastLoaded,
            Balance::Hash => router::Balance::Hash,
            Balance::Weighted => router::Balance::Weighted(backend.weights.clone()),
        },
        link: LinkSettings {
            hello: LinkHello {
                version_min: u32::from(moorline_proto::link::LINK_VERSION),
                version_max: u32::from(moorline_proto::link::LINK_VERSION),
                node: node.to_owned(),
                epoch,
                capacity: u32::try_from(config.limits.connections_max).unwrap_or(u32::MAX),
                agent: concat!("moorline/", env!("CARGO_PKG_VERSION")).to_owned(),
                knows_slots: is_cluster,
                ..LinkHello::default()
            },
            times: LinkTimes::default(),
            reconnect_min: backend.reconnect_min,
            reconnect_max: backend.reconnect_max,
            up_timeout: backend.up_timeout,
            output_max: LINK_OUTPUT_MAX,
            pending_bytes: backend.pending_bytes.as_usize(),
            body_max: config.limits.body_max.as_usize(),
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
        shard_map,
    }
}

/// Returns the limit of connections: the configured one, or the open-files limit if that is lower.
///
/// # Errors
/// The open-files limit leaves no room for a client.
fn connections_max(configured: usize) -> Result<usize, GatewayError> {
    let limit = limits::raise_open_files();
    let room = usize::try_from(limit.saturating_sub(RESERVED_FDS)).unwrap_or(usize::MAX);
    if room == 0 {
        return Err(GatewayError::OpenFiles { limit, reserved: RESERVED_FDS });
    }
    Ok(match configured {
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
    })
}

fn birth(ticket_key: [u8; 32], clock: &Clock) -> Birth {
    Birth { epoch: clock.unix_nanos(), unix_base_nanos: unix_base(clock), ticket_key }
}
