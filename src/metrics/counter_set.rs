//! Figures: [`Counters`] in the thread that counts, [`CounterSet`] where others can read.

use super::metric::{Kind, Metric};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

/// One thread's figures, readable by all. Written by that thread alone.
#[derive(Debug)]
pub struct CounterSet {
    layout: Layout,
    cells: Box<[AtomicU64]>,
}

impl CounterSet {
    /// A counter set of these series, all zero.
    pub fn new(metrics: impl Into<Cow<'static, [Metric]>>) -> Self {
        let layout = Layout::new(metrics.into());
        let cells = (0..layout.len).map(|_| AtomicU64::new(0)).collect();
        Self { layout, cells }
    }

    /// Replaces every cell: the numbers of a [`Counters`] of the same series, or of an array in their
    /// order. Panics if the lengths differ.
    pub fn publish(&self, cells: &[u64]) {
        assert_eq!(cells.len(), self.cells.len(), "the counters and their set have the same metrics");
        for (cell, value) in self.cells.iter().zip(cells) {
            cell.store(*value, Ordering::Relaxed);
        }
    }

    /// Sets the counter or gauge at `index` of the series.
    pub fn set(&self, index: usize, value: u64) {
        self.cells[self.layout.scalar(index)].store(value, Ordering::Relaxed);
    }

    /// Sets the counters or gauges from `index` of the series on. Panics beyond the last cell.
    pub fn set_all(&self, index: usize, values: &[u64]) {
        let start = self.layout.scalar(index);
        for (cell, value) in self.cells[start..start + values.len()].iter().zip(values) {
            cell.store(*value, Ordering::Relaxed);
        }
    }

    /// Adds to the counter or gauge at `index` of the series.
    pub fn add(&self, index: usize, value: u64) {
        let cell = &self.cells[self.layout.scalar(index)];
        // There is one writer, so a load and a store do, and they cost no bus lock.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
    }

    /// The counter or gauge at `index` of the series.
    pub fn get(&self, index: usize) -> u64 {
        self.cells[self.layout.scalar(index)].load(Ordering::Relaxed)
    }

    /// Each series with its cells as they are now.
    pub(super) fn read(&self) -> impl Iterator<Item = (&Metric, Vec<u64>)> {
        self.layout.metrics.iter().zip(&self.layout.starts).map(|(metric, start)| {
            let cells = &self.cells[*start..*start + metric.cells()];
            (metric, cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect())
        })
    }
}

/// Plain figures of one owner: no atomics, no allocation after the first.
#[derive(Clone, Debug)]
pub struct Counters {
    layout: Layout,
    cells: Box<[u64]>,
}

impl Counters {
    /// Counters of these series, all zero.
    pub fn new(metrics: impl Into<Cow<'static, [Metric]>>) -> Self {
        let layout = Layout::new(metrics.into());
        let cells = vec![0; layout.len].into();
        Self { layout, cells }
    }

    /// Adds to the counter or gauge at `index` of the series.
    pub fn add(&mut self, index: usize, value: u64) {
        let cell = &mut self.cells[self.layout.scalar(index)];
        *cell = cell.wrapping_add(value);
    }

    /// Sets the counter or gauge at `index` of the series.
    pub fn set(&mut self, index: usize, value: u64) {
        self.cells[self.layout.scalar(index)] = value;
    }

    /// The counter or gauge at `index` of the series.
    pub fn get(&self, index: usize) -> u64 {
        self.cells[self.layout.scalar(index)]
    }

    /// Counts `value` in the histogram at `index`. Panics if the series is not a histogram.
    pub fn observe(&mut self, index: usize, value: u64) {
        let Kind::Histogram { bounds, .. } = self.layout.metrics[index].kind else {
            panic!("series {index} is a histogram");
        };
        let start = self.layout.starts[index];
        let bucket = bounds.partition_point(|bound| *bound < value);
        self.cells[start + bucket] += 1;
        let sum = &mut self.cells[start + bounds.len() + 1];
        *sum = sum.wrapping_add(value);
    }

    /// For [`CounterSet::publish`].
    pub fn cells(&self) -> &[u64] {
        &self.cells
    }
}

#[derive(Clone, Debug)]
struct Layout {
    metrics: Cow<'static, [Metric]>,
    starts: Box<[usize]>,
    len: usize,
}

impl Layout {
    fn new(metrics: Cow<'static, [Metric]>) -> Self {
        let mut len = 0;
        let starts = metrics
            .iter()
            .map(|one| {
                let start = len;
                len += one.cells();
                start
            })
            .collect();
        Self { metrics, starts, len }
    }

    fn scalar(&self, index: usize) -> usize {
        debug_assert!(self.metrics[index].cells() == 1, "series {index} is a histogram");
        self.starts[index]
    }
}
