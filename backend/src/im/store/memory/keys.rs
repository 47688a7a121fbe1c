//! Message keys that were used, for a while.

use crate::im::store::UserId;
use crate::im::store::embedded::Known;
use hashbrown::HashMap;
use moorline_proto::ids::MessageKey;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Keys {
    known: HashMap<(UserId, MessageKey), Known>,
    /// With the time of each, oldest first.
    by_age: VecDeque<(u64, UserId, MessageKey)>,
    entries_max: usize,
    window_ms: u64,
}

impl Keys {
    pub(super) fn new(entries_max: usize, window_ms: u64) -> Self {
        Self { known: HashMap::new(), by_age: VecDeque::new(), entries_max, window_ms }
    }

    pub(super) fn get(&mut self, now_ms: u64, sender: UserId, key: MessageKey) -> Option<&Known> {
        while self.by_age.front().is_some_and(|(at, ..)| at.saturating_add(self.window_ms) <= now_ms) {
            self.forget_oldest();
        }
        self.known.get(&(sender, key))
    }

    pub(super) fn insert(&mut self, now_ms: u64, sender: UserId, key: MessageKey, known: Known) {
        if self.by_age.len() >= self.entries_max {
            self.forget_oldest();
        }
        self.known.insert((sender, key), known);
        self.by_age.push_back((now_ms, sender, key));
    }

    /// Forgets the keys of a sender whose messages have ids up to `to_id`.
    pub(super) fn remove_up_to(&mut self, sender: UserId, to_id: u64) {
        self.known.retain(|(of, _), known| *of != sender || known.id > to_id);
        let known = &self.known;
        self.by_age.retain(|(_, of, key)| *of != sender || known.contains_key(&(*of, *key)));
    }

    fn forget_oldest(&mut self) {
        if let Some((_, sender, key)) = self.by_age.pop_front() {
            self.known.remove(&(sender, key));
        }
    }
}
