//! The messages of a chat in an open loop: sender, time and conversation of each, at a fixed rate. Pure.

use crate::roster::Roster;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use std::time::Duration;

/// One of this many messages goes to a group.
const GROUP_EVERY: u64 = 10;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// One message to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Utterance {
    pub(crate) device: u32,
    /// Index among the device's seats.
    pub(crate) seat: usize,
    /// Time at which the message is meant to be sent, whatever happened to the ones before it.
    pub(crate) intended: Instant,
}

/// The messages of one chat, in order of their moments.
#[derive(Debug)]
pub(crate) struct Traffic {
    start: Instant,
    rate: u64,
    total: u64,
    next: u64,
    random: Random,
}

impl Traffic {
    pub(crate) fn new(start: Instant, duration: Duration, rate: u32, seed: u64) -> Self {
        let rate = u64::from(rate.max(1));
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let total = nanos / NANOS_PER_SECOND * rate + nanos % NANOS_PER_SECOND * rate / NANOS_PER_SECOND;
        Self { start, rate, total, next: 0, random: Random::new(seed) }
    }

    /// Time of the next message; `None`: all were taken.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (self.next < self.total).then(|| self.time_of(self.next))
    }

    /// End of the chat.
    pub(crate) fn end(&self) -> Instant {
        self.time_of(self.total)
    }

    /// Has the chat go on at the same rate until `end` at least.
    pub(crate) fn extend_to(&mut self, end: Instant) {
        let longer = end.saturating_since(self.end());
        let nanos = u64::try_from(longer.as_nanos()).unwrap_or(u64::MAX);
        self.total += nanos / NANOS_PER_SECOND * self.rate
            + (nanos % NANOS_PER_SECOND * self.rate).div_ceil(NANOS_PER_SECOND);
    }

    fn time_of(&self, number: u64) -> Instant {
        let seconds = Duration::from_secs(number / self.rate);
        self.start + seconds + Duration::from_nanos(number % self.rate * NANOS_PER_SECOND / self.rate)
    }

    /// The next message if its moment has come.
    pub(crate) fn take_due(&mut self, now: Instant, roster: &Roster) -> Option<Utterance> {
        let intended = self.deadline().filter(|due| *due <= now)?;
        self.next += 1;
        let device = self.random.below(roster.devices.len() as u64);
        let device = u32::try_from(device).expect("devices are numbered so");
        // The group is the last seat; a user without partner has no other.
        let last = roster.device(device).seats.len() - 1;
        let seat = if self.random.one_in(GROUP_EVERY) { last } else { 0 };
        Some(Utterance { device, seat, intended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(5_000_000_000);

    #[test]
    fn moments_are_even_and_a_stall_does_not_move_them() {
        let roster = Roster::new(50, 1);
        let mut traffic = Traffic::new(START, Duration::from_millis(2_500), 300, 1);
        assert_eq!(traffic.take_due(START, &roster).map(|said| said.intended), Some(START));
        assert_eq!(traffic.take_due(START, &roster), None, "the second is 3.3 ms away");
        let late = START + Duration::from_secs(60);
        let rest: Vec<_> = std::iter::from_fn(|| traffic.take_due(late, &roster)).collect();
        assert_eq!(rest.len(), 749);
        assert_eq!(rest[299].intended, START + Duration::from_secs(1));
        assert!(rest.windows(2).all(|two| two[0].intended < two[1].intended));
        assert_eq!(traffic.deadline(), None);
        traffic.extend_to(START);
        assert_eq!((traffic.deadline(), traffic.end()), (None, START + Duration::from_millis(2_500)));
        traffic.extend_to(START + Duration::from_millis(2_999));
        assert_eq!(traffic.deadline(), Some(START + Duration::from_millis(2_500)));
        assert_eq!(traffic.end(), START + Duration::from_secs(3));
    }

    #[test]
    fn some_go_to_groups_and_the_seed_decides_all() {
        let roster = Roster::new(100, 1);
        let said = |seed| -> Vec<Utterance> {
            let mut traffic = Traffic::new(START, Duration::from_secs(10), 100, seed);
            std::iter::from_fn(|| traffic.take_due(Instant::FAR_FUTURE, &roster)).collect()
        };
        let to_groups = said(3).iter().filter(|said| said.seat == 1).count();
        assert!((50..200).contains(&to_groups), "{to_groups} of 1,000");
        assert_eq!(said(3), said(3));
        assert_ne!(said(3), said(4));
    }
}
