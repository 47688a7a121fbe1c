//! The reference IM backend's requests, ready to ask: for [`Core::request`](crate::core::Core::request)
//! and behind the typed calls of [`Client`](crate::client::Client).
//!
//! All of them may be asked twice, so use [`Repeat::UntilAnswered`](crate::core::Repeat).

use bytes::Bytes;
use moorline_proto::message::encode;
use moorline_proto::message::im::{
    AccountDeleteRequest, ConversationDeleteRequest, ConversationsRequest, DeviceRemoveRequest,
    DevicesRequest, GroupCreateRequest, GroupRequest, PresenceRequest, ProfileGetRequest, ProfileSetRequest,
    PullRequest, ReadRequest, RecallRequest, ReceiptsRequest, RelationRequest, RelationsRequest,
};
pub use moorline_proto::message::im::{
    Cleared, Conversation, ConversationsResponse, Device, DevicesResponse, Dissolved, Erased, Friendship,
    GroupChangeRequest, GroupChangeResponse, GroupChanged, GroupCreateResponse, GroupInfoResponse,
    GroupResponse, GroupSettings, Member, Presence, PresenceResponse, Profile, ProfileGetResponse,
    PullResponse, Read, ReadCount, ReadCounts, ReadResponse, RecallResponse, Recalled, ReceiptsResponse,
    Relation, RelationChange, RelationChanged, RelationResponse, RelationsResponse, Resync, Role, VoidRange,
};

/// The method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method's name.
    pub method: &'static str,
    /// The encoded request.
    pub payload: Bytes,
}

impl Call {
    fn new(method: &'static str, request: &impl prost::Message) -> Self {
        Self { method, payload: encode(request) }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Messages `from` to `to` of a conversation (`to` 0: the newest; `limit` 0: the backend's page).
/// The answer is a [`PullResponse`].
pub fn pull(conversation: &str, from: u64, to: u64, limit: u32) -> Call {
    let conversation = conversation.into();
    Call::new("im.pull", &PullRequest { conversation, from, to, limit, confirmed: 0 })
}

/// A page of the caller's conversations, joined last first; `after`: the last one of the page before, or empty. The
/// answer is a [`ConversationsResponse`].
pub fn conversations(after: &str) -> Call {
    Call::new("im.conversations", &ConversationsRequest { after: after.into() })
}

/// The caller has read everything up to `seq`. The answer is a [`ReadResponse`].
pub fn read(conversation: &str, seq: u64) -> Call {
    Call::new("im.read", &ReadRequest { conversation: conversation.into(), seq })
}

/// Asks who has read a message. The answer is a [`ReceiptsResponse`].
pub fn receipts(conversation: &str, seq: u64) -> Call {
    Call::new("im.receipts", &ReceiptsRequest { conversation: conversation.into(), seq })
}

/// Takes a message back. The answer is a [`RecallResponse`].
pub fn recall(conversation: &str, seq: u64, message_id: u64) -> Call {
    Call::new("im.recall", &RecallRequest { conversation: conversation.into(), seq, message_id })
}

/// A group with the caller and `members`. The answer is a [`GroupCreateResponse`].
pub fn create_group(name: &str, members: &[&str]) -> Call {
    Call::new("im.group.create", &GroupCreateRequest { group: name.into(), members: owned(members) })
}

/// The caller becomes a member. The answer is a [`GroupResponse`].
pub fn join(conversation: &str) -> Call {
    group("im.group.join", conversation, "")
}

/// Leaves the group. The answer is a [`GroupResponse`].
pub fn leave(conversation: &str) -> Call {
    group("im.group.leave", conversation, "")
}

/// A page of those who are members, in the order of their uids; `after`: the last one of the page before, or empty.
/// The answer is a [`GroupResponse`].
pub fn members(conversation: &str, after: &str) -> Call {
    group("im.group.members", conversation, after)
}

/// Settings and a page of members with their roles. The answer is a [`GroupInfoResponse`].
pub fn group_info(conversation: &str, after: &str) -> Call {
    group("im.group.info", conversation, after)
}

fn group(method: &'static str, conversation: &str, after: &str) -> Call {
    Call::new(method, &GroupRequest { conversation: conversation.into(), after: after.into() })
}

/// Changes a group. The answer is a [`GroupChangeResponse`].
pub fn change_group(change: &GroupChangeRequest) -> Call {
    Call::new("im.group.change", change)
}

/// Changes the caller's relation to another user; `text` goes with a friend request. The answer is a
/// [`RelationResponse`].
pub fn relation(user: &str, change: RelationChange, text: &str) -> Call {
    let (user, change, text) = (user.into(), change.into(), text.into());
    Call::new("im.relation", &RelationRequest { user, change, text })
}

/// A page of what the caller makes of others, in the order of their uids. The answer is a [`RelationsResponse`].
pub fn relations(after: &str) -> Call {
    Call::new("im.relations", &RelationsRequest { after: after.into() })
}

/// Replaces the caller's profile. The answer is empty.
pub fn set_profile(profile: Profile) -> Call {
    Call::new("im.profile.set", &ProfileSetRequest { profile: Some(profile) })
}

/// Asks for the profiles of at most 100 users. The answer is a [`ProfileGetResponse`].
pub fn profiles(users: &[&str]) -> Call {
    Call::new("im.profile.get", &ProfileGetRequest { users: owned(users) })
}

/// Ends a group that the caller owns. The answer is a [`GroupResponse`].
pub fn dissolve_group(conversation: &str) -> Call {
    group("im.group.dissolve", conversation, "")
}

/// Deletes a conversation for the caller alone, up to `to` (0: the newest). The answer is empty.
pub fn delete_conversation(conversation: &str, to: u64) -> Call {
    Call::new("im.conversation.delete", &ConversationDeleteRequest { conversation: conversation.into(), to })
}

/// Deletes the caller's account. The answer is empty, and the login ends behind it.
pub fn delete_account() -> Call {
    Call::new("im.account.delete", &AccountDeleteRequest {})
}

/// The caller's devices. The answer is a [`DevicesResponse`].
pub fn devices() -> Call {
    Call::new("im.devices", &DevicesRequest {})
}

/// Ends the login of a device of the caller, and forgets the device. The answer is empty; if it is the asking device, it is
/// answered before its login ends.
pub fn remove_device(device: &str) -> Call {
    Call::new("im.device.remove", &DeviceRemoveRequest { device: device.into() })
}

/// Asks for the presence of at most 100 users; `watch`: reports changes, too, as long as this login lasts. The answer is a
/// [`PresenceResponse`].
pub fn presence(users: &[&str], watch: bool) -> Call {
    Call::new("im.presence", &PresenceRequest { users: owned(users), watch })
}
