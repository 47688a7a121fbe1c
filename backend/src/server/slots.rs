//! Slots of a node of a cluster, towards gateways: SLOTS, MOVED and LEAVE. Pure.
//!
//! alice's slot was node 1's and is node 2's now. Her gateway sends node 1 an UP: node 1 answers MOVED {slot, node 2}. The gateway
//! sends LEAVE to node 1, which ends her sessions there, and announces them to node 2.

use super::event::{Event, GatewayId, LinkId};
use super::host::LinkHost;
use super::links::Phase;
use bytes::Bytes;
use moorline_proto::link::{Kind, LinkAddress};
use moorline_proto::message::backend::{self, ConnUp, Leave, Slots};
use moorline_proto::slots::{Moved, NodeId, Slot, SlotSet, SlotTable};
use moorline_proto::time::{Duration, Instant};

/// Time between two SLOTS that nobody has asked for.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Slots of a node, and the other nodes.
#[derive(Clone, Debug)]
pub struct NodeSlots {
    /// The node.
    pub node: NodeId,
    /// Owners of all slots, as far as the node knows.
    pub table: SlotTable,
    /// Slots that the node serves.
    pub owned: SlotSet,
    /// Addresses of the other nodes that live.
    pub peers: Vec<(NodeId, LinkAddress)>,
}

/// Slots, and what gateways were told of them.
#[derive(Debug, Default)]
pub(super) struct ClusterSide {
    /// `None`: the backend is not of a cluster.
    slots: Option<Box<NodeSlots>>,
    /// Version of the table that gateways were told.
    told: u64,
    /// Time before which they are told nothing.
    tell_at: Instant,
}

impl ClusterSide {
    /// Number of this node. `None`: the backend is not of a cluster.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.slots.as_ref().map(|slots| slots.node)
    }

    /// SLOTS as of now.
    pub(super) fn message(&self) -> Option<Slots> {
        self.slots.as_ref().map(|slots| Slots::from(&slots.table))
    }

    /// The slot of a user; the first one if the backend is not of a cluster.
    pub(super) fn slot_of(&self, uid: &str) -> Slot {
        if self.slots.is_some() { Slot::of(uid) } else { Slot::FIRST }
    }

    /// MOVED for a slot. `None`: the slot is served here.
    pub(super) fn moved(&self, slot: Slot) -> Option<Moved> {
        let slots = self.slots.as_ref()?;
        (!slots.owned.contains(slot)).then(|| Moved { slot, owner: slots.table.owner(slot) })
    }

    fn is_behind(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| slots.table.version() != self.told)
    }

    /// Time at which gateways are to be told.
    pub(super) fn next_deadline(&self) -> Instant {
        if self.is_behind() { self.tell_at } else { Instant::FAR_FUTURE }
    }

    /// Takes the slots as they are now. Returns the addresses of the other nodes.
    fn set(&mut self, mut slots: NodeSlots) -> Vec<(NodeId, LinkAddress)> {
        let peers = std::mem::take(&mut slots.peers);
        self.slots = Some(Box::new(slots));
        peers
    }

    /// SLOTS, if gateways are to be told now.
    fn poll(&mut self, now: Instant) -> Option<Slots> {
        if !self.is_behind() || now < self.tell_at {
            return None;
        }
        let slots = self.slots.as_ref()?;
        (self.told, self.tell_at) = (slots.table.version(), now + TELL_EVERY);
        Some(Slots::from(&slots.table))
    }
}

impl LinkHost {
    /// Takes the slots of this node as they are now: the backend is one of a cluster.
    pub fn handle_slots(&mut self, now: Instant, slots: NodeSlots) {
        let node = slots.node;
        let peers = self.cluster.set(slots);
        self.peers.handle_peers(now, node, peers);
    }

    /// Sends a message to another node of the cluster, unless its link is full or gone: it may get lost.
    pub fn send_peer(&mut self, node: NodeId, message: Bytes) {
        self.peers.send(node, message);
    }

    /// Tells all gateways the owners of slots, if they are others than before.
    pub(super) fn tell_slots(&mut self, now: Instant) {
        let Some(slots) = self.cluster.poll(now) else { return };
        let is_of_gateway = |gateway: &GatewayId| {
            self.out.routes.gateways.get(gateway).is_some_and(|known| known.peer.is_none())
        };
        let links = self.out.links.iter().filter_map(|(link, state)| match state.phase {
            Phase::Open(gateway) => is_of_gateway(&gateway).then_some(link),
            _ => None,
        });
        for link in links.collect::<Vec<_>>() {
            self.out.links.put(link, Kind::Slots, 0, 0, &slots);
        }
    }

    /// Answers the question of a gateway for the owners of slots.
    pub(super) fn on_slots_asked(&mut self, link: LinkId) {
        if let Some(slots) = self.cluster.message() {
            self.out.links.put(link, Kind::Slots, 0, 0, &slots);
        }
    }

    /// Refuses a login of a user whose slot is not served here. A session that was known ends.
    pub(super) fn try_refuse_login(&mut self, gateway: GatewayId, link: LinkId, login: &ConnUp) -> bool {
        let Some(moved) = self.cluster.moved(self.cluster.slot_of(&login.uid)) else { return false };
        if let Some(session) = self.out.routes.find(gateway, login.handle) {
            self.end_session(session, 0);
        }
        self.out.links.put(link, Kind::Moved, 0, 0, &backend::Moved::from(moved));
        true
    }

    /// Ends the sessions of slots that have moved, as far as no later announcement has named them.
    pub(super) fn on_leave(&mut self, gateway: GatewayId, announcement: u64, leave: &Leave) {
        let slots: SlotSet =
            leave.slots.iter().filter_map(|slot| Slot::from_number((*slot).into())).collect();
        for session in self.out.routes.sessions_in(gateway, &slots, announcement) {
            self.end_session(session, 0);
        }
    }

    /// Takes a message of another node.
    pub(super) fn on_peer(&mut self, node: NodeId, message: Bytes) {
        self.emit(Event::Peer { node, message });
    }
}
