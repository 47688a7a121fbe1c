//! The worker pool: each worker is a thread that owns a slice of the users (by pin) and its own links
//! to every backend endpoint.
//!
//! Owns: its links, the assignment of slots to links, what waits for a link, the batches for the
//! shards. Driven by its own poll; knows reactors only through [`crate::handoff`] and
//! [`moorline_net::mailbox`]. Must not block: no lock, no blocking call, one clock read per turn.
//!
//! ```text
//! shards --UplinkBatch--> mailbox --> uplink ----> slot live?  --yes--> link output --> backend
//!                                        |             '--no--> parking --(announced, credit)--^
//!                                        '-> logins --> Verify
//! shards <--DownlinkBatch-- outbox <-- inbound <-- link input <---------------------- backend
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `turn` | the loop |
//! | `uplink` | what shards send |
//! | `inbound` | what backends send |
//! | `logins` | HELLOs, judged here or by a backend |
//! | `failover` | links come and go: slots, announcements, re-sending |
//! | `endpoints` | balance, breakers |
//! | `rooms` | bindings, digests, questions |
//! | `pressure`, `overload` | whom not to read, how much to shed, the load |
//! | `parking`, `announce`, `answers`, `outbox` | the parts, each on its own |

mod endpoints;
mod failover;
mod freezing;
mod inbound;
mod logins;
mod pressure;
mod rooms;
mod token;
mod turn;
mod uplink;

#[cfg(test)]
mod tests;

pub use crate::router::{Count, OverloadLimits, ParkingLimits, Tally, series};
pub use endpoints::Balance;

use crate::auth::Judge;
use crate::handoff::{ShardSink, UplinkBatch};
use crate::homes::Homes;
use crate::link::{Link, LinkIndex, LinkSettings, Slots, Up};
use crate::metrics::{Board, Registry};
use crate::router::{Announcement, Answers, Outbox, Overload, Parking};
use endpoints::Endpoints;
use logins::AskedLogins;
use mio::{Events, Poll, Waker};
use moorline_net::mailbox::{self, Receiver, Sender};
use moorline_net::read_block::ReadBlock;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend;
use moorline_proto::message::client::Hello;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use pressure::Pressure;
use rooms::{Queries, Round};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use token::Source;

/// Waiting output of a link above which no UP is added, in bytes.
pub const LINK_OUTPUT_MAX: usize = 4 << 20;
/// Login changes that may wait behind parked UPs.
pub const PARKED_CHANGES_MAX: usize = 64 << 10;
/// HELLOs that may wait to be judged; more are turned away BUSY.
pub const LOGINS_MAX: usize = 16 << 10;

/// What a worker is told at start.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Which worker this is.
    pub number: u16,
    /// Where backends listen. Empty: every UP is answered RETRY after its timeout.
    pub endpoints: Vec<SocketAddr>,
    /// Links to each endpoint.
    pub links_per_endpoint: usize,
    /// How users are spread over endpoints.
    pub balance: Balance,
    /// What the links have in common.
    pub link: LinkSettings,
    /// How much may wait for a link.
    pub parking: ParkingLimits,
    /// When load is shed.
    pub overload: OverloadLimits,
    /// Shortest body of a push to many that is compressed, in bytes; 0: none is.
    pub compress_min: usize,
    /// Seed of the jitter.
    pub seed: u64,
    /// Where users are looked for.
    pub homes: Homes,
}

/// Where a worker reads the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The monotonic clock.
    pub now: fn() -> Instant,
    /// Whole seconds since 1970.
    pub unix_now_s: fn() -> u64,
}

/// A worker's poll and mailbox, made before its thread so that shards can be given the sender.
#[derive(Debug)]
pub struct Berth {
    poll: Poll,
    mailbox: Receiver<UplinkBatch>,
}

impl Berth {
    /// A poll, and a mailbox of at most `batches_max` batches that wakes it.
    ///
    /// # Errors
    /// The system's: no file descriptors left.
    pub fn open(batches_max: usize) -> io::Result<(Sender<UplinkBatch>, Self)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Source::Mailbox.into())?;
        let (sender, mailbox) = mailbox::mailbox(batches_max, waker);
        Ok((sender, Self { poll, mailbox }))
    }
}

/// Everything a worker needs.
pub struct WorkerParts {
    /// What it is told.
    pub settings: WorkerSettings,
    /// Where it waits.
    pub berth: Berth,
    /// The shards, by number.
    pub shards: Vec<Box<dyn ShardSink>>,
    /// Who judges HELLOs.
    pub judge: Judge,
    /// The time.
    pub clock: Clock,
    /// Set it and wake the worker ([`Sender::wake`]): it sends what it has, for at most half a second,
    /// and ends.
    pub stop: Arc<AtomicBool>,
    /// Where its numbers go, once per turn: a board of [`series`].
    pub board: Arc<Board>,
    /// All numbers of the process, for the load that backends are told; `None`: they are not.
    pub registry: Option<Arc<Registry>>,
}

/// The state of one worker's thread.
pub struct Worker {
    settings: WorkerSettings,
    clock: Clock,
    poll: Poll,
    mailbox: Receiver<UplinkBatch>,
    judge: Judge,
    stop: Arc<AtomicBool>,
    board: Arc<Board>,
    registry: Option<Arc<Registry>>,

    links: Vec<Link>,
    endpoints: Endpoints,
    slots: Slots,
    parking: Parking,
    announcements: Vec<Announcement>,
    outbox: Outbox,
    logins: VecDeque<(ConnKey, Box<Hello>)>,
    asked: AskedLogins,
    round: Round,
    queries: Queries,
    overload: Overload,
    pressure: Pressure,

    answers: Answers,
    block: ReadBlock,
    random: Random,
    tally: Tally,
    scratch: Scratch,

    /// This turn's time.
    now: Instant,
    stop_at: Option<Instant>,
    next_request: u32,
    /// Slots may sit unevenly on the links.
    needs_balance: bool,
    /// Output was freed that something waits for: do not sleep.
    is_hurried: bool,
    events: Events,
}

/// Memory that is used again every turn.
#[derive(Default)]
struct Scratch {
    push: backend::Push,
    targets: Vec<Vec<crate::handoff::Target>>,
    timed_out: Vec<Up>,
}

impl Worker {
    /// A worker without links.
    pub fn new(parts: WorkerParts) -> Self {
        let WorkerParts { settings, berth, shards, judge, clock, stop, board, registry } = parts;
        let addresses = settings.endpoints.iter();
        let each = |address: &SocketAddr| vec![*address; settings.links_per_endpoint];
        let links: Vec<Link> =
            addresses.flat_map(each).map(|address| Link::new(address, &settings.link)).collect();
        assert!(u16::try_from(links.len()).is_ok(), "a worker has at most 65,535 links");
        let asked = logins::asked_logins(links.len(), settings.link.up_timeout);
        let balance = settings.balance.clone();
        let endpoints = Endpoints::new(&settings.endpoints, settings.links_per_endpoint, balance);
        let targets = shards.iter().map(|_| Vec::new()).collect();
        Self {
            links,
            endpoints,
            slots: Slots::default(),
            parking: Parking::new(settings.parking, settings.link.up_timeout),
            announcements: Vec::new(),
            outbox: Outbox::new(shards),
            logins: VecDeque::new(),
            asked,
            round: Round::default(),
            queries: Queries::default(),
            overload: Overload::new(settings.overload),
            pressure: Pressure::default(),
            answers: Answers::new(),
            block: ReadBlock::default(),
            random: Random::new(settings.seed),
            tally: Tally::default(),
            scratch: Scratch { targets, ..Default::default() },
            now: (clock.now)(),
            stop_at: None,
            next_request: 0,
            needs_balance: false,
            is_hurried: false,
            events: Events::with_capacity(turn::EVENTS_PER_TURN),
            settings,
            clock,
            poll: berth.poll,
            mailbox: berth.mailbox,
            judge,
            stop,
            board,
            registry,
        }
    }

    fn link(&mut self, index: LinkIndex) -> &mut Link {
        &mut self.links[index.index()]
    }

    fn indices(&self) -> impl Iterator<Item = LinkIndex> + use<> {
        (0..u16::try_from(self.links.len()).expect("checked at start")).map(LinkIndex)
    }
}
