//! The last answers to SENDs, for clients that missed them [P-5.4].
//!
//! A table of fixed size for the whole shard: session and cid choose an answer's place, and the next answer
//! there replaces it. An answer costs a copy of about sixty bytes, a session costs nothing. A SEND whose
//! answer was replaced goes to the backend, whose idempotency key decides. The first answer allocates the
//! table; it is freed when no answer came for a minute.

use crate::snapshot::{AnswerRecord, Item, Section};
use bytes::Bytes;
use moorline_proto::ids::Seq;
use moorline_proto::random::mix;
use moorline_proto::time::{Duration, Instant};

/// Places for answers; a power of two.
const PLACES: usize = 1024;
/// Longest answer that is remembered, in bytes.
const ANSWER_BYTES_MAX: usize = 108;
/// Time without an answer after which the table is freed.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Login version of the session, which no other session of this shard has; 0: the place is empty.
    session: u64,
    cid: Seq,
    len: u8,
    bytes: [u8; ANSWER_BYTES_MAX],
}

const EMPTY: Place = Place { session: 0, cid: 0, len: 0, bytes: [0; ANSWER_BYTES_MAX] };

/// The table of one shard: 120 KiB while it is in use.
#[derive(Debug, Default)]
pub(super) struct Results {
    places: Vec<Place>,
    stored_at: Instant,
}

impl Results {
    /// Remembers the body of a SENDACK, if it is short enough.
    pub(super) fn store(&mut self, now: Instant, session: u64, cid: Seq, body: &[u8]) {
        let Ok(len @ 0..=108) = u8::try_from(body.len()) else { return };
        if self.places.is_empty() {
            self.places = vec![EMPTY; PLACES];
        }
        self.stored_at = now;
        let place = &mut self.places[index(session, cid)];
        (place.session, place.cid, place.len) = (session, cid, len);
        place.bytes[..body.len()].copy_from_slice(body);
    }

    /// Body of the SENDACK for a cid; `None`: it is not remembered.
    pub(super) fn get(&self, session: u64, cid: Seq) -> Option<Bytes> {
        let place = self.places.get(index(session, cid))?;
        let is_it = place.session == session && place.cid == cid;
        is_it.then(|| Bytes::copy_from_slice(&place.bytes[..usize::from(place.len)]))
    }

    /// Writes all answers. Returns the time of the last one.
    pub(super) fn freeze(&self, out: &mut Section) -> Instant {
        let Self { places, stored_at } = self;
        for Place { session, cid, len, bytes } in places.iter().filter(|place| place.session != 0) {
            let bytes = Bytes::copy_from_slice(&bytes[..usize::from(*len)]);
            out.put(Item::Answer(AnswerRecord { session: *session, cid: *cid, bytes }));
        }
        if places.is_empty() { Instant::ZERO } else { *stored_at }
    }

    /// Reads one answer; `stored_at` is the time of the last one.
    pub(super) fn thaw(&mut self, stored_at: Instant, record: &AnswerRecord) {
        let AnswerRecord { session, cid, bytes } = record;
        self.store(stored_at, *session, *cid, bytes);
    }

    /// Frees the table when no answer came for a minute.
    pub(super) fn trim(&mut self, now: Instant) {
        if !self.places.is_empty() && now.saturating_since(self.stored_at) > IDLE_MAX {
            self.places = Vec::new();
        }
    }
}

/// Place of an answer: the cids of one session lie side by side.
#[allow(clippy::cast_possible_truncation)] // masked
const fn index(session: u64, cid: Seq) -> usize {
    (mix(session).wrapping_add(cid as u64) as usize) & (PLACES - 1)
}

const _: () = assert!(ANSWER_BYTES_MAX == 108 && PLACES.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn the_last_answers_of_a_session_are_remembered_and_no_others() {
        let mut results = Results::default();
        assert_eq!(results.get(7, 1), None);
        for cid in 1..=64u32 {
            results.store(at(1), 7, cid, &cid.to_be_bytes());
        }
        for cid in 1..=64u32 {
            assert_eq!(results.get(7, cid).as_deref(), Some(&cid.to_be_bytes()[..]));
        }
        assert_eq!((results.get(7, 65), results.get(8, 1)), (None, None));
        results.store(at(1), 7, 65, &[0; ANSWER_BYTES_MAX + 1]);
        assert_eq!(results.get(7, 65), None, "too long to be remembered");
        results.store(at(1), 7, 65, &[1; ANSWER_BYTES_MAX]);
        assert_eq!(results.get(7, 65).as_deref(), Some(&[1; ANSWER_BYTES_MAX][..]));
    }

    #[test]
    fn a_table_that_nobody_uses_is_given_back() {
        let mut results = Results::default();
        results.store(at(1), 7, 1, b"ok");
        results.trim(at(60));
        assert!(results.get(7, 1).is_some());
        results.trim(at(62));
        assert!(results.get(7, 1).is_none() && results.places.capacity() == 0);
    }
}
