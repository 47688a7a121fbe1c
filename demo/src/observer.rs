//! Hears every client: asks the checker, takes the times, counts who is there.

use crate::checker::Checker;
use crate::client::{Dropped, Output};
use crate::fleet::Listener;
use crate::latency::Latencies;
use crate::roster::Roster;
use moorline_proto::message::im::GroupCreateResponse;
use moorline_proto::time::{Duration, Instant};
use prost::Message as _;
use std::sync::Arc;

/// Figures of all clients together.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) checker: Checker,
    /// From the intended send time to the answer.
    pub(crate) durable: Latencies,
    /// From the intended send time to each arrival.
    pub(crate) delivered: Latencies,
    /// From the intended send time to the actual one: the demo's own lag.
    pub(crate) lag: Latencies,
    /// Logins that stand.
    pub(crate) logged_in: u32,
    /// Logins that were lost for another reason than slowness, and the first reason.
    pub(crate) dropped_logins: u64,
    pub(crate) first_drop: String,
    /// Logins that were lost because one side was too slow for the other.
    pub(crate) slow_logins: u64,
    /// Reason of the last failed login or request.
    pub(crate) last_failure: String,
    /// Clients that were told to stay away.
    pub(crate) closed: u64,
    /// Groups that stand.
    pub(crate) groups_made: usize,
    /// Groups that were refused.
    pub(crate) groups_failed: usize,
    /// Answers to [`Stage::become_known`](crate::stage::Stage::become_known); `None`: answers are to groups.
    pub(crate) known: Option<u32>,
    is_logged_in: Vec<bool>,
    /// Longest time from an intended send to an answer since the kill.
    longest: Duration,
    killed: Option<Instant>,
    /// Time at which a message was durable that was sent after the backend had been killed; `None`: none was.
    pub(crate) stored_again: Option<Instant>,
}

impl Observer {
    pub(crate) fn new(roster: Arc<Roster>, seed: u64) -> Self {
        Self {
            is_logged_in: vec![false; roster.devices.len()],
            checker: Checker::new(roster, seed),
            durable: Latencies::new(),
            delivered: Latencies::new(),
            lag: Latencies::new(),
            logged_in: 0,
            dropped_logins: 0,
            first_drop: String::new(),
            slow_logins: 0,
            last_failure: String::new(),
            closed: 0,
            groups_made: 0,
            groups_failed: 0,
            known: None,
            longest: Duration::ZERO,
            killed: None,
            stored_again: None,
        }
    }

    /// Forgets the times taken so far: they were of the calibration.
    pub(crate) fn begin_times(&mut self) {
        (self.durable, self.delivered, self.lag) = (Latencies::new(), Latencies::new(), Latencies::new());
    }

    /// Notes that a server was killed: times from now on say nothing about its speed.
    pub(crate) const fn handle_kill(&mut self, now: Instant) {
        self.killed = Some(now);
    }

    /// Notes that everything is answered again. Returns the longest wait of a message since the kill.
    pub(crate) fn handle_calm(&mut self) -> Duration {
        self.killed = None;
        std::mem::take(&mut self.longest)
    }

    /// Groups without an answer, of `asked`.
    pub(crate) const fn groups_open(&self, asked: usize) -> usize {
        asked - self.groups_made - self.groups_failed
    }

    /// A number that changes whenever anything moves on.
    pub(crate) fn progress(&self) -> u64 {
        let tally = self.checker.tally();
        let groups = (self.groups_made + self.groups_failed) as u64;
        let known = u64::from(self.known.unwrap_or_default());
        tally.stored + tally.failed + tally.delivered + groups + known + u64::from(self.logged_in)
    }

    fn handle_drop(&mut self, client: u32, why: &Dropped) {
        self.last_failure = why.to_string();
        if !std::mem::take(&mut self.is_logged_in[client as usize]) {
            return;
        }
        self.logged_in -= 1;
        if why.is_slowness() {
            self.slow_logins += 1;
            return;
        }
        self.dropped_logins += 1;
        if self.first_drop.is_empty() {
            self.first_drop = why.to_string();
        }
    }
}

impl Listener for Observer {
    fn handle_output(&mut self, client: u32, at: Instant, output: Output) {
        match output {
            // The event that a group was made is not a message.
            Output::Message { push, .. } if !push.happened.is_empty() => {}
            Output::Message { push, .. } => {
                let intended = self.checker.on_message(client, &push);
                if let Some(intended) = intended.filter(|_| self.killed.is_none()) {
                    self.delivered.record(intended, at);
                }
            }
            Output::Vacant { seat, to, .. } => self.checker.on_vacant(client, seat, to),
            Output::Stored(receipt) => match (self.checker.on_stored(client, &receipt), self.killed) {
                (Some(intended), None) => self.durable.record(intended, at),
                (Some(intended), Some(killed)) => {
                    self.longest = self.longest.max(at.saturating_since(intended));
                    if intended > killed {
                        self.stored_again.get_or_insert(at);
                    }
                }
                (None, _) => {}
            },
            Output::Failed { key, why } => self.checker.on_failed(client, key, &why),
            Output::LoggedIn => {
                self.is_logged_in[client as usize] = true;
                self.logged_in += 1;
            }
            Output::Disconnected(why) => self.handle_drop(client, &why),
            Output::Closed(why) => {
                self.closed += 1;
                self.handle_drop(client, &why);
            }
            Output::Response(result) if self.known.is_some() => {
                self.known = self.known.map(|known| known + 1);
                if let Err(why) = result {
                    self.last_failure = why;
                }
            }
            Output::Response(result) => {
                let made = result
                    .and_then(|body| GroupCreateResponse::decode(body).map_err(|error| error.to_string()));
                match made {
                    Ok(_) => self.groups_made += 1,
                    Err(why) => {
                        self.groups_failed += 1;
                        self.last_failure = why;
                    }
                }
            }
            Output::Connect | Output::Write(_) | Output::HangUp => {}
        }
    }
}
