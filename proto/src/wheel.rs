//! The timing wheel (Varghese and Lauck, SOSP 1987): insert, cancel and expire in O(1).

use crate::time::Instant;
use alloc::vec::Vec;
use core::marker::PhantomData;

/// A scheduled entry; becomes stale when it fires or is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey(pub u32);

/// Timers with a value each. Never fires early; fires at most one tick late.
#[derive(Debug)]
pub struct Wheel<T> {
    _values: PhantomData<T>,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel whose time is `now`.
    pub fn new(now: Instant) -> Self {
        let _ = now;
        todo!()
    }
    /// Schedules `value` for `at`; a moment in the past fires at the next advance.
    pub fn insert(&mut self, at: Instant, value: T) -> TimerKey {
        let _ = (at, value);
        todo!()
    }
    /// Takes an entry back. The key must be live: keys are reused.
    pub fn cancel(&mut self, key: TimerKey) -> T {
        let _ = key;
        todo!()
    }
    /// When the entry is due.
    pub fn deadline(&self, key: TimerKey) -> Instant {
        let _ = key;
        todo!()
    }
    /// Moves time to `now`; appends what is due to `fired`, earliest tick first.
    pub fn advance(&mut self, now: Instant, fired: &mut Vec<T>) {
        let _ = (now, fired);
        todo!()
    }
    /// No entry is due before this; `None` if there is no entry.
    pub fn next_deadline(&self) -> Option<Instant> {
        todo!()
    }
    /// Entries.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
