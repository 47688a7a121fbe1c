//! Paths of the server API: request bodies as JSON, calls of the backend, answers as JSON.

use super::access::Scope;
use super::problem::Problem;
use super::{Shared, limits, metrics, requests, status_of};
use crate::im::{ApiAnswer, ApiBody, ApiCall, Keep, PushTo, Status, WebhookStatus};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use moorline_net::cap::CapFigures;
use moorline_net::http::{Method, Request, Response, StatusCode};
use moorline_proto::ids::{MessageKey, ReadableId};
use moorline_proto::message::client::{Code, Send, SendAck, send};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Content of a message or a push: exactly one of the two.
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
    /// 16 bytes in hexadecimal: said twice with one key, each inbox gets it once.
    key: Option<String>,
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
    /// Request as JSON, with its answer as JSON.
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

/// Methods of `/v1/requests` that change nothing.
const READING: [&str; 9] = [
    "im.pull",
    "im.conversations",
    "im.receipts",
    "im.group.members",
    "im.group.info",
    "im.relations",
    "im.profile.get",
    "im.devices",
    "im.presence",
];

/// Action and target of a request for the audit log; `None`: it changes nothing, or the message itself is the record.
pub(super) fn audited(request: &Request) -> Option<(String, String)> {
    #[derive(Default, Deserialize)]
    struct Named {
        #[serde(default)]
        user: String,
        #[serde(default)]
        method: String,
        #[serde(default)]
        conversation: String,
        to: Option<serde_json::Value>,
    }
    let path = request.path();
    if request.method != Method::POST || matches!(path, "/v1/messages" | "/v1/status") {
        return None;
    }
    let Named { user, method, conversation, to } = serde_json::from_slice(&request.body).unwrap_or_default();
    match (path, &*method) {
        (_, method) if READING.contains(&method) => None,
        ("/v1/requests", method) => Some((format!("{path} {method}"), user)),
        ("/v1/push", _) => Some((path.to_owned(), to.map(|to| to.to_string()).unwrap_or_default())),
        _ if user.is_empty() => Some((path.to_owned(), conversation)),
        _ => Some((path.to_owned(), user)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeQuestion {
    user: String,
    /// Unix time in seconds.
    before: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BanQuestion {
    user: String,
    /// Unix time in seconds.
    until: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionQuestion {
    conversation: String,
    /// Seconds, "forever" or "default".
    keep: serde_json::Value,
}

const KEEP_RULE: &str = "keep is a number of seconds, \"forever\" or \"default\"";

fn keep_of(keep: &serde_json::Value) -> Option<Keep> {
    match keep.as_str() {
        Some("default") => Some(Keep::Default),
        Some("forever") => Some(Keep::ForEver),
        Some(_) => None,
        None => keep.as_u64().map(Keep::Seconds),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitQuestion {
    conversation: String,
    /// A number, or "none".
    per_minute: serde_json::Value,
}

/// Messages a minute; `None`: no limit.
fn per_minute_of(value: &serde_json::Value) -> Result<Option<u32>, Problem> {
    match (value.as_str(), value.as_u64()) {
        (Some("none"), _) => Ok(None),
        (_, Some(count)) => Ok(Some(u32::try_from(count).unwrap_or(u32::MAX))),
        _ => Err(Problem::invalid("per_minute is a number of messages, or \"none\"")),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DissolveQuestion {
    conversation: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnbanQuestion {
    user: String,
}

/// Answers a request, which was judged before.
pub(super) async fn answer(request: &Request, shared: &Shared) -> Result<Response, Problem> {
    let method = if request.method == Method::HEAD { &Method::GET } else { &request.method };
    let (path, is_get, is_post) = (request.path(), method == Method::GET, method == Method::POST);
    match path {
        "/healthz" if is_get => Ok(text("text/plain", "ok\n")),
        "/readyz" if is_get => {
            let takes_writes = status(shared).await?.takes_writes;
            let of_store = "the store takes no writes at present; the log names the cause";
            let reason = (!takes_writes).then_some(of_store);
            match reason.or_else(|| shared.counters.node.as_ref()?.not_ready()) {
                None => Ok(text("text/plain", "ok\n")),
                Some(reason) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "RETRY", reason)),
            }
        }
        "/metrics" if is_get => {
            Ok(text(metrics::CONTENT_TYPE, metrics::page(&status(shared).await?, &shared.counters)))
        }
        "/v1/status" if is_get => {
            Ok(json_of(&status_json(&status(shared).await?, &shared.counters.links.read().caps)))
        }
        "/v1/messages" if is_post => stored(&shared.ask(message(request)?).await?),
        "/v1/push" if is_post => reached(&shared.ask(push(request)?).await?),
        "/v1/requests" if is_post => {
            let (call, method) = asked_for(request)?;
            answered(&shared.ask(call).await?, method.as_deref())
        }
        "/v1/users/delete" if is_post => {
            let UnbanQuestion { user } = parse(request)?;
            done(&shared.ask(ApiCall::DeleteUser { user }).await?)
        }
        "/v1/retention" if is_post => {
            let RetentionQuestion { conversation, keep } = parse(request)?;
            let keep = keep_of(&keep).ok_or_else(|| Problem::invalid(KEEP_RULE))?;
            done(&shared.ask(ApiCall::Retain { conversation, keep }).await?)
        }
        "/v1/limit" if is_post => {
            let LimitQuestion { conversation, per_minute } = parse(request)?;
            let per_minute = per_minute_of(&per_minute)?;
            done(&shared.ask(ApiCall::Limit { conversation, per_minute }).await?)
        }
        "/v1/groups/dissolve" if is_post => {
            let DissolveQuestion { conversation } = parse(request)?;
            done(&shared.ask(ApiCall::Dissolve { conversation }).await?)
        }
        "/v1/kick" if is_post => reached(&shared.ask(kick(request)?).await?),
        "/v1/revoke" if is_post => {
            let RevokeQuestion { user, before } = parse(request)?;
            reached(&shared.ask(ApiCall::Revoke { user, before_s: before }).await?)
        }
        "/v1/ban" if is_post => {
            let BanQuestion { user, until } = parse(request)?;
            reached(&shared.ask(ApiCall::Ban { user, until_s: until.unwrap_or(u64::MAX) }).await?)
        }
        "/v1/unban" if is_post => {
            let UnbanQuestion { user } = parse(request)?;
            reached(&shared.ask(ApiCall::Ban { user, until_s: 0 }).await?)
        }
        "/healthz" | "/readyz" | "/metrics" | "/v1/status" => Err(Problem::not_allowed("GET, HEAD")),
        path if Scope::of(path).is_some() => Err(Problem::not_allowed("POST")),
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no such path; see docs/server-api.md")),
    }
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    Response::new(StatusCode::OK, content_type, body)
}

fn json_of(value: &serde_json::Value) -> Response {
    text("application/json", value.to_string())
}

fn parse<T: DeserializeOwned>(request: &Request) -> Result<T, Problem> {
    // A struct would be read from an array, too.
    if request.body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::invalid("the body is not a JSON object"));
    }
    serde_json::from_slice(&request.body).map_err(|error| Problem::invalid(error.to_string()))
}

fn decoded(content: Content) -> Result<Bytes, Problem> {
    match content {
        Content { text: Some(text), payload: None } => Ok(text.into()),
        Content { text: None, payload: Some(payload) } => base64_of(&payload),
        _ => Err(Problem::invalid("exactly one of text and payload is needed")),
    }
}

fn base64_of(text: &str) -> Result<Bytes, Problem> {
    let decoded = BASE64.decode(text);
    decoded.map(Bytes::from).map_err(|error| Problem::invalid(format!("payload: {error}")))
}

pub(super) fn message(request: &Request) -> Result<ApiCall, Problem> {
    let MessageQuestion { from, to, r#type, text, payload, key } = parse(request)?;
    let payload = decoded(Content { text, payload })?;
    let may_repeat = key.is_some();
    let key = match key {
        Some(key) => Bytes::copy_from_slice(&key_of(&key)?),
        None => fresh_key()?,
    };
    let target = match (to.user, to.conversation) {
        (Some(uid), None) => send::Target::User(uid),
        (None, Some(id)) => send::Target::Conversation(id),
        _ => return Err(Problem::invalid("to has exactly one of user and conversation")),
    };
    let send = Send { key, target: Some(target), r#type, payload };
    Ok(ApiCall::Send { from, send, may_repeat })
}

fn fresh_key() -> Result<Bytes, Problem> {
    let mut key = [0; 16];
    getrandom::fill(&mut key)
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "RETRY", error.to_string()))?;
    Ok(Bytes::copy_from_slice(&key))
}

fn key_of(text: &str) -> Result<[u8; 16], Problem> {
    let wrong = || Problem::invalid("a key is 32 hexadecimal digits");
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let key = u128::from_str_radix(text, 16).ok().filter(|_| is_hex).ok_or_else(wrong)?;
    Ok(key.to_be_bytes())
}

pub(super) fn push(request: &Request) -> Result<ApiCall, Problem> {
    let PushQuestion { to, r#type: kind, text, payload, key } = parse(request)?;
    let payload = decoded(Content { text, payload })?;
    let key = key.map(|key| key_of(&key)).transpose()?.map(MessageKey);
    let PushTarget { inboxes, users, devices, room, everyone } = to;
    if key.is_some() && inboxes.is_none() {
        return Err(Problem::invalid("a key is for inboxes alone: what goes to who is online is not kept"));
    }
    let names = |devices: Vec<DeviceName>| devices.into_iter().map(|it| (it.user, it.device)).collect();
    let mut named = [
        inboxes.map(|users| PushTo::Inboxes(users, key)),
        users.map(PushTo::Users),
        devices.map(names).map(PushTo::Devices),
        room.map(PushTo::Room),
        everyone.filter(|is_meant| *is_meant).map(|_| PushTo::Everyone),
    ]
    .into_iter()
    .flatten();
    let (Some(to), None) = (named.next(), named.next()) else {
        let reason = "to has exactly one of inboxes, users, devices, room, and everyone, which is true";
        return Err(Problem::invalid(reason));
    };
    Ok(ApiCall::Push { to, kind, payload })
}

/// With the name of the method if the answer is to be JSON.
pub(super) fn asked_for(request: &Request) -> Result<(ApiCall, Option<String>), Problem> {
    let RequestQuestion { user, method, request, payload } = parse(request)?;
    let answered_as = request.is_some().then(|| method.clone());
    let payload = match (request, payload) {
        (Some(request), None) => {
            let encoded = requests::encode(&method, &request);
            let encoded = encoded.ok_or_else(|| {
                let reason = format!("no method {method:?}; they are those of docs/protocol.md, section 11");
                Problem::new(StatusCode::NOT_FOUND, "UNSUPPORTED", reason)
            })?;
            encoded.map_err(Problem::invalid)?
        }
        (None, payload) => base64_of(&payload.unwrap_or_default())?,
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("one of request and payload, not both"));
        }
    };
    Ok((ApiCall::Request { user, method, payload }, answered_as))
}

pub(super) fn kick(request: &Request) -> Result<ApiCall, Problem> {
    let KickQuestion { user, device } = parse(request)?;
    Ok(ApiCall::Kick { user, device })
}

fn refusal(answer: &ApiAnswer) -> Problem {
    let status = match answer.body {
        ApiBody::NotBuilt => StatusCode::NOT_IMPLEMENTED,
        _ => status_of(answer.code),
    };
    Problem::new(status, answer.code.as_str_name(), answer.reason.clone())
}

fn stored(answer: &ApiAnswer) -> Result<Response, Problem> {
    let ApiBody::Stored(SendAck { message_id, conversation, seq, time_ms, .. }) = &answer.body else {
        return Err(refusal(answer));
    };
    Ok(json_of(&json!({
        "message_id": message_id.to_string(),
        "readable_id": ReadableId::new(*message_id, conversation).to_string(),
        "conversation": conversation,
        "seq": seq,
        "time_ms": time_ms,
        "is_repeat": answer.code == Code::Dup,
    })))
}

fn reached(answer: &ApiAnswer) -> Result<Response, Problem> {
    match &answer.body {
        ApiBody::Reached(count) => Ok(json_of(&json!({ "reached": count }))),
        _ => Err(refusal(answer)),
    }
}

fn done(answer: &ApiAnswer) -> Result<Response, Problem> {
    match &answer.body {
        ApiBody::Payload(_) => Ok(json_of(&json!({}))),
        _ => Err(refusal(answer)),
    }
}

fn answered(answer: &ApiAnswer, method: Option<&str>) -> Result<Response, Problem> {
    let ApiBody::Payload(payload) = &answer.body else { return Err(refusal(answer)) };
    Ok(match method {
        Some(method) => json_of(&json!({ "response": requests::decode(method, payload) })),
        None => json_of(&json!({ "payload": BASE64.encode(payload) })),
    })
}

async fn status(shared: &Shared) -> Result<Status, Problem> {
    let answer = shared.ask(ApiCall::Status).await?;
    match answer.body {
        ApiBody::Status(status) => Ok(*status),
        _ => Err(refusal(&answer)),
    }
}

fn status_json(status: &Status, link_caps: &[CapFigures]) -> serde_json::Value {
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
        ..
    } = status;
    let webhooks: Vec<_> = webhooks.iter().map(webhook_json).collect();
    json!({
        "users": users, "conversations": conversations, "sessions": sessions, "committing": committing,
        "stored": stored, "repeated": repeated, "refused": refused, "put_off": put_off, "requests": requests,
        "acked": acked, "commits": commits, "stalls": stalls, "takes_writes": takes_writes,
        "webhooks": webhooks.clone(),
        // The name of version 0.1, until the next release.
        "services": webhooks,
        "limits": limits::json(status, link_caps),
    })
}

fn webhook_json(status: &WebhookStatus) -> serde_json::Value {
    let WebhookStatus { name, delivered, failed, given_up, is_failing } = status;
    json!({
        "name": name, "delivered": delivered, "failed": failed, "given_up": given_up, "is_failing": is_failing,
    })
}
