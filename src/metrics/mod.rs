//! Counters, gauges and histograms: filled by one thread each, summed when somebody looks.
//!
//! Owns the description of series, the cells that cross threads, and the OpenMetrics page. A hot path
//! counts in plain numbers of its own and publishes them once per loop turn, so it pays neither a lock
//! nor a read-modify-write; the page sums equal series over all counter sets. Never holds a user id, a device
//! or an address, and every series is there, at zero, from the start.
//!
//! ```
//! use moorline::metrics::{CounterSet, Counters, Metric, Registry, SECONDS};
//! use std::sync::Arc;
//!
//! // Described once; usable in consts and by code that knows no atomics.
//! const OPEN: usize = 0;
//! const CLOSED_SLOW: usize = 1;
//! const ANSWER: usize = 2;
//! const METRICS: &[Metric] = &[
//!     Metric::gauge("connections", "Open client connections."),
//!     Metric::counter("closed", "Connections ended.").labelled("reason", "slow"),
//!     Metric::histogram("answer_seconds", "From UP to its answer.", &[1_000_000, 10_000_000], SECONDS),
//! ];
//!
//! // The owner counts in plain numbers ...
//! let mut counters = Counters::new(METRICS);
//! counters.set(OPEN, 3);
//! counters.add(CLOSED_SLOW, 1);
//! counters.observe(ANSWER, 2_000_000); // nanoseconds, exported in seconds
//!
//! // ... and publishes once per turn to its counter set, of which the registry knows.
//! let registry = Arc::new(Registry::new());
//! let counter_set = Arc::new(CounterSet::new(METRICS));
//! registry.add(Arc::clone(&counter_set));
//! counter_set.publish(counters.cells());
//!
//! assert_eq!(registry.sum("connections"), 3);
//! assert!(registry.page().contains("moorline_closed_total{reason=\"slow\"} 1\n"));
//! ```
//!
//! Who needs no histogram may keep a plain `[u64; N]` in the order of its series and publish that. A
//! thread that counts rarely calls [`CounterSet::add`] and [`CounterSet::set`] directly.

mod counter_set;
mod counts;
mod metric;
mod page;
pub mod process;
#[cfg(test)]
mod tests;

pub use counter_set::{CounterSet, Counters};
pub(crate) use counts::counts;
pub use metric::{Kind, Metric, SECONDS};
pub use page::{Counted, Registry};

/// Prefix of every name on the page.
pub const PREFIX: &str = "moorline";
/// Media type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names of metrics that more than one module uses.
pub mod names {
    /// Open client connections.
    pub const CONNECTIONS: &str = "connections";
    /// Logged-in sessions.
    pub const SESSIONS: &str = "sessions";
    /// Bytes of frames queued for clients, sent and not acknowledged ones among them.
    pub const QUEUED_BYTES: &str = "queued_bytes";
    /// Received bytes that wait.
    pub const INPUT_BYTES: &str = "input_bytes";
    /// Links to a backend that are open and greeted.
    pub const LINKS_UP: &str = "links_up";

    /// Old name, new name, and help of the old one. The page lists both until the next release, and a snapshot of an
    /// older build is read under the new name.
    pub const RENAMED: &[(&str, &str, &str)] = &[
        ("held", "read_paused", "Old name of read_paused, until the next release."),
        ("kept_in_vain", "detached_expired", "Old name of detached_expired, until the next release."),
        ("kept_over_max", "detached_over_max", "Old name of detached_over_max, until the next release."),
        (
            "backpressure_holds",
            "backpressure_pauses",
            "Old name of backpressure_pauses, until the next release.",
        ),
    ];

    /// Returns the name of today for a name that may be an old one.
    pub fn current(name: &str) -> &str {
        RENAMED.iter().find(|(old, ..)| *old == name).map_or(name, |(_, new, _)| new)
    }
}
