//! One payload for many, in slices, so that nobody waits behind a large group.
//!
//! A push with many targets is kept with the list of its receivers and delivered a few hundred at a time,
//! after everything else that a turn of the loop has to do. The payload is shared; nothing is copied per
//! receiver. Fan-outs are served one after the other, so their order is kept.

use super::delivery::report;
use super::{Count, Outputs, Shard};
use crate::handoff::Push;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// Receivers up to which a push is delivered at once.
pub(super) const FANOUT_MIN: usize = 64;
/// Deliveries of one turn.
const SLICE: usize = 256;
/// Fan-outs that may wait.
const FANOUTS_MAX: usize = 1024;
/// Their receivers.
const RECEIVERS_MAX: usize = 4 << 20;

/// What waits to be delivered.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    waiting: VecDeque<(Push, Vec<ConnKey>)>,
    receivers: usize,
}

impl Shard {
    /// Whether [`Self::handle_fanout`] has something to do: then the owner does not sleep.
    pub fn has_fanout(&self) -> bool {
        !self.fanouts.waiting.is_empty()
    }

    pub(super) fn begin_fanout(&mut self, push: Push, mut keys: Vec<ConnKey>, outputs: &mut Outputs) {
        let Fanouts { waiting, receivers } = &mut self.fanouts;
        if waiting.len() >= FANOUTS_MAX || *receivers + keys.len() > RECEIVERS_MAX {
            self.tally[Count::FanoutsRefused] += 1;
            keys.into_iter().for_each(|key| report(push.ticket, key, Outcome::Full, outputs));
            return;
        }
        *receivers += keys.len();
        keys.reverse(); // taken from the end
        waiting.push_back((push, keys));
        self.tally[Count::Fanouts] += 1;
    }

    /// Delivers the next slice. The owner calls it last in each turn.
    pub fn handle_fanout(&mut self, now: Instant, outputs: &mut Outputs) {
        let mut budget = SLICE;
        while budget > 0 {
            let Some((push, mut keys)) = self.fanouts.waiting.pop_front() else { return };
            let count = keys.len().min(budget);
            for key in keys.split_off(keys.len() - count).into_iter().rev() {
                self.deliver(now, key, &push, outputs);
            }
            budget -= count;
            self.fanouts.receivers -= count;
            if !keys.is_empty() {
                self.fanouts.waiting.push_front((push, keys));
            }
        }
    }
}
