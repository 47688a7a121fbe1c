//! Input of shards: HELLOs to judge, client frames, login changes, outcomes of pushes.

use super::counters::Count;
use super::{Change, Router, Sides, Slot, Up};
use crate::messages::{PushRef, Uplink};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::message::backend::{Outcome, PushOutcome};

impl Router {
    pub(super) fn handle_item(&mut self, from: ShardId, item: Uplink) {
        let sides = &mut self.sides;
        match item {
            Uplink::Login { key, hello, .. } => self.logins.handle_login(sides, key, hello),
            Uplink::Up { key, pin, command, number, is_dup, body } => {
                let (slot, taken_at) = (sides.split.slot_of(pin), sides.now);
                self.ups.handle_up(sides, Up { key, slot, command, number, is_dup, taken_at, body });
            }
            Uplink::ConnUp { pin, login } => {
                let slot = sides.split.slot_of(pin);
                self.handle_change(slot, Change::Up(login));
            }
            Uplink::ConnDown { key, pin, code } => {
                let slot = sides.split.slot_of(pin);
                self.handle_change(slot, Change::Down { key, code });
            }
            Uplink::Pushed { ticket, key, outcome } => handle_outcome(sides, ticket, key, outcome),
            Uplink::Digest { round, rooms, is_last } => {
                self.rooms.handle_digest(sides, &self.ups.slots, from, (round, rooms, is_last));
            }
            Uplink::Held { ticket, held } => self.rooms.handle_held(sides, ticket, held),
            Uplink::Announced { request, logins, is_last } => {
                self.announcements.handle_part(sides.split, from, request, (logins, is_last));
            }
        }
    }

    fn handle_change(&mut self, slot: Slot, change: Change) {
        if let Err(change) = self.ups.handle_change(&mut self.sides, slot, change) {
            self.on_changes_full(slot, change);
        }
    }
}

fn handle_outcome(sides: &mut Sides, ticket: PushRef, key: ConnKey, outcome: Outcome) {
    let is_mine = ticket.worker == sides.number;
    let Some(link) = sides.links.of(&ticket).filter(|_| is_mine) else {
        sides.counters[Count::OutcomesStale] += 1;
        return;
    };
    let (correlation, handle, outcome) = (ticket.correlation, key.as_u64(), outcome.into());
    link.push_outcome(PushOutcome { correlation, handle, outcome });
    sides.counters[Count::PushOutcomes] += 1;
}
