//! Removal of what is gone, a bounded piece at a time: messages of deleted users, of dissolved groups, and expired ones.
//!
//! A group with a million messages is dissolved: at once it has no member and no name, and each sweep removes [`ROWS`] rows
//! until none is left. What is done is written down with the rows that it removes, so a new process goes on where the last one
//! was.

use super::groups::dissolve;
use super::{Effects, Engine, EngineStore};
use crate::im::store::directory::{ALL_GROUPS, Changed, Erasure, KEYS, Kind};
use crate::im::store::{
    API_DEVICE, ConversationId, Delivery, KEEP_FOR_EVER, Pace, SEQ_BYTES_MAX, Stored, Sweep, Swept, UserId,
};
use crate::im::time_ms;
use bytes::{Bytes, BytesMut};
use moorline_proto::message::client::Push;
use moorline_proto::message::im::{Erased, Happened, happened};
use moorline_proto::message::{decode, encode};
use prost::Message as _;
use std::collections::BTreeSet;

/// Rows that one sweep reads or removes.
const ROWS: usize = 512;
/// Conversations of which one sweep reads the oldest message.
const LOOKS: usize = 64;
/// Conversations that one sweep passes over without a look.
const PASSED: usize = 4096;
/// Ranges of a conversation that do not count as unread; messages of deleted users above that count as unread.
const UNCOUNTED_MAX: usize = 10_000;

/// Sweeps of one store.
pub(super) struct Sweeps<'a, E: Engine> {
    pub(super) store: &'a mut EngineStore<E>,
}

impl<E: Engine> Sweeps<'_, E> {
    /// Does a piece of what is to be removed.
    pub(super) fn sweep(
        &mut self,
        now_ms: u64,
        sweep: Sweep,
        batch: &mut Effects,
    ) -> Result<Swept, E::Error> {
        self.store.directory.retention_ms = self.store.directory.retention_ms.max(sweep.clock_ms);
        if let Some((user, conversation, erasure)) = self.store.directory.erasures.next() {
            return match conversation {
                ALL_GROUPS => Ok(self.erase_next_group(user, erasure)),
                KEYS => self.erase_keys(user, erasure),
                conversation => self.erase(now_ms, (user, conversation, erasure), sweep.id, batch),
            };
        }
        if let Some(conversation) = self.store.directory.doomed.first().copied() {
            return Ok(self.remove_doomed(conversation));
        }
        Ok(self.expire(sweep.judged_ms))
    }

    /// Goes on with the messages of a deleted user in one conversation.
    fn erase(
        &mut self,
        now_ms: u64,
        (user, conversation, erasure): (UserId, ConversationId, Erasure),
        id: u64,
        batch: &mut Effects,
    ) -> Result<Swept, E::Error> {
        let place = self.store.directory.conversations.get(conversation);
        let (from, to) = (erasure.next.max(place.gone + 1), place.durable);
        let uid = self.store.directory.users.uid(user).to_owned();
        let (mut seqs, mut looked, mut next) = (Vec::new(), 0, to + 1);
        let is_whole = from > to
            || self.store.engine.messages(conversation, from..=to, &mut |seq, body| {
                if looked == ROWS {
                    next = seq;
                    return false;
                }
                looked += 1;
                let is_theirs = decode::<Push>(&body).is_ok_and(|push| {
                    push.sender == uid && push.message_id <= erasure.to_id && push.happened.is_empty()
                });
                if is_theirs {
                    seqs.push(seq);
                }
                true
            });
        if !is_whole {
            return Ok(Swept { pace: Pace::Soon, ..Swept::default() }); // the log says why
        }
        let removed = seqs.len() as u64;
        seqs.iter().for_each(|seq| self.store.engine.erase_message(conversation, *seq));
        self.uncount_erased(conversation, &seqs);
        let is_told = erasure.is_told || removed > 0;
        self.store.directory.changed.push(Changed::Erasure(user, conversation));
        if next <= to {
            self.store.directory.erasures.set(user, conversation, Erasure { next, is_told, ..erasure });
            return Ok(Swept { pace: Pace::Now, removed, told: None });
        }
        self.store.directory.erasures.remove(user, conversation);
        let told = if is_told { self.tell_erased(now_ms, user, conversation, id, batch)? } else { None };
        Ok(Swept { pace: Pace::Now, removed, told })
    }

    /// Erased messages do not count as unread, for those who have not read them.
    fn uncount_erased(&mut self, conversation: ConversationId, seqs: &[u64]) {
        let place = self.store.directory.conversations.get_mut(conversation);
        let read_by_all = place.members.iter().map(|member| member.read).min().unwrap_or(u64::MAX);
        let room = UNCOUNTED_MAX.saturating_sub(place.uncounted().count());
        for seq in seqs.iter().copied().filter(|seq| *seq > read_by_all).take(room) {
            if place.uncounted_in(seq, seq) == 0 {
                place.uncount(seq, seq);
                self.store.directory.changed.push(Changed::Uncounted(conversation, seq));
            }
        }
    }

    /// Says in a conversation that a user is deleted, by a message of its own: so all who have the user's messages hear of it,
    /// also in groups that are read by cursor. It does not count as unread.
    fn tell_erased(
        &mut self,
        now_ms: u64,
        user: UserId,
        conversation: ConversationId,
        id: u64,
        batch: &mut Effects,
    ) -> Result<Option<Stored>, E::Error> {
        let place = self.store.directory.conversations.get(conversation);
        if place.is_dissolved {
            return Ok(None);
        }
        let erased = Erased { user: self.store.directory.users.uid(user).to_owned(), to: place.numbered };
        let mut event = Push {
            message_id: id,
            sender: erased.user.clone(),
            time_ms: time_ms(id),
            happened: encode(&Happened { what: Some(happened::What::Erased(erased)) }),
            ..Push::default()
        };
        self.store.directory.write_id(conversation, &mut event.conversation);
        // Who comes again with this name begins behind it.
        let place = self.store.directory.conversations.get_mut(conversation);
        let (numbered, is_pair) = (place.numbered, !place.is_group());
        if let Some(member) = place.member_mut(user).filter(|it| is_pair && it.visible_from == numbered + 1) {
            (member.visible_from, member.cleared) = (numbered + 2, numbered + 1);
            self.store.directory.changed.push(Changed::Member(conversation, user));
        }
        let mut body = BytesMut::with_capacity(event.encoded_len() + SEQ_BYTES_MAX);
        event.encode_raw(&mut body);
        let stored =
            self.store.number(now_ms, (user, API_DEVICE), (id, time_ms(id)), body, conversation, batch)?;
        self.store.directory.conversations.get_mut(conversation).uncount(stored.seq, stored.seq);
        self.store.directory.changed.push(Changed::Uncounted(conversation, stored.seq));
        Ok(Some(stored))
    }

    /// Turns to the next of all groups.
    fn erase_next_group(&mut self, user: UserId, erasure: Erasure) -> Swept {
        let len = self.store.directory.conversations.len() as u64;
        let group = (erasure.next..len).take(PASSED).find_map(|number| {
            let id = ConversationId::of(u32::try_from(number).ok()?);
            let place = self.store.directory.conversations.get(id);
            (place.is_group() && place.gone < place.durable).then_some(id)
        });
        let next =
            group.map_or(erasure.next.saturating_add(PASSED as u64), |group| u64::from(group.index()) + 1);
        if let Some(group) = group {
            let of_group = Erasure { next: 0, is_told: false, ..erasure };
            self.store.directory.erasures.set(user, group, of_group);
            self.store.directory.changed.push(Changed::Erasure(user, group));
        }
        if next >= len {
            self.store.directory.erasures.remove(user, ALL_GROUPS);
        } else {
            self.store.directory.erasures.set(user, ALL_GROUPS, Erasure { next, ..erasure });
        }
        self.store.directory.changed.push(Changed::Erasure(user, ALL_GROUPS));
        Swept { pace: Pace::Now, ..Swept::default() }
    }

    fn erase_keys(&mut self, user: UserId, erasure: Erasure) -> Result<Swept, E::Error> {
        if !self.store.engine.remove_keys(user, erasure.to_id, ROWS)? {
            self.store.directory.erasures.remove(user, KEYS);
            self.store.directory.changed.push(Changed::Erasure(user, KEYS));
        }
        Ok(Swept { pace: Pace::Now, ..Swept::default() })
    }

    /// Goes on with the rows of a conversation that are gone.
    fn remove_doomed(&mut self, conversation: ConversationId) -> Swept {
        let place = self.store.directory.conversations.get(conversation);
        let (from, to) = (place.removed + 1, place.gone.min(place.durable));
        let (mut seqs, mut is_done) = (Vec::new(), true);
        let is_whole = from > to
            || self.store.engine.messages(conversation, from..=to, &mut |seq, _| {
                is_done = seqs.len() < ROWS;
                if is_done {
                    seqs.push(seq);
                }
                is_done
            });
        if !is_whole {
            return Swept { pace: Pace::Soon, ..Swept::default() }; // the log says why
        }
        let removed = seqs.len() as u64;
        self.store.engine.remove_messages(conversation, &seqs);
        let end = if is_done { to } else { seqs.last().copied().unwrap_or(to) };
        let place = self.store.directory.conversations.get_mut(conversation);
        place.removed = place.removed.max(end);
        let is_done = place.removed >= place.gone;
        if is_done {
            self.store.directory.doomed.remove(&conversation);
        }
        self.forget_uncounted(conversation, end);
        self.store.directory.changed.push(Changed::Conversation(conversation));
        // Messages of batches that are not durable are waited for.
        let pace = if removed > 0 || is_done { Pace::Now } else { Pace::Soon };
        Swept { pace, removed, told: None }
    }

    /// Looks at the next conversations, and removes the oldest messages of one that has expired ones.
    fn expire(&mut self, judged_ms: u64) -> Swept {
        let len = self.store.directory.conversations.len();
        let mut looks = 0;
        for _ in 0..PASSED {
            let at = self.store.directory.sweep_at as usize;
            if at >= len {
                self.store.directory.sweep_at = 0;
                return Swept { pace: Pace::Later, ..Swept::default() };
            }
            let conversation = ConversationId::of(self.store.directory.sweep_at);
            let removed = match self.expiry(conversation, judged_ms) {
                Some(limit_ms) => {
                    looks += 1;
                    self.expire_in(conversation, limit_ms)
                }
                None => 0,
            };
            if removed == ROWS {
                return Swept { pace: Pace::Now, removed: removed as u64, told: None };
            }
            self.store.directory.sweep_at += 1;
            if removed > 0 {
                return Swept { pace: Pace::Now, removed: removed as u64, told: None };
            }
            if looks == LOOKS {
                break;
            }
        }
        Swept { pace: Pace::Soon, ..Swept::default() }
    }

    /// Unix time, in milliseconds, up to which messages of a conversation are expired. `None`: there is no message that
    /// may expire.
    fn expiry(&self, conversation: ConversationId, judged_ms: u64) -> Option<u64> {
        let place = self.store.directory.conversations.get(conversation);
        let keep_ms = match place.keep_s {
            0 => self.store.limits.retention_ms,
            KEEP_FOR_EVER => 0,
            keep_s => u64::from(keep_s) * 1000,
        };
        let is_there = keep_ms > 0 && place.gone < place.durable;
        judged_ms.checked_sub(keep_ms).filter(|limit_ms| is_there && *limit_ms > 0)
    }

    /// Removes the oldest messages while they are expired. Returns their number.
    fn expire_in(&mut self, conversation: ConversationId, limit_ms: u64) -> usize {
        let place = self.store.directory.conversations.get(conversation);
        let (mut seqs, mut end) = (Vec::new(), 0);
        self.store.engine.messages(conversation, place.gone + 1..=place.durable, &mut |seq, body| {
            // An erased or damaged row is as old as its neighbours.
            // An id has the time of its message, whatever the clock said.
            let push = decode::<Push>(&body).ok().filter(|_| !body.is_empty());
            let stored_ms = push.map(|push| time_ms(push.message_id));
            if stored_ms.is_some_and(|stored_ms| stored_ms > limit_ms) {
                return false;
            }
            seqs.push(seq);
            if stored_ms.is_some() {
                end = seq;
            }
            seqs.len() < ROWS
        });
        if seqs.len() == ROWS {
            end = seqs[ROWS - 1];
        }
        seqs.retain(|seq| *seq <= end);
        if seqs.is_empty() {
            return 0;
        }
        self.store.engine.remove_messages(conversation, &seqs);
        let place = self.store.directory.conversations.get_mut(conversation);
        (place.gone, place.removed) = (end, end);
        self.forget_uncounted(conversation, end);
        self.store.directory.changed.push(Changed::Conversation(conversation));
        seqs.len()
    }

    fn forget_uncounted(&mut self, conversation: ConversationId, to: u64) {
        let forgotten = self.store.directory.conversations.get_mut(conversation).forget_uncounted(to);
        self.store
            .directory
            .changed
            .extend(forgotten.into_iter().map(|seq| Changed::Uncounted(conversation, seq)));
    }

    /// Deletes a user: at once everything but messages and keys, which are erased bit by bit. The name is that of a new user
    /// from now on. Those who have a relation to the user are told.
    pub(super) fn delete_user(
        &mut self,
        user: UserId,
        to_id: u64,
        event: Bytes,
        batch: &mut Effects,
    ) -> Result<Option<Delivery>, E::Error> {
        let told = self.store.directory.end_relations(user);
        let conversations = self.store.directory.delete_user(user);
        self.store.trim(user);
        self.store.engine.remove_profile(user);
        let mut erased: BTreeSet<_> = conversations.iter().copied().collect();
        let is_group = |id: &ConversationId| self.store.directory.conversations.get(*id).is_group();
        let left: BTreeSet<_> = conversations.iter().copied().filter(is_group).collect();
        for conversation in conversations {
            self.end_membership(conversation, user);
        }
        let known = self.store.directory.users.get_mut(user);
        known.change_rare(|rare| {
            erased.extend(rare.parted.drain(..));
            if std::mem::take(&mut rare.has_unknown_groups) {
                erased.insert(ALL_GROUPS);
            }
        });
        erased.insert(KEYS);
        for conversation in erased {
            let is_told = left.contains(&conversation);
            let erasure = Erasure { to_id, next: 0, is_told };
            self.store.directory.erasures.set(user, conversation, erasure);
            self.store.directory.changed.push(Changed::Erasure(user, conversation));
        }
        batch.progress.deleted.push(user);
        if told.is_empty() { Ok(None) } else { self.store.tell_all(&told, event, batch).map(Some) }
    }

    /// Takes a deleted user out of a group; of a conversation of two nothing is left to see.
    fn end_membership(&mut self, conversation: ConversationId, user: UserId) {
        let place = self.store.directory.conversations.get_mut(conversation);
        let numbered = place.numbered;
        if let Kind::OneToOne(..) = place.kind {
            if let Some(member) = place.member_mut(user) {
                (member.visible_from, member.cleared) = (numbered + 1, numbered);
                self.store.directory.changed.push(Changed::Member(conversation, user));
            }
            return;
        }
        let was_owner =
            place.member(user).is_some_and(|member| member.role() == crate::im::store::Role::Owner);
        self.store.directory.remove_member(conversation, user);
        if was_owner {
            self.store.crown_the_next(conversation);
        }
        self.store.directory.inherit(conversation, user);
        if self.store.directory.conversations.get(conversation).members.is_empty() {
            dissolve(self.store, conversation);
        }
    }
}
