//! Runs of the past beside each other: read from their folders.

use super::{Report, html};
use crate::exit::Failure;
use crate::expect::Figures;
use crate::record::{Latencies, Metric};
use crate::units;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A run that was written to a folder.
#[derive(Debug)]
pub struct Past {
    /// The folder's name.
    pub name: String,
    /// Summary of the run.
    pub report: Report,
    latencies: BTreeMap<String, Latencies>,
}

impl Past {
    /// Reads summary.json and latency.hlog.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let read = |name: &str| -> Result<(PathBuf, String), Failure> {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).map_err(Failure::file(&path))?;
            Ok((path, text))
        };
        let (path, text) = read("summary.json")?;
        let report: Report = serde_json::from_str(&text)
            .map_err(|error| Failure::File { path, why: format!("no summary of this version: {error}") })?;
        if report.schema != super::SCHEMA {
            let why = format!("schema {} where {} was expected", report.schema, super::SCHEMA);
            return Err(Failure::File { path: folder.join("summary.json"), why });
        }
        let (path, log) = read("latency.hlog")?;
        let latencies = Latencies::read_hdr_log(&log).map_err(|why| Failure::File { path, why })?;
        let name =
            folder.file_name().map_or_else(|| folder.display().to_string(), |it| it.to_string_lossy().into());
        Ok(Self { name, report, latencies })
    }

    /// True if its histograms agree with its summary in the number of values.
    pub fn is_consistent(&self) -> bool {
        let Report { latencies, invalid_latencies, .. } = &self.report;
        let mut summaries = latencies.iter().chain(invalid_latencies);
        summaries.all(|(name, summary)| self.latencies.get(name).map_or(0, Latencies::len) == summary.count)
    }
}

/// Several runs, and perhaps one that they are held against.
#[derive(Debug)]
pub struct Comparison {
    base: Option<Past>,
    runs: Vec<Past>,
}

/// Figures of a comparison, in this order, as far as a run has them.
const FIGURES: [&str; 12] = [
    "rate",
    "offered",
    "held",
    "dropped",
    "lost",
    "duplicated",
    "reordered",
    "refused",
    "unsent",
    "bytes_per_connection",
    "cpu_per_million",
    "login_cpu_per_million",
];

impl Comparison {
    /// Compares these runs.
    pub const fn new(base: Option<Past>, runs: Vec<Past>) -> Self {
        Self { base, runs }
    }

    fn columns(&self) -> impl Iterator<Item = &Past> {
        self.base.iter().chain(&self.runs)
    }

    /// Text with a line per figure and a column per run; beside the base the change in percent.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let longest = |past: &Past| past.name.len().max(past.report.verdict.len());
        let width = self.columns().map(longest).max().unwrap_or(0).max(20) + 2;
        let _ = write!(out, "{:<22}", "");
        for past in self.columns() {
            let _ = write!(out, "{:>width$}", past.name);
        }
        let _ = write!(out, "\n{:<22}", "verdict");
        for past in self.columns() {
            let _ = write!(out, "{:>width$}", past.report.verdict);
        }
        out.push('\n');
        if self.columns().any(|past| past.report.is_saturated()) {
            out.push_str("latencies of an INVALID run are not shown: they are the generator's own\n");
        }
        let statistics = ["p50", "p99", "p999", "max"];
        let latencies =
            Metric::ALL.iter().flat_map(|metric| statistics.map(|it| format!("{}.{it}", metric.name())));
        for name in FIGURES.iter().map(|name| (*name).to_owned()).chain(latencies) {
            self.write_line(&name, width, &mut out);
        }
        out
    }

    fn write_line(&self, name: &str, width: usize, out: &mut String) {
        if self.columns().all(|past| past.report.figure(name).is_none()) {
            return;
        }
        let base = self.base.as_ref().and_then(|past| past.report.figure(name));
        let _ = write!(out, "{name:<22}");
        for (at, past) in self.columns().enumerate() {
            let is_base = at == 0 && self.base.is_some();
            let cell = past.report.figure(name).map_or_else(
                || "-".to_owned(),
                |figure| match base.filter(|base| !is_base && *base > 0.0) {
                    // No "-0.0%".
                    Some(base) => {
                        let percent = ((figure / base - 1.0) * 1_000.0).round() / 10.0 + 0.0;
                        format!("{} {percent:+.1}%", shown(name, figure))
                    }
                    None => shown(name, figure),
                },
            );
            let _ = write!(out, "{cell:>width$}");
        }
        out.push('\n');
    }

    /// Page with the same table, and the percentile curves over each other.
    pub fn page(&self) -> String {
        let main = |past: &Past| {
            let names = [Metric::Deliver, Metric::Answer, Metric::Login].map(Metric::name);
            names.into_iter().find(|name| past.latencies.contains_key(*name)).unwrap_or("login")
        };
        let curves: Vec<(String, &Latencies)> = self
            .columns()
            .filter(|past| !past.report.is_saturated())
            .filter_map(|past| {
                Some((format!("{} {}", past.name, main(past)), past.latencies.get(main(past))?))
            })
            .collect();
        let is_sound = self.columns().all(|past| past.report.exit == 0);
        let verdict = if is_sound { "ALL PASS" } else { "NOT ALL PASS" };
        html::comparison_page("moorload runs beside each other", &self.text(), (verdict, is_sound), &curves)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shown, not used
fn shown(name: &str, figure: f64) -> String {
    match figure {
        _ if name.contains('.') => units::latency(figure.max(0.0) as u64),
        _ if figure.fract() == 0.0 && figure >= 0.0 => units::count(figure as u64),
        _ => units::three_digits(figure),
    }
}
