//! A shard as a snapshot, which the process that takes over reads (`docs/handover.md`).
//!
//! The snapshot is written while no thread runs. It contains exactly the state that is observable from outside:
//! by sockets, workers and time. Everything else is recomputed: timers from their deadlines, chains of sessions
//! from the order of logins, sums from what they count.

use super::clients::Clients;
use super::connection::Connection;
use super::detached::Detached;
use super::draining::Drain;
use super::session::Session;
use super::table::Table;
use super::{Output, Outputs, Settings, Shard};
use crate::snapshot::{
    ConnectionRecord, Item, Records, RoomRecord, Section, ShardHead, SnapshotError, StateRecord,
};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;

/// Connections and sessions that were read, and do not know each other yet.
struct Loaded {
    /// Connections by slot.
    connections: Vec<(usize, Connection)>,
    /// Sessions, each with the index of its connection.
    sessions: Vec<(Session, usize)>,
    detached: usize,
}

/// Least number of bytes of a connection in a snapshot.
const CONNECTION_BYTES_MIN: usize = 16;
/// Bytes of a frame that is not whole, from which on they are copied for a new process before the pause.
const PARTIAL_BYTES_MIN: usize = 4 << 10;
/// Usual number of bytes of a connection in a snapshot.
const CONNECTION_BYTES_USUAL: usize = 160;

impl Shard {
    /// Writes the shard. All outputs must have been performed before, except [`Output::Write`] and
    /// [`Output::PauseReads`], which [`Self::thaw`] emits again.
    pub fn freeze(&self, out: &mut Section) {
        let Self { clients, logins, gate, fanouts, next_trim, is_draining, drain } = self;
        let Clients { table, registry, rooms, detached, ledger } = clients;
        let (mut head, mut later) = (ShardHead::default(), Section::default());
        head.last_generation = table.last_generation();
        head.connections = u32::try_from(table.len()).expect("bounded by SLOTS_MAX");
        head.last_login_version = logins.last_version();
        head.is_draining = *is_draining;
        head.drain = drain.as_ref().map(|drain| drain.freeze());
        head.last_round = rooms.freeze(&mut later);
        head.next_trim = next_trim.as_nanos();
        head.kept = detached.freeze();
        ledger.freeze(&mut head, &mut later);
        head.stored_at = gate.freeze(&mut later).as_nanos();
        head.chat_until = fanouts.pace.chat_until().as_nanos();
        out.put(Item::Shard(Box::new(head)));
        out.reserve(table.len() * CONNECTION_BYTES_USUAL);
        for key in table.keys() {
            let connection = table.get(key).expect("listed");
            let session = registry.get(connection.session);
            let timer = ledger.timers.deadline(connection.timer);
            let record = connection.freeze(key, session, timer, out);
            out.put(Item::Connection(Box::new(record)));
        }
        fanouts.freeze(out);
        out.append(&later);
    }

    /// Reads what [`Self::freeze`] wrote at `now`, up to the end of the section; other records go to `other`.
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
        shard.next_trim = Instant::from_nanos(head.next_trim);
        shard.is_draining = head.is_draining;
        shard.drain = head.drain.as_ref().map(|drain| Box::new(Drain::thaw(drain)));
        shard.logins.thaw(head.last_login_version);
        shard.fanouts.pace.thaw(Instant::from_nanos(head.chat_until));
        shard.clients.rooms.thaw(head.last_round);
        shard.clients.ledger.thaw(&head);
        let room = (head.connections as usize).min(records.len() / CONNECTION_BYTES_MIN);
        let mut loaded =
            Loaded { connections: Vec::with_capacity(room), sessions: Vec::with_capacity(room), detached: 0 };
        shard.clients.registry.reserve(room);
        let mut item = records.next()?;
        while let Some(Item::Connection(record)) = item {
            shard.clients.thaw_connection(now, &record, &mut loaded, records, outputs)?;
            item = records.next()?;
        }
        // Version 1.0 did not write the number.
        if head.connections != 0 && head.connections as usize != loaded.connections.len() {
            return Err(records.contradiction("connections are missing"));
        }
        shard.clients.thaw_sessions(loaded, &head, records)?;
        while let Some(record) = item {
            match record {
                Item::Answer(answer) => shard.gate.thaw_answer(Instant::from_nanos(head.stored_at), &answer),
                Item::Room(room) => shard.clients.thaw_room(&room, records)?,
                Item::Fanout(fanout) => shard.fanouts.thaw(&fanout, records)?,
                Item::UserSpent(spent) => shard.gate.thaw_user(spent),
                Item::Hold(hold) => shard.clients.ledger.pauses.thaw_one(hold, outputs),
                record => other(record)?,
            }
            item = records.next()?;
        }
        shard.clients.ledger.set_fanout_bytes(shard.fanouts.bytes());
        let is_there = |key: &ConnKey| shard.clients.connection(*key).is_some();
        let due = head.due.iter().map(|key| ConnKey::from_u64(*key)).filter(is_there).collect();
        shard.clients.ledger.timers.thaw(due);
        Ok(shard)
    }

    /// Connections that have a socket.
    pub fn with_sockets(&self) -> impl Iterator<Item = ConnKey> + '_ {
        self.clients.with_sockets()
    }

    /// Takes over the Unix time of the gateway's time zero: the gateway's time stood still meanwhile.
    pub const fn handle_thawed(&mut self, unix_base_nanos: u64) {
        self.clients.ledger.settings.unix_base_nanos = unix_base_nanos;
    }
}

/// Adds the bodies of all frames that wait here, for clients or for their turn, so that another process can read them before
/// a pause. `with_partials`: also copies of what has come of long frames that are not whole yet.
pub fn queued_bodies(shard: &mut Shard, with_partials: bool, found: &mut Vec<Bytes>) {
    let Clients { table, registry, .. } = &mut shard.clients;
    for key in table.keys() {
        let Some(connection) = table.get_mut(key) else { continue };
        found.extend(connection.outbound.iter().flat_map(|outbound| outbound.bodies()).cloned());
        if with_partials {
            found.extend(connection.decoder.copy_partial(PARTIAL_BYTES_MIN));
        }
        let Some(session) = registry.get(connection.session) else { continue };
        found.extend(session.flight.iter().flat_map(|flight| flight.bodies()).cloned());
        found.extend(session.early.iter().flat_map(|early| early.iter()).map(|(_, body)| body.clone()));
    }
}

impl Clients {
    fn thaw_connection(
        &mut self,
        now: Instant,
        record: &ConnectionRecord,
        loaded: &mut Loaded,
        from: &Records,
        outputs: &mut Outputs,
    ) -> Result<(), SnapshotError> {
        let (key, state) = (ConnKey::from_u64(record.key), State::from(record.state()));
        if key.shard() != self.ledger.settings.shard || key.generation() == 0 {
            return Err(from.contradiction("a connection is another shard's"));
        }
        if state.has_session() != record.session.is_some() || record.state() == StateRecord::Unspecified {
            return Err(from.contradiction("a connection's state and session contradict each other"));
        }
        let slot = key.slot() as usize;
        if loaded.connections.last().is_some_and(|(last, _)| *last >= slot) {
            return Err(from.contradiction("connections are not in the order of their slots"));
        }
        let slots_max = self.ledger.settings.thaw_slots_max;
        if slot >= slots_max {
            // The table has a place for every slot below: 17 million for a snapshot of one connection.
            let problem = format!(
                "a connection is in slot {slot} of at most {slots_max}; raise `limits.connections_max`"
            );
            return Err(from.contradiction(problem));
        }
        let timer = self.ledger.timers.insert(Instant::from_nanos(record.timer), key.slot());
        let mut connection = Connection::thaw(record, timer, now, from)?;
        if connection.outbound.is_some() {
            connection.is_write_due = true;
            outputs.push(Output::Write(key));
        }
        loaded.detached += usize::from(state == State::Detached);
        let session = record
            .session
            .as_ref()
            .map(|session| Session::thaw(session, key.slot(), (&self.ledger.settings, now), from));
        let session = session.transpose()?;
        self.ledger.count_thawed(&connection, session.as_ref());
        loaded.sessions.extend(session.map(|session| (session, loaded.connections.len())));
        loaded.connections.push((slot, connection));
        Ok(())
    }

    /// Brings the sessions together with their connections.
    fn thaw_sessions(
        &mut self,
        loaded: Loaded,
        head: &ShardHead,
        from: &Records,
    ) -> Result<(), SnapshotError> {
        let Loaded { mut connections, mut sessions, detached } = loaded;
        // A user's newer login comes first in its chain: that of the last insertion.
        sessions.sort_by_key(|(session, _)| session.login_version);
        for (session, at) in sessions {
            connections[at].1.session = self.registry.insert(session);
        }
        if detached > head.kept.len() / 2 {
            return Err(from.contradiction("a detached session is not in the list of those"));
        }
        self.table = Table::thaw(self.ledger.settings.shard, head.last_generation, connections);
        self.detached = Detached::thaw(&head.kept, detached);
        Ok(())
    }

    /// Reads a room, after all sessions.
    fn thaw_room(&mut self, record: &RoomRecord, from: &Records) -> Result<(), SnapshotError> {
        let RoomRecord { name, version, members } = record;
        let name = name.as_str().into();
        for key in members.iter().map(|key| ConnKey::from_u64(*key)) {
            let route = self.session(key).map(Session::route);
            let route = route.ok_or_else(|| from.contradiction("a member of a room is not there"))?;
            if !self.rooms.try_bind(&name, *version, key, route) {
                return Err(from.contradiction("a session is in too many rooms"));
            }
        }
        Ok(())
    }
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
