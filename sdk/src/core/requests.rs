//! Open requests: the application's and the core's own pulls.
//!
//! Driven by [`Core`](super::Core). Every request has a deadline and exactly one result.

use super::event::{Repeat, RequestError, RequestId};
use super::inbox::{Hole, PULL_PAGE};
use super::limits;
use crate::im::{self, Call};
use bytes::Bytes;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::message::client::{Code, Req, Resp};
use moorline_proto::message::im::PullRequest;
use moorline_proto::message::{encode, frame_of};
use moorline_proto::time::{Duration, Instant};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The wait after a RETRY that names none, and the shortest one.
const RETRY_PAUSE_DEFAULT: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);

/// Time after which a pull of a hole counts as failed.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for asking the newest seqs after a session that could not be resumed.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);

/// Receiver of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Application,
    /// A hole of this conversation that ends at `to`.
    Gap {
        conversation: Arc<str>,
        to: u64,
    },
    /// The newest places, after a session that could not be resumed.
    Sync {
        /// Pages before this one.
        page: u32,
    },
}

/// Method and payload.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) owner: Owner,
    pub(super) method: Cow<'static, str>,
    pub(super) payload: Bytes,
    pub(super) deadline: Instant,
    pub(super) repeat: Repeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be sent from this moment on.
    Waiting(Instant),
    Asked,
}

/// A request that is over.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: RequestId,
    pub(super) owner: Owner,
    pub(super) result: Result<Bytes, RequestError>,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<u32, (Question, Phase)>,
    last_id: u32,
}

impl Requests {
    /// Requests of the application that have no result.
    pub(super) fn open(&self) -> usize {
        self.open.values().filter(|(question, _)| question.owner == Owner::Application).count()
    }

    pub(super) fn push(&mut self, now: Instant, question: Question) -> RequestId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.open.contains_key(&self.last_id) {
                break;
            }
        }
        self.open.insert(self.last_id, (question, Phase::Waiting(now)));
        RequestId(self.last_id)
    }

    /// Asks for the messages of a hole.
    pub(super) fn pull(&mut self, now: Instant, hole: Hole) {
        let Hole { conversation, from, to } = hole;
        let pull =
            PullRequest { conversation: conversation.to_string(), from, to, limit: PULL_PAGE, confirmed: 0 };
        self.push(
            now,
            Question {
                owner: Owner::Gap { conversation, to },
                method: "im.pull".into(),
                payload: encode(&pull),
                deadline: now + PULL_TIMEOUT,
                repeat: Repeat::UntilAnswered,
            },
        );
    }

    /// Asks for the newest seqs of the conversations whose ids are after `after`.
    pub(super) fn ask_latest(&mut self, now: Instant, after: &str, page: u32) {
        let Call { method, payload } = im::conversations(after);
        let (owner, repeat) = (Owner::Sync { page }, Repeat::UntilAnswered);
        let deadline = now + SYNC_TIMEOUT;
        self.push(now, Question { owner, method: method.into(), payload, deadline, repeat });
    }

    /// The next REQ that may go out now.
    pub(super) fn poll_frame(&mut self, now: Instant) -> Option<Frame> {
        let due = |phase: &Phase| matches!(phase, Phase::Waiting(from) if *from <= now);
        let (id, (question, phase)) = self.open.iter_mut().find(|(_, (_, phase))| due(phase))?;
        *phase = Phase::Asked;
        let (method, payload) = (question.method.to_string(), question.payload.clone());
        Some(frame_of(Command::Req, &Req { id: *id, method, payload }))
    }

    /// A RESP; one that nobody waits for is dropped.
    pub(super) fn handle_resp(&mut self, now: Instant, resp: Resp) -> Option<Answer> {
        let (question, phase) = self.open.get_mut(&resp.id)?;
        let code = Code::try_from(resp.code).unwrap_or(Code::Invalid);
        if code == Code::Retry && question.repeat == Repeat::UntilAnswered {
            let named = limits::pause(resp.retry_after_ms);
            let at = now + if named.is_zero() { RETRY_PAUSE_DEFAULT } else { named.max(RETRY_PAUSE_MIN) };
            if at < question.deadline {
                *phase = Phase::Waiting(at);
                return None;
            }
        }
        let result = match code {
            Code::Ok | Code::Dup => Ok(resp.payload),
            code => Err(RequestError::Refused { code, reason: limits::reason(resp.reason) }),
        };
        self.take(resp.id, result)
    }

    /// The next request that is over because of the time.
    pub(super) fn poll_expired(&mut self, now: Instant) -> Option<Answer> {
        let mut open = self.open.iter();
        let id = *open.find(|(_, (question, _))| question.deadline <= now)?.0;
        self.take(id, Err(RequestError::TimedOut))
    }

    /// The connection is gone: what may be asked again waits for the next one.
    pub(super) fn on_offline(&mut self, now: Instant) -> Vec<Answer> {
        let mut lost = Vec::new();
        for (id, (question, phase)) in &mut self.open {
            match (*phase, question.repeat) {
                (Phase::Asked, Repeat::Once) => lost.push(*id),
                (Phase::Asked, Repeat::UntilAnswered) => *phase = Phase::Waiting(now),
                (Phase::Waiting(_), _) => {}
            }
        }
        lost.into_iter().filter_map(|id| self.take(id, Err(RequestError::Lost))).collect()
    }

    /// Everything ends.
    pub(super) fn close(&mut self) -> Vec<Answer> {
        let ids: Vec<u32> = self.open.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.take(id, Err(RequestError::Closed))).collect()
    }

    /// Time at which a request expires or, while logged in, may be sent again.
    pub(super) fn deadline(&self, is_logged_in: bool) -> Option<Instant> {
        let next = |(question, phase): &(Question, Phase)| match phase {
            Phase::Waiting(from) if is_logged_in => question.deadline.min(*from),
            _ => question.deadline,
        };
        self.open.values().map(next).min()
    }

    fn take(&mut self, id: u32, result: Result<Bytes, RequestError>) -> Option<Answer> {
        let (question, _) = self.open.remove(&id)?;
        Some(Answer { id: RequestId(id), owner: question.owner, result })
    }
}
