//! All connections and sessions of one shard, and the lookups between them.
//!
//! Example: a push for the user `bob` is resolved to the keys of bob's two devices; each key gives a
//! [`Client`], to which the push is delivered.

use super::client::{Client, Ledger};
use super::connection::{Connection, NO_SESSION};
use super::detached::Detached;
use super::registry::Registry;
use super::rooms::Rooms;
use super::session::Session;
use super::table::Table;
use super::{Count, Counters, Outputs, Settings};
use crate::messages::{PushRef, Target, Uplink};
use moorline_proto::connection::server::State;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::QueryResult;
use moorline_proto::time::Instant;
use std::sync::Arc;

/// Logins in one announcement.
const ANNOUNCE_LOGINS_MAX: usize = 1024;
/// Handles in one piece of an answer.
const HELD_MAX: usize = 4096;

/// Connections, sessions, and what ends with them: their rooms, and their place among the detached.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) table: Table,
    pub(super) registry: Registry,
    pub(super) rooms: Rooms,
    pub(super) detached: Detached,
    pub(super) ledger: Ledger,
}

impl Clients {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            table: Table::new(settings.shard),
            registry: Registry::new(settings.shard_map.key()),
            rooms: Rooms::default(),
            detached: Detached::default(),
            ledger: Ledger::new(settings, now),
        }
    }

    /// A connection with its session; `None`: it is gone.
    pub(super) fn client(&mut self, key: ConnKey) -> Option<Client<'_>> {
        let Self { table, registry, ledger, .. } = self;
        let connection = table.get_mut(key)?;
        let session = registry.get_mut(connection.session);
        Some(Client { key, connection, session, ledger })
    }

    pub(super) fn connection(&self, key: ConnKey) -> Option<&Connection> {
        self.table.get(key)
    }

    /// The session of a connection.
    pub(super) fn session(&self, key: ConnKey) -> Option<&Session> {
        self.registry.get(self.table.get(key)?.session)
    }

    /// The connection of the session in a slot of the registry.
    fn key_of(&self, session: u32) -> ConnKey {
        let session = self.registry.get(session).expect("the registry names live sessions");
        self.table.key_of(session.connection).expect("a session has its connection")
    }

    /// The connection of one device's session.
    pub(super) fn key_of_device(&self, uid: &str, device: &str) -> Option<ConnKey> {
        self.registry.of_device(uid, device).map(|session| self.key_of(session))
    }

    /// The sessions of a user with their connections, newest first.
    pub(super) fn of_user(&self, uid: &str) -> impl Iterator<Item = (ConnKey, &Session)> {
        self.registry.of_user(uid).into_iter().map(|slot| {
            (self.key_of(slot), self.registry.get(slot).expect("the registry names live sessions"))
        })
    }

    /// The connections that a target means.
    pub(super) fn resolve(&self, target: &Target) -> Vec<ConnKey> {
        match target {
            Target::Connection(key) => self.session(*key).map(|_| *key).into_iter().collect(),
            Target::Room(room) => self.rooms.members(room),
            Target::User(uid) => self.of_user(uid).map(|(key, _)| key).collect(),
            Target::Device(uid, device) => self.key_of_device(uid, device).into_iter().collect(),
        }
    }

    /// Puts an accepted connection into a free slot; `None`: there is none.
    pub(super) fn connect(&mut self, now: Instant) -> Option<ConnKey> {
        let Self { table, ledger, .. } = self;
        let deadline = now + ledger.settings.handshake_timeout;
        table.insert(|key| {
            ledger.counters[Count::TimerMoves] += 1;
            Connection::new(key.generation(), ledger.timers.insert(deadline, key.slot()), now)
        })
    }

    /// Takes out a connection that has no session, because its socket goes elsewhere.
    pub(super) fn take(&mut self, key: ConnKey) -> Connection {
        let connection = self.table.remove(key).expect("it was just looked up");
        assert_eq!(connection.session, NO_SESSION, "a session does not go elsewhere");
        self.ledger.count_gone(Some(&connection), None);
        self.ledger.timers.cancel(connection.timer);
        connection
    }

    /// Gives a connection its session.
    pub(super) fn log_in(&mut self, key: ConnKey, session: Session) -> Client<'_> {
        let slot = self.registry.insert(session);
        let connection = self.table.get_mut(key).expect("it is being admitted");
        assert_eq!(connection.session, NO_SESSION, "a connection logs in once");
        connection.session = slot;
        self.client(key).expect("it is being admitted")
    }

    /// Fires what is due: each of these connections gets a timer again before one is acted upon, for an action
    /// may end any connection.
    pub(super) fn fire(&mut self, now: Instant) {
        let fired = self.ledger.timers.fire(now);
        for slot in &fired {
            let key = self.table.key_of(*slot).expect("a connection that ends takes its timer along");
            let client = self.client(key).expect("its timer fired");
            let (at, _) = client.deadline(now);
            client.connection.timer = client.ledger.timers.fire_again(now, at, key);
            client.ledger.counters[Count::TimerMoves] += 1;
        }
        self.ledger.timers.end_fire(fired);
    }

    /// Puts sessions into a room; with `reset`, the others of that worker's slots leave it.
    pub(super) fn bind(
        &mut self,
        room: &Arc<str>,
        version: u64,
        keys: &[ConnKey],
        reset: Option<(u16, u64)>,
    ) {
        if let Some((worker, slots)) = reset {
            self.rooms.retain(room, version, keys, (worker, slots));
        }
        for key in keys {
            let Some(route) = self.session(*key).map(Session::route) else { continue };
            if !self.rooms.try_bind(room, version, *key, route) {
                self.ledger.counters[Count::RoomsRefused] += 1;
            }
        }
    }

    /// Announces a worker's logins whose pins are in `slots`, in chunks.
    pub(super) fn announce(&self, worker: u16, request: u32, slots: u64, outputs: &mut Outputs) {
        let is_asked =
            |session: &Session| u16::from(session.worker) == worker && slots >> session.pin.slot() & 1 == 1;
        let mut logins = Vec::new();
        let Some(out) = outputs.uplinks.get_mut(usize::from(worker)) else { return };
        for session in self.registry.iter().filter(|session| is_asked(session)) {
            let key = self.table.key_of(session.connection).expect("a session has its connection");
            logins.push((session.pin, session.login(key.as_u64())));
            if logins.len() == ANNOUNCE_LOGINS_MAX {
                out.push(Uplink::Announced { request, logins: std::mem::take(&mut logins), is_last: false });
            }
        }
        out.push(Uplink::Announced { request, logins, is_last: true });
    }

    /// Answers a query for a user's logins and a room's members.
    pub(super) fn answer_query(&self, ticket: PushRef, uid: &str, room: &str, outputs: &mut Outputs) {
        let Some(out) = outputs.uplinks.get_mut(usize::from(ticket.worker)) else { return };
        let logins = if uid.is_empty() {
            Vec::new()
        } else {
            self.of_user(uid).map(|(key, session)| session.login(key.as_u64())).collect()
        };
        let handles: Vec<u64> = self.rooms.members(room).into_iter().map(ConnKey::as_u64).collect();
        let mut pieces: Vec<QueryResult> = handles
            .chunks(HELD_MAX)
            .map(|handles| QueryResult { handles: handles.to_vec(), more: true, ..Default::default() })
            .collect();
        pieces.push(QueryResult { logins, ..Default::default() });
        out.extend(pieces.into_iter().map(|held| Uplink::Held { ticket, held }));
    }

    /// Connections that have a socket.
    pub(super) fn with_sockets(&self) -> impl Iterator<Item = ConnKey> + '_ {
        let has_socket = |key: &ConnKey| {
            self.connection(*key).is_some_and(|connection| connection.state != State::Detached)
        };
        self.table.keys().into_iter().filter(has_socket)
    }

    /// The counters, with the levels brought up to date.
    pub(super) fn counters(&mut self) -> &Counters {
        let Self { table, registry, rooms, detached, ledger } = self;
        let levels = [
            (Count::Connections, table.len() - detached.len()),
            (Count::Detached, detached.len()),
            (Count::Rooms, rooms.len()),
            (Count::QueuedBytes, ledger.queued_bytes()),
            (Count::InputBytes, ledger.input_bytes()),
            (Count::Paused, ledger.pauses.len()),
            (Count::Sessions, registry.len()),
            (Count::Users, registry.users()),
            (Count::Timers, ledger.timers.len()),
        ];
        levels.into_iter().for_each(|(count, level)| ledger.counters[count] = level as u64);
        &ledger.counters
    }

    /// Panics unless table, registry, wheel and byte counts agree.
    pub(super) fn check(&self) {
        let Self { table, registry, rooms, detached, ledger } = self;
        registry.check();
        rooms.check();
        let keys = table.keys();
        let connections = keys.iter().map(|key| (*key, table.get(*key).expect("listed")));
        let unsent: usize = connections.clone().map(|(_, connection)| connection.unsent()).sum();
        let waiting: usize = registry.iter().map(Session::flight_bytes).sum();
        assert_eq!(
            ledger.queued_bytes(),
            unsent + waiting + ledger.fanout_bytes(),
            "every byte that waits is counted"
        );
        let held: usize = connections.clone().map(|(_, connection)| connection.held_bytes()).sum();
        let early: usize = registry.iter().map(Session::early_bytes).sum();
        assert_eq!(ledger.input_bytes(), held + early, "all input that waits is counted");
        assert_eq!(ledger.timers.len(), table.len(), "one timer per connection");
        let (mut logged_in, mut detached_len) = (0, 0);
        for (key, connection) in connections {
            let (state, session) = (connection.state, registry.get(connection.session));
            assert_eq!(session.is_some(), state.has_session(), "{key:?} {state:?}");
            assert!(state != State::Detached || connection.outbound.is_none(), "{key:?}");
            logged_in += usize::from(session.is_some_and(|session| session.connection == key.slot()));
            detached_len += usize::from(state == State::Detached);
        }
        assert_eq!(logged_in, registry.len(), "every session has its connection");
        assert_eq!(detached_len, detached.len());
    }
}
