//! A log line that strangers can cause, at most once in a while.
//!
//! Example: a scanner sends a thousand requests without a token. The first one is logged at once; 10 s later the
//! next one is logged, with the number of those between them.

use crate::clock::Clock;
use moorline_proto::time::{Duration, Instant};
use std::sync::{Mutex, PoisonError};

/// Shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Rate limit of one kind of log line. Shared by threads.
#[derive(Debug, Default)]
pub struct LogRate {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Time of the next line; `None`: no line was logged yet.
    next: Option<Instant>,
    /// Lines left out since the last one.
    left_out: u64,
}

impl LogRate {
    /// Asks for a line. Returns the number of lines that were left out before it; `None`: leave this one out.
    pub fn try_pass(&self) -> Option<u64> {
        let now = self.clock.now();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).try_pass(now)
    }
}

impl State {
    fn try_pass(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.left_out += 1;
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_says_how_many_there_were() {
        let mut state = State::default();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        assert_eq!(state.try_pass(at(0)), Some(0));
        assert_eq!((state.try_pass(at(1)), state.try_pass(at(9))), (None, None));
        assert_eq!(state.try_pass(at(10)), Some(2));
        assert_eq!((state.try_pass(at(11)), state.try_pass(at(30))), (None, Some(1)));
    }
}
