//! Interface of a kind of traffic.

use super::Clients;
use crate::dialect::{Dialect, Event};
use crate::findings::Recorder;
use crate::phase::Phase;
use moorline_proto::time::Instant;

/// A kind of traffic. The loop calls it; it sends through the clients.
pub trait Scenario<D: Dialect> {
    /// State per client; part of the client's bytes.
    type Extra: Default;

    /// A phase began.
    fn on_phase(&mut self, clients: &mut Clients<D, Self::Extra>, phase: Phase, now: Instant);
    /// Something came for a client.
    fn on_event(&mut self, clients: &mut Clients<D, Self::Extra>, who: u32, event: Event, now: Instant);
    /// A client lost its connection; whether it comes back is the plan's to say.
    fn on_lost(&mut self, _crew: &mut Clients<D, Self::Extra>, _who: u32) {}
    /// A turn of the loop: send what is due.
    fn on_time(&mut self, _crew: &mut Clients<D, Self::Extra>, _now: Instant) {}
    /// Latest time of the next [`Scenario::on_time`].
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// In Ramp, when everyone is in: whether traffic may begin. Asked every turn.
    fn is_ready(&self, _crew: &Clients<D, Self::Extra>) -> bool {
        true
    }
    /// In Drain: whether nothing is under way any more. Asked every turn.
    fn is_settled(&self, clients: &Clients<D, Self::Extra>) -> bool;
    /// Operations done so far.
    fn done(&self) -> u64;
    /// Counters of the scenario.
    fn recorder(&mut self) -> &mut Recorder;
    /// The run is over: judge what is still open.
    fn finish(&mut self, _crew: &mut Clients<D, Self::Extra>, _now: Instant) {}
}
