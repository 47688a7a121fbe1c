//! One to one: clients in pairs, each delivery answered by the next message the other way.
//!
//! So each pair always has one message under way in one direction. Every message carries who sent it
//! and its number, and the receiver judges it: lost, duplicated, reordered are counted at delivery.

use crate::dialect::{Dialect, Event, Message, Outcome, To};
use crate::fleet::Crew;
use crate::fleet::Scenario;
use crate::integrity::{Arrival, Arrivals, Tally};
use crate::phase::Phase;
use crate::record::Recorder;
use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::time::Instant;

/// Bytes of a message that say who, which and when.
const LEAD_BYTES: usize = 16;

/// What one client has sent and got.
#[derive(Debug, Default)]
pub struct Half {
    sent: u32,
    arrivals: Arrivals,
}

/// The scenario and what it found.
#[derive(Debug)]
pub struct Chat {
    payload_bytes: usize,
    phase: Phase,
    measured_from: Option<Instant>,
    under_way: u64,
    delivered: u64,
    /// Latencies from sent to delivered.
    pub recorder: Recorder,
    /// What went wrong.
    pub tally: Tally,
}

impl Chat {
    /// Messages of at least 16 bytes.
    pub fn new(payload_bytes: u32) -> Self {
        Self {
            payload_bytes: (payload_bytes as usize).max(LEAD_BYTES),
            phase: Phase::Ramp,
            measured_from: None,
            under_way: 0,
            delivered: 0,
            recorder: Recorder::default(),
            tally: Tally::default(),
        }
    }

    fn send<D: Dialect>(&mut self, crew: &mut Crew<D, Half>, from: u32, now: Instant) {
        let peer = from ^ 1;
        if peer >= crew.len() || !crew.is_active(from) || !crew.is_active(peer) {
            return;
        }
        let half = crew.extra(from);
        half.sent += 1;
        let cid = half.sent;
        let mut payload = BytesMut::with_capacity(self.payload_bytes);
        payload.put_u32(from);
        payload.put_u32(cid);
        payload.put_u64(now.as_nanos());
        payload.resize(self.payload_bytes, b'm');
        self.under_way += 1;
        crew.send(Message { from, cid, to: To::Client(peer), ack: 0, payload: payload.freeze() });
    }

    fn handle_delivery<D: Dialect>(
        &mut self,
        crew: &mut Crew<D, Half>,
        who: u32,
        payload: &Bytes,
        now: Instant,
    ) {
        let Some((from, cid, sent_at)) = read_lead(payload).filter(|(from, ..)| *from == who ^ 1) else {
            self.tally.duplicated += 1; // delivered to somebody it was never sent to
            return;
        };
        let arrival = crew.extra(who).arrivals.arrive(cid);
        self.tally.count_arrival(arrival);
        if arrival == Arrival::Again {
            return;
        }
        debug_assert_eq!(from, who ^ 1);
        self.under_way -= 1;
        self.delivered += 1;
        if self.measured_from.is_some_and(|from| sent_at >= from) {
            self.recorder.raw.record(now.saturating_since(sent_at));
        }
        if self.phase < Phase::Drain {
            self.send(crew, who, now);
        }
    }
}

fn read_lead(payload: &Bytes) -> Option<(u32, u32, Instant)> {
    let lead: &[u8; LEAD_BYTES] = payload.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([lead[at], lead[at + 1], lead[at + 2], lead[at + 3]]);
    let nanos = u64::from(word(8)) << 32 | u64::from(word(12));
    Some((word(0), word(4), Instant::from_nanos(nanos)))
}

impl<D: Dialect> Scenario<D> for Chat {
    type Extra = Half;

    fn on_phase(&mut self, crew: &mut Crew<D, Half>, phase: Phase, now: Instant) {
        self.phase = phase;
        match phase {
            Phase::Warmup => (0..crew.len()).step_by(2).for_each(|who| self.send(crew, who, now)),
            Phase::Measure => self.measured_from = Some(now),
            Phase::Over => (0..crew.len()).for_each(|who| crew.ack(who)),
            _ => {}
        }
    }

    fn on_event(&mut self, crew: &mut Crew<D, Half>, who: u32, event: Event, now: Instant) {
        match event {
            Event::Delivery { payload, .. } => self.handle_delivery(crew, who, &payload, now),
            Event::Answer { outcome: Outcome::Refused, .. } => {
                self.tally.refused += 1;
                self.under_way = self.under_way.saturating_sub(1);
            }
            _ => {}
        }
    }

    fn is_settled(&self, _crew: &Crew<D, Half>) -> bool {
        self.under_way == 0
    }

    fn done(&self) -> u64 {
        self.delivered
    }

    fn finish(&mut self, crew: &mut Crew<D, Half>, _now: Instant) {
        for from in 0..crew.len() {
            let sent = crew.extra(from).sent;
            if from ^ 1 < crew.len() {
                self.tally.lost += u64::from(crew.extra(from ^ 1).arrivals.lost(sent));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_comes_back() {
        let mut payload = BytesMut::new();
        payload.put_u32(7);
        payload.put_u32(9);
        payload.put_u64(1 << 40 | 3);
        assert_eq!(read_lead(&payload.freeze()), Some((7, 9, Instant::from_nanos(1 << 40 | 3))));
        assert_eq!(read_lead(&Bytes::from_static(b"short")), None);
    }
}
