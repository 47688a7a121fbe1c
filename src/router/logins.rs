//! HELLOs: judged here, or by the backend that speaks for the user. Pure.

use super::counters::Count;
use super::{Endpoints, LinkIndex, Pending, Sides, SlotState, Slots, Taken};
use crate::auth::{self, Judge};
use crate::messages::{Admission, Downlink};
use crate::shard_map::UserKey;
use crate::snapshot::{AdmissionRecord, AskedRecord, Records, SnapshotError};
use moorline_proto::error::CloseReason;
use moorline_proto::ids::ConnKey;
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message;
use moorline_proto::message::backend::{Auth, AuthResult};
use moorline_proto::message::client::{Hello, Resume};
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Characters of a claimed name in a log line.
const UID_CHARS_MAX: usize = 64;
/// HELLOs that may wait to be judged; more are turned away BUSY.
const LOGINS_MAX: usize = 16 << 10;
/// HELLOs that one backend link may be judging; more are turned away UNAVAILABLE.
const ASKED_MAX: usize = 4096;
/// AUTH requests are forgotten after this many timeouts; a later answer closes the link as unexpected.
const FORGET_TIMEOUTS: u32 = 10;

/// A HELLO that a backend judges, kept whole so that another backend can be asked.
#[derive(Debug)]
pub(super) struct Asked {
    key: ConnKey,
    hello: Box<Hello>,
    admission: Admission,
}

impl Asked {
    /// Writes it down; `until` is its deadline.
    fn freeze(asked: Option<&Self>, until: Instant) -> AskedRecord {
        let Some(Self { key, hello, admission }) = asked else {
            return AskedRecord { until: until.as_nanos(), ..AskedRecord::default() };
        };
        let Admission { uid, device, platform, accepts_lz4, resume, .. } = admission.clone(); // the times come with the verdict
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
        let resume = resume.map_err(damaged)?;
        let admission = Admission { uid, device, platform, accepts_lz4, resume, ..Admission::default() };
        let hello = Box::new(message::decode::<Hello>(&hello).map_err(damaged)?);
        Ok((Some(Self { key: ConnKey::from_u64(key), hello, admission }), until))
    }
}

/// HELLOs that wait to be judged, and those that backends are judging.
pub(super) struct Logins {
    judge: Judge,
    waiting: VecDeque<(ConnKey, Box<Hello>)>,
    /// By link.
    asked: Vec<Pending<Asked>>,
    up_timeout: Duration,
    /// Key of the users' pins.
    key: UserKey,
    /// Log lines about refused logins.
    refusals: LineLimit,
}

impl Logins {
    pub(super) fn new(judge: Judge, links: usize, up_timeout: Duration, key: UserKey) -> Self {
        let forget_after = up_timeout.saturating_mul(FORGET_TIMEOUTS);
        let asked = (0..links).map(|_| Pending::new(forget_after)).collect();
        let (waiting, refusals) = (VecDeque::new(), LineLimit::new());
        Self { judge, waiting, asked, up_timeout, key, refusals }
    }

    /// Notes that there are more links.
    pub(super) fn add_links(&mut self, count: usize) {
        let forget_after = self.up_timeout.saturating_mul(FORGET_TIMEOUTS);
        self.asked.extend(std::iter::repeat_with(|| Pending::new(forget_after)).take(count));
    }

    /// First number and records of the questions that a link's backend is judging.
    pub(super) fn freeze(&self, link: LinkIndex) -> (u64, impl Iterator<Item = AskedRecord>) {
        let (base, asked) = self.asked[link.index()].freeze();
        (base, asked.map(|(asked, until)| Asked::freeze(asked, until)))
    }

    /// Reads what [`Self::freeze`] gave.
    pub(super) fn thaw(&mut self, link: LinkIndex, base: u64, asked: Vec<(Option<Asked>, Instant)>) {
        let forget_after = self.up_timeout.saturating_mul(FORGET_TIMEOUTS);
        self.asked[link.index()] = Pending::thaw(forget_after, base, asked);
    }

    /// True if HELLOs wait to be judged.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes a HELLO to judge.
    pub(super) fn handle_login(&mut self, sides: &mut Sides, key: ConnKey, hello: Box<Hello>) {
        if self.waiting.len() < LOGINS_MAX {
            self.waiting.push_back((key, hello));
        } else {
            sides.counters[Count::LoginsBusy] += 1;
            sides.shards.push(key.shard(), Downlink::Verdict { key, verdict: Err(CloseReason::Busy) });
        }
    }

    /// Judges waiting HELLOs, at most `count_max` of them.
    pub(super) fn judge(&mut self, sides: &mut Sides, slots: &Slots, unix_now_s: u64, count_max: usize) {
        for _ in 0..count_max {
            let Some((key, hello)) = self.waiting.pop_front() else { return };
            let verdict = match &self.judge {
                Judge::Here(verifier) => Some(verifier.verify(&hello, unix_now_s)),
                Judge::Backend => None,
            };
            match verdict {
                Some(verdict) => self.decide(sides, key, &hello.uid, verdict),
                None => self.ask(sides, slots, key, hello),
            }
        }
    }

    /// Gives a verdict to the shard. Refusals are told in the log, one in 10 s: `uid` is what the client claims.
    fn decide(
        &mut self,
        sides: &mut Sides,
        key: ConnKey,
        uid: &str,
        verdict: Result<Admission, CloseReason>,
    ) {
        let count = if verdict.is_ok() { Count::LoginsOk } else { Count::LoginsRefused };
        sides.counters[count] += 1;
        if let Err(reason) = verdict
            && let Some(others) = self.refusals.allow(sides.now)
        {
            // Bounded, and quoted: anybody can claim any name.
            let uid: String = uid.chars().take(UID_CHARS_MAX).collect();
            tracing::warn!(uid = ?uid, reason = reason.label(), others, "refused a login");
        }
        sides.shards.push(key.shard(), Downlink::Verdict { key, verdict });
    }

    fn ask(&mut self, sides: &mut Sides, slots: &Slots, key: ConnKey, hello: Box<Hello>) {
        let admission = match auth::admit(&hello) {
            Ok(admission) => admission,
            Err(reason) => return self.decide(sides, key, &hello.uid, Err(reason)),
        };
        let Some(link) = self.judging_link(sides, slots, &admission.uid) else {
            return turn_away(sides, key);
        };
        let question = Auth {
            token: hello.token.clone(),
            uid: hello.uid.clone(),
            device: hello.device.clone(),
            platform: hello.platform,
        };
        let deadline = sides.now + self.up_timeout;
        let correlation = self.asked[link.index()].push(Asked { key, hello, admission }, deadline);
        sides.links[link].send(Kind::Auth, correlation, &question);
    }

    /// The link that speaks for the user; else any link that has room.
    fn judging_link(&self, sides: &Sides, slots: &Slots, uid: &str) -> Option<LinkIndex> {
        let has_room = |link: &LinkIndex| {
            sides.links[*link].has_output_room() && self.asked[link.index()].has_room(ASKED_MAX)
        };
        let own = match slots.state(sides.split.slot_of(self.key.pin(uid))) {
            SlotState::Live(link) => Some(link),
            SlotState::Announcing(_) | SlotState::Unassigned => None,
        };
        own.filter(has_room).or_else(|| sides.links.indices().find(has_room))
    }

    /// A backend has judged a HELLO.
    pub(super) fn on_auth_result(
        &mut self,
        sides: &mut Sides,
        link: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<(), LinkError> {
        let result: AuthResult = frame.message()?;
        match self.asked[link.index()].take(frame.correlation) {
            Taken::Answered(Asked { key, admission, .. }) => {
                let uid = admission.uid.clone();
                self.decide(sides, key, &uid, verdict_of(&result, admission));
                Ok(())
            }
            Taken::Late => Ok(()),
            Taken::Unknown => Err(LinkError::Unexpected(frame.kind)),
        }
    }

    /// Tells clients to come back whose backend has not judged them in time.
    pub(super) fn expire(&mut self, sides: &mut Sides, endpoints: &mut Endpoints) {
        for (number, asked) in (0..).zip(&mut self.asked) {
            asked.expire(sides.now, |asked| {
                endpoints.on_timeout(sides.now, LinkIndex(number));
                turn_away(sides, asked.key);
            });
        }
    }

    /// A link is dead: another backend is asked about the HELLOs that its backend was judging.
    pub(super) fn on_link_closed(&mut self, sides: &mut Sides, link: LinkIndex) {
        for Asked { key, hello, .. } in self.asked[link.index()].drain_waiting() {
            self.handle_login(sides, key, hello);
        }
    }

    /// Earliest time at which [`Self::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Instant {
        self.asked.iter().map(Pending::next_deadline).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// No backend judges this HELLO.
fn turn_away(sides: &mut Sides, key: ConnKey) {
    sides.counters[Count::LoginsUnjudged] += 1;
    let verdict = Err(CloseReason::Unavailable);
    sides.shards.push(key.shard(), Downlink::Verdict { key, verdict });
}

/// The verdict of a backend, which may know the user by another name than the client.
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
    (admission.issued_s, admission.expires_s) = (result.issued_at, result.expires_at);
    Ok(admission)
}
