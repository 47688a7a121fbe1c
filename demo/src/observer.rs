//! Hears every client: asks the checker, takes the times, counts who is there.

use crate::checker::Checker;
use crate::fleet::Listener;
use crate::latency::Latencies;
use crate::roster::Roster;
use moorline_proto::message::im::GroupCreateResponse;
use moorline_proto::time::Instant;
use moorline_sdk::core::Event;
use prost::Message as _;
use std::sync::Arc;

/// What the play needs to know of all clients together.
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
    /// Logins that were lost.
    pub(crate) lost_logins: u64,
    /// Attempts to log in that failed, and why the last one did.
    pub(crate) failed_logins: u64,
    pub(crate) last_failure: String,
    /// Clients that will not come back.
    pub(crate) closed: u64,
    /// Groups that stand.
    pub(crate) groups_made: usize,
    /// Groups that were refused.
    pub(crate) groups_failed: usize,
    is_logged_in: Vec<bool>,
    killed: Option<Instant>,
    /// When something that was said after the backend was killed was durable.
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
            lost_logins: 0,
            failed_logins: 0,
            last_failure: String::new(),
            closed: 0,
            groups_made: 0,
            groups_failed: 0,
            killed: None,
            stored_again: None,
        }
    }

    /// The backend was killed: what comes from now on says nothing of how fast it is.
    pub(crate) const fn on_killed(&mut self, now: Instant) {
        self.killed = Some(now);
    }

    /// Groups without an answer, of so many.
    pub(crate) const fn groups_open(&self, asked: usize) -> usize {
        asked - self.groups_made - self.groups_failed
    }

    fn on_lost(&mut self, client: u32, why: String) {
        if std::mem::take(&mut self.is_logged_in[client as usize]) {
            self.logged_in -= 1;
            self.lost_logins += 1;
        } else {
            self.failed_logins += 1;
        }
        self.last_failure = why;
    }
}

impl Listener for Observer {
    fn on_event(&mut self, client: u32, at: Instant, event: Event) {
        match event {
            // A group that was made is no message.
            Event::Message(message) if message.happened.is_some() => {}
            Event::Message(message) => {
                let intended = self.checker.on_message(client, &message);
                if let Some(intended) = intended.filter(|_| self.killed.is_none()) {
                    self.delivered.record(intended, at);
                }
            }
            Event::Sent(receipt) => match (self.checker.on_stored(client, &receipt), self.killed) {
                (Some(intended), None) => self.durable.record(intended, at),
                (Some(intended), Some(killed)) if intended > killed => {
                    self.stored_again.get_or_insert(at);
                }
                _ => {}
            },
            Event::SendFailed { key, failure, .. } => {
                self.checker.on_failed(client, key, &failure.to_string());
            }
            Event::LoggedIn { .. } => {
                self.is_logged_in[client as usize] = true;
                self.logged_in += 1;
            }
            Event::Disconnected { why, .. } => self.on_lost(client, format!("{why:?}")),
            Event::Closed(why) => {
                self.closed += 1;
                self.on_lost(client, why.to_string());
            }
            Event::Response { result, .. } => {
                let answer = result.map_err(|error| error.to_string());
                let made = answer
                    .and_then(|body| GroupCreateResponse::decode(body).map_err(|error| error.to_string()));
                match made {
                    Ok(_) => self.groups_made += 1,
                    Err(why) => {
                        self.groups_failed += 1;
                        self.last_failure = why;
                    }
                }
            }
            // Places passed over show as lost messages; the rest concerns nobody here.
            _ => {}
        }
    }
}
