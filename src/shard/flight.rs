//! Reliable frames toward one session: what is in flight, and what waits for room.

use crate::handoff::PushTicket;
use bytes::Bytes;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::Seq;
use moorline_proto::time::Duration;
use moorline_proto::time::Instant;
use moorline_proto::window::{Window, WindowLimits};
use std::collections::VecDeque;

/// How long a probe's answer may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// One push toward one session.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) ticket: Option<PushTicket>,
    pub(super) command: Command,
    pub(super) lane: Lane,
    pub(super) expires_at: Instant,
    pub(super) body: Bytes,
}

/// Exists only while a session has reliable frames outstanding.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) window: Window<Parcel>,
    waiting: VecDeque<Parcel>,
    waiting_bytes: usize,
    /// Overdue acks asked for since the last ack.
    pub(super) probes: u8,
}

impl Flight {
    pub(super) fn new(limits: WindowLimits, next: Seq) -> Self {
        Self { window: Window::new(limits, next), waiting: VecDeque::new(), waiting_bytes: 0, probes: 0 }
    }

    pub(super) fn wait(&mut self, parcel: Parcel) {
        self.waiting_bytes += parcel.body.len();
        self.waiting.push_back(parcel);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty() && self.waiting.is_empty()
    }

    /// The next frame that may be sent now, or a parcel that waited too long.
    pub(super) fn next(&mut self, now: Instant) -> Option<Result<Frame, Parcel>> {
        let head = self.waiting.front()?;
        let bytes = u32::try_from(head.body.len()).unwrap_or(u32::MAX);
        let is_expired = head.expires_at < now;
        if !is_expired && !self.window.has_room(bytes) {
            return None;
        }
        let parcel = self.waiting.pop_front()?;
        self.waiting_bytes -= parcel.body.len();
        if is_expired {
            return Some(Err(parcel));
        }
        let frame = Frame::new(parcel.command, parcel.body.clone()).with_lane(parcel.lane);
        let seq = self.window.push(parcel, bytes, now);
        // Whoever fills the window does not wait for the client's own rhythm of acks.
        let flags = if self.window.has_room(bytes) { Flags::default() } else { Flags::ACK_REQ };
        Some(Ok(frame.with_seq(seq).with_flags(flags)))
    }

    pub(super) fn can_resume(&self, last_seq: Seq, _sack: u64) -> bool {
        self.window.oldest().map_or(self.window.next_seq(), |frame| frame.seq) <= last_seq + 1
    }

    /// When the oldest frame's ack is overdue; later after each probe, which deserves an answer.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        Some(self.window.deadline()? + PROBE_PATIENCE * u32::from(self.probes))
    }

    /// Everything not acknowledged, oldest first.
    pub(super) fn into_unacked(self) -> impl Iterator<Item = Parcel> {
        let flying: Vec<_> = self.window.iter().map(|frame| frame.item.clone()).collect();
        flying.into_iter().chain(self.waiting)
    }
}
