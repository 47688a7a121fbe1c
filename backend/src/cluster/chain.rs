//! Chains: the messages of one conversation on their way to one member's stream.
//!
//! Messages 4, 5 and 6 of `group:tea` are to reach alice, whose slot another node owns. The owner of the group sends three DELIVERs, `4
//! after 3`, `5 after 4`, `6 after 5`. The second is lost. alice's node appends 4, and leaves 6: it does not have what comes
//! before it. After [`RESEND_EVERY`] the owner of the group sends 5 and 6 again. A DELIVER that comes twice is confirmed and
//! not appended, because the stream knows the last seq that has arrived.
//!
//! Events of a conversation go the same way: the numbers of a chain are orders, which messages and events share.

use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// DELIVERs of one chain that are under way.
pub const WINDOW: usize = 64;
/// Time after which DELIVERs without a confirmation are sent again.
pub const RESEND_EVERY: Duration = Duration::from_millis(300);

/// Judgement of a DELIVER by the owner of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Append the message to the stream.
    Next,
    /// Confirm it: the stream had it before.
    Repeated,
    /// Leave it: a message before it has not arrived.
    TooEarly,
}

/// Judges a DELIVER of message `seq`, before which the member was sent `after`. `arrived` is the last seq of the conversation
/// that the stream ever had; 0: it had none.
pub const fn judge(arrived: u64, after: u64, seq: u64) -> Arrival {
    if seq <= arrived {
        Arrival::Repeated
    } else if after <= arrived {
        Arrival::Next
    } else {
        Arrival::TooEarly
    }
}

/// Messages of one conversation that one member's owner has not confirmed, with what is sent of each.
#[derive(Debug)]
pub struct Chain<T> {
    waiting: VecDeque<Link<T>>,
    /// Messages of `waiting`, from the front, that were sent since the last time-out.
    sent: usize,
    /// Time at which everything is sent again. `None`: nothing is under way.
    resend_at: Option<Instant>,
}

/// A message of a [`Chain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link<T> {
    /// Seq of the message.
    pub seq: u64,
    /// Seq of the message before it that the member was sent; 0: there was none.
    pub after: u64,
    /// The rest of the message.
    pub message: T,
}

impl<T> Default for Chain<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), sent: 0, resend_at: None }
    }
}

impl<T> Chain<T> {
    /// Adds the newest message.
    pub fn push(&mut self, link: Link<T>) {
        debug_assert!(self.waiting.back().is_none_or(|last| last.seq <= link.after), "in the order of seqs");
        self.waiting.push_back(link);
    }

    /// Takes the confirmation of everything up to `seq`. Returns the number of messages that are confirmed now.
    pub fn confirm(&mut self, seq: u64) -> usize {
        let count = self.waiting.iter().take_while(|link| link.seq <= seq).count();
        self.waiting.drain(..count);
        self.sent = self.sent.saturating_sub(count);
        if self.sent == 0 {
            self.resend_at = None;
        }
        count
    }

    /// Returns the next message to send. `None`: the window is full, or nothing is left.
    pub fn poll(&mut self, now: Instant) -> Option<&Link<T>> {
        if self.resend_at.is_some_and(|at| at <= now) {
            (self.sent, self.resend_at) = (0, None);
        }
        if self.sent >= WINDOW {
            return None;
        }
        let next = self.waiting.get(self.sent)?;
        self.sent += 1;
        self.resend_at.get_or_insert(now + RESEND_EVERY);
        Some(next)
    }

    /// Seq of the newest message without a confirmation; 0: there is none.
    pub fn last(&self) -> u64 {
        self.waiting.back().map_or(0, |link| link.seq)
    }

    /// Number of messages without a confirmation.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True if every message is confirmed.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Time at which [`Self::poll`] has something again. `None`: nothing is under way.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.resend_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::random::Random;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_message_that_comes_twice_or_too_early_is_not_appended() {
        assert_eq!(
            [judge(3, 3, 4), judge(4, 3, 4), judge(4, 5, 6)],
            [Arrival::Next, Arrival::Repeated, Arrival::TooEarly]
        );
        assert_eq!(judge(3, 3, 6), Arrival::Next, "4 and 5 are voids");
        assert_eq!(judge(9, 0, 12), Arrival::Next, "a member anew");
    }

    #[test]
    fn a_chain_sends_its_window_and_all_of_it_again_without_a_confirmation() {
        let mut chain = Chain::default();
        (1..=70).for_each(|seq| chain.push(Link { seq, after: seq - 1, message: () }));
        let mut sent = |now| std::iter::from_fn(|| Some(chain.poll(now)?.seq)).collect::<Vec<_>>();
        assert_eq!(sent(at(0)), (1..=64).collect::<Vec<_>>());
        assert_eq!(sent(at(299)), Vec::<u64>::new());
        assert_eq!(sent(at(300)), (1..=64).collect::<Vec<_>>());
        assert_eq!((chain.confirm(2), chain.confirm(2)), (2, 0));
        assert_eq!(chain.poll(at(301)).map(|link| link.seq), Some(65));
        assert_eq!((chain.confirm(70), chain.is_empty(), chain.next_deadline()), (68, true, None));
    }

    proptest! {
        #[test]
        fn a_stream_gets_each_message_once_and_in_order(seed in any::<u64>(), count in 1_u64..80) {
            let mut random = Random::new(seed);
            let mut chain = Chain::default();
            let (mut sent, mut last) = (Vec::new(), 0);
            for seq in 1..=count {
                // One in eight numbers is a void.
                if !random.one_in(8) {
                    chain.push(Link { seq, after: last, message: () });
                    sent.push(seq);
                    last = seq;
                }
            }
            let (mut now, mut network, mut stream, mut arrived) = (0, Vec::new(), Vec::new(), 0);
            while !chain.is_empty() {
                now += 50;
                while let Some(Link { seq, after, .. }) = chain.poll(at(now)) {
                    network.push((*after, *seq));
                }
                for _ in 0..network.len() {
                    let at = usize::try_from(random.below(network.len() as u64)).expect("small");
                    let (after, seq) = if random.one_in(4) { network[at] } else { network.swap_remove(at) };
                    if random.one_in(4) {
                        continue; // lost
                    }
                    match judge(arrived, after, seq) {
                        Arrival::Next => {
                            stream.push(seq);
                            arrived = seq;
                        }
                        Arrival::Repeated => {}
                        Arrival::TooEarly => continue,
                    }
                    if !random.one_in(4) {
                        chain.confirm(arrived);
                    }
                    if network.is_empty() {
                        break;
                    }
                }
            }
            prop_assert_eq!(stream, sent);
        }
    }
}
