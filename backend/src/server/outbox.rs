//! What a handler says: answers, pushes and kicks, encoded straight into the buffers of the links.
//!
//! Pure: no socket is touched here. The loop writes each dirty buffer once at the end of a turn.

use super::event::{GatewayId, JudgeTo, LinkId, PushId, ReplyTo, SessionId};
use super::host::Output;
use super::links::Links;
use super::rooms::Rooms;
use super::route::{Place, Routes};
use crate::config::LinkConfig;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::Pin;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{self, AuthResult, Bind, Digest, Outcome, Stats, Unbind, UpResult};
use moorline_proto::message::client::{Code, Resp, SendAck, SubAck};
use moorline_proto::message::encode;
use prost::Message;
use std::collections::VecDeque;

/// How a push is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushSpec {
    /// PUSH, NOTIFY or an application command.
    pub command: Command,
    /// Priority class.
    pub lane: Lane,
    /// Whether every target's outcome is wanted as [`super::Event::Pushed`].
    pub want_ack: bool,
    /// Not to be sent when older, in milliseconds; 0: no limit.
    pub ttl_ms: u32,
}

/// How to end a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kick {
    /// The close code the client gets.
    pub code: u32,
    /// Whether the client may come back by itself.
    pub may_reconnect: bool,
    /// For people.
    pub reason: &'static str,
}

impl Kick {
    /// With the meaning of `reason`.
    pub const fn of(reason: CloseReason) -> Self {
        Self { code: reason.code(), may_reconnect: reason.may_reconnect(), reason: reason.text() }
    }
}

/// [`UpResult`] with the answer as a message, which has the same form on the wire and saves a copy.
#[derive(Clone, PartialEq, prost::Message)]
struct SendResult {
    #[prost(enumeration = "Code", tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    answer: Option<SendAck>,
}

/// The same for RESP.
#[derive(Clone, PartialEq, prost::Message)]
struct ReqResult {
    #[prost(enumeration = "Code", tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    answer: Option<Resp>,
}

/// Takes what a [`super::Handler`] says. Everything leaves at the end of the loop turn.
#[derive(Debug)]
pub struct Outbox {
    pub(super) routes: Routes,
    pub(super) rooms: Rooms,
    pub(super) links: Links,
    /// Outcomes of pushes that are known here already, at most one per target of a push.
    pub(super) undelivered: VecDeque<(SessionId, PushId, Outcome)>,
    next_push: u64,
    targets: Vec<(LinkId, u64)>,
    push: backend::Push,
}

impl Outbox {
    pub(super) fn new(config: &LinkConfig) -> Self {
        Self {
            routes: Routes::new(config.sessions_max),
            rooms: Rooms::new(config.rooms_max),
            links: Links::new(config),
            undelivered: VecDeque::new(),
            next_push: 1,
            targets: Vec::new(),
            push: backend::Push::default(),
        }
    }

    /// Asks for another turn at once: the handler has more to do that needs no event.
    pub fn come_back(&mut self) {
        self.links.outputs.push_back(Output::Again);
    }

    /// Answers an UP with bytes that are ready: a SendAck without cid and code, or a Resp without id
    /// and code.
    pub fn answer(&mut self, reply: ReplyTo, code: Code, answer: Bytes) {
        self.put_answer(reply, &UpResult { code: code.into(), answer });
    }

    /// Lets a client in, as this user.
    #[allow(clippy::needless_pass_by_value)] // the right is used up
    pub fn admit(&mut self, judge: JudgeTo, uid: &str) {
        let JudgeTo { link, correlation } = judge;
        let verdict = AuthResult { uid: uid.to_owned(), ..AuthResult::default() };
        self.links.put(link, Kind::AuthResult, correlation, 0, &verdict);
    }

    /// Does not let a client in. It hears the code; the reason is for the gateway's log.
    #[allow(clippy::needless_pass_by_value)] // the right is used up
    pub fn refuse(&mut self, judge: JudgeTo, code: CloseReason, reason: &str) {
        let JudgeTo { link, correlation } = judge;
        let verdict = AuthResult { code: code.code(), uid: String::new(), reason: reason.to_owned() };
        self.links.put(link, Kind::AuthResult, correlation, 0, &verdict);
    }

    /// Answers a SEND. `cid` and `code` inside `answer` must be zero: the gateway fills them.
    pub fn answer_send(&mut self, reply: ReplyTo, code: Code, answer: SendAck) {
        debug_assert!(answer.cid == 0 && answer.code == 0, "the gateway fills cid and code");
        self.put_answer(reply, &SendResult { code: code.into(), answer: Some(answer) });
    }

    /// Answers a REQ. `id` and `code` inside `answer` must be zero: the gateway fills them.
    pub fn answer_req(&mut self, reply: ReplyTo, code: Code, answer: Resp) {
        debug_assert!(answer.id == 0 && answer.code == 0, "the gateway fills id and code");
        self.put_answer(reply, &ReqResult { code: code.into(), answer: Some(answer) });
    }

    /// Sends one payload to some sessions: one link frame per link, however many sessions it serves.
    ///
    /// A session that cannot be reached now has the outcome OFFLINE, one whose link has `output_max`
    /// bytes waiting FULL; both come as [`super::Event::Pushed`] if `want_ack` is set.
    pub fn push(&mut self, sessions: &[SessionId], spec: PushSpec, body: &Bytes) -> PushId {
        let id = PushId(self.next_push);
        self.push_as(id, sessions, spec, body);
        id
    }

    /// [`Self::push`] for a handler that numbers its pushes itself, each larger than the one before.
    pub fn push_as(&mut self, id: PushId, sessions: &[SessionId], spec: PushSpec, body: &Bytes) {
        self.next_push = self.next_push.max(id.0 + 1);
        let mut targets = std::mem::take(&mut self.targets);
        for &session in sessions {
            match self.reach(session) {
                Ok(target) => targets.push(target),
                Err(outcome) if spec.want_ack => self.undelivered.push_back((session, id, outcome)),
                Err(_) => {}
            }
        }
        if targets.len() > 1 {
            targets.sort_unstable(); // by link
        }
        for chunk in targets.chunk_by(|(a, _), (b, _)| a == b) {
            self.put_push(chunk, id, spec, body);
        }
        targets.clear();
        self.targets = targets;
        self.push.body = Bytes::new();
    }

    /// Answers a SUB or UNSUB. Bind before: then the gateway hears it first.
    pub fn answer_sub(&mut self, reply: ReplyTo, code: Code, reason: &str) {
        let answer = encode(&SubAck { reason: reason.to_owned(), ..SubAck::default() });
        self.answer(reply, code, answer);
    }

    /// From now on the session gets what is said to the room. Doing it twice does no harm. False: a limit
    /// (256 rooms of a session, `link.rooms_max`, a name of 1 to 128 bytes), or no such session.
    pub fn bind(&mut self, session: SessionId, room: &str) -> bool {
        let Some(known) = self.routes.get(session) else { return false };
        let (handle, gateway, place) = (known.handle, known.gateway, known.place);
        let Some(version) = self.rooms.try_bind(room, session, gateway) else { return false };
        if let Place::Link(link) = place {
            let (handles, room) = (vec![handle], room.to_owned());
            self.links.put(link, Kind::Bind, 0, 0, &Bind { handles, room, version, reset: false });
        } else {
            self.rooms.keep_untold(session);
        }
        true
    }

    /// No more.
    pub fn unbind(&mut self, session: SessionId, room: &str) {
        let Some(known) = self.routes.get(session) else { return };
        let (handle, gateway, place) = (known.handle, known.gateway, known.place);
        if let Some(version) = self.rooms.unbind(room, session, gateway)
            && let Place::Link(link) = place
        {
            let (handles, room) = (vec![handle], room.to_owned());
            self.links.put(link, Kind::Unbind, 0, 0, &Unbind { handles, room, version });
        }
    }

    /// Whether the session gets what is said to the room.
    pub fn is_bound(&self, session: SessionId, room: &str) -> bool {
        self.rooms.is_bound(room, session)
    }

    /// Says something to everybody in a room but `except`: one frame for each gateway with a member. What
    /// is said so has no outcome, and is lost where no link stands; `want_ack` counts for nothing.
    pub fn push_room(&mut self, room: &str, except: Option<SessionId>, spec: PushSpec, body: &Bytes) {
        let except = except.and_then(|session| self.routes.get(session));
        let (of, except) = except.map_or((None, 0), |known| (Some(known.gateway), known.handle));
        for gateway in self.rooms.gateways(room) {
            let Some(link) = self.room_link(gateway, room) else {
                self.rooms.pushes_dropped += 1;
                continue;
            };
            let push = backend::Push {
                room: room.to_owned(),
                command: spec.command.byte().into(),
                lane: spec.lane as u32,
                ttl_ms: spec.ttl_ms,
                body: body.clone(),
                except: if of == Some(gateway) { except } else { 0 },
                ..backend::Push::default()
            };
            self.links.put(link, Kind::Push, 0, 0, &push);
        }
    }

    /// Frames of [`Self::push_room`] that were dropped: no link of the gateway, or its output is full.
    pub const fn room_pushes_dropped(&self) -> u64 {
        self.rooms.pushes_dropped
    }

    /// Rooms that were told anew because a gateway held something else.
    pub const fn room_repairs(&self) -> u64 {
        self.rooms.repairs
    }

    /// What a gateway said of its load last.
    pub fn load(&self, gateway: GatewayId) -> Option<&Stats> {
        self.routes.gateways.get(&gateway)?.load.as_ref()
    }

    /// A room's pushes to one gateway take one link as long as its links are the same, so they stay in
    /// order.
    fn room_link(&self, gateway: GatewayId, room: &str) -> Option<LinkId> {
        let links = self.links.of_gateway(gateway).count();
        let at = usize::try_from(Pin::of(room).0).unwrap_or(0).checked_rem(links)?;
        let (link, _) = self.links.of_gateway(gateway).nth(at)?;
        (self.links.is_full(link) == Some(false)).then_some(link)
    }

    /// The session is announced on another link. The gateway has its bindings still, but for those of the
    /// time between the links; what it has too much of then is for the digest.
    pub(super) fn bind_again(&mut self, session: SessionId) {
        if !self.rooms.take_untold(session) {
            return;
        }
        let rooms = self.rooms.of(session);
        let Some(known) = self.routes.get(session).filter(|_| !rooms.is_empty()) else { return };
        let (handle, place) = (known.handle, known.place);
        let Place::Link(link) = place else { return };
        for (room, version) in rooms {
            let bind = Bind { handles: vec![handle], room: room.to_string(), version, reset: false };
            self.links.put(link, Kind::Bind, 0, 0, &bind);
        }
    }

    /// A session is gone.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        if let Some(gateway) = self.routes.get(session).map(|known| known.gateway) {
            self.rooms.forget(session, gateway);
        }
        self.routes.on_logout(session);
    }

    /// What a gateway holds of the rooms of a link's sessions; what differs for long is told anew.
    pub(super) fn on_digest(&mut self, link: LinkId, digest: Digest) {
        let Some(digest) = self.rooms.gather(link, digest) else { return };
        let routes = &self.routes;
        let handle_of = |session| {
            let known = routes.get(session)?;
            (known.place == Place::Link(link)).then_some(known.handle)
        };
        for (room, version, handles) in self.rooms.compare(link, &digest, handle_of) {
            tracing::warn!(?link, members = handles.len(), "a gateway held other members of a room");
            let bind = Bind { handles, room: room.to_string(), version, reset: true };
            self.links.put(link, Kind::Bind, 0, 0, &bind);
        }
    }

    /// Ends one login. It names the connection, so it can never hit a newer login of the device. A
    /// session that cannot be reached now is not kicked: judge it again at its next `ConnUp`.
    pub fn kick(&mut self, session: SessionId, kick: Kick) {
        let Some(known) = self.routes.get(session) else { return };
        let (handle, login_version) = (known.handle, known.login_version);
        if let Place::Link(link) = known.place {
            self.kick_handle(link, handle, login_version, kick);
        }
    }

    pub(super) fn kick_handle(&mut self, link: LinkId, handle: u64, login_version: u64, kick: Kick) {
        let Kick { code, may_reconnect, reason } = kick;
        let reason = reason.to_owned();
        let body = backend::Kick { handle, login_version, code, may_reconnect, reason, ..Default::default() };
        self.links.put(link, Kind::Kick, 0, 0, &body);
    }

    #[allow(clippy::needless_pass_by_value)] // answering uses the right up
    fn put_answer<M: Message>(&mut self, reply: ReplyTo, body: &M) {
        let ReplyTo { link, correlation } = reply;
        if self.links.put(link, Kind::UpResult, correlation, 0, body) {
            self.links.on_answer(link);
        }
    }

    fn put_push(&mut self, targets: &[(LinkId, u64)], id: PushId, spec: PushSpec, body: &Bytes) {
        let Some((link, _)) = targets.first() else { return };
        let mut push = std::mem::take(&mut self.push);
        push.handles.clear();
        push.handles.extend(targets.iter().map(|(_, handle)| handle));
        push.command = spec.command.byte().into();
        push.lane = spec.lane as u32;
        push.want_ack = spec.want_ack;
        push.ttl_ms = spec.ttl_ms;
        push.body = body.clone();
        self.links.put(*link, Kind::Push, id.0, 0, &push);
        self.push = push;
    }

    /// The link and handle of a session, or why it cannot be pushed to.
    fn reach(&self, session: SessionId) -> Result<(LinkId, u64), Outcome> {
        let known = self.routes.get(session).ok_or(Outcome::Offline)?;
        let Place::Link(link) = known.place else { return Err(Outcome::Offline) };
        if self.links.is_full(link).ok_or(Outcome::Offline)? {
            return Err(Outcome::Full);
        }
        Ok((link, known.handle))
    }
}
