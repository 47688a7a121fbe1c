//! One link's life: connecting, greeting, ready, draining, waiting to try again. Pure.
//!
//! ```text
//! Waiting --due--> Connecting --on_connected--> Greeting --on_hello--> Ready --on_drain--> Draining
//!    ^                 |                           |                     |                    |
//!    +---- on_failed --+---------------------------+---------------------+--------------------+
//! ```
//!
//! The delays only become
//! short again after the link held for [`LinkTimes::stable_after`], so a backend that says HELLO and
//! dies is not hammered.

use super::backoff::Backoff;
use super::stores::OtherStore;
use crate::snapshot::LinkRecord;
use moorline_proto::link::{LinkError, PING_INTERVAL_S};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::fmt;
use std::io;

/// The times a link lives by.
#[derive(Clone, Copy, Debug)]
pub struct LinkTimes {
    /// From `connect` to connected.
    pub connect_timeout: Duration,
    /// From connected to the backend's HELLO.
    pub hello_timeout: Duration,
    /// Time without traffic after which a PING is sent.
    pub ping_interval: Duration,
    /// Time without a received byte after which a link is dead.
    pub silence_max: Duration,
    /// Time of being ready after which the next failure counts as the first.
    pub stable_after: Duration,
}

impl Default for LinkTimes {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            hello_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(PING_INTERVAL_S),
            silence_max: Duration::from_secs(3 * PING_INTERVAL_S),
            stable_after: Duration::from_secs(5),
        }
    }
}

/// Phase of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Closed; tries again then.
    Waiting(Instant),
    /// The connection is being made, until then.
    Connecting(Instant),
    /// Connected; the backend's HELLO is due until then.
    Greeting(Instant),
    /// Takes work.
    Ready,
    /// Works on, takes no new slots.
    Draining,
}

/// Action that is due on a link.
#[derive(Debug)]
pub(super) enum Due {
    /// Connect now; the phase is `Connecting` already.
    Connect,
    /// Send a PING.
    Ping,
    /// Close, for this reason.
    Close(Failure),
}

/// Reason why a link was closed.
#[derive(Debug)]
pub enum Failure {
    /// The system would not connect, read or write.
    Io(io::Error),
    /// No connection in time.
    ConnectTimeout,
    /// Connected, but no HELLO in time.
    HelloTimeout,
    /// Nothing heard for too long.
    Silent,
    /// The backend closed it.
    Closed,
    /// The backend does not read what it is sent; bytes that wait.
    Clogged(usize),
    /// Too many login changes wait for the backend.
    Behind(usize),
    /// The backend takes questions and does not answer: it is left alone for a while.
    Tripped,
    /// The backend did not prove that it knows the secret of this gateway.
    Unproven,
    /// The backend's proof is of none of this gateway's secrets.
    WrongProof,
    /// The backend asks for a proof, and this gateway has no secret.
    NoSecret,
    /// The backend refused this gateway, with this reason.
    Refused(String),
    /// The backend has another store than the backends that serve.
    OtherStore(OtherStore),
    /// The backend is a node of a cluster, and this gateway follows no slots.
    IsCluster,
    /// The backend is of no cluster, and this gateway follows slots.
    NoCluster,
    /// The name of the endpoint cannot be resolved, for this reason.
    Unresolved(String),
    /// The TLS handshake failed, or the backend refuses the certificate of this gateway, for this reason.
    Tls(String),
    /// The backend sent what it must not.
    Protocol(LinkError),
}

impl Failure {
    /// Returns whether only a change of settings helps, on this side or the other: each try fails alike.
    pub(super) const fn is_of_trust(&self) -> bool {
        matches!(
            self,
            Self::Unproven
                | Self::WrongProof
                | Self::NoSecret
                | Self::Refused(_)
                | Self::OtherStore(_)
                | Self::Tls(_)
                | Self::IsCluster
                | Self::NoCluster
                | Self::Protocol(LinkError::Tls)
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::ConnectTimeout => f.write_str("no connection in time; is the backend reachable, and is its name resolved?"),
            Self::HelloTimeout => f.write_str(
                "connected, but no HELLO in time; the backend may still be opening its store, or this is no link port",
            ),
            Self::Silent => f.write_str("nothing heard, not even a PONG"),
            Self::Closed => f.write_str("closed by the backend"),
            Self::Clogged(bytes) => write!(f, "the backend does not read; {bytes} bytes wait for it"),
            Self::Behind(changes) => write!(f, "the backend is behind; {changes} login changes wait for it"),
            Self::Tripped => f.write_str("the backend does not answer; others do its work for a while"),
            Self::Unproven => f.write_str(
                "nothing proves that this is a backend; name its secret in backend.secrets_file and in link.secrets_file \
                 of the backend, or use a Unix socket",
            ),
            Self::WrongProof => f.write_str(
                "the backend does not know a secret of this gateway; compare backend.secrets_file with \
                 link.secrets_file of the backend",
            ),
            Self::NoSecret => f.write_str(
                "the backend asks for a proof; name the secret of this gateway in backend.secrets_file",
            ),
            Self::Refused(reason) => write!(f, "refused by the backend: {reason:?}"),
            Self::OtherStore(other) => other.fmt(f),
            Self::IsCluster => f.write_str(
                "the backend is a node of a cluster; set backend.balance = \"cluster\" and restart the gateway",
            ),
            Self::NoCluster => f.write_str(
                "the backend is of no cluster; set its store.cells, or another backend.balance",
            ),
            Self::Tls(problem) => f.write_str(problem),
            Self::Unresolved(problem) => write!(f, "cannot resolve the name: {problem}"),
            Self::Protocol(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Protocol(error)
    }
}

/// The state machine of one link.
#[derive(Debug)]
pub(super) struct LinkState {
    phase: Phase,
    times: LinkTimes,
    backoff: Backoff,
    generation: u32,
    ready_at: Instant,
    heard_at: Instant,
    sent_at: Instant,
    pinged_at: Instant,
}

impl LinkState {
    /// A link whose first try is due at once.
    pub(super) const fn new(times: LinkTimes, backoff: Backoff) -> Self {
        Self {
            phase: Phase::Waiting(Instant::ZERO),
            times,
            backoff,
            generation: 0,
            ready_at: Instant::FAR_FUTURE,
            heard_at: Instant::ZERO,
            sent_at: Instant::ZERO,
            pinged_at: Instant::ZERO,
        }
    }

    /// Writes an open link's state down; `None`: there is nothing that could go on elsewhere.
    pub(super) fn freeze(&self, record: &mut LinkRecord) -> Option<()> {
        let Self { phase, times: _, backoff, generation, ready_at, heard_at, sent_at, pinged_at } = self;
        record.is_draining = match phase {
            Phase::Ready => false,
            Phase::Draining => true,
            Phase::Waiting(_) | Phase::Connecting(_) | Phase::Greeting(_) => return None,
        };
        record.generation = *generation;
        record.attempts = backoff.attempts();
        record.ready_at = ready_at.as_nanos();
        record.heard_at = heard_at.as_nanos();
        record.sent_at = sent_at.as_nanos();
        record.pinged_at = pinged_at.as_nanos();
        Some(())
    }

    /// Goes on where that link was.
    pub(super) fn thaw(&mut self, record: &LinkRecord) {
        self.phase = if record.is_draining { Phase::Draining } else { Phase::Ready };
        self.generation = record.generation;
        self.backoff.resume(record.attempts);
        self.ready_at = Instant::from_nanos(record.ready_at);
        self.heard_at = Instant::from_nanos(record.heard_at);
        self.sent_at = Instant::from_nanos(record.sent_at);
        self.pinged_at = Instant::from_nanos(record.pinged_at);
    }

    /// Begins after the lives that this link had in another process, whose number is not known: links are tried at
    /// most once a millisecond ([`DELAY_FLOOR`](super::backoff::DELAY_FLOOR)), so there were fewer than milliseconds.
    pub(super) fn begin_after(&mut self, now: Instant) {
        // It wraps after 49 days, and is only compared for equality.
        self.generation = u32::try_from((now.as_nanos() / 1_000_000) & u64::from(u32::MAX)).unwrap_or(0);
    }

    /// Phase of the link.
    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    /// Generation: counts the connections of this link.
    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Failures in a row.
    pub(super) const fn attempts(&self) -> u32 {
        self.backoff.attempts()
    }

    /// True if the connection is being made.
    pub(super) const fn is_connecting(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_))
    }

    /// True if frames are exchanged.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Draining)
    }

    /// The connection stands, HELLO goes out.
    pub(super) fn on_connected(&mut self, now: Instant) {
        self.phase = Phase::Greeting(now + self.times.hello_timeout);
        (self.heard_at, self.sent_at, self.pinged_at) = (now, now, now);
    }

    /// The backend's HELLO is in order.
    pub(super) const fn on_hello(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.ready_at = now;
    }

    /// The backend wants no new work here.
    pub(super) const fn on_drain(&mut self) {
        self.phase = Phase::Draining;
    }

    /// Bytes came.
    pub(super) const fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Bytes went.
    pub(super) const fn on_sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// The connection is gone, or was never made. Returns the delay before the next try.
    pub(super) fn on_failed(&mut self, now: Instant, random: &mut Random) -> Duration {
        if self.is_open() && now.saturating_since(self.ready_at) >= self.times.stable_after {
            self.backoff.reset();
        }
        let delay = self.backoff.next_delay(random);
        self.phase = Phase::Waiting(now + delay);
        delay
    }

    /// Time of the next try of a waiting link.
    pub(super) const fn wait_until(&mut self, at: Instant) {
        if let Phase::Waiting(_) = self.phase {
            self.phase = Phase::Waiting(at);
        }
    }

    /// Time of the next action of [`Self::poll_due`].
    pub(super) fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::Waiting(at) | Phase::Connecting(at) | Phase::Greeting(at) => at,
            Phase::Ready | Phase::Draining => self.ping_at().min(self.silent_at()),
        }
    }

    /// Next action that is due at `now`; call until `None`.
    pub(super) fn poll_due(&mut self, now: Instant) -> Option<Due> {
        match self.phase {
            Phase::Waiting(at) if now >= at => {
                self.phase = Phase::Connecting(now + self.times.connect_timeout);
                self.generation = self.generation.wrapping_add(1);
                Some(Due::Connect)
            }
            Phase::Connecting(until) if now >= until => Some(Due::Close(Failure::ConnectTimeout)),
            Phase::Greeting(until) if now >= until => Some(Due::Close(Failure::HelloTimeout)),
            Phase::Waiting(_) | Phase::Connecting(_) | Phase::Greeting(_) => None,
            Phase::Ready | Phase::Draining if now >= self.silent_at() => Some(Due::Close(Failure::Silent)),
            Phase::Ready | Phase::Draining => (now >= self.ping_at()).then(|| {
                self.pinged_at = now;
                Due::Ping
            }),
        }
    }

    fn ping_at(&self) -> Instant {
        self.sent_at.min(self.heard_at).max(self.pinged_at) + self.times.ping_interval
    }

    fn silent_at(&self) -> Instant {
        self.heard_at + self.times.silence_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready_at(now: Instant) -> LinkState {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut state = LinkState::new(LinkTimes::default(), backoff);
        assert!(matches!(state.poll_due(now), Some(Due::Connect)));
        state.on_connected(now);
        state.on_hello(now);
        state
    }

    const fn secs(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn each_step_toward_ready_has_its_timeout() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut state = LinkState::new(LinkTimes::default(), backoff);
        let mut random = Random::new(1);
        assert!(matches!(state.poll_due(secs(1)), Some(Due::Connect)));
        assert!(state.poll_due(secs(3)).is_none() && state.next_deadline() == secs(4));
        assert!(matches!(state.poll_due(secs(4)), Some(Due::Close(Failure::ConnectTimeout))));
        let delay = state.on_failed(secs(4), &mut random);
        assert_eq!(state.next_deadline(), secs(4) + delay);
        assert!(matches!(state.poll_due(secs(5)), Some(Due::Connect)));
        assert_eq!(state.generation(), 2);
        state.on_connected(secs(5));
        assert!(matches!(state.poll_due(secs(8)), Some(Due::Close(Failure::HelloTimeout))));
        assert!(!state.is_open());
    }

    #[test]
    fn an_idle_link_pings_every_five_seconds_and_dies_after_fifteen() {
        let mut state = ready_at(secs(0));
        for at in [5, 10] {
            assert_eq!(state.next_deadline(), secs(at));
            assert!(matches!(state.poll_due(secs(at)), Some(Due::Ping)));
            assert!(state.poll_due(secs(at)).is_none());
            state.on_sent(secs(at));
        }
        assert!(matches!(state.poll_due(secs(15)), Some(Due::Close(Failure::Silent))));
        state.on_heard(secs(15));
        assert!(matches!(state.poll_due(secs(15)), Some(Due::Ping)));
        state.on_sent(secs(18));
        state.on_heard(secs(18));
        assert_eq!(state.next_deadline(), secs(23), "traffic both ways needs no ping");
    }

    /// Outcomes of pushes name the generation: one that was sent by the life before must not reach this one.
    #[test]
    fn a_link_that_begins_anew_after_a_hot_restart_reuses_no_generation() {
        let backoff = || Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut random = Random::new(1);
        let mut before = LinkState::new(LinkTimes::default(), backoff());
        let mut now = secs(0);
        for _ in 0..1_000 {
            assert!(matches!(before.poll_due(now), Some(Due::Connect)));
            now += before.on_failed(now, &mut random);
        }
        let mut after = LinkState::new(LinkTimes::default(), backoff());
        after.begin_after(now);
        assert!(matches!(after.poll_due(now), Some(Due::Connect)));
        assert!(after.generation() > before.generation(), "even if it was tried each millisecond");
    }

    #[test]
    fn only_a_link_that_held_is_tried_again_quickly() {
        let mut random = Random::new(3);
        let mut state = ready_at(secs(0));
        for round in 0..20 {
            state.on_failed(secs(round), &mut random);
            state.on_hello(secs(round));
        }
        assert_eq!(state.attempts(), 20, "dying right after HELLO keeps the delays long");
        let delay = state.on_failed(secs(30), &mut random);
        assert!(delay <= Duration::from_millis(50) && state.attempts() == 1);
    }
}
