//! Tests of the flight: lanes, the window, batches, and which clients can go on.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

const LIMITS: WindowLimits = WindowLimits { frames_max: 8, bytes_max: 1_000 };

fn parcel(lane: Lane, body: &'static [u8]) -> Parcel {
    Parcel {
        ticket: None,
        command: Command::Push,
        lane,
        expires_at: Instant::FAR_FUTURE,
        body: Bytes::from_static(body),
        packed: None,
        collapse: None,
        also: Vec::new(),
        is_own: false,
    }
}

fn drain(flight: &mut Flight) -> Vec<(Seq, Lane)> {
    let mut sent = Vec::new();
    while let Some(Ok(frame)) = flight.next(Instant::ZERO, false, true) {
        sent.push((frame.header.seq, frame.header.lane));
    }
    sent
}

#[test]
fn the_most_urgent_lane_goes_first_and_is_never_blocked() {
    let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
    for lane in [Lane::Bulk, Lane::Group, Lane::Chat, Lane::Control] {
        flight.wait(parcel(lane, b"x"), Instant::ZERO);
    }
    let lanes: Vec<_> = drain(&mut flight).into_iter().map(|(_, lane)| lane).collect();
    assert_eq!(lanes, [Lane::Control, Lane::Chat, Lane::Group, Lane::Bulk]);
    (0..20).for_each(|_| _ = flight.wait(parcel(Lane::Group, b"x"), Instant::ZERO));
    assert_eq!(drain(&mut flight).len(), 4, "six of eight frames for what may wait");
    flight.wait(parcel(Lane::Chat, b"x"), Instant::ZERO);
    assert_eq!(drain(&mut flight).len(), 0, "the window itself is full");
    assert!(flight.ack(1, 0, Instant::ZERO, |_| ()));
    assert_eq!(drain(&mut flight), [(9, Lane::Chat)], "its turn before sixteen of the group");
}

#[test]
fn a_parcel_goes_at_once_if_it_is_fresh_and_nothing_waits_and_the_window_has_room() {
    let at_once = Batching { age: Duration::ZERO, frames: 1 };
    let together = Batching { age: Duration::from_secs(1), frames: 8 };
    let (now, group, chat) = (Instant::from_nanos(5), parcel(Lane::Group, b"x"), parcel(Lane::Chat, b"x"));
    let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
    assert!(flight.is_clear_for(&group, now, at_once));
    assert!(!flight.is_clear_for(&group, now, together) && flight.is_clear_for(&chat, now, together));
    let expired = Parcel { expires_at: Instant::from_nanos(4), ..chat.clone() };
    assert!(!flight.is_clear_for(&expired, now, at_once));
    let frames: Vec<_> = (0..8).map(|_| flight.launch(chat.clone(), now, false).header).collect();
    let asks = |header: &moorline_proto::frame::Header| header.flags.contains(Flags::ACK_REQ);
    assert_eq!(frames.iter().map(|header| header.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(asks(&frames[7]) && !frames[..7].iter().any(asks), "the last one fills the window");
    assert!(!flight.is_clear_for(&chat, now, at_once));
    assert!(flight.ack(8, 0, now, |_| ()) && flight.is_clear_for(&chat, now, at_once));
    flight.wait(group, now);
    assert!(!flight.is_clear_for(&chat, now, at_once), "another lane waits");
}

#[test]
fn a_large_group_frame_leaves_a_quarter_of_the_bytes() {
    let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
    flight.wait(parcel(Lane::Bulk, &[0; 900]), Instant::ZERO);
    flight.wait(parcel(Lane::Bulk, &[0; 10]), Instant::ZERO);
    assert_eq!(drain(&mut flight).len(), 1, "alone, any frame may go");
    flight.wait(parcel(Lane::Chat, &[0; 90]), Instant::ZERO);
    assert_eq!(drain(&mut flight), [(2, Lane::Chat)]);
}

#[test]
fn a_collapse_key_keeps_the_newest() {
    let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
    let keyed = |body| Parcel { collapse: Some("k".into()), ..parcel(Lane::Chat, body) };
    assert!(
        flight.wait(keyed(b"old"), Instant::ZERO).is_none()
            && flight.wait(parcel(Lane::Chat, b"other"), Instant::ZERO).is_none()
    );
    assert_eq!(
        flight.wait(keyed(b"newer"), Instant::ZERO).map(|it| it.body),
        Some(Bytes::from_static(b"old"))
    );
    assert_eq!((flight.waiting(), flight.waiting_bytes()), (2, 10));
}

#[test]
fn what_may_wait_does_so_until_it_is_old_or_many() {
    let batching = Batching { age: Duration::from_secs(2), frames: 3 };
    let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
    let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
    assert!(!flight.is_batch_due(at(100), batching) && flight.batch_deadline(batching).is_none());
    flight.wait(parcel(Lane::Group, b"x"), at(10));
    assert_eq!(flight.batch_deadline(batching), Some(at(12)));
    flight.wait(parcel(Lane::Chat, b"x"), at(11));
    let is_due = flight.is_batch_due(at(11), batching);
    let frame = flight.next(at(11), false, is_due).expect("chat").expect("fresh");
    assert_eq!((is_due, frame.header.lane), (false, Lane::Chat));
    assert!(flight.next(at(11), false, false).is_none());
    assert!(flight.is_batch_due(at(12), batching), "old");
    flight.wait(parcel(Lane::Bulk, b"x"), at(11));
    flight.wait(parcel(Lane::Group, b"x"), at(11));
    assert!(flight.is_batch_due(at(11), batching), "many");
    assert_eq!(drain(&mut flight).len(), 3);
    assert!(flight.batch_deadline(batching).is_none());
    (0..9).for_each(|_| _ = flight.wait(parcel(Lane::Bulk, b"x"), at(20)));
    drain(&mut flight);
    assert!(flight.batch_deadline(batching).is_none(), "an ack is what it waits for");
}

proptest! {
    /// Against the plain rule: each seq above `last_seq` that was sent is in flight, or named.
    #[test]
    fn a_client_may_go_on_if_nothing_it_misses_was_let_go(
        sent in 1u32..70, acked in 0u32..70, gone in any::<u64>(), last in 0u32..80, sack in any::<u64>(),
    ) {
        let limits = WindowLimits { frames_max: 1000, bytes_max: 1 << 20 };
        let mut flight = Flight::new(limits, 1, RoundTrip::default());
        (0..sent).for_each(|_| _ = flight.wait(parcel(Lane::Chat, b"x"), Instant::ZERO));
        drain(&mut flight);
        let acked = acked.min(sent);
        flight.ack(acked, gone, Instant::ZERO, |_| ());
        let is_here = |seq: u32| flight.window.iter().any(|frame| frame.seq == seq);
        let is_named = |seq: u32| {
            let bit = (seq - last).checked_sub(2);
            bit.is_some_and(|bit| bit < 64 && sack >> bit & 1 == 1)
        };
        let expected = last <= sent && (last + 1..=sent).all(|seq| is_here(seq) || is_named(seq));
        prop_assert_eq!(flight.can_resume(last, sack), expected);
    }
}
