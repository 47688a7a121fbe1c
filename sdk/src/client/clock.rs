//! The only place of this crate that reads a clock.

use moorline_proto::time::Instant;

/// Monotonic time since the clock's creation.
#[derive(Debug)]
pub(super) struct Clock {
    origin: std::time::Instant,
}

#[allow(clippy::disallowed_methods)] // here and nowhere else
impl Clock {
    pub(super) fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    pub(super) fn read(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
