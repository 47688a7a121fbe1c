//! The loop of a worker's thread: one turn after the other, always in the same order.

use super::Count;
use super::Worker;
use super::token::Source;
use crate::link::{Due, Failure, Input, Link, LinkIndex};
use crate::router::{OUTBOX_ITEMS_HARD_MAX, OUTBOX_ITEMS_MAX};
use mio::Events;
use mio::event::Event;
use moorline_proto::link::Kind;
use moorline_proto::time::Duration;
use std::io;
use std::sync::atomic::Ordering;

/// Batches taken from the mailbox in one turn.
const MAIL_BATCHES_PER_TURN: usize = 64;
/// HELLOs judged in one turn; a signature check takes microseconds, and UPs wait meanwhile.
const LOGINS_PER_TURN: usize = 32;
/// Bytes read from one link in one turn.
const READ_BUDGET_BYTES: usize = 256 << 10;
/// Events taken from the system in one turn.
pub(super) const EVENTS_PER_TURN: usize = 256;
/// A full mailbox is tried again after this; nothing else tells that it has room.
const DELIVERY_RETRY: Duration = Duration::from_millis(1);
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How long a stopping worker tries to send what it has.
const STOP_GRACE: Duration = Duration::from_millis(500);

impl Worker {
    /// One turn of the loop. False: it was stopped.
    pub(super) fn run_turn(&mut self, timeout: Duration) -> bool {
        if !self.is_wanted() {
            tracing::debug!(worker = self.settings.number, "worker ends");
            return false;
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        if let Err(error) = self.poll.poll(&mut events, Some(timeout)) {
            assert!(error.kind() == io::ErrorKind::Interrupted, "polling our own descriptors: {error}");
        }
        self.mailbox.awake();
        self.now = (self.clock.now)();
        for event in &events {
            self.handle_event(event);
        }
        self.events = events;
        self.drain_mailbox();
        self.judge_logins(LOGINS_PER_TURN);
        self.read_links();
        self.fire_deadlines();
        self.flush_links();
        self.exert_pressure();
        self.tally[Count::MailboxFull] += self.outbox.flush();
        self.publish_tally();
        true
    }

    /// False once it was told to stop, has had one more turn, and has nothing left to send or no time.
    fn is_wanted(&mut self) -> bool {
        if !self.stop.load(Ordering::Acquire) {
            return true;
        }
        let Some(stop_at) = self.stop_at else {
            self.stop_at = Some(self.now + STOP_GRACE);
            return true;
        };
        let has_output = !self.outbox.is_empty() || self.links.iter().any(|link| link.output_len() > 0);
        let has_mail = !self.mailbox.try_sleep();
        (has_output || has_mail) && self.now < stop_at
    }

    pub(super) fn time_to_wait(&mut self) -> Duration {
        let timeout = self.timeout();
        if !timeout.is_zero() && self.takes_mail() && !self.mailbox.try_sleep() {
            return Duration::ZERO;
        }
        timeout
    }

    fn timeout(&self) -> Duration {
        let may_read = self.outbox.longest() < OUTBOX_ITEMS_MAX;
        let has_work = |link: &Link| (may_read && link.is_readable()) || link.can_write_more();
        let must_stop = self.stop_at.is_none() && self.stop.load(Ordering::Acquire);
        if self.is_hurried || must_stop || !self.logins.is_empty() || self.links.iter().any(has_work) {
            return Duration::ZERO;
        }
        let mut next = (self.now + SLEEP_MAX).min(self.parking.next_deadline()).min(self.pressure_deadline());
        next = next.min(self.endpoints_deadline()).min(self.asked_deadline());
        for link in &self.links {
            next = next.min(link.state.next_deadline()).min(link.pending.next_deadline());
        }
        if !self.outbox.is_empty() {
            next = next.min(self.now + DELIVERY_RETRY);
        }
        next.min(self.stop_at.unwrap_or(next)).saturating_since(self.now)
    }

    const fn takes_mail(&self) -> bool {
        self.outbox.longest() < OUTBOX_ITEMS_HARD_MAX
    }

    fn handle_event(&mut self, event: &Event) {
        let Source::Link(index) = Source::from(event.token()) else { return };
        let link = &mut self.links[index.index()];
        if let Err(failure) = link.handle_event(event, self.now, &self.settings.link.hello) {
            self.on_link_failed(index, &failure);
        }
    }

    fn drain_mailbox(&mut self) {
        for _ in 0..MAIL_BATCHES_PER_TURN {
            if self.outbox.longest() >= OUTBOX_ITEMS_HARD_MAX {
                return;
            }
            let Some(batch) = self.mailbox.try_recv() else { return };
            self.handle_batch(batch);
        }
    }

    fn read_links(&mut self) {
        for index in self.indices() {
            if let Err(failure) = self.read_link(index) {
                self.on_link_failed(index, &failure);
            }
        }
    }

    fn read_link(&mut self, index: LinkIndex) -> Result<(), Failure> {
        let mut budget = READ_BUDGET_BYTES;
        while budget > 0 && self.outbox.longest() < OUTBOX_ITEMS_MAX {
            let mut input = match self.links[index.index()].read(&mut self.block, self.now)? {
                Input::Bytes(input) => input,
                Input::Drained => return Ok(()),
                Input::Closed => return Err(Failure::Closed),
            };
            budget = budget.saturating_sub(input.len().max(1));
            self.tally[Count::LinkBytesIn] += input.len() as u64;
            while let Some(frame) = self.link(index).decode(&mut input)? {
                self.tally[Count::LinkFramesIn] += 1;
                self.handle_frame(index, &frame)?;
            }
        }
        Ok(())
    }

    fn fire_deadlines(&mut self) {
        for index in self.indices() {
            while let Some(due) = self.links[index.index()].state.poll_due(self.now) {
                let outcome = match due {
                    Due::Connect => {
                        let token = Source::Link(index).into();
                        self.links[index.index()].open(self.poll.registry(), token)
                    }
                    Due::Ping => {
                        self.link(index).send_empty(Kind::Ping, 0);
                        Ok(())
                    }
                    Due::Close(failure) => Err(failure),
                };
                if let Err(failure) = outcome {
                    self.on_link_failed(index, &failure);
                }
            }
        }
        self.expire_ups();
        self.expire_asked();
        self.tend_endpoints();
        if self.needs_balance {
            self.rebalance();
        }
    }

    fn expire_ups(&mut self) {
        let mut timed_out = std::mem::take(&mut self.scratch.timed_out);
        for (number, link) in (0..).zip(&mut self.links) {
            let before = timed_out.len();
            link.pending.expire(self.now, |up| timed_out.push(up));
            timed_out[before..].iter().for_each(|_| self.endpoints.on_timeout(self.now, LinkIndex(number)));
        }
        for up in &timed_out {
            self.slots.on_settled(up.slot);
        }
        self.parking.expire(self.now, |up| timed_out.push(up));
        for up in timed_out.drain(..) {
            self.tally[Count::UpTimeouts] += 1;
            self.overload.record(self.now, self.now.saturating_since(up.taken_at));
            self.answer_retry(&up);
        }
        self.scratch.timed_out = timed_out;
    }

    fn flush_links(&mut self) {
        self.is_hurried = false;
        self.pump_announcements();
        for index in self.indices() {
            self.unpark(index);
            let link = &mut self.links[index.index()];
            let was_full = !link.has_output_room();
            match link.flush(self.now) {
                Ok(sent) => self.tally[Count::LinkBytesOut] += sent as u64,
                Err(failure) => {
                    self.on_link_failed(index, &failure);
                    continue;
                }
            }
            self.is_hurried |= was_full && link.has_output_room();
        }
    }

    fn publish_tally(&mut self) {
        self.tally[Count::Turns] += 1;
        self.tally[Count::LinksUp] = self.links.iter().filter(|link| link.state.is_open()).count() as u64;
        self.tally[Count::BreakersOpen] = self.breakers_open();
        let links = &self.links;
        self.tally[Count::UpsPending] = links.iter().map(|link| link.pending.len() as u64).sum();
        self.tally[Count::UpsParked] = self.parking.frames() as u64;
        self.tally[Count::UpsParkedBytes] = self.parking.bytes() as u64;
        self.board.publish(self.tally.cells());
    }
}
