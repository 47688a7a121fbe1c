//! Both sides of a router: its links toward backends, its lanes toward shards, the orders to its owner, and the
//! counters of everything that passes. Every part of a router works on them. Pure.

use super::{LinkIndex, Links, Outbox, Output, Tally};
use crate::handoff::PushTicket;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// State that all parts of a router share.
#[derive(Debug)]
pub(super) struct Sides {
    /// Number of the worker.
    pub(super) number: u16,
    /// Time of the input that is handled.
    pub(super) now: Instant,
    pub(super) links: Links,
    pub(super) shards: Outbox,
    /// Orders to the owner, in the order of their causes. At most one write per link and one batch per shard of
    /// each turn, beside connects and closes.
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Tally,
    pub(super) random: Random,
}

impl Sides {
    pub(super) fn new(number: u16, links: Links, shards: usize, seed: u64, now: Instant) -> Self {
        let (shards, outputs, counters) = (Outbox::new(shards), VecDeque::new(), Tally::default());
        Self { number, now, links, shards, outputs, counters, random: Random::new(seed) }
    }

    /// Names a push or a question toward the backend that sent it.
    pub(super) fn ticket(&self, link: LinkIndex, correlation: u64) -> PushTicket {
        let link_generation = self.links[link].state.generation();
        PushTicket { worker: self.number, link: link.0, link_generation, correlation }
    }
}
