//! Questions on a link that wait for an answer. Pure.
//!
//! Correlations are dense, so the table is a ring indexed by `correlation - base`: no hashing, no
//! allocation per entry. An entry whose time is up still counts as unanswered toward the backend's
//! credit, because the backend still works on it, until its answer comes or it is forgotten.

use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Longest run of correlations from the oldest unanswered one, in entries. At this length a timed
/// out oldest entry is forgotten; one that still waits stops the link until it is settled.
pub(super) const SPAN_MAX: usize = 1 << 17;

/// Questions of one link in the order they were asked.
#[derive(Debug)]
pub(super) struct Pending<T> {
    ring: VecDeque<Entry<T>>,
    base: u64,
    unanswered: usize,
    earliest: Instant,
    forget_after: Duration,
}

#[derive(Debug)]
enum Entry<T> {
    Waiting { item: T, deadline: Instant },
    TimedOut { forget_at: Instant },
    Settled,
}

/// Meaning of an answer's correlation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    /// The question that waits.
    Answered(T),
    /// A question that was settled before: its time was up, or it was answered already.
    Late,
    /// No question ever had this number.
    Unknown,
}

impl<T> Pending<T> {
    /// An empty table. An entry that timed out is forgotten `forget_after` later.
    pub(super) const fn new(forget_after: Duration) -> Self {
        let ring = VecDeque::new();
        Self { ring, base: 1, unanswered: 0, earliest: Instant::FAR_FUTURE, forget_after }
    }

    /// The table's first number, and every question from there on: what waits, and until when it waits or is
    /// remembered; zero: it is settled.
    pub(super) fn freeze(&self) -> (u64, impl Iterator<Item = (Option<&T>, Instant)>) {
        let Self { ring, base, unanswered: _, earliest: _, forget_after: _ } = self;
        let entry = |entry| match entry {
            &Entry::Waiting { ref item, deadline } => (Some(item), deadline),
            &Entry::TimedOut { forget_at } => (None, forget_at),
            Entry::Settled => (None, Instant::ZERO),
        };
        (*base, ring.iter().map(entry))
    }

    /// Reads what [`Self::freeze`] gave.
    pub(super) fn thaw(
        forget_after: Duration,
        base: u64,
        entries: impl IntoIterator<Item = (Option<T>, Instant)>,
    ) -> Self {
        let mut pending = Self::new(forget_after);
        pending.base = base.max(1);
        for (item, until) in entries {
            let entry = match item {
                Some(item) => Entry::Waiting { item, deadline: until },
                None if until > Instant::ZERO => Entry::TimedOut { forget_at: until },
                None => Entry::Settled,
            };
            if !matches!(entry, Entry::Settled) {
                pending.unanswered += 1;
                pending.earliest = pending.earliest.min(until);
            }
            pending.ring.push_back(entry);
        }
        pending
    }

    /// Notes a question and names it. Correlations rise from 1 without holes.
    pub(super) fn push(&mut self, item: T, deadline: Instant) -> u64 {
        let correlation = self.next_correlation();
        self.ring.push_back(Entry::Waiting { item, deadline });
        self.unanswered += 1;
        self.earliest = self.earliest.min(deadline);
        correlation
    }

    /// The number that [`Self::push`] will give.
    pub(super) fn next_correlation(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    /// Settles a question.
    pub(super) fn take(&mut self, correlation: u64) -> Taken<T> {
        let Some(index) = correlation.checked_sub(self.base) else {
            return if correlation == 0 { Taken::Unknown } else { Taken::Late };
        };
        let entry = usize::try_from(index).ok().and_then(|index| self.ring.get_mut(index));
        let taken = match entry.map(|entry| std::mem::replace(entry, Entry::Settled)) {
            Some(Entry::Waiting { item, .. }) => Taken::Answered(item),
            Some(Entry::TimedOut { .. }) => Taken::Late,
            Some(Entry::Settled) => return Taken::Late,
            None => return Taken::Unknown,
        };
        self.unanswered -= 1;
        self.trim();
        taken
    }

    /// Questions the backend has not answered, timed out ones included.
    pub(super) const fn len(&self) -> usize {
        self.unanswered
    }

    /// True if one more may be asked of a backend that accepts `credit` unanswered ones.
    pub(super) fn has_room(&self, credit: usize) -> bool {
        self.unanswered < credit && self.ring.len() < SPAN_MAX
    }

    /// A moment before which [`Self::expire`] has nothing to do.
    pub(super) const fn next_deadline(&self) -> Instant {
        self.earliest
    }

    /// Gives every question whose time is up to `on_timeout`, in order. Scans only when something
    /// may be due, so about once per timeout.
    pub(super) fn expire(&mut self, now: Instant, mut on_timeout: impl FnMut(T)) {
        if now < self.earliest {
            return;
        }
        let forget_at = now + self.forget_after;
        self.earliest = Instant::FAR_FUTURE;
        for entry in &mut self.ring {
            let next = match entry {
                Entry::Waiting { deadline, .. } if *deadline <= now => {
                    if let Entry::Waiting { item, .. } =
                        std::mem::replace(entry, Entry::TimedOut { forget_at })
                    {
                        on_timeout(item);
                    }
                    forget_at
                }
                Entry::TimedOut { forget_at } if *forget_at <= now => {
                    *entry = Entry::Settled;
                    self.unanswered -= 1;
                    continue;
                }
                Entry::Waiting { deadline: next, .. } | Entry::TimedOut { forget_at: next } => *next,
                Entry::Settled => continue,
            };
            self.earliest = self.earliest.min(next);
        }
        self.trim();
    }

    /// Takes the questions back that `is_wanted`, in order. Their answers are late ones.
    pub(super) fn take_back(&mut self, now: Instant, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let forget_at = now + self.forget_after;
        self.earliest = self.earliest.min(forget_at);
        let mut taken = Vec::new();
        for entry in &mut self.ring {
            if matches!(entry, Entry::Waiting { item, .. } if is_wanted(item))
                && let Entry::Waiting { item, .. } = std::mem::replace(entry, Entry::TimedOut { forget_at })
            {
                taken.push(item);
            }
        }
        taken
    }

    /// Empties the table: the questions that still wait, in order. Numbers go on from where they were.
    pub(super) fn drain_waiting(&mut self) -> Vec<T> {
        self.base = self.next_correlation();
        self.unanswered = 0;
        self.earliest = Instant::FAR_FUTURE;
        let waiting = |entry| match entry {
            Entry::Waiting { item, .. } => Some(item),
            Entry::TimedOut { .. } | Entry::Settled => None,
        };
        self.ring.drain(..).filter_map(waiting).collect()
    }

    fn trim(&mut self) {
        while let Some(front) = self.ring.front() {
            match front {
                Entry::Settled => {}
                Entry::TimedOut { .. } if self.ring.len() >= SPAN_MAX => self.unanswered -= 1,
                Entry::Waiting { .. } | Entry::TimedOut { .. } => return,
            }
            self.ring.pop_front();
            self.base += 1;
        }
        self.earliest = Instant::FAR_FUTURE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    proptest! {
        /// Against a plain map: push, take anything, let time pass, drain.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0u8..8, 0u64..40), 0..300)) {
            let mut pending = Pending::new(Duration::from_nanos(50));
            let mut model: BTreeMap<u64, (u64, Instant)> = BTreeMap::new();
            let (mut now, mut issued) = (0u64, 0u64);
            for (step, number) in steps {
                match step {
                    0..=3 => {
                        issued += 1;
                        let deadline = at(now + number);
                        prop_assert_eq!(pending.push(issued, deadline), issued);
                        model.insert(issued, (issued, deadline));
                    }
                    4 | 5 => {
                        let correlation = issued.saturating_sub(number) + number % 3;
                        let expected = match model.remove(&correlation) {
                            Some((item, _)) => Taken::Answered(item),
                            None if correlation == 0 || correlation > issued => Taken::Unknown,
                            None => Taken::Late,
                        };
                        prop_assert_eq!(pending.take(correlation), expected);
                    }
                    6 => {
                        now += number;
                        let (mut got, mut expected) = (Vec::new(), Vec::new());
                        pending.expire(at(now), |item| got.push(item));
                        model.retain(|_, (item, deadline)| {
                            let is_due = *deadline <= at(now);
                            if is_due { expected.push(*item); }
                            !is_due
                        });
                        prop_assert_eq!(got, expected);
                        if let Some((_, deadline)) = model.values().min_by_key(|(_, deadline)| *deadline) {
                            prop_assert!(pending.next_deadline() <= *deadline);
                        }
                    }
                    _ if number == 0 => {
                        let expected: Vec<u64> = std::mem::take(&mut model).into_keys().collect();
                        prop_assert_eq!(pending.drain_waiting(), expected);
                        prop_assert_eq!(pending.len(), 0);
                    }
                    _ => {}
                }
                prop_assert!(pending.len() >= model.len());
            }
        }
    }

    #[test]
    fn a_timed_out_question_holds_its_credit_until_answered_or_forgotten() {
        let mut pending = Pending::new(Duration::from_nanos(100));
        let (first, _second) = (pending.push('a', at(10)), pending.push('b', at(10)));
        let mut timed_out = Vec::new();
        pending.expire(at(10), |item| timed_out.push(item));
        assert_eq!(timed_out, ['a', 'b']);
        assert!(!pending.has_room(2), "the backend still works on both");
        assert_eq!(pending.take(first), Taken::Late);
        assert!(pending.has_room(2));
        pending.expire(at(110), |_| panic!("reported twice"));
        assert!(pending.len() == 0 && pending.next_deadline() == Instant::FAR_FUTURE);
    }

    #[test]
    fn a_stuck_oldest_question_bounds_the_ring() {
        let mut pending = Pending::new(Duration::from_secs(1));
        pending.push(0, at(10));
        while pending.has_room(10) {
            let correlation = pending.push(1, at(u64::MAX));
            pending.take(correlation);
        }
        assert_eq!(pending.ring.len(), SPAN_MAX);
        pending.expire(at(10), |item| assert_eq!(item, 0));
        assert!(pending.ring.is_empty() && pending.len() == 0, "forgotten early to make room");
    }
}
