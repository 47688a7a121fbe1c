//! The judge: every message that was sent, and every device that saw it. Pure.
//!
//! The checker believes nobody's numbers. A message is known by its content ([`Stamp`]); its bytes are
//! computed again and compared; its place in the conversation must be the same for its sender and all
//! receivers.
//!
//! A delivery is *lost* only if that is proven: the message is durable at place 7, and the receiver was given
//! a later place, or the backend told it that place 7 holds nothing. A durable message that did not come and
//! that nothing was given after is *undelivered*: it may still be on its way.

#[cfg(test)]
mod tests;

use crate::client::Receipt;
use crate::content::Stamp;
use crate::roster::Roster;
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::time::Instant;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Faults, and doubts, told in words; the rest is only counted.
const FAULTS_TOLD: usize = 10;

/// Counts of what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    /// Messages given to a client.
    pub(crate) sent: u64,
    /// Messages that were answered as durable.
    pub(crate) stored: u64,
    /// Durable messages that an earlier try had stored.
    pub(crate) repeated: u64,
    /// Messages that ended without being durable.
    pub(crate) failed: u64,
    /// Messages that were answered more than once.
    pub(crate) answered_again: u64,
    /// First arrivals at a device, intact.
    pub(crate) delivered: u64,
    /// Further arrivals at the same device.
    pub(crate) duplicated: u64,
    /// Arrived after a later one of the same sender, or after a later place of the conversation.
    pub(crate) reordered: u64,
    /// Altered bytes, wrong sender, wrong conversation or another place than others saw.
    pub(crate) corrupted: u64,
}

/// The judgement at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Deliveries of durable messages that are proven to be lost; counted per device.
    pub(crate) lost: u64,
    /// Deliveries of durable messages that did not come, and are not proven to be lost.
    pub(crate) undelivered: u64,
    /// Messages without any answer.
    pub(crate) unanswered: u64,
    pub(crate) tally: Tally,
    /// The first faults, in words.
    pub(crate) faults: Vec<String>,
    /// The first undelivered messages, in words.
    pub(crate) doubts: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Stored,
    Failed,
}

/// State of one message.
#[derive(Clone, Copy, Debug)]
struct Sent {
    intended: Instant,
    outcome: Outcome,
    /// Place in the conversation; 0: not known yet.
    place: u64,
}

/// Messages of one sender in one conversation that one device saw, by counter.
#[derive(Clone, Debug, Default)]
struct Seen {
    highest: u32,
    /// Counters below the highest that did not come.
    missing: BTreeSet<u32>,
}

impl Seen {
    fn has(&self, counter: u32) -> bool {
        counter <= self.highest && !self.missing.contains(&counter)
    }
}

/// One device in one conversation.
#[derive(Debug)]
struct Part {
    /// By counter, from 1.
    sent: Vec<Sent>,
    /// By the sender's place in the conversation.
    seen: Vec<Seen>,
    /// The highest place of the conversation that arrived.
    last_place: u64,
    /// The backend says that up to here nothing more will come.
    vacant_to: u64,
}

impl Part {
    /// Returns true if the device will not be given this place any more.
    fn has_passed(&self, place: u64) -> bool {
        place != 0 && place <= self.last_place.max(self.vacant_to)
    }
}

/// Durable messages of one sender in one conversation that one device has not seen.
struct Unseen {
    sender: u32,
    conversation: u32,
    messages: u64,
    /// Messages of these that will not come: proven losses.
    passed: u64,
}

/// The ledger of one run.
#[derive(Debug)]
pub(crate) struct Checker {
    roster: Arc<Roster>,
    seed: u64,
    /// By device, then by seat.
    parts: Vec<Vec<Part>>,
    tally: Tally,
    /// Deliveries still to come.
    owed: u64,
    faults: Vec<String>,
}

impl Checker {
    pub(crate) fn new(roster: Arc<Roster>, seed: u64) -> Self {
        let mut parts = Vec::with_capacity(roster.devices.len());
        for device in &roster.devices {
            let seats = device.seats.iter().map(|seat| {
                let others = roster.conversations[seat.conversation as usize].devices.len();
                Part { sent: Vec::new(), seen: vec![Seen::default(); others], last_place: 0, vacant_to: 0 }
            });
            parts.push(seats.collect());
        }
        Self { roster, seed, parts, tally: Tally::default(), owed: 0, faults: Vec::new() }
    }

    /// Begins a message of a device; returns its key and content.
    pub(crate) fn begin(&mut self, device: u32, seat: usize, intended: Instant) -> (MessageKey, Bytes) {
        let conversation = self.roster.device(device).seats[seat].conversation;
        let sent = &mut self.parts[device as usize][seat].sent;
        sent.push(Sent { intended, outcome: Outcome::Open, place: 0 });
        let counter = u32::try_from(sent.len()).expect("bounded by rate and duration");
        self.tally.sent += 1;
        self.owed += self.receivers(conversation);
        let stamp = Stamp { sender: device, conversation, counter, intended };
        (stamp.key(self.seed), stamp.content(self.seed))
    }

    /// Takes the receipt of a send. Returns the intended time if the receipt is new.
    pub(crate) fn on_stored(&mut self, device: u32, receipt: &Receipt) -> Option<Instant> {
        let (at, conversation) = self.answer(device, receipt.key, Outcome::Stored)?;
        self.tally.stored += 1;
        self.tally.repeated += u64::from(receipt.is_repeat);
        let expected = Arc::clone(&self.roster.conversations[conversation as usize].id);
        if *receipt.conversation != *expected {
            let fault =
                format!("{}: stored in {}, not in {expected}", self.name(device), receipt.conversation);
            self.corrupted(fault);
        } else if !self.has_place(device, at, receipt.seq) {
            let fault = format!(
                "{}: its message is at {} in {expected}, others saw it elsewhere",
                self.name(device),
                receipt.seq
            );
            self.corrupted(fault);
        }
        Some(self.sent(device, at).intended)
    }

    /// Takes the refusal of a send.
    pub(crate) fn on_failed(&mut self, device: u32, key: MessageKey, why: &str) {
        if let Some((_, conversation)) = self.answer(device, key, Outcome::Failed) {
            self.tally.failed += 1;
            self.owed = self.owed.saturating_sub(self.receivers(conversation));
            let id = &self.roster.conversations[conversation as usize].id;
            let fault = format!("{}: a message to {id} failed: {why}", self.name(device));
            self.tell(fault);
        }
    }

    /// Takes a message that arrived at a device. Returns the intended time if it is intact and new.
    pub(crate) fn on_message(&mut self, receiver: u32, message: &Push) -> Option<Instant> {
        let Some((stamp, at)) = self.recognise(receiver, message) else {
            let fault = format!(
                "{}: place {} of {} is not what anybody sent there",
                self.name(receiver),
                message.seq,
                message.conversation
            );
            self.corrupted(fault);
            return None;
        };
        let Stamp { sender, conversation, counter, intended } = stamp;
        let (_, from) = self.roster.seat_in(sender, conversation).expect("recognised");
        let (to, _) = self.roster.seat_in(receiver, conversation).expect("recognised");
        if !self.has_place(sender, at, message.seq) {
            let fault =
                format!("{}: {stamp:?} is at {}, others saw it elsewhere", self.name(receiver), message.seq);
            self.corrupted(fault);
        }
        let part = &mut self.parts[receiver as usize][to];
        let seen = &mut part.seen[from.place as usize];
        let is_late = counter <= seen.highest;
        if is_late && !seen.missing.remove(&counter) {
            self.tally.duplicated += 1;
            let fault = format!("{}: {stamp:?} came again", self.name(receiver));
            self.tell(fault);
            return None;
        }
        if !is_late {
            seen.missing.extend(seen.highest + 1..counter);
            seen.highest = counter;
        }
        let is_reordered = is_late || message.seq <= part.last_place;
        part.last_place = part.last_place.max(message.seq);
        self.tally.delivered += 1;
        self.owed = self.owed.saturating_sub(1);
        if is_reordered {
            self.tally.reordered += 1;
            let fault = format!("{}: {stamp:?} at {} came too late", self.name(receiver), message.seq);
            self.tell(fault);
        }
        Some(intended)
    }

    /// Messages without an answer so far.
    pub(crate) const fn unanswered(&self) -> u64 {
        self.tally.sent - self.tally.stored - self.tally.failed
    }

    /// Deliveries that are still to come.
    pub(crate) const fn owed(&self) -> u64 {
        self.owed
    }

    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes the backend's word to a device: up to this place, the conversation holds nothing beyond what came.
    pub(crate) fn on_vacant(&mut self, receiver: u32, seat: usize, to: u64) {
        if let Some(part) = self.parts[receiver as usize].get_mut(seat) {
            part.vacant_to = part.vacant_to.max(to);
        }
    }

    /// Devices that lack a durable message.
    pub(crate) fn lacking(&self) -> Vec<u32> {
        let devices = 0..u32::try_from(self.parts.len()).expect("numbered so");
        devices.filter(|device| !self.unseen_by(*device).is_empty()).collect()
    }

    /// The judgement, when nothing more will come.
    pub(crate) fn verdict(mut self) -> Verdict {
        let (mut lost, mut undelivered, mut doubts) = (0, 0, Vec::new());
        for receiver in 0..u32::try_from(self.parts.len()).expect("numbered so") {
            for Unseen { sender, conversation, messages, passed } in self.unseen_by(receiver) {
                let id = &self.roster.conversations[conversation as usize].id;
                let of = format!("from {} in {id} to {}", self.name(sender), self.name(receiver));
                let open = messages - passed;
                (lost, undelivered) = (lost + passed, undelivered + open);
                if open > 0 && doubts.len() < FAULTS_TOLD {
                    doubts.push(format!("{open} messages {of} have not come, and nothing after them has"));
                }
                if passed > 0 {
                    self.tell(format!("{passed} messages {of} did not come, and later ones did"));
                }
            }
        }
        let unanswered = self.unanswered();
        Verdict { lost, undelivered, unanswered, tally: self.tally, faults: self.faults, doubts }
    }

    /// Durable messages that a device has not seen, by sender and conversation.
    fn unseen_by(&self, receiver: u32) -> Vec<Unseen> {
        let mut unseen = Vec::new();
        for (part, seat) in self.parts[receiver as usize].iter().zip(&self.roster.device(receiver).seats) {
            let conversation = seat.conversation;
            let senders = &self.roster.conversations[conversation as usize].devices;
            for (seen, &sender) in part.seen.iter().zip(senders) {
                if sender == receiver {
                    continue;
                }
                let (from, _) = self.roster.seat_in(sender, conversation).expect("it sits there");
                let (mut messages, mut passed) = (0, 0);
                for (counter, sent) in (1..).zip(&self.parts[sender as usize][from].sent) {
                    if sent.outcome == Outcome::Stored && !seen.has(counter) {
                        messages += 1;
                        passed += u64::from(part.has_passed(sent.place));
                    }
                }
                if messages > 0 {
                    unseen.push(Unseen { sender, conversation, messages, passed });
                }
            }
        }
        unseen
    }

    /// Finds the message that a content describes; `None`: something is not as it was sent.
    fn recognise(&self, receiver: u32, message: &Push) -> Option<(Stamp, (usize, usize))> {
        let stamp = Stamp::read(&message.payload)?;
        let Stamp { sender, conversation, counter, .. } = stamp;
        let (seat, _) = self.roster.seat_in(sender, conversation)?;
        self.roster.seat_in(receiver, conversation)?;
        let index = (counter as usize).checked_sub(1)?;
        let sent = self.parts[sender as usize][seat].sent.get(index)?;
        let is_same = sender != receiver
            && sent.intended == stamp.intended
            && stamp.content(self.seed) == message.payload
            && self.roster.conversations[conversation as usize].id[..] == message.conversation
            && **self.roster.uid_of(sender) == message.sender
            && self.roster.device(sender).name == message.sender_device;
        is_same.then_some((stamp, (seat, index)))
    }

    /// Takes an answer; `None`: there was one before.
    fn answer(&mut self, device: u32, key: MessageKey, outcome: Outcome) -> Option<((usize, usize), u32)> {
        let (sender, conversation, counter) = Stamp::read_key(key);
        let seat = self.roster.seat_in(sender, conversation).filter(|_| sender == device);
        let sent = seat.and_then(|(seat, _)| {
            let index = (counter as usize).checked_sub(1)?;
            Some(((seat, index), self.parts[device as usize][seat].sent.get_mut(index)?))
        });
        match sent {
            Some((at, sent)) if sent.outcome == Outcome::Open => {
                sent.outcome = outcome;
                Some((at, conversation))
            }
            Some(_) => {
                self.tally.answered_again += 1;
                let fault = format!("{}: message {counter} was answered again", self.name(device));
                self.tell(fault);
                None
            }
            None => {
                let fault = format!("{}: an answer to a message that it did not send", self.name(device));
                self.corrupted(fault);
                None
            }
        }
    }

    /// Compares a message's place with the one that was seen first.
    fn has_place(&mut self, sender: u32, (seat, index): (usize, usize), place: u64) -> bool {
        let sent = &mut self.parts[sender as usize][seat].sent[index];
        if sent.place == 0 {
            sent.place = place;
        }
        place != 0 && sent.place == place
    }

    fn sent(&self, device: u32, (seat, index): (usize, usize)) -> Sent {
        self.parts[device as usize][seat].sent[index]
    }

    fn receivers(&self, conversation: u32) -> u64 {
        self.roster.conversations[conversation as usize].devices.len() as u64 - 1
    }

    fn corrupted(&mut self, fault: String) {
        self.tally.corrupted += 1;
        self.tell(fault);
    }

    fn tell(&mut self, fault: String) {
        if self.faults.len() < FAULTS_TOLD {
            self.faults.push(fault);
        }
    }

    fn name(&self, device: u32) -> String {
        format!("{}/{}", self.roster.uid_of(device), self.roster.device(device).name)
    }
}
