//! The overload machine: how much load is turned away before the backend drowns. Pure.
//!
//! ```text
//! 0 normal ◄──► 1 the last rank is shed ◄──► 2 the second too ◄──► 3 logins are refused
//! ```
//!
//! It climbs while the backend's answers are slow or frames pile up, quickly; it comes down one step at a
//! time, only after a calm that lasts, measured at half the threshold. Two thresholds and a lasting calm
//! are what keeps it from swinging.

use moorline_proto::time::{Duration, Instant, nanos_of};

/// The mildest and the harshest level.
const LEVEL_MAX: u8 = 3;
/// No two steps up within this time.
const CLIMB_INTERVAL: Duration = Duration::from_millis(100);
/// Each answer moves the average by one part of this many.
const AVERAGE_PARTS: u64 = 16;
/// Load in parts of the threshold: over it, and calm.
const OVER: u64 = 1_000;
const CALM: u64 = 500;

/// Limits that define overload.
#[derive(Clone, Copy, Debug)]
pub struct OverloadLimits {
    /// An average answer slower than this.
    pub latency: Duration,
    /// More frames than this that wait for a link.
    pub queue_frames: usize,
    /// Calm time before the next milder level.
    pub hold: Duration,
}

#[derive(Debug)]
pub(super) struct Overload {
    limits: OverloadLimits,
    level: u8,
    /// Average latency of answers, in nanoseconds.
    average: u64,
    answered_at: Instant,
    climbed_at: Instant,
    calm_since: Option<Instant>,
}

impl Overload {
    pub(super) const fn new(limits: OverloadLimits) -> Self {
        Self {
            limits,
            level: 0,
            average: 0,
            answered_at: Instant::ZERO,
            climbed_at: Instant::ZERO,
            calm_since: None,
        }
    }

    /// Level and average answer in nanoseconds.
    pub(super) const fn freeze(&self) -> (u8, u64) {
        let Self { limits: _, level, average, answered_at: _, climbed_at: _, calm_since: _ } = self;
        (*level, *average)
    }

    /// Goes on at this level.
    pub(super) fn thaw(&mut self, now: Instant, level: u8, average: u64) {
        (self.level, self.average) = (level.min(LEVEL_MAX), average);
        (self.answered_at, self.climbed_at) = (now, now);
    }

    /// Overload level.
    pub(super) const fn level(&self) -> u8 {
        self.level
    }

    /// Counts the latency of an answer, or of a question that timed out.
    pub(super) fn record(&mut self, now: Instant, took: Duration) {
        self.answered_at = now;
        let took = nanos_of(took);
        self.average = self.average - self.average / AVERAGE_PARTS + took / AVERAGE_PARTS;
    }

    /// Looks at the load. `Some`: this is the level from now on.
    pub(super) fn poll(&mut self, now: Instant, waiting_frames: usize) -> Option<u8> {
        if now.saturating_since(self.answered_at) >= self.limits.hold {
            self.average = 0; // nobody asks, so nobody waits
        }
        let load = self.load(waiting_frames);
        if load > OVER {
            self.calm_since = None;
            let may_climb = now.saturating_since(self.climbed_at) >= CLIMB_INTERVAL;
            if self.level == LEVEL_MAX || !may_climb {
                return None;
            }
            self.climbed_at = now;
            let steps = if load > 2 * OVER { 2 } else { 1 };
            self.level = (self.level + steps).min(LEVEL_MAX);
            return Some(self.level);
        }
        if load > CALM {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if self.level == 0 || now.saturating_since(since) < self.limits.hold {
            return None;
        }
        self.calm_since = Some(now);
        self.level -= 1;
        Some(self.level)
    }

    /// Time of the next look without an event; `None`: not needed.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.level == 0 {
            return None;
        }
        // Without an average only waiting frames keep the load up, and they do not leave without another input.
        let forgets_at = (self.average > 0).then(|| self.answered_at + self.limits.hold);
        self.calm_since.map_or(forgets_at, |since| Some(since + self.limits.hold))
    }

    /// The worse of the two, in thousandths of its threshold.
    fn load(&self, waiting_frames: usize) -> u64 {
        let by_latency = self.average.saturating_mul(OVER) / nanos_of(self.limits.latency).max(1);
        let waiting = u64::try_from(waiting_frames).unwrap_or(u64::MAX);
        let most = u64::try_from(self.limits.queue_frames).unwrap_or(u64::MAX).max(1);
        by_latency.max(waiting.saturating_mul(OVER) / most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::random::Random;
    use proptest::prelude::*;

    const LIMITS: OverloadLimits = OverloadLimits {
        latency: Duration::from_millis(500),
        queue_frames: 1_000,
        hold: Duration::from_secs(2),
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn it_climbs_quickly_and_comes_down_step_by_step() {
        let mut overload = Overload::new(LIMITS);
        assert_eq!(overload.poll(at(0), 1_500), Some(1));
        assert_eq!(overload.poll(at(50), 1_500), None, "one step a tenth of a second");
        assert_eq!(overload.poll(at(100), 2_500), Some(3), "two if it is twice too much");
        assert_eq!(overload.poll(at(200), 9_000), None);
        assert_eq!(overload.poll(at(1_000), 700), None, "not calm yet");
        assert_eq!(overload.poll(at(2_000), 400), None);
        assert_eq!(overload.next_deadline(), Some(at(4_000)));
        assert_eq!(overload.poll(at(4_000), 0), Some(2));
        assert_eq!(overload.poll(at(5_000), 0), None);
        assert_eq!(overload.poll(at(6_000), 0), Some(1));
        assert_eq!(overload.poll(at(8_000), 0), Some(0));
        assert_eq!(overload.next_deadline(), None);
    }

    #[test]
    fn slow_answers_count_and_are_forgotten_when_nobody_asks() {
        let mut overload = Overload::new(LIMITS);
        (0..100).for_each(|i| overload.record(at(i), Duration::from_secs(3)));
        assert_eq!(overload.poll(at(100), 0), Some(2));
        assert_eq!(overload.poll(at(2_200), 0), None);
        assert_eq!(overload.poll(at(4_200), 0), Some(1));
    }

    /// A worker slept not at all while its backend was away: the deadline lay in the past.
    #[test]
    fn no_deadline_stays_behind_while_frames_wait_and_no_answer_comes() {
        let mut overload = Overload::new(LIMITS);
        overload.record(at(0), Duration::from_secs(3));
        assert_eq!(overload.poll(at(0), 1_500), Some(1));
        assert_eq!(overload.next_deadline(), Some(at(2_000)), "then the slow answer is forgotten");
        for millis in [2_000, 2_050, 2_150, 60_000] {
            overload.poll(at(millis), 1_500);
            assert_eq!(overload.next_deadline(), None, "only an input can change the load");
        }
        overload.poll(at(61_000), 0);
        assert_eq!(overload.next_deadline(), Some(at(63_000)));
    }

    proptest! {
        /// A load that wavers around the threshold does not make the level swing.
        #[test]
        fn it_does_not_swing(seed in any::<u64>(), around in 300u64..2_000) {
            let (mut overload, mut random, mut downs) = (Overload::new(LIMITS), Random::new(seed), 0);
            for step in 0..6_000 {
                let waiting = around / 2 + random.below(around);
                let before = overload.level();
                let now = overload.poll(at(step * 10), usize::try_from(waiting).expect("small"));
                downs += u32::from(now.is_some_and(|level| level < before));
            }
            prop_assert!(downs <= 30, "{} steps down in a minute: at most one per hold", downs);
        }
    }
}
