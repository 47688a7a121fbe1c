//! Counters, gauges and histograms: filled by one thread each, summed when somebody looks.
//!
//! Owns the description of series, the cells that cross threads, and the OpenMetrics page. A hot path
//! counts in plain numbers of its own and publishes them once per loop turn, so it pays neither a lock
//! nor a read-modify-write; the page sums equal series over all boards. Never holds a user id, a device
//! or an address, and every series is there, at zero, from the start.
//!
//! ```
//! use moorline::metrics::{Board, Registry, SECONDS, Series, Tally};
//! use std::sync::Arc;
//!
//! // Described once; usable in consts and by code that knows no atomics.
//! const OPEN: usize = 0;
//! const CLOSED_SLOW: usize = 1;
//! const ANSWER: usize = 2;
//! const SERIES: &[Series] = &[
//!     Series::gauge("connections", "Open client connections."),
//!     Series::counter("closed", "Connections ended.").labelled("reason", "slow"),
//!     Series::histogram("answer_seconds", "From UP to its answer.", &[1_000_000, 10_000_000], SECONDS),
//! ];
//!
//! // The owner counts in plain numbers ...
//! let mut tally = Tally::new(SERIES);
//! tally.set(OPEN, 3);
//! tally.add(CLOSED_SLOW, 1);
//! tally.observe(ANSWER, 2_000_000); // nanoseconds, exported in seconds
//!
//! // ... and publishes once per turn to its board, of which the registry knows.
//! let registry = Arc::new(Registry::new());
//! let board = Arc::new(Board::new(SERIES));
//! registry.add(Arc::clone(&board));
//! board.publish(tally.cells());
//!
//! assert_eq!(registry.sum("connections"), 3);
//! assert!(registry.page().contains("moorline_closed_total{reason=\"slow\"} 1\n"));
//! ```
//!
//! Who needs no histogram may keep a plain `[u64; N]` in the order of its series and publish that. A
//! thread that counts rarely calls [`Board::add`] and [`Board::set`] directly.

mod board;
mod counts;
mod page;
pub mod process;
mod series;
#[cfg(test)]
mod tests;

pub use board::{Board, Tally};
pub(crate) use counts::counts;
pub use page::Registry;
pub use series::{Kind, SECONDS, Series};

/// Prefix of every name on the page.
pub const PREFIX: &str = "moorline";
/// Media type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series that `/readyz` and `/v1/varz` look at; who owns the figure uses the name.
pub mod names {
    /// Open client connections.
    pub const CONNECTIONS: &str = "connections";
    /// Logged-in sessions.
    pub const SESSIONS: &str = "sessions";
    /// Links to a backend that are open and greeted.
    pub const LINKS_UP: &str = "links_up";
}
