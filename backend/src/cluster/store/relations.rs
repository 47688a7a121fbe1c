//! Relations at the owner of the conversation of two users, and what they say of a SEND.
//!
//! alice blocks bob: the owner of `c2c:alice:bob` notes what she makes of him beside her membership, gives the event the next
//! order of the conversation, and tells her. Her list of relations changes with that entry of her stream. A SEND of bob that
//! gets a later order is refused.

use super::fanout::Audience;
use super::groups::Telling;
use super::ops::{Build, open_pair};
use super::questions::{Answered, Kind, Question};
use super::slot::Conversation;
use super::{Asker, Limits};
use crate::cluster::cell::{ConversationRow, Membership, RelatedRow};
use crate::im::names;
use crate::im::store::rules::relations::{self, Both};
use crate::im::store::rules::{self, Contact, Wish};
use crate::im::store::{ConversationId, Origin, Refusal, Relation, UserId};
use moorline_proto::slots::Slot;
use std::sync::Arc;

impl Limits {
    /// Judges whether a user may say something in a conversation. `None`: it is one of this many users, that does not exist.
    pub(super) fn judge_say(
        &self,
        row: Result<&ConversationRow, usize>,
        (user, device): Origin,
    ) -> Result<(), Refusal> {
        let contact = match row {
            Ok(row) if row.is_group => return Ok(()),
            Ok(row) => {
                let of = |it: &&Membership| it.member.user == user;
                let own = row.members.iter().find(of).map(|it| it.relation);
                let theirs = row.members.iter().find(|it| !of(it)).map(|it| it.relation);
                Contact {
                    is_self: row.members.len() == 1,
                    own: own.unwrap_or_default(),
                    theirs: theirs.unwrap_or_default(),
                    ..Contact::default()
                }
            }
            Err(members) => Contact { is_self: members == 1, ..Contact::default() },
        };
        let is_operator = rules::is_operator(device);
        self.rules.judge(Wish::Say, Contact { is_operator, ..contact })
    }
}

impl ConversationRow {
    /// Returns the relations of a user and of the other one of a conversation of two.
    pub(super) fn relations(&self, user: UserId) -> Both<Relation> {
        let of = |is_own: bool| self.members.iter().find(|it| (it.member.user == user) == is_own);
        let relation = |is_own| of(is_own).map(|it| it.relation).unwrap_or_default();
        Both { own: relation(true), theirs: relation(false) }
    }
}

impl Conversation {
    /// The answer to a change of a relation.
    pub(super) fn related(&self, user: UserId, has_changed: bool) -> Answered {
        let other = self.row.members.iter().map(|it| it.member.user).find(|other| *other != user);
        let relations = self.row.relations(user);
        Answered::Related { user, other: other.unwrap_or(user), relations, has_changed }
    }
}

impl Build<'_> {
    /// Changes the relation of two users. `None`: the answer follows with the event.
    pub(super) fn relate(
        &mut self,
        slot: Slot,
        question: &Question,
        asker: Asker,
        tried: Option<u64>,
    ) -> Result<Option<Answered>, Refusal> {
        let Question::Relate { id, by, users, change, counts, event } = question else { return Ok(None) };
        let other = users.iter().map(|(user, _)| *user).find(|user| *user != by.0).ok_or(Refusal::Denied)?;
        let has_room = self.judge_conversation();
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let known = owned.conversation(id);
        let place = known.and_then(|known| owned.conversations.get(&known));
        if let Some(place) = place.filter(|place| tried.is_some_and(|order| order <= place.stored.order)) {
            return Ok(Some(place.related(by.0, true)));
        }
        let before = place.map(|place| place.row.relations(by.0)).unwrap_or_default();
        let after = relations::judge(self.limits.relations, before, *counts, *change)?;
        if after == before {
            let (user, relations, has_changed) = (by.0, after, false);
            return Ok(Some(Answered::Related { user, other, relations, has_changed }));
        }
        if known.is_none() {
            has_room?;
        }
        let conversation = known.unwrap_or_else(|| open_pair(owned, slot, id, users, &mut self.opened));
        let place = owned.place_mut(conversation).ok_or(Refusal::Moved)?;
        for it in &mut place.row.members {
            it.relation = if it.member.user == by.0 { after.own } else { after.theirs };
            self.touched.insert((conversation, it.member.user));
        }
        let told = if relations::is_private(*change) { vec![by.0] } else { vec![by.0, other] };
        let telling = Telling { audience: Audience::Related(&told), is_settings: false, event };
        self.tell(slot, (conversation, *by), &telling, (asker, Kind::Related));
        Ok(None)
    }

    /// Notes the effect of an entry on the list of relations of its user.
    pub(super) fn list_relation(
        &mut self,
        user: UserId,
        (conversation, id): (ConversationId, &Arc<str>),
        (other, relation): (UserId, Relation),
        order: u64,
    ) {
        let slot = crate::cluster::cell::slot_of(user.number());
        let own = self.slots.get(&slot).and_then(|owned| owned.users.get(&user)).map(|it| it.uid.clone());
        let Some(names::Conversation::OneToOne(first, second)) = names::Conversation::parse(id) else {
            return;
        };
        let uid = if own.as_deref() == Some(first) { second } else { first };
        let row = RelatedRow { user, conversation, order, other, uid: uid.into(), relation };
        self.transaction.related.push(row);
    }
}
