//! The one clock of a program: monotonic time that can stand still, and Unix time.
//!
//! A clock is handed down to whoever needs the time; its clones show the same time. During a hot restart the
//! gateway's time stands still, so that no deadline comes nearer while nobody can serve:
//!
//! ```text
//! old process   now() = 70.000 s, pauses all threads, writes `frozen_at = 70.000 s`
//! new process   reads the snapshot; 0.120 s later: clock.go_on_from(70.000 s)
//! new process   now() = 70.000 s; a heartbeat that was due in 3 s is still due in 3 s
//! ```

use moorline_proto::time::{Instant, nanos_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A handle to one program's time.
#[derive(Clone, Debug)]
pub struct Clock {
    origin: std::time::Instant,
    /// Time at `origin`, in nanoseconds, modulo 2^64.
    start: Arc<AtomicU64>,
}

#[allow(clippy::disallowed_methods)] // the one place that reads the system's clocks
impl Clock {
    /// Returns a clock that shows `now` at this moment.
    pub fn starting_at(now: Instant) -> Self {
        Self { origin: std::time::Instant::now(), start: Arc::new(AtomicU64::new(now.as_nanos())) }
    }

    /// Returns the monotonic time.
    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.start.load(Ordering::Relaxed).wrapping_add(self.elapsed()))
    }

    /// Sets the time of this clock and its clones: it is `at` now.
    pub fn go_on_from(&self, at: Instant) {
        self.start.store(at.as_nanos().wrapping_sub(self.elapsed()), Ordering::Relaxed);
    }

    /// Returns the time since 1970; a system clock before 1970 counts as 1970.
    pub fn unix(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Returns whole seconds since 1970.
    pub fn unix_seconds(&self) -> u64 {
        self.unix().as_secs()
    }

    /// Returns whole milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        u64::try_from(self.unix().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns nanoseconds since 1970.
    pub fn unix_nanos(&self) -> u64 {
        nanos_of(self.unix())
    }

    fn elapsed(&self) -> u64 {
        nanos_of(self.origin.elapsed())
    }
}

impl Default for Clock {
    /// Returns a clock that starts at zero.
    fn default() -> Self {
        Self::starting_at(Instant::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_go_on_from_the_same_moment() {
        let clock = Clock::default();
        let clone = clock.clone();
        let later = Instant::from_nanos(70_000_000_000);
        clock.go_on_from(later);
        let shown = clone.now();
        assert!(shown >= later && shown < later + Duration::from_secs(60), "{shown:?}");
        clone.go_on_from(Instant::from_nanos(5));
        assert!(clock.now() < later, "time can also be set back to an older moment");
    }
}
