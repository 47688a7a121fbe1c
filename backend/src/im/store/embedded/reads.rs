//! Logins, and reads that are answered by a completion.

use super::events::shared_event;
use super::{Content, Engine, EngineStore, StreamEntry};
use crate::im::store::directory::Directory;
use crate::im::store::rules::Wish;
use crate::im::store::{
    Backlog, Completion, ConversationId, DeviceCursor, DeviceNumber, Entry, LAST_BYTES_MAX, Listed, Listing,
    LoggedIn, Login, Origin, PageLimits, Read, Refusal, StreamPage, UserId,
};
use std::collections::HashMap;

/// A user on any device; not the operator's server.
const NO_DEVICE: DeviceNumber = DeviceNumber(0);
/// Bytes that an entry of a list of conversations has at least, beside its newest message.
const LISTED_BYTES: usize = 16;

impl<E: Engine> EngineStore<E> {
    pub(super) fn log_in(&mut self, login: &Login) -> Option<LoggedIn> {
        let Login { uid, device, platform, now_ms, issued_s: _ } = login;
        let user = self.directory.make_user(uid, true)?;
        if !self.directory.users.has_number_for(user, device) {
            return None; // as if there were no room for the user
        }
        let Directory { users, changed, .. } = &mut self.directory;
        let cursor: DeviceCursor = users.login(user, device, *platform, *now_ms, changed);
        self.trim(user);
        if cursor.is_new {
            for (conversation, end) in known_ends(&self.engine, &self.directory, user) {
                self.confirm((user, cursor.device), conversation, end);
            }
        }
        let device = self.directory.users.get(user).device(cursor.device);
        let names = device.map(|device| device.names.clone()).unwrap_or_default();
        Some(LoggedIn { user, names, cursor })
    }

    pub(super) fn read(&mut self, read: Read) -> Completion {
        match read {
            Read::Page { conversation, reader, range, limits } => {
                Completion::Page(self.page(conversation, reader, range, limits))
            }
            Read::Conversations { user, after, bytes } => {
                Completion::Listing(self.listing(user, &after, bytes))
            }
            Read::Backlog { of } => Completion::Backlog(Backlog {
                end: self.directory.users.get(of.0).durable_end,
                unconfirmed: self.unconfirmed(of),
            }),
            Read::Stream { user, after, limit, into } => {
                Completion::Stream(self.stream(user, after, limit, into))
            }
            Read::Profiles { uids } => {
                let known = uids.iter().filter_map(|uid| self.directory.users.find(uid));
                Completion::Profiles(known.filter_map(|user| self.engine.profile(user)).collect())
            }
            // Everybody is here.
            Read::Presences { .. } => Completion::Presences(Ok(Vec::new())),
        }
    }

    fn listing(&self, user: UserId, after: &str, bytes_max: usize) -> Result<Listing, Refusal> {
        let mut all = self.directory.users.get(user).conversations();
        if !after.is_empty() {
            let at = self.directory.find(after).and_then(|id| all.iter().position(|it| *it == id));
            all = &all[..at.ok_or(Refusal::NotFound)?];
        }
        let (mut listing, mut bytes) = (Listing::default(), 0);
        for conversation in all.iter().rev() {
            if bytes > bytes_max {
                listing.more = true;
                break;
            }
            if self.directory.is_hidden(*conversation, user) {
                continue;
            }
            let entry = self.listed(user, *conversation);
            bytes += LISTED_BYTES + entry.last.as_ref().map_or(0, bytes::Bytes::len);
            listing.entries.push(entry);
        }
        Ok(listing)
    }

    fn listed(&self, user: UserId, conversation: ConversationId) -> Listed {
        let place = self.directory.conversations.get(conversation);
        let newest = place.durable.max(1);
        let limits = PageLimits { messages: 1, bytes: LAST_BYTES_MAX };
        let last = self.page(conversation, user, (newest, newest), limits);
        let last = last.ok().and_then(|page| page.messages.into_iter().next());
        let may_know =
            |peer: &UserId| self.limits.rules.judge_users(self, (user, NO_DEVICE), *peer, Wish::Say).is_ok();
        let peer = self.peer(conversation, user).filter(|peer| *peer != user && may_know(peer));
        let mut id = String::new();
        self.directory.write_id(conversation, &mut id);
        Listed {
            id,
            latest: place.durable,
            members: place.members.len(),
            unread: self.directory.unread(conversation, user),
            read: place.member(user).map_or(0, |member| member.read),
            peer_read: peer.and_then(|peer| place.member(peer)).map_or(0, |member| member.read),
            last: last.filter(|body| body.len() <= LAST_BYTES_MAX),
        }
    }

    fn stream(&self, user: UserId, after: u64, limit: usize, mut into: Vec<(u64, Entry)>) -> StreamPage {
        let end = self.directory.users.get(user).durable_end;
        let is_readable = self.read_stream(user, after, limit, &mut into);
        StreamPage { entries: into, after, end, is_readable }
    }

    fn read_stream(&self, user: UserId, after: u64, limit: usize, into: &mut Vec<(u64, Entry)>) -> bool {
        let place = self.directory.users.get(user);
        // A store that goes on without what it lost may have entries of conversations that it has not.
        let is_known = |id: ConversationId| (id.index() as usize) < self.directory.conversations.len();
        let dropped = |(position, (conversation, first))| {
            let entry = match conversation {
                conversation if !is_known(conversation) => Entry::EventsDropped,
                conversation => Entry::Dropped { conversation, first },
            };
            (position, entry)
        };
        into.extend(place.dropped_after(after).take(limit).map(dropped));
        let first = after.max(place.trimmed) + 1;
        if first > place.durable_end || into.len() >= limit {
            return true;
        }
        self.engine.entries(
            user,
            first..=place.durable_end,
            &mut |position, StreamEntry { content, origin }| {
                let entry = match content {
                    Content::Event(body) => Entry::Event { body, origin },
                    Content::Message(conversation, _) if !is_known(conversation) => Entry::EventsDropped,
                    Content::Lost => Entry::EventsDropped,
                    Content::Shared(log, number) => {
                        match shared_event(&self.engine, &self.directory, log, number, origin) {
                            Some(entry) => entry,
                            None => return true,
                        }
                    }
                    Content::Message(conversation, seq)
                        if seq <= self.directory.conversations.get(conversation).gone =>
                    {
                        return true; // nobody is owed what was removed
                    }
                    Content::Message(conversation, seq) => match self.engine.message(conversation, seq) {
                        Some(body) => Entry::Message { conversation, seq, body, origin },
                        None if self.engine.is_erased(conversation, seq) => return true,
                        None => Entry::Dropped { conversation, first: seq },
                    },
                };
                match into.last_mut() {
                    // One word is enough for all of them.
                    Some((last, Entry::EventsDropped)) if entry == Entry::EventsDropped => *last = position,
                    _ => into.push((position, entry)),
                }
                into.len() < limit
            },
        )
    }

    fn unconfirmed(&self, (user, device): Origin) -> Vec<(ConversationId, u64)> {
        let place = self.directory.users.get(user);
        let Some(device) = place.device(device) else { return Vec::new() };
        let news = |id: &ConversationId| {
            let conversation = self.directory.conversations.get(*id);
            let visible_from = conversation.member(user)?.first_visible().max(conversation.gone + 1);
            let next = device.confirmed_of(*id).map_or(conversation.unstreamed_from, |seq| seq + 1);
            let first = next.max(visible_from);
            (first <= conversation.unstreamed).then_some((*id, first))
        };
        place.conversations().iter().filter_map(news).collect()
    }
}

/// Seqs behind which a new device begins in its large groups: behind everything, or, if its inbox holds messages from before the
/// group outgrew inboxes, behind those.
fn known_ends<E: Engine>(engine: &E, directory: &Directory, user: UserId) -> Vec<(ConversationId, u64)> {
    let conversations = &directory.conversations;
    let all = directory.users.get(user).conversations().iter().copied();
    let large: Vec<_> = all.filter(|id| conversations.get(*id).unstreamed > 0).collect();
    if large.is_empty() {
        return Vec::new();
    }
    let oldest = oldest_in_inbox(engine, directory, user);
    let end_of = |id: ConversationId| {
        let place = conversations.get(id);
        let from = oldest.get(&id).filter(|seq| **seq <= place.unstreamed);
        (id, from.map_or(place.unstreamed, |seq| place.unstreamed_from.max(*seq) - 1))
    };
    large.into_iter().map(end_of).collect()
}

/// The oldest message of each conversation in an inbox.
fn oldest_in_inbox<E: Engine>(
    engine: &E,
    directory: &Directory,
    user: UserId,
) -> HashMap<ConversationId, u64> {
    let place = directory.users.get(user);
    let mut oldest = HashMap::new();
    let mut note = |(conversation, seq): (ConversationId, u64)| {
        if seq > 0 {
            let known = oldest.entry(conversation).or_insert(seq);
            *known = seq.min(*known);
        }
    };
    if place.trimmed < place.durable_end {
        engine.entries(user, place.trimmed + 1..=place.durable_end, &mut |_, entry| {
            note(entry.content.place());
            true
        });
    }
    // Those that are not durable yet.
    for position in place.trimmed.max(place.durable_end) + 1..=place.numbered {
        engine.place_of(user, position).into_iter().for_each(&mut note);
    }
    oldest
}
