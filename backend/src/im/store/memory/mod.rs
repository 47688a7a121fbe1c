//! Everything in memory: for tests, for development, and for trying out the rest.
//!
//! Durable for as long as the process lives. Bounded: the oldest messages are dropped over
//! `history_max` bytes (they then read as void ranges), the oldest keys over
//! `idempotency_entries_max` or after `idempotency_window`.

mod keys;

use super::directory::{Changed, Directory};
use super::dropped::Place;
use super::embedded::{Engine, EngineStore, Known, Progress, StreamEntry};
use super::{Committed, ConversationId, UserId};
use crate::config::ImConfig;
use bytes::Bytes;
use keys::Keys;
use moorline_proto::ids::MessageKey;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::ops::{Range, RangeInclusive};

/// See the module.
pub type Memory = EngineStore<MemoryEngine>;

/// Estimated memory of a message beside its bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 96;

/// Messages, keys, inboxes and profiles in memory.
#[derive(Debug)]
pub struct MemoryEngine {
    keys: Keys,
    /// By conversation.
    histories: Vec<History>,
    /// By user.
    inboxes: Vec<Inbox>,
    profiles: HashMap<UserId, Bytes>,
    /// By log and number.
    events: HashMap<(ConversationId, u64), Bytes>,
    /// Conversations in the order of their messages, oldest first: whose oldest is dropped next.
    order: VecDeque<ConversationId>,
    bytes: usize,
    bytes_max: usize,
    committed: VecDeque<(Committed, Progress)>,
    name: Bytes,
}

#[derive(Debug, Default)]
struct History {
    /// Seqs 1 to this are dropped.
    dropped: u64,
    /// Messages that are removed and that [`MemoryEngine::order`] still has.
    skipped: usize,
    /// From seq `dropped + 1` on, encoded.
    messages: VecDeque<Bytes>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Positions 1 to this are removed.
    removed: u64,
    entries: VecDeque<StreamEntry>,
}

impl Memory {
    /// Empty, with the limits of `config`.
    pub fn new(config: &ImConfig) -> Self {
        let window_ms = u64::try_from(config.idempotency_window.as_millis()).unwrap_or(u64::MAX);
        let unnamed = |error: &_| tracing::warn!(%error, "cannot name the store: gateways do not compare it");
        let name = super::random_name().inspect_err(unnamed).unwrap_or_default();
        let engine = MemoryEngine {
            keys: Keys::new(config.idempotency_entries_max, window_ms),
            histories: Vec::new(),
            inboxes: Vec::new(),
            profiles: HashMap::new(),
            events: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            bytes_max: config.history_max,
            committed: VecDeque::new(),
            name,
        };
        Self::over(Directory::new(config), engine, config)
    }
}

impl History {
    fn get(&self, seq: u64) -> Option<&Bytes> {
        self.messages.get(usize::try_from(seq.checked_sub(self.dropped + 1)?).ok()?)
    }
}

impl Inbox {
    fn from(&self, position: u64) -> usize {
        let skip = usize::try_from(position.saturating_sub(self.removed + 1)).unwrap_or(usize::MAX);
        skip.min(self.entries.len())
    }
}

impl MemoryEngine {
    fn drop_old_history(&mut self) {
        while self.bytes > self.bytes_max
            && self.order.len() > 1
            && let Some(conversation) = self.order.pop_front()
        {
            let history = &mut self.histories[conversation.index() as usize];
            if history.skipped > 0 {
                history.skipped -= 1;
                continue;
            }
            let dropped = history.messages.pop_front().expect("the order has each retained message once");
            history.dropped += 1;
            self.bytes -= dropped.len() + MESSAGE_OVERHEAD_BYTES;
        }
    }
}

/// The element at `index`, with empty ones up to it.
fn grown<T: Default>(all: &mut Vec<T>, index: u32) -> &mut T {
    let index = index as usize;
    if all.len() <= index {
        all.resize_with(index + 1, T::default);
    }
    &mut all[index]
}

impl Engine for MemoryEngine {
    type Error = Infallible;

    fn name(&self) -> Bytes {
        self.name.clone()
    }

    fn key(&mut self, now_ms: u64, user: UserId, key: MessageKey) -> Result<Option<Known>, Infallible> {
        Ok(self.keys.get(now_ms, user, key).copied())
    }

    fn put_key(
        &mut self,
        now_ms: u64,
        user: UserId,
        key: MessageKey,
        known: Known,
    ) -> Result<(), Infallible> {
        self.keys.insert(now_ms, user, key, known);
        Ok(())
    }

    fn put_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes) {
        let history = grown(&mut self.histories, conversation.index());
        if history.messages.is_empty() {
            history.dropped = seq - 1; // a group may begin behind the seqs of another one
        }
        history.messages.push_back(body.clone());
        self.order.push_back(conversation);
        self.bytes += body.len() + MESSAGE_OVERHEAD_BYTES;
        self.drop_old_history();
    }

    fn replace_message(&mut self, conversation: ConversationId, seq: u64, body: &Bytes) {
        let history = &mut self.histories[conversation.index() as usize];
        let at = seq.checked_sub(history.dropped + 1).and_then(|at| usize::try_from(at).ok());
        if let Some(old) = at.and_then(|at| history.messages.get_mut(at)) {
            self.bytes = self.bytes + body.len() - old.len();
            *old = body.clone();
        }
    }

    fn erase_message(&mut self, conversation: ConversationId, seq: u64) {
        self.replace_message(conversation, seq, &Bytes::new());
    }

    fn remove_messages(&mut self, conversation: ConversationId, seqs: &[u64]) {
        let (Some(history), Some(last)) =
            (self.histories.get_mut(conversation.index() as usize), seqs.last())
        else {
            return;
        };
        while history.dropped < *last
            && let Some(removed) = history.messages.pop_front()
        {
            history.dropped += 1;
            history.skipped += 1;
            self.bytes -= removed.len() + MESSAGE_OVERHEAD_BYTES;
        }
    }

    fn message(&self, conversation: ConversationId, seq: u64) -> Option<Bytes> {
        let body = self.histories.get(conversation.index() as usize)?.get(seq)?;
        (!body.is_empty()).then(|| body.clone())
    }

    fn is_erased(&self, conversation: ConversationId, seq: u64) -> bool {
        let history = self.histories.get(conversation.index() as usize);
        history.and_then(|history| history.get(seq)).is_some_and(Bytes::is_empty)
    }

    fn messages(
        &self,
        conversation: ConversationId,
        seqs: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, Bytes) -> bool,
    ) -> bool {
        if let Some(history) = self.histories.get(conversation.index() as usize) {
            for seq in (*seqs.start()).max(history.dropped + 1)..=*seqs.end() {
                let Some(body) = history.get(seq) else { break };
                if !each(seq, body.clone()) {
                    break;
                }
            }
        }
        true
    }

    fn put_entry(&mut self, user: UserId, _position: u64, entry: StreamEntry) {
        grown(&mut self.inboxes, user.index()).entries.push_back(entry);
    }

    fn remove_entries(&mut self, user: UserId, positions: Range<u64>) {
        let Some(inbox) = self.inboxes.get_mut(user.index() as usize) else { return };
        // Always from the oldest on.
        let count = inbox.from(positions.end);
        inbox.entries.drain(..count);
        inbox.removed += count as u64;
        if inbox.entries.is_empty() && inbox.entries.capacity() > 64 {
            inbox.entries = VecDeque::new();
        }
    }

    fn place_of(&self, user: UserId, position: u64) -> Result<Place, Infallible> {
        let inbox = &self.inboxes[user.index() as usize];
        Ok(inbox.entries[inbox.from(position)].content.place())
    }

    fn entries(
        &self,
        user: UserId,
        positions: RangeInclusive<u64>,
        each: &mut dyn FnMut(u64, StreamEntry) -> bool,
    ) -> bool {
        let Some(inbox) = self.inboxes.get(user.index() as usize) else { return true };
        let first = (*positions.start()).max(inbox.removed + 1);
        for (position, entry) in (first..=*positions.end()).zip(inbox.entries.range(inbox.from(first)..)) {
            if !each(position, entry.clone()) {
                break;
            }
        }
        true
    }

    fn put_event(&mut self, log: ConversationId, number: u64, body: &Bytes) {
        self.events.insert((log, number), body.clone());
    }

    fn remove_event(&mut self, log: ConversationId, number: u64) {
        self.events.remove(&(log, number));
    }

    fn event(&self, log: ConversationId, number: u64) -> Result<Option<Bytes>, Infallible> {
        Ok(self.events.get(&(log, number)).cloned())
    }

    fn put_profile(&mut self, user: UserId, profile: Bytes) {
        self.profiles.insert(user, profile);
    }

    fn remove_profile(&mut self, user: UserId) {
        self.profiles.remove(&user);
    }

    fn remove_keys(&mut self, user: UserId, to_id: u64, _limit: usize) -> Result<bool, Infallible> {
        self.keys.remove_up_to(user, to_id);
        Ok(false)
    }

    fn profile(&self, user: UserId) -> Option<Bytes> {
        self.profiles.get(&user).cloned()
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn give_up(&mut self) {
        unreachable!("memory can be read")
    }

    fn commits_and_stalls(&self) -> (u64, u64) {
        (0, 0) // nothing becomes durable
    }

    fn commit(&mut self, _: u64, _: &Directory, _: Vec<Changed>, done: (Committed, Progress)) -> bool {
        self.committed.push_back(done);
        true
    }

    fn poll(&mut self) -> Option<(Committed, Progress)> {
        self.committed.pop_front()
    }
}
