//! Connections whose layer has memory that it needs only in use: the keys of TLS, made ready for the next record.
//!
//! Example: a client sends a heartbeat. Its keys are made (2 us each) and kept, because more may come; 200 ms later nothing
//! has come, and 1.2 KiB go back.

use super::stream::Streams;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};

/// Connections that are kept warm at most. One that comes to the place of another one cools that.
const PLACES: usize = 1 << 10;
/// Time without use after which a connection is cooled.
const COOL_AFTER: Duration = Duration::from_millis(200);
/// Interval at which all places are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Connections in use, by their slot. No memory before the first one.
#[derive(Debug, Default)]
pub(super) struct Warm {
    places: Vec<Option<(ConnKey, Instant)>>,
    count: usize,
    looked: Instant,
}

impl Warm {
    /// Notes a use.
    pub(super) fn note(&mut self, key: ConnKey, now: Instant, streams: &mut Streams) {
        if self.places.is_empty() {
            self.places = vec![None; PLACES];
        }
        let place = &mut self.places[key.slot() as usize % PLACES];
        match place.replace((key, now)) {
            None => self.count += 1,
            Some((other, _)) if other != key => cool(other, streams),
            Some(_) => {}
        }
    }

    /// Cools whoever was not used for a while.
    pub(super) fn cool(&mut self, now: Instant, streams: &mut Streams) {
        if self.count == 0 || now < self.looked + LOOK {
            return;
        }
        self.looked = now;
        for place in &mut self.places {
            if let Some((key, _)) = place.take_if(|(_, used)| now >= *used + COOL_AFTER) {
                self.count -= 1;
                cool(key, streams);
            }
        }
    }
}

fn cool(key: ConnKey, streams: &mut Streams) {
    if let Some((_, Some(layer))) = streams.pair(key) {
        layer.cool();
    }
}
