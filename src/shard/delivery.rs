//! Frames to clients: answers, pushes, and the acks that come back.

use super::fanout::FANOUT_MIN;
use super::flight::{Flight, Parcel};
use super::{Count, Outputs, Shard};
use crate::handoff::{Downlink, Push, PushTicket, Target, Uplink};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{BATCH_FRAMES_MAX, Command, Flags, Frame, Lane, encode_batch};
use moorline_proto::ids::{ConnKey, Seq, ShardId};
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{self, Ack, Code, Notify};
use moorline_proto::message::{decode, encode};
use moorline_proto::time::Instant;

/// Above the memory watermark the limits of one client count as one of so many parts.
const MEMORY_PARTS: usize = 4;

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
        self.fanouts.on_chat(now);
        self.send(key, Frame::new(command, body), outputs);
        self.close_if_clogged(now, key, outputs);
    }

    /// One payload for some of this shard's connections: at once to a few, in slices to many.
    pub(super) fn on_push(&mut self, now: Instant, mut push: Push, outputs: &mut Outputs) {
        let targets = std::mem::take(&mut push.targets);
        if let ([Target::Connection(key)], None) = (&targets[..], push.except) {
            return self.deliver(now, *key, &push, outputs); // most are for one, and need no list
        }
        let mut keys = Vec::with_capacity(targets.len());
        for target in targets {
            if let Target::Connection(key) = target {
                keys.extend((push.except != Some(key)).then_some(key)); // gone ones show when their turn comes
                continue;
            }
            if let Some(home) = self.home_of_target(&target) {
                let part = Push { targets: vec![target], ..push.clone() };
                outputs.forwards.push((home, Downlink::Push(part)));
                continue;
            }
            let found = self.resolve(&target);
            if found.is_empty() && !matches!(target, Target::Room(_)) {
                self.tally[Count::PushesOffline] += 1;
                report(push.ticket, ConnKey::from_u64(0), Outcome::Offline, outputs);
            }
            keys.extend(found.into_iter().filter(|key| push.except != Some(*key)));
        }
        if keys.len() > FANOUT_MIN {
            return self.begin_fanout(push, keys, outputs);
        }
        keys.into_iter().for_each(|key| self.deliver(now, key, &push, outputs));
    }

    /// Where a user is looked for next who is meant, and not here.
    pub(super) fn home_of_target(&self, target: &Target) -> Option<ShardId> {
        match target {
            Target::User(uid) | Target::Device(uid, _) => self.home_after(uid),
            Target::Connection(_) | Target::Room(_) => None,
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
            Target::Room(room) => self.rooms.members(room),
            Target::User(uid) => self.registry.of_user(uid).into_iter().map(of_session).collect(),
            Target::Device(uid, device) => {
                self.registry.of_device(uid, device).map(of_session).into_iter().collect()
            }
        }
    }

    /// One push for one session. A PUSH that may wait becomes a NOTIFY if too much waits already [P-6.9].
    pub(super) fn deliver(&mut self, now: Instant, key: ConnKey, push: &Push, outputs: &mut Outputs) {
        let Some(connection) = self.table.get(key).filter(|connection| connection.state.has_session()) else {
            self.tally[Count::PushesOffline] += 1;
            return report(push.ticket, key, Outcome::Offline, outputs);
        };
        let is_detached = connection.state == State::Detached;
        let (slot, unsent) = (connection.session, connection.outbound.as_ref().map_or(0, |it| it.bytes()));
        let parts = if self.queued_bytes > self.settings.memory_bytes_max { MEMORY_PARTS } else { 1 };
        let session = self.registry.get_mut(slot).expect("it has a session");
        let (limits, next_seq) = (self.settings.downlink, session.next_seq);
        let flight = session.flight.get_or_insert_with(|| Box::new(Flight::new(limits, next_seq)));
        let (waiting, length) = (flight.waiting_bytes(), push.body.len());
        // One is always taken: how large it may be is up to whoever pushes.
        let is_over = waiting > 0 && waiting + length > self.settings.queue_bytes_max / parts;
        let is_full = flight.waiting() >= self.settings.queue_frames_max || is_over;
        if is_full {
            self.tally[Count::PushesFull] += 1;
            report(push.ticket, key, Outcome::Full, outputs);
            self.close(now, key, CloseReason::Slow, outputs);
            return;
        }
        self.tally[Count::Pushes] += 1;
        if push.lane <= Lane::Chat {
            self.fanouts.on_chat(now);
        }
        let parcel = Parcel {
            ticket: push.ticket,
            command: push.command,
            lane: push.lane,
            expires_at: push.expires_at,
            body: push.body.clone(),
            packed: push.packed.clone(),
            collapse: push.collapse.clone(),
            also: Vec::new(),
        };
        let is_slow = waiting + unsent > self.settings.collapse_bytes_max / parts;
        let collapsed = if is_slow { collapsed(&parcel) } else { None };
        if let Some(notify) = collapsed {
            self.tally[Count::PushesCollapsed] += 1;
            if let Some(ticket) = flight.wait_collapsed(notify, now) {
                report(Some(ticket), key, Outcome::Full, outputs);
            }
        } else if let Some(older) = flight.wait(parcel, now) {
            self.tally[Count::PushesSuperseded] += 1;
            older.tickets().for_each(|ticket| report(Some(ticket), key, Outcome::Expired, outputs));
        }
        self.queued_bytes = self.queued_bytes + flight.waiting_bytes() - waiting;
        if is_detached {
            report(push.ticket, key, Outcome::Queued, outputs);
        } else {
            self.pump(now, key, outputs);
        }
    }

    /// Sends what the window has room for; nothing while there is no socket.
    pub(super) fn pump(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(connection) = self.table.get(key).filter(|it| it.state.is_logged_in()) else { return };
        let slot = connection.session;
        let batching = self.settings.batching();
        let mut merged = std::mem::take(&mut self.merged);
        while let Some(session) = self.registry.get_mut(slot) {
            let accepts_lz4 = session.accepts_lz4;
            let Some(flight) = session.flight.as_mut() else { break };
            let waiting = flight.waiting_bytes();
            let is_batch_due = !merged.is_empty() || flight.is_batch_due(now, batching);
            let next = flight.next(now, accepts_lz4, is_batch_due);
            self.queued_bytes -= waiting - flight.waiting_bytes();
            match next {
                Some(Ok(frame)) => {
                    session.next_seq = flight.window.next_seq();
                    if matches!(frame.header.lane, Lane::Group | Lane::Bulk) {
                        self.merge(key, frame, &mut merged, outputs);
                    } else {
                        self.send(key, frame, outputs);
                    }
                }
                Some(Err(expired)) => {
                    self.tally[Count::PushesExpired] += 1;
                    expired.tickets().for_each(|it| report(Some(it), key, Outcome::Expired, outputs));
                }
                None => break,
            }
        }
        self.send_merged(key, &mut merged, outputs);
        self.merged = merged;
        let Some(session) = self.registry.get_mut(slot) else { return };
        if session.flight.as_ref().is_some_and(|flight| flight.is_empty()) {
            session.flight = None;
        }
        self.arm_ack(now, key);
        self.close_if_clogged(now, key, outputs);
    }

    /// Adds a frame to those that go out together.
    fn merge(&mut self, key: ConnKey, frame: Frame, merged: &mut Vec<Frame>, outputs: &mut Outputs) {
        let bytes: usize = merged.iter().map(Frame::wire_len).sum();
        let is_full = bytes + frame.wire_len() > self.settings.body_bytes_max as usize;
        if is_full || merged.len() >= BATCH_FRAMES_MAX {
            self.send_merged(key, merged, outputs);
        }
        merged.push(frame);
    }

    /// Sends several frames as one BATCH [P-1.7], compressed if that is worth it.
    fn send_merged(&mut self, key: ConnKey, merged: &mut Vec<Frame>, outputs: &mut Outputs) {
        if merged.len() < 2 {
            return merged.drain(..).for_each(|frame| self.send(key, frame, outputs));
        }
        self.tally[Count::Batches] += 1;
        let lane = merged[0].header.lane;
        let mut batch = encode_batch(merged).with_lane(lane);
        let accepts_lz4 = self.session_of(key).is_some_and(|session| session.accepts_lz4);
        let (least, is_packed) =
            (self.settings.compress_min, |frame: &Frame| frame.header.flags.contains(Flags::COMPRESSED));
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
        self.send(key, batch, outputs);
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
        let is_known = flight.ack(ack, sack, now, |parcel| {
            acked += 1;
            parcel.tickets().for_each(|ticket| report(Some(ticket), key, Outcome::Acked, outputs));
        });
        if !is_known {
            return Err(CloseReason::Window);
        }
        if acked == 0 {
            return Ok(());
        }
        self.tally[Count::PushesAcked] += acked;
        if flight.is_empty() {
            session.flight = None;
        } else {
            self.pump(now, key, outputs);
        }
        Ok(())
    }

    pub(super) fn close_if_clogged(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        if let Err(reason) = self.check_clogged(key) {
            self.close(now, key, reason, outputs);
        }
    }
}

/// The NOTIFY that may take the place of a push: the client pulls what it misses.
fn collapsed(push: &Parcel) -> Option<Parcel> {
    if push.command != Command::Push || !matches!(push.lane, Lane::Group | Lane::Bulk) {
        return None;
    }
    let client::Push { conversation, seq, .. } = decode(&push.body).ok()?;
    let key = conversation.as_str().into();
    let body = encode(&Notify { conversation, latest: seq, first: seq });
    let (packed, collapse) = (None, Some(key));
    Some(Parcel { command: Command::Notify, body, packed, collapse, ..push.clone() })
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
