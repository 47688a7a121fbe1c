//! Frames from clients.

use super::{Count, Outputs, Shard};
use crate::handoff::Uplink;
use bytes::Bytes;
use moorline_proto::dedupe::Verdict;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame};
use moorline_proto::ids::{ConnKey, Pin, Seq};
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::{Code, Ping, Req, Resp, SendAck, Sub, SubAck};
use moorline_proto::message::{decode, frame_of};
use moorline_proto::time::Duration;

/// Bytes of SENDs that one session may have held out of order.
const EARLY_BYTES_MAX: usize = 256 << 10;
/// SENDs and REQs of one session without an answer [P-10.1]. Above it a REQ or a repeated SEND is
/// answered RETRY here; a SEND that is new has the dedupe window as its bound.
pub(super) const UNANSWERED_MAX: u16 = 512;
/// What such a RETRY asks the client to wait, in milliseconds.
const RETRY_AFTER_MS: u32 = 500;

impl Shard {
    /// [P-7.2]: stamps activity (done when the bytes came) and takes over the promised interval.
    pub(super) fn on_ping(
        &mut self,
        key: ConnKey,
        body: &Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let ping: Ping = decode(body)?;
        let (min, max) = self.settings.heartbeat_s;
        let connection = self.table.get_mut(key).expect("its frame is being handled");
        let earlier = connection.heartbeat_s;
        connection.heartbeat_s = u16::try_from(ping.next_s).unwrap_or(u16::MAX).clamp(min, max);
        let patience = server_patience(Duration::from_secs(u64::from(connection.heartbeat_s)));
        let (is_nearer, deadline) = (connection.heartbeat_s < earlier, connection.heard_at + patience);
        if is_nearer {
            self.arm(key, deadline);
        }
        self.tally[Count::Pings] += 1;
        self.send(key, Frame::new(Command::Pong, Bytes::new()), outputs);
        self.check_clogged(key)
    }

    /// [P-5.1]: cids are taken in order; one that comes early waits, one that comes again is passed on as such.
    pub(super) fn on_send(
        &mut self,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let cid = frame.header.seq;
        let session = self.table.get(key).expect("its frame is being handled").session;
        let session = self.registry.get_mut(session).expect("SEND is lawful only with a session");
        let (pin, is_full) = (session.pin, session.unanswered >= UNANSWERED_MAX);
        match session.dedupe.check(cid) {
            Verdict::Next => {
                session.dedupe.take(cid);
                self.tally[Count::Sends] += 1;
                let dup = frame.header.flags.contains(Flags::DUP);
                self.forward(key, pin, Command::Send, cid, dup, frame.body, outputs);
                self.release_early(key, outputs);
            }
            Verdict::Early => {
                let held = session.early.get_or_insert_default();
                held.insert(cid, Bytes::copy_from_slice(&frame.body));
                if held.values().map(Bytes::len).sum::<usize>() > EARLY_BYTES_MAX {
                    return Err(CloseReason::Window);
                }
                self.tally[Count::SendsEarly] += 1;
            }
            Verdict::Pending => self.tally[Count::SendsAgain] += 1,
            Verdict::Answered if is_full => {
                let (code, retry_after_ms) = (Code::Retry.into(), RETRY_AFTER_MS);
                let answer = SendAck { cid, code, retry_after_ms, ..Default::default() };
                return self.refuse(key, frame_of(Command::SendAck, &answer), outputs);
            }
            Verdict::Answered => {
                self.tally[Count::SendsAgain] += 1;
                self.forward(key, pin, Command::Send, cid, true, frame.body, outputs);
            }
            Verdict::Beyond => return Err(CloseReason::Window),
        }
        Ok(())
    }

    fn release_early(&mut self, key: ConnKey, outputs: &mut Outputs) {
        let Some(connection) = self.table.get(key) else { return };
        let Some(session) = self.registry.get_mut(connection.session) else { return };
        let (pin, Some(mut held)) = (session.pin, session.early.take()) else { return };
        let mut released: Vec<(Seq, Bytes)> = Vec::new();
        while let Some(body) = held.remove(&(session.dedupe.taken() + 1)) {
            let cid = session.dedupe.taken() + 1;
            session.dedupe.take(cid);
            released.push((cid, body));
        }
        if !held.is_empty() {
            session.early = Some(held);
        }
        self.tally[Count::Sends] += released.len() as u64;
        for (cid, body) in released {
            self.forward(key, pin, Command::Send, cid, false, body, outputs);
        }
    }

    /// A request or an application command: opaque here, not numbered, in order with the SENDs.
    pub(super) fn on_unnumbered(
        &mut self,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let session = self.table.get(key).expect("its frame is being handled").session;
        let session = self.registry.get(session).expect("lawful only with a session");
        let (pin, command) = (session.pin, frame.header.command);
        if command == Command::Req && session.unanswered >= UNANSWERED_MAX {
            let (id, code) = (decode::<Req>(&frame.body)?.id, Code::Retry.into());
            let answer = Resp { id, code, retry_after_ms: RETRY_AFTER_MS, ..Default::default() };
            return self.refuse(key, frame_of(Command::Resp, &answer), outputs);
        }
        self.forward(key, pin, command, 0, false, frame.body, outputs);
        Ok(())
    }

    /// Too much of this client is under way: the answer is given here.
    fn refuse(&mut self, key: ConnKey, answer: Frame, outputs: &mut Outputs) -> Result<(), CloseReason> {
        self.tally[Count::RefusedHere] += 1;
        self.send(key, answer, outputs);
        self.check_clogged(key)
    }

    /// Rooms are not served yet [P-2.5].
    pub(super) fn on_subscription(
        &mut self,
        key: ConnKey,
        body: &Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let sub: Sub = decode(body)?;
        let answer = SubAck { id: sub.id, code: Code::Unsupported.into(), reason: String::new() };
        self.send(key, frame_of(Command::SubAck, &answer), outputs);
        self.check_clogged(key)
    }

    #[allow(clippy::too_many_arguments)] // the fields of one Uplink::Up
    fn forward(
        &mut self,
        key: ConnKey,
        pin: Pin,
        command: Command,
        seq: Seq,
        dup: bool,
        body: Bytes,
        outputs: &mut Outputs,
    ) {
        if matches!(command, Command::Send | Command::Req)
            && let Some(connection) = self.table.get(key)
            && let Some(session) = self.registry.get_mut(connection.session)
        {
            session.unanswered = session.unanswered.saturating_add(1);
        }
        let up = Uplink::Up { key, pin, command, seq, dup, body };
        outputs.uplinks[pin.worker(self.settings.workers)].push(up);
    }
}
