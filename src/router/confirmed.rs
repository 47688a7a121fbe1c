//! Frames of a link that the backend has read for certain, slot by slot. Pure.
//!
//! An answer proves that its question and all frames before it were read, and so does the PONG of a *barrier*, a PING
//! of its own number. Two rules rest on it, because frames of two links are read in any order, or not at all:
//!
//! - A slot leaves a link that lives only when everything that was sent of the slot there has been read. Else a login
//!   could be read after its end, and would never end.
//! - The end of a login is kept until it has been read. When the link dies before, it is told again on the next one:
//!   the link that the backend believes to speak for the session may be another one, which lives.

use super::{Slot, SlotSet, Split};
use moorline_proto::ids::ConnKey;
use std::collections::VecDeque;

/// Ends of logins that one link keeps; further ends wait in their lines.
const ENDS_MAX: usize = 8192;
/// A barrier is sent at each multiple of this many ends.
const ENDS_PER_BARRIER: usize = 1024;

/// The end of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) slot: Slot,
    pub(super) key: ConnKey,
    /// Close code; 0: the client left without one.
    pub(super) code: u32,
}

/// Position of a frame on its link.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// The first question that is not before the frame.
    question: u64,
    /// The first barrier behind the frame.
    barrier: u64,
}

/// Positions of one connection.
#[derive(Debug)]
pub(super) struct Confirmed {
    /// Last frame of each slot.
    last: Box<[Position]>,
    /// Largest number of a question that was answered, and of a barrier.
    read: Position,
    /// Barriers that were sent.
    barriers: u64,
    /// Ends that may not have been read, in the order in which they were sent.
    ends: VecDeque<(Position, End)>,
}

impl Confirmed {
    /// A connection on which nothing was sent.
    pub(super) fn new(split: Split) -> Self {
        let start = Position { question: 0, barrier: 0 };
        Self { last: vec![start; split.slots()].into(), read: start, barriers: 0, ends: VecDeque::new() }
    }

    /// A connection that another process has spoken on, up to this question and this barrier: nothing is known to
    /// have been read.
    pub(super) fn thaw(
        split: Split,
        next_question: u64,
        barriers: u64,
        ends: impl Iterator<Item = End>,
    ) -> Self {
        let last = Position { question: next_question, barrier: barriers + 1 };
        let ends = ends.map(|end| (last, end)).collect();
        // Whether the last barrier was answered is not known, and does not matter: it proves nothing of `last`.
        let read = Position { question: 0, barrier: barriers };
        Self { last: vec![last; split.slots()].into(), read, barriers, ends }
    }

    /// Number of the last barrier, for the snapshot.
    pub(super) const fn barriers(&self) -> u64 {
        self.barriers
    }

    /// A frame of this slot is sent now. `question`: its own number, or that of the next question.
    pub(super) fn on_sent(&mut self, slot: Slot, question: u64) {
        self.last[slot.index()] = Position { question, barrier: self.barriers + 1 };
    }

    /// True if one more end may be confirmed.
    pub(super) fn has_room_for_end(&self) -> bool {
        self.ends.len() < ENDS_MAX
    }

    /// A login's end is sent now, before the question of this number.
    pub(super) fn on_end(&mut self, end: End, question: u64) {
        self.on_sent(end.slot, question);
        self.ends.push_back((self.last[end.slot.index()], end));
    }

    /// Ends that may not have been read, in order.
    pub(super) fn ends(&self) -> impl ExactSizeIterator<Item = End> {
        self.ends.iter().map(|(_, end)| *end)
    }

    /// True if [`ENDS_PER_BARRIER`] ends wait and no barrier is under way.
    pub(super) fn wants_barrier(&self) -> bool {
        self.ends.len() >= ENDS_PER_BARRIER && self.barriers <= self.read.barrier
    }

    /// The backend answered this question.
    pub(super) fn on_answer(&mut self, question: u64) {
        self.read.question = self.read.question.max(question);
        self.forget_ends();
    }

    /// The backend answered a PING of this number.
    pub(super) fn on_pong(&mut self, number: u64) {
        if number <= self.barriers {
            self.read.barrier = self.read.barrier.max(number);
            self.forget_ends();
        }
    }

    fn forget_ends(&mut self) {
        while self.ends.front().is_some_and(|(at, _)| self.is_read(*at)) {
            self.ends.pop_front();
        }
        if self.ends.is_empty() {
            self.ends.shrink_to(ENDS_PER_BARRIER);
        }
    }

    const fn is_read(&self, at: Position) -> bool {
        at.question <= self.read.question || at.barrier <= self.read.barrier
    }

    /// Number of a new barrier; `None`: the last one is not answered yet.
    pub(super) fn next_barrier(&mut self) -> Option<u64> {
        if self.barriers > self.read.barrier {
            return None;
        }
        self.barriers += 1;
        Some(self.barriers)
    }

    /// Those of `slots` of which something may not have been read.
    pub(super) fn unconfirmed(&self, slots: SlotSet) -> SlotSet {
        let mut unconfirmed = SlotSet::EMPTY;
        for slot in slots.iter() {
            if !self.is_read(self.last[slot.index()]) {
                unconfirmed.insert(slot);
            }
        }
        unconfirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(numbers: &[u32]) -> SlotSet {
        let mut set = SlotSet::EMPTY;
        numbers
            .iter()
            .for_each(|number| _ = set.insert(Slot::from_number((*number).into()).expect("below 64")));
        set
    }

    fn end(slot: u32) -> End {
        End { slot: Slot::from_number(slot.into()).expect("below 64"), key: ConnKey::from_u64(1), code: 0 }
    }

    #[test]
    fn an_answer_proves_what_was_sent_before_its_question() {
        let (mut confirmed, all) = (Confirmed::new(Split::Plain), slots(&[1, 2, 3]));
        assert!(confirmed.unconfirmed(all).is_empty());
        confirmed.on_sent(Slot::from_number(1).expect("a slot"), 1); // a login
        confirmed.on_sent(Slot::from_number(2).expect("a slot"), 1); // question 1
        confirmed.on_sent(Slot::from_number(3).expect("a slot"), 2); // another login
        confirmed.on_answer(1);
        assert_eq!(
            confirmed.unconfirmed(all),
            slots(&[3]),
            "the login before question 1 was read, that behind it not"
        );
    }

    #[test]
    fn a_barrier_proves_what_was_sent_before_it_and_nothing_later() {
        let (mut confirmed, all) = (Confirmed::new(Split::Plain), slots(&[1, 2]));
        confirmed.on_sent(Slot::from_number(1).expect("a slot"), 1);
        assert_eq!(confirmed.next_barrier(), Some(1));
        assert_eq!(confirmed.next_barrier(), None, "one at a time");
        confirmed.on_sent(Slot::from_number(2).expect("a slot"), 1);
        confirmed.on_pong(7); // of nobody's PING
        assert_eq!(confirmed.unconfirmed(all), slots(&[1, 2]));
        confirmed.on_pong(1);
        assert_eq!(confirmed.unconfirmed(all), slots(&[2]));
    }

    #[test]
    fn the_answer_to_a_barrier_of_the_process_before_proves_nothing() {
        let (mut confirmed, all) =
            (Confirmed::thaw(Split::Plain, 5, 3, std::iter::once(end(1))), slots(&[1]));
        confirmed.on_pong(3);
        assert_eq!((confirmed.unconfirmed(all), confirmed.ends().count()), (slots(&[1]), 1));
        let barrier = confirmed.next_barrier().expect("a barrier is free");
        confirmed.on_pong(barrier);
        assert!(confirmed.unconfirmed(all).is_empty() && confirmed.ends().count() == 0);
    }

    #[test]
    fn a_connection_of_the_process_before_can_be_asked_though_its_last_barrier_was_answered() {
        let mut confirmed = Confirmed::thaw(Split::Plain, 5, 3, std::iter::once(end(1)));
        let barrier = confirmed.next_barrier().expect("a barrier is free");
        confirmed.on_pong(3); // late, of the process before
        assert_eq!(confirmed.ends().len(), 1);
        confirmed.on_pong(barrier);
        assert!(confirmed.unconfirmed(slots(&[1])).is_empty() && confirmed.ends().len() == 0);
    }

    #[test]
    fn ends_are_kept_until_they_were_read_and_are_bounded() {
        let mut confirmed = Confirmed::new(Split::Plain);
        confirmed.on_end(end(1), 1);
        confirmed.on_end(end(2), 2);
        confirmed.on_answer(1);
        assert_eq!(confirmed.ends().collect::<Vec<_>>(), [end(2)]);
        for _ in 1..ENDS_MAX {
            confirmed.on_end(end(3), 2);
        }
        assert!(confirmed.wants_barrier() && !confirmed.has_room_for_end());
        let barrier = confirmed.next_barrier().expect("a barrier is free");
        assert!(!confirmed.wants_barrier(), "one at a time");
        confirmed.on_pong(barrier);
        assert!(confirmed.has_room_for_end() && confirmed.ends().count() == 0);
    }
}
