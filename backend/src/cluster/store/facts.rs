//! [`Store`] and [`Facts`] of a node.

use super::devices::{NewLogin, infos};
use super::inboxes::Pushing;
use super::presence::Watching;
use super::questions::Asking;
use super::reads::{PageAsk, Reading};
use super::{ClusterStore, Home, Op, Place, caps};
use crate::cluster::cell::slot_of;
use crate::im::store::{
    Arrived, Backlog, Command, Completion, ConversationId, Counts, DeviceInfo, Facts, GroupSettings, Login,
    Member, Online, Outcome, Read, ReadSet, Recall, Refusal, Relation, Store, SweepNeed, Swept, Ticket,
    UserId, Whereabouts, WhoMayAdd, Write,
};
use bytes::Bytes;
use moorline_proto::slots::{NodeId, Slot};
use std::collections::HashMap;

impl ClusterStore {
    /// Takes a write of a batch, and an invitation that follows it. What is not built is refused.
    fn write(&mut self, place: Place, write: Write, invite: Option<Write>) {
        let outcome = match write {
            Write::Append(draft) => return self.append(place, draft, None),
            Write::Recall(Recall { draft, seq, message_id }) => {
                return self.append(place, draft, Some((seq, message_id)));
            }
            Write::Acked { user, device, position, gone_ms } => {
                if gone_ms > 0 {
                    end_session(&mut self.online, user);
                }
                self.push(slot_of(user.number()), Op::Acked(user, device, position, gone_ms));
                Outcome::Done(Ok(None))
            }
            write @ (Write::CreateGroup { .. }
            | Write::ChangeGroup { .. }
            | Write::Dissolve { .. }
            | Write::Read { .. }
            | Write::Clear { .. }
            | Write::Relate { .. }
            | Write::Invite { .. }
            | Write::SetSettings { .. }
            | Write::RuleLogins { .. }
            | Write::RemoveDevice { .. }
            | Write::SetProfile { .. }) => {
                return Asking { store: self }.write_question(place, write, invite);
            }
            Write::Tell { users, event, key } => {
                return Pushing { store: self }.push(place, &users, &event, key);
            }
            Write::Sweep(_) => Outcome::Swept(Swept::default()),
            Write::Confirm { .. } => Outcome::Done(Ok(None)),
            _ => Outcome::Done(Err(Refusal::Denied)),
        };
        self.batches.set(place, outcome);
    }

    fn read(&mut self, ticket: Ticket, read: Read) {
        match read {
            Read::Page { conversation, reader, range, limits } => {
                let ask = PageAsk { ticket, conversation, reader, range, limits };
                Reading { store: self }.read_page(ask);
            }
            Read::Conversations { user, after, bytes } => {
                Reading { store: self }.read_listing(ticket, user, after, bytes);
            }
            Read::Backlog { of: (user, _) } => {
                let slot = slot_of(user.number());
                let known = self.slots.get(&slot).and_then(|owned| owned.users.get(&user));
                if let Some(end) = known.map(|user| user.durable_end) {
                    let backlog = Backlog { end, unconfirmed: Vec::new() };
                    self.done.push_back((ticket, Completion::Backlog(backlog)));
                } else {
                    self.push(slot, Op::Backlog(ticket, user));
                }
            }
            Read::Stream { user, after, limit, into } => {
                Reading { store: self }.read_stream(ticket, user, (after, limit), into);
            }
            Read::Profiles { uids } => Reading { store: self }.read_profiles(ticket, uids),
            Read::Presences { users } => Watching { store: self }.read(ticket, &users),
        }
    }
}

/// Notes that a session of a user has ended.
fn end_session(online: &mut HashMap<UserId, u32>, user: UserId) {
    if let Some(count) = online.get_mut(&user) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            online.remove(&user);
        }
    }
}

/// True if an invitation follows a write that makes or changes its group.
fn is_followed(write: &Write, next: &Write) -> bool {
    let Write::Invite { by: inviting, .. } = next else { return false };
    match write {
        Write::CreateGroup { creator: by, .. } | Write::ChangeGroup { by, .. } => by == inviting,
        _ => false,
    }
}

impl Store for ClusterStore {
    fn prefetch(&mut self, ticket: Ticket, plan: impl FnOnce(&mut ReadSet)) -> bool {
        let mut set = ReadSet::default();
        plan(&mut set);
        let is_known = Reading { store: self }.prefetch_facts(ticket, &set);
        self.work();
        is_known
    }

    fn submit(&mut self, ticket: Ticket, command: Command) -> Result<(), Command> {
        match command {
            Command::Commit(batch) => {
                if !self.batches.has_room() {
                    return Err(Command::Commit(batch));
                }
                self.last_id = self.last_id.max(batch.last_id);
                self.now_ms = batch.now_ms;
                self.batches.begin(ticket, batch.writes.len());
                let mut writes = batch.writes.into_iter().enumerate().peekable();
                while let Some((index, write)) = writes.next() {
                    // Both are done, or none.
                    let invite = writes.next_if(|(_, next)| is_followed(&write, next));
                    let after = invite.as_ref().map(|(index, _)| Place { ticket, index: *index });
                    self.write(Place { ticket, index }, write, invite.map(|(_, invite)| invite));
                    if let Some(place) = after {
                        self.batches.set(place, Outcome::Done(Ok(None)));
                    }
                }
            }
            Command::Login(Login { uid, device, platform, now_ms, issued_s }) => {
                let slot = Slot::of(&uid);
                self.now_ms = self.now_ms.max(now_ms);
                let login = NewLogin { uid: uid.into(), device: device.into(), platform, now_ms, issued_s };
                self.push(slot, Op::Login(ticket, login));
            }
            Command::Read(read) => self.read(ticket, read),
        }
        self.work();
        Ok(())
    }

    fn poll(&mut self) -> Option<(Ticket, Completion)> {
        // Who is barred leaves before anything that waits for the store is done.
        let ruled = self.take_barred();
        if !ruled.is_empty() {
            return Some((Ticket::UNASKED, Completion::Arrived(Arrived { ruled, ..Arrived::default() })));
        }
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        if let Some((ticket, committed)) = self.batches.pop() {
            return Some((ticket, Completion::Committed(committed)));
        }
        if self.arrived.is_empty() {
            self.known.trim();
            return None;
        }
        Some((Ticket::UNASKED, Completion::Arrived(std::mem::take(&mut self.arrived))))
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn wants_commit(&self, _: u64) -> bool {
        false
    }

    fn last_id(&self) -> u64 {
        self.last_id
    }

    fn sweep_need(&self) -> SweepNeed {
        SweepNeed::Nothing
    }

    fn retention_ms(&self) -> u64 {
        0
    }

    fn counts(&self) -> Counts {
        Counts { commits: self.status.transactions, ..caps::counts(&self.slots) }
    }

    fn name(&self) -> Bytes {
        self.name.clone()
    }

    fn whereabouts_version(&self) -> u64 {
        self.revision
    }

    fn watch_presences(&mut self, users: &[UserId]) {
        Watching { store: self }.watch(users);
    }

    fn answer_presences(&mut self, node: NodeId, request: u64, online: Option<Vec<Online>>) {
        Watching { store: self }.answer(node, request, online);
    }
}

impl Facts for ClusterStore {
    fn find_user(&self, uid: &str) -> Option<UserId> {
        self.known.user(uid)
    }

    /// The prefetch has made the user.
    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.known.user(uid)
    }

    fn uid(&self, user: UserId) -> &str {
        self.known.uid(user).map_or("", |uid| uid)
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        self.known.conversation(id)
    }

    fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        self.known.id_of_two(a, b).and_then(|id| self.known.conversation(&id))
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        if let Some(head) = self.known.head(conversation) {
            into.push_str(&head.id);
        }
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        self.known.head(conversation).is_some_and(|head| head.is_group)
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.known.head(conversation).map_or(0, |head| head.latest)
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.known.head(conversation).map_or(0, |head| head.count)
    }

    fn is_silent(&self, conversation: ConversationId) -> bool {
        self.known.head(conversation).is_some_and(|head| head.settings.is_silent)
    }

    fn settings(&self, conversation: ConversationId) -> GroupSettings {
        self.known.head(conversation).map(|head| head.settings.clone()).unwrap_or_default()
    }

    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member> {
        self.known.member(conversation, user)
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
    ) -> impl ExactSizeIterator<Item = Member> + '_ {
        let members = self.known.head(conversation).map_or(&[][..], |head| &head.members[..]);
        let first = members.partition_point(|member| Some(member.user) <= after);
        members[first..].iter().copied()
    }

    fn relation(&self, user: UserId, other: UserId) -> Relation {
        self.known.relation(user, other)
    }

    fn who_may_add(&self, user: UserId) -> WhoMayAdd {
        self.known.who_may_add(user)
    }

    fn invitations(&self, user: UserId) -> Vec<ConversationId> {
        self.known.invitations(user)
    }

    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)> {
        self.known.relations(user).to_vec()
    }

    fn whereabouts(&self, user: UserId) -> Whereabouts {
        match self.home(slot_of(user.number()), true) {
            Home::Here => Whereabouts::Here,
            Home::At(_) => Whereabouts::Elsewhere,
            Home::Nowhere => Whereabouts::Unknown,
        }
    }

    fn devices(&self, user: UserId) -> Vec<DeviceInfo> {
        // The owner of the user knows when devices came that are there.
        let owned = self.slots.get(&slot_of(user.number())).filter(|owned| owned.is_ready);
        let known = owned.and_then(|owned| owned.users.get(&user));
        known.map_or_else(|| self.known.devices(user), |known| infos(known.devices.iter()))
    }
}
