//! One direction's key: opens or seals one record by its number.
//!
//! The number of a record goes into its nonce (RFC 8446, 5.3), so a key has no state: one that is made again goes on at any
//! number. Who counts the numbers is [`super::Records`].

use super::super::fault::Fault;
use super::super::provider::Suite;
use super::super::secret::{KEY_BYTES, Secret};
use super::{CONTENT_BYTES_MAX, HEADER_BYTES};
use aws_lc_rs::aead::{
    AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::ContentType;
use rustls::crypto::cipher::OutboundChunks;
use zeroize::Zeroizing;

/// Part of a direction's key that a connection keeps from one use to the next.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: each use derives the key, in 1 us, or 3 us with AES.
    #[default]
    Nothing,
    /// The derived bytes, 44 of them.
    Bytes,
    /// The object of the library.
    Object,
}

/// Place for what is kept.
#[derive(Default)]
pub(super) enum Slot {
    #[default]
    Empty,
    Bytes(Derived),
    Object(Key),
}

impl Slot {
    /// Returns the key, derived if it is not here. [`Self::give_back`] gets it after its use.
    pub(super) fn take(&mut self, keep: Keep, suite: Suite, secret: &mut Secret) -> Key {
        let derived = match std::mem::take(self) {
            Self::Object(key) => return key,
            Self::Bytes(derived) => derived,
            Self::Empty => Derived::of(suite, secret),
        };
        let key = Key::of(suite, &derived);
        if keep == Keep::Bytes {
            *self = Self::Bytes(derived);
        }
        key
    }

    pub(super) fn give_back(&mut self, keep: Keep, key: Key) {
        if keep == Keep::Object {
            *self = Self::Object(key);
        }
    }
}

/// Bytes of a key and its IV.
pub(super) struct Derived(Zeroizing<[u8; KEY_BYTES + NONCE_LEN]>);

impl Derived {
    fn of(suite: Suite, secret: &mut Secret) -> Self {
        let (key, iv) = secret.keys(suite);
        let mut bytes = Zeroizing::new([0; KEY_BYTES + NONCE_LEN]);
        bytes[..KEY_BYTES].copy_from_slice(&*key);
        bytes[KEY_BYTES..].copy_from_slice(&iv);
        Self(bytes)
    }
}

/// A key with its IV, ready for use: some 600 bytes with what the library allocates for it.
pub(super) struct Key {
    aead: LessSafeKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
}

impl Key {
    fn of(suite: Suite, Derived(bytes): &Derived) -> Self {
        let algorithm = match suite {
            Suite::Aes256 => &AES_256_GCM,
            Suite::ChaCha20 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &bytes[..KEY_BYTES]).expect("a key of 32 bytes");
        let mut iv = Zeroizing::new([0; NONCE_LEN]);
        iv.copy_from_slice(&bytes[KEY_BYTES..]);
        Self { aead: LessSafeKey::new(key), iv }
    }

    /// Decrypts what stands behind a record's header. Returns the kind of its content and the content's length; the content
    /// stands at the beginning then.
    pub(super) fn open(&self, seq: u32, cipher: &mut [u8]) -> Result<(ContentType, usize), Fault> {
        let aad = Aad::from(header(cipher.len()));
        let plain = self.aead.open_in_place(self.nonce(seq), aad, cipher);
        let plain = plain.map_err(|_| Fault::Undecryptable)?;
        if plain.len() > CONTENT_BYTES_MAX + 1 {
            return Err(Fault::Oversized); // with its padding
        }
        // Zeroes behind the kind are padding.
        let kind = plain.iter().rposition(|byte| *byte != 0).ok_or(Fault::Unexpected)?;
        Ok((ContentType::from(plain[kind]), kind))
    }

    /// Appends one record. Who calls this has counted its number: no number is sealed twice.
    pub(super) fn seal(
        &self,
        seq: u32,
        kind: ContentType,
        text: &OutboundChunks<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let start = out.len();
        let length = text.len() + 1 + MAX_TAG_LEN;
        let header = header(length);
        out.reserve(HEADER_BYTES + length);
        out.extend_from_slice(&header);
        text.copy_to_vec(out);
        out.push(kind.into());
        let plain = &mut out[start + HEADER_BYTES..];
        let tag = self.aead.seal_in_place_separate_tag(self.nonce(seq), Aad::from(header), plain);
        let Ok(tag) = tag else {
            out.truncate(start);
            return Err(Fault::Provider);
        };
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// The IV with the number in its last bytes.
    fn nonce(&self, seq: u32) -> Nonce {
        let mut nonce = *self.iv;
        nonce[NONCE_LEN - 4..].iter_mut().zip(seq.to_be_bytes()).for_each(|(to, byte)| *to ^= byte);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Header of a record with `length` bytes behind it: at most 2^14 + 256.
#[allow(clippy::cast_possible_truncation)] // checked by both callers
const fn header(length: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = (length as u16).to_be_bytes();
    [23, 3, 3, high, low]
}
