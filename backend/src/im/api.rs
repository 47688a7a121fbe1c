//! Calls of the server API (`docs/server-api.md`): to send for a user, to push to devices, to ask for a user,
//! to end logins, and how things stand.

use super::deletion::{self, Keep};
use super::logins::Logins;
use super::names::Names;
use super::output::{Outputs, Reply};
use super::quotas::{self, QuotaStatus};
use super::refusal::{Refused, refuse};
use super::request::{Requests, plan_new_users};
use super::send::digest;
use super::sessions::Sessions;
use super::store::{API_DEVICE, Counts, Facts, LoginChange, LoginRule, Need, ReadSet, Store, TellKey, Write};
use super::tasks::{Asked, Task};
use super::waiting::Waiter;
use super::{ClockStatus, DiskStatus, Im, Output, SignalStatus, WebhookStatus, WorkStatus};
use crate::server::{Kick, Now, PushSpec, SessionId};
use bytes::Bytes;
use moorline_net::cap::CapFigures;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::backend::Rank;
use moorline_proto::message::client::{Code, Push, Resp, Send, SendAck};
use moorline_proto::message::encode;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;

pub(super) const API_DEVICE_NAME: &str = "api";
/// Longest time, in seconds, that the clocks of a token's issuer and of the backend may differ in a revocation.
const BEFORE_AHEAD_MAX_S: u64 = 300;
/// Users or devices of one push.
const TARGETS_MAX: usize = 10_000;
/// Pushes to everyone that are under way.
const BROADCASTS_MAX: usize = 16;
/// Sessions that get one of them in a turn of the loop.
const BROADCAST_SESSIONS_PER_TURN: usize = 4096;

static KICKED: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "This login was ended by the operator.",
};

/// One question of the server API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiCall {
    /// A user says something, stored like a SEND.
    Send {
        /// The sender.
        from: String,
        /// The message.
        send: Send,
        /// The caller has chosen the key, and may make the call again with it.
        may_repeat: bool,
    },
    /// Something for devices that are online, or for the inboxes of users. It is in no conversation.
    Push {
        /// The receiver.
        to: PushTo,
        /// The application's content type.
        kind: u32,
        /// The content.
        payload: Bytes,
    },
    /// A request of section 11 of the protocol, for a user.
    Request {
        /// The user.
        user: String,
        /// Name of the method.
        method: String,
        /// The encoded request.
        payload: Bytes,
    },
    /// Ends logins.
    Kick {
        /// The user.
        user: String,
        /// Only of this device.
        device: Option<String>,
    },
    /// Refuses logins of a user whose tokens are older, and ends those that stand.
    Revoke {
        /// The user.
        user: String,
        /// Tokens issued before this Unix time, in seconds; 0: no tokens any more. `None`: all tokens of up to now.
        before_s: Option<u64>,
    },
    /// Refuses all logins of a user until this Unix time, in seconds, and ends those that stand; 0: ends the ban.
    Ban {
        /// The user.
        user: String,
        /// Unix time, in seconds; `u64::MAX`: for good.
        until_s: u64,
    },
    /// Deletes a user, with everything that is the user's.
    DeleteUser {
        /// The user.
        user: String,
    },
    /// Sets how long messages of a conversation are kept.
    Retain {
        /// Id of the conversation.
        conversation: String,
        /// The time.
        keep: Keep,
    },
    /// Sets how many messages a conversation takes from its members.
    Limit {
        /// Id of the conversation.
        conversation: String,
        /// Messages a minute, at most 60,000; 0: it is frozen; `None`: no limit.
        per_minute: Option<u32>,
    },
    /// Ends a group, with its messages.
    Dissolve {
        /// Id of the group.
        conversation: String,
    },
    /// Status of the backend.
    Status,
}

impl ApiCall {
    /// Number of users or devices that a push names.
    fn targets(&self) -> usize {
        match self {
            Self::Push { to: PushTo::Inboxes(users, _) | PushTo::Users(users), .. } => users.len(),
            Self::Push { to: PushTo::Devices(devices), .. } => devices.len(),
            _ => 0,
        }
    }

    /// True if the call names more users than one call may.
    pub(crate) fn is_too_large(&self) -> bool {
        self.targets() > TARGETS_MAX
    }

    /// Names the facts that the call will read, unless it has too many targets to be done.
    pub(super) fn plan(&self, set: &mut ReadSet) {
        match self {
            Self::Send { from: user, .. }
            | Self::Request { user, .. }
            | Self::Revoke { user, .. }
            | Self::Ban { user, .. } => {
                plan_new_users(std::slice::from_ref(user), set);
            }
            Self::Kick { user, .. } | Self::DeleteUser { user } => set.add(Need::User(user.clone())),
            Self::Retain { conversation, .. } | Self::Limit { conversation, .. } => {
                set.add(Need::Named(conversation.clone(), None));
            }
            Self::Dissolve { conversation } => set.add(Need::NamedMembers(conversation.clone())),
            Self::Push { to: PushTo::Inboxes(users, _), .. } => {
                plan_new_users(&users[..users.len().min(TARGETS_MAX)], set);
            }
            Self::Push { to: PushTo::Users(users), .. } => {
                users.iter().take(TARGETS_MAX).for_each(|uid| set.add(Need::User(uid.clone())));
            }
            Self::Push { to: PushTo::Devices(devices), .. } => {
                devices.iter().take(TARGETS_MAX).for_each(|(uid, _)| set.add(Need::User(uid.clone())));
            }
            Self::Push { to: PushTo::Room(_) | PushTo::Everyone, .. } | Self::Status => {}
        }
    }
}

/// Receivers of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushTo {
    /// Every device of these users, through their inboxes, until each has it. With a key each inbox gets it once, however often the
    /// call is made.
    Inboxes(Vec<String>, Option<MessageKey>),
    /// Online devices of these users.
    Users(Vec<String>),
    /// These devices, if they are online: user and device.
    Devices(Vec<(String, String)>),
    /// Members of a room.
    Room(String),
    /// Whoever is online.
    Everyone,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiAnswer {
    /// [`Code::Ok`] and [`Code::Dup`]: done.
    pub code: Code,
    /// Reason of the refusal.
    pub reason: String,
    /// When to try again, in milliseconds, with [`Code::Retry`].
    pub retry_after_ms: u32,
    /// The requested data.
    pub body: ApiBody,
}

/// The requested data.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiBody {
    /// Nothing, or it was refused.
    Nothing,
    /// Nothing: a node of a cluster cannot do this yet.
    NotBuilt,
    /// A message's place.
    Stored(SendAck),
    /// Number of sessions, or inboxes, that it went to; 0 for a room and for everyone.
    Reached(usize),
    /// The answer to a request.
    Payload(Bytes),
    /// Status of the backend.
    Status(Box<Status>),
}

/// Status of the backend; counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Users that are known.
    pub users: usize,
    /// Conversations that are known.
    pub conversations: usize,
    /// Memberships of all conversations.
    pub members: usize,
    /// Conversations that are limited or frozen by order.
    pub limited: usize,
    /// Logins that stand.
    pub sessions: usize,
    /// Batches that are being made durable.
    pub committing: usize,
    /// Messages stored.
    pub stored: u64,
    /// SENDs answered with an earlier result.
    pub repeated: u64,
    /// SENDs and requests refused.
    pub refused: u64,
    /// SENDs and requests put off, the store being busy.
    pub put_off: u64,
    /// Requests answered.
    pub requests: u64,
    /// Pushes that were acknowledged, by session.
    pub acked: u64,
    /// Pushes whose place a NOTIFY took: session after session of the device ended before it acknowledged them.
    pub replaced: u64,
    /// Commits that became durable; 0 without `im.folder`.
    pub commits: u64,
    /// Commits that had to wait, the engine being behind with writing tables out.
    pub stalls: u64,
    /// True if the store takes writes.
    pub takes_writes: bool,
    /// Caps of the store, each with the number that it limits.
    pub caps: Vec<CapFigures>,
    /// Messages removed by retention and deletion.
    pub swept: u64,
    /// Deletions of which messages are still to be removed.
    pub erasing: usize,
    /// Seconds by which the retention clock is behind the machine's.
    pub retention_behind_s: u64,
    /// Disk of `im.folder`.
    pub disk: DiskStatus,
    /// Work of users since the start.
    pub work: WorkStatus,
    /// The clock.
    pub clock: ClockStatus,
    /// Signals since the start, by outcome.
    pub signals: SignalStatus,
    /// Use of quotas.
    pub quotas: Vec<QuotaStatus>,
    /// Webhooks, by name.
    pub webhooks: Vec<WebhookStatus>,
}

/// Takes the one answer to a call. Dropping it without an answer tells the caller that none will come.
pub struct ApiReply(Box<dyn FnOnce(ApiAnswer) + std::marker::Send>);

impl fmt::Debug for ApiReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiReply")
    }
}

impl ApiReply {
    /// `give` takes the answer, in the backend's loop: it must not wait.
    pub fn new(give: impl FnOnce(ApiAnswer) + std::marker::Send + 'static) -> Self {
        Self(Box::new(give))
    }

    /// Gives the answer to the caller, who may have left.
    pub fn give(self, answer: ApiAnswer) {
        (self.0)(answer);
    }
}

impl ApiAnswer {
    pub(crate) fn new(code: Code, reason: impl Into<String>, retry_after_ms: u32, body: ApiBody) -> Self {
        Self { code, reason: reason.into(), retry_after_ms, body }
    }

    pub(super) fn of_send(code: Code, mut ack: SendAck) -> Self {
        let (reason, retry_after_ms) = (std::mem::take(&mut ack.reason), ack.retry_after_ms);
        let is_stored = matches!(code, Code::Ok | Code::Dup);
        let body = if is_stored { ApiBody::Stored(ack) } else { ApiBody::Nothing };
        Self::new(code, reason, retry_after_ms, body)
    }

    pub(super) fn of_req(code: Code, resp: Resp) -> Self {
        let body = if code == Code::Ok { ApiBody::Payload(resp.payload) } else { ApiBody::Nothing };
        Self::new(code, resp.reason, resp.retry_after_ms, body)
    }

    pub(super) fn of(result: Result<ApiBody, Refused>) -> Self {
        match result {
            Ok(body) => Self::new(Code::Ok, "", 0, body),
            Err((code, reason)) => Self::new(code, reason, 0, ApiBody::Nothing),
        }
    }
}

/// Pushes on their way to everyone.
#[derive(Debug, Default)]
pub(super) struct Broadcasts(VecDeque<(Bytes, usize)>);

impl<S: Store> Im<S> {
    /// Takes one question of the server API.
    pub fn handle_api(&mut self, now: Now, call: ApiCall, reply: ApiReply) {
        self.run(None, Task::Api(now, call, reply));
        self.take_completions();
    }

    pub(super) fn execute_api(&mut self, now: Now, call: ApiCall, reply: ApiReply) {
        match call {
            ApiCall::Send { from, send, may_repeat } => match self.requests().asked_by_api(now, &from) {
                Ok(asked) => {
                    let asked = Asked { is_repeat: may_repeat, ..asked };
                    self.run(None, Task::Send(asked, send, Reply::Api(reply)));
                }
                Err(refused) => self.out.answer_api_result(reply, Err(refused)),
            },
            ApiCall::Request { user, method, payload } => match self.requests().asked_by_api(now, &user) {
                Ok(asked) => self.on_request(asked, &method, &payload, Reply::Api(reply)),
                Err(refused) => self.out.answer_api_result(reply, Err(refused)),
            },
            ApiCall::Push { to, kind, payload } => self.api_push(now, to, kind, payload, reply),
            ApiCall::Kick { user, device } => {
                let kicked = self.logins().end_logins(&user, device.as_deref());
                self.out.answer_api_result(reply, Ok(ApiBody::Reached(kicked)));
            }
            ApiCall::Revoke { user, before_s } => match revoked_before(now, before_s) {
                Ok(before_s) => rule_logins(self, &user, LoginChange::ValidFrom(before_s), reply),
                Err(refused) => self.out.answer_api_result(reply, Err(refused)),
            },
            ApiCall::Ban { user, until_s } => {
                // A time that has passed ends the ban.
                let until_s = if until_s > now.unix_ms / 1000 { until_s } else { 0 };
                rule_logins(self, &user, LoginChange::BannedUntil(until_s), reply);
            }
            ApiCall::Dissolve { conversation } => deletion::dissolve(self, now, &conversation, reply),
            ApiCall::DeleteUser { user } => deletion::delete_user(self, now, &user, reply),
            ApiCall::Retain { conversation, keep } => {
                deletion::set_retention(self, &conversation, keep, reply);
            }
            ApiCall::Limit { conversation, per_minute } => {
                deletion::limit_sends(self, &conversation, per_minute, reply);
            }
            ApiCall::Status => {
                let status = Box::new(self.status());
                self.out.answer_api_result(reply, Ok(ApiBody::Status(status)));
            }
        }
    }

    /// Status of the backend.
    pub fn status(&self) -> Status {
        let counts = self.storage.store.counts();
        let caps = quotas::caps(&self.config, &counts).to_vec();
        let Counts { users, conversations, members, limited, swept, erasing, commits, stalls, .. } = counts;
        Status {
            users,
            conversations,
            members,
            limited,
            caps,
            quotas: self.quotas.statuses(),
            swept,
            erasing,
            retention_behind_s: self.sweeper.behind_s(),
            disk: self.disk_floor.status(),
            work: self.work.status(),
            clock: self.ids.clock(),
            signals: self.signals.status(),
            sessions: self.sessions.count(),
            committing: self.storage.open.commits(),
            commits,
            stalls,
            refused: self.out.refused(),
            takes_writes: !self.storage.store.is_broken(),
            webhooks: self.webhooks.statuses(),
            ..self.tally
        }
    }

    fn api_push(&mut self, now: Now, to: PushTo, kind: u32, payload: Bytes, reply: ApiReply) {
        let count = match &to {
            PushTo::Inboxes(users, _) | PushTo::Users(users) => users.len(),
            PushTo::Devices(devices) => devices.len(),
            PushTo::Room(_) | PushTo::Everyone => 0,
        };
        if payload.len() > self.config.payload_max || count > TARGETS_MAX {
            let reason = "`payload` is larger than `im.payload_max`, or there are more than 10,000 targets";
            return self.out.answer_api_result(reply, Err(refuse(Code::TooLarge, reason)));
        }
        let (id, digest) = (self.ids.next_now(now), digest(kind, &payload));
        let push = Push { message_id: id, time_ms: now.unix_ms, r#type: kind, payload, ..Push::default() };
        let body = encode(&push);
        let sessions: Vec<SessionId> = match to {
            PushTo::Inboxes(uids, key) => {
                let mut users = match self.requests().make_users("inboxes", &uids) {
                    Ok(users) => users,
                    Err(refused) => return self.out.answer_api_result(reply, Err(refused)),
                };
                users.sort_unstable();
                users.dedup();
                let waiter = Waiter::Told(reply, users.len());
                let key = key.map(|key| TellKey { key, digest, id });
                return self.storage.write(Write::Tell { users, event: body, key }, waiter);
            }
            PushTo::Users(uids) => {
                let known: BTreeSet<_> =
                    uids.iter().filter_map(|uid| self.storage.store.find_user(uid)).collect();
                known.into_iter().flat_map(|user| self.sessions.of(user)).map(|session| session.id).collect()
            }
            PushTo::Devices(devices) => {
                let of = |(uid, device): &(String, String)| {
                    let user = self.storage.store.find_user(uid)?;
                    self.sessions
                        .of(user)
                        .find(|session| session.names.device() == device)
                        .map(|session| session.id)
                };
                devices.iter().filter_map(of).collect::<HashSet<_>>().into_iter().collect()
            }
            PushTo::Room(room) => {
                self.out.put(Output::PushRoom { room, from: None, spec: LIVE, body });
                return self.out.answer_api_result(reply, Ok(ApiBody::Reached(0)));
            }
            PushTo::Everyone if self.broadcasts.0.len() >= BROADCASTS_MAX => {
                let reason = "cannot push to everyone: 16 such pushes are under way; try again later";
                let answer = ApiAnswer::new(Code::Retry, reason, 1000, ApiBody::Nothing);
                return self.out.answer_api(reply, answer);
            }
            PushTo::Everyone => {
                self.broadcasts.0.push_back((body, 0));
                return self.out.answer_api_result(reply, Ok(ApiBody::Reached(0)));
            }
        };
        if !sessions.is_empty() {
            self.out.push(&sessions, LIVE, &body);
        }
        self.out.answer_api_result(reply, Ok(ApiBody::Reached(sessions.len())));
    }
}

/// Makes the change durable, then ends the logins that it denies.
fn rule_logins<S: Store>(im: &mut Im<S>, uid: &str, change: LoginChange, reply: ApiReply) {
    let user = match im.requests().make_users("user", &[uid.to_owned()]) {
        Ok(users) => users[0],
        Err(refused) => return im.out.answer_api_result(reply, Err(refused)),
    };
    let rule = match change {
        LoginChange::ValidFrom(valid_from_s) => LoginRule { valid_from_s, ..LoginRule::default() },
        LoginChange::BannedUntil(banned_until_s) => LoginRule { banned_until_s, ..LoginRule::default() },
    };
    im.storage.write(Write::RuleLogins { user, change }, Waiter::Ruled(reply, user, rule));
}

/// Time before which a revocation refuses tokens, in Unix seconds.
fn revoked_before(now: Now, before_s: Option<u64>) -> Result<u64, Refused> {
    let now_s = now.unix_ms / 1000;
    // A token of this very second may be one that was stolen before.
    let before_s = before_s.unwrap_or(now_s + 1);
    if before_s > now_s + BEFORE_AHEAD_MAX_S {
        let reason = "`before` is more than 5 minutes from now; to refuse all logins, ban the user";
        return Err(refuse(Code::Invalid, reason));
    }
    Ok(before_s)
}

impl Broadcasts {
    /// Pushes the oldest payload to the sessions of the next slots, `most` at most.
    pub(super) fn advance(&mut self, sessions: &Sessions, most: usize, out: &mut Outputs) {
        let Some((body, next)) = self.0.front_mut() else { return };
        let most = most.min(BROADCAST_SESSIONS_PER_TURN);
        let (to, is_done) = sessions.slice(*next, most);
        *next += most;
        if !to.is_empty() {
            let spec = PushSpec { lane: Lane::Bulk, rank: Rank::Last, ..LIVE };
            out.push(&to, spec, body);
        }
        if is_done {
            self.0.pop_front();
        }
        if !self.0.is_empty() {
            out.put(Output::TurnAgain);
        }
    }
}

impl<F: Facts> Requests<'_, F> {
    /// Returns the user for whom the API speaks.
    fn asked_by_api(&mut self, now: Now, uid: &str) -> Result<Asked, Refused> {
        let user = self.make_users("user", &[uid.to_owned()])?[0];
        let (origin, names) = ((user, API_DEVICE), Names::new(uid, API_DEVICE_NAME));
        Ok(Asked { now, session: None, origin, names, is_repeat: false })
    }
}

impl<S: Store> Logins<'_, S> {
    /// Ends the logins of a user, or those of one device. Returns the number of logins.
    fn end_logins(&mut self, uid: &str, device: Option<&str>) -> usize {
        let Some(user) = self.storage.store.find_user(uid) else { return 0 };
        let theirs =
            self.sessions.of(user).filter(|it| device.is_none_or(|device| it.names.device() == device));
        let sessions: Vec<_> = theirs.map(|session| session.id).collect();
        for session in &sessions {
            self.end_login(*session, &KICKED);
        }
        sessions.len()
    }
}

/// To whoever is online now, without a word about what became of it.
const LIVE: PushSpec =
    PushSpec { command: Command::Push, lane: Lane::Group, want_ack: false, ttl_ms: 0, rank: Rank::Second };
