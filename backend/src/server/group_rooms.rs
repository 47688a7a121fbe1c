//! Rooms of large groups: a message of a group is one frame for each gateway, whichever links speak for its members. Pure.
//!
//! A group's room has one link of each gateway, for its bindings and for its pushes. So they keep their order: who has left gets
//! nothing that is said later. Whatever could break that order, or hide a member, loses the room for good: the link ends, its
//! output is full, or the gateway holds other members than this end. The handler hears of it by [`Event::RoomLost`],
//! pushes to sessions meanwhile, and may fill another room, whose name the gateways have never heard.
//!
//! Pushes to single members go over the link of the room too, if the group has one: a later message must not overtake those
//! that went to the room, for a client that knows nothing of the group begins with the first one that it gets.
//!
//! Example: 10,000 members are online on two gateways. A message is two PUSH frames with the name of the room, instead of frames
//! with 10,000 handles.

use super::event::{Event, GatewayId, LinkId, PushId, RoomNumber, SessionId};
use super::links::Links;
use super::outbox::{Outbox, PushSpec, room_link};
use super::rooms::{Bound, Rooms};
use super::route::Routes;
use bytes::Bytes;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{Bind, Unbind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Sessions in one BIND or UNBIND.
const HANDLES_MAX: usize = 8_192;

#[derive(Debug)]
struct GroupRoom {
    name: Arc<str>,
    /// Link of each gateway that has or had a member.
    links: BTreeMap<GatewayId, LinkId>,
    /// Members who are in as many rooms as a session may be: they are pushed to one by one.
    unbound: Vec<SessionId>,
}

/// Rooms of groups by number, and the numbers by name.
#[derive(Debug, Default)]
pub(super) struct GroupRooms {
    all: HashMap<RoomNumber, GroupRoom>,
    by_name: HashMap<Arc<str>, RoomNumber>,
    /// Part of all names, so that no other life of the backend has used them.
    pub(super) epoch: u64,
    /// The largest number of a room that was ever opened.
    newest: u64,
    /// Rooms lost since the start.
    lost: u64,
}

/// Tables of an [`Outbox`] that a change of members needs.
struct Table<'a> {
    rooms: &'a mut Rooms,
    routes: &'a Routes,
    links: &'a mut Links,
}

impl GroupRooms {
    /// Opens a room, but no second time: gateways may hold members of one that was lost, under its name.
    fn open(&mut self, room: RoomNumber) {
        if room.0 <= self.newest {
            return;
        }
        self.newest = room.0;
        // No conversation has a name with this beginning, so no client asks for such a room.
        let name: Arc<str> = format!("\u{1}{:x}:{:x}", self.epoch, room.0).into();
        self.by_name.insert(Arc::clone(&name), room);
        self.all.insert(room, GroupRoom { name, links: BTreeMap::new(), unbound: Vec::new() });
    }

    pub(super) fn number(&self, name: &str) -> Option<RoomNumber> {
        self.by_name.get(name).copied()
    }

    /// Rooms that use a link.
    fn on_link(&self, link: LinkId) -> Vec<RoomNumber> {
        let uses = |room: &GroupRoom| room.links.values().any(|it| *it == link);
        self.all.iter().filter(|(_, room)| uses(room)).map(|(number, _)| *number).collect()
    }

    /// Link of a gateway for what goes to the members of a group by name. `None`: that of each session. An error: the room is lost.
    pub(super) fn link_for(
        &self,
        room: RoomNumber,
        gateway: GatewayId,
    ) -> Result<Option<LinkId>, RoomNumber> {
        let known = self.all.get(&room).ok_or(room)?;
        Ok(known.links.get(&gateway).copied())
    }

    /// Panics if a room has a link that is gone, or no name.
    pub(super) fn check(&self, links: &Links) {
        assert_eq!(self.all.len(), self.by_name.len());
        for (number, room) in &self.all {
            assert_eq!(self.number(&room.name), Some(*number));
            for link in room.links.values() {
                assert!(links.is_full(*link).is_some(), "{number:?} has a link that is gone");
            }
        }
    }

    /// Binds sessions. False: a limit of rooms, or a gateway has no link that takes more.
    fn try_enter(&mut self, room: RoomNumber, sessions: &[SessionId], table: &mut Table<'_>) -> bool {
        let Some(name) = self.name_of(room) else { return true };
        let mut entered: BTreeMap<LinkId, (u64, Vec<u64>)> = BTreeMap::new();
        let mut is_whole = true;
        for session in sessions {
            let Some((gateway, handle)) = table.routes.get(*session).map(|it| (it.gateway, it.handle)) else {
                continue;
            };
            let chosen = self.all.get(&room).and_then(|room| room.links.get(&gateway).copied());
            let Some(link) = chosen.or_else(|| room_link(table.links, gateway, &name)) else {
                is_whole = false;
                break;
            };
            let Some(known) = self.all.get_mut(&room) else { return true };
            match table.rooms.bind(&name, *session, gateway) {
                Bound::Already => {}
                Bound::Now(version) => {
                    known.links.insert(gateway, link);
                    let (newest, handles) = entered.entry(link).or_default();
                    *newest = version;
                    handles.push(handle);
                }
                Bound::SessionFull if known.unbound.contains(session) => {}
                Bound::SessionFull => known.unbound.push(*session),
                Bound::Refused => is_whole = false,
            }
        }
        for (link, (version, handles)) in entered {
            for handles in handles.chunks(HANDLES_MAX) {
                let (handles, room) = (handles.to_vec(), name.to_string());
                table.links.put(link, Kind::Bind, 0, 0, &Bind { handles, room, version, reset: false });
            }
        }
        is_whole
    }

    fn leave(&mut self, room: RoomNumber, sessions: &[SessionId], table: &mut Table<'_>) {
        let Some(known) = self.all.get_mut(&room) else { return };
        let name = Arc::clone(&known.name);
        let mut left: BTreeMap<LinkId, (u64, Vec<u64>)> = BTreeMap::new();
        for session in sessions {
            known.unbound.retain(|other| other != session);
            let Some((gateway, handle)) = table.routes.get(*session).map(|it| (it.gateway, it.handle)) else {
                continue;
            };
            if let (Some(version), Some(link)) =
                (table.rooms.unbind(&name, *session, gateway), known.links.get(&gateway))
            {
                let (newest, handles) = left.entry(*link).or_default();
                *newest = version;
                handles.push(handle);
            }
        }
        for (link, (version, handles)) in left {
            for handles in handles.chunks(HANDLES_MAX) {
                let (handles, room) = (handles.to_vec(), name.to_string());
                table.links.put(link, Kind::Unbind, 0, 0, &Unbind { handles, room, version });
            }
        }
    }

    fn name_of(&self, room: RoomNumber) -> Option<Arc<str>> {
        self.all.get(&room).map(|room| Arc::clone(&room.name))
    }
}

impl Outbox {
    /// Makes `sessions` the members of a group's room. A number that is larger than all before opens a room; one that was lost or
    /// closed is passed over, and so are sessions that have ended.
    pub fn fill_room(&mut self, room: RoomNumber, mut sessions: Vec<SessionId>) {
        self.group_rooms.open(room);
        let Some(name) = self.group_rooms.name_of(room) else { return };
        sessions.sort_unstable();
        let has_left = |session: &SessionId| sessions.binary_search(session).is_err();
        let left: Vec<SessionId> = self.rooms.members(&name).filter(has_left).collect();
        if let Some(known) = self.group_rooms.all.get_mut(&room) {
            known.unbound.retain(|session| sessions.binary_search(session).is_ok());
        }
        self.change_room(room, &sessions, &left);
    }

    /// Puts sessions into a group's room, and takes others out. A room that is lost is not changed.
    pub fn change_room(&mut self, room: RoomNumber, enter: &[SessionId], leave: &[SessionId]) {
        let Self { group_rooms, rooms, routes, links, .. } = self;
        group_rooms.leave(room, leave, &mut Table { rooms, routes, links });
        if !group_rooms.try_enter(room, enter, &mut Table { rooms, routes, links }) {
            self.lose_room(room);
        }
    }

    /// Sends one payload to the members of a group's room except `except`, in one frame for each gateway. With `want_ack` the frame
    /// names the sessions, and each outcome comes as [`Event::Pushed`]. To a lost room nothing is sent.
    pub fn push_to_room(
        &mut self,
        room: RoomNumber,
        id: PushId,
        except: Option<SessionId>,
        spec: PushSpec,
        body: &Bytes,
    ) {
        self.skip_push(id);
        let Some(known) = self.group_rooms.all.get_mut(&room) else { return };
        let routes = &self.routes;
        known.unbound.retain(|session| routes.get(*session).is_some());
        let (name, unbound) = (Arc::clone(&known.name), known.unbound.clone());
        let mut links = known.links.clone();
        links.retain(|gateway, _| self.rooms.is_on(&name, *gateway));
        if links.values().any(|link| self.links.is_full(*link) != Some(false)) {
            return self.lose_room(room);
        }
        let unbound: Vec<_> = unbound.into_iter().filter(|session| Some(*session) != except).collect();
        if !unbound.is_empty() {
            self.push_as(id, &unbound, None, spec, body);
        }
        if spec.want_ack {
            let members: Vec<_> =
                self.rooms.members(&name).filter(|session| Some(*session) != except).collect();
            let mut targets: BTreeMap<GatewayId, Vec<(LinkId, u64)>> = BTreeMap::new();
            for known in members.into_iter().filter_map(|session| self.routes.get(session)) {
                if let Some(link) = links.get(&known.gateway) {
                    targets.entry(known.gateway).or_default().push((*link, known.handle));
                }
            }
            return targets.values().for_each(|targets| self.put_push(targets, id, spec, body));
        }
        for (gateway, link) in links {
            let except = except.and_then(|session| self.routes.get(session));
            let except = except.filter(|known| known.gateway == gateway).map_or(0, |known| known.handle);
            self.put_room_push(link, &name, except, spec, body);
        }
    }

    /// Ends a group's room.
    pub fn close_room(&mut self, room: RoomNumber) {
        let Some(name) = self.group_rooms.name_of(room) else { return };
        let members: Vec<SessionId> = self.rooms.members(&name).collect();
        let Self { group_rooms, rooms, routes, links, .. } = self;
        group_rooms.leave(room, &members, &mut Table { rooms, routes, links });
        self.group_rooms.all.remove(&room);
        self.group_rooms.by_name.remove(&name);
    }

    /// Returns the rooms of groups, and how many were lost since the start.
    pub fn group_rooms(&self) -> (usize, u64) {
        (self.group_rooms.all.len(), self.group_rooms.lost)
    }

    /// Loses the rooms of a link that has ended.
    pub(super) fn on_room_link_down(&mut self, link: LinkId) {
        self.group_rooms.on_link(link).into_iter().for_each(|room| self.lose_room(room));
    }

    /// Ends a room whose members may have missed something, and tells the handler.
    pub(super) fn lose_room(&mut self, room: RoomNumber) {
        self.close_room(room);
        self.group_rooms.lost += 1;
        self.emit(Event::RoomLost { room });
    }
}
