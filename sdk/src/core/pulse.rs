//! Heartbeats of one login: speak when idle, notice when nothing comes back.

use moorline_proto::keepalive::{Bounds, Heartbeat};
use moorline_proto::message::client::Welcome;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};

/// Used where the gateway names no bounds.
const INTERVAL_MIN_DEFAULT_S: u32 = 30;
const INTERVAL_MAX_DEFAULT_S: u32 = 300;

/// What the time demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing.
    Quiet,
    /// A PING that promises to be heard again within `next_s` seconds.
    Ping { next_s: u32 },
    /// The gateway is gone.
    Dead,
}

#[derive(Debug)]
pub(super) struct Pulse {
    heartbeat: Heartbeat,
    patience: Duration,
    /// Since when a PING has no answer.
    asked_at: Option<Instant>,
    is_probe_due: bool,
}

impl Pulse {
    pub(super) fn new(welcome: &Welcome, patience: Duration, now: Instant, random: &mut Random) -> Self {
        let or = |seconds: u32, default| if seconds == 0 { default } else { seconds };
        let min = or(welcome.heartbeat_min_s, INTERVAL_MIN_DEFAULT_S);
        let max = or(welcome.heartbeat_max_s, INTERVAL_MAX_DEFAULT_S).max(min);
        let bounds = Bounds { min: Duration::from_secs(min.into()), max: Duration::from_secs(max.into()) };
        let heartbeat = Heartbeat::new(bounds, now, random);
        Self { heartbeat, patience, asked_at: None, is_probe_due: false }
    }

    /// Something other than a PING was sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.heartbeat.sent(now);
    }

    /// Something was heard.
    pub(super) fn heard(&mut self) {
        self.asked_at = None;
    }

    /// Asks for a sign of life now.
    pub(super) fn probe(&mut self) {
        self.is_probe_due = self.asked_at.is_none();
    }

    pub(super) fn deadline(&self) -> Instant {
        self.asked_at.map_or_else(|| self.heartbeat.deadline(), |asked| asked + self.patience)
    }

    pub(super) fn poll(&mut self, now: Instant) -> Beat {
        if self.asked_at.is_some() {
            return if self.deadline() <= now { Beat::Dead } else { Beat::Quiet };
        }
        if !self.is_probe_due && self.heartbeat.deadline() > now {
            return Beat::Quiet;
        }
        self.is_probe_due = false;
        self.asked_at = Some(now);
        let promise = self.heartbeat.beat(now).as_secs().max(1);
        Beat::Ping { next_s: u32::try_from(promise).unwrap_or(u32::MAX) }
    }
}
