//! Which link speaks for which users: 64 slots of pins, each on one link at a time. Pure.
//!
//! ```text
//! Unassigned --assign--> Announcing(link) --set_live--> Live(link)
//!      ^                    |   ^                          |
//!      +----free_of (dead)--+   +---- rebalance (idle) ----+
//!      +-------------------------- free_of (dead) ---------+
//! ```

use moorline_proto::ids::Pin;

/// Slots of one worker.
pub const SLOTS: usize = 64;

/// One group of pins ([`Pin::slot`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot of a pin.
    #[allow(clippy::cast_possible_truncation)] // below 64
    pub const fn of(pin: Pin) -> Self {
        Self(pin.slot() as u8)
    }

    /// As an index into per-slot arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of slots; bit i is slot i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(u64);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self(0);

    /// As it crosses threads.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Adds one.
    pub const fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }

    /// Takes one out.
    pub const fn remove(&mut self, slot: Slot) {
        self.0 &= !(1 << slot.0);
    }

    /// Whether it is in.
    pub const fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }

    /// Whether none is in.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Every member once, beginning at number `first` (modulo 64) and going round.
    #[allow(clippy::cast_possible_truncation)] // all below 64
    pub fn iter_from(self, first: usize) -> impl Iterator<Item = Slot> {
        let first = (first % SLOTS) as u8;
        let mut rest = self.0.rotate_right(u32::from(first));
        std::iter::from_fn(move || {
            let next = (rest != 0).then(|| rest.trailing_zeros() as u8)?;
            rest &= rest - 1;
            Some(Slot((next + first) % SLOTS as u8))
        })
    }

    /// Every member, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        self.iter_from(0)
    }
}

/// A link of one worker, by its place in the worker's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkIndex(pub u16);

impl LinkIndex {
    /// As an index into per-link arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// No link can take it.
    Unassigned,
    /// On this link once its logins are announced there.
    Announcing(LinkIndex),
    /// On this link.
    Live(LinkIndex),
}

/// The slots of one worker.
#[derive(Debug)]
pub struct Slots {
    seats: [Seat; SLOTS],
    waiting: [u32; SLOTS],
}

/// Slots that go to a link, to be announced there.
pub type Moves = Vec<(LinkIndex, SlotSet)>;

impl Default for Slots {
    fn default() -> Self {
        Self { seats: [Seat::Unassigned; SLOTS], waiting: [0; SLOTS] }
    }
}

impl Slots {
    /// Where a slot is.
    pub const fn seat(&self, slot: Slot) -> Seat {
        self.seats[slot.index()]
    }

    /// One more question of this slot waits for its answer.
    pub const fn on_asked(&mut self, slot: Slot) {
        self.waiting[slot.index()] += 1;
    }

    /// One fewer.
    pub const fn on_settled(&mut self, slot: Slot) {
        self.waiting[slot.index()] -= 1;
    }

    /// Slots with unanswered questions.
    pub fn busy(&self) -> SlotSet {
        self.select(|slot, _| self.waiting[slot.index()] > 0)
    }

    /// Slots that are live on `link`.
    pub fn live_on(&self, link: LinkIndex) -> SlotSet {
        self.select(|_, seat| seat == Seat::Live(link))
    }

    /// `link` is dead: its slots are without one. Returns them.
    pub fn free_of(&mut self, link: LinkIndex) -> SlotSet {
        let freed =
            self.select(|_, seat| matches!(seat, Seat::Announcing(on) | Seat::Live(on) if on == link));
        freed.iter().for_each(|slot| self.seats[slot.index()] = Seat::Unassigned);
        freed
    }

    /// Gives every slot without a link to the least loaded of `targets`.
    pub fn assign(&mut self, targets: &[LinkIndex]) -> Moves {
        let free = self.select(|_, seat| seat == Seat::Unassigned);
        self.place(free, targets, |_, _| true)
    }

    /// Moves live slots outside `busy` toward an even spread over `targets`, and off links that are
    /// no targets.
    pub fn rebalance(&mut self, targets: &[LinkIndex], busy: SlotSet) -> Moves {
        let movable = self.select(|slot, seat| matches!(seat, Seat::Live(_)) && !busy.contains(slot));
        self.place(movable, targets, |here, best| here.is_none_or(|here| here >= best + 2))
    }

    /// Whether [`Self::rebalance`] would have nothing to move even if no slot were busy.
    pub fn is_balanced(&self, targets: &[LinkIndex]) -> bool {
        let loads: Vec<usize> = targets.iter().map(|link| self.load(*link)).collect();
        let (least, most) = (loads.iter().min(), loads.iter().max());
        let is_even = least.zip(most).is_none_or(|(least, most)| most - least < 2);
        is_even && (targets.is_empty() || loads.iter().sum::<usize>() == SLOTS)
    }

    /// These slots wait for a new announcement on the link they are on.
    pub fn set_announcing(&mut self, slot: Slot) -> Option<LinkIndex> {
        let seat = &mut self.seats[slot.index()];
        let (Seat::Announcing(link) | Seat::Live(link)) = *seat else { return None };
        *seat = Seat::Announcing(link);
        Some(link)
    }

    /// The backend knows every login of these slots.
    pub fn set_live(&mut self, slots: SlotSet) {
        for slot in slots.iter() {
            if let Seat::Announcing(link) = self.seats[slot.index()] {
                self.seats[slot.index()] = Seat::Live(link);
            }
        }
    }

    /// Puts `slots` one by one on the least loaded target if `is_worth(load here, load there)`; the
    /// load here is `None` for a slot whose link is no target.
    fn place(
        &mut self,
        slots: SlotSet,
        targets: &[LinkIndex],
        is_worth: impl Fn(Option<usize>, usize) -> bool,
    ) -> Moves {
        let mut loads: Vec<usize> = targets.iter().map(|link| self.load(*link)).collect();
        let mut moves: Moves = Vec::new();
        for slot in slots.iter() {
            let Some((best, load)) = loads.iter().copied().enumerate().min_by_key(|(_, load)| *load) else {
                break;
            };
            let here = match self.seat(slot) {
                Seat::Live(link) | Seat::Announcing(link) => targets.iter().position(|to| *to == link),
                Seat::Unassigned => None,
            };
            if !is_worth(here.map(|here| loads[here]), load) {
                continue;
            }
            if let Some(here) = here {
                loads[here] -= 1;
            }
            loads[best] += 1;
            self.seats[slot.index()] = Seat::Announcing(targets[best]);
            match moves.iter_mut().find(|(to, _)| *to == targets[best]) {
                Some((_, set)) => set.insert(slot),
                None => moves.push((targets[best], SlotSet(1 << slot.0))),
            }
        }
        moves
    }

    fn load(&self, link: LinkIndex) -> usize {
        let is_on = |seat: &&Seat| matches!(seat, Seat::Announcing(on) | Seat::Live(on) if *on == link);
        self.seats.iter().filter(is_on).count()
    }

    fn select(&self, is_in: impl Fn(Slot, Seat) -> bool) -> SlotSet {
        let mut set = SlotSet::EMPTY;
        for (number, seat) in (0u8..).zip(self.seats) {
            if is_in(Slot(number), seat) {
                set.insert(Slot(number));
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: LinkIndex = LinkIndex(0);
    const B: LinkIndex = LinkIndex(1);
    const C: LinkIndex = LinkIndex(2);

    fn settle(slots: &mut Slots, moves: &Moves) {
        for (_, set) in moves {
            slots.set_live(*set);
        }
    }

    #[test]
    fn a_lost_link_gives_its_slots_away_and_takes_idle_ones_back() {
        let mut slots = Slots::default();
        assert!(slots.assign(&[]).is_empty());
        let moves = slots.assign(&[A, B]);
        assert_eq!(moves.iter().map(|(_, set)| set.iter().count()).collect::<Vec<_>>(), [32, 32]);
        settle(&mut slots, &moves);
        assert!(slots.is_balanced(&[A, B]) && slots.rebalance(&[A, B], SlotSet::EMPTY).is_empty());
        assert_eq!(slots.free_of(A).iter().count(), 32);
        let moves = slots.assign(&[B]);
        assert_eq!(moves.len(), 1);
        settle(&mut slots, &moves);
        assert_eq!(slots.live_on(B).bits(), u64::MAX);
        assert!(!slots.is_balanced(&[A, B]));
        let busy = SlotSet(0xFFFF_FFFF_FFFF);
        let moves = slots.rebalance(&[A, B], busy);
        assert_eq!(moves, [(A, SlotSet(!busy.bits()))], "busy slots stay");
    }

    #[test]
    fn slots_leave_a_draining_link_as_they_fall_idle() {
        let mut slots = Slots::default();
        let moves = slots.assign(&[A]);
        settle(&mut slots, &moves);
        let slot = Slot::of(Pin(5 << 8));
        slots.on_asked(slot);
        assert_eq!(slots.busy(), SlotSet(1 << 5));
        let moves = slots.rebalance(&[B], slots.busy());
        assert_eq!(moves, [(B, SlotSet(!(1 << 5)))]);
        assert!(!slots.is_balanced(&[B]));
        slots.on_settled(slot);
        assert_eq!(slots.rebalance(&[B], slots.busy()), [(B, SlotSet(1 << 5))]);
        assert!(slots.is_balanced(&[B]));
    }

    #[test]
    fn a_round_trip_begins_where_it_is_told() {
        let set = SlotSet(1 | 1 << 5 | 1 << 63);
        assert_eq!(set.iter_from(6).map(Slot::index).collect::<Vec<_>>(), [63, 0, 5]);
        assert_eq!(set.iter().map(Slot::index).collect::<Vec<_>>(), [0, 5, 63]);
    }

    proptest! {
        /// Links come, go and drain in any order: no slot is ever on a dead link, and an idle worker
        /// with a target ends balanced.
        #[test]
        fn slots_are_only_on_links_that_live(steps in proptest::collection::vec((0u16..3, any::<bool>()), 1..60)) {
            let (mut slots, mut up) = (Slots::default(), Vec::new());
            for (link, comes) in steps {
                let link = LinkIndex(link);
                up.retain(|other| *other != link);
                if comes { up.push(link) } else { _ = slots.free_of(link) }
                let moves = slots.assign(&up);
                settle(&mut slots, &moves);
                let moves = slots.rebalance(&up, SlotSet::EMPTY);
                settle(&mut slots, &moves);
                prop_assert!(slots.is_balanced(&up));
                for link in [A, B, C] {
                    prop_assert!(up.contains(&link) || slots.live_on(link).is_empty());
                }
                let total: usize = up.iter().map(|link| slots.live_on(*link).iter().count()).sum();
                prop_assert_eq!(total, if up.is_empty() { 0 } else { SLOTS });
            }
        }
    }
}
