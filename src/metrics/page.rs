//! The registry of boards, and its page in OpenMetrics text.

use super::board::Board;
use super::process;
use super::series::{Kind, Series};
use moorline_net::log::DroppedLines;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Exporter;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Knows every board. Locked at start and when somebody looks, never by who counts.
#[derive(Debug, Default)]
pub struct Registry {
    boards: Mutex<Vec<Arc<Board>>>,
    dropped_lines: OnceLock<DroppedLines>,
}

impl Registry {
    /// Knows none yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one thread's board. Panics if a name is malformed or stands for two kinds of series:
    /// found at start, by any test.
    pub fn add(&self, board: Arc<Board>) {
        let mut families = self.families();
        for (series, cells) in board.read() {
            assert!(series.is_well_named(), "series name {:?}", series.name);
            merge(&mut families, series, &cells);
        }
        self.lock().push(board);
    }

    /// Shows these counters of log lines from now on; before this call the page shows zeros.
    pub fn watch_log(&self, dropped: DroppedLines) {
        self.dropped_lines.set(dropped).ok();
    }

    /// The sum of a counter or gauge over all boards and labels; 0 if there is none.
    pub fn sum(&self, name: &str) -> u64 {
        let boards = self.lock();
        let of_board = |board: &Arc<Board>| -> u64 {
            board.read().filter(|(series, _)| series.name == name).map(|(_, cells)| cells[0]).sum()
        };
        boards.iter().map(of_board).sum()
    }

    /// Everything, as OpenMetrics text; process figures included.
    pub fn page(&self) -> String {
        let mut exporter = Exporter::with_prefix(super::PREFIX);
        exporter.register_collector(Box::new(Snapshot { families: self.families() }));
        exporter.register_collector(Box::new(process::Figures::read()));
        let dropped = self.dropped_lines.get().cloned().unwrap_or_default();
        exporter.register_collector(Box::new(LogLines(dropped)));
        let mut page = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut page, &exporter).expect("a String takes every write");
        page
    }

    fn families(&self) -> BTreeMap<&'static str, Family> {
        let mut families = BTreeMap::new();
        for board in self.lock().iter() {
            for (series, cells) in board.read() {
                merge(&mut families, series, &cells);
            }
        }
        families
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Board>>> {
        // A list of boards is whole at every moment.
        self.boards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Label = (&'static str, &'static str);

#[derive(Debug)]
struct Family {
    first: Series,
    members: Vec<(Option<Label>, Vec<u64>)>,
}

fn merge(families: &mut BTreeMap<&'static str, Family>, series: &Series, cells: &[u64]) {
    let family =
        families.entry(series.name).or_insert_with(|| Family { first: *series, members: Vec::new() });
    let is_same_label = family.first.label.map(|(key, _)| key) == series.label.map(|(key, _)| key);
    assert!(
        family.first.kind == series.kind && is_same_label,
        "series {:?} has one kind and one label key",
        series.name
    );
    match family.members.iter_mut().find(|(label, _)| *label == series.label) {
        Some((_, sums)) => {
            for (sum, cell) in sums.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(*cell);
            }
        }
        None => family.members.push((series.label, cells.to_vec())),
    }
}

#[derive(Debug)]
struct Snapshot {
    families: BTreeMap<&'static str, Family>,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.families.values() {
            let series = &family.first;
            let help = series.help.trim();
            let mut descriptor =
                encoder.encode_descriptor(series.name, help, None, metric_type(series.kind))?;
            for (label, cells) in &family.members {
                match label {
                    Some(label) => {
                        encode(&mut descriptor.encode_family(&[*label])?, series.kind, cells)?;
                    }
                    None => encode(&mut descriptor, series.kind, cells)?,
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
