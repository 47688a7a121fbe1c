//! From the accepted socket to the logged-in session.
//!
//! A connection is accepted by any shard and says HELLO there. A worker judges it; then it moves to
//! the home shard of its user, so that everything about one user is decided in one place.

use super::bucket::Stamp;
use super::connection::{Connection, NO_SESSION};
use super::session::{Names, Route, Session};
use super::{Count, Output, Outputs, Shard};
use crate::handoff::{Admission, Uplink};
use bytes::Bytes;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::ids::{ConnKey, DEVICE_BYTES_MAX, Pin, ShardId, UID_BYTES_MAX};
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::{Hello, Platform, Welcome};
use moorline_proto::message::{self, frame_of};
use moorline_proto::time::{Duration, Instant};

/// A connection on its way to its user's home shard.
#[derive(Debug)]
pub struct Transfer {
    /// Where it goes.
    pub home: ShardId,
    admission: Admission,
    /// Bytes of the next frame that came with HELLO.
    partial: Bytes,
}

/// Where a connection that arrived from another shard is now.
#[derive(Debug)]
pub enum Moved {
    /// Here: its socket belongs to this key.
    Seat(ConnKey),
    /// On its way to the next home: its user has never been here, or has left.
    On(Box<Transfer>),
    /// Nowhere: this shard is full.
    Full,
}

impl Shard {
    /// A socket was accepted. `None`: this shard is full, close it.
    pub fn handle_accepted(&mut self, now: Instant) -> Option<ConnKey> {
        self.tally[Count::Accepted] += 1;
        let deadline = now + self.settings.handshake_timeout;
        self.insert_connection(now, deadline)
    }

    /// A logged-in connection arrives from the shard that accepted it, or where its user is not at home any more.
    pub fn handle_moved(
        &mut self,
        now: Instant,
        mut transfer: Box<Transfer>,
        outputs: &mut Outputs,
    ) -> Moved {
        if let Some(home) = self.home_after(&transfer.admission.uid) {
            transfer.home = home;
            return Moved::On(transfer);
        }
        let deadline = now + self.settings.handshake_timeout;
        let Some(key) = self.insert_connection(now, deadline) else { return Moved::Full };
        self.table.get_mut(key).expect("just inserted").state = State::Authenticating;
        if self.is_draining {
            self.close(now, key, CloseReason::GoingAway, outputs);
            return Moved::Seat(key);
        }
        // The socket is not here yet: it goes straight to the seat.
        let seat = self.admit(now, key, &transfer.admission, false, outputs);
        self.handle_received(now, seat, transfer.partial, outputs);
        Moved::Seat(seat)
    }

    /// Where a user is looked for next who is not here; `None`: here is their home.
    pub(super) fn home_after(&self, uid: &str) -> Option<ShardId> {
        let home = self.settings.homes.after(Pin::of(uid), self.settings.shard)?;
        self.registry.of_user(uid).is_empty().then_some(home)
    }

    fn insert_connection(&mut self, now: Instant, deadline: Instant) -> Option<ConnKey> {
        let Self { table, wheel, tally, .. } = self;
        table.insert(|key| {
            tally[Count::TimerMoves] += 1;
            Connection::new(key.generation(), wheel.insert(deadline, key.slot()), now)
        })
    }

    pub(super) fn on_hello(
        &mut self,
        now: Instant,
        key: ConnKey,
        body: &Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let hello: Hello = message::decode(body)?;
        let version = u32::from(PROTOCOL_VERSION);
        if !(hello.version_min..=hello.version_max).contains(&version) {
            return Err(CloseReason::BadVersion);
        }
        if !(1..=UID_BYTES_MAX).contains(&hello.uid.len())
            || !(1..=DEVICE_BYTES_MAX).contains(&hello.device.len())
        {
            return Err(CloseReason::BadMessage);
        }
        if self.is_draining {
            return Err(CloseReason::GoingAway);
        }
        // Going on with a session costs the backend nothing, so that stays possible.
        let is_short_of_memory = self.queued_bytes > self.settings.memory_bytes_max.saturating_mul(2);
        if (self.holds.refuses_logins() || is_short_of_memory) && hello.resume.is_none() {
            self.tally[Count::LoginsShed] += 1;
            return Err(CloseReason::Busy);
        }
        self.table.get_mut(key).expect("its frame is being handled").heard = Stamp::of(now);
        let pin = Pin::of(&hello.uid);
        let login = Uplink::Login { key, pin, hello: Box::new(hello) };
        outputs.uplinks[pin.worker(self.settings.workers)].push(login);
        Ok(())
    }

    pub(super) fn on_verdict(
        &mut self,
        now: Instant,
        key: ConnKey,
        verdict: Result<Admission, CloseReason>,
        outputs: &mut Outputs,
    ) {
        let state = self.table.get(key).map(|connection| connection.state);
        if state != Some(State::Authenticating) {
            return;
        }
        let admission = match verdict {
            Ok(admission) => admission,
            Err(reason) => return self.close(now, key, reason, outputs),
        };
        let first = self.settings.homes.first(Pin::of(&admission.uid));
        let home = if first == self.settings.shard { self.home_after(&admission.uid) } else { Some(first) };
        let Some(home) = home else {
            self.admit(now, key, &admission, true, outputs);
            return;
        };
        let connection = self.table.remove(key).expect("just looked up");
        let partial = Bytes::copy_from_slice(connection.decoder.partial());
        self.wheel.cancel(connection.timer);
        self.tally[Count::Moved] += 1;
        outputs.push(Output::Move(key, Box::new(Transfer { home, admission, partial })));
    }

    /// Returns the seat that the socket belongs to: its own, or that of the session it goes on with.
    /// `has_socket`: the owner has a socket for `key`, which has to go along.
    fn admit(
        &mut self,
        now: Instant,
        key: ConnKey,
        who: &Admission,
        has_socket: bool,
        outputs: &mut Outputs,
    ) -> ConnKey {
        if let Some(seat) = self.resumable(now, who) {
            self.resume(now, (key, has_socket), seat, who, outputs);
            return seat;
        }
        self.tally[Count::ResumesRefused] += u64::from(who.resume.is_some());
        self.begin(now, key, who, outputs);
        key
    }

    fn begin(&mut self, now: Instant, key: ConnKey, who: &Admission, outputs: &mut Outputs) {
        if self.holds.refuses_logins() {
            self.tally[Count::LoginsShed] += 1;
            return self.close(now, key, CloseReason::Busy, outputs);
        }
        if let Some(older) = self.registry.of_device(&who.uid, &who.device) {
            self.replace(now, older, outputs);
        }
        if let Some(oldest) = self.device_too_many(who) {
            self.replace(now, oldest, outputs);
        }
        if self.registry.of_user(&who.uid).len() >= self.settings.devices_max {
            return self.close(now, key, CloseReason::Throttled, outputs);
        }
        let version = self.settings.unix_nanos(now).max(self.last_login_version + 1);
        self.last_login_version = version;
        let names = Names { uid: &who.uid, device: &who.device, platform: who.platform };
        let mut session = Session::new(names, key.slot(), version);
        session.accepts_lz4 = who.accepts_lz4;
        let known = self.registry.worker_of(&who.uid, session.pin);
        session.worker = known.unwrap_or_else(|| Route::of(session.pin, self.settings.workers).worker);
        let (route, login) = (session.route(), session.login(key.as_u64()));
        let slot = self.registry.insert(session);

        let connection = self.table.get_mut(key).expect("it is being admitted");
        assert_eq!(connection.session, NO_SESSION, "a connection logs in once");
        let Transition::To(state) = connection.state.on(Event::Admitted) else {
            unreachable!("only a connection that waits for its verdict is admitted");
        };
        connection.state = state;
        connection.session = slot;
        connection.heard = Stamp::of(now);
        connection.heartbeat_s = self.settings.heartbeat_s.1;
        let patience = server_patience(Duration::from_secs(u64::from(connection.heartbeat_s)));
        self.arm(key, now + patience);
        self.tally[Count::Logins] += 1;
        let welcome = self.welcome(now, key, version);
        self.send(key, frame_of(Command::Welcome, &welcome), outputs);
        let login = Uplink::ConnUp { pin: route.pin, login: Box::new(login) };
        outputs.uplinks[route.index()].push(login);
    }

    /// The session that gives way because its user has enough devices of the newcomer's kind: the newer
    /// login wins [P-3.9].
    fn device_too_many(&self, who: &Admission) -> Option<u32> {
        let kind = DeviceKind::of(who.platform)?;
        let most = self.settings.devices_of_kind[kind as usize];
        let is_alike = |slot: &u32| {
            self.registry.get(*slot).is_some_and(|session| DeviceKind::of(session.platform()) == Some(kind))
        };
        let alike: Vec<u32> = self.registry.of_user(&who.uid).into_iter().filter(is_alike).collect();
        if most > 0 && alike.len() >= most { alike.last().copied() } else { None }
    }

    /// To the session at a seat; says nothing of what it was before.
    pub(super) fn welcome(&self, now: Instant, seat: ConnKey, login_version: u64) -> Welcome {
        let settings = &self.settings;
        Welcome {
            version: u32::from(PROTOCOL_VERSION),
            session: Self::session_name(seat, login_version),
            epoch: settings.epoch,
            ticket: self.ticket_of(now, seat, login_version),
            heartbeat_min_s: u32::from(settings.heartbeat_s.0),
            heartbeat_max_s: u32::from(settings.heartbeat_s.1),
            uplink_window: settings.uplink_window,
            downlink_window: u32::from(settings.downlink.frames_max),
            body_max: settings.body_bytes_max,
            server_time_ms: settings.unix_millis(now),
            alternates: settings.alternates.to_vec(),
            accept: ACCEPT_LZ4,
            ..Default::default()
        }
    }

    /// Names the logins of the asked pins, in chunks.
    pub(super) fn on_announce(&self, worker: u16, request: u32, slots: u64, outputs: &mut Outputs) {
        let is_asked =
            |session: &Session| u16::from(session.worker) == worker && slots >> session.pin.slot() & 1 == 1;
        let mut logins = Vec::new();
        let Some(out) = outputs.uplinks.get_mut(usize::from(worker)) else { return };
        for session in self.registry.iter().filter(|session| is_asked(session)) {
            let key = self.table.key_of(session.connection).expect("a session has its connection");
            logins.push((session.pin, session.login(key.as_u64())));
            if logins.len() == ANNOUNCE_LOGINS_MAX {
                out.push(Uplink::Announced { request, logins: std::mem::take(&mut logins), is_last: false });
            }
        }
        out.push(Uplink::Announced { request, logins, is_last: true });
    }
}

/// Kinds of devices that can have a limit of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceKind {
    Mobile,
    Desktop,
    Web,
}

impl DeviceKind {
    fn of(platform: i32) -> Option<Self> {
        match Platform::try_from(platform).ok()? {
            Platform::Ios | Platform::Android => Some(Self::Mobile),
            Platform::Windows | Platform::Macos | Platform::Linux => Some(Self::Desktop),
            Platform::Web => Some(Self::Web),
            _ => None,
        }
    }
}

/// Logins in one announcement.
const ANNOUNCE_LOGINS_MAX: usize = 1024;
