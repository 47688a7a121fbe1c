//! The highest rate at which everything expected still holds.

use serde::Serialize;

/// Probes of one search, at most.
pub const PROBES_MAX: u32 = 24;
/// A rate that is done to a smaller part than this is not stable.
pub const DONE_PART_MIN: f64 = 0.99;

/// Doubles from the lowest rate until one fails, then halves the gap between the best and the worst.
#[derive(Clone, Debug)]
pub struct Search {
    highest: f64,
    within: f64,
    next: f64,
    best: Option<f64>,
    worst: Option<f64>,
    probes: u32,
}

impl Search {
    /// From `lowest` to `highest`, in operations per second, until the gap is below the part `within`.
    pub fn new(lowest: f64, highest: f64, within: f64) -> Self {
        let within = within.max(0.001);
        Self { highest, within, next: lowest.min(highest), best: None, worst: None, probes: 0 }
    }

    /// The rate to try next; `None`: the search is over.
    pub fn next(&self) -> Option<f64> {
        let is_close = match (self.best, self.worst) {
            (Some(best), Some(worst)) => worst - best <= best * self.within,
            (Some(best), None) => best >= self.highest,
            (None, Some(worst)) => worst < 1.0, // nothing holds
            (None, None) => false,
        };
        (!is_close && self.probes < PROBES_MAX).then_some(self.next)
    }

    /// Takes what a try at this rate gave.
    pub fn learn(&mut self, rate: f64, holds: bool) {
        self.probes += 1;
        if holds {
            self.best = Some(self.best.map_or(rate, |best| best.max(rate)));
        } else {
            self.worst = Some(self.worst.map_or(rate, |worst| worst.min(rate)));
        }
        self.next = match (self.best, self.worst) {
            (Some(best), Some(worst)) => f64::midpoint(best, worst),
            (Some(best), None) => (best * 2.0).min(self.highest),
            (None, Some(worst)) => worst / 2.0,
            (None, None) => self.next,
        };
    }

    /// The highest rate that held.
    pub const fn best(&self) -> Option<f64> {
        self.best
    }
}

/// A try at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Operations per second that were meant.
    pub rate: f64,
    /// Operations per second that were done.
    pub done_per_s: f64,
    /// 99 of 100 were not slower, in nanoseconds, by the scenario's main latency.
    pub p99: Option<u64>,
    /// Reason why the rate does not hold.
    pub failed: Option<String>,
}

/// Result of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The highest rate that held.
    pub best: Option<f64>,
    /// True if the generator, not the server, was saturated above that rate.
    pub is_own_limit: bool,
    /// The generator was late there because others had the cores of its machine.
    pub is_machine_busy: bool,
    /// All tries, in order.
    pub probes: Vec<Probe>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(limit: f64, mut search: Search) -> (Option<f64>, u32) {
        while let Some(rate) = search.next() {
            search.learn(rate, rate <= limit);
        }
        (search.best(), search.probes)
    }

    #[test]
    fn it_ends_close_below_the_limit() {
        for limit in [1_000.0, 1_500.0, 37_000.0, 90_001.0] {
            let (best, probes) = search(limit, Search::new(1_000.0, 1e6, 0.05));
            let best = best.unwrap();
            assert!(best <= limit && best >= limit * 0.94, "{best} of {limit}");
            assert!(probes <= 14, "{probes} probes for {limit}");
        }
    }

    #[test]
    fn it_looks_below_where_it_began_and_not_above_the_highest() {
        let (best, _) = search(130.0, Search::new(1_000.0, 1e6, 0.05));
        assert!((123.0..=130.0).contains(&best.unwrap()), "{best:?}");
        assert_eq!(search(f64::MAX, Search::new(1_000.0, 5_000.0, 0.05)).0, Some(5_000.0));
    }

    #[test]
    fn it_ends_when_nothing_holds() {
        let (best, probes) = search(0.0, Search::new(1_000.0, 1e6, 0.05));
        assert_eq!(best, None);
        assert!(probes <= PROBES_MAX);
    }
}
