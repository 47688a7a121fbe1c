//! The clock: the one place of the gateway that reads it.

use moorline_proto::time::{Duration, Instant};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// How long this gateway stood still so far, in nanoseconds.
static FROZEN_NANOS: AtomicU64 = AtomicU64::new(0);

/// `CLOCK_MONOTONIC` without the time that the gateway stood still: no deadline comes nearer meanwhile. A
/// process started later on the same machine shares it.
pub fn now() -> Instant {
    Instant::from_nanos(machine_nanos().saturating_sub(FROZEN_NANOS.load(Ordering::Relaxed)))
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn machine_nanos() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// `CLOCK_MONOTONIC`, which goes on while the gateway stands still: for what waits for other processes.
pub fn machine_now() -> Instant {
    Instant::from_nanos(machine_nanos())
}

/// How long it is until then by [`machine_now`]; zero if it is over.
pub fn until(deadline: Instant) -> Duration {
    deadline.saturating_since(machine_now())
}

/// The gateway's time goes on from `at`, where it stood still.
pub fn go_on_from(at: Instant) {
    FROZEN_NANOS.store(machine_nanos().saturating_sub(at.as_nanos()), Ordering::Relaxed);
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
