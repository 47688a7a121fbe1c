//! Drains as `/v1/drainz` shows them, and the orders for them.

use super::restarts::Refused;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// State of a control that takes orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Orders are taken.
    #[default]
    Open,
    /// A hot restart is under way: an order would be lost with this process.
    Restarting,
    /// The process ends.
    Ending,
}

impl Gate {
    /// Returns whether an order is taken.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) const fn check(self) -> Result<(), Refused> {
        match self {
            Self::Open => Ok(()),
            Self::Restarting => Err(Refused::UnderWay),
            Self::Ending => Err(Refused::Ending),
        }
    }
}

/// Order about the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientsOrder {
    /// Ask them to leave.
    Drain(DrainWish),
    /// Let them come again.
    Undrain,
}

/// Way of asking clients to leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainWish {
    /// From being asked until who stayed is closed; `None`: as the settings say.
    pub grace: Option<Duration>,
    /// Clients asked per second, by all reactors together; `None`: all at once.
    pub rate: Option<u32>,
    /// Address that clients should go to, host:port; `None`: the addresses of the settings.
    pub redirect: Option<String>,
}

/// The answer of `/v1/drainz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Drainz {
    /// Counts the orders that were carried out, or could not be.
    pub number: u64,
    /// Clients are asked to leave, or have left.
    pub is_draining: bool,
    /// Reason why the last order was not carried out; empty if it was.
    pub problem: String,
    /// Since when, in Unix milliseconds.
    pub since_unix_ms: u64,
    /// Clients that are still connected.
    pub connections: u64,
    /// The gateway, as in `/v1/restartz`.
    pub epoch: u64,
}

/// Control of drains: takes orders and remembers results.
#[derive(Debug)]
pub struct DrainControl {
    orders: Sender<ClientsOrder>,
    taken: Receiver<ClientsOrder>,
    state: Mutex<Drainz>,
    /// The gate, and the number of the last order that was taken.
    gate: Mutex<(Gate, u64)>,
}

impl Default for DrainControl {
    fn default() -> Self {
        let (orders, taken) = bounded(1);
        Self { orders, taken, state: Mutex::default(), gate: Mutex::default() }
    }
}

impl DrainControl {
    /// Gives an order. Returns the number that it will have.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn try_order(&self, order: ClientsOrder) -> Result<u64, Refused> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.0.check()?;
        self.orders.try_send(order).map_err(|_| Refused::UnderWay)?;
        gate.1 += 1;
        Ok(gate.1)
    }

    /// Takes no orders from now on, or takes them again. An order that was taken before can be received.
    pub fn set_gate(&self, gate: Gate) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).0 = gate;
    }

    /// Receiver of orders.
    pub const fn orders(&self) -> &Receiver<ClientsOrder> {
        &self.taken
    }

    /// An order was carried out, or could not be.
    pub fn note(&self, outcome: Result<bool, String>, unix_ms: u64) {
        let mut state = self.state();
        state.number += 1;
        match outcome {
            Ok(is_draining) => {
                (state.is_draining, state.since_unix_ms) = (is_draining, unix_ms);
                state.problem.clear();
            }
            Err(problem) => state.problem = problem,
        }
    }

    /// State for `/v1/drainz`, without [`Drainz::connections`] and [`Drainz::epoch`].
    pub fn show(&self) -> Drainz {
        self.state().clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Drainz> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_has_its_own_number_and_a_closed_gate_takes_none() {
        let control = DrainControl::default();
        assert_eq!(control.try_order(ClientsOrder::Undrain), Ok(1));
        assert_eq!(control.try_order(ClientsOrder::Undrain), Err(Refused::UnderWay));
        control.orders().try_recv().expect("the first");
        assert_eq!(control.try_order(ClientsOrder::Undrain), Ok(2), "the first one is still carried out");
        control.set_gate(Gate::Restarting);
        control.orders().try_recv().expect("it was taken before");
        assert_eq!(control.try_order(ClientsOrder::Undrain), Err(Refused::UnderWay));
        control.set_gate(Gate::Ending);
        assert_eq!(control.try_order(ClientsOrder::Undrain), Err(Refused::Ending));
        control.set_gate(Gate::Open);
        assert_eq!(control.try_order(ClientsOrder::Undrain), Ok(3));
    }
}
