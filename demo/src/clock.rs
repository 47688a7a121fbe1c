//! The demo's clock: the one place of it that reads the time.

use moorline_proto::time::{Duration, Instant, nanos_of};
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`, which all processes of this machine share.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    Instant::from_nanos(nanos_of(Duration::from(time)))
}
