//! Ends of connections and sessions: with a reason of ours, by a kick, by the peer.
//!
//! Example: bob does not read. His session ends at once and what was not acknowledged goes back to the
//! backend; his connection lingers until CLOSE(SLOW) is written, at most 2 s.

use super::clients::Clients;
use super::connection::NO_SESSION;
use super::delivery::report_all;
use super::{Count, Output, Outputs};
use crate::messages::{Target, Uplink};
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{Close, Kick};
use moorline_proto::message::frame_of;
use moorline_proto::time::Instant;

/// Shortest time after which a client that is refused for now may come back, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;
/// Random part on top, so that clients that were refused together do not come back together.
const RETRY_SPREAD_MS: u64 = 4_000;

/// A kick as the backend ordered it.
#[derive(Clone, Debug)]
pub(super) struct KickOrder {
    pub(super) login_version: u64,
    pub(super) code: u32,
    pub(super) may_reconnect: bool,
    pub(super) reason: String,
}

impl Clients {
    /// Sends CLOSE and ends the session at once; the socket closes when the frame is written, or after the
    /// linger.
    pub(super) fn close(&mut self, now: Instant, key: ConnKey, reason: CloseReason, outputs: &mut Outputs) {
        let retry_after_ms = match reason {
            CloseReason::Busy | CloseReason::Unavailable | CloseReason::Throttled => {
                let wait = RETRY_AFTER_MS + self.ledger.random.below(RETRY_SPREAD_MS);
                u32::try_from(wait).unwrap_or(u32::MAX)
            }
            _ => 0,
        };
        if self.end(now, key, reason.code(), close_frame(reason, retry_after_ms), outputs) {
            self.ledger.counters.closed(reason);
        }
    }

    /// Closes every connection, and ends every detached session.
    pub(super) fn close_all(&mut self, now: Instant, reason: CloseReason, outputs: &mut Outputs) {
        for key in self.table.keys() {
            self.close(now, key, reason, outputs);
        }
    }

    /// Ends a connection that has not said HELLO, for another one. CLOSE is written as far as the socket takes it at
    /// once, and the place is free at once.
    pub(super) fn evict(&mut self, key: ConnKey, outputs: &mut Outputs) {
        let reason = CloseReason::HandshakeTimeout;
        let Some(mut client) = self.client(key) else { return };
        client.send_final(close_frame(reason, 0), outputs);
        self.ledger.counters[Count::HandshakesEvicted] += 1;
        self.ledger.counters.closed(reason);
        self.forget(key, 0, outputs);
    }

    /// Ends a session whose device logged in again.
    pub(super) fn replace(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        self.ledger.counters[Count::Replaced] += 1;
        let reason = CloseReason::Replaced;
        if self.end(now, key, reason.code(), replaced_frame(), outputs) {
            self.ledger.counters.closed(reason);
        }
    }

    /// Ends the logins that the backend means; a login that is newer than the backend knows stays [P-8.3].
    pub(super) fn kick(&mut self, now: Instant, target: &Target, order: &KickOrder, outputs: &mut Outputs) {
        let KickOrder { login_version, code, may_reconnect, reason } = order;
        let is_by_name = !matches!(target, Target::Connection(_));
        for key in self.resolve(target) {
            let version = self.session(key).expect("resolved").login_version;
            if is_by_name && *login_version != 0 && version > *login_version {
                continue;
            }
            let kick = Kick { code: *code, may_reconnect: *may_reconnect, reason: reason.clone() };
            if self.end(now, key, *code, frame_of(Command::Kick, &kick), outputs) {
                self.ledger.counters.closed(CloseReason::from_code(*code).unwrap_or(CloseReason::Kicked));
            }
        }
    }

    /// Closes a silent connection; its session is detached if `may_detach` [P-7.2].
    pub(super) fn end_silent(&mut self, now: Instant, key: ConnKey, may_detach: bool, outputs: &mut Outputs) {
        let reason = CloseReason::HeartbeatTimeout;
        if self.ledger.settings.session_keep.is_zero() || !may_detach {
            return self.close(now, key, reason, outputs);
        }
        if let Some(mut client) = self.client(key) {
            client.send_final(close_frame(reason, 0), outputs);
        }
        self.ledger.counters.closed(reason);
        if !self.try_detach(now, key, outputs) {
            self.forget(key, reason.code(), outputs);
        }
    }

    /// Ends the session, queues the last frame behind a half-written one, and lets the socket linger. True: a
    /// connection was ended.
    fn end(&mut self, now: Instant, key: ConnKey, code: u32, last: Frame, outputs: &mut Outputs) -> bool {
        let Some(mut client) = self.client(key) else { return false };
        if client.connection.state == State::Detached {
            self.forget(key, code, outputs);
            return false; // the connection had ended before
        }
        let Transition::To(state) = client.connection.state.on(Event::Ending) else { return false };
        client.connection.enter(state, now);
        client.drop_input();
        if code == CloseReason::Slow.code() {
            client.drop_unsent();
        }
        outputs.push(Output::Ending(key, code));
        self.end_session(key, code, outputs);
        let mut client = self.client(key).expect("only its session ended");
        client.ledger.pauses.forget(key);
        client.send(last, outputs);
        client.arm(now + client.ledger.settings.linger);
        true
    }

    /// Ends the session and closes the socket at once; no frame can be sent any more.
    pub(super) fn forget(&mut self, key: ConnKey, code: u32, outputs: &mut Outputs) {
        self.end_session(key, code, outputs);
        let Some(connection) = self.table.remove(key) else { return };
        self.ledger.count_gone(Some(&connection), None);
        if connection.state == State::Detached {
            self.detached.remove_one();
        }
        self.ledger.pauses.forget(key);
        self.ledger.timers.cancel(connection.timer);
        outputs.push(Output::Close(key));
    }

    /// Ends the login, and returns what was not acknowledged to the backend.
    fn end_session(&mut self, key: ConnKey, code: u32, outputs: &mut Outputs) {
        let Some(connection) = self.table.get_mut(key) else { return };
        let slot = std::mem::replace(&mut connection.session, NO_SESSION);
        if self.registry.get(slot).is_none() {
            return;
        }
        let session = self.registry.remove(slot);
        let route = session.route();
        self.rooms.forget(key);
        self.ledger.count_gone(None, Some(&session));
        for parcel in session.flight.into_iter().flat_map(|flight| flight.into_unacked()) {
            self.ledger.counters[Count::PushesOffline] += 1;
            report_all(&parcel, key, Outcome::Offline, outputs);
        }
        outputs.uplinks[route.index()].push(Uplink::ConnDown { key, pin: route.pin, code });
    }
}

/// CLOSE with the code and text of a reason.
fn close_frame(reason: CloseReason, retry_after_ms: u32) -> Frame {
    let text = reason.text().trim().to_owned();
    frame_of(Command::Close, &Close { code: reason.code(), reason: text, retry_after_ms })
}

/// KICK for a session, or a socket, that a newer login replaces.
pub(super) fn replaced_frame() -> Frame {
    let reason = CloseReason::Replaced;
    let text = reason.text().trim().to_owned();
    frame_of(Command::Kick, &Kick { code: reason.code(), may_reconnect: false, reason: text })
}
