//! Gateways and dispatch servers of a storm: the shipped door, breaker and table behind queues of simulated clients.

use super::plan::Plan;
use moorline::dispatch::config::{DispatchConfig, SCHEMA};
use moorline::dispatch::table::{Report, Table};
use moorline::reactor::{Door, ListenerLimits, Wait};
use moorline::router::{Breaker, Share};
use moorline_net::http::Address;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Nodes that a gateway has links to; in reality each stands for a sixteenth of a cluster.
pub(crate) const NODES: usize = 4;
/// `backend.up_timeout`.
const UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Logins that pass an open breaker's trial: one in this many.
const TRIAL_SHARE: u64 = 16;

/// A client in a queue; the stamp tells whether it still waits there.
pub(crate) type Visit = (u32, u8);

/// Outcome of a login for a client that may still wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Welcome,
    /// The gateway has as many connections as it may.
    Full,
    /// The node did not answer, or is left alone for now.
    NoBackend,
}

pub(crate) struct Gateway {
    pub(crate) is_alive: bool,
    door: Arc<Door>,
    backlog_max: usize,
    /// Connected by the system, not accepted yet.
    backlog: VecDeque<Visit>,
    /// Accepted, not logged in.
    handshakes: VecDeque<Visit>,
    /// Logins that a silent node was asked for, and until when.
    unanswered: VecDeque<(Instant, Visit)>,
    breakers: [Breaker; NODES],
    /// Time of the cores that is not used yet.
    credit: Duration,
    pub(crate) online: usize,
    pub(crate) trips: u64,
    /// Logins in the current second, and the most of any second.
    pub(crate) logins: (u64, u64),
    connections_max: usize,
}

impl Gateway {
    pub(crate) fn new(plan: &Plan, online: usize) -> Self {
        let rate = u32::try_from(plan.scaled(plan.accept_rate as usize)).expect("small");
        let limits = ListenerLimits {
            accept_rate: if plan.accept_rate == 0 { 0 } else { rate },
            handshakes_max: plan.scaled(plan.handshakes_max).max(8),
            address_handshakes: 0,
            address_connections: 0,
            address_rate: 0,
        };
        let connections_max = plan.scaled(plan.connections_max);
        let door = Door::new(connections_max, [limits]);
        for _ in 0..online {
            door.try_enter(0, 0, None, Instant::ZERO).expect("fewer than it may have");
        }
        Self {
            is_alive: true,
            door,
            backlog_max: plan.scaled(plan.backlog).max(4),
            backlog: VecDeque::new(),
            handshakes: VecDeque::new(),
            unanswered: VecDeque::new(),
            breakers: std::array::from_fn(|_| Breaker::default()),
            credit: Duration::ZERO,
            online,
            trips: 0,
            logins: (0, 0),
            connections_max,
        }
    }

    /// Takes a connection into the system's queue; false: it is full, and the SYN is dropped.
    pub(crate) fn try_queue(&mut self, visit: Visit) -> bool {
        let has_room = self.is_alive && self.backlog.len() < self.backlog_max;
        if has_room {
            self.backlog.push_back(visit);
        }
        has_room
    }

    pub(crate) fn report(&self) -> Report {
        Report::Ready { used: self.online as u64, max: self.connections_max as u64 }
    }

    pub(crate) fn end_second(&mut self) {
        self.logins = (0, self.logins.1.max(self.logins.0));
    }

    /// Works for `time`; tells what became of logins.
    pub(crate) fn work(
        &mut self,
        now: Instant,
        time: Duration,
        plan: &Plan,
        random: &mut Random,
        tell: &mut impl FnMut(Visit, Verdict) -> bool,
    ) {
        while let Some((_, visit)) = self.unanswered.front().copied().filter(|(until, _)| *until <= now) {
            self.unanswered.pop_front();
            let node = visit.0 as usize % NODES;
            if self.breakers[node].on_timeout(now) {
                self.breakers[node].trip(now, random);
                self.trips += 1;
            }
            self.leave(now);
            tell(visit, Verdict::NoBackend);
        }
        self.accept(now, tell);
        let cost = plan.login.mul_f64(plan.scale as f64);
        self.credit += time.mul_f64(plan.cores);
        while self.credit >= cost {
            let Some(visit) = self.handshakes.pop_front() else { break };
            self.credit -= cost; // a login that nobody waits for any more costs as much
            self.door.count_handshakes(1, 0);
            self.log_in(now, visit, plan, random, tell);
        }
        if self.handshakes.is_empty() {
            self.credit = self.credit.min(cost); // idle time is not saved
        }
    }

    fn accept(&mut self, now: Instant, tell: &mut impl FnMut(Visit, Verdict) -> bool) {
        while let Some(visit) = self.backlog.front().copied() {
            match self.door.try_open(0, false, now) {
                Err(Wait::Rate(_) | Wait::Handshakes) => return,
                Ok(()) => _ = self.backlog.pop_front(),
            }
            if self.door.try_enter(0, 0, None, now).is_ok() {
                self.door.count_handshakes(0, 1);
                self.handshakes.push_back(visit);
            } else {
                tell(visit, Verdict::Full);
            }
        }
    }

    fn log_in(
        &mut self,
        now: Instant,
        visit: Visit,
        plan: &Plan,
        random: &mut Random,
        tell: &mut impl FnMut(Visit, Verdict) -> bool,
    ) {
        let node = visit.0 as usize % NODES;
        let may_ask = match self.breakers[node].share(now) {
            Share::Full => true,
            Share::Trial => random.one_in(TRIAL_SHARE),
            Share::Nothing => false,
        };
        let since = now.saturating_since(Instant::ZERO);
        let is_silent = node == 0 && plan.silent_node.is_some_and(|(from, to)| from <= since && since < to);
        if may_ask && is_silent {
            return self.unanswered.push_back((now + UP_TIMEOUT, visit));
        }
        if may_ask {
            self.breakers[node].on_answer(now);
        }
        let verdict = if may_ask { Verdict::Welcome } else { Verdict::NoBackend };
        if tell(visit, verdict) && may_ask {
            self.online += 1;
            self.logins.0 += 1;
        } else {
            self.leave(now);
        }
    }

    fn leave(&self, now: Instant) {
        self.door.leave(0, now);
    }
}

/// The dispatch servers of one region.
pub(crate) struct Dispatch {
    pub(crate) is_alive: bool,
    /// Questions that wait, with the clients who asked.
    questions: VecDeque<Visit>,
    questions_max: usize,
    credit: Duration,
}

impl Dispatch {
    pub(crate) fn new(plan: &Plan) -> Self {
        let questions_max = plan.scaled(plan.questions_max).max(4);
        Self { is_alive: true, questions: VecDeque::new(), questions_max, credit: Duration::ZERO }
    }

    /// Takes a question; false: too many wait, and the connection is closed.
    pub(crate) fn try_ask(&mut self, visit: Visit) -> bool {
        let has_room = self.questions.len() < self.questions_max;
        if has_room {
            self.questions.push_back(visit);
        }
        has_room
    }

    /// Returns the next question that is answered within the time that was added.
    pub(crate) fn poll(&mut self, cost: Duration) -> Option<Visit> {
        if self.questions.is_empty() {
            self.credit = self.credit.min(cost);
        }
        if self.credit < cost {
            return None;
        }
        let visit = self.questions.pop_front()?;
        self.credit -= cost;
        Some(visit)
    }

    pub(crate) fn add_time(&mut self, time: Duration) {
        self.credit += time;
    }
}

/// Settings of a dispatch that names these gateways by their numbers.
pub(crate) fn dispatch_config(plan: &Plan) -> DispatchConfig {
    let entry = |number: usize| {
        let (region, [high, low]) = (number / plan.gateways, [number / 250, number % 250]);
        format!(
            "[gateway.g{number}]\nendpoint='tls://g{number}:1'\nregion='r{region}'\nadmin='10.0.{high}.{}:1'\n",
            low + 1
        )
    };
    let text: String = (0..plan.regions * plan.gateways).map(entry).collect();
    SCHEMA.load_text(Path::new(""), &text, &[], [], |_| ()).expect("valid").config
}

/// Admin address of a gateway in [`dispatch_config`].
pub(crate) fn admin_of(number: usize) -> Address {
    let [high, low] = [number / 250, number % 250 + 1].map(|part| u8::try_from(part).expect("at most 512"));
    Address::Tcp(([10, 0, high, low], 1).into())
}

/// Number of a gateway by its endpoint in [`dispatch_config`].
fn number_of(endpoint: &str) -> u16 {
    endpoint.trim_start_matches("tls://g").trim_end_matches(":1").parse().expect("a number")
}

/// Gateways that dispatch names to a client of a region, by their numbers.
pub(crate) fn list_for(table: &Table, region: &str, now: Instant, random: &mut Random) -> ([u16; 8], u8) {
    let choice = table.choose(Some(region), now, random);
    let mut list = [0; 8];
    for (place, (endpoint, _)) in list.iter_mut().zip(&choice.endpoints) {
        *place = number_of(endpoint);
    }
    (list, u8::try_from(choice.endpoints.len()).expect("at most 8"))
}
