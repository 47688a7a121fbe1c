//! Slots of a cluster: which node takes which users, by SLOTS and MOVED of the nodes. Pure.
//!
//! Node 1 answers the UP of alice MOVED {slot, node 2}. Everything of her slot that node 1 has not answered is taken back, node 1
//! is sent LEAVE, and the slot is announced on a link to node 2: ANNOUNCE, then the UPs with `dup`, in their old order. A slot
//! whose owner is not known, or has no link, waits; its UPs are answered RETRY after their timeout.

use super::counters::Count;
use super::{Announcements, Endpoints, Failure, LinkIndex, Sides, SlotSet, SlotState, Spread, Ups};
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, Leave};
use moorline_proto::slots::{Moved, NodeRoutes, Route, SlotTable};
use moorline_proto::time::Instant;

/// State of the slots of a cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    routes: NodeRoutes,
    /// Slots that are not announced before [`Self::resume_at`]: their node may not have heard yet that it owns them.
    paused: SlotSet,
    resume_at: Instant,
    /// Link that was asked for the owners last.
    asked: u16,
}

impl Cluster {
    /// The rule by which slots go to links.
    pub(super) const fn spread(&self) -> Spread<'_> {
        Spread::Owner(self.routes.table(), &self.paused)
    }

    /// Notes that owners of slots are not known.
    pub(super) const fn note_behind(&mut self) {
        self.routes.note_behind();
    }

    /// Slots whose owner has changed, and was not looked at.
    fn take_moved(&mut self) -> SlotSet {
        std::iter::from_fn(|| self.routes.poll_moved()).collect()
    }

    /// Time at which [`Placing::go_on`] has something to do.
    pub(super) fn next_deadline(&self) -> Instant {
        let resume = if self.paused.is_empty() { Instant::FAR_FUTURE } else { self.resume_at };
        self.routes.next_deadline().map_or(resume, |ask| ask.min(resume))
    }
}

/// The parts of a router that decide which link takes which slots.
pub(super) struct Placing<'a> {
    pub(super) sides: &'a mut Sides,
    pub(super) endpoints: &'a mut Endpoints,
    pub(super) ups: &'a mut Ups,
    pub(super) announcements: &'a mut Announcements,
    /// `None`: backends are of no cluster.
    pub(super) cluster: Option<&'a mut Cluster>,
}

impl Placing<'_> {
    /// Takes the owners of all slots.
    pub(super) fn on_slots(&mut self, slots: &backend::Slots) -> Result<(), Failure> {
        let table = SlotTable::of(slots).ok_or(LinkError::Body(Kind::Slots))?;
        let Some(cluster) = &mut self.cluster else { return Err(LinkError::Unexpected(Kind::Slots).into()) };
        cluster.routes.handle_slots(&table);
        self.move_slots();
        Ok(())
    }

    /// Takes a node's answer that it does not own the slot of a user.
    pub(super) fn on_moved(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), Failure> {
        let moved: backend::Moved = frame.message()?;
        let moved = Moved::of(&moved).ok_or(LinkError::Body(frame.kind))?;
        let Some(cluster) = &mut self.cluster else { return Err(LinkError::Unexpected(frame.kind).into()) };
        self.sides.counters[Count::SlotsMoved] += 1;
        let (now, slot) = (self.sides.now, moved.slot);
        if let Route::Wait(at) = cluster.routes.handle_moved(now, moved, 0) {
            cluster.resume_at = if cluster.paused.is_empty() { at } else { cluster.resume_at.min(at) };
            cluster.paused.insert(slot);
        }
        let state = self.ups.slots.state(slot);
        let is_here = matches!(state, SlotState::Live(link) | SlotState::Announcing(link) if link == index);
        if is_here {
            self.leave(index, &std::iter::once(slot).collect());
        }
        // An answer holds credit no more, also if the question was taken back.
        if frame.correlation != 0 {
            self.sides.links[index].take_question(frame.correlation);
            self.sides.links[index].confirmed.on_answer(frame.correlation);
        }
        self.move_slots();
        Ok(())
    }

    /// Does what is due about slots of a cluster.
    pub(super) fn go_on(&mut self) {
        let now = self.sides.now;
        let Some(cluster) = &mut self.cluster else { return };
        if !cluster.paused.is_empty() && cluster.resume_at <= now {
            cluster.paused = SlotSet::EMPTY;
            self.assign();
        }
        self.ask_for_slots();
    }

    /// Asks one node for the owners, if they are not known.
    fn ask_for_slots(&mut self) {
        let now = self.sides.now;
        let Some(cluster) = &mut self.cluster else { return };
        if !cluster.routes.try_ask(now) {
            return;
        }
        let links: Vec<LinkIndex> =
            self.sides.links.indices().filter(|link| self.sides.links[*link].state.is_open()).collect();
        // Another one each time: a node may be behind.
        let next = links.iter().find(|link| link.0 > cluster.asked).or(links.first());
        if let Some(link) = next.copied() {
            cluster.asked = link.0;
            self.sides.links[link].send_empty(Kind::Slots, 0);
            self.sides.counters[Count::SlotsAsked] += 1;
        }
    }

    /// Takes slots that another node owns now from the links of the old ones, and gives them to the new ones.
    fn move_slots(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        let moved = cluster.take_moved();
        if !moved.is_empty() {
            let table = cluster.routes.table().clone();
            for index in self.sides.links.indices() {
                let node = self.sides.links[index].node;
                let wrong = self.ups.slots.on(index, &moved);
                let wrong: SlotSet = wrong.iter().filter(|slot| table.owner(*slot).node != node).collect();
                self.leave(index, &wrong);
            }
        }
        self.assign();
    }

    /// Takes slots from a link that lives: its node does not own them.
    fn leave(&mut self, index: LinkIndex, slots: &SlotSet) {
        if slots.is_empty() {
            return;
        }
        let number = self.sides.last_announcement;
        let link = &mut self.sides.links[index];
        let unanswered = link.take_back_questions(self.sides.now, |up| slots.contains(up.slot));
        let body = Leave { slots: slots.iter().map(|slot| slot.number().into()).collect() };
        link.send(Kind::Leave, number.into(), &body);
        for slot in slots.iter() {
            self.announcements.remove_slot(slot);
            // The next announcement names them, if they last until then.
            self.sides.counters[Count::ChangesSkipped] += self.ups.parking.drop_logins(slot) as u64;
        }
        self.ups.slots.free(slots);
        self.ups.take_back(self.sides, unanswered, Vec::new());
    }

    /// Gives slots without a link to one. False: there is no link.
    pub(super) fn assign(&mut self) -> bool {
        let targets = self.endpoints.targets(self.sides.now, &self.sides.links);
        let spread = self.cluster.as_deref().map_or_else(|| self.endpoints.spread(), Cluster::spread);
        let moves = self.ups.slots.assign(&targets, spread);
        self.announcements.begin(self.sides, moves);
        // The owners of slots that have no link may be others than the table says.
        if let Some(cluster) = &mut self.cluster
            && !self.ups.slots.unassigned().is_empty()
        {
            cluster.note_behind();
        }
        !targets.is_empty()
    }
}
