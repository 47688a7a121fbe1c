//! Backpressure toward clients, and the load that backends are told. Pure.
//!
//! A slot whose line of waiting frames grows holds its clients lane by lane, the least urgent first: their
//! connections are not read before the line is shorter. Users of other slots notice nothing.

use super::counters::Count;
use super::{Output, Overload, Parking, Sides, Ups};
use crate::messages::Downlink;
use moorline_proto::frame::Lane;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::Stats;
use moorline_proto::time::{Duration, Instant};

/// By lane: the length of a slot's line from which its clients are held that spoke on this lane; they are
/// free again below half of it.
const HELD_FROM: [usize; Lane::ALL.len()] = [256, 64, 16, 1];
/// Interval between two reports of the load to backends.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// Load of the whole process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Open client connections.
    pub connections: u32,
    /// Logged-in sessions.
    pub sessions: u32,
    /// Sessions whose connection is lost and that wait for their client.
    pub detached: u32,
    /// Bytes queued for clients.
    pub queued_bytes: u64,
}

/// The last word to the shards, and when backends are told the load.
#[derive(Debug)]
pub(super) struct Pressure {
    held: [u64; Lane::ALL.len()],
    /// [`Instant::FAR_FUTURE`]: another worker reports the load.
    next_stats: Instant,
    /// Connections that the process may have.
    capacity: u32,
}

impl Pressure {
    /// `is_reporter`: this router reports the load of the whole process.
    pub(super) const fn new(capacity: u32, is_reporter: bool) -> Self {
        let next_stats = if is_reporter { Instant::ZERO } else { Instant::FAR_FUTURE };
        Self { held: [0; Lane::ALL.len()], next_stats, capacity }
    }

    /// Slots that shards hold, by lane.
    pub(super) fn freeze(&self) -> Vec<u64> {
        let Self { held, next_stats: _, capacity: _ } = self;
        held.to_vec()
    }

    /// Reads what [`Self::freeze`] gave.
    pub(super) fn thaw(&mut self, held: &[u64]) {
        for (mine, theirs) in self.held.iter_mut().zip(held) {
            *mine = *theirs;
        }
    }

    /// Tells the shards what has changed, and asks for the load now and then.
    pub(super) fn exert(&mut self, sides: &mut Sides, ups: &mut Ups) {
        let Ups { parking, overload, .. } = ups;
        let worker = sides.number;
        let slots = self.held_slots(parking);
        if slots != self.held {
            self.held = slots;
            sides.counters[Count::HoldChanges] += 1;
            sides.shards.push_to_all(|| Downlink::Hold { worker, slots });
        }
        if let Some(level) = overload.poll(sides.now, parking.frames()) {
            tracing::warn!(worker, level, "overload level changed");
            sides.counters[Count::OverloadChanges] += 1;
            sides.shards.push_to_all(|| Downlink::Overload { worker, level });
        }
        sides.counters[Count::Overload] = overload.level().into();
        if sides.now >= self.next_stats {
            self.next_stats = sides.now + STATS_INTERVAL;
            sides.outputs.push_back(Output::MeasureLoad);
        }
    }

    /// Earliest time at which [`Self::exert`] has something to do though nothing happens.
    pub(super) fn next_deadline(&self, overload: &Overload) -> Instant {
        overload.next_deadline().map_or(self.next_stats, |at| self.next_stats.min(at))
    }

    fn held_slots(&self, parking: &Parking) -> [u64; Lane::ALL.len()] {
        let mut held = [0; Lane::ALL.len()];
        for slot in parking.occupied().iter() {
            let (length, bit) = (parking.len_of(slot), 1 << (slot.index() % 64));
            for (lane, from) in HELD_FROM.into_iter().enumerate() {
                let was_held = self.held[lane] & bit != 0;
                if length >= from || (was_held && length > from / 2) {
                    held[lane] |= bit;
                }
            }
        }
        held
    }

    /// Tells one link of each backend the load.
    pub(super) fn send_stats(&self, sides: &mut Sides, overload: &Overload, load: Load) {
        let Load { connections, sessions, detached, queued_bytes } = load;
        let most = u64::from(self.capacity).max(1);
        let stats = Stats {
            connections,
            sessions,
            load_permille: u32::try_from(u64::from(connections) * 1_000 / most).unwrap_or(u32::MAX),
            detached,
            overload: overload.level().into(),
            queued_bytes,
        };
        let mut told = Vec::new();
        for link in sides.links.iter_mut().filter(|link| link.has_output_room()) {
            if !told.contains(link.endpoint()) {
                told.push(link.endpoint().clone());
                link.send(Kind::Stats, 0, &stats);
            }
        }
        sides.counters[Count::StatsSent] += told.len() as u64;
    }
}
