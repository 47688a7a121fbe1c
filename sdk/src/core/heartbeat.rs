//! Heartbeats of one login: speak when idle, notice when nothing comes back.

use super::limits::HEARTBEAT_MAX_S;
use moorline_proto::keepalive::{self, Bounds};
use moorline_proto::message::client::Welcome;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};

/// Used where the gateway names no bounds.
const INTERVAL_MIN_DEFAULT_S: u32 = 30;
const INTERVAL_MAX_DEFAULT_S: u32 = 300;

/// Action that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// No action.
    Quiet,
    /// A PING that promises to be heard again within `next_s` seconds.
    Ping { next_s: u32 },
    /// The gateway is gone.
    Dead,
}

#[derive(Debug)]
pub(super) struct Heartbeat {
    schedule: keepalive::Heartbeat,
    /// Time that the gateway has to answer a PING.
    patience: Duration,
    /// Time of the PING without an answer; `None`: every PING was answered.
    asked_at: Option<Instant>,
    /// True: the next poll writes a PING, whatever the schedule says.
    is_probe_due: bool,
    /// Start of the silence of the gateway.
    quiet_since: Instant,
    /// True: the PING without an answer followed a whole silent interval, so its fate tells of the network.
    is_telling: bool,
    /// Bounds of the interval from the gateway.
    bounds: Bounds,
}

impl Heartbeat {
    pub(super) fn new(welcome: &Welcome, patience: Duration, now: Instant, random: &mut Random) -> Self {
        let or = |seconds: u32, default| if seconds == 0 { default } else { seconds };
        // A gateway that wants no heartbeat for years would keep the client from noticing its end.
        let min = or(welcome.heartbeat_min_s, INTERVAL_MIN_DEFAULT_S).min(HEARTBEAT_MAX_S);
        let max = or(welcome.heartbeat_max_s, INTERVAL_MAX_DEFAULT_S).clamp(min, HEARTBEAT_MAX_S);
        let bounds = Bounds { min: Duration::from_secs(min.into()), max: Duration::from_secs(max.into()) };
        let schedule = keepalive::Heartbeat::new(bounds, now, random);
        Self {
            schedule,
            patience,
            asked_at: None,
            is_probe_due: false,
            quiet_since: now,
            is_telling: false,
            bounds,
        }
    }

    /// Notes that a frame other than a PING was sent.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.schedule.sent(now);
    }

    /// Notes that bytes arrived. True: they answer a PING that followed a whole silent interval.
    pub(super) fn on_received(&mut self, now: Instant) -> bool {
        // An answer ends the silence that its PING has ended already: a round trip is not an interval.
        self.quiet_since = self.asked_at.take().unwrap_or(now);
        std::mem::take(&mut self.is_telling)
    }

    /// True if the dead connection had been silent for a whole interval before.
    pub(super) const fn is_telling(&self) -> bool {
        self.is_telling
    }

    /// Bounds of the interval from the gateway.
    pub(super) const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Beats at this interval from now on; a longer one is announced first [P-7.1].
    pub(super) fn set_interval(&mut self, interval: Duration, now: Instant) {
        if interval != self.schedule.interval() {
            self.schedule.set_interval(interval, now);
        }
    }

    /// Asks for a sign of life now.
    pub(super) fn probe(&mut self) {
        self.is_probe_due = self.asked_at.is_none();
    }

    pub(super) fn deadline(&self) -> Instant {
        self.asked_at.map_or_else(|| self.schedule.deadline(), |asked| asked + self.patience)
    }

    pub(super) fn poll(&mut self, now: Instant) -> Beat {
        if self.asked_at.is_some() {
            return if self.deadline() <= now { Beat::Dead } else { Beat::Quiet };
        }
        if !self.is_probe_due && self.schedule.deadline() > now {
            return Beat::Quiet;
        }
        let silence = now.saturating_since(self.quiet_since);
        self.is_telling = !self.is_probe_due && silence >= self.schedule.interval();
        self.is_probe_due = false;
        self.asked_at = Some(now);
        let promise = self.schedule.beat(now).as_secs().max(1);
        Beat::Ping { next_s: u32::try_from(promise).unwrap_or(u32::MAX) }
    }
}
