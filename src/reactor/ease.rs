//! Giving memory back to the system when a crowd is over.
//!
//! The allocator keeps what was freed. Once a second the memory that waits for clients is compared with its highest
//! level; after a fall by more than half and at least [`FALL_MIN`], the allocator is asked to give back what is free.
//!
//! Example: 300 MiB wait for clients that do not read. They are closed; a second later 1 MiB waits, and the
//! allocator returns the rest to the system.

use moorline_proto::time::{Duration, Instant};

/// Interval between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Least fall after which memory is given back, in bytes: giving back takes some milliseconds.
const FALL_MIN: u64 = 16 << 20;

/// The highest level since memory was last given back.
#[derive(Debug, Default)]
pub(super) struct Ease {
    peak: u64,
    next_look: Instant,
}

impl Ease {
    /// Notes the level. True: a good part of the memory is free, and may be given back.
    pub(super) fn look(&mut self, now: Instant, level: u64) -> bool {
        self.peak = self.peak.max(level);
        if now < self.next_look {
            return false;
        }
        self.next_look = now + INTERVAL;
        let is_over = self.peak - level >= FALL_MIN && level < self.peak / 2;
        if is_over {
            self.peak = level;
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
        assert!(!ease.look(at(0), 0) && !ease.look(at(100), 300 << 20) && !ease.look(at(1_100), 200 << 20));
        assert!(!ease.look(at(1_200), 1 << 20), "once a second");
        assert!(ease.look(at(2_200), 1 << 20));
        assert!(!ease.look(at(3_300), 0) && !ease.look(at(4_400), 15 << 20) && !ease.look(at(5_500), 0));
    }
}
