//! Observer of a loop: this process itself, or the one that started it.

use super::clients::Counts;
use crate::exit::Failure;
use crate::phase::Phase;
use crate::record::Latencies;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;
use std::time::Duration;

/// Progress of a loop, reported once a second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Second {
    /// Phase of the run.
    pub phase: Option<Phase>,
    /// Counts of clients by state.
    pub counts: Counts,
    /// Operations done so far.
    pub done: u64,
    /// The scenario's main latency in the last second.
    pub latencies: Latencies,
    /// CPU time that this process has used so far.
    pub own_cpu: Duration,
}

/// Order to a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// All parts of the run are in: traffic begins at this moment, in nanoseconds of `CLOCK_MONOTONIC`.
    Go(u64),
    /// End now, with a report.
    Stop,
}

/// Observer of a loop.
pub trait Overseer {
    /// The loop's clients are about to connect.
    fn on_begin(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    /// A second passed.
    fn on_second(&mut self, second: Second) -> Result<Option<Order>, Failure>;
    /// Looks at the server's processes; called ten times a second if they may change.
    fn on_look(&mut self) {}
    /// All clients of this loop are in.
    fn on_gathered(&mut self, now: Instant) -> Result<Option<Order>, Failure> {
        Ok(Some(Order::Go(now.as_nanos())))
    }
    /// A phase began.
    fn on_phase(&mut self, _phase: Phase, _now: Instant) {}
    /// Source of orders, if not as answers to the above.
    fn orders(&self) -> Option<RawFd> {
        None
    }
    /// Next order from that source.
    fn take_orders(&mut self) -> Result<Vec<Order>, Failure> {
        Ok(Vec::new())
    }
}

/// A loop without an observer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Overseer for Alone {
    fn on_second(&mut self, _second: Second) -> Result<Option<Order>, Failure> {
        Ok(None)
    }
}
