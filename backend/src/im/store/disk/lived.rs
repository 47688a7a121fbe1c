//! Life of a store: the time that has passed while it was open, in milliseconds.
//!
//! Message keys are kept for days of this life, and not of the wall clock: a clock that jumps ahead by 40 days, also
//! while the backend is down, must not make the backend forget a key and store a message twice. Time for which the store is closed does
//! not count, so a key may be kept longer than `im.idempotency_window`, and never shorter. The life goes on from where the days
//! of an earlier version were.

use super::DiskError;
use super::tables::{DAY_MS, LAST_ID, LIVED, Tables};
use crate::im::time_ms;

/// See the module.
#[derive(Debug)]
pub(super) struct Lived {
    /// `None`: the store is new.
    ms: Option<u64>,
    /// Time of the last look, in Unix milliseconds that go on steadily. `None`: nobody has looked since the store was opened.
    looked_ms: Option<u64>,
}

impl Lived {
    pub(super) fn load(tables: &Tables) -> Result<Self, DiskError> {
        let ms = match (tables.number(LIVED)?, tables.days()) {
            (0, None) => None,
            (0, Some((_, newest))) => {
                let day =
                    newest.saturating_mul(DAY_MS)..=newest.saturating_mul(DAY_MS).saturating_add(DAY_MS - 1);
                Some(time_ms(tables.number(LAST_ID)?).clamp(*day.start(), *day.end()))
            }
            (lived, _) => Some(lived),
        };
        Ok(Self { ms, looked_ms: None })
    }

    /// Returns the life of the store at this time.
    pub(super) fn at(&mut self, now_ms: u64) -> u64 {
        let passed = self.looked_ms.map_or(0, |looked| now_ms.saturating_sub(looked));
        self.looked_ms = Some(self.looked_ms.map_or(now_ms, |looked| looked.max(now_ms)));
        let ms = self.ms.map_or(now_ms, |ms| ms.saturating_add(passed));
        self.ms = Some(ms);
        ms
    }

    /// The life at the last look; 0: there was none.
    pub(super) fn last(&self) -> u64 {
        self.ms.unwrap_or(0)
    }
}
