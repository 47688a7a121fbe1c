//! Sessions that outlive their connections [P-3.10].
//!
//! A session keeps its seat, the slot and key of its connection, while it has no socket: the backend sees
//! nothing of that, pushes wait, answers are remembered. A client that comes back with a good ticket
//! brings its new socket to the old seat; so nothing that names the session has to change.
//!
//! ```text
//!  Active ──socket lost, or silent──► Detached ──time is up, or too many──► (gone)
//!    ▲                                   │
//!    └──── HELLO with its ticket ────────┘   (also from Active: the old socket is half dead)
//! ```

use super::connection::NO_SESSION;
use super::ticket::{Ticket, session_id};
use super::{Count, Output, Outputs, Shard};
use crate::handoff::Admission;
use bytes::Bytes;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Decoder, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::{Kick, Resume};
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use std::collections::VecDeque;

/// The seats without a socket, oldest first, with stale entries among them.
#[derive(Debug, Default)]
pub(super) struct Kept {
    seats: VecDeque<(ConnKey, Instant)>,
    /// How many there really are.
    pub(super) len: usize,
}

impl Kept {
    /// Seats and since when they are kept, oldest first.
    pub(super) fn freeze(&self) -> Vec<u64> {
        let Self { seats, len: _ } = self;
        seats.iter().flat_map(|(key, since)| [key.as_u64(), since.as_nanos()]).collect()
    }

    /// Reads them; `len` is how many there really are.
    pub(super) fn thaw(seats: &[u64], len: usize) -> Self {
        let seat = |pair: &[u64; 2]| (ConnKey::from_u64(pair[0]), Instant::from_nanos(pair[1]));
        Self { seats: seats.as_chunks().0.iter().map(seat).collect(), len }
    }
}

impl Shard {
    /// The socket is gone. True: its session waits for the client; false: nobody waits, end it.
    pub(super) fn try_detach(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) -> bool {
        if self.settings.session_keep.is_zero() || self.settings.kept_max == 0 || self.is_draining {
            return false;
        }
        let Some(connection) = self.table.get_mut(key) else { return false };
        let Transition::To(state) = connection.state.on(Event::Detaching) else { return false };
        connection.state = state;
        connection.heard = super::bucket::Stamp::of(now);
        self.drop_socket(key, outputs);
        if let Some(session) = self.session_of(key) {
            session.early = None; // what was not taken comes again
        }
        self.tally[Count::Detaches] += 1;
        self.kept.len += 1;
        self.kept.seats.push_back((key, now));
        self.arm(key, now + self.settings.session_keep);
        while self.kept.len > self.settings.kept_max {
            let Some((oldest, since)) = self.kept.seats.pop_front() else { break };
            if self.is_kept_since(oldest, since) {
                self.tally[Count::KeptOverMax] += 1;
                self.forget(oldest, 0, outputs);
            }
        }
        if self.kept.seats.len() > 2 * self.kept.len + STALE_MAX {
            let mut seats = std::mem::take(&mut self.kept.seats);
            seats.retain(|(key, since)| self.is_kept_since(*key, *since));
            self.kept.seats = seats;
        }
        true
    }

    fn is_kept_since(&self, key: ConnKey, since: Instant) -> bool {
        let stamp = super::bucket::Stamp::of(since);
        let is_it = |it: &super::connection::Connection| it.state == State::Detached && it.heard == stamp;
        self.table.get(key).is_some_and(is_it)
    }

    /// What only a socket needs is given back, and the socket closed.
    fn drop_socket(&mut self, key: ConnKey, outputs: &mut Outputs) {
        let Some(connection) = self.table.get_mut(key) else { return };
        connection.decoder = Decoder::new();
        connection.is_transmit_due = false;
        self.queued_bytes -= connection.outbound.take().map_or(0, |outbound| outbound.bytes());
        self.unhold(key);
        outputs.push(Output::Close(key));
    }

    /// A last frame for a socket whose session stays: behind a half-written one, if it fits at once.
    pub(super) fn say_last(&mut self, key: ConnKey, last: Frame, outputs: &mut Outputs) {
        let ack = self.session_of(key).map_or(0, |session| session.dedupe.taken());
        let Some(connection) = self.table.get_mut(key) else { return };
        let mut outbound = connection.outbound.take().unwrap_or_else(|| self.pool.take());
        self.queued_bytes -= outbound.bytes();
        outbound.drop_unsent();
        outbound.push(last.with_ack(ack));
        let mut bytes = Vec::new();
        outbound.gather(&mut bytes, usize::MAX);
        outputs.push(Output::FinalBytes(key, bytes.into()));
    }

    /// The seat of the session that this login may go on with.
    pub(super) fn resumable(&self, now: Instant, who: &Admission) -> Option<ConnKey> {
        let resume = who.resume.as_deref()?;
        let ticket = self.tickets.open(&resume.ticket, self.settings.unix_millis(now) / 1_000)?;
        let connection = self.table.get(ticket.seat).filter(|connection| connection.state.has_session())?;
        let session = self.registry.get(connection.session)?;
        let is_it = resume.epoch == self.settings.epoch
            && resume.session[..] == ticket.session().0
            && session.login_version == ticket.login_version
            // The WELCOME with the last one may be lost.
            && session.serial.wrapping_sub(ticket.serial) <= 1
            && session.serial < u16::MAX
            && (session.uid(), session.device()) == (&who.uid, &who.device);
        let is_whole = match &session.flight {
            Some(flight) => flight.can_resume(resume.last_seq, resume.sack),
            None => resume.last_seq.checked_add(1) == Some(session.next_seq),
        };
        (is_it && is_whole).then_some(ticket.seat)
    }

    /// The client is back: its new socket goes to the old seat, and what it missed follows WELCOME.
    pub(super) fn resume(
        &mut self,
        now: Instant,
        (newcomer, has_socket): (ConnKey, bool),
        seat: ConnKey,
        who: &Admission,
        outputs: &mut Outputs,
    ) {
        let from = newcomer;
        let newcomer = self.table.remove(newcomer).expect("it is being admitted");
        assert_eq!(newcomer.session, NO_SESSION, "a connection logs in once");
        self.wheel.cancel(newcomer.timer);
        let connection = self.table.get(seat).expect("found by its ticket");
        if connection.state == State::Detached {
            self.kept.len -= 1;
        } else {
            self.tally[Count::Takeovers] += 1;
            let reason = CloseReason::Replaced;
            let text = reason.text().trim().to_owned();
            let kick = Kick { code: reason.code(), may_reconnect: false, reason: text };
            self.say_last(seat, frame_of(Command::Kick, &kick), outputs);
            self.drop_socket(seat, outputs);
            self.tally.closed(reason);
        }
        if has_socket {
            outputs.push(Output::Reattach { from, to: seat });
        }
        let connection = self.table.get_mut(seat).expect("found by its ticket");
        let Transition::To(state) = connection.state.on(Event::Resumed) else {
            unreachable!("a seat with a session can be resumed");
        };
        connection.state = state;
        connection.decoder = newcomer.decoder;
        connection.heartbeat_s = self.settings.heartbeat_s.1;
        connection.heard = super::bucket::Stamp::of(now);
        let patience = server_patience(Duration::from_secs(u64::from(connection.heartbeat_s)));
        let session = self.registry.get_mut(connection.session).expect("a seat with a session");
        session.serial += 1;
        session.accepts_lz4 = who.accepts_lz4;
        let (answered, version) = (session.dedupe.base(), session.login_version);
        self.arm(seat, now + patience);
        self.tally[Count::Resumes] += 1;
        let Resume { last_seq, sack, .. } = **who.resume.as_ref().expect("it was judged");
        let replay = self.replay_len(seat, last_seq, sack);
        let welcome = moorline_proto::message::client::Welcome {
            resumed: true,
            cid_answered: answered,
            replay,
            ..self.welcome(now, seat, version)
        };
        self.send(seat, frame_of(Command::Welcome, &welcome), outputs);
        self.replay(now, seat, last_seq, sack, outputs);
    }

    /// A fresh ticket for the session at a seat; empty if sessions are not kept.
    pub(super) fn ticket_of(&self, now: Instant, seat: ConnKey, login_version: u64) -> Bytes {
        if self.settings.session_keep.is_zero() {
            return Bytes::new();
        }
        let serial = self.table.get(seat).and_then(|connection| self.registry.get(connection.session));
        let serial = serial.map_or(0, |session| session.serial);
        let expires_s = self.settings.unix_millis(now) / 1_000 + self.settings.ticket_ttl.as_secs();
        self.tickets.seal(&Ticket { seat, login_version, serial, expires_s })
    }

    /// As WELCOME names it.
    pub(super) fn session_name(seat: ConnKey, login_version: u64) -> Bytes {
        Bytes::copy_from_slice(&session_id(seat, login_version).0)
    }
}

/// Stale entries among the kept seats that are worth no sweep.
const STALE_MAX: usize = 64;
