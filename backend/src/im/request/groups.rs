//! Groups: making them, coming and going, roles, silence, settings.

use super::{Asked, Requests, Step, Then, fill, peer, plan_users};
use crate::im::delivery::Deliveries;
use crate::im::output::Reply;
use crate::im::quotas::Quota;
use crate::im::refusal::{Refused, refuse, refused};
use crate::im::store::rules::{Rules, Wish};
use crate::im::store::{
    ConversationId, Delivery, Facts, GroupChange, GroupEdit, Member, Need, Origin, ReadSet, Recipient,
    Refusal, Role, Store, UserId, Write,
};
use crate::im::{Output, names};
use bytes::Bytes;
use moorline_proto::message::client::Code;
use moorline_proto::message::{encode, im};

/// Longest title and notice of a group, in bytes.
const TITLE_BYTES_MAX: usize = 256;
const NOTICE_BYTES_MAX: usize = 4 << 10;
/// Users that one change of a group names.
const CHANGED_USERS_MAX: usize = 1000;

impl<F: Facts> Requests<'_, F> {
    pub(super) fn create(&mut self, asked: &Asked, request: im::GroupCreateRequest) -> Result<Step, Refused> {
        if !names::is_valid(&request.group) {
            let reason = format!("`group` is not a valid group name: {}", names::RULE);
            return Err(refuse(Code::Invalid, reason));
        }
        if request.members.len() > self.config.group_members_max {
            return Err(refused(Refusal::GroupFull));
        }
        let Added { members, mut names, invited, invited_names } =
            self.added(asked, "members", &request.members)?;
        let conversation = format!("group:{}", request.group);
        if self.facts.find(&conversation).is_none() {
            self.charge(asked, &[(Quota::Groups, 1), (Quota::Members, members.len() as u64 + 1)])?;
        }
        let by = asked.uid().to_owned();
        names.truncate(CHANGED_USERS_MAX);
        let changed = im::GroupChanged { by, added: names, ..Default::default() };
        let event = self.group_event(asked, &conversation, changed);
        let name = request.group.clone();
        let write = Write::CreateGroup { name, creator: asked.origin, members, event };
        if invited.is_empty() {
            return Ok(Step::Write(write, Then::Created(Vec::new())));
        }
        self.charge(asked, &[(Quota::Members, invited.len() as u64)])?;
        let invite = self.invitation(asked, request.group, "", invited);
        Ok(Step::Invite(write, Then::Created(invited_names), invite))
    }

    /// Users whom the author adds to a group: those who become members, and those who are invited.
    ///
    /// # Errors
    /// A user is not known, or one of the two has blocked the other.
    fn added(&mut self, asked: &Asked, field: &str, uids: &[String]) -> Result<Added, Refused> {
        let rules = Rules::new(self.config);
        let users = self.named(asked, field, uids)?;
        let mut added = Added::default();
        for (user, uid) in users.into_iter().zip(uids) {
            match rules.judge(Wish::Add, self.facts.contact(asked.origin, user)) {
                Ok(()) => {
                    added.members.push(user);
                    added.names.push(uid.clone());
                }
                Err(Refusal::NotFriends) => {
                    added.invited.push(user);
                    added.invited_names.push(uid.clone());
                }
                Err(refusal) => {
                    let (code, reason) = refused(refusal);
                    return Err(refuse(code, format!("`{field}`: cannot add `{uid}`: {reason}")));
                }
            }
        }
        Ok(added)
    }

    fn invitation(&mut self, asked: &Asked, group: String, title: &str, users: Vec<UserId>) -> Write {
        let invited = im::GroupInvited { by: asked.uid().to_owned(), title: title.to_owned() };
        let what = im::happened::What::Invited(invited);
        let (_, event) = self.encode_happened(asked, &format!("group:{group}"), what);
        Write::Invite { group, by: asked.origin, users, event: event.freeze() }
    }

    fn group_event(&mut self, asked: &Asked, conversation: &str, changed: im::GroupChanged) -> Bytes {
        let what = im::happened::What::Group(changed);
        self.encode_happened(asked, conversation, what).1.freeze()
    }

    pub(super) fn join(&mut self, asked: &Asked, request: im::GroupRequest) -> Result<Step, Refused> {
        let (conversation, name) = self.group(asked, request)?;
        self.charge(asked, &[(Quota::Members, 1), (Quota::GroupChanges, 1)])?;
        let by = asked.uid().to_owned();
        let changed = im::GroupChanged { added: vec![by.clone()], by, ..Default::default() };
        let event = self.group_event(asked, &name, changed);
        let change = GroupChange::Join;
        let write = Write::ChangeGroup { conversation, by: asked.origin, change, event };
        Ok(Step::Write(write, Then::Joined(conversation)))
    }

    pub(super) fn leave(&mut self, asked: &Asked, request: im::GroupRequest) -> Result<Step, Refused> {
        let (conversation, name) = self.group(asked, request)?;
        self.charge(asked, &[(Quota::GroupChanges, 1)])?;
        let by = asked.uid().to_owned();
        let changed = im::GroupChanged { removed: vec![by.clone()], by, ..Default::default() };
        let event = self.group_event(asked, &name, changed);
        let change = GroupChange::Leave;
        let write = Write::ChangeGroup { conversation, by: asked.origin, change, event };
        Ok(Step::Write(write, Then::Left(conversation, vec![asked.origin.0], Bytes::new())))
    }

    pub(super) fn change(&mut self, asked: &Asked, request: im::GroupChangeRequest) -> Result<Step, Refused> {
        let set_role = request.role();
        let im::GroupChangeRequest { conversation: name, add, remove, user, role, silent_until_ms, settings } =
            request;
        if peer(asked.uid(), &name)?.is_some() {
            return Err(refused(Refusal::Denied));
        }
        let conversation = self.own_conversation(asked, &name)?;
        if add.len() + remove.len() > CHANGED_USERS_MAX {
            return Err(refuse(Code::TooLarge, "`add` and `remove` name more than 1000 users"));
        }
        if let Some(settings) = &settings
            && (settings.title.len() > TITLE_BYTES_MAX || settings.notice.len() > NOTICE_BYTES_MAX)
        {
            return Err(refuse(
                Code::TooLarge,
                "`title` has more than 256 bytes, or `notice` more than 4 KiB",
            ));
        }
        if user.is_empty() != (set_role == Role::Unset && silent_until_ms.is_none()) {
            return Err(refuse(
                Code::Invalid,
                "`user` is set without `role` and `silent_until_ms`, or one of them without `user`",
            ));
        }
        let whose = match &user[..] {
            "" => None,
            _ => self.named(asked, "user", std::slice::from_ref(&user))?.pop(),
        };
        let Added { members, names: add, invited, invited_names } = self.added(asked, "add", &add)?;
        let made = (members.len() + invited.len()) as u64;
        self.charge(asked, &[(Quota::GroupChanges, 1), (Quota::Members, made)])?;
        let edit = GroupEdit {
            add: members,
            // Whoever is not known is not a member either.
            remove: remove.iter().filter_map(|uid| self.facts.find_user(uid)).collect(),
            role: whose.filter(|_| set_role != Role::Unset).map(|whose| (whose, set_role)),
            silence: whose.zip(silent_until_ms),
            settings: settings.clone().map(Into::into),
        };
        let leaving = edit.remove.clone();
        let by = asked.uid().to_owned();
        let changed =
            im::GroupChanged { by, added: add, removed: remove, user, role, silent_until_ms, settings };
        let event = self.group_event(asked, &name, changed);
        let write =
            Write::ChangeGroup { conversation, by: asked.origin, change: GroupChange::Edit(edit), event };
        if invited.is_empty() {
            return Ok(Step::Write(write, Then::Left(conversation, leaving, Bytes::new())));
        }
        let group = name.strip_prefix("group:").unwrap_or_default().to_owned();
        let title = self.facts.settings(conversation).title;
        let invite = self.invitation(asked, group, &title, invited);
        let answer = encode(&im::GroupChangeResponse { invited: invited_names });
        Ok(Step::Invite(write, Then::Left(conversation, leaving, answer), invite))
    }

    /// The group that a request to join or leave names.
    fn group(&self, asked: &Asked, request: im::GroupRequest) -> Result<(ConversationId, String), Refused> {
        if peer(asked.uid(), &request.conversation)?.is_some() {
            return Err(refused(Refusal::Denied));
        }
        let found = self.facts.find(&request.conversation).ok_or_else(|| refused(Refusal::NotFound))?;
        Ok((found, request.conversation))
    }

    pub(super) fn group_members(&self, asked: &Asked, request: &im::GroupRequest) -> Result<Step, Refused> {
        let peer = peer(asked.uid(), &request.conversation)?;
        if let (Some(peer), None) = (peer, self.facts.find(&request.conversation)) {
            let mut members = vec![asked.uid().to_owned(), peer.to_owned()];
            members.dedup();
            return Ok(Step::Answer(encode(&im::GroupResponse { members, more: false })));
        }
        let conversation = self.own_conversation(asked, &request.conversation)?;
        Ok(Step::Answer(self.members_answer(conversation, &request.after)))
    }

    /// Members whose uids come after `after`, in the order of their bytes.
    fn members_after(&self, conversation: ConversationId, after: &str) -> Vec<(&str, Member)> {
        let members = self.facts.members(conversation, None);
        let named = members.map(|member| (self.facts.uid(member.user), member));
        let mut members: Vec<_> = named.filter(|(uid, _)| *uid > after).collect();
        members.sort_unstable_by_key(|(uid, _)| *uid);
        members
    }

    fn members_answer(&self, conversation: ConversationId, after: &str) -> Bytes {
        let mut room = self.answer_bytes_max();
        let (mut members, mut more) = (Vec::new(), false);
        for (uid, _) in self.members_after(conversation, after) {
            let Some(left) = room.checked_sub(uid.len() + 3) else {
                more = true;
                break;
            };
            room = left;
            members.push(uid.to_owned());
        }
        encode(&im::GroupResponse { members, more })
    }

    /// Answers a join: the members of a small group; for a large group, only that there are more.
    pub(in crate::im) fn welcome(&self, conversation: ConversationId) -> Bytes {
        if self.facts.member_count(conversation) > self.config.fanout_members_max {
            return encode(&im::GroupResponse { members: Vec::new(), more: true });
        }
        self.members_answer(conversation, "")
    }

    pub(super) fn group_info(&self, asked: &Asked, request: &im::GroupRequest) -> Result<Step, Refused> {
        if peer(asked.uid(), &request.conversation)?.is_some() {
            return Err(refused(Refusal::Denied));
        }
        let conversation = self.own_conversation(asked, &request.conversation)?;
        let settings = self.facts.settings(conversation);
        let room = self.answer_bytes_max().saturating_sub(settings.title.len() + settings.notice.len() + 32);
        let entries =
            self.members_after(conversation, &request.after).into_iter().map(|(uid, member)| im::Member {
                uid: uid.to_owned(),
                role: member.role().into(),
                silent_until_ms: member.silent_until_ms,
                read: member.read,
            });
        let (members, more) = fill(room, entries);
        let count = u32::try_from(self.facts.member_count(conversation)).unwrap_or(u32::MAX);
        let answer = im::GroupInfoResponse { settings: Some(settings.into()), count, members, more };
        Ok(Step::Answer(encode(&answer)))
    }
}

/// Users whom the author of a request adds to a group.
#[derive(Debug, Default)]
struct Added {
    /// Users who become members, and their names.
    members: Vec<UserId>,
    names: Vec<String>,
    /// Users who are invited, and their names.
    invited: Vec<UserId>,
    invited_names: Vec<String>,
}

impl<S: Store> Deliveries<'_, S> {
    pub(in crate::im) fn on_created(
        &mut self,
        reply: Reply,
        origin: Origin,
        invited: Vec<String>,
        result: Result<(ConversationId, Option<Delivery>), Refusal>,
        recipients: &[Recipient],
    ) {
        let (conversation, told) = match result {
            Ok(created) => created,
            Err(refusal) => return self.out.answer(reply, Err(refused(refusal))),
        };
        let answer = im::GroupCreateResponse { conversation: self.storage.store.id(conversation), invited };
        self.out.answer(reply, Ok(encode(&answer)));
        if let Some(delivery) = &told {
            self.deliver(None, origin, delivery, recipients);
        }
    }

    /// Answers a change of a group. Users who have left are told nothing about the group any more.
    pub(in crate::im) fn on_left(
        &mut self,
        reply: Reply,
        conversation: ConversationId,
        users: Vec<UserId>,
        answer: Bytes,
    ) {
        for user in users {
            if self.storage.store.member(conversation, user).is_none() {
                let room = self.storage.store.id(conversation);
                for session in self.sessions.of(user) {
                    self.out.put(Output::LeaveRoom { session: session.id, room: room.clone() });
                }
            }
        }
        self.out.answer(reply, Ok(answer));
    }
}

/// Names the users of a change, unless there are too many.
pub(super) fn plan_change(asked: &Asked, request: &im::GroupChangeRequest, set: &mut ReadSet) {
    if request.add.len() + request.remove.len() <= CHANGED_USERS_MAX {
        plan_users(asked, &request.add, set);
        request.remove.iter().for_each(|uid| set.add(Need::User(uid.clone())));
        plan_users(asked, std::slice::from_ref(&request.user), set);
    }
}
