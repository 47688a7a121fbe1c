//! Paths, their questions as JSON, and what is made of the answers.

use super::http::{Answer, Request};
use super::{metrics, requests, status_of};
use crate::im::{ApiAnswer, ApiBody, ApiCall, PushTo, Status, WebhookStatus};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use moorline_net::log::DroppedLines;
use moorline_proto::ids::ReadableId;
use moorline_proto::message::client::{Code, Send, SendAck, send};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// What a message or a push carries: exactly one of the two.
#[derive(Debug, Deserialize)]
struct Content {
    /// UTF-8, as it is.
    text: Option<String>,
    /// Bytes, as Base64.
    payload: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageQuestion {
    from: String,
    to: MessageTarget,
    #[serde(default)]
    r#type: u32,
    text: Option<String>,
    payload: Option<String>,
    /// 16 bytes in hexadecimal: said twice with one key, it is stored once.
    key: Option<String>,
}

/// Exactly one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageTarget {
    user: Option<String>,
    conversation: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PushQuestion {
    to: PushTarget,
    #[serde(default)]
    r#type: u32,
    text: Option<String>,
    payload: Option<String>,
}

/// Exactly one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PushTarget {
    inboxes: Option<Vec<String>>,
    users: Option<Vec<String>>,
    devices: Option<Vec<DeviceName>>,
    room: Option<String>,
    everyone: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceName {
    user: String,
    device: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestQuestion {
    user: String,
    method: String,
    /// As JSON; answered alike.
    request: Option<serde_json::Value>,
    /// Encoded, as Base64; answered alike.
    payload: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KickQuestion {
    user: String,
    device: Option<String>,
}

/// Answers a request; `ask` asks the backend.
pub(super) fn answer(
    request: &Request,
    token: &[u8],
    dropped_lines: &DroppedLines,
    ask: impl FnOnce(ApiCall) -> Result<ApiAnswer, Answer>,
) -> Answer {
    let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
    let result = match (request.path.as_str(), method) {
        ("/healthz", "GET") => return Answer::text("text/plain", "ok\n".into()),
        ("/readyz", "GET") => status(ask).and_then(|status| {
            if status.takes_writes {
                Ok(Answer::text("text/plain", "ok\n".into()))
            } else {
                Err(Answer::error(503, "RETRY", "the store takes no writes now; the log says why"))
            }
        }),
        ("/metrics", "GET") => status(ask).map(|status| metrics::page(&status, dropped_lines)),
        ("/v1/status" | "/v1/messages" | "/v1/push" | "/v1/requests" | "/v1/kick", _)
            if !is_admitted(request, token) =>
        {
            Err(Answer::error(
                401,
                "UNAUTHORIZED",
                "needs Authorization: Bearer and the token of api.token_file",
            ))
        }
        ("/v1/status", "GET") => status(ask).map(|status| Answer::json(&status_json(&status))),
        ("/v1/messages", "POST") => message(request).and_then(ask).map(|answer| stored(&answer)),
        ("/v1/push", "POST") => push(request).and_then(ask).map(|answer| reached(&answer)),
        ("/v1/requests", "POST") => asked_for(request)
            .and_then(|(call, method)| Ok((ask(call)?, method)))
            .map(|(answer, method)| answered(&answer, method.as_deref())),
        ("/v1/kick", "POST") => kick(request).and_then(ask).map(|answer| reached(&answer)),
        ("/healthz" | "/readyz" | "/metrics" | "/v1/status", _) => Err(Answer::not_allowed("GET, HEAD")),
        ("/v1/messages" | "/v1/push" | "/v1/requests" | "/v1/kick", _) => Err(Answer::not_allowed("POST")),
        _ => Err(Answer::error(404, "NOT_FOUND", "there is no such path; see docs/server-api.md")),
    };
    result.unwrap_or_else(|error| error)
}

/// In a time that says nothing of how much was right.
fn is_admitted(request: &Request, token: &[u8]) -> bool {
    let given = request.authorization.as_deref().and_then(|value| value.split_at_checked(7));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, given)| given);
    let Some(given) = given.filter(|given| given.len() == token.len()) else { return false };
    given.iter().zip(token).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn parse<T: DeserializeOwned>(request: &Request) -> Result<T, Answer> {
    let wrong = |reason: &str| Answer::error(400, "INVALID", reason);
    // A struct would be read from an array, too.
    if request.body.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong("the body is no JSON object"));
    }
    serde_json::from_slice(&request.body).map_err(|error| wrong(&error.to_string()))
}

fn decoded(content: Content) -> Result<Bytes, Answer> {
    match content {
        Content { text: Some(text), payload: None } => Ok(text.into()),
        Content { text: None, payload: Some(payload) } => base64_of(&payload),
        _ => Err(Answer::error(400, "INVALID", "exactly one of text and payload is needed")),
    }
}

fn base64_of(text: &str) -> Result<Bytes, Answer> {
    let decoded = BASE64.decode(text);
    decoded.map(Bytes::from).map_err(|error| Answer::error(400, "INVALID", &format!("payload: {error}")))
}

fn message(request: &Request) -> Result<ApiCall, Answer> {
    let MessageQuestion { from, to, r#type, text, payload, key } = parse(request)?;
    let payload = decoded(Content { text, payload })?;
    let key = match key {
        Some(key) => Bytes::copy_from_slice(&key_of(&key)?),
        None => fresh_key()?,
    };
    let target = match (to.user, to.conversation) {
        (Some(uid), None) => send::Target::User(uid),
        (None, Some(id)) => send::Target::Conversation(id),
        _ => return Err(Answer::error(400, "INVALID", "to has exactly one of user and conversation")),
    };
    Ok(ApiCall::Send { from, send: Send { key, target: Some(target), r#type, payload } })
}

fn fresh_key() -> Result<Bytes, Answer> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| Answer::error(503, "RETRY", &error.to_string()))?;
    Ok(Bytes::copy_from_slice(&key))
}

fn key_of(text: &str) -> Result<[u8; 16], Answer> {
    let wrong = || Answer::error(400, "INVALID", "a key is 32 hexadecimal digits");
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let key = u128::from_str_radix(text, 16).ok().filter(|_| is_hex).ok_or_else(wrong)?;
    Ok(key.to_be_bytes())
}

fn push(request: &Request) -> Result<ApiCall, Answer> {
    let PushQuestion { to, r#type: kind, text, payload } = parse(request)?;
    let payload = decoded(Content { text, payload })?;
    let PushTarget { inboxes, users, devices, room, everyone } = to;
    let names = |devices: Vec<DeviceName>| devices.into_iter().map(|it| (it.user, it.device)).collect();
    let mut named = [
        inboxes.map(PushTo::Inboxes),
        users.map(PushTo::Users),
        devices.map(names).map(PushTo::Devices),
        room.map(PushTo::Room),
        everyone.filter(|is_meant| *is_meant).map(|_| PushTo::Everyone),
    ]
    .into_iter()
    .flatten();
    let (Some(to), None) = (named.next(), named.next()) else {
        let reason = "to has exactly one of inboxes, users, devices, room, and everyone, which is true";
        return Err(Answer::error(400, "INVALID", reason));
    };
    Ok(ApiCall::Push { to, kind, payload })
}

/// With the name of the method if the answer is to be JSON.
fn asked_for(request: &Request) -> Result<(ApiCall, Option<String>), Answer> {
    let RequestQuestion { user, method, request, payload } = parse(request)?;
    let answered_as = request.is_some().then(|| method.clone());
    let payload = match (request, payload) {
        (Some(request), None) => {
            let encoded = requests::encode(&method, &request);
            let encoded = encoded.ok_or_else(|| {
                let reason = format!("no method {method:?}; they are those of docs/protocol.md, section 11");
                Answer::error(404, "UNSUPPORTED", &reason)
            })?;
            encoded.map_err(|error| Answer::error(400, "INVALID", &error))?
        }
        (None, payload) => base64_of(&payload.unwrap_or_default())?,
        (Some(_), Some(_)) => {
            return Err(Answer::error(400, "INVALID", "one of request and payload, not both"));
        }
    };
    Ok((ApiCall::Request { user, method, payload }, answered_as))
}

fn kick(request: &Request) -> Result<ApiCall, Answer> {
    let KickQuestion { user, device } = parse(request)?;
    Ok(ApiCall::Kick { user, device })
}

fn refusal(answer: &ApiAnswer) -> Answer {
    Answer::error(status_of(answer.code), answer.code.as_str_name(), &answer.reason)
}

fn stored(answer: &ApiAnswer) -> Answer {
    let ApiBody::Stored(SendAck { message_id, conversation, seq, time_ms, .. }) = &answer.body else {
        return refusal(answer);
    };
    Answer::json(&json!({
        "message_id": message_id.to_string(),
        "readable_id": ReadableId::new(*message_id, conversation).to_string(),
        "conversation": conversation,
        "seq": seq,
        "time_ms": time_ms,
        "is_repeat": answer.code == Code::Dup,
    }))
}

fn reached(answer: &ApiAnswer) -> Answer {
    match &answer.body {
        ApiBody::Reached(count) => Answer::json(&json!({ "reached": count })),
        _ => refusal(answer),
    }
}

fn answered(answer: &ApiAnswer, method: Option<&str>) -> Answer {
    let ApiBody::Payload(payload) = &answer.body else { return refusal(answer) };
    match method {
        Some(method) => Answer::json(&json!({ "response": requests::decode(method, payload) })),
        None => Answer::json(&json!({ "payload": BASE64.encode(payload) })),
    }
}

fn status(ask: impl FnOnce(ApiCall) -> Result<ApiAnswer, Answer>) -> Result<Status, Answer> {
    let answer = ask(ApiCall::Status)?;
    match answer.body {
        ApiBody::Status(status) => Ok(status),
        _ => Err(refusal(&answer)),
    }
}

fn status_json(status: &Status) -> serde_json::Value {
    let Status {
        users,
        conversations,
        sessions,
        committing,
        stored,
        repeated,
        refused,
        put_off,
        requests,
        acked,
        commits,
        stalls,
        takes_writes,
        webhooks,
    } = status;
    let services: Vec<_> = webhooks.iter().map(service_json).collect();
    json!({
        "users": users, "conversations": conversations, "sessions": sessions, "committing": committing,
        "stored": stored, "repeated": repeated, "refused": refused, "put_off": put_off, "requests": requests,
        "acked": acked, "commits": commits, "stalls": stalls, "takes_writes": takes_writes, "services": services,
    })
}

fn service_json(status: &WebhookStatus) -> serde_json::Value {
    let WebhookStatus { name, delivered, failed, given_up, is_failing } = status;
    json!({
        "name": name, "delivered": delivered, "failed": failed, "given_up": given_up, "is_failing": is_failing,
    })
}
