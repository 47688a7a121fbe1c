//! One device's login.

use super::Settings;
use super::early::Early;
use super::flight::Flight;
use super::round_trip::RoundTrip;
use crate::snapshot::{EarlyRecord, Records, Section, SessionRecord, SnapshotError};
use bytes::Bytes;
use moorline_proto::dedupe::Dedupe;
use moorline_proto::ids::{DEVICE_BYTES_MAX, Pin, Seq, UID_BYTES_MAX};
use moorline_proto::message::backend::ConnUp;
use moorline_proto::time::Instant;

/// Bit of [`Session::uid_len`]: the client accepts LZ4 [P-1.9].
const ACCEPTS_LZ4: u8 = 1 << 7;
/// End of a user's chain of sessions.
pub(super) const NO_NEXT: u32 = u32::MAX;

/// The login of one device. It outlives its connection: the slot in the table stays, with a socket or
/// without [P-3.10].
///
/// An idle session takes these 88 bytes, one small allocation for its names and one registry entry.
#[derive(Debug)]
pub(super) struct Session {
    /// The uid, followed by the device.
    names: Box<str>,
    /// Length of the uid; the highest bit: [`ACCEPTS_LZ4`].
    uid_len: u8,
    platform: u8,
    /// SENDs and REQs that the backend has not answered.
    pub(super) unanswered: u16,
    /// Slot of the connection.
    pub(super) connection: u32,
    pub(super) pin: Pin,
    /// Slot of the same user's next session, or [`NO_NEXT`].
    pub(super) next_of_user: u32,
    pub(super) login_version: u64,
    pub(super) dedupe: Dedupe,
    /// Number of the next reliable downlink frame.
    pub(super) next_seq: Seq,
    /// Number of times that the session was resumed: the serial of its newest token.
    pub(super) serial: u16,
    /// Time of the newest token's issue, in Unix seconds; 0: not known.
    issued_s: u32,
    /// Expiry of the newest token, in Unix seconds; 0: it does not expire.
    expires_s: u32,
    /// The worker of the user, from the login on.
    pub(super) worker: u8,
    /// Round trip, while nothing is under way.
    pub(super) trip: RoundTrip,
    /// Outstanding reliable downlink frames; `None`: there are none.
    pub(super) flight: Option<Box<Flight>>,
    /// SENDs that came before their turn; `None`: there are none.
    pub(super) early: Option<Box<Early>>,
}

/// The way of a user's uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) pin: Pin,
    /// The worker of the user.
    pub(super) worker: u8,
}

impl Route {
    /// The way for a user who is not logged in.
    pub(super) fn of(pin: Pin, workers: usize) -> Self {
        Self { pin, worker: u8::try_from(pin.worker(workers)).expect("at most 256 workers") }
    }

    /// Index of the worker.
    pub(super) const fn index(self) -> usize {
        self.worker as usize
    }
}

/// The parts of a login that a session keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) uid: &'a str,
    pub(super) device: &'a str,
    pub(super) platform: i32,
}

impl Session {
    pub(super) fn new(who: Names<'_>, pin: Pin, connection: u32, login_version: u64) -> Self {
        let mut names = String::with_capacity(who.uid.len() + who.device.len());
        names.push_str(who.uid);
        names.push_str(who.device);
        Self {
            names: names.into_boxed_str(),
            uid_len: u8::try_from(who.uid.len()).expect("uids are at most 64 bytes"),
            platform: u8::try_from(who.platform).unwrap_or(0),
            unanswered: 0,
            connection,
            pin,
            next_of_user: NO_NEXT,
            login_version,
            dedupe: Dedupe::new(),
            next_seq: 1,
            serial: 0,
            issued_s: 0,
            expires_s: 0,
            worker: 0,
            trip: RoundTrip::default(),
            flight: None,
            early: None,
        }
    }

    /// Writes the session.
    pub(super) fn freeze(&self, out: &mut Section) -> SessionRecord {
        let Self {
            names: _,
            uid_len: _,
            platform,
            unanswered,
            connection: _,
            pin: _,
            next_of_user: _,
            login_version,
            dedupe,
            next_seq,
            serial,
            issued_s,
            expires_s,
            worker,
            trip,
            flight,
            early,
        } = self;
        let (base, taken, answered) = dedupe.parts();
        SessionRecord {
            uid: Bytes::copy_from_slice(self.uid().as_bytes()),
            device: Bytes::copy_from_slice(self.device().as_bytes()),
            platform: u32::from(*platform),
            unanswered: u32::from(*unanswered),
            login_version: *login_version,
            base,
            taken,
            answered,
            next_seq: *next_seq,
            serial: u32::from(*serial),
            worker: Some(u32::from(*worker)),
            issued_s: *issued_s,
            expires_s: *expires_s,
            accepts_lz4: self.accepts_lz4(),
            trip_micros: trip.micros(),
            flight: flight.as_ref().map(|flight| Box::new(flight.freeze(out))),
            early: early
                .iter()
                .flat_map(|early| early.iter())
                .map(|(cid, body)| EarlyRecord { cid, body: out.body(body) })
                .collect(),
        }
    }

    /// Reads a session, for the connection in a slot.
    pub(super) fn thaw(
        record: &SessionRecord,
        connection: u32,
        (settings, now): (&Settings, Instant),
        from: &Records,
    ) -> Result<Self, SnapshotError> {
        let SessionRecord { uid, device, platform, unanswered, login_version, next_seq, serial, .. } = record;
        if uid.len() > UID_BYTES_MAX || device.len() > DEVICE_BYTES_MAX {
            return Err(from.contradiction("a name is too long"));
        }
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| from.contradiction("a name is not UTF-8"));
        let (uid, device) = (text(uid)?, text(device)?);
        let platform = i32::try_from(*platform).unwrap_or(0);
        let (pin, workers) = (settings.shard_map.pin(uid), settings.workers);
        let mut session = Self::new(Names { uid, device, platform }, pin, connection, *login_version);
        let small = |number: u32| {
            u16::try_from(number).map_err(|_| from.contradiction("a session's number is too large"))
        };
        session.unanswered = small(*unanswered)?;
        session.serial = small(*serial)?;
        session.dedupe = Dedupe::restore((record.base, record.taken, record.answered))
            .ok_or_else(|| from.contradiction("a dedupe window contradicts itself"))?;
        session.next_seq = *next_seq;
        session.set_accepts_lz4(record.accepts_lz4);
        session.trip = RoundTrip::of_micros(record.trip_micros);
        (session.issued_s, session.expires_s) = (record.issued_s, record.expires_s);
        // Version 1.0 did not write it: the number of workers could not change then.
        session.worker = match record.worker {
            Some(worker) => u8::try_from(worker).ok().filter(|worker| usize::from(*worker) < workers),
            None => u8::try_from(session.pin.worker(workers)).ok(),
        }
        .ok_or_else(|| from.contradiction("a session's worker does not exist"))?;
        if let Some(flight) = &record.flight {
            session.flight = Some(Box::new(Flight::thaw(flight, settings.downlink, *next_seq, from)?));
        }
        if !record.early.is_empty() {
            let early = session.early.insert(Box::new(Early::new(now)));
            for EarlyRecord { cid, body } in &record.early {
                early.insert(*cid, &from.body(*body)?);
            }
        }
        Ok(session)
    }

    fn uid_len(&self) -> usize {
        usize::from(self.uid_len & !ACCEPTS_LZ4)
    }

    /// Returns whether the client accepts LZ4.
    pub(super) const fn accepts_lz4(&self) -> bool {
        self.uid_len & ACCEPTS_LZ4 != 0
    }

    pub(super) fn set_accepts_lz4(&mut self, accepts_lz4: bool) {
        self.uid_len = self.uid_len & !ACCEPTS_LZ4 | if accepts_lz4 { ACCEPTS_LZ4 } else { 0 };
    }

    pub(super) fn uid(&self) -> &str {
        &self.names[..self.uid_len()]
    }

    pub(super) fn device(&self) -> &str {
        &self.names[self.uid_len()..]
    }

    pub(super) fn platform(&self) -> i32 {
        i32::from(self.platform)
    }

    pub(super) const fn route(&self) -> Route {
        Route { pin: self.pin, worker: self.worker }
    }

    /// True if a token of this age, in Unix seconds, may resume the session: it is not older than the newest one, so
    /// what the backend knows of the session's token stays true.
    pub(super) fn may_resume_with(&self, issued_s: u64) -> bool {
        issued_s >= u64::from(self.issued_s)
    }

    /// Takes over the times of a token, in Unix seconds. A time after 2106 counts as none.
    pub(super) fn set_token(&mut self, issued_s: u64, expires_s: u64) {
        let small = |seconds: u64| u32::try_from(seconds).unwrap_or(0);
        (self.issued_s, self.expires_s) = (small(issued_s), small(expires_s));
    }

    /// End of the session because of its token; `None`: the session has none, or may outlive its token.
    pub(super) fn end(&self, settings: &Settings) -> Option<Instant> {
        settings.session_end((self.expires_s > 0).then(|| u64::from(self.expires_s)))
    }

    /// Memory of pushes that are in flight or wait behind the window, in bytes.
    pub(super) fn flight_bytes(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.bytes())
    }

    /// Bytes of SENDs that came before their turn.
    pub(super) fn early_bytes(&self) -> usize {
        self.early.as_ref().map_or(0, |early| early.bytes())
    }

    /// The login as the backend is told of it.
    pub(super) fn login(&self, handle: u64) -> ConnUp {
        ConnUp {
            handle,
            uid: self.uid().to_owned(),
            device: self.device().to_owned(),
            platform: self.platform(),
            login_version: self.login_version,
            issued_at: u64::from(self.issued_s),
        }
    }
}

const _: () = assert!(size_of::<Session>() <= 88, "memory per idle connection is what we are chosen for");
