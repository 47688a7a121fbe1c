//! From the store to devices: pushes of new messages, and the pump for devices that are behind.

use super::fanout::{AskedPush, Fanouts};
use super::output::Outputs;
use super::ranks::{rank_of, rank_of_members};
use super::receipts::Receipts;
use super::sessions::{LoginState, Session, Sessions};
use super::storage::Storage;
use super::store::{
    Arrived, ArrivedMessage, Backlog, ConversationId, Delivery, DeviceNumber, Entry, Facts, Origin, Read,
    Recipient, Store, StreamPage, Ticket, Write,
};
use super::suspects::Caution;
use super::tasks::Task;
use super::waiting::{Waiter, Waiting};
use super::webhooks::Webhooks;
use super::{ImConfig, MessageIds, RETRY_AFTER, Scratch, Status};
use crate::server::{Now, PushId, PushSpec, SessionId};
use bytes::Bytes;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::backend::{Outcome, Rank};
use moorline_proto::message::im::{Happened, Resync, happened};
use moorline_proto::message::{client, encode};
use moorline_proto::time::Instant;

/// Parts of the backend that decide what devices are pushed.
pub(super) struct Deliveries<'a, S> {
    pub(super) config: &'a ImConfig,
    pub(super) storage: &'a mut Storage<S>,
    pub(super) ids: &'a mut MessageIds,
    pub(super) sessions: &'a mut Sessions,
    pub(super) fanouts: &'a mut Fanouts,
    pub(super) receipts: &'a mut Receipts,
    pub(super) webhooks: &'a mut Webhooks,
    pub(super) tally: &'a mut Status,
    pub(super) scratch: &'a mut Scratch,
    pub(super) out: &'a mut Outputs,
}

impl<S: Store> Deliveries<'_, S> {
    pub(super) fn on_pushed(&mut self, now: Now, session: SessionId, push: PushId, outcome: Outcome) {
        let Some(known) = self.sessions.get_mut(session) else { return };
        if let Some(AskedPush { conversation, first, last }) = self.fanouts.asked(push) {
            if let (Outcome::Acked, Some(by)) = (outcome, known.owner()) {
                self.fanouts.rooms.on_acked(conversation, last);
                self.storage.write(Write::Confirm { by, conversation, seq: last }, Waiter::Nobody);
                self.notify_next(session);
            } else if !matches!(outcome, Outcome::Queued | Outcome::Offline) {
                // A later push of the group would confirm these messages, which the device does not have.
                known.pending.add(conversation, self.fanouts.rooms.first_missed(conversation, first));
                known.window.stall_until(now.instant + RETRY_AFTER);
                self.sessions.on_stalled(session);
                self.fanouts.rooms.note(session);
            }
            return;
        }
        if outcome == Outcome::TooLarge {
            // Its gateway will never send it: this device goes without, or it would be pushed for ever.
            tracing::warn!(
                ?session,
                "a push is larger than the gateway sends, and is passed over; lower im.payload_max"
            );
            if known.window.on_acked(push) {
                self.sessions.on_acked(session);
            }
            self.pump(session);
        } else if outcome == Outcome::Acked {
            self.tally.acked += 1;
            known.caution = Caution::None;
            if known.window.on_acked(push) {
                self.sessions.on_acked(session);
            }
            self.pump(session);
        } else if outcome == Outcome::Queued {
            // The client is away and its session is kept: the real outcome follows.
        } else if outcome == Outcome::Offline {
            known.window.on_failed(push, Instant::FAR_FUTURE); // its next ConnUp starts over
            self.note_place(session);
        } else if known.window.on_failed(push, now.instant + RETRY_AFTER) {
            self.sessions.on_stalled(session);
            self.note_place(session);
        }
    }

    /// Positions acked in this turn, one write per device.
    pub(super) fn write_acks(&mut self) {
        for id in self.sessions.take_acked() {
            if let Some(session) = self.sessions.get(id)
                && let Some((user, device)) = session.owner()
            {
                let position = session.window.acked();
                self.storage.write(Write::Acked { user, device, position, gone_ms: 0 }, Waiter::Ack(id));
            }
        }
    }

    pub(super) fn on_backlog(&mut self, ticket: Ticket, id: SessionId, backlog: Backlog) {
        let Some(session) = self.sessions.get_mut(id).filter(|it| it.reading == Some(ticket)) else { return };
        (session.reading, session.state) = (None, LoginState::Ready);
        session.end = session.end.max(backlog.end);
        session.pending.load(backlog.unconfirmed);
        self.pump(id);
    }

    /// Notifies the device of messages of large groups, which are in no inbox: at most `NOTIFIES_MAX` at once, the rest as
    /// those are acknowledged. Called when the inbox is delivered.
    fn notify_due(&mut self, id: SessionId) {
        if self.sessions.get_mut(id).is_some_and(|session| session.pending.begin()) {
            for _ in 0..NOTIFIES_MAX {
                self.notify_next(id);
            }
        }
    }

    /// Notifies a device of one more group.
    pub(super) fn notify_next(&mut self, id: SessionId) {
        let next = self.sessions.get_mut(id).and_then(|session| session.pending.next());
        let Some(conversation) = next else { return };
        if self.storage.prefetch(None, Task::Notify(id, conversation)).is_some() {
            self.notify_planned(id, conversation);
        }
    }

    pub(super) fn notify_planned(&mut self, id: SessionId, conversation: ConversationId) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if let Some(first) = session.pending.take_before(conversation, u64::MAX) {
            self.fanouts.rooms.note(id);
            self.notify_from(id, conversation, first);
        }
    }

    /// Returns how messages of a conversation are pushed.
    pub(super) fn spec_of(&self, conversation: ConversationId) -> PushSpec {
        spec_of(&self.storage.store, self.config, conversation)
    }

    fn notify_from(&mut self, id: SessionId, conversation: ConversationId, first: u64) {
        let latest = self.storage.store.latest(conversation);
        if first <= latest {
            let spec = PushSpec { command: Command::Notify, ..self.spec_of(conversation) };
            let push = self.out.push(&[id], spec, &notify(&self.storage.store, conversation, first));
            self.fanouts.ask(push, AskedPush { conversation, first, last: latest });
        }
    }

    /// Gives a new message of a conversation, or something that happened, to the devices of its recipients: one push for
    /// all that are up to date.
    pub(super) fn deliver(
        &mut self,
        conversation: Option<ConversationId>,
        origin: Origin,
        delivery: &Delivery,
        recipients: &[Recipient],
    ) {
        let mut targets = std::mem::take(&mut self.scratch.targets);
        let mut sessions = std::mem::take(&mut self.scratch.target_sessions);
        for recipient in &recipients[delivery.recipients.clone()] {
            targets.extend(self.sessions.of(recipient.user).map(|it| (it.id, recipient.position)));
            self.webhooks.note_entry(*recipient);
        }
        targets.retain(|(id, position)| {
            let is_direct = self.try_direct(*id, *position, origin, delivery.body.len());
            // A group that has become small, of which this device has not heard all.
            if let (true, Some(conversation)) = (is_direct, conversation)
                && let Some(session) = self.sessions.get_mut(*id)
                && let Some(first) = session.pending.take_before(conversation, u64::MAX)
            {
                self.fanouts.rooms.note(*id);
                self.notify_from(*id, conversation, first);
            }
            if is_direct {
                sessions.push(*id);
            } else {
                self.note_place(*id);
            }
            is_direct
        });
        if !sessions.is_empty() {
            let rank = rank_of_members(self.config, delivery.recipients.len());
            let event = PushSpec { rank, ..EVENT };
            let spec = conversation.map_or(event, |conversation| self.spec_of(conversation));
            let push = self.out.push(&sessions, spec, &delivery.body);
            for (id, position) in targets.drain(..) {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.on_push(push, position, delivery.body.len());
                }
            }
        }
        targets.clear();
        sessions.clear();
        (self.scratch.targets, self.scratch.target_sessions) = (targets, sessions);
    }

    /// Pushes what another node has stored for users of this one.
    pub(super) fn on_arrived(&mut self, arrived: &Arrived) {
        let Arrived { messages, recipients, grown, .. } = arrived;
        for ArrivedMessage { conversation, origin, delivery } in messages {
            self.deliver(*conversation, *origin, delivery, recipients);
        }
        for Recipient { user, position } in grown {
            for id in self.sessions.of(*user).map(|session| session.id).collect::<Vec<_>>() {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.end = session.end.max(*position);
                }
                self.pump(id);
            }
        }
    }

    /// True if this device takes the entry at `position` as its next. If not it has it, wrote it, or
    /// is behind and catches up by itself.
    fn try_direct(&mut self, id: SessionId, position: u64, origin: Origin, bytes: usize) -> bool {
        let (pushes_max, bytes_max) = (self.config.outstanding, self.config.outstanding_bytes);
        let Some(session) = self.sessions.get_mut(id) else { return false };
        let pushes_max = session.pushes_max(pushes_max);
        session.end = session.end.max(position);
        if session.window.pushed() >= position || session.window.room(pushes_max) == 0 {
            return false;
        }
        if session.window.pushed() + 1 < position || session.state != LoginState::Ready {
            self.pump(id);
            return false;
        }
        if session.owner() == Some(origin) {
            if session.window.on_own(position) {
                self.sessions.on_acked(id);
            }
            return false;
        }
        session.window.fits(bytes, bytes_max)
    }

    /// Pushes the next entries of the stream of the session's user, as far as its window has room.
    pub(super) fn pump(&mut self, id: SessionId) {
        self.note_place(id);
        let Some(session) = self.sessions.get(id) else { return };
        let pushes_max = session.pushes_max(self.config.outstanding);
        let is_reading = session.reading.is_some();
        let Some((user, _)) = session.owner().filter(|_| session.is_listed && !is_reading) else { return };
        let (room, after) = (session.window.room(pushes_max), session.window.pushed());
        if room == 0 {
            return;
        }
        if after >= session.end {
            return self.notify_due(id);
        }
        let into = self.scratch.entries.pop().unwrap_or_default();
        let read = Read::Stream { user, after, limit: room.min(PUMP_ENTRIES), into };
        let ticket = self.storage.read(read, Waiting::Stream(id));
        if let Some(session) = self.sessions.get_mut(id) {
            session.reading = Some(ticket);
        }
    }

    pub(super) fn on_stream(&mut self, ticket: Ticket, id: SessionId, page: StreamPage) {
        let StreamPage { mut entries, after, end, is_readable } = page;
        if let Some(session) = self.sessions.get_mut(id).filter(|it| it.reading == Some(ticket)) {
            session.reading = None;
            session.end = session.end.max(end);
            let (is_last, device) = (entries.is_empty(), session.owner().map(|(_, device)| device));
            let is_rewound = after > session.window.pushed();
            let is_full = is_rewound
                || !session.is_listed
                || entries.drain(..).any(|(position, entry)| !self.try_pump(id, device, position, entry));
            if !is_full && !is_readable {
                // The rest is owed all the same: it is read again with a later tick.
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.stall();
                }
                self.sessions.on_stalled(id);
            } else if !is_full && is_last {
                // Nothing is left up to the end: it was trimmed.
                if let Some(session) = self.sessions.get_mut(id) {
                    session.window.skip_to(end);
                }
            }
            if is_rewound || !is_full && is_readable {
                self.pump(id);
            }
        }
        entries.clear();
        if self.scratch.entries.len() < SPARE_LISTS_MAX {
            self.scratch.entries.push(entries);
        }
    }

    /// False: it does not fit before something was acked.
    fn try_pump(&mut self, id: SessionId, device: Option<DeviceNumber>, position: u64, entry: Entry) -> bool {
        let (pushes_max, bytes_max) = (self.config.outstanding, self.config.outstanding_bytes);
        let Some(session) = self.sessions.get(id) else { return false };
        if position <= session.window.pushed() {
            return true; // pushed by itself since the read
        }
        if session.window.room(session.pushes_max(pushes_max)) == 0 {
            return false;
        }
        let is_replaced = session.caution == Caution::Replaced;
        if let Entry::Message { conversation, seq, .. } | Entry::Dropped { conversation, first: seq } = &entry
            && let Some(session) = self.sessions.get_mut(id)
            && let Some(first) = session.pending.take_before(*conversation, *seq)
        {
            self.fanouts.rooms.note(id);
            self.notify_from(id, *conversation, first);
        }
        let is_own = match &entry {
            Entry::Message { origin, .. } | Entry::Event { origin, .. } => {
                origin.is_some() && *origin == device
            }
            Entry::Dropped { .. } | Entry::EventsDropped => false,
        };
        // What it stands for, as far as the membership goes: who has left reads no more.
        let (first, last) = match &entry {
            Entry::Message { conversation, seq, .. } if is_replaced => {
                (self.visible_from(id, *conversation).max(*seq), self.storage.store.latest(*conversation))
            }
            Entry::Message { conversation, seq, .. } => (self.visible_from(id, *conversation), *seq),
            Entry::Dropped { conversation, first } => {
                (self.visible_from(id, *conversation).max(*first), self.storage.store.latest(*conversation))
            }
            Entry::Event { .. } | Entry::EventsDropped => (0, 0),
        };
        let (spec, body) = match entry {
            _ if is_own || first > last => {
                if let Some(session) = self.sessions.get_mut(id)
                    && session.window.on_own(position)
                {
                    self.sessions.on_acked(id);
                }
                return true;
            }
            Entry::Message { conversation, body, .. } if !is_replaced => (self.spec_of(conversation), body),
            Entry::Event { body, .. } if !is_replaced => (EVENT, body),
            Entry::Message { conversation, .. } | Entry::Dropped { conversation, .. } => {
                let spec = PushSpec { command: Command::Notify, ..self.spec_of(conversation) };
                (spec, notify(&self.storage.store, conversation, first))
            }
            Entry::Event { .. } | Entry::EventsDropped => (EVENT, self.resync()),
        };
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if !session.window.fits(body.len(), bytes_max) {
            return false;
        }
        if is_replaced {
            self.tally.replaced += 1;
            session.caution = Caution::Alone;
        }
        let push = self.out.push(&[id], spec, &body);
        session.window.on_push(push, position, body.len());
        true
    }

    /// The first seq that a session's user may read; of a conversation of others, none.
    fn visible_from(&self, id: SessionId, conversation: ConversationId) -> u64 {
        let user = self.sessions.get(id).and_then(Session::owner).map(|(user, _)| user);
        let member = user.and_then(|user| self.storage.store.member(conversation, user));
        member.map_or(u64::MAX, |member| member.first_visible())
    }

    /// Says that happenings were dropped from the inbox.
    fn resync(&mut self) -> Bytes {
        let message_id = self.ids.next(0); // the next one
        let happened = encode(&Happened { what: Some(happened::What::Resync(Resync {})) });
        encode(&client::Push { message_id, happened, ..Default::default() })
    }
}

/// Encodes a NOTIFY that stands for all messages from `first` on.
pub(super) fn notify(facts: &impl Facts, conversation: ConversationId, first: u64) -> Bytes {
    let latest = facts.latest(conversation);
    encode(&client::Notify { conversation: facts.id(conversation), latest, first })
}

/// Returns how messages of a conversation are pushed.
fn spec_of(facts: &impl Facts, config: &ImConfig, conversation: ConversationId) -> PushSpec {
    let lane = if facts.is_group(conversation) { Lane::Group } else { Lane::Chat };
    let rank = rank_of(facts, config, conversation);
    PushSpec { command: Command::Push, lane, want_ack: true, ttl_ms: 0, rank }
}

/// Push options of conversation events. They go on the lane of groups, so that none overtakes the messages before it: those
/// of two users go first anyway.
pub(super) const EVENT: PushSpec =
    PushSpec { command: Command::Push, lane: Lane::Group, want_ack: true, ttl_ms: 0, rank: Rank::First };

/// NOTIFYs of large groups at once, at a login.
const NOTIFIES_MAX: usize = 64;
/// Lists for entries of streams that are kept for later reads.
const SPARE_LISTS_MAX: usize = 16;
/// Entries read from a stream at once.
const PUMP_ENTRIES: usize = 64;
