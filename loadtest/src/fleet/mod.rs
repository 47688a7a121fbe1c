//! The loop: one thread, one epoll, any number of clients, and a scenario that says what they do.
//!
//! Driven by [`run`]. Order of one turn: wait for sockets or the timer; read the clock once; handle
//! sockets; start clients that are due; beat; let the scenario send what is due; move the phase on.

mod client;
mod crew;
mod ramp;
mod scenario;

pub use client::Client;
pub use crew::{Counts, Crew};
pub use ramp::{Ramp, RampRule};
pub use scenario::Scenario;

use crate::alarm::Alarm;
use crate::clock;
use crate::dialect::{Dialect, Event};
use crate::exit::Failure;
use crate::pace::Beats;
use crate::phase::{Phase, Progress, Stage, Timeline};
use crate::process::{Usage, Watched};
use crate::record::Latencies;
use crate::socket::Sources;
use crate::terminal;
use crate::units;
use mio::{Events, Poll, Token};
use moorline_proto::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Readiness events of one turn.
const EVENTS_PER_TURN: usize = 1_024;
/// The live line, and the sweep for late logins.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// So many failed connects without a single success: nobody is there.
const FAILED_CONNECTS_MAX: u32 = 8;
const ALARM: Token = Token(usize::MAX - 1);

/// Set by SIGINT and SIGTERM.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A stop that the process's signals set.
    pub fn on_signals() -> Result<Self, Failure> {
        let stop = Self::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))
                .map_err(Failure::io("handle signals"))?;
        }
        Ok(stop)
    }

    /// Whether a signal came since this was last asked.
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// When heartbeats begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatsFrom {
    /// With the first login.
    Ramp,
    /// When everyone is in, so that the cost of a login is measured alone.
    Warmup,
}

/// What a run is to do, besides its scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to talk to.
    pub target: SocketAddr,
    /// How many clients.
    pub clients: u32,
    /// How they come in.
    pub ramp: RampRule,
    /// Where they come from.
    pub sources: Sources,
    /// Interval of the heartbeats, and when they begin.
    pub beats: (Duration, BeatsFrom),
    /// How long everything takes.
    pub timeline: Timeline,
    /// Whose CPU time and memory to note at each change of phase.
    pub watched: Watched,
    /// Whether to print a line a second.
    pub live: Live,
}

/// Whether to print a line a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// To standard error.
    Lines,
    /// Nothing until the report.
    Quiet,
}

/// The state of things when a phase began.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Which phase.
    pub phase: Phase,
    /// When it began.
    pub at: Instant,
    /// What the watched processes had used.
    pub usage: Option<Usage>,
    /// What the scenario had done.
    pub done: u64,
    /// Heartbeats echoed.
    pub beats_back: u64,
    /// Clients logged in.
    pub active: u32,
}

/// What a run left behind, besides what its scenario recorded.
#[derive(Clone, Debug)]
pub struct Ran {
    /// One per phase that was entered, the ramp first.
    pub marks: Vec<Mark>,
    /// How the fleet stood at the end.
    pub counts: Counts,
    /// Times from connect to WELCOME.
    pub login: Latencies,
    /// Whether a signal cut it short.
    pub is_interrupted: bool,
}

impl Ran {
    /// The moment a phase began, if it did.
    pub fn mark(&self, phase: Phase) -> Option<&Mark> {
        self.marks.iter().find(|mark| mark.phase == phase)
    }

    /// The two ends of a phase, if it was entered and left.
    pub fn ends(&self, phase: Phase) -> Option<(&Mark, &Mark)> {
        let at = self.marks.iter().position(|mark| mark.phase == phase)?;
        Some((&self.marks[at], self.marks.get(at + 1)?))
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
    stop: &Stop,
) -> Result<Ran, Failure> {
    let poll = Poll::new().map_err(Failure::io("create an epoll"))?;
    let registry = poll.registry().try_clone().map_err(Failure::io("share the epoll"))?;
    let now = clock::now();
    let crew = Crew::new(dialect, plan.clients, registry);
    let alarm = Alarm::new(crew.registry(), ALARM)?;
    let mut driver = Driver {
        plan,
        crew,
        scenario,
        stop,
        poll,
        alarm,
        stage: Stage::new(plan.timeline, now),
        ramp: Ramp::new(plan.ramp, plan.clients, now),
        beats: None,
        marks: Vec::new(),
        heard: Vec::new(),
        progress_at: now + PROGRESS_EVERY,
        is_interrupted: false,
    };
    driver.enter(Phase::Ramp, now);
    driver.turn_until_over()?;
    driver.scenario.finish(&mut driver.crew, clock::now());
    let Driver { crew, marks, is_interrupted, .. } = driver;
    Ok(Ran { marks, counts: crew.counts, login: crew.login, is_interrupted })
}

struct Driver<'a, D: Dialect, S: Scenario<D>> {
    plan: &'a Plan,
    crew: Crew<D, S::Extra>,
    scenario: &'a mut S,
    stop: &'a Stop,
    poll: Poll,
    alarm: Alarm,
    stage: Stage,
    ramp: Ramp,
    beats: Option<Beats>,
    marks: Vec<Mark>,
    heard: Vec<Event>,
    progress_at: Instant,
    is_interrupted: bool,
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
                    Token(who) => {
                        self.handle_socket(u32::try_from(who).expect("a client's number"), event, now);
                    }
                }
            }
            self.start_clients(now)?;
            self.beat(now);
            self.scenario.on_time(&mut self.crew, now);
            self.report_lost();
            self.advance(now)?;
            self.show_progress(now);
        }
        Ok(())
    }

    fn wait(&mut self, ready: &mut Events) -> Result<(), Failure> {
        let under_way = self.crew.counts.under_way;
        let deadlines = [
            self.ramp.deadline(under_way),
            self.beats.map(|beats| beats.deadline()),
            self.scenario.deadline(),
        ];
        let soonest =
            deadlines.into_iter().flatten().fold(self.stage.deadline().min(self.progress_at), Instant::min);
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
            self.crew.handle_writable(who);
        }
        if !ready.is_readable() {
            return;
        }
        let mut heard = std::mem::take(&mut self.heard);
        self.crew.read(who, ready.is_read_closed(), &mut heard);
        for event in heard.drain(..) {
            self.crew.on_event(who, &event, now);
            let is_delivery = matches!(event, Event::Delivery { .. });
            self.scenario.on_event(&mut self.crew, who, event, now);
            if is_delivery {
                self.crew.ack_if_many(who);
            }
        }
        self.heard = heard;
    }

    fn start_clients(&mut self, now: Instant) -> Result<(), Failure> {
        if self.stage.phase() != Phase::Ramp {
            return Ok(());
        }
        while let Some(who) = self.ramp.take_due(now, self.crew.counts.under_way) {
            self.crew.start(who, self.plan.target, &self.plan.sources, now);
            let counts = &self.crew.counts;
            if counts.active + counts.dropped == 0 && counts.not_in >= FAILED_CONNECTS_MAX {
                return Err(self.unreachable());
            }
        }
        Ok(())
    }

    fn beat(&mut self, now: Instant) {
        let Some(beats) = &mut self.beats else { return };
        while let Some(who) = beats.take_due(now) {
            self.crew.beat(who);
        }
    }

    fn report_lost(&mut self) {
        while let Some(who) = self.crew.lost.pop() {
            self.scenario.on_lost(&mut self.crew, who);
        }
    }

    fn advance(&mut self, now: Instant) -> Result<(), Failure> {
        if self.stop.take() {
            self.is_interrupted = true;
            let phase = self.stage.interrupt(now);
            self.enter(phase, now);
            return Ok(());
        }
        let is_settled = match self.stage.phase() {
            Phase::Ramp => self.ramp.is_over() && self.crew.counts.under_way == 0,
            Phase::Drain => self.scenario.is_settled(&self.crew),
            _ => false,
        };
        let progress = if is_settled { Progress::Settled } else { Progress::Open };
        let Some(phase) = self.stage.advance(now, progress) else { return Ok(()) };
        if phase == Phase::Warmup && self.crew.counts.active == 0 {
            return Err(self.unreachable());
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
        self.marks.push(Mark {
            phase,
            at: now,
            usage: self.plan.watched.usage(),
            done: self.scenario.done(),
            beats_back: self.crew.counts.beats_back,
            active: self.crew.counts.active,
        });
        self.scenario.on_phase(&mut self.crew, phase, now);
    }

    fn show_progress(&mut self, now: Instant) {
        if now < self.progress_at {
            return;
        }
        self.progress_at = now + PROGRESS_EVERY;
        self.crew.expire_logins(self.ramp.begun(), now);
        if self.plan.live == Live::Lines {
            let counts = &self.crew.counts;
            terminal::note(format!(
                "{:<8} conns {}/{}  dropped {}  beats {}  done {}",
                format!("{:?}", self.stage.phase()).to_lowercase(),
                units::count(u64::from(counts.active)),
                units::count(u64::from(self.plan.clients)),
                counts.dropped,
                units::count(counts.beats_back),
                units::count(self.scenario.done()),
            ));
        }
    }

    fn unreachable(&self) -> Failure {
        let why = self.crew.counts.last_error.clone();
        Failure::Unreachable {
            target: self.plan.target.to_string(),
            why: why.unwrap_or_else(|| "nobody got in".into()),
        }
    }
}
