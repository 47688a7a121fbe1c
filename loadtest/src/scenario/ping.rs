//! A message and its answer, from every client.
//!
//! Closed loop: each client sends the next message when an answer frees its window; this finds the
//! ceiling, and says little about latency. Open loop: message `n` is meant for `start + n / rate`,
//! whatever the server does, and is client `n % clients`'s; its corrected latency runs from there.

use crate::dialect::{Dialect, Event, Message, Outcome, To};
use crate::fleet::Crew;
use crate::fleet::Scenario;
use crate::integrity::{Answer, Flight, Tally};
use crate::pace::Schedule;
use crate::phase::Phase;
use crate::record::Recorder;
use bytes::Bytes;
use moorline_proto::time::Instant;

/// When messages leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// As soon as fewer than this many of a client are unanswered.
    Closed {
        /// Unanswered messages per client.
        window: u32,
    },
    /// At a rate over the whole fleet, with at most `window` unanswered per client.
    Open {
        /// Messages per second.
        rate: f64,
        /// Unanswered messages per client.
        window: u32,
    },
}

impl Load {
    const fn window(self) -> u32 {
        match self {
            Self::Closed { window } | Self::Open { window, .. } => window,
        }
    }
}

/// What one client has under way.
#[derive(Debug, Default)]
pub struct Line {
    flight: Flight,
    /// Open loop: messages whose moment has come.
    due: u32,
}

/// The scenario and what it found.
#[derive(Debug)]
pub struct Ping {
    load: Load,
    payload: Bytes,
    schedule: Option<Schedule>,
    phase: Phase,
    measured_from: Option<Instant>,
    unanswered: u64,
    done: u64,
    offered: u64,
    unsent: u64,
    /// Latencies and the generator's lag.
    pub recorder: Recorder,
    /// What went wrong.
    pub tally: Tally,
}

impl Ping {
    /// Messages of `payload_bytes` under this load.
    pub fn new(load: Load, payload_bytes: u32) -> Self {
        Self {
            load,
            payload: vec![b'm'; payload_bytes as usize].into(),
            schedule: None,
            phase: Phase::Ramp,
            measured_from: None,
            unanswered: 0,
            done: 0,
            offered: 0,
            unsent: 0,
            recorder: Recorder::default(),
            tally: Tally::default(),
        }
    }

    /// Open loop: messages that were due while measuring.
    pub const fn offered(&self) -> u64 {
        self.offered
    }

    /// Messages that were due and never left, because the server answered too slowly.
    pub const fn unsent(&self) -> u64 {
        self.unsent
    }

    /// The moment a message was meant to leave: known from its number.
    fn intended(&self, clients: u32, who: u32, cid: u32) -> Option<Instant> {
        let n = u64::from(cid - 1) * u64::from(clients) + u64::from(who);
        self.schedule.map(|schedule| schedule.intended(n))
    }

    fn send_while_room<D: Dialect>(&mut self, crew: &mut Crew<D, Line>, who: u32, now: Instant) {
        while crew.is_active(who) {
            let line = crew.extra(who);
            let is_due = match self.load {
                Load::Closed { .. } => self.phase < Phase::Drain,
                Load::Open { .. } => line.flight.sent() < line.due,
            };
            if !is_due || line.flight.span() >= self.load.window() {
                return;
            }
            let cid = line.flight.send(now);
            self.unanswered += 1;
            crew.send(Message { from: who, cid, to: To::Server, ack: 0, payload: self.payload.clone() });
        }
    }

    fn record(&mut self, intended: Instant, sent_at: Instant, now: Instant) {
        if self.measured_from.is_some_and(|from| intended >= from) {
            self.recorder.corrected.record(now.saturating_since(intended));
            self.recorder.raw.record(now.saturating_since(sent_at));
        }
    }

    fn handle_answer<D: Dialect>(
        &mut self,
        crew: &mut Crew<D, Line>,
        who: u32,
        cid: u32,
        outcome: Outcome,
        now: Instant,
    ) {
        let answer = crew.extra(who).flight.answer(cid);
        self.tally.count_answer(answer);
        if let Answer::InOrder { sent_at } | Answer::Overtaken { sent_at } = answer {
            self.unanswered -= 1;
            self.done += 1;
            self.tally.refused += u64::from(outcome == Outcome::Refused);
            let intended = self.intended(crew.len(), who, cid).unwrap_or(sent_at);
            self.record(intended, sent_at, now);
        }
        self.send_while_room(crew, who, now);
    }
}

impl<D: Dialect> Scenario<D> for Ping {
    type Extra = Line;

    fn on_phase(&mut self, crew: &mut Crew<D, Line>, phase: Phase, now: Instant) {
        self.phase = phase;
        match (phase, self.load) {
            (Phase::Warmup, Load::Open { rate, .. }) => self.schedule = Some(Schedule::new(now, rate)),
            (Phase::Warmup, Load::Closed { .. }) => {
                (0..crew.len()).for_each(|who| self.send_while_room(crew, who, now));
            }
            (Phase::Measure, _) => self.measured_from = Some(now),
            _ => {}
        }
    }

    fn on_event(&mut self, crew: &mut Crew<D, Line>, who: u32, event: Event, now: Instant) {
        if let Event::Answer { cid, outcome } = event {
            self.handle_answer(crew, who, cid, outcome, now);
        }
    }

    fn on_time(&mut self, crew: &mut Crew<D, Line>, now: Instant) {
        if !matches!(self.phase, Phase::Warmup | Phase::Measure) {
            return;
        }
        let Some(mut schedule) = self.schedule else { return };
        while let Some(n) = schedule.take_due(now) {
            let who = u32::try_from(n % u64::from(crew.len())).expect("below a u32");
            crew.extra(who).due += 1;
            if self.measured_from.is_some() {
                self.offered += 1;
                self.recorder.lag.record(now.saturating_since(schedule.intended(n)));
            }
            self.send_while_room(crew, who, now);
        }
        self.schedule = Some(schedule);
    }

    fn deadline(&self) -> Option<Instant> {
        let schedule = self.schedule.filter(|_| self.phase < Phase::Drain)?;
        Some(schedule.deadline())
    }

    fn is_settled(&self, _crew: &Crew<D, Line>) -> bool {
        self.unanswered == 0
    }

    fn done(&self) -> u64 {
        self.done
    }

    /// What has no answer is lost; what waited and never left counts with the time it waited.
    fn finish(&mut self, crew: &mut Crew<D, Line>, now: Instant) {
        for who in 0..crew.len() {
            let line = std::mem::take(crew.extra(who));
            for cid in line.flight.unanswered() {
                self.tally.lost += 1;
                if let Some(intended) = self.intended(crew.len(), who, cid) {
                    self.record(intended, intended, now);
                }
            }
            for cid in line.flight.sent() + 1..=line.due {
                self.unsent += 1;
                if let Some(intended) = self.intended(crew.len(), who, cid) {
                    self.record(intended, intended, now);
                }
            }
        }
    }
}
