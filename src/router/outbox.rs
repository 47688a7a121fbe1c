//! Items for the shards: gathered over a turn, handed over as one batch per shard and turn. Pure.

use super::Output;
use crate::messages::{Downlink, DownlinkBatch};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Items waiting for one shard above which the router takes no bytes of links.
pub(super) const OUTBOX_ITEMS_MAX: usize = 16 << 10;
/// Items waiting for one shard above which the router takes no batches of shards either.
pub(super) const OUTBOX_ITEMS_HARD_MAX: usize = 4 * OUTBOX_ITEMS_MAX;
/// A fresh batch has room for as many items as the last one had, up to this.
const BATCH_ROOM_MAX: usize = 512;
/// Delay before a refused batch is tried again; nothing else tells that the mailbox has room.
const DELIVERY_RETRY: Duration = Duration::from_millis(1);

/// One lane per shard.
#[derive(Debug)]
pub(super) struct Outbox {
    lanes: Vec<Lane>,
    longest: usize,
}

#[derive(Debug, Default)]
struct Lane {
    items: Vec<Downlink>,
    /// The shard's mailbox was full this turn.
    is_refused: bool,
}

impl Outbox {
    pub(super) fn new(shards: usize) -> Self {
        Self { lanes: (0..shards).map(|_| Lane::default()).collect(), longest: 0 }
    }

    /// Number of shards.
    pub(super) const fn shards(&self) -> usize {
        self.lanes.len()
    }

    /// Every shard.
    pub(super) fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.lanes.len()).filter_map(|shard| u8::try_from(shard).ok()).map(ShardId)
    }

    /// Adds an item. An item for a shard that does not exist is dropped: its connection cannot exist either.
    pub(super) fn push(&mut self, shard: ShardId, item: Downlink) {
        if let Some(lane) = self.lanes.get_mut(shard.index()) {
            lane.items.push(item);
            self.longest = self.longest.max(lane.items.len());
        }
    }

    /// Adds an item for every shard.
    pub(super) fn push_to_all(&mut self, make: impl Fn() -> Downlink) {
        self.ids().for_each(|shard| self.push(shard, make()));
    }

    /// Handles by shard; handles of shards that do not exist are dropped.
    pub(super) fn by_shard(&self, handles: &[u64]) -> Vec<Vec<ConnKey>> {
        let mut parts: Vec<Vec<ConnKey>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for key in handles.iter().map(|handle| ConnKey::from_u64(*handle)) {
            if let Some(part) = parts.get_mut(key.shard().index()) {
                part.push(key);
            }
        }
        parts
    }

    /// Items that wait for the slowest shard.
    pub(super) const fn longest(&self) -> usize {
        self.longest
    }

    /// True if no item waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.longest == 0
    }

    /// Hands over the items that wait, as one batch per shard.
    pub(super) fn flush(&mut self, outputs: &mut VecDeque<Output>) {
        if self.is_empty() {
            return;
        }
        self.longest = 0;
        for (shard, lane) in (0u8..).zip(&mut self.lanes).filter(|(_, lane)| !lane.items.is_empty()) {
            let room = Vec::with_capacity(lane.items.len().min(BATCH_ROOM_MAX));
            let items = std::mem::replace(&mut lane.items, room);
            lane.is_refused = false;
            outputs.push_back(Output::Deliver { shard: ShardId(shard), batch: DownlinkBatch { items } });
        }
    }

    /// Takes a batch back that a full mailbox refused; it stays in front of later items.
    pub(super) fn take_back(&mut self, shard: ShardId, batch: DownlinkBatch) {
        let lane = &mut self.lanes[shard.index()];
        let mut items = batch.items;
        items.append(&mut lane.items);
        lane.items = items;
        lane.is_refused = true;
        self.longest = self.longest.max(lane.items.len());
    }

    /// Time of the next hand-over: at once, or a moment later for a shard whose mailbox was full.
    pub(super) fn next_deadline(&self, now: Instant) -> Instant {
        if self.is_empty() {
            return Instant::FAR_FUTURE;
        }
        let is_new = |lane: &Lane| !lane.is_refused && !lane.items.is_empty();
        if self.lanes.iter().any(is_new) { now } else { now + DELIVERY_RETRY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(key: u64) -> Downlink {
        let verdict = Err(moorline_proto::error::CloseReason::Busy);
        Downlink::Verdict { key: ConnKey::from_u64(key), verdict }
    }

    fn keys(batch: &DownlinkBatch) -> Vec<u64> {
        let key = |item: &Downlink| match item {
            Downlink::Verdict { key, .. } => key.as_u64(),
            other => panic!("{other:?}"),
        };
        batch.items.iter().map(key).collect()
    }

    #[test]
    fn a_full_mailbox_keeps_its_items_in_order_and_hinders_no_other() {
        let (mut outbox, mut outputs, mut quick) = (Outbox::new(2), VecDeque::new(), Vec::new());
        for round in 0..3 {
            (0..3).for_each(|shard| outbox.push(ShardId(shard), verdict(round)));
            assert_eq!(outbox.next_deadline(Instant::ZERO), Instant::ZERO, "something new waits");
            outbox.flush(&mut outputs);
            while let Some(Output::Deliver { shard, batch }) = outputs.pop_front() {
                if shard == ShardId(0) {
                    outbox.take_back(shard, batch);
                } else {
                    quick.append(&mut keys(&batch));
                }
            }
            assert_eq!(outbox.next_deadline(Instant::ZERO), Instant::ZERO + DELIVERY_RETRY);
        }
        assert_eq!((outbox.longest(), quick), (3, vec![0, 1, 2]));
        outbox.push(ShardId(0), verdict(3));
        outbox.flush(&mut outputs);
        let Some(Output::Deliver { batch, .. }) = outputs.pop_front() else { panic!("a batch") };
        assert_eq!((keys(&batch), outbox.is_empty()), (vec![0, 1, 2, 3], true));
    }
}
