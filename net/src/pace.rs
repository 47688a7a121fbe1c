//! A steady rate with a burst: the generic cell rate algorithm (GCRA, ITU-T I.371).
//!
//! Run-through: 100 per second and a burst of 100 ms. The only state is the time up to which the rate is used.
//! At 5.000 s it is 4.2 s, so ten events pass at once and move it to 5.100 s; the eleventh must wait until
//! 5.010 s.
//!
//! The name under which a client's address has its rate is here too: [`client_name`].

use moorline_proto::time::{Duration, Instant, nanos_of};
use std::net::IpAddr;

/// A rate and its burst.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two events, in nanoseconds.
    gap: u64,
    /// Time that may be used in advance, in nanoseconds.
    burst: u64,
}

impl Pace {
    /// Returns the pace of `rate` events per second; `None`: no limit.
    pub fn of(rate: u32, burst: Duration) -> Option<Self> {
        let gap = 1_000_000_000u64.checked_div(u64::from(rate))?;
        Some(Self { gap, burst: nanos_of(burst).max(gap) })
    }

    /// Returns the time up to which the rate is used after one more event, in nanoseconds.
    ///
    /// # Errors
    /// When there is room for one more event.
    pub fn next(self, until: u64, now: Instant) -> Result<u64, Instant> {
        let used = until.max(now.as_nanos());
        if used + self.gap - now.as_nanos() > self.burst {
            return Err(Instant::from_nanos((used + self.gap).saturating_sub(self.burst)));
        }
        Ok(used + self.gap)
    }
}

/// Returns the name under which an address counts: all of IPv4; of IPv6 the network of one customer, a /64.
pub fn client_name(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => (u128::from(address) >> 64) << 64 | 1 << 63,
    }
}
