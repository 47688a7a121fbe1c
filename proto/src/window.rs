//! The in-flight window: reliable frames that were sent and not yet acknowledged.

use crate::ids::Seq;
use crate::time::Instant;
use core::marker::PhantomData;

/// How much may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Frames.
    pub frames_max: u16,
    /// Bytes of body; one frame is always let through.
    pub bytes_max: u32,
}

/// One frame in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight<T> {
    /// Its number.
    pub seq: Seq,
    /// When it was last sent.
    pub sent_at: Instant,
    /// How often it was sent again.
    pub resent: u8,
    /// Bytes of body.
    pub bytes: u32,
    /// What the owner needs to send it again or to report it.
    pub item: T,
}

/// An ack named a frame that was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckBeyond;

/// Frames in flight, oldest first.
#[derive(Debug)]
pub struct Window<T> {
    _items: PhantomData<T>,
}

impl<T> Window<T> {
    /// An empty window whose next frame is number `next`.
    pub fn new(limits: WindowLimits, next: Seq) -> Self {
        let _ = (limits, next);
        todo!()
    }
    /// Whether a frame of `bytes` may be sent now.
    pub fn has_room(&self, bytes: u32) -> bool {
        let _ = bytes;
        todo!()
    }
    /// Takes the next number for `item`. Panics if there is no room: ask first.
    pub fn push(&mut self, item: T, bytes: u32, now: Instant) -> Seq {
        let _ = (item, bytes, now);
        todo!()
    }
    /// Everything up to `ack` arrived: hands each such frame to `acked`, oldest first.
    ///
    /// # Errors
    /// [`AckBeyond`] if `ack` was never sent; nothing changes.
    pub fn ack(&mut self, ack: Seq, now: Instant, acked: impl FnMut(InFlight<T>)) -> Result<(), AckBeyond> {
        let _ = (ack, now, acked);
        todo!()
    }
    /// Bit `i` set: frame `base + 2 + i` arrived, `base` being the cumulative ack of the same frame. Bits that name no frame in flight are dropped.
    pub fn sack(&mut self, base: Seq, bits: u64, now: Instant, acked: impl FnMut(InFlight<T>)) {
        let _ = (base, bits, now, acked);
        todo!()
    }
    /// The oldest unacked frame.
    pub fn oldest(&self) -> Option<&InFlight<T>> {
        todo!()
    }
    /// All frames in flight, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &InFlight<T>> {
        core::iter::empty()
    }
    /// The number the next frame will have.
    pub fn next_seq(&self) -> Seq {
        todo!()
    }
    /// Frames in flight.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// When the oldest frame's ack is overdue: its `sent_at` + clamp(2 x SRTT + 1 s, 2 s, 30 s).
    pub fn deadline(&self) -> Option<Instant> {
        todo!()
    }
}
