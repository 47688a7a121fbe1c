//! Backpressure toward clients: whose frames would only wait here, and how much is shed.
//!
//! A slot whose line grows holds its clients lane by lane, the least urgent first, so that they are not
//! read before the line is shorter. Other users notice nothing.

use super::Count;
use super::Worker;
use crate::handoff::Downlink;
use moorline_proto::frame::Lane;
use moorline_proto::ids::ShardId;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::Stats;
use moorline_proto::time::{Duration, Instant};

/// By lane: the length of a slot's line from which its clients are held that spoke on this lane; they are
/// free again below half of it.
const HELD_FROM: [usize; Lane::ALL.len()] = [256, 64, 16, 1];
/// How often backends are told the load.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// What shards were told last.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    held: [u64; Lane::ALL.len()],
    next_stats: Instant,
}

impl Pressure {
    /// What shards were told.
    pub(super) fn freeze(&self) -> Vec<u64> {
        let Self { held, next_stats: _ } = self;
        held.to_vec()
    }

    /// They were told so.
    pub(super) fn thaw(&mut self, held: &[u64]) {
        for (mine, theirs) in self.held.iter_mut().zip(held) {
            *mine = *theirs;
        }
    }
}

impl Worker {
    /// Tells the shards what has changed, and backends the load.
    pub(super) fn exert_pressure(&mut self) {
        let held = self.held_slots();
        if held != self.pressure.held {
            self.pressure.held = held;
            self.tally[Count::HoldChanges] += 1;
            let worker = self.settings.number;
            self.tell_shards(|| Downlink::Hold { worker, slots: held });
        }
        if let Some(level) = self.overload.poll(self.now, self.parking.frames()) {
            tracing::warn!(worker = self.settings.number, level, "overload level changed");
            self.tally[Count::OverloadChanges] += 1;
            let worker = self.settings.number;
            self.tell_shards(|| Downlink::Overload { worker, level });
        }
        self.tally[Count::Overload] = self.overload.level().into();
        if self.settings.number == 0 && self.now >= self.pressure.next_stats {
            self.pressure.next_stats = self.now + STATS_INTERVAL;
            self.send_stats();
        }
    }

    pub(super) fn pressure_deadline(&self) -> Instant {
        let stats = if self.settings.number == 0 { self.pressure.next_stats } else { Instant::FAR_FUTURE };
        self.overload.next_deadline().map_or(stats, |at| stats.min(at))
    }

    fn held_slots(&self) -> [u64; Lane::ALL.len()] {
        let mut held = [0; Lane::ALL.len()];
        if self.parking.occupied().is_empty() {
            return held;
        }
        for slot in self.parking.occupied().iter() {
            let (length, bit) = (self.parking.len_of(slot), 1 << slot.index());
            for (lane, from) in HELD_FROM.into_iter().enumerate() {
                let was_held = self.pressure.held[lane] & bit != 0;
                if length >= from || (was_held && length > from / 2) {
                    held[lane] |= bit;
                }
            }
        }
        held
    }

    fn tell_shards(&mut self, make: impl Fn() -> Downlink) {
        for shard in (0..self.outbox.shards()).filter_map(|shard| u8::try_from(shard).ok()) {
            self.outbox.push(ShardId(shard), make());
        }
    }

    /// One link of each backend hears it.
    fn send_stats(&mut self) {
        let Some(registry) = self.registry.clone() else { return };
        let sum = |name| u32::try_from(registry.sum(name)).unwrap_or(u32::MAX);
        let connections = sum(crate::metrics::names::CONNECTIONS);
        let most = u64::from(self.settings.link.hello.capacity).max(1);
        let stats = Stats {
            connections,
            sessions: sum(crate::metrics::names::SESSIONS),
            load_permille: u32::try_from(u64::from(connections) * 1_000 / most).unwrap_or(u32::MAX),
            detached: sum("detached"),
            overload: self.overload.level().into(),
            queued_bytes: registry.sum("queued_bytes"),
        };
        let mut told = Vec::new();
        for link in self.links.iter_mut().filter(|link| link.has_output_room()) {
            if !told.contains(&link.address()) {
                told.push(link.address());
                link.send(Kind::Stats, 0, &stats);
            }
        }
        self.tally[Count::StatsSent] += told.len() as u64;
    }
}
