//! One storm in simulated time. Pure: the same plan and seed give the same outcome.
//!
//! A client is a few bytes: its position in its list of gateways (the SDK's type), the list, and the number of its failures. The
//! time of the simulation goes on in steps of 10 ms. In each step clients whose time has come act, then gateways and
//! dispatch servers work for 10 ms.

use super::plan::{Disaster, Plan};
use super::servers::{Dispatch, Gateway, Verdict, Visit, admin_of, dispatch_config, list_for};
use moorline::dispatch::table::Table;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::{Backoff, EndpointRound, Tuning};

/// One step.
const STEP: Duration = Duration::from_millis(10);
/// Steps that a time may lie ahead.
const AHEAD_MAX: usize = 1 << 16;
/// End of a storm that does not end.
const LONGEST: Duration = Duration::from_secs(3600);
/// Steps between two reports of gateways to dispatch: its `poll_interval`.
const REPORT_STEPS: u64 = 200;
/// `lifetime` of a list.
const LIFETIME: Duration = Duration::from_secs(60);
/// Times after which a system sends a SYN again that was not answered.
const SYN_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Asking,
    /// SYNs sent so far.
    Knocking(u8),
    /// In a queue of the gateway.
    Queued,
    Online,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    round: EndpointRound,
    list: [u16; 8],
    /// End of the attempt to connect, as a step.
    deadline: u32,
    gateway: u16,
    failures: u8,
    /// Number of the phase that the client is in: later events of an earlier one mean nothing.
    stamp: u8,
    region: u8,
    /// Dispatch server that is asked next: one for each region.
    server: u8,
    phase: Phase,
}

/// Outcome of a storm; rates and counts of real clients.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Clients that lost their connection.
    pub(crate) lost: usize,
    /// Seconds until half of them, 90% and 99% were back, and the last one.
    pub(crate) back: [f64; 4],
    /// Most logins of any gateway in a second.
    pub(crate) peak_logins: f64,
    pub(crate) attempts: usize,
    /// Attempts that a gateway refused because it was full, or its backend did not answer.
    pub(crate) refused: usize,
    /// Attempts that ended at a deadline of the client.
    pub(crate) timed_out: usize,
    pub(crate) questions: usize,
    pub(crate) questions_failed: usize,
    /// Most questions in a second.
    pub(crate) peak_questions: usize,
    /// Times that a breaker opened.
    pub(crate) trips: usize,
}

pub(crate) struct World {
    plan: Plan,
    random: Random,
    policy: Backoff,
    connect_timeout: Duration,
    dispatch_timeout: Duration,
    clients: Vec<Client>,
    gateways: Vec<Gateway>,
    dispatches: Vec<Dispatch>,
    table: Table,
    /// Clients that act in a step, by the step modulo [`AHEAD_MAX`].
    agenda: Vec<Vec<Visit>>,
    step: u64,
    back: usize,
    questions_now: usize,
    outcome: Outcome,
}

impl World {
    pub(crate) fn new(plan: &Plan, seed: u64) -> Self {
        let (mut random, tuning) = (Random::new(seed), Tuning::default());
        let each = plan.clients / plan.scale;
        let gateways = plan.regions * plan.gateways;
        let is_hit = |number: usize| plan.disaster == Disaster::EveryConnection || number < plan.gateways;
        let mut clients = Vec::with_capacity(plan.population());
        for number in (0..gateways).filter(|number| is_hit(*number)) {
            let region = number / plan.gateways;
            for _ in 0..each {
                clients.push(Client::online(plan, number, region, &mut random));
            }
        }
        let online = |number| if is_hit(number) { 0 } else { each };
        Self {
            gateways: (0..gateways).map(|number| Gateway::new(plan, online(number))).collect(),
            dispatches: (0..plan.regions).map(|_| Dispatch::new(plan)).collect(),
            table: Table::new(&dispatch_config(plan)),
            agenda: vec![Vec::new(); AHEAD_MAX],
            policy: tuning.backoff,
            connect_timeout: tuning.connect_timeout,
            dispatch_timeout: tuning.dispatch_timeout,
            plan: plan.clone(),
            random,
            clients,
            step: 0,
            back: 0,
            questions_now: 0,
            outcome: Outcome::default(),
        }
    }

    fn now(&self) -> Instant {
        Instant::ZERO + STEP * u32::try_from(self.step).expect("an hour")
    }

    /// Has a client act after `wait`.
    fn later(&mut self, client: usize, wait: Duration) {
        let steps = u64::try_from(wait.as_millis() / STEP.as_millis()).expect("short") + 1;
        assert!(steps < AHEAD_MAX as u64, "{wait:?} is too far ahead");
        let at = usize::try_from(self.step + steps).expect("an hour") % AHEAD_MAX;
        let name = u32::try_from(client).expect("below 2^32");
        self.agenda[at].push((name, self.clients[client].stamp));
    }

    fn enter(&mut self, client: usize, phase: Phase) {
        let it = &mut self.clients[client];
        (it.phase, it.stamp) = (phase, it.stamp.wrapping_add(1));
    }

    /// Runs the storm to its end.
    pub(crate) fn run(mut self) -> Outcome {
        if self.plan.disaster == Disaster::Region {
            self.gateways[..self.plan.gateways].iter_mut().for_each(|gateway| gateway.is_alive = false);
            self.dispatches[0].is_alive = false;
        }
        self.report(); // everything is known from before
        let within = u64::try_from(self.plan.noticed_within.as_millis()).expect("short");
        for client in 0..self.clients.len() {
            let noticed = Duration::from_millis(self.random.below(within));
            self.clients[client].round.on_lost(true);
            let wait = self.policy.wait(0, &mut self.random);
            self.clients[client].failures = 1;
            self.enter(client, Phase::Waiting);
            self.later(client, noticed + wait);
        }
        let (lost, last) = (
            self.clients.len(),
            STEP * u32::try_from(LONGEST.as_millis() / STEP.as_millis()).expect("small"),
        );
        let marks = [lost.div_ceil(2), (lost * 9).div_ceil(10), (lost * 99).div_ceil(100), lost];
        while self.back < lost && self.now() < Instant::ZERO + last {
            let before = self.back;
            self.act();
            let seconds = self.now().saturating_since(Instant::ZERO).as_secs_f64();
            for (back, mark) in self.outcome.back.iter_mut().zip(marks) {
                if (before..self.back).contains(&(mark - 1)) {
                    *back = seconds;
                }
            }
            self.step += 1;
        }
        self.close_second();
        let scale = self.plan.scale;
        let Outcome {
            back, attempts, refused, timed_out, questions, questions_failed, peak_questions, ..
        } = self.outcome;
        let peak = self.gateways.iter().map(|gateway| gateway.logins.1).max().unwrap_or(0);
        let trips = self.gateways.iter().map(|gateway| gateway.trips).sum::<u64>();
        Outcome {
            lost: lost * scale,
            back,
            peak_logins: peak as f64 * scale as f64,
            attempts: attempts * scale,
            refused: refused * scale,
            timed_out: timed_out * scale,
            questions: questions * scale,
            questions_failed: questions_failed * scale,
            peak_questions: peak_questions * scale,
            trips: usize::try_from(trips).expect("few"),
        }
    }

    fn act(&mut self) {
        let at = usize::try_from(self.step).expect("an hour") % AHEAD_MAX;
        for (name, stamp) in std::mem::take(&mut self.agenda[at]) {
            let client = name as usize;
            if self.clients[client].stamp == stamp {
                self.on_time(client);
            }
        }
        self.work();
        if self.step.is_multiple_of(REPORT_STEPS) {
            self.report();
        }
        if self.step % 100 == 99 {
            self.close_second();
        }
    }

    fn close_second(&mut self) {
        self.gateways.iter_mut().for_each(Gateway::end_second);
        self.outcome.peak_questions = self.outcome.peak_questions.max(self.questions_now);
        self.questions_now = 0;
    }

    fn report(&mut self) {
        let now = self.now();
        for (number, gateway) in self.gateways.iter().enumerate().filter(|(_, gateway)| gateway.is_alive) {
            self.table.on_report(&admin_of(number), now, gateway.report());
        }
    }

    /// The time of a client has come.
    fn on_time(&mut self, client: usize) {
        match self.clients[client].phase {
            Phase::Waiting => self.attempt(client),
            Phase::Asking => self.on_no_list(client),
            Phase::Knocking(count) => self.knock(client, count),
            Phase::Queued => {
                self.outcome.timed_out += 1;
                self.fail(client);
            }
            Phase::Online => {}
        }
    }

    fn attempt(&mut self, client: usize) {
        let now = self.now();
        if self.clients[client].round.is_question_due(now) {
            return self.ask(client);
        }
        self.connect(client);
    }

    fn ask(&mut self, client: usize) {
        self.outcome.questions += 1;
        self.questions_now += 1;
        self.enter(client, Phase::Asking);
        let it = self.clients[client];
        let visit = (u32::try_from(client).expect("below 2^32"), it.stamp);
        let dispatch = &mut self.dispatches[usize::from(it.server)];
        if dispatch.is_alive && !dispatch.try_ask(visit) {
            return self.on_no_list(client);
        }
        self.later(client, self.dispatch_timeout);
    }

    fn on_no_list(&mut self, client: usize) {
        self.outcome.questions_failed += 1;
        let (now, policy) = (self.now(), self.policy);
        let it = &mut self.clients[client];
        it.server = (it.server + 1) % u8::try_from(self.plan.regions).expect("few");
        it.round.on_no_list(now, Duration::ZERO, policy, &mut self.random);
        self.connect(client);
    }

    fn on_list(&mut self, client: usize) {
        let (now, region) = (self.now(), format!("r{}", self.clients[client].region));
        let (list, len) = list_for(&self.table, &region, now, &mut self.random);
        let it = &mut self.clients[client];
        it.list = list;
        it.round.on_list(now, len, LIFETIME);
        self.connect(client);
    }

    fn connect(&mut self, client: usize) {
        self.outcome.attempts += 1;
        let all = self.gateways.len() as u64;
        let it = &mut self.clients[client];
        // The own endpoint is a name with the addresses of all gateways.
        let any = || u16::try_from(self.random.below(all)).expect("at most 512");
        it.gateway = it.round.begin().map_or_else(any, |at| it.list[at]);
        let timeout = self.connect_timeout.as_millis() / STEP.as_millis();
        it.deadline = u32::try_from(u128::from(self.step) + timeout).expect("an hour");
        self.knock(client, 0);
    }

    /// Sends a SYN, the first one or a further one.
    fn knock(&mut self, client: usize, count: u8) {
        let it = self.clients[client];
        let left = STEP * it.deadline.saturating_sub(u32::try_from(self.step).expect("an hour"));
        if left.is_zero() {
            self.outcome.timed_out += 1;
            return self.fail(client);
        }
        self.enter(client, Phase::Queued);
        let visit = (u32::try_from(client).expect("below 2^32"), self.clients[client].stamp);
        if self.gateways[usize::from(it.gateway)].try_queue(visit) {
            return self.later(client, left);
        }
        self.enter(client, Phase::Knocking(count + 1));
        let again = SYN_AGAIN.get(usize::from(count)).copied().unwrap_or(left);
        self.later(client, again.min(left));
    }

    fn fail(&mut self, client: usize) {
        let it = &mut self.clients[client];
        it.round.on_lost(false);
        let wait = self.policy.wait(u32::from(it.failures), &mut self.random);
        it.failures = it.failures.saturating_add(1);
        self.enter(client, Phase::Waiting);
        self.later(client, wait);
    }

    /// Gateways and dispatch servers work for a step.
    fn work(&mut self) {
        let now = self.now();
        let mut failed = Vec::new();
        for gateway in self.gateways.iter_mut().filter(|gateway| gateway.is_alive) {
            let (clients, back) = (&mut self.clients, &mut self.back);
            let mut tell = |(name, stamp): Visit, verdict| {
                let client = &mut clients[name as usize];
                let is_there = client.phase == Phase::Queued && client.stamp == stamp;
                if is_there && verdict == Verdict::Welcome {
                    (client.phase, client.stamp) = (Phase::Online, stamp.wrapping_add(1));
                    *back += 1;
                } else if is_there {
                    failed.push(name);
                }
                is_there
            };
            gateway.work(now, STEP, &self.plan, &mut self.random, &mut tell);
        }
        self.outcome.refused += failed.len();
        for name in failed {
            self.fail(name as usize);
        }
        let cost = self.plan.login.mul_f64(self.plan.scale as f64);
        for number in 0..self.dispatches.len() {
            self.dispatches[number].add_time(STEP.mul_f64(self.plan.dispatch_cores));
            while let Some((name, stamp)) = self.dispatches[number].poll(cost) {
                let client = &self.clients[name as usize];
                if client.phase == Phase::Asking && client.stamp == stamp {
                    self.on_list(name as usize);
                }
            }
        }
    }
}

impl Client {
    /// A client that has been online for long: its list is old.
    fn online(plan: &Plan, gateway: usize, region: usize, random: &mut Random) -> Self {
        let own = u16::try_from(gateway).expect("at most 512");
        let mut list = [own; 8];
        for place in &mut list[1..] {
            let other =
                region * plan.gateways + usize::try_from(random.below(plan.gateways as u64)).expect("small");
            *place = u16::try_from(other).expect("at most 512");
        }
        let mut round = EndpointRound::default();
        round.on_list(Instant::ZERO, 8, Duration::ZERO);
        assert_eq!(round.begin(), Some(0));
        let server = u8::try_from(random.below(plan.regions as u64)).expect("few");
        let region = u8::try_from(region).expect("few");
        Self {
            round,
            list,
            deadline: 0,
            gateway: own,
            failures: 0,
            stamp: 0,
            region,
            server,
            phase: Phase::Online,
        }
    }
}
