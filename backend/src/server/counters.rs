//! Counters of the link port, for the metrics page. Written by the event loop, read by the API's thread.

use moorline_net::cap::{CapFigures, CapWatch};
use moorline_proto::time::Instant;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Caps of the link port: links, gateways, sessions and rooms.
const CAPS: [&str; 4] = ["link.links_max", "link.gateways_max", "link.sessions_max", "link.rooms_max"];

/// Counters of one link server. Cheap to clone; clones show the same values.
#[derive(Clone, Debug, Default)]
pub struct LinkCounters(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    links: AtomicU64,
    unproven: AtomicU64,
    encrypted: AtomicU64,
    strangers: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    peers: AtomicU64,
    peers_lost: AtomicU64,
    group_rooms: AtomicU64,
    group_rooms_lost: AtomicU64,
    caps: [CapWatch; CAPS.len()],
}

impl Default for Cells {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            links: zero(),
            unproven: zero(),
            encrypted: zero(),
            strangers: zero(),
            evicted: zero(),
            refused: zero(),
            peers: zero(),
            peers_lost: zero(),
            group_rooms: zero(),
            group_rooms_lost: zero(),
            caps: CAPS.map(CapWatch::new),
        }
    }
}

/// Values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFigures {
    /// Links of gateways that are open.
    pub links: u64,
    /// Open links whose gateway was believed without a proof.
    pub unproven: u64,
    /// Open links over TLS.
    pub encrypted: u64,
    /// Connections that ended before they were links, whatever the reason.
    pub strangers: u64,
    /// Connections that were closed for a newer one (`link.visitors_max`).
    pub evicted: u64,
    /// Connections with a HELLO or a proof that was refused.
    pub refused: u64,
    /// Links to other nodes of the cluster that are open.
    pub peers: u64,
    /// Messages to other nodes that were dropped.
    pub peers_lost: u64,
    /// Rooms of large groups.
    pub group_rooms: u64,
    /// Rooms of large groups that were lost.
    pub group_rooms_lost: u64,
    /// Caps, and what they limit.
    pub caps: [CapFigures; CAPS.len()],
}

impl LinkCounters {
    /// Returns the values now.
    pub fn read(&self) -> LinkFigures {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let Cells {
            links,
            unproven,
            encrypted,
            strangers,
            evicted,
            refused,
            peers,
            peers_lost,
            group_rooms,
            group_rooms_lost,
            caps,
        } = &*self.0;
        LinkFigures {
            links: of(links),
            unproven: of(unproven),
            encrypted: of(encrypted),
            strangers: of(strangers),
            evicted: of(evicted),
            refused: of(refused),
            peers: of(peers),
            peers_lost: of(peers_lost),
            group_rooms: of(group_rooms),
            group_rooms_lost: of(group_rooms_lost),
            caps: caps.each_ref().map(CapWatch::figures),
        }
    }

    pub(super) fn set_links(&self, links: usize, unproven: usize, encrypted: usize) {
        self.0.links.store(links as u64, Ordering::Relaxed);
        self.0.unproven.store(unproven as u64, Ordering::Relaxed);
        self.0.encrypted.store(encrypted as u64, Ordering::Relaxed);
    }

    pub(super) fn set_group_rooms(&self, open: usize, lost: u64) {
        self.0.group_rooms.store(open as u64, Ordering::Relaxed);
        self.0.group_rooms_lost.store(lost, Ordering::Relaxed);
    }

    pub(super) fn set_peers(&self, open: usize, lost: u64) {
        self.0.peers.store(open as u64, Ordering::Relaxed);
        self.0.peers_lost.store(lost, Ordering::Relaxed);
    }

    /// Notes how many links, gateways, sessions and rooms there are, and may be.
    pub(super) fn note_caps(&self, now: Instant, caps: [(usize, usize); CAPS.len()]) {
        for (watch, (used, max)) in self.0.caps.iter().zip(caps) {
            watch.note(used, max, now);
        }
    }

    pub(super) fn count_stranger(&self, is_evicted: bool, is_refused: bool) {
        self.0.strangers.fetch_add(1, Ordering::Relaxed);
        self.0.evicted.fetch_add(u64::from(is_evicted), Ordering::Relaxed);
        self.0.refused.fetch_add(u64::from(is_refused), Ordering::Relaxed);
    }
}
