//! A storm: a part of the fleet loses its connections in one moment and comes back, beside a chat of the rest.

use super::chat::{Chat, Half, Patience};
use super::outflow::Load;
use crate::dialect::{Dialect, Event};
use crate::findings::Recorder;
use crate::fleet::{Clients, Scenario};
use crate::phase::Phase;
use crate::record::Metric;
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Share of the broken connections that ends the storm when they are back: 99 in 100.
const BACK_PART: (u32, u32) = (99, 100);

/// Connections that are broken in one turn of the loop: closing thousands in one go would stand
/// in the way of the chat that is watched.
const BREAKS_PER_TURN: u32 = 64;

/// Plan of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormRule {
    /// Number of clients, from the first on, that stay and chat.
    pub stay: u32,
    /// Measuring time before it breaks.
    pub calm: Duration,
}

/// The scenario and what it found.
#[derive(Debug)]
pub struct Storm {
    chat: Chat,
    rule: StormRule,
    breaks_at: Option<Instant>,
    broke_at: Option<Instant>,
    /// Clients from here on are still to be broken off.
    next: u32,
    gone: u32,
    back: u32,
}

impl Storm {
    /// The remaining clients chat under `load`.
    pub fn new(rule: StormRule, load: Load, payload_bytes: u32, backlog_for: Duration) -> Self {
        Self {
            chat: Chat::new(load, rule.stay, payload_bytes, Patience::None, backlog_for),
            rule,
            breaks_at: None,
            broke_at: None,
            next: rule.stay,
            gone: 0,
            back: 0,
        }
    }

    fn break_some<D: Dialect>(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        if self.broke_at.is_none() {
            self.broke_at = Some(now);
            self.chat.set_storm(now, true);
        }
        let end = clients.len().min(self.next + BREAKS_PER_TURN);
        for who in self.next..end {
            if clients.is_active(who) {
                clients.break_off(who, now);
                self.gone += 1;
            }
        }
        self.next = end;
        if end == clients.len() {
            self.breaks_at = None;
        }
    }

    fn on_back(&mut self, since: Instant, now: Instant) {
        self.chat.recorder.record(Metric::Back, now.saturating_since(since));
        self.back += 1;
        let (part, whole) = BACK_PART;
        if self.breaks_at.is_none() && self.back == (self.gone * part).div_ceil(whole) {
            self.chat.set_storm(now, false);
        }
    }
}

impl<D: Dialect> Scenario<D> for Storm {
    type Extra = Half;

    fn on_phase(&mut self, clients: &mut Clients<D, Half>, phase: Phase, now: Instant) {
        if phase == Phase::Measure {
            self.breaks_at = Some(now + self.rule.calm);
        }
        self.chat.on_phase(clients, phase, now);
    }

    fn on_event(&mut self, clients: &mut Clients<D, Half>, who: u32, event: Event, now: Instant) {
        match (&event, self.broke_at) {
            (Event::Welcome, Some(since)) if who >= self.rule.stay => self.on_back(since, now),
            _ => self.chat.on_event(clients, who, event, now),
        }
    }

    fn on_time(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        if self.breaks_at.is_some_and(|at| at <= now) {
            self.break_some(clients, now);
        }
        self.chat.on_time(clients, now);
    }

    fn deadline(&self) -> Option<Instant> {
        Scenario::<D>::deadline(&self.chat).into_iter().chain(self.breaks_at).min()
    }

    fn is_settled(&self, clients: &Clients<D, Half>) -> bool {
        self.back == self.gone && self.chat.is_settled(clients)
    }

    fn done(&self) -> u64 {
        Scenario::<D>::done(&self.chat)
    }

    fn recorder(&mut self) -> &mut Recorder {
        &mut self.chat.recorder
    }

    fn finish(&mut self, clients: &mut Clients<D, Half>, now: Instant) {
        self.chat.finish(clients, now);
    }
}
