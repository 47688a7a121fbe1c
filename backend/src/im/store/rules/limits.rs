//! Limit of the messages that a conversation takes, by order of the operator. Pure.
//!
//! A group is too hot: the operator's server limits it to 60 messages a minute. Ten in a row pass, then one each second; the
//! others are answered RETRY and come again. With a limit of 0 the conversation is frozen: nobody writes to it.

use crate::im::store::Refusal;

/// Messages a minute that can be ordered at most.
pub const PER_MINUTE_MAX: u32 = 60_000;
/// Time whose messages may come at once, in microseconds; one message always may.
const BURST_US: u64 = 10_000_000;
const MINUTE_US: u64 = 60_000_000;

/// Limit of one conversation, and how far it is used up. The use is in memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendLimit {
    per_minute: u32,
    /// Time at which nothing of the limit is used, in microseconds of the caller's clock.
    free_us: u64,
}

impl SendLimit {
    /// A limit of `per_minute` messages a minute, at most [`PER_MINUTE_MAX`]; 0: none.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.min(PER_MINUTE_MAX), free_us: 0 }
    }

    /// Messages a minute.
    pub const fn per_minute(&self) -> u32 {
        self.per_minute
    }

    /// Takes one message at `now_ms`, in milliseconds.
    ///
    /// # Errors
    /// [`Refusal::Frozen`]: it takes none. [`Refusal::TooFast`]: it takes none now.
    pub fn take(&mut self, now_ms: u64) -> Result<(), Refusal> {
        let Some(each_us) = MINUTE_US.checked_div(self.per_minute.into()) else {
            return Err(Refusal::Frozen);
        };
        let now_us = now_ms.saturating_mul(1000);
        let used_max = BURST_US.max(each_us);
        // More cannot be used: the clock was set back.
        let used = self.free_us.saturating_sub(now_us).min(used_max);
        if used + each_us > used_max {
            self.free_us = now_us + used;
            return Err(Refusal::TooFast);
        }
        self.free_us = now_us + used + each_us;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of messages that pass of `count` at each of these times.
    fn passed(limit: &mut SendLimit, count: usize, times_ms: impl IntoIterator<Item = u64>) -> Vec<usize> {
        times_ms.into_iter().map(|now_ms| (0..count).filter(|_| limit.take(now_ms).is_ok()).count()).collect()
    }

    #[test]
    fn ten_seconds_of_messages_pass_at_once_and_then_one_after_the_other() {
        let mut limit = SendLimit::new(60);
        assert_eq!(passed(&mut limit, 20, [5_000, 5_500, 6_000, 7_000, 60_000]), [10, 0, 1, 1, 10]);
        assert_eq!(limit.take(60_000), Err(Refusal::TooFast));
    }

    #[test]
    fn a_slow_conversation_takes_one_message_and_then_waits() {
        let mut limit = SendLimit::new(1);
        assert_eq!(passed(&mut limit, 5, [0, 59_999, 60_000, 60_001]), [1, 0, 1, 0]);
    }

    #[test]
    fn the_highest_limit_is_a_thousand_a_second() {
        let mut limit = SendLimit::new(u32::MAX);
        assert_eq!(limit.per_minute(), PER_MINUTE_MAX);
        assert_eq!(passed(&mut limit, 20_000, [0, 1, 1_000]), [10_000, 1, 999]);
    }

    #[test]
    fn a_frozen_conversation_takes_none() {
        assert_eq!(SendLimit::new(0).take(u64::MAX), Err(Refusal::Frozen));
    }

    #[test]
    fn a_clock_that_is_set_back_stops_it_for_no_longer_than_a_full_burst() {
        let mut limit = SendLimit::new(60);
        assert_eq!(passed(&mut limit, 20, [1_000_000]), [10]);
        assert_eq!(passed(&mut limit, 20, [1_000, 2_000, 12_000]), [0, 1, 10]);
    }
}
