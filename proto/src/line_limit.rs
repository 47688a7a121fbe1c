//! One log line for many events of the same kind, so that strangers who connect again and again fill no disk.

use crate::time::{Duration, Instant};

/// Pause between two lines.
pub const PAUSE: Duration = Duration::from_secs(10);

/// Decides which events get a line.
///
/// Example: 1,000 strangers come in a second. The first gets a line; 10 s later the next one does, and its line says
/// that 999 others came meanwhile.
#[derive(Debug, Default)]
pub struct LineLimit {
    next: Instant,
    skipped: u64,
}

impl LineLimit {
    /// Returns a limit that lets the first event through.
    pub const fn new() -> Self {
        Self { next: Instant::ZERO, skipped: 0 }
    }

    /// Counts an event. `Some`: write a line, and say how many events before it got none.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if now < self.next {
            self.skipped += 1;
            return None;
        }
        self.next = now + PAUSE;
        Some(core::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_flood_is_one_line_in_ten_seconds() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut limit = LineLimit::new();
        let lines: Vec<u64> = (0..25_000).filter_map(|ms| limit.allow(at(ms))).collect();
        assert_eq!(lines, [0, 9_999, 9_999]);
    }
}
