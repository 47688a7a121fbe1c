//! Slots of a node of a cluster, towards gateways: SLOTS, MOVED and LEAVE. Pure.
//!
//! alice's slot was node 1's and is node 2's now. Her gateway sends node 1 an UP: node 1 answers MOVED {slot, node 2}. The gateway
//! sends LEAVE to node 1, which ends her sessions there, and announces them to node 2.

use super::event::{Event, GatewayId, LinkId};
use super::greeting::Refusal;
use super::links::Phase;
use super::outbox::Outbox;
use super::peers::node_name;
use bytes::Bytes;
use moorline_proto::link::{Kind, LinkAddress, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, ConnUp, Leave, LinkHello, NodeAddress, Peer, Slots};
use moorline_proto::slots::{Moved, NodeId, Slot, SlotSet, SlotTable, node_of, number_of};
use moorline_proto::time::{Duration, Instant};

/// Time between two SLOTS that nobody has asked for.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Slots of a node.
#[derive(Clone, Debug)]
pub struct NodeSlots {
    /// The node.
    pub node: NodeId,
    /// Owners of all slots, as far as the node knows.
    pub table: SlotTable,
    /// Slots that the node serves.
    pub owned: SlotSet,
    /// Nodes that live, this one among them, and where gateways reach them.
    pub addresses: Vec<(NodeId, LinkAddress)>,
}

impl From<&NodeSlots> for Slots {
    fn from(slots: &NodeSlots) -> Self {
        let named = |(node, address): &(NodeId, LinkAddress)| NodeAddress {
            node: number_of(Some(*node)),
            address: address.to_string(),
        };
        Self { addresses: slots.addresses.iter().map(named).collect(), ..Self::from(&slots.table) }
    }
}

/// Slots, and what gateways were told of them.
#[derive(Debug, Default)]
pub(super) struct ClusterSide {
    /// `None`: the backend is not of a cluster.
    slots: Option<Box<NodeSlots>>,
    /// Version of the table that gateways were told.
    told: u64,
    /// Nodes have come, gone or moved since.
    has_other_nodes: bool,
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
        self.slots.as_deref().map(Slots::from)
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
        self.slots.as_ref().is_some_and(|slots| self.has_other_nodes || slots.table.version() != self.told)
    }

    /// Time at which gateways are to be told.
    pub(super) fn next_deadline(&self) -> Instant {
        if self.is_behind() { self.tell_at } else { Instant::FAR_FUTURE }
    }

    /// Takes the slots as they are now.
    pub(super) fn set(&mut self, slots: NodeSlots) {
        self.has_other_nodes |= self.slots.as_ref().is_none_or(|known| known.addresses != slots.addresses);
        self.slots = Some(Box::new(slots));
    }

    /// SLOTS, if gateways are to be told now.
    fn poll(&mut self, now: Instant) -> Option<Slots> {
        if !self.is_behind() || now < self.tell_at {
            return None;
        }
        let slots = self.slots.as_ref()?;
        (self.told, self.tell_at, self.has_other_nodes) = (slots.table.version(), now + TELL_EVERY, false);
        Some(Slots::from(&**slots))
    }
}

impl ClusterSide {
    /// Returns what keeps a gateway, or another node, apart from the cluster of this backend, whose name is `store`.
    pub(super) fn fault_of(&self, hello: &LinkHello, store: &Bytes) -> Option<Refusal> {
        let peer = match (self.node(), node_of(hello.peer)) {
            (None, Ok(None)) => return None,
            (Some(_), Ok(None)) => return (!hello.knows_slots).then_some(Refusal::Cluster),
            (_, Err(_)) | (None, Ok(Some(_))) => return Some(Refusal::OtherCluster),
            (Some(me), Ok(Some(peer))) => (peer != me).then_some(peer),
        };
        let is_named = peer.is_some_and(|peer| hello.node == node_name(peer));
        (!is_named || hello.store != store).then_some(Refusal::OtherCluster)
    }

    /// Tells all gateways the owners of slots, if they are others than before.
    pub(super) fn tell(&mut self, now: Instant, out: &mut Outbox) {
        let Some(slots) = self.poll(now) else { return };
        let is_of_gateway =
            |gateway: &GatewayId| out.routes.gateways.get(gateway).is_some_and(|known| known.peer.is_none());
        let links = out.links.iter().filter_map(|(link, state)| match state.phase {
            Phase::Open(gateway) => is_of_gateway(&gateway).then_some(link),
            _ => None,
        });
        for link in links.collect::<Vec<_>>() {
            out.links.put(link, Kind::Slots, 0, 0, &slots);
        }
    }

    /// Refuses a login of a user whose slot is not served here. A session that was known ends.
    pub(super) fn try_refuse(
        &self,
        gateway: GatewayId,
        link: LinkId,
        login: &ConnUp,
        out: &mut Outbox,
    ) -> bool {
        let Some(moved) = self.moved(self.slot_of(&login.uid)) else { return false };
        if let Some(session) = out.routes.find(gateway, login.handle) {
            out.end_session(session, 0);
        }
        out.links.put(link, Kind::Moved, 0, 0, &backend::Moved::from(moved));
        true
    }
}

impl Outbox {
    /// Ends the sessions of slots that have moved, as far as no later announcement has named them.
    pub(super) fn on_leave(&mut self, gateway: GatewayId, announcement: u64, leave: &Leave) {
        let slots: SlotSet =
            leave.slots.iter().filter_map(|slot| Slot::from_number((*slot).into())).collect();
        for session in self.routes.sessions_in(gateway, &slots, announcement) {
            self.end_session(session, 0);
        }
    }

    /// Takes a frame of another node.
    pub(super) fn on_peer_frame(
        &mut self,
        link: LinkId,
        node: NodeId,
        frame: &LinkFrame,
    ) -> Result<(), LinkError> {
        match frame.kind {
            Kind::Peer => {
                let Peer { message } = frame.message()?;
                self.emit(Event::Peer { node, message });
            }
            Kind::Ping => {
                self.links.put(link, Kind::Pong, frame.correlation, 0, &());
            }
            Kind::Credit | Kind::Drain => {}
            kind => return Err(LinkError::Unexpected(kind)),
        }
        Ok(())
    }
}
