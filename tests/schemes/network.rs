//! A network of messages: each is lost, late or neither, and a cut loses all that are under way.

use moorline_proto::random::Random;

/// Severity of the network's faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) name: &'static str,
    pub(crate) rtt_ms: u64,
    /// Each way is later by up to this: with more than the pause between messages, they overtake each other.
    pub(crate) jitter_ms: u64,
    pub(crate) loss_permille: u64,
    /// Time between cuts; 0: none.
    pub(crate) life_ms: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { name: "", rtt_ms: 200, jitter_ms: 0, loss_permille: 0, life_ms: 0 };

    /// Arrival time of a message that leaves now, in microseconds; `None`: it is lost.
    pub(crate) fn arrival(&self, now: u64, random: &mut Random) -> Option<u64> {
        let is_lost = random.below(1_000) < self.loss_permille;
        let late = random.below(self.jitter_ms * 1_000 + 1);
        (!is_lost).then_some(now + self.rtt_ms * 500 + late)
    }

    /// Time that a sender waits for an answer; a later answer does not come.
    pub(crate) const fn patience(&self) -> u64 {
        (self.rtt_ms + 2 * self.jitter_ms) * 1_000 + 50_000
    }
}
