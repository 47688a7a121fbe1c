//! The only place of this crate that reads a clock.

use crate::server::Now;
use moorline_proto::time::Instant;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads both clocks at once; monotonic time counts from the clock's creation.
#[derive(Debug)]
pub(crate) struct Clock {
    origin: std::time::Instant,
}

#[allow(clippy::disallowed_methods)] // here and nowhere else
impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    pub(crate) fn read(&self) -> Now {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // A system clock before 1970 counts as 1970.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        Now { instant: Instant::from_nanos(nanos), unix_ms }
    }
}
