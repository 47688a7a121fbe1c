//! Frames to clients: answers, pushes, and the acks that come back.

use super::flight::{Flight, Parcel};
use super::{Count, Outputs, Shard};
use crate::handoff::{Push, PushTicket, Target, Uplink};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::{ConnKey, Seq};
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{Ack, Code};
use moorline_proto::message::decode;
use moorline_proto::time::Instant;

impl Shard {
    /// The backend's answer to a SEND or REQ.
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        key: ConnKey,
        command: Command,
        cid: Seq,
        body: Bytes,
        outputs: &mut Outputs,
    ) {
        let session = self.table.get(key).map(|connection| connection.session);
        let Some(session) = session.and_then(|session| self.registry.get_mut(session)) else {
            self.tally[Count::AnswersStale] += 1;
            return;
        };
        session.unanswered = session.unanswered.saturating_sub(1);
        if command == Command::SendAck {
            session.dedupe.answer(cid);
            let version = session.login_version;
            if !is_retry(&body) {
                self.results.store(now, version, cid, &body);
            }
        }
        self.tally[Count::Answers] += 1;
        self.send(key, Frame::new(command, body), outputs);
        self.close_if_clogged(now, key, outputs);
    }

    /// One payload for some of this shard's connections.
    pub(super) fn on_push(&mut self, now: Instant, push: Push, outputs: &mut Outputs) {
        let Push { ticket, targets, command, lane, expires_at, body, .. } = push;
        for target in targets {
            let keys = self.resolve(&target);
            if keys.is_empty() {
                self.tally[Count::PushesOffline] += 1;
                let key = if let Target::Connection(key) = target { key } else { ConnKey::from_u64(0) };
                report(ticket, key, Outcome::Offline, outputs);
            }
            for key in keys {
                let parcel = Parcel { ticket, command, lane, expires_at, body: body.clone() };
                self.deliver(now, key, parcel, outputs);
            }
        }
    }

    /// The logged-in connections a target means.
    pub(super) fn resolve(&self, target: &Target) -> Vec<ConnKey> {
        let of_session = |slot: u32| {
            let session = self.registry.get(slot).expect("the registry names live sessions");
            self.table.key_of(session.connection).expect("a session has its connection")
        };
        match target {
            Target::Connection(key) => {
                let is_here = self.table.get(*key).is_some_and(|connection| connection.state.has_session());
                if is_here { vec![*key] } else { Vec::new() }
            }
            Target::Room(_) => Vec::new(),
            Target::User(uid) => self.registry.of_user(uid).into_iter().map(of_session).collect(),
            Target::Device(uid, device) => {
                self.registry.of_device(uid, device).map(of_session).into_iter().collect()
            }
        }
    }

    fn deliver(&mut self, now: Instant, key: ConnKey, parcel: Parcel, outputs: &mut Outputs) {
        let slot = self.table.get(key).expect("resolved").session;
        let session = self.registry.get_mut(slot).expect("resolved");
        let (limits, next_seq) = (self.settings.downlink, session.next_seq);
        let flight = session.flight.get_or_insert_with(|| Box::new(Flight::new(limits, next_seq)));
        let is_full = flight.waiting() >= self.settings.queue_frames_max
            || flight.waiting_bytes() + parcel.body.len() > self.settings.queue_bytes_max;
        if is_full {
            self.tally[Count::PushesFull] += 1;
            report(parcel.ticket, key, Outcome::Full, outputs);
            self.close(now, key, CloseReason::Slow, outputs);
            return;
        }
        self.tally[Count::Pushes] += 1;
        flight.wait(parcel);
        self.pump(now, key, outputs);
    }

    /// Sends what the window has room for.
    fn pump(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(slot) = self.table.get(key).map(|connection| connection.session) else { return };
        loop {
            let Some(session) = self.registry.get_mut(slot) else { return };
            let Some(flight) = session.flight.as_mut() else { return };
            match flight.next(now) {
                Some(Ok(frame)) => {
                    session.next_seq = flight.window.next_seq();
                    self.send(key, frame, outputs);
                }
                Some(Err(expired)) => {
                    self.tally[Count::PushesExpired] += 1;
                    report(expired.ticket, key, Outcome::Expired, outputs);
                }
                None => break,
            }
        }
        let Some(flight) = self.registry.get_mut(slot).and_then(|session| session.flight.as_mut()) else {
            return;
        };
        if let Some(deadline) = flight.ack_deadline() {
            self.arm(key, deadline);
        }
        self.close_if_clogged(now, key, outputs);
    }

    /// The cumulative ack that any frame carries [P-6.2].
    pub(super) fn on_header_ack(
        &mut self,
        now: Instant,
        key: ConnKey,
        ack: Seq,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        if ack == 0 {
            return Ok(());
        }
        self.on_acks(now, key, ack, 0, outputs)
    }

    /// An ACK frame: the header's ack was taken already, the body may name frames after a hole.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: &Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let ack: Ack = decode(&frame.body)?;
        if ack.sack == 0 {
            return Ok(());
        }
        self.on_acks(now, key, frame.header.ack, ack.sack, outputs)
    }

    fn on_acks(
        &mut self,
        now: Instant,
        key: ConnKey,
        ack: Seq,
        sack: u64,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let slot = self.table.get(key).expect("its frame is being handled").session;
        let session = self.registry.get_mut(slot).expect("acks are read only with a session");
        let Some(flight) = session.flight.as_mut() else {
            return if ack < session.next_seq { Ok(()) } else { Err(CloseReason::Window) };
        };
        let mut acked = 0;
        let mut settle = |parcel: Parcel| {
            acked += 1;
            report(parcel.ticket, key, Outcome::Acked, outputs);
        };
        let verdict = flight.window.ack(ack, now, |frame| settle(frame.item));
        verdict.map_err(|_| CloseReason::Window)?;
        if sack != 0 {
            flight.window.sack(ack, sack, now, |frame| settle(frame.item));
        }
        if acked == 0 {
            return Ok(());
        }
        self.tally[Count::PushesAcked] += acked;
        flight.probes = 0;
        if flight.is_empty() {
            session.flight = None;
        } else {
            self.pump(now, key, outputs);
        }
        Ok(())
    }

    /// An ack is overdue: ask once, then give up and return everything to the backend [P-6.5].
    pub(super) fn on_ack_overdue(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let slot = self.table.get(key).expect("its timer fired").session;
        let Some(flight) = self.registry.get_mut(slot).and_then(|session| session.flight.as_mut()) else {
            return;
        };
        if flight.probes > 0 {
            return self.close(now, key, CloseReason::AckTimeout, outputs);
        }
        flight.probes += 1;
        self.tally[Count::AckProbes] += 1;
        let probe = Frame::new(Command::Ping, Bytes::new()).with_flags(moorline_proto::frame::Flags::ACK_REQ);
        self.send(key, probe, outputs);
    }

    pub(super) fn replay_len(&self, _key: ConnKey, _last_seq: Seq, _sack: u64) -> u32 {
        0
    }

    pub(super) fn replay(
        &mut self,
        now: Instant,
        key: ConnKey,
        last_seq: Seq,
        sack: u64,
        outputs: &mut Outputs,
    ) {
        let _ = (now, key, last_seq, sack, outputs);
    }

    pub(super) fn close_if_clogged(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        if let Err(reason) = self.check_clogged(key) {
            self.close(now, key, reason, outputs);
        }
    }
}

/// Whether a SENDACK asks for another try: its answer is not final.
fn is_retry(body: &[u8]) -> bool {
    /// The fields that the gateway writes, first.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct Lead {
        #[prost(uint32, tag = "1")]
        cid: u32,
        #[prost(enumeration = "Code", tag = "2")]
        code: i32,
    }
    <Lead as prost::Message>::decode(body).is_ok_and(|lead| lead.code == i32::from(Code::Retry))
}

/// Tells the backend what became of a push, if it wants to know.
pub(super) fn report(ticket: Option<PushTicket>, key: ConnKey, outcome: Outcome, outputs: &mut Outputs) {
    let Some(ticket) = ticket else { return };
    if let Some(worker) = outputs.uplinks.get_mut(usize::from(ticket.worker)) {
        worker.push(Uplink::Pushed { ticket, key, outcome });
    }
}
