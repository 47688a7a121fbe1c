//! Logins: from the gateway's announcement of a session to the read of its device's backlog, and their end.
//!
//! bob's phone logs in: the store registers the device, an older login of the same device is kicked, the session is put
//! into bob's list, and the backlog of the device is read.

use super::names;
use super::output::Outputs;
use super::presence::Presences;
use super::sessions::{LoginState, PendingNotifies, Session, Sessions};
use super::storage::Storage;
use super::store::{self, LoggedIn, Login, LoginDenied, LoginRule, Read, Store, UserId, Write};
use super::suspects::{Caution, Suspects};
use super::waiting::{Queues, Waiter, Waiting};
use super::window::Window;
use crate::server::{Kick, Now, SessionId};
use moorline_proto::error::CloseReason;
use moorline_proto::message::backend::ConnUp;

static TOO_MANY_DEVICES: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "The user has logged in on more devices than im.devices_max.",
};
static REVOKED: Kick = Kick {
    code: CloseReason::TokenExpired.code(),
    may_reconnect: false,
    reason: "The token of this login was revoked; log in with a new one.",
};
static BANNED: Kick =
    Kick { code: CloseReason::Kicked.code(), may_reconnect: false, reason: "This user is banned." };
const BAD_NAME: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "A uid and a device id have 1 to 64 bytes, no colon, and no control, format or invisible character; a device is not called api, endpoint or import.",
};

/// Parts of the backend that logins change.
pub(super) struct Logins<'a, S> {
    pub(super) storage: &'a mut Storage<S>,
    pub(super) sessions: &'a mut Sessions,
    pub(super) presences: &'a mut Presences,
    pub(super) queues: &'a mut Queues,
    pub(super) suspects: &'a mut Suspects,
    pub(super) out: &'a mut Outputs,
}

impl<S: Store> Logins<'_, S> {
    pub(super) fn on_conn_up(&mut self, now: Now, id: SessionId, login: ConnUp, is_new: bool) {
        if is_new {
            self.sessions.insert(Session::new(id, &login));
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.issued_s = login.issued_at;
        if let Some(kick) = session.kicked {
            return self.out.kick(id, *kick);
        }
        if session.owner().is_some() {
            session.window.restart();
            return self.catch_up(now, id);
        }
        if session.state == LoginState::LoggingIn {
            return; // announced again before the login was complete
        }
        if !names::is_valid(&login.uid) || !names::is_device(&login.device) {
            return self.out.kick(id, BAD_NAME);
        }
        session.state = LoginState::LoggingIn;
        let platform = u32::try_from(login.platform).unwrap_or(0);
        let ConnUp { uid, device, issued_at: issued_s, .. } = login;
        let login = Login { uid, device, platform, now_ms: now.unix_ms, issued_s };
        self.queues.begin(id);
        self.storage.ask(store::Command::Login(login), Waiting::Login(id, now));
    }

    pub(super) fn on_logged_in(&mut self, now: Now, id: SessionId, login: Option<LoggedIn>) {
        let Some(session) = self.sessions.get_mut(id) else {
            // The device left before its login was complete.
            if let Some(LoggedIn { user, cursor, .. }) = login {
                let (device, position, gone_ms) = (cursor.device, cursor.acked, now.unix_ms);
                self.storage.write(Write::Acked { user, device, position, gone_ms }, Waiter::Nobody);
            }
            return;
        };
        session.state = LoginState::Begun;
        let Some(LoggedIn { user, names, cursor }) = login else {
            return self.out.kick(id, Kick::of(CloseReason::Busy));
        };
        session.set_owner((user, cursor.device), names);
        session.window = Window::new(cursor.acked);
        session.caution = self.suspects.caution((user, cursor.device), cursor.acked);
        if session.caution == Caution::Replaced
            && let Some(others) = self.suspects.lines.allow(now.instant)
        {
            let (uid, device, position) = (session.names.uid(), session.names.device(), cursor.acked + 1);
            tracing::warn!(
                uid,
                device,
                position,
                others,
                "a device ends each session before it acknowledges the next entry of its stream; a NOTIFY takes the \
                 place of that entry"
            );
        }
        if let Some(forgotten) = cursor.forgotten {
            let theirs = self.sessions.of(user).filter(|it| it.owner() == Some((user, forgotten)));
            for session in theirs.map(|it| it.id).collect::<Vec<_>>() {
                self.end_login(session, &TOO_MANY_DEVICES);
            }
        }
        if self.sessions.get(id).is_some_and(|session| session.kicked.is_none()) {
            self.catch_up(now, id);
        }
    }

    /// The user's rule denies the login: it is refused now, and again whenever its gateway announces it.
    pub(super) fn on_denied(&mut self, id: SessionId, denied: LoginDenied) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.state = LoginState::Begun;
        }
        self.end_login(id, kick_of(denied));
    }

    /// Ends the logins of a user that a changed rule denies. Returns the number of logins.
    pub(super) fn end_denied(&mut self, user: UserId, rule: LoginRule) -> usize {
        // The ban lasts, or it is not there.
        let denies = |issued_s| rule.denies(issued_s, 0);
        let theirs = self.sessions.of(user).filter_map(|it| Some((it.id, denies(it.issued_s)?)));
        let denied: Vec<_> = theirs.collect();
        for (session, denied) in &denied {
            self.end_login(*session, kick_of(*denied));
        }
        denied.len()
    }

    /// Begins to push what a device has missed, from its last ack on.
    fn catch_up(&mut self, now: Now, id: SessionId) {
        if !self.judge(id) {
            return;
        }
        // Listed first: what is stored from now on comes by itself, and what was stored before is in the backlog.
        self.sessions.list(id);
        let Some(of) = self.sessions.get(id).and_then(Session::owner) else { return };
        let ticket = self.storage.read(Read::Backlog { of }, Waiting::Backlog(id));
        if let Some(session) = self.sessions.get_mut(id) {
            session.pending = PendingNotifies::default();
            (session.reading, session.state) = (Some(ticket), LoginState::Loading);
        }
        self.presences.on_change(now, of.0);
    }

    /// Ends a login, and again whenever its gateway announces it, until that has heard of it.
    pub(super) fn end_login(&mut self, id: SessionId, kick: &'static Kick) {
        self.sessions.unlist(id);
        if let Some(session) = self.sessions.get_mut(id) {
            session.kicked = Some(kick);
        }
        self.out.kick(id, *kick);
    }

    /// One device is logged in once: the newest login stays. Names the older one by its connection,
    /// so a late kick cannot hit the newer. False: this login is the older.
    fn judge(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(id) else { return false };
        let (Some(owner), version) = (session.owner(), session.login_version) else { return false };
        let others = self.sessions.of(owner.0).filter(|it| it.owner() == Some(owner) && it.id != id);
        for (other, other_version) in others.map(|it| (it.id, it.login_version)).collect::<Vec<_>>() {
            let older = if other_version > version { id } else { other };
            self.sessions.unlist(older);
            self.out.kick(older, Kick::of(CloseReason::Replaced));
            if older == id {
                return false;
            }
        }
        true
    }

    pub(super) fn on_conn_down(&mut self, now: Now, id: SessionId) {
        if let Some(session) = self.sessions.get(id)
            && let Some((user, device)) = session.owner()
        {
            // What it acked in this turn would else be lost with it.
            let position = session.window.acked();
            self.suspects.on_ended((user, device), position, session.window.is_unacked());
            self.storage
                .write(Write::Acked { user, device, position, gone_ms: now.unix_ms }, Waiter::Ack(id));
        }
        if let Some((user, _)) = self.sessions.owner(id) {
            self.presences.on_change(now, user);
        }
        self.presences.unwatch(id);
        self.sessions.remove(id);
    }
}

const fn kick_of(denied: LoginDenied) -> &'static Kick {
    match denied {
        LoginDenied::Revoked => &REVOKED,
        LoginDenied::Banned => &BANNED,
    }
}
