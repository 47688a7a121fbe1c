//! Rate of questions by client address. Pure.
//!
//! Run-through: 20 a second. An address asks 300 times at once: 200 pass, ten seconds' worth, and the others are refused.
//! The address stays in the table until its rate is earned back. At most [`ADDRESSES_MAX`] addresses are there; while they are all
//! in use, a further one passes uncounted, since forgiving one address is better than refusing strangers for it.

use moorline_net::pace::{Pace, client_name};
use moorline_proto::time::{Duration, Instant};
use std::collections::HashMap;
use std::net::IpAddr;

/// Addresses that are remembered.
pub(super) const ADDRESSES_MAX: usize = 65_536;
/// Questions of one address at once after a calm: what ten seconds give.
const BURST: Duration = Duration::from_secs(10);
/// Least time between two searches for addresses that can go.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Rates of all addresses.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Time up to which the rate of an address is used, in nanoseconds.
    used: HashMap<u128, u64>,
    swept: Instant,
}

impl Rates {
    /// Counts a question. False: the address asks too often. `rate`: questions per second; 0: no limit.
    pub(super) fn try_ask(&mut self, from: IpAddr, rate: u32, now: Instant) -> bool {
        let Some(pace) = Pace::of(rate, BURST) else { return true };
        let name = client_name(from);
        if let Some(until) = self.used.get_mut(&name) {
            return pace.next(*until, now).map(|next| *until = next).is_ok();
        }
        if self.used.len() >= ADDRESSES_MAX && now >= self.swept + SWEEP_PAUSE {
            self.swept = now;
            self.used.retain(|_, until| *until > now.as_nanos());
        }
        if self.used.len() < ADDRESSES_MAX
            && let Ok(next) = pace.next(0, now)
        {
            self.used.insert(name, next);
        }
        true
    }

    /// Number of remembered addresses.
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn one_address_has_its_rate_and_no_other_notices() {
        let mut rates = Rates::default();
        let [one, other] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let passed = (0..300).filter(|_| rates.try_ask(one, 20, at(1))).count();
        assert_eq!(passed, 200, "ten seconds' worth");
        assert!(rates.try_ask(other, 20, at(1)));
        assert!(!rates.try_ask(one, 20, at(10)) && rates.try_ask(one, 20, at(60)), "20 a second");
        assert!((0..1000).all(|_| rates.try_ask(one, 0, at(60))), "no limit");
    }

    #[test]
    fn the_table_is_bounded_and_strangers_pass_when_it_is_full() {
        let mut rates = Rates::default();
        let of = |number: u32| IpAddr::from(number.to_be_bytes());
        let count = u32::try_from(ADDRESSES_MAX).expect("small") + 1000;
        assert!((0..count).all(|number| rates.try_ask(of(number), 1, at(1))));
        assert_eq!(rates.len(), ADDRESSES_MAX);
        assert!(rates.try_ask(of(count), 1, at(100_000)));
        assert_eq!(rates.len(), 1, "the others have earned their rate back");
    }
}
