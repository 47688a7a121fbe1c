//! The connection as the core sees it: where it stands, when to try again, which session it had.
//!
//! Pure data of [`Core`](super::Core), which turns it into events.
//!
//! ```text
//!            time                 driver              WELCOME
//! Waiting ─────────► Connecting ─────────► Greeting ─────────► Active ──► Leaving
//!    ▲  │ no token        │                    │                  │          │
//!    │  └──► NeedToken    └────────────────────┴───────┬──────────┴──────────┘
//!    └─────────────────────── lost ────────────────────┴── told to stop ──► Closed
//! ```

use super::backoff::part_of;
use super::event::TokenWhy;
use super::{Backoff, TokenSource};
use bytes::Bytes;
use moorline_proto::connection::client::State;
use moorline_proto::message::client::{Resume, Welcome};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// A login that lasted this long starts the backoff anew.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Fresh tokens in a row that the gateway calls expired.
pub(super) const EXPIRED_MAX: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until the next attempt.
    Waiting(Instant),
    /// Until the driver brings a token.
    NeedToken,
    /// The driver connects; not after this moment.
    Connecting(Instant),
    /// A socket. Before WELCOME: not after this moment.
    Up(State, Instant),
    /// LOGOUT is out; the socket ends now or at this moment.
    LoggingOut(Instant),
    /// For good.
    Closed,
}

/// Values for the `resume` of a later HELLO.
#[derive(Debug)]
pub(super) struct Session {
    id: Bytes,
    epoch: u64,
    ticket: Bytes,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) phase: Phase,
    policy: Backoff,
    failures: u32,
    logged_in_at: Option<Instant>,
    session: Option<Box<Session>>,
    pub(super) token: Option<Arc<str>>,
    pub(super) token_why: TokenWhy,
    pub(super) expired: u8,
    /// After GOAWAY: when to go.
    pub(super) leave_at: Option<Instant>,
    pub(super) alternate: Option<Arc<str>>,
    pub(super) throttled_until: Option<Instant>,
}

impl Line {
    pub(super) fn new(source: &TokenSource, policy: Backoff) -> Self {
        let token = match source {
            TokenSource::Fixed(token) => Some(Arc::clone(token)),
            TokenSource::Ask => None,
        };
        Self {
            phase: Phase::Waiting(Instant::ZERO),
            policy,
            failures: 0,
            logged_in_at: None,
            session: None,
            token,
            token_why: TokenWhy::First,
            expired: 0,
            leave_at: None,
            alternate: None,
            throttled_until: None,
        }
    }

    pub(super) const fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Up(state, _) if state.is_logged_in())
    }

    pub(super) const fn has_socket(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_) | Phase::Up(..) | Phase::LoggingOut(_))
    }

    pub(super) fn is_throttled(&self, now: Instant) -> bool {
        self.throttled_until.is_some_and(|until| until > now)
    }

    pub(super) fn on_welcome(&mut self, now: Instant, welcome: &Welcome) {
        self.phase = Phase::Up(State::Active, Instant::FAR_FUTURE);
        self.logged_in_at = Some(now);
        self.expired = 0;
        let copy = Bytes::copy_from_slice; // a slice would hold the whole read buffer
        self.session = (!welcome.ticket.is_empty()).then(|| {
            let (id, ticket) = (copy(&welcome.session), copy(&welcome.ticket));
            Box::new(Session { id, epoch: welcome.epoch, ticket })
        });
    }

    pub(super) fn resume(&self, last_seq: u32, sack: u64) -> Option<Resume> {
        let session = self.session.as_ref()?;
        let (id, ticket) = (session.id.clone(), session.ticket.clone());
        Some(Resume { session: id, epoch: session.epoch, last_seq, ticket, sack })
    }

    pub(super) fn forget_session(&mut self) {
        self.session = None;
    }

    /// The connection or the attempt is over; returns when to try again.
    pub(super) fn on_lost(&mut self, now: Instant, after: Option<Duration>, random: &mut Random) -> Instant {
        let lasted = self.logged_in_at.take().map(|since| now.saturating_since(since));
        if lasted.is_some_and(|lasted| lasted >= STABLE_AFTER) {
            self.failures = 0;
        }
        let wait = self.policy.wait(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        self.throttled_until = None;
        self.leave_at = None;
        let retry_at = now + after.unwrap_or_default() + wait;
        self.phase = Phase::Waiting(retry_at);
        retry_at
    }

    /// Left on request: another connection at once.
    pub(super) fn on_left(&mut self, now: Instant) {
        self.logged_in_at = None;
        self.throttled_until = None;
        self.leave_at = None;
        self.phase = Phase::Waiting(now);
    }

    pub(super) fn on_go_away(
        &mut self,
        now: Instant,
        window: Duration,
        alternate: Option<Arc<str>>,
        random: &mut Random,
    ) {
        self.alternate = alternate;
        self.leave_at = Some(now + part_of(window, random));
    }

    /// The network is another one: no reason to wait.
    pub(super) fn on_network_changed(&mut self, now: Instant) {
        self.failures = 0;
        if let Phase::Waiting(until) = &mut self.phase {
            *until = (*until).min(now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Up(State::Active | State::Leaving, _) => {
                [self.leave_at, self.throttled_until].into_iter().flatten().min()
            }
            Phase::Waiting(until)
            | Phase::Connecting(until)
            | Phase::Up(_, until)
            | Phase::LoggingOut(until) => Some(until),
            Phase::NeedToken | Phase::Closed => None,
        }
    }
}
