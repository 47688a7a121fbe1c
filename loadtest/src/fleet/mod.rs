//! The loop: one thread, one epoll, any number of clients, and a scenario that says what they do.
//!
//! Driven by [`run`]. Order of one turn: wait for sockets or the timer; read the clock once; handle
//! sockets; start clients that are due; beat; let the scenario send what is due; move the phase on.

mod acks;
mod client;
mod clients;
mod overseer;
mod plan;
mod ramp;
mod returns;
mod scenario;

pub use client::Client;
pub use clients::{Clients, Counts};
pub use overseer::{Alone, Order, Overseer, Second};
pub use plan::{BeatsFrom, Mark, Plan, Ran};
pub use ramp::{Ramp, RampRule};
pub use returns::ReturnRule;
pub use scenario::Scenario;

use crate::alarm::Alarm;
use crate::carrier::Carrier;
use crate::clock;
use crate::dialect::{Dialect, Event};
use crate::exit::Failure;
use crate::pace::Beats;
use crate::phase::{Phase, Progress, Stage};
use crate::process::Watch;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use moorline_proto::time::Instant;
use moorline_usage::signals::without_meaning;
use returns::{Departures, Returns};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Readiness events of one turn.
const EVENTS_PER_TURN: usize = 1_024;
/// The overseer's news, and the sweep for late logins.
const SECOND: Duration = Duration::from_secs(1);
/// Clients that come back in one turn, so that a storm of them does not hold up the others.
const RETURNS_PER_TURN: usize = 64;
/// Failed connects without a single success that mean: the target does not answer.
const FAILED_CONNECTS_MAX: u32 = 8;
const ALARM: Token = Token(usize::MAX - 1);
const ORDERS: Token = Token(usize::MAX - 2);

/// Set by SIGINT, SIGTERM and SIGQUIT.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A stop that the process's signals set.
    pub fn on_signals() -> Result<Self, Failure> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))
                .map_err(Failure::io("handle signals"))?;
        }
        // They would end the process, and mean nothing here.
        for signal in without_meaning().chain([SIGHUP, SIGUSR1, SIGUSR2]) {
            signal_hook::flag::register(signal, Arc::default()).map_err(Failure::io("handle signals"))?;
        }
        Ok(stop)
    }

    /// True if a signal came since the last call.
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// Runs a scenario over a fleet until its timeline ends.
///
/// # Errors
/// [`Failure::Unreachable`] if nobody got in; [`Failure::Io`] if the loop's own calls fail.
pub fn run<D: Dialect, S: Scenario<D>>(
    plan: &Plan,
    dialect: D,
    scenario: &mut S,
    overseer: &mut dyn Overseer,
    stop: &Stop,
) -> Result<Ran, Failure> {
    let poll = Poll::new().map_err(Failure::io("create an epoll"))?;
    let registry = poll.registry().try_clone().map_err(Failure::io("share the epoll"))?;
    if let Some(fd) = overseer.orders() {
        let added = registry.register(&mut SourceFd(&fd), ORDERS, Interest::READABLE);
        added.map_err(Failure::io("listen for orders"))?;
    }
    overseer.on_begin()?;
    let carrier = Carrier::new(&plan.carry)?;
    let clients = Clients::new(dialect, carrier, plan.clients, plan.returns.is_some(), registry);
    scenario.recorder().findings.client_bytes = size_of::<Client<D::Decoder, S::Extra>>() as u64;
    let alarm = Alarm::new(clients.registry(), ALARM)?;
    let now = clock::now();
    let mut driver = Driver {
        plan,
        clients,
        scenario,
        overseer,
        stop,
        poll,
        alarm,
        stage: Stage::new(plan.timeline, now),
        ramp: Ramp::new(plan.ramp, plan.clients, now),
        returns: Returns::default(),
        departures: Departures::default(),
        beats: None,
        go_at: None,
        ran: Ran::default(),
        heard: Vec::new(),
        second_at: now + SECOND,
        look_at: None,
        watch: Watch::new(&plan.watched),
    };
    driver.look(now);
    driver.enter(Phase::Ramp, now);
    driver.turn_until_over()?;
    driver.scenario.finish(&mut driver.clients, clock::now());
    let Driver { mut clients, mut ran, .. } = driver;
    clients.counts.not_in += clients.counts.away + clients.counts.under_way;
    (ran.counts, ran.login) = (clients.counts, clients.login);
    Ok(ran)
}

struct Driver<'a, D: Dialect, S: Scenario<D>> {
    plan: &'a Plan,
    clients: Clients<D, S::Extra>,
    scenario: &'a mut S,
    overseer: &'a mut dyn Overseer,
    stop: &'a Stop,
    poll: Poll,
    alarm: Alarm,
    stage: Stage,
    ramp: Ramp,
    returns: Returns,
    departures: Departures,
    beats: Option<Beats>,
    /// Time at which traffic begins; `None` until the observer has set it.
    go_at: Option<Instant>,
    ran: Ran,
    heard: Vec<Event>,
    second_at: Instant,
    /// Next look at the server's processes; `None`: they stay the same.
    look_at: Option<Instant>,
    watch: Watch,
}

impl<D: Dialect, S: Scenario<D>> Driver<'_, D, S> {
    fn turn_until_over(&mut self) -> Result<(), Failure> {
        let mut ready = Events::with_capacity(EVENTS_PER_TURN);
        while self.stage.phase() != Phase::Over {
            self.wait(&mut ready)?;
            let now = clock::now();
            for event in &ready {
                match event.token() {
                    ALARM => self.alarm.handle_fired(),
                    ORDERS => {
                        let orders = self.overseer.take_orders()?;
                        orders.into_iter().for_each(|order| self.obey(order, now));
                    }
                    Token(who) => {
                        self.handle_socket(u32::try_from(who).expect("a client's number"), event, now);
                    }
                }
            }
            self.start_clients(now);
            self.beat(now);
            self.clients.send_due_acks(now);
            self.scenario.on_time(&mut self.clients, now);
            self.handle_losses(now);
            self.check_logins()?;
            if self.look_at.is_some_and(|at| at <= now) {
                self.look(now);
            }
            self.advance(now)?;
            self.tell(now)?;
        }
        Ok(())
    }

    fn wait(&mut self, ready: &mut Events) -> Result<(), Failure> {
        let deadlines = [
            self.ramp.deadline(self.clients.counts.under_way).filter(|_| self.stage.phase() == Phase::Ramp),
            self.returns.deadline(),
            self.departures.deadline(),
            self.beats.map(|beats| beats.deadline()),
            self.clients.ack_deadline(),
            self.scenario.deadline(),
            self.look_at,
            self.go_at.filter(|_| self.stage.phase() == Phase::Gather),
        ];
        let soonest =
            deadlines.into_iter().flatten().fold(self.stage.deadline().min(self.second_at), Instant::min);
        self.alarm.set(soonest)?;
        match self.poll.poll(ready, None) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                ready.clear();
                Ok(())
            }
            other => other.map_err(Failure::io("wait for sockets")),
        }
    }

    fn handle_socket(&mut self, who: u32, ready: &mio::event::Event, now: Instant) {
        if ready.is_writable() {
            self.clients.handle_writable(who);
        }
        if !ready.is_readable() {
            return;
        }
        let mut heard = std::mem::take(&mut self.heard);
        self.clients.read(who, ready.is_read_closed(), &mut heard);
        for event in heard.drain(..) {
            self.clients.on_event(who, &event, now);
            let is_delivery = event.number().is_some();
            self.scenario.on_event(&mut self.clients, who, event, now);
            if is_delivery {
                self.clients.ack_if_many(who);
            }
        }
        self.heard = heard;
    }

    fn start_clients(&mut self, now: Instant) {
        for _ in 0..RETURNS_PER_TURN {
            let Some(who) = self.returns.take_due(now) else { break };
            self.start(who, now);
        }
        if self.stage.phase() != Phase::Ramp {
            return;
        }
        while let Some(who) = self.ramp.take_due(now, self.clients.counts.under_way) {
            self.start(who, now);
        }
    }

    fn start(&mut self, who: u32, now: Instant) {
        self.clients.start(who, self.plan.target, self.plan.sources.of(self.plan.first + who), now);
    }

    fn beat(&mut self, now: Instant) {
        let Some(beats) = &mut self.beats else { return };
        while let Some(who) = beats.take_due(now) {
            self.clients.beat(who);
        }
    }

    fn handle_losses(&mut self, now: Instant) {
        for (who, window) in self.clients.leaving.drain(..) {
            self.departures.add(who, window, now);
        }
        while let Some((who, asked)) = self.departures.take_due(now) {
            self.clients.leave(who, asked);
        }
        while let Some(loss) = self.clients.lost.pop_front() {
            if loss.was_active {
                self.scenario.on_lost(&mut self.clients, loss.who);
            }
            if let Some(rule) = self.plan.returns {
                self.returns.add(rule, loss.who, loss.tries, loss.at_least, now);
            }
        }
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Go(nanos) => self.go_at = Some(Instant::from_nanos(nanos)),
            Order::Stop => self.interrupt(now),
        }
    }

    fn interrupt(&mut self, now: Instant) {
        self.ran.is_interrupted = true;
        let phase = self.stage.interrupt(now);
        self.enter(phase, now);
    }

    fn advance(&mut self, now: Instant) -> Result<(), Failure> {
        if self.stop.take() {
            self.interrupt(now);
            return Ok(());
        }
        let counts = &self.clients.counts;
        let is_settled = match self.stage.phase() {
            Phase::Ramp => {
                self.ramp.is_over()
                    && counts.under_way + counts.away == 0
                    && self.scenario.is_ready(&self.clients)
            }
            Phase::Gather => self.go_at.is_some_and(|at| at <= now),
            Phase::Drain => self.scenario.is_settled(&self.clients),
            _ => false,
        };
        let progress = if is_settled { Progress::Settled } else { Progress::Open };
        let Some(phase) = self.stage.advance(now, progress) else { return Ok(()) };
        if phase == Phase::Gather {
            if self.clients.counts.active == 0 {
                return Err(self.unreachable());
            }
            if let Some(order) = self.overseer.on_gathered(now)? {
                self.obey(order, now);
            }
        }
        self.enter(phase, now);
        Ok(())
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        let (interval, from) = self.plan.beats;
        let begins = match from {
            BeatsFrom::Ramp => Phase::Ramp,
            BeatsFrom::Warmup => Phase::Warmup,
        };
        if phase == begins {
            self.beats = Some(Beats::new(now, self.plan.clients, interval));
        }
        if phase >= Phase::Drain {
            self.beats = None;
        }
        self.ran.marks.push(Mark {
            phase,
            at: now,
            usage: self.watch.usage(),
            own_cpu: clock::own_cpu(),
            done: self.scenario.done(),
            beats_back: self.clients.counts.beats_back,
            active: self.clients.counts.active,
            handshakes: self.clients.counts.handshakes,
        });
        self.overseer.on_phase(phase, now);
        self.scenario.on_phase(&mut self.clients, phase, now);
    }

    fn look(&mut self, now: Instant) {
        self.watch.look();
        self.overseer.on_look();
        self.look_at = self.watch.interval().map(|interval| now + interval);
    }

    fn tell(&mut self, now: Instant) -> Result<(), Failure> {
        if now < self.second_at {
            return Ok(());
        }
        self.second_at = if now < self.second_at + SECOND { self.second_at + SECOND } else { now + SECOND };
        self.clients.expire_logins(now);
        let second = Second {
            phase: Some(self.stage.phase()),
            counts: self.clients.counts.clone(),
            done: self.scenario.done(),
            latencies: self.scenario.recorder().take_second(),
            own_cpu: clock::own_cpu(),
        };
        self.clients.counts.lowest = self.clients.counts.active;
        if let Some(order) = self.overseer.on_second(second)? {
            self.obey(order, now);
        }
        Ok(())
    }

    /// Ends the run if nobody answers, or if the server refuses each login, which trying again does not change.
    fn check_logins(&self) -> Result<(), Failure> {
        let counts = &self.clients.counts;
        if self.clients.is_nobody_in() && counts.not_in + counts.tries_in_vain >= FAILED_CONNECTS_MAX {
            return Err(self.unreachable());
        }
        let refusals_max = self.plan.clients.min(FAILED_CONNECTS_MAX);
        self.refused(refusals_max).map_or(Ok(()), Err)
    }

    /// The failure of a run in which nobody got in, and at least `refusals_min` logins were refused.
    fn refused(&self, refusals_min: u32) -> Option<Failure> {
        if !self.clients.is_nobody_in() {
            return None;
        }
        let mut closed = self.clients.counts.closed.iter().filter(|(_, times)| **times >= refusals_min);
        let advice = closed.find_map(|(code, _)| self.clients.login_advice(*code))?;
        Some(Failure::Usage(format!("cannot log in at {}: {advice}", self.plan.target)))
    }

    fn unreachable(&self) -> Failure {
        if let Some(refused) = self.refused(1) {
            return refused;
        }
        let why = self.clients.counts.last_error.clone();
        Failure::Unreachable {
            target: self.plan.target.to_string(),
            why: why.unwrap_or_else(|| "nobody got in".into()),
        }
    }
}
