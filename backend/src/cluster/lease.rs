//! The lease of a node: renewed each second, for 5 s by the clock of the database.
//!
//! A node asks at 10.0 s of its own clock; the database answers at 10.3 s. The database has counted from a moment in between, so
//! the node counts from 10.0 s: its lease ends there at 14.95 s, before it ends in the database. The machines' wall clocks
//! play no part.

use moorline_proto::time::{Duration, Instant};

/// Length of a lease by the clock of the database.
pub const LEASE: Duration = Duration::from_secs(5);
/// Time between two renewals.
pub const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Part of a lease that a node does not use: the two clocks may differ in speed by 1%.
pub const DRIFT: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Default)]
pub struct Lease {
    /// End of the lease by the clock of this machine. `None`: the node never had one.
    until: Option<Instant>,
    /// Time of the next renewal.
    renew_at: Instant,
}

impl Lease {
    /// True: renew the lease now. The answer is for [`Self::handle_renewed`], with this `now`.
    pub fn try_renew(&mut self, now: Instant) -> bool {
        let is_due = now >= self.renew_at;
        if is_due {
            self.renew_at = now + RENEW_EVERY;
        }
        is_due
    }

    /// Takes the answer to a renewal that was asked for at `asked`. Answers may come in any order.
    pub fn handle_renewed(&mut self, asked: Instant) {
        self.until = self.until.max(Some(asked + LEASE - DRIFT));
    }

    /// True while no other node may claim the slots of this one.
    pub fn is_held(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Time of the next renewal, or of the end of the lease if that is earlier.
    pub fn next_deadline(&self, now: Instant) -> Instant {
        match self.until {
            Some(until) if until > now => until.min(self.renew_at),
            _ => self.renew_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_is_renewed_each_second_and_ends_without_an_answer() {
        let mut lease = Lease::default();
        assert!(!lease.is_held(at(0)) && lease.try_renew(at(0)) && !lease.try_renew(at(999)));
        lease.handle_renewed(at(0));
        assert!(lease.try_renew(at(1000)) && lease.is_held(at(4949)) && !lease.is_held(at(4950)));
        lease.handle_renewed(at(1000));
        lease.handle_renewed(at(0));
        assert!(lease.is_held(at(5949)), "a late answer to an earlier renewal takes nothing back");
        assert_eq!((lease.next_deadline(at(1500)), lease.next_deadline(at(7000))), (at(2000), at(2000)));
    }

    proptest! {
        /// The database counts from the moment at which it reads the renewal, on a clock of another speed.
        #[test]
        fn the_node_stops_before_the_database_does(
            asked_ms in 0_u64..100_000,
            to_database_ms in 0_u64..4_000,
            speed_ppm in 990_100_u64..1_009_900,
        ) {
            let mut lease = Lease::default();
            lease.handle_renewed(at(asked_ms));
            // Real time is that of the node; the clock of the database runs at `speed_ppm`.
            let read_ms = asked_ms + to_database_ms;
            let database_until_ms = read_ms + 5_000 * 1_000_000 / speed_ppm;
            prop_assert!(!lease.is_held(at(database_until_ms)));
        }
    }
}
