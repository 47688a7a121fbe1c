//! Hot restarts as `/v1/restartz` shows them, and the orders for them.

use crate::metrics::{CounterSet, Metric, SECONDS};
use crossbeam_channel::{Receiver, Sender, bounded};
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

/// Program that a restart starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The file at the path that this process was started by, as it is now.
    Again,
    /// The file at this path.
    File(PathBuf),
    /// The program that served before, whatever its path names by now.
    Previous,
}

/// Order of a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartOrder {
    /// Program to start.
    pub target: Target,
    /// For everything up to the commit; `None`: as the settings say.
    pub timeout: Option<Duration>,
    /// Only check and warm up a child; nothing stops.
    pub is_dry_run: bool,
}

/// One restart that was tried.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Restart {
    /// Counts the restarts that were tried, over all processes, from 1.
    pub number: u64,
    /// Start, in Unix milliseconds.
    pub unix_ms: u64,
    /// The generation that serves after it.
    pub generation: u64,
    /// The process that serves after it; 0: written by a version that did not note it.
    pub pid: u32,
    /// `committed`, `rolled_back` or `dry_run`.
    pub verdict: String,
    /// Reason why it was not committed; empty if it was.
    pub problem: String,
    /// The process that serves ends, because a signal told it so; false also if a version did not note it.
    pub is_ending: bool,
    /// Sockets that moved.
    pub sockets: u64,
    /// Pause in which nothing was read or written, in seconds.
    pub pause_seconds: f64,
    /// Version, path and SHA-256 of the binary that served before.
    pub from: String,
    /// Version, path and SHA-256 of the binary that was to serve after.
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
#[serde(default)]
pub struct Restartz {
    /// Start of the first process of this series, in Unix nanoseconds: another number is another gateway. 0: answered by
    /// a version that did not tell it.
    pub epoch: u64,
    /// Time of a restart without another one in its order, in milliseconds (`handover.timeout`); 0: as with `epoch`.
    pub timeout_ms: u64,
    /// Generation: number of this process in a series; 0: the first.
    pub generation: u64,
    /// Process id of this process.
    pub pid: u32,
    /// One is under way.
    pub is_under_way: bool,
    /// The last ones, oldest first.
    pub restarts: Vec<Restart>,
}

/// Reason why an order is not taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another order is not carried out yet, or a hot restart is under way.
    UnderWay,
    /// The process ends.
    Ending,
}

#[derive(Debug, Default)]
struct State {
    shown: Restartz,
    /// Number of an order that was taken and has not begun; `None`: there is none.
    ordered: Option<u64>,
    /// True if the process ends.
    is_ending: bool,
}

/// Control of restarts: takes orders and remembers results.
#[derive(Debug)]
pub struct RestartControl {
    orders: Sender<RestartOrder>,
    taken: Receiver<RestartOrder>,
    state: Mutex<State>,
    counter_set: Arc<CounterSet>,
    /// Published figures.
    cells: Mutex<[u64; CELLS]>,
}

impl Default for RestartControl {
    fn default() -> Self {
        // One at a time; a second order is told so.
        let (orders, taken) = bounded(1);
        let shown = Restartz { pid: std::process::id(), ..Restartz::default() };
        let state = State { shown, ..State::default() };
        let counter_set = Arc::new(CounterSet::new(METRICS));
        Self { orders, taken, state: Mutex::new(state), counter_set, cells: Mutex::new([0; CELLS]) }
    }
}

impl RestartControl {
    /// Notes which gateway this is, and how long a restart may take.
    pub fn introduce(&self, epoch: u64, timeout: Duration) {
        let mut state = self.state();
        state.shown.epoch = epoch;
        state.shown.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    }

    /// Orders a restart. Returns the number that it will have.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn try_order(&self, order: RestartOrder) -> Result<u64, Refused> {
        let mut state = self.state();
        if state.is_ending {
            return Err(Refused::Ending);
        }
        if state.shown.is_under_way || state.ordered.is_some() {
            return Err(Refused::UnderWay);
        }
        self.orders.try_send(order).map_err(|_| Refused::UnderWay)?;
        let number = state.shown.next_number();
        state.ordered = Some(number);
        Ok(number)
    }

    /// Receiver of orders.
    pub const fn orders(&self) -> &Receiver<RestartOrder> {
        &self.taken
    }

    /// One begins. Returns its number.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.shown.is_under_way = true;
        state.ordered = None;
        state.shown.next_number()
    }

    /// Records a restart that is over, or was over when this process began.
    pub fn end(&self, restart: Restart) {
        self.count(&restart);
        let Restartz { is_under_way, restarts, .. } = &mut self.state().shown;
        *is_under_way = false;
        restarts.push(restart);
        let over = restarts.len().saturating_sub(REMEMBERED_MAX);
        restarts.drain(..over);
    }

    /// Refuses all further orders: the process ends. An order that was taken gets its verdict.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_ending = true;
        let ordered = state.ordered.take();
        drop(state);
        if let Some(number) = ordered {
            let (generation, pid) = (self.show().generation, std::process::id());
            let problem = "a signal came before the order was begun".to_owned();
            let verdict = VERDICTS[1].to_owned();
            let is_ending = true;
            self.end(Restart { number, generation, pid, verdict, problem, is_ending, ..Restart::default() });
        }
    }

    /// Returns whether the process ends and takes no orders any more.
    pub fn is_closed(&self) -> bool {
        self.state().is_ending
    }

    /// History of earlier processes.
    pub fn resume(&self, generation: u64, cells: &[u64], restarts: Vec<Restart>) {
        for (mine, theirs) in self.cells().iter_mut().zip(cells) {
            *mine = *theirs;
        }
        let mut earlier = restarts;
        let last = earlier.pop();
        let mut state = self.state();
        (state.shown.generation, state.shown.restarts) = (generation, earlier);
        drop(state);
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
        self.state().shown.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Restartz {
    fn next_number(&self) -> u64 {
        self.restarts.last().map_or(1, |last| last.number + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> RestartOrder {
        RestartOrder { target: Target::Again, timeout: None, is_dry_run: false }
    }

    #[test]
    fn an_order_has_its_number_from_when_it_is_taken_to_its_verdict() {
        let control = RestartControl::default();
        assert_eq!(control.try_order(order()), Ok(1));
        control.orders().try_recv().expect("the order");
        assert_eq!(control.try_order(order()), Err(Refused::UnderWay), "it was received, and has not begun");
        assert_eq!(control.begin(), 1);
        assert_eq!(control.try_order(order()), Err(Refused::UnderWay));
        control.end(Restart { number: 1, ..Restart::default() });
        assert_eq!(control.try_order(order()), Ok(2));
    }

    #[test]
    fn a_process_that_ends_refuses_orders_and_answers_the_one_it_took() {
        let control = RestartControl::default();
        assert_eq!(control.try_order(order()), Ok(1));
        control.close();
        let shown = control.show();
        assert_eq!((shown.restarts.len(), shown.restarts[0].number), (1, 1));
        assert_eq!((&*shown.restarts[0].verdict, shown.restarts[0].is_ending), ("rolled_back", true));
        assert_eq!(control.try_order(order()), Err(Refused::Ending));
    }
}
