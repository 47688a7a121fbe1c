//! An alarm for the client's deadline that also rings when the device slept through it (Linux and Android: a timer on
//! `CLOCK_BOOTTIME`). Elsewhere the poll's own time is all there is.

use super::clock::Clock;
use super::token::Source;
use mio::Registry;
use moorline_proto::time::Instant;
use std::io;

/// A timer in the client's poll.
#[derive(Debug)]
pub(super) struct Alarm {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    timer: nix::sys::timerfd::TimerFd,
    /// Deadline that the timer is set to; `None`: it is not set.
    set_to: Option<Instant>,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Alarm {
    /// Opens a timer and adds it to the poll.
    pub(super) fn open(registry: &Registry) -> io::Result<Self> {
        use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        let descriptor = timer.as_fd().as_raw_fd();
        let mut source = mio::unix::SourceFd(&descriptor);
        registry.register(&mut source, Source::Alarm.into(), mio::Interest::READABLE)?;
        Ok(Self { timer, set_to: None })
    }

    /// Sets the timer to a deadline; `None`: it does not ring.
    pub(super) fn set(&mut self, deadline: Option<Instant>, clock: &Clock) -> io::Result<()> {
        use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
        if self.set_to == deadline {
            return Ok(());
        }
        self.set_to = deadline;
        let Some(deadline) = deadline.filter(|at| *at < Instant::FAR_FUTURE) else {
            return Ok(self.timer.unset()?);
        };
        // Zero would unset the timer.
        let at = clock.reading(deadline).max(moorline_proto::time::Duration::from_nanos(1));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        Ok(self.timer.set(Expiration::OneShot(at.into()), flags)?)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unnecessary_wraps)] // as on Linux
impl Alarm {
    pub(super) fn open(_registry: &Registry) -> io::Result<Self> {
        Ok(Self { set_to: None })
    }

    pub(super) fn set(&mut self, deadline: Option<Instant>, _clock: &Clock) -> io::Result<()> {
        self.set_to = deadline;
        Ok(())
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use moorline_proto::time::Duration;

    #[test]
    fn the_alarm_rings_at_its_deadline_and_not_after_it_was_taken_back() {
        let mut poll = Poll::new().expect("a poll");
        let (mut events, clock) = (Events::with_capacity(2), Clock::new());
        let mut alarm = Alarm::open(poll.registry()).expect("a timer");
        let deadline = clock.now() + Duration::from_millis(20);
        alarm.set(Some(deadline), &clock).expect("set");
        while events.is_empty() {
            poll.poll(&mut events, None).expect("polls");
        }
        assert!(clock.now() >= deadline);
        alarm.set(Some(clock.now() + Duration::from_millis(20)), &clock).expect("set");
        alarm.set(None, &clock).expect("unset");
        poll.poll(&mut events, Some(Duration::from_millis(40))).expect("polls");
        assert!(events.is_empty());
    }
}
