//! The fleet's timer: `epoll_wait` counts whole milliseconds, a timerfd counts nanoseconds.

use super::token;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use moorline_proto::time::{Duration, Instant};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Wake-ups are rounded up to this, in nanoseconds, so that sends go out together.
const GRANULE_NANOS: u64 = 100_000;

/// One timerfd, registered edge-triggered: an expiry is an event, and needs no read.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: TimerFd,
    set_for: Instant,
}

impl Alarm {
    pub(super) fn new(registry: &Registry) -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let raw = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&raw), token::ALARM, Interest::READABLE)?;
        Ok(Self { timer, set_for: Instant::FAR_FUTURE })
    }

    /// The next wake-up is at `deadline`, or soon if that has passed.
    pub(super) fn set(&mut self, deadline: Instant) -> io::Result<()> {
        let granules = deadline.as_nanos().div_ceil(GRANULE_NANOS).max(1);
        let rounded = Instant::from_nanos(granules.saturating_mul(GRANULE_NANOS));
        if rounded != self.set_for {
            let at = TimeSpec::from_duration(Duration::from_nanos(rounded.as_nanos()));
            self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.set_for = rounded;
        }
        Ok(())
    }

    /// Notes that the timer fired: the next [`Alarm::set`] arms it again.
    pub(super) const fn handle_fired(&mut self) {
        self.set_for = Instant::FAR_FUTURE;
    }
}
