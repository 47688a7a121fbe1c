//! Links to the other nodes of a cluster: this end connects, greets as a gateway does, and sends PEER. Pure.
//!
//! ```text
//! Waiting --due--> Connecting --connected--> Greeting --HELLO of the node--> Open
//!    ^                 |                        |                             |
//!    +---- failed -----+------------------------+-----------------------------+
//! ```
//!
//! Node 1 has messages for node 2: it connects to the link port of node 2 and says HELLO {node-1, peer 2}. What node 2 has to say
//! comes by a link of its own. A message may get lost: the store of the nodes sends it again.

use super::links::LinkEnd;
use crate::config::{LinkConfig, Unproven};
use bytes::{Buf, Bytes, BytesMut};
use moorline_proto::link::{
    self, Kind, LINK_VERSION, LinkAddress, LinkDecoder, LinkError, LinkFrame, NONCE_BYTES, Nonce, Role,
    Secret, Secrets, Transcript,
};
use moorline_proto::message::backend::{LinkChallenge, LinkHello, LinkNotice, LinkProof, Peer};
use moorline_proto::slots::{NodeId, node_of};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};

/// Longest time until a connection is made, its handshake included: a lost SYN is sent again after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Shortest and longest pause between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Bytes for a node whose link is not open; further messages are lost.
const WAITING_MAX: usize = 1 << 20;

/// Returns the name by which a node greets the others, and which has a secret or is in a certificate.
pub fn node_name(node: NodeId) -> String {
    format!("node-{}", node.0)
}

/// A connection to another node that was made.
#[derive(Clone, Debug)]
pub struct PeerConnected {
    /// Random bytes of the system's generator, for this connection only.
    pub nonce: Nonce,
    /// The owner knows that the node is at the other end: by a Unix socket, or by its certificate.
    pub is_known: bool,
    /// The other end is on this machine, over TCP.
    pub is_loopback: bool,
}

#[derive(Debug)]
enum State {
    Waiting(Instant),
    Connecting(Instant),
    Greeting(Instant, PeerConnected, bool),
    Open,
}

/// The link to one node.
#[derive(Debug)]
struct PeerLink {
    address: LinkAddress,
    state: State,
    failures: u32,
    /// Cause of the last failure, as the log says it; empty: none since it was open.
    told: String,
    decoder: LinkDecoder,
    /// Bytes that the socket has not taken.
    buffer: BytesMut,
    /// Frames that wait until the link is open.
    waiting: BytesMut,
    last_rx: Instant,
    last_tx: Instant,
}

/// Order to the owner of [`PeerLinks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOutput {
    /// Connect to a node; [`PeerLinks::handle_connected`] or [`PeerLinks::handle_closed`] follows.
    Dial(NodeId, LinkAddress),
    /// Write [`PeerLinks::unsent`] of this node once.
    Write(NodeId),
    /// Close the connection to a node, or stop connecting.
    HangUp(NodeId),
}

/// All links to other nodes. The owner drains [`Self::poll_output`] after each input.
#[derive(Debug)]
pub struct PeerLinks {
    epoch: u64,
    unproven: Unproven,
    hello_timeout: Duration,
    silence: Duration,
    secrets: Secrets,
    /// Name of the cluster.
    store: Bytes,
    /// `None`: the backend is of no cluster.
    me: Option<NodeId>,
    links: BTreeMap<NodeId, PeerLink>,
    outputs: VecDeque<PeerOutput>,
    /// Messages that were dropped: their links were full or not open.
    lost: u64,
}

impl PeerLink {
    fn new(address: LinkAddress, now: Instant) -> Self {
        Self {
            address,
            state: State::Waiting(now),
            failures: 0,
            told: String::new(),
            decoder: LinkDecoder::greeting(),
            buffer: BytesMut::new(),
            waiting: BytesMut::new(),
            last_rx: now,
            last_tx: now,
        }
    }

    /// Notes why the link is down. True: the log has to say it. A first failure may be bad luck, and hide the cause of all that
    /// follow.
    fn is_news(&mut self, end: &LinkEnd) -> bool {
        let end = end.to_string();
        let is_news = self.told != end;
        self.told = end;
        is_news
    }

    fn deadline(&self, silence: Duration) -> Instant {
        match self.state {
            State::Waiting(at) | State::Connecting(at) | State::Greeting(at, ..) => at,
            State::Open => (self.last_tx + silence / 3).min(self.last_rx + silence),
        }
    }
}

impl PeerLinks {
    /// No links. `epoch` must be larger than that of every earlier life of the node.
    pub fn new(config: &LinkConfig, epoch: u64) -> Self {
        Self {
            epoch,
            unproven: config.unproven,
            hello_timeout: config.hello_timeout,
            silence: config.silence_timeout,
            secrets: Secrets::default(),
            store: Bytes::new(),
            me: None,
            links: BTreeMap::new(),
            outputs: VecDeque::new(),
            lost: 0,
        }
    }

    /// Takes the secrets of nodes.
    pub fn handle_secrets(&mut self, secrets: Secrets) {
        self.secrets = secrets;
    }

    /// Takes the name of the cluster.
    pub fn handle_store(&mut self, store: Bytes) {
        self.store = store;
    }

    /// Takes the other nodes that live.
    pub fn handle_peers(&mut self, now: Instant, me: NodeId, peers: Vec<(NodeId, LinkAddress)>) {
        self.me = Some(me);
        let peers: BTreeMap<_, _> = peers.into_iter().filter(|(node, _)| *node != me).collect();
        let Self { links, outputs, .. } = self;
        links.retain(|node, link| {
            let stays = peers.get(node) == Some(&link.address);
            if !stays {
                outputs.push_back(PeerOutput::HangUp(*node));
            }
            stays
        });
        for (node, address) in peers {
            links.entry(node).or_insert_with(|| PeerLink::new(address, now));
        }
    }

    /// Puts a message into the output of a node's link.
    pub fn send(&mut self, node: NodeId, message: Bytes) {
        let Some(link) = self.links.get_mut(&node) else { return self.lost += 1 };
        let is_open = matches!(link.state, State::Open);
        let (into, limit) = if is_open {
            (&mut link.buffer, link::BODY_BYTES_MAX as usize)
        } else {
            (&mut link.waiting, WAITING_MAX)
        };
        if into.len() + message.len() > limit {
            self.lost += 1;
            return;
        }
        link::encode(into, Kind::Peer, 0, 0, &Peer { message });
    }

    /// Messages that were dropped.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Links that are open.
    pub fn open(&self) -> usize {
        self.links.values().filter(|link| matches!(link.state, State::Open)).count()
    }

    /// Takes the oldest output.
    pub fn poll_output(&mut self) -> Option<PeerOutput> {
        self.outputs.pop_front()
    }

    /// Returns the time at which [`Self::handle_timeouts`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        let deadlines = self.links.values().map(|link| link.deadline(self.silence));
        deadlines.min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// Orders one write for each link with bytes.
    pub fn flush(&mut self) {
        let full = self.links.iter().filter(|(_, link)| !link.buffer.is_empty());
        self.outputs.extend(full.map(|(node, _)| PeerOutput::Write(*node)));
    }

    /// Connects, greets no longer, asks and gives up as time tells.
    pub fn handle_timeouts(&mut self, now: Instant) {
        let silence = self.silence;
        let mut failed = Vec::new();
        for (node, link) in &mut self.links {
            if link.deadline(silence) > now {
                continue;
            }
            match link.state {
                State::Waiting(_) => {
                    link.state = State::Connecting(now + CONNECT_TIMEOUT);
                    self.outputs.push_back(PeerOutput::Dial(*node, link.address.clone()));
                }
                State::Open if link.last_rx + silence > now => {
                    link.last_tx = now;
                    link::encode_empty(&mut link.buffer, Kind::Ping, 1, 0);
                }
                State::Open => failed.push((*node, LinkEnd::Silent)),
                State::Connecting(_) => failed.push((*node, LinkEnd::NotConnected(CONNECT_TIMEOUT))),
                State::Greeting(..) => failed.push((*node, LinkEnd::NoHello)),
            }
        }
        for (node, end) in failed {
            self.outputs.push_back(PeerOutput::HangUp(node));
            self.handle_closed(now, node, &end);
        }
    }

    /// The connection to a node has ended, or was not made.
    pub fn handle_closed(&mut self, now: Instant, node: NodeId, end: &LinkEnd) {
        let Some(link) = self.links.get_mut(&node) else { return };
        let was_open = matches!(link.state, State::Open);
        if link.is_news(end) {
            tracing::warn!(node = node.0, address = %link.address, "link to another node down: {end}");
        }
        link.failures = if was_open { 0 } else { (link.failures + 1).min(8) };
        let pause = PAUSE_MAX.min(PAUSE_MIN * (1 << link.failures));
        link.state = State::Waiting(now + pause);
        link.decoder = LinkDecoder::greeting();
        (link.buffer, link.waiting) = (BytesMut::new(), BytesMut::new());
    }

    /// The connection to a node was made.
    pub fn handle_connected(&mut self, now: Instant, node: NodeId, connected: PeerConnected) {
        let (Some(me), Some(link)) = (self.me, self.links.get_mut(&node)) else { return };
        let version = u32::from(LINK_VERSION);
        let hello = LinkHello {
            version_min: version,
            version_max: version,
            node: node_name(me),
            epoch: self.epoch,
            agent: concat!("moorline-backend/", env!("CARGO_PKG_VERSION")).into(),
            nonce: connected.nonce.to_vec().into(),
            store: self.store.clone(),
            peer: u32::from(me.0) + 1,
            ..LinkHello::default()
        };
        link::encode(&mut link.buffer, Kind::Hello, 0, 0, &hello);
        (link.last_rx, link.last_tx) = (now, now);
        link.state = State::Greeting(now + self.hello_timeout, connected, false);
    }

    /// Takes bytes of another node.
    pub fn handle_bytes(&mut self, now: Instant, node: NodeId, mut input: Bytes) {
        loop {
            let Some(link) = self.links.get_mut(&node) else { return };
            link.last_rx = now;
            let taken = match link.decoder.decode(&mut input) {
                Ok(None) => return,
                Ok(Some(frame)) => self.on_frame(node, &frame),
                Err(error) => Err(error.into()),
            };
            if let Err(end) = taken {
                self.outputs.push_back(PeerOutput::HangUp(node));
                return self.handle_closed(now, node, &end);
            }
        }
    }

    /// The socket took the first `count` bytes of [`Self::unsent`].
    pub fn handle_sent(&mut self, now: Instant, node: NodeId, count: usize) {
        let Some(link) = self.links.get_mut(&node) else { return };
        if count > 0 {
            link.last_tx = now;
        }
        link.buffer.advance(count.min(link.buffer.len()));
    }

    /// Bytes that wait to be sent to a node.
    pub fn unsent(&self, node: NodeId) -> &[u8] {
        self.links.get(&node).map_or(&[], |link| &link.buffer)
    }

    /// Secrets of this node: those of its name.
    fn own_secrets(&self) -> &[Secret] {
        self.me.map_or(&[], |me| self.secrets.of(&node_name(me)))
    }

    fn on_frame(&mut self, node: NodeId, frame: &LinkFrame) -> Result<(), LinkEnd> {
        let state = self.links.get(&node).map(|link| &link.state);
        match (state, frame.kind) {
            (_, Kind::Notice) => {
                let notice: LinkNotice = frame.message()?;
                Err(LinkEnd::RefusedHere(notice.text.chars().take(300).collect()))
            }
            (Some(State::Greeting(_, _, false)), Kind::Challenge) => self.on_challenge(node, frame),
            (Some(State::Greeting(..)), Kind::Hello) => self.on_hello(node, &frame.message()?),
            (Some(State::Open), Kind::Ping) => {
                if let Some(link) = self.links.get_mut(&node) {
                    link::encode_empty(&mut link.buffer, Kind::Pong, frame.correlation, 0);
                }
                Ok(())
            }
            (Some(State::Open), Kind::Pong | Kind::Credit | Kind::Slots) => Ok(()),
            (_, kind) => Err(LinkError::Unexpected(kind).into()),
        }
    }

    /// Checks the proof of the other node, and answers with this one's.
    fn on_challenge(&mut self, node: NodeId, frame: &LinkFrame) -> Result<(), LinkEnd> {
        let challenge: LinkChallenge = frame.message()?;
        let nonce: [u8; NONCE_BYTES] =
            challenge.nonce.as_ref().try_into().map_err(|_| LinkError::Body(frame.kind))?;
        let Some(PeerLink { state: State::Greeting(_, connected, _), .. }) = self.links.get(&node) else {
            return Ok(());
        };
        let name = self.me.map(node_name).unwrap_or_default();
        let link_of = Transcript {
            gateway: (&name, self.epoch),
            backend: (&challenge.node, challenge.epoch),
            nonces: (connected.nonce, nonce),
        };
        let proofs = || challenge.proofs.iter().take(link::SECRETS_PER_NODE);
        let is_right = |secret: &&Secret| proofs().any(|proof| link_of.verify(secret, Role::Backend, proof));
        let Some(secret) = self.own_secrets().iter().find(is_right) else {
            return Err(LinkEnd::PeerUnproven);
        };
        let proof = link_of.prove(secret, Role::Gateway).to_vec().into();
        if let Some(PeerLink { state: State::Greeting(_, _, is_proven), buffer, .. }) =
            self.links.get_mut(&node)
        {
            *is_proven = true;
            link::encode(buffer, Kind::Proof, 0, 0, &LinkProof { proof });
        }
        Ok(())
    }

    fn on_hello(&mut self, node: NodeId, hello: &LinkHello) -> Result<(), LinkEnd> {
        let is_it = node_of(hello.cluster_node) == Ok(Some(node)) && hello.store == self.store;
        if !is_it {
            return Err(LinkEnd::OtherNode(node));
        }
        let unproven = self.unproven;
        let Some(link) = self.links.get_mut(&node) else { return Ok(()) };
        let State::Greeting(_, connected, is_proven) = &link.state else { return Ok(()) };
        let is_believed = match unproven {
            Unproven::Private => true,
            Unproven::Loopback => connected.is_loopback,
            Unproven::Refuse => false,
        };
        if !(*is_proven || connected.is_known || is_believed) {
            return Err(LinkEnd::PeerUnproven);
        }
        (link.state, link.failures) = (State::Open, 0);
        link.told.clear();
        link.decoder.open();
        let waiting = std::mem::take(&mut link.waiting);
        link.buffer.extend_from_slice(&waiting);
        tracing::info!(node = node.0, address = %link.address, "link to another node up");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_cause_is_logged_once() {
        let mut link = PeerLink::new("127.0.0.1:1".parse().expect("an address"), Instant::ZERO);
        let late = LinkEnd::NotConnected(CONNECT_TIMEOUT);
        let refused = LinkEnd::Tls("refused".into());
        let told = [&late, &late, &refused, &refused, &late].map(|end| link.is_news(end));
        assert_eq!(told, [true, false, true, false, true]);
    }
}
