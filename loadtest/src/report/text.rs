//! The report that people read.

use super::{Report, ServerFigures};
use crate::record::Metric;
use crate::units;
use std::fmt::Write;

/// Name of the scenario that restarts the server.
const RESTART: &str = "restart";

impl Report {
    /// Some lines for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (asked, held) = (self.connections.asked.into(), self.connections.held.into());
        let _ = write!(
            out,
            "{} {:.1}s   conns {}/{}",
            self.scenario,
            self.seconds,
            units::count(held),
            units::count(asked)
        );
        if let Some(offered) = self.offered_per_s {
            let _ = write!(out, "   offered {}/s", rounded(offered));
        }
        let _ = writeln!(out, "   done {}/s   {}", rounded(self.done_per_s), self.verdict);
        self.write_latencies(&mut out);
        self.write_integrity(&mut out);
        self.write_interruptions(&mut out);
        self.write_carrier(&mut out);
        if let Some(server) = &self.server {
            write_server(&mut out, server);
        }
        self.write_generator(&mut out);
        for judged in &self.expectations {
            let (word, text) = match &judged.failed {
                None => ("met", &judged.expected),
                Some(failed) => ("FAILED", failed),
            };
            let _ = writeln!(out, "expected   {text}   {word}");
        }
        for note in &self.notes {
            let _ = writeln!(out, "note       {note}");
        }
        out
    }

    fn write_latencies(&self, out: &mut String) {
        if self.is_saturated() {
            let _ = writeln!(out, "latencies  not shown: {}", self.why_invalid());
            return;
        }
        if !self.latencies.is_empty() {
            let _ =
                writeln!(out, "{:<18}{:>9}{:>9}{:>9}{:>9}{:>12}", "", "p50", "p99", "p99.9", "max", "count");
        }
        for metric in Metric::ALL {
            let Some(latency) = self.latencies.get(metric.name()) else { continue };
            let [p50, p99, p999, max] =
                [latency.p50, latency.p99, latency.p999, latency.max].map(units::latency);
            let (name, count) = (metric.title(), units::count(latency.count));
            let _ = writeln!(out, "{name:<18}{p50:>9}{p99:>9}{p999:>9}{max:>9}{count:>12}");
        }
    }

    fn write_integrity(&self, out: &mut String) {
        let tally = &self.integrity;
        let _ = write!(
            out,
            "integrity  lost {}   duplicated {}   reordered {}   refused {}",
            tally.lost, tally.duplicated, tally.reordered, tally.refused
        );
        // Where the server goes away on purpose, this is a figure and stands below.
        if !self.connections.may_drop {
            let _ = write!(out, "   dropped {}", tally.dropped);
        }
        let _ = write!(out, "   not in {}", tally.not_in);
        if self.unsent > 0 {
            let _ = write!(out, "   unsent {}", units::count(self.unsent));
        }
        for (code, times) in &self.closed {
            let _ = write!(out, "   close {code} x{times}");
        }
        out.push('\n');
    }

    fn write_interruptions(&self, out: &mut String) {
        if self.scenario == RESTART || self.connections.may_drop {
            out.push_str("restart    ");
            if self.connections.may_drop {
                let _ = write!(out, "dropped {}   ", units::count(self.connections.dropped.into()));
            }
            let _ = writeln!(
                out,
                "repeated {}   max silence {}",
                units::count(self.repeated),
                units::latency(nanos(self.silence_s)),
            );
        } else if !self.markers.is_empty() {
            let _ = writeln!(out, "{}", self.scenario);
        }
        for marker in &self.markers {
            let _ = writeln!(out, "           at {:.2}s {}", marker.at_s, marker.label);
        }
    }

    fn write_carrier(&self, out: &mut String) {
        let Some(carrier) = &self.carrier else { return };
        let mut words = Vec::new();
        if carrier.handshakes > 0 {
            words.push(format!("tls handshakes {}", units::count(carrier.handshakes.into())));
            words.push(format!("{}/s in the ramp", rounded(carrier.handshakes_per_s)));
            words.push(format!("resumed {:.1}%", carrier.resumed * 100.0));
        }
        if carrier.upgrades > 0 {
            words.push(format!("websocket upgrades {}", units::count(carrier.upgrades.into())));
        }
        let _ = writeln!(out, "carrier    {}", words.join("   "));
    }

    fn write_generator(&self, out: &mut String) {
        let mut words = Vec::new();
        if let Some(lag) = &self.generator.lag {
            words.push(format!("lag p99 {}", units::latency(lag.p99)));
            words.push(format!("late >1ms {:.2}%", lag.late * 100.0));
        }
        if let Some(busy) = self.generator.busy {
            words.push(format!("cpu {:.0}%", busy * 100.0));
        }
        if self.processes > 1 {
            words.push(format!("{} processes", self.processes));
        }
        if !words.is_empty() {
            words.push(self.word_for_generator().to_owned());
            let _ = writeln!(out, "generator  {}", words.join("   "));
        }
        if let Some(machine) = self.generator.machine.filter(|_| self.is_machine_busy()) {
            let percent = |part: f64| format!("{:.0}%", part * 100.0);
            let (busy, others, steal) =
                (percent(machine.busy), percent(machine.others), percent(machine.steal));
            let _ = writeln!(
                out,
                "machine    cores in use {busy}   {others} by others than the generator and --pid   steal {steal}"
            );
        }
    }

    fn word_for_generator(&self) -> &'static str {
        match (self.is_saturated(), self.is_machine_busy()) {
            (true, true) => "LATE, it had to wait for a core",
            (true, false) => "SATURATED",
            (false, _) => "ok",
        }
    }

    /// Reason why the latencies of a run are not shown.
    pub(super) fn why_invalid(&self) -> &'static str {
        if self.is_machine_busy() {
            "the machine was busy, so the generator was late, and they would be its own"
        } else {
            "the generator was slow, and they would be its own"
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds of a run
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
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
