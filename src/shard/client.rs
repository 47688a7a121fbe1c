//! One connection with its session, and everything that is done to it; here the bytes that wait for clients
//! are counted, and nowhere else.
//!
//! Example: a PING arrives for alice's connection. Its [`Client`] stores the promised interval and queues PONG:
//! the frame is queued with the current ack, its 16 bytes are counted as waiting, and `Write(alice)` is
//! emitted.

use super::connection::Connection;
use super::outbound::OutboundPool;
use super::session::{Route, Session};
use super::throttling::ReadPauses;
use super::timers::{Due, Timers};
use super::{Count, Counters, Output, Outputs, Settings};
use crate::snapshot::{Section, ShardHead};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Decoder, Frame, Lane};
use moorline_proto::ids::ConnKey;
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::Ping;
use moorline_proto::message::decode;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;

/// Memory of input of one client that may wait above the watermark, in bytes [P-10.3].
const INPUT_FREE: usize = 4 << 10;

/// Everything that the clients of one shard share: limits, counters, timers, pauses, and memory for queues.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) settings: Settings,
    pub(super) counters: Counters,
    pub(super) timers: Timers,
    pub(super) pauses: ReadPauses,
    pub(super) random: Random,
    pool: OutboundPool,
    /// Bytes that wait for clients, in sockets' queues and behind windows.
    queued_bytes: usize,
    /// Memory of input that waits: unfinished frames, frames of paused clients, SENDs before their turn; in bytes.
    input_bytes: usize,
    /// Memory of fan-outs that wait, in bytes.
    fanout_bytes: usize,
    /// Frames that go out together; the memory is reused.
    merged: Vec<Frame>,
}

impl Ledger {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            counters: Counters::default(),
            timers: Timers::new(now),
            pauses: ReadPauses::new(settings.workers),
            random: Random::new(settings.seed),
            pool: OutboundPool::default(),
            queued_bytes: 0,
            input_bytes: 0,
            fanout_bytes: 0,
            merged: Vec::new(),
            settings,
        }
    }

    /// Bytes that wait for clients: in sockets' queues, in flight, behind windows, and in fan-outs.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes + self.fanout_bytes
    }

    /// Memory of fan-outs that wait, in bytes.
    pub(super) const fn fanout_bytes(&self) -> usize {
        self.fanout_bytes
    }

    /// Notes the memory of fan-outs that wait.
    pub(super) const fn set_fanout_bytes(&mut self, bytes: usize) {
        self.fanout_bytes = bytes;
    }

    /// Memory of input that waits, in bytes.
    pub(super) const fn input_bytes(&self) -> usize {
        self.input_bytes
    }

    /// Returns whether more bytes wait, toward clients and from them, than `times` the watermark.
    pub(super) const fn is_above_watermark(&self, times: usize) -> bool {
        self.queued_bytes() + self.input_bytes > self.settings.memory_bytes_max.saturating_mul(times)
    }

    /// Writes counters, due connections, pauses and dice.
    pub(super) fn freeze(&self, head: &mut ShardHead, out: &mut Section) {
        let Self {
            settings: _,
            counters,
            timers,
            pauses,
            random,
            pool: _,
            queued_bytes: _,
            input_bytes: _,
            fanout_bytes: _,
            merged: _,
        } = self;
        counters.freeze(head);
        head.due = timers.freeze();
        (head.full, head.overload) = pauses.freeze(out);
        head.random = random.state();
    }

    /// Reads counters, the workers' reports and dice.
    pub(super) fn thaw(&mut self, head: &ShardHead) {
        self.random = Random::new(head.random);
        self.counters = Counters::thaw(head);
        self.pauses.thaw(&head.full, &head.overload);
    }

    /// Counts what a connection and its session brought along from a snapshot.
    pub(super) fn count_thawed(&mut self, connection: &Connection, session: Option<&Session>) {
        self.queued_bytes += connection.unsent() + session.map_or(0, Session::flight_bytes);
        self.input_bytes += connection.held_bytes() + session.map_or(0, Session::early_bytes);
    }

    /// Counts what a connection, or a session, took along that is gone.
    pub(super) fn count_gone(&mut self, connection: Option<&Connection>, session: Option<&Session>) {
        self.queued_bytes -=
            connection.map_or(0, Connection::unsent) + session.map_or(0, Session::flight_bytes);
        self.input_bytes -=
            connection.map_or(0, Connection::held_bytes) + session.map_or(0, Session::early_bytes);
    }
}

/// One connection of a shard and its session; `None`: not logged in, or not any more.
#[derive(Debug)]
pub(super) struct Client<'a> {
    pub(super) key: ConnKey,
    pub(super) connection: &'a mut Connection,
    pub(super) session: Option<&'a mut Session>,
    pub(super) ledger: &'a mut Ledger,
}

impl Client<'_> {
    pub(super) const fn is_logged_in(&self) -> bool {
        self.connection.state.is_logged_in()
    }

    /// The way of the user's uplinks; `None`: not logged in.
    pub(super) fn route(&self) -> Option<Route> {
        self.session.as_ref().map(|session| session.route())
    }

    /// Number of the user, which no other user has; 0: not logged in.
    pub(super) fn user(&self) -> u64 {
        let key = self.ledger.settings.shard_map.key();
        self.session.as_ref().map_or(0, |session| key.number(session.uid()))
    }

    /// Queues a frame with the current ack, and asks for a write. A detached session has no socket: what
    /// matters waits in its flight.
    pub(super) fn send(&mut self, mut frame: Frame, outputs: &mut Outputs) {
        if self.connection.state == State::Detached {
            return;
        }
        if let Some(session) = &self.session {
            frame.header.ack = session.dedupe.taken();
        }
        self.ledger.counters[Count::FramesOut] += 1;
        self.ledger.queued_bytes += frame.wire_len();
        let is_blocked = !self.connection.is_write_due && self.connection.outbound.is_some();
        let outbound = self.connection.outbound.get_or_insert_with(|| self.ledger.pool.take());
        outbound.push(frame);
        if is_blocked {
            outbound.make_own();
        }
        if !self.connection.is_write_due {
            self.connection.is_write_due = true;
            outputs.push(Output::Write(self.key));
        }
    }

    /// The system took `sent` of the gathered bytes.
    pub(super) fn note_sent(&mut self, sent: usize, outputs: &mut Outputs) {
        self.connection.is_write_due = false;
        let Some(outbound) = self.connection.outbound.as_mut() else { return };
        self.ledger.counters[Count::BytesOut] += sent as u64;
        self.ledger.queued_bytes -= sent;
        outbound.advance(sent);
        if outbound.bytes() == 0 {
            if self.connection.state == State::Closing {
                outputs.push(Output::HalfClose(self.key));
            }
            let queue = self.connection.outbound.take().expect("just advanced");
            self.ledger.pool.give_back(queue);
        } else {
            outbound.make_own();
        }
    }

    /// Checks that the client reads what it asked for.
    ///
    /// # Errors
    /// [`CloseReason::Slow`]: the connection's queue is over a limit.
    pub(super) fn check_clogged(&self) -> Result<(), CloseReason> {
        let Settings { queue_bytes_max, queue_frames_max, .. } = self.ledger.settings;
        let is_clogged = self.connection.outbound.as_ref().is_some_and(|outbound| {
            outbound.is_over(queue_bytes_max) || outbound.frames() > queue_frames_max
        });
        if is_clogged { Err(CloseReason::Slow) } else { Ok(()) }
    }

    /// Answers a PING with PONG, and takes over the promised interval [P-7.2]. The activity itself was noted
    /// when the bytes came.
    pub(super) fn handle_ping(
        &mut self,
        now: Instant,
        body: &Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let ping: Ping = decode(body)?;
        let (min, max) = self.ledger.settings.heartbeat_s;
        let earlier = self.connection.heartbeat_s;
        self.connection.heartbeat_s = u16::try_from(ping.next_s).unwrap_or(u16::MAX).clamp(min, max);
        if self.connection.heartbeat_s < earlier {
            self.arm_heartbeat(now);
        }
        self.ledger.counters[Count::Pings] += 1;
        self.send(Frame::new(Command::Pong, Bytes::new()), outputs);
        self.check_clogged()
    }

    /// Counts frames, or work that is worth as much, against the connection's rate limit; above it, reading pauses.
    pub(super) fn spend(&mut self, now: Instant, frames: u32, outputs: &mut Outputs) {
        if let Some(wait) = self.connection.spent.spend(self.ledger.settings.frame_fill(), frames) {
            self.ledger.counters[Count::RatePauses] += 1;
            self.ledger.pauses.pause_until(self.key, now + wait, outputs);
            self.arm(now + wait);
        }
    }

    /// Pauses reading if the worker of the user has no room for frames of this lane.
    pub(super) fn pause_if_full(&mut self, route: Route, lane: Lane, outputs: &mut Outputs) {
        if self.ledger.pauses.pause_if_full(self.key, route, lane, outputs) {
            self.ledger.counters[Count::BackpressurePauses] += 1;
        }
    }

    /// Reads the client again if no cause of a pause is left. Its silence begins now. True: frames that wait for
    /// their turn are to be handled.
    pub(super) fn try_end_pause(&mut self, now: Instant, outputs: &mut Outputs) -> bool {
        let is_over = self.ledger.pauses.try_end(now, self.key, outputs);
        if is_over {
            self.connection.note_rx(self.ledger.settings.frame_fill(), now);
            if let Some(early) = self.session.as_mut().and_then(|session| session.early.as_mut()) {
                early.restart(now);
                let hole = early.deadline();
                self.arm(hole);
            }
        }
        is_over
    }

    /// Counts the memory of the input that waits while `change` changes it.
    pub(super) fn with_input<T>(&mut self, change: impl FnOnce(&mut Decoder) -> T) -> T {
        let before = self.connection.held_bytes();
        let changed = change(&mut self.connection.decoder);
        self.ledger.input_bytes = self.ledger.input_bytes + self.connection.held_bytes() - before;
        changed
    }

    /// Counts the memory of the SENDs before their turn while `change` changes them.
    pub(super) fn with_early<T>(&mut self, change: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let session = self.session.as_mut()?;
        let before = session.early_bytes();
        let changed = change(session);
        self.ledger.input_bytes = self.ledger.input_bytes + session.early_bytes() - before;
        Some(changed)
    }

    /// Checks the input that waits after a read: the timer of an unfinished frame, and memory.
    ///
    /// # Errors
    /// [`CloseReason::Busy`]: memory is short.
    pub(super) fn check_input(&mut self, now: Instant) -> Result<(), CloseReason> {
        let held = self.connection.held_bytes();
        if held > INPUT_FREE && self.is_logged_in() && self.ledger.is_above_watermark(1) {
            self.ledger.counters[Count::InputShed] += 1;
            return Err(CloseReason::Busy);
        }
        if held > 0
            && self.is_logged_in()
            && !self.ledger.pauses.is_paused(self.key)
            && self.connection.note_unfinished(now)
        {
            self.arm(now + self.ledger.settings.frame_timeout);
        }
        Ok(())
    }

    /// Makes the connection's timer fire no later than `at`.
    pub(super) fn arm(&mut self, at: Instant) {
        if self.ledger.timers.arm(&mut self.connection.timer, at, self.key.slot()) {
            self.ledger.counters[Count::TimerMoves] += 1;
        }
    }

    /// Makes the timer fire no later than a client is too long silent that sends now.
    pub(super) fn arm_heartbeat(&mut self, now: Instant) {
        self.arm(now + server_patience(self.connection.heartbeat()));
    }

    /// Lets the client choose its heartbeat anew: until it does, the longest interval counts.
    pub(super) fn restart_heartbeat(&mut self, now: Instant) {
        self.connection.heartbeat_s = self.ledger.settings.heartbeat_s.1;
        self.arm_heartbeat(now);
    }

    /// Takes over the times of a token, and makes the timer fire no later than it ends the session.
    pub(super) fn take_token(&mut self, issued_s: u64, expires_s: u64) {
        let Some(session) = &mut self.session else { return };
        session.set_token(issued_s, expires_s);
        if let Some(end) = session.end(&self.ledger.settings) {
            self.arm(end);
        }
    }

    /// The nearest deadline, and its meaning.
    pub(super) fn deadline(&self, now: Instant) -> (Instant, Due) {
        let (settings, connection) = (&self.ledger.settings, &*self.connection);
        match connection.state {
            State::AwaitHello | State::Authenticating => {
                (connection.state_since(now) + settings.handshake_timeout, Due::Handshake)
            }
            State::Closing => (connection.state_since(now) + settings.linger, Due::Linger),
            State::Detached => {
                let expiry = (connection.state_since(now) + settings.session_keep, Due::Expiry);
                let end = self.session.as_ref().and_then(|session| session.end(settings));
                let end = end.map(|at| (at, Due::TokenExpired));
                end.filter(|end| end.0 < expiry.0).unwrap_or(expiry)
            }
            State::Active | State::Leaving => {
                let heartbeat = match self.ledger.pauses.deadline(self.key, now) {
                    Some(check) => (check, Due::Pause),
                    None => {
                        (connection.last_rx(now) + server_patience(connection.heartbeat()), Due::Heartbeat)
                    }
                };
                let session = self.session.as_ref().expect("logged in");
                let end = session.end(settings).map(|at| (at, Due::TokenExpired));
                let heartbeat = end.filter(|end| end.0 < heartbeat.0).unwrap_or(heartbeat);
                let input = if heartbeat.1 == Due::Pause { None } else { self.input_deadline(session, now) };
                let nearest = input.filter(|at| *at < heartbeat.0).map_or(heartbeat, |at| (at, Due::Input));
                let Some(flight) = session.flight.as_ref() else { return nearest };
                let ack = flight.ack_deadline().map(|at| (at, Due::Ack));
                let batch = flight.batch_deadline(settings.batching()).map(|at| (at, Due::Batch));
                let all = [Some(nearest), ack, batch].into_iter().flatten();
                all.min_by_key(|(at, _)| *at).expect("one at least")
            }
        }
    }

    /// Time at which input that waits is late: an unfinished frame, or a SEND that others wait for. A client that is
    /// not read is not late.
    fn input_deadline(&self, session: &Session, now: Instant) -> Option<Instant> {
        let hole = session.early.as_ref().map(|early| early.deadline());
        let began = self.connection.frame_began(now);
        let frame = began.map(|began| began + self.ledger.settings.frame_timeout);
        hole.into_iter().chain(frame).min()
    }

    /// Drops all frames of which no byte was sent: the client does not read.
    pub(super) fn drop_unsent(&mut self) {
        if let Some(outbound) = self.connection.outbound.as_mut() {
            self.ledger.queued_bytes -= outbound.bytes();
            outbound.drop_unsent();
            self.ledger.queued_bytes += outbound.bytes();
        }
    }

    /// Emits a last frame for a socket whose session stays: behind a half-written one, if it fits at once.
    pub(super) fn send_final(&mut self, last: Frame, outputs: &mut Outputs) {
        self.drop_unsent();
        let ack = self.session.as_ref().map_or(0, |session| session.dedupe.taken());
        let mut outbound = self.connection.outbound.take().unwrap_or_else(|| self.ledger.pool.take());
        self.ledger.queued_bytes -= outbound.bytes();
        outbound.push(last.with_ack(ack));
        let mut bytes = Vec::new();
        outbound.gather(&mut bytes, usize::MAX);
        outputs.push(Output::FinalBytes(self.key, bytes.into()));
    }

    /// Drops unfinished frames, frames that wait for their turn, and SENDs before theirs.
    pub(super) fn drop_input(&mut self) {
        self.with_input(|decoder| *decoder = Decoder::new());
        self.with_early(|session| session.early = None);
    }

    /// Gives back what only a socket needs, and closes the socket.
    pub(super) fn drop_socket(&mut self, outputs: &mut Outputs) {
        self.drop_input();
        self.connection.is_write_due = false;
        self.ledger.queued_bytes -= self.connection.outbound.take().map_or(0, |outbound| outbound.bytes());
        self.ledger.pauses.forget(self.key);
        outputs.push(Output::Close(self.key));
    }

    /// Counts the bytes behind the window while `change` changes them.
    pub(super) fn with_flight<T>(&mut self, change: impl FnOnce(&mut Session, &Settings) -> T) -> Option<T> {
        let session = self.session.as_mut()?;
        let before = session.flight_bytes();
        let changed = change(session, &self.ledger.settings);
        self.ledger.queued_bytes = self.ledger.queued_bytes + session.flight_bytes() - before;
        Some(changed)
    }

    /// Memory of frames that go out together.
    pub(super) fn take_merged(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.ledger.merged)
    }

    pub(super) fn give_merged_back(&mut self, merged: Vec<Frame>) {
        self.ledger.merged = merged;
    }
}
