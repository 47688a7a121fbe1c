//! Both sides of a router: its links toward backends, its lanes toward shards, the orders to its owner, and the
//! counters of everything that passes. Every part of a router works on them. Pure.

use super::{Counters, LinkIndex, Links, Outbox, Output, Split};
use crate::messages::PushRef;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// State that all parts of a router share.
#[derive(Debug)]
pub(super) struct Sides {
    /// Number of the worker.
    pub(super) number: u16,
    /// Rule that puts users into slots.
    pub(super) split: Split,
    /// Time of the input that is handled.
    pub(super) now: Instant,
    pub(super) links: Links,
    pub(super) shards: Outbox,
    /// Orders to the owner, in the order of their causes. At most one write per link and one batch per shard of
    /// each turn, beside connects and closes.
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) random: Random,
    /// Number of the last announcement. ANNOUNCE carries its own number and CONN_UP carries the last one, so that a
    /// backend which reads links out of order knows which of them speaks for a session [B-6.1].
    pub(super) last_announcement: u32,
}

impl Sides {
    pub(super) fn new(
        number: u16,
        (links, split): (Links, Split),
        shards: usize,
        seed: u64,
        now: Instant,
    ) -> Self {
        let (shards, outputs, counters) = (Outbox::new(shards), VecDeque::new(), Counters::default());
        Self {
            number,
            split,
            now,
            links,
            shards,
            outputs,
            counters,
            random: Random::new(seed),
            last_announcement: 0,
        }
    }

    /// Number of a new announcement, above all earlier ones: at one a second they last for 136 years.
    pub(super) const fn next_announcement(&mut self) -> u32 {
        self.last_announcement = self.last_announcement.wrapping_add(1);
        self.last_announcement
    }

    /// Names a push or a question toward the backend that sent it.
    pub(super) fn ticket(&self, link: LinkIndex, correlation: u64) -> PushRef {
        let link_generation = self.links[link].state.generation();
        PushRef { worker: self.number, link: link.0, link_generation, correlation }
    }
}
