//! Plan of a run, and its results; both travel between processes.

use super::clients::Counts;
use super::ramp::RampRule;
use super::returns::ReturnRule;
use crate::carrier::CarryRule;
use crate::clock;
use crate::phase::{Phase, Timeline};
use crate::process::{Usage, Watched};
use crate::record::Latencies;
use crate::socket::Sources;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// Time at which heartbeats begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BeatsFrom {
    /// With the first login.
    Ramp,
    /// After all logins, so that the cost of a login is measured alone.
    Warmup,
}

/// Plan of a loop, without its scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Target address.
    pub target: SocketAddr,
    /// Carriers below the dialect: TLS, WebSocket.
    pub carry: CarryRule,
    /// Number of clients.
    pub clients: u32,
    /// The number of the first of them, among all of the run.
    pub first: u32,
    /// Ramp of the logins.
    pub ramp: RampRule,
    /// Source addresses and ports.
    pub sources: Sources,
    /// Policy for clients that lost their connection; `None`: they stay out.
    pub returns: Option<ReturnRule>,
    /// Interval of the heartbeats, and when they begin.
    pub beats: (Duration, BeatsFrom),
    /// Length of each phase.
    pub timeline: Timeline,
    /// Processes whose CPU time and memory are noted at each change of phase.
    pub watched: Watched,
}

/// The state of things when a phase began.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The phase.
    pub phase: Phase,
    /// Time at which it began.
    #[serde(with = "clock::nanos")]
    pub at: Instant,
    /// Usage of the watched processes.
    pub usage: Option<Usage>,
    /// CPU time that this process had used.
    pub own_cpu: Duration,
    /// Operations that the scenario had done.
    pub done: u64,
    /// Heartbeats echoed.
    pub beats_back: u64,
    /// Clients logged in.
    pub active: u32,
    /// TLS handshakes that had ended well.
    pub handshakes: u32,
}

/// Results of a loop, without its scenario's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ran {
    /// A mark per phase that was entered, the ramp first.
    pub marks: Vec<Mark>,
    /// Counts of clients at the end.
    pub counts: Counts,
    /// Times from connect to WELCOME.
    pub login: Latencies,
    /// True if a signal or an order ended the loop early.
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
            mark.handshakes += theirs.handshakes;
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
