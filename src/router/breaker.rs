//! True if an endpoint that is connected also answers. Pure.
//!
//! ```text
//! Closed --too many timeouts--> Open --time--> Trial --answers, or a calm--> Closed
//!                                ^                |
//!                                +--- a timeout --+
//! ```
//!
//! An endpoint that cannot be reached needs no breaker: its links wait longer and longer
//! ([`Backoff`](super::Backoff)). This one is for those that take questions and are silent: their users
//! go elsewhere, and only a few come back to see whether it answers again.

use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant, nanos_of};

/// Window in which timeouts and answers count together; up to twice as long.
const WINDOW: Duration = Duration::from_secs(5);
/// Fewer timeouts than this say nothing.
const TIMEOUTS_MIN: u32 = 8;
/// Rest of an open breaker, half of it at least; twice as long each time a trial fails.
const OPEN_FIRST: Duration = Duration::from_secs(2);
/// And at most for this.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// Answers that pass a trial.
const TRIAL_ANSWERS: u32 = 16;
/// Without a question a trial is passed after this.
const TRIAL_CALM: Duration = Duration::from_secs(10);

/// Share of users that an endpoint may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The full share.
    Full,
    /// A few, to see.
    Trial,
    /// No users.
    Nothing,
}

/// The breaker of one endpoint.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    seen: Window,
    /// Trips since it was last closed.
    trips: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    Trial {
        since: Instant,
        answers: u32,
    },
}

/// Two halves of a sliding window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began: Instant,
    now: (u32, u32),
    before: (u32, u32),
}

impl Window {
    /// Answers and timeouts.
    fn count(&mut self, at: Instant, answers: u32, timeouts: u32) -> (u32, u32) {
        let age = at.saturating_since(self.began);
        if age >= WINDOW {
            self.before = if age < WINDOW * 2 { self.now } else { (0, 0) };
            self.now = (0, 0);
            self.began = at;
        }
        self.now = (self.now.0.saturating_add(answers), self.now.1.saturating_add(timeouts));
        (self.now.0.saturating_add(self.before.0), self.now.1.saturating_add(self.before.1))
    }
}

impl Breaker {
    /// A question was answered. True: the trial is passed by it.
    pub fn on_answer(&mut self, now: Instant) -> bool {
        self.begin_trial(now);
        self.seen.count(now, 1, 0);
        let State::Trial { answers, .. } = &mut self.state else { return false };
        *answers += 1;
        let is_passed = *answers >= TRIAL_ANSWERS;
        if is_passed {
            self.close();
        }
        is_passed
    }

    /// A question had no answer in time. True: leave the endpoint alone ([`Self::trip`]), if there is
    /// another one.
    #[must_use]
    pub fn on_timeout(&mut self, now: Instant) -> bool {
        self.begin_trial(now);
        let (answers, timeouts) = self.seen.count(now, 0, 1);
        match self.state {
            State::Closed => timeouts >= TIMEOUTS_MIN && timeouts >= answers,
            State::Trial { .. } => true,
            State::Open { .. } => false,
        }
    }

    /// Leaves the endpoint alone. Returns until when.
    pub fn trip(&mut self, now: Instant, random: &mut Random) -> Instant {
        let longest = nanos_of(OPEN_FIRST).saturating_mul(1 << self.trips.min(16)).min(nanos_of(OPEN_MAX));
        let until = now + Duration::from_nanos(longest / 2 + random.below(longest / 2));
        self.trips += 1;
        self.seen = Window::default();
        self.state = State::Open { until };
        until
    }

    /// Closes the breaker, because there is no other endpoint. True: it was open.
    pub fn force(&mut self, now: Instant) -> bool {
        let is_open = matches!(self.state, State::Open { .. });
        if is_open {
            self.state = State::Trial { since: now, answers: 0 };
        }
        is_open
    }

    /// Share of users that the endpoint may have.
    pub fn share(&mut self, now: Instant) -> Share {
        self.begin_trial(now);
        match self.state {
            State::Trial { since, .. } if now.saturating_since(since) >= TRIAL_CALM => {
                self.close();
                Share::Full
            }
            State::Closed => Share::Full,
            State::Trial { .. } => Share::Trial,
            State::Open { .. } => Share::Nothing,
        }
    }

    fn begin_trial(&mut self, now: Instant) {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.state = State::Trial { since: now, answers: 0 };
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.trips = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    /// Number of timeouts that open the breaker.
    fn timeouts(breaker: &mut Breaker, now: Instant) -> u32 {
        (1..100).find(|_| breaker.on_timeout(now)).expect("it trips")
    }

    #[test]
    fn silence_trips_and_a_slow_answer_among_many_does_not() {
        let mut breaker = Breaker::default();
        assert_eq!(timeouts(&mut breaker, at(0)), TIMEOUTS_MIN);
        let mut breaker = Breaker::default();
        for i in 0..10_000 {
            breaker.on_answer(at(i * 10));
            assert!(i % 3 > 0 || !breaker.on_timeout(at(i * 10)), "a third is not most");
        }
        let mut breaker = Breaker::default();
        for i in 0..1_000 {
            assert!(!breaker.on_timeout(at(i * 3_000)), "rare ones do not add up");
        }
    }

    #[test]
    fn a_trial_is_passed_by_answers_or_calm_and_failed_by_one_timeout() {
        let (mut breaker, mut random) = (Breaker::default(), Random::new(1));
        let mut now = at(0);
        timeouts(&mut breaker, now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let until = breaker.trip(now, &mut random);
            pauses.push(until.saturating_since(now));
            assert_eq!(breaker.share(now), Share::Nothing);
            assert!(!breaker.on_timeout(now), "what was asked before says nothing new");
            now = until;
            assert_eq!(breaker.share(now), Share::Trial);
            assert!(breaker.on_timeout(now));
        }
        assert!(pauses[0] >= OPEN_FIRST / 2 && pauses[0] <= OPEN_FIRST, "{pauses:?}");
        assert!(pauses[7] >= OPEN_MAX / 2 && pauses[7] <= OPEN_MAX, "{pauses:?}");
        now = breaker.trip(now, &mut random);
        assert!((1..TRIAL_ANSWERS).all(|_| !breaker.on_answer(now)));
        assert!(breaker.on_answer(now) && breaker.share(now) == Share::Full);
        assert_eq!(timeouts(&mut breaker, at(900_000)), TIMEOUTS_MIN, "one is not enough any more");
        now = breaker.trip(at(900_000), &mut random);
        assert_eq!(breaker.share(now), Share::Trial);
        assert_eq!(breaker.share(now + TRIAL_CALM), Share::Full);
    }

    #[test]
    fn the_last_endpoint_is_taken_as_it_is() {
        let (mut breaker, mut random) = (Breaker::default(), Random::new(1));
        assert!(!breaker.force(at(0)));
        breaker.trip(at(0), &mut random);
        assert!(breaker.force(at(1)));
        assert_eq!(breaker.share(at(1)), Share::Trial);
    }
}
