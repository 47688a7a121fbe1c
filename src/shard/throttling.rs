//! Clients whose sockets are not read for a while: those above their rate limit, and those whose frames would
//! only wait at a worker without room.
//!
//! The owner stops reading at [`Output::PauseReads`] and lets the kernel's buffer fill, so that TCP slows the
//! client down and nothing is lost. A paused client is not expected to send heartbeats [P-7.2].

use super::session::Route;
use super::{Output, Outputs};
use crate::snapshot::{HoldRecord, Item, Section};
use moorline_proto::frame::Lane;
use moorline_proto::ids::{ConnKey, Pin};
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Interval at which a client is checked that waits for a worker.
const CHECK: Duration = Duration::from_secs(1);

/// Causes of a pause, at least one of the two.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    /// End of a pause for the rate limit; `None`: the client is within it.
    until: Option<Instant>,
    /// User and lane for which the worker has no room; `None`: it has.
    waits: Option<(Route, Lane)>,
}

/// Paused clients, and what the workers reported: users without room, and overload.
#[derive(Debug, Default)]
pub(super) struct ReadPauses {
    paused: BTreeMap<ConnKey, Pause>,
    /// Slots of pins without room, one bit each, by worker and lane.
    full: Vec<[u64; Lane::ALL.len()]>,
    /// Overload of each worker: 0 normal, 1 the last rank is shed, 2 the second too, 3 logins are refused.
    overload: Vec<u8>,
}

impl ReadPauses {
    pub(super) fn new(workers: usize) -> Self {
        Self { full: vec![[0; Lane::ALL.len()]; workers], overload: vec![0; workers], ..Self::default() }
    }

    /// Number of paused clients.
    pub(super) fn len(&self) -> usize {
        self.paused.len()
    }

    /// Returns whether a client is paused: its frames wait.
    pub(super) fn is_paused(&self, key: ConnKey) -> bool {
        !self.paused.is_empty() && self.paused.contains_key(&key)
    }

    /// Pauses a client above its rate limit until `until`.
    pub(super) fn pause_until(&mut self, key: ConnKey, until: Instant, outputs: &mut Outputs) {
        self.pause(key, outputs).until = Some(until);
    }

    /// Pauses a client that sent on a lane for which its worker has no room. False: there is room.
    pub(super) fn pause_if_full(
        &mut self,
        key: ConnKey,
        route: Route,
        lane: Lane,
        outputs: &mut Outputs,
    ) -> bool {
        let is_full = self.is_full(route, lane);
        if is_full {
            self.pause(key, outputs).waits = Some((route, lane));
        }
        is_full
    }

    fn pause(&mut self, key: ConnKey, outputs: &mut Outputs) -> &mut Pause {
        self.paused.entry(key).or_insert_with(|| {
            outputs.push(Output::PauseReads(key));
            Pause::default()
        })
    }

    /// Ends the pause of a client that has no cause any more. False: it stays paused, or was not.
    pub(super) fn try_end(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) -> bool {
        let Some(pause) = self.paused.get_mut(&key) else { return false };
        pause.until = pause.until.filter(|until| *until > now);
        if pause.waits.is_some() || pause.until.is_some() {
            return false;
        }
        self.paused.remove(&key);
        outputs.push(Output::ResumeReads(key));
        true
    }

    /// Forgets a client whose socket is gone.
    pub(super) fn forget(&mut self, key: ConnKey) {
        self.paused.remove(&key);
    }

    /// Takes a worker's report of users and lanes without room. Answers the clients that waited and need not
    /// any more.
    pub(super) fn set_full(&mut self, worker: u16, slots: [u64; Lane::ALL.len()]) -> Vec<ConnKey> {
        let Some(full) = self.full.get_mut(usize::from(worker)) else { return Vec::new() };
        *full = slots;
        let Self { paused, full, .. } = self;
        let has_room = |(_, pause): &(&ConnKey, &mut Pause)| {
            pause.waits.is_some_and(|(route, lane)| !is_full(full, route, lane))
        };
        let free = paused.iter_mut().filter(has_room);
        let free = free.map(|(key, pause)| {
            pause.waits = None;
            *key
        });
        free.collect()
    }

    /// Takes a worker's report of its overload.
    pub(super) fn set_overload(&mut self, worker: u16, level: u8) {
        if let Some(known) = self.overload.get_mut(usize::from(worker)) {
            *known = level;
        }
    }

    fn is_full(&self, route: Route, lane: Lane) -> bool {
        is_full(&self.full, route, lane)
    }

    /// Overload level of the worker of this user.
    pub(super) fn overload(&self, route: Route) -> u8 {
        self.overload[route.index()]
    }

    /// Returns whether new logins are refused for now.
    pub(super) fn refuses_logins(&self) -> bool {
        self.overload.iter().any(|level| *level >= 3)
    }

    /// Time at which a paused client is to be checked; `None`: it is not paused.
    pub(super) fn deadline(&self, key: ConnKey, now: Instant) -> Option<Instant> {
        let pause = self.paused.get(&key)?;
        if pause.waits.is_some() { Some(now + CHECK) } else { pause.until }
    }

    /// Writes the paused clients. Returns the workers' reports: users without room, and overload.
    pub(super) fn freeze(&self, out: &mut Section) -> (Vec<u64>, Vec<u32>) {
        let Self { paused, full, overload } = self;
        for (key, Pause { until, waits }) in paused {
            let (route, lane) = waits.map_or((None, 0), |(route, lane)| (Some(route), lane as u32));
            let (pin, worker) = (route.map(|route| route.pin.0), route.map(|route| route.worker.into()));
            let until = until.map(Instant::as_nanos);
            out.put(Item::Hold(HoldRecord { key: key.as_u64(), until, pin, lane, worker }));
        }
        (full.iter().flatten().copied().collect(), overload.iter().map(|level| u32::from(*level)).collect())
    }

    /// Reads the workers' reports. Workers that were added since have none.
    pub(super) fn thaw(&mut self, full: &[u64], overload: &[u32]) {
        for (mine, theirs) in self.full.iter_mut().flatten().zip(full) {
            *mine = *theirs;
        }
        for (mine, theirs) in self.overload.iter_mut().zip(overload) {
            *mine = u8::try_from(*theirs).unwrap_or(0);
        }
    }

    /// Reads one paused client.
    pub(super) fn thaw_one(&mut self, record: HoldRecord, outputs: &mut Outputs) {
        let HoldRecord { key, until, pin, lane, worker } = record;
        let (key, workers) = (ConnKey::from_u64(key), self.full.len());
        let route = pin.map(|pin| match worker.and_then(|worker| u8::try_from(worker).ok()) {
            Some(worker) if usize::from(worker) < workers => Route { pin: Pin(pin), worker },
            _ => Route::of(Pin(pin), workers),
        });
        let waits = route.map(|route| (route, Lane::from_number(lane)));
        self.paused.insert(key, Pause { until: until.map(Instant::from_nanos), waits });
        outputs.push(Output::PauseReads(key));
    }
}

fn is_full(full: &[[u64; Lane::ALL.len()]], route: Route, lane: Lane) -> bool {
    full[route.index()][lane as usize] >> route.pin.slot() & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    #[test]
    fn a_client_with_two_causes_is_read_again_when_both_are_gone() {
        let (mut pauses, mut outputs) = (ReadPauses::new(1), Outputs::new(1));
        let (key, route) = (ConnKey::new(ShardId(0), 1, 1), Route::of(Pin(0), 1));
        let at = |secs| Instant::ZERO + Duration::from_secs(secs);
        assert!(!pauses.pause_if_full(key, route, Lane::Chat, &mut outputs));
        assert!(pauses.set_full(0, [u64::MAX; Lane::ALL.len()]).is_empty());
        assert!(pauses.pause_if_full(key, route, Lane::Chat, &mut outputs));
        pauses.pause_until(key, at(5), &mut outputs);
        assert!(matches!(outputs.poll_output(), Some(Output::PauseReads(_))), "told once");
        assert!(!pauses.try_end(at(6), key, &mut outputs), "the worker has no room");
        pauses.pause_until(key, at(9), &mut outputs);
        assert_eq!(pauses.set_full(0, [0; Lane::ALL.len()]), [key]);
        assert!(!pauses.try_end(at(8), key, &mut outputs), "still above the rate");
        assert_eq!(pauses.deadline(key, at(8)), Some(at(9)));
        assert!(outputs.poll_output().is_none());
        assert!(pauses.try_end(at(9), key, &mut outputs));
        assert!(matches!(outputs.poll_output(), Some(Output::ResumeReads(_))));
        assert_eq!((pauses.len(), pauses.deadline(key, at(9))), (0, None));
    }
}
