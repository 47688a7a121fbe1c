//! Judgement of the other end of a new link: whether it may speak for a gateway. Pure.
//!
//! ```text
//! Greeting --HELLO, believed (Unix socket, certificate)-------------> admitted
//!    '------HELLO, its node has a secret--> Proving --PROOF, right--> admitted
//! admitted --------------------------------------------------------> Open
//!    '------an older epoch of the node has links--> Waiting --------> Open, or refused
//! ```
//!
//! Over TLS the certificate of the gateway has its node as one of its DNS names [B-5.9]; a node that has a secret, too, proves
//! that it knows it.
//!
//! Example: gateway `g1` crashed and begins epoch 8 while the backend still has a link of epoch 7. The proof is
//! right, so the link waits, and the backend sends PING on the link of epoch 7. No PONG within 1 s: epoch 7 ends, and
//! the link opens. A PONG: two processes have the same name, and the newcomer is refused; both logs say so.

use super::event::{Event, GatewayId, LinkId, Now};
use super::host::LinkHost;
use super::links::{LinkEnd, Phase};
use crate::config::Unproven;
use moorline_proto::link::{
    Kind, LINK_VERSION, LinkError, LinkFrame, NONCE_BYTES, Nonce, Role, Transcript, is_node,
};
use moorline_proto::message::backend::{LinkChallenge, LinkHello, LinkNotice, LinkProof, Notice, Outcome};
use moorline_proto::slots::node_of;
use moorline_proto::time::{Duration, Instant};
use std::fmt;
use std::sync::Arc;

/// Time that an older epoch has to answer a PING before a newer one takes its place.
const PROBE: Duration = Duration::from_secs(1);
/// Pause between two notices to a gateway whose name another process asks for.
const NOTICE_PAUSE: Duration = Duration::from_secs(10);
/// An epoch is a time in nanoseconds since 1970 [B-5.6]; one that is further ahead of this clock is refused.
const EPOCH_AHEAD_MAX_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Other end of a connection, as far as the system and TLS know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this user id, over a Unix socket.
    Uid(u32),
    /// A process of this machine, over TCP.
    Loopback,
    /// Any machine, over TCP.
    Network,
    /// Any machine, over TLS, with a certificate that was verified and has these DNS names. None while the handshake is not
    /// done.
    Certificate(Arc<[String]>),
}

impl Peer {
    /// Other end of a connection whose TLS handshake is not done: it can be no node.
    pub fn nobody() -> Self {
        Self::Certificate(Arc::new([]))
    }

    /// Returns whether this end may be the node, as far as its certificate tells.
    fn may_be(&self, node: &str) -> bool {
        match self {
            Self::Certificate(names) => names.iter().any(|name| name.eq_ignore_ascii_case(node)),
            _ => true,
        }
    }
}

/// A new connection.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// Other end of the connection.
    pub peer: Peer,
    /// Random bytes of the system's generator, for this connection only.
    pub nonce: Nonce,
}

/// Reason to believe the name in a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// None; `link.unproven` allows it.
    Unproven,
    /// The process has this user id.
    Uid(u32),
    /// The other end has a certificate for the node.
    Certificate,
    /// The other end knows the secret of the node.
    Secret,
}

impl Standing {
    /// Returns whether an end with this standing is the same node as one with the standing `known`.
    const fn is_node_of(self, known: Self) -> bool {
        match (self, known) {
            (_, Self::Unproven) => true,
            (Self::Unproven, _) => false,
            (Self::Uid(one), Self::Uid(other)) => one == other,
            (Self::Secret | Self::Certificate, _) | (_, Self::Secret | Self::Certificate) => true,
        }
    }
}

/// A link that has greeted and is not open yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) hello: LinkHello,
    pub(super) standing: Standing,
}

/// Reason why a HELLO is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// HELLO offers other link versions.
    Version,
    /// The node is empty, longer than 128 bytes, or has control characters.
    Node,
    /// The epoch is more than a day ahead of the backend's clock.
    Epoch,
    /// The node has no secret, and nothing else proves the name.
    NoSecret,
    /// The node has a secret, and the gateway does not know of proofs.
    NoNonce,
    /// The proof is wrong.
    Proof,
    /// The certificate is for another node.
    Certificate,
    /// The node has proven its name in another way.
    Standing,
    /// A newer epoch of the node has links.
    Older,
    /// Another process with this name answers.
    Duplicate,
    /// `link.gateways_max` gateways are known.
    Gateways,
    /// `link.links_max` links are open.
    Links,
    /// This backend is a node of a cluster, and the gateway does not follow its slots.
    Cluster,
    /// A node of a cluster greets, and this backend is of none, or of another one, or has the same number.
    OtherCluster,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "HELLO does not offer link version 1",
            Self::Node => "the name of a node has 1 to 128 bytes and no control characters; set gateway.id",
            Self::Epoch => {
                "the epoch is more than a day ahead of the backend's clock; set the clocks of both machines"
            }
            Self::NoSecret => {
                "the node has no secret in the backend's link.secrets_file, and nothing else proves its name; add a \
                 line, and name the same secret in backend.secrets_file of the gateway"
            }
            Self::NoNonce => {
                "the node has a secret and the gateway is of a version that knows none; upgrade the gateway, or set \
                 link.unproven of the backend for as long as that takes"
            }
            Self::Proof => "the gateway's secret is not the one in the backend's link.secrets_file",
            Self::Certificate => {
                "the certificate of the gateway is not for this name; issue one with gateway.id as a DNS name \
                 (subjectAltName), and name it in backend.tls.certificate_file of the gateway"
            }
            Self::Standing => "the gateway of this name has proven itself in another way, and has links or a lease",
            Self::Older => "a newer process of this name has links",
            Self::Duplicate => {
                "another process of this name has links and answers; give each gateway its own gateway.id"
            }
            Self::Gateways => "`link.gateways_max` gateways are known",
            Self::Links => "`link.links_max` links are open",
            Self::Cluster => {
                "this backend is a node of a cluster; set backend.balance = \"cluster\" of the gateway"
            }
            Self::OtherCluster => {
                "the node is not of this cluster, or has the same node_number; compare store.cells and node_number"
            }
        })
    }
}

/// Question to an older epoch whether it still lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// Correlation of the PINGs.
    number: u64,
    until: Instant,
}

/// Decision about a newcomer.
enum Place {
    /// Open the link: nobody has the name, or this epoch has it.
    Open,
    /// End this older epoch, then open the link.
    Replace(GatewayId),
    /// Wait for this older epoch's answer.
    Wait(GatewayId),
    Refused(Refusal),
}

impl LinkHost {
    /// Takes a frame of a link that is not open.
    pub(super) fn handle_greeting(
        &mut self,
        now: Now,
        link: LinkId,
        phase: Phase,
        frame: &LinkFrame,
    ) -> Result<(), LinkEnd> {
        match (phase, frame.kind) {
            (Phase::Greeting(until), Kind::Hello) => self.on_hello(now, link, until, frame.message()?),
            (Phase::Proving(_), Kind::Proof) => self.on_proof(now, link, &frame.message()?),
            _ => Err(LinkError::Unexpected(frame.kind).into()),
        }
    }

    fn on_hello(&mut self, now: Now, link: LinkId, until: Instant, hello: LinkHello) -> Result<(), LinkEnd> {
        let Some(visitor) = self.out.links.get(link).map(|state| state.visitor.clone()) else {
            return Ok(());
        };
        if let Some(refusal) = fault_of(&hello, now) {
            return Err(refused(hello, refusal));
        }
        if !visitor.peer.may_be(&hello.node) {
            return Err(refused(hello, Refusal::Certificate));
        }
        // Now and not when the link opens: the gateway has read its clock a moment ago.
        let clock_ahead = self.login_clock.compare(now, hello.clock);
        if let Some(state) = self.out.links.get_mut(link) {
            state.clock_ahead = clock_ahead;
        }
        let secrets = self.secrets.of(&hello.node);
        let is_believed = self.is_believed(&visitor.peer);
        let standing = match visitor.peer {
            Peer::Uid(uid) => Standing::Uid(uid), // judged when the connection came
            _ if !secrets.is_empty() && hello.nonce.len() == NONCE_BYTES => {
                let link_of = self.transcript(&hello, visitor.nonce);
                let proofs =
                    secrets.iter().map(|secret| link_of.prove(secret, Role::Backend).to_vec().into());
                let challenge = LinkChallenge {
                    proofs: proofs.collect(),
                    node: self.identity.node.clone(),
                    epoch: self.identity.epoch,
                    nonce: visitor.nonce.to_vec().into(),
                };
                self.out.links.put(link, Kind::Challenge, 0, 0, &challenge);
                let newcomer = Newcomer { hello, standing: Standing::Secret };
                self.out.links.set_phase(link, Phase::Proving(until), Some(newcomer));
                return Ok(());
            }
            Peer::Certificate(_) if secrets.is_empty() => Standing::Certificate,
            _ if is_believed => Standing::Unproven,
            _ if secrets.is_empty() => return Err(refused(hello, Refusal::NoSecret)),
            _ => return Err(refused(hello, Refusal::NoNonce)),
        };
        self.admit(now, link, Newcomer { hello, standing })
    }

    /// Returns whether `link.unproven` has this end believed without a proof.
    const fn is_believed(&self, peer: &Peer) -> bool {
        matches!(
            (self.config.unproven, peer),
            (Unproven::Private, Peer::Loopback | Peer::Network) | (Unproven::Loopback, Peer::Loopback)
        )
    }

    fn on_proof(&mut self, now: Now, link: LinkId, proof: &LinkProof) -> Result<(), LinkEnd> {
        let Some((visitor, mut newcomer)) = self.out.links.take_newcomer(link) else { return Ok(()) };
        if proof.proof.is_empty() {
            // The gateway says that it has no secret, as while secrets are rolled in.
            if !self.is_believed(&visitor.peer) {
                return Err(refused(newcomer.hello, Refusal::Proof));
            }
            newcomer.standing = Standing::Unproven;
            return self.admit(now, link, newcomer);
        }
        let link_of = self.transcript(&newcomer.hello, visitor.nonce);
        let secrets = self.secrets.of(&newcomer.hello.node);
        // Every secret is tried: the time does not tell which one it was.
        let right =
            secrets.iter().filter(|secret| link_of.verify(secret, Role::Gateway, &proof.proof)).count();
        if right == 0 {
            return Err(refused(newcomer.hello, Refusal::Proof));
        }
        self.admit(now, link, newcomer)
    }

    /// Everything that the proofs of a link depend on. A nonce of another length was not challenged.
    fn transcript<'a>(&'a self, hello: &'a LinkHello, nonce: Nonce) -> Transcript<'a> {
        Transcript {
            gateway: (&hello.node, hello.epoch),
            backend: (&self.identity.node, self.identity.epoch),
            nonces: (hello.nonce.as_ref().try_into().unwrap_or([0; NONCE_BYTES]), nonce),
        }
    }

    /// Opens a link whose other end is believed, has it wait for an older epoch, or refuses it.
    fn admit(&mut self, now: Now, link: LinkId, newcomer: Newcomer) -> Result<(), LinkEnd> {
        match self.place_for(now, &newcomer) {
            Place::Refused(refusal) => return Err(refused(newcomer.hello, refusal)),
            Place::Wait(old) => {
                self.probe(now, old);
                self.out.links.set_phase(link, Phase::Waiting, Some(newcomer));
                return Ok(());
            }
            Place::Replace(old) => self.retire(now, old),
            Place::Open => {}
        }
        if let Some(refusal) = self.cluster.fault_of(&newcomer.hello, &self.identity.store) {
            return Err(refused(newcomer.hello, refusal));
        }
        if self.out.links.open_links() >= self.config.links_max {
            return Err(refused(newcomer.hello, Refusal::Links));
        }
        let Newcomer { hello, standing } = newcomer;
        let gateway = match self.out.routes.gateway_named(&hello.node) {
            Some((id, _)) => id,
            None if self.out.routes.gateways.len() >= self.config.gateways_max => {
                return Err(refused(hello, Refusal::Gateways));
            }
            None => {
                let node = hello.node.clone();
                let gateway = self.out.routes.add_gateway(hello.node, hello.epoch, standing);
                self.out.emit(Event::GatewayUp { gateway, node, epoch: hello.epoch });
                if standing == Standing::Unproven {
                    tracing::warn!(
                        ?gateway,
                        "a gateway is believed without a proof: link.unproven allows it"
                    );
                }
                gateway
            }
        };
        self.out.links.set_phase(link, Phase::Open(gateway), None);
        if let Some(known) = self.out.routes.gateways.get_mut(&gateway) {
            known.links += 1;
            known.lease_until = Instant::FAR_FUTURE;
            known.knows_notices |= hello.nonce.len() == NONCE_BYTES;
            known.peer = node_of(hello.peer).unwrap_or_default();
            if known.standing == Standing::Unproven {
                known.standing = standing;
            }
        }
        let spoken = u32::from(LINK_VERSION);
        let answer = LinkHello {
            version_min: spoken,
            version_max: spoken,
            node: self.identity.node.clone(),
            epoch: self.identity.epoch,
            agent: concat!("moorline-backend/", env!("CARGO_PKG_VERSION")).into(),
            outcome_max: Outcome::TooLarge as u32,
            store: self.identity.store.clone(),
            cluster_node: self.cluster.node().map_or(0, |node| u32::from(node.0) + 1),
            ..Default::default()
        };
        self.out.links.put(link, Kind::Hello, 0, self.config.credit, &answer);
        if let Some(slots) = self.cluster.message().filter(|_| hello.peer == 0) {
            self.out.links.put(link, Kind::Slots, 0, 0, &slots);
        }
        self.out.emit(Event::LinkUp { gateway, link });
        Ok(())
    }

    fn place_for(&self, now: Now, newcomer: &Newcomer) -> Place {
        let Newcomer { hello, standing } = newcomer;
        let Some((id, known)) = self.out.routes.gateway_named(&hello.node) else { return Place::Open };
        if !standing.is_node_of(known.standing) {
            return Place::Refused(Refusal::Standing);
        }
        if hello.epoch == known.epoch {
            return Place::Open;
        }
        if *standing != Standing::Unproven && known.standing == Standing::Unproven {
            return Place::Replace(id); // a name that is proven beats one that is only asserted
        }
        match known.probe {
            _ if known.links == 0 => Place::Replace(id), // also of a smaller epoch: the gateway's clock went back
            _ if hello.epoch < known.epoch => Place::Refused(Refusal::Older),
            Some(probe) if probe.until <= now.instant => Place::Replace(id),
            _ => Place::Wait(id),
        }
    }

    /// Asks an older epoch on all its links whether it lives, unless it is asked already.
    fn probe(&mut self, now: Now, old: GatewayId) {
        let number = self.next_probe;
        let Some(known) = self.out.routes.gateways.get_mut(&old) else { return };
        if known.probe.is_some() {
            return;
        }
        known.probe = Some(Probe { number, until: now.instant + PROBE });
        self.next_probe += 1;
        let links: Vec<LinkId> = self.out.links.of_gateway(old).map(|(link, _)| link).collect();
        for link in links {
            self.out.links.put(link, Kind::Ping, number, 0, &());
        }
    }

    /// Takes a PONG. If it answers a probe, the newcomers of that name are refused.
    pub(super) fn on_pong(&mut self, now: Now, gateway: GatewayId, number: u64) {
        let Some(known) = self.out.routes.gateways.get_mut(&gateway) else { return };
        if known.probe.is_none_or(|probe| probe.number != number) {
            return;
        }
        known.probe = None;
        let (node, epoch) = (known.node.clone(), known.epoch);
        let must_notify = now.instant >= known.next_notice;
        if must_notify {
            known.next_notice = now.instant + NOTICE_PAUSE;
        }
        let newcomers = self.out.links.waiting_for(&node);
        let Some((_, newer, _)) = newcomers.first().copied() else { return };
        if must_notify {
            tracing::warn!(
                node,
                epoch,
                newer,
                "refused a process that asks to be a gateway which has links and answers: two processes have the \
                 same gateway.id"
            );
            self.notify_duplicate(gateway, &node);
        }
        for (link, _, is_told) in newcomers {
            self.close(
                now,
                link,
                LinkEnd::Refused { node: node.clone(), refusal: Refusal::Duplicate, is_told },
            );
        }
    }

    /// Tells the gateway that has the name, on one of its links.
    fn notify_duplicate(&mut self, gateway: GatewayId, node: &str) {
        let knows = self.out.routes.gateways.get(&gateway).is_some_and(|known| known.knows_notices);
        let link = self.out.links.of_gateway(gateway).next().map(|(link, _)| link);
        if let Some(link) = link.filter(|_| knows) {
            let text = format!(
                "another process asked to be the gateway {node}; give each gateway its own gateway.id"
            );
            self.out.links.put(
                link,
                Kind::Notice,
                0,
                0,
                &LinkNotice { notice: Notice::Duplicate.into(), text },
            );
        }
    }

    /// Opens the links that have waited long enough, or whose predecessors are gone.
    pub(super) fn admit_waiting(&mut self, now: Now) {
        // An answer that the backend does not read for now is not a missing answer.
        for (id, known) in &mut self.out.routes.gateways {
            if let Some(probe) = known.probe.as_mut().filter(|probe| probe.until <= now.instant)
                && self.out.links.is_any_paused(*id)
            {
                probe.until = now.instant + PROBE;
            }
        }
        while let Some(link) =
            self.out.links.find_waiting(|newcomer| !matches!(self.place_for(now, newcomer), Place::Wait(_)))
        {
            let Some((_, newcomer)) = self.out.links.take_newcomer(link) else { return };
            if let Err(end) = self.admit(now, link, newcomer) {
                self.close(now, link, end);
            }
        }
    }
}

fn refused(hello: LinkHello, refusal: Refusal) -> LinkEnd {
    LinkEnd::Refused { is_told: hello.nonce.len() == NONCE_BYTES, node: hello.node, refusal }
}

/// Returns what is wrong with a HELLO, whoever sent it.
fn fault_of(hello: &LinkHello, now: Now) -> Option<Refusal> {
    if !(hello.version_min..=hello.version_max).contains(&u32::from(LINK_VERSION)) {
        return Some(Refusal::Version);
    }
    if !is_node(&hello.node) {
        return Some(Refusal::Node);
    }
    let latest = now.unix_ms.saturating_mul(1_000_000).saturating_add(EPOCH_AHEAD_MAX_NS);
    (hello.epoch > latest).then_some(Refusal::Epoch)
}

/// Returns what a gateway is told before its link is closed; `None`: nothing.
pub(super) fn farewell(end: &LinkEnd) -> Option<LinkNotice> {
    let LinkEnd::Refused { refusal, is_told: true, .. } = end else { return None };
    Some(LinkNotice { notice: Notice::Refused.into(), text: refusal.to_string() })
}
