//! Clients that are not read for a while: those who say too much, and those whose frames would only wait.
//!
//! The owner is told by [`Output::PauseReads`] and lets the kernel's buffer fill, so that TCP slows the client
//! down and nothing is lost. A held client is not expected to be heard [P-7.2].

use super::bucket::Stamp;
use super::session::Route;
use super::{Count, Output, Outputs, Shard};
use crate::snapshot::{HoldRecord, Item, Section};
use moorline_proto::frame::Lane;
use moorline_proto::ids::{ConnKey, Pin};
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// How often a client is looked at that is held for a worker.
const LOOK: Duration = Duration::from_secs(1);

/// Why a client is held; one of the two at least.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    /// It said too much: until then.
    until: Option<Instant>,
    /// Its worker has no room for what it says on this lane.
    waits: Option<(Route, Lane)>,
}

/// Who is held, and what workers have no room for.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: BTreeMap<ConnKey, Hold>,
    /// By worker, then by lane: slots of pins.
    full: Vec<[u64; Lane::ALL.len()]>,
    /// By worker: 0 normal, 1 bulk is shed, 2 group too, 3 logins are refused.
    overload: Vec<u8>,
}

impl Holds {
    pub(super) fn new(workers: usize) -> Self {
        Self { held: BTreeMap::new(), full: vec![[0; Lane::ALL.len()]; workers], overload: vec![0; workers] }
    }

    /// Writes down who is held. Returns what workers have no room for, and their overload.
    pub(super) fn freeze(&self, out: &mut Section) -> (Vec<u64>, Vec<u32>) {
        let Self { held, full, overload } = self;
        for (key, Hold { until, waits }) in held {
            let (route, lane) = waits.map_or((None, 0), |(route, lane)| (Some(route), lane as u32));
            let (pin, worker) = (route.map(|route| route.pin.0), route.map(|route| route.worker.into()));
            let until = until.map(Instant::as_nanos);
            out.put(Item::Hold(HoldRecord { key: key.as_u64(), until, pin, lane, worker }));
        }
        (full.iter().flatten().copied().collect(), overload.iter().map(|level| u32::from(*level)).collect())
    }

    /// Reads what workers have no room for. Of workers that came since nothing is known yet.
    pub(super) fn thaw(&mut self, full: &[u64], overload: &[u32]) {
        for (mine, theirs) in self.full.iter_mut().flatten().zip(full) {
            *mine = *theirs;
        }
        for (mine, theirs) in self.overload.iter_mut().zip(overload) {
            *mine = u8::try_from(*theirs).unwrap_or(0);
        }
    }

    /// Reads one who is held. The caller tells the owner.
    pub(super) fn thaw_one(&mut self, record: HoldRecord) -> ConnKey {
        let HoldRecord { key, until, pin, lane, worker } = record;
        let (key, workers) = (ConnKey::from_u64(key), self.full.len());
        let route = pin.map(|pin| match worker.and_then(|worker| u8::try_from(worker).ok()) {
            Some(worker) if usize::from(worker) < workers => Route { pin: Pin(pin), worker },
            _ => Route::of(Pin(pin), workers),
        });
        let waits = route.map(|route| (route, Lane::from_number(lane)));
        self.held.insert(key, Hold { until: until.map(Instant::from_nanos), waits });
        key
    }

    fn is_full(&self, route: Route, lane: Lane) -> bool {
        self.full[route.index()][lane as usize] >> route.pin.slot() & 1 == 1
    }

    /// Whether uplinks of this user and lane are refused for now.
    pub(super) fn is_shed(&self, route: Route, lane: Lane) -> bool {
        match self.overload[route.index()] {
            0 => false,
            1 => lane == Lane::Bulk,
            _ => matches!(lane, Lane::Bulk | Lane::Group),
        }
    }

    /// Whether new logins are refused for now.
    pub(super) fn refuses_logins(&self) -> bool {
        self.overload.iter().any(|level| *level >= 3)
    }

    /// When a held client is to be looked at; `None`: it is not held.
    pub(super) fn deadline(&self, key: ConnKey, now: Instant) -> Option<Instant> {
        let hold = self.held.get(&key)?;
        Some(if hold.waits.is_some() { now + LOOK } else { hold.until? })
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

impl Shard {
    /// It said too much: not to be read before `until`.
    pub(super) fn hold_until(&mut self, key: ConnKey, until: Instant, outputs: &mut Outputs) {
        self.tally[Count::RateHolds] += 1;
        let hold = self.holds.held.entry(key).or_insert_with(|| {
            outputs.push(Output::PauseReads(key));
            Hold::default()
        });
        hold.until = Some(until);
        self.arm(key, until);
    }

    /// It spoke on a lane for which its worker has no room: not to be read before there is some.
    pub(super) fn hold_if_full(&mut self, key: ConnKey, route: Route, lane: Lane, outputs: &mut Outputs) {
        if !self.holds.is_full(route, lane) {
            return;
        }
        self.tally[Count::BackpressureHolds] += 1;
        let hold = self.holds.held.entry(key).or_insert_with(|| {
            outputs.push(Output::PauseReads(key));
            Hold::default()
        });
        hold.waits = Some((route, lane));
    }

    /// A worker has room for other users and lanes than before.
    pub(super) fn on_hold(
        &mut self,
        now: Instant,
        worker: u16,
        slots: [u64; Lane::ALL.len()],
        outputs: &mut Outputs,
    ) {
        let Some(full) = self.holds.full.get_mut(usize::from(worker)) else { return };
        *full = slots;
        let waiting = self.holds.held.iter().filter(|(_, hold)| hold.waits.is_some());
        for key in waiting.map(|(key, _)| *key).collect::<Vec<_>>() {
            let hold = &self.holds.held[&key];
            if hold.waits.is_some_and(|(route, lane)| !self.holds.is_full(route, lane)) {
                self.holds.held.get_mut(&key).expect("just seen").waits = None;
                self.release_if_free(now, key, outputs);
            }
        }
    }

    pub(super) fn on_overload(&mut self, worker: u16, level: u8) {
        if let Some(known) = self.holds.overload.get_mut(usize::from(worker)) {
            *known = level;
        }
    }

    /// A held client's time has come. False: it is not held.
    pub(super) fn try_release(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) -> bool {
        let Some(hold) = self.holds.held.get_mut(&key) else { return false };
        hold.until = hold.until.filter(|until| *until > now);
        self.release_if_free(now, key, outputs);
        true
    }

    fn release_if_free(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let hold = &self.holds.held[&key];
        if hold.waits.is_some() || hold.until.is_some() {
            return;
        }
        self.holds.held.remove(&key);
        outputs.push(Output::ResumeReads(key));
        if let Some(connection) = self.table.get_mut(key) {
            // It could not be heard: its silence begins now.
            connection.spent.refill(self.settings.frame_fill(), connection.heard, now);
            connection.heard = Stamp::of(now);
        }
    }

    /// Its socket is gone.
    pub(super) fn unhold(&mut self, key: ConnKey) {
        self.holds.held.remove(&key);
    }
}
