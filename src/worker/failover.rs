//! Links come and go: which link takes which slot, who is announced there, and what is sent again.
//!
//! The order a backend sees on a link for one slot: ANNOUNCE of all its logins, then the UPs that an
//! earlier link left unanswered (with `dup`, in their old order), then what waited meanwhile, then
//! new ones. So a user's frames reach the backend in order across any number of failures.

use super::Count;
use super::Worker;
use crate::handoff::Downlink;
use crate::link::{Failure, LinkIndex, Moves, Slot, SlotSet};
use crate::router::Announcement;
use crate::router::{Change, Parked};
use moorline_proto::ids::ShardId;
use moorline_proto::link::Kind;

impl Worker {
    /// A link greeted: it takes slots that have none, then its share of idle ones.
    pub(super) fn on_link_ready(&mut self) {
        self.assign();
        self.needs_balance = true;
    }

    /// A link is broken, refused or misbehaves: closes it and moves what was on it.
    pub(super) fn on_link_failed(&mut self, index: LinkIndex, failure: &Failure) {
        let link = &mut self.links[index.index()];
        let (address, was_open, attempts) = (link.address(), link.state.is_open(), link.state.attempts());
        let retry_in = link.close(self.now, &mut self.random);
        let number = self.settings.number;
        if was_open || attempts == 0 {
            tracing::warn!(worker = number, link = index.0, %address, %failure, ?retry_in, "link down");
        } else {
            tracing::debug!(worker = number, link = index.0, %address, %failure, ?retry_in, "link still down");
        }
        self.tally[Count::LinkFailures] += 1;
        self.tally[Count::LinkErrors] += u64::from(matches!(failure, Failure::Protocol(_)));

        self.forget_queries(index);
        self.ask_again(index);
        self.announcements.retain(|announcement| announcement.link != index);
        for slot in self.slots.free_of(index).iter() {
            // The next announcement names them, if they last until then.
            self.tally[Count::ChangesSkipped] += self.parking.drop_logins(slot) as u64;
        }
        for mut up in self.links[index.index()].pending.drain_waiting().into_iter().rev() {
            up.is_dup = true;
            self.slots.on_settled(up.slot);
            self.parking.requeue(up);
            self.tally[Count::Reroutes] += 1;
        }
        if !self.assign() {
            self.force_breakers();
        }
    }

    /// Gives slots without a link to one. False: there is none.
    fn assign(&mut self) -> bool {
        let targets = self.targets();
        let moves = self.slots.assign(&targets, self.endpoints.spread());
        self.begin_announcements(moves);
        !targets.is_empty()
    }

    /// Moves idle slots to where they should be, as far as they are idle now.
    pub(super) fn rebalance(&mut self) {
        let (targets, spread) = (self.targets(), self.endpoints.spread());
        let busy = self.slots.busy().union(self.parking.occupied());
        let moves = self.slots.rebalance(&targets, spread, busy);
        self.begin_announcements(moves);
        self.needs_balance = !self.slots.is_balanced(&targets, spread);
    }

    /// Too many login changes wait: announces this slot again instead of its waiting logins. Without
    /// any, gives its link up, and the backend forgets what ended together with the link.
    pub(super) fn on_changes_full(&mut self, slot: Slot, link: LinkIndex, change: Change) {
        let dropped = self.parking.drop_logins(slot);
        self.tally[Count::ChangesSkipped] += dropped as u64;
        if dropped == 0 {
            return self.on_link_failed(link, &Failure::Behind(self.settings.parking.changes));
        }
        if matches!(change, Change::Down { .. }) {
            self.parking.try_park_change(slot, change).expect("there is room since logins were dropped");
        } else {
            self.tally[Count::ChangesSkipped] += 1;
        }
        self.announcements.iter_mut().for_each(|announcement| announcement.slots.remove(slot));
        if let Some(link) = self.slots.set_announcing(slot) {
            let mut slots = SlotSet::EMPTY;
            slots.insert(slot);
            self.begin_announcements(vec![(link, slots)]);
        }
    }

    /// Writes announcements as far as shards have answered and outputs have room. One at a time per
    /// link, so that `more` has a meaning.
    pub(super) fn pump_announcements(&mut self) {
        let mut at = 0;
        while at < self.announcements.len() {
            let (earlier, rest) = self.announcements.split_at_mut(at);
            let announcement = &mut rest[0];
            let link = &mut self.links[announcement.link.index()];
            at += 1;
            if earlier.iter().any(|other| other.link == announcement.link) {
                continue;
            }
            while link.has_output_room()
                && let Some(frame) = announcement.next_frame()
            {
                self.tally[Count::LoginsAnnounced] += frame.connections.len() as u64;
                link.send(Kind::Announce, 0, &frame);
            }
            if announcement.is_finished() {
                self.slots.set_live(announcement.slots);
                at -= 1;
                self.announcements.remove(at);
            }
        }
    }

    /// Sends what waits for slots that are live on a link, slot by slot, as far as it has room.
    pub(super) fn unpark(&mut self, index: LinkIndex) {
        if self.parking.occupied().is_empty() || !self.links[index.index()].state.is_open() {
            return;
        }
        let live = self.slots.live_on(index);
        // Another slot goes first each turn, so that none starves the others of credit.
        let first = usize::try_from(self.tally[Count::Turns] % 64).unwrap_or(0);
        for slot in live.iter_from(first) {
            while let Some(front) = self.parking.front(slot) {
                let link = &self.links[index.index()];
                let has_room = match front {
                    Parked::Up(up) => link.has_room_for(up),
                    Parked::Change(_) => link.has_output_room(),
                };
                if !has_room {
                    break;
                }
                match self.parking.pop(slot).expect("there is a front") {
                    Parked::Up(up) => {
                        if up.is_question() {
                            self.slots.on_asked(slot);
                        }
                        self.link(index).send_up(up);
                    }
                    Parked::Change(change) => self.send_change(index, &change),
                }
            }
        }
    }

    /// Asks every shard for the logins of slots that go to a link.
    fn begin_announcements(&mut self, moves: Moves) {
        for (link, slots) in moves {
            self.next_request = self.next_request.wrapping_add(1);
            let (worker, request) = (self.settings.number, self.next_request);
            let shards = self.outbox.shards();
            self.tally[Count::Announces] += 1;
            self.announcements.push(Announcement::new(request, link, slots, shards));
            for shard in (0..shards).filter_map(|shard| u8::try_from(shard).ok()) {
                let item = Downlink::Announce { worker, request, slots: slots.bits() };
                self.outbox.push(ShardId(shard), item);
            }
        }
    }
}
