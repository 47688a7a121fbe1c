//! HELLOs: judged here, or by the backend that speaks for the user.

use super::Count;
use super::{LOGINS_MAX, Worker};
use crate::auth::{self, Judge};
use crate::handoff::{Admission, Downlink};
use crate::link::{LinkIndex, Pending, Seat, Slot, Taken};
use crate::snapshot::{AdmissionRecord, AskedRecord, Records, SnapshotError};
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{ConnKey, Pin};
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message;
use moorline_proto::message::backend::{Auth, AuthResult};
use moorline_proto::message::client::{Hello, Resume};
use moorline_proto::time::{Duration, Instant};

/// HELLOs that one backend link may be judging; more are turned away UNAVAILABLE.
const ASKED_MAX: usize = 4096;
/// A backend that answers later than so many timeouts is not understood any more.
const FORGET_TIMEOUTS: u32 = 10;

/// A HELLO that a backend judges, kept whole so that another one can be asked.
#[derive(Debug)]
pub(super) struct Asked {
    key: ConnKey,
    hello: Box<Hello>,
    admission: Admission,
}

impl Asked {
    /// Writes it down; `until` is its deadline.
    pub(super) fn freeze(asked: Option<&Self>, until: Instant) -> AskedRecord {
        let Some(Self { key, hello, admission }) = asked else {
            return AskedRecord { until: until.as_nanos(), ..AskedRecord::default() };
        };
        let Admission { uid, device, platform, accepts_lz4, resume } = admission.clone();
        let resume = resume.map(|resume| message::encode(resume.as_ref()));
        let admission = AdmissionRecord { uid, device, platform, accepts_lz4, resume };
        let (key, hello) = (key.as_u64(), message::encode(hello.as_ref()));
        AskedRecord { key, hello, until: until.as_nanos(), admission: Some(admission) }
    }

    /// Reads it.
    pub(super) fn thaw(
        record: AskedRecord,
        from: &Records,
    ) -> Result<(Option<Self>, Instant), SnapshotError> {
        let AskedRecord { key, hello, until, admission } = record;
        let until = Instant::from_nanos(until);
        let Some(AdmissionRecord { uid, device, platform, accepts_lz4, resume }) = admission else {
            return Ok((None, until));
        };
        let damaged = |_| from.contradiction("a HELLO that is judged is none");
        let resume = resume.map(|resume| message::decode::<Resume>(&resume).map(Box::new)).transpose();
        let admission = Admission { uid, device, platform, accepts_lz4, resume: resume.map_err(damaged)? };
        let hello = Box::new(message::decode::<Hello>(&hello).map_err(damaged)?);
        Ok((Some(Self { key: ConnKey::from_u64(key), hello, admission }), until))
    }
}

/// What each link's backend judges.
pub(super) type AskedLogins = Vec<Pending<Asked>>;

pub(super) fn asked_logins(links: usize, up_timeout: Duration) -> AskedLogins {
    (0..links).map(|_| Pending::new(forget_after(up_timeout))).collect()
}

/// A question that timed out is remembered for so long.
pub(super) const fn forget_after(up_timeout: Duration) -> Duration {
    up_timeout.saturating_mul(FORGET_TIMEOUTS)
}

impl Worker {
    pub(super) fn handle_login(&mut self, key: ConnKey, hello: Box<Hello>) {
        if self.logins.len() < LOGINS_MAX {
            self.logins.push_back((key, hello));
        } else {
            self.tally[Count::LoginsBusy] += 1;
            self.outbox.push(key.shard(), Downlink::Verdict { key, verdict: Err(CloseReason::Busy) });
        }
    }

    /// Judges waiting HELLOs, at most `count_max` of them.
    pub(super) fn judge_logins(&mut self, count_max: usize) {
        if self.logins.is_empty() {
            return;
        }
        let unix_now_s = (self.clock.unix_now_s)();
        for _ in 0..count_max {
            let Some((key, hello)) = self.logins.pop_front() else { return };
            match &self.judge {
                Judge::Here(verifier) => {
                    let verdict = verifier.verify(&hello, unix_now_s);
                    self.decide(key, verdict);
                }
                Judge::Backend => self.ask(key, hello),
            }
        }
    }

    fn decide(&mut self, key: ConnKey, verdict: Result<Admission, CloseReason>) {
        let count = if verdict.is_ok() { Count::LoginsOk } else { Count::LoginsRefused };
        self.tally[count] += 1;
        self.outbox.push(key.shard(), Downlink::Verdict { key, verdict });
    }

    fn ask(&mut self, key: ConnKey, hello: Box<Hello>) {
        let admission = match auth::admit(&hello) {
            Ok(admission) => admission,
            Err(reason) => return self.decide(key, Err(reason)),
        };
        let Some(link) = self.judging_link(&admission.uid) else {
            self.tally[Count::LoginsUnjudged] += 1;
            let verdict = Err(CloseReason::Unavailable);
            return self.outbox.push(key.shard(), Downlink::Verdict { key, verdict });
        };
        let question = Auth {
            token: hello.token.clone(),
            uid: hello.uid.clone(),
            device: hello.device.clone(),
            platform: hello.platform,
        };
        let deadline = self.now + self.settings.link.up_timeout;
        let correlation = self.asked[link.index()].push(Asked { key, hello, admission }, deadline);
        self.link(link).send(Kind::Auth, correlation, &question);
    }

    /// The link that speaks for the user; else any that has room.
    fn judging_link(&self, uid: &str) -> Option<LinkIndex> {
        let has_room = |link: &LinkIndex| {
            self.links[link.index()].has_output_room() && self.asked[link.index()].has_room(ASKED_MAX)
        };
        let own = match self.slots.seat(Slot::of(Pin::of(uid))) {
            Seat::Live(link) => Some(link),
            Seat::Announcing(_) | Seat::Unassigned => None,
        };
        own.filter(has_room).or_else(|| self.indices().find(has_room))
    }

    pub(super) fn on_auth_result(&mut self, link: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let result: AuthResult = frame.message()?;
        match self.asked[link.index()].take(frame.correlation) {
            Taken::Answered(asked) => {
                let Asked { key, admission, .. } = asked;
                self.decide(key, verdict_of(&result, admission));
                Ok(())
            }
            Taken::Late => Ok(()),
            Taken::Unknown => Err(LinkError::Unexpected(frame.kind)),
        }
    }

    /// Clients whose backend says nothing in time are told to come back.
    pub(super) fn expire_asked(&mut self) {
        let mut silent = Vec::new();
        for (number, asked) in (0..).zip(&mut self.asked) {
            asked.expire(self.now, |asked| silent.push((LinkIndex(number), asked.key)));
        }
        for (link, key) in silent {
            self.endpoints.on_timeout(self.now, link);
            self.tally[Count::LoginsUnjudged] += 1;
            let verdict = Err(CloseReason::Unavailable);
            self.outbox.push(key.shard(), Downlink::Verdict { key, verdict });
        }
    }

    /// A link is dead: what its backend was judging is asked again.
    pub(super) fn ask_again(&mut self, link: LinkIndex) {
        for Asked { key, hello, .. } in self.asked[link.index()].drain_waiting() {
            self.handle_login(key, hello);
        }
    }

    pub(super) fn asked_deadline(&self) -> Instant {
        self.asked.iter().map(Pending::next_deadline).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// The backend may know the user by another name than the client.
fn verdict_of(result: &AuthResult, mut admission: Admission) -> Result<Admission, CloseReason> {
    if result.code != 0 {
        tracing::debug!(uid = admission.uid, code = result.code, reason = result.reason, "login refused");
        return Err(CloseReason::from_code(result.code).unwrap_or(CloseReason::AuthFailed));
    }
    if !result.uid.is_empty() && result.uid != admission.uid {
        auth::check_uid(&result.uid).map_err(|problem| {
            tracing::warn!(uid = result.uid, %problem, "the backend admits a user with an unlawful name");
            CloseReason::Internal
        })?;
        admission.uid.clone_from(&result.uid);
    }
    Ok(admission)
}
