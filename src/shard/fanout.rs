//! Fan-out of one payload to many sessions, in slices, so that no chat message waits behind a large group.
//!
//! A push with many targets is kept with the list of its receivers, and delivered to some dozens of them at a
//! time, after all other work of a turn. The payload is shared; nothing is copied per receiver. Fan-outs are
//! served one after the other, which keeps their order. Pushes for the same receivers that arrive while
//! another fan-out is under way go out together, in one write to each receiver: the busier a group is, the
//! less a delivery costs.
//!
//! While there is chat traffic, slices are smaller and paced, for the receivers' acks and the backend need the
//! processor too.
//!
//! Example: a push for 600 members goes out in ten slices of 64 within ten turns of the loop.

use super::Outputs;
use super::delivery::report;
use super::parcel::Parcel;
use crate::messages::Push;
use crate::snapshot::{FanoutRecord, Item, ParcelRecord, Records, Section, SnapshotError};
use bytes::Bytes;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Receivers at most to which a push is delivered at once.
pub(super) const FANOUT_MIN: usize = 64;
/// Deliveries of one slice without chat traffic.
const SLICE: usize = 64;
/// Deliveries of one slice with chat traffic: a chat message waits for at most one slice.
const CHAT_SLICE: usize = 16;
/// Deliveries in each [`PACE`] with chat traffic.
const PACED_MAX: usize = 32;
const PACE: Duration = Duration::from_millis(1);
/// Time after a message of the urgent lanes during which there counts as chat traffic.
const CHAT: Duration = Duration::from_millis(10);
/// Waiting receivers above which there is no pace: then throughput counts.
const PACED_RECEIVERS_MAX: usize = 1 << 17;
/// Fan-outs that may wait at most.
const FANOUTS_MAX: usize = 1024;
/// Bytes of the bodies and receivers of waiting fan-outs at most.
const BYTES_MAX: usize = 64 << 20;
/// Receivers of waiting fan-outs at most.
const RECEIVERS_MAX: usize = 4 << 20;

/// Pushes that go out together at most.
const TOGETHER_MAX: usize = 16;

/// Fan-outs that wait to be delivered.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    waiting: VecDeque<Fanout>,
    receivers: usize,
    /// Bodies and lists of receivers, in bytes.
    bytes: usize,
    /// Time at which the next slice is due.
    due: Instant,
    /// Deliveries since `pace_began`.
    paced: usize,
    pace_began: Instant,
    /// End of the chat traffic.
    chat_until: Instant,
}

/// Pushes for the same receivers, in their order.
#[derive(Debug)]
pub(super) struct Fanout {
    pub(super) pushes: Vec<Push>,
    /// Receivers still to be served, the next one last.
    keys: Vec<ConnKey>,
    /// Tells whether a receiver was served: then no push may be added.
    is_begun: bool,
}

impl Fanouts {
    /// Time at which the next slice is due; `None`: none waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    /// Returns whether a slice is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|due| due <= now)
    }

    /// Begins a fan-out. False: too many wait; the refusals are reported.
    pub(super) fn try_begin(
        &mut self,
        mut push: Push,
        mut keys: Vec<ConnKey>,
        outputs: &mut Outputs,
    ) -> bool {
        // Pushes whose outcome nobody waits for leave half of the room to the others.
        let parts = if push.ticket.is_none() { 2 } else { 1 };
        let is_over = self.waiting.len() >= FANOUTS_MAX / parts
            || self.receivers + keys.len() > RECEIVERS_MAX / parts
            || self.bytes + push.body.len() > BYTES_MAX / parts;
        if is_over {
            keys.into_iter().for_each(|key| report(push.ticket, key, Outcome::Full, outputs));
            return false;
        }
        push.body = Bytes::copy_from_slice(&push.body); // it waits: the block that a link read does not
        self.bytes += push.body.len();
        self.receivers += keys.len();
        keys.reverse(); // taken from the end
        match self.waiting.back_mut() {
            Some(last) if !last.is_begun && last.pushes.len() < TOGETHER_MAX && last.keys == keys => {
                last.pushes.push(push);
            }
            _ => {
                self.bytes += keys.len() * size_of::<ConnKey>();
                self.waiting.push_back(Fanout { pushes: vec![push], keys, is_begun: false });
            }
        }
        true
    }

    /// Takes the receivers that a budget of deliveries allows, with the fan-out that they belong to; `None`:
    /// the budget is spent, or nothing waits. Give the fan-out back with [`Self::give_back`].
    pub(super) fn take_slice(&mut self, budget: &mut usize) -> Option<(Fanout, Vec<ConnKey>)> {
        if *budget == 0 {
            return None;
        }
        let mut fanout = self.waiting.pop_front()?;
        fanout.is_begun = true;
        let together = fanout.pushes.len();
        let count = fanout.keys.len().min(budget.div_ceil(together));
        let mut keys = fanout.keys.split_off(fanout.keys.len() - count);
        keys.reverse();
        *budget = budget.saturating_sub(count * together);
        self.receivers -= count * together;
        self.bytes -= count * size_of::<ConnKey>();
        Some((fanout, keys))
    }

    /// Keeps a fan-out that has receivers left.
    pub(super) fn give_back(&mut self, fanout: Fanout) {
        if fanout.keys.is_empty() {
            self.bytes -= fanout.pushes.iter().map(|push| push.body.len()).sum::<usize>();
        } else {
            self.waiting.push_front(fanout);
        }
    }

    /// Memory of bodies and lists of receivers, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of deliveries in the slice that is due now. Sets the time of the next one.
    pub(super) fn next_slice(&mut self, now: Instant) -> usize {
        if now >= self.chat_until || self.receivers > PACED_RECEIVERS_MAX {
            self.due = now;
            return SLICE;
        }
        if now >= self.pace_began + PACE {
            (self.paced, self.pace_began) = (0, now);
        }
        self.paced += CHAT_SLICE;
        self.due = if self.paced < PACED_MAX { now } else { self.pace_began + PACE };
        CHAT_SLICE
    }

    /// End of the chat traffic.
    pub(super) const fn chat_until(&self) -> Instant {
        self.chat_until
    }

    /// Writes the fan-outs; [`Self::chat_until`] is written with the shard.
    pub(super) fn freeze(&self, out: &mut Section) {
        let Self { waiting, receivers: _, bytes: _, due: _, chat_until: _, paced: _, pace_began: _ } = self;
        for Fanout { pushes, keys, is_begun } in waiting {
            let pushes = pushes.iter().map(|push| Parcel::new(push).freeze(out)).collect();
            let keys = keys.iter().map(|key| key.as_u64()).collect();
            out.put(Item::Fanout(FanoutRecord { pushes, keys, is_begun: *is_begun }));
        }
    }

    /// Reads one fan-out.
    pub(super) fn thaw(&mut self, record: &FanoutRecord, from: &Records) -> Result<(), SnapshotError> {
        let FanoutRecord { pushes, keys, is_begun } = record;
        let push = |parcel: &ParcelRecord| Ok(push_of(Parcel::thaw(parcel, from)?));
        let pushes = pushes.iter().map(push).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<ConnKey> = keys.iter().map(|key| ConnKey::from_u64(*key)).collect();
        self.receivers += keys.len() * pushes.len();
        self.bytes += keys.len() * size_of::<ConnKey>();
        self.bytes += pushes.iter().map(|push| push.body.len()).sum::<usize>();
        self.waiting.push_back(Fanout { pushes, keys, is_begun: *is_begun });
        Ok(())
    }

    /// Chat traffic ends at `until`.
    pub(super) const fn thaw_chat(&mut self, until: Instant) {
        self.chat_until = until;
    }

    /// Notes a message of the urgent lanes.
    pub(super) fn on_chat(&mut self, now: Instant) {
        self.chat_until = now + CHAT;
    }
}

fn push_of(parcel: Parcel) -> Push {
    let Parcel { ticket, command, lane, expires_at, body, packed, collapse, also: _, is_own: _ } = parcel;
    Push { ticket, targets: Vec::new(), command, lane, expires_at, body, packed, except: None, collapse }
}
