//! The worker pool: each worker is a thread that drives one [`Router`] with its own links to every backend
//! endpoint.
//!
//! Owns: thread, poll, mailbox, sockets. The router decides everything else. A worker knows reactors only through
//! [`crate::messages`] and [`moorline_net::mailbox`]. Must not block: no lock, no blocking call, one clock read per turn.
//!
//! Run-through: a shard's batch wakes the worker's poll. The turn reads the clock, gives the batch to the router,
//! reads the links that have bytes, fires deadlines, and then does what the router has ordered: one write per link,
//! one batch per shard.
//!
//! | file | holds |
//! |---|---|
//! | `turn` | the loop |
//! | `dial` | the way to an endpoint: the addresses of a name |
//! | `perform` | the router's orders, performed |
//! | `socket` | a link's socket |
//! | `tls` | its TLS, and the threads for handshakes |
//! | `freezing` | the sockets, named for a snapshot and taken over from one |

mod dial;
mod freezing;
mod perform;
mod socket;
mod tls;
mod token;
mod turn;

#[cfg(test)]
mod tests;

use crate::auth::Judge;
use crate::messages::{ShardSink, UplinkBatch};
use crate::metrics::{CounterSet, Registry};
use crate::router::{Router, RouterSettings};
use dial::Dial;
use mio::{Poll, Waker};
use moorline_net::clock::Clock;
use moorline_net::mailbox::{self, Receiver, Sender};
use moorline_net::read_block::ReadBlock;
use moorline_net::resolve::Resolver;
use moorline_proto::time::Instant;
use socket::Socket;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tls::Handshaken;
use token::Source;

/// A worker's poll and mailbox, made before its thread so that shards can be given the sender.
#[derive(Debug)]
pub struct Inbox {
    poll: Poll,
    epoll: mio::Registry,
    mailbox: Receiver<UplinkBatch>,
    /// Wakes the worker.
    bell: Sender<UplinkBatch>,
}

impl Inbox {
    /// A poll, and a mailbox of at most `batches_max` batches that wakes it.
    ///
    /// # Errors
    /// The system's: no file descriptors left.
    pub fn open(batches_max: usize) -> io::Result<(Sender<UplinkBatch>, Self)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Source::Mailbox.into())?;
        let (sender, mailbox) = mailbox::mailbox(batches_max, waker);
        let epoll = poll.registry().try_clone()?;
        Ok((sender.clone(), Self { poll, epoll, mailbox, bell: sender }))
    }
}

pub use tls::{Credentials, LinkTls, SharedCredentials};

/// Everything a worker needs.
pub struct WorkerParts {
    /// Settings of its router.
    pub settings: RouterSettings,
    /// Poll and mailbox.
    pub inbox: Inbox,
    /// Mailboxes of the shards, by number.
    pub shards: Vec<Box<dyn ShardSink>>,
    /// Judge of HELLOs.
    pub judge: Judge,
    /// The time.
    pub clock: Clock,
    /// Unix time at zero of the clock, in nanoseconds, as the shards have it.
    pub unix_base_nanos: u64,
    /// Set this and wake the worker ([`Sender::wake`]): it sends what it has, for at most half a second,
    /// and ends.
    pub stop: Arc<AtomicBool>,
    /// Figures are published here once per turn: a counter set of [`crate::router::metrics`].
    pub counter_set: Arc<CounterSet>,
    /// User ids that a backend at a Unix socket may have.
    pub peer_uids: Vec<u32>,
    /// Reasons to believe a backend, and TLS, for connections from now on.
    pub credentials: SharedCredentials,
    /// Addresses of the names among the endpoints. Wake the worker when an answer has come.
    pub resolver: Resolver,
    /// All figures of the process, for the load that backends are told; `None`: backends are not told.
    pub registry: Option<Arc<Registry>>,
}

/// The state of one worker's thread.
pub struct Worker {
    number: u16,
    router: Router,
    clock: Clock,
    unix_base_nanos: u64,
    /// Registration with the poll of the thread.
    epoll: mio::Registry,
    mailbox: Receiver<UplinkBatch>,
    shards: Vec<Box<dyn ShardSink>>,
    stop: Arc<AtomicBool>,
    counter_set: Arc<CounterSet>,
    peer_uids: Vec<u32>,
    credentials: SharedCredentials,
    bell: Sender<UplinkBatch>,
    /// Results of the threads for handshakes.
    results: (crossbeam_channel::Sender<Handshaken>, crossbeam_channel::Receiver<Handshaken>),
    /// Connections that began a handshake.
    connections: u64,
    resolver: Resolver,
    /// Links may wait for the addresses of their name.
    has_pending_names: bool,
    registry: Option<Arc<Registry>>,
    /// By link.
    dials: Vec<Dial>,
    /// By link; `None`: the link has no connection.
    sockets: Vec<Option<Socket>>,
    block: ReadBlock,
    /// Memory for encrypted records, which holds nothing between two writes.
    scratch: Vec<u8>,
    /// Time of this turn.
    now: Instant,
    stop_at: Option<Instant>,
}

impl Worker {
    /// A worker without connections, and the poll that watches its sockets. Panics if there is not one mailbox for each
    /// shard.
    pub fn new(parts: WorkerParts) -> (Poll, Self) {
        let WorkerParts {
            settings,
            inbox,
            shards,
            judge,
            clock,
            unix_base_nanos,
            stop,
            counter_set,
            peer_uids,
            credentials,
            resolver,
            registry,
        } = parts;
        assert_eq!(shards.len(), settings.shard_map.shards(), "one mailbox for each shard");
        let (number, now, dials) = (settings.number, clock.now(), Dial::all_of(&settings));
        let router = Router::new(settings, judge, now);
        let Inbox { poll, epoll, mailbox, bell } = inbox;
        let worker = Self {
            number,
            dials,
            sockets: router.links().map(|_| None).collect(),
            router,
            clock,
            unix_base_nanos,
            epoll,
            mailbox,
            shards,
            stop,
            counter_set,
            peer_uids,
            credentials,
            bell,
            results: crossbeam_channel::bounded(tls::RESULTS_MAX),
            connections: 0,
            resolver,
            has_pending_names: false,
            registry,
            block: ReadBlock::default(),
            scratch: Vec::new(),
            now,
            stop_at: None,
        };
        (poll, worker)
    }
}
