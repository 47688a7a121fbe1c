//! Cryptography behind `jsonwebtoken`: HMAC with SHA-256 by `hmac` and `sha2`, Ed25519 by `ed25519-dalek`.
//!
//! These are the two algorithms that a gateway accepts. The library's own provider also brings RSA and the NIST curves:
//! 30 more packages, among them `rsa` with its open advisory. The library knows one provider for each process;
//! whoever makes a verifier or signs a token installs this one first.

use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac as _};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use sha2::Sha256;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| signer(*algorithm, key),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    // For JSON web key sets, which nobody here reads.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has `jsonwebtoken` use this module in this process. A provider that the program installed before stays.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

fn signer(algorithm: Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(Hs256(keyed(key.as_bytes())))),
        _ => Err(error(ErrorKind::InvalidAlgorithm)),
    }
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(Hs256(keyed(key.try_get_as_bytes()?)))),
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => {
            let key = key.try_get_as_bytes()?.try_into().ok();
            let key = key.and_then(|bytes| VerifyingKey::from_bytes(bytes).ok());
            key.map(|key| Box::new(Edwards(key)) as _).ok_or_else(|| error(ErrorKind::InvalidEddsaKey))
        }
        _ => Err(error(ErrorKind::InvalidAlgorithm)),
    }
}

fn error(kind: ErrorKind) -> Error {
    Error::from(kind)
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret).expect("HMAC takes keys of any length")
}

struct Hs256(Hmac<Sha256>);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(self.0.clone().chain_update(message).finalize().into_bytes().to_vec())
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
        self.0.clone().chain_update(message).verify_slice(signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

struct Edwards(VerifyingKey);

impl Verifier<Vec<u8>> for Edwards {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        self.0.verify(message, &Signature::from_slice(signature)?)
    }
}

impl JwtVerifier for Edwards {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
