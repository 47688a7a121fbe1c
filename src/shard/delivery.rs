//! Frames to one client: pushes that wait behind the window, frames in flight, and the acks that come back.
//!
//! Example: bob's window has room for 64 frames. The 65th push waits in his flight. An ack for the first
//! settles it toward the backend, and the 65th is sent.
//!
//! An overdue ack [P-6.5]: TCP repeats what a network loses, so a frame is sent again on the same connection
//! only if the system has delivered everything and still no ack came: then it was lost in the client. A client that
//! answers the PING is alive and only slow: its window stays full, and it is asked again every minute.
//!
//! ```text
//! probe:    overdue ──► PING, ACK_REQ ──5 s──► all delivered? again, with DUP ──5 s──► answered? ── no ──► CLOSE
//!                                                  PING, ACK_REQ ◄──────────────── yes ──┘ (every 60 s)
//! classic:  overdue ──► again ──overdue──► again ──overdue──► again ──overdue──► CLOSE(ACK_TIMEOUT)
//! ```

use super::client::Client;
use super::flight::{Flight, ProbeStep};
use super::parcel::Parcel;
use super::{Count, Output, Outputs, Settings};
use crate::config::Retransmit;
use crate::messages::{Push, PushRef, Uplink};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{BATCH_FRAMES_MAX, Command, Flags, Frame, Lane, encode_batch};
use moorline_proto::ids::{ConnKey, Seq};
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::Ack;
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};

/// Above the memory watermark the limits of one client are divided by this.
const MEMORY_PARTS: usize = 4;
/// Pushes whose outcome nobody waits for may fill one of these parts of a queue.
const UNASKED_PARTS: usize = 4;
/// Times that the mode `classic` sends again.
const CLASSIC_RESENDS: u8 = 3;
/// Shortest time between two checks of a timer.
const NEXT_CHECK: Duration = Duration::from_millis(1);

impl Client<'_> {
    /// Delivers one push: queues it behind the window, and sends what the window has room for. `own`: a copy of the
    /// push's body that its receivers share; made when the first of them must wait.
    ///
    /// # Errors
    /// The connection is to be closed: its queue is full.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        push: &Push,
        own: &mut Option<Bytes>,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        self.queue(now, push, own, outputs)?;
        if self.connection.state == State::Detached {
            report(push.ticket, self.key, Outcome::Queued, outputs);
            return Ok(());
        }
        self.pump(now, outputs)
    }

    /// Queues a push. A PUSH that may wait becomes a NOTIFY if too much waits already [P-6.9]. A push whose outcome
    /// nobody waits for may fill a part of the queue only: then a NOTIFY takes its place, too, or it is dropped if it is no
    /// message. What a NOTIFY stands for is not dropped, for nothing else would tell of it.
    fn queue(
        &mut self,
        now: Instant,
        push: &Push,
        own: &mut Option<Bytes>,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let (key, unsent) = (self.key, self.connection.unsent());
        let is_away = self.connection.state == State::Detached;
        let parts = if self.ledger.is_above_watermark(1) { MEMORY_PARTS } else { 1 };
        let queued = self.with_flight(|session, settings| {
            let (next_seq, trip) = (session.next_seq, session.trip);
            let flight = session
                .flight
                .get_or_insert_with(|| Box::new(Flight::new(settings.downlink, next_seq, trip)));
            let mut parcel = Parcel::new(push);
            let is_slow = flight.waiting_bytes() + unsent > settings.collapse_bytes_max / parts;
            let is_over = parcel.is_unasked() && is_full(flight, &parcel, settings, UNASKED_PARTS * parts);
            let notify = if is_slow || is_over { parcel.notify() } else { None };
            if is_over && notify.is_none() && parcel.command != Command::Notify {
                return (Queued::Dropped, 1);
            }
            let mut dropped = 0;
            let taken = notify.as_ref().unwrap_or(&parcel);
            if is_full(flight, taken, settings, parts) {
                dropped = flight.shed_unasked();
                if is_full(flight, taken, settings, parts) {
                    return (Queued::Full, dropped);
                }
            }
            let queued = if let Some(notify) = notify {
                Queued::Collapsed(flight.wait_collapsed(notify, now))
            } else {
                if is_away || flight.must_wait(&parcel, settings.batching()) {
                    parcel.make_own(own);
                }
                Queued::Waits(flight.wait(parcel, now))
            };
            (queued, dropped)
        });
        let (queued, dropped) = queued.expect("a push is for a session");
        self.ledger.counters[Count::PushesDropped] += dropped as u64;
        match queued {
            Queued::Dropped => {
                self.drop_empty_flight();
                return Ok(());
            }
            Queued::Full => {
                self.ledger.counters[Count::PushesFull] += 1;
                report(push.ticket, key, Outcome::Full, outputs);
                return Err(CloseReason::Slow);
            }
            Queued::Collapsed(refused) => {
                self.ledger.counters[Count::PushesCollapsed] += 1;
                report(refused, key, Outcome::Full, outputs);
            }
            Queued::Waits(None) => {}
            Queued::Waits(Some(older)) => {
                self.ledger.counters[Count::PushesSuperseded] += 1;
                report_all(&older, key, Outcome::Expired, outputs);
            }
        }
        self.ledger.counters[Count::Pushes] += 1;
        Ok(())
    }

    /// Sends what the window has room for; nothing while there is no socket.
    ///
    /// # Errors
    /// The client does not read.
    pub(super) fn pump(&mut self, now: Instant, outputs: &mut Outputs) -> Result<(), CloseReason> {
        if !self.is_logged_in() {
            return Ok(());
        }
        let mut merged = self.take_merged();
        let next = |merged: &[Frame], client: &mut Self| {
            client
                .with_flight(|session, settings| {
                    let (accepts_lz4, flight) = (session.accepts_lz4(), session.flight.as_mut()?);
                    let is_batch_due = !merged.is_empty() || flight.is_batch_due(now, settings.batching());
                    let next = flight.next(now, accepts_lz4, is_batch_due);
                    session.next_seq = flight.window.next_seq();
                    next
                })
                .flatten()
        };
        while let Some(next) = next(&merged, self) {
            match next {
                Ok(frame) if matches!(frame.header.lane, Lane::Group | Lane::Bulk) => {
                    self.merge(frame, &mut merged, outputs);
                }
                Ok(frame) => self.send(frame, outputs),
                Err(expired) => {
                    self.ledger.counters[Count::PushesExpired] += 1;
                    report_all(&expired, self.key, Outcome::Expired, outputs);
                }
            }
        }
        self.send_merged(&mut merged, outputs);
        self.give_merged_back(merged);
        self.drop_empty_flight();
        self.arm_ack(now);
        self.check_clogged()
    }

    /// Adds a frame to those that go out together.
    fn merge(&mut self, frame: Frame, merged: &mut Vec<Frame>, outputs: &mut Outputs) {
        let bytes: usize = merged.iter().map(Frame::wire_len).sum();
        let is_full = bytes + frame.wire_len() > self.ledger.settings.body_bytes_max as usize;
        if is_full || merged.len() >= BATCH_FRAMES_MAX {
            self.send_merged(merged, outputs);
        }
        merged.push(frame);
    }

    /// Sends several frames as one BATCH [P-1.7], compressed if that makes it shorter.
    fn send_merged(&mut self, merged: &mut Vec<Frame>, outputs: &mut Outputs) {
        if merged.len() < 2 {
            return merged.drain(..).for_each(|frame| self.send(frame, outputs));
        }
        self.ledger.counters[Count::Batches] += 1;
        let lane = merged[0].header.lane;
        let mut batch = encode_batch(merged).with_lane(lane);
        let accepts_lz4 = self.session.as_ref().is_some_and(|session| session.accepts_lz4());
        let least = self.ledger.settings.compress_min;
        let is_packed = |frame: &Frame| frame.header.flags.contains(Flags::COMPRESSED);
        if accepts_lz4
            && least > 0
            && batch.body.len() >= least
            && !merged.iter().any(is_packed)
            && let Some(packed) = try_compress(&batch.body)
        {
            let flags = batch.header.flags.with(Flags::COMPRESSED);
            batch = Frame::new(batch.header.command, packed).with_lane(lane).with_flags(flags);
        }
        merged.clear();
        self.send(batch, outputs);
    }

    /// Handles an ACK frame whose header's ack was handled already: the body may name frames after a hole.
    pub(super) fn handle_ack_frame(
        &mut self,
        now: Instant,
        frame: &Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let ack: Ack = decode(&frame.body)?;
        if ack.sack == 0 {
            return Ok(());
        }
        self.handle_ack(now, frame.header.ack, ack.sack, outputs)
    }

    /// Settles frames in flight [P-6.2], and sends what then has room.
    ///
    /// # Errors
    /// The client acknowledges what was never sent, or does not read.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        ack: Seq,
        sack: u64,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let Some(session) = &self.session else { return Ok(()) };
        if session.flight.is_none() {
            return if ack < session.next_seq { Ok(()) } else { Err(CloseReason::Window) };
        }
        match self.settle(now, ack, sack, outputs) {
            None => Err(CloseReason::Window),
            Some(0) => Ok(()),
            Some(_) if self.drop_empty_flight() => Ok(()),
            Some(_) => self.pump(now, outputs),
        }
    }

    /// Removes acknowledged frames from the flight and reports them. `None`: one was never sent.
    fn settle(&mut self, now: Instant, ack: Seq, sack: u64, outputs: &mut Outputs) -> Option<u64> {
        let (key, mut acked) = (self.key, 0);
        let is_known = self.with_flight(|session, _| {
            session.flight.as_mut().map(|flight| {
                flight.ack(ack, sack, now, |parcel| {
                    acked += 1;
                    report_all(&parcel, key, Outcome::Acked, outputs);
                })
            })
        });
        self.ledger.counters[Count::PushesAcked] += acked;
        is_known??.then_some(acked)
    }

    /// Drops a flight without frames. True: there is none now.
    fn drop_empty_flight(&mut self) -> bool {
        let Some(session) = &mut self.session else { return true };
        if let Some(flight) = session.flight.take_if(|flight| flight.is_empty()) {
            session.trip = flight.trip();
        }
        session.flight.is_none()
    }

    /// Takes the next step after an overdue ack.
    ///
    /// # Errors
    /// There is no further step.
    pub(super) fn handle_ack_overdue(
        &mut self,
        now: Instant,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let mode = self.ledger.settings.retransmit;
        let flight = self.session.as_mut().and_then(|session| session.flight.as_mut());
        let Some(flight) = flight else { return Ok(()) };
        if flight.steps == 0 {
            flight.make_own(); // the client may take its time
        }
        match mode {
            Retransmit::Probe => match flight.next_probe_step(now) {
                ProbeStep::Ask => {
                    self.ledger.counters[Count::AckProbes] += 1;
                    self.send(Frame::new(Command::Ping, Bytes::new()).with_flags(Flags::ACK_REQ), outputs);
                }
                ProbeStep::Resend => outputs.push(Output::CheckSendQueue(self.key)),
                ProbeStep::GiveUp => return Err(CloseReason::AckTimeout),
            },
            Retransmit::Classic => {
                if flight.next_step(now) >= CLASSIC_RESENDS {
                    return Err(CloseReason::AckTimeout);
                }
                flight.restart_deadline();
                self.resend(now, outputs);
            }
        }
        self.arm_ack(now);
        Ok(())
    }

    /// Sends everything in flight again if the client's system has received all bytes.
    pub(super) fn handle_send_queue(&mut self, now: Instant, undelivered: usize, outputs: &mut Outputs) {
        if undelivered == 0 && self.connection.outbound.is_none() {
            self.resend(now, outputs);
        }
    }

    fn resend(&mut self, now: Instant, outputs: &mut Outputs) {
        let Some(session) = &mut self.session else { return };
        let accepts_lz4 = session.accepts_lz4();
        let Some(flight) = session.flight.as_mut() else { return };
        let frames = flight.resend(now, accepts_lz4);
        self.ledger.counters[Count::PushesAgain] += frames.len() as u64;
        frames.into_iter().for_each(|frame| self.send(frame, outputs));
    }

    /// Sends a client that resumed everything that it misses, and then what waited [P-3.11]. It has all frames
    /// up to `last_seq`, and those that `sack` names.
    ///
    /// # Errors
    /// The client does not read.
    pub(super) fn replay(
        &mut self,
        now: Instant,
        last_seq: Seq,
        sack: u64,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        if self.session.as_ref().is_none_or(|session| session.flight.is_none()) {
            return Ok(());
        }
        assert!(self.settle(now, last_seq, sack, outputs).is_some(), "only a judged client resumes");
        self.drop_empty_flight();
        self.resend(now, outputs);
        self.pump(now, outputs)
    }

    /// Makes the timer fire no later than the next ack, or batch, is due.
    fn arm_ack(&mut self, now: Instant) {
        let batching = self.ledger.settings.batching();
        let flight = self.session.as_ref().and_then(|session| session.flight.as_ref());
        let deadlines = flight.map(|flight| [flight.ack_deadline(), flight.batch_deadline(batching)]);
        if let Some(deadline) = deadlines.into_iter().flatten().flatten().min() {
            // Two may be due at once, of which one was acted upon: the other one's turn is next.
            self.arm(deadline.max(now + NEXT_CHECK));
        }
    }
}

/// Returns whether a part of the queue is full: `1/parts` of it. One push is always taken: its size is up to the
/// backend.
fn is_full(flight: &Flight, parcel: &Parcel, settings: &Settings, parts: usize) -> bool {
    let (frames, bytes) = flight.waiting_beside(parcel);
    frames >= settings.queue_frames_max.div_ceil(parts)
        || (bytes > 0 && bytes + parcel.body.len() > settings.queue_bytes_max / parts)
}

/// The outcome of queueing a push.
enum Queued {
    /// Nobody waits for the outcome of the push, and its receiver reads too slowly.
    Dropped,
    Full,
    /// A NOTIFY stands for it; a push that it cannot stand for comes back.
    Collapsed(Option<PushRef>),
    /// The push waits; an older one whose place it took comes back.
    Waits(Option<Parcel>),
}

/// Reports the outcome of a push to the backend, if it asked for that.
pub(super) fn report(ticket: Option<PushRef>, key: ConnKey, outcome: Outcome, outputs: &mut Outputs) {
    let Some(ticket) = ticket else { return };
    if let Some(worker) = outputs.uplinks.get_mut(usize::from(ticket.worker)) {
        worker.push(Uplink::Pushed { ticket, key, outcome });
    }
}

/// Reports the outcome of a parcel and of all pushes that it stands for.
pub(super) fn report_all(parcel: &Parcel, key: ConnKey, outcome: Outcome, outputs: &mut Outputs) {
    parcel.tickets().for_each(|ticket| report(Some(ticket), key, outcome, outputs));
}
