//! The timing wheel (Varghese and Lauck, SOSP 1987): insert, cancel and expire in O(1).
//!
//! Seven levels of 64 buckets cover every [`Instant`]: level 0 counts ticks, each further level
//! counts 64 buckets of the one below. An entry lies at the level of the highest 6-bit digit in which
//! its tick differs from the wheel's, so buckets behind the present are always empty, the earliest
//! bucket is the first set bit of the lowest level that has one, and a gap of any length is crossed
//! in one step. An entry moves down a level at most six times in its life.
//!
//! The wheel belongs to one owner and reads no clock.

use crate::time::Instant;
use alloc::vec::Vec;

/// Bits of a tick: 2^24 ns, about 16.8 ms.
const TICK_BITS: u32 = 24;
/// A tick in nanoseconds: the most that an entry may fire late.
pub const TICK_NANOS: u64 = 1 << TICK_BITS;
const LEVEL_BITS: u32 = 6;
/// Ticks have 64 - [`TICK_BITS`] + 1 bits: seven digits of six.
const LEVELS: usize = 7;
const BUCKETS: usize = LEVELS << LEVEL_BITS;
/// No entry.
const NONE: u32 = u32::MAX;
/// The bucket number of an entry that is free.
const FREE: u16 = u16::MAX;
/// Entries whose memory an empty wheel keeps.
const IDLE_ENTRIES_MAX: usize = 256;

/// A scheduled entry; becomes stale when it fires or is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey(pub u32);

/// 24 bytes with a value of up to 6 bytes.
#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    at: Instant,
    /// The neighbours in the bucket's ring. Free entries are chained by `next`.
    prev: u32,
    next: u32,
    bucket: u16,
    value: T,
}

/// Timers with a value each. Never fires early; fires at most one tick late.
///
/// 24 bytes per entry with a 4-byte value, and 2 KiB for the wheel. Memory follows the highest number
/// of entries that were live at once; it is given back when the wheel becomes empty.
///
/// Limits: 2^32 - 1 entries.
#[derive(Debug)]
pub struct Wheel<T> {
    /// Ticks that are over.
    tick: u64,
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
    /// Bitmap per level of the buckets that hold an entry.
    occupied: [u64; LEVELS],
    /// First entry of each bucket's ring.
    heads: [u32; BUCKETS],
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel whose time is `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            tick: now.as_nanos() >> TICK_BITS,
            entries: Vec::new(),
            free: NONE,
            len: 0,
            occupied: [0; LEVELS],
            heads: [NONE; BUCKETS],
        }
    }

    /// Schedules `value` for `at`; a moment in the past fires at the next advance.
    pub fn insert(&mut self, at: Instant, value: T) -> TimerKey {
        let entry = Entry { at, prev: NONE, next: NONE, bucket: FREE, value };
        let index = if self.free == NONE {
            let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 timers");
            assert!(index != NONE, "fewer than 2^32 - 1 timers");
            self.entries.push(entry);
            index
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            self.entries[index as usize] = entry;
            index
        };
        self.len += 1;
        self.link(index);
        TimerKey(index)
    }

    /// Takes an entry back. The key must be live: keys are reused.
    pub fn cancel(&mut self, key: TimerKey) -> T {
        self.unlink(key.0);
        self.release(key.0)
    }

    /// Moves an entry to another moment; its key stays. The key must be live.
    pub fn reschedule(&mut self, key: TimerKey, at: Instant) {
        self.unlink(key.0);
        self.entries[key.0 as usize].at = at;
        self.link(key.0);
    }

    /// Time at which the entry is due. The key must be live.
    pub fn deadline(&self, key: TimerKey) -> Instant {
        let entry = &self.entries[key.0 as usize];
        assert!(entry.bucket != FREE, "the timer key is stale");
        entry.at
    }

    /// Moves time to `now`; appends what is due to `fired`, earliest tick first. Time never goes back.
    pub fn advance(&mut self, now: Instant, fired: &mut Vec<T>) {
        let target = (now.as_nanos() >> TICK_BITS).max(self.tick);
        while let Some((bucket, start)) = self.earliest() {
            if start > target {
                break;
            }
            self.tick = start;
            self.empty_bucket(bucket, fired);
        }
        self.tick = target;
    }

    /// Lower bound of the next expiry: no entry fires before it, and advancing to it makes progress; `None`: the wheel is empty.
    ///
    /// An entry far away is first counted in coarse steps. Reads seven words.
    pub fn next_deadline(&self) -> Option<Instant> {
        let (_, start) = self.earliest()?;
        Some(Instant::from_nanos(start.saturating_mul(TICK_NANOS)))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the wheel is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory behind the entries.
    pub fn allocated_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<T>>()
    }

    /// Walks everything and panics if the wheel contradicts itself. For tests: O(entries).
    pub fn check(&self) {
        let mut live = 0;
        for bucket in 0..BUCKETS {
            let (level, slot) = (bucket >> LEVEL_BITS, bucket & 63);
            let head = self.heads[bucket];
            let is_occupied = self.occupied[level] >> slot & 1 == 1;
            assert_eq!(is_occupied, head != NONE, "bitmap and bucket {bucket} disagree");
            let mut index = head;
            while index != NONE {
                let entry = &self.entries[index as usize];
                assert_eq!(usize::from(entry.bucket), bucket, "an entry lies in the bucket it names");
                assert_eq!(bucket, bucket_of(due_tick(entry.at).max(self.tick), self.tick));
                assert_eq!(self.entries[entry.next as usize].prev, index, "the ring is closed");
                live += 1;
                assert!(live <= self.len, "rings hold no more than the live entries");
                index = if entry.next == head { NONE } else { entry.next };
            }
        }
        assert_eq!(live, self.len, "every live entry is in a bucket");
        let mut free = 0;
        let mut index = self.free;
        while index != NONE {
            assert_eq!(self.entries[index as usize].bucket, FREE);
            free += 1;
            assert!(free <= self.entries.len(), "the free list ends");
            index = self.entries[index as usize].next;
        }
        assert_eq!(live + free, self.entries.len(), "every entry is live or free");
    }

    /// The bucket to look at next and the tick at which it begins.
    fn earliest(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        let slot = self.occupied[level].trailing_zeros();
        let shift = LEVEL_BITS * u32::try_from(level).expect("seven levels");
        let above = self.tick >> (shift + LEVEL_BITS) << (shift + LEVEL_BITS);
        Some(((level << LEVEL_BITS) + slot as usize, above | u64::from(slot) << shift))
    }

    /// Fires a bucket of level 0 whose tick is reached; spreads one of a higher level.
    fn empty_bucket(&mut self, bucket: usize, fired: &mut Vec<T>) {
        let head = core::mem::replace(&mut self.heads[bucket], NONE);
        self.occupied[bucket >> LEVEL_BITS] &= !(1 << (bucket & 63));
        let mut index = head;
        loop {
            let next = self.entries[index as usize].next;
            if bucket >> LEVEL_BITS == 0 {
                fired.push(self.release(index));
            } else {
                self.link(index);
            }
            if next == head {
                return;
            }
            index = next;
        }
    }

    /// Puts an entry at the end of its bucket's ring.
    fn link(&mut self, index: u32) {
        let due = due_tick(self.entries[index as usize].at).max(self.tick);
        let bucket = bucket_of(due, self.tick);
        let head = self.heads[bucket];
        let (prev, next) = if head == NONE {
            self.heads[bucket] = index;
            self.occupied[bucket >> LEVEL_BITS] |= 1 << (bucket & 63);
            (index, index)
        } else {
            (self.entries[head as usize].prev, head)
        };
        self.entries[prev as usize].next = index;
        self.entries[next as usize].prev = index;
        let entry = &mut self.entries[index as usize];
        (entry.prev, entry.next) = (prev, next);
        entry.bucket = u16::try_from(bucket).expect("448 buckets");
    }

    fn unlink(&mut self, index: u32) {
        let Entry { prev, next, bucket, .. } = self.entries[index as usize];
        assert!(bucket != FREE, "the timer key is stale");
        let bucket = usize::from(bucket);
        if next == index {
            self.heads[bucket] = NONE;
            self.occupied[bucket >> LEVEL_BITS] &= !(1 << (bucket & 63));
            return;
        }
        self.entries[prev as usize].next = next;
        self.entries[next as usize].prev = prev;
        if self.heads[bucket] == index {
            self.heads[bucket] = next;
        }
    }

    /// Frees an entry that is not in a bucket.
    fn release(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        (entry.bucket, entry.next) = (FREE, self.free);
        let value = entry.value;
        self.free = index;
        self.len -= 1;
        if self.len == 0 && self.entries.capacity() > IDLE_ENTRIES_MAX {
            self.entries = Vec::new();
            self.free = NONE;
        }
        value
    }
}

/// The first tick at which an entry may fire.
fn due_tick(at: Instant) -> u64 {
    at.as_nanos().div_ceil(TICK_NANOS)
}

/// Level and bucket of an entry that is due at `due`, seen from `tick`, which is not later.
fn bucket_of(due: u64, tick: u64) -> usize {
    let level = (due ^ tick | 1).ilog2() / LEVEL_BITS;
    let slot = due >> (level * LEVEL_BITS) & 63;
    ((level << LEVEL_BITS) as usize) + usize::try_from(slot).expect("below 64")
}

#[cfg(test)]
mod tests;
