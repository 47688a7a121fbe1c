//! Sends without a final result: queued by conversation, numbered per session, tried again.
//!
//! Driven by [`Core`](super::Core). A conversation has at most one send under way, so that its order
//! holds even when the gateway says RETRY; different conversations share the uplink window.
//!
//! ```text
//!             numbered              no answer, RETRY           time
//! queued ─────────────► awaiting ────────────────────► pausing ────► again ──► awaiting
//!    ▲                     │ answer, or too often         │            │
//!    └── session lost ─────┼──────────────────────────────┴────────────┘
//!                          ▼
//!                    final result
//! ```

use super::Tuning;
use super::backoff::part_of;
use super::event::{Event, Receipt, SendFailure, SendId, SendRefused, Target};
use super::limits;
use super::output::Outputs;
use bytes::Bytes;
use moorline_proto::dedupe::WINDOW_FRAMES;
use moorline_proto::frame::compress::{ACCEPT_LZ4, try_compress};
use moorline_proto::frame::{BODY_BYTES_CEILING, BODY_BYTES_MAX, Command, Flags, Frame, Lane};
use moorline_proto::ids::{MessageKey, Seq};
use moorline_proto::message::client::{self, Code, SendAck, Welcome, send};
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Tries after the first one that had no answer.
const TIMEOUTS_MAX: u8 = 3;
/// The wait before such a try, doubled each time.
const TIMEOUT_PAUSE: Duration = Duration::from_secs(1);
/// The wait after a RETRY that names none, and the shortest one.
const RETRY_PAUSE_DEFAULT: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: SendId,
    pub(super) key: MessageKey,
    pub(super) target: Target,
    pub(super) kind: u32,
    pub(super) payload: Bytes,
    /// Time online that RETRYs have cost it.
    pub(super) put_off: Duration,
    pub(super) was_sent: bool,
}

impl Entry {
    fn body(&self) -> client::Send {
        let target = match &self.target {
            Target::User(uid) => send::Target::User(uid.to_string()),
            Target::Conversation(id) => send::Target::Conversation(id.to_string()),
        };
        client::Send {
            key: Bytes::copy_from_slice(&self.key.0),
            r#type: self.kind,
            payload: self.payload.clone(),
            target: Some(target),
        }
    }

    fn failed(&self, failure: SendFailure) -> Event {
        Event::SendFailed { id: self.id, key: self.key, failure }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Awaiting,
    Pausing,
    Again,
}

/// The head of one conversation's queue, under its cid.
#[derive(Debug)]
struct Flight {
    conversation: Arc<str>,
    phase: Phase,
    sent_at: Instant,
    until: Instant,
    /// The gateway has answered this cid (with RETRY), so it does not hold the window back.
    is_answered: bool,
    timeouts: u8,
}

/// The uplink of a login, from WELCOME.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uplink {
    pub(super) window: u32,
    pub(super) body_max: usize,
    /// The gateway undoes LZ4 [P-1.9].
    pub(super) accepts_lz4: bool,
}

impl Uplink {
    /// The limits before the first login.
    pub(super) const DEFAULT: Self =
        Self { window: 0, body_max: BODY_BYTES_MAX as usize, accepts_lz4: false };

    pub(super) fn new(welcome: &Welcome) -> Self {
        let body_max = if welcome.body_max == 0 { BODY_BYTES_MAX } else { welcome.body_max };
        Self {
            window: welcome.uplink_window,
            body_max: body_max.min(BODY_BYTES_CEILING) as usize,
            accepts_lz4: welcome.accept & ACCEPT_LZ4 != 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Outbox {
    tuning: Arc<Tuning>,
    queues: BTreeMap<Arc<str>, VecDeque<Entry>>,
    /// Conversations with a queue and nothing under way, longest waiting first.
    ready: VecDeque<Arc<str>>,
    flights: BTreeMap<Seq, Flight>,
    next_cid: Seq,
    last_id: u64,
    sends: usize,
    bytes: usize,
}

impl Outbox {
    pub(super) fn new(tuning: Arc<Tuning>) -> Self {
        Self {
            tuning,
            queues: BTreeMap::new(),
            ready: VecDeque::new(),
            flights: BTreeMap::new(),
            next_cid: 1,
            last_id: 0,
            sends: 0,
            bytes: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.sends
    }

    /// A message under the next id; [`Self::push`] takes it.
    pub(super) const fn entry(&self, key: MessageKey, target: Target, kind: u32, payload: Bytes) -> Entry {
        let id = SendId(self.last_id + 1);
        Entry { id, key, target, kind, payload, put_off: Duration::ZERO, was_sent: false }
    }

    /// True if there is room for this message.
    pub(super) fn judge(&self, entry: &Entry, body_max: usize) -> Result<(), SendRefused> {
        let bytes = prost::Message::encoded_len(&entry.body());
        if bytes > body_max {
            return Err(SendRefused::TooLarge { bytes, bytes_max: body_max });
        }
        let is_full = self.sends >= self.tuning.outbox_sends_max
            || self.bytes + entry.payload.len() > self.tuning.outbox_bytes_max;
        if is_full {
            return Err(SendRefused::OutboxFull { sends: self.sends, bytes: self.bytes });
        }
        Ok(())
    }

    /// Takes a message of the user `me`.
    pub(super) fn push(&mut self, me: &str, entry: Entry, body_max: usize) -> Result<SendId, SendRefused> {
        self.judge(&entry, body_max)?;
        let id = entry.id;
        self.last_id = id.0;
        self.sends += 1;
        self.bytes += entry.payload.len();
        let conversation = entry.target.conversation(me);
        let queue = self.queues.entry(Arc::clone(&conversation)).or_default();
        queue.push_back(entry);
        if queue.len() == 1 {
            self.ready.push_back(conversation);
        }
        Ok(id)
    }

    /// A login: the same session goes on with its cids, a new one starts from 1 in the same order.
    pub(super) fn on_login(&mut self, is_resumed: bool) {
        if is_resumed {
            for flight in self.flights.values_mut() {
                flight.phase = Phase::Again;
            }
            return;
        }
        for flight in std::mem::take(&mut self.flights).into_values().rev() {
            self.ready.push_front(flight.conversation);
        }
        self.next_cid = 1;
    }

    /// The next SEND that may go out now.
    pub(super) fn poll_frame(
        &mut self,
        now: Instant,
        uplink: Uplink,
        outputs: &mut Outputs,
    ) -> Option<Frame> {
        let again = self.flights.iter().find(|(_, flight)| flight.phase == Phase::Again);
        if let Some(cid) = again.map(|(cid, _)| *cid) {
            return Some(self.send_head(now, cid, uplink));
        }
        while self.has_window(uplink.window) {
            let conversation = self.ready.pop_front()?;
            let head = self.head(&conversation);
            if prost::Message::encoded_len(&head.body()) > uplink.body_max {
                let reason = format!("over the gateway's limit of {} bytes", uplink.body_max);
                let failure = SendFailure::Refused { code: Code::TooLarge, reason };
                let entry = self.take_head(conversation);
                outputs.push(entry.failed(failure));
                continue;
            }
            let cid = self.next_cid;
            self.next_cid += 1;
            let flight = Flight {
                conversation,
                phase: Phase::Again,
                sent_at: now,
                until: now,
                is_answered: false,
                timeouts: 0,
            };
            self.flights.insert(cid, flight);
            return Some(self.send_head(now, cid, uplink));
        }
        None
    }

    fn has_window(&self, window: u32) -> bool {
        let window = if window == 0 { WINDOW_FRAMES } else { window.min(WINDOW_FRAMES) };
        let oldest = self.flights.iter().find(|(_, flight)| !flight.is_answered);
        let oldest = oldest.map_or(self.next_cid, |(cid, _)| *cid);
        self.flights.len() < window as usize && self.next_cid < oldest.saturating_add(window)
    }

    fn send_head(&mut self, now: Instant, cid: Seq, uplink: Uplink) -> Frame {
        let flight = self.flights.get_mut(&cid).expect("asked for a cid under way");
        flight.phase = Phase::Awaiting;
        flight.sent_at = now;
        flight.until = now + self.tuning.send_timeout;
        let queue = self.queues.get_mut(&flight.conversation).expect("a flight has its queue");
        let head = queue.front_mut().expect("a queue is never empty");
        let flags = if head.was_sent { Flags::DUP } else { Flags::default() };
        head.was_sent = true;
        let lane = match head.target {
            Target::User(_) => Lane::Chat,
            Target::Conversation(_) => Lane::Group,
        };
        let frame = frame_of(Command::Send, &head.body());
        let is_long = frame.body.len() >= self.tuning.compress_min && self.tuning.compress_min > 0;
        let packed = if is_long && uplink.accepts_lz4 { try_compress(&frame.body) } else { None };
        let (frame, flags) = match packed {
            Some(packed) => (Frame::new(Command::Send, packed), flags.with(Flags::COMPRESSED)),
            None => (frame, flags),
        };
        frame.with_seq(cid).with_lane(lane).with_flags(flags)
    }

    /// A SENDACK: a final result, or a pause. An answer to a cid that is not under way is dropped.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        ack: SendAck,
        random: &mut Random,
        outputs: &mut Outputs,
    ) {
        let Some(flight) = self.flights.get_mut(&ack.cid) else { return };
        let code = Code::try_from(ack.code).unwrap_or(Code::Invalid);
        if code == Code::Retry {
            flight.is_answered = true;
            let named = limits::pause(ack.retry_after_ms);
            let pause = if named.is_zero() { RETRY_PAUSE_DEFAULT } else { named.max(RETRY_PAUSE_MIN) };
            let pause = pause + part_of(pause / 4, random);
            let cost = now.saturating_since(flight.sent_at) + pause;
            (flight.phase, flight.until) = (Phase::Pausing, now + pause);
            let queue = self.queues.get_mut(&flight.conversation).expect("a flight has its queue");
            let head = queue.front_mut().expect("a queue is never empty");
            head.put_off += cost;
            if head.put_off > self.tuning.send_retry_for {
                let entry = self.finish(ack.cid);
                outputs.push(entry.failed(SendFailure::PutOff));
            }
            return;
        }
        let entry = self.finish(ack.cid);
        outputs.push(match code {
            Code::Ok | Code::Dup => Event::Sent(Receipt {
                id: entry.id,
                key: entry.key,
                is_repeat: code == Code::Dup,
                message_id: ack.message_id,
                conversation: ack.conversation.into(),
                seq: ack.seq,
                time_ms: ack.time_ms,
            }),
            code => entry.failed(SendFailure::Refused { code, reason: limits::reason(ack.reason) }),
        });
    }

    /// Ends pauses and times out answers.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        random: &mut Random,
        outputs: &mut Outputs,
    ) -> Expiry {
        let mut expiry = Expiry::Fine;
        let mut given_up = Vec::new();
        for (cid, flight) in &mut self.flights {
            match flight.phase {
                Phase::Again => {}
                _ if flight.until > now => {}
                Phase::Pausing => flight.phase = Phase::Again,
                Phase::Awaiting if flight.timeouts >= TIMEOUTS_MAX => given_up.push(*cid),
                Phase::Awaiting => {
                    expiry = Expiry::Late;
                    let pause = TIMEOUT_PAUSE * (1 << flight.timeouts);
                    flight.timeouts += 1;
                    (flight.phase, flight.until) = (Phase::Pausing, now + part_of(pause, random));
                }
            }
        }
        for cid in given_up {
            let entry = self.finish(cid);
            outputs.push(entry.failed(SendFailure::Unanswered));
            expiry = Expiry::Stuck;
        }
        expiry
    }

    /// Next deadline; only while logged in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timed = self.flights.values().filter(|flight| flight.phase != Phase::Again);
        timed.map(|flight| flight.until).min()
    }

    /// Everything without a result fails.
    pub(super) fn close(&mut self, outputs: &mut Outputs) {
        self.flights.clear();
        self.ready = VecDeque::new();
        let mut left: Vec<Entry> = std::mem::take(&mut self.queues).into_values().flatten().collect();
        left.sort_by_key(|entry| entry.id);
        left.iter().for_each(|entry| outputs.push(entry.failed(SendFailure::Closed)));
        (self.sends, self.bytes) = (0, 0);
    }

    fn head(&self, conversation: &Arc<str>) -> &Entry {
        let queue = self.queues.get(conversation).expect("a ready conversation has its queue");
        queue.front().expect("a queue is never empty")
    }

    fn finish(&mut self, cid: Seq) -> Entry {
        let flight = self.flights.remove(&cid).expect("finished once");
        self.take_head(flight.conversation)
    }

    fn take_head(&mut self, conversation: Arc<str>) -> Entry {
        let queue = self.queues.get_mut(&conversation).expect("a flight has its queue");
        let entry = queue.pop_front().expect("a queue is never empty");
        if queue.is_empty() {
            self.queues.remove(&conversation);
        } else {
            self.ready.push_back(conversation);
        }
        self.sends -= 1;
        self.bytes -= entry.payload.len();
        entry
    }
}

/// Sends that timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// Nothing that concerns the connection.
    Fine,
    /// An answer is late: is the gateway alive?
    Late,
    /// A cid was never answered: this session is of no more use.
    Stuck,
}
