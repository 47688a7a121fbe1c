//! An idle fleet: logins, then nothing but heartbeats, each of which must come back.

use crate::dialect::{Dialect, Event};
use crate::findings::Recorder;
use crate::fleet::{Clients, Scenario};
use crate::phase::Phase;
use crate::record::Metric;
use moorline_proto::time::Instant;

/// Holds connections.
#[derive(Debug)]
pub struct Hold {
    beats_back: u64,
    recorder: Recorder,
}

impl Default for Hold {
    fn default() -> Self {
        Self { beats_back: 0, recorder: Recorder::new(Metric::Login) }
    }
}

impl<D: Dialect> Scenario<D> for Hold {
    type Extra = ();

    fn on_phase(&mut self, _crew: &mut Clients<D, ()>, _phase: Phase, _now: Instant) {}

    fn on_event(&mut self, clients: &mut Clients<D, ()>, _who: u32, _event: Event, _now: Instant) {
        self.beats_back = clients.counts().beats_back;
    }

    fn is_settled(&self, clients: &Clients<D, ()>) -> bool {
        let counts = clients.counts();
        counts.beats_back >= counts.beats
    }

    fn done(&self) -> u64 {
        self.beats_back
    }

    fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    fn finish(&mut self, clients: &mut Clients<D, ()>, _now: Instant) {
        let counts = clients.counts();
        self.recorder.findings.tally.lost = counts.beats.saturating_sub(counts.beats_back);
    }
}
