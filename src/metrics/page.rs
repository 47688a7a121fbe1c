//! The registry of counter sets, and its page in OpenMetrics text.

use super::counter_set::CounterSet;
use super::metric::{Kind, Metric};
use super::process;
use moorline_net::log::DroppedLines;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Exporter;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Knows every counter set. Locked at start and when somebody looks, never by who counts.
#[derive(Debug, Default)]
pub struct Registry {
    counter_sets: Mutex<Vec<Arc<CounterSet>>>,
    dropped_lines: OnceLock<DroppedLines>,
}

impl Registry {
    /// Knows none yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one thread's counter set. Panics if a name is malformed or stands for two kinds of series:
    /// found at start, by any test.
    pub fn add(&self, counter_set: Arc<CounterSet>) {
        let mut families = self.families();
        for (metric, cells) in counter_set.read() {
            assert!(metric.is_well_named(), "series name {:?}", metric.name);
            merge(&mut families, metric, &cells);
        }
        self.lock().push(counter_set);
    }

    /// Shows these counters of log lines from now on; before this call the page shows zeros.
    pub fn watch_log(&self, dropped: DroppedLines) {
        self.dropped_lines.set(dropped).ok();
    }

    /// The sum of a counter or gauge over all counter sets and labels; 0 if there is none.
    pub fn sum(&self, name: &str) -> u64 {
        let counter_sets = self.lock();
        let of_set = |counter_set: &Arc<CounterSet>| -> u64 {
            counter_set.read().filter(|(metric, _)| metric.name == name).map(|(_, cells)| cells[0]).sum()
        };
        counter_sets.iter().map(of_set).sum()
    }

    /// Everything, as OpenMetrics text; process figures included.
    pub fn page(&self) -> String {
        let mut exporter = Exporter::with_prefix(super::PREFIX);
        let mut families = self.families();
        for (old, new, help) in super::names::RENAMED {
            if let Some(Family { first, members }) = families.get(new) {
                let first = Metric { name: old, help, ..*first };
                let members = members.clone();
                families.insert(old, Family { first, members });
            }
        }
        exporter.register_collector(Box::new(Snapshot { families }));
        exporter.register_collector(Box::new(process::Figures::read()));
        let dropped = self.dropped_lines.get().cloned().unwrap_or_default();
        exporter.register_collector(Box::new(LogLines(dropped)));
        let mut page = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut page, &exporter).expect("a String takes every write");
        page
    }

    fn families(&self) -> BTreeMap<&'static str, Family> {
        let mut families = BTreeMap::new();
        for counter_set in self.lock().iter() {
            for (metric, cells) in counter_set.read() {
                merge(&mut families, metric, &cells);
            }
        }
        families
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<CounterSet>>> {
        // A list of counter sets is whole at every moment.
        self.counter_sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Label = (&'static str, &'static str);

#[derive(Debug)]
struct Family {
    first: Metric,
    members: Vec<(Option<Label>, Vec<u64>)>,
}

fn merge(families: &mut BTreeMap<&'static str, Family>, metric: &Metric, cells: &[u64]) {
    let family =
        families.entry(metric.name).or_insert_with(|| Family { first: *metric, members: Vec::new() });
    let is_same_label = family.first.label.map(|(key, _)| key) == metric.label.map(|(key, _)| key);
    assert!(
        family.first.kind == metric.kind && is_same_label,
        "series {:?} has one kind and one label key",
        metric.name
    );
    match family.members.iter_mut().find(|(label, _)| *label == metric.label) {
        Some((_, sums)) => {
            for (sum, cell) in sums.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(*cell);
            }
        }
        None => family.members.push((metric.label, cells.to_vec())),
    }
}

#[derive(Debug)]
struct Snapshot {
    families: BTreeMap<&'static str, Family>,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.families.values() {
            let metric = &family.first;
            let help = metric.help.trim();
            let mut descriptor =
                encoder.encode_descriptor(metric.name, help, None, metric_type(metric.kind))?;
            for (label, cells) in &family.members {
                match label {
                    Some(label) => {
                        encode(&mut descriptor.encode_family(&[*label])?, metric.kind, cells)?;
                    }
                    None => encode(&mut descriptor, metric.kind, cells)?,
                }
            }
        }
        Ok(())
    }
}

/// Counters of the process's log.
#[derive(Debug)]
struct LogLines(DroppedLines);

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = ("log_lines_dropped", "Log lines dropped instead of waiting for their reader.");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, lines) in [("queue_full", self.0.queue_full()), ("write_failed", self.0.write_failed())]
        {
            let labels = [("reason", reason)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&lines, None)?;
        }
        Ok(())
    }
}

const fn metric_type(kind: Kind) -> MetricType {
    match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram { .. } => MetricType::Histogram,
    }
}

#[allow(clippy::cast_precision_loss)] // sums and bounds for charts
fn encode(encoder: &mut MetricEncoder<'_>, kind: Kind, cells: &[u64]) -> Result<(), fmt::Error> {
    match kind {
        Kind::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&cells[0], None),
        Kind::Gauge => encoder.encode_gauge(&cells[0]),
        Kind::Histogram { bounds, scale } => {
            let (counts, sum) = cells.split_at(bounds.len() + 1);
            let uppers = bounds.iter().map(|bound| *bound as f64 * scale).chain([f64::INFINITY]);
            let buckets: Vec<_> = uppers.zip(counts.iter().copied()).collect();
            let count = counts.iter().sum();
            encoder.encode_histogram::<NoLabelSet>(sum[0] as f64 * scale, count, &buckets, None)
        }
    }
}
