//! Figures of this process from the system, read from `/proc` on request.
//!
//! A figure that cannot be read is zero: the page must not fail for it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::fs;

/// Linux reports processor time to user space in ticks of this many per second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Name of the counter of processor time.
pub const CPU_SECONDS: &str = "process_cpu_seconds";

/// Figures of this process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Number of threads.
    pub threads: u64,
    /// Processor time used, user and system.
    pub cpu_seconds: f64,
    /// Since the process started.
    pub uptime_seconds: f64,
}

impl Figures {
    /// Reads them.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let system = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let (user, kernel, started) = ticks(&stat);
        let system: f64 = system.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
        Self {
            resident_bytes: field(&status, "VmRSS:") * 1024,
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            threads: field(&status, "Threads:"),
            cpu_seconds: (user + kernel) / TICKS_PER_SECOND,
            uptime_seconds: (system - started / TICKS_PER_SECOND).max(0.0),
        }
    }
}

/// Processor time used, user and system. Cheap, however many descriptors are open: a hot restart reads it while all stand
/// still.
pub fn cpu_seconds() -> f64 {
    let (user, kernel, _) = ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default());
    (user + kernel) / TICKS_PER_SECOND
}

/// `name   123 kB` of `/proc/self/status`.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// User ticks, system ticks, start tick of `/proc/self/stat`. The name before them, in brackets, may
/// hold anything.
fn ticks(stat: &str) -> (f64, f64, f64) {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = after_name.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0.0)).collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or(0.0);
    (at(10), at(11), at(18))
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauges = [
            ("process_resident_bytes", "Memory in use.", self.resident_bytes),
            ("process_open_fds", "Open file descriptors.", self.open_fds),
            ("process_threads", "Threads.", self.threads),
        ];
        for (name, help, value) in gauges {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        encoder
            .encode_descriptor("process_uptime_seconds", "Time since the start.", None, MetricType::Gauge)?
            .encode_gauge(&self.uptime_seconds)?;
        encoder
            .encode_descriptor(CPU_SECONDS, "Processor time used.", None, MetricType::Counter)?
            .encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&self.cpu_seconds, None)?;
        encoder
            .encode_descriptor("build", "What runs here.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))].as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_figures() {
        let figures = Figures::read();
        assert!(figures.resident_bytes > 1 << 20 && figures.resident_bytes < 1 << 40, "{figures:?}");
        assert!(figures.open_fds >= 3 && figures.threads >= 1, "{figures:?}");
        assert!(figures.uptime_seconds < 86_400.0 && figures.cpu_seconds < 86_400.0, "{figures:?}");
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 140 24 0 0 20 0 5 0 900 1 1";
        assert_eq!(ticks(stat), (140.0, 24.0, 900.0));
        assert_eq!(ticks(""), (0.0, 0.0, 0.0));
    }
}
