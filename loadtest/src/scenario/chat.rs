//! Chat of clients in pairs; every message is checked where it arrives.
//!
//! Open loop: message `n` is client `n % clients`'s to its peer, at the moment it is meant for. Closed
//! loop: each delivery is answered by the next message the other way, so that each pair always has one
//! message under way.

use super::lead::{self, Lead};
use super::outflow::{DUE_PER_TURN, Line, Load, Outflow};
use crate::dialect::{Dialect, Event, Message, Outcome, To};
use crate::findings::Recorder;
use crate::fleet::{Clients, Scenario};
use crate::integrity::{Arrival, Arrivals, Refusals};
use crate::phase::Phase;
use crate::record::Metric;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Policy for an unanswered message when its connection breaks or the server says RETRY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Patience {
    /// The message counts as lost or refused: the run fails.
    None,
    /// The message is sent again with the same key, as apps do, over the next connection or after a pause.
    Again,
}

/// The pause before a message is sent again that the server did not take.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Sent and received messages of a client.
#[derive(Debug, Default)]
pub struct Half {
    line: Line,
    arrivals: Arrivals,
    /// Messages that a former connection carried: cids of this one begin after them.
    cid_base: u32,
    /// True after a lost connection: repeated messages are lawful then [P-6.6].
    is_reborn: bool,
}

/// The scenario and what it found.
#[derive(Debug)]
pub struct Chat {
    run: u32,
    payload_bytes: u32,
    patience: Patience,
    outflow: Outflow,
    senders: u32,
    under_way: i64,
    delivered: u64,
    heard_at: Option<Instant>,
    refusals: Refusals,
    /// Messages that wait to be sent again, by when.
    again: BinaryHeap<Reverse<(Instant, u32)>>,
    /// Messages that are due between these times count apart.
    storm: Option<(Instant, Instant)>,
    pub(super) recorder: Recorder,
}

impl Chat {
    /// `senders` that chat in pairs, the first with the second and so on; an odd one keeps silent.
    pub fn new(
        load: Load,
        senders: u32,
        payload_bytes: u32,
        patience: Patience,
        backlog_for: Duration,
    ) -> Self {
        let senders = senders & !1;
        Self {
            run: lead::new_run(),
            payload_bytes,
            patience,
            outflow: Outflow::new(load, senders, backlog_for),
            senders,
            under_way: 0,
            delivered: 0,
            heard_at: None,
            refusals: Refusals::default(),
            again: BinaryHeap::new(),
            storm: None,
            recorder: Recorder::new(Metric::Deliver),
        }
    }

    /// From now on deliveries count as those of a storm; `None`: it is over.
    pub(super) fn set_storm(&mut self, now: Instant, is_on: bool) {
        self.storm = match self.storm {
            Some((from, _)) if !is_on => Some((from, now)),
            _ => Some((now, Instant::FAR_FUTURE)),
        };
    }

    fn send_while_room<D: Dialect>(&mut self, clients: &mut Clients<D, Half>, who: u32, now: Instant) {
        while clients.is_active(who) && self.outflow.is_due(&clients.extra(who).line, now) {
            self.send(clients, who, now);
        }
    }

    fn send<D: Dialect>(&mut self, clients: &mut Clients<D, Half>, from: u32, now: Instant) {
        let number = self.outflow.send(&mut clients.extra(from).line, now);
        self.under_way += 1;
        self.put(clients, from, number);
    }

    /// Writes an unanswered message, for the first time or again: the same bytes each time, for the
    /// same key with other content is a conflict.
    fn put<D: Dialect>(&self, clients: &mut Clients<D, Half>, from: u32, number: u32) {
        let sent_at = clients.extra(from).line.flight.sent_at(number).expect("it is unanswered");
        let intended = self.outflow.intended(from, number, sent_at);
        let payload = Lead { run: self.run, from, number, sent_at, intended }.payload(self.payload_bytes);
        let cid = number - clients.extra(from).cid_base;
        clients.send(Message { from, cid, number, to: To::Client(from ^ 1), ack: 0, payload });
    }

    fn handle_delivery<D: Dialect>(
        &mut self,
        clients: &mut Clients<D, Half>,
        who: u32,
        payload: &[u8],
        now: Instant,
    ) {
        let Some(lead) = Lead::of(payload).filter(|lead| lead.run == self.run) else { return };
        if lead.from != who ^ 1 {
            self.recorder.findings.tally.duplicated += 1; // delivered to somebody it was never sent to
            return;
        }
        let half = clients.extra(who);
        let arrival = half.arrivals.arrive(lead.number);
        if arrival == Arrival::Again && half.is_reborn {
            self.recorder.findings.repeated += 1;
            return;
        }
        self.recorder.findings.tally.count_arrival(arrival);
        if arrival == Arrival::Again {
            return;
        }
        let was_refused = self.refusals.arrive(lead.from, lead.number);
        self.under_way -= i64::from(!was_refused);
        self.delivered += 1;
        self.record(lead, now);
        if self.outflow.is_closed_loop() && self.outflow.is_flowing() && clients.is_active(who) {
            self.send(clients, who, now);
        }
    }

    fn record(&mut self, lead: Lead, now: Instant) {
        if !self.outflow.counts(lead.intended) {
            return;
        }
        let since = self.heard_at.replace(now).map_or(Duration::ZERO, |then| now.saturating_since(then));
        self.recorder.findings.silence = self.recorder.findings.silence.max(since);
        let latency = now.saturating_since(lead.intended);
        let is_in_storm = self.storm.is_some_and(|(from, to)| (from..to).contains(&lead.intended));
        self.recorder.record(if is_in_storm { Metric::DeliverStorm } else { Metric::Deliver }, latency);
        self.recorder.record(Metric::DeliverRaw, now.saturating_since(lead.sent_at));
    }

    fn handle_answer<D: Dialect>(
        &mut self,
        clients: &mut Clients<D, Half>,
        who: u32,
        (cid, outcome): (u32, Outcome),
        now: Instant,
    ) {
        if outcome == Outcome::Retry && self.patience == Patience::Again {
            self.again.push(Reverse((now + RETRY_PAUSE, who)));
            return;
        }
        let half = clients.extra(who);
        let number = cid + half.cid_base;
        let is_first =
            self.outflow.handle_answer(&mut self.recorder, (who, &mut half.line), (number, outcome), now);
        if is_first && outcome != Outcome::Done {
            // It is not waited for, but may come: an answer that is late is RETRY too.
            let is_awaited = self.refusals.refuse(who, number, &clients.extra(who ^ 1).arrivals);
            self.under_way -= i64::from(is_awaited);
        }
        if !self.outflow.is_closed_loop() {
            self.send_while_room(clients, who, now);
        }
    }

    /// Sends again what was told to wait.
    fn send_again<D: Dialect>(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        while let Some(Reverse((_, who))) = self.again.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.again.pop();
            self.put_unanswered(clients, who);
        }
    }

    fn put_unanswered<D: Dialect>(&self, clients: &mut Clients<D, Half>, who: u32) {
        if clients.is_active(who) {
            let open: Vec<u32> = clients.extra(who).line.flight.unanswered().collect();
            open.into_iter().for_each(|number| self.put(clients, who, number));
        }
    }
}

impl<D: Dialect> Scenario<D> for Chat {
    type Extra = Half;

    fn on_phase(&mut self, clients: &mut Clients<D, Half>, phase: Phase, now: Instant) {
        self.outflow.on_phase(phase, now);
        match phase {
            Phase::Warmup if self.outflow.is_closed_loop() => {
                for who in (0..self.senders).step_by(2) {
                    if clients.is_active(who) && clients.is_active(who ^ 1) {
                        self.send(clients, who, now);
                    }
                }
            }
            Phase::Measure => self.heard_at = Some(now),
            Phase::Over => (0..clients.len()).for_each(|who| clients.ack(who)),
            _ => {}
        }
    }

    fn on_event(&mut self, clients: &mut Clients<D, Half>, who: u32, event: Event, now: Instant) {
        match event {
            Event::Delivery { payload, .. } => self.handle_delivery(clients, who, &payload, now),
            Event::Answer { cid, outcome } => self.handle_answer(clients, who, (cid, outcome), now),
            // A new session after a lost one: cids begin anew.
            Event::Welcome if clients.extra(who).is_reborn => {
                let half = clients.extra(who);
                half.cid_base = half.line.flight.sent() - half.line.flight.span();
                self.put_unanswered(clients, who);
                self.send_while_room(clients, who, now);
            }
            _ => {}
        }
    }

    fn on_lost(&mut self, clients: &mut Clients<D, Half>, who: u32) {
        clients.extra(who).is_reborn = true;
    }

    fn on_time(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        for _ in 0..DUE_PER_TURN {
            let Some(who) = self.outflow.take_due(&mut self.recorder, now) else { break };
            clients.extra(who).line.due += 1;
            self.send_while_room(clients, who, now);
        }
        self.send_again(clients, now);
    }

    fn deadline(&self) -> Option<Instant> {
        let again = self.again.peek().map(|Reverse((at, _))| *at);
        self.outflow.deadline().into_iter().chain(again).min()
    }

    fn is_settled(&self, _crew: &Clients<D, Half>) -> bool {
        self.under_way <= 0 && (!self.outflow.has_answers() || self.outflow.unanswered() == 0)
    }

    fn done(&self) -> u64 {
        self.delivered
    }

    fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    fn finish(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        let has_answers = self.outflow.has_answers();
        let refused = self.refusals.by_sender();
        for who in 0..self.senders {
            let flight = &clients.extra(who).line.flight;
            let (sent, unanswered) = (flight.sent(), flight.unanswered().count() as u64);
            let lost = u64::from(clients.extra(who ^ 1).arrivals.lost(sent));
            if has_answers {
                let line = &clients.extra(who).line;
                self.outflow.finish(&mut self.recorder, who, line, now);
            }
            // What was neither answered nor delivered is lost once, and what was refused is not lost.
            let counted = if has_answers { unanswered } else { 0 } + refused.get(&who).copied().unwrap_or(0);
            self.recorder.findings.tally.lost += lost.saturating_sub(counted);
        }
    }
}
