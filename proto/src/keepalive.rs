//! Heartbeats: when the client must send, and when the server stops waiting (`docs/protocol.md` section 7).
//!
//! [`Heartbeat`] is one connection's schedule, [`Probe`] what a client learned about a network, and
//! [`server_patience`] the server's whole share of it.

use crate::random::Random;
use crate::time::{Duration, Instant, nanos_of};

/// Bounds of the interval, given by the server's WELCOME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Shortest interval.
    pub min: Duration,
    /// Longest interval.
    pub max: Duration,
}

impl Bounds {
    /// The nearest interval within; `min` if the two are the wrong way round.
    pub fn clamp(self, interval: Duration) -> Duration {
        interval.min(self.max).max(self.min)
    }
}

/// Time that a server waits for a client that promised a frame within `interval`: 1.5 times that [P-7.2].
pub fn server_patience(interval: Duration) -> Duration {
    interval + interval / 2
}

/// The client's schedule: a PING after one idle interval. The first one comes early, after a random
/// part of the interval, so that clients that connected together do not beat together [P-7.3].
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Interval that the next PING promises.
    interval: Duration,
    /// Interval that the last PING promised.
    promised: Duration,
    next: Instant,
}

impl Heartbeat {
    /// Starts after WELCOME, at `now`, with the bounds' minimum.
    pub fn new(bounds: Bounds, now: Instant, random: &mut Random) -> Self {
        let first = Duration::from_nanos(random.below(nanos_of(bounds.min)));
        Self { interval: bounds.min, promised: bounds.min, next: now + first }
    }

    /// A frame was sent: the next beat is one interval away. For a PING, [`Self::beat`].
    pub fn sent(&mut self, now: Instant) {
        self.next = now + self.promised.min(self.interval);
    }

    /// A PING goes out now: returns the promise that it carries [P-7.1].
    pub fn beat(&mut self, now: Instant) -> Duration {
        self.promised = self.interval;
        self.next = now + self.interval;
        self.interval
    }

    /// Chooses another interval, within the bounds of WELCOME. A longer one is in force from the next
    /// PING on, because the server must know of it first; a shorter one at once.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.interval = interval;
        self.next = self.next.min(now + interval);
    }

    /// Time of the next PING.
    pub const fn deadline(&self) -> Instant {
        self.next
    }

    /// The promise that PING carries.
    pub const fn interval(&self) -> Duration {
        self.interval
    }
}

/// Visibility of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attention {
    /// A person looks at it: beat at the minimum, so that a dead connection is noticed soon.
    Foreground,
    /// In the background: beat as seldom as the network allows.
    Background,
}

/// Successes after which a longer interval is tried.
const SUCCESSES_PER_STEP: u8 = 5;
/// Failures in a row that end the search; once it has ended, the same number means that the network
/// has changed, and the search starts again.
const FAILURES_MAX: u8 = 2;
/// Step by which a longer interval is tried.
const STEP: Duration = Duration::from_secs(60);
/// Margin below the longest proven interval, kept when the search has ended.
const MARGIN: Duration = Duration::from_secs(20);

/// A client's estimate of the time that a network's middleboxes keep a silent connection [P-7.6].
///
/// An estimate outlives connections: keep one per network, and start a new one after a week.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    bounds: Bounds,
    /// Tried now.
    interval: Duration,
    /// The longest that worked.
    proven: Duration,
    successes: u8,
    failures: u8,
    is_settled: bool,
}

impl Probe {
    /// Nothing learned.
    pub const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            interval: bounds.min,
            proven: bounds.min,
            successes: 0,
            failures: 0,
            is_settled: false,
        }
    }

    /// The interval to use.
    pub const fn interval(&self, attention: Attention) -> Duration {
        match attention {
            Attention::Foreground => self.bounds.min,
            Attention::Background => self.interval,
        }
    }

    /// True when no longer interval will be tried.
    pub const fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// A background PING that followed a whole silent interval was answered.
    pub fn on_pong(&mut self) {
        self.failures = 0;
        if self.is_settled {
            return;
        }
        self.successes = self.successes.saturating_add(1);
        if self.successes >= SUCCESSES_PER_STEP {
            self.successes = 0;
            self.proven = self.interval;
            self.interval = self.bounds.clamp(self.interval + STEP);
        }
    }

    /// A background PING that followed a whole silent interval found the connection dead.
    pub fn on_dead(&mut self) {
        self.successes = 0;
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return;
        }
        if self.is_settled {
            *self = Self::new(self.bounds);
        } else {
            (self.is_settled, self.failures) = (true, 0);
            self.interval = self.bounds.clamp(self.proven.saturating_sub(MARGIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: Duration::from_secs(30), max: Duration::from_secs(300) };

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn the_first_beat_is_spread_over_the_interval() {
        let mut random = Random::new(1);
        let firsts: std::vec::Vec<_> =
            (0..1000).map(|_| Heartbeat::new(BOUNDS, at(100), &mut random).deadline()).collect();
        assert!(firsts.iter().all(|first| (at(100)..at(130)).contains(first)));
        for third in 0..3 {
            let range = at(100 + third * 10)..at(110 + third * 10);
            let count = firsts.iter().filter(|first| range.contains(first)).count();
            assert!((250..450).contains(&count), "{count} of 1000 in each third");
        }
    }

    #[test]
    fn a_longer_interval_waits_for_its_promise_and_a_shorter_one_does_not() {
        let mut beat = Heartbeat::new(BOUNDS, at(0), &mut Random::new(1));
        assert_eq!(beat.beat(at(10)), Duration::from_secs(30));
        beat.set_interval(Duration::from_secs(90), at(20));
        assert_eq!(beat.deadline(), at(40));
        beat.sent(at(25));
        assert_eq!(beat.deadline(), at(55), "the server still counts on 30 s");
        assert_eq!(beat.beat(at(55)), Duration::from_secs(90));
        assert_eq!(beat.deadline(), at(145));
        beat.set_interval(Duration::from_secs(30), at(60));
        assert_eq!((beat.deadline(), beat.interval()), (at(90), Duration::from_secs(30)));
        beat.sent(at(70));
        assert_eq!(beat.deadline(), at(100));
        assert_eq!(server_patience(Duration::from_secs(30)), Duration::from_secs(45));
    }

    #[test]
    fn the_probe_climbs_fails_twice_and_stays_below_what_worked() {
        let mut probe = Probe::new(BOUNDS);
        (0..10).for_each(|_| probe.on_pong());
        assert_eq!(probe.interval(Attention::Background), Duration::from_secs(150));
        assert_eq!(probe.interval(Attention::Foreground), BOUNDS.min);
        probe.on_dead();
        (0..4).for_each(|_| probe.on_pong());
        probe.on_dead();
        assert!(!probe.is_settled(), "not in a row");
        probe.on_dead();
        assert_eq!(
            (probe.is_settled(), probe.interval(Attention::Background)),
            (true, Duration::from_secs(70))
        );
        (0..50).for_each(|_| probe.on_pong());
        assert_eq!(probe.interval(Attention::Background), Duration::from_secs(70));
        probe.on_dead();
        probe.on_pong();
        probe.on_dead();
        assert!(probe.is_settled(), "not in a row");
        probe.on_dead();
        assert_eq!((probe.is_settled(), probe.interval(Attention::Background)), (false, BOUNDS.min));
    }

    #[test]
    fn the_probe_stays_within_the_bounds() {
        let mut probe = Probe::new(BOUNDS);
        (0..100).for_each(|_| probe.on_pong());
        assert_eq!(probe.interval(Attention::Background), BOUNDS.max);
        let mut probe = Probe::new(BOUNDS);
        (0..2).for_each(|_| probe.on_dead());
        assert_eq!(probe.interval(Attention::Background), BOUNDS.min);
    }
}
