//! What a run found, as text for people and as JSON for programs.

use crate::exit::Exit;
use crate::fleet::{Plan, Ran};
use crate::integrity::Tally;
use crate::phase::Phase;
use crate::record::{Latencies, LatencySummary};
use crate::units;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Version of the JSON; grows when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;
/// A send later than this after its moment is late.
const LATE: Duration = Duration::from_millis(1);
/// The generator is saturated when one in a hundred sends left later than this after its moment:
/// then its own delay, not the server's, is what the percentiles show.
pub const LAG_P99_MAX: Duration = Duration::from_millis(10);

/// Whether the generator's own lag makes a run say nothing about the server.
pub fn is_saturated(lag: &Latencies) -> bool {
    u128::from(lag.summary().p99) > LAG_P99_MAX.as_nanos()
}

/// Everything a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "hold", "ping".
    pub scenario: &'static str,
    /// Whom it talked to.
    pub target: String,
    /// Seconds of measuring.
    pub seconds: f64,
    /// Connections asked for and held.
    pub connections: Connections,
    /// Messages meant to leave per second; open loop only.
    pub offered_per_s: Option<f64>,
    /// Operations done per second.
    pub done_per_s: f64,
    /// Messages that were due and never left.
    pub unsent: u64,
    /// Named distributions, in nanoseconds.
    pub latencies: Vec<(&'static str, LatencySummary)>,
    /// What went wrong.
    pub integrity: Tally,
    /// How late the generator was; open loop only.
    pub lag: Option<Lag>,
    /// The target process, if its pid was given.
    pub server: Option<ServerFigures>,
    /// Close codes the server gave, and how often.
    pub closed: Vec<(u32, u32)>,
    /// Sentences that belong to the figures.
    pub notes: Vec<String>,
    /// "PASS", or what is wrong.
    pub verdict: &'static str,
    /// The exit code.
    #[serde(skip)]
    pub exit: Exit,
}

/// Connections of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Connections {
    /// Asked for.
    pub asked: u32,
    /// Logged in at the end.
    pub held: u32,
}

/// The generator's own lateness.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lag {
    /// 99 of 100 sends were not later, in nanoseconds.
    pub p99: u64,
    /// Part of the sends later than 1 ms, from 0 to 1.
    pub late: f64,
}

/// CPU time and memory of the target.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerFigures {
    /// Resident bytes before the first connect.
    pub rss_before: u64,
    /// Resident bytes at the end of measuring.
    pub rss_after: u64,
    /// Their difference over the connections held.
    pub bytes_per_connection: f64,
    /// CPU seconds per million logins.
    pub login_cpu_s_per_million: f64,
    /// CPU seconds while measuring.
    pub cpu_s: f64,
    /// The same per million operations.
    pub cpu_s_per_million: f64,
}

impl ServerFigures {
    /// From the marks of a run; `None` if nobody was watched or it was cut short.
    pub fn of(ran: &Ran) -> Option<Self> {
        let (ramp_began, ramp_ended) = ran.ends(Phase::Ramp)?;
        let (began, ended) = ran.ends(Phase::Measure)?;
        let cpu = |from: &crate::fleet::Mark, to: &crate::fleet::Mark| {
            Some((to.usage?.cpu.saturating_sub(from.usage?.cpu)).as_secs_f64())
        };
        let (before, after) = (ramp_began.usage?.rss_bytes, ended.usage?.rss_bytes);
        let cpu_s = cpu(began, ended)?;
        Some(Self {
            rss_before: before,
            rss_after: after,
            bytes_per_connection: (after as f64 - before as f64) / f64::from(ended.active.max(1)),
            login_cpu_s_per_million: cpu(ramp_began, ramp_ended)? * 1e6 / f64::from(ramp_ended.active.max(1)),
            cpu_s,
            cpu_s_per_million: cpu_s * 1e6 / (ended.done - began.done).max(1) as f64,
        })
    }
}

impl Report {
    /// The part that every scenario shares. `tally` is the scenario's; connections are added here.
    pub fn new(scenario: &'static str, plan: &Plan, ran: &Ran, mut tally: Tally) -> Self {
        tally.dropped += u64::from(ran.counts.dropped);
        tally.not_in += u64::from(ran.counts.not_in);
        let (seconds, done) = ran.ends(Phase::Measure).map_or((0.0, 0), |(began, ended)| {
            (ended.at.saturating_since(began.at).as_secs_f64(), ended.done - began.done)
        });
        let mut report = Self {
            schema: SCHEMA,
            scenario,
            target: plan.target.to_string(),
            seconds,
            connections: Connections { asked: plan.clients, held: ran.counts.active },
            offered_per_s: None,
            done_per_s: if seconds > 0.0 { done as f64 / seconds } else { 0.0 },
            unsent: 0,
            latencies: Vec::new(),
            integrity: tally,
            lag: None,
            server: ServerFigures::of(ran),
            closed: ran.counts.closed.iter().map(|(code, times)| (*code, *times)).collect(),
            notes: Vec::new(),
            verdict: "",
            exit: Exit::Pass,
        };
        report.add_latency("login", &ran.login);
        if let Some(error) = &ran.counts.last_error {
            report.notes.push(format!("last error: {error}"));
        }
        report.judge(ran.is_interrupted);
        report
    }

    /// Adds a distribution unless it is empty.
    pub fn add_latency(&mut self, name: &'static str, latencies: &Latencies) {
        if !latencies.is_empty() {
            self.latencies.push((name, latencies.summary()));
        }
    }

    /// Adds the generator's own lag and judges it.
    pub fn add_lag(&mut self, lag: &Latencies) {
        if lag.is_empty() {
            return;
        }
        self.lag = Some(Lag { p99: lag.summary().p99, late: lag.part_over(LATE) });
        if is_saturated(lag) && self.exit == Exit::Pass {
            self.set_exit(Exit::Saturated);
        }
    }

    fn judge(&mut self, is_interrupted: bool) {
        self.set_exit(match (is_interrupted, self.integrity.is_clean()) {
            (true, _) => Exit::Interrupted,
            (false, true) => Exit::Pass,
            (false, false) => Exit::Integrity,
        });
    }

    const fn set_exit(&mut self, exit: Exit) {
        self.exit = exit;
        self.verdict = exit.label();
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = write!(
            out,
            "{} {}s   conns {}/{}",
            self.scenario,
            units::three_digits(self.seconds),
            units::count(u64::from(self.connections.held)),
            units::count(u64::from(self.connections.asked))
        );
        if let Some(offered) = self.offered_per_s {
            let _ = write!(out, "   offered {}/s", rounded(offered));
        }
        let _ = writeln!(out, "   done {}/s   {}", rounded(self.done_per_s), self.verdict);
        self.write_latencies(&mut out);
        self.write_integrity(&mut out);
        if let Some(server) = &self.server {
            write_server(&mut out, server);
        }
        if let Some(lag) = &self.lag {
            let (p99, late) = (units::latency(lag.p99), lag.late * 100.0);
            let _ = writeln!(out, "generator  lag p99 {p99}   late >1ms {late:.2}%");
        }
        for note in &self.notes {
            let _ = writeln!(out, "note       {note}");
        }
        out
    }

    fn write_latencies(&self, out: &mut String) {
        if !self.latencies.is_empty() {
            let _ =
                writeln!(out, "{:<18}{:>9}{:>9}{:>9}{:>9}{:>12}", "", "p50", "p99", "p99.9", "max", "count");
        }
        for (name, latency) in &self.latencies {
            let [p50, p99, p999, max] =
                [latency.p50, latency.p99, latency.p999, latency.max].map(units::latency);
            let count = units::count(latency.count);
            let _ = writeln!(out, "{name:<18}{p50:>9}{p99:>9}{p999:>9}{max:>9}{count:>12}");
        }
    }

    fn write_integrity(&self, out: &mut String) {
        let tally = &self.integrity;
        let _ = write!(
            out,
            "integrity  lost {}   duplicated {}   reordered {}   refused {}   dropped {}   not in {}",
            tally.lost, tally.duplicated, tally.reordered, tally.refused, tally.dropped, tally.not_in
        );
        if self.unsent > 0 {
            let _ = write!(out, "   unsent {}", units::count(self.unsent));
        }
        for (code, times) in &self.closed {
            let _ = write!(out, "   close {code} x{times}");
        }
        out.push('\n');
    }
}

fn rounded(rate: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate fits
    units::count(rate.round() as u64)
}

fn write_server(out: &mut String, server: &ServerFigures) {
    let _ = writeln!(
        out,
        "server     rss {} > {}   {} bytes/connection   login {} cpu s/1M   cpu {} s   {} s/1M done",
        units::bytes(server.rss_before),
        units::bytes(server.rss_after),
        server.bytes_per_connection.round(),
        units::three_digits(server.login_cpu_s_per_million),
        units::three_digits(server.cpu_s),
        units::three_digits(server.cpu_s_per_million)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{BeatsFrom, Counts, Live, Mark, RampRule};
    use crate::phase::Timeline;
    use crate::process::{Usage, Watched};
    use crate::socket::Sources;
    use moorline_proto::time::Instant;

    fn plan() -> Plan {
        let second = Duration::from_secs(1);
        Plan {
            target: "127.0.0.1:7000".parse().unwrap(),
            clients: 1_000,
            ramp: RampRule { rate: None, at_once: 1 },
            sources: Sources::default(),
            beats: (second, BeatsFrom::Ramp),
            timeline: Timeline { ramp_max: second, warmup: second, measure: second, drain_max: second },
            watched: Watched::default(),
            live: Live::Quiet,
        }
    }

    /// A run whose server used 10 ms more of CPU and 100 KiB more of memory in each phase.
    fn ran() -> Ran {
        let phases = [Phase::Ramp, Phase::Warmup, Phase::Measure, Phase::Drain, Phase::Over];
        let mark = |(at, phase): (u64, Phase)| Mark {
            phase,
            at: Instant::ZERO + Duration::from_secs(at * 10),
            usage: Some(Usage { cpu: Duration::from_millis(at * 10), rss_bytes: (1_000 + at * 100) << 10 }),
            done: at * 5_000,
            beats_back: 0,
            active: 1_000,
        };
        Ran {
            marks: (0..).zip(phases).map(mark).collect(),
            counts: Counts { active: 1_000, ..Counts::default() },
            login: Latencies::default(),
            is_interrupted: false,
        }
    }

    #[test]
    fn figures_are_differences_between_marks() {
        let report = Report::new("ping", &plan(), &ran(), Tally::default());
        assert!((report.done_per_s - 500.0).abs() < 1e-9 && report.exit == Exit::Pass);
        let server = report.server.unwrap();
        assert!((server.bytes_per_connection - 307.2).abs() < 1e-9, "300 KiB over 1,000: {server:?}");
        assert!((server.cpu_s_per_million - 2.0).abs() < 1e-9, "10 ms for 5,000: {server:?}");
        assert!((server.login_cpu_s_per_million - 10.0).abs() < 1e-9, "10 ms for 1,000: {server:?}");
        assert!(report.text().starts_with("ping 10.0s   conns 1,000/1,000   done 500/s   PASS\n"));
    }

    #[test]
    fn what_is_wrong_decides_the_exit() {
        let mut late = Latencies::default();
        late.record(LAG_P99_MAX * 2);
        let mut report = Report::new("ping", &plan(), &ran(), Tally::default());
        report.add_lag(&late);
        assert_eq!(report.exit, Exit::Saturated, "a late generator invalidates the run");
        let mut report = Report::new("ping", &plan(), &ran(), Tally { lost: 1, ..Tally::default() });
        report.add_lag(&late);
        assert_eq!(report.exit, Exit::Integrity, "but what was lost was lost");
        let cut = Ran { is_interrupted: true, ..ran() };
        assert_eq!(Report::new("ping", &plan(), &cut, Tally::default()).exit, Exit::Interrupted);
    }
}
