//! A thread, its epoll and its sockets, driving one [`Shard`].
//!
//! The loop is `Reactor::run_turn`: poll until the deadline, read the clock once, drain the mailbox, accept,
//! read ready sockets, fire deadlines, perform what the shard wants done, hand over. It holds no
//! protocol state; that is the shard's. It never blocks anywhere but in `epoll_wait`.

mod block;
mod door;
mod freezing;
mod limit_log;
mod listener;
mod outbox;
mod parts;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod token;

pub use door::{Door, DoorLimits};
pub use freezing::TakeWatched;
pub use parts::{ReactorMail, ReactorParts};
pub use tally::{ReactorCount, series};

use crate::handoff::DownlinkBatch;
use crate::metrics::Board;
use crate::shard::{Count, Gather as _, Moved, Outputs, Settings, Shard, Transfer};
use crate::sys::send_queue;
use block::WriteBlock;
use limit_log::LimitLog;
use listener::{Arrival, Listener};
use mio::event::Event;
use mio::{Events, Poll, Registry, Waker};
use moorline_net::mailbox::{Receiver, SendError, Sender};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream};
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use outbox::Outbox;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use stream::{Streams, write_block};
use token::Source;

/// Events taken from one poll.
const EVENTS_MAX: usize = 512;
/// Messages taken from the mailbox in one turn.
const MAIL_MAX: usize = 256;
/// Items for one worker after which a turn reads no further connection: so large a batch may become,
/// beside what one more read brings.
const TURN_UPLINKS_MAX: usize = 4 << 10;
/// Bytes gathered for one write.
const WRITE_BYTES: usize = 64 << 10;
/// Writes to one connection in one turn.
const WRITES_MAX: usize = 4;
/// Connections accepted when no more will be.
const ACCEPT_AT_END_MAX: usize = 4096;
/// While a worker's mailbox or another reactor's is full, look again after this.
const RETRY: Duration = Duration::from_millis(1);
/// Longest sleep, so that the published numbers stay fresh.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A thread's loop state.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    shard: Shard,
    listener: Listener,
    clock: fn() -> Instant,
    inbox: Receiver<ReactorMail>,
    reactors: Vec<Sender<ReactorMail>>,
    outboxes: Vec<Outbox>,
    board: Arc<Board>,
    limit_log: LimitLog,
    read_budget: usize,
    accept_budget: usize,
    streams: Streams,
    outputs: Outputs,
    /// Connections that may have bytes to read.
    ready: VecDeque<ConnKey>,
    /// Connections on their way to a reactor whose mailbox was full.
    leaving: VecDeque<(Stream, Box<Transfer>)>,
    read_block: ReadBlock,
    write_block: WriteBlock,
    turns: u64,
    /// The time of this turn.
    now: Instant,
    is_stopping: bool,
    events: Events,
    /// Connections that got their socket since [`ReactorMail::List`].
    newcomers: Option<HashSet<ConnKey>>,
}

/// The waker that a reactor's mailbox rings, registered in its poll.
///
/// # Errors
/// The system's, when it gives no eventfd.
pub fn waker(registry: &Registry) -> io::Result<Waker> {
    Waker::new(registry, Source::Waker.into())
}

/// Has a reactor's poll tell of a connection's socket.
///
/// # Errors
/// The system's.
pub fn watch(registry: &Registry, socket: &mut Stream, key: ConnKey) -> io::Result<()> {
    socket.register(registry, Source::Connection(key).into())
}

impl Reactor {
    /// A reactor that will run on `poll`, in which its mailbox's waker is registered already.
    ///
    /// # Errors
    /// The system's, when the listener cannot be registered.
    pub fn new(poll: Poll, settings: Settings, parts: ReactorParts) -> io::Result<Self> {
        let now = (parts.clock)();
        let workers = settings.workers;
        let mut listener = Listener::new(parts.listener, parts.door, settings.seed);
        listener.register(poll.registry(), Source::Listener.into())?;
        Ok(Self {
            poll,
            shard: Shard::new(settings, now),
            listener,
            clock: parts.clock,
            inbox: parts.inbox,
            reactors: parts.reactors,
            outboxes: parts.workers.into_iter().map(Outbox::new).collect(),
            board: parts.board,
            limit_log: LimitLog::default(),
            read_budget: parts.read_budget,
            accept_budget: parts.accept_budget,
            streams: Streams::default(),
            outputs: Outputs::new(workers),
            ready: VecDeque::new(),
            leaving: VecDeque::new(),
            read_block: ReadBlock::default(),
            write_block: WriteBlock::with_capacity(WRITE_BYTES),
            turns: 0,
            now,
            is_stopping: false,
            events: Events::with_capacity(EVENTS_MAX),
            newcomers: None,
        })
    }

    /// One turn of the loop. False after [`ReactorMail::Stop`] and the end of the last connection.
    fn run_turn(&mut self, timeout: Duration) -> io::Result<bool> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => self.inbox.awake(),
        }
        let now = (self.clock)();
        self.now = now;
        self.turns += 1;
        self.handle_mail(now);
        // Before anything is read: bytes of a connection that moves belong to its new home.
        self.release();
        for event in &events {
            self.handle_event(event);
        }
        self.events = events;
        self.accept(now);
        self.read_ready(now);
        self.shard.handle_timeouts(now, &mut self.outputs);
        self.check_send_queues(now);
        self.perform();
        // Large groups come last, so that nobody waits behind them.
        if self.shard.has_fanout(now) {
            self.shard.handle_fanout(now, &mut self.outputs);
            self.perform();
        }
        self.hand_over();
        self.publish();
        Ok(!(self.is_stopping && self.shard.seats() == 0))
    }

    fn time_to_wait(&mut self) -> Duration {
        let may_sleep = self.inbox.try_sleep();
        let is_clogged = self.is_clogged();
        if !may_sleep || (!self.ready.is_empty() && !is_clogged) || !self.outputs.transmits.is_empty() {
            return Duration::ZERO;
        }
        if is_clogged
            || !self.leaving.is_empty()
            || !self.outputs.forwards.is_empty()
            || self.outboxes.iter().any(Outbox::is_waiting)
        {
            return RETRY;
        }
        // Whoever knocks while it stops is not heard.
        let listener = if self.is_stopping { None } else { self.listener.next_deadline() };
        let deadlines = [self.shard.next_deadline(), listener];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return SLEEP_MAX };
        deadline.saturating_since((self.clock)()).min(SLEEP_MAX)
    }

    fn is_clogged(&self) -> bool {
        self.outboxes.iter().any(Outbox::is_clogged)
    }

    fn handle_mail(&mut self, now: Instant) {
        for _ in 0..MAIL_MAX {
            let Some(mail) = self.inbox.try_recv() else { return };
            self.handle_one_mail(now, mail);
        }
    }

    fn handle_one_mail(&mut self, now: Instant, mail: ReactorMail) {
        match mail {
            ReactorMail::Downlink(DownlinkBatch { items }) => {
                for item in items {
                    self.shard.handle_downlink(now, item, &mut self.outputs);
                }
            }
            ReactorMail::Move(socket, transfer) => {
                match self.shard.handle_moved(now, transfer, &mut self.outputs) {
                    Moved::Seat(key) => self.attach(Some(key), socket),
                    Moved::On(transfer) => self.leaving.push_back((socket, transfer)),
                    Moved::Full => self.attach(None, socket),
                }
            }
            ReactorMail::Newcomer(socket) => {
                if let Arrival::Admitted(socket) = self.listener.judge_waiting(socket, now) {
                    let key = self.shard.handle_accepted(now);
                    self.attach(key, socket);
                }
            }
            ReactorMail::List(reply) => self.list(&reply),
            ReactorMail::Drain(order) => {
                self.close_door(now);
                self.shard.handle_drain(now, &order, &mut self.outputs);
            }
            ReactorMail::Undrain => {
                self.listener.set_open(true);
                self.shard.handle_undrain();
            }
            ReactorMail::Stop => {
                self.is_stopping = true;
                self.shard.handle_stop(now, &mut self.outputs);
            }
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match Source::from(event.token()) {
            Source::Waker => {}
            Source::Listener => self.listener.handle_edge(),
            Source::Connection(key) => {
                let Some(stream) = self.streams.get_mut(key) else { return };
                let edge = stream.handle_event(event);
                if edge.became_writable {
                    self.outputs.transmits.push(key);
                }
                if edge.is_readable && !std::mem::replace(&mut stream.marks().is_listed, true) {
                    self.ready.push_back(key);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.is_stopping {
            return;
        }
        for _ in 0..self.accept_budget {
            match self.listener.try_accept(now) {
                Arrival::Admitted(socket) => {
                    let key = self.shard.handle_accepted(now);
                    self.attach(key, socket);
                }
                Arrival::TurnedAway => {}
                Arrival::Nobody => return,
            }
        }
    }

    /// Nobody listens any more: who knocks is refused by the system, and another process may listen here.
    /// Who waited already is let in, and told to go.
    fn close_door(&mut self, now: Instant) {
        for _ in 0..ACCEPT_AT_END_MAX {
            match self.listener.try_accept(now) {
                Arrival::Admitted(socket) => {
                    let key = self.shard.handle_accepted(now);
                    self.attach(key, socket);
                }
                Arrival::TurnedAway => {}
                Arrival::Nobody => break,
            }
        }
        self.listener.set_open(false);
    }

    /// Gives a socket its connection's slot and edges; without either, the socket closes.
    fn attach(&mut self, key: Option<ConnKey>, mut socket: Stream) {
        let Some(key) = key else { return self.listener.release(&socket, self.now) };
        // The slot's last tenant may have left in this very turn.
        self.release();
        let registered = watch(self.poll.registry(), &mut socket, key);
        self.streams.insert(key, socket);
        self.note_newcomer(key);
        if let Err(error) = registered {
            tracing::error!(%error, ?key, "epoll refused a connection");
            self.shard.handle_peer_closed(self.now, key, &mut self.outputs);
        }
    }

    fn read_ready(&mut self, now: Instant) {
        for _ in 0..self.ready.len() {
            if self.is_clogged() || self.outputs.uplinks.iter().any(|fresh| fresh.len() > TURN_UPLINKS_MAX) {
                return;
            }
            let Some(key) = self.ready.pop_front() else { return };
            if self.read(now, key) {
                self.ready.push_back(key);
            } else if let Some(stream) = self.streams.get_mut(key) {
                stream.marks().is_listed = false;
            }
        }
    }

    /// Reads up to the budget; true if there may be more.
    fn read(&mut self, now: Instant, key: ConnKey) -> bool {
        let mut budget = self.read_budget;
        loop {
            let Some(stream) = self.streams.get_mut(key) else { return false };
            if stream.marks().is_held {
                return false;
            }
            let bytes = match stream.read(&mut self.read_block) {
                Ok(Reading::Bytes(bytes)) => bytes,
                Ok(Reading::Blocked) => return false,
                Ok(Reading::End) | Err(_) => {
                    // A peer that closed its writing half only still hears the last word.
                    self.transmit(key);
                    self.shard.handle_peer_closed(now, key, &mut self.outputs);
                    return false;
                }
            };
            let is_last = !stream.is_readable();
            budget = budget.saturating_sub(bytes.len());
            self.shard.handle_received(now, key, bytes, &mut self.outputs);
            self.apply_holds();
            if is_last {
                return false;
            }
            if budget == 0 {
                return true;
            }
        }
    }

    fn check_send_queues(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.outputs.send_queue_checks) {
            let Some(stream) = self.streams.get(key) else { continue };
            // Unknown counts as something under way: then nothing is sent again.
            let undelivered = send_queue::undelivered(stream).unwrap_or(usize::MAX);
            self.shard.handle_send_queue(now, key, undelivered, &mut self.outputs);
        }
    }

    /// Who is not to be read is skipped; who may be again is looked at in the next turn.
    fn apply_holds(&mut self) {
        for (key, is_held) in self.outputs.holds.drain(..) {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.marks().is_held = is_held;
            // An edge may have passed meanwhile, and will not come again.
            if !is_held && !std::mem::replace(&mut stream.marks().is_listed, true) {
                self.ready.push_back(key);
            }
        }
    }

    /// Does what the shard wants done.
    fn perform(&mut self) {
        self.apply_holds();
        // A socket that is given up or moved to another seat must be so before anything is written there.
        self.release();
        let mut transmits = std::mem::take(&mut self.outputs.transmits);
        for key in transmits.drain(..) {
            self.transmit(key);
        }
        // Connections with more to write than one turn allows were queued meanwhile.
        transmits.append(&mut self.outputs.transmits);
        self.outputs.transmits = transmits;
        self.half_close();
        self.release();
    }

    /// Tells those who heard their last word that no more follows.
    fn half_close(&mut self) {
        for key in self.outputs.half_closes.drain(..) {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.shutdown_write();
            }
        }
    }

    /// Takes out the sockets whose slots the shard has freed.
    fn release(&mut self) {
        for (key, bytes) in self.outputs.last_words.drain(..) {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.write(&bytes).ok(); // it is given up, whatever becomes of them
            }
        }
        for key in self.outputs.closes.drain(..) {
            if let Some(socket) = self.streams.remove(key) {
                self.listener.release(&socket, self.now);
            }
        }
        self.graft();
        for (key, transfer) in self.outputs.moves.drain(..) {
            let Some(mut socket) = self.streams.remove(key) else { continue };
            if socket.deregister(self.poll.registry()).is_ok() {
                self.leaving.push_back((socket, transfer));
            } else {
                self.listener.release(&socket, self.now);
            }
        }
    }

    /// Gives sockets to the sessions that their clients go on with.
    fn graft(&mut self) {
        for (from, seat) in std::mem::take(&mut self.outputs.grafts) {
            let Some(mut socket) = self.streams.remove(from) else {
                self.shard.handle_peer_closed(self.now, seat, &mut self.outputs);
                continue;
            };
            let registered = socket.reregister(self.poll.registry(), Source::Connection(seat).into());
            self.streams.insert(seat, socket);
            self.note_newcomer(seat);
            if let Err(error) = registered {
                tracing::error!(%error, key = ?seat, "epoll refused a connection");
                self.shard.handle_peer_closed(self.now, seat, &mut self.outputs);
            }
        }
    }

    fn transmit(&mut self, key: ConnKey) {
        for _ in 0..WRITES_MAX {
            let Some(stream) = self.streams.get_mut(key) else { return };
            if !stream.is_writable() {
                return self.shard.handle_sent(key, 0, &mut self.outputs);
            }
            self.shard.gather(key, &mut self.write_block, WRITE_BYTES);
            if self.write_block.is_empty() {
                return;
            }
            let (length, outcome) = (self.write_block.gathered(), write_block(stream, &self.write_block));
            self.write_block.clear(); // shared bodies go with their frames
            match outcome {
                Ok(sent) => self.shard.handle_sent(key, sent, &mut self.outputs),
                Err(_) => return self.shard.handle_peer_closed(self.now, key, &mut self.outputs),
            }
            if length < WRITE_BYTES && outcome.is_ok_and(|sent| sent == length) {
                return;
            }
        }
        self.outputs.transmits.push(key);
    }

    fn hand_over(&mut self) {
        let from = self.shard.id();
        for (outbox, fresh) in self.outboxes.iter_mut().zip(&mut self.outputs.uplinks) {
            outbox.flush(from, fresh);
        }
        self.forward();
        while let Some((socket, transfer)) = self.leaving.pop_front() {
            let home = transfer.home.index();
            match self.reactors[home].try_send(ReactorMail::Move(socket, transfer)) {
                Ok(()) => {}
                Err(SendError::Full(ReactorMail::Move(socket, transfer))) => {
                    self.leaving.push_front((socket, transfer));
                    return;
                }
                Err(SendError::Gone(ReactorMail::Move(socket, _))) => {
                    self.listener.release(&socket, self.now);
                }
                Err(_) => unreachable!("what was to be sent comes back"),
            }
        }
    }

    /// What is for users who may be at home elsewhere. What does not fit waits, in order.
    fn forward(&mut self) {
        let mut waiting = Vec::new();
        for (home, item) in std::mem::take(&mut self.outputs.forwards) {
            if waiting.iter().any(|(other, _)| *other == home) {
                waiting.push((home, item));
                continue;
            }
            let batch = ReactorMail::Downlink(DownlinkBatch { items: vec![item] });
            if let Err(SendError::Full(ReactorMail::Downlink(mut batch))) =
                self.reactors[home.index()].try_send(batch)
            {
                waiting.extend(batch.items.pop().map(|item| (home, item)));
            }
        }
        self.outputs.forwards = waiting;
    }

    fn publish(&mut self) {
        self.listener.count_handshakes(self.shard.handshakes());
        self.log_limits();
        let refusals = self.outboxes.iter().map(|outbox| outbox.refusals).sum();
        let waiting = self.ready.len() as u64;
        tally::publish(
            &self.board,
            self.shard.tally(),
            &[
                (ReactorCount::Turns, self.turns),
                (ReactorCount::AcceptPauses, self.listener.pauses()),
                (ReactorCount::AcceptRefused, self.listener.refused),
                (ReactorCount::AddressesRefused, self.listener.addresses_refused),
                (ReactorCount::AcceptRateWaits, self.listener.rate_waits),
                (ReactorCount::HandshakeWaits, self.listener.handshake_waits),
                (ReactorCount::WorkerMailboxFull, refusals),
                (ReactorCount::ReadsWaiting, waiting),
            ],
        );
    }

    fn log_limits(&mut self) {
        let Self { listener, shard, limit_log, now, .. } = self;
        let own = [
            (ReactorCount::AcceptPauses, listener.pauses()),
            (ReactorCount::AcceptRefused, listener.refused),
            (ReactorCount::AddressesRefused, listener.addresses_refused),
            (ReactorCount::AcceptRateWaits, listener.rate_waits),
            (ReactorCount::HandshakeWaits, listener.handshake_waits),
        ];
        let own = own.iter().map(|(count, value)| (ReactorCount::SERIES[*count as usize].name, *value));
        let tally = shard.tally();
        let shard = Count::LIMITS.iter().map(|count| (Count::SERIES[*count as usize].name, tally[*count]));
        if let Some(limits) = limit_log.look(*now, own.chain(shard).chain([tally.slow()])) {
            tracing::warn!(%limits, "limits were hit");
        }
    }
}
