//! Invitations at the owner of the group: who is invited, and who may join for that.
//!
//! dave lets only friends add him to groups. carol adds him to `group:tea`: he is invited. The owner of the group notes it, gives
//! the event the next order of the group, and his list of invitations changes with that entry of his stream. He joins: the
//! invitation ends with it. His list shows only groups that still say that he is invited.

use super::Asker;
use super::fanout::Audience;
use super::groups::Telling;
use super::ops::Build;
use super::questions::{Kind, Question};
use super::slot::OwnedSlot;
use crate::cluster::cell::Load;
use crate::im::store::{ConversationId, GroupChange, Member, Origin, Role, UserId};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::sync::Arc;

impl Question {
    /// Id of a group that the question makes. `None`: it makes none.
    pub(super) fn creates(&self) -> Option<&Arc<str>> {
        match self {
            Self::CreateGroup { id, .. } => Some(id),
            Self::Invite { first: Some(first), .. } => first.creates(),
            _ => None,
        }
    }
}

impl OwnedSlot {
    /// True if a user is invited to a group; what was not asked for counts as no.
    pub(super) fn is_invited(&self, group: ConversationId, user: UserId) -> bool {
        self.invited.get(&(group, user)).copied().unwrap_or(false)
    }

    /// Read that tells which of these users are invited to a group. `None`: it is known.
    fn need_invited(&self, group: ConversationId, users: impl Iterator<Item = UserId>) -> Option<Load> {
        let place = self.conversations.get(&group).filter(|place| !place.row.is_dissolved)?;
        let unknown = users
            .filter(|user| place.row.member(*user).is_none() && !self.invited.contains_key(&(group, *user)));
        let mut unknown: Vec<_> = unknown.collect();
        unknown.sort_unstable();
        unknown.dedup();
        (!unknown.is_empty()).then_some(Load::Invited(group, unknown))
    }
}

impl Build<'_> {
    /// Read of invitations that a question has to wait for, once its group is in memory. `None`: there is none.
    pub(super) fn need_of_invited(owned: &OwnedSlot, question: &Question) -> Option<Load> {
        match question {
            Question::ChangeGroup {
                conversation,
                by,
                change: GroupChange::Join | GroupChange::Leave,
                ..
            } => owned.need_invited(*conversation, std::iter::once(by.0)),
            Question::Invite { id, users, .. } => {
                owned.need_invited(owned.conversation(id)?, users.iter().copied())
            }
            _ => None,
        }
    }

    /// True if a group has ended in this transaction.
    pub(super) fn has_just_ended(&self, slot: Slot, id: &str) -> bool {
        let known = self.slots.get(&slot).and_then(|owned| owned.conversation(id));
        known.is_some_and(|group| self.transaction.uninvited.contains(&group))
    }

    /// Invites those users who are not members, and not invited, if the asking one may. False: there are none. `asker` is answered with
    /// the event.
    pub(super) fn invite(
        &mut self,
        slot: Slot,
        (id, by): (&str, Origin),
        users: &[UserId],
        event: &Bytes,
        asker: Asker,
    ) -> bool {
        let Some(owned) = self.slots.get(&slot) else { return false };
        let Some(group) = owned.conversation(id) else { return false };
        let Some(place) = owned.conversations.get(&group) else { return false };
        let role = place.row.member(by.0).map(|it| Member::role(&it.member));
        if role.is_none_or(|role| place.row.settings.by_invitation && role < Role::Admin) {
            return false;
        }
        let is_new = |user: &UserId| place.row.member(*user).is_none() && !owned.is_invited(group, *user);
        let mut asked: Vec<_> = users.iter().copied().filter(is_new).collect();
        asked.sort_unstable();
        asked.dedup();
        if asked.is_empty() {
            return false;
        }
        asked.iter().for_each(|user| self.set_invited(slot, group, *user, true));
        let telling = Telling { audience: Audience::Invited(&asked), is_settings: false, event };
        self.tell(slot, (group, by), &telling, (asker, Kind::Done));
        true
    }

    /// Notes that a user is invited to a group, or is not any more.
    pub(super) fn set_invited(&mut self, slot: Slot, group: ConversationId, user: UserId, is_invited: bool) {
        if let Some(owned) = self.slots.get_mut(&slot) {
            owned.invited.insert((group, user), is_invited);
            self.invited.insert((group, user), is_invited);
            self.transaction.fence(slot, owned.epoch);
        }
    }

    /// Notes that nobody is invited to a group that has ended.
    pub(super) fn uninvite_all(&mut self, slot: Slot, group: ConversationId) {
        if let Some(owned) = self.slots.get_mut(&slot) {
            let of_group = owned.invited.iter_mut().filter(|((of, _), _)| *of == group);
            of_group.for_each(|(_, is_invited)| *is_invited = false);
        }
        self.invited.retain(|(of, _), _| *of != group);
        self.transaction.uninvited.push(group);
    }
}
