//! Questions at the owner of their slot: groups, read marks, new users.
//!
//! bob leaves `group:tea`: the rules of groups say that he goes and who owns the group from now on, the event gets the next order
//! of the group, and with it the members and bob are told. A message after that has a larger order, and no copy for bob.

use super::caps::By;
use super::fanout::Audience;
use super::ops::{Build, Done, open};
use super::questions::{Answered, HeadRow, Kind, Question};
use super::slot::{Conversation, OUTBOX_MAX, OwnedSlot, User};
use super::{Asker, Limits};
use crate::cluster::cell::{ConversationRow, Ends, EventRow, Load, Membership, number_in};
use crate::im::store::rules::groups::{self, Effects, Group};
use crate::im::store::{
    ConversationId, GroupChange, GroupSettings, Member, Origin, Refusal, Relation, UserId,
};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::sync::Arc;

/// Users whose inboxes hold an event themselves; of more users the log of the conversation does.
const SINGLE_MAX: usize = 2;

/// A user who was a member, with the order from which on.
pub(super) type Gone = (UserId, u64);

/// Names of users.
type Named = [(UserId, Arc<str>)];

/// An event that is to be told.
pub(super) struct Telling<'a> {
    pub(super) audience: Audience<'a>,
    pub(super) is_settings: bool,
    pub(super) event: &'a Bytes,
}

/// Limits of a change at the owner of the group. Relations belong to users: the node that asks has judged them.
struct Judge {
    limits: Limits,
    /// The user who asks is invited to the group.
    is_invited: bool,
}

impl groups::Limits for Judge {
    fn group_members_max(&self) -> usize {
        self.limits.group_members
    }

    fn require_members(&self, _: usize) -> Result<(), Refusal> {
        Ok(())
    }

    fn judge_add(&self, _: Origin, _: UserId) -> Result<(), Refusal> {
        Ok(())
    }

    fn is_invited(&self, _: ConversationId, _: UserId) -> bool {
        self.is_invited
    }
}

impl Conversation {
    pub(super) fn head(&self) -> HeadRow {
        let ConversationRow { conversation, id, is_group, is_dissolved, members, .. } = &self.row;
        let (conversation, id) = (*conversation, id.clone());
        let (is_group, is_dissolved) = (*is_group, *is_dissolved);
        HeadRow { conversation, id, is_group, is_dissolved, members: members.len(), latest: self.stored.seq }
    }

    fn members(&self) -> Vec<Member> {
        self.row.members.iter().map(|it| it.member).collect()
    }

    fn group<'a>(&'a self, members: &'a [Member]) -> Group<'a> {
        let ConversationRow { conversation, is_group, is_dissolved, settings, .. } = &self.row;
        Group {
            conversation: *conversation,
            is_group: *is_group,
            is_dissolved: *is_dissolved,
            members,
            settings: Some(settings),
            next_seq: self.given.seq + 1,
        }
    }
}

impl Build<'_> {
    /// Reads that a question has to wait for.
    pub(super) fn needs_of_question(&self, slot: Slot, owned: &OwnedSlot, question: &Question) -> Vec<Load> {
        let mut needs = self.needs_of_place(slot, owned, question);
        needs.extend(Self::need_of_invited(owned, question));
        needs
    }

    /// Reads of the conversation or user of a question, and of users who are told.
    fn needs_of_place(&self, slot: Slot, owned: &OwnedSlot, question: &Question) -> Vec<Load> {
        let of_users = |users: &Named| -> Vec<Load> {
            self.needs_of_users(slot, &users.iter().map(|(user, _)| *user).collect::<Vec<_>>())
        };
        let (conversation, users) = match question {
            Question::MakeUser { uid } if owned.uids.contains_key(uid) => return Vec::new(),
            Question::MakeUser { uid } => return vec![Load::User(uid.clone())],
            Question::SetProfile { .. } | Question::SetSettings { .. } => return Vec::new(),
            Question::RemoveDevice { user, .. } | Question::RuleLogins { user, .. } => {
                return owned.need_of_user(*user);
            }
            Question::Invite { first: Some(first), users, .. } => {
                let mut needs = self.needs_of_place(slot, owned, first);
                needs.extend(self.needs_of_users(slot, users));
                return needs;
            }
            Question::CreateGroup { id, .. } | Question::Relate { id, .. } | Question::Invite { id, .. }
                if !owned.ids.contains_key(id) =>
            {
                return vec![Load::Conversation(id.clone())];
            }
            Question::Invite { users, .. } => return self.needs_of_users(slot, users),
            Question::CreateGroup { members, .. } => return of_users(members),
            Question::Relate { users, .. } => return of_users(users),
            Question::ChangeGroup { conversation, users, .. } => (conversation, &users[..]),
            Question::Dissolve { conversation, .. }
            | Question::Read { conversation, .. }
            | Question::Clear { conversation, .. } => (conversation, &[][..]),
        };
        let Some(place) = owned.conversations.get(conversation) else {
            let is_absent = owned.absent.contains(&conversation.number());
            return if is_absent { Vec::new() } else { vec![Load::ConversationNumber(*conversation)] };
        };
        let members: Vec<_> = place.row.members.iter().map(|it| it.member.user).collect();
        let mut needs = self.needs_of_users(slot, &members);
        needs.extend(of_users(users));
        needs
    }

    /// Does what a question asks. `tried` is the order of its event in a transaction of unknown outcome. Returns the order of
    /// its event. `None`: it has none.
    pub(super) fn ask(
        &mut self,
        slot: Slot,
        question: &Question,
        asker: Asker,
        tried: Option<u64>,
    ) -> Option<u64> {
        let events = self.transaction.events.len();
        match self.answer(slot, question, asker, tried) {
            Ok(None) => {}
            Ok(Some(answered)) => {
                self.done.push(Done::Answered(asker, question.kind(), slot, Ok(answered)));
            }
            Err(refusal) => {
                self.done.push(Done::Answered(asker, question.kind(), slot, Err(refusal)));
            }
        }
        self.transaction.events.get(events).map(|event| event.order)
    }

    /// Judges a question. `None`: the answer follows with its event.
    fn answer(
        &mut self,
        slot: Slot,
        question: &Question,
        asker: Asker,
        tried: Option<u64>,
    ) -> Result<Option<Answered>, Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        if owned.outbox >= OUTBOX_MAX {
            return Err(Refusal::Moved);
        }
        let conversation = match question {
            Question::MakeUser { uid } => {
                let user = self.user_of(slot, uid, By::Call)?;
                return Ok(Some(Answered::User(user, uid.clone())));
            }
            Question::SetProfile { user, profile } => {
                self.transaction.fence(slot, owned.epoch);
                self.transaction.profiles.retain(|(known, _)| known != user);
                self.transaction.profiles.push((*user, profile.clone()));
                return Ok(Some(Answered::Done));
            }
            Question::CreateGroup { id, by, members, event } => {
                return self.create_group(slot, (id, *by), members, event, asker);
            }
            Question::Relate { .. } => return self.relate(slot, question, asker, tried),
            Question::SetSettings { user, who_may_add } => {
                self.transaction.fence(slot, owned.epoch);
                self.transaction.settings.retain(|(known, _)| known != user);
                self.transaction.settings.push((*user, *who_may_add));
                return Ok(Some(Answered::Done));
            }
            Question::RemoveDevice { user, device } => {
                self.remove_device(slot, *user, *device);
                return Ok(Some(Answered::Done));
            }
            Question::RuleLogins { user, change } => {
                return self.rule_logins(slot, *user, *change).map(|()| Some(Answered::Done));
            }
            Question::Invite { id, by, users, event, first } => {
                let (answered, told) = match first {
                    Some(first) => (self.answer(slot, first, asker, tried)?, Asker::Nobody),
                    None => (Some(Answered::Done), asker),
                };
                let has_told = self.invite(slot, (id, *by), users, event, told);
                // Alone, it is answered with its event.
                return Ok(answered.filter(|_| first.is_some() || !has_told));
            }
            Question::ChangeGroup { conversation, .. }
            | Question::Dissolve { conversation, .. }
            | Question::Read { conversation, .. }
            | Question::Clear { conversation, .. } => *conversation,
        };
        self.answer_in(slot, conversation, question, (asker, tried))
    }

    /// Judges a question that is about a conversation. `None`: the answer follows with its event.
    fn answer_in(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        question: &Question,
        (asker, tried): (Asker, Option<u64>),
    ) -> Result<Option<Answered>, Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let place = owned.conversations.get(&conversation).ok_or(Refusal::NotFound)?;
        if tried.is_some_and(|order| order <= place.stored.order) {
            return Ok(Some(Answered::Conversation(place.head(), true)));
        }
        let unchanged = Answered::Conversation(place.head(), false);
        match question {
            Question::ChangeGroup { by, change, users, event, .. } => {
                let members = place.members();
                let is_invited = owned.is_invited(conversation, by.0);
                let judge = Judge { limits: self.limits, is_invited };
                let effects = groups::change(&judge, &place.group(&members), *by, change)?;
                if effects.is_empty() {
                    if is_invited && *change == GroupChange::Leave {
                        self.set_invited(slot, conversation, by.0, false);
                    }
                    return Ok(Some(unchanged));
                }
                let gone = self.apply(slot, conversation, effects, users)?;
                let is_settings = change.is_settings();
                let telling = Telling { audience: Audience::Members(&gone), is_settings, event };
                self.tell(slot, (conversation, *by), &telling, (asker, question.kind()));
            }
            Question::Dissolve { by, event, .. } => {
                let members = place.members();
                groups::judge_dissolve(&place.group(&members), *by)?;
                let removed = members.iter().map(|member| member.user).collect();
                let effects = Effects { removed, ..Effects::default() };
                let gone = self.apply(slot, conversation, effects, &[])?;
                let telling = Telling { audience: Audience::Members(&gone), is_settings: false, event };
                self.tell(slot, (conversation, *by), &telling, (asker, question.kind()));
            }
            Question::Read { by, seq, event, .. } => {
                place.row.member(by.0).ok_or(Refusal::NotMember)?;
                let others = place.row.members.iter().map(|it| it.member.user);
                // The other one is not told by somebody who may not write to him.
                let may_tell = !place.row.is_group && self.limits.judge_say(Ok(&place.row), *by).is_ok();
                let peer = others.filter(|user| may_tell && *user != by.0);
                let told: Vec<_> = [by.0].into_iter().chain(peer).collect();
                if !self.read(slot, conversation, by.0, *seq) {
                    return Ok(Some(unchanged));
                }
                let telling = Telling { audience: Audience::Some(&told), is_settings: false, event };
                self.tell(slot, (conversation, *by), &telling, (asker, question.kind()));
            }
            Question::Clear { by, to, event, .. } => {
                if !self.clear(slot, conversation, by.0, *to)? {
                    return Ok(Some(unchanged));
                }
                let telling = Telling { audience: Audience::Some(&[by.0]), is_settings: false, event };
                self.tell(slot, (conversation, *by), &telling, (asker, question.kind()));
            }
            Question::MakeUser { .. }
            | Question::SetProfile { .. }
            | Question::SetSettings { .. }
            | Question::RemoveDevice { .. }
            | Question::RuleLogins { .. }
            | Question::CreateGroup { .. }
            | Question::Invite { .. }
            | Question::Relate { .. } => {}
        }
        Ok(None)
    }

    /// Hides a conversation from a member. False: it is hidden up to there.
    fn clear(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        user: UserId,
        to: u64,
    ) -> Result<bool, Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let place = owned.place_mut(conversation).ok_or(Refusal::NotFound)?;
        let to = to.min(place.stored.seq);
        let mut member = place.row.member(user).ok_or(Refusal::NotMember)?.clone();
        if to <= member.member.cleared {
            return Ok(false);
        }
        member.member.cleared = to;
        place.set_member(member);
        self.touched.insert((conversation, user));
        Ok(true)
    }

    /// Returns a user of an own slot, who comes into being if the name is not known.
    pub(super) fn user_of(&mut self, slot: Slot, uid: &Arc<str>, by: By) -> Result<UserId, Refusal> {
        let owned = self.slots.get(&slot).ok_or(Refusal::Moved)?;
        if let Some(known) = owned.uids.get(uid).copied().flatten() {
            return Ok(known);
        }
        self.judge_user(by)?;
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        owned.users_count += 1;
        let user = UserId::new(number_in(slot, owned.users_count));
        owned.uids.insert(uid.clone(), Some(user));
        owned.absent.remove(&user.number());
        owned.users.insert(user, User::new(uid.clone()));
        self.transaction.users.push((user, uid.clone()));
        self.transaction.fence(slot, owned.epoch);
        Ok(user)
    }

    fn create_group(
        &mut self,
        slot: Slot,
        (id, by): (&Arc<str>, Origin),
        users: &Named,
        event: &Bytes,
        asker: Asker,
    ) -> Result<Option<Answered>, Refusal> {
        let has_room = self.judge_conversation();
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let known = owned.conversation(id).and_then(|of| owned.conversations.get(&of));
        if known.is_none() {
            has_room?;
        }
        if let Some(place) = known.filter(|place| !place.row.is_dissolved) {
            let is_same = place.row.creator == Some(by.0);
            let head = place.head();
            return if is_same {
                Ok(Some(Answered::Conversation(head, false)))
            } else {
                Err(Refusal::Conflict)
            };
        }
        // A group that is gone leaves its number and its seqs to the next one of its name.
        let (before, ends) =
            known.map_or((None, Ends::default()), |it| (Some(it.row.conversation), it.given));
        let members: Vec<_> = users.iter().map(|(user, _)| *user).collect();
        let judge = Judge { limits: self.limits, is_invited: false };
        let members = groups::create(&judge, by, &members, ends.seq + 1)?;
        let entered = ends.order + 1;
        let members = members.into_iter().map(|member| membership(member, users, entered));
        let mut members: Vec<Membership> = members.collect::<Result<_, _>>()?;
        // The creator has been in it longest.
        let creator = members.iter_mut().filter(|it| it.member.user == by.0);
        creator.for_each(|it| it.member.since = entered - 1);
        let conversation = before.unwrap_or_else(|| {
            owned.conversations_count += 1;
            ConversationId::new(number_in(slot, owned.conversations_count))
        });
        self.touched.extend(members.iter().map(|it| (conversation, it.member.user)));
        let row = ConversationRow {
            conversation,
            id: id.clone(),
            is_group: true,
            creator: Some(by.0),
            settings: GroupSettings::default(),
            is_dissolved: false,
            members,
        };
        match before.and_then(|before| owned.place_mut(before)) {
            Some(place) => {
                place.row = row;
                self.changed.insert(conversation);
            }
            None => open(owned, row, &mut self.opened),
        }
        let telling = Telling { audience: Audience::Members(&[]), is_settings: false, event };
        self.tell(slot, (conversation, by), &telling, (asker, Kind::Created));
        Ok(None)
    }

    /// Applies the effects of a change in memory; [`Build::finish`] writes them down. Returns removed users.
    fn apply(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        effects: Effects,
        users: &Named,
    ) -> Result<Vec<Gone>, Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let place = owned.place_mut(conversation).ok_or(Refusal::NotFound)?;
        let Effects { added, removed, changed, settings } = effects;
        let entered = place.given.order + 1;
        let added = added.into_iter().map(|member| membership(member, users, entered));
        let mut entering = Vec::new();
        for member in added.collect::<Result<Vec<_>, _>>()? {
            self.touched.insert((conversation, member.member.user));
            entering.push(member.member.user);
            place.set_member(member);
        }
        let mut gone = Vec::with_capacity(removed.len());
        for user in removed {
            if let Some(member) = place.row.member(user) {
                gone.push((user, member.entered));
            }
            self.touched.insert((conversation, user));
        }
        place.row.members.retain(|it| !gone.iter().any(|(user, _)| *user == it.member.user));
        for member in changed {
            if let Some(known) = place.row.member(member.user) {
                let known = Membership { member, ..known.clone() };
                self.touched.insert((conversation, member.user));
                place.set_member(known);
            }
        }
        if let Some(settings) = settings {
            place.row.settings = settings;
            self.changed.insert(conversation);
        }
        if place.row.members.is_empty() {
            (place.row.is_dissolved, place.row.settings) = (true, GroupSettings::default());
            self.changed.insert(conversation);
            self.uninvite_all(slot, conversation);
        } else {
            entering.into_iter().for_each(|user| self.set_invited(slot, conversation, user, false));
        }
        Ok(gone)
    }

    /// Adds an event, and the answer that follows it.
    pub(super) fn tell(
        &mut self,
        slot: Slot,
        (conversation, origin): (ConversationId, Origin),
        telling: &Telling<'_>,
        (asker, kind): (Asker, Kind),
    ) {
        let Telling { audience, is_settings, event } = *telling;
        let (order, recipients) = self.fan_out(slot, conversation, audience);
        let place = self.slots.get_mut(&slot).and_then(|owned| owned.place_mut(conversation));
        let number = place.filter(|_| recipients.len() > SINGLE_MAX).map(|place| {
            place.given.events += 1;
            place.given.events
        });
        self.done.push(Done::Told(asker, kind, self.transaction.events.len()));
        let (is_for_all, body) = (matches!(audience, Audience::Members(_)), event.clone());
        self.transaction.events.push(EventRow {
            conversation,
            order,
            number,
            is_settings,
            is_for_all,
            origin,
            body,
            recipients,
        });
    }
}

/// Completes a new membership. Its order among those of the group is that of its event.
fn membership(member: Member, users: &Named, entered: u64) -> Result<Membership, Refusal> {
    let uid = users.iter().find(|(user, _)| *user == member.user).map(|(_, uid)| uid.clone());
    let mut member = member;
    member.since = entered;
    let (uid, relation) = (uid.ok_or(Refusal::NotFound)?, Relation::default());
    Ok(Membership { member, uid, entered, relation })
}
