//! The pace of fan-outs: as fast as the chat beside them allows.
//!
//! People chat while messages of the first rank pass, and answers to them; a group's own messages and their answers do
//! not count. While people chat, the other ranks have as many deliveries in a second as the chat bears. What it
//! bears is measured: the time from a SEND to its answer, of one SEND at a time. Without a fan-out the slow ones of
//! these times are learned; beside a fan-out a slower one lowers the pace, and every other one raises it. So the pace
//! falls to [`RATE_MIN`] only on a machine that has no room, and a machine that has room delivers at its own speed.
//!
//! The state has no clock: the owner tells the time, and how long a slice took.
//!
//! Example: an answer takes up to 0.4 ms while no fan-out is under way. A group of 10,000 gets a message. At 24,000
//! deliveries a second answers take 0.3 ms, so the pace rises; at 60,000 some take 0.6 ms, and it stays about there.

use crate::messages::Rank;
use moorline_proto::cost::Cost;
use moorline_proto::ids::{ConnKey, Seq};
use moorline_proto::time::{Duration, Instant, nanos_of};
use std::ops::RangeInclusive;

/// Time after a message of the first rank during which people count as chatting.
const CHAT: Duration = Duration::from_millis(10);
/// Deliveries a second while people chat: the least, and the most.
const RATE_MIN: u64 = 24_000;
const RATE_MAX: u64 = 1_000_000;
/// A slow answer takes one part of this many from the pace, and every other one adds a part of [`RAISE_PARTS`].
const LOWER_PARTS: u64 = 8;
const RAISE_PARTS: u64 = 128;
/// Time in which all that waits is to be delivered: a longer queue has a faster pace, whatever the chat bears.
const DRAIN: Duration = Duration::from_secs(1);
/// Unused pace that is kept, so that a reactor that slept a little too long catches up.
const BURST: Duration = Duration::from_millis(2);
/// Deliveries for which a paced fan-out waits, rather than to wake for each one.
const PACED_MIN: usize = 8;
/// Time of one slice while people chat, and otherwise: a message waits for one slice at most.
const CHAT_SLICE: Duration = Duration::from_micros(100);
const FREE_SLICE: Duration = Duration::from_millis(1);
/// Bounds of a slice in deliveries.
const SLICE_MIN: usize = 8;
const SLICE_MAX: usize = 512;
/// Time of the deadlines that are acted upon in one turn while people chat, and otherwise.
const CHAT_DUE: Duration = Duration::from_micros(400);
const FREE_DUE: Duration = Duration::from_millis(1);
/// Bounds of the deadlines of one turn.
const DUE_MIN: usize = 32;
const DUE_MAX: usize = 1_024;
/// Time of a delivery before one was measured, and the bounds of a measured one, in nanoseconds.
const COST_START: u64 = 6_000;
const COST_BOUNDS: RangeInclusive<u64> = 500..=100_000;
/// Time after a slice during which answers are beside a fan-out: its receivers acknowledge.
const BESIDE: Duration = Duration::from_millis(20);
/// Time of a slow answer without a fan-out before one was learned, and its bounds, in nanoseconds.
const CALM_START: u64 = 1_000_000;
const CALM_MIN: u64 = 200_000;
const CALM_MAX: u64 = 20_000_000;
/// An answer is slow that takes longer than this share of the slow ones without a fan-out, in percent.
const SLOW_PERCENT: u64 = 125;
/// Number of answers of which one is above the learned time.
const CALM_RARE: u64 = 20;
/// Each answer moves the learned time by one part of this many at most.
const CALM_PARTS: u64 = 32;
/// Age at which a SEND without an answer is not waited for any longer.
const ASKED_MAX: Duration = Duration::from_secs(1);

/// Pace of the fan-outs of one shard.
#[derive(Debug)]
pub(super) struct Pace {
    /// End of the time in which people chat.
    chat_until: Instant,
    /// Deliveries a second while people chat.
    rate: u64,
    /// Time up to which the pace is used.
    used_until: Instant,
    /// Time of a delivery.
    cost: Cost,
    /// Deliveries of the last slice that was not measured yet.
    slice: usize,
    /// Time of the last slice.
    slice_at: Option<Instant>,
    /// Time below which all but one in [`CALM_RARE`] answers come without a fan-out, in nanoseconds.
    calm: u64,
    /// The SEND whose answer is waited for; `None`: the next one is.
    asked: Option<Asked>,
}

/// A SEND whose answer is measured.
#[derive(Clone, Copy, Debug)]
struct Asked {
    key: ConnKey,
    cid: Seq,
    at: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            chat_until: Instant::ZERO,
            rate: RATE_MIN,
            used_until: Instant::ZERO,
            cost: Cost::new(COST_START, COST_BOUNDS),
            slice: 0,
            slice_at: None,
            calm: CALM_START,
            asked: None,
        }
    }
}

impl Pace {
    /// Notes a message of the first rank.
    pub(super) fn on_chat(&mut self, now: Instant) {
        self.chat_until = now + CHAT;
    }

    /// End of the time in which people chat.
    pub(super) const fn chat_until(&self) -> Instant {
        self.chat_until
    }

    /// People chat until `until`.
    pub(super) const fn thaw(&mut self, until: Instant) {
        self.chat_until = until;
    }

    /// Deliveries a second while people chat.
    pub(super) const fn rate(&self) -> u64 {
        self.rate
    }

    /// Notes a SEND on its way to the backend.
    pub(super) fn on_send(&mut self, now: Instant, key: ConnKey, cid: Seq) {
        if self.asked.is_none_or(|asked| now >= asked.at + ASKED_MAX) {
            self.asked = Some(Asked { key, cid, at: now });
        }
    }

    /// Notes an answer of the backend. `cid`: 0 for another request than a SEND.
    pub(super) fn on_answer(&mut self, now: Instant, key: ConnKey, cid: Seq, rank: Rank) {
        if rank == Rank::First {
            self.on_chat(now);
        }
        let Some(asked) = self.asked.take_if(|asked| asked.key == key && asked.cid == cid) else { return };
        if rank == Rank::First {
            self.learn(asked.at, nanos_of(now.saturating_since(asked.at)));
        }
    }

    /// Learns from the answer to a SEND of `at`.
    fn learn(&mut self, at: Instant, took: u64) {
        if self.slice_at.is_some_and(|slice_at| slice_at + BESIDE >= at) {
            let is_slow = took > self.calm * SLOW_PERCENT / 100;
            self.rate = if is_slow {
                self.rate - self.rate / LOWER_PARTS
            } else {
                self.rate + self.rate / RAISE_PARTS
            };
            self.rate = self.rate.clamp(RATE_MIN, RATE_MAX);
            return;
        }
        // A quantile by small steps: up for the rare ones, down for the others, in the proportion of their numbers.
        let step = self.calm / CALM_PARTS;
        self.calm = if took > self.calm { self.calm + step } else { self.calm - step / (CALM_RARE - 1) };
        self.calm = self.calm.clamp(CALM_MIN, CALM_MAX);
    }

    /// Number of deliveries that may be made now, of `waiting` ones, and the time of the next slice.
    pub(super) fn next_slice(&mut self, now: Instant, waiting: usize) -> (usize, Instant) {
        if now >= self.chat_until {
            return (self.free_slice(), now);
        }
        let drain = waiting as u64 * 1_000_000_000 / nanos_of(DRAIN);
        let gap = 1_000_000_000 / self.rate.max(drain).min(RATE_MAX);
        let floor = Instant::from_nanos(now.as_nanos().saturating_sub(nanos_of(BURST)));
        let used_until = self.used_until.max(floor);
        let credit = nanos_of(now.saturating_since(used_until)) / gap;
        let credit = usize::try_from(credit).unwrap_or(usize::MAX);
        let count = self.room(CHAT_SLICE).min(credit);
        let least = PACED_MIN.min(waiting);
        if count < least {
            return (0, used_until + Duration::from_nanos(gap * least as u64));
        }
        self.used_until = used_until + Duration::from_nanos(gap * count as u64);
        let due = if credit - count >= PACED_MIN {
            now
        } else {
            self.used_until + Duration::from_nanos(gap * PACED_MIN as u64)
        };
        (count, due)
    }

    /// Notes the deliveries of a slice.
    pub(super) fn on_slice(&mut self, now: Instant, deliveries: usize) {
        if deliveries > 0 {
            (self.slice, self.slice_at) = (deliveries, Some(now));
        }
    }

    /// Takes the time that the last slice took, its writes included.
    pub(super) fn on_slice_done(&mut self, took: Duration) {
        self.cost.measure(took, std::mem::take(&mut self.slice));
    }

    /// Number of due deadlines that may be acted upon in one turn: each may cause a write.
    pub(super) fn due_per_turn(&self, now: Instant) -> usize {
        let time = if now < self.chat_until { CHAT_DUE } else { FREE_DUE };
        self.cost.fits(time).clamp(DUE_MIN, DUE_MAX)
    }

    /// Number of deliveries of a slice without a pace.
    pub(super) fn free_slice(&self) -> usize {
        self.room(FREE_SLICE)
    }

    /// Number of deliveries of a slice of this time.
    fn room(&self, time: Duration) -> usize {
        self.cost.fits(time).clamp(SLICE_MIN, SLICE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;
    use moorline_proto::random::Random;

    const MICRO: u64 = 1_000;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + micros * MICRO)
    }

    fn key() -> ConnKey {
        ConnKey::new(ShardId(0), 1, 1)
    }

    /// Measures one answer that takes `micros` microseconds.
    fn answer(pace: &mut Pace, now: u64, micros: u64, rank: Rank) {
        pace.on_send(at(now), key(), 7);
        pace.on_answer(at(now + micros), key(), 7, rank);
    }

    /// A machine on which answers take 400 to 500 us, and longer the more deliveries are made in a second:
    /// `slow_micros` more at a million. Returns the pace after a time without a fan-out and one beside it.
    fn settled(slow_micros: u64) -> u64 {
        let (mut pace, mut random, mut now) = (Pace::default(), Random::new(3), 0);
        for _ in 0..2_000 {
            now += 1_000;
            answer(&mut pace, now, 400 + random.below(100), Rank::First);
        }
        for _ in 0..4_000 {
            now += 1_000;
            let (count, _) = pace.next_slice(at(now), 10_000);
            pace.on_slice(at(now), count);
            let took = 400 + random.below(100) + slow_micros * pace.rate() / RATE_MAX;
            answer(&mut pace, now, took, Rank::First);
        }
        pace.rate()
    }

    #[test]
    fn a_machine_that_has_room_lifts_the_pace() {
        assert_eq!(settled(0), RATE_MAX);
    }

    #[test]
    fn the_pace_settles_where_answers_become_slow() {
        let rate = settled(1_000);
        assert!((60_000..250_000).contains(&rate), "answers are slow from 100,000 a second on: {rate}");
        assert!(settled(60_000) < 30_000, "a machine without room");
    }

    #[test]
    fn answers_to_messages_of_groups_tell_nothing_and_set_no_pace() {
        let mut pace = Pace::default();
        let (count, due) = pace.next_slice(at(0), 1_000);
        pace.on_slice(at(0), count);
        for rank in [Rank::Second, Rank::Last] {
            answer(&mut pace, 10, 900_000, rank);
        }
        assert_eq!((pace.rate(), pace.chat_until()), (RATE_MIN, Instant::ZERO));
        assert!(count > 100 && due == at(0), "without a chat a slice follows the other: {count}");
        answer(&mut pace, 1_000_000, 100, Rank::First);
        assert!(pace.next_slice(at(1_000_200), 1_000).0 <= 20);
    }

    #[test]
    fn a_paced_fan_out_waits_for_some_deliveries_and_catches_up_after_a_sleep() {
        let mut pace = Pace::default();
        pace.on_chat(at(10_000));
        let (mut made, mut now) = (0, 10_000);
        while now < 15_000 {
            pace.on_chat(at(now));
            let (count, due) = pace.next_slice(at(now), 10_000);
            made += count;
            assert!(count == 0 || count >= PACED_MIN, "{count}");
            // A system that wakes the reactor up to a millisecond late.
            now = if due <= at(now) { now + 50 } else { (due.as_nanos() - at(0).as_nanos()) / MICRO + 900 };
        }
        let expected = 120; // RATE_MIN for 5 ms
        assert!(made >= expected * 3 / 4 && made <= expected * 3 / 2 + 48, "{made} of {expected}");
    }

    #[test]
    fn a_queue_that_would_take_longer_than_a_second_has_a_faster_pace() {
        let mut pace = Pace::default();
        let (mut made, mut now) = (0, 10_000);
        while now < 110_000 {
            pace.on_chat(at(now));
            made += pace.next_slice(at(now), 200_000).0;
            now += 50;
        }
        assert!((18_000..24_000).contains(&made), "{made} in 100 ms");
    }

    #[test]
    fn a_slice_is_a_time_and_follows_what_a_delivery_costs() {
        let mut pace = Pace::default();
        let fast = pace.next_slice(at(0), 1_000).0;
        for _ in 0..60 {
            pace.on_slice(at(0), 100);
            pace.on_slice_done(Duration::from_millis(5));
        }
        let slow = pace.next_slice(at(0), 1_000).0;
        assert!(fast > 100 && (18..=24).contains(&slow), "{fast} {slow}");
        assert_eq!(pace.due_per_turn(at(0)), DUE_MIN);
        pace.on_slice_done(Duration::from_secs(9));
        assert_eq!(pace.next_slice(at(0), 1_000).0, slow, "a slice is measured once");
    }

    #[test]
    fn a_send_without_an_answer_is_given_up_after_a_second() {
        let mut pace = Pace::default();
        pace.on_send(at(0), key(), 1);
        pace.on_send(at(10), key(), 2);
        assert_eq!(pace.asked.map(|asked| asked.cid), Some(1));
        pace.on_send(at(1_000_000), key(), 3);
        assert_eq!(pace.asked.map(|asked| asked.cid), Some(3));
    }
}
