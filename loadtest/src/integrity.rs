//! Lost, duplicated, reordered: judged message by message, in every run.
//!
//! [`Flight`] judges the answers to one client's numbered messages, [`Arrivals`] the messages that
//! one client gets from one other. Both are pure; [`Tally`] adds them up.

use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};

/// Meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The first for its cid, no later cid was answered before.
    InOrder {
        /// Time at which the message left.
        sent_at: Instant,
    },
    /// The first for its cid, but a later cid was answered before.
    Overtaken {
        /// Time at which the message left.
        sent_at: Instant,
    },
    /// The cid was answered already.
    Again,
    /// The cid was never sent.
    Unknown,
}

/// The unanswered messages of one client; cids are dense from 1.
#[derive(Clone, Debug, Default)]
pub struct Flight {
    /// cid `first + i` left at `sent_at[i]`; `FAR_FUTURE` marks one that has its answer.
    sent_at: VecDeque<Instant>,
    answered_before: u32,
    highest: u32,
}

const ANSWERED: Instant = Instant::FAR_FUTURE;

impl Flight {
    /// A message leaves: its cid.
    pub fn send(&mut self, now: Instant) -> u32 {
        self.sent_at.push_back(now);
        self.sent()
    }

    /// The highest cid that left.
    pub fn sent(&self) -> u32 {
        self.answered_before + self.span()
    }

    /// Cids from the oldest unanswered one to the newest: what a window of the receiver counts.
    #[allow(clippy::cast_possible_truncation)] // bounded by the window
    pub fn span(&self) -> u32 {
        self.sent_at.len() as u32
    }

    /// The cids without an answer.
    pub fn unanswered(&self) -> impl Iterator<Item = u32> {
        let first = self.answered_before + 1;
        (first..).zip(&self.sent_at).filter(|(_, at)| **at != ANSWERED).map(|(cid, _)| cid)
    }

    /// Time at which an unanswered cid left.
    pub fn sent_at(&self, cid: u32) -> Option<Instant> {
        let place = cid.checked_sub(self.answered_before + 1)?;
        self.sent_at.get(place as usize).copied().filter(|at| *at != ANSWERED)
    }

    /// Judges the answer to `cid`. Only those that took their message (`is_done`) have an order: RETRY is given at once, while
    /// earlier messages wait [P-5.7].
    pub fn answer(&mut self, cid: u32, is_done: bool) -> Answer {
        if cid == 0 || cid > self.sent() {
            return Answer::Unknown;
        }
        let Some(place) = cid.checked_sub(self.answered_before + 1) else { return Answer::Again };
        let sent_at = std::mem::replace(&mut self.sent_at[place as usize], ANSWERED);
        if sent_at == ANSWERED {
            return Answer::Again;
        }
        while self.sent_at.front() == Some(&ANSWERED) {
            self.sent_at.pop_front();
            self.answered_before += 1;
        }
        if is_done && cid < self.highest {
            return Answer::Overtaken { sent_at };
        }
        if is_done {
            self.highest = cid;
        }
        Answer::InOrder { sent_at }
    }
}

/// Distance in messages up to which a late arrival is told from a repeated one.
const ARRIVALS_WINDOW: u32 = 64;

/// The messages one client gets from one other, numbered from 1 by the sender; 16 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    highest: u32,
    got: u32,
    /// Bit i: `highest - i` arrived.
    seen: u64,
}

/// Meaning of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Later than all before it.
    InOrder,
    /// New, but a later one came before.
    Overtaken,
    /// The message came before, or lies so far back that it must have.
    Again,
}

impl Arrivals {
    /// Judges the arrival of `number`.
    pub const fn arrive(&mut self, number: u32) -> Arrival {
        if number > self.highest {
            let ahead = number - self.highest;
            self.seen = if ahead >= ARRIVALS_WINDOW { 1 } else { self.seen << ahead | 1 };
            self.highest = number;
            self.got += 1;
            return Arrival::InOrder;
        }
        let back = self.highest - number;
        if number == 0 || back >= ARRIVALS_WINDOW || self.seen >> back & 1 == 1 {
            return Arrival::Again;
        }
        self.seen |= 1 << back;
        self.got += 1;
        Arrival::Overtaken
    }

    /// True if a message of this number came, as far as the window reaches.
    pub const fn has(&self, number: u32) -> bool {
        let back = self.highest.saturating_sub(number);
        number <= self.highest && (back >= ARRIVALS_WINDOW || self.seen >> back & 1 == 1)
    }

    /// Number of the `sent` messages that never came.
    pub const fn lost(&self, sent: u32) -> u32 {
        sent.saturating_sub(self.got)
    }
}

/// Messages that the server did not take and that did not come: they are refused, and not lost as well.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    numbers: HashSet<(u32, u32)>,
}

impl Refusals {
    /// Notes that the message `number` of a sender was refused; `arrivals` are those of its receiver. True: it has not come.
    pub fn refuse(&mut self, sender: u32, number: u32, arrivals: &Arrivals) -> bool {
        !arrivals.has(number) && self.numbers.insert((sender, number))
    }

    /// Notes that a message came, whatever its sender was told. True: it was noted as refused.
    pub fn arrive(&mut self, sender: u32, number: u32) -> bool {
        !self.numbers.is_empty() && self.numbers.remove(&(sender, number))
    }

    /// Counts the messages of each sender that did not come.
    pub fn by_sender(&self) -> HashMap<u32, u64> {
        let mut counts = HashMap::new();
        self.numbers.iter().for_each(|(sender, _)| *counts.entry(*sender).or_default() += 1);
        counts
    }
}

/// Everything that must be zero at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Sent and never answered or delivered.
    pub lost: u64,
    /// Answered or delivered twice, or answered without having been sent.
    pub duplicated: u64,
    /// Answered or delivered after a later one.
    pub reordered: u64,
    /// Answered with a code other than OK or DUP.
    pub refused: u64,
    /// Connections that ended before the run did.
    pub dropped: u64,
    /// Connections that never got in.
    pub not_in: u64,
}

impl Tally {
    /// True without any fault.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another client's, thread's or process's tally.
    pub const fn merge(&mut self, other: &Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.not_in += other.not_in;
    }

    /// Counts an answer.
    pub const fn count_answer(&mut self, answer: Answer) {
        match answer {
            Answer::InOrder { .. } => {}
            Answer::Overtaken { .. } => self.reordered += 1,
            Answer::Again | Answer::Unknown => self.duplicated += 1,
        }
    }

    /// Counts the arrival of a push to a member that has also pulled messages, up to number `pulled`: those may come again,
    /// because their push was under way.
    pub const fn count_push(&mut self, arrival: Arrival, number: u32, pulled: u32) {
        if !(matches!(arrival, Arrival::Again) && number <= pulled) {
            self.count_arrival(arrival);
        }
    }

    /// Counts an arrival.
    pub const fn count_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::InOrder => {}
            Arrival::Overtaken => self.reordered += 1,
            Arrival::Again => self.duplicated += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_of_what_was_pulled_meanwhile_is_no_duplicate_and_a_second_push_is_one() {
        let (mut arrivals, mut tally) = (Arrivals::default(), Tally::default());
        let pulled = 3;
        (1..=pulled).for_each(|number| assert_eq!(arrivals.arrive(number), Arrival::InOrder));
        for number in [2, 3, 4, 4] {
            let arrival = arrivals.arrive(number);
            tally.count_push(arrival, number, pulled);
        }
        assert_eq!(tally, Tally { duplicated: 1, ..Tally::default() });
    }

    fn judge(sent: u32, answers: &[u32]) -> (Tally, Vec<u32>) {
        let (mut flight, mut tally) = (Flight::default(), Tally::default());
        for n in 1..=sent {
            assert_eq!(flight.send(Instant::from_nanos(u64::from(n))), n);
        }
        for cid in answers {
            tally.count_answer(flight.answer(*cid, true));
        }
        (tally, flight.unanswered().collect())
    }

    #[test]
    fn answers_once_and_in_order_are_clean() {
        assert_eq!(judge(4, &[1, 2, 3, 4]), (Tally::default(), vec![]));
    }

    #[test]
    fn each_fault_is_told_from_the_others() {
        assert_eq!(judge(4, &[1, 3, 4]), (Tally::default(), vec![2]), "a loss is no reordering");
        assert_eq!(judge(4, &[1, 3, 2, 4]).0, Tally { reordered: 1, ..Tally::default() });
        assert_eq!(judge(4, &[1, 2, 2, 3, 4]).0, Tally { duplicated: 1, ..Tally::default() });
        assert_eq!(judge(4, &[1, 3, 3, 2, 4]).0, Tally { duplicated: 1, reordered: 1, ..Tally::default() });
        assert_eq!(judge(2, &[1, 2, 3, 0]).0, Tally { duplicated: 2, ..Tally::default() });
    }

    #[test]
    fn an_answer_finds_when_its_message_left_and_memory_is_given_back() {
        let mut flight = Flight::default();
        for n in 1..=1_000 {
            flight.send(Instant::from_nanos(n));
            let cid = u32::try_from(n).unwrap();
            assert_eq!(flight.answer(cid, true), Answer::InOrder { sent_at: Instant::from_nanos(n) });
        }
        assert_eq!((flight.span(), flight.sent()), (0, 1_000));
    }

    #[test]
    fn a_refusal_has_no_place_in_the_order_of_answers() {
        let mut flight = Flight::default();
        for n in 1..=4 {
            flight.send(Instant::from_nanos(n));
        }
        let answers =
            [(3, false), (1, true), (4, true), (2, false)].map(|(cid, done)| flight.answer(cid, done));
        assert!(answers.iter().all(|answer| matches!(answer, Answer::InOrder { .. })), "{answers:?}");
    }

    #[test]
    fn a_refused_message_is_lost_only_if_it_was_taken() {
        let (mut arrivals, mut refusals) = (Arrivals::default(), Refusals::default());
        for number in [1, 2, 5] {
            arrivals.arrive(number);
            assert!(!refusals.arrive(7, number));
        }
        let refused = [2, 3, 4].map(|number| refusals.refuse(7, number, &arrivals));
        assert_eq!(refused, [false, true, true], "2 was taken, whatever the answer says");
        assert_eq!((arrivals.lost(5), refusals.by_sender().get(&7)), (2, Some(&2)));
        arrivals.arrive(4);
        assert!(refusals.arrive(7, 4), "it is not waited for any more");
        assert_eq!((arrivals.lost(5), refusals.by_sender().get(&7)), (1, Some(&1)));
    }

    #[test]
    fn arrivals_are_judged_like_answers() {
        let (mut arrivals, mut tally) = (Arrivals::default(), Tally::default());
        for number in [1, 2, 4, 3, 3, 6, 200, 5] {
            tally.count_arrival(arrivals.arrive(number));
        }
        assert_eq!(tally, Tally { duplicated: 2, reordered: 1, ..Tally::default() });
        assert_eq!(arrivals.lost(200), 200 - 6, "1, 2, 3, 4, 6 and 200 came");
    }
}
