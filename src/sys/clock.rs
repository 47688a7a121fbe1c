//! The clock: the one place of the gateway that reads it.

use moorline_net::clock::Clock;
use moorline_proto::time::{Duration, Instant};
use nix::time::{ClockId, clock_gettime};

/// Returns a clock that shows `CLOCK_MONOTONIC` until it is told to go on from another time. All processes of a
/// machine share that time, so a snapshot's deadlines mean the same in the next process.
pub fn machine_clock() -> Clock {
    Clock::starting_at(machine_now())
}

/// Returns `CLOCK_MONOTONIC`, for a stopwatch.
pub fn now() -> Instant {
    machine_now()
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
