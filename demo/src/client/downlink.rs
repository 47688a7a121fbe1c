//! Numbers of the frames that came in one session, and when to acknowledge them.

use moorline_proto::error::CloseReason;
use moorline_proto::ids::Seq;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeSet;

/// Distance that a number may run ahead of the first missing one.
const AHEAD_MAX: u32 = 1024;
/// Frames that are acknowledged at once, and the longest wait for fewer.
const ACK_FRAMES: u32 = 8;
const ACK_DELAY: Duration = Duration::from_millis(200);
/// Numbers that a selective acknowledgement names.
const SACK_BITS: u32 = 64;

/// Received frames of one session.
#[derive(Debug, Default)]
pub(super) struct Downlink {
    /// Every number up to here came.
    base: Seq,
    /// Numbers beyond the first missing one that came.
    ahead: BTreeSet<Seq>,
    /// Frames since the last acknowledgement.
    unreported: u32,
    /// Deadline of the next acknowledgement; `None`: nothing is to be acknowledged.
    due: Option<Instant>,
}

impl Downlink {
    /// The cumulative acknowledgement.
    pub(super) const fn base(&self) -> Seq {
        self.base
    }

    /// Bit i: number `base + 2 + i` came.
    pub(super) fn sack(&self) -> u64 {
        let bits = self.ahead.iter().filter_map(|seq| seq.checked_sub(self.base + 2));
        bits.filter(|bit| *bit < SACK_BITS).fold(0, |sack, bit| sack | 1 << bit)
    }

    /// Takes a frame's number; false: it came before. 0 is the number of unreliable frames.
    ///
    /// # Errors
    /// The number is outside of any window.
    pub(super) fn admit(&mut self, now: Instant, seq: Seq, wants_ack: bool) -> Result<bool, CloseReason> {
        if seq == 0 {
            return Ok(true);
        }
        if seq > self.base.saturating_add(AHEAD_MAX) {
            return Err(CloseReason::Window);
        }
        let is_new = seq > self.base && self.ahead.insert(seq);
        while self.ahead.remove(&(self.base + 1)) {
            self.base += 1;
        }
        self.unreported += 1;
        let is_urgent = wants_ack || self.unreported >= ACK_FRAMES;
        let due = if is_urgent { now } else { now + ACK_DELAY };
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
        Ok(is_new)
    }

    /// The connection is gone; what came is remembered for a resumed session.
    pub(super) const fn handle_offline(&mut self) {
        (self.unreported, self.due) = (0, None);
    }

    /// The cumulative acknowledgement, for a frame that is written now.
    pub(super) const fn take_ack(&mut self) -> Seq {
        (self.unreported, self.due) = (0, None);
        self.base
    }

    /// Deadline of the next acknowledgement.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.due
    }
}
