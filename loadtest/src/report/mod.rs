//! Report of a run: text for people, JSON for programs, and a folder with both and the charts.

mod compare;
pub mod environment;
mod folder;
mod hgrm;
mod html;
mod text;

pub use compare::{Comparison, Past};
pub use environment::Environment;
pub use folder::Folder;
pub use html::page;

use crate::exit::Exit;
use crate::expect::{Expectation, Figures};
use crate::fleet::{Counts, Mark, Ran};
use crate::integrity::Tally;
use crate::job::{Job, Part};
use crate::monitor::{Machine, Marker};
use crate::phase::Phase;
use crate::record::{Latencies, LatencySummary, Metric};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of summary.json; grows when a field changes its meaning or goes. Its schema is
/// `loadtest/schema/summary.schema.json`.
pub const SCHEMA: u32 = 1;
/// A send later than this after its moment is late.
const LATE: Duration = Duration::from_millis(1);
/// The generator is saturated when one in a hundred sends left later than this after its moment:
/// then its own delay, not the server's, is what the percentiles show.
pub const LAG_P99_MAX: Duration = Duration::from_millis(10);
/// Share of a core above which a closed loop shows the generator's own ceiling.
const BUSY_MAX: f64 = 0.95;
/// Share of a core from which on a generator that was late is itself the cause.
const OWN_FAULT_MIN: f64 = 0.8;
/// Part of all cores in use from which on a program has to wait for a core.
const MACHINE_FULL_MIN: f64 = 0.85;
/// Part of the time taken by other machines from which on a program has to wait for a core.
const STEAL_MIN: f64 = 0.05;
/// Verdict of a run whose generator was late because others had the cores.
const MACHINE_BUSY: &str = "INVALID machine busy";
/// Verdict of a run whose restart failed.
const RESTART_FAILED: &str = "FAIL restart";
/// Close code of a login whose token the gateway does not accept.
const TOKEN_REFUSED: u32 = 3520;

/// True if the generator's own lag makes the run invalid.
pub fn is_saturated(lag: &Latencies) -> bool {
    u128::from(lag.summary().p99) > LAG_P99_MAX.as_nanos()
}

/// Meaning of a lost connection for the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drops {
    /// No connection may be lost.
    Fail,
    /// The server goes away on purpose: how many were lost is a figure.
    Count,
}

/// Everything a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "hold", "ping", "chat", "group", "storm", "restart".
    pub scenario: String,
    /// Target address.
    pub target: String,
    /// Seconds of measuring.
    pub seconds: f64,
    /// Processes of the generator.
    pub processes: u32,
    /// Connections asked for and held.
    pub connections: Connections,
    /// Messages meant to leave per second; open loop only.
    pub offered_per_s: Option<f64>,
    /// Operations done per second: answers, deliveries, or heartbeats echoed.
    pub done_per_s: f64,
    /// Messages that were due and never left.
    pub unsent: u64,
    /// Distributions by their names, in nanoseconds; empty if the generator was late.
    pub latencies: BTreeMap<String, LatencySummary>,
    /// Distributions of a run whose generator was late: they are its own, and say nothing about the server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub invalid_latencies: BTreeMap<String, LatencySummary>,
    /// Faults of the run.
    pub integrity: Tally,
    /// Deliveries over a new connection that came before on the old one, which clients drop.
    pub repeated: u64,
    /// Longest time without a delivery while measuring, in seconds; 0: not watched in this scenario.
    pub silence_s: f64,
    /// TLS handshakes and upgrades; `None`: neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<CarrierFigures>,
    /// The generator itself.
    pub generator: Generator,
    /// The target process, if its pid was given.
    pub server: Option<ServerFigures>,
    /// Close codes the server gave, and how often.
    pub closed: BTreeMap<u32, u32>,
    /// Restarts of the server, with their times.
    pub markers: Vec<Marker>,
    /// Expectations and their results.
    pub expectations: Vec<Judged>,
    /// Sentences that belong to the figures.
    pub notes: Vec<String>,
    /// "PASS", or what is wrong.
    pub verdict: String,
    /// The exit code.
    pub exit: u8,
}

/// Connections of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Connections {
    /// Asked for.
    pub asked: u32,
    /// Logged in at the end.
    pub held: u32,
    /// Lost, where that is a figure and not a failure.
    pub dropped: u32,
    /// True if lost connections are a figure, because the server goes away on purpose.
    #[serde(default)]
    pub may_drop: bool,
}

/// TLS handshakes and upgrades of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CarrierFigures {
    /// TLS handshakes that ended well.
    pub handshakes: u32,
    /// Those of them in the ramp, per second of it.
    pub handshakes_per_s: f64,
    /// Part of all that resumed an earlier session, from 0 to 1.
    pub resumed: f64,
    /// Upgrades to WebSocket that were accepted.
    pub upgrades: u32,
}

impl CarrierFigures {
    /// From the counts and marks of a run; `None`: there was neither TLS nor WebSocket.
    fn of(ran: &Ran) -> Option<Self> {
        let Counts { handshakes, resumed, upgrades, .. } = ran.counts;
        let handshakes_per_s = ran.ends(Phase::Ramp).map_or(0.0, |(began, ended)| {
            let seconds = ended.at.saturating_since(began.at).as_secs_f64().max(1e-9);
            f64::from(ended.handshakes - began.handshakes) / seconds
        });
        let share = f64::from(resumed) / f64::from(handshakes.max(1));
        (handshakes + upgrades > 0).then_some(Self { handshakes, handshakes_per_s, resumed: share, upgrades })
    }
}

/// The generator itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Generator {
    /// Lag of the generator; open loop only.
    pub lag: Option<Lag>,
    /// Part of a core that its busiest process used while measuring.
    pub busy: Option<f64>,
    /// Bytes it keeps per client.
    pub client_bytes: u64,
    /// Use of the cores of its machine; `None`: not known.
    #[serde(default)]
    pub machine: Option<Machine>,
}

/// The generator's own lateness.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lag {
    /// 99 of 100 sends were not later, in nanoseconds.
    pub p99: u64,
    /// Part of the sends later than 1 ms, from 0 to 1.
    pub late: f64,
}

/// An expectation and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// Expectation as written.
    pub expected: String,
    /// Reason why it failed; `None`: it holds.
    pub failed: Option<String>,
}

/// CPU time and memory of the target.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ServerFigures {
    /// Resident bytes before the first connect.
    pub rss_before: u64,
    /// Resident bytes at the end of measuring.
    pub rss_after: u64,
    /// Growth divided by the connections held.
    pub bytes_per_connection: f64,
    /// CPU seconds per million logins.
    pub login_cpu_s_per_million: f64,
    /// CPU seconds while measuring.
    pub cpu_s: f64,
    /// CPU seconds per million operations.
    pub cpu_s_per_million: f64,
}

impl ServerFigures {
    /// From the marks of a run; `None` if nobody was watched or it was cut short.
    pub fn of(ran: &Ran) -> Option<Self> {
        let (ramp_began, ramp_ended) = (ran.mark(Phase::Ramp)?, ran.mark(Phase::Warmup)?);
        let (began, ended) = ran.ends(Phase::Measure)?;
        let cpu =
            |from: &Mark, to: &Mark| Some((to.usage?.cpu.saturating_sub(from.usage?.cpu)).as_secs_f64());
        let (before, after) = (ramp_began.usage?.rss_bytes, ended.usage?.rss_bytes);
        let cpu_s = cpu(began, ended)?;
        Some(Self {
            rss_before: before,
            rss_after: after,
            bytes_per_connection: (after as f64 - before as f64) / f64::from(ended.active.max(1)),
            login_cpu_s_per_million: cpu(ramp_began, ramp_ended)? * 1e6 / f64::from(ramp_ended.active.max(1)),
            cpu_s,
            cpu_s_per_million: cpu_s * 1e6 / (ended.done.saturating_sub(began.done)).max(1) as f64,
        })
    }
}

impl Report {
    /// From what a run left behind.
    pub fn new(job: &Job, processes: u32, part: &Part, drops: Drops) -> Self {
        let Part { ran, findings, .. } = part;
        let (seconds, done) = ran.ends(Phase::Measure).map_or((0.0, 0), |(began, ended)| {
            let seconds = ended.at.saturating_since(began.at).as_secs_f64();
            (seconds, ended.done.saturating_sub(began.done))
        });
        let per_s = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let mut latencies: BTreeMap<String, LatencySummary> = findings
            .latencies
            .iter()
            .map(|(metric, latencies)| (metric.name().to_owned(), latencies.summary()))
            .collect();
        if !ran.login.is_empty() {
            latencies.insert("login".into(), ran.login.summary());
        }
        let is_late = is_saturated(&findings.lag);
        let invalid_latencies = if is_late { std::mem::take(&mut latencies) } else { BTreeMap::new() };
        let lag = &findings.lag;
        let lag = (!lag.is_empty()).then(|| Lag { p99: lag.summary().p99, late: lag.part_over(LATE) });
        let mut integrity = findings.tally;
        integrity.not_in += u64::from(ran.counts.not_in);
        let mut dropped = ran.counts.dropped;
        if drops == Drops::Fail {
            integrity.dropped += u64::from(std::mem::take(&mut dropped));
        }
        let mut report = Self {
            schema: SCHEMA,
            scenario: job.work.name().into(),
            target: job.plan.target.to_string(),
            seconds,
            processes,
            connections: Connections {
                asked: job.plan.clients,
                held: ran.counts.active,
                dropped,
                may_drop: drops == Drops::Count,
            },
            offered_per_s: (findings.offered > 0).then(|| per_s(findings.offered)),
            done_per_s: per_s(done),
            unsent: findings.unsent,
            latencies,
            invalid_latencies,
            integrity,
            repeated: findings.repeated,
            silence_s: findings.silence.as_secs_f64(),
            carrier: CarrierFigures::of(ran),
            generator: Generator {
                lag,
                busy: ran.busy(),
                client_bytes: findings.client_bytes,
                machine: None,
            },
            server: ServerFigures::of(ran),
            closed: ran.counts.closed.clone(),
            markers: Vec::new(),
            expectations: Vec::new(),
            notes: Vec::new(),
            verdict: String::new(),
            exit: 0,
        };
        report.note_causes(ran.counts.last_error.as_deref());
        report.judge(ran.is_interrupted, is_late);
        report
    }

    /// Adds sentences about the causes that the figures show.
    fn note_causes(&mut self, last_error: Option<&str>) {
        if let Some(error) = last_error {
            self.notes.push(format!("last error: {error}"));
        }
        if self.closed.contains_key(&TOKEN_REFUSED) {
            self.notes.push(format!(
                "close {TOKEN_REFUSED}: the gateway does not accept the tokens; give its key by --key-file, or tokens by \
                 --token-file"
            ));
        }
        if self.integrity.refused > 0 {
            let text = "refused: answered with RETRY or an error; few clients in a closed loop exceed what one user may \
                        send (limits.user_rate of the gateway): take more clients, or a rate";
            self.notes.push(text.into());
        }
        if self.integrity.lost > 0 {
            let text = "lost: without an answer, or not delivered, when the wait at the end (--drain) was over; a longer one \
                        tells what is late from what is lost";
            self.notes.push(text.into());
        }
        let Generator { lag, busy, .. } = self.generator;
        if lag.is_none() && busy.is_some_and(|busy| busy > BUSY_MAX) {
            let text = "the generator used a whole core: this ceiling is its own, not the server's";
            self.notes.push(text.into());
        }
    }

    fn judge(&mut self, is_interrupted: bool, is_saturated: bool) {
        let exit = match (is_interrupted, self.integrity.is_clean(), is_saturated) {
            (true, ..) => Exit::Interrupted,
            (false, false, _) => Exit::Integrity,
            (false, true, true) => Exit::Saturated,
            (false, true, false) => Exit::Pass,
        };
        self.set_exit(exit);
    }

    fn set_exit(&mut self, exit: Exit) {
        (self.exit, self.verdict) = (exit.code(), exit.label().to_owned());
    }

    /// Exit code of the program.
    pub fn exit(&self) -> Exit {
        Exit::of_code(self.exit).unwrap_or(Exit::Integrity)
    }

    /// Notes what the cores of the machine did. If the generator was late, this tells whether others had the cores.
    pub fn blame(&mut self, machine: Option<Machine>) {
        self.generator.machine = machine;
        if self.exit() == Exit::Saturated && self.is_machine_busy() {
            MACHINE_BUSY.clone_into(&mut self.verdict);
        }
    }

    /// Reports whether the generator was late because it had to wait for a core, which others had.
    pub fn is_machine_busy(&self) -> bool {
        let is_own_fault = self.generator.busy.is_some_and(|busy| busy >= OWN_FAULT_MIN);
        let is_full =
            |machine: Machine| machine.busy + machine.steal >= MACHINE_FULL_MIN || machine.steal >= STEAL_MIN;
        self.is_saturated() && !is_own_fault && self.generator.machine.is_some_and(is_full)
    }

    /// Reports whether the generator's own lag is what the latencies show, whatever else decided the exit.
    pub fn is_saturated(&self) -> bool {
        self.generator.lag.is_some_and(|lag| u128::from(lag.p99) > LAG_P99_MAX.as_nanos())
    }

    /// Notes that the restart command failed. The failure outranks a saturated generator: a slow generator
    /// makes latencies worthless, but cannot make a command fail.
    pub fn fail_restart(&mut self, why: String) {
        self.notes.push(why);
        if matches!(self.exit(), Exit::Pass | Exit::Saturated) {
            self.set_exit(Exit::Unexpected);
            RESTART_FAILED.clone_into(&mut self.verdict);
        }
    }

    /// Marks the moment at which 99 in 100 clients of a storm were back.
    pub fn mark_return(&mut self, storm: &str) {
        let back = self.latencies.get(Metric::Back.name()).map(|back| back.p99);
        let begin =
            self.markers.iter().find(|marker| marker.label.starts_with(storm)).map(|marker| marker.at_s);
        if let (Some(back), Some(begin)) = (back, begin) {
            let (at_s, label) = (begin + back as f64 / 1e9, "99% are back".to_owned());
            self.markers.push(Marker { at_s, label });
        }
    }

    /// Holds the figures against what was expected. A run that is wrong in itself stays that.
    pub fn expect(&mut self, expectations: &[Expectation], aborted: Option<&str>) {
        for expectation in expectations {
            // Its figure is the generator's own, and judges nobody.
            let is_moot = self.is_saturated() && expectation.is_latency();
            let failed = if is_moot {
                Some(format!("{expectation}: not judged, the generator was late"))
            } else {
                expectation.judge(self).err()
            };
            self.expectations.push(Judged { expected: expectation.to_string(), failed });
        }
        if let Some(why) = aborted {
            self.notes.push(format!("ended early: {why}"));
        }
        let has_failed = aborted.is_some() || self.expectations.iter().any(|judged| judged.failed.is_some());
        let may_say_so = self.exit() == Exit::Pass || (aborted.is_some() && self.exit() == Exit::Interrupted);
        if has_failed && may_say_so {
            self.set_exit(Exit::Unexpected);
        }
    }
}

impl Figures for Report {
    fn figure(&self, name: &str) -> Option<f64> {
        let tally = &self.integrity;
        let server = |of: fn(&ServerFigures) -> f64| self.server.as_ref().map(of);
        match name {
            "rate" => Some(self.done_per_s),
            "offered" => self.offered_per_s,
            "unsent" => Some(self.unsent as f64),
            "lost" => Some(tally.lost as f64),
            "duplicated" => Some(tally.duplicated as f64),
            "reordered" => Some(tally.reordered as f64),
            "refused" => Some(tally.refused as f64),
            "repeated" => Some(self.repeated as f64),
            "dropped" => Some(tally.dropped as f64 + f64::from(self.connections.dropped)),
            "not_in" => Some(tally.not_in as f64),
            "held" => Some(f64::from(self.connections.held)),
            "silence" => Some(self.silence_s * 1e9),
            "lag.p99" => self.generator.lag.map(|lag| lag.p99 as f64),
            "busy" => self.generator.busy,
            "handshakes" => self.carrier.map(|carrier| carrier.handshakes_per_s),
            "resumed" => self.carrier.map(|carrier| carrier.resumed),
            "bytes_per_connection" => server(|it| it.bytes_per_connection),
            "cpu_per_million" => server(|it| it.cpu_s_per_million),
            "login_cpu_per_million" => server(|it| it.login_cpu_s_per_million),
            "rss" => server(|it| it.rss_after as f64),
            // Also of a folder that an earlier version wrote.
            _ if self.is_saturated() => None,
            _ => {
                let (metric, statistic) = name.split_once('.')?;
                self.latencies.get(metric)?.statistic(statistic)
            }
        }
    }
}

#[cfg(test)]
mod tests;
