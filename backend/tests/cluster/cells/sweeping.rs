//! Removal of the content of messages of groups that are gone.

use super::{Cells, ConversationTable};
use bytes::Bytes;
use moorline_backend::cluster::cell::slot_of;
use moorline_proto::slots::{NodeId, Owner, Slot};

impl Cells {
    /// Empties the oldest messages of one group that is gone.
    pub(super) fn sweep(&mut self, node: NodeId, fences: &[(Slot, u64)], limit: usize) -> Option<u64> {
        let owners = &self.owners;
        let is_held = |slot: Slot| {
            let known = fences.iter().find(|(known, _)| *known == slot);
            known.is_some_and(|(_, epoch)| owners.owner(slot) == Owner { node: Some(node), epoch: *epoch })
        };
        let mut tables = self.conversations.values_mut();
        // Numbers have their slots in front.
        let table =
            tables.find(|it| it.doomed.is_some() && is_held(slot_of(it.row.conversation.number())))?;
        let (done, upto) = table.doomed?;
        let old: Vec<_> = table.messages.range_mut(done + 1..(upto + 1).max(done + 1)).take(limit).collect();
        let count = old.len();
        let last = old.last().map(|(seq, _)| **seq);
        for (_, message) in old {
            (message.body, message.is_counted) = (Bytes::new(), false);
        }
        table.doomed = last.filter(|_| count == limit).map(|last| (last, upto));
        Some(count as u64)
    }
}

impl ConversationTable {
    /// Notes that all messages of now are to be emptied.
    pub(super) fn doom(&mut self) {
        let latest = self.messages.last_key_value().map_or(0, |(seq, _)| *seq);
        if latest > 0 {
            let done = self.doomed.map_or(0, |(done, _)| done);
            self.doomed = Some((done, latest));
        }
    }

    /// True while messages are to be emptied.
    pub(crate) const fn is_doomed(&self) -> bool {
        self.doomed.is_some()
    }
}
