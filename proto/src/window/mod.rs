//! The in-flight window: reliable frames that were sent and not yet acknowledged.
//!
//! The owner sends, resends and reports. The window holds the seqs, the bytes, the round-trip estimate
//! and the deadline that follows from them, and starts no timer.
//!
//! Numbers do not wrap: a window whose numbers are used up ([`Window::is_exhausted`]) has room for
//! nothing more, and its session ends [P-6.1]. At a thousand frames per second that takes 49 days.

use crate::ids::Seq;
use crate::time::{Duration, Instant};
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// The round trip that is assumed before the first was measured (RFC 6298, 2.1).
const SRTT_UNKNOWN: Duration = Duration::from_secs(1);
/// Bounds of the time after which an ack is overdue.
const OVERDUE_AFTER_MIN: Duration = Duration::from_secs(2);
const OVERDUE_AFTER_MAX: Duration = Duration::from_secs(30);

/// Limits of the frames in flight; the owner keeps further frames [P-6.9].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Number of frames.
    pub frames_max: u16,
    /// Bytes of bodies; one frame is always allowed.
    pub bytes_max: u32,
}

/// A frame in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight<T> {
    /// The frame's seq.
    pub seq: Seq,
    /// Time of the last transmission.
    pub sent_at: Instant,
    /// Number of retransmissions.
    pub resent: u8,
    /// Bytes of body.
    pub bytes: u32,
    /// The owner's data for sending the frame again or reporting its outcome.
    pub item: T,
}

/// An ack named a frame that was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckBeyond;

/// Frames in flight, oldest first. 24 bytes and no allocation while nothing is in flight.
#[derive(Clone, Debug)]
pub struct Window<T> {
    limits: WindowLimits,
    next: Seq,
    /// Smoothed round trip in microseconds; 0: none measured.
    srtt_micros: u32,
    flight: Option<Box<Flight<T>>>,
}

#[derive(Clone, Debug)]
struct Flight<T> {
    /// Never empty; by seq, with holes where frames were acknowledged selectively.
    frames: VecDeque<InFlight<T>>,
    bytes: u64,
}

impl<T> Window<T> {
    /// An empty window whose next frame is number `next`, which is at least 1.
    pub fn new(limits: WindowLimits, next: Seq) -> Self {
        assert!(next > 0, "0 is the number of unreliable frames");
        Self { limits, next, srtt_micros: 0, flight: None }
    }

    /// A window with these values. `None`: `frames` are not in order below `next`.
    pub fn restore(
        limits: WindowLimits,
        next: Seq,
        srtt_micros: u32,
        frames: VecDeque<InFlight<T>>,
    ) -> Option<Self> {
        let is_ordered = frames.iter().zip(frames.iter().skip(1)).all(|(a, b)| a.seq < b.seq);
        let fits = frames.front().is_none_or(|first| first.seq > 0)
            && frames.back().is_none_or(|last| last.seq < next);
        if next == 0 || !is_ordered || !fits {
            return None;
        }
        let bytes = frames.iter().map(|frame| u64::from(frame.bytes)).sum();
        let flight = (!frames.is_empty()).then(|| Box::new(Flight { frames, bytes }));
        Some(Self { limits, next, srtt_micros, flight })
    }

    /// The owner's data of all frames in flight, oldest first.
    pub fn items_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.flight.iter_mut().flat_map(|flight| flight.frames.iter_mut().map(|frame| &mut frame.item))
    }

    /// True if a frame of `bytes` may be sent now.
    pub fn has_room(&self, bytes: u32) -> bool {
        if self.is_exhausted() {
            return false;
        }
        let Some(flight) = &self.flight else { return true };
        flight.frames.len() < usize::from(self.limits.frames_max)
            && flight.bytes + u64::from(bytes) <= u64::from(self.limits.bytes_max)
    }

    /// True if every seq was used: the session must end.
    pub const fn is_exhausted(&self) -> bool {
        self.next == Seq::MAX
    }

    /// Assigns the next seq to `item`. Panics if there is no room; ask [`Self::has_room`] first.
    pub fn push(&mut self, item: T, bytes: u32, now: Instant) -> Seq {
        assert!(self.has_room(bytes), "the window is full: ask first");
        let seq = self.next;
        self.next += 1;
        let flight =
            self.flight.get_or_insert_with(|| Box::new(Flight { frames: VecDeque::new(), bytes: 0 }));
        flight.frames.push_back(InFlight { seq, sent_at: now, resent: 0, bytes, item });
        flight.bytes += u64::from(bytes);
        seq
    }

    /// Everything up to `ack` arrived: hands each such frame to `acked`, oldest first.
    ///
    /// # Errors
    /// [`AckBeyond`] if `ack` was never sent; nothing changes.
    pub fn ack(
        &mut self,
        ack: Seq,
        now: Instant,
        mut acked: impl FnMut(InFlight<T>),
    ) -> Result<(), AckBeyond> {
        if ack >= self.next {
            return Err(AckBeyond);
        }
        let Some(flight) = &mut self.flight else { return Ok(()) };
        let mut newest = None;
        let mut is_ambiguous = false;
        while flight.frames.front().is_some_and(|frame| frame.seq <= ack) {
            let Some(frame) = flight.frames.pop_front() else { break };
            flight.bytes -= u64::from(frame.bytes);
            newest = Some(frame.sent_at);
            is_ambiguous |= frame.resent > 0;
            acked(frame);
        }
        self.settle(newest.filter(|_| !is_ambiguous), now);
        Ok(())
    }

    /// Bit `i` set: frame `base + 2 + i` arrived, `base` being the cumulative ack of the same frame.
    /// Bits that name no frame in flight are dropped.
    pub fn sack(&mut self, base: Seq, bits: u64, now: Instant, mut acked: impl FnMut(InFlight<T>)) {
        let Some(flight) = &mut self.flight else { return };
        let mut newest = None;
        let mut at = 0;
        while let Some(frame) = flight.frames.get(at) {
            let bit = u64::from(frame.seq).checked_sub(u64::from(base) + 2);
            if bit.is_none_or(|bit| bit >= 64 || bits >> bit & 1 == 0) {
                at += 1;
                continue;
            }
            let frame = flight.frames.remove(at).expect("it was just looked at");
            flight.bytes -= u64::from(frame.bytes);
            if frame.resent == 0 {
                newest = Some(frame.sent_at);
            }
            acked(frame);
        }
        self.settle(newest, now);
    }

    /// Notes that a frame is sent again now and lends it; `None` if it is not in flight.
    pub fn resend(&mut self, seq: Seq, now: Instant) -> Option<&InFlight<T>> {
        let frames = &mut self.flight.as_mut()?.frames;
        let at = frames.binary_search_by_key(&seq, |frame| frame.seq).ok()?;
        let frame = &mut frames[at];
        frame.sent_at = now;
        frame.resent = frame.resent.saturating_add(1);
        Some(frame)
    }

    /// Takes everything out unacknowledged, oldest first; numbers go on where they were.
    pub fn take_all(&mut self) -> impl Iterator<Item = InFlight<T>> + use<T> {
        self.flight.take().map_or_else(VecDeque::new, |flight| flight.frames).into_iter()
    }

    /// The oldest unacked frame.
    pub fn oldest(&self) -> Option<&InFlight<T>> {
        self.flight.as_ref()?.frames.front()
    }

    /// All frames in flight, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &InFlight<T>> {
        self.flight.iter().flat_map(|flight| &flight.frames)
    }

    /// The number the next frame will have.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// Frames in flight.
    pub fn len(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.frames.len())
    }

    /// True if no frame is in flight.
    pub fn is_empty(&self) -> bool {
        self.flight.is_none()
    }

    /// Bytes of body in flight.
    pub fn bytes(&self) -> u64 {
        self.flight.as_ref().map_or(0, |flight| flight.bytes)
    }

    /// The smoothed round trip, if one was measured.
    pub fn srtt(&self) -> Option<Duration> {
        (self.srtt_micros > 0).then(|| Duration::from_micros(self.srtt_micros.into()))
    }

    /// Time at which the oldest frame's ack is overdue [P-6.5]: its `sent_at` + clamp(2 x SRTT + 1 s, 2 s, 30 s).
    /// Before a round trip was measured, SRTT counts as 1 s.
    pub fn deadline(&self) -> Option<Instant> {
        let after = 2 * self.srtt().unwrap_or(SRTT_UNKNOWN) + Duration::from_secs(1);
        Some(self.oldest()?.sent_at + after.clamp(OVERDUE_AFTER_MIN, OVERDUE_AFTER_MAX))
    }

    /// After an ack: learns from the newest frame it covered and lets go of an empty flight.
    ///
    /// A frame that was sent twice teaches nothing (Karn and Partridge, SIGCOMM 1987): nobody knows
    /// which one was acknowledged.
    fn settle(&mut self, sent_at: Option<Instant>, now: Instant) {
        if let Some(sent_at) = sent_at {
            let sample = now.saturating_since(sent_at).as_micros();
            let sample = u32::try_from(sample).unwrap_or(u32::MAX).max(1);
            self.srtt_micros = match self.srtt_micros {
                0 => sample,
                srtt => srtt - srtt / 8 + sample / 8,
            };
        }
        if self.flight.as_ref().is_some_and(|flight| flight.frames.is_empty()) {
            self.flight = None;
        }
    }
}

#[cfg(test)]
mod tests;
