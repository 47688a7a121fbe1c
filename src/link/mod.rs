//! Links to the backend (`docs/backend.md`): one [`Link`] is one persistent TCP connection of one
//! worker to one endpoint, reconnected for ever.
//!
//! Owns: the socket, its output buffer, the table of unanswered questions, the credit. Driven by the
//! worker's thread, which also decides what goes where; nothing here knows slots' owners, shards or
//! mailboxes. Pure parts: [`Backoff`], [`Breaker`], [`Pending`], [`Slots`], [`LinkState`]. IO: [`Socket`].

mod socket;

pub use crate::router::{
    Backoff, Breaker, DELAY_FLOOR, Due, Failure, LinkIndex, LinkState, LinkTimes, Moves, Pending, Phase,
    SLOTS, SPAN_MAX, Seat, Share, Slot, SlotSet, Slots, Spread, Taken, Target, Up, WEIGHT,
};
pub use socket::{Input, Socket};

use crate::snapshot::LinkRecord;
use bytes::Bytes;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Registry, Token};
use moorline_net::read_block::ReadBlock;
use moorline_proto::frame::Command;
use moorline_proto::link::{self, Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, LinkHello, PushOutcome, PushResult};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use prost::Message;
use std::net::SocketAddr;

/// Unanswered UPs on a link whose backend has not said how many it accepts.
pub const CREDIT_DEFAULT: usize = 256;
/// More than this a backend cannot grant.
pub const CREDIT_MAX: usize = 1 << 16;
/// Push outcomes in one PUSH_RESULT.
const OUTCOMES_PER_FRAME: usize = 4096;
/// A timed out UP holds its credit for so many more timeouts before it is forgotten.
const FORGET_TIMEOUTS: u32 = 10;

/// What all links of a worker share.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// What this gateway says first.
    pub hello: LinkHello,
    /// Times of the state machine.
    pub times: LinkTimes,
    /// Longest first delay before a reconnect.
    pub reconnect_min: Duration,
    /// Longest delay before a reconnect.
    pub reconnect_max: Duration,
    /// An UP without an answer for so long is answered RETRY.
    pub up_timeout: Duration,
    /// Above so many waiting output bytes no UP and no ANNOUNCE is added; at twice this the link is
    /// closed, because the backend does not read.
    pub output_max: usize,
}

/// One link.
#[derive(Debug)]
pub struct Link {
    /// Where it is in its life.
    pub state: LinkState,
    /// UPs without an answer.
    pub pending: Pending<Up>,
    address: SocketAddr,
    socket: Option<Socket>,
    credit: usize,
    outcomes: Vec<PushOutcome>,
    up_timeout: Duration,
    output_max: usize,
}

impl Link {
    /// A closed link whose first try is due at once.
    pub fn new(address: SocketAddr, settings: &LinkSettings) -> Self {
        let backoff = Backoff::new(settings.reconnect_min, settings.reconnect_max);
        Self {
            state: LinkState::new(settings.times, backoff),
            pending: Pending::new(settings.up_timeout.saturating_mul(FORGET_TIMEOUTS)),
            address,
            socket: None,
            credit: CREDIT_DEFAULT,
            outcomes: Vec::new(),
            up_timeout: settings.up_timeout,
            output_max: settings.output_max,
        }
    }

    /// Writes an open link down, with its socket; `None`: it has nothing that could go on elsewhere.
    pub fn freeze(&mut self) -> Option<(LinkRecord, &TcpStream)> {
        self.send_outcomes();
        let Self { state, pending, address: _, socket, credit, outcomes: _, up_timeout: _, output_max: _ } =
            self;
        let (stream, output, partial) = socket.as_ref()?.parts();
        let mut record = LinkRecord {
            credit: u32::try_from(*credit).expect("at most CREDIT_MAX"),
            output: Bytes::copy_from_slice(output),
            partial: Bytes::copy_from_slice(partial),
            base: pending.freeze().0,
            ..LinkRecord::default()
        };
        state.freeze(&mut record)?;
        Some((record, stream))
    }

    /// Goes on where that link was.
    ///
    /// # Errors
    /// The socket cannot be watched, or what was read of it is no link frame.
    pub fn thaw(
        &mut self,
        record: &LinkRecord,
        stream: TcpStream,
        pending: Vec<(Option<Up>, Instant)>,
        registry: &Registry,
        token: Token,
    ) -> std::io::Result<()> {
        self.socket = Some(Socket::adopt(stream, registry, token, &record.output, &record.partial)?);
        self.state.thaw(record);
        self.credit = (record.credit as usize).min(CREDIT_MAX);
        self.pending = Pending::thaw(self.up_timeout.saturating_mul(FORGET_TIMEOUTS), record.base, pending);
        Ok(())
    }

    /// The endpoint.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to connect.
    pub fn open(&mut self, registry: &Registry, token: Token) -> Result<(), Failure> {
        self.socket = Some(Socket::connect(self.address, registry, token)?);
        Ok(())
    }

    /// Drops the connection and everything that was meant for it. Unanswered UPs stay in
    /// [`Self::pending`]. Returns the delay before the next try.
    pub fn close(&mut self, now: Instant, random: &mut Random) -> Duration {
        self.socket = None;
        self.outcomes = Vec::new();
        self.credit = CREDIT_DEFAULT;
        self.state.on_failed(now, random)
    }

    /// Takes note of an event, and greets when the connection stands.
    pub fn handle_event(&mut self, event: &Event, now: Instant, hello: &LinkHello) -> Result<(), Failure> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        socket.handle_event(event);
        if matches!(self.state.phase(), Phase::Connecting(_)) && socket.try_finish_connect()? {
            self.state.on_connected(now);
            self.send(Kind::Hello, 0, hello);
        }
        Ok(())
    }

    /// The backend's first frame: checks it and is ready.
    pub fn handle_hello(&mut self, frame: &LinkFrame, now: Instant) -> Result<LinkHello, LinkError> {
        let hello: LinkHello = frame.message()?;
        let version = u32::from(link::LINK_VERSION);
        if !(hello.version_min..=hello.version_max).contains(&version) {
            return Err(LinkError::Version(u8::try_from(hello.version_max).unwrap_or(u8::MAX)));
        }
        self.state.on_hello(now);
        Ok(hello)
    }

    /// Notes the credit that any frame may carry.
    pub fn handle_credit(&mut self, credit: u32) {
        if credit > 0 {
            self.credit = (credit as usize).min(CREDIT_MAX);
        }
    }

    /// Reads once into `block`.
    pub fn read(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Input, Failure> {
        let Some(socket) = &mut self.socket else { return Ok(Input::Drained) };
        let is_connected = !matches!(self.state.phase(), Phase::Connecting(_));
        if !is_connected {
            return Ok(Input::Drained);
        }
        let input = socket.read(block)?;
        if matches!(input, Input::Bytes(_)) {
            self.state.on_heard(now);
        }
        Ok(input)
    }

    /// The next whole frame of what was read. `None` too if the link was closed meanwhile.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<LinkFrame>, LinkError> {
        self.socket.as_mut().map_or(Ok(None), |socket| socket.decode(input))
    }

    /// Whether a read would bring something.
    pub fn is_readable(&self) -> bool {
        let is_connected = !matches!(self.state.phase(), Phase::Connecting(_));
        is_connected && self.socket.as_ref().is_some_and(Socket::is_readable)
    }

    /// Whether the kernel would take bytes that wait.
    pub fn can_write_more(&self) -> bool {
        self.socket.as_ref().is_some_and(Socket::can_write_more)
    }

    /// Bytes that wait to be sent.
    pub fn output_len(&self) -> usize {
        self.socket.as_ref().map_or(0, Socket::output_len)
    }

    /// Whether bulk (UP, ANNOUNCE) may be added to the output.
    pub fn has_output_room(&self) -> bool {
        self.state.is_open() && self.output_len() < self.output_max
    }

    /// Whether this UP may be sent now: room in the output and, for a question, credit.
    pub fn has_room_for(&self, up: &Up) -> bool {
        self.has_output_room() && (!up.is_question() || self.pending.has_room(self.credit))
    }

    /// Writes an UP into the output and, if it is a question, remembers it.
    pub fn send_up(&mut self, mut up: Up) {
        let Some(socket) = &mut self.socket else { return };
        let correlation = if up.is_question() { self.pending.next_correlation() } else { 0 };
        let message = backend::Up {
            handle: up.key.as_u64(),
            command: u32::from(up.command.byte()),
            seq: if up.command == Command::Send { up.number } else { 0 },
            dup: up.is_dup,
            body: std::mem::take(&mut up.body),
        };
        link::encode(socket.output(), Kind::Up, correlation, 0, &message);
        if up.is_question() {
            up.body = message.body;
            let deadline = up.taken_at + self.up_timeout;
            self.pending.push(up, deadline);
        }
    }

    /// Writes a frame into the output, behind the outcomes that wait: what a client had acknowledged
    /// is told before its login ends.
    pub fn send<M: Message>(&mut self, kind: Kind, correlation: u64, message: &M) {
        self.send_outcomes();
        if let Some(socket) = &mut self.socket {
            link::encode(socket.output(), kind, correlation, 0, message);
        }
    }

    /// Writes a frame without a body into the output.
    pub fn send_empty(&mut self, kind: Kind, correlation: u64) {
        if let Some(socket) = &mut self.socket {
            link::encode_empty(socket.output(), kind, correlation, 0);
        }
    }

    /// Remembers a push's outcome for this turn's PUSH_RESULT.
    pub fn push_outcome(&mut self, outcome: PushOutcome) {
        self.outcomes.push(outcome);
        if self.outcomes.len() >= OUTCOMES_PER_FRAME {
            self.send_outcomes();
        }
    }

    /// Sends what waits with at most one write. Returns the bytes that went.
    pub fn flush(&mut self, now: Instant) -> Result<usize, Failure> {
        self.send_outcomes();
        let Some(socket) = &mut self.socket else { return Ok(0) };
        let written = socket.flush()?;
        if written > 0 {
            self.state.on_sent(now);
        }
        if socket.output_len() > self.output_max.saturating_mul(2) {
            return Err(Failure::Clogged(socket.output_len()));
        }
        Ok(written)
    }

    fn send_outcomes(&mut self) {
        if self.outcomes.is_empty() {
            return;
        }
        let mut result = PushResult { outcomes: std::mem::take(&mut self.outcomes) };
        if let Some(socket) = &mut self.socket {
            link::encode(socket.output(), Kind::PushResult, 0, 0, &result);
        }
        result.outcomes.clear();
        self.outcomes = result.outcomes; // its memory is for the next turn
    }
}
