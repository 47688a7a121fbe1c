//! What follows an overdue ack [P-6.5], and what is sent again on a new connection [P-3.11].
//!
//! TCP repeats what a network loses, so a frame is sent again on the same connection only if the system has
//! delivered everything and still no ack came: then it was lost in the client.
//!
//! ```text
//! probe:    overdue ──► PING, ACK_REQ ──5 s──► all delivered? again, with DUP ──5 s──► CLOSE(ACK_TIMEOUT)
//! classic:  overdue ──► again ──overdue──► again ──overdue──► again ──overdue──► CLOSE(ACK_TIMEOUT)
//! ```

use super::delivery::report;
use super::{Count, Output, Outputs, Shard};
use crate::config::Retransmit;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame};
use moorline_proto::ids::{ConnKey, Seq};
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::{Duration, Instant};

/// Steps of the mode `probe` before the close.
const PROBE_STEPS: u8 = 2;
/// No look at a timer follows another one sooner.
const NEXT_LOOK: Duration = Duration::from_millis(1);
/// Times that the mode `classic` sends again.
const CLASSIC_RESENDS: u8 = 3;

impl Shard {
    /// An ack is overdue.
    pub(super) fn on_ack_overdue(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let mode = self.settings.retransmit;
        let Some(flight) = self.session_of(key).and_then(|session| session.flight.as_mut()) else { return };
        let step = flight.next_step(now);
        match mode {
            Retransmit::Probe if step == 0 => {
                self.tally[Count::AckProbes] += 1;
                let probe = Frame::new(Command::Ping, Bytes::new()).with_flags(Flags::ACK_REQ);
                self.send(key, probe, outputs);
            }
            Retransmit::Probe if step < PROBE_STEPS => outputs.push(Output::CheckSendQueue(key)),
            Retransmit::Classic if step < CLASSIC_RESENDS => {
                flight.restart_deadline();
                self.resend(now, key, outputs);
            }
            Retransmit::Probe | Retransmit::Classic => {
                return self.close(now, key, CloseReason::AckTimeout, outputs);
            }
        }
        self.arm_ack(now, key);
    }

    /// Answers [`Output::CheckSendQueue`]: how many bytes the system has not delivered to the client.
    pub fn handle_send_queue(
        &mut self,
        now: Instant,
        key: ConnKey,
        undelivered: usize,
        outputs: &mut Outputs,
    ) {
        let has_more = self.table.get(key).is_none_or(|connection| connection.outbound.is_some());
        if undelivered == 0 && !has_more {
            self.resend(now, key, outputs);
        }
    }

    fn resend(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) -> u32 {
        let Some(session) = self.session_of(key) else { return 0 };
        let accepts_lz4 = session.accepts_lz4;
        let Some(flight) = session.flight.as_mut() else { return 0 };
        let frames = flight.resend(now, accepts_lz4);
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        self.tally[Count::PushesAgain] += u64::from(count);
        frames.into_iter().for_each(|frame| self.send(key, frame, outputs));
        count
    }

    /// How many frames [`Self::replay`] will send.
    pub(super) fn replay_len(&self, key: ConnKey, last_seq: Seq, sack: u64) -> u32 {
        let session = self.table.get(key).and_then(|connection| self.registry.get(connection.session));
        session.and_then(|session| session.flight.as_ref()).map_or(0, |it| it.replay_len(last_seq, sack))
    }

    /// The client is back and has all up to `last_seq`, and what `sack` names: it gets the rest again, and
    /// then what waited.
    pub(super) fn replay(
        &mut self,
        now: Instant,
        key: ConnKey,
        last_seq: Seq,
        sack: u64,
        outputs: &mut Outputs,
    ) {
        let Some(session) = self.session_of(key) else { return };
        let Some(flight) = session.flight.as_mut() else { return };
        let mut acked = 0;
        let is_known = flight.ack(last_seq, sack, now, |parcel| {
            acked += 1;
            parcel.tickets().for_each(|ticket| report(Some(ticket), key, Outcome::Acked, outputs));
        });
        assert!(is_known, "only a client that was judged goes on");
        if flight.is_empty() {
            session.flight = None;
        }
        self.tally[Count::PushesAcked] += acked;
        self.resend(now, key, outputs);
        self.pump(now, key, outputs);
    }

    /// The timer fires no later than the next ack, or batch, is due.
    pub(super) fn arm_ack(&mut self, now: Instant, key: ConnKey) {
        let batching = self.settings.batching();
        let flight = self.session_of(key).and_then(|session| session.flight.as_ref());
        let deadlines = flight.map(|flight| [flight.ack_deadline(), flight.batch_deadline(batching)]);
        if let Some(deadline) = deadlines.into_iter().flatten().flatten().min() {
            // Two may be due at once, of which one was acted upon: the other one's turn is next.
            self.arm(key, deadline.max(now + NEXT_LOOK));
        }
    }
}
