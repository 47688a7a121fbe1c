//! Operations of users beside messages: read marks, relations, devices.

use super::{Engine, EngineStore};
use crate::im::store::directory::Changed;
use crate::im::store::rules::Wish;
use crate::im::store::rules::relations::is_private;
use crate::im::store::{ConversationId, Origin, Refusal, RelationChange, UserId};

impl<E: Engine> EngineStore<E> {
    /// Users to notify; `None`: nothing changed. The other user of a conversation of two is not told by somebody who may
    /// not write to him.
    pub(super) fn mark_read(
        &mut self,
        conversation: ConversationId,
        (user, device): Origin,
        seq: u64,
    ) -> Result<Option<Vec<UserId>>, Refusal> {
        if self.directory.conversations.get(conversation).member(user).is_none() {
            return Err(Refusal::NotMember);
        }
        if !self.directory.read(conversation, user, seq) {
            return Ok(None);
        }
        let may_tell =
            |peer: &UserId| self.limits.rules.judge_users(self, (user, device), *peer, Wish::Say).is_ok();
        let peer = self.peer(conversation, user).filter(|peer| *peer != user && may_tell(peer));
        Ok(Some([user].into_iter().chain(peer).collect()))
    }

    /// Users to notify; `None`: nothing changed.
    pub(super) fn relate(
        &mut self,
        (user, _): Origin,
        other: UserId,
        change: RelationChange,
    ) -> Result<Option<Vec<UserId>>, Refusal> {
        let relations = &mut self.directory.relations;
        let (own, theirs) = relations.judge(user, other, change)?;
        let before = (relations.get(user, other), relations.get(other, user));
        if (own, theirs) == before {
            return Ok(None);
        }
        relations.set(user, other, own);
        relations.set(other, user, theirs);
        self.directory.changed.extend([Changed::Relation(user, other), Changed::Relation(other, user)]);
        Ok(Some(if is_private(change) { vec![user] } else { vec![user, other] }))
    }

    pub(super) fn on_acked(&mut self, now_ms: u64, (user, device): Origin, position: u64, gone_ms: u64) {
        let users = &mut self.directory.users;
        let mut has_news = users.on_acked(user, device, position);
        if gone_ms > 0
            && let Some(known) = users.get_mut(user).device_mut(device)
        {
            known.seen_ms = gone_ms;
            has_news = true;
        }
        if has_news {
            self.acks.push(now_ms, user, device);
        }
    }

    pub(super) fn confirm(&mut self, (user, device): Origin, conversation: ConversationId, seq: u64) {
        let place = self.directory.conversations.get(conversation);
        // What goes through inboxes is acked there.
        let seq = seq.min(place.unstreamed);
        if place.member(user).is_none() || seq == 0 {
            return;
        }
        let Some(device) = self.directory.users.get_mut(user).device_mut(device) else { return };
        if device.confirm(conversation, seq) {
            self.directory.changed.push(Changed::Confirmed(user, device.number, conversation));
        }
    }
}
