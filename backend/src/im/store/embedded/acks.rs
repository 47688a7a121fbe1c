//! Acks of devices that are written down later, together.

use crate::im::store::{DeviceNumber, UserId};
use std::collections::{HashSet, VecDeque};

/// Devices whose acks are not written down yet, each once, in the order of their first ack since, with its time.
#[derive(Debug, Default)]
pub(super) struct Acks {
    waiting: VecDeque<(u64, UserId, DeviceNumber)>,
    listed: HashSet<(UserId, DeviceNumber)>,
}

impl Acks {
    pub(super) fn push(&mut self, now_ms: u64, user: UserId, device: DeviceNumber) {
        if self.listed.insert((user, device)) {
            self.waiting.push_back((now_ms, user, device));
        }
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.waiting.front().is_some_and(|(at_ms, ..)| now_ms.abs_diff(*at_ms) >= ACKS_AFTER_MS)
    }

    pub(super) fn pop(&mut self) -> Option<(UserId, DeviceNumber)> {
        let (_, user, device) = self.waiting.pop_front()?;
        self.listed.remove(&(user, device));
        Some((user, device))
    }
}

/// Time that an ack waits to be written together with later ones, in milliseconds. Entries whose ack is lost are pushed
/// again.
pub(super) const ACKS_AFTER_MS: u64 = 1000;
/// Changes that acks add to a batch with few others, and to one without any: a commit that takes long holds up everybody.
pub(super) const ACK_CHANGES: usize = 256;
pub(super) const ACK_CHANGES_IDLE: usize = 8192;
