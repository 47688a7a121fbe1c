//! One payload for many, in slices, so that nobody waits behind a large group.
//!
//! A push with many targets is kept with the list of its receivers and delivered some dozens at a time,
//! after everything else that a turn of the loop has to do. The payload is shared; nothing is copied per
//! receiver. Fan-outs are served one after the other, so their order is kept. What comes for the same
//! receivers while another fan-out is under way goes out together, in one write to each: the busier a
//! group is, the less a delivery costs.
//!
//! While people chat the slices are smaller and come at a pace, for the receivers' acks and the backend that
//! hears of them need the processor as well.

use super::delivery::report;
use super::flight::Parcel;
use super::{Count, Outputs, Shard};
use crate::handoff::Push;
use crate::snapshot::{FanoutRecord, Item, ParcelRecord, Records, Section, SnapshotError};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Receivers up to which a push is delivered at once.
pub(super) const FANOUT_MIN: usize = 64;
/// Deliveries of one slice while nobody chats.
const SLICE: usize = 64;
/// The same while people chat: so long a message of theirs waits for a large group.
const CHAT_SLICE: usize = 16;
/// Deliveries in each [`PACE`] while people chat: receivers, who acknowledge, and the backend need time too.
const PACED_MAX: usize = 32;
const PACE: Duration = Duration::from_millis(1);
/// So long after a message of the urgent lanes somebody chats.
const CHAT: Duration = Duration::from_millis(10);
/// Above so many receivers that wait the pace is dropped: then throughput counts.
const PACED_RECEIVERS_MAX: usize = 1 << 17;
/// Fan-outs that may wait.
const FANOUTS_MAX: usize = 1024;
/// Their receivers.
const RECEIVERS_MAX: usize = 4 << 20;

/// Pushes that go out together.
const TOGETHER_MAX: usize = 16;

/// What waits to be delivered.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    waiting: VecDeque<Fanout>,
    receivers: usize,
    /// When the next slice is due.
    due: Instant,
    /// Deliveries since `pace_began`.
    paced: usize,
    pace_began: Instant,
    /// Until when somebody chats.
    chat_until: Instant,
}

/// Pushes for the same receivers, in their order.
#[derive(Debug)]
struct Fanout {
    pushes: Vec<Push>,
    /// Those still to be served, the next one last.
    keys: Vec<ConnKey>,
    /// Some were served: no push may be added.
    is_begun: bool,
}

impl Fanouts {
    /// When the next slice is due, if one waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    /// How many deliveries the slice has that is due now; sets when the next one is.
    fn next_slice(&mut self, now: Instant) -> usize {
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

    /// Until when somebody chats.
    pub(super) const fn chat_until(&self) -> Instant {
        self.chat_until
    }

    /// Writes them down; [`Self::chat_until`] goes with the shard.
    pub(super) fn freeze(&self, out: &mut Section) {
        let Self { waiting, receivers: _, due: _, chat_until: _, paced: _, pace_began: _ } = self;
        for Fanout { pushes, keys, is_begun } in waiting {
            let pushes = pushes.iter().map(|push| parcel_of(push).freeze(out)).collect();
            let keys = keys.iter().map(|key| key.as_u64()).collect();
            out.put(Item::Fanout(FanoutRecord { pushes, keys, is_begun: *is_begun }));
        }
    }

    /// Reads one.
    pub(super) fn thaw(&mut self, record: &FanoutRecord, from: &Records) -> Result<(), SnapshotError> {
        let FanoutRecord { pushes, keys, is_begun } = record;
        let push = |parcel: &ParcelRecord| Ok(push_of(Parcel::thaw(parcel, from)?));
        let pushes = pushes.iter().map(push).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<ConnKey> = keys.iter().map(|key| ConnKey::from_u64(*key)).collect();
        self.receivers += keys.len() * pushes.len();
        self.waiting.push_back(Fanout { pushes, keys, is_begun: *is_begun });
        Ok(())
    }

    /// Somebody chats until then.
    pub(super) const fn thaw_chat(&mut self, until: Instant) {
        self.chat_until = until;
    }

    /// A message of the urgent lanes came by.
    pub(super) fn on_chat(&mut self, now: Instant) {
        self.chat_until = now + CHAT;
    }
}

/// A push to many, as it is toward each.
fn parcel_of(push: &Push) -> Parcel {
    let Push { ticket, targets: _, command, lane, expires_at, body, packed, except: _, collapse } =
        push.clone();
    Parcel { ticket, command, lane, expires_at, body, packed, collapse, also: Vec::new() }
}

fn push_of(parcel: Parcel) -> Push {
    let Parcel { ticket, command, lane, expires_at, body, packed, collapse, also: _ } = parcel;
    Push { ticket, targets: Vec::new(), command, lane, expires_at, body, packed, except: None, collapse }
}

impl Shard {
    /// Whether [`Self::handle_fanout`] has something to do.
    pub fn has_fanout(&self, now: Instant) -> bool {
        self.fanouts.deadline().is_some_and(|due| due <= now)
    }

    pub(super) fn begin_fanout(&mut self, push: Push, mut keys: Vec<ConnKey>, outputs: &mut Outputs) {
        let Fanouts { waiting, receivers, .. } = &mut self.fanouts;
        if waiting.len() >= FANOUTS_MAX || *receivers + keys.len() > RECEIVERS_MAX {
            self.tally[Count::FanoutsRefused] += 1;
            keys.into_iter().for_each(|key| report(push.ticket, key, Outcome::Full, outputs));
            return;
        }
        *receivers += keys.len();
        self.tally[Count::Fanouts] += 1;
        keys.reverse(); // taken from the end
        match waiting.back_mut() {
            Some(last) if !last.is_begun && last.pushes.len() < TOGETHER_MAX && last.keys == keys => {
                last.pushes.push(push);
            }
            _ => waiting.push_back(Fanout { pushes: vec![push], keys, is_begun: false }),
        }
    }

    /// Delivers the next slice if it is due. The owner calls it last in each turn.
    pub fn handle_fanout(&mut self, now: Instant, outputs: &mut Outputs) {
        if !self.has_fanout(now) {
            return;
        }
        let mut budget = self.fanouts.next_slice(now);
        while budget > 0 {
            let Some(mut fanout) = self.fanouts.waiting.pop_front() else { return };
            fanout.is_begun = true;
            let together = fanout.pushes.len();
            let count = fanout.keys.len().min(budget.div_ceil(together));
            for key in fanout.keys.split_off(fanout.keys.len() - count).into_iter().rev() {
                for push in &fanout.pushes {
                    self.deliver(now, key, push, outputs);
                }
            }
            budget = budget.saturating_sub(count * together);
            self.fanouts.receivers -= count * together;
            if !fanout.keys.is_empty() {
                self.fanouts.waiting.push_front(fanout);
            }
        }
    }
}
