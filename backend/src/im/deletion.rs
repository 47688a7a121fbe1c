//! Deletions by the operator's server, of groups and of accounts, and how long messages of a conversation are kept.
//!
//! The operator deletes ann: her logins end, and she has no device, relation, profile or membership any more; then sweeps erase
//! her messages, one conversation after the other, and tell the members. Her name is a new user's from the first moment on.

use super::Im;
use super::api::{API_DEVICE_NAME, ApiReply};
use super::names::{Conversation, Names};
use super::output::Reply;
use super::refusal::{no_such_user, refuse, refused};
use super::request::{Request, Then};
use super::store::rules::limits::PER_MINUTE_MAX;
use super::store::{API_DEVICE, ConversationId, KEEP_FOR_EVER, NOBODY, Refusal, Store, Write};
use super::tasks::{Asked, Task};
use super::waiting::Waiter;
use crate::server::{Kick, Now};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::message::client::Code;

/// Shortest and longest time for which messages of a conversation are kept, in seconds.
const KEEP_S: std::ops::RangeInclusive<u64> = 60..=36_500 * 86_400;

/// Kick of the logins of a deleted user.
pub(super) static DELETED: Kick =
    Kick { code: CloseReason::Kicked.code(), may_reconnect: false, reason: "This account was deleted." };

/// Time for which messages of one conversation are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The time of `im.retention`.
    Default,
    /// For ever, whatever `im.retention` says.
    ForEver,
    /// For this many seconds.
    Seconds(u64),
}

/// The operator's server, for nobody.
fn operator(now: Now) -> Asked {
    let origin = (NOBODY, API_DEVICE);
    Asked { now, session: None, origin, names: Names::new("", API_DEVICE_NAME), is_repeat: false }
}

/// Ends a group for the operator's server.
pub(super) fn dissolve<S: Store>(im: &mut Im<S>, now: Now, id: &str, reply: ApiReply) {
    let is_group = matches!(Conversation::parse(id), Some(Conversation::Group(_)));
    let Some(conversation) = im.storage.store.find(id).filter(|_| is_group) else {
        let refusal = if id.starts_with("c2c:") { Refusal::Denied } else { Refusal::NotFound };
        return im.out.answer_api_result(reply, Err(refused(refusal)));
    };
    let asked = operator(now);
    let (write, then) = im.requests().dissolution(&asked, conversation, id);
    im.storage.write(write, Waiter::Request(Reply::Api(reply), asked.origin, then));
}

/// Deletes a user who is known.
pub(super) fn delete_user<S: Store>(im: &mut Im<S>, now: Now, uid: &str, reply: ApiReply) {
    let Some(user) = im.storage.store.find_user(uid) else {
        return im.out.answer_api_result(reply, Err(no_such_user("user", uid)));
    };
    let (origin, names) = ((user, API_DEVICE), Names::new(uid, API_DEVICE_NAME));
    let asked = Asked { now, session: None, origin, names, is_repeat: false };
    im.run(None, Task::Request(asked, Request::DeleteAccount, Reply::Api(reply)));
}

/// Sets how long messages of a conversation are kept.
pub(super) fn set_retention<S: Store>(im: &mut Im<S>, id: &str, keep: Keep, reply: ApiReply) {
    let keep_s = match keep {
        Keep::Default => 0,
        Keep::ForEver => KEEP_FOR_EVER,
        Keep::Seconds(keep_s) if KEEP_S.contains(&keep_s) => u32::try_from(keep_s).unwrap_or(KEEP_FOR_EVER),
        Keep::Seconds(_) => {
            let reason =
                "`keep` is not a number of seconds from 60 to 3153600000, \"forever\" or \"default\"";
            return im.out.answer_api_result(reply, Err(refuse(Code::Invalid, reason)));
        }
    };
    change_conversation(im, id, reply, |conversation| Write::SetRetention { conversation, keep_s });
}

/// Sets how many messages a conversation takes from its members.
pub(super) fn limit_sends<S: Store>(im: &mut Im<S>, id: &str, per_minute: Option<u32>, reply: ApiReply) {
    if per_minute.is_some_and(|count| count > PER_MINUTE_MAX) {
        let reason = format!("`per_minute` is not a number up to {PER_MINUTE_MAX}, or \"none\"");
        return im.out.answer_api_result(reply, Err(refuse(Code::Invalid, reason)));
    }
    change_conversation(im, id, reply, |conversation| Write::LimitSends { conversation, per_minute });
}

/// Writes a change of a conversation by the operator.
fn change_conversation<S: Store>(
    im: &mut Im<S>,
    id: &str,
    reply: ApiReply,
    change: impl FnOnce(ConversationId) -> Write,
) {
    let Some(conversation) = im.storage.store.find(id) else {
        return im.out.answer_api_result(reply, Err(refused(Refusal::NotFound)));
    };
    let then = Then::Answer(Bytes::new());
    let waiter = Waiter::Request(Reply::Api(reply), (NOBODY, API_DEVICE), then);
    im.storage.write(change(conversation), waiter);
}
