//! One writer, everyone else a reader: the next message leaves when all readers have the last.

use crate::dialect::{Dialect, Event, Message, To};
use crate::fleet::Crew;
use crate::fleet::Scenario;
use crate::integrity::Tally;
use crate::phase::Phase;
use crate::record::Recorder;
use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::time::Instant;

/// The writer.
const WRITER: u32 = 0;

/// The scenario and what it found. A client keeps the number of the last message it got.
#[derive(Debug)]
pub struct FanOut {
    payload_bytes: usize,
    phase: Phase,
    is_measuring: bool,
    sent: u32,
    sent_at: Instant,
    missing: u32,
    delivered: u64,
    /// Latencies from sent to each delivery.
    pub recorder: Recorder,
    /// What went wrong.
    pub tally: Tally,
}

impl FanOut {
    /// Messages of at least 4 bytes.
    pub fn new(payload_bytes: u32) -> Self {
        Self {
            payload_bytes: payload_bytes.max(4) as usize,
            phase: Phase::Ramp,
            is_measuring: false,
            sent: 0,
            sent_at: Instant::ZERO,
            missing: 0,
            delivered: 0,
            recorder: Recorder::default(),
            tally: Tally::default(),
        }
    }

    fn send<D: Dialect>(&mut self, crew: &mut Crew<D, u32>, now: Instant) {
        self.sent += 1;
        self.sent_at = now;
        self.missing = crew.counts().active.saturating_sub(1);
        let mut payload = BytesMut::with_capacity(self.payload_bytes);
        payload.put_u32(self.sent);
        payload.resize(self.payload_bytes, b'm');
        let payload = payload.freeze();
        crew.send(Message { from: WRITER, cid: self.sent, to: To::Everyone, ack: 0, payload });
    }

    fn handle_delivery<D: Dialect>(
        &mut self,
        crew: &mut Crew<D, u32>,
        who: u32,
        payload: &Bytes,
        now: Instant,
    ) {
        let number = payload.first_chunk().map_or(0, |lead| u32::from_be_bytes(*lead));
        let last = crew.extra(who);
        if number <= *last || number > self.sent {
            self.tally.duplicated += 1;
            return;
        }
        self.tally.lost += u64::from(number - *last - 1);
        *last = number;
        self.delivered += 1;
        self.missing = self.missing.saturating_sub(1);
        if self.is_measuring {
            self.recorder.raw.record(now.saturating_since(self.sent_at));
        }
        if self.missing == 0 && self.phase < Phase::Drain {
            self.send(crew, now);
        }
    }
}

impl<D: Dialect> Scenario<D> for FanOut {
    type Extra = u32;

    fn on_phase(&mut self, crew: &mut Crew<D, u32>, phase: Phase, now: Instant) {
        self.phase = phase;
        match phase {
            Phase::Warmup if crew.counts().active > 1 => self.send(crew, now),
            Phase::Measure => self.is_measuring = true,
            _ => {}
        }
    }

    fn on_event(&mut self, crew: &mut Crew<D, u32>, who: u32, event: Event, now: Instant) {
        if let Event::Delivery { payload, .. } = event {
            self.handle_delivery(crew, who, &payload, now);
        }
    }

    fn is_settled(&self, _crew: &Crew<D, u32>) -> bool {
        self.missing == 0
    }

    fn done(&self) -> u64 {
        self.delivered
    }

    fn finish(&mut self, _crew: &mut Crew<D, u32>, _now: Instant) {
        self.tally.lost += u64::from(self.missing);
    }
}
