//! One wheel entry per connection.
//!
//! Deadlines are facts about a connection, computed when asked for. The wheel entry moves only when a
//! nearer deadline appears; one that fires too early for its owner is set again. So a heartbeat, which
//! only moves the deadline away, never touches the wheel.

use super::{Count, Outputs, Shard};
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::ids::ConnKey;
use moorline_proto::keepalive::server_patience;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// What a deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Handshake,
    Heartbeat,
    Ack,
    Batch,
    Linger,
    Keep,
    Look,
}

impl Shard {
    /// Nothing is due before this.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(Instant::ZERO);
        }
        let drain = self.drain.as_ref().map(|drain| drain.deadline());
        [self.wheel.next_deadline(), self.fanouts.deadline(), drain].into_iter().flatten().min()
    }

    /// Fires what is due; of a crowd that is due at once some dozens, and the rest in the next turns.
    pub fn handle_timeouts(&mut self, now: Instant, outputs: &mut Outputs) {
        if now >= self.next_trim {
            self.next_trim = now + TRIM;
            self.results.trim(now);
            self.users_spent.trim(self.settings.user_fill(), now);
            self.digest_rooms(now, outputs);
        }
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        // All of them get a timer again before one is acted upon: an action may end any connection.
        for slot in fired.drain(..) {
            let key = self.table.key_of(slot).expect("a connection that ends takes its timer along");
            let (at, _) = self.deadline(now, key);
            let next = if at > now { at } else { now + REARM };
            let connection = self.table.get_mut(key).expect("its timer fired");
            connection.timer = self.wheel.insert(next, slot);
            self.tally[Count::TimerMoves] += 1;
            if at <= now {
                self.due.push_back(key);
            }
        }
        if fired.capacity() <= DUE_KEPT_MAX {
            self.fired = fired;
        }
        for key in self.due.drain(..self.due.len().min(DUE_PER_TURN)).collect::<Vec<_>>() {
            self.on_due(now, key, outputs);
        }
        self.tend_drain(now, outputs);
        if self.due.is_empty() && self.due.capacity() > DUE_KEPT_MAX {
            self.due = VecDeque::new();
        }
    }

    /// Makes the timer fire no later than `at`.
    pub(super) fn arm(&mut self, key: ConnKey, at: Instant) {
        let Some(connection) = self.table.get_mut(key) else { return };
        if at < self.wheel.deadline(connection.timer) {
            self.wheel.cancel(connection.timer);
            connection.timer = self.wheel.insert(at, key.slot());
            self.tally[Count::TimerMoves] += 1;
        }
    }

    fn on_due(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        if self.table.get(key).is_none() {
            return; // it ended while it waited to be acted upon
        }
        let (at, due) = self.deadline(now, key);
        if at > now {
            return self.arm(key, at); // something happened meanwhile
        }
        match due {
            Due::Handshake => self.close(now, key, CloseReason::HandshakeTimeout, outputs),
            Due::Heartbeat => self.on_silent(now, key, outputs),
            Due::Ack => self.on_ack_overdue(now, key, outputs),
            Due::Batch => self.pump(now, key, outputs),
            Due::Linger => self.forget(key, 0, outputs),
            Due::Keep => {
                self.tally[Count::KeptInVain] += 1;
                self.forget(key, 0, outputs);
            }
            Due::Look => _ = self.try_release(now, key, outputs),
        }
    }

    fn deadline(&self, now: Instant, key: ConnKey) -> (Instant, Due) {
        let connection = self.table.get(key).expect("its timer fired");
        let since = connection.heard.before(now);
        match connection.state {
            State::AwaitHello | State::Authenticating => {
                (since + self.settings.handshake_timeout, Due::Handshake)
            }
            State::Closing => (since + self.settings.linger, Due::Linger),
            State::Detached => (since + self.settings.session_keep, Due::Keep),
            State::Active | State::Leaving => {
                let interval = Duration::from_secs(u64::from(connection.heartbeat_s));
                let heartbeat = match self.holds.deadline(key, now) {
                    Some(look) => (look, Due::Look),
                    None => (since + server_patience(interval), Due::Heartbeat),
                };
                let session = self.registry.get(connection.session).expect("logged in");
                let Some(flight) = session.flight.as_ref() else { return heartbeat };
                let ack = flight.ack_deadline().map(|at| (at, Due::Ack));
                let batch = flight.batch_deadline(self.settings.batching()).map(|at| (at, Due::Batch));
                let all = [Some(heartbeat), ack, batch].into_iter().flatten();
                all.min_by_key(|(at, _)| *at).expect("one at least")
            }
        }
    }
}

/// Deadlines acted upon in one turn: each may mean a write, and a message of a chat waits for them all.
const DUE_PER_TURN: usize = 64;
/// Memory for so many timers of one moment is kept; what a storm took is given back.
const DUE_KEPT_MAX: usize = 1 << 12;
/// How often memory is looked at that may be given back.
const TRIM: Duration = Duration::from_secs(1);
/// A timer whose deadline was acted upon is looked at again after this; the action usually arms a nearer one.
const REARM: Duration = Duration::from_secs(1);
