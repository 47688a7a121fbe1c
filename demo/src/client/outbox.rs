//! Sends without a final answer: a queue per conversation, of which one send is under way.
//!
//! A send is repeated until it is answered for good, under the same number in the same session and under
//! the same key always. The play decides when waiting has no sense any more.

use super::{Output, Receipt, part_of};
use bytes::Bytes;
use moorline_proto::dedupe::WINDOW_FRAMES;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::{MessageKey, Seq};
use moorline_proto::message::client::{self, Code, SendAck, send};
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::sync::Arc;

/// Sends of one client without a final answer.
const SENDS_MAX: usize = 1024;
/// The application's content type of the demo's messages.
const KIND: u32 = 1;
/// Wait for an answer before the send is repeated, doubled with each repetition.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Doublings of that wait.
const DOUBLINGS_MAX: u32 = 2;
/// Wait after a RETRY that names none, and the shortest wait.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);

/// Address of a conversation in SEND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    User(Arc<str>),
    Conversation(Arc<str>),
}

/// The client has too many sends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has {SENDS_MAX} messages without an answer")]
pub(crate) struct OutboxFull;

#[derive(Debug)]
struct Entry {
    key: MessageKey,
    payload: Bytes,
    was_sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be sent now.
    Due,
    /// Sent; repeated at this time.
    Awaiting(Instant),
    /// The gateway said RETRY; repeated at this time.
    Pausing(Instant),
}

/// The head of a queue, under its number.
#[derive(Debug)]
struct Flight {
    cid: Seq,
    phase: Phase,
    /// The gateway said RETRY under this number, so the number holds no window.
    is_answered: bool,
    repeats: u32,
}

#[derive(Debug)]
struct Queue {
    target: Target,
    entries: VecDeque<Entry>,
    flight: Option<Flight>,
}

/// All queues of one client, by seat.
#[derive(Debug)]
pub(super) struct Outbox {
    queues: Vec<Queue>,
    next_cid: Seq,
    /// Sends without a final answer.
    sends: usize,
}

impl Outbox {
    pub(super) fn new(targets: impl Iterator<Item = Target>) -> Self {
        let queue = |target| Queue { target, entries: VecDeque::new(), flight: None };
        Self { queues: targets.map(queue).collect(), next_cid: 1, sends: 0 }
    }

    pub(super) fn push(&mut self, seat: usize, key: MessageKey, payload: Bytes) -> Result<(), OutboxFull> {
        if self.sends >= SENDS_MAX {
            return Err(OutboxFull);
        }
        self.sends += 1;
        self.queues[seat].entries.push_back(Entry { key, payload, was_sent: false });
        Ok(())
    }

    /// A login: a resumed session goes on with its numbers, a new one begins with 1.
    pub(super) fn handle_login(&mut self, is_resumed: bool) {
        for queue in &mut self.queues {
            if is_resumed {
                queue.flight.iter_mut().for_each(|flight| flight.phase = Phase::Due);
            } else {
                queue.flight = None;
            }
        }
        if !is_resumed {
            self.next_cid = 1;
        }
    }

    /// The next SEND that may go out.
    pub(super) fn poll_frame(&mut self, now: Instant) -> Option<Frame> {
        let is_due = |queue: &&mut Queue| queue.flight.as_ref().is_some_and(|it| it.phase == Phase::Due);
        let again = self.queues.iter_mut().filter(is_due);
        // In the order of numbers, as they went out first.
        if let Some(queue) = again.min_by_key(|queue| queue.flight.as_ref().map(|flight| flight.cid)) {
            return queue.send(now);
        }
        let unanswered = self.queues.iter().filter_map(|queue| queue.flight.as_ref());
        let oldest = unanswered.filter(|flight| !flight.is_answered).map(|flight| flight.cid).min();
        if oldest.is_some_and(|oldest| self.next_cid >= oldest.saturating_add(WINDOW_FRAMES)) {
            return None;
        }
        let mut idle = self.queues.iter_mut();
        let queue = idle.find(|queue| queue.flight.is_none() && !queue.entries.is_empty())?;
        let cid = self.next_cid;
        self.next_cid += 1;
        queue.flight = Some(Flight { cid, phase: Phase::Due, is_answered: false, repeats: 0 });
        queue.send(now)
    }

    /// A SENDACK: a final answer, or a pause. An answer to another number is dropped.
    pub(super) fn handle_ack(&mut self, now: Instant, ack: SendAck, random: &mut Random) -> Option<Output> {
        let mut queues = self.queues.iter_mut();
        let queue = queues.find(|queue| queue.flight.as_ref().is_some_and(|it| it.cid == ack.cid))?;
        let flight = queue.flight.as_mut()?;
        let code = Code::try_from(ack.code).unwrap_or(Code::Invalid);
        if code == Code::Retry {
            let named = Duration::from_millis(ack.retry_after_ms.into());
            let pause = if named.is_zero() { RETRY_AFTER } else { named.max(RETRY_AFTER_MIN) };
            flight.is_answered = true;
            flight.phase = Phase::Pausing(now + pause + part_of(pause / 4, random));
            return None;
        }
        queue.flight = None;
        let Entry { key, .. } = queue.entries.pop_front()?;
        self.sends -= 1;
        Some(match code {
            Code::Ok | Code::Dup => Output::Stored(Receipt {
                key,
                is_repeat: code == Code::Dup,
                conversation: ack.conversation,
                seq: ack.seq,
            }),
            code => {
                let why = format!("{} {}", code.as_str_name(), ack.reason);
                Output::Failed { key, why: why.trim_end().to_owned() }
            }
        })
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for flight in self.queues.iter_mut().filter_map(|queue| queue.flight.as_mut()) {
            if matches!(flight.phase, Phase::Awaiting(until) | Phase::Pausing(until) if until <= now) {
                flight.phase = Phase::Due;
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let flights = self.queues.iter().filter_map(|queue| queue.flight.as_ref());
        let time = |flight: &Flight| match flight.phase {
            Phase::Due => None,
            Phase::Awaiting(until) | Phase::Pausing(until) => Some(until),
        };
        flights.filter_map(time).min()
    }
}

impl Queue {
    /// The frame of the head, which is under way from now on.
    fn send(&mut self, now: Instant) -> Option<Frame> {
        let (flight, entry) = (self.flight.as_mut()?, self.entries.front_mut()?);
        flight.phase = Phase::Awaiting(now + ANSWER_WITHIN * (1 << flight.repeats.min(DOUBLINGS_MAX)));
        flight.repeats += 1;
        let flags = if entry.was_sent { Flags::DUP } else { Flags::default() };
        entry.was_sent = true;
        let (lane, target) = match &self.target {
            Target::User(uid) => (Lane::Chat, send::Target::User(uid.to_string())),
            Target::Conversation(id) => (Lane::Group, send::Target::Conversation(id.to_string())),
        };
        let body = client::Send {
            key: Bytes::copy_from_slice(&entry.key.0),
            r#type: KIND,
            payload: entry.payload.clone(),
            target: Some(target),
        };
        let frame = frame_of(Command::Send, &body);
        Some(frame.with_seq(flight.cid).with_lane(lane).with_flags(flags))
    }
}
