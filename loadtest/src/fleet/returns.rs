//! Reconnects of clients that lost their connection: like the SDK, with full jitter and never before
//! the server allows it.

use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A client waits a random part of `first`, doubled with each try in vain up to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnRule {
    /// Longest wait before the first try.
    pub first: Duration,
    /// Longest wait of all.
    pub most: Duration,
}

impl Default for ReturnRule {
    /// The SDK's.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), most: Duration::from_secs(30) }
    }
}

impl ReturnRule {
    fn wait(self, tries: u8, part: f64) -> Duration {
        let longest = self.first.saturating_mul(1 << tries.min(16)).min(self.most);
        longest.mul_f64(part.clamp(0.0, 1.0))
    }
}

fn random_part() -> f64 {
    f64::from(getrandom::u32().expect("the kernel has random bytes")) / f64::from(u32::MAX)
}

/// Clients by when they come back.
#[derive(Debug, Default)]
pub(super) struct Returns(BinaryHeap<Reverse<(Instant, u32)>>);

impl Returns {
    /// `who` tries again: after what the server asked for (`at_least`), and a random part of what the rule says.
    pub(super) fn add(&mut self, rule: ReturnRule, who: u32, tries: u8, at_least: Duration, now: Instant) {
        self.0.push(Reverse((now + at_least + rule.wait(tries, random_part()), who)));
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Option<u32> {
        let Reverse((at, who)) = *self.0.peek()?;
        (at <= now).then(|| {
            self.0.pop();
            who
        })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }
}

/// Clients that were asked to leave, by when they do.
#[derive(Debug, Default)]
pub(super) struct Departures(BinaryHeap<Reverse<(Instant, Instant, u32)>>);

impl Departures {
    /// `who` was asked now to leave within `window`, and does so at a random moment of it.
    pub(super) fn add(&mut self, who: u32, window: Duration, now: Instant) {
        self.0.push(Reverse((now + window.mul_f64(random_part()), now, who)));
    }

    /// Next client to leave, with the time of its GOAWAY.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(u32, Instant)> {
        let Reverse((at, asked, who)) = *self.0.peek()?;
        (at <= now).then(|| {
            self.0.pop();
            (who, asked)
        })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, ..))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let rule = ReturnRule::default();
        let waits = [0, 1, 2, 6, 200].map(|tries| rule.wait(tries, 1.0).as_millis());
        assert_eq!(waits, [500, 1_000, 2_000, 30_000, 30_000]);
        assert_eq!(rule.wait(3, 0.0), Duration::ZERO);
    }

    #[test]
    fn nobody_comes_before_the_server_allows_it() {
        let (mut returns, now) = (Returns::default(), Instant::from_nanos(9));
        returns.add(ReturnRule::default(), 7, 0, Duration::from_secs(3), now);
        assert!(returns.deadline().unwrap() >= now + Duration::from_secs(3));
        assert_eq!(returns.take_due(now + Duration::from_secs(2)), None);
        assert_eq!(returns.take_due(now + Duration::from_secs(4)), Some(7));
        assert_eq!(returns.take_due(now + Duration::from_secs(4)), None);
    }
}
