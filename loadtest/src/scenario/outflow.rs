//! Messages that leave and are answered: when each is meant to go, how many may be open, what came back.
//!
//! Shared by all scenarios with traffic. Closed loop: a client sends when an answer frees its window;
//! this finds the ceiling and says little about latency. Open loop: message `n` is meant for
//! `start + n / rate`, whatever the server does, and is sender `n % senders`'s; its corrected latency
//! runs from there.

use crate::dialect::Outcome;
use crate::findings::Recorder;
use crate::integrity::{Answer, Flight};
use crate::pace::Schedule;
use crate::phase::Phase;
use crate::record::Metric;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Messages that come due in one turn of the loop, at most: beyond what anybody sends, the loop still turns.
pub(super) const DUE_PER_TURN: usize = 16 << 10;

/// Pace of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Load {
    /// Closed loop: as soon as fewer than this many of a sender are unanswered.
    Closed {
        /// Unanswered messages per sender.
        window: u32,
    },
    /// At a rate over all senders, with at most `window` unanswered per sender.
    Open {
        /// Messages per second.
        rate: f64,
        /// Unanswered messages per sender.
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

/// Messages that a sender has under way.
#[derive(Debug, Default)]
pub struct Line {
    pub(super) flight: Flight,
    /// Open loop: messages whose moment has come.
    pub(super) due: u32,
}

/// The messages of a whole fleet.
#[derive(Debug)]
pub(super) struct Outflow {
    load: Load,
    senders: u32,
    schedule: Option<Schedule>,
    phase: Phase,
    /// Time after measuring in which a backlog may still leave; then only answers are waited for.
    backlog_for: Duration,
    backlog_until: Instant,
    measured_from: Option<Instant>,
    unanswered: u64,
    answered: u64,
}

impl Outflow {
    pub(super) const fn new(load: Load, senders: u32, backlog_for: Duration) -> Self {
        Self {
            load,
            senders,
            schedule: None,
            phase: Phase::Ramp,
            backlog_for,
            backlog_until: Instant::FAR_FUTURE,
            measured_from: None,
            unanswered: 0,
            answered: 0,
        }
    }

    pub(super) const fn is_closed_loop(&self) -> bool {
        matches!(self.load, Load::Closed { .. })
    }

    /// True if new messages may still leave.
    pub(super) fn is_flowing(&self) -> bool {
        matches!(self.phase, Phase::Warmup | Phase::Measure)
    }

    /// True if this wire answers messages; the bare server does not where it delivers.
    pub(super) const fn has_answers(&self) -> bool {
        self.answered > 0
    }

    pub(super) const fn unanswered(&self) -> u64 {
        self.unanswered
    }

    pub(super) const fn answered(&self) -> u64 {
        self.answered
    }

    pub(super) fn on_phase(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        match (phase, self.load) {
            (Phase::Warmup, Load::Open { rate, .. }) if self.senders > 0 => {
                self.schedule = Some(Schedule::new(now, rate));
            }
            (Phase::Measure, _) => self.measured_from = Some(now),
            (Phase::Drain, _) => self.backlog_until = now + self.backlog_for,
            _ => {}
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let schedule = self.schedule.filter(|_| self.is_flowing())?;
        Some(schedule.deadline())
    }

    /// Open loop: the sender of the next message whose moment has come.
    pub(super) fn take_due(&mut self, recorder: &mut Recorder, now: Instant) -> Option<u32> {
        if !self.is_flowing() {
            return None;
        }
        let schedule = self.schedule.as_mut()?;
        let n = schedule.take_due(now)?;
        if self.measured_from.is_some() {
            recorder.findings.offered += 1;
            recorder.findings.lag.record(now.saturating_since(schedule.intended(n)));
        }
        Some(u32::try_from(n % u64::from(self.senders)).expect("below a u32"))
    }

    /// True if a sender's next message may leave now.
    pub(super) fn is_due(&self, line: &Line, now: Instant) -> bool {
        let is_due = match self.load {
            Load::Closed { .. } => self.is_flowing(),
            Load::Open { .. } => line.flight.sent() < line.due && now < self.backlog_until,
        };
        is_due && line.flight.span() < self.load.window()
    }

    /// A message leaves: its number.
    pub(super) fn send(&mut self, line: &mut Line, now: Instant) -> u32 {
        self.unanswered += 1;
        line.flight.send(now)
    }

    /// The moment a message was meant to leave; in the closed loop, the one it left at.
    pub(super) fn intended(&self, sender: u32, number: u32, sent_at: Instant) -> Instant {
        let n = u64::from(number.saturating_sub(1)) * u64::from(self.senders) + u64::from(sender);
        self.schedule.map_or(sent_at, |schedule| schedule.intended(n))
    }

    /// True if a message that was due at that time counts.
    pub(super) fn counts(&self, intended: Instant) -> bool {
        self.measured_from.is_some_and(|from| intended >= from)
    }

    /// Judges an answer: whether it is the first for its message.
    pub(super) fn handle_answer(
        &mut self,
        recorder: &mut Recorder,
        (sender, line): (u32, &mut Line),
        (number, outcome): (u32, Outcome),
        now: Instant,
    ) -> bool {
        let answer = line.flight.answer(number, outcome == Outcome::Done);
        recorder.findings.tally.count_answer(answer);
        let (Answer::InOrder { sent_at } | Answer::Overtaken { sent_at }) = answer else { return false };
        self.unanswered -= 1;
        self.answered += 1;
        recorder.findings.tally.refused += u64::from(outcome != Outcome::Done);
        let intended = self.intended(sender, number, sent_at);
        if self.counts(intended) {
            recorder.record(Metric::Answer, now.saturating_since(intended));
            recorder.record(Metric::AnswerRaw, now.saturating_since(sent_at));
        }
        true
    }

    /// The run is over: what has no answer is lost; what waited and never left counts with the time
    /// it waited.
    pub(super) fn finish(&self, recorder: &mut Recorder, sender: u32, line: &Line, now: Instant) {
        let mut count = |number| {
            let intended = self.intended(sender, number, now);
            if self.counts(intended) {
                recorder.record(Metric::Answer, now.saturating_since(intended));
            }
        };
        line.flight.unanswered().for_each(&mut count);
        (line.flight.sent() + 1..=line.due).for_each(&mut count);
        recorder.findings.tally.lost += line.flight.unanswered().count() as u64;
        recorder.findings.unsent += u64::from(line.due.saturating_sub(line.flight.sent()));
    }
}
