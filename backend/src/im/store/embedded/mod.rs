//! A store inside this process: a [`Directory`] in memory, everything else in an [`Engine`].
//!
//! What is judged is what was numbered, so that batches need not wait for each other; what readers see is durable.

mod acks;
mod engine;
mod events;
mod groups;
mod messages;
mod people;
mod reads;
mod sweep;

pub(super) use engine::{AT_LAST, Content, EVENTS, Engine, Known, Progress, StreamEntry};

use super::directory::{Changed, Directory, FanoutLimits};
use super::rules::Rules;
use super::{
    Command, Committed, Completion, ConversationId, Counts, DeviceInfo, DeviceNumber, Facts, GroupSettings,
    Member, Outcome, ReadSet, Recipient, Relation, Store, SweepNeed, Ticket, UserId, WhoMayAdd, Write,
};
use crate::config::ImConfig;
use acks::{ACK_CHANGES, ACK_CHANGES_IDLE, Acks};
use bytes::Bytes;
use events::tell_once;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use sweep::Sweeps;

/// Changes of logins that wait for a batch with something else in it; more want a batch of their own.
const LATE_CHANGES: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Limits {
    inbox_entries: usize,
    group_members: usize,
    fanout: FanoutLimits,
    recall_window_ms: u64,
    /// 0: messages are kept.
    retention_ms: u64,
    rules: Rules,
}

/// See the module.
pub struct EngineStore<E: Engine> {
    directory: Directory,
    engine: E,
    limits: Limits,
    acks: Acks,
    /// Messages that are being taken back, and the seq of what says so, until that is durable.
    recalling: HashMap<(ConversationId, u64), u64>,
    /// Messages removed by sweeps.
    swept: u64,
    stops_at_refusal: bool,
    has_refused: bool,
    /// Commits whose completion is to come, oldest first.
    committing: VecDeque<Ticket>,
    /// Completions of logins and reads.
    done: VecDeque<(Ticket, Completion)>,
}

/// Effects of a batch.
#[derive(Debug, Default)]
struct Effects {
    recipients: Vec<Recipient>,
    progress: Progress,
}

impl<E: Engine> EngineStore<E> {
    pub(super) fn over(directory: Directory, engine: E, config: &ImConfig) -> Self {
        let fanout = FanoutLimits {
            members: config.fanout_members_max,
            entries_per_hour: config.fanout_entries_per_hour,
        };
        let limits = Limits {
            inbox_entries: config.inbox_entries_max,
            group_members: config.group_members_max,
            fanout,
            recall_window_ms: u64::try_from(config.recall_window.as_millis()).unwrap_or(u64::MAX),
            retention_ms: u64::try_from(config.retention.as_millis()).unwrap_or(u64::MAX),
            rules: Rules::new(config),
        };
        Self {
            directory,
            engine,
            limits,
            acks: Acks::default(),
            recalling: HashMap::new(),
            swept: 0,
            stops_at_refusal: false,
            has_refused: false,
            committing: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// From the first write on that is refused, none is done, in its batch and in later ones: they have no outcome.
    pub fn stop_at_refusal(&mut self) {
        self.stops_at_refusal = true;
    }

    fn write(&mut self, now_ms: u64, write: Write, batch: &mut Effects) -> Result<Outcome, E::Error> {
        Ok(match write {
            Write::Append(draft) => Outcome::Appended(self.append(now_ms, draft, batch)?),
            Write::Recall(recall) => Outcome::Appended(self.recall(now_ms, recall, batch)?),
            write @ (Write::CreateGroup { .. }
            | Write::Invite { .. }
            | Write::ChangeGroup { .. }
            | Write::Dissolve { .. }) => self.write_group(write, batch)?,
            Write::Read { conversation, by, seq, event } => {
                Outcome::Done(match self.mark_read(conversation, by, seq) {
                    Ok(Some(told)) => Ok(Some(self.tell(&told, Some(by), event, batch)?)),
                    Ok(None) => Ok(None),
                    Err(refusal) => Err(refusal),
                })
            }
            Write::Clear { conversation, by, to, event } => {
                Outcome::Done(match self.directory.clear(conversation, by.0, to) {
                    Ok(Some(told)) => Ok(Some(self.tell(&told, Some(by), event, batch)?)),
                    Ok(None) => Ok(None),
                    Err(refusal) => Err(refusal),
                })
            }
            Write::Relate { by, other, change, event } => {
                Outcome::Done(match self.relate(by, other, change) {
                    Ok(Some(told)) => Ok(Some(self.tell(&told, Some(by), event, batch)?)),
                    Ok(None) => Ok(None),
                    Err(refusal) => Err(refusal),
                })
            }
            Write::Tell { users, event, key } => tell_once(self, now_ms, &users, (event, key), batch)?,
            Write::SetSettings { user, who_may_add } => {
                self.directory.users.get_mut(user).who_may_add = who_may_add;
                self.directory.changed.push(Changed::User(user));
                Outcome::Done(Ok(None))
            }
            Write::SetProfile { user, profile } => {
                self.engine.put_profile(user, profile);
                Outcome::Done(Ok(None))
            }
            Write::DeleteUser { user, to_id, event } => {
                let mut sweeps = Sweeps { store: self };
                Outcome::Done(Ok(sweeps.delete_user(user, to_id, event, batch)?))
            }
            Write::SetRetention { conversation, keep_s } => self.set_retention(conversation, keep_s),
            Write::LimitSends { conversation, per_minute } => self.limit_sends(conversation, per_minute),
            Write::Sweep(sweep) => {
                let swept = Sweeps { store: self }.sweep(now_ms, sweep, batch)?;
                self.swept += swept.removed;
                Outcome::Swept(swept)
            }
            Write::RemoveDevice { user, device } => {
                self.directory.users.remove_device(user, device, &mut self.directory.changed);
                self.trim(user);
                Outcome::Done(Ok(None))
            }
            Write::RuleLogins { user, change } => {
                self.directory.users.get_mut(user).rule_logins(change);
                self.directory.changed.push(Changed::User(user));
                Outcome::Done(Ok(None))
            }
            Write::Acked { user, device, position, gone_ms } => {
                self.on_acked(now_ms, (user, device), position, gone_ms);
                Outcome::Done(Ok(None))
            }
            Write::Confirm { by, conversation, seq } => {
                self.confirm(by, conversation, seq);
                Outcome::Done(Ok(None))
            }
        })
    }

    fn set_retention(&mut self, conversation: ConversationId, keep_s: u32) -> Outcome {
        self.directory.set_retention(conversation, keep_s);
        Outcome::Done(Ok(None))
    }

    fn limit_sends(&mut self, conversation: ConversationId, per_minute: Option<u32>) -> Outcome {
        self.directory.limit_sends(conversation, per_minute);
        Outcome::Done(Ok(None))
    }

    /// Removes what every device of the user has; how much that is.
    fn trim(&mut self, user: UserId) -> usize {
        let gone = self.directory.users.get_mut(user).take_trimmed();
        let count = usize::try_from(gone.end - gone.start).unwrap_or(usize::MAX);
        if count > 0 {
            self.engine.remove_entries(user, gone);
        }
        self.directory.changed.push(Changed::Inbox(user));
        count
    }

    /// Writes down what the next device has; how many changes that is.
    fn write_ack(&mut self) -> usize {
        let Some((user, device)) = self.acks.pop() else { return 0 };
        self.directory.changed.push(Changed::Device(user, device));
        2 + self.trim(user)
    }

    /// Puts an entry into an inbox; `None` if its only device wrote it.
    fn put_entry(
        &mut self,
        user: UserId,
        content: Content,
        origin: Option<DeviceNumber>,
    ) -> Result<Option<u64>, E::Error> {
        let place = self.directory.users.get_mut(user);
        if origin.is_some_and(|origin| place.is_only(origin)) {
            return Ok(None);
        }
        while place.held() >= self.limits.inbox_entries as u64 {
            let of = self.engine.place_of(user, place.trimmed + 1)?;
            let oldest = place.drop_oldest(user, of, &mut self.directory.changed);
            self.engine.remove_entries(user, oldest..oldest + 1);
        }
        place.numbered += 1;
        self.engine.put_entry(user, place.numbered, StreamEntry { content, origin });
        Ok(Some(place.numbered))
    }
}

/// Writes delayed changes now.
impl<E: Engine> Drop for EngineStore<E> {
    fn drop(&mut self) {
        while self.write_ack() > 0 {}
        let changed = std::mem::take(&mut self.directory.changed);
        if self.engine.is_ready() {
            self.engine.commit(AT_LAST, &self.directory, changed, <(Committed, Progress)>::default());
        }
    }
}

impl<E: Engine> fmt::Debug for EngineStore<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl<E: Engine> Store for EngineStore<E> {
    /// Everything is in memory.
    fn prefetch(&mut self, _: Ticket, _: impl FnOnce(&mut ReadSet)) -> bool {
        true
    }

    fn submit(&mut self, ticket: Ticket, command: Command) -> Result<(), Command> {
        match command {
            Command::Commit(batch) => {
                self.try_commit(batch).map_err(Command::Commit)?;
                self.committing.push_back(ticket);
            }
            Command::Login(login) => {
                let done = match self.directory.users.denies(&login) {
                    Some(denied) => Completion::LoginDenied(denied),
                    None => Completion::LoggedIn(self.log_in(&login)),
                };
                self.done.push_back((ticket, done));
            }
            Command::Read(read) => {
                let done = self.read(read);
                self.done.push_back((ticket, done));
            }
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<(Ticket, Completion)> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let committed = self.poll_committed()?;
        let ticket = self.committing.pop_front().expect("one completion per commit");
        Some((ticket, Completion::Committed(committed)))
    }

    fn last_id(&self) -> u64 {
        self.directory.last_id
    }

    fn is_broken(&self) -> bool {
        self.engine.is_broken()
    }

    fn wants_commit(&self, now_ms: u64) -> bool {
        let is_due = self.acks.is_due(now_ms) || self.directory.changed.len() >= LATE_CHANGES;
        is_due && self.engine.is_ready()
    }

    fn sweep_need(&self) -> SweepNeed {
        let Directory { erasures, doomed, keepers, .. } = &self.directory;
        if erasures.is_due() || !doomed.is_empty() {
            SweepNeed::Removal
        } else if self.limits.retention_ms > 0 || *keepers > 0 {
            SweepNeed::Expiry
        } else {
            SweepNeed::Nothing
        }
    }

    fn retention_ms(&self) -> u64 {
        self.directory.retention_ms
    }

    fn name(&self) -> Bytes {
        self.engine.name()
    }

    fn counts(&self) -> Counts {
        let (commits, stalls) = self.engine.commits_and_stalls();
        Counts {
            users: self.directory.users.len(),
            conversations: self.directory.conversations.len(),
            members: self.directory.members,
            limited: self.directory.limits.len(),
            swept: self.swept,
            erasing: self.directory.erasures.len() + self.directory.doomed.len(),
            commits,
            stalls,
            share: None,
        }
    }
}

impl<E: Engine> EngineStore<E> {
    fn try_commit(&mut self, batch: super::Batch) -> Result<(), super::Batch> {
        // What was numbered cannot be taken back, so there must be room before anything is.
        if !self.engine.is_ready() {
            return Err(batch);
        }
        let super::Batch { now_ms, last_id, writes } = batch;
        let nothing = super::Batch { now_ms, last_id, writes: Vec::new() };
        let ack_changes =
            if writes.is_empty() { ACK_CHANGES_IDLE } else { ACK_CHANGES.max(2 * writes.len()) };
        let (mut outcomes, mut result) = (Vec::with_capacity(writes.len()), Effects::default());
        for write in writes {
            if self.stops_at_refusal && self.has_refused {
                break;
            }
            match self.write(now_ms, write, &mut result) {
                Ok(outcome) => {
                    self.has_refused |= outcome.is_refused();
                    outcomes.push(outcome);
                }
                Err(error) => {
                    // Numbers were given that will not be stored: nothing more may be.
                    tracing::error!(%error, "the store cannot be read; it is opened anew in a few seconds");
                    self.engine.give_up();
                    return Err(nothing);
                }
            }
        }
        let mut changes = 0;
        while changes < ack_changes && self.acks.is_due(now_ms) {
            changes += self.write_ack();
        }
        self.directory.last_id = self.directory.last_id.max(last_id);
        let committed = Committed { outcomes, recipients: result.recipients };
        let changed = std::mem::take(&mut self.directory.changed);
        if self.engine.commit(now_ms, &self.directory, changed, (committed, result.progress)) {
            Ok(())
        } else {
            Err(nothing)
        }
    }

    fn poll_committed(&mut self) -> Option<Committed> {
        let (committed, progress) = self.engine.poll()?;
        for (conversation, seq) in progress.messages {
            self.directory.conversations.get_mut(conversation).durable = seq;
        }
        for (user, position) in progress.entries {
            self.directory.users.get_mut(user).durable_end = position;
        }
        progress.deleted.into_iter().for_each(|user| self.directory.erasures.begin(user));
        Some(committed)
    }
}

impl<E: Engine> Facts for EngineStore<E> {
    fn find_user(&self, uid: &str) -> Option<UserId> {
        self.directory.users.find(uid)
    }

    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.directory.make_user(uid, false)
    }

    fn uid(&self, user: UserId) -> &str {
        self.directory.users.uid(user)
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        self.directory.find(id)
    }

    fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        self.directory.conversations.one_to_one(a, b)
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        self.directory.write_id(conversation, into);
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        self.directory.conversations.get(conversation).is_group()
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.directory.conversations.get(conversation).durable
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.directory.conversations.get(conversation).members.len()
    }

    fn members_version(&self, conversation: ConversationId) -> Option<u32> {
        Some(self.directory.conversations.get(conversation).members_version)
    }

    fn is_silent(&self, conversation: ConversationId) -> bool {
        self.directory.conversations.get(conversation).is_silent()
    }

    fn settings(&self, conversation: ConversationId) -> GroupSettings {
        self.directory.conversations.get(conversation).settings.as_deref().cloned().unwrap_or_default()
    }

    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member> {
        self.directory.conversations.get(conversation).member(user).copied()
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
    ) -> impl ExactSizeIterator<Item = Member> + '_ {
        let members = &self.directory.conversations.get(conversation).members;
        let first = members.partition_point(|member| Some(member.user) <= after);
        members[first..].iter().copied()
    }

    fn relation(&self, user: UserId, other: UserId) -> Relation {
        self.directory.relations.get(user, other)
    }

    fn who_may_add(&self, user: UserId) -> WhoMayAdd {
        self.directory.users.get(user).who_may_add
    }

    fn invitations(&self, user: UserId) -> Vec<ConversationId> {
        self.directory.users.get(user).invitations().to_vec()
    }

    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)> {
        self.directory.relations.of(user).collect()
    }

    fn devices(&self, user: UserId) -> Vec<DeviceInfo> {
        self.directory.users.get(user).devices.iter().map(super::directory::Device::info).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::im::store::{Batch, Login, Memory};

    #[test]
    fn logins_that_no_message_follows_are_written_down_in_bounded_batches() {
        let mut store = Memory::new(&ImConfig::default());
        let mut ticket = Ticket::FIRST;
        let mut logins = 0;
        while !store.wants_commit(1) {
            let (uid, device) = (format!("user-{logins}"), "phone".to_owned());
            let login = Login { uid, device, platform: 1, now_ms: 1, issued_s: 0 };
            assert!(store.submit(ticket, Command::Login(login)).is_ok());
            ticket = ticket.next();
            logins += 1;
        }
        // The login of a new user makes three.
        assert!(logins <= LATE_CHANGES && store.directory.changed.len() < LATE_CHANGES + 3);
        let empty = Batch { now_ms: 1, last_id: 0, writes: Vec::new() };
        assert!(store.submit(ticket, Command::Commit(empty)).is_ok());
        assert!(!store.wants_commit(1) && store.directory.changed.is_empty());
    }
}
