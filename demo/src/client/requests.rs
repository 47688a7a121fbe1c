//! Requests without an answer: asked again until there is one.

use bytes::Bytes;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::message::client::{Code, Req, Resp};
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Wait for an answer before the request is repeated.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Wait after a RETRY that names none.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Reason of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The client's owner asked.
    Owner,
    /// Places of a seat's conversation; `to` 0: up to the newest.
    Pull { seat: usize, to: u64 },
}

#[derive(Debug)]
struct Request {
    purpose: Purpose,
    method: &'static str,
    payload: Bytes,
    is_asked: bool,
    /// Time to ask, or to ask again.
    at: Instant,
}

/// Requests of one client, by id. Bounded by the owner: one pull per seat, and its own requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<u32, Request>,
    last_id: u32,
}

impl Requests {
    pub(super) fn push(&mut self, now: Instant, purpose: Purpose, method: &'static str, payload: Bytes) {
        self.last_id += 1;
        let request = Request { purpose, method, payload, is_asked: false, at: now };
        self.open.insert(self.last_id, request);
    }

    /// The next REQ that may go out.
    pub(super) fn poll_frame(&mut self, now: Instant) -> Option<Frame> {
        let mut open = self.open.iter_mut();
        let (id, request) = open.find(|(_, request)| !request.is_asked && request.at <= now)?;
        (request.is_asked, request.at) = (true, now + ANSWER_WITHIN);
        let (method, payload) = (request.method.to_owned(), request.payload.clone());
        Some(frame_of(Command::Req, &Req { id: *id, method, payload }))
    }

    /// A final answer; `None`: the backend said RETRY, or nobody waits for this answer.
    pub(super) fn handle_resp(
        &mut self,
        now: Instant,
        resp: Resp,
    ) -> Option<(Purpose, Result<Bytes, String>)> {
        let request = self.open.get_mut(&resp.id)?;
        let code = Code::try_from(resp.code).unwrap_or(Code::Invalid);
        if code == Code::Retry {
            let named = Duration::from_millis(resp.retry_after_ms.into());
            let pause = if named.is_zero() { RETRY_AFTER } else { named };
            (request.is_asked, request.at) = (false, now + pause);
            return None;
        }
        let purpose = request.purpose;
        self.open.remove(&resp.id);
        let result = match code {
            Code::Ok | Code::Dup => Ok(resp.payload),
            code => Err(format!("{} {}", code.as_str_name(), resp.reason)),
        };
        Some((purpose, result))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for request in self.open.values_mut().filter(|request| request.at <= now) {
            request.is_asked = false;
        }
    }

    pub(super) fn handle_offline(&mut self, now: Instant) {
        for request in self.open.values_mut() {
            (request.is_asked, request.at) = (false, now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|request| request.at).min()
    }
}
