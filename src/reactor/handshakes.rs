//! Connections of one reactor that are not logged in: the oldest silent one, and the share of an address.
//!
//! When a listener has no place for another connection without a login, the oldest one that has not said HELLO is
//! evicted, so that silent clients keep nobody out. While more than half of the places are taken, one address (IPv6: one
//! /64) has its share of them; its next connection takes the place of its own oldest silent one.
//!
//! A connection that logged in or ended is not removed at once: entries are checked when they are looked at, and all
//! of them once a second, and when their number has doubled. So a storm of logins leaves no memory behind.
//!
//! Example: 18,000 connections of one host say nothing. 8,192 of them fill half of 16,384 places. From then on the host
//! has its share of 1,024 places, so each further one is refused or evicts one of its own; other clients find room.

use crate::snapshot::{HandshakesRecord, Item, Section};
use bytes::Bytes;
use moorline_net::pace::client_name;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;

/// Least age of a connection that is evicted: a client far away needs this time for its HELLO.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Interval at which all entries are checked.
const SWEEP: Duration = Duration::from_secs(1);

/// Entries below which their number does not cause a check.
const UNSWEPT_MIN: usize = 64;

/// A connection that was not logged in when it was last looked at.
type Entry = (ConnKey, Instant);

/// The connections of one reactor that are not logged in, as far as it accepted them itself.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// All entries, oldest first.
    all: VecDeque<Entry>,
    /// Entries by address, oldest first.
    by_address: HashMap<u128, VecDeque<Entry>>,
    swept: Instant,
    /// Entries that the last check left.
    left: usize,
}

impl Handshakes {
    /// Notes an accepted connection. `is_live` confirms connections that are not logged in.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        key: ConnKey,
        from: IpAddr,
        is_live: impl Fn(ConnKey) -> bool,
    ) {
        if self.all.len() >= 2 * self.left.max(UNSWEPT_MIN) {
            self.check_all(is_live);
        }
        self.all.push_back((key, now));
        self.by_address.entry(client_name(from)).or_default().push_back((key, now));
    }

    /// Writes the connections of each address that `is_live` confirms.
    pub(super) fn freeze(&self, is_live: impl Fn(ConnKey) -> bool, out: &mut Section) {
        for (name, entries) in &self.by_address {
            let live = entries.iter().map(|(key, _)| *key).filter(|key| is_live(*key));
            let keys: Vec<u64> = live.map(ConnKey::as_u64).collect();
            if !keys.is_empty() {
                let name = Bytes::copy_from_slice(&name.to_be_bytes());
                out.put_optional(Item::Handshakes(HandshakesRecord { name, keys }));
            }
        }
    }

    /// Notes connections of the process before, which `is_live` confirms. Their age begins anew.
    pub(super) fn thaw(
        &mut self,
        now: Instant,
        record: &HandshakesRecord,
        is_live: impl Fn(ConnKey) -> bool,
    ) {
        let Ok(name) = record.name[..].try_into() else { return };
        let mut keys: HashSet<ConnKey> = record.keys.iter().map(|key| ConnKey::from_u64(*key)).collect();
        keys.retain(|key| is_live(*key));
        if keys.is_empty() {
            return;
        }
        let entries = self.by_address.entry(u128::from_be_bytes(name)).or_default();
        entries.iter().for_each(|(key, _)| _ = keys.remove(key));
        entries.extend(keys.into_iter().map(|key| (key, now)));
    }

    /// Notes the address of a connection that came through a proxy.
    pub(super) fn name(&mut self, now: Instant, key: ConnKey, from: IpAddr) {
        self.by_address.entry(client_name(from)).or_default().push_back((key, now));
    }

    /// Number of connections of an address that `is_live` confirms.
    pub(super) fn of_address(&mut self, from: IpAddr, is_live: impl Fn(ConnKey) -> bool) -> usize {
        let Some(entries) = self.by_address.get_mut(&client_name(from)) else { return 0 };
        entries.retain(|(key, _)| is_live(*key));
        entries.len()
    }

    /// The oldest connection that `is_silent` confirms; `None`: there is none, or it is younger than [`GRACE`].
    pub(super) fn oldest(&mut self, now: Instant, is_silent: impl Fn(ConnKey) -> bool) -> Option<ConnKey> {
        oldest(&mut self.all, now, is_silent)
    }

    /// The oldest connection of an address, likewise.
    pub(super) fn oldest_of(
        &mut self,
        now: Instant,
        from: IpAddr,
        is_silent: impl Fn(ConnKey) -> bool,
    ) -> Option<ConnKey> {
        oldest(self.by_address.get_mut(&client_name(from))?, now, is_silent)
    }

    /// Removes connections that `is_live` does not confirm, once a second.
    pub(super) fn sweep(&mut self, now: Instant, is_live: impl Fn(ConnKey) -> bool) {
        if self.all.is_empty() || now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        self.check_all(is_live);
        if self.all.is_empty() {
            *self = Self { swept: now, ..Self::default() };
        }
    }

    fn check_all(&mut self, is_live: impl Fn(ConnKey) -> bool) {
        self.all.retain(|(key, _)| is_live(*key));
        self.by_address.retain(|_, entries| {
            entries.retain(|(key, _)| is_live(*key));
            !entries.is_empty()
        });
        self.left = self.all.len();
    }
}

/// The first entry that is silent, if it is old enough; those before it are not silent, and go.
fn oldest(
    entries: &mut VecDeque<Entry>,
    now: Instant,
    is_silent: impl Fn(ConnKey) -> bool,
) -> Option<ConnKey> {
    while let Some((key, since)) = entries.front().copied() {
        if !is_silent(key) {
            entries.pop_front();
            continue;
        }
        return (now >= since + GRACE).then_some(key);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    fn key(slot: u32) -> ConnKey {
        ConnKey::new(ShardId(0), slot, 1)
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn home(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn addresses_that_proxies_have_named_count_in_the_process_that_takes_over() {
        let proxy = IpAddr::from([192, 0, 2, 1]);
        let mut old = Handshakes::default();
        for slot in 0..3 {
            old.begin(at(0), key(slot), proxy, |_| true);
        }
        old.name(at(0), key(0), home(1));
        old.name(at(0), key(1), home(1));
        let mut section = Section::default();
        old.freeze(|key| key.slot() != 1, &mut section);
        let mut writer = crate::snapshot::Writer::default();
        writer.add(crate::snapshot::SectionKind::Shard, 0, section);
        let bytes: Bytes = writer.finish(crate::snapshot::Header::default()).concat().into();
        let snapshot = crate::snapshot::Snapshot::open(bytes).expect("whole");
        let (_, mut records) = snapshot.sections(crate::snapshot::SectionKind::Shard).expect("one").remove(0);
        let mut new = Handshakes::default();
        for slot in [0, 2] {
            new.begin(at(5), key(slot), proxy, |_| true);
        }
        while let Some(item) = records.next().expect("whole") {
            let Item::Handshakes(record) = item else { panic!("{item:?}") };
            new.thaw(at(5), &record, |_| true);
        }
        assert_eq!((new.of_address(home(1), |_| true), new.of_address(proxy, |_| true)), (1, 2));
        assert_eq!(new.oldest_of(at(2000), home(1), |_| true), Some(key(0)));
    }

    #[test]
    fn the_oldest_silent_connection_goes_and_none_that_is_young() {
        let mut handshakes = Handshakes::default();
        for slot in 0..4 {
            handshakes.begin(at(u64::from(slot) * 100), key(slot), home(1), |_| true);
        }
        assert_eq!(handshakes.oldest(at(900), |_| true), None, "it may still say HELLO");
        let is_silent = |it: ConnKey| it.slot() != 0;
        assert_eq!(handshakes.oldest(at(1_100), is_silent), Some(key(1)), "the first one logged in");
        assert_eq!(handshakes.oldest(at(1_100), |it| it.slot() > 1), None);
        handshakes.sweep(at(5_000), |_| false);
        assert_eq!((handshakes.all.capacity(), handshakes.by_address.capacity()), (0, 0));
    }

    #[test]
    fn a_storm_of_logins_leaves_no_memory_behind() {
        let mut handshakes = Handshakes::default();
        for slot in 0..10_000 {
            // The five newest are not logged in yet.
            handshakes.begin(at(0), key(slot), home(1), |it| it.slot() + 5 >= slot);
        }
        assert!(handshakes.all.capacity() <= 4 * UNSWEPT_MIN, "{}", handshakes.all.capacity());
        assert_eq!(handshakes.of_address(home(1), |it| it.slot() + 5 >= 10_000), 5);
    }

    #[test]
    fn an_address_is_counted_and_evicts_its_own() {
        let mut handshakes = Handshakes::default();
        (0..10).for_each(|slot| handshakes.begin(at(0), key(slot), home(1), |_| true));
        handshakes.begin(at(0), key(10), home(2), |_| true);
        let (near, far): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().expect("one"), "2001:db8::2".parse().expect("another"));
        handshakes.begin(at(0), key(11), near, |_| true);
        assert_eq!(handshakes.of_address(home(1), |it| it.slot() > 3), 6);
        assert_eq!(
            (handshakes.of_address(home(2), |_| true), handshakes.of_address(home(3), |_| true)),
            (1, 0)
        );
        assert_eq!(handshakes.of_address(far, |_| true), 1, "of one /64");
        assert_eq!(handshakes.oldest_of(at(2_000), home(1), |_| true), Some(key(4)));
        assert_eq!(handshakes.oldest_of(at(2_000), home(3), |_| true), None);
    }
}
