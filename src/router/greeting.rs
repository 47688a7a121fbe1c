//! First words on a link: HELLO, and the proof that the backend is one. Pure.
//!
//! ```text
//! gateway                                     backend
//!    |---- HELLO {g1, 7, nonce} ------------------>|
//!    |<--- CHALLENGE {b1, 3, nonce, proofs} -------|  proves that it knows the secret of g1
//!    |---- PROOF {proof} ------------------------->|  only if one of the proofs is right
//!    |<--- HELLO {b1, 3}, credit 65536 ------------|
//! ```
//!
//! A backend that answers HELLO at once has proven nothing. It is believed if the owner knows it, as over a Unix
//! socket and by its certificate over TLS [B-5.9], or if the settings say so.

use super::links::Link;
use super::{Failure, LinkIndex, Router, Sides};
use crate::router::counters::Count;
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::{
    self, Endpoint, Kind, LinkAddress, LinkError, LinkFrame, NONCE_BYTES, Nonce, Role, SECRETS_PER_NODE,
    Secret, Transcript,
};
use moorline_proto::message::backend::{LinkChallenge, LinkHello, LinkNotice, LinkProof, Notice, Outcome};
use moorline_proto::slots::node_of;
use moorline_proto::time::Instant;

/// Longest name of a store, in bytes [B-5.7].
const STORE_BYTES_MAX: usize = 64;
/// Longest text of a backend's notice in a log line, in characters.
const NOTICE_CHARS_MAX: usize = 300;

/// Backends that are believed without a proof, over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// No backend.
    Refuse,
    /// Those of this machine.
    Loopback,
    /// All endpoints.
    Private,
}

/// Reasons to believe that an endpoint is a backend.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Secrets of this gateway; either may be the one that the backend knows.
    pub secrets: Vec<Secret>,
    /// Backends that are believed without a proof.
    pub unproven: Unproven,
}

/// A connection that was made.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Reasons to believe this backend.
    pub trust: Trust,
    /// Random bytes of the system's generator, for this connection only.
    pub nonce: Nonce,
    /// The owner knows that a backend is at the other end: it is a process of the right user, over a Unix socket, or it has
    /// the right certificate.
    pub is_known: bool,
    /// The connection is encrypted.
    pub is_encrypted: bool,
    /// The other end is on this machine, over TCP.
    pub is_loopback: bool,
    /// Unix time at zero of the gateway's clock, in nanoseconds, as the shards have it for the versions of logins.
    pub unix_base_nanos: u64,
}

/// State of a link until the backend's HELLO.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    connected: Connected,
    /// The backend has proven that it knows the secret.
    is_proven: bool,
}

impl Trust {
    /// Returns whether there can be a reason to believe a backend at this endpoint. A name may stand for this machine, which
    /// shows when the connection is made.
    pub fn has_reason(&self, endpoint: &Endpoint) -> bool {
        let can_be_loopback = match endpoint {
            Endpoint::Address(LinkAddress::Ip(address)) => address.ip().to_canonical().is_loopback(),
            Endpoint::Address(LinkAddress::Unix(_)) => false,
            Endpoint::Name(_) => true,
        };
        !self.secrets.is_empty() || self.believes(can_be_loopback)
    }

    const fn believes(&self, is_loopback: bool) -> bool {
        match self.unproven {
            Unproven::Private => true,
            Unproven::Loopback => is_loopback,
            Unproven::Refuse => false,
        }
    }
}

impl Connected {
    /// Returns whether a backend is believed here without a proof, as the settings say.
    const fn is_believed(&self) -> bool {
        self.trust.believes(self.is_loopback)
    }
}

impl Link {
    /// Greets the backend over the connection that was made.
    pub(super) fn greet(&mut self, now: Instant, hello: &LinkHello, connected: Connected) {
        self.state.on_connected(now);
        self.is_encrypted = connected.is_encrypted;
        let nonce = connected.nonce.to_vec().into();
        let clock = connected.unix_base_nanos.saturating_add(now.as_nanos());
        self.greeting = Some(Greeting { connected, is_proven: false });
        self.send(Kind::Hello, 0, &LinkHello { nonce, clock, ..hello.clone() });
    }

    /// Checks the backend's proof, and answers with this gateway's.
    pub(super) fn on_challenge(&mut self, hello: &LinkHello, frame: &LinkFrame) -> Result<(), Failure> {
        let challenge: LinkChallenge = frame.message()?;
        let Some(greeting) = self.greeting.take_if(|greeting| !greeting.is_proven) else {
            return Err(LinkError::Unexpected(frame.kind).into());
        };
        let trust = &greeting.connected.trust;
        let nonce: [u8; NONCE_BYTES] =
            challenge.nonce.as_ref().try_into().map_err(|_| LinkError::Body(frame.kind))?;
        let link_of = Transcript {
            gateway: (&hello.node, hello.epoch),
            backend: (&challenge.node, challenge.epoch),
            nonces: (greeting.connected.nonce, nonce),
        };
        let proofs = || challenge.proofs.iter().take(SECRETS_PER_NODE);
        let is_right = |secret: &&Secret| proofs().any(|proof| link_of.verify(secret, Role::Backend, proof));
        let proof = match trust.secrets.iter().find(is_right) {
            Some(secret) => link_of.prove(secret, Role::Gateway).to_vec(),
            // Says that there is no secret yet, as while secrets are rolled in.
            None if trust.secrets.is_empty() && greeting.connected.is_believed() => Vec::new(),
            None if trust.secrets.is_empty() => return Err(Failure::NoSecret),
            None => return Err(Failure::WrongProof),
        };
        self.greeting = Some(Greeting { is_proven: !proof.is_empty(), ..greeting });
        self.send(Kind::Proof, 0, &LinkProof { proof: proof.into() });
        Ok(())
    }

    /// Checks the backend's HELLO; the link may be opened then.
    fn on_hello(&mut self, frame: &LinkFrame) -> Result<LinkHello, Failure> {
        let hello: LinkHello = frame.message()?;
        if hello.store.len() > STORE_BYTES_MAX {
            return Err(LinkError::Body(frame.kind).into());
        }
        let version = u32::from(link::LINK_VERSION);
        if !(hello.version_min..=hello.version_max).contains(&version) {
            return Err(LinkError::Version(u8::try_from(hello.version_max).unwrap_or(u8::MAX)).into());
        }
        let is_believed = self.greeting.take().is_some_and(|Greeting { connected, is_proven }| {
            is_proven || connected.is_known || connected.is_believed()
        });
        if !is_believed {
            return Err(Failure::Unproven);
        }
        self.knows_too_large = hello.outcome_max >= Outcome::TooLarge as u32;
        self.store = hello.store.clone();
        self.node = node_of(hello.cluster_node).map_err(|_| LinkError::Body(frame.kind))?;
        Ok(hello)
    }
}

impl Router {
    /// The connection of a link was made: greets the backend.
    pub fn handle_link_connected(&mut self, now: Instant, index: LinkIndex, connected: Connected) {
        self.sides.now = now;
        let link = &mut self.sides.links[index];
        if link.state.is_connecting() {
            link.greet(now, &self.settings.link.hello, connected);
        }
    }

    pub(super) fn on_hello(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), Failure> {
        let (worker, now) = (self.sides.number, self.sides.now);
        let link = &mut self.sides.links[index];
        let hello = link.on_hello(frame)?;
        match (self.cluster.is_some(), link.node.is_some()) {
            (false, true) => return Err(Failure::IsCluster),
            (true, false) => return Err(Failure::NoCluster),
            _ => {}
        }
        let address = link.endpoint().clone();
        if let Err(other) = self.settings.stores.claim(now, (worker, index), &address, &hello) {
            self.sides.counters[Count::LinkStoresRefused] += 1;
            return Err(other);
        }
        self.sides.links[index].open(now);
        tracing::info!(worker, link = index.0, %address, node = hello.node, "link up");
        self.sides.counters[Count::LinkConnects] += 1;
        self.on_link_ready();
        Ok(())
    }
}

/// Log lines about who is at the other end of links: at most one of each kind in 10 s.
#[derive(Debug, Default)]
pub(super) struct GreetingLog {
    refusals: LineLimit,
    notices: LineLimit,
}

impl GreetingLog {
    /// Returns whether a refusal gets a line.
    pub(super) fn allows_refusal(&mut self, now: Instant) -> bool {
        self.refusals.allow(now).is_some()
    }

    /// Takes a backend's notice for the operator.
    pub(super) fn on_notice(
        &mut self,
        sides: &Sides,
        index: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<(), Failure> {
        let notice: LinkNotice = frame.message()?;
        let text: String = notice.text.chars().take(NOTICE_CHARS_MAX).collect();
        if notice.notice() == Notice::Refused {
            return Err(Failure::Refused(text));
        }
        if self.notices.allow(sides.now).is_some() {
            let (worker, address) = (sides.number, sides.links[index].endpoint());
            tracing::warn!(worker, %address, "notice of the backend: {text:?}");
        }
        Ok(())
    }
}
