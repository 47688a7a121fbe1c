//! Invariants of a router, for tests that call [`Router::check`] after every turn.

use super::{LinkIndex, Router, Slot, SlotState};

impl Router {
    /// Panics if the parts of the router contradict each other.
    pub fn check(&self) {
        self.ups.parking.check();
        let mut waiting = vec![0; self.sides.split.slots()];
        for link in self.sides.links.iter() {
            let questions = link.pending.freeze().1.filter_map(|(up, _)| up);
            questions.for_each(|up| waiting[up.slot.index()] += 1);
        }
        for (slot, waiting) in Slot::all().zip(waiting) {
            let number = slot.number();
            assert_eq!(self.ups.slots.waiting(slot), waiting, "questions of slot {number}");
            let (is_live, link) = match self.ups.slots.state(slot) {
                SlotState::Live(link) => (true, link),
                SlotState::Announcing(link) => (false, link),
                SlotState::Unassigned => continue,
            };
            assert!(self.sides.links[link].state.is_open(), "slot {number} is on a link that is not open");
            let is_announced = self.announcements.is_on(link, slot);
            assert!(is_live || is_announced, "slot {number} waits for an announcement that is not there");
        }
    }

    /// The open link that speaks for each slot of this router; `None`: none does now.
    pub fn links_of_slots(&self) -> impl Iterator<Item = Option<LinkIndex>> {
        Slot::all().take(self.sides.split.slots()).map(|slot| match self.ups.slots.state(slot) {
            SlotState::Live(link) => Some(link),
            SlotState::Announcing(_) | SlotState::Unassigned => None,
        })
    }

    /// True if a link exchanges frames with its backend.
    pub fn is_open(&self, link: LinkIndex) -> bool {
        self.sides.links[link].state.is_open()
    }

    /// True if every slot is live on a link, nothing waits and every question is answered.
    pub fn is_settled(&self) -> bool {
        let is_answered = self.sides.links.iter().all(|link| link.pending.len() == 0);
        is_answered
            && self.links_of_slots().all(|link| link.is_some())
            && self.ups.parking.occupied().is_empty()
            && self.sides.shards.is_empty()
            && !self.logins.is_waiting()
    }
}
