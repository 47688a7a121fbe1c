//! A log line that strangers can cause, at most once in a while, for several threads ([`LineLimit`]).
//!
//! Example: a scanner sends a thousand requests without a token. The first one is logged at once; 10 s later the
//! next one is logged, with the number of those between them.

use crate::clock::Clock;
use moorline_proto::line_limit::LineLimit;
use std::sync::{Mutex, PoisonError};

/// Rate limit of one kind of log line. Shared by threads.
#[derive(Debug, Default)]
pub struct LogRate {
    clock: Clock,
    limit: Mutex<LineLimit>,
}

impl LogRate {
    /// Asks for a line. Returns the number of lines that were left out before it; `None`: leave this one out.
    pub fn try_pass(&self) -> Option<u64> {
        let now = self.clock.now();
        self.limit.lock().unwrap_or_else(PoisonError::into_inner).allow(now)
    }
}
