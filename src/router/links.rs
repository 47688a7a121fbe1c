//! The links of one router: phase, credit, questions and buffered bytes of each. Pure.
//!
//! Run-through: a link is due, so its state becomes `Connecting` and the owner is asked to connect. The owner
//! reports the connection, so HELLO is encoded into the link's output. The backend's HELLO arrives as bytes and
//! opens the link: from then on UPs are appended to the output as far as credit and room allow, and the owner
//! writes that output once per turn.

use super::greeting::Greeting;
use super::{
    Backoff, Confirmed, End, Failure, LinkIndex, LinkState, LinkTimes, Pending, Phase, Slot, Split, Taken, Up,
};
use crate::messages::PushRef;
use crate::snapshot::{LinkRecord, ParkedRecord};
use bytes::{Buf, Bytes, BytesMut};
use moorline_proto::frame::Command;
use moorline_proto::link::{self, Endpoint, Kind, LinkDecoder, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, ConnDown, LinkHello, PushOutcome, PushResult};
use moorline_proto::random::Random;
use moorline_proto::slots::{NodeId, node_of};
use moorline_proto::time::{Duration, Instant};
use prost::Message;
use std::ops::{Index, IndexMut};

/// Unanswered UPs on a link whose backend has not said how many it accepts.
const CREDIT_DEFAULT: usize = 256;
/// Largest credit that a backend can grant.
const CREDIT_MAX: usize = 1 << 16;
/// Push outcomes in one PUSH_RESULT.
const OUTCOMES_PER_FRAME: usize = 4096;
/// A timed out UP holds its credit for this many more timeouts before it is forgotten.
const FORGET_TIMEOUTS: u32 = 10;
/// Questions without an answer that may keep the read blocks of their clients in memory; more have copies.
const SLICES_MAX: usize = 256;
/// An empty output buffer with a larger capacity is freed, in bytes.
const OUTPUT_KEEP_BYTES: usize = 256 << 10;

/// Settings that all links of a router share.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// The gateway's first frame.
    pub hello: LinkHello,
    /// Times of the state machine.
    pub times: LinkTimes,
    /// Longest first delay before a reconnect.
    pub reconnect_min: Duration,
    /// Longest delay before a reconnect.
    pub reconnect_max: Duration,
    /// Time after which an unanswered UP is answered RETRY.
    pub up_timeout: Duration,
    /// Waiting output bytes above which no UP and no ANNOUNCE is added; at twice this number the link is closed,
    /// because the backend does not read.
    pub output_max: usize,
    /// Bytes of the bodies of questions without an answer, above which no question is added. One is always allowed.
    pub pending_bytes: usize,
    /// Bytes of a body that clients accept; a longer one is not sent to them.
    pub body_max: usize,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    /// Phase, generation and times.
    pub(super) state: LinkState,
    /// UPs without an answer.
    pub(super) pending: Pending<Up>,
    /// Frames of the connection that the backend has read for certain.
    pub(super) confirmed: Confirmed,
    /// State of the greeting; `None`: the link is open, or has no connection.
    pub(super) greeting: Option<Greeting>,
    /// The connection is encrypted.
    pub(super) is_encrypted: bool,
    /// The backend knows the outcome TOO_LARGE.
    pub(super) knows_too_large: bool,
    /// Store of the backend, as its HELLO named it; empty: it named none.
    pub(super) store: Bytes,
    /// Node of a cluster at the other end, by its HELLO.
    pub(super) node: Option<NodeId>,
    split: Split,
    endpoint: Endpoint,
    /// Place and generation in the process before; `None`: the same as now, or another connection.
    earlier_name: Option<(u16, u32)>,
    output: BytesMut,
    decoder: LinkDecoder,
    credit: usize,
    outcomes: Vec<PushOutcome>,
    up_timeout: Duration,
    output_max: usize,
    /// Bodies of [`Self::pending`], in bytes.
    pending_bytes: usize,
    pending_bytes_max: usize,
}

impl Link {
    /// A closed link whose first try is due at once.
    pub(super) fn new(endpoint: Endpoint, settings: &LinkSettings, split: Split) -> Self {
        let backoff = Backoff::new(settings.reconnect_min, settings.reconnect_max);
        Self {
            state: LinkState::new(settings.times, backoff),
            pending: Pending::new(settings.up_timeout.saturating_mul(FORGET_TIMEOUTS)),
            confirmed: Confirmed::new(split),
            greeting: None,
            is_encrypted: false,
            knows_too_large: false,
            store: Bytes::new(),
            node: None,
            split,
            endpoint,
            earlier_name: None,
            output: BytesMut::new(),
            decoder: LinkDecoder::greeting(),
            credit: CREDIT_DEFAULT,
            outcomes: Vec::new(),
            up_timeout: settings.up_timeout,
            output_max: settings.output_max,
            pending_bytes: 0,
            pending_bytes_max: settings.pending_bytes,
        }
    }

    /// Writes an open link down, except for its socket; `None`: nothing of it can go on elsewhere.
    pub(super) fn freeze(&mut self) -> Option<LinkRecord> {
        self.send_outcomes();
        let Self {
            state,
            pending,
            confirmed,
            greeting: _,
            is_encrypted: _, // its layer goes with its socket
            knows_too_large,
            store,
            node,
            split: _,
            endpoint: _,
            earlier_name: _, // a second hot restart forgets it: those outcomes are dropped
            output,
            decoder,
            credit,
            outcomes: _,
            up_timeout: _,
            output_max: _,
            pending_bytes: _,
            pending_bytes_max: _,
        } = self;
        let mut record = LinkRecord {
            credit: u32::try_from(*credit).expect("at most CREDIT_MAX"),
            output: Bytes::copy_from_slice(output),
            partial: Bytes::copy_from_slice(decoder.partial()),
            base: pending.freeze().0,
            barriers: confirmed.barriers(),
            knows_too_large: *knows_too_large,
            store: store.clone(),
            cluster_node: node.map_or(0, |node| u32::from(node.0) + 1),
            ends: confirmed.ends().map(ParkedRecord::from).collect(),
            ..LinkRecord::default()
        };
        state.freeze(&mut record)?;
        Some(record)
    }

    /// Continues a link that [`Self::freeze`] wrote. False: the bytes that were read are not a link frame.
    #[must_use]
    pub(super) fn thaw(&mut self, record: &LinkRecord, pending: Vec<(Option<Up>, Instant)>) -> bool {
        let ends = record.ends.iter().filter_map(End::thaw);
        self.output.extend_from_slice(&record.output);
        self.pending_bytes = pending.iter().filter_map(|(up, _)| Some(up.as_ref()?.body.len())).sum();
        self.state.thaw(record);
        self.credit = (record.credit as usize).min(CREDIT_MAX);
        self.pending = Pending::thaw(self.up_timeout.saturating_mul(FORGET_TIMEOUTS), record.base, pending);
        self.confirmed = Confirmed::thaw(self.split, self.pending.next_correlation(), record.barriers, ends);
        self.knows_too_large = record.knows_too_large;
        self.store = record.store.clone();
        self.node = node_of(record.cluster_node).unwrap_or_default();
        self.is_encrypted = record.layer.is_some();
        self.decoder.open();
        matches!(self.decoder.decode(&mut Bytes::copy_from_slice(&record.partial)), Ok(None))
    }

    /// The endpoint.
    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Gives a link that has no connection another endpoint.
    pub(super) fn set_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoint = endpoint;
    }

    /// Notes that the link had another place in the process before. References of that process still lead to it, and its
    /// own ones have a generation that none of those has.
    pub(super) fn rename(&mut self, place: u16, now: Instant) {
        self.earlier_name = Some((place, self.state.generation()));
        self.state.begin_after(now);
    }

    /// Drops everything that was meant for the connection. Unanswered UPs stay in [`Self::pending`]. Returns the
    /// delay before the next try.
    pub(super) fn close(&mut self, now: Instant, random: &mut Random) -> Duration {
        self.output = BytesMut::new();
        self.earlier_name = None;
        self.decoder = LinkDecoder::greeting();
        (self.greeting, self.knows_too_large, self.store) = (None, false, Bytes::new());
        self.node = None;
        self.is_encrypted = false;
        self.outcomes = Vec::new();
        self.confirmed = Confirmed::new(self.split);
        self.credit = CREDIT_DEFAULT;
        self.state.on_failed(now, random)
    }

    /// The backend's HELLO is in order.
    pub(super) const fn open(&mut self, now: Instant) {
        self.decoder.open();
        self.state.on_hello(now);
    }

    /// Notes the credit that any frame may carry.
    pub(super) fn handle_credit(&mut self, credit: u32) {
        if credit > 0 {
            self.credit = (credit as usize).min(CREDIT_MAX);
        }
    }

    /// Decodes the next whole frame of `input`. Returns `None` as well if the link was closed meanwhile.
    pub(super) fn decode(&mut self, input: &mut Bytes) -> Result<Option<LinkFrame>, LinkError> {
        if self.is_connected() { self.decoder.decode(input) } else { Ok(None) }
    }

    /// True if bytes can be exchanged.
    pub(super) const fn is_connected(&self) -> bool {
        !matches!(self.state.phase(), Phase::Waiting(_) | Phase::Connecting(_))
    }

    /// Bytes that wait to be sent.
    pub(super) fn output(&self) -> &[u8] {
        &self.output
    }

    /// True if bulk (UP, ANNOUNCE) may be added to the output.
    pub(super) fn has_output_room(&self) -> bool {
        self.state.is_open() && self.output.len() < self.output_max
    }

    /// True if this UP may be sent now: there is room in the output and, for a question, credit.
    pub(super) fn has_room_for(&self, up: &Up) -> bool {
        self.has_output_room() && (!up.is_question() || self.has_room_for_question(up.body.len()))
    }

    fn has_room_for_question(&self, bytes: usize) -> bool {
        let is_within = self.pending_bytes + bytes <= self.pending_bytes_max;
        self.pending.has_room(self.credit) && (is_within || self.pending_bytes == 0)
    }

    /// Bodies of the questions without an answer, in bytes.
    pub(super) const fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Settles a question.
    pub(super) fn take_question(&mut self, correlation: u64) -> Taken<Up> {
        let taken = self.pending.take(correlation);
        if let Taken::Answered(up) = &taken {
            self.pending_bytes -= up.body.len();
        }
        taken
    }

    /// Gives every question whose time is up to `on_timeout`, in order.
    pub(super) fn expire_questions(&mut self, now: Instant, mut on_timeout: impl FnMut(Up)) {
        let bytes = &mut self.pending_bytes;
        self.pending.expire(now, |up| {
            *bytes -= up.body.len();
            on_timeout(up);
        });
    }

    /// Takes all questions that wait, in order.
    pub(super) fn drain_questions(&mut self) -> Vec<Up> {
        self.pending_bytes = 0;
        self.pending.drain_waiting()
    }

    /// Takes questions back that another link will ask, in order. Their answers, which may still come, are late.
    pub(super) fn take_back_questions(&mut self, now: Instant, is_wanted: impl Fn(&Up) -> bool) -> Vec<Up> {
        let taken = self.pending.take_back(now, is_wanted);
        self.pending_bytes -= taken.iter().map(|up| up.body.len()).sum::<usize>();
        taken
    }

    /// Encodes an UP into the output; a question is remembered until it is answered.
    pub(super) fn send_up(&mut self, mut up: Up) {
        if !self.is_connected() {
            return;
        }
        self.note_sent(up.slot);
        let correlation = if up.is_question() { self.pending.next_correlation() } else { 0 };
        let message = backend::Up {
            handle: up.key.as_u64(),
            command: u32::from(up.command.byte()),
            seq: if up.command == Command::Send { up.number } else { 0 },
            dup: up.is_dup,
            body: std::mem::take(&mut up.body),
        };
        link::encode(&mut self.output, Kind::Up, correlation, 0, &message);
        if up.is_question() {
            up.body = message.body;
            self.pending_bytes += up.body.len();
            if self.pending.len() > SLICES_MAX {
                up.own_body();
            }
            let deadline = up.taken_at + self.up_timeout;
            self.pending.push(up, deadline);
        }
    }

    /// Notes that a frame of this slot is sent now.
    pub(super) fn note_sent(&mut self, slot: Slot) {
        self.confirmed.on_sent(slot, self.pending.next_correlation());
    }

    /// Asks the backend to confirm that it has read everything so far, unless it is asked already.
    pub(super) fn send_barrier(&mut self) {
        if self.has_output_room()
            && let Some(number) = self.confirmed.next_barrier()
        {
            self.send_empty(Kind::Ping, number);
        }
    }

    /// Asks the backend for a sign of life: a barrier, or a PING of number 0 while a barrier is under way.
    pub(super) fn send_ping(&mut self) {
        let number = if self.state.is_open() { self.confirmed.next_barrier() } else { None };
        self.send_empty(Kind::Ping, number.unwrap_or(0));
    }

    /// True if the end of a login may be sent now.
    pub(super) fn has_room_for_end(&self) -> bool {
        self.has_output_room() && self.confirmed.has_room_for_end()
    }

    /// Encodes the end of a login, which is remembered until the backend has read it.
    pub(super) fn send_end(&mut self, end: End) {
        self.confirmed.on_end(end, self.pending.next_correlation());
        let End { key, code, .. } = end;
        self.send(Kind::ConnDown, 0, &ConnDown { handle: key.as_u64(), code });
        if self.confirmed.wants_barrier() {
            self.send_barrier();
        }
    }

    /// Encodes a frame into the output, behind the outcomes that wait: the backend hears of a client's
    /// acknowledgement before it hears of the end of the client's login.
    pub(super) fn send<M: Message>(&mut self, kind: Kind, correlation: u64, message: &M) {
        self.send_outcomes();
        if self.is_connected() {
            link::encode(&mut self.output, kind, correlation, 0, message);
        }
    }

    /// Encodes a frame without a body into the output.
    pub(super) fn send_empty(&mut self, kind: Kind, correlation: u64) {
        if self.is_connected() {
            link::encode_empty(&mut self.output, kind, correlation, 0);
        }
    }

    /// Remembers a push's outcome for this turn's PUSH_RESULT.
    pub(super) fn push_outcome(&mut self, outcome: PushOutcome) {
        self.outcomes.push(outcome);
        if self.outcomes.len() >= OUTCOMES_PER_FRAME {
            self.send_outcomes();
        }
    }

    /// Encodes the outcomes that wait.
    pub(super) fn send_outcomes(&mut self) {
        if self.outcomes.is_empty() {
            return;
        }
        let mut result = PushResult { outcomes: std::mem::take(&mut self.outcomes) };
        if self.is_connected() {
            link::encode(&mut self.output, Kind::PushResult, 0, 0, &result);
        }
        result.outcomes.clear();
        self.outcomes = result.outcomes; // its memory is for the next turn
    }

    /// The owner has sent the first `sent` bytes of the output.
    ///
    /// # Errors
    /// [`Failure::Clogged`]: too many bytes wait.
    pub(super) fn handle_sent(&mut self, now: Instant, sent: usize) -> Result<(), Failure> {
        if sent > 0 {
            self.output.advance(sent);
            self.state.on_sent(now);
        }
        if self.output.is_empty() && self.output.capacity() > OUTPUT_KEEP_BYTES {
            self.output = BytesMut::new();
        }
        if self.output.len() > self.output_max.saturating_mul(2) {
            return Err(Failure::Clogged(self.output.len()));
        }
        Ok(())
    }
}

/// All links of one router.
#[derive(Debug)]
pub(super) struct Links(Vec<Link>);

impl Links {
    /// `each` closed links to every endpoint. Panics above 65,535 links.
    pub(super) fn new(endpoints: &[Endpoint], each: usize, settings: &LinkSettings, split: Split) -> Self {
        let places = endpoints.iter().flat_map(|endpoint| std::iter::repeat_n(endpoint.clone(), each));
        let links: Vec<Link> = places.map(|endpoint| Link::new(endpoint, settings, split)).collect();
        assert!(u16::try_from(links.len()).is_ok(), "a router has at most 65,535 links");
        Self(links)
    }

    /// Adds `each` closed links to an endpoint. False: a router has at most 65,535 links.
    pub(super) fn add(
        &mut self,
        endpoint: &Endpoint,
        each: usize,
        settings: &LinkSettings,
        split: Split,
    ) -> bool {
        if u16::try_from(self.0.len() + each).is_err() {
            return false;
        }
        self.0.extend(std::iter::repeat_with(|| Link::new(endpoint.clone(), settings, split)).take(each));
        true
    }

    /// The place of every link.
    pub(super) fn indices(&self) -> impl Iterator<Item = LinkIndex> + use<> {
        (0..u16::try_from(self.0.len()).expect("checked at start")).map(LinkIndex)
    }

    /// The link that a push or a question came from, while the connection is the same.
    pub(super) fn of(&mut self, ticket: &PushRef) -> Option<&mut Link> {
        let name = (ticket.link, ticket.link_generation);
        let at = usize::from(ticket.link);
        let is_here = |link: &Link| link.state.generation() == ticket.link_generation && link.state.is_open();
        if self.0.get(at).is_some_and(is_here) {
            return self.0.get_mut(at);
        }
        self.0.iter_mut().find(|link| link.earlier_name == Some(name) && link.state.is_open())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.0.iter_mut()
    }

    /// Earliest time at which a link has something to do.
    pub(super) fn next_deadline(&self) -> Instant {
        let deadline = |link: &Link| link.state.next_deadline().min(link.pending.next_deadline());
        self.0.iter().map(deadline).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl Index<LinkIndex> for Links {
    type Output = Link;
    fn index(&self, index: LinkIndex) -> &Link {
        &self.0[index.index()]
    }
}

impl IndexMut<LinkIndex> for Links {
    fn index_mut(&mut self, index: LinkIndex) -> &mut Link {
        &mut self.0[index.index()]
    }
}
