//! Refusals as clients get them: a code, and a reason for people.
//!
//! alice writes to a group that she has left: the store refuses with [`Refusal::NotMember`], and her SENDACK has the code
//! NOT_MEMBER and the reason "you are not a member of this conversation".

use super::store::Refusal;
use moorline_proto::message::client::Code;
use prost::DecodeError;
use std::borrow::Cow;

/// An answer that is not OK: its code, and the reason for people. Final, therefore never [`Code::Retry`], except
/// for [`Refusal::Unreadable`].
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
        Refusal::NotFriends => {
            (Code::Denied, "the two users are not friends, and only friends may write to each other")
        }
        Refusal::TooLate => (Code::Denied, "cannot recall the message: it is older than `im.recall_window`"),
        Refusal::TooManyRelations => (Code::Denied, "one of the two users has `im.relations_max` relations"),
        Refusal::GroupFull => (Code::Denied, "the group has `im.group_members_max` members"),
        Refusal::Unreadable => {
            (Code::Retry, "the store cannot read this part of the history; see the log of the backend")
        }
        Refusal::StoreFull => (Code::Denied, "the store has `im.conversations_max` conversations"),
    }
}

/// Refusal of a user who is not known.
pub(super) const USERS_FULL: Refused = (Code::Denied, Cow::Borrowed("the store has `im.users_max` users"));
/// Refusal of an UP without a complete login.
pub(super) const NO_SESSION: Refused = (Code::Denied, Cow::Borrowed("this login was refused"));
