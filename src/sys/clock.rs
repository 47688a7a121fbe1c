//! The clock: the one place of the gateway that reads it.

use moorline_proto::time::{Duration, Instant};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// Total duration of all pauses of this gateway, in nanoseconds.
static FROZEN_NANOS: AtomicU64 = AtomicU64::new(0);

/// Returns the gateway's own time: `CLOCK_MONOTONIC` without the pauses, so that no deadline comes nearer during a
/// pause. All processes of a machine share `CLOCK_MONOTONIC`.
pub fn now() -> Instant {
    Instant::from_nanos(machine_nanos().saturating_sub(FROZEN_NANOS.load(Ordering::Relaxed)))
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
pub fn machine_nanos() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Returns `CLOCK_MONOTONIC`, which does not stop during a pause: for deadlines of other processes.
pub fn machine_now() -> Instant {
    Instant::from_nanos(machine_nanos())
}

/// Returns the time until a deadline of [`machine_now`]; zero if the deadline has passed.
pub fn until(deadline: Instant) -> Duration {
    deadline.saturating_since(machine_now())
}

/// Ends a pause: the gateway's own time continues from `at`.
pub fn go_on_from(at: Instant) {
    FROZEN_NANOS.store(machine_nanos().saturating_sub(at.as_nanos()), Ordering::Relaxed);
}

/// Returns Unix time in nanoseconds.
pub fn unix_nanos() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Returns Unix time in whole seconds.
pub fn unix_seconds() -> u64 {
    unix_nanos() / 1_000_000_000
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has this clock");
    moorline_proto::time::nanos_of(Duration::from(time))
}
