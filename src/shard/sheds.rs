//! Uplinks that are refused in overload: those of the last rank first, then also those of the second.
//!
//! The rank of a message is the backend's to tell, which it does in its answers. The shard remembers the conversations
//! whose messages are not of the first rank, by a digest of their names, for [`KEPT`]. A conversation that is not
//! known counts as one of the first rank: its first message passes, and the answer tells.
//!
//! Example: the messages of `group:all` are of the last rank, as the answer to the first one says. At overload level 1
//! the next one is answered RETRY; one to `group:three` passes at every level.

use crate::messages::Rank;
use crate::shard_map::ShardMap;
use bytes::Bytes;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};

/// Conversations remembered at most; one takes the place of another with the same low bits of its digest.
const KNOWN_MAX: usize = 4 << 10;
/// Time for which a rank is remembered: a group may have become small since.
const KEPT: Duration = Duration::from_secs(600);

/// A SENDACK of which only the conversation is read.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Answered {
    #[prost(string, tag = "4")]
    conversation: String,
}

/// A SEND of which only the conversation is read.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Sent {
    #[prost(string, tag = "3")]
    conversation: String,
}

/// Ranks of conversations.
#[derive(Debug, Default)]
pub(super) struct Sheds {
    /// By the low bits of the digest; empty until the first one is known.
    known: Vec<Known>,
}

/// A conversation whose messages are not of the first rank.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    digest: u64,
    rank: Rank,
    /// End of its validity.
    until: Instant,
}

impl Sheds {
    /// Notes the rank of the message that a SENDACK answers.
    pub(super) fn on_answer(&mut self, now: Instant, map: &ShardMap, rank: Rank, body: &Bytes) {
        if rank == Rank::First {
            return;
        }
        let Ok(Answered { conversation }) = decode(body) else { return };
        if self.known.is_empty() {
            self.known = vec![Known::default(); KNOWN_MAX];
        }
        let digest = map.key().number(&conversation);
        self.known[place(digest)] = Known { digest, rank, until: now + KEPT };
    }

    /// Returns whether an uplink is refused at an overload level.
    pub(super) fn is_shed(
        &self,
        now: Instant,
        map: &ShardMap,
        level: u8,
        (command, lane, body): (Command, Lane, &Bytes),
    ) -> bool {
        let least = match level {
            0 => return false,
            1 => Rank::Last,
            _ => Rank::Second,
        };
        // A client may say that its own uplink is less urgent, of a message not that it is more so.
        let by_lane = match lane {
            Lane::Bulk => Rank::Last,
            Lane::Group if command != Command::Send => Rank::Second,
            _ => Rank::First,
        };
        by_lane >= least || (command == Command::Send && self.rank(now, map, body) >= least)
    }

    fn rank(&self, now: Instant, map: &ShardMap, body: &Bytes) -> Rank {
        let Ok(Sent { conversation }) = decode(body) else { return Rank::First };
        if conversation.is_empty() {
            return Rank::First;
        }
        let digest = map.key().number(&conversation);
        let known = self.known.get(place(digest)).filter(|known| known.digest == digest && now < known.until);
        known.map_or(Rank::First, |known| known.rank)
    }
}

fn place(digest: u64) -> usize {
    usize::try_from(digest).unwrap_or(usize::MAX) % KNOWN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::message::client::{Send, SendAck, send};
    use moorline_proto::message::encode;

    fn send_to(conversation: &str) -> Bytes {
        let target = send::Target::Conversation(conversation.to_owned());
        encode(&Send { target: Some(target), payload: vec![7; 40].into(), ..Default::default() })
    }

    #[test]
    fn the_last_rank_is_shed_first_and_a_group_of_three_never() {
        let (mut sheds, map, now) = (Sheds::default(), ShardMap::new(1), Instant::ZERO);
        let answer = |conversation: &str| {
            encode(&SendAck { cid: 3, seq: 9, conversation: conversation.to_owned(), ..Default::default() })
        };
        for (name, rank) in
            [("group:all", Rank::Last), ("group:school", Rank::Second), ("group:3", Rank::First)]
        {
            sheds.on_answer(now, &map, rank, &answer(name));
        }
        let shed_at = |name: &str, now| {
            let body = send_to(name);
            [0, 1, 2, 3].map(|level| sheds.is_shed(now, &map, level, (Command::Send, Lane::Group, &body)))
        };
        assert_eq!(shed_at("group:all", now), [false, true, true, true]);
        assert_eq!(shed_at("group:school", now), [false, false, true, true]);
        assert_eq!(shed_at("group:3", now), [false; 4], "although its lane is that of groups");
        assert_eq!(shed_at("group:unknown", now), [false; 4]);
        assert_eq!(shed_at("group:all", now + KEPT), [false; 4], "it may have become small");
    }

    #[test]
    fn a_client_may_say_that_its_uplink_is_less_urgent() {
        let (sheds, map, body) = (Sheds::default(), ShardMap::new(1), send_to("group:3"));
        let is_shed =
            |level, command, lane| sheds.is_shed(Instant::ZERO, &map, level, (command, lane, &body));
        assert!(is_shed(1, Command::Send, Lane::Bulk) && is_shed(1, Command::Req, Lane::Bulk));
        assert!(!is_shed(1, Command::Req, Lane::Group) && is_shed(2, Command::Req, Lane::Group));
        assert!(!is_shed(3, Command::Req, Lane::Control) && !is_shed(3, Command::Send, Lane::Chat));
    }
}
