//! Typed identifiers. A number of one kind cannot be passed for another.

use crate::random::mix;
use core::fmt;

/// A frame number in one direction of one session; 0 means "unreliable" in a header.
pub type Seq = u32;

/// Longest user id, in bytes [P-4.2].
pub const UID_BYTES_MAX: usize = 64;
/// Longest device id, in bytes [P-4.2].
pub const DEVICE_BYTES_MAX: usize = 64;

/// Identifier of one device's login: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A client's name for one message, unique for ever: 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageKey(pub [u8; 16]);

impl fmt::Debug for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Number of a reactor's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

impl ShardId {
    /// Index into per-shard arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The one cross-thread address of a connection: 8 bits of shard, 24 of slot, 32 of generation.
///
/// A slot is reused after its connection ended, with another generation, so a key that outlived its
/// connection finds no connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey(u64);

impl ConnKey {
    /// Most connections of one shard.
    pub const SLOTS_MAX: u32 = 1 << 24;

    /// Packs the three parts. Panics if `slot` is not below [`Self::SLOTS_MAX`].
    pub const fn new(shard: ShardId, slot: u32, generation: u32) -> Self {
        assert!(slot < Self::SLOTS_MAX, "a shard holds fewer connections than SLOTS_MAX");
        Self((shard.0 as u64) << 56 | (slot as u64) << 32 | generation as u64)
    }

    /// The key with this number; every number is a key, and most keys find no connection.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that crosses a wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The shard that owns the connection.
    #[allow(clippy::cast_possible_truncation)] // the top 8 bits
    pub const fn shard(self) -> ShardId {
        ShardId((self.0 >> 56) as u8)
    }

    /// The slot in that shard's table.
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & (Self::SLOTS_MAX - 1)
    }

    /// Generation: counts the connections that have used this slot.
    #[allow(clippy::cast_possible_truncation)] // the low 32 bits
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for ConnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}#{}", self.shard().0, self.slot(), self.generation())
    }
}

/// Hash of a uid that chooses the user's shard, worker and link.
///
/// FNV-1a with a final mix; the same on every process and release, because a hot restart and the
/// other end of a link rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin(pub u32);

impl Pin {
    /// The pin of a user id.
    #[allow(clippy::cast_possible_truncation)] // folding 64 bits to 32 on purpose
    pub fn of(uid: &str) -> Self {
        let mut hash = 0xCBF2_9CE4_8422_2325_u64;
        for byte in uid.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Self(mix(hash) as u32)
    }

    /// The owning shard among `shards`.
    #[allow(clippy::cast_possible_truncation)] // below 256
    pub fn shard(self, shards: usize) -> ShardId {
        ShardId((self.0 as usize % shards.clamp(1, 256)) as u8)
    }

    /// Slot of a worker: one of 64 groups of pins that move together between the worker's links.
    pub const fn slot(self) -> u32 {
        self.0 >> 8 & 63
    }

    /// Slot of a cluster, if the pin was made by [`Self::in_cluster`].
    pub const fn cluster_slot(self) -> u16 {
        (self.0 >> 8 & 1023) as u16
    }

    /// The pin with the slot of a cluster in place of ten of its bits.
    #[must_use]
    pub const fn in_cluster(self, slot: u16) -> Self {
        Self(self.0 & !(1023 << 8) | (slot as u32 & 1023) << 8)
    }

    /// The worker among `workers`; independent of the shard choice.
    pub const fn worker(self, workers: usize) -> usize {
        (self.0 >> 16) as usize % workers
    }
}

/// A message's id as people write it down: `3D8K-7Q2N-GXA4-PB9M`, 80 bits in base 32.
///
/// 42 bits of milliseconds, 12 of count, 4 of the kind of conversation, 22 of a hash of its id; so messages of one time
/// and of one conversation look alike. Made of a message id whose layout is that of the IM backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadableId(u128);

/// Without 0, 1, I and O, which look like others.
const READABLE_ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

impl ReadableId {
    /// The readable id of a message in this conversation.
    pub fn new(message_id: u64, conversation: &str) -> Self {
        let (millis, count) = (message_id >> 22, message_id & 0xFFF);
        let kind = match conversation.split(':').next() {
            Some("c2c") => 1,
            Some("group") => 2,
            _ => 0u64,
        };
        let hash = conversation.bytes().fold(0u64, |hash, byte| mix(hash ^ u64::from(byte))) & 0x3F_FFFF;
        let high = u128::from(millis) << 12 | u128::from(count);
        Self(high << 26 | u128::from(kind << 22 | hash))
    }
}

impl fmt::Display for ReadableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for at in 0..16u32 {
            if at > 0 && at % 4 == 0 {
                f.write_str("-")?;
            }
            let digit = (self.0 >> (75 - 5 * at)) & 31;
            fmt::Write::write_char(f, char::from(READABLE_ALPHABET[usize::try_from(digit).unwrap_or(0)]))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_parts_come_back() {
        let key = ConnKey::new(ShardId(200), ConnKey::SLOTS_MAX - 1, u32::MAX);
        assert_eq!(
            (key.shard(), key.slot(), key.generation()),
            (ShardId(200), ConnKey::SLOTS_MAX - 1, u32::MAX)
        );
        assert_eq!(ConnKey::from_u64(key.as_u64()), key);
    }

    #[test]
    fn pins_are_stable_across_releases() {
        assert_eq!(Pin::of("alice"), Pin(1_719_093_852));
    }

    #[test]
    fn readable_ids_keep_time_and_conversation_apart() {
        let id = |millis: u64, count: u64, conversation: &str| {
            ReadableId::new(millis << 22 | 5 << 12 | count, conversation)
        };
        let text = alloc::format!("{}", id(91_000_000_000, 7, "group:tea"));
        assert_eq!((text.len(), text.matches('-').count()), (19, 3));
        assert!(text.bytes().all(|letter| letter == b'-' || READABLE_ALPHABET.contains(&letter)), "{text}");
        assert!(id(1, 0, "group:tea") < id(1, 1, "group:a") && id(1, 4095, "c2c:a:b") < id(2, 0, "c2c:a:b"));
        assert_ne!(id(1, 0, "group:tea"), id(1, 0, "group:tee"));
        let (one, other) =
            (alloc::format!("{}", id(1, 0, "c2c:a:b")), alloc::format!("{}", id(9, 3, "c2c:a:b")));
        assert_eq!(one[15..], other[15..], "messages of one conversation end alike");
    }
}
