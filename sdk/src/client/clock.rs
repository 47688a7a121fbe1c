//! The client's clock: it goes on while the device sleeps, where the system has such a clock (Linux and Android:
//! `CLOCK_BOOTTIME`).
//!
//! Example: a phone sleeps for an hour with a PING under way. When it wakes, the client's time is an hour later, so the
//! PING is overdue at once; a clock that stands still in sleep would let the client wait for the rest of its patience.

use moorline_proto::time::{Duration, Instant};

/// Sleep from which the connection is looked at: a network forgets no connection within less.
const SLEEP_MIN: Duration = Duration::from_secs(5);

/// Time since the client was made.
#[derive(Debug)]
pub(super) struct Clock {
    /// Reading of [`since_boot`] when the client was made.
    start: Duration,
    /// Monotonic time without sleep, at the same moment.
    origin: std::time::Instant,
}

#[allow(clippy::disallowed_methods)] // the one place of the client library that reads the system's clocks
impl Clock {
    pub(super) fn new() -> Self {
        Self { start: since_boot().unwrap_or_default(), origin: std::time::Instant::now() }
    }

    /// Returns the time, including sleep.
    pub(super) fn now(&self) -> Instant {
        let elapsed =
            since_boot().map_or_else(|| self.origin.elapsed(), |now| now.saturating_sub(self.start));
        Instant::ZERO + elapsed
    }

    /// Returns the time that the device has slept since the client was made; zero where the system does not say.
    pub(super) fn asleep(&self) -> Duration {
        self.now().saturating_since(Instant::ZERO).saturating_sub(self.origin.elapsed())
    }

    /// Returns `at` as a reading of the system's clock.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn reading(&self, at: Instant) -> Duration {
        self.start + at.saturating_since(Instant::ZERO)
    }

    /// Returns the time since 1970; a system clock before 1970 counts as 1970.
    pub(super) fn unix() -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}

/// Finds out that the device has slept.
#[derive(Debug, Default)]
pub(super) struct SleepWatch {
    /// Sleep that is known.
    known: Duration,
}

impl SleepWatch {
    /// Returns whether the device has slept since the last call, by the whole sleep up to now.
    pub(super) fn has_slept(&mut self, asleep: Duration) -> bool {
        let is_long = asleep >= self.known + SLEEP_MIN;
        if is_long {
            self.known = asleep;
        }
        is_long
    }
}

/// Time since the system started, with the time in which it slept; `None`: this system has no such clock.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Option<Duration> {
    let reading = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Some(Duration::from(reading))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_goes_on_and_a_long_sleep_is_noticed_once() {
        let clock = Clock::new();
        let before = clock.now();
        assert!(clock.now() >= before);
        let mut watch = SleepWatch::default();
        let slept = [0, 4, 6, 6, 10, 11].map(|seconds| watch.has_slept(Duration::from_secs(seconds)));
        assert_eq!(slept, [false, false, true, false, false, true]);
    }
}
