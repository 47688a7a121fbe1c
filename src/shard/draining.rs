//! Drain: asks clients to leave, at a rate, and closes those that stay [P-8.1].
//!
//! Example: `drain --grace 30s` with 10,000 clients and no rate: all get GOAWAY within 40 turns, and those
//! that are connected 30 s later get CLOSE(GOING_AWAY).

use super::{Outputs, Shard};
use crate::snapshot::DrainRecord;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::GoAway;
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// Clients asked in one turn at most; the rest follows in the next turns.
const ASKED_PER_TURN: u64 = 256;

/// The way in which clients are asked to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainOrder {
    /// Time from GOAWAY until a client that stayed is closed.
    pub grace: Duration,
    /// Clients of this shard asked per second; `None`: all at once, and the clients spread their reconnects over
    /// the grace.
    pub rate: Option<u32>,
    /// Gateways to go to; empty: those of the settings.
    pub alternates: Arc<[String]>,
}

impl DrainOrder {
    /// A drain that asks all clients at once.
    pub fn within(grace: Duration) -> Self {
        Self { grace, rate: None, alternates: Arc::new([]) }
    }
}

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    order: DrainOrder,
    goaway: Frame,
    began: Instant,
    /// Connections not asked yet, the next one last.
    unasked: Vec<ConnKey>,
    asked: u64,
    /// Time at which the remaining connections are closed; `None`: not all were asked.
    ends: Option<Instant>,
}

impl Drain {
    fn new(order: DrainOrder, began: Instant, unasked: Vec<ConnKey>) -> Self {
        let window = if order.rate.is_some() { Duration::ZERO } else { order.grace };
        let goaway = GoAway {
            window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX),
            alternates: order.alternates.to_vec(),
        };
        let goaway = frame_of(Command::GoAway, &goaway);
        Self { order, goaway, began, unasked, asked: 0, ends: None }
    }

    pub(super) fn freeze(&self) -> DrainRecord {
        let Self { order, goaway: _, began, unasked, asked, ends } = self;
        let DrainOrder { grace, rate, alternates } = order;
        DrainRecord {
            grace: u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX),
            rate: *rate,
            alternates: alternates.to_vec(),
            began: began.as_nanos(),
            asked: *asked,
            ends: ends.map(Instant::as_nanos),
            unasked: unasked.iter().map(|key| key.as_u64()).collect(),
        }
    }

    pub(super) fn thaw(record: &DrainRecord) -> Self {
        let DrainRecord { grace, rate, alternates, began, asked, ends, unasked } = record;
        let grace = Duration::from_nanos(*grace);
        let order = DrainOrder { grace, rate: *rate, alternates: alternates.as_slice().into() };
        let unasked = unasked.iter().map(|key| ConnKey::from_u64(*key)).collect();
        let drain = Self::new(order, Instant::from_nanos(*began), unasked);
        Self { asked: *asked, ends: ends.map(Instant::from_nanos), ..drain }
    }

    /// Time at which the next client is asked, or the rest is closed.
    pub(super) fn deadline(&self) -> Instant {
        match (self.ends, self.order.rate) {
            (Some(ends), _) => ends,
            (None, None) => self.began,
            (None, Some(rate)) => {
                let nanos = (self.asked + 1).saturating_mul(1_000_000_000) / u64::from(rate.max(1));
                self.began + Duration::from_nanos(nanos)
            }
        }
    }

    /// Number of clients that may be asked now.
    fn due(&self, now: Instant) -> u64 {
        let Some(rate) = self.order.rate else { return ASKED_PER_TURN };
        let elapsed = now.saturating_since(self.began).as_nanos();
        let due = elapsed * u128::from(rate.max(1)) / 1_000_000_000;
        u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(self.asked).min(ASKED_PER_TURN)
    }
}

impl Shard {
    /// Asks every client to leave as `order` says, and refuses logins from now on.
    pub fn handle_drain(&mut self, now: Instant, order: &DrainOrder, outputs: &mut Outputs) {
        let mut order = order.clone();
        if order.alternates.is_empty() {
            order.alternates = Arc::clone(&self.clients.ledger.settings.alternates);
        }
        self.is_draining = true;
        let mut unasked = Vec::new();
        for key in self.clients.table.keys() {
            match self.clients.connection(key).expect("listed").state.on(Event::Draining) {
                Transition::To(_) => unasked.push(key),
                Transition::Close(reason) => self.clients.close(now, key, reason, outputs),
                Transition::Ignore => {}
            }
        }
        self.drain = Some(Box::new(Drain::new(order, now, unasked)));
        self.tend_drain(now, outputs);
    }

    /// Accepts logins again. Clients that were asked leave all the same.
    pub fn handle_undrain(&mut self) {
        self.is_draining = false;
        self.drain = None;
    }

    /// Asks the clients whose turn it is; closes those that stayed.
    pub(super) fn tend_drain(&mut self, now: Instant, outputs: &mut Outputs) {
        let Some(mut drain) = self.drain.take() else { return };
        if drain.ends.is_some_and(|ends| now >= ends) {
            return self.clients.close_all(now, CloseReason::GoingAway, outputs);
        }
        for _ in 0..drain.due(now) {
            let Some(key) = drain.unasked.pop() else { break };
            drain.asked += 1;
            let Some(mut client) = self.clients.client(key) else { continue };
            if let Transition::To(state @ State::Leaving) = client.connection.state.on(Event::Draining) {
                client.connection.state = state;
                client.send(drain.goaway.clone(), outputs);
            }
        }
        if drain.unasked.is_empty() && drain.ends.is_none() {
            drain.ends = Some(now + drain.order.grace);
        }
        self.drain = Some(drain);
    }
}
