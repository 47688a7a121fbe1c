//! The receiving ends. Each takes messages once and in order, and says which it has.

use crate::sender::Message;
use moorline_proto::dedupe::{Dedupe, Verdict, WINDOW_FRAMES};
use std::collections::{BTreeMap, VecDeque};

/// Messages that may wait for their predecessor; further ones are dropped.
const HELD_MAX: usize = 64;
/// Ids that are remembered, to know a message that comes again: as many as may be under way, and as many
/// that were answered and whose answer may be lost.
const REMEMBERED_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Strict,
    Window,
    Predecessor,
}

impl Scheme {
    pub(crate) const ALL: [Self; 3] = [Self::Strict, Self::Window, Self::Predecessor];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Window => "window",
            Self::Predecessor => "predecessor",
        }
    }

    /// Messages that may be without an answer.
    pub(crate) const fn window(self) -> usize {
        match self {
            Self::Strict => 1,
            Self::Window | Self::Predecessor => WINDOW_FRAMES as usize,
        }
    }

    /// Bytes of one message beside its body: a number, or its id and that of its predecessor.
    pub(crate) const fn overhead(self) -> u64 {
        match self {
            Self::Strict | Self::Window => 4,
            Self::Predecessor => 8,
        }
    }

    pub(crate) fn receiver(self) -> Box<dyn Receiver> {
        match self {
            Self::Strict => Box::new(Strict::default()),
            Self::Window => Box::new(Bitmap::default()),
            Self::Predecessor => Box::new(Chain::default()),
        }
    }
}

/// A receiver's verdict on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The message is taken, now or before.
    Taken(u32),
    /// The message is missing: send it again.
    Missing(u32),
}

pub(crate) trait Receiver {
    /// Takes a message; what is accepted is put behind `accepted`, in order.
    fn handle(&mut self, message: Message, accepted: &mut Vec<u32>) -> Vec<Reply>;
    /// Bytes that one sender costs now, bodies that wait included.
    fn state(&self) -> usize;
}

/// The number of the last one is all that it knows.
#[derive(Default)]
struct Strict {
    last: u32,
}

impl Receiver for Strict {
    fn handle(&mut self, message: Message, accepted: &mut Vec<u32>) -> Vec<Reply> {
        if message.id == self.last + 1 {
            self.last = message.id;
            accepted.push(message.id);
        }
        if message.id <= self.last { vec![Reply::Taken(message.id)] } else { Vec::new() }
    }

    fn state(&self) -> usize {
        size_of::<u32>()
    }
}

/// Moorline's scheme: see `moorline_proto::dedupe` and `shard::uplink`.
#[derive(Default)]
struct Bitmap {
    dedupe: Dedupe,
    early: BTreeMap<u32, Message>,
}

impl Receiver for Bitmap {
    fn handle(&mut self, message: Message, accepted: &mut Vec<u32>) -> Vec<Reply> {
        let mut replies = Vec::new();
        let mut take = |dedupe: &mut Dedupe, id| {
            dedupe.take(id);
            dedupe.answer(id);
            accepted.push(id);
            replies.push(Reply::Taken(id));
        };
        match self.dedupe.check(message.id) {
            Verdict::Next => {
                take(&mut self.dedupe, message.id);
                while let Some(early) = self.early.remove(&(self.dedupe.taken() + 1)) {
                    take(&mut self.dedupe, early.id);
                }
            }
            Verdict::Early => _ = self.early.insert(message.id, message),
            Verdict::Answered => replies.push(Reply::Taken(message.id)),
            Verdict::Pending | Verdict::Beyond => unreachable!("answered at once, and never so far ahead"),
        }
        replies
    }

    fn state(&self) -> usize {
        size_of::<Dedupe>() + self.early.values().map(|held| held.bytes + size_of::<u32>()).sum::<usize>()
    }
}

/// A message waits for the one it names. Ids have no order, so those that were taken are remembered.
#[derive(Default)]
struct Chain {
    last: u32,
    taken: VecDeque<u32>,
    /// By the predecessor that they wait for.
    held: BTreeMap<u32, Message>,
}

impl Receiver for Chain {
    fn handle(&mut self, message: Message, accepted: &mut Vec<u32>) -> Vec<Reply> {
        if self.taken.contains(&message.id) {
            return vec![Reply::Taken(message.id)];
        }
        if message.previous != self.last {
            // The one it names was not taken: it is held as well, or it is missing.
            let is_held = self.held.values().any(|held| held.id == message.previous);
            let missing = (!is_held).then_some(Reply::Missing(message.previous));
            if self.held.len() < HELD_MAX {
                self.held.insert(message.previous, message);
            }
            return missing.into_iter().collect();
        }
        let (mut replies, mut next) = (Vec::new(), Some(message));
        while let Some(message) = next {
            self.last = message.id;
            self.taken.push_back(message.id);
            if self.taken.len() > REMEMBERED_MAX {
                self.taken.pop_front();
            }
            accepted.push(message.id);
            replies.push(Reply::Taken(message.id));
            next = self.held.remove(&self.last);
        }
        replies
    }

    fn state(&self) -> usize {
        let ids = size_of::<u32>() * (1 + self.taken.len());
        ids + self.held.values().map(|held| held.bytes + 2 * size_of::<u32>()).sum::<usize>()
    }
}
