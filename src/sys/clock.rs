//! The clock: the one place of the gateway that reads it.

use moorline_proto::time::{Duration, Instant};
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`, which a process started later on the same machine shares.
pub fn now() -> Instant {
    Instant::from_nanos(read(ClockId::CLOCK_MONOTONIC))
}

/// Nanoseconds since 1970.
pub fn unix_nanos() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Whole seconds since 1970.
pub fn unix_seconds() -> u64 {
    unix_nanos() / 1_000_000_000
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has this clock");
    moorline_proto::time::nanos_of(Duration::from(time))
}
