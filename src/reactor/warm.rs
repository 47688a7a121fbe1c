//! Connections with TLS that are used again and again: the bytes of their keys are kept, those of all others are derived for
//! each use.
//!
//! Deriving costs more than a short record, and its code more than its time: some 100 lines of the processor's cache, which
//! other programs displace between two wakes. Keeping costs 128 bytes, which an idle connection shall not pay: most
//! say something every half minute.
//!
//! Example: a client sends a heartbeat each second. Its third one makes the connection keep its keys, and 2.5 s after the last
//! one the memory goes back. A login has two uses, and keeps nothing.

use super::stream::Streams;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// Places in which the latest uses are noted, by slot. Connections of one place take turns, and keep nothing.
const PLACES: usize = 1 << 13;
/// Connections that keep their keys, at most.
const KEPT_MAX: usize = 1 << 14;
/// Uses, each at most [`KEEP_TICKS`] behind the one before, from which on the keys are kept.
const STREAK: u8 = 3;
/// Time without use after which the keys go.
const KEEP: Duration = Duration::from_millis(2_500);
/// [`KEEP`] in ticks of 2^26 ns.
const KEEP_TICKS: u16 = 37;
/// Connections that are looked at in one turn, at most.
const LOOKS_MAX: usize = 64;

/// Connections in use. No memory before the first one.
#[derive(Debug, Default)]
pub(super) struct Warm {
    seen: Vec<Seen>,
    /// Connections that keep their keys, with the time of the next look.
    kept: VecDeque<(Instant, ConnKey)>,
}

/// Latest use at a place.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Mark of the connection.
    tag: u16,
    /// Tick of the use, modulo 2^16.
    tick: u16,
    /// Uses in a row.
    streak: u8,
}

impl Warm {
    /// Notes a use. Those of two ticks are one use, such as a request and its answer.
    pub(super) fn note(&mut self, key: ConnKey, now: Instant, streams: &mut Streams) {
        if self.seen.is_empty() {
            self.seen = vec![Seen::default(); PLACES];
        }
        let seen = &mut self.seen[key.slot() as usize % PLACES];
        let (tag, tick) = (tag(key), tick(now));
        if seen.tag != tag {
            *seen = Seen { tag, tick, streak: 1 };
            return;
        }
        let passed = tick.wrapping_sub(seen.tick);
        if passed <= 1 {
            return;
        }
        seen.streak = if passed <= KEEP_TICKS { seen.streak.saturating_add(1) } else { 1 };
        seen.tick = tick;
        if seen.streak >= STREAK
            && self.kept.len() < KEPT_MAX
            && let Some((_, Some(layer))) = streams.pair(key)
            && !layer.is_warm()
        {
            layer.keep();
            self.kept.push_back((now + KEEP, key));
        }
    }

    /// Cools connections that were not used for a while.
    pub(super) fn cool(&mut self, now: Instant, streams: &mut Streams) {
        for _ in 0..LOOKS_MAX {
            let Some((_, key)) = self.kept.front().copied().filter(|(due, _)| *due <= now) else { return };
            self.kept.pop_front();
            let seen = self.seen[key.slot() as usize % PLACES];
            if seen.tag == tag(key) && tick(now).wrapping_sub(seen.tick) <= KEEP_TICKS {
                self.kept.push_back((now + KEEP, key));
            } else if let Some((_, Some(layer))) = streams.pair(key) {
                layer.cool();
            }
        }
    }

    /// Forgets who keeps keys: a freeze has made all layers give them back.
    pub(super) fn forget_kept(&mut self) {
        self.kept.clear();
    }
}

#[allow(clippy::cast_possible_truncation)] // a mark
const fn tag(key: ConnKey) -> u16 {
    ((key.slot() as usize / PLACES) as u16).wrapping_mul(0x9E37) ^ key.generation() as u16
}

#[allow(clippy::cast_possible_truncation)] // modulo 73 minutes
const fn tick(now: Instant) -> u16 {
    (now.as_nanos() >> 26) as u16
}

#[cfg(test)]
mod tests {
    use super::super::stream::Socket;
    use super::*;
    use moorline_net::layer::{FrozenLayer, Layer};
    use moorline_net::stream::Stream;
    use moorline_proto::ids::ShardId;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Two connections of one place, with TLS.
    fn world() -> (Warm, Streams, [ConnKey; 2]) {
        let mut streams = Streams::default();
        let keys = [0, PLACES].map(|slot| {
            let key = ConnKey::new(ShardId(0), u32::try_from(slot).expect("small"), 1);
            // The form of `moorline_net::tls::Records`: ChaCha20, two numbers, two secrets.
            let records = [&[1, 84, 2, 0][..], &[0; 16], &[1; 32], &[2; 32]].concat();
            let layer = Layer::thaw(FrozenLayer { records, ..FrozenLayer::default() });
            let (socket, _) = mio::net::UnixStream::pair().expect("two sockets");
            streams.insert(key, Socket { stream: Stream::unix(socket), layer: layer.expect("valid") });
            key
        });
        (Warm::default(), streams, keys)
    }

    fn is_warm(streams: &mut Streams, key: ConnKey) -> bool {
        matches!(streams.pair(key), Some((_, Some(layer))) if layer.is_warm())
    }

    #[test]
    fn a_third_use_keeps_the_keys_and_silence_gives_them_back() {
        let (mut warm, mut streams, [key, _]) = world();
        for millis in [1_000, 1_000, 1_010, 2_000] {
            warm.note(key, at(millis), &mut streams);
            assert!(!is_warm(&mut streams, key), "a login: two uses, {millis}");
        }
        warm.note(key, at(5_000), &mut streams);
        warm.note(key, at(6_000), &mut streams);
        assert!(!is_warm(&mut streams, key), "a pause begins anew");
        warm.note(key, at(7_000), &mut streams);
        assert!(is_warm(&mut streams, key));
        warm.note(key, at(8_000), &mut streams);
        warm.cool(at(9_600), &mut streams);
        assert!(is_warm(&mut streams, key), "it was used 1.6 s before");
        warm.cool(at(12_200), &mut streams);
        assert!(!is_warm(&mut streams, key) && warm.kept.is_empty());
    }

    #[test]
    fn connections_of_one_place_keep_nothing_while_they_take_turns() {
        let (mut warm, mut streams, [key, other]) = world();
        for turn in 0..10 {
            warm.note(key, at(1_000 + turn * 200), &mut streams);
            warm.note(other, at(1_100 + turn * 200), &mut streams);
        }
        assert!(!is_warm(&mut streams, key) && !is_warm(&mut streams, other));
    }

    #[test]
    fn a_connection_that_another_one_follows_is_cooled() {
        let (mut warm, mut streams, [key, other]) = world();
        (0..3).for_each(|turn| warm.note(key, at(1_000 + turn * 500), &mut streams));
        assert!(is_warm(&mut streams, key));
        warm.note(other, at(2_100), &mut streams);
        warm.cool(at(4_600), &mut streams);
        assert!(!is_warm(&mut streams, key));
    }

    #[test]
    fn keys_are_kept_once_more_behind_a_freeze() {
        let (mut warm, mut streams, [key, _]) = world();
        (0..3).for_each(|turn| warm.note(key, at(1_000 + turn * 500), &mut streams));
        let (_, layer) = streams.pair(key).expect("here");
        let layer = layer.expect("TLS");
        layer.freeze().expect("ours");
        layer.resume();
        warm.forget_kept();
        assert!(!is_warm(&mut streams, key));
        warm.note(key, at(2_500), &mut streams);
        assert!(is_warm(&mut streams, key) && warm.kept.len() == 1);
    }
}
