//! Time for what must not follow one reading of the wall clock: ids, windows, quotas.
//!
//! The wall clock may jump: NTP, a resumed machine, an operator's hand. [`SteadyTime`] goes on with the monotonic clock and
//! is drawn toward the wall clock by a tenth of the time that passes, so that a jump ahead of 40 days for 0.3 s moves it by
//! 0.03 s. Example: a message is stored while the clock is a day ahead. Clients see that time, which the clock gave; the
//! window for recalling the message closes a day after it was stored all the same.
//!
//! At the start nothing but the last message id tells the time. A reading that is later is believed if it is at most
//! [`AHEAD_MAX_MS`] later.

use super::ids::EPOCH_MS;
use crate::server::Now;
use moorline_proto::time::{Duration, Instant};

/// Most that the clock of a start is believed to be ahead of the last message: a year.
const AHEAD_MAX_MS: u64 = 366 * 86_400_000;
/// Share of the time that passes by which the time is drawn toward the clock.
const DRAW: u64 = 10;
/// A change of the clock against the monotonic one that is logged and counted, in milliseconds.
const STEP_MS: u64 = 1_000;
/// Interval of such lines.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Figures of the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockStatus {
    /// Times that the wall clock was seen to be set.
    pub steps: u64,
    /// Time that ids and windows are ahead of the wall clock, in milliseconds.
    pub ahead_ms: u64,
    /// Time that they are behind it.
    pub behind_ms: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct SteadyTime {
    /// When `micros` was right. `None`: nobody has asked yet.
    at: Option<Instant>,
    /// Unix time in microseconds.
    micros: u64,
    /// The last reading, in milliseconds.
    clock_ms: u64,
    log_at: Instant,
    status: ClockStatus,
}

impl SteadyTime {
    /// Time of a program whose last message is of this Unix time, in milliseconds; 0: there is none.
    pub(super) fn after(last_ms: u64) -> Self {
        Self { micros: last_ms.saturating_mul(1_000), ..Self::default() }
    }

    /// Returns the Unix time in milliseconds; never less than before.
    pub(super) fn read(&mut self, now: Now) -> u64 {
        // Ids have no earlier time.
        let now = Now { unix_ms: now.unix_ms.max(EPOCH_MS), ..now };
        let clock = now.unix_ms.saturating_mul(1_000);
        let Some(at) = self.at else {
            self.begin(now, clock);
            return self.micros / 1_000;
        };
        let passed = now.instant.saturating_since(at).as_micros();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        if passed > 0 {
            self.note_step(now, passed / 1_000);
            (self.at, self.clock_ms) = (Some(at + Duration::from_micros(passed)), now.unix_ms);
            self.micros = self.micros.saturating_add(passed);
            let most = passed / DRAW;
            self.micros = if self.micros <= clock {
                self.micros + most.min(clock - self.micros)
            } else {
                self.micros - most.min(self.micros - clock)
            };
        }
        self.status.ahead_ms = self.micros.saturating_sub(clock) / 1_000;
        self.status.behind_ms = clock.saturating_sub(self.micros) / 1_000;
        self.micros / 1_000
    }

    pub(super) const fn status(&self) -> ClockStatus {
        self.status
    }

    fn begin(&mut self, now: Now, clock: u64) {
        (self.at, self.clock_ms) = (Some(now.instant), now.unix_ms);
        let (last_ms, clock_ms) = (self.micros / 1_000, now.unix_ms);
        if last_ms == 0 || clock >= self.micros && clock_ms - last_ms <= AHEAD_MAX_MS {
            self.micros = clock;
        } else if clock > self.micros {
            tracing::error!(
                days = (clock_ms - last_ms) / 86_400_000,
                "the clock is more than a year later than the last message; ids go on from the last message: set the clock"
            );
        } else if last_ms - clock_ms >= STEP_MS {
            tracing::warn!(
                seconds = (last_ms - clock_ms) / 1_000,
                "the clock is behind the time of the last message; ids go on from there, and get slower until the clock is there"
            );
        }
    }

    /// Notes that the clock has changed by more than the time that has passed.
    fn note_step(&mut self, now: Now, passed_ms: u64) {
        let expected_ms = self.clock_ms.saturating_add(passed_ms);
        let step_ms = now.unix_ms.abs_diff(expected_ms);
        if step_ms < STEP_MS {
            return;
        }
        self.status.steps += 1;
        if now.instant < self.log_at {
            return;
        }
        self.log_at = now.instant + LOG_EVERY;
        let direction = if now.unix_ms > expected_ms { "ahead" } else { "back" };
        tracing::warn!(
            step_ms,
            direction,
            "the clock was set; clients see its time, and ids and windows follow it slowly"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;
    const START_MS: u64 = 20_000 * DAY_MS;

    fn at(ms: u64, clock_ms: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_millis(ms), unix_ms: clock_ms }
    }

    #[test]
    fn the_time_is_the_clocks_while_the_clock_is_right() {
        let mut time = SteadyTime::default();
        for ms in [0, 1, 2, 700, 100_000, DAY_MS] {
            assert_eq!(time.read(at(ms, START_MS + ms)), START_MS + ms);
        }
        assert_eq!(time.status(), ClockStatus::default());
    }

    #[test]
    fn a_jump_of_the_clock_moves_the_time_by_a_tenth_of_what_passes() {
        let mut time = SteadyTime::default();
        time.read(at(0, START_MS));
        time.read(at(1_000, START_MS + 1_000));
        let jumped = time.read(at(1_300, START_MS + 1_300 + 40 * DAY_MS));
        assert_eq!(jumped, START_MS + 1_330);
        assert!(time.status().behind_ms > 39 * DAY_MS);
        let back = time.read(at(2_000, START_MS + 2_000));
        assert_eq!((back, time.status().steps), (START_MS + 2_000, 2), "both changes are counted");
    }

    #[test]
    fn the_time_never_goes_back_and_comes_to_the_clock() {
        let mut time = SteadyTime::default();
        time.read(at(0, START_MS + 60_000));
        let mut last = 0;
        for ms in (0..700_000).step_by(50) {
            let now = time.read(at(ms, START_MS + ms));
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
        assert_eq!((last, time.status().ahead_ms), (START_MS + 699_950, 0));
    }

    #[test]
    fn a_clock_before_all_ids_is_at_the_first_id() {
        let mut time = SteadyTime::default();
        assert_eq!([at(0, 5), at(10, 15)].map(|now| time.read(now)), [EPOCH_MS, EPOCH_MS + 9]);
        assert_eq!(SteadyTime::after(EPOCH_MS).read(at(0, 5)), EPOCH_MS, "nor does the next life jump");
    }

    #[test]
    fn a_start_believes_the_clock_unless_it_is_absurd() {
        let first = |last_ms, clock_ms| SteadyTime::after(last_ms).read(at(5, clock_ms));
        assert_eq!(first(0, START_MS), START_MS);
        assert_eq!(first(START_MS, START_MS + 3 * DAY_MS), START_MS + 3 * DAY_MS);
        assert_eq!(first(START_MS, START_MS - DAY_MS), START_MS, "it is behind");
        assert_eq!(first(START_MS, START_MS + 4_000 * DAY_MS), START_MS, "eleven years");
        assert_eq!(first(START_MS, u64::MAX), START_MS);
    }
}
