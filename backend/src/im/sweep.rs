//! Sweeps: removal of what is gone, one bounded write at a time, and the clock by which messages expire.
//!
//! `im.retention` is 30 days. With a tick, the store is asked for a sweep; when that is durable, the next one follows with the
//! next turn while there is something to remove, and messages of users go in between. The clock of the machine jumps 40 days
//! ahead: nothing is removed for that, because [`RetentionClock`] runs at most twice as fast as time really passes.

use super::store::{Pace, Store, Sweep, SweepNeed, Swept, Write};
use super::waiting::Waiter;
use super::{Im, NOBODY, Output, time_ms};
use crate::server::Now;
use moorline_proto::time::{Duration, Instant};

/// Pause after all conversations were looked at.
const ROUND_PAUSE: Duration = Duration::from_secs(60);
/// Milliseconds that the retention clock may gain in one that really passes, while it is behind the clock of the machine.
const GAIN: u64 = 2;

/// The time by which messages expire: never ahead of the machine's clock, and never faster than [`GAIN`] times real time.
/// A reading that is wrong, or a downtime, therefore only delays expiry; a jump ahead of 40 days expires nothing at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetentionClock {
    /// Unix time in milliseconds; 0: it has not begun.
    at_ms: u64,
    /// Time of the last reading.
    read_at: Option<Instant>,
}

impl RetentionClock {
    /// Goes on from what a store has written down; 0: from the time of the store's last message id.
    pub(super) fn new(written_ms: u64, last_id: u64) -> Self {
        let of_last = if last_id > 0 { time_ms(last_id) } else { 0 };
        Self { at_ms: if written_ms > 0 { written_ms } else { of_last }, read_at: None }
    }

    /// Reads the clock. Returns the time at which messages are judged, in Unix milliseconds.
    pub(super) fn read(&mut self, now: Now) -> u64 {
        if self.at_ms == 0 {
            self.at_ms = now.unix_ms; // a new store: there is nothing to lose
        }
        let passed = self.read_at.map_or(0, |at| now.instant.saturating_since(at).as_millis());
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.read_at = Some(now.instant);
        let most = self.at_ms.saturating_add(passed.saturating_mul(GAIN));
        self.at_ms = self.at_ms.max(most.min(now.unix_ms));
        self.at_ms.min(now.unix_ms)
    }

    /// Time of the clock, to be written down.
    pub(super) const fn at_ms(&self) -> u64 {
        self.at_ms
    }
}

/// Progress of sweeping.
#[derive(Debug)]
pub(super) struct Sweeper {
    clock: RetentionClock,
    is_under_way: bool,
    /// The last sweep has left work for the next turn.
    goes_on: bool,
    /// Begin of the last sweep.
    begun_at: Instant,
    /// All conversations were looked at: the next look.
    next_round: Instant,
    /// Seconds by which the retention clock is behind the machine's.
    behind_s: u64,
}

impl Sweeper {
    pub(super) fn new(store: &impl Store) -> Self {
        Self {
            clock: RetentionClock::new(store.retention_ms(), store.last_id()),
            is_under_way: false,
            goes_on: false,
            begun_at: Instant::ZERO,
            next_round: Instant::ZERO,
            behind_s: 0,
        }
    }

    /// Seconds by which the retention clock is behind the machine's.
    pub(super) const fn behind_s(&self) -> u64 {
        self.behind_s
    }

    /// The store took no batch: the next tick tries again.
    pub(super) fn on_busy(&mut self) {
        (self.is_under_way, self.goes_on) = (false, false);
    }

    /// True: a sweep is to be made now.
    fn is_due(&self, now: Now, need: SweepNeed) -> bool {
        !self.is_under_way
            && match need {
                SweepNeed::Nothing => false,
                SweepNeed::Expiry => self.goes_on || now.instant >= self.next_round,
                SweepNeed::Removal => true,
            }
    }
}

/// Begins a sweep, if one is due.
pub(super) fn sweep<S: Store>(im: &mut Im<S>, now: Now) {
    let need = im.storage.store.sweep_need();
    if !im.sweeper.is_due(now, need) {
        return;
    }
    let judged_ms = im.sweeper.clock.read(now);
    im.sweeper.behind_s = now.unix_ms.saturating_sub(judged_ms) / 1000;
    let sweep = Sweep { id: im.ids.next_now(now), judged_ms, clock_ms: im.sweeper.clock.at_ms() };
    (im.sweeper.is_under_way, im.sweeper.goes_on) = (true, false);
    im.sweeper.begun_at = now.instant;
    im.storage.write(Write::Sweep(sweep), Waiter::Sweep);
}

/// Goes on with what the last sweep has left.
pub(super) fn sweep_on<S: Store>(im: &mut Im<S>, now: Now) {
    if im.sweeper.goes_on {
        sweep(im, now);
    }
}

pub(super) fn on_swept<S: Store>(im: &mut Im<S>, swept: Swept, recipients: &[super::store::Recipient]) {
    let Swept { pace, told, .. } = swept;
    im.sweeper.is_under_way = false;
    im.sweeper.goes_on = pace == Pace::Now;
    if pace == Pace::Later {
        im.sweeper.next_round = im.sweeper.begun_at + ROUND_PAUSE;
    }
    if let Some(stored) = told {
        im.deliveries().on_stored(NOBODY, stored, recipients);
    }
    if im.sweeper.goes_on {
        im.out.put(Output::TurnAgain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn at(passed_ms: u64, unix_ms: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_millis(passed_ms), unix_ms }
    }

    #[test]
    fn a_jump_ahead_gains_no_more_than_the_time_that_passes() {
        let mut clock = RetentionClock::new(0, 0);
        let start = 1_800_000_000_000;
        assert_eq!(clock.read(at(0, start)), start, "a new store");
        assert_eq!(clock.read(at(1000, start + 1000)), start + 1000);
        assert_eq!(
            clock.read(at(2000, start + 40 * DAY_MS)),
            start + 3000,
            "a second passed, and one was gained"
        );
        assert_eq!(clock.read(at(3000, start + 3000)), start + 3000, "the clock is right again");
        assert_eq!(clock.read(at(9000, start + 9000)), start + 9000);
    }

    #[test]
    fn a_jump_back_expires_nothing_and_is_not_remembered() {
        let start = 1_800_000_000_000;
        let mut clock = RetentionClock::new(start, 7);
        assert_eq!(clock.read(at(0, start)), start);
        assert_eq!(clock.read(at(1000, 5)), 5, "nothing is that old");
        assert_eq!((clock.read(at(2000, start + 2000)), clock.at_ms()), (start + 2000, start + 2000));
    }

    #[test]
    fn a_downtime_is_caught_up_at_twice_the_speed() {
        let start = 1_800_000_000_000;
        let mut clock = RetentionClock::new(start, 0);
        assert_eq!(clock.read(at(0, start + 10 * DAY_MS)), start);
        assert_eq!(clock.read(at(DAY_MS, start + 11 * DAY_MS)), start + 2 * DAY_MS);
        assert_eq!(clock.read(at(11 * DAY_MS, start + 21 * DAY_MS)), start + 21 * DAY_MS);
    }

    #[test]
    fn a_store_of_an_earlier_version_begins_with_its_last_message() {
        let last = crate::im::MessageIds::new(1).next(1_750_000_000_000);
        let mut clock = RetentionClock::new(0, last);
        assert_eq!(clock.read(at(0, 1_800_000_000_000)), 1_750_000_000_000);
    }
}
