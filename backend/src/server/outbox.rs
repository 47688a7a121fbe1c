//! Answers, pushes, kicks and room changes of a handler, encoded straight into the buffers of the links. Pure.
//!
//! Example: alice and bob are on one link. `push(&[alice, bob], ..)` appends one PUSH frame with two handles to
//! the buffer of that link, and the owner writes the buffer at the end of the turn.

use super::event::{Event, GatewayId, JudgeTo, LinkId, PushId, ReplyTo, RoomNumber, SessionId};
use super::group_rooms::GroupRooms;
use super::host::Output;
use super::links::Links;
use super::rooms::Rooms;
use super::route::Routes;
use crate::config::LinkConfig;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::Pin;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{
    self, AuthResult, Bind, Digest, Outcome, Rank, Stats, Unbind, UpResult,
};
use moorline_proto::message::client::{Code, Resp, SendAck, SubAck};
use moorline_proto::message::encode;
use prost::Message;
use std::collections::VecDeque;

/// Treatment of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushSpec {
    /// PUSH, NOTIFY or an application command.
    pub command: Command,
    /// Priority class.
    pub lane: Lane,
    /// Asks for one [`super::Event::Pushed`] per target.
    pub want_ack: bool,
    /// Age above which the push is not sent, in milliseconds; 0: no limit.
    pub ttl_ms: u32,
    /// Rank by which gateways serve the push; [`Rank::ByLane`]: that of the lane.
    pub rank: Rank,
}

impl PushSpec {
    /// A push of the rank of its lane, whose outcome is not wanted and which does not expire.
    pub const fn new(command: Command, lane: Lane) -> Self {
        Self { command, lane, want_ack: false, ttl_ms: 0, rank: Rank::ByLane }
    }
}

/// Form of the end of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kick {
    /// Close code for the client.
    pub code: u32,
    /// Allows the client to reconnect by itself.
    pub may_reconnect: bool,
    /// Reason for people.
    pub reason: &'static str,
}

impl Kick {
    /// Creates a kick with the code and the text of `reason`.
    pub const fn of(reason: CloseReason) -> Self {
        Self { code: reason.code(), may_reconnect: reason.may_reconnect(), reason: reason.text() }
    }
}

/// Chooses the link of a gateway for a room: the same one while the gateway's links are the same, so that pushes to the room
/// stay in order. `None`: the gateway has no link, or its output is full.
pub(super) fn room_link(links: &Links, gateway: GatewayId, room: &str) -> Option<LinkId> {
    let count = links.of_gateway(gateway).count();
    let at = usize::try_from(Pin::of(room).0).unwrap_or(0).checked_rem(count)?;
    let (link, _) = links.of_gateway(gateway).nth(at)?;
    (links.is_full(link) == Some(false)).then_some(link)
}

/// Number of the rank of a push on the link: that of its lane costs no bytes.
fn told(spec: PushSpec) -> i32 {
    let of_lane = match spec.lane {
        Lane::Control | Lane::Chat => Rank::First,
        Lane::Group => Rank::Second,
        Lane::Bulk => Rank::Last,
    };
    if spec.rank == of_lane { Rank::ByLane.into() } else { spec.rank.into() }
}

/// [`UpResult`] that holds a SendAck as a message: the same bytes on the wire, and one copy less.
#[derive(Clone, PartialEq, prost::Message)]
struct SendResult {
    #[prost(enumeration = "Code", tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    answer: Option<SendAck>,
    #[prost(enumeration = "Rank", tag = "3")]
    rank: i32,
}

/// [`UpResult`] that holds a Resp as a message.
#[derive(Clone, PartialEq, prost::Message)]
struct ReqResult {
    #[prost(enumeration = "Code", tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    answer: Option<Resp>,
}

/// Everything that a [`super::Handler`] says. All of it is written at the end of the turn.
#[derive(Debug)]
pub struct Outbox {
    pub(super) routes: Routes,
    pub(super) rooms: Rooms,
    pub(super) group_rooms: GroupRooms,
    pub(super) links: Links,
    /// Outcomes that need no answer of a gateway, at most one per target of a push.
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
            group_rooms: GroupRooms::default(),
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

    /// Answers an UP with an encoded answer: a SendAck without `cid` and `code`, or a Resp without `id` and `code`.
    pub fn answer(&mut self, reply: ReplyTo, code: Code, answer: Bytes) {
        self.put_answer(reply, &UpResult { code: code.into(), answer, rank: Rank::ByLane.into() });
    }

    /// Admits a client as this user.
    pub fn admit(&mut self, judge: JudgeTo, uid: &str) {
        self.admit_until(judge, uid, 0, 0);
    }

    /// Admits a client as this user, with the issue and the expiry of its token in Unix seconds; 0: not known, never.
    #[allow(clippy::needless_pass_by_value)] // each right is used once
    pub fn admit_until(&mut self, judge: JudgeTo, uid: &str, issued_at: u64, expires_at: u64) {
        let JudgeTo { link, correlation } = judge;
        let verdict = AuthResult { uid: uid.to_owned(), issued_at, expires_at, ..AuthResult::default() };
        self.links.put(link, Kind::AuthResult, correlation, 0, &verdict);
    }

    /// Refuses a client. The client gets the code; the reason is for the gateway's log.
    #[allow(clippy::needless_pass_by_value)] // each right is used once
    pub fn refuse(&mut self, judge: JudgeTo, code: CloseReason, reason: &str) {
        let JudgeTo { link, correlation } = judge;
        let verdict = AuthResult { code: code.code(), reason: reason.to_owned(), ..AuthResult::default() };
        self.links.put(link, Kind::AuthResult, correlation, 0, &verdict);
    }

    /// Answers a SEND. `cid` and `code` inside `answer` must be zero: the gateway fills them.
    pub fn answer_send(&mut self, reply: ReplyTo, code: Code, answer: SendAck) {
        self.answer_sent(reply, code, answer, Rank::ByLane);
    }

    /// [`Self::answer_send`] for a message of this rank, by which gateways set the pace of fan-outs, and shed in overload.
    pub fn answer_sent(&mut self, reply: ReplyTo, code: Code, answer: SendAck, rank: Rank) {
        debug_assert!(answer.cid == 0 && answer.code == 0, "the gateway fills cid and code");
        // The first rank is what an answer without one has, so it costs no bytes.
        let rank = if rank == Rank::First { Rank::ByLane } else { rank };
        self.put_answer(reply, &SendResult { code: code.into(), answer: Some(answer), rank: rank.into() });
    }

    /// Answers a REQ. `id` and `code` inside `answer` must be zero: the gateway fills them.
    pub fn answer_req(&mut self, reply: ReplyTo, code: Code, answer: Resp) {
        debug_assert!(answer.id == 0 && answer.code == 0, "the gateway fills id and code");
        self.put_answer(reply, &ReqResult { code: code.into(), answer: Some(answer) });
    }

    /// Sends one payload to sessions, with one frame per link.
    ///
    /// A session without a link gets the outcome OFFLINE, and one whose link has `link.output_max` unsent bytes gets
    /// FULL. Both come as [`super::Event::Pushed`] if `want_ack` is set. FULL also comes without it for a PUSH and a NOTIFY:
    /// nothing else would tell of the message, while an OFFLINE session is announced again or ends.
    pub fn push(&mut self, sessions: &[SessionId], spec: PushSpec, body: &Bytes) -> PushId {
        let id = PushId(self.next_push);
        self.push_as(id, sessions, None, spec, body);
        id
    }

    /// [`Self::push`] for a handler that numbers its pushes itself, each larger than the one before. `room`: behind what went
    /// to this room of a group; if that is lost, each session gets the outcome FULL, for [`super::Event::RoomLost`] tells of the
    /// messages.
    pub fn push_as(
        &mut self,
        id: PushId,
        sessions: &[SessionId],
        room: Option<RoomNumber>,
        spec: PushSpec,
        body: &Bytes,
    ) {
        self.skip_push(id);
        let is_message = matches!(spec.command, Command::Push | Command::Notify);
        let mut targets = std::mem::take(&mut self.targets);
        for &session in sessions {
            match self.reach(session, room) {
                Ok(target) => targets.push(target),
                Err(outcome) if spec.want_ack || outcome == Outcome::Full && is_message => {
                    self.undelivered.push_back((session, id, outcome));
                }
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

    /// Takes a number that the handler gave to a push.
    pub(super) fn skip_push(&mut self, id: PushId) {
        self.next_push = self.next_push.max(id.0 + 1);
    }

    /// Answers a SUB or UNSUB. Call [`Self::bind`] first: the gateway must know the binding before the answer.
    pub fn answer_sub(&mut self, reply: ReplyTo, code: Code, reason: &str) {
        let answer = encode(&SubAck { reason: reason.to_owned(), ..SubAck::default() });
        self.answer(reply, code, answer);
    }

    /// Puts a session into a room; a second time changes nothing. False: a limit is reached (256 rooms of a session,
    /// `link.rooms_max`, a name of 1 to 128 bytes), or there is no such session.
    pub fn bind(&mut self, session: SessionId, room: &str) -> bool {
        let Some(known) = self.routes.get(session) else { return false };
        let (handle, gateway, link) = (known.handle, known.gateway, self.routes.link_of(known));
        let Some(version) = self.rooms.try_bind(room, session, gateway) else { return false };
        if let Some(link) = link {
            let (handles, room) = (vec![handle], room.to_owned());
            self.links.put(link, Kind::Bind, 0, 0, &Bind { handles, room, version, reset: false });
        } else {
            self.rooms.mark_unsent(session);
        }
        true
    }

    /// Removes a session from a room.
    pub fn unbind(&mut self, session: SessionId, room: &str) {
        let Some(known) = self.routes.get(session) else { return };
        let (handle, gateway, link) = (known.handle, known.gateway, self.routes.link_of(known));
        if let Some(version) = self.rooms.unbind(room, session, gateway)
            && let Some(link) = link
        {
            let (handles, room) = (vec![handle], room.to_owned());
            self.links.put(link, Kind::Unbind, 0, 0, &Unbind { handles, room, version });
        }
    }

    /// Returns whether a session is in a room.
    pub fn is_bound(&self, session: SessionId, room: &str) -> bool {
        self.rooms.is_bound(room, session)
    }

    /// Sends one payload to the members of a room except `except`, with one frame per gateway. Such a push has no
    /// outcome, ignores `want_ack`, and is lost for a gateway without a link.
    pub fn push_room(&mut self, room: &str, except: Option<SessionId>, spec: PushSpec, body: &Bytes) {
        let except = except.and_then(|session| self.routes.get(session));
        let (of, except) = except.map_or((None, 0), |known| (Some(known.gateway), known.handle));
        for gateway in self.rooms.gateways(room) {
            let Some(link) = room_link(&self.links, gateway, room) else {
                self.rooms.pushes_dropped += 1;
                continue;
            };
            self.put_room_push(link, room, if of == Some(gateway) { except } else { 0 }, spec, body);
        }
    }

    pub(super) fn put_room_push(
        &mut self,
        link: LinkId,
        room: &str,
        except: u64,
        spec: PushSpec,
        body: &Bytes,
    ) {
        let push = backend::Push {
            room: room.to_owned(),
            command: spec.command.byte().into(),
            lane: spec.lane as u32,
            ttl_ms: spec.ttl_ms,
            rank: told(spec),
            body: body.clone(),
            except,
            ..backend::Push::default()
        };
        self.links.put(link, Kind::Push, 0, 0, &push);
    }

    /// Returns the dropped frames of [`Self::push_room`]: the gateway had no link, or its link's output was full.
    pub const fn room_pushes_dropped(&self) -> u64 {
        self.rooms.pushes_dropped
    }

    /// Returns the rooms that were sent in full again, because a gateway held other members.
    pub const fn room_repairs(&self) -> u64 {
        self.rooms.repairs
    }

    /// Returns the load figures that a gateway sent last.
    pub fn load(&self, gateway: GatewayId) -> Option<&Stats> {
        self.routes.gateways.get(&gateway)?.load.as_ref()
    }

    /// Sends the bindings of a session that was announced on another link, if one changed while no link spoke for it.
    /// The gateway kept the older ones; bindings that it must drop are found by its digest.
    pub(super) fn bind_again(&mut self, session: SessionId) {
        if !self.rooms.take_unsent(session) {
            return;
        }
        let rooms = self.rooms.of(session);
        let Some(known) = self.routes.get(session).filter(|_| !rooms.is_empty()) else { return };
        let handle = known.handle;
        let Some(link) = self.routes.link_of(known) else { return };
        for (room, version) in rooms {
            let bind = Bind { handles: vec![handle], room: room.to_string(), version, reset: false };
            self.links.put(link, Kind::Bind, 0, 0, &bind);
        }
    }

    /// Gives an event to the handler.
    pub(super) fn emit(&mut self, event: Event) {
        self.links.outputs.push_back(Output::Event(event));
    }

    /// Forgets a session and tells the handler. `code`: the close code; 0: the client left without one.
    pub(super) fn end_session(&mut self, session: SessionId, code: u32) {
        self.forget_session(session);
        self.emit(Event::ConnDown { session, code });
    }

    /// Forgets a session.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        if let Some(gateway) = self.routes.get(session).map(|known| known.gateway) {
            self.rooms.forget(session, gateway);
        }
        self.routes.on_logout(session);
    }

    /// Compares a gateway's digest with the rooms of the link's sessions, and sends rooms that differ twice in full.
    pub(super) fn on_digest(&mut self, link: LinkId, digest: Digest) {
        let Some(digest) = self.rooms.gather(link, digest) else { return };
        let routes = &self.routes;
        let handle_of = |session| {
            let known = routes.get(session)?;
            (routes.link_of(known) == Some(link)).then_some(known.handle)
        };
        for (room, version, handles) in self.rooms.compare(link, &digest, handle_of) {
            if let Some(room) = self.group_rooms.number(&room) {
                tracing::warn!(?link, ?room, "gave a group's room up: the gateway held other members");
                self.lose_room(room);
                continue;
            }
            tracing::warn!(
                ?link,
                members = handles.len(),
                "sent a room in full: the gateway held other members"
            );
            let bind = Bind { handles, room: room.to_string(), version, reset: true };
            self.links.put(link, Kind::Bind, 0, 0, &bind);
        }
    }

    /// Ends one login. The frame names the connection, so it never hits a newer login of the device. A session without
    /// a link is not kicked: judge it again at its next `ConnUp`.
    pub fn kick(&mut self, session: SessionId, kick: Kick) {
        let Some(known) = self.routes.get(session) else { return };
        let (handle, login_version) = (known.handle, known.login_version);
        if let Some(link) = self.routes.link_of(known) {
            self.kick_handle(link, handle, login_version, kick);
        }
    }

    pub(super) fn kick_handle(&mut self, link: LinkId, handle: u64, login_version: u64, kick: Kick) {
        let Kick { code, may_reconnect, reason } = kick;
        let reason = reason.to_owned();
        let body = backend::Kick { handle, login_version, code, may_reconnect, reason, ..Default::default() };
        self.links.put(link, Kind::Kick, 0, 0, &body);
    }

    #[allow(clippy::needless_pass_by_value)] // each right is used once
    fn put_answer<M: Message>(&mut self, reply: ReplyTo, body: &M) {
        let ReplyTo { link, correlation } = reply;
        if self.links.put(link, Kind::UpResult, correlation, 0, body) {
            self.links.on_answer(link);
        }
    }

    pub(super) fn put_push(&mut self, targets: &[(LinkId, u64)], id: PushId, spec: PushSpec, body: &Bytes) {
        let Some((link, _)) = targets.first() else { return };
        let mut push = std::mem::take(&mut self.push);
        push.handles.clear();
        push.handles.extend(targets.iter().map(|(_, handle)| handle));
        push.command = spec.command.byte().into();
        push.lane = spec.lane as u32;
        push.want_ack = spec.want_ack;
        push.ttl_ms = spec.ttl_ms;
        push.rank = told(spec);
        push.body = body.clone();
        self.links.put(*link, Kind::Push, id.0, 0, &push);
        self.push = push;
    }

    /// Returns the link and the handle of a session, or the outcome of a push to it.
    fn reach(&self, session: SessionId, room: Option<RoomNumber>) -> Result<(LinkId, u64), Outcome> {
        let known = self.routes.get(session).ok_or(Outcome::Offline)?;
        let chosen = room.map_or(Ok(None), |room| self.group_rooms.link_for(room, known.gateway));
        let chosen = chosen.map_err(|_| Outcome::Full)?;
        let Some(link) = chosen.or_else(|| self.routes.link_of(known)) else { return Err(Outcome::Offline) };
        if self.links.is_full(link).ok_or(Outcome::Offline)? {
            return Err(Outcome::Full);
        }
        Ok((link, known.handle))
    }
}
