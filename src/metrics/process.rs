//! Figures of this process from the system, read from `/proc` on request.
//!
//! A figure that cannot be read, as without `/proc` or without a descriptor for its file, is absent: a zero would be believed.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::fs;
use std::path::Path;

/// Linux reports processor time to user space in ticks of this many per second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Name of the counter of processor time.
pub const CPU_SECONDS: &str = "process_cpu_seconds";

/// Figures of this process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Memory in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
    /// Processor time used, user and system.
    pub cpu_seconds: Option<f64>,
    /// Since the process started.
    pub uptime_seconds: Option<f64>,
}

impl Figures {
    /// Reads them.
    pub fn read() -> Self {
        Self::read_in(Path::new("/proc"))
    }

    fn read_in(proc: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let (status, system, times) = (text("self/status"), text("uptime"), ticks(&text("self/stat")));
        let system: Option<f64> = system.split(' ').next().and_then(|text| text.parse().ok());
        let uptime = |started: f64, system: f64| (system - started / TICKS_PER_SECOND).max(0.0);
        Self {
            resident_bytes: field(&status, "VmRSS:").map(|kib| kib * 1024),
            open_fds: fs::read_dir(proc.join("self/fd")).ok().map(|entries| entries.count() as u64),
            threads: field(&status, "Threads:"),
            cpu_seconds: times.map(|(user, kernel, _)| (user + kernel) / TICKS_PER_SECOND),
            uptime_seconds: times.zip(system).map(|((.., started), system)| uptime(started, system)),
        }
    }
}

/// Processor time used, user and system; 0: it cannot be read. Cheap, however many descriptors are open: a hot restart reads it while all stand
/// still.
pub fn cpu_seconds() -> f64 {
    let times = ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default());
    times.map_or(0.0, |(user, kernel, _)| (user + kernel) / TICKS_PER_SECOND)
}

/// `name   123 kB` of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// User ticks, system ticks, start tick of `/proc/self/stat`. The name before them, in brackets, may
/// hold anything.
fn ticks(stat: &str) -> Option<(f64, f64, f64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().skip(1).collect();
    let at = |index: usize| fields.get(index)?.parse().ok();
    Some((at(10)?, at(11)?, at(18)?))
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauges = [
            ("process_resident_bytes", "Memory in use.", self.resident_bytes),
            ("process_open_fds", "Open file descriptors.", self.open_fds),
            ("process_threads", "Threads.", self.threads),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        if let Some(uptime) = &self.uptime_seconds {
            encoder
                .encode_descriptor(
                    "process_uptime_seconds",
                    "Time since the start.",
                    None,
                    MetricType::Gauge,
                )?
                .encode_gauge(uptime)?;
        }
        if let Some(cpu) = &self.cpu_seconds {
            encoder
                .encode_descriptor(CPU_SECONDS, "Processor time used.", None, MetricType::Counter)?
                .encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(cpu, None)?;
        }
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
        assert!(
            figures.resident_bytes.is_some_and(|bytes| (1 << 20..1 << 40).contains(&bytes)),
            "{figures:?}"
        );
        assert!(figures.open_fds >= Some(3) && figures.threads >= Some(1), "{figures:?}");
        let times = [figures.uptime_seconds, figures.cpu_seconds];
        assert!(times.iter().all(|time| time.is_some_and(|time| time < 86_400.0)), "{figures:?}");
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 140 24 0 0 20 0 5 0 900 1 1";
        assert_eq!(ticks(stat), Some((140.0, 24.0, 900.0)));
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn figures_that_cannot_be_read_are_absent_and_not_zero() {
        let figures = Figures::read_in(Path::new("/proc/no-such-folder"));
        assert_eq!(figures, Figures::default());
        let mut exporter = prometheus_client::registry::Registry::default();
        exporter.register_collector(Box::new(figures));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &exporter).expect("a String takes every write");
        assert!(page.contains("build_info") && !page.contains("process_"), "{page}");
    }
}
