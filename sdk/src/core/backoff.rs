//! Full-jitter exponential backoff (Brooker, "Exponential Backoff and Jitter", AWS 2015).

use moorline_proto::random::Random;
use moorline_proto::time::{Duration, nanos_of};

/// The policy: a wait is uniform between nothing and `min(cap, base x 2^attempt)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Ceiling of the first wait.
    pub base: Duration,
    /// Ceiling of every wait.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The ceiling of the wait after `attempt` failures, counted from 0.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        self.base.checked_mul(1 << attempt.min(24)).unwrap_or(self.cap).min(self.cap)
    }

    /// A wait after `attempt` failures.
    pub fn wait(&self, attempt: u32, random: &mut Random) -> Duration {
        part_of(self.ceiling(attempt), random)
    }
}

/// A random part of a duration.
pub(super) fn part_of(whole: Duration, random: &mut Random) -> Duration {
    Duration::from_nanos(random.below(nanos_of(whole).saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_are_spread() {
        let (policy, mut random) = (Backoff::default(), Random::new(1));
        assert_eq!(policy.ceiling(0), Duration::from_millis(500));
        assert_eq!(policy.ceiling(3), Duration::from_secs(4));
        assert_eq!(policy.ceiling(u32::MAX), Duration::from_secs(30));
        let waits: Vec<_> = (0..200).map(|_| policy.wait(4, &mut random)).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(8)));
        assert!(waits.iter().any(|wait| *wait < Duration::from_secs(2)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(6)));
    }
}
