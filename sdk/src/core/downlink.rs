//! Downlink numbers of one session: what came, what the application has handled, what to ack.
//!
//! Driven by the inbox. The ack is cumulative over *handled* frames: a frame is acked only when its
//! message, however it came, was handed back by the application.

use super::event::Token;
use moorline_proto::ids::Seq;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::sync::Arc;

/// Largest distance of a downlink seq from the handled base.
pub(super) const SLOTS_MAX: usize = 1024;
/// Handled frames that are acked at once; more of them if all are of the lanes of groups.
const ACK_FRAMES: u32 = 8;
const GROUP_ACK_FRAMES: u32 = 16;

/// Outcome of a reliable frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Not seen, or refused for lack of room.
    Missing,
    /// The frame's message waits behind a hole.
    Held { conversation: Arc<str>, seq: u64 },
    /// A NOTIFY of messages up to this seq that were not pushed: handled when those messages are.
    Notified { conversation: Arc<str>, latest: u64 },
    /// The application has the frame's message.
    Delivered(Token),
    /// Nothing more to do.
    Handled,
}

/// Position of a downlink seq relative to the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Take it.
    New,
    /// Came before.
    Again,
    /// Outside any lawful window.
    Beyond,
}

#[derive(Debug)]
pub(super) struct Downlink {
    delay: Duration,
    /// Longest wait for the ack of a frame of the lanes of groups.
    group_delay: Duration,
    /// Highest number of another lane.
    urgent: Seq,
    /// Every number up to here is handled.
    base: Seq,
    /// Numbers from `base + 1`.
    slots: VecDeque<Slot>,
    unreported: u32,
    /// The gateway wants the ack of this number at once.
    wanted: Seq,
    due: Option<Instant>,
}

impl Downlink {
    /// `delay`: longest wait for an ack; `group_delay`: of a frame of the lanes of groups.
    pub(super) fn new(delay: Duration, group_delay: Duration) -> Self {
        let slots = VecDeque::new();
        Self { delay, group_delay, urgent: 0, base: 0, slots, unreported: 0, wanted: 0, due: None }
    }

    /// The cumulative ack.
    pub(super) const fn base(&self) -> Seq {
        self.base
    }

    /// Bit i: number base + 2 + i is handled.
    pub(super) fn sack(&self) -> u64 {
        let handled = self.slots.iter().skip(1).take(64).map(|slot| u64::from(*slot == Slot::Handled));
        handled.enumerate().fold(0, |bits, (at, bit)| bits | bit << at)
    }

    /// The knowledge of seqs stays: the session may be resumed [P-3.10].
    pub(super) fn on_offline(&mut self) {
        (self.unreported, self.wanted, self.due) = (0, 0, None);
    }

    pub(super) fn on_new_session(&mut self) {
        self.on_offline();
        self.slots = VecDeque::new();
        (self.base, self.urgent) = (0, 0);
    }

    /// Judges a number and makes room for it. `may_wait`: the frame is of the lanes of groups.
    pub(super) fn admit(&mut self, now: Instant, seq: Seq, may_wait: bool) -> Admission {
        let Some(ahead) = seq.checked_sub(self.base).and_then(|ahead| ahead.checked_sub(1)) else {
            self.set_due(now + self.delay); // the gateway missed our ack
            return Admission::Again;
        };
        let at = ahead as usize;
        if at >= SLOTS_MAX {
            return Admission::Beyond;
        }
        if !may_wait {
            self.urgent = self.urgent.max(seq);
        }
        while self.slots.len() <= at {
            self.slots.push_back(Slot::Missing);
        }
        if self.slots[at] == Slot::Missing { Admission::New } else { Admission::Again }
    }

    /// The gateway asks for an ack of `seq`, or of whatever there is if 0.
    pub(super) fn on_ack_wanted(&mut self, now: Instant, seq: Seq) {
        self.wanted = self.wanted.max(seq);
        let is_handled = seq <= self.base;
        self.set_due(if is_handled { now } else { now + self.delay });
    }

    /// Says what became of an admitted number.
    pub(super) fn set(&mut self, now: Instant, seq: Seq, slot: Slot) {
        if seq > self.base {
            self.slots[(seq - self.base - 1) as usize] = slot;
            self.advance(now);
        }
    }

    pub(super) fn on_delivered(&mut self, conversation: &Arc<str>, seq: u64, token: Token) {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Held { conversation: held, seq: at } if *at == seq && held == conversation)
            {
                *slot = Slot::Delivered(token);
            }
        }
    }

    /// Places below `next` were delivered or passed over: nobody will hand the rest back.
    pub(super) fn on_passed(&mut self, now: Instant, conversation: &Arc<str>, next: u64) {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Held { conversation: held, seq } if *seq < next && held == conversation) {
                *slot = Slot::Handled;
            }
        }
        self.advance(now);
    }

    /// Newest seq of each NOTIFY of a conversation that is not handled.
    pub(super) fn notified(&self, conversation: &str) -> Option<u64> {
        let of = |slot: &Slot| match slot {
            Slot::Notified { conversation: told, latest } if **told == *conversation => Some(*latest),
            _ => None,
        };
        self.slots.iter().filter_map(of).min()
    }

    /// Everything up to `latest` is handled.
    pub(super) fn on_told(&mut self, now: Instant, conversation: &str, latest: u64) {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Notified { conversation: told, latest: at } if *at <= latest && **told == *conversation)
            {
                *slot = Slot::Handled;
            }
        }
        self.advance(now);
    }

    pub(super) fn on_handled(&mut self, now: Instant, token: Token) {
        for slot in &mut self.slots {
            if *slot == Slot::Delivered(token) {
                *slot = Slot::Handled;
            }
        }
        self.advance(now);
    }

    fn advance(&mut self, now: Instant) {
        while self.slots.front() == Some(&Slot::Handled) {
            self.slots.pop_front();
            self.base += 1;
            self.unreported += 1;
        }
        if self.unreported == 0 {
            return;
        }
        let is_wanted = self.wanted != 0 && self.wanted <= self.base;
        // Without a number of another lane since the last ack, all that are handled may wait.
        let has_urgent = self.urgent > self.base - self.unreported;
        let (frames, delay) =
            if has_urgent { (ACK_FRAMES, self.delay) } else { (GROUP_ACK_FRAMES, self.group_delay) };
        let is_due = is_wanted || self.unreported >= frames;
        self.set_due(if is_due { now } else { now + delay });
    }

    fn set_due(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Time at which an ack must go out.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// A frame with the current base was sent.
    pub(super) fn on_reported(&mut self) {
        (self.unreported, self.due) = (0, None);
        if self.wanted <= self.base {
            self.wanted = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(200);
    const GROUP_DELAY: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn acks_after_the_delay_after_eight_and_on_request() {
        let mut downlink = Downlink::new(DELAY, GROUP_DELAY);
        for seq in 1..=7 {
            assert_eq!(downlink.admit(at(0), seq, false), Admission::New);
            downlink.set(at(0), seq, Slot::Handled);
        }
        assert_eq!((downlink.base(), downlink.deadline()), (7, Some(at(200))));
        downlink.admit(at(5), 8, false);
        downlink.set(at(5), 8, Slot::Handled);
        assert_eq!(downlink.deadline(), Some(at(5)));
        downlink.on_reported();
        assert_eq!(downlink.deadline(), None);
        downlink.admit(at(6), 9, false);
        downlink.on_ack_wanted(at(6), 9);
        downlink.set(at(6), 9, Slot::Delivered(Token(1)));
        assert_eq!(downlink.deadline(), Some(at(206)));
        downlink.on_handled(at(10), Token(1));
        assert_eq!((downlink.base(), downlink.deadline()), (9, Some(at(10))));
    }

    #[test]
    fn frames_of_groups_wait_for_a_second_or_for_sixteen() {
        let mut downlink = Downlink::new(DELAY, GROUP_DELAY);
        let take = |downlink: &mut Downlink, now, seq, may_wait| {
            assert_eq!(downlink.admit(now, seq, may_wait), Admission::New);
            downlink.set(now, seq, Slot::Handled);
        };
        (1..=15).for_each(|seq| take(&mut downlink, at(5), seq, true));
        assert_eq!(downlink.deadline(), Some(at(1_005)));
        take(&mut downlink, at(7), 16, true);
        assert_eq!(downlink.deadline(), Some(at(7)));
        downlink.on_reported();
        take(&mut downlink, at(10), 17, true);
        assert_eq!(downlink.deadline(), Some(at(1_010)));
        take(&mut downlink, at(20), 18, false);
        assert_eq!(downlink.deadline(), Some(at(220)), "a chat message does not wait for the group");
        downlink.on_reported();
        take(&mut downlink, at(300), 19, true);
        assert_eq!(downlink.deadline(), Some(at(1_300)));
        downlink.on_ack_wanted(at(310), 19);
        assert_eq!(downlink.deadline(), Some(at(310)), "the gateway asks");
    }

    #[test]
    fn what_is_not_handled_holds_the_ack_back() {
        let mut downlink = Downlink::new(DELAY, GROUP_DELAY);
        downlink.admit(at(0), 3, false);
        downlink.set(at(0), 3, Slot::Handled);
        downlink.admit(at(0), 1, false);
        downlink.set(at(0), 1, Slot::Delivered(Token(1)));
        assert_eq!((downlink.base(), downlink.sack()), (0, 0b10));
        downlink.on_handled(at(1), Token(1));
        assert_eq!((downlink.base(), downlink.sack()), (1, 0b1));
        assert_eq!(downlink.admit(at(1), 1, false), Admission::Again);
        assert_eq!(downlink.admit(at(1), 3, false), Admission::Again);
        assert_eq!(downlink.admit(at(1), 2 + 1024, false), Admission::Beyond);
    }
}
