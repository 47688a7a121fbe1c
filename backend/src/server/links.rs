//! State of every link: phase, frame decoder, output buffer, credit in use, time of the last traffic. Pure.
//!
//! Example: `link.credit` is 2 and gateway `g1` has forwarded three UPs that the backend has not answered. The
//! third UP queues [`Output::Pause`] for its link; the first answer queues [`Output::Resume`].

use super::event::{GatewayId, LinkId};
use super::greeting::{Newcomer, Refusal, Visitor};
use super::host::Output;
use super::login_clock::Ahead;
use crate::config::LinkConfig;
use bytes::{Buf, BytesMut};
use moorline_proto::link::{self, Kind, LinkDecoder, LinkError, NODE_BYTES_MAX, NONCE_BYTES};
use moorline_proto::slots::NodeId;
use moorline_proto::time::{Duration, Instant};
use prost::Message;
use slab::Slab;
use std::collections::VecDeque;
use std::{fmt, io};

/// An emptied output buffer with a larger capacity is given back to the allocator, in bytes.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// An emptied queue of outputs with a larger capacity is given back to the allocator, in entries.
const OUTPUTS_KEPT_MAX: usize = 4096;

/// Progress of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the gateway's HELLO, at most until this time.
    Greeting(Instant),
    /// Waits for the gateway's PROOF, at most until this time.
    Proving(Instant),
    /// Waits until an older epoch of the gateway has answered, or has not.
    Waiting,
    /// Speaks for this gateway.
    Open(GatewayId),
}

/// Reason for which a link ended.
#[derive(Debug)]
pub enum LinkEnd {
    /// The gateway closed the connection.
    Closed,
    /// The socket failed.
    Io(io::Error),
    /// The gateway broke the link protocol.
    Protocol(LinkError),
    /// The TLS handshake failed, or the gateway does not keep to TLS, for this reason.
    Tls(String),
    /// The connection to another node was not made within this time.
    NotConnected(Duration),
    /// No HELLO, or no PROOF, came within `link.hello_timeout`.
    NoHello,
    /// `link.visitors_max` connections had not proven who they are, and this one was silent for longest.
    Evicted,
    /// A newer epoch of the gateway took its place.
    Replaced,
    /// No byte came within `link.silence_timeout`.
    Silent,
    /// The output stayed at or over `link.output_max` for `link.stall_timeout`: a slow consumer.
    Stalled,
    /// The other node of the cluster refuses this one, for this reason.
    RefusedHere(String),
    /// Nothing proves that the other end is a node of the cluster.
    PeerUnproven,
    /// Another node, or a node of another cluster, answers at the address of this one.
    OtherNode(NodeId),
    /// The HELLO was refused.
    Refused {
        /// Name in the HELLO.
        node: String,
        /// Cause of the refusal.
        refusal: Refusal,
        /// The gateway reads notices.
        is_told: bool,
    },
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the gateway"),
            Self::Io(cause) => write!(f, "socket failed: {cause}"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::Tls(problem) => f.write_str(problem),
            Self::NotConnected(time) => {
                write!(f, "no connection within {} s, TLS included", time.as_secs())
            }
            Self::NoHello => f.write_str("no HELLO and proof within `link.hello_timeout`"),
            Self::Evicted => {
                f.write_str("silent for longest of `link.visitors_max` connections without a proof")
            }
            Self::Replaced => f.write_str("a newer process of the gateway took its place"),
            Self::Silent => f.write_str("no byte received within `link.silence_timeout`"),
            Self::Stalled => {
                f.write_str("output over `link.output_max` for `link.stall_timeout`: slow consumer")
            }
            Self::RefusedHere(reason) => write!(
                f,
                "refused by the other node: {reason:?}; a node is `node-<node_number>` in link.secrets_file and in its \
                 certificate"
            ),
            Self::PeerUnproven => f.write_str(
                "nothing proves that this is a node of the cluster; give each node a line `node-<node_number> secret` in \
                 link.secrets_file of all nodes, or certificates",
            ),
            Self::OtherNode(node) => write!(
                f,
                "another node, or one of another cluster, answers at the address of node {}; compare node_number and \
                 store.address",
                node.0
            ),
            Self::Refused { node, refusal, .. } => {
                let shown: String = node.chars().take(NODE_BYTES_MAX).collect();
                write!(f, "refused the gateway {shown:?}: {refusal}")
            }
        }
    }
}

impl From<LinkError> for LinkEnd {
    fn from(error: LinkError) -> Self {
        Self::Protocol(error)
    }
}

/// State of one link.
#[derive(Debug)]
pub(super) struct Link {
    generation: u32,
    pub(super) phase: Phase,
    /// Other end of the connection, and the nonce of this end.
    pub(super) visitor: Visitor,
    /// HELLO of a link that is not open yet.
    newcomer: Option<Box<Newcomer>>,
    pub(super) decoder: LinkDecoder,
    /// The clock of the gateway's login versions. `None`: HELLO has not told it.
    pub(super) clock_ahead: Option<Ahead>,
    /// Time of the last received bytes.
    pub(super) last_rx: Instant,
    /// Time of the last sent bytes, or of the last PING that was queued.
    pub(super) last_tx: Instant,
    /// Time since which the buffer has held `link.output_max` bytes or more; `None`: it holds fewer.
    over_since: Option<Instant>,
    /// Encoded frames that the socket has not taken yet.
    buffer: BytesMut,
    /// UPs received and not answered yet.
    unanswered: u32,
    is_dirty: bool,
    is_paused: bool,
}

/// All links, and the queue of outputs of the link host.
#[derive(Debug)]
pub(super) struct Links {
    slots: Slab<Link>,
    next_generation: u32,
    /// Links in [`Phase::Open`].
    open: usize,
    /// Links with new bytes in their buffers since the last turn's end.
    dirty: Vec<LinkId>,
    /// Outputs for the owner, in the order of causes.
    pub(super) outputs: VecDeque<Output>,
    limits: Limits,
}

#[derive(Debug)]
struct Limits {
    visitors_max: usize,
    credit: u32,
    output_max: usize,
}

impl Links {
    pub(super) fn new(config: &LinkConfig) -> Self {
        let &LinkConfig { visitors_max, credit, output_max, .. } = config;
        Self {
            slots: Slab::new(),
            next_generation: 1,
            open: 0,
            dirty: Vec::new(),
            outputs: VecDeque::new(),
            limits: Limits { visitors_max, credit, output_max },
        }
    }

    /// Adds a link that must greet before `hello_until`. Call [`Self::crowded_out`] first.
    pub(super) fn open(&mut self, now: Instant, hello_until: Instant, visitor: Visitor) -> LinkId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let slot = self.slots.insert(Link {
            generation,
            phase: Phase::Greeting(hello_until),
            visitor,
            newcomer: None,
            decoder: LinkDecoder::greeting(),
            clock_ahead: None,
            last_rx: now,
            last_tx: now,
            over_since: None,
            buffer: BytesMut::new(),
            unanswered: 0,
            is_dirty: false,
            is_paused: false,
        });
        LinkId { slot: u32::try_from(slot).expect("links fit u32"), generation }
    }

    /// Returns the visitor that a further one takes the place of; `None`: there is room. Those that said nothing go
    /// first, then those without a proof; of these the one that came first.
    pub(super) fn crowded_out(&self) -> Option<LinkId> {
        if self.slots.len() - self.open < self.limits.visitors_max {
            return None;
        }
        let rank = |link: &Link| match link.phase {
            Phase::Greeting(until) => Some((0, until)),
            Phase::Proving(until) => Some((1, until)),
            Phase::Waiting => Some((2, link.last_rx)),
            Phase::Open(_) => None,
        };
        let visitors = self.iter().filter_map(|(id, link)| Some((rank(link)?, id)));
        visitors.min_by_key(|(rank, id)| (*rank, id.generation)).map(|(_, id)| id)
    }

    /// Returns the number of open links.
    pub(super) const fn open_links(&self) -> usize {
        self.open
    }

    /// Changes the phase of a link that is not open.
    pub(super) fn set_phase(&mut self, id: LinkId, phase: Phase, newcomer: Option<Newcomer>) {
        let Some(link) = at(&mut self.slots, id) else { return };
        link.phase = phase;
        link.newcomer = newcomer.map(Box::new);
        if let Phase::Open(_) = phase {
            link.decoder.open();
            self.open += 1;
        }
    }

    /// Takes the HELLO of a link that is not open.
    pub(super) fn take_newcomer(&mut self, id: LinkId) -> Option<(Visitor, Newcomer)> {
        let link = at(&mut self.slots, id)?;
        Some((link.visitor.clone(), *link.newcomer.take()?))
    }

    /// Returns the first link that waits for an older epoch, and whose HELLO `is_wanted`.
    pub(super) fn find_waiting(&self, is_wanted: impl Fn(&Newcomer) -> bool) -> Option<LinkId> {
        let is_it =
            |link: &Link| link.phase == Phase::Waiting && link.newcomer.as_deref().is_some_and(&is_wanted);
        self.iter().filter(|(_, link)| is_it(link)).min_by_key(|(id, _)| id.generation).map(|(id, _)| id)
    }

    /// Returns the links that wait to be this node, each with its epoch, and whether its gateway reads notices.
    pub(super) fn waiting_for(&self, node: &str) -> Vec<(LinkId, u64, bool)> {
        let of = |(id, link): (LinkId, &Link)| {
            let hello = &link.newcomer.as_deref().filter(|_| link.phase == Phase::Waiting)?.hello;
            (hello.node == node).then_some((id, hello.epoch, hello.nonce.len() == NONCE_BYTES))
        };
        self.iter().filter_map(of).collect()
    }

    /// Returns whether an open link of a gateway is not read for now, so that its PONG may be waiting there.
    pub(super) fn is_any_paused(&self, gateway: GatewayId) -> bool {
        self.of_gateway(gateway).any(|(_, link)| link.is_paused)
    }

    /// Removes a link and returns its phase; `None`: the link is gone already.
    pub(super) fn close(&mut self, id: LinkId) -> Option<Phase> {
        self.get(id)?;
        let phase = self.slots.try_remove(id.slot as usize).map(|link| link.phase);
        self.open -= usize::from(matches!(phase, Some(Phase::Open(_))));
        phase
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.slots.get(id.slot as usize).filter(|link| link.generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        at(&mut self.slots, id)
    }

    /// Returns all links with their state.
    pub(super) fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.slots.iter().map(|(slot, link)| (id_of(slot, link), link))
    }

    /// Returns the open links of a gateway.
    pub(super) fn of_gateway(&self, gateway: GatewayId) -> impl Iterator<Item = (LinkId, &Link)> {
        self.iter().filter(move |(_, link)| link.phase == Phase::Open(gateway))
    }

    /// Returns whether a link's buffer holds `link.output_max` bytes or more; `None`: the link is gone.
    pub(super) fn is_full(&self, id: LinkId) -> Option<bool> {
        Some(self.get(id)?.buffer.len() >= self.limits.output_max)
    }

    /// Returns the bytes that wait to be sent.
    pub(super) fn unsent(&self, id: LinkId) -> &[u8] {
        self.get(id).map_or(&[], |link| &link.buffer)
    }

    /// Appends one frame to a link's buffer. False: the link is gone.
    pub(super) fn put<M: Message>(
        &mut self,
        to: LinkId,
        kind: Kind,
        correlation: u64,
        credit: u32,
        body: &M,
    ) -> bool {
        let Some(link) = at(&mut self.slots, to) else { return false };
        link::encode(&mut link.buffer, kind, correlation, credit, body);
        if !link.is_dirty {
            link.is_dirty = true;
            self.dirty.push(to);
        }
        link.update_pause(to, &self.limits, &mut self.outputs);
        true
    }

    /// Counts one more UP that wants an answer.
    pub(super) fn on_question(&mut self, id: LinkId) {
        let Some(link) = at(&mut self.slots, id) else { return };
        link.unanswered += 1;
        link.update_pause(id, &self.limits, &mut self.outputs);
    }

    /// Counts one UP less that wants an answer.
    pub(super) fn on_answer(&mut self, id: LinkId) {
        let Some(link) = at(&mut self.slots, id) else { return };
        link.unanswered = link.unanswered.saturating_sub(1);
        link.update_pause(id, &self.limits, &mut self.outputs);
    }

    /// Drops the first `count` bytes of a link's buffer: the socket has taken them.
    pub(super) fn on_sent(&mut self, id: LinkId, count: usize, now: Instant) {
        let Some(link) = at(&mut self.slots, id) else { return };
        if count > 0 {
            link.last_tx = now;
        }
        if count < link.buffer.len() {
            link.buffer.advance(count);
        } else {
            link.buffer.clear();
            if link.buffer.capacity() > BUFFER_KEPT_MAX {
                link.buffer = BytesMut::new();
            }
        }
        if link.buffer.len() < self.limits.output_max {
            link.over_since = None;
        }
        link.update_pause(id, &self.limits, &mut self.outputs);
    }

    /// Lists a link for the next [`Self::flush`] if its buffer holds bytes.
    pub(super) fn on_writable(&mut self, id: LinkId) {
        let Some(link) = at(&mut self.slots, id) else { return };
        if !link.is_dirty && !link.buffer.is_empty() {
            link.is_dirty = true;
            self.dirty.push(id);
        }
    }

    /// Queues one [`Output::Write`] for each link with new bytes.
    pub(super) fn flush(&mut self, now: Instant) {
        for id in self.dirty.drain(..) {
            let Some(link) = at(&mut self.slots, id) else { continue };
            link.is_dirty = false;
            if link.buffer.len() >= self.limits.output_max {
                link.over_since.get_or_insert(now);
            }
            self.outputs.push_back(Output::Write(id));
        }
    }

    /// Returns whether frames were put since the last [`Self::flush`].
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() && self.outputs.capacity() > OUTPUTS_KEPT_MAX {
            self.outputs = VecDeque::new();
        }
        output
    }

    /// Returns the links whose deadlines are over, each with the reason to close it.
    pub(super) fn overdue(&self, now: Instant, config: &LinkConfig) -> Vec<(LinkId, LinkEnd)> {
        let end_of = |link: &Link| match (link.phase, link.over_since) {
            (Phase::Greeting(until) | Phase::Proving(until), _) if until <= now => Some(LinkEnd::NoHello),
            (_, Some(since)) if now.saturating_since(since) >= config.stall_timeout => Some(LinkEnd::Stalled),
            _ if now.saturating_since(link.last_rx) >= config.silence_timeout => Some(LinkEnd::Silent),
            _ => None,
        };
        self.iter().filter_map(|(id, link)| Some((id, end_of(link)?))).collect()
    }

    /// Queues a PING on every open link that has been quiet for a third of `link.silence_timeout`.
    pub(super) fn ping_quiet(&mut self, now: Instant, config: &LinkConfig) {
        let is_quiet = |link: &Link| {
            matches!(link.phase, Phase::Open(_))
                && now.saturating_since(link.last_tx) >= config.silence_timeout / 3
        };
        let quiet: Vec<LinkId> = self.iter().filter(|(_, link)| is_quiet(link)).map(|(id, _)| id).collect();
        for id in quiet {
            if let Some(link) = self.get_mut(id) {
                link.last_tx = now;
            }
            self.put(id, Kind::Ping, 0, 0, &());
        }
    }
}

impl Link {
    /// Queues a pause or a resumption if the link's credit or buffer crossed its limit.
    fn update_pause(&mut self, id: LinkId, limits: &Limits, outputs: &mut VecDeque<Output>) {
        let is_paused = self.unanswered > limits.credit || self.buffer.len() >= limits.output_max;
        if is_paused != self.is_paused {
            self.is_paused = is_paused;
            outputs.push_back(if is_paused { Output::Pause(id) } else { Output::Resume(id) });
        }
    }
}

fn at(slots: &mut Slab<Link>, id: LinkId) -> Option<&mut Link> {
    slots.get_mut(id.slot as usize).filter(|link| link.generation == id.generation)
}

fn id_of(slot: usize, link: &Link) -> LinkId {
    LinkId { slot: u32::try_from(slot).expect("links fit u32"), generation: link.generation }
}
