//! The registry of counter sets, and its page in OpenMetrics text.

use super::counter_set::CounterSet;
use super::metric::{Kind, Metric};
use super::process::{self, CPU_SECONDS};
use moorline_net::cap::{CapFigures, CapWatch};
use moorline_net::log::DroppedLines;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Exporter;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Knows every counter set. Locked at start and when somebody looks, never by who counts.
#[derive(Debug, Default)]
pub struct Registry {
    counter_sets: Mutex<Vec<Arc<CounterSet>>>,
    dropped_lines: OnceLock<DroppedLines>,
    carried: Mutex<Carried>,
    caps: Mutex<Vec<Arc<CapWatch>>>,
}

/// Value of a counter, as another process of the series goes on from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// Name of the metric.
    pub name: String,
    /// Value of its label; empty: it has none.
    pub label: String,
    /// Number; of processor time in microseconds.
    pub value: u64,
}

/// Counters that the threads of a process begin at zero.
#[derive(Debug, Default)]
struct Carried {
    /// Names of these counters.
    names: BTreeSet<&'static str>,
    /// Values in the process before, by name and label.
    before: BTreeMap<(String, String), u64>,
}

impl Carried {
    fn of(&self, name: &str, label: &str) -> u64 {
        self.before.get(&(name.to_owned(), label.to_owned())).copied().unwrap_or(0)
    }

    /// Processor time of all processes of the series, in microseconds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a positive number of microseconds
    fn cpu_micros(&self) -> u64 {
        let own = (process::cpu_seconds() * MICROS) as u64;
        own.saturating_add(self.of(CPU_SECONDS, ""))
    }
}

/// Name of the counter of dropped log lines.
const LINES_DROPPED: &str = "log_lines_dropped";
/// Microseconds of a second.
const MICROS: f64 = 1e6;

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

    /// Notes counters that begin at zero in each process: they go on through a hot restart by [`Self::counted`] and
    /// [`Self::go_on`]. Owners of other counters carry them themselves.
    pub fn carry(&self, metrics: &[Metric]) {
        let counters = metrics.iter().filter(|metric| metric.kind == Kind::Counter);
        self.carried().names.extend(counters.map(|metric| metric.name));
    }

    /// Returns the values of the counters that begin at zero in each process, with those of the processes before.
    pub fn counted(&self) -> Vec<Counted> {
        let counted =
            |name: &str, label: &str, value| Counted { name: name.into(), label: label.into(), value };
        let families = self.families();
        let carried = self.carried();
        let mut all: Vec<Counted> = Vec::new();
        for (name, Family { members, .. }) in
            families.iter().filter(|(name, _)| carried.names.contains(*name))
        {
            let member = |(label, cells): &(Option<Label>, Vec<u64>)| {
                counted(name, label.map_or("", |(_, value)| value), cells[0])
            };
            all.extend(members.iter().map(member));
        }
        let (cpu, lines) = (carried.cpu_micros(), self.lines_dropped(&carried));
        all.push(counted(CPU_SECONDS, "", cpu));
        all.extend(lines.map(|(reason, lines)| counted(LINES_DROPPED, reason, lines)));
        all
    }

    /// Goes on from the values of the process before.
    pub fn go_on(&self, counted: Vec<Counted>) {
        let current =
            |Counted { name, label, value }| ((super::names::current(&name).to_owned(), label), value);
        self.carried().before = counted.into_iter().map(current).collect();
    }

    /// Dropped log lines of all processes of the series, by reason.
    fn lines_dropped(&self, carried: &Carried) -> [(&'static str, u64); 2] {
        let dropped = self.dropped_lines.get().cloned().unwrap_or_default();
        let own = [("queue_full", dropped.queue_full()), ("write_failed", dropped.write_failed())];
        own.map(|(reason, lines)| (reason, lines.saturating_add(carried.of(LINES_DROPPED, reason))))
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        // Each change is whole.
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows these counters of log lines from now on; before this call the page shows zeros.
    pub fn watch_log(&self, dropped: DroppedLines) {
        self.dropped_lines.set(dropped).ok();
    }

    /// Shows this cap from now on. Watches with one name are parts of one cap.
    pub fn show_cap(&self, watch: Arc<CapWatch>) -> Arc<CapWatch> {
        self.caps.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watch));
        watch
    }

    fn caps(&self) -> Vec<CapFigures> {
        let mut caps: Vec<CapFigures> = Vec::new();
        for watch in self.caps.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let part = watch.figures();
            match caps.iter_mut().find(|cap| cap.name == part.name) {
                Some(cap) => (cap.used, cap.max) = (cap.used + part.used, cap.max.saturating_add(part.max)),
                None => caps.push(part),
            }
        }
        caps
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
        let mut figures = process::Figures::read();
        let carried = self.carried();
        #[allow(clippy::cast_precision_loss)] // microseconds of a process
        let cpu_before = carried.of(CPU_SECONDS, "") as f64 / MICROS;
        figures.cpu_seconds = figures.cpu_seconds.map(|own| own + cpu_before);
        exporter.register_collector(Box::new(figures));
        exporter.register_collector(Box::new(Caps(self.caps())));
        exporter.register_collector(Box::new(LogLines(self.lines_dropped(&carried))));
        drop(carried);
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
        let carried = self.carried();
        for (name, Family { members, .. }) in
            families.iter_mut().filter(|(name, _)| carried.names.contains(*name))
        {
            for (label, cells) in members {
                cells[0] = cells[0].wrapping_add(carried.of(name, label.map_or("", |(_, value)| value)));
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
struct LogLines([(&'static str, u64); 2]);

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Log lines dropped instead of waiting for their reader.";
        let mut family = encoder.encode_descriptor(LINES_DROPPED, help, None, MetricType::Counter)?;
        for (reason, lines) in self.0 {
            let labels = [("reason", reason)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&lines, None)?;
        }
        Ok(())
    }
}

/// Caps, and how much of each is used.
#[derive(Debug)]
struct Caps(Vec<CapFigures>);

impl Collector for Caps {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let used: fn(&CapFigures) -> usize = |cap| cap.used;
        let max: fn(&CapFigures) -> usize = |cap| cap.max;
        for (name, help, value) in [
            ("cap_used", "Number of what a cap limits.", used),
            ("cap_max", "The cap; 0: no limit. At 80% of it the log has a line.", max),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for cap in &self.0 {
                family.encode_family(&[("cap", cap.name)])?.encode_gauge(&(value(cap) as u64))?;
            }
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
