//! The stages of a run, as a state machine without a clock.
//!
//! ```text
//! Ramp ──everyone is in, or time is up──► Gather ──the other processes are, too──► Warmup
//! Warmup ──time──► Measure ──time──► Drain ──settled or time──► Over
//! any before Drain ──interrupted──► Drain ──interrupted──► Over
//! ```

use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Clients connect and log in.
    Ramp,
    /// All clients of this loop are logged in; those of other processes may not be.
    Gather,
    /// Traffic flows and does not count yet.
    Warmup,
    /// Traffic counts.
    Measure,
    /// Nothing new is due; what is under way may finish.
    Drain,
    /// The end.
    Over,
}

impl Phase {
    /// A word for people and files.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::Gather => "gather",
            Self::Warmup => "warmup",
            Self::Measure => "measure",
            Self::Drain => "drain",
            Self::Over => "over",
        }
    }
}

/// Longest time of each phase; each has a limit, so a run has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// At most this long to log everyone in, and as long again to wait for the other processes.
    pub ramp_max: Duration,
    /// Exactly this long.
    pub warmup: Duration,
    /// Exactly this long.
    pub measure: Duration,
    /// At most this long.
    pub drain_max: Duration,
}

impl Timeline {
    const fn length(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Ramp | Phase::Gather => self.ramp_max,
            Phase::Warmup => self.warmup,
            Phase::Measure => self.measure,
            Phase::Drain => self.drain_max,
            Phase::Over => Duration::ZERO,
        }
    }
}

/// True if a phase that may end early has nothing left to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something is still open.
    Open,
    /// RAMP: everyone is in or refused. GATHER: so are the others. DRAIN: everything is answered.
    Settled,
}

/// A phase and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    timeline: Timeline,
    phase: Phase,
    ends: Instant,
}

impl Stage {
    /// The ramp begins at `now`.
    pub fn new(timeline: Timeline, now: Instant) -> Self {
        Self { timeline, phase: Phase::Ramp, ends: now + timeline.ramp_max }
    }

    /// Phase of the run.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Latest end of this phase.
    pub const fn deadline(&self) -> Instant {
        self.ends
    }

    /// Moves at most one stage on. The next stage starts when this one was meant to end, so that
    /// the measured time is exact even if the loop was late.
    pub fn advance(&mut self, now: Instant, progress: Progress) -> Option<Phase> {
        let is_early_end =
            matches!(self.phase, Phase::Ramp | Phase::Gather | Phase::Drain) && progress == Progress::Settled;
        if self.phase == Phase::Over || (now < self.ends && !is_early_end) {
            return None;
        }
        let began = self.ends.min(now);
        self.phase = match self.phase {
            Phase::Ramp => Phase::Gather,
            Phase::Gather => Phase::Warmup,
            Phase::Warmup => Phase::Measure,
            Phase::Measure => Phase::Drain,
            Phase::Drain | Phase::Over => Phase::Over,
        };
        self.ends = began + self.timeline.length(self.phase);
        Some(self.phase)
    }

    /// Goes to Drain, or from there to the end: what is under way may finish unless asked twice.
    pub fn interrupt(&mut self, now: Instant) -> Phase {
        self.phase = if self.phase < Phase::Drain { Phase::Drain } else { Phase::Over };
        self.ends = now + self.timeline.length(self.phase);
        self.phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMELINE: Timeline = Timeline {
        ramp_max: Duration::from_secs(10),
        warmup: Duration::from_secs(1),
        measure: Duration::from_secs(5),
        drain_max: Duration::from_secs(2),
    };

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_ordinary_run() {
        let mut stage = Stage::new(TIMELINE, at(0));
        assert_eq!(stage.advance(at(3), Progress::Open), None);
        assert_eq!(stage.advance(at(4), Progress::Settled), Some(Phase::Gather));
        assert_eq!(stage.advance(at(4), Progress::Open), None, "another process is not ready");
        assert_eq!(stage.advance(at(4), Progress::Settled), Some(Phase::Warmup));
        assert_eq!(stage.advance(at(4), Progress::Settled), None, "warm-up never ends early");
        assert_eq!(stage.advance(at(5), Progress::Open), Some(Phase::Measure));
        assert_eq!(stage.advance(at(9), Progress::Settled), None, "nor does measuring");
        assert_eq!(stage.advance(at(10), Progress::Open), Some(Phase::Drain));
        assert_eq!(stage.advance(at(10), Progress::Settled), Some(Phase::Over));
        assert_eq!(stage.advance(at(99), Progress::Settled), None);
    }

    #[test]
    fn every_stage_is_bounded_and_a_late_loop_does_not_stretch_the_measurement() {
        let mut stage = Stage::new(TIMELINE, at(0));
        assert_eq!(stage.advance(at(10), Progress::Open), Some(Phase::Gather));
        assert_eq!(stage.advance(at(10), Progress::Settled), Some(Phase::Warmup));
        assert_eq!(stage.advance(at(14), Progress::Open), Some(Phase::Measure));
        assert_eq!(stage.deadline(), at(16), "measuring began at 11, not at 14");
        assert_eq!(stage.advance(at(16), Progress::Open), Some(Phase::Drain));
        assert_eq!(stage.advance(at(18), Progress::Open), Some(Phase::Over));
    }

    #[test]
    fn an_interrupt_drains_and_a_second_one_ends() {
        let mut stage = Stage::new(TIMELINE, at(0));
        assert_eq!(stage.interrupt(at(1)), Phase::Drain);
        assert_eq!(stage.deadline(), at(3));
        assert_eq!(stage.interrupt(at(2)), Phase::Over);
    }
}
