//! The one place that reads a clock.
#![allow(clippy::disallowed_methods)] // for the generator, this is where it belongs

use moorline_proto::time::Instant;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, on `CLOCK_MONOTONIC`.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on Linux");
    let since_boot = Duration::from(time);
    Instant::ZERO + since_boot
}

/// Seconds since 1970, for tokens.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
