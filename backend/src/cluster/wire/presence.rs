//! Questions about the presence of users, and their answers, as bytes.

use super::user_of;
use crate::cluster::store::PeerMessage;
use crate::im::store::{Online, UserId};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskOnlineBody {
    /// 0: the sender watches the users.
    #[prost(fixed64, tag = "1")]
    request: u64,
    #[prost(uint64, repeated, tag = "2")]
    users: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OnlineBody {
    #[prost(fixed64, tag = "1")]
    request: u64,
    /// The sender has not the sessions of all users.
    #[prost(bool, tag = "2")]
    has_moved: bool,
    #[prost(message, repeated, tag = "3")]
    users: Vec<OneBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OneBody {
    #[prost(uint64, tag = "1")]
    user: u64,
    #[prost(uint32, repeated, tag = "2")]
    platforms: Vec<u32>,
    #[prost(uint64, tag = "3")]
    seen_ms: u64,
}

/// Writes a question.
pub(super) fn of_question(request: u64, users: &[UserId]) -> AskOnlineBody {
    AskOnlineBody { request, users: users.iter().map(|user| user.number()).collect() }
}

/// Reads a question. `None`: this version cannot read it.
pub(super) fn question_of(body: AskOnlineBody) -> Option<PeerMessage> {
    let AskOnlineBody { request, users } = body;
    Some(PeerMessage::AskOnline(request, users.into_iter().map(user_of).collect::<Option<_>>()?))
}

/// Writes an answer.
pub(super) fn of_online(request: u64, online: Option<Vec<Online>>) -> OnlineBody {
    let has_moved = online.is_none();
    let one = |Online { user, platforms, seen_ms }| OneBody { user: user.number(), platforms, seen_ms };
    OnlineBody { request, has_moved, users: online.into_iter().flatten().map(one).collect() }
}

/// Reads an answer. `None`: this version cannot read it.
pub(super) fn online_of(body: OnlineBody) -> Option<PeerMessage> {
    let OnlineBody { request, has_moved, users } = body;
    let one =
        |OneBody { user, platforms, seen_ms }| Some(Online { user: user_of(user)?, platforms, seen_ms });
    let online = users.into_iter().map(one).collect::<Option<Vec<_>>>()?;
    Some(PeerMessage::Online(request, (!has_moved).then_some(online)))
}
