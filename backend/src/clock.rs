//! The backend's time: both times of the shared clock, read at once.

use crate::server::Now;

/// A clock that begins at zero.
#[derive(Debug, Default)]
pub(crate) struct Clock(moorline_net::clock::Clock);

impl Clock {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Returns the monotonic and the Unix time.
    pub(crate) fn read(&self) -> Now {
        Now { instant: self.0.now(), unix_ms: self.0.unix_ms() }
    }
}
