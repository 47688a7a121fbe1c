//! Admission limits that all reactors of a process share.
//!
//! A limit of the whole process (the accept rate, connections that are not logged in) leaves newcomers in the
//! system's queue; an address that takes too much is refused. Counts are kept for the process, limits for each
//! listener: a newcomer is judged by the limits of the listener where it came. Addresses are remembered only
//! if one of their limits is set.
//!
//! Run-through: `listener.accept_rate = 100`. A thousand clients connect at once: the first ten are accepted,
//! then `try_open` answers `Wait::Rate(10 ms from now)` and the reactor looks again at that time.

use super::addresses::Addresses;
use crate::snapshot::{AddressRecord, Section};
use moorline_net::cap::CapWatch;
use moorline_net::pace::Pace;
use moorline_proto::time::{Duration, Instant};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Connections accepted at once after a calm: what a tenth of a second gives.
const ACCEPT_BURST: Duration = Duration::from_millis(100);

/// Limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenerLimits {
    /// Connections accepted per second at this listener; 0: no limit.
    pub accept_rate: u32,
    /// Connections of the process that are not logged in.
    pub handshakes_max: usize,
    /// Connections of one address that are not logged in, while more than half of `handshakes_max` are taken; 0: no
    /// limit.
    pub address_handshakes: usize,
    /// Connections of one address to the process; 0: no limit.
    pub address_connections: usize,
    /// Connections per second of one address; 0: no limit.
    pub address_rate: u32,
}

impl ListenerLimits {
    const fn knows_addresses(&self) -> bool {
        self.address_connections > 0 || self.address_rate > 0
    }
}

/// Counts of the connections that all reactors let in.
#[derive(Debug)]
pub struct Door {
    /// Open connections of the process, at most.
    connections_max: usize,
    gates: Vec<Gate>,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    /// Other processes that have the sockets, too, as bits of [`Holder`]: closing one here does not end its connection.
    holders: AtomicU8,
    addresses: Option<Mutex<Addresses>>,
    /// Caps on connections, and on those that are not logged in.
    caps: [Arc<CapWatch>; 2],
    /// The largest `handshakes_max` of the listeners, for that watch: read in each turn, so without a lock.
    handshakes_max: AtomicUsize,
}

/// State of one listener that all reactors share.
#[derive(Debug)]
struct Gate {
    limits: RwLock<ListenerLimits>,
    /// The listening socket listens.
    is_listening: AtomicBool,
    /// Time up to which the accept rate is used ([`Pace`]), in nanoseconds.
    accepted: AtomicU64,
}

/// Another process that has the sockets of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The process before this one, until it has left.
    Old = 1,
    /// The process that may take over.
    New = 2,
}

/// Reason why a newcomer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The process has as many connections as it may.
    Full,
    /// The address has too many connections, or they come too fast.
    Address,
}

/// Reason why nobody is accepted for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Connections come too fast: look again then.
    Rate(Instant),
    /// Too many connections are not logged in.
    Handshakes,
}

impl Gate {
    fn limits(&self) -> ListenerLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door {
    /// Returns a door for at most `connections_max` connections and these listeners, by number.
    pub fn new(connections_max: usize, listeners: impl IntoIterator<Item = ListenerLimits>) -> Arc<Self> {
        let gate = |limits| Gate {
            limits: RwLock::new(limits),
            is_listening: AtomicBool::new(true),
            accepted: AtomicU64::new(0),
        };
        let gates: Vec<_> = listeners.into_iter().map(gate).collect();
        let knows_addresses = gates.iter().any(|gate| gate.limits().knows_addresses());
        Arc::new(Self {
            handshakes_max: AtomicUsize::new(largest(&gates)),
            connections_max,
            gates,
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            holders: AtomicU8::new(0),
            addresses: knows_addresses.then(Mutex::default),
            caps: ["limits.connections_max", "listener.handshakes_max"]
                .map(|cap| Arc::new(CapWatch::new(cap))),
        })
    }

    /// Replaces the limits of the listeners, by number. An address limit counts only if there was one at the start.
    pub fn set_limits(&self, listeners: impl IntoIterator<Item = ListenerLimits>) {
        for (gate, limits) in self.gates.iter().zip(listeners) {
            *gate.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        }
        self.handshakes_max.store(largest(&self.gates), Ordering::Relaxed);
    }

    /// Notes whether a listening socket listens. Returns whether it did: a second shutdown would break the
    /// socket for good.
    pub fn set_listening(&self, listener: u8, is_listening: bool) -> bool {
        self.gates[usize::from(listener)].is_listening.swap(is_listening, Ordering::SeqCst)
    }

    /// Notes that another process has the sockets, too, or does not have them any more.
    pub fn set_shared(&self, with: Holder, is_shared: bool) {
        if is_shared {
            self.holders.fetch_or(with as u8, Ordering::Relaxed);
        } else {
            self.holders.fetch_and(!(with as u8), Ordering::Relaxed);
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.holders.load(Ordering::Relaxed) != 0
    }

    /// Returns whether a process that may take over has the sockets, too.
    pub(super) fn is_handing_over(&self) -> bool {
        self.holders.load(Ordering::Relaxed) & Holder::New as u8 != 0
    }

    /// Returns whether the next newcomer may be accepted now. `is_over`: it takes the place of a connection that is not
    /// logged in.
    ///
    /// # Errors
    /// The reason to wait.
    pub fn try_open(&self, listener: u8, is_over: bool, now: Instant) -> Result<(), Wait> {
        let gate = &self.gates[usize::from(listener)];
        let limits = gate.limits();
        if !is_over && self.handshakes.load(Ordering::Relaxed) >= limits.handshakes_max {
            return Err(Wait::Handshakes);
        }
        if let Some(pace) = Pace::of(limits.accept_rate, ACCEPT_BURST) {
            let taken = gate
                .accepted
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| pace.next(until, now).ok());
            if let Err(until) = taken {
                let wait = pace.next(until, now).err().unwrap_or(now);
                return Err(Wait::Rate(wait));
            }
        }
        Ok(())
    }

    /// Places without a login that one address may have now; `None`: no limit. A quarter of all places at most.
    pub(super) fn share(&self, listener: u8) -> Option<usize> {
        let ListenerLimits { handshakes_max, address_handshakes, .. } =
            self.gates[usize::from(listener)].limits();
        let is_crowded = self.handshakes.load(Ordering::Relaxed) > handshakes_max / 2;
        (address_handshakes > 0 && is_crowded).then(|| address_handshakes.min(handshakes_max.div_ceil(4)))
    }

    /// Lets a newcomer in, as a connection that is not logged in yet. `from`: its address; `None`: a proxy will name it.
    ///
    /// # Errors
    /// The reason to refuse it.
    pub fn try_enter(
        &self,
        listener: u8,
        socket: RawFd,
        from: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Full);
        }
        if from.is_some_and(|from| !self.try_name(listener, socket, from, now)) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Address);
        }
        Ok(())
    }

    /// Counts a connection to an address, which a proxy may have named after the connection was let in. False: the address has
    /// too many connections, or they come too fast.
    pub(super) fn try_name(&self, listener: u8, socket: RawFd, from: IpAddr, now: Instant) -> bool {
        let limits = self.gates[usize::from(listener)].limits();
        self.addresses().is_none_or(|mut addresses| addresses.try_enter(limits, socket, from, now))
    }

    /// Counts in a connection that another process accepted, whatever the limits are.
    /// `before`: its descriptor there. `from`: its peer, for whom it counts if that process did not tell its address.
    pub(super) fn readmit(
        &self,
        before: RawFd,
        socket: RawFd,
        from: impl FnOnce() -> Option<IpAddr>,
        now: Instant,
    ) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if let Some(mut addresses) = self.addresses() {
            addresses.readmit(before, socket, from, now);
        }
    }

    /// Notes that all connections of the process before are counted in.
    pub fn end_readmission(&self) {
        if let Some(mut addresses) = self.addresses() {
            addresses.end_readmission();
        }
    }

    /// Writes the rates of all addresses to `out`. Returns the time up to which each listener's accept rate is
    /// used, in nanoseconds.
    pub fn freeze(&self, out: &mut Section) -> Vec<u64> {
        let Self {
            gates,
            connections_max: _,
            open: _,
            handshakes: _,
            holders: _,
            addresses: _,
            caps: _,
            handshakes_max: _,
        } = self;
        if let Some(addresses) = self.addresses() {
            addresses.freeze(out);
        }
        gates.iter().map(|gate| gate.accepted.load(Ordering::Relaxed)).collect()
    }

    /// Reads the time up to which a listener's accept rate is used.
    pub fn thaw(&self, listener: u8, accepted: u64) {
        self.gates[usize::from(listener)].accepted.store(accepted, Ordering::Relaxed);
    }

    /// Reads up to when an address's rate is used, and its connections.
    pub fn thaw_address(&self, record: &AddressRecord) {
        if let Some(mut addresses) = self.addresses()
            && let Ok(name) = record.name[..].try_into()
        {
            addresses.thaw(u128::from_be_bytes(name), record.until, &record.sockets);
        }
    }

    /// Counts a connection out. Call it before the descriptor closes and can become another connection's.
    pub fn leave(&self, socket: RawFd, now: Instant) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(mut addresses) = self.addresses() {
            addresses.leave(socket, now);
        }
    }

    /// Notes that one reactor had `before` connections that are not logged in, and has `after` now.
    pub fn count_handshakes(&self, before: usize, after: usize) {
        if after >= before {
            self.handshakes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.handshakes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Watches of the caps on connections, and on those that are not logged in.
    pub fn caps(&self) -> &[Arc<CapWatch>] {
        &self.caps
    }

    /// Notes how much of the caps is used. Of several listeners the largest `handshakes_max` counts.
    pub(super) fn note_caps(&self, now: Instant) {
        let [connections, handshakes] = &self.caps;
        connections.note(self.open.load(Ordering::Relaxed), self.connections_max, now);
        let max = self.handshakes_max.load(Ordering::Relaxed);
        handshakes.note(self.handshakes.load(Ordering::Relaxed), max, now);
    }

    /// Locks the addresses; `None`: no limit needs them.
    fn addresses(&self) -> Option<MutexGuard<'_, Addresses>> {
        self.addresses.as_ref().map(|addresses| addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The largest `handshakes_max`.
fn largest(gates: &[Gate]) -> usize {
    gates.iter().map(|gate| gate.limits().handshakes_max).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::addresses::ABSENT_ADDRESSES_MAX;
    use super::*;
    use bytes::Bytes;
    use moorline_net::pace::client_name;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(5_000_000_000 + millis * 1_000_000)
    }

    fn door(change: impl FnOnce(&mut ListenerLimits)) -> Arc<Door> {
        let mut limits = ListenerLimits {
            accept_rate: 0,
            handshakes_max: 100,
            address_handshakes: 0,
            address_connections: 0,
            address_rate: 0,
        };
        change(&mut limits);
        Door::new(100, [limits])
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
            match door.try_open(0, false, next) {
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
        assert_eq!(door.try_open(0, false, at(0)), Ok(()));
        door.count_handshakes(0, 1);
        assert_eq!(door.try_open(0, false, at(0)), Err(Wait::Handshakes));
        door.count_handshakes(2, 0);
        assert_eq!(door.try_open(0, false, at(0)), Ok(()));
    }

    #[test]
    fn an_address_has_a_share_of_the_handshakes_only_in_a_crowd() {
        let door = door(|limits| limits.address_handshakes = 40);
        door.count_handshakes(0, 50);
        assert_eq!(door.share(0), None);
        door.count_handshakes(50, 51);
        assert_eq!(door.share(0), Some(25), "a quarter of the places at most");
        let unlimited = self::door(|_| ());
        unlimited.count_handshakes(0, 99);
        assert_eq!(unlimited.share(0), None);
    }

    #[test]
    fn one_address_has_its_share_and_no_other_notices() {
        let door = door(|limits| limits.address_connections = 2);
        assert_eq!(door.try_enter(0, 5, Some(home(1)), at(0)), Ok(()));
        assert_eq!(door.try_enter(0, 6, Some(home(1)), at(0)), Ok(()));
        assert_eq!(door.try_enter(0, 7, Some(home(1)), at(0)), Err(Refusal::Address));
        assert_eq!(door.try_enter(0, 7, Some(home(2)), at(0)), Ok(()));
        door.leave(5, at(1));
        assert_eq!(door.try_enter(0, 5, Some(home(1)), at(1)), Ok(()));
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
            taken += usize::from(door.try_enter(0, socket, Some(home(1)), at(0)).is_ok());
        }
        assert_eq!(taken, 20, "ten seconds' worth at once");
        (0..20).for_each(|socket| door.leave(socket, at(1)));
        assert_eq!(door.try_enter(0, 3, Some(home(1)), at(100)), Err(Refusal::Address), "it is remembered");
        assert_eq!(door.try_enter(0, 3, Some(home(1)), at(600)), Ok(()));
        door.leave(3, at(60_000));
        assert_eq!(door.addresses.as_ref().expect("limited").lock().expect("sound").known.len(), 0);
    }

    #[test]
    fn absent_addresses_are_bounded() {
        let door = door(|limits| limits.address_rate = 1);
        let count = u32::try_from(ABSENT_ADDRESSES_MAX + 1_000).expect("small");
        for number in 0..count {
            let address = IpAddr::from(number.to_be_bytes());
            door.try_enter(0, 1, Some(address), at(0)).expect("its first");
            door.leave(1, at(0));
        }
        let known =
            |door: &Door| door.addresses.as_ref().expect("limited").lock().expect("sound").known.len();
        assert!(known(&door) < ABSENT_ADDRESSES_MAX, "{}", known(&door));
        door.try_enter(0, 1, Some(home(1)), at(5_000)).expect("its first");
        door.leave(1, at(5_000));
        assert!(known(&door) <= ABSENT_ADDRESSES_MAX);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let of = |text: &str| client_name(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("::"), of("0.0.0.0"));
    }

    #[test]
    fn a_readmitted_connection_keeps_the_rate_that_its_address_has_used() {
        let limits = ListenerLimits {
            accept_rate: 0,
            handshakes_max: 9,
            address_handshakes: 0,
            address_connections: 0,
            address_rate: 2,
        };
        let old = Door::new(100, [limits]);
        (0..20).for_each(|socket| old.try_enter(0, socket, Some(home(1)), at(0)).expect("within the burst"));
        let used = old.addresses().expect("limited").known.iter().next().map(|(_, address)| address.until());
        let next = Door::new(100, [limits]);
        let name = Bytes::copy_from_slice(&client_name(home(1)).to_be_bytes());
        next.thaw_address(&AddressRecord { name, until: used.expect("one"), sockets: Vec::new() });
        next.readmit(3, 3, || Some(home(1)), at(1));
        assert_eq!(
            next.try_enter(0, 4, Some(home(1)), at(1)),
            Err(Refusal::Address),
            "a restart is not a calm"
        );
    }

    #[test]
    fn a_readmitted_connection_counts_for_the_address_that_a_proxy_named_before() {
        let limits = ListenerLimits {
            accept_rate: 0,
            handshakes_max: 9,
            address_handshakes: 0,
            address_connections: 2,
            address_rate: 0,
        };
        let (proxy, client) = (home(1), home(2));
        let next = Door::new(100, [limits]);
        let name = Bytes::copy_from_slice(&client_name(client).to_be_bytes());
        next.thaw_address(&AddressRecord { name, until: 0, sockets: vec![7, 8, 9] });
        // One comes under another number, one of an old snapshot's kind has no address, and one does not come.
        next.readmit(7, 20, || Some(proxy), at(1));
        next.readmit(8, 8, || Some(proxy), at(1));
        next.readmit(5, 5, || Some(proxy), at(1));
        next.end_readmission();
        assert!(!next.try_name(0, 6, client, at(1)), "two are there");
        assert!(next.try_name(0, 6, proxy, at(1)) && !next.try_name(0, 10, proxy, at(1)), "one was there");
        next.leave(20, at(1));
        assert!(next.try_name(0, 11, client, at(1)), "one has left");
        // Written down as it was read.
        let mut section = Section::default();
        next.freeze(&mut section);
        assert!(!section.is_empty());
    }

    #[test]
    fn each_listener_has_its_own_limits_over_the_same_counts() {
        let narrow = ListenerLimits {
            accept_rate: 1,
            handshakes_max: 1,
            address_handshakes: 0,
            address_connections: 1,
            address_rate: 0,
        };
        let wide = ListenerLimits {
            accept_rate: 0,
            handshakes_max: 9,
            address_handshakes: 0,
            address_connections: 2,
            address_rate: 0,
        };
        let door = Door::new(100, [narrow, wide]);
        assert_eq!(door.try_open(0, false, at(0)), Ok(()));
        assert!(matches!(door.try_open(0, false, at(0)), Err(Wait::Rate(_))));
        assert_eq!(door.try_open(1, false, at(0)), Ok(()), "it has a rate of its own");
        assert_eq!(door.try_enter(0, 5, Some(home(1)), at(0)), Ok(()));
        assert_eq!(door.try_enter(0, 6, Some(home(1)), at(0)), Err(Refusal::Address));
        assert_eq!(door.try_enter(1, 6, Some(home(1)), at(0)), Ok(()), "two are allowed here");
        door.count_handshakes(0, 2);
        assert_eq!(door.try_open(0, false, at(5_000)), Err(Wait::Handshakes));
        assert_eq!(door.try_open(1, false, at(5_000)), Ok(()));
        let used = door.freeze(&mut Section::default());
        let next = Door::new(100, [narrow, wide]);
        next.thaw(0, used[0]);
        assert!(used[0] > 0 && used[1] == 0 && matches!(next.try_open(0, false, at(0)), Err(Wait::Rate(_))));
    }
}
