//! The client without sockets, threads or clocks.
//!
//! [`Core`] owns everything that one login needs. The same calls with the same times and the same seed give the same
//! results, to the byte.
//!
//! ```text
//!  driver                         Core                                   driver / application
//!  handle_timeout   ─────►  connection (login, backoff, session)  ─────►  Event::Connect, Hangup, TokenNeeded
//!  handle_connected         transport  (frames, heartbeats)       ─────►  Transmit: poll_transmit gives the bytes
//!  handle_bytes             outbox     (sends, cids, retries)     ─────►  Sent, SendFailed
//!  handle_disconnected      inbox      (order, holes, acks)       ─────►  Message
//!  send, request, handled   requests   (answers, pulls)           ─────►  Response
//!                           rooms      (asked for, entered)       ─────►  Notice
//! ```

mod backoff;
mod config;
mod connection_state;
mod conversation;
mod downlink;
pub(crate) mod endpoint_list;
mod endpoint_round;
mod endpoints;
mod environment;
mod event;
mod frames;
mod heartbeat;
mod inbox;
mod limits;
mod networks;
mod outbox;
mod output;
mod requests;
mod restore;
mod rooms;
mod tls_fault;
mod transport;

pub use backoff::Backoff;
pub use config::{CoreConfig, InvalidName, TokenSource, Tuning};
pub use endpoint_list::{DISPATCH_ANSWER_BYTES_MAX, DispatchFault};
pub use endpoint_round::EndpointRound;
pub use event::{
    ClosedWhy, ConversationCursor, ConversationEvent, Event, Lost, Message, Newest, Notice, Receipt, Repeat,
    RequestError, RequestId, RequestRefused, SendFailure, SendId, SendRefused, Target, Token, TokenWhy,
};
pub use networks::NetworkId;
pub use tls_fault::TlsFault;

use bytes::{Bytes, BytesMut};
use connection_state::{ConnectionState, Due, Ending};
use endpoints::Endpoints;
use inbox::Inbox;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Ack, Hello};
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use outbox::{Expiry, Outbox, Uplink};
use output::Outputs;
use requests::{Answer, Owner, Question, Requests};
use rooms::Rooms;
use std::borrow::Cow;
use std::sync::Arc;
use transport::{Received, Transport};

/// Bytes of a request that are not its payload: room for id, method and tags.
const REQUEST_OVERHEAD_BYTES: usize = 256;

/// The sans-IO client: one login of one device.
///
/// # The contract with its driver
/// 1. **Inputs** are the methods `handle_*` and the calls of the application. Each takes the time, changes the state and
///    appends to one queue of outputs. It never waits.
/// 2. **Outputs** are one queue in the order of causes. After **every** input the driver drains it: [`Core::poll_event`]
///    until it returns `None`. At [`Event::Transmit`] it writes the bytes of [`Core::poll_transmit`] to the connection that
///    stands. Bytes that are not written when a connection ends are lost, and the core sends again what matters.
/// 3. **Time**: nothing is due before [`Core::next_deadline`]; [`Core::handle_timeout`] does what is due.
///
/// An idle core holds no buffer: 800 bytes of its own, and under 2 KiB more for a dozen conversations.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    random: Random,
    connection: ConnectionState,
    transport: Transport,
    uplink: Uplink,
    outbox: Outbox,
    inbox: Inbox,
    requests: Requests,
    rooms: Rooms,
    outputs: Outputs,
}

impl Core {
    /// A core that wants to connect at once: its first deadline is the clock's zero.
    ///
    /// `seed` decides jitter and message keys, so it must be random and never used twice outside of
    /// tests. The names are not checked here; see [`CoreConfig::check`].
    pub fn new(config: CoreConfig, seed: u64) -> Self {
        let (tuning, mut random) = (&config.tuning, Random::new(seed));
        let endpoints = (!config.dispatch.is_empty()).then(|| Endpoints::new(&config.dispatch, &mut random));
        Self {
            connection: ConnectionState::new(&config.token, tuning.backoff, endpoints),
            random,
            transport: Transport::new(),
            uplink: Uplink::DEFAULT,
            outbox: Outbox::new(Arc::clone(tuning)),
            inbox: Inbox::new(Arc::clone(tuning), Arc::clone(&config.uid), Arc::clone(&config.device)),
            requests: Requests::default(),
            rooms: Rooms::default(),
            outputs: Outputs::default(),
            config,
        }
    }

    // ---- What the driver sees of the network --------------------------------------------------

    /// Notes that the connection asked for by [`Event::Connect`] stands.
    pub fn handle_connected(&mut self, now: Instant) {
        if !self.connection.on_connected(now, self.config.tuning.handshake_timeout) {
            return;
        }
        self.transport.reset();
        let downlink = self.inbox.downlink();
        let hello = Hello {
            version_min: PROTOCOL_VERSION.into(),
            version_max: PROTOCOL_VERSION.into(),
            token: self.connection.token().unwrap_or_default().into(),
            uid: self.config.uid.to_string(),
            device: self.config.device.to_string(),
            platform: self.config.platform.into(),
            resume: self.connection.resume(downlink.base(), downlink.sack()),
            agent: self.config.agent.to_string(),
            accept: ACCEPT_LZ4,
        };
        self.outputs.write(frame_of(Command::Hello, &hello));
    }

    /// Takes bytes from the socket. They are sliced, not copied: a message pins the buffer it came in.
    pub fn handle_bytes(&mut self, now: Instant, bytes: Bytes) {
        self.transport.on_received(now);
        let mut received = Received::new(bytes);
        while self.connection.is_up() {
            match self.transport.poll_frame(&mut received) {
                Ok(Some(frame)) => self.handle_frame(now, &frame),
                Ok(None) => break,
                // After LOGOUT the answer alone counts, and there will be none.
                Err(_) if self.connection.state().is_none() => {
                    self.end(now, Ending::Closed(ClosedWhy::LoggedOut));
                }
                Err(reason) => self.end(now, Ending::lost(Lost::Protocol(reason))),
            }
        }
        self.pump(now);
    }

    /// Notes that the socket is gone, or could not be had; `fault`: because TLS failed. Not to be called after
    /// [`Event::Hangup`].
    pub fn handle_disconnected(&mut self, now: Instant, fault: Option<TlsFault>) {
        if let Some(ending) = self.connection.on_socket_gone(now) {
            // A network may say that it has forgotten the connection, when a PING reminds it.
            self.transport.on_dead(now);
            let ending = match (ending, fault) {
                (Ending::Lost { .. }, Some(fault)) => Ending::lost(Lost::Tls(fault)),
                (ending, _) => ending,
            };
            self.end(now, ending);
        }
    }

    /// Takes the answer to [`Event::TokenNeeded`]; `None`: no token now, ask again later. `until`: expiry of the token, if
    /// the driver can tell; another one is asked for before a login with it.
    pub fn handle_token(&mut self, now: Instant, token: Option<Arc<str>>, until: Option<Instant>) {
        let has_token = token.is_some();
        if !self.connection.on_token(token, until) {
            return;
        }
        if has_token {
            self.connection.connect(now, &self.config.tuning, &mut self.outputs);
        } else {
            self.end(now, Ending::lost(Lost::NoToken));
        }
    }

    /// Takes the answer to [`Event::EndpointsNeeded`]: the body of the server's answer. An answer that comes too late, or is
    /// not asked for, is dropped.
    pub fn handle_endpoints(&mut self, now: Instant, answer: Result<&[u8], DispatchFault>) {
        let CoreConfig { alternates, is_proved, .. } = &self.config;
        let list = answer.and_then(|body| endpoint_list::read(body, alternates, *is_proved));
        let fault = list.as_ref().err().cloned();
        if self.connection.on_endpoints(now, list, &mut self.random) {
            let told = fault.map(|why| Event::Notice(Notice::NoEndpoints { why }));
            told.into_iter().for_each(|event| self.outputs.push(event));
            self.connection.connect(now, &self.config.tuning, &mut self.outputs);
        }
    }

    /// Does what is due at [`Core::next_deadline`]; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.connection.poll_due(now) {
            Due::Nothing => {}
            Due::Connect => self.connection.connect(now, &self.config.tuning, &mut self.outputs),
            Due::GiveUpAsking => self.handle_endpoints(now, Err(DispatchFault::TimedOut)),
            Due::Leave => {
                self.forget_connection(now);
                self.transport.say_goodbye(now, &mut self.outputs);
                let retry_in = self.connection.on_left(now, &mut self.random);
                self.outputs.push(Event::Hangup);
                self.outputs.push(Event::Notice(Notice::Disconnected { why: Lost::GoAway, retry_in }));
                if retry_in.is_zero() {
                    self.connection.connect(now, &self.config.tuning, &mut self.outputs);
                }
            }
            Due::Login => {
                let expiry = self.outbox.handle_timeout(now, &mut self.random, &mut self.outputs);
                if expiry == Expiry::Late {
                    self.transport.probe();
                }
                if expiry == Expiry::Stuck {
                    self.connection.forget_session();
                    self.end(now, Ending::lost(Lost::SendUnanswered));
                } else if let Err(why) = self.transport.poll_heartbeat(now, &mut self.outputs) {
                    self.end(now, Ending::lost(why));
                }
            }
            Due::End(ending) => self.end(now, ending),
        }
        while let Some(answer) = self.requests.poll_expired(now) {
            self.on_answer(now, answer);
        }
        self.pump(now);
    }

    /// Time at which [`Core::handle_timeout`] must be called; `None`: only another input can change the state.
    pub fn next_deadline(&self) -> Option<Instant> {
        let is_logged_in = self.connection.is_logged_in();
        let may_ask = is_logged_in && !self.connection.has_throttle();
        let mut deadlines =
            [self.connection.deadline(), self.requests.deadline(may_ask), None, None, None, None, None];
        if is_logged_in {
            deadlines[2] = self.outbox.deadline();
            deadlines[3] = self.inbox.deadline().filter(|_| may_ask);
            deadlines[4] = self.inbox.downlink().deadline();
            deadlines[5] = self.transport.deadline();
            deadlines[6] = self.rooms.deadline().filter(|_| may_ask);
        }
        deadlines.into_iter().flatten().min()
    }

    // ---- What the driver takes out -------------------------------------------------------------

    /// Appends the bytes to write to `out`; false: there is nothing to write. Called at [`Event::Transmit`]: the bytes belong
    /// to the connection that stands then.
    pub fn poll_transmit(&mut self, out: &mut BytesMut) -> bool {
        self.outputs.poll_transmit(self.inbox.downlink().base(), out)
    }

    /// Takes the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outputs.poll_event()
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

    fn take_send(
        &mut self,
        now: Instant,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
        body_max: usize,
    ) -> Result<SendId, SendRefused> {
        if self.connection.is_closing() {
            return Err(SendRefused::Closed);
        }
        let entry = self.outbox.entry(key, target, kind, payload);
        let id = self.outbox.push(&self.config.uid, entry, body_max)?;
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
        if self.connection.is_closing() {
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
        if !is_lawful || !self.connection.is_logged_in() || self.connection.is_throttled(now) {
            return false;
        }
        self.transport.send(now, Frame::new(Command::App(command), body), &mut self.outputs);
        true
    }

    /// Notes that the application has the message safe, so that it may be acked. A token counts once, and outlives
    /// the connection that the message came on.
    pub fn handled(&mut self, now: Instant, token: Token) {
        self.inbox.handled(now, token);
        self.pump(now);
    }

    /// Ends the session and the core: [`Notice::Closed`] follows, when the gateway has heard it or
    /// after `logout_timeout`.
    pub fn logout(&mut self, now: Instant) {
        if self.connection.is_logged_in() {
            let frame = Frame::new(Command::Logout, Bytes::new());
            self.transport.send(now, frame, &mut self.outputs);
            self.connection.on_logout(now, self.config.tuning.logout_timeout);
            self.transport.stop_heartbeat();
        } else if !self.connection.is_closing() {
            self.end(now, Ending::Closed(ClosedWhy::LoggedOut));
        }
    }

    /// Ends the core but not the session: goodbye, [`Event::Hangup`], [`Notice::Closed`].
    pub fn close(&mut self, now: Instant) {
        if self.connection.is_closed() {
            return;
        }
        if self.connection.is_logged_in() {
            self.transport.say_goodbye(now, &mut self.outputs);
        }
        self.end(now, Ending::Closed(ClosedWhy::ByApplication));
    }

    /// User and device of this core.
    pub const fn config(&self) -> &CoreConfig {
        &self.config
    }

    /// True while the client is logged in.
    pub const fn is_logged_in(&self) -> bool {
        self.connection.is_logged_in()
    }

    /// True once [`Notice::Closed`] was reported or is about to be.
    pub const fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Sends without a final result.
    pub const fn sends_open(&self) -> usize {
        self.outbox.len()
    }

    /// Messages that the application has not handed back.
    pub fn messages_open(&self) -> usize {
        self.inbox.unhandled()
    }

    // ---- Inside -------------------------------------------------------------------------------

    /// Sends everything that may go out now.
    fn pump(&mut self, now: Instant) {
        if !self.connection.is_logged_in() {
            return;
        }
        let Self { transport, outputs, .. } = self;
        if !self.connection.is_throttled(now) {
            while let Some(frame) = self.outbox.poll_frame(now, self.uplink, outputs) {
                transport.send(now, frame, outputs);
            }
            while let Some(hole) = self.inbox.poll_hole(now) {
                self.requests.pull(now, hole);
            }
            while let Some(frame) = self.rooms.poll_frame(now) {
                transport.send(now, frame, outputs);
            }
            while let Some(frame) = self.requests.poll_frame(now) {
                transport.send(now, frame, outputs);
            }
        }
        let is_ack_due = self.inbox.downlink().deadline().is_some_and(|due| due <= now);
        if is_ack_due && !outputs.has_frames() {
            let sack = self.inbox.downlink().sack();
            transport.send(now, frame_of(Command::Ack, &Ack { sack }), outputs);
        }
        if outputs.has_frames() {
            self.inbox.downlink_mut().on_reported(); // every frame carries the ack
        }
    }

    /// Ends the connection, and the core if it does not come back.
    fn end(&mut self, now: Instant, ending: Ending) {
        if self.connection.has_socket() {
            self.outputs.push(Event::Hangup);
        }
        match ending {
            Ending::Lost { why, after } => {
                self.forget_connection(now);
                let retry_in = self.connection.on_lost(now, after, &mut self.random);
                self.outputs.push(Event::Notice(Notice::Disconnected { why, retry_in }));
            }
            Ending::Closed(why) => {
                self.connection.close();
                self.transport.reset();
                self.outbox.close(&mut self.outputs);
                for Answer { id, owner, result } in self.requests.close() {
                    if owner == Owner::Application {
                        self.outputs.push(Event::Response { id, result });
                    }
                }
                self.outputs.push(Event::Notice(Notice::Closed(why)));
            }
        }
    }

    fn forget_connection(&mut self, now: Instant) {
        self.outputs.drop_frames();
        self.transport.reset();
        self.inbox.downlink_mut().on_offline();
        self.rooms.on_offline(now);
        for answer in self.requests.on_offline(now) {
            self.on_answer(now, answer);
        }
    }
}

#[cfg(test)]
mod tests;
