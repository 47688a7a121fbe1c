//! One user's inbox: entries at rising positions, kept until every device has acked them.
//!
//! Over its limit the oldest entry is dropped. What is left of dropped ones is, per conversation,
//! the position of the last: there a device is told to pull.

use crate::im::store::dropped::Dropped;
use crate::im::store::{ConversationId, DeviceNumber};
use std::collections::VecDeque;

/// A message in an inbox; 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamEntry {
    pub(super) seq: u64,
    pub(super) conversation: ConversationId,
    pub(super) origin: Option<DeviceNumber>,
}

/// What stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Held(StreamEntry),
    Dropped(ConversationId),
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Entries at positions `trimmed + 1 ..`.
    entries: VecDeque<StreamEntry>,
    trimmed: u64,
    /// Few users ever have any.
    dropped: Option<Box<Dropped>>,
}

impl Stream {
    /// Position of the last entry ever.
    pub(super) fn end(&self) -> u64 {
        self.trimmed + self.entries.len() as u64
    }

    /// Appends; the position of the new entry.
    pub(super) fn push(&mut self, entry: StreamEntry, entries_max: usize) -> u64 {
        if self.entries.len() >= entries_max
            && let Some(oldest) = self.entries.pop_front()
        {
            self.trimmed += 1;
            self.dropped.get_or_insert_default().push(self.trimmed, oldest.conversation);
        }
        self.entries.push_back(entry);
        self.end()
    }

    /// Everything up to `position` is acked by everyone.
    pub(super) fn trim(&mut self, position: u64) {
        let count = position.min(self.end()).saturating_sub(self.trimmed);
        self.trimmed += count;
        self.entries.drain(..usize::try_from(count).expect("a count of entries"));
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
        let Some(dropped) = &mut self.dropped else { return };
        dropped.trim(position);
        if dropped.is_empty() {
            self.dropped = None;
        }
    }

    /// What stands after `position`, in order.
    pub(super) fn after(&self, position: u64) -> impl Iterator<Item = (u64, Slot)> + '_ {
        let dropped = self.dropped.iter().flat_map(move |it| it.after(position));
        let dropped = dropped.map(|(position, conversation)| (position, Slot::Dropped(conversation)));
        let skip = usize::try_from(position.saturating_sub(self.trimmed)).unwrap_or(usize::MAX);
        let skip = skip.min(self.entries.len());
        let first = self.trimmed + 1 + skip as u64;
        dropped.chain((first..).zip(self.entries.range(skip..).map(|entry| Slot::Held(*entry))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(conversation: u32, seq: u64) -> StreamEntry {
        StreamEntry { seq, conversation: ConversationId(conversation), origin: None }
    }

    #[test]
    fn what_overflows_leaves_one_position_per_conversation() {
        let mut stream = Stream::default();
        for i in 1..=6 {
            assert_eq!(stream.push(entry(u32::from(i == 2), i), 3), i);
        }
        let positions = |stream: &Stream, after| stream.after(after).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(positions(&stream, 0), [2, 3, 4, 5, 6]);
        assert_eq!(stream.after(2).next(), Some((3, Slot::Dropped(ConversationId(0)))));
        assert_eq!(positions(&stream, 4), [5, 6]);
        stream.trim(2);
        assert_eq!(positions(&stream, 0), [3, 4, 5, 6]);
        stream.trim(5);
        assert_eq!((positions(&stream, 0), stream.end()), (vec![6], 6));
        stream.trim(99);
        assert_eq!((positions(&stream, 0), stream.end()), (vec![], 6));
        assert_eq!(stream.push(entry(0, 7), 3), 7);
    }
}
