//! How far one device is in its user's stream: what it has acked, what is under way to it.

use std::collections::{BTreeMap, BTreeSet};

/// Pushes of one device under way; more than its window at the gateway.
const OUTSTANDING_MAX: usize = 64;

/// The session that a device's pushes go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) version: u64,
    pub(crate) handle: u64,
    pub(crate) worker: usize,
}

#[derive(Debug)]
pub(crate) struct Cursor {
    /// Where the device began to listen.
    pub(crate) start: usize,
    /// Every entry before this is acked.
    acked: usize,
    /// Acked entries after a hole.
    beyond: BTreeSet<usize>,
    /// The next entry to push.
    pushed: usize,
    /// Every entry before this was pushed at least once.
    begun: usize,
    /// Pushes of entries that had been pushed before.
    pub(crate) repeats: u64,
    outstanding: BTreeMap<u64, usize>,
    /// Nothing is pushed until the next login or ack.
    is_stopped: bool,
    seat: Option<Seat>,
}

impl Cursor {
    pub(crate) const fn new(start: usize) -> Self {
        Self {
            start,
            acked: start,
            beyond: BTreeSet::new(),
            pushed: start,
            begun: start,
            repeats: 0,
            outstanding: BTreeMap::new(),
            is_stopped: false,
            seat: None,
        }
    }

    /// The newest login has the seat; everything unacked is pushed again.
    pub(crate) fn sit(&mut self, seat: Option<Seat>) {
        self.seat = seat;
        self.restart();
        self.is_stopped = false;
    }

    pub(crate) const fn seat(&self) -> Option<Seat> {
        self.seat
    }

    fn restart(&mut self) {
        self.outstanding.clear();
        self.pushed = self.acked;
    }

    /// The next entry to push, under this name.
    pub(crate) fn next(&mut self, correlation: u64, entries: usize) -> Option<usize> {
        let may_push = self.seat.is_some() && !self.is_stopped && self.outstanding.len() < OUTSTANDING_MAX;
        let entry = self.pushed;
        if !may_push || entry >= entries {
            return None;
        }
        self.pushed += 1;
        self.repeats += u64::from(self.pushed <= self.begun);
        self.begun = self.begun.max(self.pushed);
        self.outstanding.insert(correlation, entry);
        Some(entry)
    }

    /// This entry is the device's own: it needs no push.
    pub(crate) fn skip(&mut self, correlation: u64) {
        self.on_acked(correlation);
    }

    pub(crate) fn on_acked(&mut self, correlation: u64) {
        let Some(entry) = self.outstanding.remove(&correlation) else { return };
        self.is_stopped = false;
        self.beyond.insert(entry);
        while self.beyond.remove(&self.acked) {
            self.acked += 1;
        }
        self.beyond = self.beyond.split_off(&self.acked);
    }

    /// A push came back undelivered.
    pub(crate) fn on_returned(&mut self, correlation: u64) {
        if self.outstanding.contains_key(&correlation) {
            self.restart();
            self.is_stopped = true;
        }
    }

    pub(crate) const fn acked(&self) -> usize {
        self.acked
    }
}
