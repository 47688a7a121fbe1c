//! One reactor's entire state, as pure code: connections, sessions, users and their timers.
//!
//! A shard is driven by its owner, the reactor's loop or the simulator, by the contract in
//! `docs/architecture.md`, "The contract of a pure core". [`Executor`] performs its [`Outputs`].
//!
//! ```text
//!  accepted, bytes, written ─►┌───────┐─► write, half-close, close, move
//!  Downlink from workers ────►│ Shard │─► Uplink to workers
//!  time ─────────────────────►└───────┘─► next deadline
//! ```
//!
//! Example: alice sends a message to bob, who has a session in the same shard. `handle_received` decodes her
//! SEND and emits an [`Uplink`] for her worker. The backend's PUSH comes back as a `Downlink`; it takes its
//! place in bob's window, and `Write(bob)` is emitted.
//!
//! | file | holds |
//! |---|---|
//! | `table`, `connection` | sockets: slab slots with generations |
//! | `registry`, `session` | users and their devices' logins |
//! | `clients`, `client` | both together, and the count of bytes that wait |
//! | `login`, `resume_token` | the session that an admitted connection gets: a new one, or its old one |
//! | `detached` | sessions without a connection |
//! | `input` | bytes from clients: frames, batches, and what waits |
//! | `uplink`, `early`, `results` | frames for the backend; SENDs before their turn; the last answers |
//! | `bucket`, `throttling` | rate limits; sockets that are not read for a while |
//! | `downlink` | messages from workers: verdicts, answers, pushes, kicks |
//! | `delivery`, `flight`, `parcel`, `outbound` | frames to clients: pushes, lanes, window, acks; bytes to write |
//! | `round_trip` | the round trip to a client to which nothing is under way |
//! | `rooms`, `fanout`, `pace` | sets of sessions; one payload for many, and how fast beside a chat |
//! | `sheds` | SENDs that are refused in overload, the last rank first |
//! | `ending`, `draining` | close, kick, logout; asking all clients to leave |
//! | `timers` | the one wheel entry of each connection |
//! | `outputs`, `executor` | operations that the owner performs; their execution |

mod bucket;
mod client;
mod clients;
mod connection;
mod counters;
mod delivery;
mod detached;
mod downlink;
mod draining;
mod early;
mod ending;
mod executor;
mod fanout;
mod flight;
mod freezing;
mod input;
mod login;
mod outbound;
mod outputs;
mod pace;
mod parcel;
mod registry;
mod results;
mod resume_token;
mod rooms;
mod round_trip;
mod session;
mod settings;
mod sheds;
mod table;
#[cfg(test)]
mod tests;
mod throttling;
mod timers;
mod uplink;

pub use counters::{Count, Counters};
pub use draining::DrainOrder;
pub use executor::{Executor, Sockets, Written};
pub use freezing::queued_bodies;
pub use login::{Moved, Transfer};
pub use outbound::Gather;
pub use outputs::{Output, Outputs};
pub use settings::{Birth, Settings};

use crate::messages::{Rank, Uplink};
use bytes::Bytes;
use clients::Clients;
use draining::Drain;
use fanout::Fanouts;
use login::{Logins, Newcomer, decode_hello};
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::time::{Duration, Instant};
use timers::Due;
use uplink::UplinkGate;

/// Deliveries of fan-outs, and those that wait, by rank.
const DELIVERIES: [Count; Rank::ALL.len()] =
    [Count::FanoutDeliveriesFirst, Count::FanoutDeliveriesSecond, Count::FanoutDeliveriesLast];
const WAITING: [Count; Rank::ALL.len()] =
    [Count::FanoutWaitingFirst, Count::FanoutWaitingSecond, Count::FanoutWaitingLast];
/// Interval at which memory is checked that may be given back.
const TRIM: Duration = Duration::from_secs(1);

/// Has a shard take over the limits of settings that were read again, as far as they may change while clients are
/// connected.
pub fn reload(shard: &mut Shard, new: &Settings) {
    shard.clients.ledger.settings.reload(new);
}

/// Takes the time that [`Shard::handle_fanout`] took, with the writes that it caused: the pace follows it.
pub fn note_fanout(shard: &mut Shard, took: Duration) {
    shard.fanouts.pace.on_slice_done(took);
}

/// One reactor's entire state: decides what each input means; its parts keep the state.
#[derive(Debug)]
pub struct Shard {
    clients: Clients,
    logins: Logins,
    gate: UplinkGate,
    fanouts: Fanouts,
    next_trim: Instant,
    is_draining: bool,
    drain: Option<Box<Drain>>,
}

impl Shard {
    /// An empty shard whose time is `now`.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            logins: Logins::new(&settings),
            clients: Clients::new(settings, now),
            gate: UplinkGate::default(),
            fanouts: Fanouts::default(),
            next_trim: now,
            is_draining: false,
            drain: None,
        }
    }

    /// Number of this shard.
    pub const fn id(&self) -> ShardId {
        self.clients.ledger.settings.shard
    }

    /// Number of connections, logged in or not, and of detached sessions.
    pub fn clients(&self) -> usize {
        self.clients.table.len()
    }

    /// Number of logged-in sessions.
    pub fn sessions(&self) -> usize {
        self.clients.registry.len()
    }

    /// Number of connections that are not logged in: not yet, or not any more.
    pub fn handshakes(&self) -> usize {
        self.clients() - self.sessions()
    }

    /// State of a connection; `None`: it is gone.
    pub fn state(&self, key: ConnKey) -> Option<State> {
        self.clients.connection(key).map(|connection| connection.state)
    }

    /// The counters, with the levels brought up to date.
    pub fn counters(&mut self) -> &Counters {
        let counters = &mut self.clients.ledger.counters;
        counters[Count::FanoutPace] = self.fanouts.pace.rate();
        for (count, waiting) in WAITING.into_iter().zip(self.fanouts.waiting()) {
            counters[count] = waiting as u64;
        }
        self.clients.counters()
    }

    /// Handles an accepted socket; it belongs to the returned key. `None`: this shard is full, close it.
    pub fn handle_accepted(&mut self, now: Instant) -> Option<ConnKey> {
        self.clients.ledger.counters[Count::Accepted] += 1;
        self.clients.connect(now)
    }

    /// Handles a logged-in connection that arrives from the shard that accepted it, or from one that does not
    /// own its user any more.
    pub fn handle_moved(
        &mut self,
        now: Instant,
        mut transfer: Box<Transfer>,
        outputs: &mut Outputs,
    ) -> Moved {
        if let Some(home) = self.home_after(&transfer.admission.uid) {
            transfer.home = home;
            return Moved::On(transfer);
        }
        let Some(key) = self.clients.connect(now) else { return Moved::Full };
        let client = self.clients.client(key).expect("just inserted");
        client.connection.state = State::Authenticating;
        if self.is_draining {
            self.clients.close(now, key, CloseReason::GoingAway, outputs);
            return Moved::Here(key);
        }
        let newcomer = Newcomer { key, has_socket: false };
        let key = self.logins.admit(now, &mut self.clients, newcomer, &transfer.admission, outputs);
        self.handle_received(now, key, transfer.partial, outputs);
        Moved::Here(key)
    }

    /// Gathers the next bytes of a connection, at most about `bytes_max`.
    pub fn gather(&self, key: ConnKey, out: &mut impl Gather, bytes_max: usize) {
        if let Some(outbound) =
            self.clients.connection(key).and_then(|connection| connection.outbound.as_ref())
        {
            outbound.gather(out, bytes_max);
        }
    }

    /// Handles a write: the socket took `sent` of the gathered bytes; 0: it takes nothing for now.
    pub fn handle_sent(&mut self, key: ConnKey, sent: usize, outputs: &mut Outputs) {
        if let Some(mut client) = self.clients.client(key) {
            client.note_sent(sent, outputs);
        }
    }

    /// Answers [`Output::CheckSendQueue`]: the number of bytes that the client's system has not received.
    pub fn handle_send_queue(
        &mut self,
        now: Instant,
        key: ConnKey,
        undelivered: usize,
        outputs: &mut Outputs,
    ) {
        if let Some(mut client) = self.clients.client(key) {
            client.handle_send_queue(now, undelivered, outputs);
        }
    }

    /// Handles the end of a socket: the peer closed or reset it.
    pub fn handle_peer_closed(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(connection) = self.clients.connection(key) else { return };
        match connection.state {
            State::Detached => return, // the socket was given up before
            State::Closing => {}
            _ => self.clients.ledger.counters.closed_by_peer += 1,
        }
        if self.is_draining || !self.clients.try_detach(now, key, outputs) {
            self.clients.forget(key, 0, outputs);
        }
    }

    /// Handles that the place of a connection which has not said HELLO is needed for another one.
    pub fn handle_evicted(&mut self, key: ConnKey, outputs: &mut Outputs) {
        if self.state(key) == Some(State::AwaitHello) {
            self.clients.evict(key, outputs);
        }
    }

    /// Ends every connection: the gateway stops.
    pub fn handle_stop(&mut self, now: Instant, outputs: &mut Outputs) {
        self.is_draining = true;
        self.clients.close_all(now, CloseReason::GoingAway, outputs);
    }

    /// Nothing is due before this.
    pub fn next_deadline(&self) -> Option<Instant> {
        let drain = self.drain.as_ref().map(|drain| drain.deadline());
        let deadlines = [self.clients.ledger.timers.next_deadline(), self.fanouts.deadline(), drain];
        deadlines.into_iter().flatten().min()
    }

    /// Acts upon deadlines that have come; of a crowd at most one turn's share, the rest in the next turns.
    pub fn handle_timeouts(&mut self, now: Instant, outputs: &mut Outputs) {
        if now >= self.next_trim {
            self.next_trim = now + TRIM;
            self.gate.trim(self.clients.ledger.settings.user_fill(), now);
            self.clients.rooms.send_digest(now, outputs);
        }
        self.clients.fire(now);
        let most = self.fanouts.pace.due_per_turn(now);
        for key in self.clients.ledger.timers.take_due(most) {
            self.on_due(now, key, outputs);
        }
        self.tend_drain(now, outputs);
    }

    /// Returns whether [`Self::handle_fanout`] has something to do.
    pub fn has_fanout(&self, now: Instant) -> bool {
        self.fanouts.is_due(now)
    }

    /// Delivers the next slice of a fan-out if it is due. The owner calls it last in each turn.
    pub fn handle_fanout(&mut self, now: Instant, outputs: &mut Outputs) {
        if !self.has_fanout(now) {
            return;
        }
        let (mut slice, mut delivered) = (self.fanouts.next_slice(now), 0);
        while let Some((fanout, keys)) = self.fanouts.take_slice(&mut slice) {
            let mut own = vec![None; fanout.pushes.len()];
            delivered += keys.len() * fanout.pushes.len();
            self.clients.ledger.counters[DELIVERIES[fanout.rank as usize]] +=
                (keys.len() * fanout.pushes.len()) as u64;
            for key in keys {
                for (push, own) in fanout.pushes.iter().zip(&mut own) {
                    self.deliver(now, key, push, own, outputs);
                }
            }
            self.fanouts.give_back(fanout);
        }
        self.fanouts.pace.on_slice(now, delivered);
        self.clients.ledger.set_fanout_bytes(self.fanouts.bytes());
    }

    /// Panics unless all parts agree. For tests and the simulator.
    pub fn check(&self) {
        self.clients.check();
    }

    fn on_due(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(mut client) = self.clients.client(key) else { return }; // it ended meanwhile
        let (at, due) = client.deadline(now);
        if at > now {
            return client.arm(at); // bytes came meanwhile
        }
        let outcome = match due {
            Due::Handshake => Err(CloseReason::HandshakeTimeout),
            Due::Heartbeat => {
                self.clients.end_silent(now, key, !self.is_draining, outputs);
                Ok(())
            }
            Due::Ack => client.handle_ack_overdue(now, outputs),
            Due::Batch => client.pump(now, outputs),
            Due::Input => Err(CloseReason::Incomplete),
            Due::Pause => {
                self.try_end_pause(now, key, outputs);
                Ok(())
            }
            Due::Linger => {
                self.clients.forget(key, 0, outputs);
                Ok(())
            }
            Due::TokenExpired => {
                client.ledger.counters[Count::SessionsExpired] += 1;
                Err(CloseReason::TokenExpired)
            }
            Due::Expiry => {
                client.ledger.counters[Count::DetachedExpired] += 1;
                self.clients.forget(key, 0, outputs);
                Ok(())
            }
        };
        if let Err(reason) = outcome {
            self.clients.close(now, key, reason, outputs);
        }
    }

    fn on_hello(
        &mut self,
        now: Instant,
        key: ConnKey,
        body: &Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let hello = decode_hello(body)?;
        if self.is_draining {
            return Err(CloseReason::GoingAway);
        }
        let client = self.clients.client(key).expect("its frame is being handled");
        // Resuming a session costs the backend nothing, so it stays possible.
        let is_short_of_memory = client.ledger.is_above_watermark(2);
        if (client.ledger.pauses.refuses_logins() || is_short_of_memory) && hello.resume.is_none() {
            client.ledger.counters[Count::LoginsShed] += 1;
            return Err(CloseReason::Busy);
        }
        client.connection.enter(State::Authenticating, now);
        let pin = client.ledger.settings.shard_map.pin(&hello.uid);
        let login = Uplink::Login { key, pin, hello: Box::new(hello) };
        outputs.uplinks[pin.worker(client.ledger.settings.workers)].push(login);
        Ok(())
    }
}
