//! A timer for the loop: `epoll_wait` counts whole milliseconds, a timerfd counts nanoseconds.

use crate::exit::Failure;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use moorline_proto::time::Instant;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Deadlines are rounded up to this, in nanoseconds, so that a high rate wakes the loop at most
/// 10,000 times a second and sends what is due in one go.
const GRANULE_NANOS: u64 = 100_000;

/// A timerfd, registered edge-triggered: an expiry is an event, and needs no read.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    set_for: Instant,
}

impl Alarm {
    /// A timer that wakes `registry`'s poll with `token`.
    pub fn new(registry: &Registry, token: Token) -> Result<Self, Failure> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)
            .map_err(|errno| Failure::io("create a timer")(errno.into()))?;
        let raw = timer.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&raw), token, Interest::READABLE)
            .map_err(Failure::io("register the timer"))?;
        Ok(Self { timer, set_for: Instant::FAR_FUTURE })
    }

    /// Makes the next wake-up happen at `deadline`, or soon if that has passed.
    pub fn set(&mut self, deadline: Instant) -> Result<(), Failure> {
        let rounded = round_up(deadline);
        if rounded == self.set_for {
            return Ok(());
        }
        self.set_for = rounded;
        let at = TimeSpec::from_duration(Duration::from_nanos(rounded.as_nanos().max(1)));
        self.timer
            .set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .map_err(|errno| Failure::io("set the timer")(errno.into()))
    }

    /// The timer fired: the next [`Alarm::set`] must arm it again.
    pub const fn handle_fired(&mut self) {
        self.set_for = Instant::FAR_FUTURE;
    }
}

const fn round_up(at: Instant) -> Instant {
    let granules = at.as_nanos().div_ceil(GRANULE_NANOS);
    Instant::from_nanos(granules.saturating_mul(GRANULE_NANOS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use mio::{Events, Poll};

    #[test]
    fn fires_not_early_and_again_after_each_set() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry(), Token(7)).unwrap();
        let mut events = Events::with_capacity(4);
        for _ in 0..3 {
            let deadline = clock::now() + Duration::from_micros(300);
            alarm.set(deadline).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(clock::now() >= deadline);
            assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(7)]);
            alarm.handle_fired();
        }
    }
}
