//! Groups: who makes them, who is in them, who may do what there.

use super::{Effects, Engine, EngineStore};
use crate::im::store::directory::{Changed, Directory, EVENTS_MAX, Kind};
use crate::im::store::rules::{self, Wish};
use crate::im::store::{
    ConversationId, GroupChange, GroupEdit, GroupSettings, Member, NOBODY, Origin, Outcome, Refusal, Role,
    UserId, Write,
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
                let changed = self.change_group(conversation, by, change);
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
                Outcome::Done(match judge_dissolve(&self.directory, conversation, by) {
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
        let mut all: Vec<_> = members.iter().copied().chain([creator]).collect();
        all.sort_unstable();
        all.dedup();
        if all.len() > self.limits.group_members {
            return Err(Refusal::GroupFull);
        }
        self.directory.require_members(all.len())?;
        all.iter()
            .try_for_each(|user| self.limits.rules.judge_users(self, (creator, device), *user, Wish::Add))?;
        let role = |user| if user == creator { Role::Owner } else { Role::Member };
        let members: Vec<_> = all.into_iter().map(|user| (user, role(user))).collect();
        let kind = Kind::Group { name: name.into(), creator };
        Ok((self.directory.open(kind, &members).ok_or(Refusal::StoreFull)?, true))
    }

    /// Removed members; `None`: nothing changed.
    pub(super) fn change_group(
        &mut self,
        conversation: ConversationId,
        (by, device): Origin,
        change: GroupChange,
    ) -> Result<Option<Vec<UserId>>, Refusal> {
        let place = self.directory.conversations.get(conversation);
        if !place.is_group() {
            return Err(Refusal::Denied);
        }
        if place.is_dissolved {
            return Err(Refusal::NotFound);
        }
        match change {
            GroupChange::Join => {
                if place.member(by).is_some() {
                    return Ok(None);
                }
                let is_invited = self.directory.users.get(by).invitations().contains(&conversation);
                if place.is_by_invitation() && !is_invited {
                    return Err(Refusal::NotAllowed);
                }
                if place.members.len() >= self.limits.group_members {
                    return Err(Refusal::GroupFull);
                }
                self.directory.require_members(1)?;
                let role = if place.members.is_empty() { Role::Owner } else { Role::Member };
                let member = Member::new(by, role, place.numbered + 1);
                self.directory.admit(conversation, member);
                Ok(Some(Vec::new()))
            }
            GroupChange::Leave => {
                let Some(member) = place.member(by) else {
                    self.directory.uninvite(conversation, by);
                    return Ok(None);
                };
                let was_owner = member.role() == Role::Owner;
                self.directory.part(conversation, by);
                if was_owner {
                    self.crown_the_next(conversation);
                }
                Ok(Some(vec![by]))
            }
            GroupChange::Edit(edit) => {
                self.judge_edit(conversation, (by, device), &edit)?;
                Ok(self.edit(conversation, by, edit))
            }
        }
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
        let place = self.directory.conversations.get(conversation);
        let rank = |member: &&Member| (std::cmp::Reverse(member.role()), member.since);
        if let Some(next) = place.members.iter().min_by_key(rank).map(|member| member.user) {
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

    fn judge_edit(&self, conversation: ConversationId, by: Origin, edit: &GroupEdit) -> Result<(), Refusal> {
        let place = self.directory.conversations.get(conversation);
        let own = place.member(by.0).ok_or(Refusal::NotMember)?.role();
        let role_of = |user: UserId| place.member(user).map(Member::role);
        let require = |is_allowed: bool| if is_allowed { Ok(()) } else { Err(Refusal::NotAllowed) };
        require(edit.add.is_empty() || !place.is_by_invitation() || own >= Role::Admin)?;
        require(edit.settings.is_none() || own >= Role::Admin)?;
        for user in &edit.remove {
            // Nobody removes himself so: that is leaving.
            require(own >= Role::Admin && role_of(*user).is_none_or(|theirs| theirs < own))?;
        }
        if let Some((user, role)) = edit.role {
            let theirs = role_of(user).ok_or(Refusal::NotMember)?;
            require(own == Role::Owner && (theirs != Role::Owner || role == Role::Owner))?;
            if edit.remove.contains(&user) {
                return Err(Refusal::Denied);
            }
        }
        if let Some((user, _)) = edit.silence {
            require(own >= Role::Admin && role_of(user).ok_or(Refusal::NotMember)? < own)?;
        }
        let mut new: Vec<_> = edit.add.iter().filter(|user| role_of(**user).is_none()).collect();
        new.sort_unstable();
        new.dedup();
        if place.members.len() + new.len() > self.limits.group_members {
            return Err(Refusal::GroupFull);
        }
        self.directory.require_members(new.len())?;
        new.into_iter().try_for_each(|user| self.limits.rules.judge_users(self, by, *user, Wish::Add))
    }

    fn edit(&mut self, conversation: ConversationId, by: UserId, edit: GroupEdit) -> Option<Vec<UserId>> {
        let (mut has_changed, mut gone) = (false, Vec::new());
        for user in edit.add {
            let place = self.directory.conversations.get(conversation);
            if place.member(user).is_none() {
                let member = Member::new(user, Role::Member, place.numbered + 1);
                self.directory.admit(conversation, member);
                has_changed = true;
            }
        }
        for user in edit.remove {
            if self.directory.conversations.get(conversation).member(user).is_some() {
                self.directory.part(conversation, user);
                gone.push(user);
                has_changed = true;
            }
        }
        if let Some((user, role)) = edit.role {
            if role == Role::Owner && user != by {
                has_changed |= self.set_member(conversation, by, |member| member.set_role(Role::Admin));
            }
            has_changed |= self.set_member(conversation, user, |member| member.set_role(role));
        }
        if let Some((user, until)) = edit.silence {
            has_changed |= self.set_member(conversation, user, |member| member.silent_until_ms = until);
        }
        if let Some(settings) = edit.settings {
            let place = self.directory.conversations.get_mut(conversation);
            let settings = (settings != GroupSettings::default()).then(|| Box::new(settings));
            if place.settings != settings {
                place.settings = settings;
                self.directory.changed.push(Changed::Conversation(conversation));
                has_changed = true;
            }
        }
        has_changed.then_some(gone)
    }
}

fn judge_dissolve(
    directory: &Directory,
    conversation: ConversationId,
    (by, device): Origin,
) -> Result<(), Refusal> {
    let place = directory.conversations.get(conversation);
    if !place.is_group() {
        return Err(Refusal::Denied);
    }
    if place.is_dissolved {
        return Err(Refusal::NotFound);
    }
    if by == NOBODY && rules::is_operator(device) {
        return Ok(()); // the operator, for nobody
    }
    let role = place.member(by).ok_or(Refusal::NotMember)?.role();
    if role == Role::Owner { Ok(()) } else { Err(Refusal::NotAllowed) }
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
    store.directory.changed.push(Changed::Conversation(conversation));
    members
}
