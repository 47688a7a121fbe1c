//! Frames that wait for a link, slot by slot, in order. Pure.
//!
//! UPs wait here when their slot has no announced link, or the link has no credit or no room. Login
//! changes that come behind them wait in the same line. Bounded by [`ParkingLimits`].

use super::{End, Slot, SlotSet, Split, Up};
use bytes::Bytes;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::ConnUp;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Limits of waiting frames.
#[derive(Clone, Copy, Debug)]
pub struct ParkingLimits {
    /// UPs; more are refused.
    pub frames: usize,
    /// Bytes of the bodies; more are refused.
    pub bytes: usize,
    /// Login changes; above it their slot is announced anew, or its link given up. At twice this number all links are.
    pub changes: usize,
}

/// One thing that waits.
#[derive(Debug)]
pub(super) enum Parked {
    Up(Up),
    Change(Change),
}

/// A login began or ended.
#[derive(Debug)]
pub(super) enum Change {
    Up(Box<ConnUp>),
    Down { key: ConnKey, code: u32 },
}

/// The lines of all slots.
#[derive(Debug)]
pub(super) struct Parking {
    lines: Box<[VecDeque<Parked>]>,
    occupied: SlotSet,
    limits: ParkingLimits,
    up_timeout: Duration,
    earliest: Instant,
    frames: usize,
    bytes: usize,
    changes: usize,
    /// Logins that began, by slot.
    logins: Box<[usize]>,
}

impl Parking {
    pub(super) fn new(limits: ParkingLimits, up_timeout: Duration, split: Split) -> Self {
        Self {
            lines: std::iter::repeat_with(VecDeque::new).take(split.slots()).collect(),
            occupied: SlotSet::EMPTY,
            limits,
            up_timeout,
            earliest: Instant::FAR_FUTURE,
            frames: 0,
            bytes: 0,
            changes: 0,
            logins: vec![0; split.slots()].into(),
        }
    }

    /// Slots with something waiting.
    pub(super) const fn occupied(&self) -> SlotSet {
        self.occupied
    }

    /// UPs that wait.
    pub(super) const fn frames(&self) -> usize {
        self.frames
    }

    /// Bytes of the bodies.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of waiting items of one slot, login changes included.
    pub(super) fn len_of(&self, slot: Slot) -> usize {
        self.lines[slot.index()].len()
    }

    /// True if nothing of this slot waits.
    pub(super) const fn is_empty(&self, slot: Slot) -> bool {
        !self.occupied.contains(slot)
    }

    /// Puts an UP at the end of its line, or gives it back: too many wait.
    pub(super) fn try_park(&mut self, mut up: Up) -> Result<(), Up> {
        if self.frames >= self.limits.frames || self.bytes + up.body.len() > self.limits.bytes {
            return Err(up);
        }
        // A small body that waits would keep the whole block that it was read into.
        up.body = Bytes::copy_from_slice(&up.body);
        self.note_up(&up);
        self.occupied.insert(up.slot);
        self.lines[up.slot.index()].push_back(Parked::Up(up));
        Ok(())
    }

    /// Puts an UP back to the head of its line. Never refused: what was on a link is bounded by that
    /// link's credit.
    pub(super) fn requeue(&mut self, up: Up) {
        self.note_up(&up);
        self.occupied.insert(up.slot);
        self.lines[up.slot.index()].push_front(Parked::Up(up));
    }

    /// Puts the end of a login back to the head of its line. Never refused: what a link remembers is bounded.
    pub(super) fn requeue_end(&mut self, end: End) {
        let End { slot, key, code } = end;
        self.changes += 1;
        self.occupied.insert(slot);
        self.lines[slot.index()].push_front(Parked::Change(Change::Down { key, code }));
    }

    /// Puts a login change at the end of a slot's line, or gives it back: too many wait.
    pub(super) fn try_park_change(&mut self, slot: Slot, change: Change) -> Result<(), Change> {
        if self.changes >= self.limits.changes {
            return Err(change);
        }
        self.park_change(slot, change);
        Ok(())
    }

    /// True if [`Self::park_change`] may be called.
    pub(super) const fn has_spare(&self) -> bool {
        self.changes < self.limits.changes.saturating_mul(2)
    }

    /// Puts a login change that may not be lost at the end of a slot's line, above the limit.
    pub(super) fn park_change(&mut self, slot: Slot, change: Change) {
        self.note_change(slot, &change);
        self.occupied.insert(slot);
        self.lines[slot.index()].push_back(Parked::Change(change));
    }

    /// Forgets every login change. Returns how many.
    pub(super) fn drop_changes(&mut self) -> usize {
        for slot in self.occupied.iter() {
            let line = &mut self.lines[slot.index()];
            line.retain(|parked| matches!(parked, Parked::Up(_)));
            if line.is_empty() {
                self.occupied.remove(slot);
            }
        }
        self.logins.fill(0);
        std::mem::take(&mut self.changes)
    }

    /// Every line from its head on.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Parked)> {
        let line = |slot: Slot| self.lines[slot.index()].iter().map(move |parked| (slot, parked));
        self.occupied.iter().flat_map(line)
    }

    /// Puts what another process had parked at the end of its line, whatever the limits are now.
    pub(super) fn thaw(&mut self, slot: Slot, parked: Parked) {
        match &parked {
            Parked::Up(up) => self.note_up(up),
            Parked::Change(change) => self.note_change(slot, change),
        }
        self.occupied.insert(slot);
        self.lines[slot.index()].push_back(parked);
    }

    /// The head of a line.
    pub(super) fn front(&self, slot: Slot) -> Option<&Parked> {
        self.lines[slot.index()].front()
    }

    /// Takes the head of a line.
    pub(super) fn pop(&mut self, slot: Slot) -> Option<Parked> {
        let parked = self.lines[slot.index()].pop_front()?;
        match &parked {
            Parked::Up(up) => {
                self.frames -= 1;
                self.bytes -= up.body.len();
            }
            Parked::Change(change) => {
                self.changes -= 1;
                self.logins[slot.index()] -= usize::from(matches!(change, Change::Up(_)));
            }
        }
        if self.lines[slot.index()].is_empty() {
            self.occupied.remove(slot);
            self.lines[slot.index()].shrink_to(1024);
        }
        if self.occupied.is_empty() {
            self.earliest = Instant::FAR_FUTURE;
        }
        Some(parked)
    }

    /// Forgets the logins that began in a slot: it is announced anew, which names those that last.
    /// What ended is still to be told. Returns how many.
    pub(super) fn drop_logins(&mut self, slot: Slot) -> usize {
        let dropped = std::mem::take(&mut self.logins[slot.index()]);
        if dropped == 0 {
            return 0;
        }
        let line = &mut self.lines[slot.index()];
        line.retain(|parked| !matches!(parked, Parked::Change(Change::Up(_))));
        self.changes -= dropped;
        if line.is_empty() {
            self.occupied.remove(slot);
        }
        dropped
    }

    /// A moment before which [`Self::expire`] has nothing to do.
    pub(super) const fn next_deadline(&self) -> Instant {
        self.earliest
    }

    /// Gives every UP whose time is up to `on_timeout`, in order per slot.
    pub(super) fn expire(&mut self, now: Instant, mut on_timeout: impl FnMut(Up)) {
        if now < self.earliest {
            return;
        }
        let mut earliest = Instant::FAR_FUTURE;
        for slot in self.occupied.iter() {
            earliest = earliest.min(self.expire_line(slot, now, &mut on_timeout));
        }
        self.earliest = earliest;
    }

    /// UPs of one line fall due in order; login changes before them are stepped over.
    fn expire_line(&mut self, slot: Slot, now: Instant, on_timeout: &mut impl FnMut(Up)) -> Instant {
        let mut changes = Vec::new();
        let next = loop {
            match self.front(slot) {
                None => break Instant::FAR_FUTURE,
                Some(Parked::Up(up)) if up.taken_at + self.up_timeout > now => {
                    break up.taken_at + self.up_timeout;
                }
                Some(_) => {}
            }
            match self.pop(slot) {
                Some(Parked::Up(up)) => on_timeout(up),
                Some(Parked::Change(change)) => changes.push(change),
                None => {}
            }
        };
        for change in changes.into_iter().rev() {
            self.note_change(slot, &change);
            self.occupied.insert(slot);
            self.lines[slot.index()].push_front(Parked::Change(change));
        }
        next
    }

    /// Panics if the counts contradict the lines.
    pub(super) fn check(&self) {
        let (mut frames, mut bytes, mut changes) = (0, 0, 0);
        for (number, line) in (0..).zip(&self.lines) {
            let slot = Slot::at(number).expect("a slot");
            assert_eq!(
                line.is_empty(),
                self.is_empty(slot),
                "slot {number} is listed as occupied, or is not"
            );
            let mut logins = 0;
            for parked in line {
                match parked {
                    Parked::Up(up) => (frames, bytes) = (frames + 1, bytes + up.body.len()),
                    Parked::Change(change) => {
                        changes += 1;
                        logins += usize::from(matches!(change, Change::Up(_)));
                    }
                }
            }
            assert_eq!(logins, self.logins[slot.index()], "logins of slot {number}");
        }
        assert_eq!((frames, bytes, changes), (self.frames, self.bytes, self.changes), "parked items");
    }

    fn note_change(&mut self, slot: Slot, change: &Change) {
        self.changes += 1;
        self.logins[slot.index()] += usize::from(matches!(change, Change::Up(_)));
    }

    fn note_up(&mut self, up: &Up) {
        self.frames += 1;
        self.bytes += up.body.len();
        self.earliest = self.earliest.min(up.taken_at + self.up_timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use moorline_proto::frame::Command;
    use moorline_proto::ids::Pin;

    fn up(slot: u32, number: u32, taken_at_s: u64) -> Up {
        Up {
            key: ConnKey::from_u64(1),
            slot: Split::Plain.slot_of(Pin(slot << 8)),
            command: Command::Send,
            number,
            is_dup: false,
            taken_at: Instant::from_nanos(taken_at_s * 1_000_000_000),
            body: Bytes::from_static(b"0123456789"),
        }
    }

    fn parking(frames: usize, bytes: usize, changes: usize) -> Parking {
        Parking::new(ParkingLimits { frames, bytes, changes }, Duration::from_secs(3), Split::Plain)
    }

    fn numbers(parking: &mut Parking, slot: u32) -> Vec<u32> {
        let number = |parked| match parked {
            Parked::Up(up) => up.number,
            Parked::Change(_) => 0,
        };
        std::iter::from_fn(|| parking.pop(Split::Plain.slot_of(Pin(slot << 8)))).map(number).collect()
    }

    #[test]
    fn lines_keep_their_order_with_what_came_back_ahead() {
        let mut parking = parking(10, 1_000, 10);
        let slot = Split::Plain.slot_of(Pin(0));
        parking.try_park(up(0, 3, 0)).expect("room");
        parking.try_park_change(slot, Change::Down { key: ConnKey::from_u64(1), code: 0 }).expect("room");
        parking.try_park(up(1, 9, 0)).expect("room");
        for number in [2, 1] {
            parking.requeue(up(0, number, 0));
        }
        assert_eq!(parking.occupied().words(), [0b11]);
        assert_eq!(numbers(&mut parking, 0), [1, 2, 3, 0]);
        assert_eq!(numbers(&mut parking, 1), [9]);
        assert!(parking.occupied().is_empty() && parking.frames() == 0 && parking.bytes() == 0);
    }

    #[test]
    fn frames_bytes_and_changes_are_bounded() {
        let mut by_frames = parking(2, 1_000, 1);
        assert!(by_frames.try_park(up(0, 1, 0)).is_ok() && by_frames.try_park(up(1, 2, 0)).is_ok());
        assert_eq!(by_frames.try_park(up(2, 3, 0)).expect_err("full").number, 3);
        let mut by_bytes = parking(9, 15, 1);
        assert!(by_bytes.try_park(up(0, 1, 0)).is_ok() && by_bytes.try_park(up(0, 2, 0)).is_err());
        let slot = Split::Plain.slot_of(Pin(0));
        let (login, down) =
            (|| Change::Up(Box::default()), Change::Down { key: ConnKey::from_u64(1), code: 0 });
        assert!(by_bytes.try_park_change(slot, login()).is_ok());
        assert!(by_bytes.try_park_change(slot, login()).is_err());
        assert_eq!(by_bytes.drop_logins(slot), 1);
        assert!(by_bytes.try_park_change(slot, down).is_ok());
        assert_eq!(by_bytes.drop_logins(slot), 0, "an end is told");
    }

    #[test]
    fn ups_time_out_in_order_past_login_changes() {
        let mut parking = parking(10, 1_000, 10);
        let (slot, at) =
            (Split::Plain.slot_of(Pin(0)), |secs: u64| Instant::from_nanos(secs * 1_000_000_000));
        assert_eq!(parking.next_deadline(), Instant::FAR_FUTURE);
        let down = Change::Down { key: ConnKey::from_u64(1), code: 0 };
        parking.try_park_change(slot, down).expect("room");
        for (number, taken) in [(1, 0), (2, 1), (3, 5)] {
            parking.try_park(up(0, number, taken)).expect("room");
        }
        parking.try_park(up(7, 4, 2)).expect("room");
        let mut gone = Vec::new();
        parking.expire(at(2), |up| gone.push(up.number));
        assert!(gone.is_empty() && parking.next_deadline() == at(3));
        parking.expire(at(5), |up| gone.push(up.number));
        assert_eq!((gone, parking.next_deadline()), (vec![1, 2, 4], at(8)));
        assert_eq!(parking.occupied(), {
            let mut only = SlotSet::EMPTY;
            only.insert(slot);
            only
        });
        assert_eq!(numbers(&mut parking, 0), [0, 3]);
    }
}
