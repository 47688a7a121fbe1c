//! Acks that clients owe, and when each is due [P-6.3].
//!
//! Example: alice gets a delivery at 0 ms and one at 150 ms, so her ack is due at 200 ms. She sends a message at 180 ms, which
//! carries it: at 200 ms there is nothing left to acknowledge, and what comes at 190 ms has until 390 ms.

use crate::dialect::Numbered;
use moorline_proto::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// Deliveries before an ack of its own; more of them if all are on the lanes of groups.
const SOON_MAX: u8 = 8;
const LATE_MAX: u8 = 16;
/// Longest wait of an ack, and of one for deliveries that are all on the lanes of groups.
const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_secs(1);

/// Deliveries that one client has handled and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Debt {
    count: u8,
    /// One of them is on another lane than those of groups.
    is_urgent: bool,
}

impl Debt {
    /// Returns whether nothing is owed.
    pub(super) const fn is_none(self) -> bool {
        self.count == 0
    }

    /// Number of the last delivery that is acknowledged, of those up to `heard`.
    pub(super) const fn acked(self, heard: u32) -> u32 {
        heard.saturating_sub(self.count as u32)
    }

    /// Returns whether an ack is due, whatever the time.
    pub(super) const fn is_large(self) -> bool {
        self.count >= if self.is_urgent { SOON_MAX } else { LATE_MAX }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Instant,
    who: u32,
    /// The delivery whose ack is due.
    seq: u32,
}

/// Acks of all clients of one loop, by when they are due. An ack that went out before leaves its entry behind.
#[derive(Debug, Default)]
pub(super) struct Acks {
    soon: VecDeque<Entry>,
    late: VecDeque<Entry>,
}

impl Acks {
    /// Notes a delivery that a client has handled.
    pub(super) fn note(&mut self, now: Instant, who: u32, debt: &mut Debt, delivery: Numbered) {
        let Numbered { seq, may_wait } = delivery;
        if !may_wait && !debt.is_urgent {
            debt.is_urgent = true;
            self.soon.push_back(Entry { at: now + SOON, who, seq });
        } else if debt.is_none() {
            self.late.push_back(Entry { at: now + LATE, who, seq });
        }
        debt.count = debt.count.saturating_add(1);
    }

    /// Time of the next ack.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [&self.soon, &self.late].into_iter().filter_map(VecDeque::front).map(|entry| entry.at).min()
    }

    /// Takes a client whose ack may be due, with the delivery that it is for.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(u32, u32)> {
        let is_due = |queue: &&mut VecDeque<Entry>| queue.front().is_some_and(|entry| entry.at <= now);
        let entry = [&mut self.soon, &mut self.late].into_iter().find(is_due)?.pop_front()?;
        Some((entry.who, entry.seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    const fn delivery(seq: u32, may_wait: bool) -> Numbered {
        Numbered { seq, may_wait }
    }

    #[test]
    fn deliveries_of_groups_wait_longer_and_others_do_not() {
        let (mut acks, mut debt) = (Acks::default(), Debt::default());
        acks.note(at(0), 3, &mut debt, delivery(1, true));
        acks.note(at(10), 3, &mut debt, delivery(2, true));
        assert_eq!(acks.deadline(), Some(at(1_000)));
        acks.note(at(20), 3, &mut debt, delivery(3, false));
        acks.note(at(30), 3, &mut debt, delivery(4, false));
        assert_eq!((acks.deadline(), acks.take_due(at(219))), (Some(at(220)), None));
        assert_eq!(acks.take_due(at(220)), Some((3, 3)));
        assert_eq!(acks.take_due(at(1_000)), Some((3, 1)));
        assert_eq!((acks.take_due(at(9_000)), acks.deadline()), (None, None));
    }

    #[test]
    fn a_debt_is_large_after_eight_or_sixteen_of_groups() {
        for (may_wait, most) in [(false, 8), (true, 16)] {
            let (mut acks, mut debt) = (Acks::default(), Debt::default());
            for seq in 1..=most {
                assert!(!debt.is_large(), "{seq}");
                acks.note(at(0), 1, &mut debt, delivery(seq, may_wait));
            }
            assert!(debt.is_large());
        }
    }
}
