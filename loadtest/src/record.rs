//! Latency histograms of one loop, and how those of several become one.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Longest latency that is told from a longer one, in nanoseconds: ten minutes.
const NANOS_MAX: u64 = 600_000_000_000;
/// Shortest difference kept, in nanoseconds.
const NANOS_MIN: u64 = 1_000;

/// One distribution of latencies: three significant digits from 1 us to 10 min.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 3);
        Self(histogram.expect("the bounds are valid"))
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(NANOS_MAX);
        self.0.saturating_record(nanos.clamp(NANOS_MIN, NANOS_MAX));
    }

    /// Adds those of another loop: as if all had been recorded here.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The part that is longer than `limit`, from 0 to 1.
    pub fn part_over(&self, limit: Duration) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(NANOS_MAX);
        1.0 - self.0.percentile_below(nanos) / 100.0
    }

    /// The figures of the report, in nanoseconds.
    pub fn summary(&self) -> LatencySummary {
        LatencySummary {
            p50: self.0.value_at_quantile(0.5),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
            count: self.0.len(),
        }
    }
}

/// The figures of one distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    /// Median.
    pub p50: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// 999 of 1000 are not longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// How many there are.
    pub count: u64,
}

/// What one loop records.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// From the connect call to WELCOME.
    pub login: Latencies,
    /// From the moment a message was meant to leave.
    pub corrected: Latencies,
    /// From the moment it left.
    pub raw: Latencies,
    /// How late the generator itself was.
    pub lag: Latencies,
}

impl Recorder {
    /// Adds what another loop recorded.
    pub fn merge(&mut self, other: &Self) {
        self.login.merge(&other.login);
        self.corrected.merge(&other.corrected);
        self.raw.merge(&other.raw);
        self.lag.merge(&other.lag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_equal_the_whole() {
        let (mut whole, mut parts) = (Latencies::default(), vec![Latencies::default(); 3]);
        for n in 1..=10_000_u64 {
            let latency = Duration::from_nanos(n * n * 50);
            whole.record(latency);
            parts[usize::try_from(n % 3).unwrap()].record(latency);
        }
        let mut merged = Latencies::default();
        for part in &parts {
            merged.merge(part);
        }
        assert_eq!(merged.summary(), whole.summary());
        assert_eq!(merged.len(), 10_000);
    }

    #[test]
    fn out_of_range_values_are_kept_at_the_edge() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        let summary = latencies.summary();
        assert_eq!(summary.count, 2);
        assert!(summary.max >= NANOS_MAX);
    }

    #[test]
    fn part_over_counts_the_late_ones() {
        let mut latencies = Latencies::default();
        for millis in [1, 1, 1, 50] {
            latencies.record(Duration::from_millis(millis));
        }
        assert!((latencies.part_over(Duration::from_millis(10)) - 0.25).abs() < 1e-9);
    }
}
