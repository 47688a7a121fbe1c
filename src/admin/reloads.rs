//! Reloads as `/v1/reloadz` shows them, and the order for one.

use super::drains::Gate;
use super::restarts::Refused;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The answer of `/v1/reloadz`: the last reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Reloadz {
    /// Number of reloads since the start of the process, done or refused.
    pub number: u64,
    /// Time of the last one, in Unix milliseconds; 0: there was none.
    pub unix_ms: u64,
    /// Settings that changed and are in force.
    pub taken: Vec<String>,
    /// Settings that changed and need a restart.
    pub kept: Vec<String>,
    /// Reason why nothing was changed; empty: the reload was done.
    pub problem: String,
}

/// Control of reloads: takes orders and remembers the last result.
#[derive(Debug)]
pub struct ReloadControl {
    orders: Sender<()>,
    taken: Receiver<()>,
    state: Mutex<Reloadz>,
    gate: Mutex<Gate>,
}

impl Default for ReloadControl {
    fn default() -> Self {
        let (orders, taken) = bounded(1);
        Self { orders, taken, state: Mutex::default(), gate: Mutex::default() }
    }
}

impl ReloadControl {
    /// Orders a reload. Returns the number that it will have.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn try_order(&self) -> Result<u64, Refused> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.check()?;
        let number = self.state().number + 1;
        self.orders.try_send(()).map(|()| number).map_err(|_| Refused::UnderWay)
    }

    /// Takes no orders from now on, or takes them again. An order that was taken before can be received.
    pub fn set_gate(&self, gate: Gate) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate;
    }

    /// Receiver of orders.
    pub const fn orders(&self) -> &Receiver<()> {
        &self.taken
    }

    /// A reload is done or was refused: the settings taken and kept, or the problem.
    pub fn note(&self, outcome: Result<(Vec<String>, Vec<String>), String>, unix_ms: u64) {
        let mut state = self.state();
        let (taken, kept, problem) = match outcome {
            Ok((taken, kept)) => (taken, kept, String::new()),
            Err(problem) => (Vec::new(), Vec::new(), problem),
        };
        *state = Reloadz { number: state.number + 1, unix_ms, taken, kept, problem };
    }

    /// The last reload.
    pub fn show(&self) -> Reloadz {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Reloadz> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
