//! Runs a sender, a receiver and the network between them on a virtual clock in microseconds.

use crate::network::Weather;
use crate::receiver::{Reply, Scheme};
use crate::sender::{Message, Sender};
use moorline_proto::random::Random;
use std::collections::BTreeMap;

/// Messages of one run.
const MESSAGES: u32 = 400;
/// Pause between two that the application says.
const PAUSE: u64 = 10_000;
/// Runs per outcome.
const SEEDS: u64 = 8;
/// A run that takes longer has got stuck.
const TIME_MAX: u64 = 3_600_000_000;

/// Results of all runs of a scheme on one kind of network.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// From said to accepted, in microseconds.
    latencies: Vec<u64>,
    elapsed: u64,
    sent: u64,
    overhead: u64,
    pub(crate) state_max: usize,
}

#[allow(clippy::cast_precision_loss)] // small counts
impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / (self.elapsed as f64 / 1e6)
    }

    pub(crate) fn quantile_ms(&self, permille: usize) -> u64 {
        self.latencies[(self.latencies.len() * permille / 1_000).min(self.latencies.len() - 1)] / 1_000
    }

    pub(crate) fn sent_per_message(&self) -> f64 {
        self.sent as f64 / self.latencies.len() as f64
    }

    pub(crate) fn bytes_per_message(&self) -> f64 {
        self.overhead as f64 / self.latencies.len() as f64
    }
}

enum Event {
    Say,
    Up(Message),
    Down(Reply),
    Look,
    Cut,
}

struct World {
    scheme: Scheme,
    weather: Weather,
    random: Random,
    now: u64,
    /// By time, then in the order they were planned.
    events: BTreeMap<(u64, u64), Event>,
    planned: u64,
    /// The next [`Event::Look`].
    look_at: u64,
    sender: Sender,
    said_at: Vec<u64>,
}

pub(crate) fn outcome(scheme: Scheme, weather: Weather) -> Outcome {
    let mut outcome = Outcome::default();
    (0..SEEDS).for_each(|seed| run(scheme, weather, seed, &mut outcome));
    outcome.latencies.sort_unstable();
    outcome
}

fn run(scheme: Scheme, weather: Weather, seed: u64, outcome: &mut Outcome) {
    let mut world = World {
        scheme,
        weather,
        random: Random::new(seed),
        now: 0,
        events: BTreeMap::new(),
        planned: 0,
        look_at: u64::MAX,
        sender: Sender::new(scheme.window()),
        said_at: Vec::new(),
    };
    let (mut receiver, mut accepted) = (scheme.receiver(), Vec::new());
    world.plan(0, Event::Say);
    if weather.life_ms > 0 {
        world.plan(weather.life_ms * 1_000, Event::Cut);
    }
    while !(world.said_at.len() == MESSAGES as usize && world.sender.is_done()) {
        let ((at, _), event) = world.events.pop_first().expect("something is always planned");
        assert!(at < TIME_MAX, "{scheme:?} is stuck at message {}", accepted.len());
        world.now = at;
        match event {
            Event::Up(message) => {
                let before = accepted.len();
                let replies = receiver.handle(message, &mut accepted);
                let fresh = accepted[before..].iter().map(|id| at - world.said_at[*id as usize - 1]);
                outcome.latencies.extend(fresh);
                outcome.state_max = outcome.state_max.max(receiver.state());
                replies.into_iter().for_each(|reply| world.reply(reply, outcome));
            }
            event => world.handle(&event),
        }
        world.transmit(outcome);
    }
    outcome.elapsed += world.now;
    let expected: Vec<u32> = (1..=MESSAGES).collect();
    assert_eq!(accepted, expected, "{scheme:?}, seed {seed}: once each and in order");
}

impl World {
    fn plan(&mut self, at: u64, event: Event) {
        self.planned += 1;
        self.events.insert((at, self.planned), event);
    }

    fn handle(&mut self, event: &Event) {
        match event {
            Event::Say => {
                self.said_at.push(self.now);
                self.sender.said += 1;
                if self.said_at.len() < MESSAGES as usize {
                    self.plan(self.now + PAUSE, Event::Say);
                }
            }
            Event::Down(reply) => self.sender.handle(*reply, self.now),
            Event::Cut => {
                // What is under way is lost, and one round trip goes by until all is said again.
                self.events.retain(|_, event| !matches!(event, Event::Up(_) | Event::Down(_)));
                self.sender.reconnect(self.now + self.weather.rtt_ms * 1_000);
                self.plan(self.now + self.weather.life_ms * 1_000, Event::Cut);
            }
            Event::Look | Event::Up(_) => {}
        }
    }

    fn transmit(&mut self, outcome: &mut Outcome) {
        for message in self.sender.poll(self.now, self.weather.patience()) {
            outcome.sent += 1;
            outcome.overhead += self.scheme.overhead();
            if let Some(at) = self.weather.arrival(self.now, &mut self.random) {
                self.plan(at, Event::Up(message));
            }
        }
        let Some(at) = self.sender.next_deadline().map(|at| at.max(self.now + 1)) else { return };
        if at < self.look_at || self.look_at <= self.now {
            self.look_at = at;
            self.plan(at, Event::Look);
        }
    }

    fn reply(&mut self, reply: Reply, outcome: &mut Outcome) {
        // An answer costs every scheme the same; a question is the third one's own.
        outcome.overhead += if matches!(reply, Reply::Missing(_)) { self.scheme.overhead() } else { 0 };
        if let Some(at) = self.weather.arrival(self.now, &mut self.random) {
            self.plan(at, Event::Down(reply));
        }
    }
}
