//! Everything in memory: for tests, for development, and for trying out the rest.
//!
//! Durable for as long as the process lives. Bounded: the oldest messages are dropped over
//! `history_max` bytes (they then read as void ranges), the oldest keys over
//! `idempotency_entries_max` or after `idempotency_window`.

mod conversations;
mod keys;
mod stream;
mod users;

use super::membership::Kind;
use super::{
    Committed, ConversationId, Delivery, DeviceCursor, Draft, Entry, Outcome, Page, PageLimits, Recipient,
    Refusal, Store, Stored, Target, UserId, Write, seal,
};
use crate::config::ImConfig;
use crate::im::names::{self, Conversation as Name};
use conversations::{Conversation, Conversations};
use keys::{Keys, Known};
use std::collections::VecDeque;
use stream::{Slot, StreamEntry};
use users::Users;

/// See the module.
#[derive(Debug)]
pub struct Memory {
    users: Users,
    conversations: Conversations,
    keys: Keys,
    /// Conversations in the order of their messages, oldest first: whose oldest is dropped next.
    history: VecDeque<ConversationId>,
    history_bytes: usize,
    committed: VecDeque<Committed>,
    inbox_entries_max: usize,
    group_members_max: usize,
    history_max: usize,
}

/// What a message costs beside its bytes, roughly.
const MESSAGE_OVERHEAD_BYTES: usize = 96;

impl Memory {
    /// Empty, with the limits of `config`.
    pub fn new(config: &ImConfig) -> Self {
        let window_ms = u64::try_from(config.idempotency_window.as_millis()).unwrap_or(u64::MAX);
        Self {
            users: Users::new(config.users_max, config.devices_max),
            conversations: Conversations::new(config.conversations_max),
            keys: Keys::new(config.idempotency_entries_max, window_ms),
            history: VecDeque::new(),
            history_bytes: 0,
            committed: VecDeque::new(),
            inbox_entries_max: config.inbox_entries_max,
            group_members_max: config.group_members_max,
            history_max: config.history_max,
        }
    }

    fn write(&mut self, now_ms: u64, write: Write, recipients: &mut Vec<Recipient>) -> Outcome {
        match write {
            Write::Append(draft) => Outcome::Appended(self.append(now_ms, draft, recipients)),
            Write::CreateGroup { name, creator, members } => {
                Outcome::Group(self.create_group(&name, creator, &members))
            }
            Write::Join { conversation, user } => Outcome::Group(self.join(conversation, user)),
            Write::Leave { conversation, user } => Outcome::Group(self.leave(conversation, user)),
            Write::Acked { user, device, position } => {
                self.users.on_acked(user, device, position);
                Outcome::Acked
            }
        }
    }

    fn append(
        &mut self,
        now_ms: u64,
        draft: Draft,
        recipients: &mut Vec<Recipient>,
    ) -> Result<Stored, Refusal> {
        let known_target = match draft.target {
            Target::User(peer) => self.conversations.one_to_one(draft.sender, peer),
            Target::Conversation(conversation) => Some(conversation),
        };
        if let Some(known) = self.keys.get(now_ms, draft.sender, draft.key) {
            let is_same = known.digest == draft.digest && known_target == Some(known.conversation);
            let Known { conversation, seq, id, .. } = *known;
            let same = Stored { conversation, seq, id, delivery: None };
            return if is_same { Ok(same) } else { Err(Refusal::Conflict) };
        }
        let conversation = match (known_target, draft.target) {
            (Some(conversation), _) => conversation,
            (None, Target::User(peer)) => self.open_one_to_one(draft.sender, peer)?,
            (None, Target::Conversation(_)) => return Err(Refusal::NotFound),
        };
        let place = self.conversations.get_mut(conversation);
        place.member(draft.sender).ok_or(Refusal::NotMember)?;
        let seq = place.latest() + 1;
        let body = seal(draft.body, seq);
        place.messages.push_back(body.clone());
        self.history.push_back(conversation);
        self.history_bytes += body.len() + MESSAGE_OVERHEAD_BYTES;
        let known = Known { conversation, seq, id: draft.id, digest: draft.digest };
        self.keys.insert(now_ms, draft.sender, draft.key, known);
        let first = recipients.len();
        let place = self.conversations.get(conversation);
        for member in &place.members {
            let origin = (member.user == draft.sender).then_some(draft.device);
            let entry = StreamEntry { seq, conversation, origin };
            if let Some(position) = self.users.deliver(member.user, entry, self.inbox_entries_max) {
                recipients.push(Recipient { user: member.user, position });
            }
        }
        self.drop_old_history();
        let delivery = Some(Delivery { body, recipients: first..recipients.len() });
        Ok(Stored { conversation, seq, id: draft.id, delivery })
    }

    fn open_one_to_one(&mut self, a: UserId, b: UserId) -> Result<ConversationId, Refusal> {
        let conversation = self.conversations.open_one_to_one(a, b).ok_or(Refusal::StoreFull)?;
        for member in self.conversations.get(conversation).members.clone() {
            self.users.get_mut(member.user).conversations.push(conversation);
        }
        Ok(conversation)
    }

    fn create_group(
        &mut self,
        name: &str,
        creator: UserId,
        members: &[UserId],
    ) -> Result<ConversationId, Refusal> {
        if let Some(known) = self.conversations.group(name) {
            let is_same = self.conversations.get(known).kind.creator() == Some(creator);
            return if is_same { Ok(known) } else { Err(Refusal::Conflict) };
        }
        let mut all: Vec<_> = members.iter().copied().chain([creator]).collect();
        all.sort_unstable();
        all.dedup();
        if all.len() > self.group_members_max {
            return Err(Refusal::GroupFull);
        }
        let conversation = self.conversations.open_group(name, creator, &all).ok_or(Refusal::StoreFull)?;
        for user in all {
            self.users.get_mut(user).conversations.push(conversation);
        }
        Ok(conversation)
    }

    fn join(&mut self, conversation: ConversationId, user: UserId) -> Result<ConversationId, Refusal> {
        let members_max = self.group_members_max;
        if self.group_mut(conversation)?.try_join(user, members_max)? {
            self.users.get_mut(user).conversations.push(conversation);
        }
        Ok(conversation)
    }

    fn leave(&mut self, conversation: ConversationId, user: UserId) -> Result<ConversationId, Refusal> {
        self.group_mut(conversation)?.leave(user);
        self.users.get_mut(user).conversations.retain(|it| *it != conversation);
        Ok(conversation)
    }

    fn group_mut(&mut self, conversation: ConversationId) -> Result<&mut Conversation, Refusal> {
        let place = self.conversations.get_mut(conversation);
        if matches!(place.kind, Kind::Group { .. }) { Ok(place) } else { Err(Refusal::Denied) }
    }

    fn drop_old_history(&mut self) {
        while self.history_bytes > self.history_max
            && self.history.len() > 1
            && let Some(conversation) = self.history.pop_front()
        {
            let place = self.conversations.get_mut(conversation);
            let dropped = place.messages.pop_front().expect("history lists each retained message once");
            place.dropped += 1;
            self.history_bytes -= dropped.len() + MESSAGE_OVERHEAD_BYTES;
        }
    }

    fn entry(&self, slot: Slot) -> Entry {
        match slot {
            Slot::Dropped(conversation) => Entry::Dropped { conversation },
            Slot::Held(StreamEntry { conversation, seq, origin }) => {
                match self.conversations.get(conversation).message(seq) {
                    Some(body) => Entry::Message { conversation, body: body.clone(), origin },
                    None => Entry::Dropped { conversation },
                }
            }
        }
    }
}

impl Store for Memory {
    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.users.try_intern(uid)
    }

    fn uid(&self, user: UserId) -> &str {
        &self.users.get(user).uid
    }

    fn login(&mut self, user: UserId, device: &str) -> DeviceCursor {
        self.users.login(user, device)
    }

    fn try_commit(&mut self, now_ms: u64, batch: Vec<Write>) -> Result<(), Vec<Write>> {
        let mut recipients = Vec::new();
        let outcomes = batch.into_iter().map(|write| self.write(now_ms, write, &mut recipients)).collect();
        self.committed.push_back(Committed { outcomes, recipients });
        Ok(())
    }

    fn poll_committed(&mut self) -> Option<Committed> {
        self.committed.pop_front()
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        match Name::parse(id)? {
            Name::Group(name) => self.conversations.group(name),
            Name::OneToOne(a, b) => self.conversations.one_to_one(self.users.find(a)?, self.users.find(b)?),
        }
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        match &self.conversations.get(conversation).kind {
            Kind::OneToOne(a, b) => names::write_one_to_one(into, self.uid(*a), self.uid(*b)),
            Kind::Group { name, .. } => {
                into.push_str("group:");
                into.push_str(name);
            }
        }
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        matches!(self.conversations.get(conversation).kind, Kind::Group { .. })
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.conversations.get(conversation).latest()
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.conversations.get(conversation).members.len()
    }

    fn members(&self, conversation: ConversationId, asker: UserId) -> Result<Vec<UserId>, Refusal> {
        let place = self.conversations.get(conversation);
        place.member(asker).ok_or(Refusal::NotMember)?;
        Ok(place.members.iter().map(|member| member.user).collect())
    }

    fn conversations(&self, user: UserId) -> Vec<ConversationId> {
        self.users.get(user).conversations.clone()
    }

    fn read_range(
        &self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal> {
        let place = self.conversations.get(conversation);
        let member = place.member(reader).ok_or(Refusal::NotMember)?;
        Ok(place.page(member.visible_from, range, limits))
    }

    fn read_stream(&self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>) {
        let slots = self.users.get(user).stream.after(after).take(limit);
        into.extend(slots.map(|(position, slot)| (position, self.entry(slot))));
    }

    fn stream_end(&self, user: UserId) -> u64 {
        self.users.get(user).stream.end()
    }
}
