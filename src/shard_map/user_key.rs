//! The keyed hash that decides between users.
//!
//! A hash chooses a user's shard, worker and link, and finds the user's rate. Whoever may choose a user id and knows the
//! hash could choose one that meets a victim everywhere: so the hash has a key that nobody knows. The key is made at the
//! start of a gateway and goes with the snapshot of a hot restart, because users stay where they are.
//!
//! Example: `alice` has the pin 1719093852 in every process of the version before keys. With a key of its own, each gateway
//! gives her another pin, and no one can tell which other user ids share her shard, worker and slot.

use moorline_proto::ids::Pin;
use moorline_proto::slots::Slot;
use std::hash::Hasher as _;

/// Bytes of a key.
pub const USER_KEY_BYTES: usize = 16;
/// Bits of a pin that choose the slot ([`Pin::slot`]).
const SLOT_BITS: u32 = 63 << 8;

/// Part of a pin that comes from the keyed hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pins {
    /// None: the gateway began with a version that had no key, and its users stay where they are.
    #[default]
    Plain,
    /// All bits of a pin.
    Keyed,
    /// All bits but those of the slot, which chooses the same endpoint for a user in every gateway (`backend.balance = "hash"`).
    KeyedButSlot,
    /// All bits but those of the slot of a cluster (`backend.balance = "cluster"`).
    Cluster,
}

/// Key of the hash that decides between users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserKey {
    key: [u8; USER_KEY_BYTES],
    pins: Pins,
}

impl UserKey {
    /// A key that everybody knows: for tests.
    pub const NONE: Self = Self { key: [0; USER_KEY_BYTES], pins: Pins::Plain };

    /// A secret key.
    pub const fn new(key: [u8; USER_KEY_BYTES], pins: Pins) -> Self {
        Self { key, pins }
    }

    /// Bytes of the key, for the snapshot.
    pub const fn bytes(&self) -> &[u8; USER_KEY_BYTES] {
        &self.key
    }

    /// Part of a pin that comes from the keyed hash.
    pub const fn pins(&self) -> Pins {
        self.pins
    }

    /// Number of a user that nobody else has, as far as a hash of 64 bits goes: SipHash-2-4.
    #[allow(deprecated)] // std has no other hash with a key whose values are the same in every release
    pub fn number(&self, uid: &str) -> u64 {
        let [low, high] = [0, 8].map(|at| {
            let half = self.key[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(half)
        });
        let mut hasher = std::hash::SipHasher::new_with_keys(low, high);
        hasher.write(uid.as_bytes());
        hasher.finish()
    }

    /// The pin of a user id.
    #[allow(clippy::cast_possible_truncation)] // folding 64 bits to 32 on purpose
    pub fn pin(&self, uid: &str) -> Pin {
        let keyed = || self.number(uid) as u32;
        match self.pins {
            Pins::Plain => Pin::of(uid),
            Pins::Keyed => Pin(keyed()),
            Pins::KeyedButSlot => Pin(keyed() & !SLOT_BITS | Pin::of(uid).0 & SLOT_BITS),
            Pins::Cluster => Pin(keyed()).in_cluster(Slot::of(uid).number()),
        }
    }
}

impl std::fmt::Debug for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserKey").field("pins", &self.pins).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_and_stays_so() {
        let key: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        let number = UserKey::new(key, Pins::Keyed).number("");
        // The first of the vectors of SipHash-2-4 (Aumasson and Bernstein, 2012).
        assert_eq!(number.to_le_bytes(), [0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72]);
    }

    #[test]
    fn who_collides_without_the_key_does_not_with_it() {
        // Two user ids with the same plain pin, found by trying.
        let (mut seen, mut pair) = (std::collections::HashMap::new(), None);
        for number in 0..400_000u32 {
            let uid = format!("m-{number}");
            if let Some(other) = seen.insert(Pin::of(&uid).0, uid.clone()) {
                pair = Some((other, uid));
                break;
            }
        }
        let (one, other) = pair.expect("of 400,000 pins of 32 bits some are alike");
        let keyed = |pins| UserKey::new([7; 16], pins);
        assert_eq!(keyed(Pins::Plain).pin(&one), keyed(Pins::Plain).pin(&other));
        for pins in [Pins::Plain, Pins::Keyed, Pins::KeyedButSlot] {
            assert_ne!(keyed(pins).number(&one), keyed(pins).number(&other), "{pins:?}");
        }
        for pins in [Pins::Keyed, Pins::KeyedButSlot] {
            assert_ne!(keyed(pins).pin(&one), keyed(pins).pin(&other), "{pins:?}");
        }
        assert_ne!(keyed(Pins::Keyed).pin(&one), UserKey::new([8; 16], Pins::Keyed).pin(&one));
        assert_eq!(keyed(Pins::KeyedButSlot).pin(&one).slot(), Pin::of(&one).slot());
        assert_eq!(keyed(Pins::Cluster).pin(&one).cluster_slot(), Slot::of(&one).number());
    }
}
