//! A router written down, and read in the process that takes over (`docs/handover.md`).
//!
//! Links keep their sockets, what was read and not sent, and the questions that wait for answers. A link that
//! was not open is not written down: it is tried anew. Breakers begin closed.

use super::announce::Announcements;
use super::counters::Count;
use super::learned::Learning;
use super::logins::Asked;
use super::{Change, End, LinkIndex, Parked, Router, Slot, Up};
use crate::snapshot::{
    AnnouncementRecord, Item, LayerRecord, LinkRecord, LoginRecord, ParkedRecord, PendingRecord, QueryRecord,
    Records, Section, SnapshotError, SocketRef, UpRecord, WorkerHead,
};
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::ConnUp;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use std::collections::HashMap;
use std::io;

/// The socket of a link in a snapshot.
#[derive(Debug)]
pub struct LinkSocket {
    /// The link that goes on with it; `None`: its backend is not an endpoint any more, so close it.
    pub link: Option<LinkIndex>,
    /// Name in the snapshot.
    pub socket: SocketRef,
    /// TLS of the connection; `None`: it is not encrypted.
    pub layer: Option<LayerRecord>,
}

/// Socket of an open link, with its TLS, for a snapshot.
pub type FrozenSocket = (SocketRef, Option<LayerRecord>);

/// A link that was read, and not yet put in its place.
struct Thawing {
    record: LinkRecord,
    pending: Vec<(Option<Up>, Instant)>,
    asked: Vec<(Option<Asked>, Instant)>,
}

impl Router {
    /// Writes everything down; `freeze_socket` gives the socket of an open link. No output waits then.
    ///
    /// # Errors
    /// A socket that cannot be named.
    pub fn freeze(
        &mut self,
        out: &mut Section,
        freeze_socket: &mut dyn FnMut(LinkIndex) -> io::Result<FrozenSocket>,
    ) -> io::Result<()> {
        let Self {
            settings,
            sides,
            endpoints: _,     // breakers and averages begin anew
            own_endpoints: _, // the settings of the process that takes over may name others
            greetings: _,
            cluster: _, // the owners are asked for again
            ups,
            announcements,
            logins,
            pushes: _,
            rooms,
            pressure,
            needs_balance: _,
            is_hurried: _,
        } = self;
        let (level, average) = ups.overload.freeze();
        out.put(Item::Worker(Box::new(WorkerHead {
            next_request: sides.last_announcement,
            slots: ups.slots.freeze(),
            counts: sides.counters.cells().to_vec(),
            count_names: Count::METRICS.iter().map(|metric| metric.name.to_owned()).collect(),
            overload: level.into(),
            average,
            held: pressure.freeze(),
            random: sides.random.state(),
            endpoints: settings.endpoints.iter().map(ToString::to_string).collect(),
            links_each: u32::try_from(settings.links_per_endpoint).unwrap_or(0),
        })));
        for index in sides.links.indices() {
            let link = &mut sides.links[index];
            let Some(mut record) = link.freeze() else { continue };
            record.index = index.0.into();
            let (socket, layer) = freeze_socket(index)?;
            (record.socket, record.layer) = (Some(socket), layer);
            let (asked_base, asked) = logins.freeze(index);
            record.asked_base = asked_base;
            out.put(Item::Link(Box::new(record)));
            for (up, until) in link.pending.freeze().1 {
                let up = up.map(|up| freeze_up(up, out));
                out.put(Item::Pending(PendingRecord { up, until: until.as_nanos() }));
            }
            asked.for_each(|record| out.put(Item::Asked(record)));
        }
        ups.parking.iter().for_each(|(slot, parked)| freeze_parked(slot, parked, out));
        announcements.freeze().for_each(|record| out.put(Item::Announcement(record)));
        rooms.freeze(sides.number).for_each(|record| out.put(Item::Query(record)));
        Ok(())
    }

    /// Continues the router that wrote `records`. Links to endpoints that are not in the settings any
    /// more are given up, and their questions are asked elsewhere. Returns every socket of the snapshot.
    ///
    /// # Errors
    /// The records contradict each other.
    pub fn thaw(&mut self, now: Instant, records: &mut Records) -> Result<Vec<LinkSocket>, SnapshotError> {
        self.sides.now = now;
        let Some(Item::Worker(head)) = records.next()? else {
            return Err(records.contradiction("a worker does not begin with its head"));
        };
        self.sides.counters.thaw(&head);
        self.sides.random = Random::new(head.random);
        self.ups.overload.thaw(now, u8::try_from(head.overload).unwrap_or(0), head.average);
        self.pressure.thaw(&head.held);
        let mut thawing: Vec<Thawing> = Vec::new();
        let mut announcements = Vec::new();
        while let Some(item) = records.next()? {
            let last = thawing.last_mut();
            match (item, last) {
                (Item::Link(record), _) => {
                    thawing.push(Thawing { record: *record, pending: Vec::new(), asked: Vec::new() });
                }
                (Item::Pending(PendingRecord { up, until }), Some(link)) => {
                    let up = up.map(|up| thaw_up(&up, records)).transpose()?;
                    link.pending.push((up, Instant::from_nanos(until)));
                }
                (Item::Asked(record), Some(link)) => link.asked.push(Asked::thaw(record, records)?),
                (Item::Parked(record), _) => {
                    let (slot, parked) = thaw_parked(&record, records)?;
                    self.ups.parking.thaw(slot, parked);
                }
                (Item::Announcement(record), _) => announcements.push(record),
                (Item::Query(QueryRecord { ticket: Some(ticket), left }), _) => self.rooms.thaw(ticket, left),
                _ => return Err(records.contradiction("a record that is no worker's")),
            }
        }
        self.thaw_links(&head, thawing, &announcements, records)
    }

    fn thaw_links(
        &mut self,
        head: &WorkerHead,
        thawing: Vec<Thawing>,
        announcements: &[AnnouncementRecord],
        from: &Records,
    ) -> Result<Vec<LinkSocket>, SnapshotError> {
        let (mut sockets, mut given_up, mut places) = (Vec::new(), Vec::new(), HashMap::new());
        let now = self.sides.now;
        for Thawing { record, pending, asked } in thawing {
            // A node may have named its endpoint.
            if self.cluster.is_some()
                && let Some(text) =
                    head.endpoints.get(record.index as usize / head.links_each.max(1) as usize)
            {
                Learning::of(self).learn_again(text);
            }
            let socket = record.socket.ok_or_else(|| from.contradiction("a link has no socket"))?;
            let layer = record.layer.clone();
            let Some(link) = self.place_of(&record, head) else {
                let ends = record.ends.iter().filter_map(End::thaw);
                ends.rev().for_each(|end| self.ups.parking.requeue_end(end));
                given_up.extend(pending.into_iter().filter_map(|(up, _)| up));
                sockets.push(LinkSocket { link: None, socket, layer });
                continue;
            };
            for up in pending.iter().filter_map(|(up, _)| up.as_ref()) {
                self.ups.slots.on_asked(up.slot);
            }
            if !self.sides.links[link].thaw(&record, pending) {
                return Err(from.contradiction("a link cannot go on: what was read of it is not a frame"));
            }
            let endpoint = self.sides.links[link].endpoint();
            self.settings.stores.thaw((self.sides.number, link), endpoint, &record.store);
            let before = u16::try_from(record.index).unwrap_or(u16::MAX);
            if before != link.0 {
                self.sides.links[link].rename(before, now);
            }
            places.insert(before, link);
            self.logins.thaw(link, record.asked_base, asked);
            sockets.push(LinkSocket { link: Some(link), socket, layer });
        }
        let is_there = |link| sockets.iter().any(|socket| socket.link == Some(link));
        for link in self.sides.links.indices().filter(|link| !is_there(*link)) {
            self.sides.links[link].state.begin_after(now);
        }
        let place = |link: LinkIndex| places.get(&link.0).copied();
        self.ups.slots.thaw(&head.slots, place);
        self.sides.last_announcement = head.next_request;
        self.announcements = Announcements::thaw(announcements, place);
        for mut up in given_up.into_iter().rev() {
            up.is_dup = true;
            self.ups.parking.requeue(up);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.note_behind();
        }
        // Slots of links that are gone: no other link may become ready and take them.
        self.placing().assign();
        self.needs_balance = true;
        Ok(sockets)
    }

    /// Returns the place of a link of the process before: the same among those to the same endpoint, wherever the settings
    /// have that now. `None`: the endpoint has fewer links, or is not there any more.
    fn place_of(&self, record: &LinkRecord, head: &WorkerHead) -> Option<LinkIndex> {
        let (index, each) = (record.index as usize, head.links_each.max(1) as usize);
        let endpoint = head.endpoints.get(index / each)?;
        let same = self.settings.endpoints.iter().position(|one| one.to_string() == *endpoint)?;
        let (place, each) = (index % each, self.settings.links_per_endpoint);
        let index = (place < each).then_some(same * each + place)?;
        Some(LinkIndex(u16::try_from(index).expect("there is such a link")))
    }
}

/// Adds the bodies of all frames that wait for a link, or for the answer of a backend, so that another process can read them
/// before a pause.
pub fn queued_bodies(router: &Router, found: &mut Vec<Bytes>) {
    let parked = router.ups.parking.iter().filter_map(|(_, parked)| match parked {
        Parked::Up(up) => Some(&up.body),
        Parked::Change(_) => None,
    });
    found.extend(parked.cloned());
    for index in router.sides.links.indices() {
        let pending = router.sides.links[index].pending.freeze().1;
        found.extend(pending.filter_map(|(up, _)| Some(up?.body.clone())));
    }
}

fn thaw_parked(record: &ParkedRecord, from: &Records) -> Result<(Slot, Parked), SnapshotError> {
    let slot = slot_of(record.slot).ok_or_else(|| from.contradiction("there is no such slot"))?;
    let parked = match (&record.up, &record.login, record.ended) {
        (Some(up), _, _) => Parked::Up(thaw_up(up, from)?),
        (None, Some(login), _) => Parked::Change(Change::Up(Box::new(ConnUp::from(login)))),
        (None, None, Some(key)) => {
            Parked::Change(Change::Down { key: ConnKey::from_u64(key), code: record.code })
        }
        (None, None, None) => return Err(from.contradiction("nothing waits in a line")),
    };
    Ok((slot, parked))
}

fn freeze_parked(slot: Slot, parked: &Parked, out: &mut Section) {
    let mut record = ParkedRecord { slot: slot.number().into(), ..ParkedRecord::default() };
    match parked {
        Parked::Up(up) => record.up = Some(freeze_up(up, out)),
        Parked::Change(Change::Up(login)) => record.login = Some(LoginRecord::from(login.as_ref())),
        &Parked::Change(Change::Down { key, code }) => record = End { slot, key, code }.into(),
    }
    out.put(Item::Parked(record));
}

impl From<End> for ParkedRecord {
    fn from(end: End) -> Self {
        let End { slot, key, code } = end;
        Self { slot: slot.number().into(), ended: Some(key.as_u64()), code, ..Self::default() }
    }
}

impl End {
    /// Reads an end that a link kept; `None`: the record is of something else.
    pub(super) fn thaw(record: &ParkedRecord) -> Option<Self> {
        let (slot, key) = (slot_of(record.slot)?, ConnKey::from_u64(record.ended?));
        Some(Self { slot, key, code: record.code })
    }
}

fn slot_of(number: u32) -> Option<Slot> {
    Slot::from_number(number.into())
}

fn freeze_up(up: &Up, out: &mut Section) -> UpRecord {
    let Up { key, slot, command, number, is_dup, taken_at, body } = up;
    UpRecord {
        key: key.as_u64(),
        slot: slot.number().into(),
        command: command.byte().into(),
        number: *number,
        is_dup: *is_dup,
        taken_at: taken_at.as_nanos(),
        body: out.body(body),
    }
}

fn thaw_up(record: &UpRecord, from: &Records) -> Result<Up, SnapshotError> {
    let UpRecord { key, slot, command, number, is_dup, taken_at, body } = *record;
    let command = u8::try_from(command).ok().and_then(Command::from_byte);
    Ok(Up {
        key: ConnKey::from_u64(key),
        slot: slot_of(slot).ok_or_else(|| from.contradiction("there is no such slot"))?,
        command: command.ok_or_else(|| from.contradiction("a client's frame has no command"))?,
        number,
        is_dup,
        taken_at: Instant::from_nanos(taken_at),
        body: from.body(body)?,
    })
}
