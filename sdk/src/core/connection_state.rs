//! State of the connection: its phase, the time of the next attempt, the session that a login may resume.
//!
//! Pure data of [`Core`](super::Core): inputs change the phase, and say how the connection ends. Example: a CLOSE with
//! the code `TokenExpired` forgets the token, and the next attempt asks for another one.
//!
//! ```text
//!            time                 driver              WELCOME
//! Waiting ─────────► Connecting ─────────► Greeting ─────────► Active ──► Leaving
//!    ▲  │ no token        │                    │                  │          │
//!    │  └──► NeedToken    └────────────────────┴───────┬──────────┴──────────┘
//!    │  └──► Asking: a dispatch server is asked first  │
//!    └─────────────────────── lost ────────────────────┴── told to stop ──► Closed
//! ```

use super::backoff::part_of;
use super::endpoint_list::{DispatchFault, EndpointList};
use super::endpoints::Endpoints;
use super::event::{ClosedWhy, Event, Lost, TokenWhy};
use super::limits;
use super::output::Outputs;
use super::{Backoff, TokenSource, Tuning};
use bytes::Bytes;
use moorline_proto::connection::client::State;
use moorline_proto::error::{CloseReason, may_reconnect};
use moorline_proto::message::client::{Close, GoAway, Kick, Resume, Welcome};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// A login that lasted this long starts the backoff anew.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Fresh tokens in a row that the gateway calls expired.
const EXPIRED_MAX: u8 = 3;
/// A token that expires within this time is not used any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the next attempt.
    Waiting(Instant),
    /// Until the driver brings a token.
    NeedToken,
    /// The driver asks a dispatch server; not after this moment.
    Asking(Instant),
    /// The driver connects; not after this moment.
    Connecting(Instant),
    /// A socket. Before WELCOME: not after this moment.
    Up(State, Instant),
    /// LOGOUT is out; the socket ends now or at this moment.
    LoggingOut(Instant),
    /// For good.
    Closed,
}

/// End of a connection, or of the core.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The core comes back, after `after` and a random wait.
    Lost { why: Lost, after: Duration },
    /// The core is closed for good.
    Closed(ClosedWhy),
}

impl Ending {
    /// The core comes back after a random wait.
    pub(super) const fn lost(why: Lost) -> Self {
        Self::Lost { why, after: Duration::ZERO }
    }
}

/// Action that is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// No action.
    Nothing,
    /// Connect, or ask for a token.
    Connect,
    /// Give the question to the dispatch server up.
    GiveUpAsking,
    /// Leave this gateway, as GOAWAY has asked.
    Leave,
    /// Look at the timers of the login.
    Login,
    /// End the connection.
    End(Ending),
}

/// Values for the `resume` of a later HELLO.
#[derive(Debug)]
struct Session {
    id: Bytes,
    epoch: u64,
    ticket: Bytes,
}

#[derive(Debug)]
pub(super) struct ConnectionState {
    phase: Phase,
    policy: Backoff,
    /// Attempts in a row that brought no lasting login.
    failures: u32,
    /// Time of the WELCOME; `None`: not logged in.
    logged_in_at: Option<Instant>,
    session: Option<Box<Session>>,
    token: Option<Arc<str>>,
    /// Expiry of the token; `None`: not known.
    token_until: Option<Instant>,
    /// The token has just come, so it is tried, whatever its expiry says: the device's clock may be wrong.
    is_token_new: bool,
    /// Reason of the next question for a token.
    token_why: TokenWhy,
    /// True: the driver can be asked for another token.
    can_ask: bool,
    /// Tokens in a row that the gateway has not accepted.
    expired: u8,
    /// The next attempt does not wait: it begins with a question for a token.
    is_hasty: bool,
    /// Time to leave after GOAWAY; `None`: stay.
    leave_at: Option<Instant>,
    /// Address that a gateway has named for the next attempt; `None`: none has.
    alternate: Option<Arc<str>>,
    /// Gateways that dispatch servers have named; `None`: there is no dispatch server.
    endpoints: Option<Box<Endpoints>>,
    /// End of a THROTTLE; `None`: there is none.
    throttled_until: Option<Instant>,
}

impl ConnectionState {
    pub(super) fn new(source: &TokenSource, policy: Backoff, endpoints: Option<Endpoints>) -> Self {
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
            token_until: None,
            is_token_new: false,
            token_why: TokenWhy::First,
            can_ask: *source == TokenSource::Ask,
            expired: 0,
            is_hasty: false,
            leave_at: None,
            alternate: None,
            endpoints: endpoints.map(Box::new),
            throttled_until: None,
        }
    }

    pub(super) const fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Up(state, _) if state.is_logged_in())
    }

    /// True while the driver has a socket or makes one.
    pub(super) const fn has_socket(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_) | Phase::Up(..) | Phase::LoggingOut(_))
    }

    /// True while frames are expected.
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(..) | Phase::LoggingOut(_))
    }

    /// True once nothing more may be asked of the core.
    pub(super) const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::LoggingOut(_))
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    pub(super) fn is_throttled(&self, now: Instant) -> bool {
        self.throttled_until.is_some_and(|until| until > now)
    }

    /// True while a THROTTLE holds that no timeout has ended yet.
    pub(super) const fn has_throttle(&self) -> bool {
        self.throttled_until.is_some()
    }

    /// State of the protocol; `None`: there is no connection, or LOGOUT is out.
    pub(super) const fn state(&self) -> Option<State> {
        match self.phase {
            Phase::Up(state, _) => Some(state),
            _ => None,
        }
    }

    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Starts an attempt, or asks for a token or for gateways first: the order for the driver goes to `outputs`.
    pub(super) fn connect(&mut self, now: Instant, limits: &Tuning, outputs: &mut Outputs) {
        let order = self.begin(now, limits);
        outputs.push(order);
    }

    fn begin(&mut self, now: Instant, limits: &Tuning) -> Event {
        let is_stale = self.token_until.is_some_and(|until| until <= now + TOKEN_MARGIN);
        if !std::mem::take(&mut self.is_token_new) && self.can_ask && is_stale {
            (self.token, self.token_until, self.token_why) = (None, None, TokenWhy::Expired);
        }
        if self.token.is_none() {
            self.phase = Phase::NeedToken;
            return Event::TokenNeeded(self.token_why);
        }
        let mut alternate = self.alternate.take();
        if let Some(endpoints) = self.endpoints.as_mut().filter(|_| alternate.is_none()) {
            if let Some(server) = endpoints.poll_question(now) {
                self.phase = Phase::Asking(now + limits.dispatch_timeout);
                return Event::EndpointsNeeded { server };
            }
            alternate = endpoints.begin();
        }
        self.phase = Phase::Connecting(now + limits.connect_timeout);
        Event::Connect { alternate }
    }

    /// Takes the answer of a dispatch server; false: no question is open.
    pub(super) fn on_endpoints(
        &mut self,
        now: Instant,
        answer: Result<EndpointList, DispatchFault>,
        random: &mut Random,
    ) -> bool {
        let is_wanted = matches!(self.phase, Phase::Asking(_));
        if let Some(endpoints) = self.endpoints.as_mut().filter(|_| is_wanted) {
            match answer {
                Ok(list) => endpoints.on_list(now, list),
                Err(fault) => endpoints.on_no_list(now, fault.retry_after(), self.policy, random),
            }
        }
        is_wanted
    }

    /// Notes that the driver has a socket; false: it was not asked for one.
    pub(super) fn on_connected(&mut self, now: Instant, timeout: Duration) -> bool {
        let is_wanted = matches!(self.phase, Phase::Connecting(_));
        if is_wanted {
            self.phase = Phase::Up(State::Greeting, now + timeout);
        }
        is_wanted
    }

    /// Notes that the driver's socket or attempt is gone. `None`: there was none.
    pub(super) fn on_socket_gone(&mut self, now: Instant) -> Option<Ending> {
        let ending = match self.phase {
            Phase::Connecting(_) => Ending::lost(Lost::ConnectFailed),
            Phase::Up(..) => Ending::lost(Lost::SocketGone),
            Phase::LoggingOut(_) => Ending::Closed(ClosedWhy::LoggedOut),
            Phase::Waiting(_) | Phase::NeedToken | Phase::Asking(_) | Phase::Closed => return None,
        };
        self.phase = Phase::Waiting(now); // there is no socket to hang up
        Some(ending)
    }

    /// Takes the answer to a question for a token, and the token's expiry if it is known; false: no question is open.
    pub(super) fn on_token(&mut self, token: Option<Arc<str>>, until: Option<Instant>) -> bool {
        let is_wanted = self.phase == Phase::NeedToken;
        if is_wanted {
            (self.token, self.token_until, self.is_token_new) = (token, until, true);
        }
        is_wanted
    }

    /// Names the action that is due, and ends a THROTTLE that is over.
    pub(super) fn poll_due(&mut self, now: Instant) -> Due {
        match self.phase {
            Phase::Up(State::Active | State::Leaving, _) => {
                if self.leave_at.is_some_and(|at| at <= now) {
                    return Due::Leave;
                }
                self.throttled_until = self.throttled_until.filter(|until| *until > now);
                Due::Login
            }
            Phase::Waiting(until) if until <= now => Due::Connect,
            Phase::Asking(until) if until <= now => Due::GiveUpAsking,
            Phase::Connecting(until) if until <= now => Due::End(Ending::lost(Lost::ConnectFailed)),
            Phase::LoggingOut(until) if until <= now => Due::End(Ending::Closed(ClosedWhy::LoggedOut)),
            Phase::Up(State::Greeting | State::Offline, until) if until <= now => {
                Due::End(Ending::lost(Lost::HandshakeTimeout))
            }
            _ => Due::Nothing,
        }
    }

    /// Takes the next state of a login from the protocol's table.
    pub(super) const fn on_state(&mut self, next: State) {
        if next.is_logged_in() && self.is_logged_in() {
            self.phase = Phase::Up(next, Instant::FAR_FUTURE);
        }
    }

    pub(super) fn on_welcome(&mut self, now: Instant, welcome: &Welcome) {
        self.phase = Phase::Up(State::Active, Instant::FAR_FUTURE);
        self.logged_in_at = Some(now);
        self.expired = 0;
        let copy = Bytes::copy_from_slice; // a slice would hold the whole read buffer
        // One that is too long for a HELLO would keep the client from ever logging in again.
        let has_ticket = (1..=limits::TICKET_BYTES_MAX).contains(&welcome.ticket.len())
            && welcome.session.len() <= limits::TICKET_BYTES_MAX;
        self.session = has_ticket.then(|| {
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

    /// Takes the end of a connection or an attempt; returns the wait before the next one.
    pub(super) fn on_lost(&mut self, now: Instant, after: Duration, random: &mut Random) -> Duration {
        let lasted = self.logged_in_at.take().map(|since| now.saturating_since(since));
        if lasted.is_some_and(|lasted| lasted >= STABLE_AFTER) {
            self.failures = 0;
        }
        let wait = if std::mem::take(&mut self.is_hasty) {
            Duration::ZERO // only the token was wrong
        } else {
            self.leave_endpoint(lasted.is_some_and(|lasted| lasted >= STABLE_AFTER));
            self.failures = self.failures.saturating_add(1);
            self.policy.wait(self.failures - 1, random)
        };
        self.throttled_until = None;
        self.leave_at = None;
        let wait = after + wait;
        self.phase = Phase::Waiting(now + wait);
        wait
    }

    /// Notes that the gateway was left on its request; returns the wait before the next attempt. There is none after a
    /// login that lasted: gateways that send a client to each other must not make it hurry.
    pub(super) fn on_left(&mut self, now: Instant, random: &mut Random) -> Duration {
        let lasted = self.logged_in_at.is_some_and(|since| now.saturating_since(since) >= STABLE_AFTER);
        if lasted {
            (self.logged_in_at, self.failures) = (None, 0);
            (self.throttled_until, self.leave_at) = (None, None);
            self.leave_endpoint(false);
            self.phase = Phase::Waiting(now);
            return Duration::ZERO;
        }
        self.on_lost(now, Duration::ZERO, random)
    }

    /// Notes that the connection or the attempt has ended; `has_served`: its gateway is to be tried again first.
    fn leave_endpoint(&mut self, has_served: bool) {
        if let Some(endpoints) = &mut self.endpoints {
            endpoints.on_lost(has_served);
        }
    }

    /// Takes a GOAWAY: leaves at a random moment of its window, for the first of its addresses that is in `known`, or for the
    /// first of all if whoever answers there has to prove that it is the gateway.
    pub(super) fn on_go_away(
        &mut self,
        now: Instant,
        go_away: &GoAway,
        known: &[Arc<str>],
        is_proved: bool,
        random: &mut Random,
    ) {
        let window = limits::pause(go_away.window_ms);
        let named = go_away.alternates.iter().take(limits::ALTERNATES_MAX);
        let known =
            |named: &str| known.iter().find(|known| known.eq_ignore_ascii_case(named)).map(Arc::clone);
        let proved = |named: &str| (is_proved && limits::is_place(named)).then(|| named.into());
        let mut followed = named.filter_map(|named| known(named).or_else(|| proved(named)));
        self.alternate = followed.next();
        self.leave_at = Some(now + part_of(window, random));
    }

    /// Takes a THROTTLE.
    pub(super) fn on_throttle(&mut self, now: Instant, retry_after: Duration) {
        self.throttled_until = Some(now + retry_after);
    }

    /// Takes a KICK.
    pub(super) fn on_kick(&mut self, kick: Kick) -> Ending {
        let Kick { code, may_reconnect, reason } = kick;
        if may_reconnect {
            self.forget_session();
            Ending::lost(Lost::Told { code, reason })
        } else {
            Ending::Closed(ClosedWhy::Told { code, reason })
        }
    }

    /// Takes a CLOSE.
    pub(super) fn on_close(&mut self, close: Close) -> Ending {
        let Close { code, reason, retry_after_ms } = close;
        let is_expired = code == CloseReason::TokenExpired.code();
        let is_refused = is_expired || code == CloseReason::AuthFailed.code();
        if is_refused && self.can_ask && self.expired < EXPIRED_MAX {
            // The first time at once: only the gateway knows when a key is replaced or a token is revoked.
            self.is_hasty = self.expired == 0;
            self.expired += 1;
            (self.token, self.token_until) = (None, None);
            self.token_why = if is_expired { TokenWhy::Expired } else { TokenWhy::Refused };
            Ending::lost(Lost::Told { code, reason })
        } else if may_reconnect(code) {
            Ending::Lost { why: Lost::Told { code, reason }, after: limits::pause(retry_after_ms) }
        } else {
            Ending::Closed(ClosedWhy::Told { code, reason })
        }
    }

    /// Notes that LOGOUT is out; the gateway has `timeout` to answer.
    pub(super) fn on_logout(&mut self, now: Instant, timeout: Duration) {
        self.phase = Phase::LoggingOut(now + timeout);
    }

    /// Closes for good.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Notes that the network is another one, so there is no reason to wait.
    pub(super) fn on_network_changed(&mut self, now: Instant) {
        self.failures = 0;
        if let Some(endpoints) = &mut self.endpoints {
            endpoints.on_network_changed();
        }
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
            | Phase::Asking(until)
            | Phase::Connecting(until)
            | Phase::Up(_, until)
            | Phase::LoggingOut(until) => Some(until),
            Phase::NeedToken | Phase::Closed => None,
        }
    }
}

#[cfg(test)]
mod tests;
