//! A message and its answer, from every client.

use super::outflow::{DUE_PER_TURN, Line, Load, Outflow};
use crate::dialect::{Dialect, Event, Message, To};
use crate::findings::Recorder;
use crate::fleet::{Clients, Scenario};
use crate::phase::Phase;
use crate::record::Metric;
use bytes::Bytes;
use moorline_proto::time::Instant;
use std::time::Duration;

/// The scenario and what it found.
#[derive(Debug)]
pub struct Ping {
    payload: Bytes,
    outflow: Outflow,
    recorder: Recorder,
}

impl Ping {
    /// `clients` that send messages of `payload_bytes` under this load; a backlog may leave for this time afterwards.
    pub fn new(load: Load, clients: u32, payload_bytes: u32, backlog_for: Duration) -> Self {
        Self {
            payload: vec![b'm'; payload_bytes as usize].into(),
            outflow: Outflow::new(load, clients, backlog_for),
            recorder: Recorder::new(Metric::Answer),
        }
    }

    fn send_while_room<D: Dialect>(&mut self, clients: &mut Clients<D, Line>, who: u32, now: Instant) {
        while clients.is_active(who) && self.outflow.is_due(clients.extra(who), now) {
            let cid = self.outflow.send(clients.extra(who), now);
            clients.send(Message {
                from: who,
                cid,
                number: cid,
                to: To::Server,
                ack: 0,
                payload: self.payload.clone(),
            });
        }
    }
}

impl<D: Dialect> Scenario<D> for Ping {
    type Extra = Line;

    fn on_phase(&mut self, clients: &mut Clients<D, Line>, phase: Phase, now: Instant) {
        self.outflow.on_phase(phase, now);
        if phase == Phase::Warmup && self.outflow.is_closed_loop() {
            (0..clients.len()).for_each(|who| self.send_while_room(clients, who, now));
        }
    }

    fn on_event(&mut self, clients: &mut Clients<D, Line>, who: u32, event: Event, now: Instant) {
        if let Event::Answer { cid, outcome } = event {
            self.outflow.handle_answer(&mut self.recorder, (who, clients.extra(who)), (cid, outcome), now);
            self.send_while_room(clients, who, now);
        }
    }

    fn on_time(&mut self, clients: &mut Clients<D, Line>, now: Instant) {
        for _ in 0..DUE_PER_TURN {
            let Some(who) = self.outflow.take_due(&mut self.recorder, now) else { break };
            clients.extra(who).due += 1;
            self.send_while_room(clients, who, now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.outflow.deadline()
    }

    fn is_settled(&self, _crew: &Clients<D, Line>) -> bool {
        self.outflow.unanswered() == 0
    }

    fn done(&self) -> u64 {
        self.outflow.answered()
    }

    fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    fn finish(&mut self, clients: &mut Clients<D, Line>, now: Instant) {
        for who in 0..clients.len() {
            let line = std::mem::take(clients.extra(who));
            self.outflow.finish(&mut self.recorder, who, &line, now);
        }
    }
}
