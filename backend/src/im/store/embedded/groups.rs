//! Groups: who makes them, who is in them, who may do what there.

use super::{Effects, Engine, EngineStore};
use crate::im::store::directory::{Changed, Directory, EVENTS_MAX, Kind};
use crate::im::store::rules::Wish;
use crate::im::store::rules::groups::{self, Effects as GroupEffects, Group};
use crate::im::store::{
    ConversationId, GroupChange, GroupSettings, Member, NOBODY, Origin, Outcome, Refusal, Role, UserId, Write,
};

impl<E: Engine> EngineStore<E> {
    /// Does a write of a group.
    pub(super) fn write_group(&mut self, write: Write, batch: &mut Effects) -> Result<Outcome, E::Error> {
        Ok(match write {
            Write::CreateGroup { name, creator, members, event } => {
                match self.create_group(&name, creator, &members) {
                    Ok((conversation, is_new)) => {
                        let delivery = if is_new {
                            self.tell_members(conversation, &[], creator, (event, false), batch)?
                        } else {
                            None
                        };
                        Outcome::Created(Ok((conversation, delivery)))
                    }
                    Err(refusal) => Outcome::Created(Err(refusal)),
                }
            }
            Write::Invite { group, by, users, event } => {
                let invited = self.invite(&group, by, &users);
                Outcome::Done(Ok(if invited.is_empty() {
                    None
                } else {
                    Some(self.tell(&invited, Some(by), event, batch)?)
                }))
            }
            Write::ChangeGroup { conversation, by, change, event } => {
                let is_settings = change.is_settings();
                let changed = self.change_group(conversation, by, &change);
                if self.directory.conversations.get(conversation).members.is_empty() {
                    dissolve(self, conversation);
                }
                Outcome::Done(match changed {
                    Ok(None) => Ok(None),
                    Ok(Some(gone)) => {
                        Ok(self.tell_members(conversation, &gone, by, (event, is_settings), batch)?)
                    }
                    Err(refusal) => Err(refusal),
                })
            }
            Write::Dissolve { conversation, by, event } => {
                Outcome::Done(match groups::judge_dissolve(&group(&self.directory, conversation), by) {
                    Ok(()) => {
                        let gone = dissolve(self, conversation);
                        Ok(self.tell_members(conversation, &gone, by, (event, false), batch)?)
                    }
                    Err(refusal) => Err(refusal),
                })
            }
            other => unreachable!("{other:?} is not a write of a group"),
        })
    }

    /// True: it is new.
    pub(super) fn create_group(
        &mut self,
        name: &str,
        (creator, device): Origin,
        members: &[UserId],
    ) -> Result<(ConversationId, bool), Refusal> {
        if let Some(known) = self.directory.conversations.group(name) {
            let is_same = self.directory.conversations.get(known).creator() == Some(creator);
            return if is_same { Ok((known, false)) } else { Err(Refusal::Conflict) };
        }
        let members = groups::create(self, (creator, device), members, 1)?;
        let members: Vec<_> = members.into_iter().map(|member| (member.user, member.role())).collect();
        let kind = Kind::Group { name: name.into(), creator };
        Ok((self.directory.open(kind, &members).ok_or(Refusal::StoreFull)?, true))
    }

    /// Removed members; `None`: nothing changed.
    pub(super) fn change_group(
        &mut self,
        conversation: ConversationId,
        by: Origin,
        change: &GroupChange,
    ) -> Result<Option<Vec<UserId>>, Refusal> {
        let group = group(&self.directory, conversation);
        let effects = groups::change(self, &group, by, change)?;
        if effects.is_empty() {
            if *change == GroupChange::Leave {
                self.directory.uninvite(conversation, by.0);
            }
            return Ok(None);
        }
        let GroupEffects { added, removed, changed, settings } = effects;
        added.into_iter().for_each(|member| self.directory.admit(conversation, member));
        removed.iter().for_each(|user| self.directory.part(conversation, *user));
        for member in changed {
            self.set_member(conversation, member.user, |known| *known = member);
        }
        if let Some(settings) = settings {
            let settings = (settings != GroupSettings::default()).then(|| Box::new(settings));
            self.directory.conversations.get_mut(conversation).settings = settings;
            self.directory.changed.push(Changed::Conversation(conversation));
        }
        Ok(Some(removed))
    }

    /// Invites users to a group. Returns those who were not invited before.
    pub(super) fn invite(&mut self, group: &str, by: Origin, users: &[UserId]) -> Vec<UserId> {
        let Some(conversation) = self.directory.conversations.group(group) else { return Vec::new() };
        let place = self.directory.conversations.get(conversation);
        let role = place.member(by.0).map(Member::role);
        if role.is_none_or(|role| place.is_by_invitation() && role < Role::Admin) {
            return Vec::new();
        }
        let may_ask = |user: &&UserId| {
            place.member(**user).is_none()
                && self.limits.rules.judge_users(self, by, **user, Wish::Add) != Err(Refusal::Blocked)
                && !self.directory.users.get(**user).invitations().contains(&conversation)
        };
        let mut asked: Vec<_> = users.iter().filter(may_ask).copied().collect();
        asked.retain(|user| self.directory.invite(conversation, *user));
        asked
    }

    /// The administrator, else the member, that has been in it longest owns it from now on.
    pub(super) fn crown_the_next(&mut self, conversation: ConversationId) {
        let group = group(&self.directory, conversation);
        if let Some(next) = groups::next_owner(&group, NOBODY) {
            self.set_member(conversation, next, |member| member.set_role(Role::Owner));
        }
    }

    fn set_member(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        set: impl FnOnce(&mut Member),
    ) -> bool {
        let Some(member) = self.directory.conversations.get_mut(conversation).member_mut(user) else {
            return false;
        };
        let before = *member;
        set(member);
        let has_changed = *member != before;
        if has_changed {
            self.directory.changed.push(Changed::Member(conversation, user));
        }
        has_changed
    }
}

impl<E: Engine> groups::Limits for EngineStore<E> {
    fn group_members_max(&self) -> usize {
        self.limits.group_members
    }

    fn require_members(&self, more: usize) -> Result<(), Refusal> {
        self.directory.require_members(more)
    }

    fn judge_add(&self, by: Origin, user: UserId) -> Result<(), Refusal> {
        self.limits.rules.judge_users(self, by, user, Wish::Add)
    }

    fn is_invited(&self, group: ConversationId, user: UserId) -> bool {
        self.directory.users.get(user).invitations().contains(&group)
    }
}

/// A conversation as the rules see it.
fn group(directory: &Directory, conversation: ConversationId) -> Group<'_> {
    let place = directory.conversations.get(conversation);
    Group {
        conversation,
        is_group: place.is_group(),
        is_dissolved: place.is_dissolved,
        members: &place.members,
        settings: place.settings.as_deref(),
        next_seq: place.numbered + 1,
    }
}

/// Ends a group. Returns those who were its members. Its messages are removed bit by bit.
pub(super) fn dissolve<E: Engine>(store: &mut EngineStore<E>, conversation: ConversationId) -> Vec<UserId> {
    let place = store.directory.conversations.get(conversation);
    if place.is_dissolved || !place.is_group() {
        return Vec::new();
    }
    let newest = place.events;
    let members: Vec<_> = place.members.iter().map(|member| member.user).collect();
    members.iter().for_each(|user| store.directory.remove_member(conversation, *user));
    store.directory.uninvite_all(conversation);
    (newest.saturating_sub(EVENTS_MAX - 1).max(1)..=newest)
        .for_each(|number| store.engine.remove_event(conversation, number));
    store.directory.conversations.get_mut(conversation).dissolve();
    store.directory.doomed.insert(conversation);
    store.directory.limits.remove(&conversation);
    store.directory.changed.push(Changed::Conversation(conversation));
    members
}
