//! Frames from clients.

use super::session::Route;
use super::{Count, Outputs, Shard};
use crate::handoff::Uplink;
use bytes::Bytes;
use moorline_proto::dedupe::Verdict;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::{ConnKey, Seq};
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::{Code, Ping, Req, Resp, SendAck, Sub, SubAck, Throttle};
use moorline_proto::message::{decode, frame_of};
use moorline_proto::time::{Duration, Instant};

/// Bytes of SENDs that one session may have held out of order.
const EARLY_BYTES_MAX: usize = 256 << 10;
/// SENDs and REQs of one session without an answer [P-10.1]. Above it a REQ or a repeated SEND is
/// answered RETRY here; a SEND that is new has the dedupe window as its bound.
pub(super) const UNANSWERED_MAX: u16 = 512;
/// What such a RETRY asks the client to wait, in milliseconds.
const RETRY_AFTER_MS: u32 = 500;
/// What a RETRY in overload asks at least, and the random part on top.
const SHED_AFTER_MS: u64 = 1_000;
const SHED_SPREAD_MS: u64 = 4_000;

impl Shard {
    /// [P-7.2]: stamps activity (done when the bytes came) and takes over the promised interval.
    pub(super) fn on_ping(
        &mut self,
        now: Instant,
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
        if connection.heartbeat_s < earlier {
            self.arm(key, now + patience);
        }
        self.tally[Count::Pings] += 1;
        self.send(key, Frame::new(Command::Pong, Bytes::new()), outputs);
        self.check_clogged(key)
    }

    /// [P-5.4]: cids are taken in order; one that comes early waits, one that comes again is answered from
    /// memory or passed on as such.
    pub(super) fn on_send(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let (cid, lane) = (frame.header.seq, frame.header.lane);
        let strict_max = self.settings.uplink_window;
        let session = self.session_of(key).expect("SEND is lawful only with a session");
        let (route, version) = (session.route(), session.login_version);
        let is_full = session.unanswered >= UNANSWERED_MAX;
        let verdict = match session.dedupe.check(cid) {
            Verdict::Next | Verdict::Early if cid > session.dedupe.base().saturating_add(strict_max) => {
                Verdict::Beyond
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Next => {
                session.dedupe.take(cid);
                self.tally[Count::Sends] += 1;
                let dup = frame.header.flags.contains(Flags::DUP);
                self.put_send(now, key, route, lane, (cid, dup, frame.body), outputs);
                self.release_early(now, key, lane, outputs);
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
            Verdict::Answered => {
                self.tally[Count::SendsAgain] += 1;
                if let Some(body) = self.results.get(version, cid) {
                    self.tally[Count::SendsReplayed] += 1;
                    self.send(key, Frame::new(Command::SendAck, body).with_flags(Flags::DUP), outputs);
                } else if is_full {
                    self.tally[Count::RefusedHere] += 1;
                    self.answer_retry(key, cid, RETRY_AFTER_MS, outputs);
                } else {
                    self.put_send(now, key, route, lane, (cid, true, frame.body), outputs);
                }
            }
            Verdict::Beyond => return Err(CloseReason::Window),
        }
        self.check_clogged(key)
    }

    fn release_early(&mut self, now: Instant, key: ConnKey, lane: Lane, outputs: &mut Outputs) {
        let Some(session) = self.session_of(key) else { return };
        let (route, Some(mut held)) = (session.route(), session.early.take()) else { return };
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
            self.put_send(now, key, route, lane, (cid, false, body), outputs);
        }
    }

    /// A SEND whose cid was taken: to the backend, or RETRY if its user says too much or the lane is shed.
    fn put_send(
        &mut self,
        now: Instant,
        key: ConnKey,
        route: Route,
        lane: Lane,
        (cid, dup, body): (Seq, bool, Bytes),
        outputs: &mut Outputs,
    ) {
        match self.judge_uplink(now, key, route, lane, outputs) {
            Ok(()) => self.forward(key, route, Command::Send, (cid, dup, body), lane, outputs),
            Err(wait_ms) => {
                if let Some(session) = self.session_of(key) {
                    session.dedupe.answer(cid);
                }
                self.answer_retry(key, cid, wait_ms, outputs);
            }
        }
    }

    /// A request, a room or an application command: opaque here, not numbered, in order with the SENDs.
    pub(super) fn on_unnumbered(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let (command, lane) = (frame.header.command, frame.header.lane);
        let session = self.session_of(key).expect("lawful only with a session");
        let (route, is_full) = (session.route(), session.unanswered >= UNANSWERED_MAX);
        if matches!(command, Command::Sub | Command::Unsub) {
            decode::<Sub>(&frame.body)?; // UNSUB has the same fields
        }
        let is_app = matches!(command, Command::App(_));
        if is_full && !is_app {
            self.tally[Count::RefusedHere] += 1;
            self.refuse(key, command, &frame.body, RETRY_AFTER_MS, outputs)?;
        } else if let Err(wait_ms) = self.judge_uplink(now, key, route, lane, outputs) {
            if is_app {
                self.tally[Count::AppsDropped] += 1; // lost, as it may be [P-2.3]
            } else {
                self.refuse(key, command, &frame.body, wait_ms, outputs)?;
            }
        } else {
            self.forward(key, route, command, (0, false, frame.body), lane, outputs);
        }
        self.check_clogged(key)
    }

    /// # Errors
    /// Not now: how many milliseconds the client is to wait.
    fn judge_uplink(
        &mut self,
        now: Instant,
        key: ConnKey,
        route: Route,
        lane: Lane,
        outputs: &mut Outputs,
    ) -> Result<(), u32> {
        if self.holds.is_shed(route, lane) {
            self.tally[Count::Shed] += 1;
            let wait = SHED_AFTER_MS + self.random.below(SHED_SPREAD_MS);
            return Err(u32::try_from(wait).unwrap_or(u32::MAX));
        }
        let Err(over) = self.users_spent.try_spend(route.pin.0, self.settings.user_fill(), now) else {
            return Ok(());
        };
        self.tally[Count::UserRefusals] += 1;
        let wait_ms = u32::try_from(over.wait.as_millis()).unwrap_or(u32::MAX).max(1);
        if over.is_news {
            self.tally[Count::Throttles] += 1;
            let reason = "this user says more than limits.user_rate".to_owned();
            let throttle = Throttle { retry_after_ms: wait_ms.max(THROTTLE_MS), reason };
            self.send(key, frame_of(Command::Throttle, &throttle), outputs);
        }
        Err(wait_ms.max(RETRY_AFTER_MS))
    }

    fn answer_retry(&mut self, key: ConnKey, cid: Seq, retry_after_ms: u32, outputs: &mut Outputs) {
        let answer = SendAck { cid, code: Code::Retry.into(), retry_after_ms, ..Default::default() };
        self.send(key, frame_of(Command::SendAck, &answer), outputs);
    }

    /// RETRY to a question that has an id.
    fn refuse(
        &mut self,
        key: ConnKey,
        command: Command,
        body: &Bytes,
        retry_after_ms: u32,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let code = Code::Retry.into();
        let answer = if command == Command::Req {
            let id = decode::<Req>(body)?.id;
            frame_of(Command::Resp, &Resp { id, code, retry_after_ms, ..Default::default() })
        } else {
            // UNSUB has the fields of SUB.
            let id = decode::<Sub>(body)?.id;
            frame_of(Command::SubAck, &SubAck { id, code, reason: String::new() })
        };
        self.send(key, answer, outputs);
        Ok(())
    }

    fn forward(
        &mut self,
        key: ConnKey,
        route: Route,
        command: Command,
        (seq, dup, body): (Seq, bool, Bytes),
        lane: Lane,
        outputs: &mut Outputs,
    ) {
        if !matches!(command, Command::App(_))
            && let Some(session) = self.session_of(key)
        {
            session.unanswered = session.unanswered.saturating_add(1);
        }
        let up = Uplink::Up { key, pin: route.pin, command, seq, dup, body };
        outputs.uplinks[route.index()].push(up);
        self.hold_if_full(key, route, lane, outputs);
    }
}

/// A client that is told to slow down does so for this long at least, in milliseconds.
const THROTTLE_MS: u32 = 1_000;
