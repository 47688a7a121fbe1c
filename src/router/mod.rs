//! A worker's whole state and rules: which link takes which user, what waits, what is answered. Pure: no thread,
//! poll, socket or clock.
//!
//! Contract: every `handle_*` takes an input and the time, and changes the state. Then the owner takes
//! [`Output`]s, in order, until there are none ([`Router::poll_output`]). [`Router::handle_turn_end`] closes a
//! turn: at most one write per link and one batch per shard. [`Router::next_deadline`] says when the router has
//! something to do though nothing happens.
//!
//! ```text
//! shards --UplinkBatch--> uplink ----> slot live?  --yes--> link output --> backend
//!                           |             '--no--> parking --(announced, credit)--^
//!                           '-> logins --> Verify
//! shards <--DownlinkBatch-- outbox <-- inbound <-- link input <------------ backend
//! ```
//!
//! Run-through: alice's shard hands over her SEND. Her pin's slot is live on link 2, which has credit: the UP is
//! appended to that link's output and noted as pending. The turn ends with `Write(2)`. Later the bytes of
//! UP_RESULT arrive on link 2: the pending UP is settled, and a SENDACK goes into the lane of alice's shard. That
//! turn ends with `Deliver` for this shard.
//!
//! | file | holds |
//! |---|---|
//! | `uplink` | input of shards |
//! | `greeting` | the first frames of a link: who is at its other end |
//! | `stores` | the store of the backends, which is one |
//! | `inbound` | input of links |
//! | `failover` | links come and go: slots, announcements, re-sending |
//! | `check` | invariants, for tests |
//! | `freezing` | the state written down, and read in the process that takes over |
//! | `links`, `state`, `pending`, `confirmed`, `backoff` | a link: its buffers, phase, questions, what was read, retries |
//! | `slots`, `endpoints`, `breaker` | which link takes which users |
//! | `learned` | links to nodes that the settings do not name |
//! | `cluster` | slots of a cluster, by the answers of its nodes |
//! | `ups`, `parking`, `answers` | client frames: sent, waiting, answered |
//! | `announce`, `outbox` | announcements; batches for shards |
//! | `logins`, `push`, `rooms` | HELLOs; pushes and kicks; bindings, digests, questions |
//! | `pressure`, `overload` | clients that are not read, shed load, the load |

mod announce;
mod answers;
mod backoff;
mod breaker;
mod check;
mod cluster;
mod confirmed;
mod counters;
mod endpoints;
mod failover;
mod freezing;
mod greeting;
mod inbound;
mod learned;
mod links;
mod logins;
mod outbox;
mod overload;
mod parking;
mod pending;
mod pressure;
mod push;
mod rooms;
mod sides;
mod slots;
mod state;
mod stores;
#[cfg(test)]
mod tests;
mod up;
mod uplink;
mod ups;

pub use breaker::{Breaker, Share};
pub use counters::{Count, Counters, metrics};
pub use endpoints::Balance;
pub use freezing::{FrozenSocket, LinkSocket, queued_bodies};
pub use greeting::{Connected, Trust, Unproven};
pub use links::LinkSettings;
pub use overload::OverloadLimits;
pub use parking::ParkingLimits;
pub use pressure::Load;
pub use slots::{LinkIndex, Split};
pub use state::{Failure, LinkTimes};
pub use stores::Stores;

use crate::auth::Judge;
use crate::messages::{DownlinkBatch, UplinkBatch};
use crate::shard_map::ShardMap;
use announce::Announcements;
use answers::Answers;
use backoff::Backoff;
use cluster::Cluster;
use confirmed::{Confirmed, End};
use endpoints::Endpoints;
use greeting::GreetingLog;
use links::Links;
use logins::Logins;
use moorline_proto::ids::ShardId;
use moorline_proto::link::Endpoint;
pub use moorline_proto::slots::Slot;
use moorline_proto::slots::SlotSet;
use moorline_proto::time::Instant;
use outbox::{OUTBOX_ITEMS_HARD_MAX, OUTBOX_ITEMS_MAX, Outbox};
use overload::Overload;
use parking::{Change, Parked, Parking};
use pending::{Pending, Taken};
use pressure::Pressure;
use push::Pushes;
use rooms::Rooms;
use sides::Sides;
use slots::{Moves, SlotState, Slots, Spread, Target, WEIGHT};
use state::{Due, LinkState, Phase};
use up::Up;
use ups::Ups;

/// Waiting output of a link above which no UP is added, in bytes.
pub const LINK_OUTPUT_MAX: usize = 4 << 20;
/// Login changes that may wait behind parked UPs.
pub const PARKED_CHANGES_MAX: usize = 64 << 10;

/// Settings of a router.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// Number of the worker.
    pub number: u16,
    /// Places of backends. Empty: every UP is answered RETRY after its timeout.
    pub endpoints: Vec<Endpoint>,
    /// Store of the backends; the routers of one gateway share it.
    pub stores: Stores,
    /// Links to each endpoint.
    pub links_per_endpoint: usize,
    /// Rule that spreads users over endpoints.
    pub balance: Balance,
    /// Settings that all links share.
    pub link: LinkSettings,
    /// Limits of what waits for a link.
    pub parking: ParkingLimits,
    /// Thresholds of load shedding.
    pub overload: OverloadLimits,
    /// Shortest body of a push to many that is compressed, in bytes; 0: no body is compressed.
    pub compress_min: usize,
    /// Seed of the jitter.
    pub seed: u64,
    /// Shards of the process, and which of them owns a user.
    pub shard_map: ShardMap,
}

/// Order to the owner of a router.
#[derive(Debug)]
pub enum Output {
    /// Begin to connect; answered by [`Router::handle_link_connected`] or [`Router::handle_link_closed`].
    Connect {
        /// The link to connect.
        link: LinkIndex,
        /// Endpoint of the link. The owner looks a name up, and tries all its addresses.
        endpoint: Endpoint,
    },
    /// Close the connection of this link.
    Close(LinkIndex),
    /// Write the bytes of [`Router::link_output`], as many as the connection takes now; answered by
    /// [`Router::handle_link_sent`] or [`Router::handle_link_closed`].
    Write(LinkIndex),
    /// Hand this batch to a shard; a full mailbox is answered by [`Router::handle_batch_refused`].
    Deliver {
        /// The shard.
        shard: ShardId,
        /// Items of this turn.
        batch: DownlinkBatch,
    },
    /// Measure the load of the process; answered by [`Router::handle_load`].
    MeasureLoad,
}

/// The state and rules of one worker.
pub struct Router {
    settings: RouterSettings,
    sides: Sides,
    endpoints: Endpoints,
    /// Endpoints of the settings; those behind them were learned from nodes.
    own_endpoints: usize,
    ups: Ups,
    announcements: Announcements,
    logins: Logins,
    pushes: Pushes,
    rooms: Rooms,
    pressure: Pressure,
    greetings: GreetingLog,
    /// `None`: backends are of no cluster.
    cluster: Option<Box<Cluster>>,
    /// Slots may sit unevenly on the links.
    needs_balance: bool,
    /// Output was sent that something waits for: the next turn begins at once.
    is_hurried: bool,
}

impl Router {
    /// A router whose links are closed and due at once.
    pub fn new(settings: RouterSettings, judge: Judge, now: Instant) -> Self {
        let RouterSettings { number, link, shard_map, .. } = &settings;
        let (shards, balance) = (shard_map.shards(), settings.balance.clone());
        let split = Split::of(shard_map.key().pins());
        let links = Links::new(&settings.endpoints, settings.links_per_endpoint, link, split);
        let capacity = link.hello.capacity;
        Self {
            own_endpoints: settings.endpoints.len(),
            endpoints: Endpoints::new(&settings.endpoints, settings.links_per_endpoint, balance),
            ups: Ups::new(settings.parking, settings.overload, link, split),
            announcements: Announcements::default(),
            logins: Logins::new(judge, links.indices().count(), link.up_timeout, shard_map.key()),
            pushes: Pushes::new(shard_map.clone(), settings.compress_min, link.body_max, shards),
            rooms: Rooms::new(shard_map.clone()),
            pressure: Pressure::new(capacity, *number == 0),
            greetings: GreetingLog::default(),
            cluster: (split == Split::Cluster).then(Box::default),
            needs_balance: false,
            is_hurried: false,
            sides: Sides::new(*number, (links, split), shards, settings.seed, now),
            settings,
        }
    }

    /// Takes a batch of a shard.
    pub fn handle_uplink(&mut self, now: Instant, batch: UplinkBatch) {
        self.sides.now = now;
        let from = batch.from;
        for item in batch.items {
            self.handle_item(from, item);
        }
    }

    /// Judges waiting HELLOs, at most `count_max` of them; `unix_now_s`: whole seconds since 1970.
    pub fn handle_logins(&mut self, now: Instant, unix_now_s: u64, count_max: usize) {
        self.sides.now = now;
        self.logins.judge(&mut self.sides, &self.ups.slots, unix_now_s, count_max);
    }

    /// Fires everything that is due.
    pub fn handle_timeouts(&mut self, now: Instant) {
        self.sides.now = now;
        for index in self.sides.links.indices() {
            while let Some(due) = self.sides.links[index].state.poll_due(now) {
                match due {
                    Due::Connect => {
                        let endpoint = self.sides.links[index].endpoint().clone();
                        self.sides.outputs.push_back(Output::Connect { link: index, endpoint });
                    }
                    Due::Ping => self.sides.links[index].send_ping(),
                    Due::Close(failure) => self.fail_link(index, &failure),
                }
            }
        }
        self.ups.expire(&mut self.sides, &mut self.endpoints);
        self.logins.expire(&mut self.sides, &mut self.endpoints);
        self.trip_breakers();
        self.placing().go_on();
        self.needs_balance |= self.endpoints.look_around(now);
        if self.needs_balance {
            self.rebalance();
        }
    }

    /// Closes a turn: waiting frames go into the links' outputs as far as there is room, one write per link and one
    /// batch per shard are ordered.
    pub fn handle_turn_end(&mut self, now: Instant) {
        self.sides.now = now;
        self.is_hurried = false;
        self.announcements.pump(&mut self.sides, &mut self.ups.slots);
        for index in self.sides.links.indices() {
            self.ups.unpark(&mut self.sides, index);
            let link = &mut self.sides.links[index];
            link.send_outcomes();
            if !link.output().is_empty() {
                self.sides.outputs.push_back(Output::Write(index));
            }
        }
        self.pressure.exert(&mut self.sides, &mut self.ups);
        self.hand_over();
        self.sides.counters[Count::Turns] += 1;
    }

    /// Orders one batch per shard for which items wait, and touches no link.
    pub fn hand_over(&mut self) {
        let Sides { shards, outputs, .. } = &mut self.sides;
        shards.flush(outputs);
    }

    /// Keeps a batch that a full mailbox refused; the next turn tries again.
    pub fn handle_batch_refused(&mut self, shard: ShardId, batch: DownlinkBatch) {
        self.sides.counters[Count::MailboxFull] += 1;
        self.sides.shards.take_back(shard, batch);
    }

    /// Tells backends the load of the process.
    pub fn handle_load(&mut self, load: Load) {
        self.pressure.send_stats(&mut self.sides, &self.ups.overload, load);
    }

    /// The next order to the owner; `None`: everything is ordered.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.sides.outputs.pop_front()
    }

    /// Bytes that wait to be written to a link.
    pub fn link_output(&self, link: LinkIndex) -> &[u8] {
        self.sides.links[link].output()
    }

    /// Every link.
    pub fn links(&self) -> impl Iterator<Item = LinkIndex> + use<> {
        self.sides.links.indices()
    }

    /// Time at which the next turn begins though nothing happens.
    pub fn next_deadline(&self) -> Instant {
        let now = self.sides.now;
        if self.is_hurried || self.logins.is_waiting() {
            return now;
        }
        let deadlines = [
            self.sides.links.next_deadline(),
            self.sides.shards.next_deadline(now),
            self.ups.parking.next_deadline(),
            self.pressure.next_deadline(&self.ups.overload),
            self.endpoints.next_deadline(),
            self.logins.next_deadline(),
            self.cluster.as_ref().map_or(Instant::FAR_FUTURE, |cluster| cluster.next_deadline()),
        ];
        deadlines.into_iter().min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// True if HELLOs wait to be judged.
    pub fn has_logins(&self) -> bool {
        self.logins.is_waiting()
    }

    /// True if bytes of links may be handed in: the shards take what follows from them.
    pub fn takes_link_bytes(&self) -> bool {
        self.sides.shards.longest() < OUTBOX_ITEMS_MAX
    }

    /// True if batches of shards may be handed in: the shards take what follows from them.
    pub fn takes_batches(&self) -> bool {
        self.sides.shards.longest() < OUTBOX_ITEMS_HARD_MAX
    }

    /// True if items wait for shards.
    pub fn has_items(&self) -> bool {
        !self.sides.shards.is_empty()
    }

    /// All figures, as of now.
    pub fn counters(&mut self) -> &Counters {
        let Self { sides: Sides { counters, links, now, .. }, ups, endpoints, .. } = self;
        counters[Count::LinksUp] = links.iter().filter(|link| link.state.is_open()).count() as u64;
        let encrypted = links.iter().filter(|link| link.is_encrypted && link.state.is_open());
        counters[Count::LinksEncrypted] = encrypted.count() as u64;
        counters[Count::BreakersOpen] = endpoints.breakers_open(*now);
        counters[Count::UpsPending] = links.iter().map(|link| link.pending.len() as u64).sum();
        counters[Count::UpsPendingBytes] = links.iter().map(|link| link.pending_bytes() as u64).sum();
        counters[Count::EndsUnconfirmed] = links.iter().map(|link| link.confirmed.ends().len() as u64).sum();
        counters[Count::UpsParked] = ups.parking.frames() as u64;
        counters[Count::UpsParkedBytes] = ups.parking.bytes() as u64;
        counters
    }
}
