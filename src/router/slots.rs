//! Assignment of users to links: slots of pins, each on one link at a time. Pure.
//!
//! ```text
//! Unassigned --assign--> Announcing(link) --set_live--> Live(link)
//!      ^                    |   ^                          |
//!      +----free_of (dead)--+   +---- rebalance (idle) ----+
//!      +-------------------------- free_of (dead) ---------+
//! ```

use crate::shard_map::Pins;
use moorline_proto::ids::Pin;
use moorline_proto::random::mix;
use moorline_proto::slots::{NodeId, SLOTS, Slot, SlotSet, SlotTable};

/// Slots of one worker whose users are spread over links by a hash of their own.
const PLAIN_SLOTS: usize = 64;

/// Rule that puts users into slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// 64 slots of the worker's own ([`Pin::slot`]).
    Plain,
    /// The 1,024 slots of a cluster.
    Cluster,
}

impl Split {
    /// Returns the rule of pins.
    pub const fn of(pins: Pins) -> Self {
        if matches!(pins, Pins::Cluster) { Self::Cluster } else { Self::Plain }
    }

    /// Number of slots.
    pub(super) const fn slots(self) -> usize {
        match self {
            Self::Plain => PLAIN_SLOTS,
            Self::Cluster => SLOTS,
        }
    }

    /// Returns the slot of a pin.
    pub fn slot_of(self, pin: Pin) -> Slot {
        let number = match self {
            Self::Plain => u64::from(pin.slot()),
            Self::Cluster => pin.cluster_slot().into(),
        };
        Slot::from_number(number).unwrap_or(Slot::FIRST)
    }
}

/// A link of one worker, by its place in the worker's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u16);

impl LinkIndex {
    /// Index into per-link arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// State of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// No link can take it.
    Unassigned,
    /// On this link once its logins are announced there.
    Announcing(LinkIndex),
    /// On this link.
    Live(LinkIndex),
}

/// The slots of one worker.
#[derive(Debug)]
pub(super) struct Slots {
    states: Box<[SlotState]>,
    waiting: Box<[u32]>,
}

/// A link that takes slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Name of the room.
    pub(super) link: LinkIndex,
    /// Weight beside the others; at most [`WEIGHT`] when slots go by hash. Above 0.
    pub(super) weight: u32,
    /// Hash of the endpoint's name, the same in every gateway.
    pub(super) endpoint: u64,
    /// Node of the cluster at the other end.
    pub(super) node: Option<NodeId>,
}

/// Weight of a healthy endpoint.
pub(super) const WEIGHT: u32 = 1_000;

/// Rule that spreads slots over targets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spread<'a> {
    /// In proportion to the weights.
    Weight,
    /// A slot goes to the same endpoint from every worker and gateway that has the same endpoints
    /// (rendezvous hashing, Thaler and Ravishankar, 1998): when one is lost, only its slots move.
    Hash,
    /// A slot goes to a link of the node that owns it, unless it is one of those that wait.
    Owner(&'a SlotTable, &'a SlotSet),
}

/// Slots that go to a link, to be announced there.
pub(super) type Moves = Vec<(LinkIndex, SlotSet)>;

impl Slots {
    /// Slots without links.
    pub(super) fn new(split: Split) -> Self {
        let count = split.slots();
        Self { states: vec![SlotState::Unassigned; count].into(), waiting: vec![0; count].into() }
    }

    /// Every slot's state, as a number: 0 without a link, else 1 + 2 x link, and one more while it is announced.
    pub(super) fn freeze(&self) -> Vec<u32> {
        let Self { states, waiting: _ } = self;
        let number = |state: &SlotState| match state {
            SlotState::Unassigned => 0,
            SlotState::Live(link) => 1 + 2 * u32::from(link.0),
            SlotState::Announcing(link) => 2 + 2 * u32::from(link.0),
        };
        states.iter().map(number).collect()
    }

    /// Restores the slots. `place`: the place that a link has now; a slot on a link without one becomes unassigned.
    pub(super) fn thaw(&mut self, states: &[u32], place: impl Fn(LinkIndex) -> Option<LinkIndex>) {
        for (state, number) in self.states.iter_mut().zip(states) {
            let Some(rest) = number.checked_sub(1) else { continue };
            let link = LinkIndex(u16::try_from(rest / 2).unwrap_or(u16::MAX));
            if let Some(link) = place(link) {
                *state =
                    if rest.is_multiple_of(2) { SlotState::Live(link) } else { SlotState::Announcing(link) };
            }
        }
    }

    /// State of a slot.
    pub(super) fn state(&self, slot: Slot) -> SlotState {
        self.states[slot.index()]
    }

    /// One more question of this slot waits for its answer.
    pub(super) fn on_asked(&mut self, slot: Slot) {
        self.waiting[slot.index()] += 1;
    }

    /// One fewer.
    pub(super) fn on_settled(&mut self, slot: Slot) {
        self.waiting[slot.index()] -= 1;
    }

    /// Unanswered questions of a slot.
    pub(super) fn waiting(&self, slot: Slot) -> u32 {
        self.waiting[slot.index()]
    }

    /// Slots with unanswered questions.
    pub(super) fn busy(&self) -> SlotSet {
        self.select(|slot, _| self.waiting[slot.index()] > 0)
    }

    /// Slots that are live on `link`.
    pub(super) fn live_on(&self, link: LinkIndex) -> SlotSet {
        self.select(|_, state| state == SlotState::Live(link))
    }

    /// `link` is dead: its slots are without one. Returns them.
    pub(super) fn free_of(&mut self, link: LinkIndex) -> SlotSet {
        let freed = self.select(
            |_, state| matches!(state, SlotState::Announcing(on) | SlotState::Live(on) if on == link),
        );
        freed.iter().for_each(|slot| self.states[slot.index()] = SlotState::Unassigned);
        freed
    }

    /// These slots are without a link.
    pub(super) fn free(&mut self, slots: &SlotSet) {
        slots.iter().for_each(|slot| self.states[slot.index()] = SlotState::Unassigned);
    }

    /// Slots without a link.
    pub(super) fn unassigned(&self) -> SlotSet {
        self.select(|_, state| state == SlotState::Unassigned)
    }

    /// Slots of a set that are on a link, or on their way to it.
    pub(super) fn on(&self, link: LinkIndex, of: &SlotSet) -> SlotSet {
        self.select(|slot, state| {
            of.contains(slot)
                && matches!(state, SlotState::Announcing(on) | SlotState::Live(on) if on == link)
        })
    }

    /// Gives every slot without a link to one of `targets`.
    pub(super) fn assign(&mut self, targets: &[Target], spread: Spread<'_>) -> Moves {
        let free = self.unassigned();
        self.place(free, targets, spread)
    }

    /// Moves live slots outside `busy` to their best links, and off links that are not targets.
    pub(super) fn rebalance(&mut self, targets: &[Target], spread: Spread<'_>, busy: SlotSet) -> Moves {
        let movable = self.select(|slot, state| matches!(state, SlotState::Live(_)) && !busy.contains(slot));
        self.place(movable, targets, spread)
    }

    /// Slots that should move, busy or not.
    pub(super) fn away(&self, targets: &[Target], spread: Spread<'_>) -> SlotSet {
        let loads = self.loads(targets);
        self.select(|slot, _| self.better(slot, targets, &loads, spread).is_some())
    }

    /// True if [`Self::rebalance`] would have nothing to move even if no slot were busy.
    #[cfg(test)]
    fn is_balanced(&self, targets: &[Target], spread: Spread<'_>) -> bool {
        self.away(targets, spread).is_empty()
    }

    /// Marks slots that wait for a new announcement on their link.
    pub(super) fn set_announcing(&mut self, slot: Slot) -> Option<LinkIndex> {
        let state = &mut self.states[slot.index()];
        let (SlotState::Announcing(link) | SlotState::Live(link)) = *state else { return None };
        *state = SlotState::Announcing(link);
        Some(link)
    }

    /// The backend knows every login of these slots.
    pub(super) fn set_live(&mut self, slots: SlotSet) {
        for slot in slots.iter() {
            if let SlotState::Announcing(link) = self.states[slot.index()] {
                self.states[slot.index()] = SlotState::Live(link);
            }
        }
    }

    /// Puts `slots` one by one where they should be.
    fn place(&mut self, slots: SlotSet, targets: &[Target], spread: Spread<'_>) -> Moves {
        let mut loads = self.loads(targets);
        let mut moves: Moves = Vec::new();
        for slot in slots.iter() {
            let Some(best) = self.better(slot, targets, &loads, spread) else { continue };
            if let Some(here) = self.place_of(slot, targets) {
                loads[here] -= 1;
            }
            loads[best] += 1;
            let link = targets[best].link;
            self.states[slot.index()] = SlotState::Announcing(link);
            match moves.iter_mut().find(|(to, _)| *to == link) {
                Some((_, set)) => _ = set.insert(slot),
                None => moves.push((link, std::iter::once(slot).collect())),
            }
        }
        moves
    }

    /// The target that a slot should move to; `None`: it should stay.
    fn better(&self, slot: Slot, targets: &[Target], loads: &[u64], spread: Spread<'_>) -> Option<usize> {
        let here = self.place_of(slot, targets);
        match spread {
            Spread::Hash => home(slot, targets).filter(|home| Some(*home) != here),
            Spread::Owner(owners, waiting) => {
                let owner = owners.owner(slot).node.filter(|_| !waiting.contains(slot))?;
                let is_right = |place: &usize| targets[*place].node == Some(owner);
                if here.is_some_and(|here| is_right(&here)) {
                    return None;
                }
                (0..targets.len()).filter(is_right).min_by_key(|place| loads[*place])
            }
            Spread::Weight => {
                // Compared as fractions (load with one more) / weight.
                let filled = |place: usize, load: u64| (load, u64::from(targets[place].weight));
                let is_less = |(a, b): (u64, u64), (c, d): (u64, u64)| a * d < c * b;
                let best = (0..targets.len()).reduce(|best, place| {
                    let is_better = is_less(filled(place, loads[place] + 1), filled(best, loads[best] + 1));
                    if is_better { place } else { best }
                })?;
                let after = filled(best, loads[best] + 1);
                let is_worth = here.is_none_or(|here| is_less(after, filled(here, loads[here])));
                is_worth.then_some(best)
            }
        }
    }

    fn place_of(&self, slot: Slot, targets: &[Target]) -> Option<usize> {
        match self.state(slot) {
            SlotState::Live(link) | SlotState::Announcing(link) => {
                targets.iter().position(|to| to.link == link)
            }
            SlotState::Unassigned => None,
        }
    }

    fn loads(&self, targets: &[Target]) -> Vec<u64> {
        targets.iter().map(|target| self.load(target.link)).collect()
    }

    fn load(&self, link: LinkIndex) -> u64 {
        let is_on = |state: &&SlotState| matches!(state, SlotState::Announcing(on) | SlotState::Live(on) if *on == link);
        self.states.iter().filter(is_on).count() as u64
    }

    fn select(&self, is_in: impl Fn(Slot, SlotState) -> bool) -> SlotSet {
        let mut set = SlotSet::EMPTY;
        for (slot, state) in Slot::all().zip(&self.states) {
            if is_in(slot, *state) {
                set.insert(slot);
            }
        }
        set
    }
}

/// Target of a slot by hash. A target of less weight takes only its share of its own slots.
fn home(slot: Slot, targets: &[Target]) -> Option<usize> {
    let name = mix(u64::from(slot.number()) + 1);
    let takes = |target: &Target| mix(name) % u64::from(WEIGHT) < u64::from(target.weight);
    // All on trial: then no one is.
    let takes_none = !targets.iter().any(takes);
    let candidates = (0..targets.len()).filter(|place| takes_none || takes(&targets[*place]));
    candidates.max_by_key(|place| {
        let Target { link, endpoint, .. } = targets[*place];
        (mix(endpoint ^ name), mix(u64::from(link.0) ^ name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Targets of equal weight, each its own endpoint.
    fn even(links: &[LinkIndex]) -> Vec<Target> {
        links.iter().map(|link| target(*link, WEIGHT)).collect()
    }

    fn target(link: LinkIndex, weight: u32) -> Target {
        Target { link, weight, endpoint: mix(u64::from(link.0) + 100), node: None }
    }

    fn bits(bits: u64) -> SlotSet {
        SlotSet::of_words([bits])
    }

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
        let mut slots = Slots::new(Split::Plain);
        assert!(slots.assign(&even(&[]), Spread::Weight).is_empty());
        let moves = slots.assign(&even(&[A, B]), Spread::Weight);
        assert_eq!(moves.iter().map(|(_, set)| set.iter().count()).collect::<Vec<_>>(), [32, 32]);
        settle(&mut slots, &moves);
        assert!(
            slots.is_balanced(&even(&[A, B]), Spread::Weight)
                && slots.rebalance(&even(&[A, B]), Spread::Weight, SlotSet::EMPTY).is_empty()
        );
        assert_eq!(slots.free_of(A).iter().count(), 32);
        let moves = slots.assign(&even(&[B]), Spread::Weight);
        assert_eq!(moves.len(), 1);
        settle(&mut slots, &moves);
        assert_eq!(slots.live_on(B), bits(u64::MAX));
        assert!(!slots.is_balanced(&even(&[A, B]), Spread::Weight));
        let busy = bits(0xFFFF_FFFF_FFFF);
        let moves = slots.rebalance(&even(&[A, B]), Spread::Weight, busy);
        assert_eq!(moves, [(A, bits(!0xFFFF_FFFF_FFFF))], "busy slots stay");
    }

    #[test]
    fn slots_leave_a_draining_link_as_they_fall_idle() {
        let mut slots = Slots::new(Split::Plain);
        let moves = slots.assign(&even(&[A]), Spread::Weight);
        settle(&mut slots, &moves);
        let slot = Split::Plain.slot_of(Pin(5 << 8));
        slots.on_asked(slot);
        assert_eq!(slots.busy(), bits(1 << 5));
        let moves = slots.rebalance(&even(&[B]), Spread::Weight, slots.busy());
        assert_eq!(moves, [(B, bits(!(1 << 5)))]);
        assert!(!slots.is_balanced(&even(&[B]), Spread::Weight));
        slots.on_settled(slot);
        assert_eq!(slots.rebalance(&even(&[B]), Spread::Weight, slots.busy()), [(B, bits(1 << 5))]);
        assert!(slots.is_balanced(&even(&[B]), Spread::Weight));
    }

    #[test]
    fn a_round_trip_begins_where_it_is_told() {
        let set = bits(1 | 1 << 5 | 1 << 63);
        assert_eq!(set.iter_from(6).map(Slot::index).collect::<Vec<_>>(), [63, 0, 5]);
        assert_eq!(set.iter().map(Slot::index).collect::<Vec<_>>(), [0, 5, 63]);
    }

    #[test]
    fn weights_are_kept_and_a_trial_is_small() {
        let mut slots = Slots::new(Split::Plain);
        let targets = [target(A, 3_000), target(B, 1_000)];
        let moves = slots.assign(&targets, Spread::Weight);
        settle(&mut slots, &moves);
        let count = |slots: &Slots, link| slots.live_on(link).iter().count();
        assert_eq!((count(&slots, A), count(&slots, B)), (48, 16));
        let targets = [target(A, WEIGHT), target(B, WEIGHT / 16)];
        let moves = slots.rebalance(&targets, Spread::Weight, SlotSet::EMPTY);
        settle(&mut slots, &moves);
        assert!((1..=4).contains(&count(&slots, B)), "{}", count(&slots, B));
        assert!(slots.is_balanced(&targets, Spread::Weight));
    }

    #[test]
    fn by_hash_all_gateways_agree_and_only_the_lost_ones_move() {
        let (here, there) = (even(&[A, B, C]), [C, A, B].map(|link| target(link, WEIGHT)));
        let name = |targets: &[Target], slot| home(slot, targets).map(|place| targets[place].endpoint);
        let all = || bits(u64::MAX).iter();
        assert!(all().all(|slot| name(&here, slot) == name(&there, slot)));
        for lost in [A, B, C] {
            let rest: Vec<_> = here.iter().copied().filter(|target| target.link != lost).collect();
            let kept = all().filter(|slot| name(&here, *slot) == name(&rest, *slot)).count();
            let own = all().filter(|slot| name(&here, *slot) == Some(target(lost, 1).endpoint)).count();
            assert_eq!(kept + own, 64);
            assert!((10..=34).contains(&own), "{own} of 64 on one of three");
        }
        let trial = [target(A, WEIGHT), target(B, WEIGHT / 16)];
        let own = all().filter(|slot| home(*slot, &trial) == Some(1)).count();
        assert!(own <= 8, "{own} on trial");
        let both = [target(A, WEIGHT / 16), target(B, WEIGHT / 16)];
        assert!(all().all(|slot| home(slot, &both).is_some()));
    }

    proptest! {
        /// Links come, go and drain in any order: no slot is ever on a dead link, and an idle worker
        /// with a target ends balanced.
        #[test]
        fn slots_are_only_on_links_that_live(steps in proptest::collection::vec((0u16..3, any::<bool>()), 1..60), by_hash: bool) {
            let spread = if by_hash { Spread::Hash } else { Spread::Weight };
            let (mut slots, mut up) = (Slots::new(Split::Plain), Vec::new());
            for (link, comes) in steps {
                let link = LinkIndex(link);
                up.retain(|other| *other != link);
                if comes { up.push(link) } else { _ = slots.free_of(link) }
                let moves = slots.assign(&even(&up), spread);
                settle(&mut slots, &moves);
                let moves = slots.rebalance(&even(&up), spread, SlotSet::EMPTY);
                settle(&mut slots, &moves);
                prop_assert!(slots.is_balanced(&even(&up), spread));
                for link in [A, B, C] {
                    prop_assert!(up.contains(&link) || slots.live_on(link).is_empty());
                }
                let total: usize = up.iter().map(|link| slots.live_on(*link).iter().count()).sum();
                prop_assert_eq!(total, if up.is_empty() { 0 } else { 64 });
            }
        }
    }
}
