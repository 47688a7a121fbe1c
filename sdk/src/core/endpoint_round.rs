//! Position of a client in its list of gateways: which one is next, and when another list is asked for. Pure, and without the
//! list itself, so that a simulation of many clients can use it.

use super::Backoff;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};

/// Shortest wait between a failed question and the next one.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Position of a client in its list of gateways. Behind the last one of the list comes the client's own endpoint.
#[derive(Clone, Copy, Debug)]
pub struct EndpointRound {
    /// End of the list's lifetime.
    until: Instant,
    /// Earliest time of the next question.
    not_before: Instant,
    /// Questions in a row without a list.
    failures: u32,
    /// Length of the list; 0: none has come.
    len: u8,
    /// Index of the gateway of the next attempt; `len`: the client's own endpoint.
    at: u8,
    /// True if each gateway of the list was tried, or there is no list.
    is_used_up: bool,
    /// True while an attempt or a login at the gateway `at` is under way.
    is_trying: bool,
    /// True if the last login at the gateway `at` lasted: the next attempt goes there without a question.
    has_served: bool,
}

impl Default for EndpointRound {
    fn default() -> Self {
        let (until, not_before) = (Instant::ZERO, Instant::ZERO);
        let (is_used_up, is_trying, has_served) = (true, false, false);
        Self { until, not_before, failures: 0, len: 0, at: 0, is_used_up, is_trying, has_served }
    }
}

impl EndpointRound {
    /// True if a dispatch server is to be asked before the next attempt.
    pub fn is_question_due(&self, now: Instant) -> bool {
        !self.has_served && now >= self.not_before && (self.is_used_up || now >= self.until)
    }

    /// Takes a list of `len` gateways, at least 1.
    pub fn on_list(&mut self, now: Instant, len: u8, lifetime: Duration) {
        (self.len, self.until) = (len, now + lifetime);
        (self.at, self.is_used_up, self.has_served, self.failures) = (0, len == 0, false, 0);
    }

    /// Notes that a question brought no list: the client's own endpoint is next, since an old list may be of a region that is
    /// gone, and the next question waits for `after` and a random time.
    pub fn on_no_list(&mut self, now: Instant, after: Duration, policy: Backoff, random: &mut Random) {
        (self.at, self.is_used_up) = (self.len, true);
        let wait = policy.wait(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + (after + wait).max(PAUSE_MIN);
    }

    /// Names the gateway of an attempt that begins, by its index; `None`: the client's own endpoint.
    pub fn begin(&mut self) -> Option<usize> {
        self.is_trying = true;
        (self.at < self.len).then_some(self.at.into())
    }

    /// Takes the end of an attempt or a login, if it was one at the gateway that [`Self::begin`] named. `has_served`: the
    /// login lasted, and nobody asked the client to leave.
    pub fn on_lost(&mut self, has_served: bool) {
        if !std::mem::take(&mut self.is_trying) {
            return;
        }
        self.has_served = has_served;
        if has_served {
            return;
        }
        self.at = if self.at < self.len { self.at + 1 } else { 0 };
        self.is_used_up |= self.at >= self.len;
    }

    /// Notes that the network is another one: it may reach servers that the last one did not.
    pub fn on_network_changed(&mut self) {
        (self.failures, self.not_before) = (0, Instant::ZERO);
    }
}
