//! The client without sockets, threads or clocks.
//!
//! [`Core`] owns everything one login needs. A driver feeds it (`handle_*`, the application's calls)
//! and after **every** such call drains it: first [`Core::poll_transmit`], then [`Core::poll_event`]
//! until it says `None`; then it arms a timer for [`Core::next_deadline`]. The same calls with the
//! same times and the same seed give the same results, to the byte.
//!
//! ```text
//!  driver                         Core                                  driver / application
//!  handle_timeout   ─────►  line      (connect, login, backoff)  ─────►  Event::Connect, Hangup
//!  handle_connected         pulse     (heartbeats)
//!  handle_bytes             outbox    (sends, cids, retries)     ─────►  Sent, SendFailed
//!  handle_disconnected      inbox     (order, holes, acks)       ─────►  Message
//!  send, request, handled   requests  (answers, pulls)           ─────►  Response
//!                                                                ─────►  poll_transmit: bytes
//! ```
//!
//! It must not read a clock, block, or remember bytes it has handed out: what the driver has not yet
//! written when the connection ends is simply lost, and the core sends again what matters.

mod backoff;
mod config;
mod conversation;
mod downlink;
mod event;
mod frames;
mod inbox;
mod line;
mod networks;
mod outbox;
mod pulse;
mod requests;
mod rooms;
mod surroundings;

pub use backoff::Backoff;
pub use config::{CoreConfig, InvalidName, TokenSource, Tuning};
pub use event::{
    ClosedWhy, Event, Happened, Lost, Message, Newest, Receipt, Repeat, RequestError, RequestId,
    RequestRefused, SendFailure, SendId, SendRefused, Standing, Target, Token, TokenWhy,
};

pub use networks::NetworkId;

use bytes::{Bytes, BytesMut};
use event::Events;
use inbox::Inbox;
use line::{Line, Phase};
use moorline_proto::connection::client::State;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::frame::{BODY_BYTES_CEILING, BODY_BYTES_MAX, Command, Decoder, Frame};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Close, Hello, Ping};
use moorline_proto::message::{encode, frame_of};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::{PROTOCOL_VERSION, frame};
use networks::Networks;
use outbox::{Entry, Expiry, Outbox, Uplink};
use pulse::{Beat, Pulse};
use requests::{Answer, Owner, Question, Requests};
use rooms::Rooms;
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes of a request that are not its payload: room for id, method and tags.
const REQUEST_OVERHEAD_BYTES: usize = 256;

/// The sans-IO client: one login of one device.
///
/// Idle, it holds no buffer: 800 bytes of its own, and under 2 KiB more for a dozen conversations.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    random: Random,
    line: Line,
    decoder: Decoder,
    pulse: Option<Pulse>,
    uplink: Uplink,
    outbox: Outbox,
    inbox: Inbox,
    requests: Requests,
    rooms: Rooms,
    networks: Networks,
    last_send: u64,
    transmit: Vec<Frame>,
    events: Events,
}

impl Core {
    /// A core that wants to connect at once: its first deadline is the clock's zero.
    ///
    /// `seed` decides jitter and message keys, so it must be random and never used twice outside of
    /// tests. The names are not checked here; see [`CoreConfig::check`].
    pub fn new(config: CoreConfig, seed: u64) -> Self {
        let tuning = &config.tuning;
        Self {
            random: Random::new(seed),
            line: Line::new(&config.token, tuning.backoff),
            decoder: Decoder::new(),
            pulse: None,
            uplink: Uplink { window: 0, body_max: BODY_BYTES_MAX as usize, accepts_lz4: false },
            outbox: Outbox::new(Arc::clone(tuning)),
            inbox: Inbox::new(Arc::clone(tuning), Arc::clone(&config.uid), Arc::clone(&config.device)),
            requests: Requests::default(),
            rooms: Rooms::default(),
            networks: Networks::new(),
            last_send: 0,
            transmit: Vec::new(),
            events: Events::new(),
            config,
        }
    }

    // ---- What the driver sees of the network --------------------------------------------------

    /// The connection asked for by [`Event::Connect`] stands.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.line.phase, Phase::Connecting(_)) {
            return;
        }
        let until = now + self.config.tuning.handshake_timeout;
        self.line.phase = Phase::Up(State::Greeting, until);
        self.decoder = Decoder::new();
        let hello = Hello {
            version_min: PROTOCOL_VERSION.into(),
            version_max: PROTOCOL_VERSION.into(),
            token: self.line.token.as_deref().unwrap_or_default().into(),
            uid: self.config.uid.to_string(),
            device: self.config.device.to_string(),
            platform: self.config.platform.into(),
            resume: self.line.resume(self.inbox.downlink().base(), self.inbox.downlink().sack()),
            agent: self.config.agent.to_string(),
            accept: ACCEPT_LZ4,
        };
        self.transmit.push(frame_of(Command::Hello, &hello));
    }

    /// Bytes came. They are sliced, not copied: a message pins the buffer it came in.
    pub fn handle_bytes(&mut self, now: Instant, mut bytes: Bytes) {
        if let Some(pulse) = &mut self.pulse
            && pulse.heard(now)
        {
            self.networks.on_pong(pulse.bounds(), now);
            self.tune_pulse(now);
        }
        while matches!(self.line.phase, Phase::Up(..) | Phase::LoggingOut(_)) {
            match self.decoder.decode(&mut bytes, BODY_BYTES_CEILING) {
                Ok(Some(frame)) => self.handle_frame(now, frame),
                Ok(None) => break,
                Err(reason) => self.lose(now, Lost::Protocol(reason), None),
            }
        }
        self.pump(now);
    }

    /// The socket is gone, or could not be had. Not to be called after [`Event::Hangup`].
    pub fn handle_disconnected(&mut self, now: Instant) {
        match self.line.phase {
            Phase::Connecting(_) => self.drop_line(now, Lost::ConnectFailed, None),
            Phase::Up(..) => {
                // A network may say that it has forgotten the connection, when a PING reminds it.
                self.blame_network(now);
                self.drop_line(now, Lost::SocketGone, None);
            }
            Phase::LoggingOut(_) => self.finish(ClosedWhy::LoggedOut),
            Phase::Waiting(_) | Phase::NeedToken | Phase::Closed => {}
        }
    }

    /// Takes the answer to [`Event::TokenNeeded`]; `None`: no token now, ask again later.
    pub fn handle_token(&mut self, now: Instant, token: Option<Arc<str>>) {
        if self.line.phase != Phase::NeedToken {
            return;
        }
        match token {
            Some(token) => {
                self.line.token = Some(token);
                self.connect(now);
            }
            None => self.drop_line(now, Lost::NoToken, None),
        }
    }

    /// The time has come that [`Core::next_deadline`] named; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.line.phase {
            Phase::Waiting(until) if until <= now => self.connect(now),
            Phase::Connecting(until) if until <= now => self.lose(now, Lost::ConnectFailed, None),
            Phase::LoggingOut(until) if until <= now => self.hang_up(ClosedWhy::LoggedOut),
            Phase::Up(State::Greeting | State::Offline, until) if until <= now => {
                self.lose(now, Lost::HandshakeTimeout, None);
            }
            Phase::Up(State::Active | State::Leaving, _) => self.on_time(now),
            _ => {}
        }
        while let Some(answer) = self.requests.poll_expired(now) {
            self.on_answer(now, answer);
        }
        self.pump(now);
    }

    /// Time at which [`Core::handle_timeout`] must be called; `None`: only another input can change the state.
    pub fn next_deadline(&self) -> Option<Instant> {
        let line = self.line.deadline();
        let is_logged_in = self.line.is_logged_in();
        let requests = self.requests.deadline(is_logged_in && self.line.throttled_until.is_none());
        let mut deadlines = [line, requests, None, None, None, None, None];
        if is_logged_in {
            deadlines[2] = self.outbox.deadline();
            deadlines[3] = self.inbox.deadline().filter(|_| self.line.throttled_until.is_none());
            deadlines[4] = self.inbox.downlink().deadline();
            deadlines[5] = self.pulse.as_ref().map(Pulse::deadline);
            deadlines[6] = self.rooms.deadline().filter(|_| self.line.throttled_until.is_none());
        }
        deadlines.into_iter().flatten().min()
    }

    // ---- What the driver takes out -------------------------------------------------------------

    /// Appends the bytes to write to `out`; false: there is nothing to write. The bytes belong to the connection
    /// that stands now: after [`Event::Hangup`] or a disconnect, unwritten ones are to be dropped.
    pub fn poll_transmit(&mut self, out: &mut BytesMut) -> bool {
        if self.transmit.is_empty() {
            return false;
        }
        let frames = std::mem::take(&mut self.transmit);
        out.reserve(frames.iter().map(Frame::wire_len).sum());
        let ack = self.inbox.downlink().base();
        for frame in frames {
            let ack = if frame.header.command == Command::Hello { 0 } else { ack };
            frame.with_ack(ack).encode(out);
        }
        true
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() && self.events.capacity() > 8 {
            self.events = Events::new(); // an idle core holds no buffer
        }
        event
    }

    // ---- What the application does --------------------------------------------------------------

    /// Takes a message for `target`; works offline. Its one final result is [`Event::Sent`] or
    /// [`Event::SendFailed`]. Messages of one conversation are stored in the order of these calls.
    ///
    /// # Errors
    /// [`SendRefused`]: it was not taken, no event follows.
    pub fn send(
        &mut self,
        now: Instant,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<(SendId, MessageKey), SendRefused> {
        let key = self.fresh_key();
        self.send_with_key(now, key, target, kind, payload).map(|id| (id, key))
    }

    /// A key that no message has had.
    pub fn fresh_key(&mut self) -> MessageKey {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.random.next_u64().to_be_bytes());
        key[8..].copy_from_slice(&self.random.next_u64().to_be_bytes());
        MessageKey(key)
    }

    /// Sends with the caller's key: a message sent twice with one key is stored once.
    ///
    /// # Errors
    /// As [`Core::send`].
    pub fn send_with_key(
        &mut self,
        now: Instant,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<SendId, SendRefused> {
        self.take_send(now, key, target, kind, payload, self.uplink.body_max)
    }

    fn entry(
        &self,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<Entry, SendRefused> {
        if self.is_closing() {
            return Err(SendRefused::Closed);
        }
        let id = SendId(self.last_send + 1);
        Ok(Entry { id, key, target, kind, payload, put_off: Duration::ZERO, was_sent: false })
    }

    fn take_send(
        &mut self,
        now: Instant,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
        body_max: usize,
    ) -> Result<SendId, SendRefused> {
        let entry = self.entry(key, target, kind, payload)?;
        let id = entry.id;
        self.outbox.push(&self.config.uid, entry, body_max)?;
        self.last_send += 1;
        self.pump(now);
        Ok(id)
    }

    /// Asks the backend; works offline. Its one result is [`Event::Response`], by `timeout` at the latest.
    ///
    /// # Errors
    /// [`RequestRefused`]: it was not taken, no event follows.
    pub fn request(
        &mut self,
        now: Instant,
        method: impl Into<Cow<'static, str>>,
        payload: Bytes,
        repeat: Repeat,
        timeout: Duration,
    ) -> Result<RequestId, RequestRefused> {
        let (method, bytes_max) = (method.into(), self.uplink.body_max);
        let bytes = payload.len() + method.len() + REQUEST_OVERHEAD_BYTES;
        if self.is_closing() {
            return Err(RequestRefused::Closed);
        }
        if bytes > bytes_max {
            return Err(RequestRefused::TooLarge { bytes, bytes_max });
        }
        if self.requests.open() >= self.config.tuning.requests_max {
            return Err(RequestRefused::TooMany { open: self.requests.open() });
        }
        let deadline = now + timeout;
        let question = Question { owner: Owner::Application, method, payload, deadline, repeat };
        let id = self.requests.push(now, question);
        self.pump(now);
        Ok(id)
    }

    /// Sends an application command, 0x40 to 0xBF, at most once; false if not logged in now.
    pub fn try_app(&mut self, now: Instant, command: u8, body: Bytes) -> bool {
        let is_lawful = matches!(command, 0x40..=0xBF) && body.len() <= self.uplink.body_max;
        if !is_lawful || !self.line.is_logged_in() || self.line.is_throttled(now) {
            return false;
        }
        self.put(now, Frame::new(Command::App(command), body));
        true
    }

    /// The application has the message safe: it may be acked. A token counts once, and outlives
    /// the connection that the message came on.
    pub fn handled(&mut self, now: Instant, token: Token) {
        self.inbox.handled(now, token);
        self.pump(now);
    }

    /// Ends the session and the core: [`Event::Closed`] follows, when the gateway has heard it or
    /// after `logout_timeout`.
    pub fn logout(&mut self, now: Instant) {
        if self.line.is_logged_in() {
            self.put(now, Frame::new(Command::Logout, Bytes::new()));
            self.line.phase = Phase::LoggingOut(now + self.config.tuning.logout_timeout);
            self.pulse = None;
        } else if !self.is_closing() {
            self.hang_up(ClosedWhy::LoggedOut);
        }
    }

    /// Ends the core but not the session: goodbye, [`Event::Hangup`], [`Event::Closed`].
    pub fn close(&mut self, now: Instant) {
        if self.line.phase == Phase::Closed {
            return;
        }
        self.say_goodbye(now);
        self.hang_up(ClosedWhy::ByApplication);
    }

    /// User and device of this core.
    pub const fn config(&self) -> &CoreConfig {
        &self.config
    }

    /// True while the client is logged in.
    pub const fn is_logged_in(&self) -> bool {
        self.line.is_logged_in()
    }

    /// True once [`Event::Closed`] was reported or is about to be.
    pub const fn is_closed(&self) -> bool {
        matches!(self.line.phase, Phase::Closed)
    }

    /// Sends without a final result.
    pub const fn sends_open(&self) -> usize {
        self.outbox.len()
    }

    /// Messages that the application has not handed back.
    pub fn messages_open(&self) -> usize {
        self.inbox.unhandled()
    }

    const fn is_closing(&self) -> bool {
        matches!(self.line.phase, Phase::Closed | Phase::LoggingOut(_))
    }

    // ---- Inside -------------------------------------------------------------------------------

    fn connect(&mut self, now: Instant) {
        if self.line.token.is_none() {
            self.line.phase = Phase::NeedToken;
            self.events.push_back(Event::TokenNeeded(self.line.token_why));
            return;
        }
        self.line.phase = Phase::Connecting(now + self.config.tuning.connect_timeout);
        let alternate = self.line.alternate.take();
        self.events.push_back(Event::Connect { alternate });
    }

    /// Timers of a login.
    fn on_time(&mut self, now: Instant) {
        if self.line.leave_at.is_some_and(|at| at <= now) {
            self.leave(now);
            return;
        }
        if self.line.throttled_until.is_some_and(|until| until <= now) {
            self.line.throttled_until = None;
        }
        match self.outbox.handle_timeout(now, &mut self.random, &mut self.events) {
            Expiry::Fine => {}
            Expiry::Late => {
                if let Some(pulse) = &mut self.pulse {
                    pulse.probe();
                }
            }
            Expiry::Stuck => {
                self.line.forget_session();
                self.lose(now, Lost::SendUnanswered, None);
                return;
            }
        }
        self.on_beat(now);
    }

    fn on_beat(&mut self, now: Instant) {
        match self.pulse.as_mut().map_or(Beat::Quiet, |pulse| pulse.poll(now)) {
            Beat::Quiet => {}
            Beat::Ping { next_s } => self.transmit.push(frame_of(Command::Ping, &Ping { next_s })),
            Beat::Dead => {
                self.blame_network(now);
                self.lose(now, Lost::HeartbeatTimeout, None);
            }
        }
    }

    /// The connection is dead: if a PING after a whole silent interval found that out, the silence was too
    /// long for the network.
    fn blame_network(&mut self, now: Instant) {
        if let Some(pulse) = self.pulse.as_ref().filter(|pulse| pulse.is_telling()) {
            self.networks.on_dead(pulse.bounds(), now);
        }
    }

    /// Sends everything that may go out now.
    fn pump(&mut self, now: Instant) {
        if !self.line.is_logged_in() {
            return;
        }
        if !self.line.is_throttled(now) {
            while let Some(frame) = self.outbox.poll_frame(now, self.uplink, &mut self.events) {
                self.put(now, frame);
            }
            while let Some(hole) = self.inbox.poll_hole(now) {
                self.ask_for(now, hole);
            }
            while let Some(frame) = self.rooms.poll_frame(now) {
                self.put(now, frame);
            }
            while let Some(frame) = self.requests.poll_frame(now) {
                self.put(now, frame);
            }
        }
        let is_ack_due = self.inbox.downlink().deadline().is_some_and(|due| due <= now);
        if is_ack_due && self.transmit.is_empty() {
            let sack = self.inbox.downlink().sack();
            self.put(now, frame_of(Command::Ack, &moorline_proto::message::client::Ack { sack }));
        }
        if !self.transmit.is_empty() {
            self.inbox.downlink_mut().on_reported(); // every frame carries the ack
        }
    }

    fn put(&mut self, now: Instant, frame: Frame) {
        if let Some(pulse) = &mut self.pulse {
            pulse.sent(now);
        }
        self.transmit.push(frame);
    }

    /// The core ends the connection and will come back.
    fn lose(&mut self, now: Instant, why: Lost, after: Option<Duration>) {
        self.events.push_back(Event::Hangup);
        self.drop_line(now, why, after);
    }

    fn drop_line(&mut self, now: Instant, why: Lost, after: Option<Duration>) {
        self.forget_connection(now);
        let retry_at = self.line.on_lost(now, after, &mut self.random);
        self.events.push_back(Event::Disconnected { why, retry_at });
    }

    /// GOAWAY: goodbye, and another connection at once.
    fn leave(&mut self, now: Instant) {
        self.forget_connection(now);
        self.say_goodbye(now);
        self.line.on_left(now);
        self.events.push_back(Event::Hangup);
        self.events.push_back(Event::Disconnected { why: Lost::GoAway, retry_at: now });
        self.connect(now);
    }

    fn forget_connection(&mut self, now: Instant) {
        self.transmit.clear();
        self.decoder = Decoder::new();
        self.pulse = None;
        self.inbox.downlink_mut().on_offline();
        self.rooms.on_offline(now);
        for answer in self.requests.on_offline(now) {
            self.on_answer(now, answer);
        }
    }

    fn say_goodbye(&mut self, now: Instant) {
        if self.line.is_logged_in() {
            let close = Close { code: CloseReason::GoingAway.code(), ..Close::default() };
            self.put(now, frame::Frame::new(Command::Close, encode(&close)));
        }
    }

    fn hang_up(&mut self, why: ClosedWhy) {
        if self.line.has_socket() {
            self.events.push_back(Event::Hangup);
        }
        self.finish(why);
    }

    /// For good: whatever is open ends now.
    fn finish(&mut self, why: ClosedWhy) {
        self.line.phase = Phase::Closed;
        self.pulse = None;
        self.decoder = Decoder::new();
        self.outbox.close(&mut self.events);
        for Answer { id, owner, result } in self.requests.close() {
            if owner == Owner::Application {
                self.events.push_back(Event::Response { id, result });
            }
        }
        self.events.push_back(Event::Closed(why));
    }
}

#[cfg(test)]
mod tests;
