//! Who may come in: limits that all reactors of a process share.
//!
//! What a whole process can wait for (how fast it accepts, how many log in at once) leaves newcomers in
//! the system's queue; what one address takes too much of is refused. Addresses are remembered only if
//! one of their limits is set.

use crate::snapshot::{AddressRecord, Item, Section};
use bytes::Bytes;
use moorline_proto::time::{Duration, Instant};
use slab::Slab;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Addresses that are remembered though they have no connection: their rate is not earned back yet.
const ABSENT_ADDRESSES_MAX: usize = 65_536;
/// The absent ones are looked through no more often than this.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// Connections accepted at once after a calm: what a tenth of a second gives.
const ACCEPT_BURST: Duration = Duration::from_millis(100);
/// Connections of one address at once after a calm: what ten seconds give.
const ADDRESS_BURST: Duration = Duration::from_secs(10);
/// No address is remembered for this descriptor.
const NOBODY: u32 = u32::MAX;

/// The limits. Zero is none, but for the first and third.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Open connections.
    pub connections_max: usize,
    /// Connections accepted per second.
    pub accept_rate: u32,
    /// Connections that are not logged in.
    pub handshakes_max: usize,
    /// Connections of one address.
    pub address_connections: usize,
    /// Connections per second of one address.
    pub address_rate: u32,
}

/// Counts what all reactors let in.
#[derive(Debug)]
pub struct Door {
    limits: DoorLimits,
    /// The listening socket listens.
    is_listening: AtomicBool,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    /// [`Pace`] of accepting, in nanoseconds.
    accepted: AtomicU64,
    addresses: Option<Mutex<Addresses>>,
}

/// Why a newcomer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Of connections there are enough.
    Full,
    /// Of its address there are enough, or they come too fast.
    Address,
}

/// Why nobody is let in for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// They come too fast.
    Rate(Instant),
    /// Too many are not logged in.
    Handshakes,
}

impl Door {
    /// A door with these limits.
    pub fn new(limits: DoorLimits) -> Arc<Self> {
        let knows_addresses = limits.address_connections > 0 || limits.address_rate > 0;
        Arc::new(Self {
            limits,
            is_listening: AtomicBool::new(true),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            addresses: knows_addresses.then(Mutex::default),
        })
    }

    /// The listening socket listens from now on, or does not. Returns whether it did: a second shutdown would
    /// break it for good.
    pub fn set_listening(&self, is_listening: bool) -> bool {
        self.is_listening.swap(is_listening, Ordering::SeqCst)
    }

    /// Whether the next newcomer may be looked at now.
    ///
    /// # Errors
    /// What is to be waited for.
    pub(super) fn try_open(&self, now: Instant) -> Result<(), Wait> {
        if self.handshakes.load(Ordering::Relaxed) >= self.limits.handshakes_max {
            return Err(Wait::Handshakes);
        }
        if let Some(pace) = Pace::of(self.limits.accept_rate, ACCEPT_BURST) {
            let taken = self
                .accepted
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| pace.next(until, now).ok());
            if let Err(until) = taken {
                let wait = pace.next(until, now).err().unwrap_or(now);
                return Err(Wait::Rate(wait));
            }
        }
        Ok(())
    }

    /// Lets a newcomer in, as one that is not logged in yet.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn try_enter(&self, socket: RawFd, from: IpAddr, now: Instant) -> Result<(), Refusal> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limits.connections_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Full);
        }
        if let Some(addresses) = &self.addresses {
            let mut addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
            if !addresses.try_enter(self.limits, socket, from, now) {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(Refusal::Address);
            }
        }
        Ok(())
    }

    /// A connection that another process let in is here now, whatever the limits are.
    pub(super) fn readmit(&self, socket: RawFd, from: impl FnOnce() -> Option<IpAddr>, now: Instant) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if let Some(addresses) = &self.addresses
            && let Some(from) = from()
        {
            let none = DoorLimits { address_connections: 0, address_rate: 0, ..self.limits };
            addresses.lock().unwrap_or_else(PoisonError::into_inner).try_enter(none, socket, from, now);
        }
    }

    /// Writes down what newcomers must wait for: up to when the pace of accepting is used.
    pub fn freeze(&self, out: &mut Section) -> u64 {
        let Self { limits: _, is_listening: _, open: _, handshakes: _, accepted, addresses } = self;
        if let Some(addresses) = addresses {
            let addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, Address { name, open: _, until }) in &addresses.known {
                let name = Bytes::copy_from_slice(&name.to_be_bytes());
                out.put(Item::Address(AddressRecord { name, until: *until }));
            }
        }
        accepted.load(Ordering::Relaxed)
    }

    /// Reads the pace of accepting.
    pub fn thaw(&self, accepted: u64) {
        self.accepted.store(accepted, Ordering::Relaxed);
    }

    /// Reads up to when an address's rate is used.
    pub fn thaw_address(&self, record: &AddressRecord) {
        if let Some(addresses) = &self.addresses
            && let Ok(name) = record.name[..].try_into()
        {
            addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .thaw(u128::from_be_bytes(name), record.until);
        }
    }

    /// A connection ends: say so before its descriptor closes, and can be another's.
    pub(super) fn leave(&self, socket: RawFd, now: Instant) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(addresses) = &self.addresses {
            addresses.lock().unwrap_or_else(PoisonError::into_inner).leave(socket, now);
        }
    }

    /// One reactor's connections that are not logged in were `before` and are `after`.
    pub(super) fn count_handshakes(&self, before: usize, after: usize) {
        if after >= before {
            self.handshakes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.handshakes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// A steady rate with a burst (GCRA, ITU-T I.371): the only state is the time up to which it is used.
#[derive(Clone, Copy, Debug)]
struct Pace {
    gap: u64,
    burst: u64,
}

impl Pace {
    /// `None`: no limit.
    fn of(rate: u32, burst: Duration) -> Option<Self> {
        let gap = 1_000_000_000u64.checked_div(u64::from(rate))?;
        Some(Self { gap, burst: u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX).max(gap) })
    }

    /// The time up to which it is used after one more.
    ///
    /// # Errors
    /// When there is room for one more.
    fn next(self, until: u64, now: Instant) -> Result<u64, Instant> {
        let used = until.max(now.as_nanos());
        if used + self.gap - now.as_nanos() > self.burst {
            return Err(Instant::from_nanos((used + self.gap).saturating_sub(self.burst)));
        }
        Ok(used + self.gap)
    }
}

#[derive(Debug, Default)]
struct Addresses {
    known: Slab<Address>,
    by_name: HashMap<u128, u32>,
    /// Slot of the address by descriptor.
    by_socket: Vec<u32>,
    absent: usize,
    swept: Instant,
}

#[derive(Debug)]
struct Address {
    name: u128,
    open: u32,
    /// Of [`Pace`].
    until: u64,
}

impl Addresses {
    fn try_enter(&mut self, limits: DoorLimits, socket: RawFd, from: IpAddr, now: Instant) -> bool {
        let name = name_of(from);
        let known = self.by_name.get(&name).copied();
        let (open, until) = known.map_or((0, 0), |slot| {
            let address = &self.known[slot as usize];
            (address.open, address.until)
        });
        if limits.address_connections > 0 && open as usize >= limits.address_connections {
            return false;
        }
        let until = match Pace::of(limits.address_rate, ADDRESS_BURST).map(|pace| pace.next(until, now)) {
            None => 0,
            Some(Ok(until)) => until,
            Some(Err(_)) => return false,
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

    fn thaw(&mut self, name: u128, until: u64) {
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

    fn leave(&mut self, socket: RawFd, now: Instant) {
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
        // Better one address too many forgiven than memory without an end.
        if is_earned_back || self.absent >= ABSENT_ADDRESSES_MAX {
            self.forget(slot);
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

/// What counts as one address: all of IPv4; of IPv6 the network that one customer has, a /64.
fn name_of(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => (u128::from(address) >> 64) << 64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(5_000_000_000 + millis * 1_000_000)
    }

    fn door(change: impl FnOnce(&mut DoorLimits)) -> Arc<Door> {
        let mut limits = DoorLimits {
            connections_max: 100,
            accept_rate: 0,
            handshakes_max: 100,
            address_connections: 0,
            address_rate: 0,
        };
        change(&mut limits);
        Door::new(limits)
    }

    fn home(number: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, number])
    }

    #[test]
    fn accepting_keeps_its_rate_and_says_when_to_look_again() {
        let door = door(|limits| limits.accept_rate = 100);
        let (mut taken, mut waits) = (0, 0);
        let mut next = at(0);
        while next < at(10_000) {
            match door.try_open(next) {
                Ok(()) => taken += 1,
                Err(Wait::Rate(until)) => {
                    assert!(until > next && until <= next + Duration::from_millis(10));
                    (next, waits) = (until, waits + 1);
                }
                Err(Wait::Handshakes) => unreachable!("nobody is in"),
            }
        }
        assert!((1_000..=1_011).contains(&taken) && waits > 900, "{taken} in ten seconds");
    }

    #[test]
    fn those_not_logged_in_are_counted_over_all_reactors() {
        let door = door(|limits| limits.handshakes_max = 3);
        door.count_handshakes(0, 2);
        assert_eq!(door.try_open(at(0)), Ok(()));
        door.count_handshakes(0, 1);
        assert_eq!(door.try_open(at(0)), Err(Wait::Handshakes));
        door.count_handshakes(2, 0);
        assert_eq!(door.try_open(at(0)), Ok(()));
    }

    #[test]
    fn one_address_has_its_share_and_no_other_notices() {
        let door = door(|limits| limits.address_connections = 2);
        assert_eq!(door.try_enter(5, home(1), at(0)), Ok(()));
        assert_eq!(door.try_enter(6, home(1), at(0)), Ok(()));
        assert_eq!(door.try_enter(7, home(1), at(0)), Err(Refusal::Address));
        assert_eq!(door.try_enter(7, home(2), at(0)), Ok(()));
        door.leave(5, at(1));
        assert_eq!(door.try_enter(5, home(1), at(1)), Ok(()));
        for socket in [5, 6, 7] {
            door.leave(socket, at(2));
        }
        let addresses = door.addresses.as_ref().expect("limited").lock().expect("sound");
        assert_eq!((addresses.known.len(), addresses.by_name.len(), addresses.absent), (0, 0, 0));
        assert_eq!(door.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_address_that_comes_too_fast_is_refused_until_it_has_waited() {
        let door = door(|limits| limits.address_rate = 2);
        let mut taken = 0;
        for socket in 0..50 {
            taken += usize::from(door.try_enter(socket, home(1), at(0)).is_ok());
        }
        assert_eq!(taken, 20, "ten seconds' worth at once");
        (0..20).for_each(|socket| door.leave(socket, at(1)));
        assert_eq!(door.try_enter(3, home(1), at(100)), Err(Refusal::Address), "it is remembered");
        assert_eq!(door.try_enter(3, home(1), at(600)), Ok(()));
        door.leave(3, at(60_000));
        assert_eq!(door.addresses.as_ref().expect("limited").lock().expect("sound").known.len(), 0);
    }

    #[test]
    fn absent_addresses_are_bounded() {
        let door = door(|limits| limits.address_rate = 1);
        let count = u32::try_from(ABSENT_ADDRESSES_MAX + 1_000).expect("small");
        for number in 0..count {
            let address = IpAddr::from(number.to_be_bytes());
            door.try_enter(1, address, at(0)).expect("its first");
            door.leave(1, at(0));
        }
        let known =
            |door: &Door| door.addresses.as_ref().expect("limited").lock().expect("sound").known.len();
        assert!(known(&door) < ABSENT_ADDRESSES_MAX, "{}", known(&door));
        door.try_enter(1, home(1), at(5_000)).expect("its first");
        door.leave(1, at(5_000));
        assert!(known(&door) <= ABSENT_ADDRESSES_MAX);
    }

    #[test]
    fn of_ipv6_a_network_counts() {
        let of = |text: &str| name_of(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("::"), of("0.0.0.0"));
    }
}
