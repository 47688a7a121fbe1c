//! Removal of the content of messages of groups that are gone: a bounded piece at a time, by the owners of their slots.
//!
//! `group:tea` with a million messages is dissolved: the transaction notes in the cell up to which seq they go. The owner of the slot has
//! the cell empty [`ROWS`] of them, and after a pause the next ones, until none is left. The cell knows what is to be done, so whoever owns
//! the slot goes on, and what is done twice is done once. An emptied message is a void for all; its key stays, for repetitions.

use super::{CellId, ClusterStore};
use crate::cluster::cell::CellRequest;
use crate::cluster::store::ownership::Pending;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Messages that one request empties.
pub(super) const ROWS: usize = 512;
/// Pause between two requests to a cell while there is something to remove.
const PAUSE: Duration = Duration::from_millis(100);
/// Time between two looks for something to remove: the owner of before may have left it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Removal in the cells.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// Time of the next request to each cell. `None`: one is under way.
    next: BTreeMap<CellId, Option<Instant>>,
}

impl Sweeper {
    /// Notes that there is something to remove.
    pub(super) fn wake(&mut self, cell: CellId, now: Instant) {
        if let Some(Some(at)) = self.next.get_mut(&cell) {
            *at = now.min(*at);
        }
    }

    /// Time of the next request.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next.values().copied().flatten().min()
    }
}

/// Removal by a node.
pub(super) struct Sweeping<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Sweeping<'_> {
    /// Asks cells to remove what is due.
    pub(super) fn sweep(&mut self) {
        let now = self.store.now;
        for cell in (0..self.store.layout.cells).map(CellId) {
            let next = self.store.sweeper.next.entry(cell).or_insert(Some(now + LOOK_EVERY));
            if next.is_none_or(|at| at > now) {
                continue;
            }
            *next = Some(now + LOOK_EVERY);
            let layout = self.store.layout;
            let owned = self.store.slots.iter().filter(|(_, owned)| owned.is_ready);
            let fences = owned.filter(|(slot, _)| layout.cell(**slot) == cell);
            let fences: Vec<_> = fences.map(|(slot, owned)| (*slot, owned.epoch)).collect();
            if !fences.is_empty() && self.store.members.is_held(now) {
                self.store.sweeper.next.insert(cell, None);
                let request = CellRequest::Sweep(self.store.me, fences, self.store.limits.sweep_rows);
                self.store.ask(cell, request, Pending::Sweep(cell));
            }
        }
    }

    /// Takes the number of messages that were emptied. `None`: there was nothing to do, or nobody knows.
    pub(super) fn on_swept(&mut self, cell: CellId, removed: Option<u64>) {
        self.store.status.swept += removed.unwrap_or(0);
        let pause = if removed.is_some() { PAUSE } else { LOOK_EVERY };
        self.store.sweeper.next.insert(cell, Some(self.store.now + pause));
    }
}
