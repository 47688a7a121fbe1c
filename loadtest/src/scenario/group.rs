//! Groups: one writer each, everyone a reader, every delivery checked.
//!
//! Clients are grouped by their number: the first `members` are the first group, its first client is
//! the writer. The writer creates the group and the others join while the fleet comes in, as far as the
//! wire knows such things. Closed loop: the next message of a group leaves when as many deliveries are
//! done that only `window - 1` messages are under way.

use super::lead::{self, Lead};
use super::outflow::{DUE_PER_TURN, Line, Load, Outflow};
use crate::dialect::{Ask, Dialect, Event, Message, Outcome, To};
use crate::findings::Recorder;
use crate::fleet::{Clients, Scenario};
use crate::integrity::{Arrival, Arrivals};
use crate::phase::Phase;
use crate::record::Metric;
use bytes::Bytes;
use moorline_proto::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// Sent and received messages of a client; a reader sends nothing.
#[derive(Debug, Default)]
pub struct Member {
    line: Option<Box<Line>>,
    arrivals: Arrivals,
    is_in: bool,
    /// Highest number that a pull brought.
    pulled: u32,
    /// Messages that the member was notified of and has not pulled; `None`: there are none.
    missed: Option<Missed>,
}

/// Messages of a group that a member pulls.
#[derive(Clone, Copy, Debug)]
struct Missed {
    /// First seq; everything up to the newest is pulled.
    from: u64,
    /// First seq of what came to be missed meanwhile.
    then: Option<u64>,
}

/// State of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    is_open: bool,
    /// Closed loop: deliveries that are not done yet.
    missing: u32,
}

/// The scenario and what it found.
#[derive(Debug)]
pub struct Group {
    run: u32,
    payload_bytes: u32,
    members: u32,
    /// Closed loop: messages of a group under way at most.
    window: Option<u32>,
    outflow: Outflow,
    rooms: Vec<Room>,
    /// Clients that are in their group, or never will be.
    settled: u32,
    /// Clients that were told to ask later, by when: to be let in, or for what they missed.
    again: VecDeque<(Instant, u32)>,
    under_way: i64,
    delivered: u64,
    recorder: Recorder,
}

/// The pause before a client asks again that was told RETRY.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Group {
    /// `groups` of `members` clients each, the writer included.
    pub fn new(load: Load, groups: u32, members: u32, payload_bytes: u32, backlog_for: Duration) -> Self {
        // Deliveries pace a closed loop, not answers, which not every wire has.
        let (load, window) = match load {
            Load::Closed { window } => (Load::Closed { window: u32::MAX }, Some(window)),
            Load::Open { .. } => (load, None),
        };
        Self {
            run: lead::new_run(),
            payload_bytes,
            members,
            window,
            outflow: Outflow::new(load, groups, backlog_for),
            rooms: vec![Room::default(); groups as usize],
            settled: 0,
            again: VecDeque::new(),
            under_way: 0,
            delivered: 0,
            recorder: Recorder::new(Metric::Deliver),
        }
    }

    const fn writer(&self, group: u32) -> u32 {
        group * self.members
    }

    /// Asks to be let in, where the wire has such a question.
    fn ask<D: Dialect>(&mut self, clients: &mut Clients<D, Member>, who: u32) {
        let group = who / self.members;
        let what = if who == self.writer(group) { Ask::Create(group) } else { Ask::Join(group) };
        if !clients.ask(who, what) {
            self.settle(clients, who, true);
        }
    }

    fn settle<D: Dialect>(&mut self, clients: &mut Clients<D, Member>, who: u32, is_in: bool) {
        self.settled += 1;
        clients.extra(who).is_in = is_in;
        self.recorder.findings.tally.refused += u64::from(!is_in);
        let group = who / self.members;
        if who == self.writer(group) && is_in {
            self.rooms[group as usize].is_open = true;
            let readers = who + 1..who + self.members;
            readers
                .filter(|who| clients.is_active(*who))
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|who| self.ask(clients, who));
        }
    }

    fn send_while_room<D: Dialect>(&mut self, clients: &mut Clients<D, Member>, group: u32, now: Instant) {
        let from = self.writer(group);
        while clients.is_active(from)
            && self.outflow.is_due(clients.extra(from).line.get_or_insert_default(), now)
        {
            if let Some(window) = self.window
                && self.rooms[group as usize].missing > (window - 1) * (self.members - 1)
            {
                return;
            }
            self.send(clients, group, now);
        }
    }

    fn send<D: Dialect>(&mut self, clients: &mut Clients<D, Member>, group: u32, now: Instant) {
        let from = self.writer(group);
        let readers = (from + 1..from + self.members).filter(|who| clients.is_active(*who)).count();
        let number = self.outflow.send(clients.extra(from).line.get_or_insert_default(), now);
        let intended = self.outflow.intended(group, number, now);
        let payload =
            Lead { run: self.run, from, number, sent_at: now, intended }.payload(self.payload_bytes);
        self.under_way += i64::try_from(readers).unwrap_or(i64::MAX);
        self.rooms[group as usize].missing += u32::try_from(readers).unwrap_or(u32::MAX);
        clients.send(Message { from, cid: number, number, to: To::Group(group), ack: 0, payload });
    }

    /// Asks for the messages that a member was notified of, as every client does.
    fn pull<D: Dialect>(&self, clients: &mut Clients<D, Member>, who: u32) {
        if let Some(Missed { from, .. }) = clients.extra(who).missed {
            clients.ask(who, Ask::Pull { group: who / self.members, from });
        }
    }

    /// Notes that a member is to pull messages.
    fn handle_missed<D: Dialect>(&mut self, clients: &mut Clients<D, Member>, who: u32, from: u64) {
        match &mut clients.extra(who).missed {
            Some(missed) => missed.then = missed.then.map_or(Some(from), |then| Some(then.min(from))),
            missed @ None => {
                *missed = Some(Missed { from, then: None });
                self.pull(clients, who);
            }
        }
    }

    fn handle_pulled<D: Dialect>(
        &mut self,
        clients: &mut Clients<D, Member>,
        who: u32,
        (payloads, rest): (Option<Vec<Bytes>>, Option<u64>),
        now: Instant,
    ) {
        let Some(payloads) = payloads else { return self.again.push_back((now + ASK_AGAIN_AFTER, who)) };
        for payload in &payloads {
            self.handle_delivery(clients, who, (payload, true), now);
        }
        let missed = &mut clients.extra(who).missed;
        *missed = missed.and_then(|Missed { then, .. }| match rest {
            Some(from) => Some(Missed { from, then }),
            None => then.map(|from| Missed { from, then: None }),
        });
        self.pull(clients, who);
    }

    /// `is_pulled`: the message comes by a pull, which overlaps with pushes, and comes behind later ones or before its own push.
    fn handle_delivery<D: Dialect>(
        &mut self,
        clients: &mut Clients<D, Member>,
        who: u32,
        (payload, is_pulled): (&[u8], bool),
        now: Instant,
    ) {
        let group = who / self.members;
        let Some(lead) = Lead::of(payload).filter(|lead| lead.run == self.run) else { return };
        if lead.from != self.writer(group) || lead.from == who {
            self.recorder.findings.tally.duplicated += 1; // delivered to somebody it was never sent to
            return;
        }
        let member = clients.extra(who);
        let arrival = member.arrivals.arrive(lead.number);
        if is_pulled {
            member.pulled = member.pulled.max(lead.number);
        } else {
            self.recorder.findings.tally.count_push(arrival, lead.number, member.pulled);
        }
        if arrival == Arrival::Again {
            return;
        }
        self.under_way -= 1;
        self.delivered += 1;
        if self.outflow.counts(lead.intended) {
            self.recorder.record(Metric::Deliver, now.saturating_since(lead.intended));
            self.recorder.record(Metric::DeliverRaw, now.saturating_since(lead.sent_at));
        }
        let room = &mut self.rooms[group as usize];
        room.missing = room.missing.saturating_sub(1);
        if self.window.is_some() {
            self.send_while_room(clients, group, now);
        }
    }

    fn handle_answer<D: Dialect>(
        &mut self,
        clients: &mut Clients<D, Member>,
        who: u32,
        (cid, outcome): (u32, Outcome),
        now: Instant,
    ) {
        let group = who / self.members;
        let line = clients.extra(who).line.get_or_insert_default();
        let is_first = self.outflow.handle_answer(&mut self.recorder, (group, line), (cid, outcome), now);
        if is_first && outcome != Outcome::Done {
            self.under_way -= i64::from(self.members - 1);
            let room = &mut self.rooms[group as usize];
            room.missing = room.missing.saturating_sub(self.members - 1);
        }
        self.send_while_room(clients, group, now);
    }
}

impl<D: Dialect> Scenario<D> for Group {
    type Extra = Member;

    fn on_phase(&mut self, clients: &mut Clients<D, Member>, phase: Phase, now: Instant) {
        self.outflow.on_phase(phase, now);
        match phase {
            Phase::Warmup if self.outflow.is_closed_loop() => {
                (0..self.rooms.len()).for_each(|group| {
                    self.send_while_room(clients, u32::try_from(group).expect("below a u32"), now);
                });
            }
            Phase::Over => (0..clients.len()).for_each(|who| clients.ack(who)),
            _ => {}
        }
    }

    fn on_event(&mut self, clients: &mut Clients<D, Member>, who: u32, event: Event, now: Instant) {
        match event {
            Event::Welcome => {
                let group = who / self.members;
                if who == self.writer(group) || self.rooms[group as usize].is_open {
                    self.ask(clients, who);
                }
            }
            Event::Said(Outcome::Retry) => self.again.push_back((now + ASK_AGAIN_AFTER, who)),
            Event::Said(outcome) if !clients.extra(who).is_in => {
                self.settle(clients, who, outcome == Outcome::Done);
            }
            Event::Delivery { payload, .. } => self.handle_delivery(clients, who, (&payload, false), now),
            Event::Missed { from, .. } => self.handle_missed(clients, who, from),
            Event::Pulled { payloads, rest } => self.handle_pulled(clients, who, (payloads, rest), now),
            Event::Answer { cid, outcome } => self.handle_answer(clients, who, (cid, outcome), now),
            _ => {}
        }
    }

    fn on_time(&mut self, clients: &mut Clients<D, Member>, now: Instant) {
        while let Some((_, who)) = self.again.front().copied().filter(|(at, _)| *at <= now) {
            self.again.pop_front();
            if clients.extra(who).is_in { self.pull(clients, who) } else { self.ask(clients, who) }
        }
        for _ in 0..DUE_PER_TURN {
            let Some(group) = self.outflow.take_due(&mut self.recorder, now) else { break };
            let writer = self.writer(group);
            clients.extra(writer).line.get_or_insert_default().due += 1;
            self.send_while_room(clients, group, now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let again = self.again.front().map(|(at, _)| *at);
        self.outflow.deadline().into_iter().chain(again).min()
    }

    fn is_ready(&self, clients: &Clients<D, Member>) -> bool {
        self.settled >= clients.counts().active
    }

    fn is_settled(&self, _crew: &Clients<D, Member>) -> bool {
        self.under_way <= 0 && (!self.outflow.has_answers() || self.outflow.unanswered() == 0)
    }

    fn done(&self) -> u64 {
        self.delivered
    }

    fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    fn finish(&mut self, clients: &mut Clients<D, Member>, now: Instant) {
        for group in 0..u32::try_from(self.rooms.len()).expect("below a u32") {
            let writer = self.writer(group);
            let line = clients.extra(writer).line.take().unwrap_or_default();
            let sent = line.flight.sent();
            if self.outflow.has_answers() {
                self.outflow.finish(&mut self.recorder, group, &line, now);
            }
            for who in writer + 1..writer + self.members {
                if clients.extra(who).is_in {
                    self.recorder.findings.tally.lost += u64::from(clients.extra(who).arrivals.lost(sent));
                }
            }
        }
    }
}
