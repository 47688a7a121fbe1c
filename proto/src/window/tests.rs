//! The in-flight window beside an ordered map.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: WindowLimits = WindowLimits { frames_max: 32, bytes_max: 1000 };

fn at_millis(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn seqs(window: &Window<u32>) -> Vec<Seq> {
    window.iter().map(|frame| frame.seq).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Push { bytes: u32 },
    Ack { back: u32 },
    AckBeyond { ahead: u32 },
    Sack { back: u32, bits: u64 },
    Resend { which: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..200).prop_map(|bytes| Step::Push { bytes }),
        1 => (1u32..40).prop_map(|back| Step::Ack { back }),
        1 => (0u32..5).prop_map(|ahead| Step::AckBeyond { ahead }),
        1 => (1u32..40, any::<u64>()).prop_map(|(back, bits)| Step::Sack { back, bits }),
        1 => any::<usize>().prop_map(|which| Step::Resend { which }),
    ]
}

proptest! {
    /// Beside a map from seq to bytes: order, room, and no frame acknowledged twice or by mistake.
    #[test]
    fn behaves_like_a_map(first in 1u32..1000, steps in proptest::collection::vec(any_step(), 1..200)) {
        let mut window = Window::new(LIMITS, first);
        let mut model: BTreeMap<Seq, u32> = BTreeMap::new();
        let mut now = Instant::ZERO;
        for step in steps {
            now += Duration::from_millis(7);
            let next = window.next_seq();
            let mut acked = Vec::new();
            let expected: Vec<Seq> = match step {
                Step::Push { bytes } => {
                    let in_flight: u32 = model.values().sum();
                    let has_room = model.is_empty() || (model.len() < 32 && in_flight + bytes <= 1000);
                    prop_assert_eq!(window.has_room(bytes), has_room);
                    if has_room {
                        prop_assert_eq!(window.push(next, bytes, now), next);
                        model.insert(next, bytes);
                    }
                    Vec::new()
                }
                Step::Ack { back } => {
                    let ack = next.saturating_sub(back);
                    prop_assert_eq!(window.ack(ack, now, |frame| acked.push(frame.seq)), Ok(()));
                    model.keys().copied().filter(|seq| *seq <= ack).collect()
                }
                Step::AckBeyond { ahead } => {
                    prop_assert_eq!(window.ack(next + ahead, now, |_| panic!("acked")), Err(AckBeyond));
                    Vec::new()
                }
                Step::Sack { back, bits } => {
                    let base = next.saturating_sub(back);
                    window.sack(base, bits, now, |frame| acked.push(frame.seq));
                    let named = |seq: Seq| (0..64).any(|i| bits >> i & 1 == 1 && base + 2 + i == seq);
                    model.keys().copied().filter(|seq| named(*seq)).collect()
                }
                Step::Resend { which } => {
                    if !model.is_empty() {
                        let seq = *model.keys().nth(which % model.len()).expect("in range");
                        let before = window.iter().find(|frame| frame.seq == seq).expect("there").resent;
                        let frame = window.resend(seq, now).expect("in flight");
                        prop_assert_eq!((frame.resent, frame.sent_at), (before.saturating_add(1), now));
                    }
                    prop_assert!(window.resend(next, now).is_none());
                    Vec::new()
                }
            };
            prop_assert_eq!(&acked, &expected);
            model.retain(|seq, _| !expected.contains(seq));
            prop_assert_eq!(seqs(&window), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(window.bytes(), u64::from(model.values().sum::<u32>()));
            prop_assert_eq!((window.len(), window.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!(window.oldest().map(|frame| frame.seq), model.keys().next().copied());
            prop_assert_eq!(window.deadline().is_some(), !model.is_empty());
        }
        let left: Vec<_> = window.take_all().map(|frame| frame.seq).collect();
        prop_assert_eq!(left, model.into_keys().collect::<Vec<_>>());
        prop_assert!(window.is_empty());
    }
}

#[test]
fn one_frame_of_any_size_is_let_through_and_no_second() {
    let mut window = Window::new(LIMITS, 1);
    assert!(window.has_room(u32::MAX));
    window.push(0, u32::MAX, Instant::ZERO);
    assert!(!window.has_room(0));
    window.ack(1, Instant::ZERO, |_| ()).expect("sent");
    assert!(window.has_room(1));
}

#[test]
fn an_idle_window_is_24_bytes_without_memory_behind_it() {
    assert_eq!(size_of::<Window<[u64; 9]>>(), 24);
    let mut window = Window::new(LIMITS, 1);
    window.push(0, 1, Instant::ZERO);
    window.ack(1, Instant::ZERO, |_| ()).expect("sent");
    assert!(window.flight.is_none());
}

#[test]
fn the_deadline_follows_the_round_trip_within_its_bounds() {
    let mut window = Window::new(LIMITS, 1);
    let overdue_after = |window: &mut Window<u32>, round_trip_millis: u64| {
        let seq = window.push(0, 1, at_millis(0));
        let deadline = window.deadline().expect("in flight");
        window.ack(seq, at_millis(round_trip_millis), |_| ()).expect("sent");
        deadline
    };
    assert_eq!(overdue_after(&mut window, 100), at_millis(3000), "nothing measured");
    assert_eq!(window.srtt(), Some(Duration::from_millis(100)));
    assert_eq!(overdue_after(&mut window, 1700), at_millis(2000), "2 x 100 ms + 1 s, at least 2 s");
    assert_eq!(overdue_after(&mut window, 300_000), at_millis(2000), "srtt is 300 ms");
    assert_eq!(overdue_after(&mut window, 0), at_millis(30_000), "at most 30 s");
}

#[test]
fn a_frame_sent_twice_teaches_no_round_trip() {
    let mut window = Window::new(LIMITS, 1);
    (0..3).for_each(|item| _ = window.push(item, 1, at_millis(0)));
    window.resend(1, at_millis(2000)).expect("in flight");
    window.ack(2, at_millis(2001), |_| ()).expect("sent");
    assert_eq!(window.srtt(), None, "the ack covers a frame sent twice");
    window.ack(3, at_millis(2001), |_| ()).expect("sent");
    assert_eq!(window.srtt(), Some(Duration::from_millis(2001)));
}

#[test]
fn numbers_end_before_they_wrap() {
    let mut window = Window::new(LIMITS, u32::MAX - 1);
    assert_eq!(window.push(0, 1, Instant::ZERO), u32::MAX - 1);
    assert!(window.is_exhausted() && !window.has_room(0));
    window.sack(u32::MAX - 1, u64::MAX, Instant::ZERO, |_| panic!("names nothing in flight"));
    assert_eq!(window.ack(u32::MAX, Instant::ZERO, |_| ()), Err(AckBeyond));
    window.ack(u32::MAX - 1, Instant::ZERO, |_| ()).expect("sent");
    assert!(window.is_empty() && !window.has_room(0));
}
