//! Login: the way from an accepted socket to a session.
//!
//! A connection is accepted by any shard and sends HELLO there. A worker judges it; then it moves to the
//! shard that owns its user, so that everything about one user is decided in one place.
//!
//! Example: alice's phone connects to shard 1 and sends HELLO. Worker 0 admits it. Shard 0 owns alice, so
//! the socket moves there with the admission; shard 0 ends the phone's older login and sends WELCOME.

use super::client::Client;
use super::clients::Clients;
use super::ending::replaced_frame;
use super::resume_token::{ResumeToken, ResumeTokens, session_id};
use super::session::{Names, Route, Session};
use super::{Count, Output, Outputs, Settings};
use crate::messages::{Admission, Uplink};
use bytes::Bytes;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::ids::{ConnKey, DEVICE_BYTES_MAX, ShardId, UID_BYTES_MAX};
use moorline_proto::message::client::{Hello, Platform, Resume, Welcome};
use moorline_proto::message::{decode, frame_of};
use moorline_proto::time::Instant;

/// A connection on its way to the shard that owns its user.
#[derive(Debug)]
pub struct Transfer {
    /// The shard that it goes to.
    pub home: ShardId,
    pub(super) admission: Admission,
    /// Bytes of an unfinished frame that came after HELLO.
    pub(super) partial: Bytes,
}

/// Outcome of the arrival of a connection from another shard.
#[derive(Debug)]
pub enum Moved {
    /// The socket belongs to this key.
    Here(ConnKey),
    /// The connection goes on to another shard: its user has never been here, or has left.
    On(Box<Transfer>),
    /// This shard is full: close the socket.
    Full,
}

/// A new connection that was admitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    pub(super) key: ConnKey,
    /// Tells whether the owner has the socket under this key. A socket that arrives with a transfer has none yet.
    pub(super) has_socket: bool,
}

/// Decides which session an admitted connection gets: a new one, or the one that its client resumes.
#[derive(Debug)]
pub(super) struct Logins {
    tokens: ResumeTokens,
    /// Version of the newest login; a later one is greater.
    last_version: u64,
}

impl Logins {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { tokens: ResumeTokens::new(settings), last_version: 0 }
    }

    pub(super) const fn last_version(&self) -> u64 {
        self.last_version
    }

    pub(super) const fn thaw(&mut self, last_version: u64) {
        self.last_version = last_version;
    }

    /// Logs a connection in. Answers the key that the socket belongs to now: the connection's own, or that of
    /// the session that its client resumed.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        clients: &mut Clients,
        newcomer: Newcomer,
        who: &Admission,
        outputs: &mut Outputs,
    ) -> ConnKey {
        if let Some(key) = self.resumable(now, clients, who) {
            self.resume(now, clients, newcomer, key, who, outputs);
            return key;
        }
        clients.ledger.counters[Count::ResumesRefused] += u64::from(who.resume.is_some());
        if let Err(reason) = self.begin(now, clients, newcomer.key, who, outputs) {
            clients.close(now, newcomer.key, reason, outputs);
        }
        newcomer.key
    }

    /// Begins a new session.
    ///
    /// # Errors
    /// The reason for which the login is refused.
    fn begin(
        &mut self,
        now: Instant,
        clients: &mut Clients,
        key: ConnKey,
        who: &Admission,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        if clients.ledger.pauses.refuses_logins() {
            clients.ledger.counters[Count::LoginsShed] += 1;
            return Err(CloseReason::Busy);
        }
        if let Some(older) = clients.key_of_device(&who.uid, &who.device) {
            clients.replace(now, older, outputs);
        }
        if let Some(oldest) = device_too_many(clients, who) {
            clients.replace(now, oldest, outputs);
        }
        let settings = &clients.ledger.settings;
        if clients.of_user(&who.uid).count() >= settings.devices_max {
            return Err(CloseReason::Throttled);
        }
        let version = settings.unix_nanos(now).max(self.last_version + 1);
        self.last_version = version;
        let names = Names { uid: &who.uid, device: &who.device, platform: who.platform };
        let pin = settings.shard_map.pin(&who.uid);
        let mut session = Session::new(names, pin, key.slot(), version);
        session.set_accepts_lz4(who.accepts_lz4);
        let known = clients.registry.worker_of(&who.uid, session.pin);
        session.worker = known.unwrap_or_else(|| Route::of(session.pin, settings.workers).worker);
        session.set_token(who.issued_s, who.expires_s);
        let (route, login) = (session.route(), session.login(key.as_u64()));

        let mut client = clients.log_in(key, session);
        let Transition::To(state) = client.connection.state.on(Event::Admitted) else {
            unreachable!("only a connection that waits for its verdict is admitted");
        };
        client.connection.enter(state, now);
        client.restart_heartbeat(now);
        client.take_token(who.issued_s, who.expires_s);
        client.ledger.counters[Count::Logins] += 1;
        let welcome = self.welcome(now, &client);
        client.send(frame_of(Command::Welcome, &welcome), outputs);
        outputs.uplinks[route.index()].push(Uplink::ConnUp { pin: route.pin, login: Box::new(login) });
        Ok(())
    }

    /// The session that this login may resume; `None`: it begins a new one.
    fn resumable(&self, now: Instant, clients: &Clients, who: &Admission) -> Option<ConnKey> {
        let resume = who.resume.as_deref()?;
        let settings = &clients.ledger.settings;
        let token = self.tokens.open(&resume.ticket, settings.unix_millis(now) / 1_000)?;
        let session = clients.session(token.key)?;
        let is_it = resume.epoch == settings.epoch
            && resume.session[..] == token.session().0
            && session.login_version == token.login_version
            // The WELCOME with the newest token may be lost.
            && session.serial.wrapping_sub(token.serial) <= 1
            && session.serial < u16::MAX
            && session.may_resume_with(who.issued_s)
            && (session.uid(), session.device()) == (&who.uid, &who.device);
        let is_whole = match &session.flight {
            Some(flight) => !flight.is_given_up() && flight.can_resume(resume.last_seq, resume.sack),
            None => resume.last_seq.checked_add(1) == Some(session.next_seq),
        };
        (is_it && is_whole).then_some(token.key)
    }

    /// Brings the new socket to the old session; everything that the client missed follows WELCOME.
    fn resume(
        &self,
        now: Instant,
        clients: &mut Clients,
        newcomer: Newcomer,
        key: ConnKey,
        who: &Admission,
        outputs: &mut Outputs,
    ) {
        let decoder = clients.take(newcomer.key).decoder;
        let mut client = clients.client(key).expect("found by its token");
        let is_detached = client.connection.state == State::Detached;
        if !is_detached {
            client.ledger.counters[Count::Takeovers] += 1;
            client.send_final(replaced_frame(), outputs);
            client.drop_socket(outputs);
            client.ledger.counters.closed(CloseReason::Replaced);
        }
        if newcomer.has_socket {
            outputs.push(Output::Reattach { from: newcomer.key, to: key });
        }
        let Transition::To(state) = client.connection.state.on(Event::Resumed) else {
            unreachable!("a connection with a session can be resumed");
        };
        client.connection.enter(state, now);
        client.with_input(|held| *held = decoder);
        client.restart_heartbeat(now);
        client.take_token(who.issued_s, who.expires_s);
        client.ledger.counters[Count::Resumes] += 1;
        let Resume { last_seq, sack, .. } = **who.resume.as_ref().expect("it was judged");
        let session = client.session.as_mut().expect("found by its token");
        session.serial += 1;
        session.set_accepts_lz4(who.accepts_lz4);
        let cid_answered = session.dedupe.base();
        let replay = session.flight.as_ref().map_or(0, |flight| flight.replay_len(last_seq, sack));
        let welcome = Welcome { resumed: true, cid_answered, replay, ..self.welcome(now, &client) };
        client.send(frame_of(Command::Welcome, &welcome), outputs);
        let replayed = client.replay(now, last_seq, sack, outputs);
        if is_detached {
            clients.detached.remove_one();
        }
        if let Err(reason) = replayed {
            clients.close(now, key, reason, outputs);
        }
    }

    /// WELCOME to a session, as if it were new.
    fn welcome(&self, now: Instant, client: &Client<'_>) -> Welcome {
        let (settings, session) = (&client.ledger.settings, client.session.as_ref().expect("logged in"));
        let login_version = session.login_version;
        let expires_s = settings.unix_millis(now) / 1_000 + settings.ticket_ttl.as_secs();
        let token = ResumeToken { key: client.key, login_version, serial: session.serial, expires_s };
        let is_kept = !settings.session_keep.is_zero();
        Welcome {
            version: u32::from(PROTOCOL_VERSION),
            session: Bytes::copy_from_slice(&session_id(client.key, login_version).0),
            epoch: settings.epoch,
            ticket: if is_kept { self.tokens.seal(&token) } else { Bytes::new() },
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
}

/// Decodes HELLO and checks what needs no worker.
///
/// # Errors
/// The reason for which the connection is to be closed.
pub(super) fn decode_hello(body: &Bytes) -> Result<Hello, CloseReason> {
    let hello: Hello = decode(body)?;
    let version = u32::from(PROTOCOL_VERSION);
    if !(hello.version_min..=hello.version_max).contains(&version) {
        return Err(CloseReason::BadVersion);
    }
    let has_names = (1..=UID_BYTES_MAX).contains(&hello.uid.len())
        && (1..=DEVICE_BYTES_MAX).contains(&hello.device.len());
    if has_names { Ok(hello) } else { Err(CloseReason::BadMessage) }
}

/// The session that ends because its user has enough devices of the new login's kind: the newer login wins
/// [P-3.9].
fn device_too_many(clients: &Clients, who: &Admission) -> Option<ConnKey> {
    let kind = DeviceKind::of(who.platform)?;
    let most = clients.ledger.settings.devices_of_kind[kind as usize];
    let alike = clients.of_user(&who.uid).filter(|(_, it)| DeviceKind::of(it.platform()) == Some(kind));
    let alike: Vec<ConnKey> = alike.map(|(key, _)| key).collect();
    if most > 0 && alike.len() >= most { alike.last().copied() } else { None }
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
