//! Reads ahead of a queue.

use super::ops::Build;
use crate::cluster::cell::Load;
use moorline_proto::slots::Slot;

/// Operations behind the head of a queue whose reads go along with the head's.
const AHEAD_MAX: usize = 64;
/// Reads of one request beside those of the head.
const READS_AHEAD_MAX: usize = 256;

impl Build<'_> {
    /// Adds to the reads of the head of a queue what the operations behind it need: a crowd of users who come to a slot for the
    /// first time takes one request for 64 of them.
    pub(super) fn needs_ahead(&self, slot: Slot, mut needs: Vec<Load>) -> Vec<Load> {
        let Some(owned) = self.slots.get(&slot) else { return needs };
        let most = needs.len() + READS_AHEAD_MAX;
        for op in owned.queue.iter().take(AHEAD_MAX) {
            for load in self.needs(slot, op) {
                if needs.len() < most && !needs.contains(&load) {
                    needs.push(load);
                }
            }
        }
        needs
    }
}
