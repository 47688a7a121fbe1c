//! Cryptography behind `jsonwebtoken`: HMAC with SHA-256 and Ed25519, both by aws-lc-rs,
//! as all TLS of this program. Each place names its provider, and none is the default of the process.
//!
//! These are the two algorithms that a gateway accepts. The library's own providers also bring RSA and the NIST curves.
//! The library knows one provider for each process; whoever makes a verifier or signs a token installs this one first.

use crate::config;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| signer(*algorithm, key),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    // For JSON web key sets, which `key` reads.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has `jsonwebtoken` use this module in this process. A provider that the program installed before stays.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// The library's name of an algorithm.
pub(super) const fn name(algorithm: config::Algorithm) -> Algorithm {
    match algorithm {
        config::Algorithm::HS256 => Algorithm::HS256,
        config::Algorithm::EdDSA => Algorithm::EdDSA,
    }
}

fn signer(algorithm: Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(Hs256(keyed(key.as_bytes())))),
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes());
            Ok(Box::new(EdwardsPair(pair.map_err(|_| error(ErrorKind::InvalidEddsaKey))?)))
        }
        _ => Err(error(ErrorKind::InvalidAlgorithm)),
    }
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(Hs256(keyed(key.try_get_as_bytes()?)))),
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => {
            let key: [u8; 32] =
                key.try_get_as_bytes()?.try_into().map_err(|_| error(ErrorKind::InvalidEddsaKey))?;
            Ok(Box::new(Edwards(UnparsedPublicKey::new(&ED25519, key))))
        }
        _ => Err(error(ErrorKind::InvalidAlgorithm)),
    }
}

fn error(kind: ErrorKind) -> Error {
    Error::from(kind)
}

fn keyed(secret: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

struct Hs256(hmac::Key);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    /// Compares in constant time.
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

struct EdwardsPair(Ed25519KeyPair);

impl Signer<Vec<u8>> for EdwardsPair {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for EdwardsPair {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct Edwards(UnparsedPublicKey<[u8; 32]>);

impl Verifier<Vec<u8>> for Edwards {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        self.0.verify(message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Edwards {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
