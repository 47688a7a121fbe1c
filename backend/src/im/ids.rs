//! Message ids: 42 bits of milliseconds, 10 of node, 12 of count.
//!
//! The layout is Twitter's Snowflake (2010). Ids of one node rise; a clock that goes back, or more
//! than 4,096 messages in a millisecond, borrow from the next millisecond.

use super::steady::{ClockStatus, SteadyTime};
use crate::server::Now;

/// 2024-01-01 in Unix milliseconds.
pub(super) const EPOCH_MS: u64 = 1_704_067_200_000;
const COUNT_BITS: u32 = 12;
const NODE_BITS: u32 = 10;
/// Largest time of an id, in milliseconds: 8 years of the 139 stay free behind it, so that ids can go on rising.
const MILLIS_MAX: u64 = (1 << 42) - (1 << 38);

/// Hands out the ids of one node.
#[derive(Clone, Debug)]
pub struct MessageIds {
    node: u64,
    /// Milliseconds and count of the last id.
    last: u64,
    time: SteadyTime,
}

impl MessageIds {
    /// Ids of node `node`, below 1024; of a larger number the low 10 bits count.
    pub fn new(node: u16) -> Self {
        Self { node: u64::from(node) & ((1 << NODE_BITS) - 1), last: 0, time: SteadyTime::default() }
    }

    /// Ids that are all larger than `last`, which an earlier process of the node gave: its clock may have gone
    /// back since.
    pub fn after(node: u16, last: u64) -> Self {
        let time = SteadyTime::after(if last == 0 { 0 } else { time_ms(last) });
        let count = last & ((1 << COUNT_BITS) - 1);
        let last = last >> (NODE_BITS + COUNT_BITS) << COUNT_BITS | count;
        Self { last, time, ..Self::new(node) }
    }

    /// The last one; 0 before the first.
    pub const fn last(&self) -> u64 {
        if self.last == 0 { 0 } else { self.whole() }
    }

    const fn whole(&self) -> u64 {
        let (millis, count) = (self.last >> COUNT_BITS, self.last & ((1 << COUNT_BITS) - 1));
        millis << (NODE_BITS + COUNT_BITS) | self.node << COUNT_BITS | count
    }

    /// A new id of this moment. A clock that was set does not move it ([`SteadyTime`]).
    pub(super) fn next_now(&mut self, now: Now) -> u64 {
        let ms = self.time.read(now);
        self.next(ms)
    }

    /// The time that ids have now, in Unix milliseconds.
    pub(super) fn steady_ms(&mut self, now: Now) -> u64 {
        self.time.read(now)
    }

    pub(super) const fn clock(&self) -> ClockStatus {
        self.time.status()
    }

    /// A new id of this Unix time in milliseconds, or the next one behind the last.
    pub fn next(&mut self, unix_ms: u64) -> u64 {
        let now = unix_ms.saturating_sub(EPOCH_MS).min(MILLIS_MAX) << COUNT_BITS;
        self.last = now.max(self.last + 1);
        self.whole()
    }
}

/// The Unix time inside an id, in milliseconds.
pub const fn time_ms(id: u64) -> u64 {
    (id >> (NODE_BITS + COUNT_BITS)) + EPOCH_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_whatever_the_clock_does_and_keep_the_time() {
        let (mut ids, mut last) = (MessageIds::new(5), 0);
        let now = EPOCH_MS + 1_000_000;
        for time in [now, now - 5000, now + 1].into_iter().cycle().take(30_000) {
            let id = ids.next(time);
            assert!(id > last);
            assert_eq!(id >> COUNT_BITS & 1023, 5);
            last = id;
        }
        let id = MessageIds::new(1).next(now);
        assert_eq!(time_ms(id), now);
        let mut ids = MessageIds::after(7, id);
        let next = ids.next(now - 60_000);
        assert!(next > id && ids.last() == next, "an earlier life's ids are not given again");
        assert_eq!((MessageIds::new(1).last(), MessageIds::after(1, 0).last()), (0, 0));
    }
}
