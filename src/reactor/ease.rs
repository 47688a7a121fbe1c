//! Giving memory back to the system when a crowd is over.
//!
//! The allocator keeps what was freed. Once a second the memory that waits for clients is compared with its highest
//! level; after a fall by more than half and at least [`FALL_MIN`], the allocator is asked to give back what is free. So it
//! is after a crowd of TLS handshakes, which take [`HANDSHAKE_BYTES`] each for a moment.
//!
//! Example: 300 MiB wait for clients that do not read. They are closed; a second later 1 MiB waits, and the
//! allocator returns the rest to the system.

use moorline_proto::time::{Duration, Instant};

/// Interval between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Least fall after which memory is given back, in bytes: giving back takes some milliseconds.
const FALL_MIN: u64 = 16 << 20;

/// Memory of one TLS handshake, in bytes, of which the allocator keeps a part.
const HANDSHAKE_BYTES: u64 = 12 << 10;

/// The highest level since memory was last given back.
#[derive(Debug, Default)]
pub(super) struct Ease {
    peak: u64,
    /// Handshakes until the last look.
    handshakes: u64,
    /// Memory of the handshakes since memory was last given back.
    freed: u64,
    next_look: Instant,
}

impl Ease {
    /// Notes the level, and the number of TLS handshakes so far. True: a good part of the memory is free, and may be given
    /// back.
    pub(super) fn look(&mut self, now: Instant, level: u64, handshakes: u64) -> bool {
        self.peak = self.peak.max(level);
        if now < self.next_look {
            return false;
        }
        self.next_look = now + INTERVAL;
        let fresh = handshakes - std::mem::replace(&mut self.handshakes, handshakes);
        self.freed += fresh * HANDSHAKE_BYTES;
        let has_fallen = self.peak - level >= FALL_MIN && level < self.peak / 2;
        let is_over = has_fallen || (fresh == 0 && self.freed >= FALL_MIN);
        if is_over {
            (self.peak, self.freed) = (level, 0);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_a_crowd_and_not_for_little() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let mut ease = Ease::default();
        let mut look = |millis, level| ease.look(at(millis), level, 0);
        assert!(!look(0, 0) && !look(100, 300 << 20) && !look(1_100, 200 << 20));
        assert!(!look(1_200, 1 << 20), "once a second");
        assert!(look(2_200, 1 << 20));
        assert!(!look(3_300, 0) && !look(4_400, 15 << 20) && !look(5_500, 0));
    }

    #[test]
    fn memory_is_given_back_once_after_a_crowd_of_handshakes_and_not_during_it() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let mut ease = Ease::default();
        assert!(!ease.look(at(0), 0, 0) && !ease.look(at(2), 0, 2_000) && !ease.look(at(4), 0, 4_000));
        assert!(ease.look(at(6), 0, 4_000) && !ease.look(at(8), 0, 4_000), "once");
        assert!(!ease.look(at(10), 0, 4_100) && !ease.look(at(12), 0, 4_100), "not for a hundred");
    }
}
