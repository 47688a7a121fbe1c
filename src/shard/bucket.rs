//! Rate limits as token buckets: eight bytes each, and nothing while they are full.
//!
//! A bucket holds the tokens that were spent and not yet earned back, so a full bucket is zero. A client's spending
//! may exceed the burst by one frame; the next frames wait until the debt is earned back.
//!
//! Example: at 100 frames per second a client sends 250 at once. 200 are within the burst and one exceeds it; the
//! other 49 are kept as they came, and its socket is not read, until another frame is earned.

use crate::snapshot::{Item, Section, UserSpentRecord};
use moorline_proto::time::{Duration, Instant};
use std::collections::HashMap;

/// A timestamp in 32 bits: ticks of 2^24 ns (about 16.8 ms), wrapping after about two years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(u32);

/// Bits of a tick, those of the timing wheel.
const TICK_BITS: u32 = 24;

impl Stamp {
    #[allow(clippy::cast_possible_truncation)] // modulo two years on purpose
    pub(super) const fn of(now: Instant) -> Self {
        Self((now.as_nanos() >> TICK_BITS) as u32)
    }

    /// Number of the tick.
    pub(super) const fn ticks(self) -> u32 {
        self.0
    }

    /// The stamp of a tick.
    pub(super) const fn from_ticks(ticks: u32) -> Self {
        Self(ticks)
    }

    /// End of the newest tick with this stamp that is not after `now`: a deadline counted from it is never
    /// early.
    pub(super) const fn before(self, now: Instant) -> Instant {
        let age = Self::of(now).0.wrapping_sub(self.0) as u64;
        let tick = (now.as_nanos() >> TICK_BITS).saturating_sub(age);
        Instant::from_nanos((tick + 1) << TICK_BITS)
    }
}

/// Rate at which a bucket fills; the burst is twice the rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    /// Tokens per second; 0: no limit.
    pub(super) rate: u32,
}

/// Parts of a token, in which spending is counted.
const PARTS: u32 = 1_000;

/// Tokens spent, in thousandths, as of a time that the owner keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent(u32);

impl Spent {
    /// Subtracts the tokens that were earned back since `since`.
    #[allow(clippy::cast_possible_truncation)] // not above what it was
    pub(super) fn refill(&mut self, fill: Fill, since: Stamp, now: Instant) {
        if self.0 != 0 {
            let ticks = u64::from(Stamp::of(now).0.wrapping_sub(since.0));
            let earned = ticks
                .saturating_mul(u64::from(fill.rate) * u64::from(PARTS) * (1 << TICK_BITS) / 1_000_000_000);
            self.0 = u64::from(self.0).saturating_sub(earned) as u32;
        }
    }

    /// Spends tokens. `Some`: the burst is exceeded, and this is the time until it is not.
    pub(super) fn spend(&mut self, fill: Fill, tokens: u32) -> Option<Duration> {
        if fill.rate == 0 {
            return None;
        }
        self.0 = self.0.saturating_add(PARTS.saturating_mul(tokens));
        let burst = 2 * u64::from(fill.rate) * u64::from(PARTS);
        let debt = u64::from(self.0).saturating_sub(burst);
        (debt > 0).then(|| Duration::from_millis(debt.div_ceil(u64::from(fill.rate))))
    }

    /// Thousandths of tokens.
    pub(super) const fn parts(self) -> u32 {
        self.0
    }

    /// A bucket from which `parts` were spent.
    pub(super) const fn from_parts(parts: u32) -> Self {
        Self(parts)
    }

    const fn is_full(self) -> bool {
        self.0 == 0
    }
}

/// Buckets by number; only those that are not full take memory.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    all: HashMap<u64, (Spent, Stamp, bool)>,
}

/// Refusal: the burst is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// Time until it is not exceeded any more.
    pub(super) wait: Duration,
    /// Tells whether this is the first refusal since the spender was well within the burst.
    pub(super) is_news: bool,
}

impl Buckets {
    /// Spends one token of `who`.
    ///
    /// # Errors
    /// [`Over`]: nothing was spent.
    pub(super) fn try_spend(&mut self, who: u64, fill: Fill, now: Instant) -> Result<(), Over> {
        if fill.rate == 0 {
            return Ok(());
        }
        let (spent, since, was_notified) =
            self.all.entry(who).or_insert((Spent::default(), Stamp::of(now), false));
        spent.refill(fill, *since, now);
        *since = Stamp::of(now);
        let before = *spent;
        let Some(wait) = spent.spend(fill, 1) else {
            *was_notified &= spent.0 > fill.rate; // notified again only after it was well within
            return Ok(());
        };
        *spent = before;
        Err(Over { wait, is_news: !std::mem::replace(was_notified, true) })
    }

    /// Writes all buckets.
    pub(super) fn freeze(&self, out: &mut Section) {
        let Self { all } = self;
        for (who, (spent, since, was_notified)) in all {
            let (number, spent, since, was_told) = (Some(*who), spent.0, since.0, *was_notified);
            out.put(Item::UserSpent(UserSpentRecord { who: 0, spent, since, was_told, number }));
        }
    }

    /// Reads one bucket. Those of versions that knew users by their pins are left: several users may share one.
    pub(super) fn thaw(&mut self, record: UserSpentRecord) {
        let UserSpentRecord { who: _, spent, since, was_told, number } = record;
        if let Some(number) = number {
            self.all.insert(number, (Spent(spent), Stamp(since), was_told));
        }
    }

    /// Forgets full buckets.
    pub(super) fn trim(&mut self, fill: Fill, now: Instant) {
        self.all.retain(|_, (spent, since, _)| {
            spent.refill(fill, *since, now);
            *since = Stamp::of(now);
            !spent.is_full()
        });
        if self.all.is_empty() && self.all.capacity() > 0 {
            self.all = HashMap::new();
        }
    }

    /// Number of buckets that are not full.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: Fill = Fill { rate: 100 };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(5_000_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn a_stamp_comes_back_to_a_tick() {
        for age in [0, 1, 16, 17, 1_000, 3_600_000] {
            let back = Stamp::of(at(0)).before(at(age));
            assert!(back.saturating_since(at(0)) < Duration::from_millis(17) && back > at(0), "{age}");
        }
    }

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let (mut spent, mut since) = (Spent::default(), Stamp::of(at(0)));
        assert!((0..200).all(|_| spent.spend(FILL, 1).is_none()), "twice the rate at once");
        assert_eq!(spent.spend(FILL, 1), Some(Duration::from_millis(10)));
        let mut taken = 0;
        for millis in (0..10_000).step_by(5) {
            spent.refill(FILL, since, at(millis));
            since = Stamp::of(at(millis));
            for _ in 0..10 {
                let before = spent;
                match spent.spend(FILL, 1) {
                    None => taken += 1,
                    Some(_) => spent = before,
                }
            }
        }
        assert!((900..=1_000).contains(&taken), "{taken} in ten seconds");
    }

    #[test]
    fn work_that_is_worth_many_frames_is_paid_at_once() {
        let mut spent = Spent::default();
        assert_eq!(spent.spend(FILL, 200), None);
        assert_eq!(spent.spend(FILL, 65), Some(Duration::from_millis(650)));
        assert!(
            spent.spend(FILL, u32::MAX).is_some_and(|wait| wait > Duration::from_secs(10_000)),
            "no overflow"
        );
    }

    #[test]
    fn only_spenders_are_remembered_and_told_once() {
        let mut buckets = Buckets::default();
        for who in 0..3 {
            (0..200).for_each(|_| assert_eq!(buckets.try_spend(who, FILL, at(0)), Ok(())));
        }
        let over = buckets.try_spend(1, FILL, at(0)).expect_err("over");
        assert!(over.is_news && over.wait <= Duration::from_millis(10));
        assert!(!buckets.try_spend(1, FILL, at(0)).expect_err("over").is_news);
        buckets.trim(FILL, at(1_000));
        assert_eq!(buckets.len(), 3);
        buckets.trim(FILL, at(2_100));
        assert_eq!((buckets.len(), buckets.all.capacity()), (0, 0));
        assert_eq!(buckets.try_spend(9, Fill { rate: 0 }, at(0)), Ok(()));
    }
}
