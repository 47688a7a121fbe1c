//! A whole run as data: whom to talk to, as whom, with what traffic. It splits over processes.

use crate::bare::{BareClient, Uplink};
use crate::dialect::token::{TokenList, TokenMint, Tokens};
use crate::dialect::{Dialect, Moorline, MoorlineOptions};
use crate::exit::Failure;
use crate::findings::Findings;
use crate::fleet::{self, Overseer, Plan, Ran, Scenario, Stop};
use crate::process::Watched;
use crate::record::Latencies;
use crate::scenario::{Chat, Group, Hold, Load, Patience, Ping, Storm, StormRule};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Traffic of logged-in clients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Heartbeats only.
    Hold,
    /// Messages and their answers.
    Ping {
        /// Pace of the heartbeats.
        load: Load,
        /// Bytes of a message.
        payload: u32,
    },
    /// Chat of pairs.
    Chat {
        /// Pace of the messages.
        load: Load,
        /// Bytes of a message.
        payload: u32,
        /// Policy for messages whose connection breaks.
        patience: Patience,
    },
    /// Groups with one writer each.
    Group {
        /// Pace of the messages.
        load: Load,
        /// Bytes of a message.
        payload: u32,
        /// Number of groups.
        groups: u32,
        /// Clients of each.
        members: u32,
    },
    /// A part of the fleet loses its connections and comes back.
    Storm {
        /// Pace of the messages of the remaining clients.
        load: Load,
        /// Bytes of a message.
        payload: u32,
        /// Number of remaining clients, and the time of the break.
        rule: StormRule,
    },
}

/// Protocol of the clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Moorline's own.
    #[default]
    Moorline,
    /// That of the bare server, which answers by itself.
    Bare,
}

/// Identity of the clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// User ids are this and a number.
    pub uid_prefix: String,
    /// HS256 secret, or Ed25519 private key; without it and a token file HELLO carries no token.
    pub key_file: Option<PathBuf>,
    /// A token a line, for the clients of the whole run.
    pub token_file: Option<PathBuf>,
    /// Audience of the tokens.
    pub audience: Option<String>,
}

impl Login {
    /// Reads the tokens of this many clients.
    pub fn tokens(&self, clients: u32) -> Result<Tokens, Failure> {
        Ok(match (&self.key_file, &self.token_file) {
            (_, Some(path)) => Tokens::List(TokenList::from_file(path, clients)?),
            (Some(path), None) => Tokens::Mint(TokenMint::from_file(path, self.audience.clone())?),
            (None, None) => Tokens::None,
        })
    }
}

/// A whole run, or one process's part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The fleet.
    pub plan: Plan,
    /// Protocol of the clients.
    pub wire: Wire,
    /// Identity of the clients.
    pub login: Login,
    /// The traffic.
    pub work: Work,
}

/// Results of a run, or of one process's part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    /// Phases and connections.
    pub ran: Ran,
    /// Results of messages.
    pub findings: Findings,
    /// The main latency since the last second that was told.
    pub rest: Latencies,
}

impl Part {
    /// Adds another process's part of the same run.
    pub fn merge(&mut self, other: &Self) {
        self.ran.merge(&other.ran);
        self.findings.merge(&other.findings);
        self.rest.merge(&other.rest);
    }
}

impl Job {
    /// Runs it in this process.
    pub fn run(&self, overseer: &mut dyn Overseer, stop: &Stop) -> Result<Part, Failure> {
        if self.wire == Wire::Bare {
            return run(&self.plan, self.work, BareClient::new(Uplink::Echo), overseer, stop);
        }
        let tokens = self.login.tokens(self.plan.first.saturating_add(self.plan.clients))?;
        let moorline = Moorline::new(MoorlineOptions {
            uid_prefix: self.login.uid_prefix.clone(),
            first: self.plan.first,
            tokens,
            heartbeat: self.plan.beats.0,
        });
        run(&self.plan, self.work, moorline, overseer, stop)
    }

    /// Splits the run over several processes: clients that talk with each other stay together.
    pub fn split(&self, parts: u32) -> Vec<Self> {
        let mut first = self.plan.first;
        let jobs = self.work.split(self.plan.clients, parts).into_iter().enumerate();
        jobs.map(|(at, (clients, work))| {
            let mut plan = self.plan.clone();
            (plan.first, plan.clients) = (first, clients);
            plan.ramp.rate = plan.ramp.rate.map(|rate| rate / f64::from(parts));
            plan.ramp.at_once = plan.ramp.at_once.div_ceil(parts);
            if at > 0 {
                plan.watched = Watched::default();
            }
            first += clients;
            Self { plan, wire: self.wire, login: self.login.clone(), work }
        })
        .collect()
    }
}

impl Work {
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Ping { .. } => "ping",
            Self::Chat { patience: Patience::None, .. } => "chat",
            Self::Chat { patience: Patience::Again, .. } => "restart",
            Self::Group { .. } => "group",
            Self::Storm { .. } => "storm",
        }
    }

    /// The load, if it has messages.
    pub const fn load(self) -> Option<Load> {
        match self {
            Self::Hold => None,
            Self::Ping { load, .. }
            | Self::Chat { load, .. }
            | Self::Group { load, .. }
            | Self::Storm { load, .. } => Some(load),
        }
    }

    /// The traffic at another rate; closed loops are unchanged.
    #[must_use]
    pub const fn at_rate(mut self, new: f64) -> Self {
        if let Self::Ping { load, .. }
        | Self::Chat { load, .. }
        | Self::Group { load, .. }
        | Self::Storm { load, .. } = &mut self
            && let Load::Open { rate, .. } = load
        {
            *rate = new;
        }
        self
    }

    fn rate(self) -> Option<f64> {
        match self.load()? {
            Load::Open { rate, .. } => Some(rate),
            Load::Closed { .. } => None,
        }
    }

    /// Clients and work of each part; parts without clients are left out.
    fn split(self, clients: u32, parts: u32) -> Vec<(u32, Self)> {
        let of_rate = |work: Self, part: u32, whole: u32| {
            let share = f64::from(part) / f64::from(whole.max(1));
            work.rate().map_or(work, |rate| work.at_rate(rate * share))
        };
        let split: Vec<(u32, Self)> = match self {
            Self::Hold => shares(clients, 1, parts).into_iter().map(|share| (share, self)).collect(),
            Self::Ping { .. } => {
                shares(clients, 1, parts).into_iter().map(|it| (it, of_rate(self, it, clients))).collect()
            }
            Self::Chat { .. } => {
                shares(clients, 2, parts).into_iter().map(|it| (it, of_rate(self, it, clients))).collect()
            }
            Self::Group { load, payload, groups, members } => shares(groups, 1, parts)
                .into_iter()
                .map(|share| {
                    let work = Self::Group { load, payload, groups: share, members };
                    (share * members, of_rate(work, share, groups))
                })
                .collect(),
            Self::Storm { load, payload, rule } => {
                let (stay, go) = (shares(rule.stay, 2, parts), shares(clients - rule.stay, 1, parts));
                stay.into_iter()
                    .zip(go)
                    .map(|(stay, go)| {
                        let work = Self::Storm { load, payload, rule: StormRule { stay, ..rule } };
                        (stay + go, of_rate(work, stay, rule.stay))
                    })
                    .collect()
            }
        };
        split.into_iter().filter(|(clients, _)| *clients > 0).collect()
    }
}

/// `total` in `parts`, each but the last a multiple of `unit`, none much larger than another.
fn shares(total: u32, unit: u32, parts: u32) -> Vec<u32> {
    let units = total / unit;
    let mut shares: Vec<u32> =
        (0..parts).map(|part| (units / parts + u32::from(part < units % parts)) * unit).collect();
    if let Some(last) = shares.last_mut() {
        *last += total % unit;
    }
    shares
}

/// Runs a plan over any wire.
pub fn run<D: Dialect>(
    plan: &Plan,
    work: Work,
    dialect: D,
    overseer: &mut dyn Overseer,
    stop: &Stop,
) -> Result<Part, Failure> {
    let (clients, backlog_for) = (plan.clients, plan.timeline.drain_max / 2);
    match work {
        Work::Hold => drive(plan, Hold::default(), dialect, overseer, stop),
        Work::Ping { load, payload } => {
            drive(plan, Ping::new(load, clients, payload, backlog_for), dialect, overseer, stop)
        }
        Work::Chat { load, payload, patience } => {
            drive(plan, Chat::new(load, clients, payload, patience, backlog_for), dialect, overseer, stop)
        }
        Work::Group { load, payload, groups, members } => {
            drive(plan, Group::new(load, groups, members, payload, backlog_for), dialect, overseer, stop)
        }
        Work::Storm { load, payload, rule } => {
            drive(plan, Storm::new(rule, load, payload, backlog_for), dialect, overseer, stop)
        }
    }
}

fn drive<D: Dialect, S: Scenario<D>>(
    plan: &Plan,
    mut scenario: S,
    dialect: D,
    overseer: &mut dyn Overseer,
    stop: &Stop,
) -> Result<Part, Failure> {
    let ran = fleet::run(plan, dialect, &mut scenario, overseer, stop)?;
    let recorder = scenario.recorder();
    Ok(Part { ran, rest: recorder.take_second(), findings: std::mem::take(&mut recorder.findings) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Load = Load::Open { rate: 900.0, window: 64 };

    #[test]
    fn shares_add_up_and_keep_pairs_together() {
        assert_eq!(shares(10, 1, 3), [4, 3, 3]);
        assert_eq!(shares(11, 2, 3), [4, 4, 3]);
        assert_eq!(shares(2, 2, 3), [2, 0, 0]);
    }

    #[test]
    fn rates_follow_the_senders() {
        let split = Work::Ping { load: OPEN, payload: 1 }.split(9, 2);
        let rates: Vec<_> = split.iter().map(|(clients, work)| (*clients, work.rate().unwrap())).collect();
        assert_eq!(rates, [(5, 500.0), (4, 400.0)]);
        let group = Work::Group { load: OPEN, payload: 1, groups: 3, members: 7 };
        let split = group.split(21, 5);
        assert_eq!(split.iter().map(|(clients, _)| *clients).collect::<Vec<_>>(), [7, 7, 7]);
        assert!((split[0].1.rate().unwrap() - 300.0).abs() < 1e-9);
    }

    #[test]
    fn a_storm_is_the_same_in_all_parts() {
        let rule = StormRule { stay: 6, calm: std::time::Duration::ZERO };
        let split = Work::Storm { load: OPEN, payload: 1, rule }.split(20, 2);
        let stays = |work: &Work| if let Work::Storm { rule, .. } = work { rule.stay } else { 0 };
        let parts: Vec<_> = split.iter().map(|(clients, work)| (*clients, stays(work))).collect();
        assert_eq!(parts, [(11, 4), (9, 2)]);
    }
}
