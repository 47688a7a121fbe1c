//! Intended times of the events of a steady stream.

use moorline_proto::time::Instant;
use std::time::Duration;

/// Events at a fixed rate from a start: event `n` is meant for `start + n / rate`, whatever happened
/// to the ones before it.
///
/// An intended time is computed from its number and never stored, so a backlog costs no memory.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    nanos_each: f64,
    next: u64,
}

impl Schedule {
    /// `per_second` events from `start` on. Panics unless the rate is above zero.
    pub fn new(start: Instant, per_second: f64) -> Self {
        assert!(per_second > 0.0, "a schedule has a rate");
        Self { start, nanos_each: 1e9 / per_second, next: 0 }
    }

    /// The moment event `n` is meant for.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // below 2^64 ns for 584 years
    pub fn intended(&self, n: u64) -> Instant {
        self.start + Duration::from_nanos((n as f64 * self.nanos_each) as u64)
    }

    /// The moment of the next event not yet taken.
    pub fn deadline(&self) -> Instant {
        self.intended(self.next)
    }

    /// Takes the next event if its moment has come: its number.
    pub fn take_due(&mut self, now: Instant) -> Option<u64> {
        if self.deadline() > now {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Events taken.
    pub const fn taken(&self) -> u64 {
        self.next
    }
}

/// Heartbeats of a whole fleet: one cursor walks over all clients once per interval.
///
/// Every client beats once per interval, spread evenly, and none of them needs a timer or a byte.
#[derive(Clone, Copy, Debug)]
pub struct Beats {
    schedule: Schedule,
    clients: u64,
}

impl Beats {
    /// `clients` beats per `interval` from `start` on.
    pub fn new(start: Instant, clients: u32, interval: Duration) -> Self {
        let per_second = f64::from(clients.max(1)) / interval.as_secs_f64().max(0.001);
        Self { schedule: Schedule::new(start, per_second), clients: u64::from(clients.max(1)) }
    }

    /// Time of the next heartbeat.
    pub fn deadline(&self) -> Instant {
        self.schedule.deadline()
    }

    /// The client whose turn it is, if its moment has come.
    #[allow(clippy::cast_possible_truncation)] // below `clients`, a u32
    pub fn take_due(&mut self, now: Instant) -> Option<u32> {
        self.schedule.take_due(now).map(|n| (n % self.clients) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);

    #[test]
    fn events_keep_their_moments_after_a_stall() {
        let mut schedule = Schedule::new(START, 1_000.0);
        assert_eq!(schedule.take_due(START), Some(0));
        assert_eq!(schedule.take_due(START), None, "the second is 1 ms away");
        let late = START + Duration::from_millis(50);
        let taken: Vec<u64> = std::iter::from_fn(|| schedule.take_due(late)).collect();
        assert_eq!(taken, (1..=50).collect::<Vec<_>>());
        assert_eq!(schedule.intended(7), START + Duration::from_millis(7));
    }

    #[test]
    fn no_drift_over_a_long_run_at_an_odd_rate() {
        let schedule = Schedule::new(START, 333.0);
        let hour = START + Duration::from_secs(3_600);
        let off = schedule.intended(333 * 3_600).saturating_since(hour).as_nanos();
        assert!(off < 1_000, "off by {off} ns");
        assert!(hour.saturating_since(schedule.intended(333 * 3_600)).as_nanos() < 1_000);
    }

    #[test]
    fn every_client_beats_once_per_interval() {
        let mut beats = Beats::new(START, 10, Duration::from_secs(1));
        let mut seen = [0; 10];
        for millis in 0..3_000 {
            while let Some(who) = beats.take_due(START + Duration::from_millis(millis)) {
                seen[who as usize] += 1;
            }
        }
        assert_eq!(seen, [3; 10]);
    }
}
