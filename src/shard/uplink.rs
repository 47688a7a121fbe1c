//! Frames from clients for the backend: in order, at most once, within the limits.
//!
//! Example: alice sends SEND 7 twice. The first becomes `Up { number: 7 }` for her worker. The second is dropped
//! while the answer is outstanding, and answered from memory afterwards [P-5.4].

use super::bucket::Buckets;
use super::client::Client;
use super::early::Early;
use super::results::Results;
use super::session::Route;
use super::sheds::Sheds;
use super::{Count, Outputs};
use crate::messages::Uplink;
use crate::snapshot::{AnswerRecord, Section, UserSpentRecord};
use bytes::Bytes;
use moorline_proto::dedupe::Verdict;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::Seq;
use moorline_proto::message::client::{Code, Resp, SendAck, Sub, SubAck, Throttle};
use moorline_proto::message::{decode, frame_of};
use moorline_proto::time::Instant;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

/// Bytes of SENDs that one session may have held out of order.
const EARLY_BYTES_MAX: usize = 256 << 10;
/// SENDs and REQs of one session without an answer [P-10.1]. Above it a REQ or a repeated SEND is
/// answered RETRY here; a SEND that is new has the dedupe window as its bound.
pub(super) const UNANSWERED_MAX: u16 = 512;
/// Fields of a REQ at most, known or not [P-10.1].
const REQ_FIELDS_MAX: usize = 32;
/// Wait that such a RETRY asks for, in milliseconds.
const RETRY_AFTER_MS: u32 = 500;
/// Shortest wait that a RETRY in overload asks for, in milliseconds, and the random part on top.
const SHED_AFTER_MS: u64 = 1_000;
const SHED_SPREAD_MS: u64 = 4_000;
/// Shortest wait that THROTTLE asks for, in milliseconds.
const THROTTLE_MS: u32 = 1_000;

/// A client's frame on its way to the backend.
struct Up {
    command: Command,
    lane: Lane,
    /// The cid of a SEND, the id of a REQ, SUB or UNSUB; 0: no answer comes.
    number: u32,
    /// Tells whether the frame was, or may have been, forwarded before.
    is_dup: bool,
    body: Bytes,
}

/// Decides which frames of clients go to the backend. Keeps the rates of users and the last answers.
#[derive(Debug, Default)]
pub(super) struct UplinkGate {
    results: Results,
    /// Uplinks spent of each user's rate limit, by the user's number.
    users_spent: Buckets,
    pub(super) sheds: Sheds,
}

impl UplinkGate {
    /// Handles a SEND [P-5.4]: cids are taken in order; an early one waits, a repeated one is answered from
    /// memory or forwarded as a repetition.
    pub(super) fn handle_send(
        &mut self,
        now: Instant,
        client: &mut Client<'_>,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let (cid, lane) = (frame.header.seq, frame.header.lane);
        let strict_max = client.ledger.settings.uplink_window;
        let session = client.session.as_mut().expect("SEND is lawful only with a session");
        let is_full = session.unanswered >= UNANSWERED_MAX;
        let up = |is_dup, body| Up { command: Command::Send, lane, number: cid, is_dup, body };
        let verdict = match session.dedupe.check(cid) {
            Verdict::Next | Verdict::Early if cid > session.dedupe.base().saturating_add(strict_max) => {
                Verdict::Beyond
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Next => {
                session.dedupe.take(cid);
                client.ledger.counters[Count::Sends] += 1;
                let is_dup = frame.header.flags.contains(Flags::DUP);
                self.put_send(now, client, up(is_dup, frame.body), outputs);
                self.release_early(now, client, lane, outputs);
            }
            Verdict::Early => hold_early(now, client, cid, &frame.body)?,
            Verdict::Pending => client.ledger.counters[Count::SendsAgain] += 1,
            Verdict::Answered => {
                let answer = self.results.get(session.login_version, cid);
                client.ledger.counters[Count::SendsAgain] += 1;
                if let Some(body) = answer {
                    client.ledger.counters[Count::SendsReplayed] += 1;
                    client.send(Frame::new(Command::SendAck, body).with_flags(Flags::DUP), outputs);
                } else if is_full {
                    client.ledger.counters[Count::RefusedHere] += 1;
                    answer_retry(client, cid, RETRY_AFTER_MS, outputs);
                } else {
                    self.put_send(now, client, up(true, frame.body), outputs);
                }
            }
            Verdict::Beyond => return Err(CloseReason::Window),
        }
        client.check_clogged()
    }

    /// Forwards SENDs that waited for the one that was just taken.
    fn release_early(&mut self, now: Instant, client: &mut Client<'_>, lane: Lane, outputs: &mut Outputs) {
        if client.session.as_ref().is_none_or(|session| session.early.is_none()) {
            return;
        }
        let released = client.with_early(|session| {
            let mut released: Vec<(Seq, Bytes)> = Vec::new();
            let Some(early) = session.early.as_mut() else { return released };
            while let Some(body) = early.take(session.dedupe.taken() + 1) {
                let cid = session.dedupe.taken() + 1;
                session.dedupe.take(cid);
                released.push((cid, body));
            }
            early.restart(now);
            session.early.take_if(|early| early.is_empty());
            released
        });
        let released = released.unwrap_or_default();
        client.ledger.counters[Count::Sends] += released.len() as u64;
        for (cid, body) in released {
            self.put_send(
                now,
                client,
                Up { command: Command::Send, lane, number: cid, is_dup: false, body },
                outputs,
            );
        }
    }

    /// Forwards a SEND whose cid was taken, or answers RETRY if its user is above the rate limit or its rank
    /// is shed.
    fn put_send(&mut self, now: Instant, client: &mut Client<'_>, up: Up, outputs: &mut Outputs) {
        match self.judge(now, client, (up.command, up.lane, &up.body), outputs) {
            Ok(route) => forward(client, route, up, outputs),
            Err(wait_ms) => {
                if let Some(session) = &mut client.session {
                    session.dedupe.answer(up.number);
                }
                answer_retry(client, up.number, wait_ms, outputs);
            }
        }
    }

    /// Handles a request, a room or an application command: opaque here, not numbered, in order with the
    /// SENDs.
    pub(super) fn handle_unnumbered(
        &mut self,
        now: Instant,
        client: &mut Client<'_>,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let (command, lane) = (frame.header.command, frame.header.lane);
        let session = client.session.as_ref().expect("lawful only with a session");
        let is_full = session.unanswered >= UNANSWERED_MAX;
        let number = number_of(command, &frame.body).inspect_err(|_| {
            client.ledger.counters[Count::BadRequests] += 1;
        })?;
        let is_app = matches!(command, Command::App(_));
        if is_full && !is_app {
            client.ledger.counters[Count::RefusedHere] += 1;
            refuse(client, command, number, RETRY_AFTER_MS, outputs);
            return client.check_clogged();
        }
        match self.judge(now, client, (command, lane, &frame.body), outputs) {
            Ok(route) => {
                forward(
                    client,
                    route,
                    Up { command, lane, number, is_dup: false, body: frame.body },
                    outputs,
                );
            }
            Err(_) if is_app => client.ledger.counters[Count::AppsDropped] += 1, // may be lost [P-2.3]
            Err(wait_ms) => refuse(client, command, number, wait_ms, outputs),
        }
        client.check_clogged()
    }

    /// Handles the backend's answer to a SEND (`answered`: its cid, and whether the answer is final) or another
    /// request. A RETRY is not final, so it is not remembered.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        client: &mut Client<'_>,
        answered: Option<(Seq, bool)>,
        body: &Bytes,
    ) {
        let session = client.session.as_mut().expect("an answer is for a session");
        session.unanswered = session.unanswered.saturating_sub(1);
        if let Some((cid, is_final)) = answered {
            session.dedupe.answer(cid);
            if is_final {
                self.results.store(now, session.login_version, cid, body);
            }
        }
        client.ledger.counters[Count::Answers] += 1;
    }

    /// Decides whether an uplink may go to the backend now, and on which way.
    ///
    /// # Errors
    /// The milliseconds that the client is to wait.
    fn judge(
        &mut self,
        now: Instant,
        client: &mut Client<'_>,
        uplink: (Command, Lane, &Bytes),
        outputs: &mut Outputs,
    ) -> Result<Route, u32> {
        let route = client.route().expect("lawful only with a session");
        let level = client.ledger.pauses.overload(route);
        if self.sheds.is_shed(now, &client.ledger.settings.shard_map, level, uplink) {
            client.ledger.counters[Count::Shed] += 1;
            let wait = SHED_AFTER_MS + client.ledger.random.below(SHED_SPREAD_MS);
            return Err(u32::try_from(wait).unwrap_or(u32::MAX));
        }
        let fill = client.ledger.settings.user_fill();
        let Err(over) = self.users_spent.try_spend(client.user(), fill, now) else { return Ok(route) };
        client.ledger.counters[Count::UserRefusals] += 1;
        let wait_ms = u32::try_from(over.wait.as_millis()).unwrap_or(u32::MAX).max(1);
        if over.is_news {
            client.ledger.counters[Count::Throttles] += 1;
            let reason = "this user says more than limits.user_rate".to_owned();
            let throttle = Throttle { retry_after_ms: wait_ms.max(THROTTLE_MS), reason };
            client.send(frame_of(Command::Throttle, &throttle), outputs);
        }
        Err(wait_ms.max(RETRY_AFTER_MS))
    }

    /// Gives memory back that is not used any more.
    pub(super) fn trim(&mut self, fill: super::bucket::Fill, now: Instant) {
        self.results.trim(now);
        self.users_spent.trim(fill, now);
    }

    /// Writes the answers and the rates. Returns the time of the last answer.
    pub(super) fn freeze(&self, out: &mut Section) -> Instant {
        let Self { results, users_spent, sheds: _ } = self; // ranks are told again
        let stored_at = results.freeze(out);
        users_spent.freeze(out);
        stored_at
    }

    pub(super) fn thaw_answer(&mut self, stored_at: Instant, record: &AnswerRecord) {
        self.results.thaw(stored_at, record);
    }

    pub(super) fn thaw_user(&mut self, record: UserSpentRecord) {
        self.users_spent.thaw(record);
    }
}

/// Keeps a SEND that came before its turn.
///
/// # Errors
/// [`CloseReason::Window`]: too much of the session waits. [`CloseReason::Busy`]: memory is short.
fn hold_early(now: Instant, client: &mut Client<'_>, cid: Seq, body: &Bytes) -> Result<(), CloseReason> {
    if client.ledger.is_above_watermark(1) {
        client.ledger.counters[Count::InputShed] += 1;
        return Err(CloseReason::Busy);
    }
    let held = client.with_early(|session| {
        let early = session.early.get_or_insert_with(|| Box::new(Early::new(now)));
        early.insert(cid, body);
        (early.bytes(), early.deadline())
    });
    let (bytes, deadline) = held.expect("SEND is lawful only with a session");
    if bytes > EARLY_BYTES_MAX {
        return Err(CloseReason::Window);
    }
    client.arm(deadline);
    client.ledger.counters[Count::SendsEarly] += 1;
    Ok(())
}

/// Sends a frame to the worker of its user.
fn forward(client: &mut Client<'_>, route: Route, up: Up, outputs: &mut Outputs) {
    let Up { command, lane, number, is_dup, body } = up;
    if !matches!(command, Command::App(_))
        && let Some(session) = &mut client.session
    {
        session.unanswered = session.unanswered.saturating_add(1);
    }
    let up = Uplink::Up { key: client.key, pin: route.pin, command, number, is_dup, body };
    outputs.uplinks[route.index()].push(up);
    client.pause_if_full(route, lane, outputs);
}

/// Answers a SEND with RETRY.
fn answer_retry(client: &mut Client<'_>, cid: Seq, retry_after_ms: u32, outputs: &mut Outputs) {
    let answer = SendAck { cid, code: Code::Retry.into(), retry_after_ms, ..Default::default() };
    client.send(frame_of(Command::SendAck, &answer), outputs);
}

/// Answers a request or a room command with RETRY.
fn refuse(client: &mut Client<'_>, command: Command, id: u32, retry_after_ms: u32, outputs: &mut Outputs) {
    let code = Code::Retry.into();
    let answer = if command == Command::Req {
        frame_of(Command::Resp, &Resp { id, code, retry_after_ms, ..Default::default() })
    } else {
        frame_of(Command::SubAck, &SubAck { id, code, reason: String::new() })
    };
    client.send(answer, outputs);
}

/// Reads the number by which the client knows the answer; 0: no answer comes.
fn number_of(command: Command, body: &Bytes) -> Result<u32, CloseReason> {
    match command {
        Command::Req => request_id(body),
        Command::Sub | Command::Unsub => decode::<Sub>(body).map(|sub| sub.id), // UNSUB has the same fields
        _ => Ok(0),
    }
}

/// Reads the id of a REQ. Only the fields on the top level are walked, and not many: the rest is the backend's to
/// judge, and costs nothing here.
///
/// # Errors
/// [`CloseReason::BadMessage`]: not a message, or one with more than [`REQ_FIELDS_MAX`] fields.
fn request_id(mut body: &[u8]) -> Result<u32, CloseReason> {
    /// A Req of which only the id is read.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct ReqId {
        #[prost(uint32, tag = "1")]
        id: u32,
    }
    let mut req = ReqId::default();
    for _ in 0..REQ_FIELDS_MAX {
        if body.is_empty() {
            return Ok(req.id);
        }
        let before = body;
        let (tag, wire_type) = decode_key(&mut body).map_err(|_| CloseReason::BadMessage)?;
        if matches!(wire_type, WireType::StartGroup | WireType::EndGroup) {
            return Err(CloseReason::BadMessage); // proto3 has no groups
        }
        skip_field(wire_type, tag, &mut body, DecodeContext::default())
            .map_err(|_| CloseReason::BadMessage)?;
        let field = &before[..before.len() - body.len()];
        req.merge(field).map_err(|_| CloseReason::BadMessage)?;
    }
    if body.is_empty() { Ok(req.id) } else { Err(CloseReason::BadMessage) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::message::client::Req;

    #[test]
    fn a_request_is_known_by_its_id_at_a_bounded_cost() {
        let req = Req { id: 7, method: "im.pull".into(), payload: vec![1; 300].into() };
        assert_eq!(request_id(&req.encode_to_vec()), Ok(7));
        assert_eq!(request_id(&[0x12, 1, b'm', 0x08, 5, 0x08, 9]), Ok(9), "any order, the last one counts");
        assert_eq!(request_id(&[]), Ok(0));
        let unknown = [0x78, 1];
        assert_eq!(request_id(&unknown.repeat(REQ_FIELDS_MAX)), Ok(0));
        for bad in
            [&unknown.repeat(REQ_FIELDS_MAX + 1)[..], &[0x0B, 0x0C], &[0x12, 9, 1], &[0x08], &[0x0A, 1, 1]]
        {
            assert_eq!(request_id(bad), Err(CloseReason::BadMessage), "{bad:?}");
        }
    }
}
