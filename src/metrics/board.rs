//! Figures: [`Tally`] in the thread that counts, [`Board`] where others can read.

use super::series::{Kind, Series};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

/// One thread's figures, readable by all. Written by that thread alone.
#[derive(Debug)]
pub struct Board {
    layout: Layout,
    cells: Box<[AtomicU64]>,
}

impl Board {
    /// A board of these series, all zero.
    pub fn new(series: impl Into<Cow<'static, [Series]>>) -> Self {
        let layout = Layout::new(series.into());
        let cells = (0..layout.len).map(|_| AtomicU64::new(0)).collect();
        Self { layout, cells }
    }

    /// Replaces every cell: the numbers of a [`Tally`] of the same series, or of an array in their
    /// order. Panics if the lengths differ.
    pub fn publish(&self, cells: &[u64]) {
        assert_eq!(cells.len(), self.cells.len(), "a tally and its board have the same series");
        for (cell, value) in self.cells.iter().zip(cells) {
            cell.store(*value, Ordering::Relaxed);
        }
    }

    /// Sets the counter or gauge at `index` of the series.
    pub fn set(&self, index: usize, value: u64) {
        self.cells[self.layout.scalar(index)].store(value, Ordering::Relaxed);
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
    pub(super) fn read(&self) -> impl Iterator<Item = (&Series, Vec<u64>)> {
        self.layout.series.iter().zip(&self.layout.starts).map(|(series, start)| {
            let cells = &self.cells[*start..*start + series.cells()];
            (series, cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect())
        })
    }
}

/// Plain figures of one owner: no atomics, no allocation after the first.
#[derive(Clone, Debug)]
pub struct Tally {
    layout: Layout,
    cells: Box<[u64]>,
}

impl Tally {
    /// A tally of these series, all zero.
    pub fn new(series: impl Into<Cow<'static, [Series]>>) -> Self {
        let layout = Layout::new(series.into());
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
        let Kind::Histogram { bounds, .. } = self.layout.series[index].kind else {
            panic!("series {index} is a histogram");
        };
        let start = self.layout.starts[index];
        let bucket = bounds.partition_point(|bound| *bound < value);
        self.cells[start + bucket] += 1;
        let sum = &mut self.cells[start + bounds.len() + 1];
        *sum = sum.wrapping_add(value);
    }

    /// For [`Board::publish`].
    pub fn cells(&self) -> &[u64] {
        &self.cells
    }
}

#[derive(Clone, Debug)]
struct Layout {
    series: Cow<'static, [Series]>,
    starts: Box<[usize]>,
    len: usize,
}

impl Layout {
    fn new(series: Cow<'static, [Series]>) -> Self {
        let mut len = 0;
        let starts = series
            .iter()
            .map(|one| {
                let start = len;
                len += one.cells();
                start
            })
            .collect();
        Self { series, starts, len }
    }

    fn scalar(&self, index: usize) -> usize {
        debug_assert!(self.series[index].cells() == 1, "series {index} is a histogram");
        self.starts[index]
    }
}
