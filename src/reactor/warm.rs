//! Connections with TLS that are used again and again: their keys are kept, those of all others are made for each use.
//!
//! A key is made of its secret in 1 us, and takes 0.6 KiB. Most connections of a chat say something every few seconds or
//! minutes, and not twice in 200 ms.
//!
//! Example: a client sends a heartbeat. A key is made to open it and another one to seal the answer, both in memory that is
//! used anew for the next client. Another client sends 20 messages in a second: from the second one on it has its keys, and
//! 200 ms after the last one 1.2 KiB go back.

use super::stream::Streams;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};

/// Connections that are looked at, and that keep their keys, at most. One that comes to the place of another one cools that.
const PLACES: usize = 1 << 10;
/// Time without use after which a connection is cooled. A second use within this time warms it.
const COOL_AFTER: Duration = Duration::from_millis(200);
/// Interval at which all places are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Connections in use, by their slot. No memory before the first one.
#[derive(Debug, Default)]
pub(super) struct Warm {
    places: Vec<Option<Place>>,
    count: usize,
    looked: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: ConnKey,
    used: Instant,
    /// The connection keeps its keys.
    is_warm: bool,
}

impl Warm {
    /// Notes a use. The second one in 200 ms, in another turn, makes the connection keep its keys.
    pub(super) fn note(&mut self, key: ConnKey, now: Instant, streams: &mut Streams) {
        if self.places.is_empty() {
            self.places = vec![None; PLACES];
        }
        let place = &mut self.places[key.slot() as usize % PLACES];
        let last = place.take();
        match last {
            None => self.count += 1,
            Some(last) if last.key != key => last.cool(streams),
            Some(_) => {}
        }
        let Some((_, Some(layer))) = streams.pair(key) else {
            self.count -= 1;
            return;
        };
        if last.is_some_and(|last| last.key == key && last.used != now && now < last.used + COOL_AFTER) {
            layer.keep();
        }
        *place = Some(Place { key, used: now, is_warm: layer.is_warm() });
    }

    /// Cools the connections that were not used for a while.
    pub(super) fn cool(&mut self, now: Instant, streams: &mut Streams) {
        if self.count == 0 || now < self.looked + LOOK {
            return;
        }
        self.looked = now;
        for place in &mut self.places {
            if let Some(last) = place.take_if(|place| now >= place.used + COOL_AFTER) {
                self.count -= 1;
                last.cool(streams);
            }
        }
    }
}

impl Place {
    fn cool(self, streams: &mut Streams) {
        if self.is_warm
            && let Some((_, Some(layer))) = streams.pair(self.key)
        {
            layer.cool();
        }
    }
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
        let keys = [0, 1024].map(|slot| {
            let key = ConnKey::new(ShardId(0), slot, 1);
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
    fn a_second_use_in_another_turn_warms_and_silence_cools() {
        let (mut warm, mut streams, [key, _]) = world();
        warm.note(key, at(1_000), &mut streams);
        warm.note(key, at(1_000), &mut streams);
        assert!(!is_warm(&mut streams, key), "a request and its answer are one use");
        warm.note(key, at(1_200), &mut streams);
        assert!(!is_warm(&mut streams, key), "too late");
        warm.note(key, at(1_399), &mut streams);
        assert!(is_warm(&mut streams, key));
        warm.cool(at(1_550), &mut streams);
        assert!(is_warm(&mut streams, key));
        warm.cool(at(1_650), &mut streams);
        assert!(!is_warm(&mut streams, key) && warm.count == 0);
    }

    #[test]
    fn a_connection_at_the_place_of_another_one_cools_it() {
        let (mut warm, mut streams, [key, other]) = world();
        (0..2).for_each(|turn| warm.note(key, at(1_000 + turn), &mut streams));
        assert!(is_warm(&mut streams, key));
        warm.note(other, at(1_002), &mut streams);
        assert!(!is_warm(&mut streams, key) && !is_warm(&mut streams, other));
    }

    #[test]
    fn keys_that_the_layer_keeps_by_itself_are_given_back() {
        let (mut warm, mut streams, [key, _]) = world();
        streams.pair(key).and_then(|(_, layer)| layer).expect("TLS").keep();
        warm.note(key, at(1_000), &mut streams);
        warm.cool(at(1_300), &mut streams);
        assert!(!is_warm(&mut streams, key));
    }
}
