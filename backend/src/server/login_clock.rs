//! The clock of login versions: the order of logins on gateways whose clocks need not agree. Pure.
//!
//! A gateway numbers its logins by a clock that goes on steadily from a time of its own, and HELLO tells what that clock
//! shows. Example: the clock of gateway `g1` is an hour ahead. It shows 13:00:20 in HELLO, and has a login of 13:00:00: that login is
//! 20 s old, whatever this machine's clock says. A login of `g2` that is 5 s old is the newer one.

use super::event::Now;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LoginClock {
    /// Unix time at zero of the monotonic clock, in nanoseconds, as the first reading had it.
    base: Option<u64>,
}

/// By how much the clock of a gateway is ahead of a [`LoginClock`], in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead(i128);

impl LoginClock {
    /// Nanoseconds that never go back; close to Unix time.
    fn read(&mut self, now: Now) -> u64 {
        let nanos = now.instant.as_nanos();
        let base = *self.base.get_or_insert(now.unix_ms.saturating_mul(1_000_000).saturating_sub(nanos));
        base.saturating_add(nanos)
    }

    /// Compares the clock of a gateway with this one. `None`: the gateway has not told it.
    pub(super) fn compare(&mut self, now: Now, told: u64) -> Option<Ahead> {
        (told != 0).then(|| Ahead(i128::from(told) - i128::from(self.read(now))))
    }

    /// The version of a login on this clock. No login is in the future.
    pub(super) fn version(&mut self, now: Now, ahead: Option<Ahead>, given: u64) -> u64 {
        let Some(Ahead(ahead)) = ahead else { return given };
        let version = u64::try_from((i128::from(given) - ahead).max(0)).unwrap_or(u64::MAX);
        version.min(self.read(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::time::{Duration, Instant};

    const HOUR: u64 = 3_600_000_000_000;
    const START: u64 = 1_800_000_000_000_000_000;

    fn at(seconds: u64) -> Now {
        Now {
            instant: Instant::ZERO + Duration::from_secs(seconds),
            unix_ms: START / 1_000_000 + seconds * 1_000,
        }
    }

    #[test]
    fn logins_are_ordered_by_their_age() {
        let mut clock = LoginClock::default();
        let second = 1_000_000_000;
        let mut version_of = |shown: u64, age: u64, now: Now| {
            let ahead = clock.compare(now, shown);
            clock.version(now, ahead, shown - age)
        };
        let old = version_of(START + HOUR, 20 * second, at(1));
        let new = version_of(START - HOUR, 5 * second, at(3));
        assert!(old < new, "{old} {new}");
        // This machine's own clock is set back meanwhile.
        let back = Now { unix_ms: 1_000, ..at(10) };
        let newest = version_of(START, second, back);
        assert_eq!(newest, START + 9 * second);
    }

    #[test]
    fn what_a_gateway_tells_wrongly_is_within_bounds() {
        let mut clock = LoginClock::default();
        assert_eq!(clock.compare(at(1), 0), None);
        assert_eq!(clock.version(at(1), None, 7), 7, "as earlier gateways");
        for told in [1, START, u64::MAX] {
            let ahead = clock.compare(at(1), told);
            for given in [0, 1, START, u64::MAX] {
                assert!(clock.version(at(2), ahead, given) <= START + 2_000_000_000, "{told} {given}");
            }
        }
    }
}
