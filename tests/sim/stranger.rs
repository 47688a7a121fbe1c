//! Strangers at the backend's link port, without a pipe: they have heard what the gateway says, and know no secret.
//!
//! Each comes with the gateway's own HELLO, or with one of its own, and goes on with what it has heard on other
//! links, with the backend's own words, or with nothing. None may ever have an open link, and the gateway must not
//! notice.

use crate::scene::Scene;
use bytes::{Bytes, BytesMut};
use moorline_backend::server::{LinkEnd, LinkId};
use moorline_proto::link::{Kind, LinkDecoder, NONCE_BYTES, encode};
use moorline_proto::message::backend::{ConnUp, LinkChallenge, LinkHello, LinkProof};
use moorline_proto::time::Duration;
use std::collections::BTreeMap;

/// Conduct of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Says nothing.
    Silent,
    /// Says HELLO with the gateway's name, and the proof of another link.
    Replay,
    /// Sends the backend's proof back.
    Reflect,
    /// Sends a proof without its last byte.
    CutOff,
    /// Says that it has no secret.
    Empty,
    /// Logs somebody in instead of proving anything.
    Hasty,
    /// Says that it is a later process of the gateway, as late as can be.
    Later,
    /// Says that it is a gateway that nobody knows.
    Unknown,
}

const MANNERS: [Manner; 8] = [
    Manner::Silent,
    Manner::Replay,
    Manner::Reflect,
    Manner::CutOff,
    Manner::Empty,
    Manner::Hasty,
    Manner::Later,
    Manner::Unknown,
];

#[derive(Default)]
pub(crate) struct Strangers {
    links: BTreeMap<LinkId, (Manner, LinkDecoder)>,
    /// The gateway's last HELLO and PROOF.
    hello: Option<LinkHello>,
    proof: Option<LinkProof>,
    /// Frames to come.
    unsent: Vec<(LinkId, Bytes)>,
}

impl Strangers {
    /// Time between two strangers.
    pub(crate) const PAUSE: Duration = Duration::from_millis(400);

    pub(crate) fn is_on(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    /// Hears a gateway greet.
    pub(crate) fn hear_gateway(&mut self, ear: &mut LinkDecoder, bytes: &[u8]) {
        let mut input = Bytes::copy_from_slice(bytes);
        while let Ok(Some(frame)) = ear.decode(&mut input) {
            match frame.kind {
                Kind::Hello => self.hello = frame.message().ok(),
                Kind::Proof => self.proof = frame.message().ok(),
                _ => {}
            }
        }
    }

    pub(crate) fn nonce(scene: &mut Scene) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        for part in nonce.chunks_exact_mut(8) {
            part.copy_from_slice(&scene.random.next_u64().to_be_bytes());
        }
        nonce
    }

    /// Comes in.
    pub(crate) fn connect(&mut self, scene: &mut Scene, link: LinkId) {
        let manner = MANNERS[scene.index(MANNERS.len())];
        self.links.insert(link, (manner, LinkDecoder::new()));
        let Some(heard) = self.hello.clone().filter(|_| manner != Manner::Silent) else { return };
        let hello = match manner {
            Manner::Later => LinkHello { epoch: u64::MAX, ..heard },
            Manner::Unknown => LinkHello { node: "nobody".into(), ..heard },
            _ => heard,
        };
        self.say(link, Kind::Hello, &hello);
        scene.coverage.strangers += 1;
    }

    fn say(&mut self, link: LinkId, kind: Kind, body: &impl prost::Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, 0, 0, body);
        self.unsent.push((link, wire.freeze()));
    }

    /// The backend writes.
    pub(crate) fn hear(&mut self, link: LinkId, bytes: &[u8]) {
        let Some((manner, decoder)) = self.links.get_mut(&link) else { return };
        let (manner, mut input) = (*manner, Bytes::copy_from_slice(bytes));
        if let Some(frame) = decoder.decode(&mut input).expect("valid frames") {
            assert_eq!(frame.kind, Kind::Challenge, "a stranger hears nothing else");
            let challenge: LinkChallenge = frame.message().expect("a challenge");
            let reflected = challenge.proofs[0].clone();
            let proof = match manner {
                Manner::Reflect => reflected,
                Manner::CutOff => reflected.slice(1..),
                Manner::Replay => self.proof.clone().unwrap_or_default().proof,
                Manner::Hasty => {
                    let login =
                        ConnUp { handle: 1, uid: "alice".into(), device: "spy".into(), ..ConnUp::default() };
                    return self.say(link, Kind::ConnUp, &login);
                }
                _ => Bytes::new(),
            };
            self.say(link, Kind::Proof, &LinkProof { proof });
        }
    }

    pub(crate) fn take_bytes(&mut self) -> Option<(LinkId, Bytes)> {
        self.unsent.pop()
    }

    pub(crate) fn has_bytes(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The backend closed a connection.
    pub(crate) fn on_closed(&mut self, link: LinkId, end: &LinkEnd) {
        let Some((manner, _)) = self.links.remove(&link) else { return };
        let is_expected = match end {
            LinkEnd::Refused { .. } => !matches!(manner, Manner::Silent | Manner::Hasty),
            LinkEnd::Protocol(_) => manner == Manner::Hasty,
            LinkEnd::NoHello | LinkEnd::Evicted => true,
            _ => false,
        };
        assert!(is_expected, "{manner:?}: {end}");
    }

    /// The backend's process ended.
    pub(crate) fn on_backend_death(&mut self) {
        self.links.clear();
        self.unsent.clear();
    }
}
