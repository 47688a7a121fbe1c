//! The loop of a worker's thread: one turn after the other, always in the same order.

use super::Worker;
use super::socket::Socket;
use super::token::Source;
use crate::router::{Failure, LinkIndex};
use mio::Events;
use mio::event::Event;
use moorline_net::stream::Reading;
use moorline_proto::time::{Duration, Instant};
use std::sync::atomic::Ordering;

/// Batches taken from the mailbox in one turn.
const MAIL_BATCHES_PER_TURN: usize = 64;
/// HELLOs judged in one turn; a signature check takes microseconds, and UPs wait meanwhile.
const LOGINS_PER_TURN: usize = 32;
/// Bytes read from one link in one turn.
const READ_BUDGET_BYTES: usize = 256 << 10;
/// Events taken from the system in one turn.
pub(super) const EVENTS_PER_TURN: usize = 256;
/// Longest sleep. A turn that a sender runs may bring a deadline, above all that of a question to the backend: the thread
/// need not be woken for a deadline that is further away than this.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Time that a stopping worker tries to send its output.
const STOP_GRACE: Duration = Duration::from_millis(500);

impl Worker {
    /// One turn of the loop; `None`: no poll came before it. False: the worker was stopped.
    pub(super) fn run_turn(&mut self, events: Option<&Events>) -> bool {
        self.mailbox.awake();
        self.now = self.clock.now();
        if !self.is_wanted() {
            tracing::debug!(worker = self.number, "worker ends");
            return false;
        }
        for event in events.into_iter().flatten() {
            self.handle_event(event);
        }
        self.take_handshakes();
        self.dial_pending();
        self.drain_mailbox();
        if self.router.has_logins() {
            self.router.handle_logins(self.now, self.clock.unix_seconds(), LOGINS_PER_TURN);
        }
        for index in self.router.links() {
            self.read_link(index);
        }
        self.router.handle_timeouts(self.now);
        self.router.handle_turn_end(self.now);
        self.perform();
        self.counter_set.publish(self.router.counters().cells());
        true
    }

    /// False once the worker was told to stop, has had one more turn, and has nothing left to send or no time.
    fn is_wanted(&mut self) -> bool {
        if !self.stop.load(Ordering::Acquire) {
            return true;
        }
        let Some(stop_at) = self.stop_at else {
            self.stop_at = Some(self.now + STOP_GRACE);
            return true;
        };
        let mut links = self.router.links();
        let is_pending =
            |link: LinkIndex| self.sockets[link.index()].as_ref().is_some_and(Socket::is_pending);
        let has_output = self.router.has_items()
            || links.any(|link| !self.router.link_output(link).is_empty() || is_pending(link));
        let has_mail = !self.mailbox.try_sleep();
        (has_output || has_mail) && self.now < stop_at
    }

    /// Declares the worker asleep. `None`: a turn is due now.
    pub(super) fn time_of_waking(&mut self) -> Option<Instant> {
        let at = self.next_deadline().filter(|at| *at > self.now)?;
        (!self.router.takes_batches() || self.mailbox.try_sleep()).then_some(at)
    }

    /// `None`: there is something to do.
    fn next_deadline(&self) -> Option<Instant> {
        let may_read = self.router.takes_link_bytes();
        let has_work = |index: LinkIndex| {
            self.sockets[index.index()].as_ref().is_some_and(|socket| {
                let has_output = !self.router.link_output(index).is_empty() || socket.is_pending();
                let can_write = socket.is_writable() && has_output;
                (may_read && socket.is_readable()) || can_write
            })
        };
        let must_stop = self.stop_at.is_none() && self.stop.load(Ordering::Acquire);
        if must_stop || self.router.links().any(has_work) {
            return None;
        }
        let next = (self.now + SLEEP_MAX).min(self.router.next_deadline());
        Some(next.min(self.stop_at.unwrap_or(next)))
    }

    fn handle_event(&mut self, event: &Event) {
        let Source::Link(index) = Source::from(event.token()) else { return };
        let Some(socket) = &mut self.sockets[index.index()] else { return };
        socket.handle_event(event);
        match socket.try_finish_connect() {
            Ok(false) => {}
            Ok(true) => self.on_connected(index),
            Err(error) => self.fail_connect(index, error.into()),
        }
    }

    fn drain_mailbox(&mut self) {
        for _ in 0..MAIL_BATCHES_PER_TURN {
            if !self.router.takes_batches() {
                return;
            }
            let Some(batch) = self.mailbox.try_recv() else { return };
            self.router.handle_uplink(self.now, batch);
        }
    }

    fn read_link(&mut self, index: LinkIndex) {
        self.shake(index);
        if let Some(socket) = &mut self.sockets[index.index()]
            && let Err(error) = socket.flush()
        {
            let why = socket.reason(error, &mut self.block, self.now);
            return self.lose(index, &why);
        }
        let mut budget = READ_BUDGET_BYTES;
        while budget > 0 && self.router.takes_link_bytes() {
            let Some(socket) = &mut self.sockets[index.index()] else { return };
            match socket.read(&mut self.block, self.now) {
                Ok(Reading::Bytes(input)) => {
                    budget = budget.saturating_sub(input.len().max(1));
                    self.router.handle_link_bytes(self.now, index, input);
                }
                Ok(Reading::Blocked) => return,
                Ok(Reading::End) => return self.lose(index, &Failure::Closed),
                Err(failure) => return self.lose(index, &failure),
            }
        }
    }
}
