//! Hot restarts as `/v1/restartz` shows them, and the orders for them.

use crate::metrics::{CounterSet, Metric, SECONDS};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the pauses, in nanoseconds.
const PAUSE_BOUNDS: &[u64] = &[
    2_000_000,
    5_000_000,
    10_000_000,
    15_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
];
const VERDICTS: [&str; 3] = ["committed", "rolled_back", "dry_run"];
const HELP: &str = "Hot restarts that were tried, over all processes.";
const METRICS: &[Metric] = &[
    Metric::counter("restarts", HELP).labelled("verdict", VERDICTS[0]),
    Metric::counter("restarts", HELP).labelled("verdict", VERDICTS[1]),
    Metric::counter("restarts", HELP).labelled("verdict", VERDICTS[2]),
    Metric::gauge("restart_sockets", "Sockets that moved in the last hot restart."),
    Metric::gauge("generation", "Which process of a series of hot restarts this is; 0: the first."),
    Metric::histogram(
        "restart_pause_seconds",
        "For so long hot restarts stood still, those that were rolled back too.",
        PAUSE_BOUNDS,
        SECONDS,
    ),
];
const SOCKETS: usize = VERDICTS.len();
const GENERATION: usize = SOCKETS + 1;
const PAUSES: usize = GENERATION + 1;
const CELLS: usize = PAUSES + PAUSE_BOUNDS.len() + 2;

/// Restarts that are remembered.
const REMEMBERED_MAX: usize = 16;

/// Order of a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartOrder {
    /// Binary to start; `None`: the file that this process was started from, as it is now.
    pub binary: Option<PathBuf>,
    /// For everything up to the commit; `None`: as the settings say.
    pub timeout: Option<Duration>,
    /// Only check and warm up a child; nothing stops.
    pub is_dry_run: bool,
}

/// One restart that was tried.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Restart {
    /// Counts the restarts that were tried, over all processes, from 1.
    pub number: u64,
    /// Start, in Unix milliseconds.
    pub unix_ms: u64,
    /// The generation that serves after it.
    pub generation: u64,
    /// `committed`, `rolled_back` or `dry_run`.
    pub verdict: String,
    /// Reason why it was not committed; empty if it was.
    pub problem: String,
    /// Sockets that moved.
    pub sockets: u64,
    /// Pause in which nothing was read or written, in seconds.
    pub pause_seconds: f64,
    /// Version and binary that served before.
    pub from: String,
    /// Version and binary that was to serve after.
    pub to: String,
    /// Path of the binary that served before.
    pub previous_binary: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a restart.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// Name of the step.
    pub name: String,
    /// Length of the step.
    pub seconds: f64,
    /// Detail for people.
    pub detail: String,
}

/// The answer of `/v1/restartz`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Restartz {
    /// Generation: number of this process in a series; 0: the first.
    pub generation: u64,
    /// Process id of this process.
    pub pid: u32,
    /// One is under way.
    pub is_under_way: bool,
    /// The last ones, oldest first.
    pub restarts: Vec<Restart>,
}

/// A restart was ordered while another one is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay;

/// Control of restarts: takes orders and remembers results.
#[derive(Debug)]
pub struct RestartControl {
    orders: Sender<RestartOrder>,
    taken: Receiver<RestartOrder>,
    state: Mutex<Restartz>,
    counter_set: Arc<CounterSet>,
    /// Published figures.
    cells: Mutex<[u64; CELLS]>,
}

impl Default for RestartControl {
    fn default() -> Self {
        // One at a time; a second order is told so.
        let (orders, taken) = bounded(1);
        let state = Restartz { pid: std::process::id(), ..Restartz::default() };
        let counter_set = Arc::new(CounterSet::new(METRICS));
        Self { orders, taken, state: Mutex::new(state), counter_set, cells: Mutex::new([0; CELLS]) }
    }
}

impl RestartControl {
    /// Orders a restart. Returns the number that it will have.
    ///
    /// # Errors
    /// [`UnderWay`].
    pub fn try_order(&self, order: RestartOrder) -> Result<u64, UnderWay> {
        let state = self.state();
        if state.is_under_way {
            return Err(UnderWay);
        }
        match self.orders.try_send(order) {
            Ok(()) => Ok(state.next_number()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(UnderWay),
        }
    }

    /// Receiver of orders.
    pub const fn orders(&self) -> &Receiver<RestartOrder> {
        &self.taken
    }

    /// One begins. Returns its number.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.is_under_way = true;
        state.next_number()
    }

    /// Records a restart that is over, or was over when this process began.
    pub fn end(&self, restart: Restart) {
        self.count(&restart);
        let mut state = self.state();
        state.is_under_way = false;
        state.restarts.push(restart);
        let over = state.restarts.len().saturating_sub(REMEMBERED_MAX);
        state.restarts.drain(..over);
    }

    /// History of earlier processes.
    pub fn resume(&self, generation: u64, cells: &[u64], restarts: Vec<Restart>) {
        for (mine, theirs) in self.cells().iter_mut().zip(cells) {
            *mine = *theirs;
        }
        let mut state = self.state();
        (state.generation, state.restarts) = (generation, Vec::new());
        drop(state);
        let mut earlier = restarts;
        let last = earlier.pop();
        self.state().restarts = earlier;
        last.into_iter().for_each(|last| self.end(last));
    }

    /// Counters for the metrics page.
    pub fn counter_set(&self) -> Arc<CounterSet> {
        Arc::clone(&self.counter_set)
    }

    /// The numbers, for the process that takes over.
    pub fn numbers(&self) -> Vec<u64> {
        self.cells().to_vec()
    }

    fn count(&self, restart: &Restart) {
        let mut cells = self.cells();
        if let Some(place) = VERDICTS.iter().position(|verdict| *verdict == restart.verdict) {
            cells[place] += 1;
        }
        if restart.pause_seconds > 0.0 {
            let pause = Duration::try_from_secs_f64(restart.pause_seconds).unwrap_or_default();
            let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
            cells[PAUSES + PAUSE_BOUNDS.partition_point(|bound| *bound < nanos)] += 1;
            cells[CELLS - 1] += nanos;
        }
        cells[SOCKETS] = restart.sockets;
        cells[GENERATION] = restart.generation;
        self.counter_set.publish(&*cells);
    }

    fn cells(&self) -> std::sync::MutexGuard<'_, [u64; CELLS]> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// State for `/v1/restartz`.
    pub fn show(&self) -> Restartz {
        self.state().clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Restartz> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Restartz {
    fn next_number(&self) -> u64 {
        self.restarts.last().map_or(1, |last| last.number + 1)
    }
}
