//! Messages: storing one, taking one back, reading them.

use super::{Content, Effects, Engine, EngineStore, Known};
use crate::im::store::directory::{Changed, Directory, KEYS, Kind};
use crate::im::store::rules::{self, Wish, recalls};
use crate::im::store::{
    ConversationId, Delivery, Draft, Origin, Page, PageLimits, Recall, Recipient, Refusal, Role, Stored,
    Target, UserId, seal,
};
use bytes::{Bytes, BytesMut};

impl<E: Engine> EngineStore<E> {
    pub(super) fn append(
        &mut self,
        now_ms: u64,
        draft: Draft,
        batch: &mut Effects,
    ) -> Result<Result<Stored, Refusal>, E::Error> {
        let known_target = known_target(&self.directory, &draft);
        if let Some(result) = self.known(now_ms, &draft, known_target)? {
            return Ok(result);
        }
        let conversation = match self.judge_append(now_ms, &draft, known_target) {
            Ok(conversation) => conversation,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let sender = draft.sender;
        let stored = self.put(now_ms, draft, conversation, batch)?;
        // Who answers has read what was said before.
        self.directory.read(conversation, sender, stored.seq);
        Ok(Ok(stored))
    }

    /// The first result of a key that was used before.
    fn known(
        &mut self,
        now_ms: u64,
        draft: &Draft,
        target: Option<ConversationId>,
    ) -> Result<Option<Result<Stored, Refusal>>, E::Error> {
        let known = self.engine.key(now_ms, draft.sender, draft.key)?;
        // Keys of a deleted user of this name are nobody's.
        let erased = self.directory.erasures.get(draft.sender, KEYS);
        let known = known.filter(|known| erased.is_none_or(|erasure| known.id > erasure.to_id));
        Ok(known.map(|Known { conversation, seq, id, time_ms, digest }| {
            let is_same = digest == draft.digest && target == Some(conversation);
            if is_same {
                Ok(Stored { conversation, seq, id, time_ms, delivery: None })
            } else {
                Err(Refusal::Conflict)
            }
        }))
    }

    /// Conversation of the message, if the sender may write.
    fn judge_append(
        &mut self,
        now_ms: u64,
        draft: &Draft,
        known_target: Option<ConversationId>,
    ) -> Result<ConversationId, Refusal> {
        let peer = match (draft.target, known_target) {
            (Target::User(peer), _) => Some(peer),
            (Target::Conversation(_), known) => known.and_then(|known| self.peer(known, draft.sender)),
        };
        if let Some(peer) = peer {
            self.limits.rules.judge_users(self, (draft.sender, draft.device), peer, Wish::Say)?;
        }
        let conversation = match (known_target, draft.target) {
            (Some(conversation), _) => conversation,
            (None, Target::User(peer)) => self.open_one_to_one(draft.sender, peer)?,
            (None, Target::Conversation(_)) => return Err(Refusal::NotFound),
        };
        let place = self.directory.conversations.get(conversation);
        let member = place.member(draft.sender).ok_or(Refusal::NotMember)?;
        rules::judge_speaker(member, place.is_silent(), now_ms)?;
        if !rules::is_operator(draft.device)
            && let Some(limit) = self.directory.limits.get_mut(&conversation)
        {
            limit.take(now_ms)?;
        }
        Ok(conversation)
    }

    /// The other one of a conversation of two.
    pub(super) fn peer(&self, conversation: ConversationId, user: UserId) -> Option<UserId> {
        match self.directory.conversations.get(conversation).kind {
            Kind::OneToOne(a, b) => Some(if a == user { b } else { a }),
            Kind::Group { .. } => None,
        }
    }

    fn open_one_to_one(&mut self, a: UserId, b: UserId) -> Result<ConversationId, Refusal> {
        let (first, second) = (a.min(b), a.max(b));
        let members = [first, second].map(|user| (user, Role::Member));
        let members = if first == second { &members[..1] } else { &members[..] };
        self.directory.require_members(members.len())?;
        self.directory.open(Kind::OneToOne(first, second), members).ok_or(Refusal::StoreFull)
    }

    /// Numbers a message that may be stored, stores it, and puts it into inboxes.
    fn put(
        &mut self,
        now_ms: u64,
        draft: Draft,
        conversation: ConversationId,
        batch: &mut Effects,
    ) -> Result<Stored, E::Error> {
        let Draft { sender, device, key, id, time_ms, digest, body, .. } = draft;
        let stored = self.number(now_ms, (sender, device), (id, time_ms), body, conversation, batch)?;
        let known = Known { conversation, seq: stored.seq, id, time_ms, digest };
        self.engine.put_key(now_ms, sender, key, known)?;
        Ok(stored)
    }

    /// Numbers a message that needs no key, stores it, and puts it into inboxes.
    pub(super) fn number(
        &mut self,
        now_ms: u64,
        (sender, device): Origin,
        (id, time_ms): (u64, u64),
        body: BytesMut,
        conversation: ConversationId,
        batch: &mut Effects,
    ) -> Result<Stored, E::Error> {
        let place = self.directory.conversations.get_mut(conversation);
        place.numbered += 1;
        let seq = place.numbered;
        if place.judge_fanout(now_ms, self.limits.fanout) {
            self.directory.changed.push(Changed::Conversation(conversation));
        }
        let is_read_fanout = place.is_read_fanout;
        if is_read_fanout {
            place.unstreamed = seq;
            if place.unstreamed_from == 0 {
                place.unstreamed_from = seq;
            }
        }
        let body = seal(body, seq);
        self.engine.put_message(conversation, seq, &body);
        batch.progress.messages.push((conversation, seq));
        let first = batch.recipients.len();
        let members =
            if is_read_fanout { 0 } else { self.directory.conversations.get(conversation).members.len() };
        for index in 0..members {
            let member = self.directory.conversations.get(conversation).members[index];
            let user = member.user;
            if member.first_visible() > seq {
                continue;
            }
            let origin = (user == sender).then_some(device);
            if let Some(position) = self.put_entry(user, Content::Message(conversation, seq), origin)? {
                batch.recipients.push(Recipient { user, position });
                batch.progress.entries.push((user, position));
            }
        }
        let recipients = first..batch.recipients.len();
        let delivery = Some(Delivery { body, recipients, is_read_fanout });
        Ok(Stored { conversation, seq, id, time_ms, delivery })
    }

    pub(super) fn recall(
        &mut self,
        now_ms: u64,
        recall: Recall,
        batch: &mut Effects,
    ) -> Result<Result<Stored, Refusal>, E::Error> {
        let Recall { draft, seq, message_id } = recall;
        let target = known_target(&self.directory, &draft);
        if let Some(result) = self.known(now_ms, &draft, target)? {
            return Ok(result);
        }
        let (conversation, emptied) = match self.judge_recall(now_ms, &draft, seq, message_id, target) {
            Ok(judged) => judged,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.engine.replace_message(conversation, seq, &emptied);
        let stored = self.put(now_ms, draft, conversation, batch)?;
        let conversations = &self.directory.conversations;
        self.recalling.retain(|(of, _), by| *by > conversations.get(*of).durable);
        self.recalling.insert((conversation, seq), stored.seq);
        for seq in [seq, stored.seq] {
            self.directory.conversations.get_mut(conversation).uncount(seq, seq);
            self.directory.changed.push(Changed::Uncounted(conversation, seq));
        }
        Ok(Ok(stored))
    }

    /// Emptied message, if it may be recalled.
    fn judge_recall(
        &self,
        now_ms: u64,
        draft: &Draft,
        seq: u64,
        message_id: u64,
        target: Option<ConversationId>,
    ) -> Result<(ConversationId, Bytes), Refusal> {
        let conversation = target.ok_or(Refusal::NotFound)?;
        let place = self.directory.conversations.get(conversation);
        let member = place.member(draft.sender).ok_or(Refusal::NotMember)?;
        let is_there = seq >= member.first_visible() && seq > place.gone && seq <= place.durable;
        let body =
            is_there.then(|| self.engine.message(conversation, seq)).flatten().ok_or(Refusal::NotFound)?;
        let wish = recalls::Wish {
            by: self.directory.users.uid(draft.sender),
            role: member.role(),
            seq,
            message_id,
            is_under_way: self.recalling.get(&(conversation, seq)).is_some_and(|by| *by > place.durable),
            now_ms,
            window_ms: self.limits.recall_window_ms,
        };
        Ok((conversation, recalls::judge(&body, &wish)?))
    }

    pub(super) fn page(
        &self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal> {
        let place = self.directory.conversations.get(conversation);
        let member = place.member(reader).ok_or(Refusal::NotMember)?;
        let (from, to) = (range.0.max(1), range.1.min(place.durable));
        let mut page = Page { latest: place.durable, ..Page::default() };
        let first = from.max(member.first_visible()).max(place.gone + 1);
        if from < first && from <= to {
            page.voids.push((from, to.min(first - 1)));
        }
        if first > to {
            return Ok(page);
        }
        let (mut bytes, mut next) = (0, first);
        let is_whole = self.engine.messages(conversation, first..=to, &mut |seq, body| {
            if body.is_empty() {
                return true; // erased
            }
            bytes += body.len();
            let is_full = page.messages.len() >= limits.messages || bytes > limits.bytes;
            if is_full && !page.messages.is_empty() {
                page.more = true;
                return false;
            }
            if next < seq {
                match page.voids.last_mut() {
                    Some(last) if last.1 + 1 == next => last.1 = seq - 1,
                    _ => page.voids.push((next, seq - 1)),
                }
            }
            page.messages.push(body);
            next = seq + 1;
            true
        });
        if !is_whole && page.messages.is_empty() {
            return Err(Refusal::Unreadable);
        }
        page.more |= !is_whole;
        if !page.more && next <= to {
            page.voids.push((next, to));
        }
        Ok(page)
    }
}

/// Conversation that a draft is for, if it exists.
fn known_target(directory: &Directory, draft: &Draft) -> Option<ConversationId> {
    match draft.target {
        Target::User(peer) => directory.conversations.one_to_one(draft.sender, peer),
        Target::Conversation(conversation) => Some(conversation),
    }
}
