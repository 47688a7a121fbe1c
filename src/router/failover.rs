//! Links come and go: which link takes which slot, which logins are announced there, and what is sent again.
//!
//! The order that a backend sees on a link for one slot: ANNOUNCE of all its logins, then the UPs that an
//! earlier link left unanswered (with `dup`, in their old order), then the ends of logins that may not have been
//! read there, then what waited meanwhile, then new UPs. So a user's frames reach the backend in order across any
//! number of failures.

use super::cluster::{Cluster, Placing};
use super::counters::Count;
use super::{Change, Failure, LinkIndex, Output, Router, Slot, SlotSet, SlotState};

impl Router {
    /// A link greeted: it takes slots that have no link, then its share of idle slots.
    pub(super) fn on_link_ready(&mut self) {
        self.placing().assign();
        self.needs_balance = true;
    }

    /// Gives a connection up, and moves what was on it.
    pub(super) fn fail_link(&mut self, index: LinkIndex, failure: &Failure) {
        self.sides.outputs.push_back(Output::Close(index));
        self.on_link_closed(index, failure);
    }

    /// A connection is gone: moves what was on it.
    pub(super) fn on_link_closed(&mut self, index: LinkIndex, failure: &Failure) {
        let (number, now) = (self.sides.number, self.sides.now);
        let link = &mut self.sides.links[index];
        let (address, was_open, attempts) =
            (link.endpoint().clone(), link.state.is_open(), link.state.attempts());
        let ends = link.confirmed.ends().collect();
        let retry_in = link.close(now, &mut self.sides.random);
        let is_news = if failure.is_of_trust() {
            self.greetings.allows_refusal(now)
        } else {
            was_open || attempts == 0
        };
        if is_news {
            tracing::warn!(worker = number, link = index.0, %address, %failure, ?retry_in, "link down");
        } else {
            tracing::debug!(worker = number, link = index.0, %address, %failure, ?retry_in, "link still down");
        }
        let unanswered = link.drain_questions();
        self.settings.stores.release(now, (number, index), &address, failure);
        self.sides.counters[Count::LinkFailures] += 1;
        self.sides.counters[Count::LinkErrors] += u64::from(matches!(failure, Failure::Protocol(_)));

        self.rooms.on_link_closed(index);
        self.logins.on_link_closed(&mut self.sides, index);
        self.announcements.on_link_closed(index);
        for slot in self.ups.slots.free_of(index).iter() {
            // The next announcement names them, if they last until then.
            self.sides.counters[Count::ChangesSkipped] += self.ups.parking.drop_logins(slot) as u64;
        }
        self.ups.take_back(&mut self.sides, unanswered, ends);
        if !self.placing().assign() {
            self.endpoints.force_breakers(now, &mut self.sides.links);
        }
    }

    /// Leaves endpoints alone that do not answer, if there is another that is well: others do their work for a while.
    pub(super) fn trip_breakers(&mut self) {
        let now = self.sides.now;
        for place in self.endpoints.take_suspects() {
            let targets = self.endpoints.targets(now, &self.sides.links);
            if !self.endpoints.has_other(place, &targets) {
                continue;
            }
            let until = self.endpoints.trip(now, place, &mut self.sides.random);
            self.sides.counters[Count::BreakerTrips] += 1;
            for index in self.endpoints.links_of(place) {
                if self.sides.links[index].state.is_open() {
                    self.fail_link(index, &Failure::Tripped);
                }
                self.sides.links[index].state.wait_until(until);
            }
        }
    }

    /// Returns the parts that decide which link takes which slots.
    pub(super) fn placing(&mut self) -> Placing<'_> {
        let Self { sides, endpoints, ups, announcements, cluster, .. } = self;
        Placing { sides, endpoints, ups, announcements, cluster: cluster.as_deref_mut() }
    }

    /// Moves idle slots to where they should be, as far as they are idle now and their links' backends have read
    /// what was sent of them.
    pub(super) fn rebalance(&mut self) {
        let spread = self.cluster.as_deref().map_or_else(|| self.endpoints.spread(), Cluster::spread);
        let targets = self.endpoints.targets(self.sides.now, &self.sides.links);
        let busy = self.ups.slots.busy().union(self.ups.parking.occupied());
        let unconfirmed =
            |index: LinkIndex| self.sides.links[index].confirmed.unconfirmed(self.ups.slots.live_on(index));
        let all_unconfirmed =
            self.sides.links.indices().map(unconfirmed).fold(SlotSet::EMPTY, SlotSet::union);
        let moves = self.ups.slots.rebalance(&targets, spread, busy.union(all_unconfirmed));
        self.announcements.begin(&mut self.sides, moves);
        let away = self.ups.slots.away(&targets, spread);
        self.needs_balance = !away.is_empty();
        for slot in away.iter().filter(|slot| all_unconfirmed.contains(*slot) && !busy.contains(*slot)) {
            if let SlotState::Live(link) = self.ups.slots.state(slot) {
                self.sides.links[link].send_barrier();
            }
        }
    }

    /// Handles a login change that does not fit the parking. If logins of this slot wait, the slot is announced again
    /// instead. If none does, the slot's link is closed, because it accepts nothing. At twice the limit every open link
    /// is closed and all waiting changes are dropped: the backend ends those sessions with the lease.
    pub(super) fn on_changes_full(&mut self, slot: Slot, change: Change) {
        let dropped = self.ups.parking.drop_logins(slot);
        self.sides.counters[Count::ChangesSkipped] += dropped as u64;
        if dropped > 0 {
            return self.announce_instead(slot, change);
        }
        if !self.ups.parking.has_spare() {
            for index in self.sides.links.indices() {
                if self.sides.links[index].state.is_open() {
                    self.fail_link(index, &Failure::Behind(2 * self.settings.parking.changes));
                }
            }
            self.sides.counters[Count::ChangesSkipped] += 1 + self.ups.parking.drop_changes() as u64;
            return;
        }
        if let SlotState::Live(link) = self.ups.slots.state(slot) {
            self.fail_link(link, &Failure::Behind(self.settings.parking.changes));
            if matches!(change, Change::Up(_)) {
                self.sides.counters[Count::ChangesSkipped] += 1; // the announcement that has begun names it
                return;
            }
        }
        self.ups.parking.park_change(slot, change);
    }

    /// Announces a slot again; only the end of a login is still to be told.
    fn announce_instead(&mut self, slot: Slot, change: Change) {
        if matches!(change, Change::Down { .. }) {
            self.ups.parking.park_change(slot, change);
        } else {
            self.sides.counters[Count::ChangesSkipped] += 1;
        }
        self.announcements.remove_slot(slot);
        if let Some(link) = self.ups.slots.set_announcing(slot) {
            let mut slots = SlotSet::EMPTY;
            slots.insert(slot);
            self.announcements.begin(&mut self.sides, vec![(link, slots)]);
        }
    }
}
