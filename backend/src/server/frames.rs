//! Rules for each kind of link frame.
//!
//! Example: CONN_UP {handle 7, alice} of a known session moves the session to this link and queues
//! `Event::ConnUp` with `is_new: false`.

use super::event::{Event, GatewayId, JudgeTo, LinkId, Now, PushId, ReplyTo, Up};
use super::host::{LinkHost, Output};
use super::links::{LinkEnd, Phase};
use super::outbox::Kick;
use super::route::Login;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, Announce, ConnDown, ConnUp, Outcome, PushResult};
use moorline_proto::message::client::Code;

impl LinkHost {
    pub(super) fn handle_frame(
        &mut self,
        now: Now,
        link: LinkId,
        phase: Phase,
        frame: &LinkFrame,
    ) -> Result<(), LinkEnd> {
        let gateway = match phase {
            Phase::Open(gateway) => gateway,
            phase => return self.handle_greeting(now, link, phase, frame),
        };
        let peer = self.out.routes.gateways.get(&gateway).and_then(|known| known.peer);
        if let Some(node) = peer {
            if frame.kind == Kind::Pong {
                self.on_pong(now, gateway, frame.correlation); // a second process may ask for its name
                return Ok(());
            }
            return Ok(self.out.on_peer_frame(link, node, frame)?);
        }
        match frame.kind {
            Kind::Up => self.on_up(gateway, link, frame.correlation, frame.message()?),
            Kind::PushResult => self.on_push_result(gateway, frame.message()?)?,
            Kind::ConnUp => {
                let login = self.timed(now, link, frame.message()?);
                self.on_conn_up(gateway, link, frame.correlation, login, true);
            }
            Kind::ConnDown => self.on_conn_down(gateway, &frame.message()?),
            Kind::Announce => self.on_announce(now, gateway, link, frame.correlation, frame.message()?),
            Kind::Ping => {
                self.out.links.put(link, Kind::Pong, frame.correlation, 0, &());
            }
            Kind::Auth => {
                let (question, judge) = (frame.message()?, JudgeTo { link, correlation: frame.correlation });
                self.out.links.outputs.push_back(Output::Auth { question, judge });
            }
            Kind::Pong => self.on_pong(now, gateway, frame.correlation),
            // CREDIT only shows that the peer lives; the other two need no reaction.
            Kind::Credit | Kind::QueryResult | Kind::Drain => {}
            Kind::Slots => {
                if let Some(slots) = self.cluster.message() {
                    self.out.links.put(link, Kind::Slots, 0, 0, &slots);
                }
            }
            Kind::Leave => self.out.on_leave(gateway, frame.correlation, &frame.message()?),
            Kind::Digest => self.out.on_digest(link, frame.message()?),
            Kind::Stats => {
                let load = Some(frame.message()?);
                if let Some(known) = self.out.routes.gateways.get_mut(&gateway) {
                    known.load = load;
                }
            }
            kind @ (Kind::Hello
            | Kind::AuthResult
            | Kind::UpResult
            | Kind::Push
            | Kind::Kick
            | Kind::Bind
            | Kind::Unbind
            | Kind::Query
            | Kind::Challenge
            | Kind::Proof
            | Kind::Moved
            | Kind::Peer
            | Kind::Notice) => return Err(LinkError::Unexpected(kind).into()),
        }
        Ok(())
    }

    /// Puts the version of a login on this host's clock.
    fn timed(&mut self, now: Now, link: LinkId, login: ConnUp) -> ConnUp {
        let ahead = self.out.links.get(link).and_then(|state| state.clock_ahead);
        let login_version = self.login_clock.version(now, ahead, login.login_version);
        ConnUp { login_version, ..login }
    }

    /// Adds a session, or moves it to this link, unless a later announcement has moved it to another one. A login that
    /// happens now (`is_now`) gets a version above all others: gateways take theirs from clocks that need not agree.
    fn on_conn_up(
        &mut self,
        gateway: GatewayId,
        link: LinkId,
        announcement: u64,
        mut login: ConnUp,
        is_now: bool,
    ) {
        if self.cluster.try_refuse(gateway, link, &login, &mut self.out) {
            return;
        }
        let (handle, slot) = (login.handle, self.cluster.slot_of(&login.uid));
        let version = self.out.routes.version_of(gateway, handle, login.login_version, is_now);
        login.login_version = version;
        let place = (link, announcement, slot);
        let (session, is_new) = match self.out.routes.on_login(gateway, place, handle, version) {
            Login::New(session) => (session, true),
            Login::Overtaken => return,
            Login::Again(session) => {
                self.out.bind_again(session);
                (session, false)
            }
            Login::TableFull => {
                tracing::warn!(
                    sessions_max = self.config.sessions_max,
                    "kicked a login: `link.sessions_max` sessions are known"
                );
                self.out.kick_handle(link, handle, version, Kick::of(CloseReason::Busy));
                return;
            }
        };
        self.out.emit(Event::ConnUp { session, gateway, login, is_new });
    }

    fn on_announce(&mut self, now: Now, gateway: GatewayId, link: LinkId, number: u64, announce: Announce) {
        let (sessions, more) = (announce.connections.len(), announce.more);
        for login in announce.connections {
            let login = self.timed(now, link, login);
            self.on_conn_up(gateway, link, number, login, false);
        }
        self.out.emit(Event::Announced { link, sessions, more });
    }

    fn on_conn_down(&mut self, gateway: GatewayId, down: &ConnDown) {
        if let Some(session) = self.out.routes.find(gateway, down.handle) {
            self.out.end_session(session, down.code);
        }
    }

    fn on_up(&mut self, gateway: GatewayId, link: LinkId, correlation: u64, up: backend::Up) {
        let reply = (correlation != 0).then(|| {
            self.out.links.on_question(link);
            ReplyTo { link, correlation }
        });
        let command = u8::try_from(up.command).ok().and_then(Command::from_byte);
        let session = self.out.routes.find(gateway, up.handle);
        let slot = session.and_then(|session| self.out.routes.get(session)).map(|known| known.slot);
        if let Some(moved) = slot.and_then(|slot| self.cluster.moved(slot)) {
            if reply.is_some() {
                self.out.links.put(link, Kind::Moved, correlation, 0, &backend::Moved::from(moved));
                self.out.links.on_answer(link);
            }
            return;
        }
        match (session, command) {
            (Some(session), Some(command)) => {
                let (seq, dup, body) = (up.seq, up.dup, up.body);
                self.out.emit(Event::Up(Up { session, command, seq, dup, body, reply }));
            }
            // The UP was sent again after its client had left. The answer reaches no client.
            (None, _) => self.refuse(reply, Code::Retry),
            (_, None) => self.refuse(reply, Code::Unsupported),
        }
    }

    fn refuse(&mut self, reply: Option<ReplyTo>, code: Code) {
        if let Some(reply) = reply {
            self.out.answer(reply, code, Bytes::new());
        }
    }

    fn on_push_result(&mut self, gateway: GatewayId, result: PushResult) -> Result<(), LinkEnd> {
        for report in result.outcomes {
            let outcome = Outcome::try_from(report.outcome).map_err(|_| LinkError::Body(Kind::PushResult))?;
            let Some(session) = self.out.routes.find(gateway, report.handle) else { continue };
            self.out.emit(Event::Pushed { session, push: PushId(report.correlation), outcome });
            if outcome == Outcome::Offline {
                // The connection has ended, even if its CONN_DOWN never comes.
                self.out.end_session(session, 0);
            }
        }
        Ok(())
    }
}
