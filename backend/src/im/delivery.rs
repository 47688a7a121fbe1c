//! From the store to devices: logins, fan-out of new messages, and the pump for those behind.

use super::fanout::AskedPush;
use super::names;
use super::sessions::{LoginState, PendingNotifies, Session};
use super::store::{
    self, Backlog, ConversationId, Delivery, DeviceNumber, Entry, LoggedIn, Login, Origin, Read, Recipient,
    Store, StreamPage, Ticket,
};
use super::tasks::Task;
use super::waiting::{Waiter, Waiting};
use super::window::Window;
use super::{Im, Write};
use crate::server::{Kick, Now, PushSpec, SessionId};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::backend::ConnUp;
use moorline_proto::message::im::{Happened, Resync, happened};
use moorline_proto::message::{client, encode};

static TOO_MANY_DEVICES: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "The user has logged in on more devices than im.devices_max.",
};
const BAD_NAME: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "A uid and a device id have 1 to 64 bytes, no colon and no control character.",
};

impl<S: Store> Im<S> {
    pub(super) fn on_conn_up(&mut self, now: Now, id: SessionId, login: ConnUp, is_new: bool) {
        if is_new {
            self.sessions.insert(Session::new(id, &login));
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        if let Some(kick) = session.kicked {
            return self.out.kick(id, *kick);
        }
        if session.owner.is_some() {
            session.window.restart();
            return self.catch_up(now, id);
        }
        if session.state == LoginState::LoggingIn {
            return; // announced again before the login was complete
        }
        if !names::is_valid(&login.uid) || !names::is_valid(&login.device) {
            return self.out.kick(id, BAD_NAME);
        }
        session.state = LoginState::LoggingIn;
        let platform = u32::try_from(login.platform).unwrap_or(0);
        let ConnUp { uid, device, .. } = login;
        let login = Login { uid, device, platform, now_ms: now.unix_ms };
        self.queues.begin(id);
        self.ask(store::Command::Login(login), Waiting::Login(id, now));
    }

    pub(super) fn on_logged_in(&mut self, now: Now, id: SessionId, login: Option<LoggedIn>) {
        let Some(session) = self.sessions.get_mut(id) else {
            // The device left before its login was complete.
            if let Some(LoggedIn { user, cursor, .. }) = login {
                let (device, position, gone_ms) = (cursor.device, cursor.acked, now.unix_ms);
                self.write(Write::Acked { user, device, position, gone_ms }, Waiter::Nobody);
            }
            return;
        };
        session.state = LoginState::Begun;
        let Some(LoggedIn { user, uid, device, cursor }) = login else {
            return self.out.kick(id, Kick::of(CloseReason::Busy));
        };
        session.owner = Some((user, cursor.device));
        (session.uid, session.device) = (uid, device);
        session.window = Window::new(cursor.acked);
        if let Some(forgotten) = cursor.forgotten {
            let theirs = self.sessions.of(user).filter(|it| it.owner == Some((user, forgotten)));
            for session in theirs.map(|it| it.id).collect::<Vec<_>>() {
                self.end_login(session, &TOO_MANY_DEVICES);
            }
        }
        if self.sessions.get(id).is_some_and(|session| session.kicked.is_none()) {
            self.catch_up(now, id);
        }
    }

    /// Begins to push what a device has missed, from its last ack on.
    fn catch_up(&mut self, now: Now, id: SessionId) {
        if !self.judge(id) {
            return;
        }
        // Listed first: what is stored from now on comes by itself, and what was stored before is in the backlog.
        self.sessions.list(id);
        let Some(of) = self.sessions.get(id).and_then(|session| session.owner) else { return };
        let ticket = self.read(Read::Backlog { of }, Waiting::Backlog(id));
        if let Some(session) = self.sessions.get_mut(id) {
            session.pending = PendingNotifies::default();
            (session.reading, session.state) = (Some(ticket), LoginState::Loading);
        }
        self.presences.on_change(now, of.0);
    }

    pub(super) fn on_backlog(&mut self, ticket: Ticket, id: SessionId, backlog: Backlog) {
        let Some(session) = self.sessions.get_mut(id).filter(|it| it.reading == Some(ticket)) else { return };
        (session.reading, session.state) = (None, LoginState::Ready);
        session.end = session.end.max(backlog.end);
        session.pending.load(backlog.unconfirmed);
        self.pump(id);
    }

    /// Notifies the device of messages of large groups, which are in no inbox: at most `NOTIFIES_MAX` at once, the rest as
    /// those are acknowledged. Called when the inbox is delivered.
    fn notify_due(&mut self, id: SessionId) {
        if self.sessions.get_mut(id).is_some_and(|session| session.pending.begin()) {
            for _ in 0..NOTIFIES_MAX {
                self.notify_next(id);
            }
        }
    }

    /// Notifies a device of one more group.
    pub(super) fn notify_next(&mut self, id: SessionId) {
        let next = self.sessions.get_mut(id).and_then(|session| session.pending.next());
        if let Some(conversation) = next {
            self.run(None, Task::Notify(id, conversation));
        }
    }

    pub(super) fn notify_planned(&mut self, id: SessionId, conversation: ConversationId) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if let Some(first) = session.pending.take_before(conversation, u64::MAX) {
            self.notify_from(id, conversation, first);
        }
    }

    fn notify_from(&mut self, id: SessionId, conversation: ConversationId, first: u64) {
        let latest = self.store.latest(conversation);
        if first <= latest {
            let spec = PushSpec { command: Command::Notify, ..self.spec_of(conversation) };
            let push = self.out.push(&[id], spec, &self.notify(conversation, first));
            self.fanouts.ask(push, AskedPush { conversation, first, last: latest });
        }
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
        let Some(Session { owner: Some(owner), login_version, .. }) = self.sessions.get(id) else {
            return false;
        };
        let (owner, version) = (*owner, *login_version);
        let others = self.sessions.of(owner.0).filter(|it| it.owner == Some(owner) && it.id != id);
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
        if let Some(Session { owner: Some((user, device)), window, .. }) = self.sessions.get(id) {
            // What it acked in this turn would else be lost with it.
            let (user, device, position) = (*user, *device, window.acked());
            self.write(Write::Acked { user, device, position, gone_ms: now.unix_ms }, Waiter::Ack(id));
        }
        if let Some((user, _)) = self.sessions.owner(id) {
            self.presences.on_change(now, user);
        }
        self.presences.unwatch(id);
        self.sessions.remove(id);
    }

    /// Gives something that happened to the devices of whoever is told.
    pub(super) fn on_told(&mut self, origin: Origin, told: Option<&Delivery>, recipients: &[Recipient]) {
        if let Some(delivery) = told {
            self.deliver(None, origin, delivery, recipients);
        }
    }

    /// Gives a new message of a conversation, or something that happened, to the devices of its recipients: one push for
    /// all that are up to date.
    pub(super) fn deliver(
        &mut self,
        conversation: Option<ConversationId>,
        origin: Origin,
        delivery: &Delivery,
        recipients: &[Recipient],
    ) {
        let mut targets = std::mem::take(&mut self.scratch.targets);
        let mut sessions = std::mem::take(&mut self.scratch.target_sessions);
        for recipient in &recipients[delivery.recipients.clone()] {
            targets.extend(self.sessions.of(recipient.user).map(|it| (it.id, recipient.position)));
            self.webhooks.note_entry(*recipient);
        }
        targets.retain(|(id, position)| {
            let is_direct = self.try_direct(*id, *position, origin, delivery.body.len());
            // A group that has become small, of which this device has not heard all.
            if let (true, Some(conversation)) = (is_direct, conversation)
                && let Some(session) = self.sessions.get_mut(*id)
                && let Some(first) = session.pending.take_before(conversation, u64::MAX)
            {
                self.notify_from(*id, conversation, first);
            }
            if is_direct {
                sessions.push(*id);
            }
            is_direct
        });
        if !sessions.is_empty() {
            let spec = conversation.map_or(EVENT, |conversation| self.spec_of(conversation));
            let push = self.out.push(&sessions, spec, &delivery.body);
            for (id, position) in targets.drain(..) {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.on_push(push, position, delivery.body.len());
                }
            }
        }
        targets.clear();
        sessions.clear();
        (self.scratch.targets, self.scratch.target_sessions) = (targets, sessions);
    }

    /// Whether this device takes the entry at `position` as its next. If not it has it, wrote it, or
    /// is behind and catches up by itself.
    fn try_direct(&mut self, id: SessionId, position: u64, origin: Origin, bytes: usize) -> bool {
        let (pushes_max, bytes_max) = (self.config.outstanding, self.config.outstanding_bytes);
        let Some(session) = self.sessions.get_mut(id) else { return false };
        session.end = session.end.max(position);
        if session.window.pushed() >= position || session.window.room(pushes_max) == 0 {
            return false;
        }
        if session.window.pushed() + 1 < position || session.state != LoginState::Ready {
            self.pump(id);
            return false;
        }
        if session.owner == Some(origin) {
            if session.window.on_own(position) {
                self.sessions.on_acked(id);
            }
            return false;
        }
        session.window.fits(bytes, bytes_max)
    }

    /// Pushes the next entries of the stream of the session's user, as far as its window has room.
    pub(super) fn pump(&mut self, id: SessionId) {
        let pushes_max = self.config.outstanding;
        let Some(session) = self.sessions.get(id) else { return };
        let is_reading = session.reading.is_some();
        let Some((user, _)) = session.owner.filter(|_| session.is_listed && !is_reading) else { return };
        let (room, after) = (session.window.room(pushes_max), session.window.pushed());
        if room == 0 {
            return;
        }
        if after >= session.end {
            return self.notify_due(id);
        }
        let into = self.scratch.entries.pop().unwrap_or_default();
        let read = Read::Stream { user, after, limit: room.min(PUMP_ENTRIES), into };
        let ticket = self.read(read, Waiting::Stream(id));
        if let Some(session) = self.sessions.get_mut(id) {
            session.reading = Some(ticket);
        }
    }

    pub(super) fn on_stream(&mut self, ticket: Ticket, id: SessionId, page: StreamPage) {
        let StreamPage { mut entries, after, end, is_readable } = page;
        if let Some(session) = self.sessions.get_mut(id).filter(|it| it.reading == Some(ticket)) {
            session.reading = None;
            session.end = session.end.max(end);
            let (is_last, device) = (entries.is_empty(), session.owner.map(|(_, device)| device));
            let is_rewound = after > session.window.pushed();
            let is_full = is_rewound
                || !session.is_listed
                || entries.drain(..).any(|(position, entry)| !self.try_pump(id, device, position, entry));
            if !is_full && !is_readable {
                // The rest is owed all the same: it is read again with a later tick.
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.stall();
                }
                self.sessions.on_stalled(id);
            } else if !is_full && is_last {
                // Nothing is left up to the end: it was trimmed.
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.skip_to(end);
                }
            }
            if is_rewound || !is_full && is_readable {
                self.pump(id);
            }
        }
        entries.clear();
        if self.scratch.entries.len() < SPARE_LISTS_MAX {
            self.scratch.entries.push(entries);
        }
    }

    /// False: it does not fit before something was acked.
    fn try_pump(&mut self, id: SessionId, device: Option<DeviceNumber>, position: u64, entry: Entry) -> bool {
        let (pushes_max, bytes_max) = (self.config.outstanding, self.config.outstanding_bytes);
        let Some(session) = self.sessions.get(id) else { return false };
        if position <= session.window.pushed() {
            return true; // pushed by itself since the read
        }
        if session.window.room(pushes_max) == 0 {
            return false;
        }
        if let Entry::Message { conversation, seq, .. } | Entry::Dropped { conversation, first: seq } = &entry
            && let Some(session) = self.sessions.get_mut(id)
            && let Some(first) = session.pending.take_before(*conversation, *seq)
        {
            self.notify_from(id, *conversation, first);
        }
        let is_own = match &entry {
            Entry::Message { origin, .. } | Entry::Event { origin, .. } => {
                origin.is_some() && *origin == device
            }
            Entry::Dropped { .. } | Entry::EventsDropped => false,
        };
        // What it stands for, as far as the membership goes: who has left reads no more.
        let (first, last) = match &entry {
            Entry::Message { conversation, seq, .. } => (self.visible_from(id, *conversation), *seq),
            Entry::Dropped { conversation, first } => {
                (self.visible_from(id, *conversation).max(*first), self.store.latest(*conversation))
            }
            Entry::Event { .. } | Entry::EventsDropped => (0, 0),
        };
        let (spec, body) = match entry {
            _ if is_own || first > last => {
                if let Some(session) = self.sessions.get_mut(id)
                    && session.window.on_own(position)
                {
                    self.sessions.on_acked(id);
                }
                return true;
            }
            Entry::Message { conversation, body, .. } => (self.spec_of(conversation), body),
            Entry::Event { body, .. } => (EVENT, body),
            Entry::Dropped { conversation, .. } => {
                let spec = PushSpec { command: Command::Notify, ..self.spec_of(conversation) };
                (spec, self.notify(conversation, first))
            }
            Entry::EventsDropped => (EVENT, self.resync()),
        };
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if !session.window.fits(body.len(), bytes_max) {
            return false;
        }
        let push = self.out.push(&[id], spec, &body);
        session.window.on_push(push, position, body.len());
        true
    }

    /// The first seq that a session's user may read; of a conversation of others, none.
    fn visible_from(&self, id: SessionId, conversation: ConversationId) -> u64 {
        let user = self.sessions.get(id).and_then(|session| session.owner).map(|(user, _)| user);
        let member = user.and_then(|user| self.store.member(conversation, user));
        member.map_or(u64::MAX, |member| member.visible_from)
    }

    /// Stands for everything from `first` on; 0: for nothing.
    pub(super) fn notify(&self, conversation: ConversationId, first: u64) -> Bytes {
        let latest = self.store.latest(conversation);
        encode(&client::Notify { conversation: self.id_of(conversation), latest, first })
    }

    /// Says that happenings were dropped from the inbox.
    fn resync(&mut self) -> Bytes {
        let message_id = self.ids.next(0); // the next one
        let happened = encode(&Happened { what: Some(happened::What::Resync(Resync {})) });
        encode(&client::Push { message_id, happened, ..Default::default() })
    }

    pub(super) fn spec_of(&self, conversation: ConversationId) -> PushSpec {
        let lane = if self.store.is_group(conversation) { Lane::Group } else { Lane::Chat };
        PushSpec { command: Command::Push, lane, want_ack: true, ttl_ms: 0 }
    }
}

/// How whatever happened is pushed.
pub(super) const EVENT: PushSpec =
    PushSpec { command: Command::Push, lane: Lane::Chat, want_ack: true, ttl_ms: 0 };

/// NOTIFYs of large groups at once, at a login.
const NOTIFIES_MAX: usize = 64;
/// Lists for entries of streams that are kept for later reads.
const SPARE_LISTS_MAX: usize = 16;
/// Entries read from a stream at once.
const PUMP_ENTRIES: usize = 64;
