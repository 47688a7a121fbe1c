//! Endpoints of a cluster that nodes have named in SLOTS: links to nodes that the settings do not name. Pure.
//!
//! The settings name node 1. Its SLOTS name nodes 1, 2 and 3 with their addresses, so nodes 2 and 3 get links behind those of the
//! settings. Node 2 dies, and SLOTS do not name it any more: its links stop trying. Node 2 comes back with another
//! address: its place gets that one.
//!
//! An address is only a place to try: the link to it is believed for the same reasons as any other one.

use super::counters::Count;
use super::{Endpoints, LinkIndex, Logins, Phase, Router, RouterSettings, Sides};
use moorline_proto::link::Endpoint;
use moorline_proto::message::backend::NodeAddress;
use moorline_proto::slots::{NodeId, SLOTS, node_of};
use moorline_proto::time::Instant;

/// Endpoints of nodes beside those of the settings; a further one is not used, and counted.
const LEARNED_MAX: usize = 64;

/// The parts of a router that know its endpoints.
pub(super) struct Learning<'a> {
    /// Number of endpoints of the settings; those behind them were learned.
    own: usize,
    settings: &'a mut RouterSettings,
    sides: &'a mut Sides,
    endpoints: &'a mut Endpoints,
    logins: &'a mut Logins,
}

impl<'a> Learning<'a> {
    pub(super) fn of(router: &'a mut Router) -> Self {
        let Router { own_endpoints, settings, sides, endpoints, logins, .. } = router;
        Self { own: *own_endpoints, settings, sides, endpoints, logins }
    }
}

impl Learning<'_> {
    /// Takes the nodes that live. An empty list tells nothing: a node of an earlier version sent it, or one without a lease.
    pub(super) fn learn(&mut self, addresses: &[NodeAddress]) {
        let read = |named: &NodeAddress| {
            let address = named.address.parse().ok()?;
            Some((node_of(named.node).ok()??, Endpoint::Address(address)))
        };
        // No cluster has more nodes than slots.
        let named: Vec<(NodeId, Endpoint)> = addresses.iter().take(SLOTS).filter_map(read).collect();
        if named.is_empty() {
            return;
        }
        for place in self.own..self.settings.endpoints.len() {
            if !named.iter().any(|(_, endpoint)| *endpoint == self.settings.endpoints[place]) {
                self.rest(place, Instant::FAR_FUTURE);
            }
        }
        for (node, endpoint) in named {
            let is_open = |link: LinkIndex| {
                let link = &self.sides.links[link];
                link.node == Some(node) && link.state.is_open()
            };
            let place = self.settings.endpoints.iter().position(|known| *known == endpoint);
            match place {
                Some(place) if self.is_at_rest(place) => self.rest(place, self.sides.now),
                Some(_) => {}
                // The settings may name it otherwise.
                None if self.sides.links.indices().any(is_open) => {}
                None => self.add(endpoint),
            }
        }
    }

    /// Gives an endpoint a place: one that is at rest, or another one behind all.
    fn add(&mut self, endpoint: Endpoint) {
        let mut learned = self.own..self.settings.endpoints.len();
        if let Some(place) = learned.find(|place| self.is_at_rest(*place)) {
            self.endpoints.replace(place, &endpoint);
            for link in self.endpoints.links_of(place) {
                self.sides.links[link].set_endpoint(endpoint.clone());
            }
            self.settings.endpoints[place] = endpoint;
            self.rest(place, self.sides.now);
        } else if !self.add_place(endpoint) {
            self.sides.counters[Count::NodesRefused] += 1;
        }
    }

    /// Gives an endpoint of the process before a place, if it has none.
    pub(super) fn learn_again(&mut self, text: &str) {
        if !self.settings.endpoints.iter().any(|known| known.to_string() == *text)
            && let Ok(endpoint) = text.parse()
        {
            self.add_place(endpoint);
        }
    }

    /// Adds links to an endpoint behind all others. False: there are too many.
    fn add_place(&mut self, endpoint: Endpoint) -> bool {
        let (links, each) = (&mut self.sides.links, self.settings.links_per_endpoint);
        let has_room = self.settings.endpoints.len() < self.own + LEARNED_MAX;
        if !has_room || !links.add(&endpoint, each, &self.settings.link, self.sides.split) {
            return false;
        }
        self.logins.add_links(each);
        self.endpoints.add(&endpoint);
        tracing::info!(worker = self.sides.number, %endpoint, "a node of the cluster is known");
        self.settings.endpoints.push(endpoint);
        self.sides.counters[Count::NodesLearned] += 1;
        true
    }

    /// Has the closed links of a learned endpoint try at this time.
    fn rest(&mut self, place: usize, until: Instant) {
        for link in self.endpoints.links_of(place) {
            self.sides.links[link].state.wait_until(until);
        }
    }

    /// True if no link of a learned endpoint tries to connect.
    fn is_at_rest(&self, place: usize) -> bool {
        let is_at_rest =
            |link: LinkIndex| self.sides.links[link].state.phase() == Phase::Waiting(Instant::FAR_FUTURE);
        place >= self.own && self.endpoints.links_of(place).all(is_at_rest)
    }
}
