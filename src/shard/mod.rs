//! One reactor's entire state, as pure code: connections, sessions, users and their timers.
//!
//! A shard is driven by its owner (the reactor's loop, or the simulator): every `handle_` method takes
//! the time and one input, changes the state, and appends what must be done to [`Outputs`]. It names no
//! socket, thread or clock.
//!
//! ```text
//!  accepted, bytes, written ─►┌───────┐─► transmit, half-close, close, move
//!  Downlink from workers ────►│ Shard │─► Uplink to workers
//!  time ─────────────────────►└───────┘─► next deadline
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `table`, `connection` | sockets: slab slots with generations |
//! | `registry`, `session` | users and their devices' logins |
//! | `login` | HELLO, verdict, moving home, replacing an older login |
//! | `uplink` | frames from clients |
//! | `delivery`, `flight` | frames to clients: pushes, window, acks |
//! | `ending` | close, kick, logout, drain |
//! | `timers` | the one wheel entry of each connection |

mod connection;
mod delivery;
mod ending;
mod flight;
mod login;
mod outbound;
mod registry;
mod session;
mod settings;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod timers;
mod uplink;

pub use login::Transfer;
pub use settings::{Birth, Settings};
pub use tally::{Count, Tally};

use crate::handoff::{Downlink, Uplink};
use bytes::Bytes;
use connection::Connection;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Batch, Command, Flags, Frame};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use moorline_proto::wheel::Wheel;
use outbound::OutboundPool;
use registry::Registry;
use table::Table;

/// What a shard wants done. The owner drains it once per loop turn.
#[derive(Debug, Default)]
pub struct Outputs {
    /// For each worker, in order.
    pub uplinks: Vec<Vec<Uplink>>,
    /// Connections with bytes to write; see [`Shard::gather`].
    pub transmits: Vec<ConnKey>,
    /// Connections whose last byte is written: shut the writing half down.
    pub half_closes: Vec<ConnKey>,
    /// Connections that are gone: close the socket.
    pub closes: Vec<ConnKey>,
    /// Connections that go to another shard, socket and all.
    pub moves: Vec<(ConnKey, Box<Transfer>)>,
}

impl Outputs {
    /// Empty, with a list for each of `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { uplinks: (0..workers).map(|_| Vec::new()).collect(), ..Self::default() }
    }
}

/// One reactor's entire state.
#[derive(Debug)]
pub struct Shard {
    settings: Settings,
    table: Table,
    registry: Registry,
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    pool: OutboundPool,
    random: Random,
    last_login_version: u64,
    is_draining: bool,
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
            pool: OutboundPool::default(),
            random: Random::new(settings.seed),
            last_login_version: 0,
            is_draining: false,
            tally: Tally::default(),
            settings,
        }
    }

    /// Which shard this is.
    pub const fn id(&self) -> ShardId {
        self.settings.shard
    }

    /// Open connections, logged in or not.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Logged-in sessions.
    pub fn sessions(&self) -> usize {
        self.registry.len()
    }

    /// The numbers, with the levels brought up to date.
    pub fn tally(&mut self) -> &Tally {
        self.tally[Count::Connections] = self.table.len() as u64;
        self.tally[Count::Sessions] = self.registry.len() as u64;
        self.tally[Count::Users] = self.registry.users() as u64;
        self.tally[Count::Timers] = self.wheel.len() as u64;
        &self.tally
    }

    /// Bytes arrived from a client.
    pub fn handle_received(&mut self, now: Instant, key: ConnKey, mut bytes: Bytes, outputs: &mut Outputs) {
        self.tally[Count::BytesIn] += bytes.len() as u64;
        loop {
            let Some(connection) = self.table.get_mut(key) else { return };
            let body_max = match connection.state {
                State::Closing | State::Detached => return,
                State::AwaitHello | State::Authenticating => self.settings.hello_bytes_max,
                State::Active | State::Leaving => {
                    connection.heard_at = now;
                    self.settings.body_bytes_max
                }
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
            Downlink::Bind { .. } | Downlink::Unbind { .. } | Downlink::Query { .. } => {}
            Downlink::Hold { .. } | Downlink::Overload { .. } => {}
            Downlink::Announce { worker, request, slots } => {
                self.on_announce(worker, request, slots, outputs);
            }
        }
    }

    /// The bytes that come next on a connection, at most about `bytes_max` of them.
    pub fn gather(&self, key: ConnKey, out: &mut Vec<u8>, bytes_max: usize) {
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
        outbound.advance(sent);
        if outbound.bytes() == 0 {
            let queue = connection.outbound.take().expect("just advanced");
            if connection.state == State::Closing {
                outputs.half_closes.push(key);
            }
            self.pool.give_back(queue);
        }
    }

    /// Panics unless table, registry and wheel agree. For tests and the simulator.
    pub fn check(&self) {
        self.registry.check();
        assert_eq!(self.wheel.len(), self.table.len(), "one timer per connection");
        let logged_in = self.table.keys().into_iter().filter(|key| {
            let connection = self.table.get(*key).expect("listed");
            let session = self.registry.get(connection.session);
            assert_eq!(session.is_some(), connection.state.is_logged_in(), "{key:?} {:?}", connection.state);
            session.is_some_and(|session| session.connection == key.slot())
        });
        assert_eq!(logged_in.count(), self.registry.len(), "every session has its connection");
    }

    fn on_frame_or_batch(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        if !frame.header.flags.contains(Flags::BATCH) {
            return self.on_frame(now, key, frame, outputs);
        }
        let logged_in = self.table.get(key).is_some_and(|connection| connection.state.is_logged_in());
        if !logged_in {
            return Err(CloseReason::Unexpected);
        }
        Batch::new(frame.body).try_for_each(|frame| self.on_frame(now, key, frame?, outputs))
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
            Command::Ping => self.on_ping(key, &frame.body, outputs),
            Command::Send => self.on_send(key, frame, outputs),
            Command::Req | Command::App(_) => self.on_unnumbered(key, frame, outputs),
            Command::Ack => self.on_ack(now, key, &frame, outputs),
            Command::Sub | Command::Unsub => self.on_subscription(key, &frame.body, outputs),
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
        if let Some(session) = self.registry.get(connection.session) {
            frame.header.ack = session.dedupe.taken();
        }
        self.tally[Count::FramesOut] += 1;
        connection.outbound.get_or_insert_with(|| self.pool.take()).push(frame);
        if !connection.is_transmit_due {
            connection.is_transmit_due = true;
            outputs.transmits.push(key);
        }
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
            outbound.bytes() > self.settings.queue_bytes_max
                || outbound.frames() > self.settings.queue_frames_max
        })
    }
}
