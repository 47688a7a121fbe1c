//! Proofs of who is at each end of a link (`docs/backend.md`, [B-5.5]).
//!
//! Both ends know a secret of the gateway's node. Each proves it with an HMAC-SHA256 (RFC 2104) over its role, both
//! names, both epochs and both nonces, so that a proof is of no use on another link, for another node, or at the
//! end that made it.
//!
//! ```
//! use moorline_proto::link::{Role, Secret, Transcript};
//! let secret = Secret::new(b"0123456789abcdef0123456789abcdef").expect("long enough");
//! let link = Transcript { gateway: ("g1", 7), backend: ("b1", 3), nonces: ([1; 32], [2; 32]) };
//! let proof = link.prove(&secret, Role::Backend);
//! assert!(link.verify(&secret, Role::Backend, &proof));
//! assert!(!link.verify(&secret, Role::Gateway, &proof), "a proof that is sent back proves nothing");
//! ```

use alloc::vec::Vec;
use core::fmt;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Shortest secret, in bytes. A proof can be tried against guessed secrets, so a secret is made by a generator.
pub const SECRET_BYTES_MIN: usize = 32;
/// First bytes of what is signed: the purpose, and the version of the form.
const PURPOSE: &[u8] = b"moorline-link-1";

/// Random bytes that one end has made for one link, from the system's generator.
pub type Nonce = [u8; NONCE_BYTES];

/// Secret of a gateway's node. Is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes a secret; `None`: it is shorter than [`SECRET_BYTES_MIN`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= SECRET_BYTES_MIN).then(|| Self(bytes.to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// End of a link that makes a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that connects.
    Gateway,
    /// The end that listens.
    Backend,
}

impl Role {
    const fn byte(self) -> u8 {
        match self {
            Self::Gateway => b'G',
            Self::Backend => b'B',
        }
    }
}

/// Everything about a link that its proofs depend on.
#[derive(Clone, Copy, Debug)]
pub struct Transcript<'a> {
    /// Node and epoch of the gateway.
    pub gateway: (&'a str, u64),
    /// Node and epoch of the backend.
    pub backend: (&'a str, u64),
    /// Nonces of the gateway and of the backend.
    pub nonces: (Nonce, Nonce),
}

impl Transcript<'_> {
    /// Returns the proof that the end of this role knows `secret`.
    pub fn prove(&self, secret: &Secret, role: Role) -> [u8; PROOF_BYTES] {
        self.mac(secret, role).finalize().into_bytes().into()
    }

    /// Returns whether `proof` is the one of [`Self::prove`]. Takes as long for a wrong proof as for the right one.
    pub fn verify(&self, secret: &Secret, role: Role, proof: &[u8]) -> bool {
        self.mac(secret, role).verify_slice(proof).is_ok()
    }

    fn mac(&self, secret: &Secret, role: Role) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&secret.0).expect("HMAC takes keys of any length");
        mac.update(PURPOSE);
        mac.update(&[role.byte()]);
        for (node, epoch) in [self.gateway, self.backend] {
            mac.update(&(node.len() as u64).to_be_bytes());
            mac.update(node.as_bytes());
            mac.update(&epoch.to_be_bytes());
        }
        mac.update(&self.nonces.0);
        mac.update(&self.nonces.1);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    const LINK: Transcript<'static> =
        Transcript { gateway: ("g1", 7), backend: ("b1", 3), nonces: ([1; 32], [2; 32]) };

    fn secret(byte: u8) -> Secret {
        Secret::new(&[byte; SECRET_BYTES_MIN]).expect("long enough")
    }

    #[test]
    fn a_proof_holds_for_its_link_its_role_and_its_secret_only() {
        let proof = LINK.prove(&secret(9), Role::Gateway);
        assert!(LINK.verify(&secret(9), Role::Gateway, &proof));
        assert!(!LINK.verify(&secret(8), Role::Gateway, &proof), "another secret");
        assert!(!LINK.verify(&secret(9), Role::Backend, &proof), "reflected");
        for other in [
            Transcript { gateway: ("g2", 7), ..LINK },
            Transcript { gateway: ("g1", 8), ..LINK },
            Transcript { backend: ("b2", 3), ..LINK },
            Transcript { backend: ("b1", 4), ..LINK },
            Transcript { nonces: ([3; 32], [2; 32]), ..LINK },
            Transcript { nonces: ([1; 32], [3; 32]), ..LINK },
            Transcript { nonces: ([2; 32], [1; 32]), ..LINK },
        ] {
            assert!(!other.verify(&secret(9), Role::Gateway, &proof), "{other:?}");
        }
        for cut in [&proof[..31], &proof[..0], &[proof.as_slice(), &[0]].concat()] {
            assert!(!LINK.verify(&secret(9), Role::Gateway, cut), "{} bytes", cut.len());
        }
    }

    /// The example of `docs/backend.md`, for who writes the other end.
    #[test]
    fn the_proofs_of_the_documented_example() {
        let secret = Secret::new(b"0123456789abcdef0123456789abcdef").expect("long enough");
        let hex = |role| LINK.prove(&secret, role).map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(hex(Role::Backend), "a8136d8e0f29b399d2e2f10839d1720b80610ff0fd423cca09395c5b339184e4");
        assert_eq!(hex(Role::Gateway), "d319d0fadeeb1475757c70a8edd8f7ee4c8a4ee369de8820316958650ee05467");
    }

    #[test]
    fn a_short_secret_is_none_and_a_long_one_is_not_shown() {
        assert!(Secret::new(&[7; SECRET_BYTES_MIN - 1]).is_none());
        assert_eq!(format!("{:?}", secret(b'x')), "Secret(..)");
    }
}
