//! Detached sessions: those that outlive their connections [P-3.10].
//!
//! A session keeps its slot and key while it has no socket. The backend sees nothing of that: pushes wait,
//! and answers are remembered. A client that presents a valid resumption token brings its new socket to the
//! old slot, so nothing that names the session has to change.
//!
//! ```text
//!  Active ──socket lost, or silent──► Detached ──expired, or too many──► (gone)
//!    ▲                                   │
//!    └──── HELLO with its token ─────────┘   (also from Active: the old socket is half dead)
//! ```

use super::clients::Clients;
use super::{Count, Outputs};
use moorline_proto::connection::server::{Event, Transition};
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// Stale entries that are kept without a sweep.
const STALE_MAX: usize = 64;

/// The detached sessions in the order of their detachment. An entry is stale when its session ended or was
/// resumed; stale entries are swept from time to time.
#[derive(Debug, Default)]
pub(super) struct Detached {
    queue: VecDeque<(ConnKey, Instant)>,
    /// Number of entries that are not stale.
    len: usize,
}

impl Detached {
    /// Number of detached sessions.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn add(&mut self, key: ConnKey, now: Instant) {
        self.queue.push_back((key, now));
        self.len += 1;
    }

    /// Notes that a detached session ended or was resumed.
    pub(super) const fn remove_one(&mut self) {
        self.len -= 1;
    }

    /// Takes the oldest entry, which may be stale, while there are more than `max` detached sessions.
    pub(super) fn take_over(&mut self, max: usize) -> Option<(ConnKey, Instant)> {
        if self.len > max { self.queue.pop_front() } else { None }
    }

    /// Drops stale entries when there are more of them than of the others.
    pub(super) fn sweep(&mut self, is_current: impl Fn(ConnKey, Instant) -> bool) {
        if self.queue.len() > 2 * self.len + STALE_MAX {
            self.queue.retain(|(key, since)| is_current(*key, *since));
        }
    }

    /// Keys and times of detachment, oldest first.
    pub(super) fn freeze(&self) -> Vec<u64> {
        let Self { queue, len: _ } = self;
        queue.iter().flat_map(|(key, since)| [key.as_u64(), since.as_nanos()]).collect()
    }

    /// Reads what [`Self::freeze`] wrote; `len` of the entries are not stale.
    pub(super) fn thaw(entries: &[u64], len: usize) -> Self {
        let entry = |pair: &[u64; 2]| (ConnKey::from_u64(pair[0]), Instant::from_nanos(pair[1]));
        Self { queue: entries.as_chunks().0.iter().map(entry).collect(), len }
    }
}

impl Clients {
    /// Detaches the session of a connection that lost its socket. False: there is no session, or sessions are
    /// not kept; then the caller ends the connection.
    pub(super) fn try_detach(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) -> bool {
        let settings = &self.ledger.settings;
        let (keep, max) = (settings.session_keep, settings.kept_max);
        if keep.is_zero() || max == 0 {
            return false;
        }
        let Some(mut client) = self.client(key) else { return false };
        let Transition::To(state) = client.connection.state.on(Event::Detaching) else { return false };
        client.connection.enter(state, now);
        client.with_flight(|session, _| session.flight.as_mut().map(|flight| flight.make_own()));
        client.drop_socket(outputs); // SENDs before their turn come again
        client.arm(now + keep);
        self.ledger.counters[Count::Detaches] += 1;
        self.detached.add(key, now);
        while let Some((oldest, since)) = self.detached.take_over(max) {
            if self.connection(oldest).is_some_and(|connection| connection.is_detached_since(since)) {
                self.ledger.counters[Count::DetachedOverMax] += 1;
                self.forget(oldest, 0, outputs);
            }
        }
        let Self { table, detached, .. } = self;
        detached.sweep(|key, since| table.get(key).is_some_and(|it| it.is_detached_since(since)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    fn key(slot: u32) -> ConnKey {
        ConnKey::new(ShardId(0), slot, 1)
    }

    #[test]
    fn the_oldest_go_first_and_stale_entries_are_swept() {
        let mut detached = Detached::default();
        (0..3).for_each(|slot| detached.add(key(slot), Instant::from_nanos(slot.into())));
        assert_eq!(detached.take_over(3), None);
        assert_eq!(detached.take_over(2), Some((key(0), Instant::ZERO)));
        detached.remove_one();
        assert_eq!((detached.take_over(2), detached.len()), (None, 2));
        for slot in 3..200 {
            detached.add(key(slot), Instant::ZERO);
            detached.remove_one();
        }
        detached.sweep(|key, _| key.slot() < 3);
        assert_eq!(detached.freeze().len() / 2, 2);
    }
}
