//! Times between two moments, as a histogram.

use hdrhistogram::Histogram;
use moorline_proto::time::Instant;
use serde::Serialize;

/// The longest time told apart, in nanoseconds: two minutes, longer than any demo.
const NANOS_MAX: u64 = 120_000_000_000;
/// Three digits: within 0.1%.
const DIGITS: u8 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) count: u64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1_000, NANOS_MAX, DIGITS).expect("lawful bounds"))
    }

    pub(crate) fn record(&mut self, from: Instant, to: Instant) {
        let nanos = to.as_nanos().saturating_sub(from.as_nanos());
        self.0.saturating_record(nanos);
    }

    #[allow(clippy::cast_precision_loss)] // below two minutes of nanoseconds: exact in an f64
    pub(crate) fn quantiles(&self) -> Quantiles {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e6;
        Quantiles {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.0.max() as f64 / 1e6,
            count: self.0.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn quantiles_are_in_milliseconds_and_long_times_do_not_vanish() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.quantiles(), Quantiles::default());
        for millis in 1..=1_000 {
            latencies.record(Instant::ZERO, Instant::ZERO + Duration::from_millis(millis));
        }
        let told = latencies.quantiles();
        assert!((told.p50_ms - 500.0).abs() < 1.0 && (told.p99_ms - 990.0).abs() < 1.0, "{told:?}");
        latencies.record(Instant::ZERO, Instant::FAR_FUTURE);
        latencies.record(Instant::FAR_FUTURE, Instant::ZERO);
        let told = latencies.quantiles();
        assert!(told.count == 1_002 && told.max_ms >= 120_000.0, "{told:?}");
    }
}
