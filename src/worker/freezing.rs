//! A worker written down, and read in the process that takes over (`docs/handover.md`).
//!
//! Links keep their sockets, what was read and not sent, and the questions that wait for answers. A link that
//! was not open is not written down: it is tried anew. Breakers begin closed.

use super::logins::Asked;
use super::token::Source;
use super::{Count, Worker};
use crate::crew::Unit;
use crate::handoff::PushTicket;
use crate::link::{LinkIndex, Pending, Slot, Up};
use crate::router::Announcement;
use crate::router::{Change, Parked};
use crate::snapshot::{
    Item, LinkRecord, LoginRecord, ParkedRecord, PendingRecord, QueryRecord, Records, Section, SnapshotError,
    TicketRecord, UpRecord, WorkerHead,
};
use crate::sys::sockets;
use mio::net::TcpStream;
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::ConnUp;
use moorline_proto::time::{Duration, Instant};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

/// A link that was read, and not yet put in its place.
struct Thawing {
    record: LinkRecord,
    pending: Vec<(Option<Up>, Instant)>,
    asked: Vec<(Option<Asked>, Instant)>,
}

/// Gives the socket that a snapshot names.
pub(super) type TakeSocket<'a> = dyn FnMut(&crate::snapshot::SocketRef) -> io::Result<TcpStream> + 'a;

impl Unit for Worker {
    fn poll_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn timeout(&mut self) -> Duration {
        self.time_to_wait()
    }

    fn turn(&mut self, timeout: Duration) -> io::Result<bool> {
        Ok(self.run_turn(timeout))
    }

    fn resume(&mut self, _unix_base_nanos: u64) {}

    fn step(&mut self) -> bool {
        let mut is_busy = !self.outbox.is_empty() || !self.logins.is_empty();
        while let Some(batch) = self.mailbox.try_recv() {
            is_busy = true;
            self.handle_batch(batch);
        }
        self.judge_logins(usize::MAX);
        self.tally[Count::MailboxFull] += self.outbox.flush();
        is_busy || !self.outbox.is_empty()
    }

    fn freeze(&mut self, out: &mut Section) -> io::Result<()> {
        let Self {
            settings,
            clock: _,
            poll: _,
            mailbox: _,
            judge: _,
            stop: _,
            board: _,
            registry: _,
            links,
            endpoints: _, // breakers and averages begin anew
            slots,
            parking,
            announcements,
            outbox: _,
            logins: _, // judged before
            asked,
            round: _, // the next digest repairs what this one would have
            queries,
            overload,
            pressure,
            answers: _,
            block: _,
            random,
            tally,
            scratch: _,
            now: _,
            stop_at: _,
            next_request,
            needs_balance: _,
            is_hurried: _,
            events: _,
        } = self;
        let (level, average) = overload.freeze();
        out.put(Item::Worker(Box::new(WorkerHead {
            next_request: *next_request,
            seats: slots.freeze(),
            counts: tally.cells().to_vec(),
            count_names: Count::SERIES.iter().map(|series| series.name.to_owned()).collect(),
            overload: level.into(),
            average,
            held: pressure.freeze(),
            random: random.state(),
            endpoints: settings.endpoints.iter().map(ToString::to_string).collect(),
            links_each: u32::try_from(settings.links_per_endpoint).unwrap_or(0),
        })));
        for ((index, link), asked) in (0u32..).zip(links).zip(asked) {
            let Some((mut record, stream)) = link.freeze() else { continue };
            record.index = index;
            record.socket = Some(sockets::name_of(stream)?.into());
            let (asked_base, asked) = asked.freeze();
            record.asked_base = asked_base;
            out.put(Item::Link(Box::new(record)));
            for (up, until) in link.pending.freeze().1 {
                let up = up.map(|up| freeze_up(up, out));
                out.put(Item::Pending(PendingRecord { up, until: until.as_nanos() }));
            }
            asked.for_each(|(asked, until)| out.put(Item::Asked(Asked::freeze(asked, until))));
        }
        parking.iter().for_each(|(slot, parked)| freeze_parked(slot, parked, out));
        for announcement in announcements {
            out.put(Item::Announcement(announcement.freeze()));
        }
        for ((link, generation, correlation), left) in queries {
            let (worker, link) = (settings.number.into(), u32::from(*link));
            let ticket = TicketRecord { worker, link, generation: *generation, correlation: *correlation };
            let left = u32::try_from(*left).unwrap_or(0);
            out.put(Item::Query(QueryRecord { ticket: Some(ticket), left }));
        }
        Ok(())
    }
}

impl Worker {
    /// Goes on where the worker was that wrote this. Links to endpoints that are not in the settings any
    /// more are given up, and their questions asked elsewhere.
    pub fn thaw(
        &mut self,
        records: &mut Records,
        now: Instant,
        take: &mut TakeSocket<'_>,
    ) -> Result<(), SnapshotError> {
        self.now = now;
        let Some(Item::Worker(head)) = records.next()? else {
            return Err(records.contradiction("a worker does not begin with its head"));
        };
        self.next_request = head.next_request;
        self.tally.thaw(&head);
        self.random = moorline_proto::random::Random::new(head.random);
        self.overload.thaw(now, u8::try_from(head.overload).unwrap_or(0), head.average);
        self.pressure.thaw(&head.held);
        let mut thawing: Vec<Thawing> = Vec::new();
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
                (Item::Parked(record), _) => self.thaw_parked(&record, records)?,
                (Item::Announcement(record), _) => self.announcements.push(Announcement::thaw(&record)),
                (Item::Query(QueryRecord { ticket: Some(ticket), left }), _) => {
                    let PushTicket { link, link_generation, correlation, .. } = ticket.into();
                    self.queries.insert((link, link_generation, correlation), left as usize);
                }
                _ => return Err(records.contradiction("a record that is no worker's")),
            }
        }
        self.thaw_links(&head, thawing, records, take)
    }

    fn thaw_links(
        &mut self,
        head: &WorkerHead,
        thawing: Vec<Thawing>,
        from: &Records,
        take: &mut TakeSocket<'_>,
    ) -> Result<(), SnapshotError> {
        let mut is_there = vec![false; self.links.len()];
        let mut given_up = Vec::new();
        for Thawing { record, pending, asked } in thawing {
            let socket = record.socket.ok_or_else(|| from.contradiction("a link has no socket"))?;
            let stream = take(&socket).map_err(|error| from.contradiction(format!("a link: {error}")))?;
            let index = record.index as usize;
            let endpoint = head.endpoints.get(index / head.links_each.max(1) as usize);
            let known = self.links.get(index).map(|link| link.address().to_string());
            if known.is_none() || known.as_ref() != endpoint || head.links_each as usize != self.links_each()
            {
                drop(stream); // its backend is no endpoint any more
                given_up.extend(pending.into_iter().filter_map(|(up, _)| up));
                continue;
            }
            for up in pending.iter().filter_map(|(up, _)| up.as_ref()) {
                self.slots.on_asked(up.slot);
            }
            let place = LinkIndex(u16::try_from(index).expect("there is such a link"));
            let token = Source::Link(place).into();
            self.links[index]
                .thaw(&record, stream, pending, self.poll.registry(), token)
                .map_err(|error| from.contradiction(format!("a link cannot go on: {error}")))?;
            let forget_after = super::logins::forget_after(self.settings.link.up_timeout);
            self.asked[index] = Pending::thaw(forget_after, record.asked_base, asked);
            is_there[index] = true;
        }
        self.slots.thaw(&head.seats, |link| is_there.get(link.index()).is_some_and(|is_there| *is_there));
        self.announcements.retain(|one| is_there.get(one.link.index()).is_some_and(|is_there| *is_there));
        for mut up in given_up.into_iter().rev() {
            up.is_dup = true;
            self.parking.requeue(up);
        }
        self.needs_balance = true;
        Ok(())
    }

    fn links_each(&self) -> usize {
        self.settings.links_per_endpoint
    }

    fn thaw_parked(&mut self, record: &ParkedRecord, from: &Records) -> Result<(), SnapshotError> {
        let slot =
            Slot::from_number(record.slot).ok_or_else(|| from.contradiction("there is no such slot"))?;
        let parked = match (&record.up, &record.login, record.ended) {
            (Some(up), _, _) => Parked::Up(thaw_up(up, from)?),
            (None, Some(login), _) => Parked::Change(Change::Up(Box::new(ConnUp::from(login)))),
            (None, None, Some(key)) => {
                Parked::Change(Change::Down { key: ConnKey::from_u64(key), code: record.code })
            }
            (None, None, None) => return Err(from.contradiction("nothing waits in a line")),
        };
        self.parking.thaw(slot, parked);
        Ok(())
    }
}

fn freeze_parked(slot: Slot, parked: &Parked, out: &mut Section) {
    let mut record = ParkedRecord { slot: slot.number(), ..ParkedRecord::default() };
    match parked {
        Parked::Up(up) => record.up = Some(freeze_up(up, out)),
        Parked::Change(Change::Up(login)) => record.login = Some(LoginRecord::from(login.as_ref())),
        Parked::Change(Change::Down { key, code }) => {
            (record.ended, record.code) = (Some(key.as_u64()), *code);
        }
    }
    out.put(Item::Parked(record));
}

fn freeze_up(up: &Up, out: &mut Section) -> UpRecord {
    let Up { key, slot, command, number, is_dup, taken_at, body } = up;
    UpRecord {
        key: key.as_u64(),
        slot: slot.number(),
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
        slot: Slot::from_number(slot).ok_or_else(|| from.contradiction("there is no such slot"))?,
        command: command.ok_or_else(|| from.contradiction("a client's frame has no command"))?,
        number,
        is_dup,
        taken_at: Instant::from_nanos(taken_at),
        body: from.body(body)?,
    })
}
