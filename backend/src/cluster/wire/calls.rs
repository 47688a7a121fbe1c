//! Calls of the server API, and their answers, as bytes.

use crate::im::{ApiAnswer, ApiBody, ApiCall, Keep, PushTo};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Send, SendAck};

/// Kinds of calls.
const SEND: u32 = 1;
const REQUEST: u32 = 2;
const KICK: u32 = 3;
const KICK_DEVICE: u32 = 4;
const DISSOLVE: u32 = 5;
const PUSH_USERS: u32 = 6;
const PUSH_DEVICES: u32 = 7;
const PUSH_EVERYONE: u32 = 8;
const PUSH_INBOXES: u32 = 9;
const REVOKE: u32 = 10;
const BAN: u32 = 11;
const DELETE_USER: u32 = 12;
const RETAIN: u32 = 13;
const LIMIT: u32 = 14;

/// Kinds of answers.
const NOTHING: u32 = 0;
const STORED: u32 = 1;
const REACHED: u32 = 2;
const PAYLOAD: u32 = 3;
const NOT_BUILT: u32 = 4;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CallBody {
    #[prost(fixed64, tag = "1")]
    pub(super) part: u64,
    #[prost(uint32, tag = "2")]
    kind: u32,
    /// Name of the user, or id of the conversation.
    #[prost(string, tag = "3")]
    name: String,
    /// Name of the device, or of the method.
    #[prost(string, tag = "4")]
    second: String,
    #[prost(message, optional, tag = "5")]
    send: Option<Send>,
    /// Content type of a push; for retention 0: the default, 1: for ever, 2: seconds.
    #[prost(uint32, tag = "6")]
    r#type: u32,
    #[prost(bytes = "bytes", tag = "7")]
    payload: Bytes,
    /// Users of a push.
    #[prost(string, repeated, tag = "8")]
    uids: Vec<String>,
    /// Devices of a push, one for each user.
    #[prost(string, repeated, tag = "9")]
    devices: Vec<String>,
    /// The caller of a SEND may make the call again.
    #[prost(bool, tag = "11")]
    may_repeat: bool,
    /// Key of a push into inboxes; empty: it has none.
    #[prost(bytes = "bytes", tag = "12")]
    key: Bytes,
    /// Seconds: a Unix time, or how long messages are kept.
    #[prost(uint64, optional, tag = "10")]
    seconds: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CalledBody {
    #[prost(fixed64, tag = "1")]
    pub(super) part: u64,
    #[prost(int32, tag = "2")]
    code: i32,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(uint32, tag = "4")]
    retry_after_ms: u32,
    #[prost(uint32, tag = "5")]
    kind: u32,
    #[prost(message, optional, tag = "6")]
    stored: Option<SendAck>,
    #[prost(uint64, tag = "7")]
    reached: u64,
    #[prost(bytes = "bytes", tag = "8")]
    payload: Bytes,
}

/// Writes a call.
pub(super) fn of_call(part: u64, call: ApiCall) -> CallBody {
    let body = |kind: u32, name: String| CallBody { part, kind, name, ..CallBody::default() };
    match call {
        ApiCall::Send { from, send, may_repeat } => {
            CallBody { send: Some(send), may_repeat, ..body(SEND, from) }
        }
        ApiCall::Request { user, method, payload } => {
            CallBody { second: method, payload, ..body(REQUEST, user) }
        }
        ApiCall::Kick { user, device: None } => body(KICK, user),
        ApiCall::Kick { user, device: Some(device) } => {
            CallBody { second: device, ..body(KICK_DEVICE, user) }
        }
        ApiCall::Dissolve { conversation } => body(DISSOLVE, conversation),
        ApiCall::Push { to, kind: r#type, payload } => {
            let key = match to {
                PushTo::Inboxes(_, Some(key)) => Bytes::copy_from_slice(&key.0),
                _ => Bytes::new(),
            };
            let (kind, uids, devices, name) = match to {
                PushTo::Inboxes(users, _) => (PUSH_INBOXES, users, Vec::new(), String::new()),
                PushTo::Users(users) => (PUSH_USERS, users, Vec::new(), String::new()),
                PushTo::Devices(all) => {
                    let (users, devices) = all.into_iter().unzip();
                    (PUSH_DEVICES, users, devices, String::new())
                }
                PushTo::Everyone => (PUSH_EVERYONE, Vec::new(), Vec::new(), String::new()),
                // Nobody sends it: there are no rooms.
                PushTo::Room(room) => (0, Vec::new(), Vec::new(), room),
            };
            CallBody { r#type, payload, uids, devices, key, ..body(kind, name) }
        }
        ApiCall::Revoke { user, before_s } => CallBody { seconds: before_s, ..body(REVOKE, user) },
        ApiCall::Ban { user, until_s } => CallBody { seconds: Some(until_s), ..body(BAN, user) },
        ApiCall::DeleteUser { user } => body(DELETE_USER, user),
        ApiCall::Retain { conversation, keep } => {
            let (r#type, seconds) = match keep {
                Keep::Default => (0, None),
                Keep::ForEver => (1, None),
                Keep::Seconds(seconds) => (2, Some(seconds)),
            };
            CallBody { r#type, seconds, ..body(RETAIN, conversation) }
        }
        ApiCall::Limit { conversation, per_minute } => {
            CallBody { seconds: per_minute.map(Into::into), ..body(LIMIT, conversation) }
        }
        // Each node has its own.
        ApiCall::Status => body(0, String::new()),
    }
}

/// Reads a call. `None`: this version cannot read it.
pub(super) fn call_of(body: CallBody) -> Option<ApiCall> {
    let CallBody { part: _, kind, name, second, send, r#type, payload, uids, devices, seconds, .. } = body;
    let (may_repeat, key) = (body.may_repeat, &body.key);
    let push = |to| ApiCall::Push { to, kind: r#type, payload: payload.clone() };
    Some(match kind {
        SEND => ApiCall::Send { from: name, send: send?, may_repeat },
        REQUEST => ApiCall::Request { user: name, method: second, payload },
        KICK => ApiCall::Kick { user: name, device: None },
        KICK_DEVICE => ApiCall::Kick { user: name, device: Some(second) },
        DISSOLVE => ApiCall::Dissolve { conversation: name },
        PUSH_USERS => push(PushTo::Users(uids)),
        PUSH_INBOXES if key.is_empty() => push(PushTo::Inboxes(uids, None)),
        PUSH_INBOXES => push(PushTo::Inboxes(uids, Some(MessageKey(key.as_ref().try_into().ok()?)))),
        PUSH_DEVICES if uids.len() == devices.len() => {
            push(PushTo::Devices(uids.into_iter().zip(devices).collect()))
        }
        PUSH_EVERYONE => push(PushTo::Everyone),
        REVOKE => ApiCall::Revoke { user: name, before_s: seconds },
        BAN => ApiCall::Ban { user: name, until_s: seconds? },
        DELETE_USER => ApiCall::DeleteUser { user: name },
        LIMIT => {
            let per_minute = seconds.map(u32::try_from).transpose().ok()?;
            ApiCall::Limit { conversation: name, per_minute }
        }
        RETAIN => {
            let keep = match (r#type, seconds) {
                (0, _) => Keep::Default,
                (1, _) => Keep::ForEver,
                (2, Some(seconds)) => Keep::Seconds(seconds),
                _ => return None,
            };
            ApiCall::Retain { conversation: name, keep }
        }
        _ => return None,
    })
}

/// Writes an answer.
pub(super) fn of_called(part: u64, answer: ApiAnswer) -> CalledBody {
    let ApiAnswer { code, reason, retry_after_ms, body } = answer;
    let called = CalledBody { part, code: code.into(), reason, retry_after_ms, ..CalledBody::default() };
    match body {
        ApiBody::Nothing | ApiBody::Status(_) => called,
        ApiBody::NotBuilt => CalledBody { kind: NOT_BUILT, ..called },
        ApiBody::Stored(ack) => CalledBody { kind: STORED, stored: Some(ack), ..called },
        ApiBody::Reached(count) => CalledBody { kind: REACHED, reached: count as u64, ..called },
        ApiBody::Payload(payload) => CalledBody { kind: PAYLOAD, payload, ..called },
    }
}

/// Reads an answer. `None`: this version cannot read it.
pub(super) fn answer_of(body: CalledBody) -> Option<ApiAnswer> {
    let CalledBody { code, reason, retry_after_ms, kind, stored, reached, payload, .. } = body;
    let body = match kind {
        NOTHING => ApiBody::Nothing,
        NOT_BUILT => ApiBody::NotBuilt,
        STORED => ApiBody::Stored(stored?),
        REACHED => ApiBody::Reached(usize::try_from(reached).ok()?),
        PAYLOAD => ApiBody::Payload(payload),
        _ => return None,
    };
    Some(ApiAnswer { code: Code::try_from(code).ok()?, reason, retry_after_ms, body })
}
