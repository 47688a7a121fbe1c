//! A shard written down, and read in the process that takes over (`docs/handover.md`).
//!
//! Written while nothing moves; what is written down is what a socket, a worker or a clock could tell apart.
//! Everything else follows from it: timers from their deadlines, chains of sessions from the order of logins,
//! sums from what they count.

use super::bucket::{Spent, Stamp};
use super::connection::{Connection, NO_SESSION};
use super::draining::Drain;
use super::keeping::Kept;
use super::outbound::Outbound;
use super::session::Session;
use super::table::Table;
use super::{Output, Outputs, Settings, Shard, Tally};
use crate::snapshot::{ConnectionRecord, Item, Records, Section, ShardHead, SnapshotError, StateRecord};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::frame::Decoder;
use moorline_proto::ids::ConnKey;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;

/// Connections and sessions that were read, and do not know each other yet.
struct Seats {
    /// By slot.
    connections: Vec<(usize, Connection)>,
    /// With the place of their connection.
    sessions: Vec<(Session, usize)>,
    detached: usize,
}

/// A connection takes more bytes than this in a snapshot,
const CONNECTION_BYTES_MIN: usize = 16;
/// and usually less than this.
const CONNECTION_BYTES_USUAL: usize = 160;

impl Shard {
    /// Writes everything down. All outputs must have been performed before, except [`Output::Write`] and
    /// [`Output::PauseReads`], which [`Self::thaw`] emits again.
    pub fn freeze(&self, out: &mut Section) {
        let Self {
            settings: _, // the process that takes over has its own
            table,
            registry,
            wheel,
            fired: _, // empty between calls, like `merged`; the pool is only memory
            due,
            pool: _,
            random,
            tickets: _,
            kept,
            results,
            rooms,
            merged: _,
            fanouts,
            queued_bytes: _,
            holds,
            users_spent,
            next_trim,
            last_login_version,
            is_draining,
            drain,
            tally,
        } = self;
        let (mut head, mut later) = (ShardHead::default(), Section::default());
        head.last_generation = table.last_generation();
        head.connections = u32::try_from(table.len()).expect("bounded by SLOTS_MAX");
        head.last_login_version = *last_login_version;
        head.is_draining = *is_draining;
        head.drain = drain.as_ref().map(|drain| drain.freeze());
        tally.freeze(&mut head);
        head.last_round = rooms.freeze(&mut later);
        head.next_trim = next_trim.as_nanos();
        head.due = due.iter().map(|key| key.as_u64()).collect();
        head.kept = kept.freeze();
        (head.full, head.overload) = holds.freeze(&mut later);
        head.stored_at = results.freeze(&mut later).as_nanos();
        head.random = random.state();
        users_spent.freeze(&mut later);
        head.chat_until = fanouts.chat_until().as_nanos();
        out.put(Item::Shard(Box::new(head)));
        out.reserve(table.len() * CONNECTION_BYTES_USUAL);
        for key in table.keys() {
            let connection = table.get(key).expect("listed");
            let session = registry.get(connection.session);
            let timer = wheel.deadline(connection.timer);
            let record = freeze_connection(key, connection, session, timer, out);
            out.put(Item::Connection(Box::new(record)));
        }
        fanouts.freeze(out);
        out.append(&later);
    }

    /// Reads what [`Self::freeze`] wrote at `now`, up to the end of the section; what is no shard's goes to
    /// `other`.
    ///
    /// # Errors
    /// [`SnapshotError`]: nothing was touched.
    pub fn thaw(
        settings: Settings,
        now: Instant,
        records: &mut Records,
        outputs: &mut Outputs,
        mut other: impl FnMut(Item) -> Result<(), SnapshotError>,
    ) -> Result<Self, SnapshotError> {
        let Some(Item::Shard(head)) = records.next()? else {
            return Err(records.contradiction("a shard does not begin with its head"));
        };
        let mut shard = Self::new(settings, now);
        shard.random = Random::new(head.random);
        shard.next_trim = Instant::from_nanos(head.next_trim);
        shard.last_login_version = head.last_login_version;
        shard.is_draining = head.is_draining;
        shard.drain = head.drain.as_ref().map(|drain| Box::new(Drain::thaw(drain)));
        shard.tally = Tally::thaw(&head);
        shard.holds.thaw(&head.full, &head.overload);
        shard.fanouts.thaw_chat(Instant::from_nanos(head.chat_until));
        shard.thaw_round(head.last_round);
        let room = (head.connections as usize).min(records.len() / CONNECTION_BYTES_MIN);
        let mut seats =
            Seats { connections: Vec::with_capacity(room), sessions: Vec::with_capacity(room), detached: 0 };
        shard.registry.reserve(room);
        let mut item = records.next()?;
        while let Some(Item::Connection(record)) = item {
            shard.thaw_connection(&record, &mut seats, records, outputs)?;
            item = records.next()?;
        }
        // Version 1.0 did not say how many.
        if head.connections != 0 && head.connections as usize != seats.connections.len() {
            return Err(records.contradiction("connections are missing"));
        }
        shard.seat(seats, &head, records)?;
        while let Some(record) = item {
            match record {
                Item::Answer(answer) => shard.results.thaw(Instant::from_nanos(head.stored_at), &answer),
                Item::Room(room) => shard.thaw_room(&room, records)?,
                Item::Fanout(fanout) => shard.fanouts.thaw(&fanout, records)?,
                Item::UserSpent(spent) => shard.users_spent.thaw(spent),
                Item::Hold(hold) => {
                    let key = shard.holds.thaw_one(hold);
                    outputs.push(Output::PauseReads(key));
                }
                record => other(record)?,
            }
            item = records.next()?;
        }
        let is_there = |key: &ConnKey| shard.table.get(*key).is_some();
        shard.due = head.due.iter().map(|key| ConnKey::from_u64(*key)).filter(is_there).collect();
        Ok(shard)
    }

    fn thaw_connection(
        &mut self,
        record: &ConnectionRecord,
        seats: &mut Seats,
        from: &Records,
        outputs: &mut Outputs,
    ) -> Result<(), SnapshotError> {
        let (key, state) = (ConnKey::from_u64(record.key), State::from(record.state()));
        if key.shard() != self.settings.shard || key.generation() == 0 {
            return Err(from.contradiction("a connection is another shard's"));
        }
        if state.has_session() != record.session.is_some() || record.state() == StateRecord::Unspecified {
            return Err(from.contradiction("a connection's state and session contradict each other"));
        }
        let slot = key.slot() as usize;
        if seats.connections.last().is_some_and(|(last, _)| *last >= slot) {
            return Err(from.contradiction("connections are not in the order of their slots"));
        }
        let timer = self.wheel.insert(Instant::from_nanos(record.timer), key.slot());
        let mut connection = thaw_connection(record, state, timer, from)?;
        if let Some(outbound) = &connection.outbound {
            self.queued_bytes += outbound.bytes();
            connection.is_transmit_due = true;
            outputs.push(Output::Write(key));
        }
        seats.detached += usize::from(state == State::Detached);
        if let Some(session) = &record.session {
            let limits = (self.settings.downlink, self.settings.workers);
            let session = Session::thaw(session, key.slot(), limits, from)?;
            self.queued_bytes += session.flight.as_ref().map_or(0, |flight| flight.waiting_bytes());
            seats.sessions.push((session, seats.connections.len()));
        }
        seats.connections.push((slot, connection));
        Ok(())
    }

    /// Everybody is there: sessions come together with their connections.
    fn seat(&mut self, seats: Seats, head: &ShardHead, from: &Records) -> Result<(), SnapshotError> {
        let Seats { mut connections, mut sessions, detached } = seats;
        // A user's newer login comes first in its chain: that of the last insertion.
        sessions.sort_by_key(|(session, _)| session.login_version);
        for (session, at) in sessions {
            connections[at].1.session = self.registry.insert(session);
        }
        if detached > head.kept.len() / 2 {
            return Err(from.contradiction("sessions wait that are not among those that do"));
        }
        self.table = Table::thaw(self.settings.shard, head.last_generation, connections);
        self.kept = Kept::thaw(&head.kept, detached);
        Ok(())
    }

    /// Connections that have a socket.
    pub fn with_sockets(&self) -> impl Iterator<Item = ConnKey> + '_ {
        let has_socket = |key: &ConnKey| {
            self.table.get(*key).is_some_and(|connection| connection.state != State::Detached)
        };
        self.table.keys().into_iter().filter(has_socket)
    }

    /// The gateway's time stood still: Unix time did not.
    pub const fn handle_thawed(&mut self, unix_base_nanos: u64) {
        self.settings.unix_base_nanos = unix_base_nanos;
    }
}

fn freeze_connection(
    key: ConnKey,
    connection: &Connection,
    session: Option<&Session>,
    timer: Instant,
    out: &mut Section,
) -> ConnectionRecord {
    let Connection {
        state,
        is_transmit_due: _,
        heartbeat_s,
        session: _,
        generation: _,
        timer: _,
        heard,
        spent,
        decoder,
        outbound,
    } = connection;
    let (outbound, head_sent) = outbound.as_ref().map_or((Vec::new(), 0), |outbound| outbound.freeze(out));
    ConnectionRecord {
        key: key.as_u64(),
        state: StateRecord::from(*state).into(),
        heartbeat_s: u32::from(*heartbeat_s),
        heard: heard.ticks(),
        spent: spent.parts(),
        timer: timer.as_nanos(),
        partial: Bytes::copy_from_slice(decoder.partial()),
        outbound,
        head_sent,
        session: session.map(|session| session.freeze(out)),
    }
}

fn thaw_connection(
    record: &ConnectionRecord,
    state: State,
    timer: moorline_proto::wheel::TimerKey,
    from: &Records,
) -> Result<Connection, SnapshotError> {
    let mut decoder = Decoder::new();
    // Its own memory, and unfinished: whatever could be decoded of it was.
    let unfinished = decoder.decode(&mut Bytes::copy_from_slice(&record.partial), u32::MAX);
    if !matches!(unfinished, Ok(None)) {
        return Err(from.contradiction("an unfinished frame is none"));
    }
    let outbound = if record.outbound.is_empty() {
        None
    } else {
        Some(Box::new(Outbound::thaw(&record.outbound, record.head_sent, from)?))
    };
    Ok(Connection {
        state,
        is_transmit_due: false,
        heartbeat_s: u16::try_from(record.heartbeat_s).unwrap_or(u16::MAX),
        session: NO_SESSION,
        generation: ConnKey::from_u64(record.key).generation(),
        timer,
        heard: Stamp::from_ticks(record.heard),
        spent: Spent::from_parts(record.spent),
        decoder,
        outbound,
    })
}

impl From<State> for StateRecord {
    fn from(state: State) -> Self {
        match state {
            State::AwaitHello => Self::AwaitHello,
            State::Authenticating => Self::Authenticating,
            State::Active => Self::Active,
            State::Leaving => Self::Leaving,
            State::Detached => Self::Detached,
            State::Closing => Self::Closing,
        }
    }
}

impl From<StateRecord> for State {
    fn from(state: StateRecord) -> Self {
        match state {
            StateRecord::Unspecified | StateRecord::Closing => Self::Closing,
            StateRecord::AwaitHello => Self::AwaitHello,
            StateRecord::Authenticating => Self::Authenticating,
            StateRecord::Active => Self::Active,
            StateRecord::Leaving => Self::Leaving,
            StateRecord::Detached => Self::Detached,
        }
    }
}
