//! Drains as `/v1/drainz` shows them, and the orders for them.

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
}

/// Control of drains: takes orders and remembers results.
#[derive(Debug)]
pub struct DrainControl {
    orders: Sender<ClientsOrder>,
    taken: Receiver<ClientsOrder>,
    state: Mutex<Drainz>,
}

impl Default for DrainControl {
    fn default() -> Self {
        let (orders, taken) = bounded(1);
        Self { orders, taken, state: Mutex::default() }
    }
}

impl DrainControl {
    /// Gives an order. Returns the number that it will have; `None`: another one is not carried out yet.
    pub fn try_order(&self, order: ClientsOrder) -> Option<u64> {
        let number = self.state().number + 1;
        self.orders.try_send(order).ok().map(|()| number)
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

    /// State for `/v1/drainz`, without [`Drainz::connections`].
    pub fn show(&self) -> Drainz {
        self.state().clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Drainz> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
