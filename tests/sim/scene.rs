//! State that every part shares: the clock, the heap of events, the dice, the trace.

use crate::coverage::Coverage;
use crate::faults::Faults;
use crate::pipe::{PipeId, Way};
use moorline_proto::random::{Random, mix};
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::Token;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

/// Events kept for a failure's report, unless `SIM_TRACE` says how many.
const TRACE_MAX: usize = 200;
/// Steps at one moment, after which time counts as standing still.
const STEPS_AT_ONCE_MAX: u64 = 20_000;

/// Something to come. Numbers are indices of the world's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    ClientTimer(usize),
    Connected(usize, PipeId),
    Flush(usize, PipeId),
    Deliver(PipeId, Way),
    Stall(PipeId),
    Break(PipeId),
    ClientGone(usize, PipeId),
    GatewayGone(PipeId),
    Accept(usize, PipeId),
    Moved(usize, usize),
    Turn(usize),
    UplinkMail(usize, usize),
    DownlinkMail(usize, usize),
    WorkerTurn(usize),
    LinkConnected(usize, PipeId),
    LinkAccepted(PipeId),
    LinkDies(usize, PipeId),
    LinkLost(usize, PipeId),
    Answer(u64),
    BackendTurn,
    Console,
    Stranger,
    Talk(usize),
    Handled(usize, Token),
    Burst,
    KickSomebody,
    Storm,
    Suspend,
    Freeze,
    BackendDies,
    Pressure(usize),
    Login(usize),
    Rival,
    Restart,
    Hostile,
    HostileSpeaks(usize),
    Calm,
}

#[derive(Debug, PartialEq, Eq)]
struct Scheduled {
    at: Instant,
    order: u64,
    what: What,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

pub(crate) struct Scene {
    pub(crate) now: Instant,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) coverage: Coverage,
    /// The gateway's process does nothing before this.
    pub(crate) frozen_until: Instant,
    seed: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    steps_here: u64,
    digest: u64,
    trace: Option<VecDeque<String>>,
    trace_max: usize,
}

impl Scene {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random::new(mix(seed));
        Self {
            now: Instant::ZERO + Duration::from_secs(1_000),
            faults: Faults::new(&mut random),
            random,
            coverage: Coverage::default(),
            frozen_until: Instant::ZERO,
            seed,
            heap: BinaryHeap::new(),
            order: 0,
            steps_here: 0,
            digest: 0,
            trace: is_traced.then(VecDeque::new),
            trace_max: crate::number_of("SIM_TRACE")
                .map_or(TRACE_MAX, |lines| usize::try_from(lines).expect("small")),
        }
    }

    pub(crate) fn at(&mut self, at: Instant, what: What) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, what }));
    }

    pub(crate) fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    /// After a random part of `millis`.
    pub(crate) fn within(&mut self, millis: u64, what: What) {
        let wait = self.micros(millis * 1000);
        self.after(wait, what);
    }

    /// A random time up to `micros`.
    pub(crate) fn micros(&mut self, micros: u64) -> Duration {
        Duration::from_micros(self.random.below(micros + 1))
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.random.below(len as u64)).expect("below a length")
    }

    /// Once in `n`, while things may go wrong.
    pub(crate) fn fault(&mut self, n: u64) -> bool {
        self.random.one_in(n) && !self.faults.is_calm
    }

    /// Moves the clock to what comes next.
    pub(crate) fn next(&mut self) -> Option<What> {
        let Reverse(Scheduled { at, order, what }) = self.heap.pop()?;
        self.steps_here = if at <= self.now { self.steps_here + 1 } else { 0 };
        assert!(self.steps_here < STEPS_AT_ONCE_MAX, "time stands still: {what:?}");
        self.now = self.now.max(at); // the clock may have jumped past it
        self.coverage.steps += 1;
        self.digest = mix(self.digest ^ at.as_nanos() ^ order << 40 ^ self.order);
        self.note(|| format!("{what:?}"));
        Some(what)
    }

    /// Follows from everything that was scheduled and when it came.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let Some(trace) = &mut self.trace else { return };
        if trace.len() >= self.trace_max {
            trace.pop_front();
        }
        let (micros, step) = (self.now.as_nanos() / 1000, self.coverage.steps);
        let line = format!("{step:>7} {:>5}.{:06} {}", micros / 1_000_000, micros % 1_000_000, text());
        trace.push_back(line);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, step) = (self.seed, self.coverage.steps);
            for line in self.trace.iter().flatten() {
                eprintln!("{line}");
            }
            eprintln!("seed {seed} failed at step {step}; again: SIM_SEED={seed} cargo test --test sim");
        }
    }
}

/// Items on their way between two parts: in order, those of one moment together, after a delay.
pub(crate) struct Lane<T> {
    batches: VecDeque<(Instant, Vec<T>)>,
    last_at: Instant,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { batches: VecDeque::new(), last_at: Instant::ZERO }
    }
}

impl<T> Lane<T> {
    /// Arrives within `micros`, as `what`, which takes one batch.
    pub(crate) fn push(&mut self, scene: &mut Scene, item: T, micros: u64, what: What) {
        match self.batches.back_mut() {
            Some((since, batch)) if *since == scene.now => batch.push(item),
            _ => {
                self.last_at = self.last_at.max(scene.now + scene.micros(micros));
                self.batches.push_back((scene.now, vec![item]));
                scene.at(self.last_at, what);
            }
        }
    }

    /// Items that arrive now; none if the lane was cut meanwhile.
    pub(crate) fn pop(&mut self) -> Vec<T> {
        self.batches.pop_front().map_or_else(Vec::new, |(_, batch)| batch)
    }
}
