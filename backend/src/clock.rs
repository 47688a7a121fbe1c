//! Clock of the backend: the only code of this crate that reads the time.

use crate::server::Now;
use moorline_proto::time::Instant;
use std::time::{SystemTime, UNIX_EPOCH};

/// Monotonic and system clock, read together; monotonic time counts from the creation of this value.
#[derive(Debug)]
pub(crate) struct Clock {
    origin: std::time::Instant,
}

#[allow(clippy::disallowed_methods)] // the only place
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
