//! Latency histograms: of one loop, of several added up, and of the last second.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest latency that is told from a longer one, in nanoseconds: ten minutes.
const NANOS_MAX: u64 = 600_000_000_000;
/// Shortest difference kept, in nanoseconds.
const NANOS_MIN: u64 = 1_000;

/// Distribution of latencies: three significant digits from 1 us to 10 min.
///
/// Between processes it travels as the pairs of value and count that it holds.
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Number of values.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// True if the distribution is empty.
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
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
            mean: self.0.mean(),
            count: self.0.len(),
        }
    }

    /// The histogram itself, for the files that hold it whole.
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// The distributions of an HDR log by their tags, the lines of one tag added up.
    pub fn read_hdr_log(text: &str) -> Result<BTreeMap<String, Self>, String> {
        let (mut all, mut deserializer) = (BTreeMap::<String, Self>::new(), Deserializer::new());
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            let Ok(LogEntry::Interval(interval)) = entry else { continue };
            let bytes = BASE64.decode(interval.encoded_histogram()).map_err(|error| error.to_string())?;
            let part: Histogram<u64> =
                deserializer.deserialize(&mut bytes.as_slice()).map_err(|error| error.to_string())?;
            let tag = interval.tag().map_or("", |tag| tag.as_str());
            let sum = &mut all.entry(tag.to_owned()).or_default().0;
            sum.add(&part).map_err(|error| error.to_string())?;
        }
        Ok(all)
    }

    /// Appends a line of an HDR log, as HdrHistogram's tools read it: an interval of this length, `from` the run's beginning.
    pub fn write_hdr_line(&self, tag: &str, from: Duration, length: Duration, out: &mut Vec<u8>) {
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(1e6)
            .begin_log_with(out, &mut serializer)
            .expect("memory takes it");
        let tag = Tag::new(tag).expect("names have no comma");
        log.write_histogram(&self.0, from, length, Some(tag)).expect("memory takes it");
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())))
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut latencies = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latencies.0.saturating_record_n(value.clamp(NANOS_MIN, NANOS_MAX), count);
        }
        Ok(latencies)
    }
}

/// The figures of one distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// The median.
    pub p50: u64,
    /// 9 of 10 are not longer.
    pub p90: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// 999 of 1000 are not longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// Mean of the values.
    pub mean: f64,
    /// Number of values.
    pub count: u64,
}

impl LatencySummary {
    /// A statistic by its name, in nanoseconds or as a count.
    pub fn statistic(&self, name: &str) -> Option<f64> {
        Some(match name {
            "p50" => self.p50 as f64,
            "p90" => self.p90 as f64,
            "p99" => self.p99 as f64,
            "p999" => self.p999 as f64,
            "max" => self.max as f64,
            "mean" => self.mean,
            "count" => self.count as f64,
            _ => return None,
        })
    }
}

/// Subject of a distribution. "Corrected": from the time at which the message was meant to leave, so that
/// a stalled server cannot hide behind messages that were not sent; "raw": from when it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the connect call to WELCOME.
    Login,
    /// To the answer of the server, corrected.
    Answer,
    /// To the answer of the server, raw.
    AnswerRaw,
    /// To the delivery at another client, corrected.
    Deliver,
    /// To the delivery at another client, raw.
    DeliverRaw,
    /// Deliveries of messages meant to leave while clients were coming back, corrected.
    DeliverStorm,
    /// From the loss of a connection to WELCOME on the next.
    Back,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Login,
        Self::Answer,
        Self::AnswerRaw,
        Self::Deliver,
        Self::DeliverRaw,
        Self::DeliverStorm,
        Self::Back,
    ];

    /// Name in files and expectations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Answer => "answer",
            Self::AnswerRaw => "answer_raw",
            Self::Deliver => "deliver",
            Self::DeliverRaw => "deliver_raw",
            Self::DeliverStorm => "deliver_storm",
            Self::Back => "back",
        }
    }

    /// Name in reports.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Answer => "answer corrected",
            Self::AnswerRaw => "answer raw",
            Self::Deliver => "deliver corrected",
            Self::DeliverRaw => "deliver raw",
            Self::DeliverStorm => "deliver in storm",
            Self::Back => "back",
        }
    }
}

/// Some distributions by what they are about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Distributions(BTreeMap<Metric, Latencies>);

impl Distributions {
    /// Counts one.
    pub fn record(&mut self, metric: Metric, latency: Duration) {
        self.0.entry(metric).or_default().record(latency);
    }

    /// The distribution of a subject, if anything was recorded.
    pub fn get(&self, metric: Metric) -> Option<&Latencies> {
        self.0.get(&metric).filter(|latencies| !latencies.is_empty())
    }

    /// Adds what another loop recorded.
    pub fn merge(&mut self, other: &Self) {
        for (metric, latencies) in &other.0 {
            self.0.entry(*metric).or_default().merge(latencies);
        }
    }

    /// Adds one distribution.
    pub fn add(&mut self, metric: Metric, latencies: &Latencies) {
        self.0.entry(metric).or_default().merge(latencies);
    }

    /// Distributions that are not empty.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, &Latencies)> {
        self.0.iter().map(|(metric, latencies)| (*metric, latencies)).filter(|(_, it)| !it.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_equal_the_whole_also_across_processes() {
        let (mut whole, mut parts) = (Latencies::default(), vec![Latencies::default(); 3]);
        for n in 1..=10_000_u64 {
            let latency = Duration::from_nanos(n * n * 50);
            whole.record(latency);
            parts[usize::try_from(n % 3).unwrap()].record(latency);
        }
        let mut merged = Latencies::default();
        for part in &parts {
            let sent = serde_json::to_string(part).unwrap();
            merged.merge(&serde_json::from_str(&sent).unwrap());
        }
        let (merged, whole) = (merged.summary(), whole.summary());
        assert_eq!(
            (merged.p50, merged.p99, merged.p999, merged.count),
            (whole.p50, whole.p99, whole.p999, 10_000)
        );
        assert!(merged.max.abs_diff(whole.max) <= whole.max / 1_000, "{merged:?} {whole:?}");
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

    #[test]
    fn distributions_travel_by_name() {
        let mut distributions = Distributions::default();
        distributions.record(Metric::DeliverRaw, Duration::from_millis(3));
        let text = serde_json::to_string(&distributions).unwrap();
        assert!(text.starts_with("{\"deliver_raw\":[["), "{text}");
        let back: Distributions = serde_json::from_str(&text).unwrap();
        assert_eq!(back.get(Metric::DeliverRaw).unwrap().len(), 1);
        assert!(back.get(Metric::Back).is_none());
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }
}
