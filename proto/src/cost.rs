//! Measured time of one piece of work, from which follows how many pieces fit into a time.
//!
//! Example: a delivery has cost 6 us on average. 16 fit into 0.1 ms. A slice of 100 takes 5 ms, and the average rises.

use crate::time::{Duration, nanos_of};
use core::ops::RangeInclusive;

/// Each measurement moves the average by one part of this many.
const PARTS: u64 = 8;

/// Moving average of the time of one piece, with bounds.
#[derive(Clone, Debug)]
pub struct Cost {
    /// In nanoseconds.
    average: u64,
    /// Bounds of a measurement, in nanoseconds.
    bounds: RangeInclusive<u64>,
}

impl Cost {
    /// Returns a cost of `start` nanoseconds, before anything was measured. `bounds`: the least and the largest measurement
    /// that counts, in nanoseconds; at least 1.
    pub const fn new(start: u64, bounds: RangeInclusive<u64>) -> Self {
        Self { average: start, bounds }
    }

    /// Takes the time that `pieces` took together; none tell nothing.
    pub fn measure(&mut self, took: Duration, pieces: usize) {
        let Some(each) = nanos_of(took).checked_div(pieces as u64) else { return };
        let each = each.clamp(*self.bounds.start(), *self.bounds.end());
        self.average = self.average - self.average / PARTS + each / PARTS;
    }

    /// Returns how many pieces fit into a time.
    pub fn fits(&self, time: Duration) -> usize {
        usize::try_from(nanos_of(time) / self.average.max(1)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_follows_what_a_piece_costs_within_bounds() {
        let mut cost = Cost::new(1_000, 100..=10_000);
        cost.measure(Duration::from_secs(1), 0);
        assert_eq!(cost.fits(Duration::from_micros(50)), 50);
        (0..100).for_each(|_| cost.measure(Duration::from_micros(400), 100));
        assert!((12..=13).contains(&cost.fits(Duration::from_micros(50))));
        (0..100).for_each(|_| cost.measure(Duration::from_secs(1), 1));
        assert_eq!(cost.fits(Duration::from_micros(50)), 5, "at most 10 us each");
    }
}
