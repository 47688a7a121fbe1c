//! Pace of the logins: at a rate, with a limit of logins under way, or both.

use crate::pace::Schedule;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};

/// Pace of the logins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RampRule {
    /// Connects per second; `None`: as fast as `at_once` lets them.
    pub rate: Option<f64>,
    /// Logins under way at most.
    pub at_once: u32,
}

/// The ramp of one fleet.
#[derive(Clone, Copy, Debug)]
pub struct Ramp {
    schedule: Option<Schedule>,
    at_once: u32,
    next: u32,
    clients: u32,
}

impl Ramp {
    /// All of `clients` are still to come.
    pub fn new(rule: RampRule, clients: u32, start: Instant) -> Self {
        let schedule = rule.rate.map(|rate| Schedule::new(start, rate));
        Self { schedule, at_once: rule.at_once.max(1), next: 0, clients }
    }

    /// The next client to connect, if its moment has come and there is room.
    pub fn take_due(&mut self, now: Instant, under_way: u32) -> Option<u32> {
        if self.next == self.clients || under_way >= self.at_once {
            return None;
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.take_due(now)?;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Time of the next login; `None`: all clients began, or the limit of logins under way is reached.
    pub fn deadline(&self, under_way: u32) -> Option<Instant> {
        if self.next == self.clients || under_way >= self.at_once {
            return None;
        }
        Some(self.schedule.as_ref().map_or(Instant::ZERO, Schedule::deadline))
    }

    /// True once all clients began.
    pub const fn is_over(&self) -> bool {
        self.next == self.clients
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_and_a_bound_both_hold() {
        let start = Instant::from_nanos(5);
        let mut ramp = Ramp::new(RampRule { rate: Some(100.0), at_once: 3 }, 10, start);
        assert_eq!(ramp.take_due(start, 0), Some(0));
        assert_eq!(ramp.take_due(start, 1), None, "the second is due in 10 ms");
        let later = start + Duration::from_secs(1);
        assert_eq!(ramp.take_due(later, 2), Some(1));
        assert_eq!(ramp.take_due(later, 3), None, "three are under way");
        assert_eq!(ramp.deadline(3), None);
        assert_eq!(ramp.deadline(0), Some(start + Duration::from_millis(20)));
        assert_eq!(std::iter::from_fn(|| ramp.take_due(later, 0)).count(), 8);
        assert!(ramp.is_over());
        assert_eq!(ramp.deadline(0), None);
    }
}
