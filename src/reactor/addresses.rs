//! Connections and rates by client address.
//!
//! Run-through: 10.0.0.7 opens two connections on descriptors 41 and 42; its entry counts 2. Descriptor 41
//! closes: `leave(41)` finds the entry and counts 1. When the last connection has closed, the entry stays until
//! the address's rate is earned back, so that a client does not get a new burst by reconnecting. At most
//! 65,536 such entries stay.

use super::door::ListenerLimits;
use crate::snapshot::{AddressRecord, Item, Section};
use bytes::Bytes;
use moorline_net::pace::{Pace, client_name};
use moorline_proto::time::{Duration, Instant};
use slab::Slab;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::RawFd;

/// Entries of addresses without a connection whose rate is not earned back yet.
pub(super) const ABSENT_ADDRESSES_MAX: usize = 65_536;
/// Least time between two searches for entries that can go.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// Connections of one address at once after a calm: what ten seconds give.
const ADDRESS_BURST: Duration = Duration::from_secs(10);
/// Marks a descriptor without an address.
const NOBODY: u32 = u32::MAX;

/// All known addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) known: Slab<Address>,
    pub(super) by_name: HashMap<u128, u32>,
    /// Slot of the address, by descriptor.
    by_socket: Vec<u32>,
    /// Addresses of connections of the process before that are not counted in yet, by their descriptor there.
    inherited: HashMap<RawFd, u128>,
    /// Entries without a connection.
    pub(super) absent: usize,
    /// Time of the last search for entries that can go.
    swept: Instant,
}

/// One address, or one IPv6 network.
#[derive(Debug)]
pub(super) struct Address {
    name: u128,
    open: u32,
    /// Time up to which the rate is used ([`Pace`]).
    until: u64,
}

#[cfg(test)]
impl Address {
    pub(super) const fn until(&self) -> u64 {
        self.until
    }
}

impl Addresses {
    /// Counts a connection in. Returns false if the limits forbid it.
    pub(super) fn try_enter(
        &mut self,
        limits: ListenerLimits,
        socket: RawFd,
        from: IpAddr,
        now: Instant,
    ) -> bool {
        self.try_enter_as(limits, socket, client_name(from), now)
    }

    /// Counts in a connection of the process before, which had it under the descriptor `before`, whatever the limits are.
    /// `from`: its peer, if the process before did not tell its address.
    pub(super) fn readmit(
        &mut self,
        before: RawFd,
        socket: RawFd,
        from: impl FnOnce() -> Option<IpAddr>,
        now: Instant,
    ) {
        const NONE: ListenerLimits = ListenerLimits {
            accept_rate: 0,
            handshakes_max: 0,
            address_handshakes: 0,
            address_connections: 0,
            address_rate: 0,
        };
        if let Some(name) = self.inherited.remove(&before).or_else(|| from().map(client_name)) {
            self.try_enter_as(NONE, socket, name, now);
        }
    }

    /// Forgets addresses of connections that did not come.
    pub(super) fn end_readmission(&mut self) {
        self.inherited = HashMap::new();
    }

    fn try_enter_as(&mut self, limits: ListenerLimits, socket: RawFd, name: u128, now: Instant) -> bool {
        let known = self.by_name.get(&name).copied();
        let (open, until) = known.map_or((0, 0), |slot| {
            let address = &self.known[slot as usize];
            (address.open, address.until)
        });
        if limits.address_connections > 0 && open as usize >= limits.address_connections {
            return false;
        }
        let until = match Pace::of(limits.address_rate, ADDRESS_BURST) {
            Some(pace) => match pace.next(until, now) {
                Ok(until) => until,
                Err(_) => return false,
            },
            None => until,
        };
        let slot = known.unwrap_or_else(|| {
            let slot = self.known.insert(Address { name, open: 0, until });
            let slot = u32::try_from(slot).expect("no more addresses than descriptors and absent ones");
            self.by_name.insert(name, slot);
            self.absent += 1;
            slot
        });
        self.absent -= usize::from(open == 0);
        let address = &mut self.known[slot as usize];
        (address.open, address.until) = (open + 1, until);
        let socket = usize::try_from(socket).expect("an open descriptor");
        if self.by_socket.len() <= socket {
            self.by_socket.resize(socket + 1, NOBODY);
        }
        self.by_socket[socket] = slot;
        true
    }

    /// Counts a connection out. Call it before the descriptor closes and can become another connection's.
    pub(super) fn leave(&mut self, socket: RawFd, now: Instant) {
        let socket = usize::try_from(socket).expect("an open descriptor");
        let Some(slot) = self.by_socket.get_mut(socket) else { return };
        let slot = std::mem::replace(slot, NOBODY);
        let Some(address) = self.known.get_mut(slot as usize) else { return };
        address.open -= 1;
        if address.open > 0 {
            return;
        }
        let is_earned_back = address.until <= now.as_nanos();
        self.absent += 1;
        if self.absent >= ABSENT_ADDRESSES_MAX && now >= self.swept + SWEEP_PAUSE {
            self.swept = now;
            self.sweep(now);
        }
        // Forgiving one address too many is better than memory without an end.
        if is_earned_back || self.absent >= ABSENT_ADDRESSES_MAX {
            self.forget(slot);
        }
    }

    /// Writes up to when each address's rate is used, and its connections.
    pub(super) fn freeze(&self, out: &mut Section) {
        let mut sockets: HashMap<u32, Vec<RawFd>> = HashMap::new();
        for (socket, slot) in (0..).zip(&self.by_socket).filter(|(_, slot)| **slot != NOBODY) {
            sockets.entry(*slot).or_default().push(socket);
        }
        for (slot, Address { name, open: _, until }) in &self.known {
            let name = Bytes::copy_from_slice(&name.to_be_bytes());
            let slot = u32::try_from(slot).expect("no more addresses than descriptors and absent ones");
            let sockets = sockets.remove(&slot).unwrap_or_default();
            out.put(Item::Address(AddressRecord { name, until: *until, sockets }));
        }
    }

    /// Reads up to when an address's rate is used, and its connections, which come one by one.
    pub(super) fn thaw(&mut self, name: u128, until: u64, sockets: &[RawFd]) {
        self.inherited.extend(sockets.iter().map(|socket| (*socket, name)));
        let known = self.by_name.get(&name).copied();
        let slot = known.or_else(|| {
            if self.absent >= ABSENT_ADDRESSES_MAX {
                return None;
            }
            let slot = u32::try_from(self.known.insert(Address { name, open: 0, until })).ok()?;
            self.by_name.insert(name, slot);
            self.absent += 1;
            Some(slot)
        });
        if let Some(address) = slot.and_then(|slot| self.known.get_mut(slot as usize)) {
            address.until = until;
        }
    }

    fn sweep(&mut self, now: Instant) {
        let Self { known, by_name, absent, .. } = self;
        known.retain(|_, address| {
            let is_kept = address.open > 0 || address.until > now.as_nanos();
            if !is_kept {
                by_name.remove(&address.name);
                *absent -= 1;
            }
            is_kept
        });
    }

    fn forget(&mut self, slot: u32) {
        if let Some(address) = self.known.try_remove(slot as usize) {
            self.by_name.remove(&address.name);
            self.absent -= 1;
        }
    }
}
