//! A thread with its epoll and its sockets, which drives one [`Shard`].
//!
//! The loop is `Reactor::run_turn`: after a poll until the deadline, read the clock once, drain the mailbox, accept,
//! read ready sockets, fire deadlines, perform the shard's outputs, hand over. The protocol state is the
//! shard's. The thread blocks in `epoll_wait` only. While it does, a worker that delivers may run a turn in its own thread.
//!
//! Example: alice sends `hi`. epoll reports her socket; the reactor reads it, the shard decodes SEND and puts an
//! uplink into the batch of her worker, and the end of the turn sends that batch with at most one wake.

mod addresses;
mod block;
mod counters;
mod door;
mod ease;
mod forward;
mod freezing;
mod handshake_pool;
mod handshakes;
mod limit_log;
mod listener;
mod openings;
mod outbox;
mod parts;
mod sockets;
mod stream;
#[cfg(test)]
mod tests;
mod token;
mod warm;

pub use counters::{ReactorCount, metrics, own_metrics};
pub use door::{Door, Holder, ListenerLimits, Refusal, Wait};
pub use freezing::{TakeWatched, note_first_events};
pub use handshake_pool::Servers;
pub use openings::OpeningRules;
pub use parts::{ReactorMail, ReactorParts};
pub use sockets::watch;
pub use stream::Socket;

use crate::messages::DownlinkBatch;
use crate::metrics::CounterSet;
use crate::shard::{self, Count, Executor, Moved, Outputs, Settings, Shard};
use crate::snapshot::Section;
use crate::sys::memory;
use crate::thread_group::EventLoop;
use bytes::Bytes;
use ease::Ease;
use handshakes::Handshakes;
use limit_log::LimitLog;
use listener::{Arrival, Listeners, Newcomer};
use mio::event::Event;
use mio::{Events, Poll, Registry, Waker};
use moorline_net::baton::TryRun;
use moorline_net::cap::CapWatch;
use moorline_net::clock::Clock;
use moorline_net::layer::Layer;
use moorline_net::mailbox::{Receiver, Sender};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::Reading;
use moorline_proto::connection::server::State;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use openings::Openings;
use outbox::Outbox;
use sockets::Sockets;
use std::io;
use std::sync::{Arc, Weak};
use token::Source;

/// Events taken from one poll at most.
const EVENTS_MAX: usize = 512;
/// Messages taken from the mailbox in one turn at most.
const MAIL_MAX: usize = 256;
/// Items for one worker after which a turn reads no further connection. A batch may exceed this by the items of
/// one read.
const TURN_UPLINKS_MAX: usize = 4 << 10;
/// Connections accepted at most when the listener closes.
const ACCEPT_AT_END_MAX: usize = 4096;
/// Time until a full mailbox of a worker or another reactor is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// Longest sleep, so that the published counters stay fresh.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A thread's loop state.
#[derive(Debug)]
pub struct Reactor {
    shard: Shard,
    outputs: Outputs,
    executor: Executor,
    sockets: Sockets,
    openings: Openings,
    handshakes: Handshakes,
    ease: Ease,
    clock: Clock,
    inbox: Receiver<ReactorMail>,
    reactors: Vec<Sender<ReactorMail>>,
    outboxes: Vec<Outbox>,
    counter_set: Arc<CounterSet>,
    limit_log: LimitLog,
    /// Cap on the sessions that wait for their clients.
    kept: Arc<CapWatch>,
    kept_max: usize,
    read_budget: usize,
    accept_budget: usize,
    read_block: ReadBlock,
    turns: u64,
    /// Time at which outcomes that wait for company are handed over; `None`: none wait.
    outcomes_due: Option<Instant>,
    is_stopping: bool,
}

/// The waker of a reactor's mailbox, registered in its poll.
///
/// # Errors
/// The system's, when it gives no eventfd.
pub fn waker(registry: &Registry) -> io::Result<Waker> {
    Waker::new(registry, Source::Waker.into())
}

impl Reactor {
    /// A reactor whose sockets `poll` watches, in which the waker of its mailbox is registered already.
    ///
    /// # Errors
    /// The system's, when the listener cannot be registered, or no descriptor is left.
    pub fn new(poll: &Poll, settings: Settings, parts: ReactorParts) -> io::Result<Self> {
        let (now, kept_max) = (parts.clock.now(), settings.kept_max);
        let listeners = Listeners::new(parts.listeners, parts.door, parts.openings.clone(), settings.seed);
        Ok(Self {
            outputs: Outputs::new(settings.workers),
            executor: Executor::default(),
            sockets: Sockets::new(poll.registry().try_clone()?, listeners, now)?,
            openings: Openings::new(parts.openings, parts.reactors[usize::from(settings.shard.0)].clone()),
            shard: Shard::new(settings, now),
            handshakes: Handshakes::default(),
            ease: Ease::default(),
            clock: parts.clock,
            inbox: parts.inbox,
            reactors: parts.reactors,
            outboxes: parts.workers.into_iter().map(Outbox::new).collect(),
            counter_set: parts.counter_set,
            limit_log: LimitLog::default(),
            kept: parts.kept,
            kept_max,
            read_budget: parts.read_budget,
            accept_budget: parts.accept_budget,
            read_block: ReadBlock::default(),
            turns: 0,
            outcomes_due: None,
            is_stopping: false,
        })
    }

    /// One turn of the loop, in a fixed order; `None`: no poll came before it. False after [`ReactorMail::Stop`] and the end
    /// of the last connection.
    fn run_turn(&mut self, events: Option<&Events>) -> bool {
        self.inbox.awake();
        let now = self.clock.now();
        self.sockets.now = now;
        self.turns += 1;
        self.handle_mail(now);
        // Before a socket is read: the bytes of a connection that moves belong to another shard.
        self.perform();
        for event in events.into_iter().flatten() {
            self.handle_event(event);
        }
        self.accept(now);
        self.run_openings(now);
        self.read_ready(now);
        self.shard.handle_timeouts(now, &mut self.outputs);
        self.perform();
        // Before anything is written or closed: what a client learns from this turn, the worker has been told.
        self.hand_over_due();
        self.write();
        // Fan-outs to large groups come last, so that no other message waits behind them.
        if self.shard.has_fanout(now) {
            let began = self.clock.now();
            self.shard.handle_fanout(now, &mut self.outputs);
            self.write();
            shard::note_fanout(&mut self.shard, self.clock.now().saturating_since(began));
        }
        self.hand_over_due();
        self.publish();
        !(self.is_stopping && self.shard.clients() == 0)
    }

    /// Performs all outputs of the shard; writes wait for [`Self::write`].
    fn perform(&mut self) {
        let Self { shard, outputs, executor, sockets, .. } = self;
        executor.perform(sockets.now, shard, outputs, sockets);
    }

    /// Performs all outputs of the shard, and writes once to each connection that has bytes.
    fn write(&mut self) {
        let Self { shard, outputs, executor, sockets, .. } = self;
        executor.write(sockets.now, shard, outputs, sockets);
    }

    fn time_of_waking(&mut self) -> Option<Instant> {
        let may_sleep = self.inbox.try_sleep();
        let is_clogged = self.is_clogged();
        let has_reads = !self.sockets.ready.is_empty() && !is_clogged;
        if !may_sleep || has_reads || self.executor.is_waiting() {
            return None;
        }
        let now = self.sockets.now;
        if is_clogged || self.is_refused() {
            return Some(now + RETRY);
        }
        // A stopping reactor accepts no connection.
        let listener = if self.is_stopping { None } else { self.sockets.listeners.next_deadline() };
        let openings = self.openings.next_deadline(now);
        let deadlines =
            [self.shard.next_deadline(), listener, self.outcomes_due, openings, Some(now + SLEEP_MAX)];
        deadlines.into_iter().flatten().min()
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
                    Moved::Here(key) => self.attach(Some(key), socket),
                    Moved::On(transfer) => self.sockets.leaving.push_back((socket, transfer)),
                    Moved::Full => self.attach(None, socket),
                }
            }
            ReactorMail::Handshaken(key, result) => self.handle_handshaken(key, result),
            ReactorMail::Newcomer(socket, kind, listener) => {
                match self.sockets.listeners.judge_waiting(socket, kind, listener, now) {
                    Arrival::Admitted(newcomer) => self.admit(now, newcomer),
                    Arrival::Full(newcomer) => self.admit_at_cap(now, newcomer),
                    Arrival::TurnedAway | Arrival::NoPlace(_) | Arrival::Nobody => {}
                }
            }
            ReactorMail::List(reply) => self.list(&reply),
            ReactorMail::Drain(order) => {
                self.close_door(now);
                self.shard.handle_drain(now, &order, &mut self.outputs);
            }
            ReactorMail::Undrain => {
                self.sockets.listeners.set_open(true);
                self.shard.handle_undrain();
            }
            ReactorMail::Reload(settings) => shard::reload(&mut self.shard, &settings),
            ReactorMail::Stop => {
                self.is_stopping = true;
                self.shard.handle_stop(now, &mut self.outputs);
            }
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match Source::from(event.token()) {
            Source::Waker => {}
            Source::Listener(listener) => self.sockets.listeners.handle_edge(listener),
            Source::Connection(key) => {
                let Some(stream) = self.sockets.streams.get_mut(key) else { return };
                let edge = stream.handle_event(event);
                if edge.became_writable {
                    self.executor.handle_writable(key);
                }
                if edge.is_readable {
                    self.sockets.set_ready(key);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.is_stopping {
            return;
        }
        for _ in 0..self.accept_budget {
            match self.sockets.listeners.try_accept(now) {
                Arrival::Admitted(newcomer) => self.admit(now, newcomer),
                Arrival::Full(newcomer) => self.admit_at_cap(now, newcomer),
                Arrival::TurnedAway => {}
                Arrival::NoPlace(listener) => {
                    if !self.replace_silent(now, listener) {
                        return;
                    }
                }
                Arrival::Nobody => return,
            }
        }
    }

    /// Accepts a newcomer at a listener without places in the stead of the oldest silent connection. False: nobody is to
    /// be accepted for now.
    fn replace_silent(&mut self, now: Instant, listener: usize) -> bool {
        let Self { handshakes, shard, .. } = self;
        let Some(oldest) = handshakes.oldest(now, |key| is_silent(shard, key)) else {
            self.sockets.listeners.wait_for_place(listener, now);
            return false;
        };
        match self.sockets.listeners.try_accept_over(listener, now) {
            Arrival::Admitted(newcomer) => {
                self.evict(oldest);
                self.admit(now, newcomer);
            }
            Arrival::Full(newcomer) => self.admit_at_cap(now, newcomer),
            Arrival::TurnedAway => {}
            Arrival::NoPlace(_) | Arrival::Nobody => return false,
        }
        true
    }

    /// Takes a newcomer at the limit of connections in the stead of the oldest silent connection, or refuses it.
    fn admit_at_cap(&mut self, now: Instant, newcomer: Newcomer) {
        let Self { handshakes, shard, .. } = self;
        let Some(oldest) = handshakes.oldest(now, |key| is_silent(shard, key)) else {
            return self.sockets.listeners.refuse_full(newcomer);
        };
        self.evict(oldest);
        match self.sockets.listeners.judge_again(newcomer, now) {
            Arrival::Admitted(newcomer) => self.admit(now, newcomer),
            Arrival::Full(newcomer) => self.sockets.listeners.refuse_full(newcomer),
            Arrival::TurnedAway | Arrival::NoPlace(_) | Arrival::Nobody => {}
        }
    }

    /// Takes a newcomer, if its address has a place left for it.
    fn admit(&mut self, now: Instant, newcomer: Newcomer) {
        let Newcomer { stream, listener, from, kind } = newcomer;
        // The address of a client behind a proxy is not known yet.
        let is_named = !kind.is_proxied;
        let share = self.sockets.listeners.share(listener, self.reactors.len()).filter(|_| is_named);
        let Self { handshakes, shard, .. } = self;
        if share.is_some_and(|share| handshakes.of_address(from, |key| is_handshake(shard, key)) >= share) {
            let Some(oldest) = handshakes.oldest_of(now, from, |key| is_silent(shard, key)) else {
                return self.sockets.listeners.turn_away(stream, kind, now);
            };
            self.evict(oldest);
        }
        let key = self.shard.handle_accepted(now);
        if let Some(key) = key {
            let Self { handshakes, shard, .. } = self;
            handshakes.begin(now, key, from, |key| is_handshake(shard, key));
        }
        let layer = key.and_then(|key| self.openings.begin(now, key, listener, kind));
        self.attach(key, Socket { stream, layer });
    }

    /// Ends a connection that has said nothing, for another one.
    fn evict(&mut self, key: ConnKey) {
        self.shard.handle_evicted(key, &mut self.outputs);
        self.perform();
        self.sockets.finish_closing(); // its descriptor is for the newcomer
        self.sockets.listeners.count_handshakes(self.shard.handshakes());
    }

    /// Closes the listener: the system refuses further connections, and another process may listen at the
    /// address. Connections that waited already are accepted, and asked to leave.
    fn close_door(&mut self, now: Instant) {
        for _ in 0..ACCEPT_AT_END_MAX {
            match self.sockets.listeners.try_accept(now) {
                Arrival::Admitted(newcomer) => self.admit(now, newcomer),
                Arrival::Full(newcomer) => self.sockets.listeners.refuse_full(newcomer),
                Arrival::TurnedAway => {}
                Arrival::Nobody | Arrival::NoPlace(_) => break,
            }
        }
        self.sockets.listeners.set_open(false);
    }

    /// Attaches a socket to its connection; without one, the socket closes.
    fn attach(&mut self, key: Option<ConnKey>, socket: Socket) {
        let Some(key) = key else { return self.sockets.release(&socket.stream) };
        // The last socket of this slot may have been closed in this very turn.
        self.perform();
        if !self.sockets.attach(key, socket) {
            self.shard.handle_peer_closed(self.sockets.now, key, &mut self.outputs);
        }
    }

    fn read_ready(&mut self, now: Instant) {
        for _ in 0..self.sockets.ready.len() {
            if self.is_clogged() || self.outputs.uplinks.iter().any(|fresh| fresh.len() > TURN_UPLINKS_MAX) {
                return;
            }
            let Some(key) = self.sockets.ready.pop_front() else { return };
            if self.read(now, key) {
                self.sockets.ready.push_back(key);
            } else if let Some(stream) = self.sockets.streams.get_mut(key) {
                stream.marks().is_listed = false;
            }
        }
    }

    /// Reads a socket up to the budget. True: there may be more bytes.
    fn read(&mut self, now: Instant, key: ConnKey) -> bool {
        let mut budget = self.read_budget;
        loop {
            match self.sockets.streams.pair(key) {
                None => return false,
                Some((_, Some(Layer::Opening(_)))) => {
                    return self.open(now, key);
                }
                Some((stream, _)) => {
                    if stream.marks().is_held {
                        return false;
                    }
                }
            }
            let bytes = match self.sockets.read(key, &mut self.read_block) {
                Ok(Reading::Bytes(bytes)) => bytes,
                Ok(Reading::Blocked) => return false,
                Ok(Reading::End) | Err(_) => {
                    // A peer that closed its writing half only still receives the last frame.
                    let Self { shard, outputs, executor, sockets, .. } = self;
                    executor.write_to(now, key, shard, outputs, sockets);
                    shard.handle_peer_closed(now, key, outputs);
                    return false;
                }
            };
            let is_last = !self.sockets.wants_read(key);
            budget = budget.saturating_sub(bytes.len());
            self.shard.handle_received(now, key, bytes, &mut self.outputs);
            // Reading may have to pause at once.
            self.perform();
            if is_last {
                return false;
            }
            if budget == 0 {
                return true;
            }
        }
    }

    fn publish(&mut self) {
        let Self { handshakes, openings, shard, sockets, ease, .. } = self;
        handshakes.sweep(sockets.now, |key| is_handshake(shard, key));
        let counters = shard.counters();
        let waiting = counters[Count::QueuedBytes] + counters[Count::InputBytes];
        if ease.look(sockets.now, waiting, openings.counts.all()) {
            memory::give_back();
        }
        self.sockets.cool();
        self.sockets.listeners.count_handshakes(self.shard.handshakes());
        self.sockets.listeners.note_caps(self.sockets.now);
        let kept = usize::try_from(self.shard.counters()[Count::Detached]).unwrap_or(usize::MAX);
        self.kept.note(kept, self.kept_max, self.sockets.now);
        self.log_limits();
        self.publish_counters();
    }

    /// Shows the numbers to other threads.
    fn publish_counters(&mut self) {
        let refusals = self.outboxes.iter().map(|outbox| outbox.refusals).sum();
        let waiting = self.sockets.ready.len() as u64;
        let openings = self.openings.counts;
        let proxies_refused = openings.proxies_refused + self.sockets.listeners.proxies_refused;
        counters::publish(
            &self.counter_set,
            self.shard.counters(),
            &[
                (ReactorCount::Turns, self.turns),
                (ReactorCount::AcceptPauses, self.sockets.listeners.pauses()),
                (ReactorCount::AcceptRefused, self.sockets.listeners.refused),
                (ReactorCount::AddressesRefused, self.sockets.listeners.addresses_refused),
                (ReactorCount::AcceptRateWaits, self.sockets.listeners.rate_waits),
                (ReactorCount::HandshakeWaits, self.sockets.listeners.handshake_waits),
                (ReactorCount::HandshakesRefused, self.sockets.listeners.handshakes_refused),
                (ReactorCount::WorkerMailboxFull, refusals),
                (ReactorCount::ReadsWaiting, waiting),
                (ReactorCount::TlsHandshakes, openings.handshakes),
                (ReactorCount::TlsResumed, openings.resumed),
                (ReactorCount::TlsHandshakesFailed, openings.handshakes_failed),
                (ReactorCount::TlsHandshakesLost, openings.lost),
                (ReactorCount::TlsQueueFull, openings.queue_full),
                (ReactorCount::UpgradesRefused, openings.upgrades_refused),
                (ReactorCount::ProxiesRefused, proxies_refused),
                (ReactorCount::LayerFaults, self.sockets.layer_faults),
            ],
            &self.sockets.listeners.admitted,
        );
    }

    fn log_limits(&mut self) {
        let Self { sockets: Sockets { listeners, now, .. }, shard, limit_log, .. } = self;
        let own = [
            (ReactorCount::AcceptPauses, listeners.pauses()),
            (ReactorCount::AcceptRefused, listeners.refused),
            (ReactorCount::AddressesRefused, listeners.addresses_refused),
            (ReactorCount::AcceptRateWaits, listeners.rate_waits),
            (ReactorCount::HandshakeWaits, listeners.handshake_waits),
            (ReactorCount::HandshakesRefused, listeners.handshakes_refused),
        ];
        let own = own.iter().map(|(count, value)| (ReactorCount::METRICS[*count as usize].name, *value));
        let counters = shard.counters();
        let shard =
            Count::LIMITS.iter().map(|count| (Count::METRICS[*count as usize].name, counters[*count]));
        if let Some(limits) = limit_log.look(*now, own.chain(shard).chain([counters.slow()])) {
            tracing::warn!(%limits, "limits were hit");
        }
    }
}

/// Returns whether a connection has not said HELLO.
fn is_silent(shard: &Shard, key: ConnKey) -> bool {
    shard.state(key) == Some(State::AwaitHello)
}

/// Returns whether a connection is not logged in: not yet, or not any more.
fn is_handshake(shard: &Shard, key: ConnKey) -> bool {
    shard.state(key).is_some_and(|state| !state.has_session())
}

impl EventLoop for Reactor {
    const EVENTS_MAX: usize = EVENTS_MAX;

    fn set_event_loop(&self, event_loop: Weak<dyn TryRun>) {
        self.inbox.set_event_loop(event_loop);
    }

    fn sleep_until(&mut self) -> Option<Instant> {
        self.time_of_waking()
    }

    fn turn(&mut self, events: Option<&Events>) -> bool {
        self.run_turn(events)
    }

    fn clock(&self) -> Instant {
        self.clock.now()
    }

    fn step(&mut self) -> bool {
        let mut is_busy = self.is_handing_over();
        while let Some(mail) = self.inbox.try_recv() {
            is_busy = true;
            self.handle_one_mail(self.sockets.now, mail);
            self.perform();
        }
        self.perform();
        self.hand_over();
        self.sockets.finish_closing();
        is_busy || self.is_handing_over()
    }

    fn queued_bodies(&mut self, with_partials: bool, found: &mut Vec<Bytes>) {
        shard::queued_bodies(&mut self.shard, with_partials, found);
    }

    fn freeze(&mut self, out: &mut Section) -> io::Result<()> {
        self.write_snapshot(out)
    }

    fn resume(&mut self, unix_base_nanos: u64) {
        self.sockets.resume(self.clock.now());
        self.shard.handle_thawed(unix_base_nanos);
        self.resume_layers();
    }
}
