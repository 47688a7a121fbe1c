//! Rank of a message by its kind and size: who is served first, and shed last.
//!
//! | rank | messages |
//! |---|---|
//! | first | between two users; of groups with fewer than `im.first_rank_members` members |
//! | second | of groups with fewer than `im.second_rank_members`; of the server API, signals |
//! | last | of larger groups; to everybody |
//!
//! Example: a message to 99 members goes before one to 150, whatever lane their authors chose.

use super::ImConfig;
use super::store::{ConversationId, Facts};
use moorline_proto::message::backend::Rank;

/// Rank of what a number of people get.
pub(super) const fn rank_of_members(config: &ImConfig, members: usize) -> Rank {
    if members < config.first_rank_members {
        Rank::First
    } else if members < config.second_rank_members {
        Rank::Second
    } else {
        Rank::Last
    }
}

/// Rank of the messages of a conversation.
pub(super) fn rank_of(facts: &impl Facts, config: &ImConfig, conversation: ConversationId) -> Rank {
    if facts.is_group(conversation) {
        rank_of_members(config, facts.member_count(conversation))
    } else {
        Rank::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_group_decides() {
        use Rank::{First, Last, Second};
        let config = ImConfig::default();
        let ranks = [2, 99, 100, 1_999, 2_000, 10_000].map(|members| rank_of_members(&config, members));
        assert_eq!(ranks, [First, First, Second, Second, Last, Last]);
    }
}
