//! Refusals as clients get them: a code, and a reason for people.
//!
//! alice writes to a group that she has left: the store refuses with [`Refusal::NotMember`], and her SENDACK has the code
//! NOT_MEMBER and the reason "you are not a member of this conversation".

use super::names;
use super::store::Refusal;
use moorline_proto::message::client::Code;
use prost::DecodeError;
use std::borrow::Cow;

/// An answer that is not OK: its code, and the reason for people. Final, therefore never [`Code::Retry`], except
/// for [`Refusal::Unreadable`], [`Refusal::TooFast`] and [`Refusal::Moved`].
pub(super) type Refused = (Code, Cow<'static, str>);

/// Returns a refusal with a reason.
pub(super) fn refuse(code: Code, reason: impl Into<Cow<'static, str>>) -> Refused {
    (code, reason.into())
}

/// Refuses a body that cannot be decoded as the message `kind`.
pub(super) fn undecodable(kind: &str, cause: &DecodeError) -> Refused {
    refuse(Code::Invalid, format!("cannot decode the body as `{kind}`: {cause}"))
}

/// Returns the code and the reason that clients get for a refusal of the store.
pub(super) fn refused(refusal: Refusal) -> Refused {
    let (code, reason) = code_and_reason(refusal);
    refuse(code, reason)
}

/// Returns the code and the reason of a refusal.
pub(super) const fn code_and_reason(refusal: Refusal) -> (Code, &'static str) {
    match refusal {
        Refusal::NotMember => (Code::NotMember, "you are not a member of this conversation"),
        Refusal::NotFound => (Code::NotFound, "the conversation does not exist"),
        Refusal::Conflict => {
            (Code::Conflict, "the message key or group exists already, with other content or another creator")
        }
        Refusal::Denied => {
            (Code::Denied, "not allowed with yourself, or for this kind of conversation or message")
        }
        Refusal::NotAllowed => {
            (Code::Denied, "your role in this group does not allow this, or you need an invitation")
        }
        Refusal::Silent => (Code::Denied, "cannot write to this group: you or all members are silenced"),
        Refusal::Blocked => (Code::Denied, "one of the two users has blocked the other"),
        Refusal::NotFriends => (Code::Denied, "the two users are not friends, and only friends may do this"),
        Refusal::TooLate => (Code::Denied, "cannot recall the message: it is older than `im.recall_window`"),
        Refusal::TooManyRelations => {
            (Code::Denied, "you have `im.relations_max` friends and requests; end one of them first")
        }
        Refusal::TooManyRequests => (Code::Denied, "`im.requests_max` requests wait for the other user"),
        Refusal::TooManyBlocks => (Code::Denied, "you have `im.blocks_max` blocks; end one of them first"),
        Refusal::MembersFull => (Code::Denied, "the store has `im.members_total_max` memberships"),
        Refusal::GroupFull => (Code::Denied, "the group has `im.group_members_max` members"),
        Refusal::Unreadable => {
            (Code::Retry, "the store cannot read this part of the history; see the log of the backend")
        }
        Refusal::Frozen => (Code::Denied, "the conversation is frozen: it takes no messages at present"),
        Refusal::TooFast => (Code::Retry, "the conversation takes no more messages now: its rate is limited"),
        Refusal::Moved => (Code::Retry, "the conversation moves to another node of the backend"),
        Refusal::StoreFull => (Code::Denied, "the store has `im.conversations_max` conversations"),
    }
}

/// Refusal of a user whom the server API cannot make.
pub(super) const USERS_FULL: Refused = (
    Code::Denied,
    Cow::Borrowed(
        "the store has `im.users_max` users, without the share that `im.users_reserved` keeps for logins",
    ),
);

/// Refuses a request that names nobody: users become known by logging in, and by the server API.
pub(super) fn no_such_user(field: &str, uid: &str) -> Refused {
    refuse(Code::NotFound, format!("`{field}`: no user is called `{uid}`"))
}

/// Refuses a name that no user can have.
pub(super) fn invalid_user(field: &str) -> Refused {
    refuse(Code::Invalid, format!("`{field}` is not a valid user id: {}", names::RULE))
}
/// Refusal of an UP without a complete login.
pub(super) const NO_SESSION: Refused = (Code::Denied, Cow::Borrowed("this login was refused"));
