//! Batches of [`crate::im::Im`] whose writes are being done, here and at other nodes.
//!
//! A batch has SENDs to three conversations, of which node 3 owns one: it is complete when all have an outcome. Batches are
//! completed in the order of their submission, so that those of one conversation are.

use crate::im::store::{Committed, Outcome, Recipient, Ticket};
use std::collections::VecDeque;
use std::ops::Range;

/// Batches that are open; further ones are answered "busy".
pub(super) const BATCHES_MAX: usize = 64;

/// One write of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ticket: Ticket,
    pub(super) index: usize,
}

#[derive(Debug)]
struct Open {
    ticket: Ticket,
    outcomes: Vec<Option<Outcome>>,
    recipients: Vec<Recipient>,
    /// Writes without an outcome.
    missing: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batches(VecDeque<Open>);

impl Batches {
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < BATCHES_MAX
    }

    pub(super) fn begin(&mut self, ticket: Ticket, writes: usize) {
        let outcomes = (0..writes).map(|_| None).collect();
        self.0.push_back(Open { ticket, outcomes, recipients: Vec::new(), missing: writes });
    }

    /// Gives a write its outcome; a second one has no effect.
    pub(super) fn set(&mut self, place: Place, outcome: Outcome) {
        let Some(open) = self.0.iter_mut().find(|open| open.ticket == place.ticket) else { return };
        if let Some(slot) = open.outcomes.get_mut(place.index).filter(|slot| slot.is_none()) {
            *slot = Some(outcome);
            open.missing -= 1;
        }
    }

    /// Adds the receivers of a write to those of its batch; their positions are in streams of this node. Returns their places.
    pub(super) fn add(&mut self, ticket: Ticket, recipients: &[Recipient]) -> Range<usize> {
        let Some(open) = self.0.iter_mut().find(|open| open.ticket == ticket) else { return 0..0 };
        let first = open.recipients.len();
        open.recipients.extend_from_slice(recipients);
        first..open.recipients.len()
    }

    /// Takes the oldest batch if each of its writes has an outcome.
    pub(super) fn pop(&mut self) -> Option<(Ticket, Committed)> {
        self.0.front().filter(|open| open.missing == 0)?;
        let Open { ticket, outcomes, recipients, .. } = self.0.pop_front()?;
        Some((ticket, Committed { outcomes: outcomes.into_iter().flatten().collect(), recipients }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_complete_in_the_order_of_their_submission() {
        let (mut batches, first) = (Batches::default(), Ticket::FIRST);
        batches.begin(first, 2);
        batches.begin(first.next(), 1);
        let done = || Outcome::Done(Ok(None));
        batches.set(Place { ticket: first.next(), index: 0 }, done());
        assert!(batches.pop().is_none(), "the first is not complete");
        for index in [1, 0, 0] {
            batches.set(Place { ticket: first, index }, done());
        }
        let tickets: Vec<_> = std::iter::from_fn(|| Some(batches.pop()?.0)).collect();
        assert_eq!(tickets, [first, first.next()]);
    }
}
