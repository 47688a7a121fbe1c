//! Refusals as clients get them: a code, and a reason for people.

use super::store::Refusal;
use moorline_proto::message::client::Code;

/// An answer that is not OK: its code, and why, for people. For good, so never [`Code::Retry`].
pub(super) type Refused = (Code, &'static str);

/// How a store's refusal is told to a client.
pub(super) fn refused(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::NotMember => (Code::NotMember, "you are no member of this conversation"),
        Refusal::NotFound => (Code::NotFound, "there is no such conversation"),
        Refusal::Conflict => (
            Code::Conflict,
            "this message key or group is known already, with other content or another creator",
        ),
        Refusal::Denied => (Code::Denied, "not with oneself, not for this kind of conversation or message"),
        Refusal::NotAllowed => (Code::Denied, "it takes another role in this group, or an invitation"),
        Refusal::Silent => (Code::Denied, "you may not speak here now"),
        Refusal::Blocked => (Code::Denied, "one of the two has blocked the other"),
        Refusal::NotFriends => (Code::Denied, "only friends may write to each other"),
        Refusal::TooLate => (Code::Denied, "the message is older than im.recall_window"),
        Refusal::TooManyRelations => (Code::Denied, "one of the two has im.relations_max relations"),
        Refusal::GroupFull => (Code::Denied, "the group has im.group_members_max members"),
        Refusal::Unreadable => (Code::Retry, "the store cannot be read there; the backend's log says why"),
        Refusal::StoreFull => (Code::Denied, "im.conversations_max conversations are known"),
    }
}

pub(super) const USERS_FULL: Refused = (Code::Denied, "im.users_max users are known");
pub(super) const NO_SESSION: Refused = (Code::Denied, "this login was refused");
