//! A store behind a slow network: every completion comes late, in random order but for commits, and a fact can be read
//! only while the contract of [`Store`] covers it.

use crate::im::names;
use crate::im::store::{
    Command, Completion, ConversationId, Counts, DeviceInfo, Entry, Facts, GroupSettings, Member, Memory,
    Need, Outcome, Read, ReadSet, Relation, Store, SweepNeed, Swept, Ticket, UserId, WhoMayAdd,
};
use moorline_proto::random::Random;
use std::collections::{BTreeMap, VecDeque};

/// Polls that a command waits before it is done, and its completion before it is given, at most.
const DELAY_MAX: u64 = 4;

pub(super) struct Slow<S> {
    inner: S,
    random: Random,
    polls: u64,
    /// Commits that are not done, in order, each with the poll from which it may be.
    commits: VecDeque<(u64, Ticket, Command)>,
    /// Logins and reads that are not done.
    others: Vec<(u64, Ticket, Command)>,
    /// Users of the open reads of streams.
    readers: BTreeMap<Ticket, UserId>,
    /// Committed batches, in order.
    committed: VecDeque<(u64, Ticket, Completion)>,
    /// Other completions, and what they cover.
    done: Vec<(u64, Ticket, Completion, Vec<Need>)>,
    covered: Vec<Need>,
}

impl Slow<Memory> {
    pub(super) fn new(inner: Memory, seed: u64) -> Self {
        Self::over(inner, seed)
    }
}

impl<S: Store> Slow<S> {
    fn over(inner: S, seed: u64) -> Self {
        Self {
            inner,
            random: Random::new(seed),
            polls: 0,
            commits: VecDeque::new(),
            others: Vec::new(),
            readers: BTreeMap::new(),
            committed: VecDeque::new(),
            done: Vec::new(),
            covered: Vec::new(),
        }
    }

    /// Another life of the backend: nothing of the one before is completed.
    pub(super) fn reopen(self, seed: u64) -> Self {
        Self::over(self.inner, seed)
    }

    fn later(&mut self) -> u64 {
        self.polls + self.random.below(DELAY_MAX)
    }

    /// Does what is due, and takes what the store inside has completed.
    fn work(&mut self) {
        while self.commits.front().is_some_and(|(due, ..)| *due <= self.polls)
            && let Some((_, ticket, command)) = self.commits.pop_front()
        {
            assert!(self.inner.submit(ticket, command).is_ok(), "memory takes every batch");
        }
        let (due, waiting) = std::mem::take(&mut self.others).into_iter().partition(|it| it.0 <= self.polls);
        self.others = waiting;
        let due: Vec<(u64, Ticket, Command)> = due;
        for (_, ticket, command) in due {
            if let Command::Read(Read::Stream { user, .. }) = &command {
                self.readers.insert(ticket, *user);
            }
            assert!(self.inner.submit(ticket, command).is_ok(), "always taken");
        }
        while let Some((ticket, completion)) = self.inner.poll() {
            let at = self.later();
            if matches!(completion, Completion::Committed(_)) {
                self.committed.push_back((at, ticket, completion));
            } else {
                let user = self.readers.remove(&ticket);
                let covers = covered_by(&completion, user);
                self.done.push((at, ticket, completion, covers));
            }
        }
    }

    fn require(&self, what: &str, covers: impl Fn(&Need) -> bool) {
        assert!(self.covered.iter().any(covers), "{what} is read without a prefetch: {:?}", self.covered);
    }

    fn is_named(&self, id: &str, conversation: ConversationId) -> bool {
        self.inner.find(id) == Some(conversation)
    }

    fn require_head(&self, conversation: ConversationId) {
        self.require("a conversation", |need| match need {
            Need::Conversation(known, _) | Need::Members(known) => *known == conversation,
            Need::Named(id, _) | Need::NamedMembers(id) => self.is_named(id, conversation),
            Need::Settings(user) => self.inner.invitations(*user).contains(&conversation),
            _ => false,
        });
    }

    fn require_members(&self, conversation: ConversationId) {
        self.require("all members", |need| self.has_members(need, conversation));
    }

    fn has_members(&self, need: &Need, conversation: ConversationId) -> bool {
        match need {
            Need::Members(known) => *known == conversation,
            Need::NamedMembers(id) => self.is_named(id, conversation),
            _ => false,
        }
    }
}

/// Facts that a completion covers; a stream is that of `user`.
fn covered_by(completion: &Completion, user: Option<UserId>) -> Vec<Need> {
    match completion {
        Completion::Committed(committed) => {
            let of = |outcome: &Outcome| match outcome {
                Outcome::Appended(Ok(stored)) => Some(Need::Conversation(stored.conversation, None)),
                Outcome::Swept(Swept { told: Some(stored), .. }) => {
                    Some(Need::Conversation(stored.conversation, None))
                }
                Outcome::Created(Ok((conversation, _))) => Some(Need::Conversation(*conversation, None)),
                _ => None,
            };
            committed.outcomes.iter().filter_map(of).collect()
        }
        Completion::Stream(page) => {
            let of = |(_, entry): &(u64, Entry)| match entry {
                Entry::Message { conversation, .. } | Entry::Dropped { conversation, .. } => {
                    Some(Need::Conversation(*conversation, user))
                }
                Entry::Event { .. } | Entry::EventsDropped => None,
            };
            page.entries.iter().filter_map(of).collect()
        }
        _ => Vec::new(),
    }
}

impl<S: Store> Store for Slow<S> {
    fn prefetch(&mut self, ticket: Ticket, plan: impl FnOnce(&mut ReadSet)) -> bool {
        let mut set = ReadSet::default();
        plan(&mut set);
        if self.random.one_in(4) {
            self.covered.extend(set.0);
            return true;
        }
        let at = self.later();
        self.done.push((at, ticket, Completion::Prefetched, set.0));
        false
    }

    fn submit(&mut self, ticket: Ticket, command: Command) -> Result<(), Command> {
        let at = self.later();
        if matches!(command, Command::Commit(_)) {
            self.covered.clear();
            self.commits.push_back((at, ticket, command));
        } else {
            self.others.push((at, ticket, command));
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<(Ticket, Completion)> {
        self.polls += 1;
        self.covered.clear();
        self.work();
        if self.random.one_in(2)
            && self.committed.front().is_some_and(|(at, ..)| *at <= self.polls)
            && let Some((_, ticket, completion)) = self.committed.pop_front()
        {
            self.covered = covered_by(&completion, None);
            return Some((ticket, completion));
        }
        let due = (0..self.done.len()).filter(|at| self.done[*at].0 <= self.polls);
        let due: Vec<usize> = due.collect();
        let chosen = *due.get(usize::try_from(self.random.below(due.len().max(1) as u64)).ok()?)?;
        let (_, ticket, completion, covers) = self.done.swap_remove(chosen);
        self.covered = covers;
        Some((ticket, completion))
    }

    fn is_broken(&self) -> bool {
        self.inner.is_broken()
    }

    fn wants_commit(&self, now_ms: u64) -> bool {
        self.inner.wants_commit(now_ms)
    }

    fn last_id(&self) -> u64 {
        self.inner.last_id()
    }

    fn sweep_need(&self) -> SweepNeed {
        self.inner.sweep_need()
    }

    fn retention_ms(&self) -> u64 {
        self.inner.retention_ms()
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }

    fn name(&self) -> bytes::Bytes {
        self.inner.name()
    }
}

impl<S: Store> Facts for Slow<S> {
    fn find_user(&self, uid: &str) -> Option<UserId> {
        self.require("a user", |need| match need {
            Need::User(known) | Need::NewUser(known) | Need::Contact(known, _) | Need::Presence(known, _) => {
                known == uid
            }
            _ => false,
        });
        self.inner.find_user(uid)
    }

    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.require("a new user", |need| matches!(need, Need::NewUser(known) if known == uid));
        self.inner.try_user(uid)
    }

    fn uid(&self, user: UserId) -> &str {
        self.require("a name", |need| match need {
            Need::User(uid) | Need::NewUser(uid) | Need::Contact(uid, _) | Need::Presence(uid, _) => {
                self.inner.find_user(uid) == Some(user)
            }
            Need::Members(conversation) => self.inner.member(*conversation, user).is_some(),
            Need::NamedMembers(id) => {
                self.inner.find(id).is_some_and(|known| self.inner.member(known, user).is_some())
            }
            Need::Relations(of) => self.inner.relations(*of).iter().any(|(other, _)| *other == user),
            _ => false,
        });
        self.inner.uid(user)
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        self.require("a conversation's id", |need| match need {
            Need::Named(known, _) | Need::NamedMembers(known) => known == id,
            _ => false,
        });
        self.inner.find(id)
    }

    fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        let mut id = String::new();
        names::write_one_to_one(&mut id, self.inner.uid(a), self.inner.uid(b));
        self.require("a conversation of two", |need| matches!(need, Need::Named(known, _) if *known == id));
        self.inner.one_to_one(a, b)
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        self.require_head(conversation);
        self.inner.write_id(conversation, into);
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        self.require_head(conversation);
        self.inner.is_group(conversation)
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.require_head(conversation);
        self.inner.latest(conversation)
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.require_head(conversation);
        self.inner.member_count(conversation)
    }

    fn members_version(&self, conversation: ConversationId) -> Option<u32> {
        self.require_head(conversation);
        self.inner.members_version(conversation)
    }

    fn is_silent(&self, conversation: ConversationId) -> bool {
        self.require_head(conversation);
        self.inner.is_silent(conversation)
    }

    fn settings(&self, conversation: ConversationId) -> GroupSettings {
        self.require_head(conversation);
        self.inner.settings(conversation)
    }

    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member> {
        self.require("a membership", |need| match need {
            Need::Conversation(known, of) => *known == conversation && *of == Some(user),
            Need::Named(id, of) => self.is_named(id, conversation) && *of == Some(user),
            need => self.has_members(need, conversation),
        });
        self.inner.member(conversation, user)
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
    ) -> impl ExactSizeIterator<Item = Member> + '_ {
        self.require_members(conversation);
        self.inner.members(conversation, after)
    }

    fn relation(&self, user: UserId, other: UserId) -> Relation {
        self.require("a relation", |need| match need {
            Need::Relation(a, b) => (*a, *b) == (user, other),
            Need::Contact(uid, asker) | Need::Presence(uid, asker) => {
                let named = self.inner.find_user(uid);
                [(user, other), (other, user)].iter().any(|(a, b)| b == asker && named == Some(*a))
            }
            _ => false,
        });
        self.inner.relation(user, other)
    }

    fn who_may_add(&self, user: UserId) -> WhoMayAdd {
        self.require("settings of a user", |need| match need {
            Need::Settings(of) | Need::Relation(_, of) => *of == user,
            Need::Contact(uid, _) | Need::Presence(uid, _) => self.inner.find_user(uid) == Some(user),
            _ => false,
        });
        self.inner.who_may_add(user)
    }

    fn invitations(&self, user: UserId) -> Vec<ConversationId> {
        self.require("invitations", |need| *need == Need::Settings(user));
        self.inner.invitations(user)
    }

    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)> {
        self.require("all relations", |need| *need == Need::Relations(user));
        self.inner.relations(user)
    }

    fn devices(&self, user: UserId) -> Vec<DeviceInfo> {
        self.require("devices", |need| match need {
            Need::Devices(of) => *of == user,
            Need::Presence(uid, _) => self.inner.find_user(uid) == Some(user),
            _ => false,
        });
        self.inner.devices(user)
    }
}
