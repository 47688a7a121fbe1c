//! Hot restarts as `/v1/restartz` shows them, and the orders for them.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Restarts that are remembered.
const REMEMBERED_MAX: usize = 16;

/// What a restart is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartOrder {
    /// What to run; `None`: the file that this process was started from, as it is now.
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
    /// When it began, in Unix milliseconds.
    pub unix_ms: u64,
    /// The generation that serves after it.
    pub generation: u64,
    /// `committed`, `rolled_back` or `dry_run`.
    pub verdict: String,
    /// Why it was not committed; empty if it was.
    pub problem: String,
    /// Sockets that moved.
    pub sockets: u64,
    /// For so long nothing was read or written, in seconds.
    pub pause_seconds: f64,
    /// Version and binary that served before.
    pub from: String,
    /// Version and binary that was to serve after.
    pub to: String,
    /// Where the binary lies that served before.
    pub previous_binary: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a restart.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// What there is to say.
    pub detail: String,
}

/// The answer of `/v1/restartz`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Restartz {
    /// Which process of a series this is; 0: the first.
    pub generation: u64,
    /// This process.
    pub pid: u32,
    /// One is under way.
    pub is_under_way: bool,
    /// The last ones, oldest first.
    pub restarts: Vec<Restart>,
}

/// Where restarts are ordered and remembered.
#[derive(Debug)]
pub struct RestartDesk {
    orders: Sender<RestartOrder>,
    taken: Receiver<RestartOrder>,
    state: Mutex<Restartz>,
}

impl Default for RestartDesk {
    fn default() -> Self {
        // One at a time; a second order is told so.
        let (orders, taken) = bounded(1);
        let state = Restartz { pid: std::process::id(), ..Restartz::default() };
        Self { orders, taken, state: Mutex::new(state) }
    }
}

impl RestartDesk {
    /// Orders a restart. Returns the number that it will have.
    ///
    /// # Errors
    /// One is under way.
    pub fn try_order(&self, order: RestartOrder) -> Result<u64, ()> {
        let state = self.state();
        if state.is_under_way {
            return Err(());
        }
        match self.orders.try_send(order) {
            Ok(()) => Ok(state.next_number()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(()),
        }
    }

    /// Where orders come out.
    pub const fn orders(&self) -> &Receiver<RestartOrder> {
        &self.taken
    }

    /// One begins. Returns its number.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.is_under_way = true;
        state.next_number()
    }

    /// It is over, or was over when this process began.
    pub fn end(&self, restart: Restart) {
        let mut state = self.state();
        state.is_under_way = false;
        state.restarts.push(restart);
        let over = state.restarts.len().saturating_sub(REMEMBERED_MAX);
        state.restarts.drain(..over);
    }

    /// What processes before this one remembered.
    pub fn resume(&self, generation: u64, restarts: Vec<Restart>) {
        let mut state = self.state();
        (state.generation, state.restarts) = (generation, restarts);
    }

    /// As it is shown.
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
