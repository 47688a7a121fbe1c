//! Position of a conversation: the next seq, messages that wait behind a hole, seqs without a message.
//!
//! Pure data of the inbox. Places are delivered in order; a place is also filled by the core's own
//! send (its SENDACK names it) and by a void range of a pull.

use super::event::{ConversationCursor, Newest};
use super::limits::{self, SEQ_MAX};
use moorline_proto::message::client::Push;
use moorline_proto::time::Instant;
use std::collections::BTreeMap;

/// Filled ranges that are remembered; a forgotten one is pulled again.
const RANGES_MAX: usize = 64;

/// Places without a message, as disjoint rising ranges.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(super) fn add(&mut self, from: u64, to: u64) {
        let to = to.min(SEQ_MAX);
        if from > to {
            return;
        }
        let mut merged = (from, to);
        self.0.retain(|&(low, high)| {
            let is_apart = high.saturating_add(1) < merged.0 || merged.1.saturating_add(1) < low;
            if !is_apart {
                merged = (merged.0.min(low), merged.1.max(high));
            }
            is_apart
        });
        let at = self.0.partition_point(|range| range.0 < merged.0);
        self.0.insert(at, merged);
        // The last one is needed last, and pulled when it is; without the first one no hole would ever close.
        self.0.truncate(RANGES_MAX);
    }

    /// The end of the range that holds `place`.
    pub(super) fn end_at(&self, place: u64) -> Option<u64> {
        self.0.iter().find(|(from, to)| (*from..=*to).contains(&place)).map(|range| range.1)
    }

    /// The first filled place from `place` on.
    pub(super) fn first_from(&self, place: u64) -> Option<u64> {
        self.0.iter().find(|(_, to)| *to >= place).map(|(from, _)| place.max(*from))
    }

    pub(super) fn forget_below(&mut self, place: u64) {
        self.0.retain(|(_, to)| *to >= place);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// State of a hole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Repair {
    /// There is nothing to repair.
    #[default]
    Idle,
    /// The hole may close by itself until then.
    Waiting(Instant),
    /// The hole is being pulled.
    Asked,
}

/// Present while something beyond `next` is known.
#[derive(Debug, Default)]
pub(super) struct Gap {
    pub(super) held: BTreeMap<u64, Push>,
    pub(super) filled: Ranges,
    /// The highest place known to exist.
    pub(super) latest: u64,
    pub(super) repair: Repair,
    /// Pulls in a row that brought nothing, whatever the reason.
    pub(super) failures: u32,
    /// Answers in a row that brought nothing.
    pub(super) empty_pages: u32,
}

/// Position of a pushed seq relative to the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The next one.
    Next,
    /// After a hole.
    Ahead,
    /// Was passed before.
    Passed,
    /// Before the place at which this core began to listen.
    Before,
}

#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// First seq that this core follows.
    start: u64,
    /// The next place; 0 before the first push.
    pub(super) next: u64,
    /// Time of the message stored last, among those delivered in order and those sent.
    newest: Newest,
    /// For forgetting the one longest unused.
    pub(super) touched: u64,
    pub(super) gap: Option<Box<Gap>>,
}

impl Conversation {
    /// Nothing seen yet.
    pub(super) fn new(touched: u64) -> Self {
        Self { touched, ..Self::default() }
    }

    /// Judges a place; the first one ever is where the conversation starts.
    pub(super) fn place(&mut self, seq: u64) -> Place {
        if self.next == 0 {
            self.begin(seq);
        }
        match seq {
            seq if seq < self.start => Place::Before,
            seq if seq < self.next => Place::Passed,
            seq if seq == self.next => Place::Next,
            _ => Place::Ahead,
        }
    }

    /// True if the backend counts this conversation from 1 again after it lost its store: a seq up to the newest message
    /// holds one that was stored later, so it is not a repetition [P-6.11]. Behind it are only seqs that were passed as
    /// void, from which a message may still come: of an earlier membership.
    pub(super) const fn is_recounted(&self, seq: u64, time_ms: u64) -> bool {
        let Newest { place, stored_ms } = self.newest;
        seq <= place && stored_ms != 0 && time_ms > stored_ms
    }

    /// The next message goes to the application.
    pub(super) fn on_delivered(&mut self, seq: u64, time_ms: u64) {
        if time_ms > self.newest.stored_ms {
            self.newest = Newest { place: seq, stored_ms: time_ms };
        }
    }

    /// Goes on where an earlier life stood.
    pub(super) fn restore(&mut self, ConversationCursor { start, next, newest }: ConversationCursor) {
        (self.start, self.next, self.newest) = (start, next, newest);
    }

    /// `None`: nothing was seen yet.
    pub(super) fn cursor(&self) -> Option<ConversationCursor> {
        let Self { start, next, newest, .. } = *self;
        (next != 0).then_some(ConversationCursor { start, next, newest })
    }

    pub(super) fn begin(&mut self, seq: u64) {
        (self.start, self.next) = (seq, seq);
    }

    pub(super) fn gap_mut(&mut self) -> &mut Gap {
        self.gap.get_or_insert_default()
    }

    /// The core's own send took this place.
    pub(super) fn fill(&mut self, seq: u64, time_ms: u64) {
        if seq > SEQ_MAX {
            return;
        }
        if self.next == 0 && seq == 1 {
            self.begin(1); // nothing can be below
        }
        if self.next != 0 && seq < self.next {
            return; // or the backend counts anew, which a push will tell more surely
        }
        self.on_delivered(seq, time_ms);
        let gap = self.gap_mut();
        gap.filled.add(seq, seq);
        gap.latest = gap.latest.max(seq);
    }

    /// True if seqs from `next` on are known to exist and have not arrived.
    pub(super) fn has_hole(&self) -> bool {
        self.next != 0 && self.gap.as_ref().is_some_and(|gap| gap.latest >= self.next)
    }

    /// The hole that begins at `next`: its last place.
    pub(super) fn hole_end(&self) -> u64 {
        let Some(gap) = &self.gap else { return self.next };
        let held = gap.held.keys().next().copied();
        let filled = gap.filled.first_from(self.next);
        let bound = [held, filled].into_iter().flatten().min();
        bound.map_or(gap.latest, |first| gap.latest.min(first.saturating_sub(1)))
    }

    /// Takes the next message that waits, passing over places without one.
    pub(super) fn poll_ready(&mut self) -> Option<Push> {
        let gap = self.gap.as_deref_mut()?;
        if self.next == 0 {
            return None;
        }
        while let Some(end) = gap.filled.end_at(self.next) {
            self.next = end.saturating_add(1);
        }
        let push = gap.held.remove(&self.next)?;
        self.next += 1;
        self.on_delivered(push.seq, push.time_ms);
        Some(push)
    }

    /// After the last `poll_ready`: forgets what is passed; returns the memory set free, in bytes.
    pub(super) fn tidy(&mut self) -> usize {
        let next = self.next;
        let Some(gap) = &mut self.gap else { return 0 };
        if next == 0 {
            return 0;
        }
        let kept = gap.held.split_off(&next);
        let passed = std::mem::replace(&mut gap.held, kept);
        gap.filled.forget_below(next);
        let is_over = gap.latest < next && gap.held.is_empty() && gap.filled.is_empty();
        if is_over && gap.repair != Repair::Asked {
            self.gap = None;
        }
        passed.values().map(limits::held_cost).sum()
    }

    /// Memory of the messages that wait behind the hole, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let held = self.gap.iter().flat_map(|gap| gap.held.values());
        held.map(limits::held_cost).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_stay_bounded() {
        let mut ranges = Ranges::default();
        for (from, to) in [(5, 6), (1, 2), (9, 9), (3, 4), (8, 7)] {
            ranges.add(from, to);
        }
        assert_eq!(ranges.0, [(1, 6), (9, 9)]);
        assert_eq!((ranges.end_at(4), ranges.end_at(7)), (Some(6), None));
        assert_eq!((ranges.first_from(4), ranges.first_from(7)), (Some(4), Some(9)));
        for place in 10..200 {
            ranges.add(place * 2, place * 2);
        }
        assert_eq!(ranges.0.len(), RANGES_MAX);
        assert_eq!(ranges.end_at(1), Some(6), "the first one is not given up for a later one");
        ranges.0.remove(0);
        ranges.add(400, 400);
        ranges.add(2, 3);
        assert_eq!((ranges.0.len(), ranges.end_at(2)), (RANGES_MAX, Some(3)));
    }

    #[test]
    fn a_filled_range_up_to_the_last_number_ends() {
        let mut conversation = Conversation::default();
        conversation.begin(5);
        conversation.gap_mut().filled.add(5, u64::MAX);
        assert!(conversation.poll_ready().is_none());
        assert_eq!(conversation.next, SEQ_MAX + 1);
        conversation.fill(u64::MAX, 1);
        assert!(conversation.poll_ready().is_none());
    }

    #[test]
    fn own_sends_before_the_first_push_do_not_hide_earlier_messages() {
        let mut conversation = Conversation::default();
        conversation.fill(10, 0);
        assert_eq!(conversation.place(5), Place::Next);
        conversation.next = 6;
        assert!(conversation.has_hole());
        assert_eq!(conversation.hole_end(), 9);
        assert_eq!((conversation.place(4), conversation.place(5)), (Place::Before, Place::Passed));
    }
}
