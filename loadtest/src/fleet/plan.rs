//! What a run is to do, and what it left behind; both travel between processes.

use super::crew::Counts;
use super::ramp::RampRule;
use super::returns::ReturnRule;
use crate::clock;
use crate::phase::{Phase, Timeline};
use crate::process::{Usage, Watched};
use crate::record::Latencies;
use crate::socket::Sources;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// When heartbeats begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BeatsFrom {
    /// With the first login.
    Ramp,
    /// When everyone is in, so that the cost of a login is measured alone.
    Warmup,
}

/// What a loop is to do, besides its scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Whom to talk to.
    pub target: SocketAddr,
    /// How many clients.
    pub clients: u32,
    /// The number of the first of them, among all of the run.
    pub first: u32,
    /// How they come in.
    pub ramp: RampRule,
    /// Where they come from.
    pub sources: Sources,
    /// How those who lost their connection come back; `None`: not at all.
    pub returns: Option<ReturnRule>,
    /// Interval of the heartbeats, and when they begin.
    pub beats: (Duration, BeatsFrom),
    /// How long everything takes.
    pub timeline: Timeline,
    /// Whose CPU time and memory to note at each change of phase.
    pub watched: Watched,
}

/// The state of things when a phase began.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Which phase.
    pub phase: Phase,
    /// When it began.
    #[serde(with = "clock::nanos")]
    pub at: Instant,
    /// What the watched processes had used.
    pub usage: Option<Usage>,
    /// CPU time that this process had used.
    pub own_cpu: Duration,
    /// What the scenario had done.
    pub done: u64,
    /// Heartbeats echoed.
    pub beats_back: u64,
    /// Clients logged in.
    pub active: u32,
}

/// What a loop left behind, besides what its scenario recorded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ran {
    /// One per phase that was entered, the ramp first.
    pub marks: Vec<Mark>,
    /// How the fleet stood at the end.
    pub counts: Counts,
    /// Times from connect to WELCOME.
    pub login: Latencies,
    /// Whether a signal or an order cut it short.
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

    /// Adds another process's part of the same run. Only one of them watches the server.
    pub fn merge(&mut self, other: &Self) {
        for (mark, theirs) in self.marks.iter_mut().zip(&other.marks) {
            mark.usage = mark.usage.or(theirs.usage);
            mark.done += theirs.done;
            mark.beats_back += theirs.beats_back;
            mark.active += theirs.active;
        }
        self.marks.truncate(other.marks.len());
        self.counts.merge(&other.counts);
        self.login.merge(&other.login);
        self.is_interrupted |= other.is_interrupted;
    }

    /// The part of one core that the generator used while measuring, from 0 to 1.
    pub fn busy(&self) -> Option<f64> {
        let (began, ended) = self.ends(Phase::Measure)?;
        let seconds = ended.at.saturating_since(began.at).as_secs_f64();
        (seconds > 0.0).then(|| (ended.own_cpu.saturating_sub(began.own_cpu)).as_secs_f64() / seconds)
    }
}
