//! Hand-over to other threads at the end of a turn: one batch per worker, messages for other shards, and
//! connections that move.

use super::stream::Socket;
use super::{Reactor, ReactorMail};
use crate::messages::{DownlinkBatch, Uplink};
use crate::shard::Transfer;
use moorline_net::mailbox::SendError;
use moorline_proto::time::Duration;

/// Time for which outcomes of pushes wait for company: nobody waits for them, and alone they would wake a worker and the
/// backend for each delivery.
const OUTCOMES_WAIT: Duration = Duration::from_millis(2);
/// Number of outcomes that do not wait.
const OUTCOMES_MAX: usize = 8;

impl Reactor {
    /// Hands over everything, unless there are only a few outcomes of pushes; then closes what is to be closed. After the end
    /// of a connection nothing waits: its client may log in elsewhere.
    pub(super) fn hand_over_due(&mut self) {
        if !self.may_wait() {
            self.outcomes_due = None;
            self.hand_over();
        }
        self.sockets.finish_closing();
    }

    /// Returns whether the uplinks are a few outcomes of pushes that may wait for company.
    fn may_wait(&mut self) -> bool {
        let now = self.sockets.now;
        let has_ended = std::mem::take(&mut self.sockets.has_ended);
        let is_few = |items: &Vec<Uplink>| {
            items.len() < OUTCOMES_MAX && items.iter().all(|item| matches!(item, Uplink::Pushed { .. }))
        };
        let has_few = self.outputs.uplinks.iter().all(is_few) && !self.is_stopping && !has_ended;
        if !has_few || self.outputs.uplinks.iter().all(Vec::is_empty) || self.is_refused() {
            return false;
        }
        now < *self.outcomes_due.get_or_insert(now + OUTCOMES_WAIT)
    }

    /// Hands over everything of this turn. A full mailbox refuses; what it refused waits, in order.
    pub(super) fn hand_over(&mut self) {
        let from = self.shard.id();
        // With more to do than one small batch, the threads run side by side.
        let batches = self.outputs.uplinks.iter().filter(|items| !items.is_empty()).count();
        let may_run = batches == 1 && self.sockets.ready.is_empty() && self.inbox.is_empty();
        for (outbox, fresh) in self.outboxes.iter_mut().zip(&mut self.outputs.uplinks) {
            outbox.flush(from, fresh, may_run);
        }
        self.forward();
        while let Some((socket, transfer)) = self.sockets.leaving.pop_front() {
            if let Err((socket, transfer)) = self.try_move(socket, transfer) {
                self.sockets.leaving.push_front((socket, transfer));
                return;
            }
        }
    }

    /// Returns whether something waits that the next hand-over may deliver.
    pub(super) fn is_handing_over(&self) -> bool {
        self.is_refused() || self.outputs.uplinks.iter().any(|items| !items.is_empty())
    }

    /// Returns whether a mailbox was full at the last hand-over.
    pub(super) fn is_refused(&self) -> bool {
        !self.sockets.leaving.is_empty()
            || !self.outputs.forwards.is_empty()
            || self.outboxes.iter().any(super::Outbox::is_waiting)
    }

    /// Sends a connection to the shard of its user.
    ///
    /// # Errors
    /// The connection comes back: that reactor's mailbox is full.
    fn try_move(&self, socket: Socket, transfer: Box<Transfer>) -> Result<(), (Socket, Box<Transfer>)> {
        let home = transfer.home.index();
        match self.reactors[home].try_send(ReactorMail::Move(socket, transfer)) {
            Err(SendError::Full(ReactorMail::Move(socket, transfer))) => Err((socket, transfer)),
            Err(SendError::Gone(ReactorMail::Move(socket, _))) => {
                self.sockets.release(&socket.stream);
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(_) => unreachable!("a refused message comes back unchanged"),
        }
    }

    /// Sends messages for users whom another shard may own.
    fn forward(&mut self) {
        let mut waiting = Vec::new();
        for (home, item) in std::mem::take(&mut self.outputs.forwards) {
            if waiting.iter().any(|(other, _)| *other == home) {
                waiting.push((home, item));
                continue;
            }
            let batch = ReactorMail::Downlink(DownlinkBatch { items: vec![item] });
            if let Err(SendError::Full(ReactorMail::Downlink(mut batch))) =
                self.reactors[home.index()].try_send(batch)
            {
                waiting.extend(batch.items.pop().map(|item| (home, item)));
            }
        }
        self.outputs.forwards = waiting;
    }
}
