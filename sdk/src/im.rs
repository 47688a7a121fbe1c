//! The reference IM backend's requests, ready to ask: for [`Core::request`](crate::core::Core::request)
//! and behind the typed calls of [`Client`](crate::client::Client).
//!
//! All of them may be asked twice, so use [`Repeat::UntilAnswered`](crate::core::Repeat).

use bytes::Bytes;
use moorline_proto::message::encode;
pub use moorline_proto::message::im::{
    Conversation, ConversationsResponse, GroupCreateResponse, GroupResponse, PullResponse, VoidRange,
};
use moorline_proto::message::im::{ConversationsRequest, GroupCreateRequest, GroupRequest, PullRequest};

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method's name.
    pub method: &'static str,
    /// Its encoded request.
    pub payload: Bytes,
}

/// Messages `from` to `to` of a conversation (`to` 0: the newest; `limit` 0: the backend's page).
/// The answer is a [`PullResponse`].
pub fn pull(conversation: &str, from: u64, to: u64, limit: u32) -> Call {
    let request = PullRequest { conversation: conversation.into(), from, to, limit };
    Call { method: "im.pull", payload: encode(&request) }
}

/// A group with the caller and `members`. The answer is a [`GroupCreateResponse`].
pub fn create_group(name: &str, members: &[&str]) -> Call {
    let members = members.iter().map(|member| (*member).to_owned()).collect();
    let request = GroupCreateRequest { group: name.into(), members };
    Call { method: "im.group.create", payload: encode(&request) }
}

/// The caller becomes a member. The answer is a [`GroupResponse`].
pub fn join(conversation: &str) -> Call {
    group("im.group.join", conversation)
}

/// The caller is no longer a member. The answer is a [`GroupResponse`].
pub fn leave(conversation: &str) -> Call {
    group("im.group.leave", conversation)
}

/// Who is a member. The answer is a [`GroupResponse`].
pub fn members(conversation: &str) -> Call {
    group("im.group.members", conversation)
}

/// The caller's conversations. The answer is a [`ConversationsResponse`].
pub fn conversations() -> Call {
    Call { method: "im.conversations", payload: encode(&ConversationsRequest {}) }
}

fn group(method: &'static str, conversation: &str) -> Call {
    Call { method, payload: encode(&GroupRequest { conversation: conversation.into() }) }
}
