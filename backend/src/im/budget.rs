//! Number of members of large groups that one turn of the loop looks at: by what a member costs, and whether people chat.
//!
//! Everything else waits for one turn's share, so the share is a time. Turns that follow each other without a sleep
//! tell how long they took, and from that comes what a member costs.
//!
//! Example: people chat, and a member costs 0.2 us. A turn looks at 1,250 members, which takes 250 us, and a group of
//! 10,000 takes eight turns. When nobody chats it is looked at in one.

use moorline_proto::cost::Cost;
use moorline_proto::time::{Duration, Instant};
use std::ops::RangeInclusive;

/// Time after a message of the first rank during which people count as chatting.
const CHAT: Duration = Duration::from_millis(10);
/// Time of the share of one turn while people chat, and otherwise.
const CHAT_SHARE: Duration = Duration::from_micros(250);
const FREE_SHARE: Duration = Duration::from_millis(4);
/// Bounds of the share in members.
const MEMBERS_MIN: usize = 512;
const MEMBERS_MAX: usize = 32_768;
/// Time of a member before one was measured, and the bounds of a measured one, in nanoseconds.
const COST_START: u64 = 200;
const COST_BOUNDS: RangeInclusive<u64> = 20..=2_000;

/// Share of the fan-outs in each turn.
#[derive(Debug)]
pub(super) struct Budget {
    chat_until: Instant,
    /// Time of a member.
    cost: Cost,
    /// Begin of the last turn, and the members looked at in it; `None`: the loop slept since.
    last: Option<(Instant, usize)>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { chat_until: Instant::ZERO, cost: Cost::new(COST_START, COST_BOUNDS), last: None }
    }
}

impl Budget {
    /// Begins the share of a turn. `has_chat`: a message of the first rank passed since the last turn. Returns the number
    /// of members.
    pub(super) fn begin(&mut self, now: Instant, has_chat: bool) -> usize {
        if has_chat {
            self.chat_until = now + CHAT;
        }
        if let Some((began, members)) = self.last.take() {
            self.cost.measure(now.saturating_since(began), members);
        }
        let share = if now < self.chat_until { CHAT_SHARE } else { FREE_SHARE };
        self.cost.fits(share).clamp(MEMBERS_MIN, MEMBERS_MAX)
    }

    /// Ends the share of the turn that began at `now`. `goes_on`: the next turn follows at once.
    pub(super) fn end(&mut self, now: Instant, members: usize, goes_on: bool) {
        self.last = (goes_on && members >= MEMBERS_MIN).then_some((now, members));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + micros * 1_000)
    }

    #[test]
    fn while_people_chat_the_share_is_small_and_follows_what_a_member_costs() {
        let mut budget = Budget::default();
        let free = budget.begin(at(0), false);
        let beside = budget.begin(at(0), true);
        assert_eq!((free, beside), (20_000, 1_250));
        // Members cost 1 us each: the share shrinks, to about 250 us.
        let mut now = 0;
        for _ in 0..60 {
            let members = budget.begin(at(now), true);
            budget.end(at(now), members, true);
            now += members as u64;
        }
        assert_eq!(budget.begin(at(now), true), MEMBERS_MIN, "the least");
        // Nobody chats: 4 ms.
        let members = budget.begin(at(now + 20_000), false);
        assert!((3_500..4_600).contains(&members), "{members}");
    }

    #[test]
    fn a_turn_after_a_sleep_tells_nothing() {
        let mut budget = Budget::default();
        let members = budget.begin(at(0), false);
        budget.end(at(0), members, false);
        assert_eq!(budget.begin(at(9_000_000), false), members);
    }
}
