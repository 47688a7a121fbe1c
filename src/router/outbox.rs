//! What goes to the shards: gathered over a turn, one hand-over per shard and turn.

use crate::handoff::{Downlink, DownlinkBatch, ShardSink};
use moorline_proto::ids::ShardId;

/// Above so many items that one shard did not take, the worker stops reading its links.
pub(crate) const OUTBOX_ITEMS_MAX: usize = 16 << 10;
/// Above so many it takes nothing from its mailbox either.
pub(crate) const OUTBOX_ITEMS_HARD_MAX: usize = 4 * OUTBOX_ITEMS_MAX;
/// A fresh batch has room for as many items as the last one had, up to this.
const BATCH_ROOM_MAX: usize = 512;

/// One lane per shard.
pub(crate) struct Outbox {
    lanes: Vec<Lane>,
    most: usize,
}

struct Lane {
    sink: Box<dyn ShardSink>,
    items: Vec<Downlink>,
}

impl Outbox {
    pub(crate) fn new(sinks: Vec<Box<dyn ShardSink>>) -> Self {
        let lane = |sink| Lane { sink, items: Vec::new() };
        Self { lanes: sinks.into_iter().map(lane).collect(), most: 0 }
    }

    /// How many shards there are.
    pub(crate) const fn shards(&self) -> usize {
        self.lanes.len()
    }

    /// Adds an item. What is meant for a shard that does not exist is dropped: its connection cannot
    /// exist either.
    pub(crate) fn push(&mut self, shard: ShardId, item: Downlink) {
        if let Some(lane) = self.lanes.get_mut(shard.index()) {
            lane.items.push(item);
            self.most = self.most.max(lane.items.len());
        }
    }

    /// Items that wait for the slowest shard.
    pub(crate) const fn longest(&self) -> usize {
        self.most
    }

    /// Whether nothing waits.
    pub(crate) const fn is_empty(&self) -> bool {
        self.most == 0
    }

    /// Hands over what waits, once per shard. Returns how many mailboxes were full; what they did not
    /// take stays, in order.
    pub(crate) fn flush(&mut self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        self.most = 0;
        let mut refusals = 0;
        for lane in self.lanes.iter_mut().filter(|lane| !lane.items.is_empty()) {
            let room = Vec::with_capacity(lane.items.len().min(BATCH_ROOM_MAX));
            let items = std::mem::replace(&mut lane.items, room);
            if let Err(batch) = lane.sink.try_deliver(DownlinkBatch { items }) {
                lane.items = batch.items;
                self.most = self.most.max(lane.items.len());
                refusals += 1;
            }
        }
        refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ConnKey;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Mailbox(Arc<Mutex<(bool, Vec<u64>)>>);

    impl ShardSink for Mailbox {
        fn try_deliver(&self, batch: DownlinkBatch) -> Result<(), DownlinkBatch> {
            let mut inner = self.0.lock().expect("unpoisoned");
            if inner.0 {
                return Err(batch);
            }
            let key = |item| match item {
                Downlink::Verdict { key, .. } => key.as_u64(),
                other => panic!("{other:?}"),
            };
            inner.1.extend(batch.items.into_iter().map(key));
            Ok(())
        }
    }

    #[test]
    fn a_full_mailbox_keeps_its_items_in_order_and_hinders_no_other() {
        let (slow, quick) = (Mailbox::default(), Mailbox::default());
        let mut outbox = Outbox::new(vec![Box::new(slow.clone()), Box::new(quick.clone())]);
        slow.0.lock().expect("unpoisoned").0 = true;
        for round in 0..3 {
            for shard in 0..3 {
                let verdict = Err(moorline_proto::error::CloseReason::Busy);
                let item = Downlink::Verdict { key: ConnKey::from_u64(round), verdict };
                outbox.push(ShardId(shard), item);
            }
            assert_eq!(outbox.flush(), 1);
        }
        assert_eq!(outbox.longest(), 3);
        assert_eq!(quick.0.lock().expect("unpoisoned").1, [0, 1, 2]);
        slow.0.lock().expect("unpoisoned").0 = false;
        assert_eq!((outbox.flush(), outbox.is_empty()), (0, true));
        assert_eq!(slow.0.lock().expect("unpoisoned").1, [0, 1, 2]);
    }
}
