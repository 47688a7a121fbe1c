//! The folder of a run: everything it found, for people, programs and plotters.
//!
//! | file | what |
//! |---|---|
//! | summary.json | the report; `loadtest/schema/summary.schema.json` says what is in it |
//! | report.html | the report with charts, in one file |
//! | timeline.csv | one row a second |
//! | latency.hlog | HDR log: the main latency second by second, the others whole |
//! | NAME.hgrm | percentiles of each latency |
//! | env.json | the machine and the command line |

use super::{Environment, Report, hgrm, html};
use crate::clock;
use crate::exit::Failure;
use crate::job::Part;
use crate::monitor::{Monitor, Row};
use crate::record::{Distributions, Metric};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Folder of a run, made before the run so that a bad path is reported at once.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    environment: Environment,
}

impl Folder {
    /// Makes `path`, or a new folder named after the time and the scenario under `moorload-runs`.
    pub fn make(path: Option<&Path>, scenario: &str) -> Result<Self, Failure> {
        let environment = Environment::now();
        let path = match path {
            Some(path) => path.to_owned(),
            None => Path::new("moorload-runs").join(format!(
                "{}-{scenario}-{}",
                environment.began.replace([':', '-'], ""),
                std::process::id()
            )),
        };
        fs::create_dir_all(&path).map_err(Failure::file(&path))?;
        Ok(Self { path, environment })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all files. What an earlier run left here under the same names is replaced.
    pub fn write(&self, report: &Report, part: &Part, monitor: &Monitor) -> Result<(), Failure> {
        let mut all = part.findings.latencies.clone();
        all.add(Metric::Login, &part.ran.login);
        self.put("summary.json", &pretty(report))?;
        self.put("env.json", &pretty(&self.environment))?;
        self.put("timeline.csv", &timeline(&monitor.rows))?;
        self.put("latency.hlog", &self.hdr_log(&all, report, monitor))?;
        // A plotter would show the latencies of a late generator as the server's.
        for (metric, latencies) in all.iter().filter(|_| !report.is_saturated()) {
            self.put(&format!("{}.hgrm", metric.name()), &hgrm::table(latencies))?;
        }
        self.put("report.html", &html::page(report, &self.environment, &monitor.rows, &all))
    }

    fn put(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(Failure::file(&path))
    }

    /// The sum of all lines with one tag is that latency's whole distribution.
    fn hdr_log(&self, all: &Distributions, report: &Report, monitor: &Monitor) -> String {
        let mut lines = Vec::new();
        // Logins, the main latency of `hold`, are not told by the second.
        let is_by_second = |metric: Metric| metric == monitor.main() && !monitor.hdr_lines.is_empty();
        for (metric, latencies) in all.iter().filter(|(metric, _)| !is_by_second(*metric)) {
            let length = Duration::from_secs_f64(report.seconds);
            latencies.write_hdr_line(metric.name(), Duration::ZERO, length, &mut lines);
        }
        lines.extend_from_slice(&monitor.hdr_lines);
        let lines = String::from_utf8(lines).expect("base64 and numbers");
        let began = clock::unix_seconds() as f64 - monitor.age().as_secs_f64();
        format!(
            "#[Histogram log format version 1.3]\n#[StartTime: {began:.3} (seconds since epoch), {}]\n\
             #[BaseTime: {began:.3} (seconds since epoch)]\n\
             \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n{lines}",
            self.environment.began,
        )
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    text
}

fn timeline(rows: &[Row]) -> String {
    let mut out = String::from(
        "at_s,phase,active,under_way,dropped,done,done_per_s,p50_ms,p99_ms,p999_ms,max_ms,server_rss,server_cores,own_cores\n",
    );
    let millis = |nanos: u64| nanos as f64 / 1e6;
    for row in rows {
        let Row { at_s, phase, active, under_way, dropped, done, done_per_s, latency, .. } = row;
        let [p50, p99, p999, max] = [latency.p50, latency.p99, latency.p999, latency.max].map(millis);
        let rss = row.server_rss.map_or_else(String::new, |bytes| bytes.to_string());
        let cores = row.server_cores.map_or_else(String::new, |cores| format!("{cores:.3}"));
        let _ = writeln!(
            out,
            "{at_s:.3},{phase},{active},{under_way},{dropped},{done},{done_per_s:.1},\
             {p50:.3},{p99:.3},{p999:.3},{max:.3},{rss},{cores},{:.3}",
            row.own_cores
        );
    }
    out
}
