//! Batches for one worker. A batch that the mailbox refuses waits here, in order.

use crate::messages::{ITEMS_RUN_MAX, Uplink, UplinkBatch};
use moorline_net::mailbox::{SendError, Sender};
use moorline_proto::ids::ShardId;

/// Waiting items above which the reactor stops reading clients.
const WAITING_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Outbox {
    worker: Sender<UplinkBatch>,
    waiting: Vec<Uplink>,
    /// Number of times that the mailbox was full.
    pub(super) refusals: u64,
}

impl Outbox {
    pub(super) const fn new(worker: Sender<UplinkBatch>) -> Self {
        Self { worker, waiting: Vec::new(), refusals: 0 }
    }

    /// Hands over all items of this turn in one send. `may_run`: if the worker sleeps, this thread may run it.
    pub(super) fn flush(&mut self, from: ShardId, fresh: &mut Vec<Uplink>, may_run: bool) {
        let items = if self.waiting.is_empty() {
            std::mem::take(fresh)
        } else {
            self.waiting.append(fresh);
            std::mem::take(&mut self.waiting)
        };
        if items.is_empty() {
            return;
        }
        let is_small = items.len() <= ITEMS_RUN_MAX;
        let batch = UplinkBatch { from, items };
        let outcome = if may_run && is_small {
            self.worker.try_send_and_run(batch)
        } else {
            self.worker.try_send(batch)
        };
        match outcome {
            Err(SendError::Full(batch)) => {
                self.refusals += 1;
                self.waiting = batch.items;
            }
            // Gone: the worker has ended, and the process ends too.
            Ok(()) | Err(SendError::Gone(_)) => {}
        }
    }

    pub(super) const fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) const fn is_clogged(&self) -> bool {
        self.waiting.len() > WAITING_MAX
    }
}
