//! One device's side of the protocol, without socket, thread or clock.
//!
//! The demo speaks the protocol by itself: a judge must not share bugs with the client library that it
//! judges. The owner calls `handle_*`, then drains [`Client::poll_output`] until it is empty, then arms a
//! timer for [`Client::next_deadline`].
//!
//! ```text
//! alice sends "hi": send() ──► outbox: SEND cid=7 ──► Write ──► gateway
//!                   handle_bytes(SENDACK cid=7) ──► stream: place 12 is her own ──► Stored
//! bob:              handle_bytes(PUSH place 12) ──► stream: 12 is next ──► Message
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `mod` | the connection: login, resume, heartbeat, frames |
//! | `output` | names of a login, and the outputs |
//! | `outbox` | sends without a final answer: one under way per conversation |
//! | `downlink` | numbers of received frames, and when to acknowledge |
//! | `stream` | the places of a conversation, in order; holes are pulled |
//! | `requests` | requests without an answer |

mod downlink;
mod outbox;
mod output;
mod requests;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use outbox::{OutboxFull, Target};
pub(crate) use output::{Dropped, Login, Output, Receipt};

use bytes::Bytes;
use downlink::Downlink;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::client::{Event as LineEvent, State, Transition};
use moorline_proto::error::{CloseReason, may_reconnect};
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::frame::{BODY_BYTES_CEILING, Batch, Command, Decoder, Flags, Frame};
use moorline_proto::ids::MessageKey;
use moorline_proto::keepalive::{Bounds, Heartbeat};
use moorline_proto::message::client::{
    Ack, Close, Code, Hello, Kick, Notify, Ping, Platform, Push, Resp, Resume, SendAck, Throttle, Welcome,
};
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{decode, encode, frame_of};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant, nanos_of};
use outbox::Outbox;
use prost::Message as _;
use requests::{Purpose, Requests};
use std::collections::VecDeque;
use stream::Stream;

/// Patience with a connect, a handshake, and the answer to a PING: a busy machine is not a dead one.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(60);
/// Wait before another connect: a random part of this, doubled with each failure up to the maximum.
const RECONNECT_AFTER: Duration = Duration::from_millis(500);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(8);
/// Doublings of that wait.
const RECONNECT_DOUBLINGS_MAX: u32 = 4;
/// Heartbeat interval in seconds when the gateway names none.
const HEARTBEAT_DEFAULT_S: u32 = 30;
/// Agent name in HELLO.
const AGENT: &str = "moorline-demo";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the next attempt.
    Waiting(Instant),
    /// Until the socket stands, at most until then.
    Connecting(Instant),
    /// On a socket; before WELCOME at most until then.
    Up(State, Instant),
    /// For good.
    Closed,
}

/// Heartbeat of one connection.
#[derive(Debug)]
struct Pulse {
    heartbeat: Heartbeat,
    /// Time of a PING without an answer.
    asked_at: Option<Instant>,
}

impl Pulse {
    fn deadline(&self) -> Instant {
        self.asked_at.map_or_else(|| self.heartbeat.deadline(), |asked| asked + PONG_WITHIN)
    }
}

/// One device: login, sends, received conversations.
#[derive(Debug)]
pub(crate) struct Client {
    login: Login,
    random: Random,
    phase: Phase,
    failures: u32,
    /// Resumption of the last session; `last_seq` and `sack` are filled in when it is used.
    session: Option<Box<Resume>>,
    was_logged_in: bool,
    /// The gateway asked to slow down until then.
    throttled_until: Option<Instant>,
    decoder: Decoder,
    pulse: Option<Pulse>,
    outbox: Outbox,
    downlink: Downlink,
    streams: Vec<Stream>,
    requests: Requests,
    outputs: VecDeque<Output>,
}

impl Client {
    /// A client that connects at its first [`Client::handle_timeout`].
    pub(crate) fn new(login: Login, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            phase: Phase::Waiting(Instant::ZERO),
            failures: 0,
            session: None,
            was_logged_in: false,
            throttled_until: None,
            decoder: Decoder::new(),
            pulse: None,
            outbox: Outbox::new(login.seats.iter().map(|(_, target)| target.clone())),
            downlink: Downlink::default(),
            streams: login.seats.iter().map(|_| Stream::default()).collect(),
            requests: Requests::default(),
            outputs: VecDeque::new(),
            login,
        }
    }

    /// Takes the next output.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            self.outputs = VecDeque::new(); // an idle client holds no buffer
        }
        output
    }

    /// Takes a message for a seat's conversation.
    ///
    /// # Errors
    /// [`OutboxFull`]: the message was not taken.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        seat: usize,
        key: MessageKey,
        payload: Bytes,
    ) -> Result<(), OutboxFull> {
        self.outbox.push(seat, key, payload)?;
        self.pump(now);
        Ok(())
    }

    /// Asks the backend until it answers.
    pub(crate) fn request(&mut self, now: Instant, method: &'static str, payload: Bytes) {
        self.requests.push(now, Purpose::Owner, method, payload);
        self.pump(now);
    }

    /// Pulls what every conversation has beyond what was delivered here.
    pub(crate) fn pull_all(&mut self, now: Instant) {
        self.streams.iter_mut().for_each(|stream| stream.want_newest(now));
        self.pump(now);
    }

    /// Says goodbye and ends.
    pub(crate) fn close(&mut self, now: Instant) {
        if self.is_logged_in() {
            let close = Close { code: CloseReason::GoingAway.code(), ..Close::default() };
            self.put(now, frame_of(Command::Close, &close));
        }
        self.phase = Phase::Closed;
        self.outputs.push_back(Output::HangUp);
    }

    /// The connection stands.
    pub(crate) fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Connecting(_)) {
            return;
        }
        self.phase = Phase::Up(State::Greeting, now + HANDSHAKE_WITHIN);
        self.decoder = Decoder::new();
        let (last_seq, sack) = (self.downlink.base(), self.downlink.sack());
        let resume = self.session.as_ref().map(|session| Resume { last_seq, sack, ..(**session).clone() });
        let hello = Hello {
            version_min: PROTOCOL_VERSION.into(),
            version_max: PROTOCOL_VERSION.into(),
            token: String::new(),
            uid: self.login.uid.to_string(),
            device: self.login.device.to_owned(),
            platform: Platform::Bot.into(),
            resume,
            agent: AGENT.to_owned(),
            accept: ACCEPT_LZ4,
        };
        self.outputs.push_back(Output::Write(frame_of(Command::Hello, &hello)));
    }

    /// The socket is gone, or could not be had.
    pub(crate) fn handle_disconnected(&mut self, now: Instant) {
        match self.phase {
            Phase::Connecting(_) => self.drop_connection(now, Dropped::Connect, Duration::ZERO),
            Phase::Up(..) => self.drop_connection(now, Dropped::Socket, Duration::ZERO),
            Phase::Waiting(_) | Phase::Closed => {}
        }
    }

    /// Bytes came.
    pub(crate) fn handle_bytes(&mut self, now: Instant, mut bytes: Bytes) {
        if let Some(pulse) = &mut self.pulse {
            pulse.asked_at = None;
        }
        while matches!(self.phase, Phase::Up(..)) {
            let frame = match self.decoder.decode(&mut bytes, BODY_BYTES_CEILING) {
                Ok(Some(frame)) => frame.into_plain(BODY_BYTES_CEILING),
                Ok(None) => break,
                Err(reason) => Err(reason),
            };
            match frame {
                Ok(frame) if frame.header.flags.contains(Flags::BATCH) => self.handle_batch(now, frame),
                Ok(frame) => self.handle_frame(now, &frame),
                Err(reason) => self.lose(now, Dropped::Protocol(reason), Duration::ZERO),
            }
        }
        self.pump(now);
    }

    /// The deadline of [`Client::next_deadline`] has come; harmless at any other time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting(until) if until <= now => {
                self.phase = Phase::Connecting(now + CONNECT_WITHIN);
                self.outputs.push_back(Output::Connect);
            }
            Phase::Connecting(until) if until <= now => self.lose(now, Dropped::Connect, Duration::ZERO),
            Phase::Up(state, until) if !state.is_logged_in() && until <= now => {
                self.lose(now, Dropped::Late("WELCOME"), Duration::ZERO);
            }
            Phase::Up(state, _) if state.is_logged_in() => {
                self.throttled_until = self.throttled_until.filter(|until| *until > now);
                self.outbox.handle_timeout(now);
                self.requests.handle_timeout(now);
                self.beat(now);
            }
            _ => {}
        }
        self.pump(now);
    }

    /// Time of the next [`Client::handle_timeout`]; `None`: there is nothing to wait for.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting(until) | Phase::Connecting(until) => Some(until),
            Phase::Up(state, until) if !state.is_logged_in() => Some(until),
            Phase::Closed => None,
            Phase::Up(..) => {
                let pulls = self.streams.iter().filter_map(Stream::deadline).min();
                let talk = [self.outbox.deadline(), self.requests.deadline(), pulls];
                let talk = talk.into_iter().flatten().min();
                let talk = match self.throttled_until {
                    Some(until) => Some(until),
                    None => talk,
                };
                let beat = self.pulse.as_ref().map(Pulse::deadline);
                [talk, self.downlink.deadline(), beat].into_iter().flatten().min()
            }
        }
    }

    const fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Up(state, _) if state.is_logged_in())
    }

    fn handle_batch(&mut self, now: Instant, batch: Frame) {
        for inner in Batch::new(batch.body) {
            if !matches!(self.phase, Phase::Up(..)) {
                return;
            }
            match inner.and_then(|inner| inner.into_plain(BODY_BYTES_CEILING)) {
                Ok(inner) => self.handle_frame(now, &inner),
                Err(reason) => self.lose(now, Dropped::Protocol(reason), Duration::ZERO),
            }
        }
    }

    fn handle_frame(&mut self, now: Instant, frame: &Frame) {
        let Phase::Up(state, _) = self.phase else { return };
        let transition = state.on(LineEvent::Received(frame.header.command));
        if transition == Transition::Broken {
            return self.lose(now, Dropped::Protocol(CloseReason::Unexpected), Duration::ZERO);
        }
        if state.is_logged_in() {
            let wants_ack = frame.header.flags.contains(Flags::ACK_REQ);
            match self.downlink.admit(now, frame.header.seq, wants_ack) {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return self.lose(now, Dropped::Protocol(reason), Duration::ZERO),
            }
        }
        let Transition::To(next) = transition else { return };
        if next.is_logged_in() && state.is_logged_in() {
            self.phase = Phase::Up(next, Instant::FAR_FUTURE);
        }
        if let Err(reason) = self.obey(now, frame) {
            self.lose(now, Dropped::Protocol(reason), Duration::ZERO);
        }
    }

    fn obey(&mut self, now: Instant, frame: &Frame) -> Result<(), CloseReason> {
        let body = &frame.body;
        match frame.header.command {
            Command::Welcome => self.handle_welcome(now, &decode(body)?),
            Command::SendAck => self.handle_send_ack(now, decode(body)?),
            Command::Push => self.handle_push(now, decode(body)?),
            Command::Notify => {
                let Notify { conversation, latest, .. } = decode(body)?;
                if let Some(seat) = self.seat_of(&conversation) {
                    self.streams[seat].handle_latest(now, latest);
                }
            }
            Command::Resp => self.handle_resp(now, decode(body)?),
            Command::Ping => self.put(now, frame_of(Command::Ack, &Ack { sack: self.downlink.sack() })),
            Command::Throttle => {
                let throttle: Throttle = decode(body)?;
                self.throttled_until = Some(now + Duration::from_millis(throttle.retry_after_ms.into()));
            }
            Command::Kick => {
                let Kick { code, may_reconnect, reason } = decode(body)?;
                self.session = None;
                self.handle_told(now, code, reason, may_reconnect, 0);
            }
            Command::Close => {
                let Close { code, reason, retry_after_ms } = decode(body)?;
                self.handle_told(now, code, reason, may_reconnect(code), retry_after_ms);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_welcome(&mut self, now: Instant, welcome: &Welcome) {
        self.phase = Phase::Up(State::Active, Instant::FAR_FUTURE);
        self.failures = 0;
        let copy = Bytes::copy_from_slice; // a slice would hold the whole read buffer
        self.session = (!welcome.ticket.is_empty()).then(|| {
            let (session, ticket) = (copy(&welcome.session), copy(&welcome.ticket));
            Box::new(Resume { session, epoch: welcome.epoch, ticket, ..Resume::default() })
        });
        let seconds =
            if welcome.heartbeat_min_s == 0 { HEARTBEAT_DEFAULT_S } else { welcome.heartbeat_min_s };
        let interval = Duration::from_secs(seconds.into());
        let bounds = Bounds { min: interval, max: interval };
        let heartbeat = Heartbeat::new(bounds, now, &mut self.random);
        self.pulse = Some(Pulse { heartbeat, asked_at: None });
        self.outbox.handle_login(welcome.resumed);
        if !welcome.resumed {
            self.downlink = Downlink::default();
        }
        if std::mem::replace(&mut self.was_logged_in, true) && !welcome.resumed {
            self.streams.iter_mut().for_each(|stream| stream.want_newest(now));
        }
        self.outputs.push_back(Output::LoggedIn);
    }

    fn handle_send_ack(&mut self, now: Instant, ack: SendAck) {
        if matches!(Code::try_from(ack.code), Ok(Code::Ok | Code::Dup))
            && let Some(seat) = self.seat_of(&ack.conversation)
        {
            // This device's own message: nobody pushes it here.
            self.streams[seat].handle_place(now, ack.seq, None);
            self.advance(seat);
        }
        self.outputs.extend(self.outbox.handle_ack(now, ack, &mut self.random));
    }

    fn handle_push(&mut self, now: Instant, push: Push) {
        // A message of a conversation that this device does not take part in is judged like any other.
        let Some(seat) = self.seat_of(&push.conversation) else {
            self.outputs.push_back(Output::Message { seat: usize::MAX, push });
            return;
        };
        self.streams[seat].handle_place(now, push.seq, Some(push));
        self.advance(seat);
    }

    fn handle_resp(&mut self, now: Instant, resp: Resp) {
        let Some((purpose, result)) = self.requests.handle_resp(now, resp) else { return };
        let Purpose::Pull { seat, to } = purpose else {
            self.outputs.push_back(Output::Response(result));
            return;
        };
        let page = result.and_then(|body| PullResponse::decode(body).map_err(|error| error.to_string()));
        let is_own = |push: &Push| push.sender == *self.login.uid && push.sender_device == self.login.device;
        let vacant = self.streams[seat].handle_page(now, to, page.ok(), is_own);
        self.advance(seat);
        for (from, to) in vacant {
            self.outputs.push_back(Output::Vacant { seat, from, to });
        }
    }

    /// Hands out the messages of a seat that are in order now.
    fn advance(&mut self, seat: usize) {
        while let Some(push) = self.streams[seat].poll_message() {
            self.outputs.push_back(Output::Message { seat, push });
        }
    }

    fn handle_told(&mut self, now: Instant, code: u32, reason: String, may_return: bool, after_ms: u32) {
        let told = Dropped::Told { code, reason };
        if may_return {
            self.lose(now, told, Duration::from_millis(after_ms.into()));
            return;
        }
        self.forget_connection(now);
        self.phase = Phase::Closed;
        self.outputs.extend([Output::HangUp, Output::Closed(told)]);
    }

    fn beat(&mut self, now: Instant) {
        let Some(pulse) = self.pulse.as_mut().filter(|pulse| pulse.deadline() <= now) else { return };
        if pulse.asked_at.is_some() {
            self.lose(now, Dropped::Late("answer to a PING"), Duration::ZERO);
            return;
        }
        let promise = pulse.heartbeat.beat(now).as_secs().max(1);
        pulse.asked_at = Some(now);
        let next_s = u32::try_from(promise).unwrap_or(u32::MAX);
        let ack = self.downlink.base();
        self.outputs.push_back(Output::Write(frame_of(Command::Ping, &Ping { next_s }).with_ack(ack)));
    }

    /// Ends the connection from this side.
    fn lose(&mut self, now: Instant, why: Dropped, after: Duration) {
        self.outputs.push_back(Output::HangUp);
        self.drop_connection(now, why, after);
    }

    fn drop_connection(&mut self, now: Instant, why: Dropped, after: Duration) {
        self.forget_connection(now);
        let most =
            (RECONNECT_AFTER * (1 << self.failures.min(RECONNECT_DOUBLINGS_MAX))).min(RECONNECT_AFTER_MAX);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Waiting(now + after + part_of(most, &mut self.random));
        self.outputs.push_back(Output::Disconnected(why));
    }

    fn forget_connection(&mut self, now: Instant) {
        self.decoder = Decoder::new();
        self.pulse = None;
        self.throttled_until = None;
        self.downlink.handle_offline();
        self.requests.handle_offline(now);
    }

    /// Writes everything that may go out now.
    fn pump(&mut self, now: Instant) {
        if !self.is_logged_in() {
            return;
        }
        if self.throttled_until.is_none_or(|until| until <= now) {
            while let Some(frame) = self.outbox.poll_frame(now) {
                self.put(now, frame);
            }
            for seat in 0..self.streams.len() {
                if let Some((from, to)) = self.streams[seat].poll_pull(now) {
                    let conversation = self.login.seats[seat].0.to_string();
                    let pull = PullRequest { conversation, from, to, ..PullRequest::default() };
                    self.requests.push(now, Purpose::Pull { seat, to }, "im.pull", encode(&pull));
                }
            }
            while let Some(frame) = self.requests.poll_frame(now) {
                self.put(now, frame);
            }
        }
        if self.downlink.deadline().is_some_and(|due| due <= now) {
            self.put(now, frame_of(Command::Ack, &Ack { sack: self.downlink.sack() }));
        }
    }

    /// Writes a frame, which carries the acknowledgement.
    fn put(&mut self, now: Instant, frame: Frame) {
        if let Some(pulse) = &mut self.pulse {
            pulse.heartbeat.sent(now);
        }
        let ack = self.downlink.take_ack();
        self.outputs.push_back(Output::Write(frame.with_ack(ack)));
    }

    fn seat_of(&self, conversation: &str) -> Option<usize> {
        self.login.seats.iter().position(|(id, _)| **id == *conversation)
    }
}

/// A random part of a duration.
fn part_of(whole: Duration, random: &mut Random) -> Duration {
    Duration::from_nanos(random.below(nanos_of(whole).saturating_add(1)))
}
