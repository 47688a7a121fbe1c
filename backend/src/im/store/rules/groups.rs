//! The rules of groups: who may make, change and end one, and what follows from it. Pure; each store applies the [`Effects`].
//!
//! bob, the owner of `group:tea`, leaves: [`change`] removes him, and makes the administrator owner who has been in it longest.

use super::is_operator;
use crate::im::store::{
    ConversationId, GroupChange, GroupEdit, GroupSettings, Member, NOBODY, Origin, Refusal, Role, UserId,
};
use std::cmp::Reverse;

/// A conversation as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The conversation.
    pub conversation: ConversationId,
    /// False for a conversation of two.
    pub is_group: bool,
    /// True once the group is gone.
    pub is_dissolved: bool,
    /// Members, in the order of their users.
    pub members: &'a [Member],
    /// Settings; `None`: none were set.
    pub settings: Option<&'a GroupSettings>,
    /// Seq of the next message.
    pub next_seq: u64,
}

/// Facts and limits beside the group.
pub trait Limits {
    /// Largest number of members of a group.
    fn group_members_max(&self) -> usize;

    /// Requires room for more memberships of all groups.
    ///
    /// # Errors
    /// [`Refusal::MembersFull`].
    fn require_members(&self, more: usize) -> Result<(), Refusal>;

    /// Judges whether somebody may make a user a member.
    ///
    /// # Errors
    /// See [`super::Rules::judge`].
    fn judge_add(&self, by: Origin, user: UserId) -> Result<(), Refusal>;

    /// True if the user is invited to the group.
    fn is_invited(&self, group: ConversationId, user: UserId) -> bool;
}

/// Effects of a change, to be applied in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// New members.
    pub added: Vec<Member>,
    /// Members who have gone, or were removed.
    pub removed: Vec<UserId>,
    /// Members with another role or silence.
    pub changed: Vec<Member>,
    /// New settings. `None`: they stay.
    pub settings: Option<GroupSettings>,
}

impl Group<'_> {
    /// Returns a membership.
    pub fn member(&self, user: UserId) -> Option<&Member> {
        let index = self.members.binary_search_by_key(&user, |member| member.user).ok()?;
        self.members.get(index)
    }

    fn role_of(&self, user: UserId) -> Option<Role> {
        self.member(user).map(Member::role)
    }

    fn is_by_invitation(&self) -> bool {
        self.settings.is_some_and(|settings| settings.by_invitation)
    }

    fn require_group(&self) -> Result<(), Refusal> {
        match (self.is_group, self.is_dissolved) {
            (false, _) => Err(Refusal::Denied),
            (true, true) => Err(Refusal::NotFound),
            (true, false) => Ok(()),
        }
    }
}

impl Effects {
    /// True if nothing changes.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty() && self.settings.is_none()
    }

    /// Changes a member, also one that is changed already; removed ones stay removed.
    fn change(&mut self, group: &Group<'_>, user: UserId, change: impl FnOnce(&mut Member)) {
        if self.removed.contains(&user) {
            return;
        }
        let known = self.changed.iter().position(|member| member.user == user);
        let before = known.map(|at| self.changed[at]).or_else(|| group.member(user).copied());
        let Some(before) = before else { return };
        let mut after = before;
        change(&mut after);
        match known {
            Some(at) => self.changed[at] = after,
            None if after != before => self.changed.push(after),
            None => {}
        }
    }
}

/// Judges a new group. Returns its members, in the order of their users; `first` is the seq of its first message.
///
/// # Errors
/// [`Refusal::GroupFull`], [`Refusal::MembersFull`], or the creator may not add one of the users.
pub fn create(
    limits: &impl Limits,
    creator: Origin,
    members: &[UserId],
    first: u64,
) -> Result<Vec<Member>, Refusal> {
    let mut all: Vec<_> = members.iter().copied().chain([creator.0]).collect();
    all.sort_unstable();
    all.dedup();
    if all.len() > limits.group_members_max() {
        return Err(Refusal::GroupFull);
    }
    limits.require_members(all.len())?;
    all.iter().try_for_each(|user| limits.judge_add(creator, *user))?;
    let role = |user| if user == creator.0 { Role::Owner } else { Role::Member };
    Ok(all.into_iter().map(|user| Member::new(user, role(user), first)).collect())
}

/// Judges a change. Returns its effects, which may be none.
///
/// # Errors
/// [`Refusal::Denied`]: not a group, or the change contradicts itself. [`Refusal::NotFound`]: the group is gone. Else what the
/// role, the settings and the limits forbid.
pub fn change(
    limits: &impl Limits,
    group: &Group<'_>,
    by: Origin,
    change: &GroupChange,
) -> Result<Effects, Refusal> {
    group.require_group()?;
    let mut effects = Effects::default();
    match change {
        GroupChange::Join => {
            if group.member(by.0).is_some() {
                return Ok(effects);
            }
            if group.is_by_invitation() && !limits.is_invited(group.conversation, by.0) {
                return Err(Refusal::NotAllowed);
            }
            if group.members.len() >= limits.group_members_max() {
                return Err(Refusal::GroupFull);
            }
            limits.require_members(1)?;
            let role = if group.members.is_empty() { Role::Owner } else { Role::Member };
            effects.added.push(Member::new(by.0, role, group.next_seq));
        }
        GroupChange::Leave => {
            if let Some(role) = group.role_of(by.0) {
                effects.removed.push(by.0);
                if role == Role::Owner
                    && let Some(next) = next_owner(group, by.0)
                {
                    effects.change(group, next, |member| member.set_role(Role::Owner));
                }
            }
        }
        GroupChange::Edit(edit) => {
            let new = judge_edit(limits, group, by, edit)?;
            let added = new.into_iter().map(|user| Member::new(user, Role::Member, group.next_seq));
            effects.added = added.collect();
            let mut gone = edit.remove.clone();
            let is_there = |user: &UserId| group.member(*user).is_some() || edit.add.contains(user);
            gone.retain(is_there);
            for user in gone {
                if !effects.removed.contains(&user) {
                    effects.removed.push(user);
                }
            }
            if let Some((user, role)) = edit.role {
                if role == Role::Owner && user != by.0 {
                    effects.change(group, by.0, |member| member.set_role(Role::Admin));
                }
                effects.change(group, user, |member| member.set_role(role));
            }
            if let Some((user, until)) = edit.silence {
                effects.change(group, user, |member| member.silent_until_ms = until);
            }
            let before = group.settings.cloned().unwrap_or_default();
            effects.settings = edit.settings.clone().filter(|settings| *settings != before);
        }
    }
    Ok(effects)
}

/// The administrator, else the member, who has been in the group longest, beside the owner who goes.
pub fn next_owner(group: &Group<'_>, gone: UserId) -> Option<UserId> {
    let rank = |member: &&Member| (Reverse(member.role()), member.since);
    group.members.iter().filter(|member| member.user != gone).min_by_key(rank).map(|member| member.user)
}

/// Judges an edit. Returns the users who become members, each once, in the order of the edit.
fn judge_edit(
    limits: &impl Limits,
    group: &Group<'_>,
    by: Origin,
    edit: &GroupEdit,
) -> Result<Vec<UserId>, Refusal> {
    let own = group.role_of(by.0).ok_or(Refusal::NotMember)?;
    let require = |is_allowed: bool| if is_allowed { Ok(()) } else { Err(Refusal::NotAllowed) };
    require(edit.add.is_empty() || !group.is_by_invitation() || own >= Role::Admin)?;
    require(edit.settings.is_none() || own >= Role::Admin)?;
    for user in &edit.remove {
        // Nobody removes himself so: that is leaving.
        require(own >= Role::Admin && group.role_of(*user).is_none_or(|theirs| theirs < own))?;
    }
    if let Some((user, role)) = edit.role {
        let theirs = group.role_of(user).ok_or(Refusal::NotMember)?;
        require(own == Role::Owner && (theirs != Role::Owner || role == Role::Owner))?;
        if edit.remove.contains(&user) {
            return Err(Refusal::Denied);
        }
    }
    if let Some((user, _)) = edit.silence {
        require(own >= Role::Admin && group.role_of(user).ok_or(Refusal::NotMember)? < own)?;
    }
    let mut new: Vec<UserId> = Vec::new();
    for user in &edit.add {
        if group.member(*user).is_none() && !new.contains(user) {
            new.push(*user);
        }
    }
    if group.members.len() + new.len() > limits.group_members_max() {
        return Err(Refusal::GroupFull);
    }
    limits.require_members(new.len())?;
    new.iter().try_for_each(|user| limits.judge_add(by, *user))?;
    Ok(new)
}

/// Judges the end of a group.
///
/// # Errors
/// [`Refusal::Denied`]: not a group. [`Refusal::NotFound`]: it is gone. [`Refusal::NotMember`], [`Refusal::NotAllowed`].
pub fn judge_dissolve(group: &Group<'_>, (by, device): Origin) -> Result<(), Refusal> {
    group.require_group()?;
    if by == NOBODY && is_operator(device) {
        return Ok(()); // the operator, for nobody
    }
    let role = group.role_of(by).ok_or(Refusal::NotMember)?;
    if role == Role::Owner { Ok(()) } else { Err(Refusal::NotAllowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::im::store::DeviceNumber;

    struct Open;

    impl Limits for Open {
        fn group_members_max(&self) -> usize {
            4
        }

        fn require_members(&self, _: usize) -> Result<(), Refusal> {
            Ok(())
        }

        fn judge_add(&self, _: Origin, _: UserId) -> Result<(), Refusal> {
            Ok(())
        }

        fn is_invited(&self, _: ConversationId, _: UserId) -> bool {
            false
        }
    }

    fn by(user: u32) -> Origin {
        (UserId::of(user), DeviceNumber(1))
    }

    fn group(members: &[Member]) -> Group<'_> {
        Group {
            conversation: ConversationId::of(1),
            is_group: true,
            is_dissolved: false,
            members,
            settings: None,
            next_seq: 8,
        }
    }

    #[test]
    fn the_owner_leaves_and_the_oldest_administrator_follows() {
        let mut members = create(&Open, by(2), &[UserId::of(1), UserId::of(3)], 1).expect("room");
        for (member, since) in members.iter_mut().zip([9, 1, 5]) {
            member.since = since;
        }
        let left = change(&Open, &group(&members), by(2), &GroupChange::Leave).expect("left");
        assert_eq!((left.removed, left.changed[0].user), (vec![UserId::of(2)], UserId::of(3)));
        members[0].set_role(Role::Admin);
        let left = change(&Open, &group(&members), by(2), &GroupChange::Leave).expect("left");
        assert_eq!((left.changed[0].user, left.changed[0].role()), (UserId::of(1), Role::Owner));
        assert!(change(&Open, &group(&members), by(9), &GroupChange::Leave).expect("no change").is_empty());
    }

    #[test]
    fn an_edit_is_done_as_a_whole() {
        let members = create(&Open, by(2), &[UserId::of(1), UserId::of(3)], 1).expect("room");
        let edit = GroupEdit {
            add: vec![UserId::of(5), UserId::of(5)],
            remove: vec![UserId::of(1)],
            role: Some((UserId::of(3), Role::Owner)),
            silence: Some((UserId::of(3), 70)),
            settings: Some(GroupSettings::default()),
        };
        let done = change(&Open, &group(&members), by(2), &GroupChange::Edit(edit)).expect("done");
        assert_eq!(done.added, [Member::new(UserId::of(5), Role::Member, 8)]);
        let changed: Vec<_> =
            done.changed.iter().map(|it| (it.user.index(), it.role(), it.silent_until_ms)).collect();
        assert_eq!(changed, [(2, Role::Admin, 0), (3, Role::Owner, 70)]);
        assert_eq!((done.removed, done.settings), (vec![UserId::of(1)], None));
        let many = (10..12).map(UserId::of).collect();
        let edit = GroupChange::Edit(GroupEdit { add: many, ..GroupEdit::default() });
        assert_eq!(change(&Open, &group(&members), by(2), &edit), Err(Refusal::GroupFull));
    }
}
