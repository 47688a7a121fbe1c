//! Client frames on their way to backends: sent, parked, answered, timed out. Pure.

use super::counters::Count;
use super::parking::ParkingLimits;
use super::{
    Answers, Change, End, Endpoints, LinkIndex, LinkSettings, Overload, OverloadLimits, Parked, Parking,
    Sides, Slot, SlotState, Slots, Split, Taken, Up,
};
use crate::messages::Rank;
use moorline_proto::frame::Lane;
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::UpResult;
use moorline_proto::message::client::Code;

/// Bytes that the gateway's own fields add to an answer, at most.
const ANSWER_LEAD_MAX: usize = 24;

/// Slots, the frames that wait for them, and what becomes of a frame.
#[derive(Debug)]
pub(super) struct Ups {
    pub(super) slots: Slots,
    pub(super) parking: Parking,
    pub(super) overload: Overload,
    answers: Answers,
    /// Bytes of a body that clients accept.
    body_max: usize,
    /// Memory for UPs that time out together.
    timed_out: Vec<Up>,
}

impl Ups {
    pub(super) fn new(
        parking: ParkingLimits,
        overload: OverloadLimits,
        link: &LinkSettings,
        split: Split,
    ) -> Self {
        Self {
            slots: Slots::new(split),
            parking: Parking::new(parking, link.up_timeout, split),
            overload: Overload::new(overload),
            answers: Answers::new(),
            body_max: link.body_max,
            timed_out: Vec::new(),
        }
    }

    /// Sends an UP, or parks it behind those of its slot; if too many wait, answers RETRY.
    pub(super) fn handle_up(&mut self, sides: &mut Sides, up: Up) {
        sides.counters[Count::Ups] += 1;
        if let SlotState::Live(link) = self.slots.state(up.slot)
            && self.parking.is_empty(up.slot)
            && sides.links[link].has_room_for(&up)
        {
            if up.is_question() {
                self.slots.on_asked(up.slot);
            }
            sides.links[link].send_up(up);
        } else if let Err(up) = self.parking.try_park(up) {
            sides.counters[Count::UpsRefused] += 1;
            self.answer_retry(sides, &up);
        }
    }

    /// Answers RETRY, if anybody waits for an answer.
    fn answer_retry(&mut self, sides: &mut Sides, up: &Up) {
        if !up.is_question() {
            sides.counters[Count::UpsDropped] += 1;
            return;
        }
        sides.counters[Count::Retries] += 1;
        let answer = self.answers.retry(up, &mut sides.random);
        sides.shards.push(up.key.shard(), answer);
    }

    /// Takes a backend's answer. True: weights of endpoints have changed.
    pub(super) fn on_up_result(
        &mut self,
        sides: &mut Sides,
        endpoints: &mut Endpoints,
        index: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<bool, LinkError> {
        let result: UpResult = frame.message()?;
        let link = &mut sides.links[index];
        let taken = link.take_question(frame.correlation);
        if !matches!(taken, Taken::Unknown) {
            link.confirmed.on_answer(frame.correlation);
        }
        match taken {
            Taken::Answered(up) => {
                sides.counters[Count::UpResults] += 1;
                let took = sides.now.saturating_since(up.taken_at);
                sides.counters.record_latency(took);
                self.overload.record(sides.now, took);
                self.slots.on_settled(up.slot);
                let rank = Rank::of(result.rank, Lane::Control);
                let answer = if result.answer.len() + ANSWER_LEAD_MAX > self.body_max {
                    // The client would close the connection, come back, and ask again.
                    sides.counters[Count::AnswersTooLarge] += 1;
                    self.answers.answer(&up, (Code::TooLarge.into(), rank), &[])
                } else {
                    self.answers.answer(&up, (result.code, rank), &result.answer)
                };
                sides.shards.push(up.key.shard(), answer);
                Ok(endpoints.on_answer(sides.now, index, took))
            }
            Taken::Late => {
                sides.counters[Count::LateResults] += 1;
                Ok(false)
            }
            Taken::Unknown => Err(LinkError::Unexpected(frame.kind)),
        }
    }

    /// Answers RETRY to UPs whose time is up, sent or not.
    pub(super) fn expire(&mut self, sides: &mut Sides, endpoints: &mut Endpoints) {
        let now = sides.now;
        let mut timed_out = std::mem::take(&mut self.timed_out);
        for (number, link) in (0..).zip(sides.links.iter_mut()) {
            let before = timed_out.len();
            link.expire_questions(now, |up| timed_out.push(up));
            timed_out[before..].iter().for_each(|_| endpoints.on_timeout(now, LinkIndex(number)));
        }
        for up in &timed_out {
            self.slots.on_settled(up.slot);
        }
        self.parking.expire(now, |up| timed_out.push(up));
        for up in timed_out.drain(..) {
            sides.counters[Count::UpTimeouts] += 1;
            self.overload.record(now, now.saturating_since(up.taken_at));
            self.answer_retry(sides, &up);
        }
        self.timed_out = timed_out;
    }

    /// Puts what a dead link left unread back to the heads of the lines, in order: UPs without an answer, then ends.
    pub(super) fn take_back(&mut self, sides: &mut Sides, unanswered: Vec<Up>, ends: Vec<End>) {
        ends.into_iter().rev().for_each(|end| self.parking.requeue_end(end));
        for mut up in unanswered.into_iter().rev() {
            up.is_dup = true;
            self.slots.on_settled(up.slot);
            self.parking.requeue(up);
            sides.counters[Count::Reroutes] += 1;
        }
    }

    /// Sends what waits for slots that are live on a link, slot by slot, as far as the link has room.
    pub(super) fn unpark(&mut self, sides: &mut Sides, index: LinkIndex) {
        if self.parking.occupied().is_empty() || !sides.links[index].state.is_open() {
            return;
        }
        let live = self.slots.live_on(index);
        // Another slot goes first each turn, so that none starves the others of credit.
        let first = usize::try_from(sides.counters[Count::Turns] % 64).unwrap_or(0);
        for slot in live.iter_from(first) {
            while let Some(front) = self.parking.front(slot) {
                let link = &sides.links[index];
                let has_room = match front {
                    Parked::Up(up) => link.has_room_for(up),
                    Parked::Change(Change::Up(_)) => link.has_output_room(),
                    Parked::Change(Change::Down { .. }) => link.has_room_for_end(),
                };
                if !has_room {
                    break;
                }
                match self.parking.pop(slot).expect("there is a front") {
                    Parked::Up(up) => {
                        if up.is_question() {
                            self.slots.on_asked(slot);
                        }
                        sides.links[index].send_up(up);
                    }
                    Parked::Change(change) => send_change(sides, index, slot, &change),
                }
            }
        }
    }

    /// Sends a login change, or parks it behind what waits of its slot. `Err`: too many changes wait.
    pub(super) fn handle_change(
        &mut self,
        sides: &mut Sides,
        slot: Slot,
        change: Change,
    ) -> Result<(), Change> {
        let is_end = matches!(change, Change::Down { .. });
        match self.slots.state(slot) {
            // The announcement to come names the logins of its time.
            SlotState::Unassigned if !is_end => sides.counters[Count::ChangesSkipped] += 1,
            SlotState::Live(link)
                if self.parking.is_empty(slot)
                    && (!is_end || sides.links[link].confirmed.has_room_for_end()) =>
            {
                send_change(sides, link, slot, &change);
            }
            // An end is told in any case: another link, which lives, may have spoken for the session before.
            _ => return self.parking.try_park_change(slot, change),
        }
        Ok(())
    }
}

fn send_change(sides: &mut Sides, link: LinkIndex, slot: Slot, change: &Change) {
    let (link, number) = (&mut sides.links[link], sides.last_announcement);
    match change {
        Change::Up(login) => {
            link.note_sent(slot);
            link.send(Kind::ConnUp, number.into(), login.as_ref());
        }
        &Change::Down { key, code } => link.send_end(End { slot, key, code }),
    }
}
