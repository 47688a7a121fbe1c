//! What shards send: HELLOs to judge, client frames, login changes, outcomes of pushes.

use super::Count;
use super::Worker;
use crate::handoff::{Downlink, PushTicket, Target, Uplink, UplinkBatch};
use crate::link::{Seat, Slot, Up};
use crate::router::Change;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::link::Kind;
use moorline_proto::message;
use moorline_proto::message::backend::{Outcome, PushOutcome};

/// A Req of which only the id is read: the rest is the backend's to judge, and costs nothing here.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ReqLead {
    #[prost(uint32, tag = "1")]
    id: u32,
}

impl Worker {
    pub(super) fn handle_batch(&mut self, batch: UplinkBatch) {
        let from = batch.from;
        for item in batch.items {
            self.handle_uplink(from, item);
        }
    }

    fn handle_uplink(&mut self, from: ShardId, item: Uplink) {
        match item {
            Uplink::Login { key, hello, .. } => self.handle_login(key, hello),
            Uplink::Up { key, pin, command, seq, dup, body } => {
                let Some(number) = self.number_of(key, command, seq, &body) else { return };
                let slot = Slot::of(pin);
                let up = Up { key, slot, command, number, is_dup: dup, taken_at: self.now, body };
                self.handle_up(up);
            }
            Uplink::ConnUp { pin, login } => self.handle_change(Slot::of(pin), Change::Up(login)),
            Uplink::ConnDown { key, pin, code } => {
                self.handle_change(Slot::of(pin), Change::Down { key, code });
            }
            Uplink::Pushed { ticket, key, outcome } => self.handle_outcome(ticket, key, outcome),
            Uplink::Digest { round, rooms, is_last } => self.handle_digest(from, round, rooms, is_last),
            Uplink::Held { ticket, held } => self.handle_held(ticket, held),
            Uplink::Announced { request, logins, is_last } => {
                let announcements = &mut self.announcements;
                // One that is not there any more was for a link that died meanwhile.
                if let Some(one) = announcements.iter_mut().find(|one| one.request == request) {
                    one.handle_part(from, logins, is_last);
                }
            }
        }
    }

    /// What the answer will be told by. `None`: the frame does not decode and its connection is ended.
    fn number_of(&mut self, key: ConnKey, command: Command, cid: u32, body: &Bytes) -> Option<u32> {
        match command {
            Command::Send => Some(cid),
            // SUB and UNSUB have their id in the same field.
            Command::Req | Command::Sub | Command::Unsub => match message::decode::<ReqLead>(body) {
                Ok(lead) => Some(lead.id),
                Err(reason) => {
                    self.tally[Count::BadRequests] += 1;
                    self.outbox.push(key.shard(), kick_of(key, reason));
                    None
                }
            },
            _ => Some(0),
        }
    }

    fn handle_up(&mut self, up: Up) {
        self.tally[Count::Ups] += 1;
        if let Seat::Live(link) = self.slots.seat(up.slot)
            && self.parking.is_empty(up.slot)
            && self.links[link.index()].has_room_for(&up)
        {
            if up.is_question() {
                self.slots.on_asked(up.slot);
            }
            self.links[link.index()].send_up(up);
        } else if let Err(up) = self.parking.try_park(up) {
            self.tally[Count::UpsRefused] += 1;
            self.answer_retry(&up);
        }
    }

    /// Answers RETRY, if anybody waits for an answer.
    pub(super) fn answer_retry(&mut self, up: &Up) {
        if !up.is_question() {
            self.tally[Count::UpsDropped] += 1;
            return;
        }
        self.tally[Count::Retries] += 1;
        let answer = self.answers.retry(up, &mut self.random);
        self.outbox.push(up.key.shard(), answer);
    }

    fn handle_change(&mut self, slot: Slot, change: Change) {
        match self.slots.seat(slot) {
            // The announcement to come names who is there then; the backend drops the others itself.
            Seat::Unassigned => self.tally[Count::ChangesSkipped] += 1,
            Seat::Live(link) if self.parking.is_empty(slot) => self.send_change(link, &change),
            Seat::Live(link) | Seat::Announcing(link) => {
                if let Err(change) = self.parking.try_park_change(slot, change) {
                    self.on_changes_full(slot, link, change);
                }
            }
        }
    }

    pub(super) fn send_change(&mut self, link: crate::link::LinkIndex, change: &Change) {
        match change {
            Change::Up(login) => self.link(link).send(Kind::ConnUp, 0, login.as_ref()),
            Change::Down { key, code } => {
                self.link(link).send(Kind::ConnDown, 0, &Change::down(*key, *code));
            }
        }
    }

    fn handle_outcome(&mut self, ticket: PushTicket, key: ConnKey, outcome: Outcome) {
        let link = self.links.get_mut(usize::from(ticket.link)).filter(|link| {
            let is_same_life = link.state.generation() == ticket.link_generation;
            ticket.worker == self.settings.number && is_same_life && link.state.is_open()
        });
        let Some(link) = link else {
            self.tally[Count::OutcomesStale] += 1;
            return;
        };
        self.tally[Count::PushOutcomes] += 1;
        let (correlation, handle, outcome) = (ticket.correlation, key.as_u64(), outcome.into());
        link.push_outcome(PushOutcome { correlation, handle, outcome });
    }
}

/// Ends one connection for what it sent.
fn kick_of(key: ConnKey, reason: CloseReason) -> Downlink {
    Downlink::Kick {
        target: Target::Connection(key),
        login_version: 0,
        code: reason.code(),
        may_reconnect: reason.may_reconnect(),
        reason: reason.text().trim().into(),
    }
}
