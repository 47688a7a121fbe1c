//! Events in inboxes: what few users are told is in their inboxes, what many are told is stored once and named there.
//!
//! A notice of 4 KiB for a group of 200: one event in the log of the group, and 200 entries that name it. The log keeps the
//! newest [`EVENTS_MAX`] events; of those that only set the settings, the newest. A device whose inbox names an older one is
//! told to ask for everything again; an earlier state of the settings is left out.

use super::{Content, Effects, Engine, EngineStore, Known, engine::EVENTS};
use crate::im::store::directory::{Changed, Directory, EVENTS_MAX, KEYS};
use crate::im::store::{
    ConversationId, Delivery, DeviceNumber, Entry, Origin, Outcome, Recipient, Refusal, TellKey, UserId,
};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;

/// Events that belong to no conversation and are kept: pushes of the server API to inboxes of more than [`SINGLE_MAX`] users.
const SHARED_EVENTS_MAX: u64 = 16_384;
/// Users whose inboxes hold an event itself.
const SINGLE_MAX: usize = 2;

impl<E: Engine> EngineStore<E> {
    /// Puts an event into inboxes.
    pub(super) fn tell(
        &mut self,
        users: &[UserId],
        by: Option<Origin>,
        event: Bytes,
        batch: &mut Effects,
    ) -> Result<Delivery, E::Error> {
        let content = Content::Event(event.clone());
        self.put_entries(users, by, (content, event), batch)
    }

    /// Puts an event that belongs to no conversation into inboxes.
    pub(super) fn tell_all(
        &mut self,
        users: &[UserId],
        event: Bytes,
        batch: &mut Effects,
    ) -> Result<Delivery, E::Error> {
        if users.len() <= SINGLE_MAX {
            return self.tell(users, None, event, batch);
        }
        self.directory.shared_events += 1;
        let number = self.directory.shared_events;
        if let Some(oldest) = number.checked_sub(SHARED_EVENTS_MAX).filter(|oldest| *oldest > 0) {
            self.engine.remove_event(EVENTS, oldest);
        }
        self.engine.put_event(EVENTS, number, &event);
        self.put_entries(users, None, (Content::Shared(EVENTS, number), event), batch)
    }

    /// Notifies the members and removed users; in a group that is read by cursor, only the removed ones. `is_settings`: the
    /// event says nothing but the settings.
    pub(super) fn tell_members(
        &mut self,
        conversation: ConversationId,
        gone: &[UserId],
        by: Origin,
        (event, is_settings): (Bytes, bool),
        batch: &mut Effects,
    ) -> Result<Option<Delivery>, E::Error> {
        let place = self.directory.conversations.get(conversation);
        // A group that has just grown is not marked yet, and its first message is not the time to find out.
        let is_large = place.is_read_fanout || place.members.len() > self.limits.fanout.members;
        let members = place.members.iter().map(|member| member.user).filter(|_| !is_large);
        let told: Vec<_> = members.chain(gone.iter().copied()).collect();
        if told.is_empty() {
            return Ok(None);
        }
        if told.len() <= SINGLE_MAX {
            return self.tell(&told, Some(by), event, batch).map(Some);
        }
        let place = self.directory.conversations.get_mut(conversation);
        place.events += 1;
        let number = place.events;
        let mut out_of_date = vec![number.saturating_sub(EVENTS_MAX)];
        if is_settings {
            out_of_date.push(std::mem::replace(&mut place.settings_event, number));
        }
        for gone in out_of_date.into_iter().filter(|gone| *gone > 0) {
            self.engine.remove_event(conversation, gone);
        }
        self.engine.put_event(conversation, number, &event);
        self.directory.changed.push(Changed::Conversation(conversation));
        self.put_entries(&told, Some(by), (Content::Shared(conversation, number), event), batch).map(Some)
    }

    fn put_entries(
        &mut self,
        users: &[UserId],
        by: Option<Origin>,
        (content, body): (Content, Bytes),
        batch: &mut Effects,
    ) -> Result<Delivery, E::Error> {
        let first = batch.recipients.len();
        for user in users {
            let origin = by.filter(|(by, _)| by == user).map(|(_, device)| device);
            if let Some(position) = self.put_entry(*user, content.clone(), origin)? {
                batch.recipients.push(Recipient { user: *user, position });
                batch.progress.entries.push((*user, position));
            }
        }
        let recipients = first..batch.recipients.len();
        Ok(Delivery { body, recipients, is_read_fanout: false })
    }
}

/// Tells users something; with a key only those who have nothing under it. Nobody is told if a user has something else.
pub(super) fn tell_once<E: Engine>(
    store: &mut EngineStore<E>,
    now_ms: u64,
    users: &[UserId],
    (event, key): (Bytes, Option<TellKey>),
    batch: &mut Effects,
) -> Result<Outcome, E::Error> {
    let Some(TellKey { key, digest, id }) = key else {
        return Ok(Outcome::Done(Ok(Some(store.tell_all(users, event, batch)?))));
    };
    let key = key_of_event(key);
    let mut new = Vec::with_capacity(users.len());
    for user in users {
        let erased = store.directory.erasures.get(*user, KEYS).map_or(0, |erasure| erasure.to_id);
        match store.engine.key(now_ms, *user, key)?.filter(|known| known.id > erased) {
            None => new.push(*user),
            Some(known) if known.conversation == EVENTS && known.digest == digest => {}
            Some(_) => return Ok(Outcome::Done(Err(Refusal::Conflict))),
        }
    }
    if new.is_empty() {
        return Ok(Outcome::Done(Ok(None)));
    }
    let delivery = store.tell_all(&new, event, batch)?;
    for user in new {
        let known = Known { conversation: EVENTS, seq: 0, id, time_ms: 0, digest };
        store.engine.put_key(now_ms, user, key, known)?;
    }
    Ok(Outcome::Done(Ok(Some(delivery))))
}

/// Key of an event among the keys of its receiver, apart from those of the receiver's own messages.
fn key_of_event(key: MessageKey) -> MessageKey {
    MessageKey(key.0.map(|byte| byte ^ 0xA5))
}

/// Reads an event that an inbox names. `None`: a later one says everything that it said.
pub(super) fn shared_event<E: Engine>(
    engine: &E,
    directory: &Directory,
    log: ConversationId,
    number: u64,
    origin: Option<DeviceNumber>,
) -> Option<Entry> {
    match engine.event(log, number) {
        Ok(Some(body)) => Some(Entry::Event { body, origin }),
        Ok(None) => {
            let is_known = (log.index() as usize) < directory.conversations.len();
            let is_kept = is_known && number + EVENTS_MAX > directory.conversations.get(log).events;
            (!is_kept).then_some(Entry::EventsDropped)
        }
        Err(error) => {
            tracing::error!(%error, conversation = log.index(), number, "an event cannot be read");
            Some(Entry::EventsDropped)
        }
    }
}
