//! One push toward one session.
//!
//! Example: a PUSH for a group of three becomes three parcels that share one body. One that is replaced by a NOTIFY
//! gives it its ticket, so that the backend learns the outcome of both.

use crate::messages::{Push, PushRef};
use crate::snapshot::{ParcelRecord, PushRefRecord, Records, Section, SnapshotError};
use bytes::Bytes;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::ids::Seq;
use moorline_proto::message::client::{self, Notify};
use moorline_proto::message::{decode, encode};
use moorline_proto::time::Instant;
use std::sync::Arc;

/// One push toward one session.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) ticket: Option<PushRef>,
    pub(super) command: Command,
    pub(super) lane: Lane,
    pub(super) expires_at: Instant,
    pub(super) body: Bytes,
    pub(super) packed: Option<Bytes>,
    pub(super) collapse: Option<Arc<str>>,
    /// Tickets of other pushes that this one stands for.
    pub(super) also: Vec<PushRef>,
    /// Tells whether the body has memory of its own, and is not a part of the block that a link read.
    pub(super) is_own: bool,
}

/// Memory of one parcel beside its body, in bytes.
pub(super) const PARCEL_BYTES: usize = size_of::<Parcel>();

impl Parcel {
    /// A push toward one of its sessions; the body is shared.
    pub(super) fn new(push: &Push) -> Self {
        let Push {
            ticket,
            targets: _,
            command,
            lane,
            rank: _,
            expires_at,
            body,
            packed,
            except: _,
            collapse,
        } = push;
        Self {
            ticket: *ticket,
            command: *command,
            lane: *lane,
            expires_at: *expires_at,
            body: body.clone(),
            packed: packed.clone(),
            collapse: collapse.clone(),
            also: Vec::new(),
            is_own: false,
        }
    }

    /// Tickets of the push and of all others that it stands for.
    pub(super) fn tickets(&self) -> impl Iterator<Item = PushRef> + '_ {
        self.ticket.into_iter().chain(self.also.iter().copied())
    }

    pub(super) fn frame(&self, seq: Seq, flags: Flags, accepts_lz4: bool) -> Frame {
        let (body, flags) = match &self.packed {
            Some(packed) if accepts_lz4 => (packed.clone(), flags.with(Flags::COMPRESSED)),
            _ => (self.body.clone(), flags),
        };
        Frame::new(self.command, body).with_lane(self.lane).with_seq(seq).with_flags(flags)
    }

    /// Writes the parcel.
    pub(super) fn freeze(&self, out: &mut Section) -> ParcelRecord {
        let Self { ticket, command, lane, expires_at, body, packed, collapse, also, is_own: _ } = self;
        ParcelRecord {
            ticket: ticket.map(PushRefRecord::from),
            command: command.byte().into(),
            lane: *lane as u32,
            expires_at: expires_at.as_nanos(),
            body: out.body(body),
            packed: packed.as_ref().map_or(0, |packed| out.body(packed)),
            collapse: collapse.as_deref().map(str::to_owned),
            also: also.iter().copied().map(PushRefRecord::from).collect(),
        }
    }

    /// Reads a parcel.
    pub(super) fn thaw(record: &ParcelRecord, from: &Records) -> Result<Self, SnapshotError> {
        let ParcelRecord { ticket, command, lane, expires_at, body, packed, collapse, also } = record;
        let command = u8::try_from(*command).ok().and_then(Command::from_byte);
        Ok(Self {
            ticket: ticket.map(PushRef::from),
            command: command.ok_or_else(|| from.contradiction("a push has no command"))?,
            lane: Lane::from_number(*lane),
            expires_at: Instant::from_nanos(*expires_at),
            body: from.body(*body)?,
            packed: if *packed == 0 { None } else { Some(from.body(*packed)?) },
            collapse: collapse.as_deref().map(Arc::from),
            also: also.iter().copied().map(PushRef::from).collect(),
            is_own: false,
        })
    }

    /// The NOTIFY that may take the place of this PUSH: the client pulls what it misses. `None`: the push
    /// is an event, or may not wait.
    pub(super) fn notify(&self) -> Option<Self> {
        if self.command != Command::Push || !self.may_wait() {
            return None;
        }
        let client::Push { conversation, seq, .. } = decode(&self.body).ok()?;
        if seq == 0 {
            return None; // something that happened: there is no message to pull
        }
        let key = conversation.as_str().into();
        let body = encode(&Notify { conversation, latest: seq, first: seq });
        let (packed, collapse) = (None, Some(key));
        Some(Self { command: Command::Notify, body, packed, collapse, is_own: true, ..self.clone() })
    }

    /// Makes this NOTIFY stand for the messages of another one, too.
    pub(super) fn join(&mut self, other: &Self) {
        if let (Ok(mine), Ok(theirs)) = (decode::<Notify>(&self.body), decode::<Notify>(&other.body)) {
            let (latest, first) = (mine.latest.max(theirs.latest), mine.first.min(theirs.first));
            self.body = encode(&Notify { latest, first, ..mine });
        }
    }

    /// Returns whether this parcel takes the place of another one on its lane: they have the same collapse key.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        self.collapse.is_some() && other.collapse == self.collapse && other.command == self.command
    }

    /// Returns whether nobody waits for the push's outcome: a signal, or a message of a live room.
    pub(super) const fn is_unasked(&self) -> bool {
        self.ticket.is_none() && self.also.is_empty()
    }

    /// Gives the body memory of its own, for a small push that waits would keep the whole block that a link read. The
    /// receivers of one push share the copy in `own`.
    pub(super) fn make_own(&mut self, own: &mut Option<Bytes>) {
        if !self.is_own {
            self.body = own.get_or_insert_with(|| Bytes::copy_from_slice(&self.body)).clone();
            self.is_own = true;
        }
    }

    pub(super) const fn may_wait(&self) -> bool {
        matches!(self.lane, Lane::Group | Lane::Bulk)
    }
}
