//! Owning shards: which shard decides about a user.
//!
//! While the number of shards stays the same, a user's pin names the shard ([`UserKey`]). After a hot restart with more
//! shards, users who are logged in keep their shard, also for their other devices; a new login uses the newest map. So the
//! gateway looks for a user in one owning shard after the other, and finds the user in at most one.

mod user_key;

pub use user_key::{Pins, USER_KEY_BYTES, UserKey};

use moorline_proto::ids::{Pin, ShardId};
use std::sync::Arc;

/// Shards, at most.
pub const SHARDS_MAX: usize = 256;

/// The shard counts of a gateway's life, oldest first, each larger than the one before; and the key of the hash that
/// decides between users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    counts: Arc<[u16]>,
    key: UserKey,
}

impl ShardMap {
    /// Map of a gateway that begins with this many shards, 1 to [`SHARDS_MAX`].
    /// Everybody knows the key of its hash: see [`Self::with_key`].
    pub fn new(shards: usize) -> Self {
        let count = u16::try_from(shards.clamp(1, SHARDS_MAX)).expect("at most 256");
        Self { counts: Arc::new([count]), key: UserKey::NONE }
    }

    /// Restores the map from a snapshot; `None`: the counts are not valid.
    pub fn thaw(counts: &[u32]) -> Option<Self> {
        let is_growing = counts.windows(2).all(|pair| pair[0] < pair[1]);
        let one = |count: &u32| u16::try_from(*count).ok().filter(|count| (1..=256).contains(count));
        let counts = counts.iter().map(one).collect::<Option<Vec<u16>>>()?;
        (is_growing && !counts.is_empty()).then(|| Self { counts: counts.into(), key: UserKey::NONE })
    }

    /// The map with this key of its hash.
    #[must_use]
    pub fn with_key(self, key: UserKey) -> Self {
        Self { key, ..self }
    }

    /// Key of the hash that decides between users.
    pub const fn key(&self) -> UserKey {
        self.key
    }

    /// The pin of a user id: it chooses the user's shard, worker and link.
    pub fn pin(&self, uid: &str) -> Pin {
        self.key.pin(uid)
    }

    /// With more shards, if there are more.
    #[must_use]
    pub fn grown_to(&self, shards: usize) -> Self {
        let count = u16::try_from(shards.min(SHARDS_MAX)).expect("at most 256");
        let is_more = self.counts.last().is_none_or(|last| *last < count);
        let Self { counts, key } = self;
        let counts =
            if is_more { counts.iter().copied().chain([count]).collect() } else { Arc::clone(counts) };
        Self { counts, key: *key }
    }

    /// Shard counts for the snapshot, oldest first.
    pub fn counts(&self) -> &[u16] {
        &self.counts
    }

    /// Shards that there are.
    pub fn shards(&self) -> usize {
        self.counts.last().copied().unwrap_or(1).into()
    }

    /// First shard to look for a user.
    pub fn first(&self, pin: Pin) -> ShardId {
        pin.shard(self.counts[0].into())
    }

    /// Next shard to look for a user that is not at `shard`; `None`: `shard` owns the user.
    pub fn after(&self, pin: Pin, shard: ShardId) -> Option<ShardId> {
        if self.counts.len() == 1 {
            return None;
        }
        let mut seen = Vec::with_capacity(self.counts.len());
        for owner in self.counts.iter().map(|count| pin.shard((*count).into())) {
            if seen.last() == Some(&shard) && !seen.contains(&owner) {
                return Some(owner);
            }
            if !seen.contains(&owner) {
                seen.push(owner);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::random::mix;

    #[test]
    fn every_chain_ends_and_visits_a_home_once() {
        let shard_map = ShardMap::new(2).grown_to(3).grown_to(3).grown_to(2).grown_to(7).grown_to(8);
        assert_eq!((shard_map.counts(), shard_map.shards()), (&[2, 3, 7, 8][..], 8));
        for number in 0..2_000 {
            let pin = Pin(u32::try_from(mix(number) >> 32).expect("32 bits"));
            let (mut at, mut seen) = (shard_map.first(pin), vec![shard_map.first(pin)]);
            assert_eq!(at, pin.shard(2));
            while let Some(next) = shard_map.after(pin, at) {
                assert!(!seen.contains(&next) && next.index() < 8);
                seen.push(next);
                at = next;
            }
            for count in [2, 3, 7, 8] {
                assert!(seen.contains(&pin.shard(count)));
            }
        }
        assert_eq!(ShardMap::new(4).after(Pin(1), ShardId(1)), None);
    }

    #[test]
    fn what_cannot_have_been_is_refused() {
        assert_eq!(ShardMap::thaw(&[2, 4]), Some(ShardMap::new(2).grown_to(4)));
        for counts in [&[][..], &[0], &[4, 2], &[2, 2], &[0, 300]] {
            assert_eq!(ShardMap::thaw(counts), None, "{counts:?}");
        }
    }
}
