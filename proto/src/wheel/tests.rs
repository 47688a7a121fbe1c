//! The timing wheel beside a sorted list.

use super::*;
use core::time::Duration;
use proptest::prelude::*;

/// Operation on a wheel, with numbers that the test maps to live entries.
#[derive(Clone, Debug)]
enum Step {
    Insert { after_nanos: u64 },
    Cancel { which: usize },
    Reschedule { which: usize, after_nanos: u64 },
    Advance { by_nanos: u64 },
    AdvanceToDeadline,
}

/// Distances of every magnitude, from inside one tick to years.
fn any_distance() -> impl Strategy<Value = u64> {
    (0u32..58, any::<u64>()).prop_map(|(bits, noise)| noise & ((1 << bits) - 1))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_distance().prop_map(|after_nanos| Step::Insert { after_nanos }),
        1 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        1 => (any::<usize>(), any_distance()).prop_map(|(which, after_nanos)| Step::Reschedule { which, after_nanos }),
        2 => any_distance().prop_map(|by_nanos| Step::Advance { by_nanos }),
        2 => Just(Step::AdvanceToDeadline),
    ]
}

struct Scheduled {
    at: Instant,
    /// The first tick at which it can fire, now that it was scheduled.
    tick: u64,
    key: TimerKey,
    value: u32,
}

/// The wheel beside a plain list of what is scheduled.
struct Pair {
    now: Instant,
    wheel: Wheel<u32>,
    list: Vec<Scheduled>,
    next_value: u32,
}

impl Pair {
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Insert { after_nanos } => {
                // Half of the moments near now lie in the past.
                let at = self.now + Duration::from_nanos(after_nanos) - Duration::from_millis(20);
                let key = self.wheel.insert(at, self.next_value);
                self.list.push(Scheduled { at, tick: self.tick_of(at), key, value: self.next_value });
                self.next_value += 1;
            }
            Step::Cancel { which } if !self.list.is_empty() => {
                let Scheduled { at, key, value, .. } = self.list.swap_remove(which % self.list.len());
                assert_eq!(self.wheel.deadline(key), at);
                assert_eq!(self.wheel.cancel(key), value);
            }
            Step::Reschedule { which, after_nanos } if !self.list.is_empty() => {
                let which = which % self.list.len();
                let at = self.now + Duration::from_nanos(after_nanos);
                let tick = self.tick_of(at);
                let entry = &mut self.list[which];
                (entry.at, entry.tick) = (at, tick);
                self.wheel.reschedule(entry.key, at);
            }
            Step::Advance { by_nanos } => self.advance(self.now + Duration::from_nanos(by_nanos)),
            Step::AdvanceToDeadline => {
                if let Some(deadline) = self.wheel.next_deadline() {
                    self.advance(self.now.max(deadline));
                }
            }
            Step::Cancel { .. } | Step::Reschedule { .. } => {}
        }
        self.wheel.check();
        assert_eq!(self.wheel.len(), self.list.len());
    }

    fn tick_of(&self, at: Instant) -> u64 {
        due_tick(at).max(self.now.as_nanos() / TICK_NANOS)
    }

    fn advance(&mut self, now: Instant) {
        let bound = self.wheel.next_deadline();
        let mut fired = Vec::new();
        self.wheel.advance(now, &mut fired);
        self.now = now;
        assert!(fired.is_empty() || bound.is_some_and(|bound| bound <= now), "fired before the bound");
        let mut last_tick = 0;
        for value in fired {
            let found = self.list.iter().position(|entry| entry.value == value).expect("scheduled, once");
            let Scheduled { at, tick, .. } = self.list.swap_remove(found);
            assert!(at <= now, "fired early");
            assert!(tick >= last_tick, "earliest tick first");
            last_tick = tick;
        }
        for Scheduled { at, .. } in &self.list {
            assert!(at.as_nanos().saturating_add(TICK_NANOS) > now.as_nanos(), "more than a tick late");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn behaves_like_a_sorted_list(start in any_distance(), steps in proptest::collection::vec(any_step(), 1..120)) {
        let now = Instant::from_nanos(start);
        let mut pair = Pair { now, wheel: Wheel::new(now), list: Vec::new(), next_value: 0 };
        for step in &steps {
            pair.apply(step);
        }
        // Following the deadlines alone fires everything, in few steps.
        let mut turns = 0;
        while let Some(deadline) = pair.wheel.next_deadline() {
            pair.advance(pair.now.max(deadline));
            pair.wheel.check();
            turns += 1;
            prop_assert!(turns <= LEVELS * (steps.len() + 1), "every turn makes progress");
        }
        prop_assert!(pair.list.is_empty());
    }
}

#[test]
fn ticks_fire_in_order_and_ties_in_order_of_insertion() {
    let second = |n: u64| Instant::from_nanos(n * 1_000_000_000);
    let mut wheel = Wheel::new(second(5));
    for (at, value) in [(300, 'd'), (6, 'b'), (300, 'e'), (90, 'c'), (1, 'a'), (100_000, 'f')] {
        wheel.insert(second(at), value);
    }
    let mut fired = Vec::new();
    wheel.advance(second(99_999), &mut fired);
    assert_eq!(fired, ['a', 'b', 'c', 'd', 'e']);
    wheel.check();
    assert_eq!(wheel.len(), 1);
}

#[test]
fn the_farthest_future_never_fires_and_can_be_cancelled() {
    let mut wheel = Wheel::new(Instant::ZERO);
    let key = wheel.insert(Instant::FAR_FUTURE, 1u32);
    let mut fired = Vec::new();
    wheel.advance(Instant::from_nanos(u64::MAX - 1), &mut fired);
    assert!(fired.is_empty());
    wheel.check();
    assert_eq!(wheel.cancel(key), 1);
    assert_eq!(wheel.next_deadline(), None);
}

#[test]
fn an_entry_is_24_bytes_and_an_empty_wheel_gives_memory_back() {
    assert_eq!(size_of::<Entry<u32>>(), 24);
    let mut wheel = Wheel::new(Instant::ZERO);
    let keys: Vec<_> = (0..100_000).map(|value| wheel.insert(Instant::from_nanos(1), value)).collect();
    assert!(wheel.allocated_bytes() >= 24 * keys.len());
    for key in keys {
        wheel.cancel(key);
    }
    assert_eq!(wheel.allocated_bytes(), 0);
    wheel.check();
    wheel.insert(Instant::from_nanos(1), 7);
    wheel.check();
}

#[test]
#[should_panic(expected = "stale")]
fn a_stale_key_is_our_fault() {
    let mut wheel = Wheel::new(Instant::ZERO);
    let key = wheel.insert(Instant::from_nanos(1), ());
    wheel.insert(Instant::from_nanos(2), ());
    wheel.cancel(key);
    wheel.cancel(key);
}
