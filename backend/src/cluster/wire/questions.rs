//! Questions to owners, and their answers, as bytes.

use super::{conversation_of, number_of, origin_of, refusal_of, user_of};
use crate::cluster::cell::{relation_code, relation_of};
use crate::cluster::store::{Answered, HeadRow, Question};
use crate::im::store::rules::relations::{Both, Counts};
use crate::im::store::{
    DeviceNumber, GroupChange, GroupEdit, GroupSettings, LoginChange, Origin, Refusal, RelationChange, Role,
    UserId, WhoMayAdd,
};
use bytes::Bytes;
use moorline_proto::message::im;
use std::sync::Arc;

/// Kinds of questions.
const CREATE_GROUP: u32 = 1;
const JOIN: u32 = 2;
const LEAVE: u32 = 3;
const EDIT: u32 = 4;
const DISSOLVE: u32 = 5;
const READ: u32 = 6;
const CLEAR: u32 = 7;
const MAKE_USER: u32 = 8;
const SET_PROFILE: u32 = 9;
const RELATE: u32 = 10;
const SET_SETTINGS: u32 = 11;
const INVITE: u32 = 12;
const REMOVE_DEVICE: u32 = 13;
const REVOKE: u32 = 14;
const BAN: u32 = 15;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskBody {
    #[prost(fixed64, tag = "1")]
    pub(super) request: u64,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, tag = "3")]
    conversation: u64,
    /// Id of a new group or of a conversation of two, or name of a new user.
    #[prost(string, tag = "4")]
    name: String,
    #[prost(uint64, tag = "5")]
    by: u64,
    #[prost(uint32, tag = "6")]
    device: u32,
    #[prost(bytes = "bytes", tag = "7")]
    event: Bytes,
    #[prost(uint64, repeated, tag = "8")]
    users: Vec<u64>,
    #[prost(string, repeated, tag = "9")]
    uids: Vec<String>,
    /// Seq of a read mark, or of a deletion for oneself; Unix time in seconds of a rule for logins.
    #[prost(uint64, tag = "10")]
    seq: u64,
    #[prost(message, tag = "11")]
    edit: Option<EditBody>,
    /// A change of a relation.
    #[prost(int32, tag = "12")]
    change: i32,
    /// Numbers of relations, requests and blocks of the user, and of the other one.
    #[prost(uint64, repeated, tag = "13")]
    counts: Vec<u64>,
    /// A [`moorline_proto::message::im::WhoMayAdd`].
    #[prost(int32, tag = "14")]
    who_may_add: i32,
    /// An invitation that follows, or that is all.
    #[prost(message, tag = "15")]
    invite: Option<InviteBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InviteBody {
    /// Id of the group.
    #[prost(string, tag = "1")]
    group: String,
    #[prost(uint64, repeated, tag = "2")]
    users: Vec<u64>,
    #[prost(bytes = "bytes", tag = "3")]
    event: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EditBody {
    #[prost(uint64, repeated, tag = "1")]
    add: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    remove: Vec<u64>,
    /// 0: no role is set.
    #[prost(uint64, tag = "3")]
    role_of: u64,
    #[prost(int32, tag = "4")]
    role: i32,
    /// 0: no silence is set.
    #[prost(uint64, tag = "5")]
    silence_of: u64,
    #[prost(uint64, tag = "6")]
    until_ms: u64,
    #[prost(message, tag = "7")]
    settings: Option<im::GroupSettings>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnsweredBody {
    #[prost(fixed64, tag = "1")]
    pub(super) request: u64,
    /// 0: it was done.
    #[prost(uint32, tag = "2")]
    refusal: u32,
    /// 0: the answer names a user, or nothing.
    #[prost(uint64, tag = "3")]
    conversation: u64,
    /// Id of the conversation, or name of the user.
    #[prost(string, tag = "4")]
    name: String,
    #[prost(bool, tag = "5")]
    is_group: bool,
    #[prost(bool, tag = "6")]
    is_dissolved: bool,
    #[prost(uint64, tag = "7")]
    members: u64,
    #[prost(uint64, tag = "8")]
    latest: u64,
    #[prost(bool, tag = "9")]
    has_changed: bool,
    #[prost(uint64, tag = "10")]
    user: u64,
    /// The other user of a relation; 0: the answer names none.
    #[prost(uint64, tag = "11")]
    other: u64,
    /// Relations of the user to the other one, and of the other one to the user, as numbers.
    #[prost(uint32, tag = "12")]
    own: u32,
    #[prost(uint32, tag = "13")]
    theirs: u32,
}

fn of_users(users: &[UserId]) -> Vec<u64> {
    users.iter().map(|user| user.number()).collect()
}

fn users_of(users: Vec<u64>) -> Option<Vec<UserId>> {
    users.into_iter().map(user_of).collect()
}

fn with_names(body: AskBody, named: &[(UserId, Arc<str>)]) -> AskBody {
    let users = named.iter().map(|(user, _)| user.number()).collect();
    let uids = named.iter().map(|(_, uid)| uid.to_string()).collect();
    AskBody { users, uids, ..body }
}

fn of_edit(edit: GroupEdit) -> EditBody {
    let GroupEdit { add, remove, role, silence, settings } = edit;
    EditBody {
        add: of_users(&add),
        remove: of_users(&remove),
        role_of: role.map_or(0, |(user, _)| user.number()),
        role: role.map_or(0, |(_, role)| role.into()),
        silence_of: silence.map_or(0, |(user, _)| user.number()),
        until_ms: silence.map_or(0, |(_, until)| until),
        settings: settings.map(Into::into),
    }
}

fn edit_of(body: EditBody) -> Option<GroupEdit> {
    let EditBody { add, remove, role_of, role, silence_of, until_ms, settings } = body;
    let role = match role_of {
        0 => None,
        user => Some((user_of(user)?, Role::try_from(role).ok()?)),
    };
    let silence = match silence_of {
        0 => None,
        user => Some((user_of(user)?, until_ms)),
    };
    let settings = settings.map(GroupSettings::from);
    Some(GroupEdit { add: users_of(add)?, remove: users_of(remove)?, role, silence, settings })
}

fn counts_of(numbers: &[u64]) -> Option<Both<Counts>> {
    let numbers = numbers.iter().map(|number| usize::try_from(*number).ok());
    let numbers: Vec<usize> = numbers.collect::<Option<_>>()?;
    let [relations, requests, blocks, their_relations, their_requests, their_blocks] = numbers[..] else {
        return None;
    };
    let own = Counts { relations, requests, blocks };
    let theirs = Counts { relations: their_relations, requests: their_requests, blocks: their_blocks };
    Some(Both { own, theirs })
}

/// Writes a question.
pub(super) fn of_question(request: u64, question: Question) -> AskBody {
    let of = |kind: u32, by: Origin, event: Bytes| {
        let (by, device) = (by.0.number(), by.1.0);
        AskBody { request, kind, by, device, event, ..AskBody::default() }
    };
    let of_user =
        |kind: u32, user: UserId| AskBody { request, kind, users: vec![user.number()], ..AskBody::default() };
    match question {
        Question::CreateGroup { id, by, members, event } => {
            let body = AskBody { name: id.to_string(), ..of(CREATE_GROUP, by, event) };
            with_names(body, &members)
        }
        Question::ChangeGroup { conversation, by, change, users, event } => {
            let (kind, edit) = match change {
                GroupChange::Join => (JOIN, None),
                GroupChange::Leave => (LEAVE, None),
                GroupChange::Edit(edit) => (EDIT, Some(of_edit(edit))),
            };
            let body = AskBody { conversation: conversation.number(), edit, ..of(kind, by, event) };
            with_names(body, &users)
        }
        Question::Dissolve { conversation, by, event } => {
            AskBody { conversation: conversation.number(), ..of(DISSOLVE, by, event) }
        }
        Question::Read { conversation, by, seq, event } => {
            AskBody { conversation: conversation.number(), seq, ..of(READ, by, event) }
        }
        Question::Clear { conversation, by, to, event } => {
            AskBody { conversation: conversation.number(), seq: to, ..of(CLEAR, by, event) }
        }
        Question::Relate { id, by, users, change, counts, event } => {
            let (name, change) = (id.to_string(), change.into());
            let counts = [counts.own, counts.theirs].into_iter();
            let counts = counts.flat_map(|it| [it.relations as u64, it.requests as u64, it.blocks as u64]);
            let body = AskBody { name, change, counts: counts.collect(), ..of(RELATE, by, event) };
            with_names(body, &users)
        }
        Question::Invite { id, by, users, event, first } => {
            let group = id.to_string();
            let invite = Some(InviteBody { group, users: of_users(&users), event });
            let body = match first {
                Some(first) => of_question(request, *first),
                None => of(INVITE, by, Bytes::new()),
            };
            AskBody { invite, ..body }
        }
        Question::RemoveDevice { user, device } => {
            AskBody { device: device.0, ..of_user(REMOVE_DEVICE, user) }
        }
        Question::RuleLogins { user, change: LoginChange::ValidFrom(seq) } => {
            AskBody { seq, ..of_user(REVOKE, user) }
        }
        Question::RuleLogins { user, change: LoginChange::BannedUntil(seq) } => {
            AskBody { seq, ..of_user(BAN, user) }
        }
        Question::SetSettings { user, who_may_add } => {
            AskBody { who_may_add: who_may_add.into(), ..of_user(SET_SETTINGS, user) }
        }
        Question::SetProfile { user, profile } => AskBody { event: profile, ..of_user(SET_PROFILE, user) },
        Question::MakeUser { uid } => {
            AskBody { request, kind: MAKE_USER, name: uid.to_string(), ..AskBody::default() }
        }
    }
}

/// Reads a question. `None`: this version cannot read it.
pub(super) fn question_of(mut body: AskBody) -> Option<Question> {
    if let Some(InviteBody { group, users, event }) = body.invite.take() {
        let (by, users) = (origin_of(body.by, body.device)?, users_of(users)?);
        let first = if body.kind == INVITE { None } else { Some(Box::new(question_of(body)?)) };
        return Some(Question::Invite { id: group.into(), by, users, event, first });
    }
    let AskBody { kind, conversation, name, by, device, event, users, uids, seq, edit, counts, .. } = body;
    let who_may_add = body.who_may_add;
    if kind == MAKE_USER {
        return (!name.is_empty()).then(|| Question::MakeUser { uid: name.into() });
    }
    if kind == SET_PROFILE {
        let user = user_of(*users.first()?)?;
        return Some(Question::SetProfile { user, profile: event });
    }
    if kind == REMOVE_DEVICE {
        let user = user_of(*users.first()?)?;
        return Some(Question::RemoveDevice { user, device: DeviceNumber(device) });
    }
    if kind == REVOKE || kind == BAN {
        let change = if kind == BAN { LoginChange::BannedUntil(seq) } else { LoginChange::ValidFrom(seq) };
        return Some(Question::RuleLogins { user: user_of(*users.first()?)?, change });
    }
    if kind == SET_SETTINGS {
        let (user, who_may_add) = (user_of(*users.first()?)?, WhoMayAdd::try_from(who_may_add).ok()?);
        return Some(Question::SetSettings { user, who_may_add });
    }
    if users.len() != uids.len() {
        return None;
    }
    let named = users.into_iter().zip(uids).map(|(user, uid)| Some((user_of(user)?, uid.into())));
    let named: Vec<(UserId, Arc<str>)> = named.collect::<Option<_>>()?;
    let by = origin_of(by, device)?;
    if kind == CREATE_GROUP {
        let is_named = !name.is_empty();
        return is_named.then(|| Question::CreateGroup { id: name.into(), by, members: named, event });
    }
    if kind == RELATE {
        let [(first, _), _] = &named[..] else { return None };
        let change = RelationChange::try_from(body.change).ok().filter(|_| *first == by.0)?;
        let counts = counts_of(&counts)?;
        return Some(Question::Relate { id: name.into(), by, users: named, change, counts, event });
    }
    let conversation = conversation_of(conversation)?;
    let change = match kind {
        JOIN => GroupChange::Join,
        LEAVE => GroupChange::Leave,
        EDIT => GroupChange::Edit(edit_of(edit?)?),
        DISSOLVE => return Some(Question::Dissolve { conversation, by, event }),
        READ => return Some(Question::Read { conversation, by, seq, event }),
        CLEAR => return Some(Question::Clear { conversation, by, to: seq, event }),
        _ => return None,
    };
    Some(Question::ChangeGroup { conversation, by, change, users: named, event })
}

/// Writes an answer.
pub(super) fn of_answer(request: u64, result: Result<Answered, Refusal>) -> AnsweredBody {
    let body = AnsweredBody { request, ..AnsweredBody::default() };
    match result {
        Ok(Answered::Conversation(head, has_changed)) => {
            let HeadRow { conversation, id, is_group, is_dissolved, members, latest } = head;
            let (conversation, name, members) = (conversation.number(), id.to_string(), members as u64);
            AnsweredBody { conversation, name, is_group, is_dissolved, members, latest, has_changed, ..body }
        }
        Ok(Answered::Related { user, other, relations, has_changed }) => AnsweredBody {
            user: user.number(),
            other: other.number(),
            own: relation_code(relations.own),
            theirs: relation_code(relations.theirs),
            has_changed,
            ..body
        },
        Ok(Answered::Done) => body,
        Ok(Answered::User(user, uid)) => AnsweredBody { user: user.number(), name: uid.to_string(), ..body },
        Err(refusal) => AnsweredBody { refusal: number_of(refusal), ..body },
    }
}

/// Reads an answer. `None`: this version cannot read it.
pub(super) fn answer_of(body: AnsweredBody) -> Option<Result<Answered, Refusal>> {
    let AnsweredBody { refusal, conversation, name, is_group, is_dissolved, members, latest, .. } = body;
    if refusal != 0 {
        return Some(Err(refusal_of(refusal)));
    }
    if conversation == 0 && body.user == 0 {
        return Some(Ok(Answered::Done));
    }
    if body.other != 0 {
        let relations = Both { own: relation_of(body.own), theirs: relation_of(body.theirs) };
        let (user, other) = (user_of(body.user)?, user_of(body.other)?);
        return Some(Ok(Answered::Related { user, other, relations, has_changed: body.has_changed }));
    }
    if conversation == 0 {
        return Some(Ok(Answered::User(user_of(body.user)?, name.into())));
    }
    let (conversation, members) = (conversation_of(conversation)?, usize::try_from(members).ok()?);
    let head = HeadRow { conversation, id: name.into(), is_group, is_dissolved, members, latest };
    Some(Ok(Answered::Conversation(head, body.has_changed)))
}
