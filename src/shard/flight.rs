//! Reliable frames toward one session: those in flight, and those that wait for room, lane by lane.
//!
//! Example: a client that reads slowly is in a busy group. Its pushes wait on the lane `Group`; a message for
//! it alone waits on `Chat`, and is sent first when an ack makes room.

mod shed;

use super::parcel::{PARCEL_BYTES, Parcel};
use super::round_trip::RoundTrip;
use crate::messages::PushRef;
use crate::snapshot::{FlightRecord, InFlightRecord, Records, Section, SnapshotError};
use bytes::Bytes;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::Seq;
use moorline_proto::random::mix;
use moorline_proto::time::{Duration, Instant, nanos_of};
use moorline_proto::window::{InFlight, Window, WindowLimits};
use std::collections::VecDeque;

/// Time between the steps that follow an overdue ack: ask, send again, close [P-6.5].
const STEP: Duration = Duration::from_secs(5);
/// Time between questions to a client that answers them, and has not handled the oldest frame yet.
const PATIENT_STEP: Duration = Duration::from_secs(60);
/// Number of steps of a client that is asked every [`PATIENT_STEP`].
const PATIENT: u8 = 3;
/// Random part of an ack's deadline, so that the acks of one broadcast do not fall due together.
const JITTER: Duration = Duration::from_millis(250);
/// Pushes that one NOTIFY may stand for.
const COLLAPSED_MAX: usize = 1024;
/// Times that a frame is sent again. A client that comes back after that without it gets a new session: it may be the
/// frame that ends its connection each time.
const RESENDS_MAX: u8 = 8;
/// Frames that a client can name after the first that it misses.
const SACK_BITS: u32 = 64;

/// Step that follows an overdue ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeStep {
    /// Ask the client.
    Ask,
    /// Send the frames again, if their bytes have arrived.
    Resend,
    /// End the connection: the client did not answer the question.
    GiveUp,
}

/// Limits up to which frames of the lanes `Group` and `Bulk` wait for others, to go out as one BATCH.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batching {
    /// Longest wait of the first frame; zero: frames do not wait.
    pub(super) age: Duration,
    /// Number of frames that ends the wait.
    pub(super) frames: usize,
}

/// The outstanding reliable frames of one session; it exists only while there are some.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) window: Window<Parcel>,
    limits: WindowLimits,
    /// Parcels that wait for room, by lane.
    waiting: [VecDeque<Parcel>; Lane::ALL.len()],
    waiting_frames: usize,
    waiting_bytes: usize,
    /// Time since which a parcel waits on the lanes that may; `None`: none does.
    waiting_since: Option<Instant>,
    /// Frames and bytes in flight of the lanes that may wait.
    low_frames: u16,
    low_bytes: u64,
    /// Time when the oldest ack was found overdue; `None`: it is not. The steps taken since follow.
    overdue: Option<Instant>,
    pub(super) steps: u8,
    /// The client has sent a frame since the last question: it is alive, and handles its messages later.
    is_answered: bool,
}

impl Flight {
    /// An empty flight. `trip`: the round trip that was measured before.
    pub(super) fn new(limits: WindowLimits, next: Seq, trip: RoundTrip) -> Self {
        let window = Window::restore(limits, next, trip.micros(), VecDeque::new());
        Self {
            window: window.expect("an empty window is in order, and numbers begin at 1"),
            limits,
            waiting: Default::default(),
            waiting_frames: 0,
            waiting_bytes: 0,
            waiting_since: None,
            low_frames: 0,
            low_bytes: 0,
            overdue: None,
            steps: 0,
            is_answered: false,
        }
    }

    /// The round trip, for the next flight.
    pub(super) fn trip(&self) -> RoundTrip {
        let micros = self.window.srtt().map_or(0, |srtt| srtt.as_micros());
        RoundTrip::of_micros(u32::try_from(micros).unwrap_or(u32::MAX))
    }

    /// Bodies of the pushes.
    pub(super) fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        let parcels = self.window.iter().map(|frame| &frame.item).chain(self.waiting.iter().flatten());
        parcels.flat_map(|parcel| std::iter::once(&parcel.body).chain(&parcel.packed))
    }

    /// Writes the flight.
    pub(super) fn freeze(&self, out: &mut Section) -> FlightRecord {
        let Self {
            window,
            limits: _,
            waiting,
            waiting_frames: _,
            waiting_bytes: _,
            waiting_since,
            low_frames: _,
            low_bytes: _,
            overdue,
            steps,
            is_answered: _, // counts as true, below
        } = self;
        let in_flight = |frame: &InFlight<Parcel>| {
            let InFlight { seq, sent_at, resent, bytes, item } = frame;
            let (seq, sent_at, resent, bytes) = (*seq, sent_at.as_nanos(), u32::from(*resent), *bytes);
            InFlightRecord { seq, sent_at, resent, bytes, parcel: Some(item.freeze(out)) }
        };
        FlightRecord {
            srtt_micros: window.srtt().map_or(0, |srtt| u32::try_from(srtt.as_micros()).unwrap_or(u32::MAX)),
            in_flight: window.iter().map(in_flight).collect(),
            waiting: waiting.iter().flatten().map(|parcel| parcel.freeze(out)).collect(),
            waiting_since: waiting_since.map(Instant::as_nanos),
            overdue: overdue.map(Instant::as_nanos),
            steps: u32::from(*steps),
        }
    }

    /// Reads a flight; the next frame is number `next`.
    pub(super) fn thaw(
        record: &FlightRecord,
        limits: WindowLimits,
        next: Seq,
        from: &Records,
    ) -> Result<Self, SnapshotError> {
        let FlightRecord { srtt_micros, in_flight, waiting, waiting_since, overdue, steps } = record;
        let mut flight = Self::new(limits, next.max(1), RoundTrip::default());
        let mut frames = VecDeque::with_capacity(in_flight.len());
        for InFlightRecord { seq, sent_at, resent, bytes, parcel } in in_flight {
            let parcel = parcel.as_ref().ok_or_else(|| from.contradiction("a frame in flight is empty"))?;
            let item = Parcel::thaw(parcel, from)?;
            if item.may_wait() {
                flight.low_frames = flight.low_frames.saturating_add(1);
                flight.low_bytes += u64::from(*bytes);
            }
            let (sent_at, resent) = (Instant::from_nanos(*sent_at), u8::try_from(*resent).unwrap_or(u8::MAX));
            frames.push_back(InFlight { seq: *seq, sent_at, resent, bytes: *bytes, item });
        }
        flight.window = Window::restore(limits, next, *srtt_micros, frames)
            .ok_or_else(|| from.contradiction("frames in flight are not in order"))?;
        for parcel in waiting {
            let parcel = Parcel::thaw(parcel, from)?;
            flight.waiting_frames += 1;
            flight.waiting_bytes += parcel.body.len();
            flight.waiting[parcel.lane as usize].push_back(parcel);
        }
        flight.waiting_since = waiting_since.map(Instant::from_nanos);
        flight.overdue = overdue.map(Instant::from_nanos);
        flight.steps = u8::try_from(*steps).unwrap_or(u8::MAX);
        // The answer may have come before the restart, so the client is asked once more.
        flight.is_answered = true;
        Ok(flight)
    }

    /// Puts a parcel at the end of its lane, or in the place of the one with its collapse key, which it returns.
    pub(super) fn wait(&mut self, parcel: Parcel, now: Instant) -> Option<Parcel> {
        if parcel.may_wait() {
            self.waiting_since.get_or_insert(now);
        }
        self.waiting_bytes += parcel.body.len();
        let lane = &mut self.waiting[parcel.lane as usize];
        if let Some(other) = lane.iter_mut().find(|other| parcel.replaces(other)) {
            self.waiting_bytes -= other.body.len();
            return Some(std::mem::replace(other, parcel));
        }
        self.waiting_frames += 1;
        lane.push_back(parcel);
        None
    }

    /// Puts a NOTIFY that stands for a push at the end of its lane. It takes the place of an older NOTIFY with
    /// its collapse key, and stands for the pushes of that one too. Returns the ticket if there are too many.
    pub(super) fn wait_collapsed(&mut self, parcel: Parcel, now: Instant) -> Option<PushRef> {
        let (lane, key) = (parcel.lane as usize, parcel.collapse.clone());
        let mut older = self.wait(parcel, now)?;
        let newer =
            self.waiting[lane].iter_mut().find(|it| it.command == Command::Notify && it.collapse == key);
        let newer = newer.expect("it has just taken the older one's place");
        self.waiting_bytes -= newer.body.len();
        newer.join(&older);
        self.waiting_bytes += newer.body.len();
        let ticket = newer.ticket.take();
        newer.ticket = older.ticket;
        newer.also = std::mem::take(&mut older.also);
        if newer.also.len() >= COLLAPSED_MAX {
            return ticket;
        }
        newer.also.extend(ticket);
        None
    }

    /// Returns whether a parcel cannot be sent at once: another one waits before it, the window is full, or it waits
    /// for others.
    pub(super) fn must_wait(&self, parcel: &Parcel, batching: Batching) -> bool {
        let is_behind = self.waiting[..=parcel.lane as usize].iter().any(|lane| !lane.is_empty());
        let waits_for_others = parcel.may_wait() && batching.age > Duration::ZERO;
        is_behind || waits_for_others || !self.has_room(length_of(parcel), parcel.may_wait())
    }

    /// Gives all parcels memory of their own: they may stay for long.
    pub(super) fn make_own(&mut self) {
        let waiting = self.waiting.iter_mut().flatten();
        waiting.chain(self.window.items_mut()).for_each(|parcel| parcel.make_own(&mut None));
    }

    /// Memory of all parcels, in flight or waiting, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let in_flight = usize::try_from(self.window.bytes()).unwrap_or(usize::MAX);
        self.waiting_bytes + in_flight + (self.waiting_frames + self.window.len()) * PARCEL_BYTES
    }

    /// Frames and bytes that wait, without the one that a parcel would replace.
    pub(super) fn waiting_beside(&self, parcel: &Parcel) -> (usize, usize) {
        let lane = &self.waiting[parcel.lane as usize];
        let other = parcel.collapse.as_ref().and_then(|_| lane.iter().find(|other| parcel.replaces(other)));
        let other = other.map_or((0, 0), |other| (1, other.body.len()));
        (self.waiting_frames - other.0, self.waiting_bytes - other.1)
    }

    #[cfg(test)]
    pub(super) const fn waiting(&self) -> usize {
        self.waiting_frames
    }

    pub(super) const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty() && self.waiting_frames == 0
    }

    /// Returns whether frames that may wait have waited long enough, or are enough for a batch.
    pub(super) fn is_batch_due(&self, now: Instant, batching: Batching) -> bool {
        let is_old = self.waiting_since.is_some_and(|since| now >= since + batching.age);
        is_old || self.low_lanes().map(VecDeque::len).sum::<usize>() >= batching.frames
    }

    /// Time at which [`Self::is_batch_due`] will be true; `None`: nothing can be sent then.
    pub(super) fn batch_deadline(&self, batching: Batching) -> Option<Instant> {
        // A more urgent parcel waits for an ack, and all others wait behind it.
        let head = self.waiting.iter().find_map(VecDeque::front).filter(|head| head.may_wait())?;
        let has_room = self.has_room(length_of(head), true);
        self.waiting_since.filter(|_| has_room).map(|since| since + batching.age)
    }

    fn low_lanes(&self) -> impl Iterator<Item = &VecDeque<Parcel>> {
        [Lane::Group, Lane::Bulk].into_iter().map(|lane| &self.waiting[lane as usize])
    }

    /// The next frame that may be sent now, or a parcel that expired. The most urgent lane comes first. The
    /// lanes that may wait leave a quarter of the window to the others, and wait until their batch is due.
    pub(super) fn next(
        &mut self,
        now: Instant,
        accepts_lz4: bool,
        is_batch_due: bool,
    ) -> Option<Result<Frame, Parcel>> {
        let lane = self.waiting.iter().position(|lane| !lane.is_empty())?;
        let head = self.waiting[lane].front()?;
        let bytes = length_of(head);
        let is_expired = head.expires_at < now;
        let is_early = head.may_wait() && !is_batch_due;
        if !is_expired && (is_early || !self.has_room(bytes, head.may_wait())) {
            return None;
        }
        let parcel = self.waiting[lane].pop_front()?;
        if self.waiting[lane].is_empty() {
            self.waiting[lane] = VecDeque::new();
        }
        self.waiting_frames -= 1;
        self.waiting_bytes -= parcel.body.len();
        if self.low_lanes().all(VecDeque::is_empty) {
            self.waiting_since = None;
        }
        if is_expired {
            return Some(Err(parcel));
        }
        let may_wait = parcel.may_wait();
        if may_wait {
            self.low_frames += 1;
            self.low_bytes += u64::from(bytes);
        }
        let plain = parcel.frame(0, Flags::default(), accepts_lz4);
        let seq = self.window.push(parcel, bytes, now);
        // The frame that fills the window asks for an ack at once.
        let is_last = !self.has_room(bytes, may_wait);
        let flags = if is_last { plain.header.flags.with(Flags::ACK_REQ) } else { plain.header.flags };
        Some(Ok(plain.with_seq(seq).with_flags(flags)))
    }

    fn has_room(&self, bytes: u32, may_wait: bool) -> bool {
        if !self.window.has_room(bytes) {
            return false;
        }
        let frames_max = (self.limits.frames_max - self.limits.frames_max / 4).max(1);
        let bytes_max = u64::from(self.limits.bytes_max - self.limits.bytes_max / 4);
        let fits = self.low_frames < frames_max && self.low_bytes + u64::from(bytes) <= bytes_max;
        !may_wait || self.low_frames == 0 || fits
    }

    /// Removes frames that the client has: all up to `ack`, and those that `sack` names. False: one of them was
    /// never sent.
    pub(super) fn ack(&mut self, ack: Seq, sack: u64, now: Instant, mut acked: impl FnMut(Parcel)) -> bool {
        let (mut low_frames, mut low_bytes, mut count) = (0, 0, 0u32);
        let mut settle = |frame: moorline_proto::window::InFlight<Parcel>| {
            count += 1;
            if frame.item.may_wait() {
                low_frames += 1;
                low_bytes += u64::from(frame.bytes);
            }
            acked(frame.item);
        };
        if self.window.ack(ack, now, &mut settle).is_err() {
            return false;
        }
        if sack != 0 {
            self.window.sack(ack, sack, now, &mut settle);
        }
        self.low_frames -= low_frames;
        self.low_bytes -= low_bytes;
        if count > 0 {
            (self.overdue, self.steps) = (None, 0);
        }
        true
    }

    /// Time at which the oldest frame's ack is overdue; after that, at which the next step is due.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        let deadline = self.window.deadline()?;
        if let Some(since) = self.overdue {
            let wait = if self.steps == PATIENT { PATIENT_STEP } else { STEP * u32::from(self.steps) };
            return Some(since + wait);
        }
        let oldest = self.window.oldest()?;
        let dice = mix(oldest.sent_at.as_nanos() ^ u64::from(oldest.seq) << 40);
        Some(deadline + Duration::from_nanos(dice % nanos_of(JITTER)))
    }

    /// Begins the next step after an overdue ack, and returns its number, from 0.
    pub(super) fn next_step(&mut self, now: Instant) -> u8 {
        self.overdue.get_or_insert(now);
        self.steps = self.steps.saturating_add(1);
        self.steps - 1
    }

    /// Begins the next step after an overdue ack, in the mode that asks the client [P-6.5].
    pub(super) fn next_probe_step(&mut self, now: Instant) -> ProbeStep {
        match self.next_step(now) {
            0 => {
                self.is_answered = false;
                ProbeStep::Ask
            }
            1 => ProbeStep::Resend,
            _ if self.is_answered => {
                (self.overdue, self.steps, self.is_answered) = (Some(now), PATIENT, false);
                ProbeStep::Ask
            }
            _ => ProbeStep::GiveUp,
        }
    }

    /// Notes that the client has answered a question.
    pub(super) fn handle_answer(&mut self) {
        self.is_answered = true;
    }

    /// Lets the deadline count from the last retransmission, not from the first [`Self::next_step`].
    pub(super) fn restart_deadline(&mut self) {
        self.overdue = None;
    }

    /// All frames in flight again, oldest first.
    pub(super) fn resend(&mut self, now: Instant, accepts_lz4: bool) -> Vec<Frame> {
        let seqs: Vec<Seq> = self.window.iter().map(|frame| frame.seq).collect();
        let again = |seq| {
            let frame = self.window.resend(seq, now)?;
            Some(frame.item.frame(seq, Flags::DUP, accepts_lz4))
        };
        seqs.into_iter().filter_map(again).collect()
    }

    /// Returns whether a client can resume that has handled all frames up to `last_seq`, and those that `sack` names:
    /// all others are still in flight.
    pub(super) fn can_resume(&self, last_seq: Seq, sack: u64) -> bool {
        let next = self.window.next_seq();
        if last_seq >= next {
            return false;
        }
        let mut missing = last_seq;
        for frame in self.window.iter().filter(|frame| frame.seq > last_seq) {
            if !is_named(last_seq, sack, missing + 1, frame.seq) {
                return false;
            }
            missing = frame.seq;
        }
        is_named(last_seq, sack, missing + 1, next)
    }

    /// Returns whether the oldest frame was sent again as often as it may be.
    pub(super) fn is_given_up(&self) -> bool {
        self.window.iter().next().is_some_and(|frame| frame.resent >= RESENDS_MAX)
    }

    /// Number of frames that are sent again to a client that resumes.
    pub(super) fn replay_len(&self, last_seq: Seq, sack: u64) -> u32 {
        let is_missed = |seq: Seq| seq > last_seq && !is_named(last_seq, sack, seq, seq.saturating_add(1));
        let count = self.window.iter().filter(|frame| is_missed(frame.seq)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Everything not acknowledged, oldest first.
    pub(super) fn into_unacked(self) -> impl Iterator<Item = Parcel> {
        let flying: Vec<_> = self.window.iter().map(|frame| frame.item.clone()).collect();
        flying.into_iter().chain(self.waiting.into_iter().flatten())
    }
}

fn length_of(parcel: &Parcel) -> u32 {
    u32::try_from(parcel.body.len()).unwrap_or(u32::MAX)
}

/// Returns whether `sack` names each of the seqs `from..end`. Empty ranges are named.
fn is_named(last_seq: Seq, sack: u64, from: Seq, end: Seq) -> bool {
    if from < end && end - last_seq > SACK_BITS + 2 {
        return false;
    }
    (from..end).all(|seq| {
        let bit = (seq - last_seq).checked_sub(2);
        bit.is_some_and(|bit| bit < SACK_BITS && sack >> bit & 1 == 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    pub(super) const LIMITS: WindowLimits = WindowLimits { frames_max: 8, bytes_max: 1_000 };

    pub(super) fn parcel(lane: Lane, body: &'static [u8]) -> Parcel {
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
}
