//! The sending end: the same for all schemes but for the size of its window.

use crate::receiver::Reply;
use std::collections::BTreeMap;

/// Bytes of a message's body.
pub(crate) const BODY_BYTES: usize = 128;

/// A message on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) id: u32,
    /// The one before it; 0: none.
    pub(crate) previous: u32,
    pub(crate) bytes: usize,
}

/// Numbers messages from 1 and repeats what is not answered.
#[derive(Debug)]
pub(crate) struct Sender {
    window: usize,
    /// Messages of the application, and the number of those that were sent.
    pub(crate) said: u32,
    sent: u32,
    /// Time of each message's next transmission.
    unanswered: BTreeMap<u32, u64>,
}

const fn message(id: u32) -> Message {
    Message { id, previous: id - 1, bytes: BODY_BYTES }
}

impl Sender {
    pub(crate) const fn new(window: usize) -> Self {
        Self { window, said: 0, sent: 0, unanswered: BTreeMap::new() }
    }

    /// Messages to send now: new ones that the window allows, and those without an answer in time.
    pub(crate) fn poll(&mut self, now: u64, patience: u64) -> Vec<Message> {
        let mut out = Vec::new();
        for (id, due) in &mut self.unanswered {
            if *due <= now {
                *due = now + patience;
                out.push(message(*id));
            }
        }
        // However few are unanswered, the window counts from the oldest of them.
        while self.sent < self.said {
            let oldest = self.unanswered.keys().next().copied().unwrap_or(self.sent + 1);
            if (self.sent + 1 - oldest) as usize >= self.window {
                break;
            }
            self.sent += 1;
            self.unanswered.insert(self.sent, now + patience);
            out.push(message(self.sent));
        }
        out
    }

    /// The receiver's word. What it misses goes out again at once, unless it has just been.
    pub(crate) fn handle(&mut self, reply: Reply, now: u64) {
        match reply {
            Reply::Taken(id) => _ = self.unanswered.remove(&id),
            Reply::Missing(id) => {
                if let Some(due) = self.unanswered.get_mut(&id) {
                    *due = now;
                }
            }
        }
    }

    /// A new connection: everything without an answer goes out again.
    pub(crate) fn reconnect(&mut self, now: u64) {
        self.unanswered.values_mut().for_each(|due| *due = now);
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.unanswered.values().min().copied()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.said && self.unanswered.is_empty()
    }
}
