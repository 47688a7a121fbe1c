//! Wait before the next try: exponential, with full jitter. Pure.
//!
//! Full jitter (uniform over the whole interval) spreads the links of many workers and gateways best
//! when all lost the same backend at the same moment.

use moorline_proto::random::Random;
use moorline_proto::time::{Duration, nanos_of};

/// No try follows the last one sooner than this, whatever the dice say.
pub(super) const DELAY_FLOOR: Duration = Duration::from_millis(1);

/// The delays of one link.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    ceiling: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first delay is at most `first`; the interval doubles with each failure up to `ceiling`.
    pub(super) const fn new(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, attempts: 0 }
    }

    /// The delay before the next try: uniform over `0..=min(ceiling, first * 2^attempts)`, at least
    /// [`DELAY_FLOOR`].
    pub(super) fn next_delay(&mut self, random: &mut Random) -> Duration {
        let doubled = nanos_of(self.first).saturating_mul(1 << self.attempts.min(63));
        let upper = doubled.min(nanos_of(self.ceiling));
        self.attempts = self.attempts.saturating_add(1);
        Duration::from_nanos(random.below(upper.saturating_add(1))).max(DELAY_FLOOR)
    }

    /// Failures since the last success.
    pub(super) const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Continues after this many failures.
    pub(super) const fn resume(&mut self, attempts: u32) {
        self.attempts = attempts;
    }

    /// The peer is well: the next delay is short again.
    pub(super) const fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_stay_below_a_doubling_bound(seed in any::<u64>(), first_ms in 1u64..1_000, factor in 1u64..1_000) {
            let (first, ceiling) = (Duration::from_millis(first_ms), Duration::from_millis(first_ms * factor));
            let (mut random, mut backoff) = (Random::new(seed), Backoff::new(first, ceiling));
            for attempt in 0..80u32 {
                let bound = first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(ceiling);
                let delay = backoff.next_delay(&mut random);
                prop_assert!(delay >= DELAY_FLOOR && delay <= bound.max(DELAY_FLOOR), "{delay:?} {bound:?}");
            }
        }
    }

    #[test]
    fn jitter_uses_the_whole_interval_and_reset_shortens_it() {
        let (first, ceiling) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut random = Random::new(1);
        let (mut low, mut high) = (0, 0);
        for _ in 0..1_000 {
            let mut backoff = Backoff::new(first, ceiling);
            let delay = (0..11).map(|_| backoff.next_delay(&mut random)).last().expect("eleven");
            low += usize::from(delay < ceiling / 10);
            high += usize::from(delay > ceiling * 9 / 10);
            backoff.reset();
            assert!(backoff.next_delay(&mut random) <= first);
        }
        assert!(low > 50 && high > 50, "{low} {high}");
    }
}
