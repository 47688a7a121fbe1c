//! Fan-out of one payload to many sessions, in slices, so that no chat message waits behind a large group.
//!
//! A push with many targets is kept with the list of its receivers, and delivered to some dozens of them at a
//! time, after all other work of a turn. The payload is shared; nothing is copied per receiver. Each rank has a queue
//! and a share of every slice; what a rank does not need goes to the others, the first ones first. Inside a rank,
//! fan-outs are served one after the other, which keeps their order. Pushes for the same receivers that arrive while
//! another fan-out is under way go out together, in one write to each receiver: the busier a group is, the
//! less a delivery costs.
//!
//! While people chat, the second and the last rank have a [pace](super::pace), for the receivers' acks and the backend
//! need the processor too.
//!
//! Example: a push for 600 members goes out in ten slices of 64 within ten turns of the loop.

use super::Outputs;
use super::delivery::report;
use super::pace::Pace;
use super::parcel::Parcel;
use crate::messages::{Push, Rank};
use crate::snapshot::{FanoutRecord, Item, ParcelRecord, Records, Section, SnapshotError};
use bytes::Bytes;
use moorline_proto::frame::Lane;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// Receivers at most to which a push is delivered at once, by rank: more wait for their share of a slice.
const AT_ONCE_MAX: [usize; RANKS] = [256, 8, 8];
/// Share of each rank in a slice; what a rank does not need goes to the others.
const SHARES: [usize; RANKS] = [10, 4, 2];
/// Fan-outs that may wait at most.
const FANOUTS_MAX: usize = 8 << 10;
/// Bytes of the bodies and receivers of waiting fan-outs at most.
const BYTES_MAX: usize = 64 << 20;
/// Receivers of waiting fan-outs at most.
const RECEIVERS_MAX: usize = 4 << 20;
const RANKS: usize = Rank::ALL.len();

/// Pushes that go out together at most.
const TOGETHER_MAX: usize = 16;

/// Fan-outs that wait to be delivered.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    /// By rank.
    waiting: [VecDeque<Fanout>; RANKS],
    /// Deliveries that wait, by rank.
    receivers: [usize; RANKS],
    /// Bodies and lists of receivers, in bytes.
    bytes: usize,
    /// Time at which the next slice of the paced ranks is due.
    due: Instant,
    pub(super) pace: Pace,
}

/// Deliveries that each rank may make in a slice.
#[derive(Debug)]
pub(super) struct Slice {
    /// By rank.
    left: [usize; RANKS],
    /// Deliveries of the ranks after the first together.
    paced: usize,
}

/// Pushes for the same receivers, in their order.
#[derive(Debug)]
pub(super) struct Fanout {
    pub(super) rank: Rank,
    pub(super) pushes: Vec<Push>,
    /// Receivers still to be served, the next one last.
    keys: Vec<ConnKey>,
    /// Tells whether a receiver was served: then no push may be added.
    is_begun: bool,
}

impl Fanouts {
    /// Time at which the next slice is due; `None`: none waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let [first, second, last] = &self.waiting;
        if !first.is_empty() {
            return Some(Instant::ZERO);
        }
        (!second.is_empty() || !last.is_empty()).then_some(self.due)
    }

    /// Returns whether a slice is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|due| due <= now)
    }

    /// Returns whether a push of this rank to `receivers` waits for its share, rather than to be delivered at once. A push to
    /// one session waits, too, while others do: it may be the next message of a group that waits for that session.
    pub(super) fn must_wait(&self, rank: Rank, receivers: usize) -> bool {
        receivers > AT_ONCE_MAX[rank as usize] || (receivers > 0 && !self.waiting[rank as usize].is_empty())
    }

    /// Begins a fan-out. False: too many wait; the refusals are reported.
    pub(super) fn try_begin(
        &mut self,
        mut push: Push,
        mut keys: Vec<ConnKey>,
        outputs: &mut Outputs,
    ) -> bool {
        // Pushes whose outcome nobody waits for leave half of the room to the others.
        let parts = if push.ticket.is_none() { 2 } else { 1 };
        let (waiting, receivers) = (self.waiting.iter().map(VecDeque::len).sum::<usize>(), self.receivers());
        let is_over = waiting >= FANOUTS_MAX / parts
            || receivers + keys.len() > RECEIVERS_MAX / parts
            || self.bytes + push.body.len() > BYTES_MAX / parts;
        if is_over {
            keys.into_iter().for_each(|key| report(push.ticket, key, Outcome::Full, outputs));
            return false;
        }
        push.body = Bytes::copy_from_slice(&push.body); // it waits: the block that a link read does not
        let rank = push.rank;
        self.bytes += push.body.len();
        self.receivers[rank as usize] += keys.len();
        keys.reverse(); // taken from the end
        let waiting = &mut self.waiting[rank as usize];
        match waiting.back_mut() {
            Some(last) if !last.is_begun && last.pushes.len() < TOGETHER_MAX && last.keys == keys => {
                last.pushes.push(push);
            }
            _ => {
                self.bytes += keys.len() * size_of::<ConnKey>();
                waiting.push_back(Fanout { rank, pushes: vec![push], keys, is_begun: false });
            }
        }
        true
    }

    /// Takes the receivers that a slice allows, with the fan-out that they belong to; `None`: the slice is used, or
    /// nothing waits that may go now. Give the fan-out back with [`Self::give_back`].
    pub(super) fn take_slice(&mut self, slice: &mut Slice) -> Option<(Fanout, Vec<ConnKey>)> {
        let rank = self.next_rank(slice)?;
        let mut fanout = self.waiting[rank].pop_front()?;
        fanout.is_begun = true;
        let together = fanout.pushes.len();
        let count = fanout.keys.len().min(slice.left[rank].div_ceil(together));
        let mut keys = fanout.keys.split_off(fanout.keys.len() - count);
        keys.reverse();
        slice.left[rank] = slice.left[rank].saturating_sub(count * together);
        if rank > 0 {
            slice.paced = slice.paced.saturating_sub(count * together);
        }
        self.receivers[rank] -= count * together;
        self.bytes -= count * size_of::<ConnKey>();
        Some((fanout, keys))
    }

    /// The rank whose turn it is: one with a share left, or the first one that gets what others do not need.
    fn next_rank(&self, slice: &mut Slice) -> Option<usize> {
        let waits = |rank: &usize| !self.waiting[*rank].is_empty() && (*rank == 0 || slice.paced > 0);
        if let Some(rank) = (0..RANKS).find(|rank| waits(rank) && slice.left[*rank] > 0) {
            return Some(rank);
        }
        let rest: usize = slice.left.iter().sum();
        let rank = (0..RANKS).find(waits).filter(|_| rest > 0)?;
        slice.left = [0; RANKS];
        slice.left[rank] = if rank == 0 { rest } else { rest.min(slice.paced) };
        Some(rank)
    }

    /// Keeps a fan-out that has receivers left.
    pub(super) fn give_back(&mut self, fanout: Fanout) {
        if fanout.keys.is_empty() {
            self.bytes -= fanout.pushes.iter().map(|push| push.body.len()).sum::<usize>();
        } else {
            self.waiting[fanout.rank as usize].push_front(fanout);
        }
    }

    /// Memory of bodies and lists of receivers, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Deliveries that wait.
    fn receivers(&self) -> usize {
        self.receivers.iter().sum()
    }

    /// Deliveries that wait, by rank.
    pub(super) const fn waiting(&self) -> [usize; RANKS] {
        self.receivers
    }

    /// The slice that is due now. Sets the time of the next one.
    pub(super) fn next_slice(&mut self, now: Instant) -> Slice {
        let [_, second, last] = self.receivers;
        let mut paced = 0;
        if self.due <= now && second + last > 0 {
            (paced, self.due) = self.pace.next_slice(now, second + last);
        }
        let [of_first, of_second, of_last] = SHARES;
        let part = |all: usize, share: usize, of: usize| (all * share).div_ceil(of);
        let (free, of_paced) = (self.pace.free_slice(), of_second + of_last);
        let left = [
            part(free, of_first, of_first + of_paced),
            part(free, of_second, of_first + of_paced).min(part(paced, of_second, of_paced)),
            part(free, of_last, of_first + of_paced).min(part(paced, of_last, of_paced)),
        ];
        Slice { left, paced }
    }

    /// Writes the fan-outs; the end of the chat is written with the shard, and the rest of the pace is learned anew.
    pub(super) fn freeze(&self, out: &mut Section) {
        let Self { waiting, receivers: _, bytes: _, due: _, pace: _ } = self;
        for Fanout { rank, pushes, keys, is_begun } in waiting.iter().flatten() {
            let pushes = pushes.iter().map(|push| Parcel::new(push).freeze(out)).collect();
            let keys = keys.iter().map(|key| key.as_u64()).collect();
            let rank = rank.number();
            out.put(Item::Fanout(FanoutRecord { pushes, keys, is_begun: *is_begun, rank }));
        }
    }

    /// Reads one fan-out.
    pub(super) fn thaw(&mut self, record: &FanoutRecord, from: &Records) -> Result<(), SnapshotError> {
        let FanoutRecord { pushes, keys, is_begun, rank } = record;
        let lane = pushes.first().map_or(Lane::Group, |push| Lane::from_number(push.lane));
        // Version 1.0 did not write the rank.
        let rank = Rank::of(i32::try_from(*rank).unwrap_or(0), lane);
        let push = |parcel: &ParcelRecord| Ok(push_of(Parcel::thaw(parcel, from)?, rank));
        let pushes = pushes.iter().map(push).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<ConnKey> = keys.iter().map(|key| ConnKey::from_u64(*key)).collect();
        self.receivers[rank as usize] += keys.len() * pushes.len();
        self.bytes += keys.len() * size_of::<ConnKey>();
        self.bytes += pushes.iter().map(|push| push.body.len()).sum::<usize>();
        self.waiting[rank as usize].push_back(Fanout { rank, pushes, keys, is_begun: *is_begun });
        Ok(())
    }
}

fn push_of(parcel: Parcel, rank: Rank) -> Push {
    let Parcel { ticket, command, lane, expires_at, body, packed, collapse, also: _, is_own: _ } = parcel;
    Push {
        ticket,
        targets: Vec::new(),
        command,
        lane,
        rank,
        expires_at,
        body,
        packed,
        except: None,
        collapse,
    }
}
