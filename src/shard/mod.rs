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
//! | file | holds |
//! |---|---|
//! | `table`, `connection` | sockets: slab slots with generations |
//! | `registry`, `session` | users and their devices' logins |
//! | `login` | HELLO, verdict, moving home, replacing an older login |
//! | `keeping`, `ticket` | sessions without a connection, and coming back to them |
//! | `uplink`, `results` | frames from clients; the last answers |
//! | `bucket`, `holding` | who says too much, and who is not read for a while |
//! | `delivery`, `flight`, `retransmit` | frames to clients: pushes, lanes, window, acks |
//! | `rooms`, `fanout` | sets of sessions; one payload for many |
//! | `ending`, `draining` | close, kick, logout; asking everybody to leave |
//! | `timers` | the one wheel entry of each connection |
//! | `outputs`, `executor` | what is asked of the owner; how it is done |

mod bucket;
mod connection;
mod delivery;
mod draining;
mod ending;
mod executor;
mod fanout;
mod flight;
mod freezing;
mod holding;
mod keeping;
mod login;
mod outbound;
mod outputs;
mod registry;
mod results;
mod retransmit;
mod rooms;
mod session;
mod settings;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod ticket;
mod timers;
mod uplink;

pub use draining::DrainOrder;
pub use executor::{Executor, Sockets, Written};
pub use login::{Moved, Transfer};
pub use outbound::Gather;
pub use outputs::{Output, Outputs};
pub use settings::{Birth, Settings};
pub use tally::{Count, Tally};

use crate::handoff::Downlink;
use bucket::{Buckets, Stamp};
use bytes::Bytes;
use connection::Connection;
use draining::Drain;
use fanout::Fanouts;
use holding::Holds;
use keeping::Kept;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Batch, Command, Flags, Frame};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use moorline_proto::wheel::Wheel;
use outbound::OutboundPool;
use registry::Registry;
use results::Results;
use rooms::Rooms;
use session::Session;
use std::collections::VecDeque;
use table::Table;
use ticket::Tickets;

/// One reactor's entire state.
#[derive(Debug)]
pub struct Shard {
    settings: Settings,
    table: Table,
    registry: Registry,
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    /// Connections whose deadline has come and was not yet acted upon.
    due: VecDeque<ConnKey>,
    pool: OutboundPool,
    random: Random,
    tickets: Tickets,
    kept: Kept,
    results: Results,
    rooms: Rooms,
    /// Frames that go out together; memory that is used again.
    merged: Vec<Frame>,
    fanouts: Fanouts,
    /// Bytes that wait for clients, in sockets' queues and behind windows.
    queued_bytes: usize,
    holds: Holds,
    /// Of users, by pin.
    users_spent: Buckets,
    next_trim: Instant,
    last_login_version: u64,
    is_draining: bool,
    drain: Option<Box<Drain>>,
    tally: Tally,
}

impl Shard {
    /// An empty shard whose time is `now`.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            table: Table::new(settings.shard),
            registry: Registry::default(),
            wheel: Wheel::new(now),
            fired: Vec::new(),
            due: VecDeque::new(),
            pool: OutboundPool::default(),
            random: Random::new(settings.seed),
            tickets: Tickets::new(&settings),
            kept: Kept::default(),
            results: Results::default(),
            rooms: Rooms::default(),
            merged: Vec::new(),
            fanouts: Fanouts::default(),
            queued_bytes: 0,
            holds: Holds::new(settings.workers),
            users_spent: Buckets::default(),
            next_trim: now,
            last_login_version: 0,
            is_draining: false,
            drain: None,
            tally: Tally::default(),
            settings,
        }
    }

    /// Which shard this is.
    pub const fn id(&self) -> ShardId {
        self.settings.shard
    }

    /// Connections, logged in or not, and sessions that wait for theirs.
    pub fn seats(&self) -> usize {
        self.table.len()
    }

    /// Logged-in sessions.
    pub fn sessions(&self) -> usize {
        self.registry.len()
    }

    /// Connections that are not logged in: not yet, or not any more.
    pub fn handshakes(&self) -> usize {
        self.table.len() - self.registry.len()
    }

    /// The numbers, with the levels brought up to date.
    pub fn tally(&mut self) -> &Tally {
        self.tally[Count::Connections] = (self.table.len() - self.kept.len) as u64;
        self.tally[Count::Detached] = self.kept.len as u64;
        self.tally[Count::Rooms] = self.rooms.len() as u64;
        self.tally[Count::QueuedBytes] = self.queued_bytes as u64;
        self.tally[Count::Held] = self.holds.len() as u64;
        self.tally[Count::Sessions] = self.registry.len() as u64;
        self.tally[Count::Users] = self.registry.users() as u64;
        self.tally[Count::Timers] = self.wheel.len() as u64;
        &self.tally
    }

    /// Bytes arrived from a client.
    pub fn handle_received(&mut self, now: Instant, key: ConnKey, mut bytes: Bytes, outputs: &mut Outputs) {
        self.tally[Count::BytesIn] += bytes.len() as u64;
        if let Some(connection) = self.table.get_mut(key)
            && connection.state.is_logged_in()
        {
            connection.spent.refill(self.settings.frame_fill(), connection.heard, now);
            connection.heard = Stamp::of(now);
        }
        loop {
            let Some(connection) = self.table.get_mut(key) else { return };
            let body_max = match connection.state {
                State::Closing | State::Detached => return,
                State::AwaitHello | State::Authenticating => self.settings.hello_bytes_max,
                State::Active | State::Leaving => self.settings.body_bytes_max,
            };
            let outcome = match connection.decoder.decode(&mut bytes, body_max) {
                Ok(Some(frame)) => self.on_frame_or_batch(now, key, frame, outputs),
                Ok(None) => return,
                Err(reason) => Err(reason),
            };
            if let Err(reason) = outcome {
                self.close(now, key, reason, outputs);
                return;
            }
        }
    }

    /// A worker says something.
    pub fn handle_downlink(&mut self, now: Instant, downlink: Downlink, outputs: &mut Outputs) {
        match downlink {
            Downlink::Verdict { key, verdict } => self.on_verdict(now, key, verdict, outputs),
            Downlink::Answer { key, command, cid, body } => {
                self.on_answer(now, key, command, cid, body, outputs);
            }
            Downlink::Push(push) => self.on_push(now, push, outputs),
            Downlink::Kick { target, login_version, code, may_reconnect, reason } => {
                let kick = ending::KickOrder { login_version, code, may_reconnect, reason };
                self.on_kick(now, &target, &kick, outputs);
            }
            Downlink::Bind { room, version, keys, reset } => self.on_bind(&room, version, &keys, reset),
            Downlink::Unbind { room, version, keys } => self.on_unbind(&room, version, &keys),
            Downlink::Query { ticket, uid, room } => self.on_query(ticket, &uid, &room, outputs),
            Downlink::Hold { worker, slots } => self.on_hold(now, worker, slots, outputs),
            Downlink::Overload { worker, level } => self.on_overload(worker, level),
            Downlink::Announce { worker, request, slots } => {
                self.on_announce(worker, request, slots, outputs);
            }
        }
    }

    /// The bytes that come next on a connection, at most about `bytes_max` of them.
    pub fn gather(&self, key: ConnKey, out: &mut impl Gather, bytes_max: usize) {
        if let Some(outbound) = self.table.get(key).and_then(|connection| connection.outbound.as_ref()) {
            outbound.gather(out, bytes_max);
        }
    }

    /// The kernel took `sent` of the gathered bytes; 0: it takes none for now.
    pub fn handle_sent(&mut self, key: ConnKey, sent: usize, outputs: &mut Outputs) {
        let Some(connection) = self.table.get_mut(key) else { return };
        connection.is_transmit_due = false;
        let Some(outbound) = connection.outbound.as_mut() else { return };
        self.tally[Count::BytesOut] += sent as u64;
        self.queued_bytes -= sent;
        outbound.advance(sent);
        if outbound.bytes() == 0 {
            let queue = connection.outbound.take().expect("just advanced");
            if connection.state == State::Closing {
                outputs.push(Output::HalfClose(key));
            }
            self.pool.give_back(queue);
        }
    }

    /// Panics unless table, registry and wheel agree. For tests and the simulator.
    pub fn check(&self) {
        self.registry.check();
        self.rooms.check();
        let unsent = |key: &ConnKey| {
            let outbound = self.table.get(*key).and_then(|connection| connection.outbound.as_ref());
            outbound.map_or(0, |outbound| outbound.bytes())
        };
        let waiting = self.registry.iter().filter_map(|session| session.flight.as_ref());
        let waiting: usize = waiting.map(|flight| flight.waiting_bytes()).sum();
        let unsent: usize = self.table.keys().iter().map(unsent).sum();
        assert_eq!(self.queued_bytes, unsent + waiting, "every byte that waits is counted");
        assert_eq!(self.wheel.len(), self.table.len(), "one timer per connection");
        let logged_in = self.table.keys().into_iter().filter(|key| {
            let connection = self.table.get(*key).expect("listed");
            let session = self.registry.get(connection.session);
            assert_eq!(session.is_some(), connection.state.has_session(), "{key:?} {:?}", connection.state);
            assert!(connection.state != State::Detached || connection.outbound.is_none(), "{key:?}");
            session.is_some_and(|session| session.connection == key.slot())
        });
        assert_eq!(logged_in.count(), self.registry.len(), "every session has its connection");
        let detached = |key: &ConnKey| self.table.get(*key).is_some_and(|it| it.state == State::Detached);
        assert_eq!(self.table.keys().iter().filter(|key| detached(key)).count(), self.kept.len);
    }

    fn on_frame_or_batch(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let is_single = frame.header.flags.0 & (Flags::BATCH.0 | Flags::COMPRESSED.0) == 0;
        if is_single {
            return self.on_frame(now, key, frame, outputs);
        }
        let logged_in = self.table.get(key).is_some_and(|connection| connection.state.is_logged_in());
        if !logged_in {
            return Err(CloseReason::Unexpected);
        }
        let body_max = self.settings.body_bytes_max;
        let frame = frame.into_plain(body_max)?;
        if !frame.header.flags.contains(Flags::BATCH) {
            return self.on_frame(now, key, frame, outputs);
        }
        Batch::new(frame.body)
            .try_for_each(|frame| self.on_frame(now, key, frame?.into_plain(body_max)?, outputs))
    }

    fn on_frame(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        self.tally[Count::FramesIn] += 1;
        let Some(connection) = self.table.get_mut(key) else { return Ok(()) };
        if connection.state.is_logged_in()
            && let Some(wait) = connection.spent.spend(self.settings.frame_fill())
        {
            self.hold_until(key, now + wait, outputs);
        }
        let Some(connection) = self.table.get_mut(key) else { return Ok(()) };
        match connection.state.on(Event::Received(frame.header.command)) {
            Transition::Ignore if !connection.state.is_logged_in() => return Ok(()),
            Transition::Close(reason) => return Err(reason),
            // Dropped but for its header [P-2.2]; closing has work to do first, see `ending`.
            Transition::Ignore | Transition::To(State::Closing) => {}
            Transition::To(state) => connection.state = state,
        }
        if connection.state.is_logged_in() {
            self.on_header_ack(now, key, frame.header.ack, outputs)?;
            // What the ack let out may have been too much for a client that does not read.
            if !self.table.get(key).is_some_and(|connection| connection.state.is_logged_in()) {
                return Ok(());
            }
            if frame.header.flags.contains(Flags::ACK_REQ) && frame.header.command != Command::Send {
                self.send(key, Frame::new(Command::Ack, Bytes::new()), outputs);
                self.check_clogged(key)?;
            }
        }
        match frame.header.command {
            Command::Hello => self.on_hello(now, key, &frame.body, outputs),
            Command::Ping => self.on_ping(now, key, &frame.body, outputs),
            Command::Send => self.on_send(now, key, frame, outputs),
            Command::Req | Command::Sub | Command::Unsub | Command::App(_) => {
                self.on_unnumbered(now, key, frame, outputs)
            }
            Command::Ack => self.on_ack(now, key, &frame, outputs),
            Command::Logout => Err(CloseReason::LoggedOut),
            Command::Close => {
                self.on_client_close(key, &frame.body, outputs);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Queues a frame with the current ack, and asks for a write.
    fn send(&mut self, key: ConnKey, mut frame: Frame, outputs: &mut Outputs) {
        let Some(connection) = self.table.get_mut(key) else { return };
        if connection.state == State::Detached {
            return; // nobody to hear it; what matters waits in the session
        }
        if let Some(session) = self.registry.get(connection.session) {
            frame.header.ack = session.dedupe.taken();
        }
        self.tally[Count::FramesOut] += 1;
        self.queued_bytes += frame.wire_len();
        connection.outbound.get_or_insert_with(|| self.pool.take()).push(frame);
        if !connection.is_transmit_due {
            connection.is_transmit_due = true;
            outputs.push(Output::Write(key));
        }
    }

    fn session_of(&mut self, key: ConnKey) -> Option<&mut Session> {
        let connection = self.table.get(key)?;
        self.registry.get_mut(connection.session)
    }

    /// # Errors
    /// The client does not read what it asked for.
    fn check_clogged(&self, key: ConnKey) -> Result<(), CloseReason> {
        let is_clogged = self.table.get(key).is_some_and(|connection| self.is_clogged(connection));
        if is_clogged { Err(CloseReason::Slow) } else { Ok(()) }
    }

    /// Whether a connection's queue is over its limits: the client does not read.
    fn is_clogged(&self, connection: &Connection) -> bool {
        connection.outbound.as_ref().is_some_and(|outbound| {
            outbound.is_over(self.settings.queue_bytes_max)
                || outbound.frames() > self.settings.queue_frames_max
        })
    }
}
