//! Traffic secrets, and what is derived from them (RFC 8446, 7.1 to 7.3).

use super::provider::Suite;
use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of the longest secret.
pub(super) const SECRET_BYTES_MAX: usize = 48;
/// Bytes of the key of a record, of both suites.
pub(super) const KEY_BYTES: usize = 32;

/// One direction's traffic secret. A secret of 32 bytes leaves room: there stands the IV, once it was derived, and a mark
/// that it does. That saves half of the work when a key is made anew.
#[derive(Clone)]
pub(super) struct Secret([u8; SECRET_BYTES_MAX]);

const SHORT_BYTES: usize = 32;
const IV_END: usize = SHORT_BYTES + NONCE_LEN;
/// Place of the mark.
const HAS_IV: usize = IV_END;

impl Drop for Secret {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl Secret {
    /// Returns a secret of these bytes; `None`: it has not the suite's length.
    pub(super) fn new(suite: Suite, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != suite.secret_bytes() {
            return None;
        }
        let mut secret = Self([0; SECRET_BYTES_MAX]);
        secret.0[..bytes.len()].copy_from_slice(bytes);
        Some(secret)
    }

    pub(super) fn bytes(&self, suite: Suite) -> &[u8] {
        &self.0[..suite.secret_bytes()]
    }

    pub(super) fn zeroize(&mut self) {
        self.0.zeroize();
    }

    /// Derives the record key and the IV.
    pub(super) fn keys(&mut self, suite: Suite) -> (Zeroizing<[u8; KEY_BYTES]>, [u8; NONCE_LEN]) {
        let expander = self.expander(suite);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let mut iv = [0; NONCE_LEN];
        expand_label(&expander, b"key", &mut *key);
        let has_room = suite.secret_bytes() == SHORT_BYTES;
        if has_room && self.0[HAS_IV] == 1 {
            iv.copy_from_slice(&self.0[SHORT_BYTES..IV_END]);
        } else {
            expand_label(&expander, b"iv", &mut iv);
            if has_room {
                self.0[SHORT_BYTES..IV_END].copy_from_slice(&iv);
                self.0[HAS_IV] = 1;
            }
        }
        (key, iv)
    }

    /// Takes the secret one KeyUpdate further.
    pub(super) fn update(&mut self, suite: Suite) {
        let expander = self.expander(suite);
        let mut next = Zeroizing::new([0; SECRET_BYTES_MAX]);
        expand_label(&expander, b"traffic upd", &mut next[..suite.secret_bytes()]);
        self.0.copy_from_slice(&*next);
    }

    fn expander(&self, suite: Suite) -> Prk {
        let algorithm = match suite {
            Suite::Aes256 => HKDF_SHA384,
            Suite::ChaCha20 => HKDF_SHA256,
        };
        Prk::new_less_safe(algorithm, self.bytes(suite))
    }
}

/// Length of what is derived, in bytes.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context.
fn expand_label(expander: &Prk, label: &[u8], output: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(output.len()).expect("at most 48 bytes").to_be_bytes();
    let label_length = [u8::try_from(PREFIX.len() + label.len()).expect("a short label")];
    let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label, &[0]];
    let derived = expander.expand(&info, Length(output.len()));
    derived.and_then(|derived| derived.fill(output)).expect("at most 255 times the hash");
}
