//! Counters of the link port, for the metrics page. Written by the event loop, read by the API's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one link server. Cheap to clone; clones show the same values.
#[derive(Clone, Debug, Default)]
pub struct LinkCounters(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    links: AtomicU64,
    unproven: AtomicU64,
    strangers: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
}

/// Values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFigures {
    /// Links of gateways that are open.
    pub links: u64,
    /// Open links whose gateway was believed without a proof.
    pub unproven: u64,
    /// Connections that ended before they were links, whatever the reason.
    pub strangers: u64,
    /// Connections that were closed for a newer one (`link.visitors_max`).
    pub evicted: u64,
    /// Connections with a HELLO or a proof that was refused.
    pub refused: u64,
}

impl LinkCounters {
    /// Returns the values now.
    pub fn read(&self) -> LinkFigures {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let Cells { links, unproven, strangers, evicted, refused } = &*self.0;
        LinkFigures {
            links: of(links),
            unproven: of(unproven),
            strangers: of(strangers),
            evicted: of(evicted),
            refused: of(refused),
        }
    }

    pub(super) fn set_links(&self, links: usize, unproven: usize) {
        self.0.links.store(links as u64, Ordering::Relaxed);
        self.0.unproven.store(unproven as u64, Ordering::Relaxed);
    }

    pub(super) fn count_stranger(&self, is_evicted: bool, is_refused: bool) {
        self.0.strangers.fetch_add(1, Ordering::Relaxed);
        self.0.evicted.fetch_add(u64::from(is_evicted), Ordering::Relaxed);
        self.0.refused.fetch_add(u64::from(is_refused), Ordering::Relaxed);
    }
}
