//! An idle fleet: logins, then nothing but heartbeats.

use crate::dialect::{Dialect, Event};
use crate::fleet::Crew;
use crate::fleet::Scenario;
use crate::phase::Phase;
use moorline_proto::time::Instant;

/// Holds connections; every heartbeat must come back.
#[derive(Debug, Default)]
pub struct Hold {
    beats_back: u64,
}

impl<D: Dialect> Scenario<D> for Hold {
    type Extra = ();

    fn on_phase(&mut self, _crew: &mut Crew<D, ()>, _phase: Phase, _now: Instant) {}

    fn on_event(&mut self, crew: &mut Crew<D, ()>, _who: u32, _event: Event, _now: Instant) {
        self.beats_back = crew.counts().beats_back;
    }

    fn is_settled(&self, crew: &Crew<D, ()>) -> bool {
        let counts = crew.counts();
        counts.beats_back >= counts.beats
    }

    fn done(&self) -> u64 {
        self.beats_back
    }
}
