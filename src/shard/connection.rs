//! One socket's protocol state. An idle connection takes these 40 bytes and nothing on the heap.

use super::bucket::{Fill, Spent, Stamp};
use super::outbound::Outbound;
use super::session::Session;
use crate::snapshot::{ConnectionRecord, Records, Section, SnapshotError, StateRecord};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::frame::Decoder;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::wheel::TimerKey;

/// Number of no session.
pub(super) const NO_SESSION: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    /// Tells whether [`super::Output::Write`] was emitted and not yet answered by a write.
    pub(super) is_write_due: bool,
    /// Interval at which the client promised to send, in seconds.
    pub(super) heartbeat_s: u16,
    /// Slot of the session; [`NO_SESSION`]: not logged in.
    pub(super) session: u32,
    pub(super) generation: u32,
    /// The one entry in the wheel.
    pub(super) timer: TimerKey,
    /// While logged in, the time of the last received bytes; else, the time when the state began. Both facts
    /// share four bytes, so they are read by name: [`Self::last_rx`], [`Self::state_since`].
    since: Stamp,
    /// Frames spent of the client's rate limit, as of [`Self::last_rx`].
    pub(super) spent: Spent,
    pub(super) decoder: Decoder,
    /// Frames that wait to be written; `None`: there are none.
    pub(super) outbound: Option<Box<Outbound>>,
}

impl Connection {
    /// A connection that was accepted at `now`.
    pub(super) fn new(generation: u32, timer: TimerKey, now: Instant) -> Self {
        Self {
            state: State::AwaitHello,
            is_write_due: false,
            heartbeat_s: 0,
            session: NO_SESSION,
            generation,
            timer,
            since: Stamp::of(now),
            spent: Spent::default(),
            decoder: Decoder::new(),
            outbound: None,
        }
    }

    /// Goes to a state that begins now.
    pub(super) const fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = Stamp::of(now);
    }

    /// Notes that a logged-in client sent bytes, or could not send while its socket was not read.
    pub(super) fn note_rx(&mut self, fill: Fill, now: Instant) {
        self.spent.refill(fill, self.since, now);
        self.since = Stamp::of(now);
    }

    /// Time of the last bytes from a logged-in client.
    pub(super) const fn last_rx(&self, now: Instant) -> Instant {
        self.since.before(now)
    }

    /// Time when the state of a connection that is not logged in began.
    pub(super) const fn state_since(&self, now: Instant) -> Instant {
        self.since.before(now)
    }

    /// Returns whether the connection was detached at `time` and still is.
    pub(super) fn is_detached_since(&self, time: Instant) -> bool {
        self.state == State::Detached && self.since == Stamp::of(time)
    }

    /// Memory that unfinished frames, and frames that wait for their turn, take.
    pub(super) fn held_bytes(&self) -> usize {
        self.decoder.held_bytes()
    }

    /// Time when the unfinished frame began; `None`: none is unfinished, or it waits for its turn.
    pub(super) fn frame_began(&self, now: Instant) -> Option<Instant> {
        let mark = self.decoder.marked();
        (mark != 0).then(|| Stamp::from_ticks(mark).before(now))
    }

    /// Notes the time of an unfinished frame's first bytes. True: it has just begun.
    pub(super) fn note_unfinished(&mut self, now: Instant) -> bool {
        let Some(mark @ 0) = self.decoder.mark() else { return false };
        *mark = Stamp::of(now).ticks().max(1);
        true
    }

    /// Bytes that wait to be written.
    pub(super) fn unsent(&self) -> usize {
        self.outbound.as_ref().map_or(0, |outbound| outbound.bytes())
    }

    /// Interval at which the client promised to send.
    pub(super) const fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_s as u64)
    }

    /// Writes the connection and its session.
    pub(super) fn freeze(
        &self,
        key: ConnKey,
        session: Option<&Session>,
        fires_at: Instant,
        out: &mut Section,
    ) -> ConnectionRecord {
        let Self {
            state,
            is_write_due: _,
            heartbeat_s,
            session: _,
            generation: _,
            timer: _,
            since,
            spent,
            decoder,
            outbound,
        } = self;
        let (outbound, head_sent) =
            outbound.as_ref().map_or((Vec::new(), 0), |outbound| outbound.freeze(out));
        let (partial_head, partial) = match decoder.copied_partial().filter(|(head, _)| out.has_stored(head))
        {
            Some((head, rest)) => (out.body(head), rest),
            None => (0, decoder.partial()),
        };
        ConnectionRecord {
            key: key.as_u64(),
            state: StateRecord::from(*state).into(),
            heartbeat_s: u32::from(*heartbeat_s),
            heard: since.ticks(),
            spent: spent.parts(),
            timer: fires_at.as_nanos(),
            partial: Bytes::copy_from_slice(partial),
            partial_head,
            outbound,
            head_sent,
            session: session.map(|session| session.freeze(out)),
        }
    }

    /// Reads a connection, without its session.
    pub(super) fn thaw(
        record: &ConnectionRecord,
        timer: TimerKey,
        now: Instant,
        from: &Records,
    ) -> Result<Self, SnapshotError> {
        let head = from.body(record.partial_head)?;
        // Of a client that is not read for a while, nobody has judged these bytes: garbage ends its connection alone, later.
        let mut decoder = Decoder::new();
        decoder.hold_first(&head); // in memory of its own
        decoder.hold(&mut record.partial.clone());
        if let Some(mark) = decoder.mark() {
            *mark = Stamp::of(now).ticks();
        }
        let outbound = if record.outbound.is_empty() {
            None
        } else {
            Some(Box::new(Outbound::thaw(&record.outbound, record.head_sent, from)?))
        };
        Ok(Self {
            state: State::from(record.state()),
            is_write_due: false,
            heartbeat_s: u16::try_from(record.heartbeat_s).unwrap_or(u16::MAX),
            session: NO_SESSION,
            generation: ConnKey::from_u64(record.key).generation(),
            timer,
            since: Stamp::from_ticks(record.heard),
            spent: Spent::from_parts(record.spent),
            decoder,
            outbound,
        })
    }
}

const _: () = assert!(size_of::<Connection>() <= 40, "memory per idle connection is what we are chosen for");
