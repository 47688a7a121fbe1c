//! The one provider of cryptography behind TLS: aws-lc-rs, which has the hybrid key exchange X25519MLKEM768.
//!
//! `ring` is in the same program (tokens, webhooks), so no provider is the process's default: each configuration names its own.

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use std::sync::{Arc, LazyLock};

/// The cipher suites that a server speaks. A key of AES-128 cannot be made again through the library's public constructors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256,
    /// `TLS_CHACHA20_POLY1305_SHA256`.
    ChaCha20,
}

impl Suite {
    /// Both suites, the preferred one first: a key of ChaCha20 that was given back is made again in a fifth of the time,
    /// because SHA-256 is in the processor and SHA-384 is not. Most connections of a chat are idle.
    pub const ALL: [Self; 2] = [Self::ChaCha20, Self::Aes256];

    /// Bytes of a traffic secret: those of the suite's hash.
    pub(super) const fn secret_bytes(self) -> usize {
        match self {
            Self::Aes256 => 48,
            Self::ChaCha20 => 32,
        }
    }

    pub(super) const fn supported(self) -> SupportedCipherSuite {
        match self {
            Self::Aes256 => cipher_suite::TLS13_AES_256_GCM_SHA384,
            Self::ChaCha20 => cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        }
    }

    pub(super) const fn tls13(self) -> &'static Tls13CipherSuite {
        self.supported().tls13().expect("both are suites of TLS 1.3")
    }
}

/// Draws the first random number of this thread. The first one of a process takes some 50 ms, in which the system's noise is
/// collected; the first one of a further thread takes memory.
pub fn warm_up() {
    provider().secure_random.fill(&mut [0; 8]).ok(); // whoever needs one tries again
}

/// Returns the provider with the suites of [`Suite`] only. Verifiers of client certificates take it too.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: Suite::ALL.iter().map(|suite| suite.supported()).collect(),
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..default_provider()
        })
    });
    PROVIDER.clone()
}
