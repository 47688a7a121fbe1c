//! How connections end: by us with a reason, by the peer, by the backend, by a drain.

use super::bucket::Stamp;
use super::delivery::report;
use super::{Output, Outputs, Shard};
use crate::handoff::{Downlink, Target, Uplink};
use bytes::Bytes;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{Close, Kick};
use moorline_proto::message::{decode, frame_of};
use moorline_proto::time::Instant;

/// A client refused for now may come back after this, in milliseconds,
const RETRY_AFTER_MS: u64 = 1_000;
/// and a random part of this more, so that those refused together do not come together.
const RETRY_SPREAD_MS: u64 = 4_000;

/// A kick as the backend ordered it.
#[derive(Debug)]
pub(super) struct KickOrder {
    pub(super) login_version: u64,
    pub(super) code: u32,
    pub(super) may_reconnect: bool,
    pub(super) reason: String,
}

impl Shard {
    /// The peer closed or reset its side.
    pub fn handle_peer_closed(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(connection) = self.table.get(key) else { return };
        if connection.state == State::Detached {
            return; // it was the end of a socket that was given up before
        }
        if connection.state != State::Closing {
            self.tally.closed_by_peer += 1;
        }
        if !self.try_detach(now, key, outputs) {
            self.forget(key, 0, outputs);
        }
    }

    /// Nothing was heard for too long: the connection ends, the session may wait [P-7.2].
    pub(super) fn on_silent(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let reason = CloseReason::HeartbeatTimeout;
        if self.settings.session_keep.is_zero() || self.is_draining {
            return self.close(now, key, reason, outputs);
        }
        self.say_last(key, close_frame(reason, 0), outputs);
        self.tally.closed(reason);
        if !self.try_detach(now, key, outputs) {
            self.forget(key, reason.code(), outputs);
        }
    }

    /// Ends every connection: the gateway stops.
    pub fn handle_stop(&mut self, now: Instant, outputs: &mut Outputs) {
        self.is_draining = true;
        for key in self.table.keys() {
            self.close(now, key, CloseReason::GoingAway, outputs);
        }
    }

    /// Says CLOSE and ends: the session at once, the socket when the frame is out or after the linger.
    pub(super) fn close(&mut self, now: Instant, key: ConnKey, reason: CloseReason, outputs: &mut Outputs) {
        let retry_after_ms = match reason {
            CloseReason::Busy | CloseReason::Unavailable | CloseReason::Throttled => {
                u32::try_from(RETRY_AFTER_MS + self.random.below(RETRY_SPREAD_MS)).unwrap_or(u32::MAX)
            }
            _ => 0,
        };
        let is_counted = self.end(now, key, reason.code(), close_frame(reason, retry_after_ms), outputs);
        if is_counted {
            self.tally.closed(reason);
        }
    }

    /// The same device logged in again; this session is the older one.
    pub(super) fn replace(&mut self, now: Instant, session: u32, outputs: &mut Outputs) {
        let connection = self.registry.get(session).expect("just found").connection;
        let key = self.table.key_of(connection).expect("a session has its connection");
        let reason = CloseReason::Replaced;
        self.tally[super::Count::Replaced] += 1;
        let kick =
            Kick { code: reason.code(), may_reconnect: false, reason: reason.text().trim().to_owned() };
        if self.end(now, key, reason.code(), frame_of(Command::Kick, &kick), outputs) {
            self.tally.closed(reason);
        }
    }

    /// The backend ends a login; one that is newer than it means stays [P-8.3].
    pub(super) fn on_kick(
        &mut self,
        now: Instant,
        target: &Target,
        order: &KickOrder,
        outputs: &mut Outputs,
    ) {
        if let Some(home) = self.home_of_target(target) {
            let KickOrder { login_version, code, may_reconnect, reason } = order;
            let (target, reason) = (target.clone(), reason.clone());
            let (login_version, code, may_reconnect) = (*login_version, *code, *may_reconnect);
            let kick = Downlink::Kick { target, login_version, code, may_reconnect, reason };
            return outputs.forwards.push((home, kick));
        }
        for key in self.resolve(target) {
            let slot = self.table.get(key).expect("resolved").session;
            let version = self.registry.get(slot).expect("resolved").login_version;
            let is_by_name = !matches!(target, Target::Connection(_));
            if is_by_name && order.login_version != 0 && version > order.login_version {
                continue;
            }
            let kick =
                Kick { code: order.code, may_reconnect: order.may_reconnect, reason: order.reason.clone() };
            if self.end(now, key, order.code, frame_of(Command::Kick, &kick), outputs) {
                self.tally.closed(CloseReason::from_code(order.code).unwrap_or(CloseReason::Kicked));
            }
        }
    }

    /// The client says CLOSE: nothing is left to say.
    pub(super) fn on_client_close(&mut self, key: ConnKey, body: &Bytes, outputs: &mut Outputs) {
        let code = decode::<Close>(body).map_or(0, |close| close.code);
        self.tally.closed_by_peer += 1;
        self.forget(key, code, outputs);
    }

    /// True: a connection was ended.
    /// Ends the session, queues the last frame behind a half-written one, and lets the socket linger.
    fn end(&mut self, now: Instant, key: ConnKey, code: u32, last: Frame, outputs: &mut Outputs) -> bool {
        let Some(connection) = self.table.get_mut(key) else { return false };
        if connection.state == State::Detached {
            self.forget(key, code, outputs);
            return false; // there was no connection any more
        }
        let Transition::To(state) = connection.state.on(Event::Ending) else { return false };
        connection.state = state;
        connection.heard = Stamp::of(now);
        if let Some(outbound) = connection.outbound.as_mut().filter(|_| code == CloseReason::Slow.code()) {
            self.queued_bytes -= outbound.bytes();
            outbound.drop_unsent();
            self.queued_bytes += outbound.bytes();
        }
        self.end_session(key, code, outputs);
        self.unhold(key);
        self.send(key, last, outputs);
        self.arm(key, now + self.settings.linger);
        true
    }

    /// Frees the slot; nothing more can be said.
    pub(super) fn forget(&mut self, key: ConnKey, code: u32, outputs: &mut Outputs) {
        self.end_session(key, code, outputs);
        let Some(connection) = self.table.remove(key) else { return };
        self.queued_bytes -= connection.outbound.as_ref().map_or(0, |outbound| outbound.bytes());
        self.kept.len -= usize::from(connection.state == State::Detached);
        self.unhold(key);
        self.wheel.cancel(connection.timer);
        outputs.push(Output::Close(key));
    }

    /// Ends the login, and returns what was not acknowledged to the backend.
    fn end_session(&mut self, key: ConnKey, code: u32, outputs: &mut Outputs) {
        let Some(connection) = self.table.get_mut(key) else { return };
        let slot = std::mem::replace(&mut connection.session, super::connection::NO_SESSION);
        if self.registry.get(slot).is_none() {
            return;
        }
        let session = self.registry.remove(slot);
        let route = session.route();
        self.rooms.forget(key);
        self.queued_bytes -= session.flight.as_ref().map_or(0, |flight| flight.waiting_bytes());
        for parcel in session.flight.into_iter().flat_map(|flight| flight.into_unacked()) {
            self.tally[super::Count::PushesOffline] += 1;
            parcel.tickets().for_each(|ticket| report(Some(ticket), key, Outcome::Offline, outputs));
        }
        let down = Uplink::ConnDown { key, pin: route.pin, code };
        outputs.uplinks[route.index()].push(down);
    }
}

/// CLOSE with a reason's code and text.
fn close_frame(reason: CloseReason, retry_after_ms: u32) -> Frame {
    let text = reason.text().trim().to_owned();
    frame_of(Command::Close, &Close { code: reason.code(), reason: text, retry_after_ms })
}
