//! One wheel entry per connection.
//!
//! Deadlines are facts about a connection, computed on demand. The wheel entry moves only when a nearer
//! deadline appears; an entry that fires too early is inserted again. So a heartbeat, which only moves the
//! deadline away, never touches the wheel.
//!
//! Example: a client promises to send every 30 s. Its entry fires 45 s after the login; bytes came 20 s
//! ago, so the entry is inserted again, to fire in 25 s.

use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::wheel::{TimerKey, Wheel};
use std::collections::VecDeque;

/// Timers of one moment whose memory is kept; memory beyond that is given back after the moment.
const DUE_KEPT_MAX: usize = 1 << 12;
/// Time until a timer fires again whose deadline was acted upon; the action usually arms a nearer one.
const REARM: Duration = Duration::from_secs(1);

/// The meaning of a connection's nearest deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The login took too long.
    Handshake,
    /// The client was silent for too long.
    Heartbeat,
    /// The oldest frame in flight is not acked.
    Ack,
    /// Frames waited long enough for others to go out with.
    Batch,
    /// The last frame took too long to be written.
    Linger,
    /// The client of a detached session did not resume.
    Expiry,
    /// A frame is not complete, or a SEND is missing before others, for too long.
    Input,
    /// The token of the session expired too long ago.
    TokenExpired,
    /// Reading is paused: check whether it may go on.
    Pause,
}

/// The wheel of one shard, and the connections whose deadline has come and was not yet acted upon.
#[derive(Debug)]
pub(super) struct Timers {
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    due: VecDeque<ConnKey>,
}

impl Timers {
    /// Timers whose time is `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { wheel: Wheel::new(now), fired: Vec::new(), due: VecDeque::new() }
    }

    /// Number of entries in the wheel.
    pub(super) fn len(&self) -> usize {
        self.wheel.len()
    }

    /// Inserts the entry of the connection in `slot`.
    pub(super) fn insert(&mut self, at: Instant, slot: u32) -> TimerKey {
        self.wheel.insert(at, slot)
    }

    pub(super) fn cancel(&mut self, timer: TimerKey) {
        self.wheel.cancel(timer);
    }

    /// The time at which an entry fires.
    pub(super) fn deadline(&self, timer: TimerKey) -> Instant {
        self.wheel.deadline(timer)
    }

    /// Makes an entry fire no later than `at`. True: it moved.
    pub(super) fn arm(&mut self, timer: &mut TimerKey, at: Instant, slot: u32) -> bool {
        let moves = at < self.wheel.deadline(*timer);
        if moves {
            self.wheel.cancel(*timer);
            *timer = self.wheel.insert(at, slot);
        }
        moves
    }

    /// Nothing is due before this.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.due.is_empty() { self.wheel.next_deadline() } else { Some(Instant::ZERO) }
    }

    /// Takes the slots whose entries have fired; each of them needs an entry again. Give the list back with
    /// [`Self::end_fire`].
    pub(super) fn fire(&mut self, now: Instant) -> Vec<u32> {
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        fired
    }

    /// Inserts the entry of a connection again, whose nearest deadline is at `at`.
    pub(super) fn fire_again(&mut self, now: Instant, at: Instant, key: ConnKey) -> TimerKey {
        if at <= now {
            self.due.push_back(key);
        }
        self.wheel.insert(if at > now { at } else { now + REARM }, key.slot())
    }

    pub(super) fn end_fire(&mut self, mut fired: Vec<u32>) {
        fired.clear();
        if fired.capacity() <= DUE_KEPT_MAX {
            self.fired = fired;
        }
    }

    /// Takes connections that are due, `most` at most: each may cause a write, and every chat message waits for all of
    /// them.
    pub(super) fn take_due(&mut self, most: usize) -> Vec<ConnKey> {
        let due = self.due.drain(..self.due.len().min(most)).collect();
        if self.due.is_empty() && self.due.capacity() > DUE_KEPT_MAX {
            self.due = VecDeque::new();
        }
        due
    }

    /// Connections that are due, for a snapshot.
    pub(super) fn freeze(&self) -> Vec<u64> {
        let Self { wheel: _, fired: _, due } = self; // entries are written with their connections
        due.iter().map(|key| key.as_u64()).collect()
    }

    pub(super) fn thaw(&mut self, due: VecDeque<ConnKey>) {
        self.due = due;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn an_entry_moves_only_to_a_nearer_deadline() {
        let mut timers = Timers::new(at(0));
        let mut timer = timers.insert(at(10), 3);
        assert!(!timers.arm(&mut timer, at(20), 3) && timers.deadline(timer) >= at(10));
        assert!(timers.arm(&mut timer, at(5), 3) && timers.deadline(timer) < at(6));
        assert_eq!(timers.len(), 1);
    }

    #[test]
    fn of_a_crowd_that_fires_at_once_a_turn_takes_its_share() {
        let mut timers = Timers::new(at(0));
        let crowd = 129;
        (0..crowd).for_each(|slot| _ = timers.insert(at(1), slot));
        let fired = timers.fire(at(2));
        for slot in &fired {
            timers.fire_again(at(2), at(1), ConnKey::new(ShardId(0), *slot, 1));
        }
        timers.end_fire(fired);
        assert_eq!((timers.len(), timers.next_deadline()), (crowd as usize, Some(Instant::ZERO)));
        let shares = [64, 64, 64].map(|most| timers.take_due(most).len());
        assert_eq!(shares, [64, 64, 1]);
        assert!(timers.next_deadline().is_some_and(|next| next > at(2)), "they fire again after a second");
    }
}
