//! Conversations: who is in them, and how far they go. Their messages are on disk.

use super::DiskError;
use super::tables::{ConversationRecord, MemberRecord, Tables, numbers};
use super::users::Users;
use crate::im::store::membership::{Kind, Member};
use crate::im::store::{ConversationId, UserId};
use hashbrown::HashMap;

#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) kind: Kind,
    /// By user.
    pub(super) members: Vec<Member>,
    /// The last seq that was given.
    pub(super) numbered: u64,
    /// The last seq that readers see.
    pub(super) durable: u64,
}

impl Conversation {
    pub(super) fn member(&self, user: UserId) -> Option<Member> {
        let index = self.members.binary_search_by_key(&user, |member| member.user).ok()?;
        Some(self.members[index])
    }

    pub(super) fn insert(&mut self, member: Member) {
        if let Err(index) = self.members.binary_search_by_key(&member.user, |member| member.user) {
            self.members.insert(index, member);
        }
    }

    pub(super) fn remove(&mut self, user: UserId) {
        self.members.retain(|member| member.user != user);
    }
}

#[derive(Debug)]
pub(super) struct Conversations {
    all: Vec<Conversation>,
    one_to_one: HashMap<(UserId, UserId), ConversationId>,
    groups: HashMap<Box<str>, ConversationId>,
    capacity: usize,
}

impl Conversations {
    /// All of them, and how many memberships there were.
    pub(super) fn load(
        tables: &Tables,
        capacity: usize,
        users: &mut Users,
    ) -> Result<(Self, u64), DiskError> {
        let (one_to_one, groups) = (HashMap::new(), HashMap::new());
        let mut loaded = Self { all: Vec::new(), one_to_one, groups, capacity: usize::MAX };
        Tables::all(&tables.conversations, "a conversation", |key, record: ConversationRecord| {
            let number = u32::try_from(loaded.all.len()).unwrap_or(u32::MAX);
            if numbers(key)?.0 != number {
                let problem = format!("number {number} is missing");
                return Err(DiskError::Damaged { what: "a conversation", problem });
            }
            let kind = match record.group {
                Some(name) => Kind::Group { name: name.into(), creator: UserId(record.first) },
                None => Kind::OneToOne(UserId(record.first), UserId(record.second)),
            };
            loaded.open(kind);
            let last = Tables::last(&tables.messages, number)?.unwrap_or(0);
            let place = loaded.all.last_mut().expect("just opened");
            (place.numbered, place.durable) = (last, last);
            Ok(())
        })?;
        loaded.capacity = capacity;
        let mut memberships = Vec::new();
        Tables::all(&tables.members, "a membership", |key, record: MemberRecord| {
            let (conversation, user) = numbers(key)?;
            let unknown = || DiskError::Damaged { what: "a membership", problem: "of nobody".into() };
            let user = UserId(u32::try_from(user).map_err(|_| unknown())?);
            let place = loaded.all.get_mut(conversation as usize).ok_or_else(unknown)?;
            if !users.knows(user) {
                return Err(unknown());
            }
            // In the order of the keys, so the members are sorted.
            place.members.push(Member { user, visible_from: record.visible_from });
            memberships.push((record.since, user, ConversationId(conversation)));
            Ok(())
        })?;
        memberships.sort_unstable();
        let last = memberships.last().map_or(0, |(since, ..)| *since);
        for (_, user, conversation) in memberships {
            users.get_mut(user).conversations.push(conversation);
        }
        Ok((loaded, last))
    }

    pub(super) fn get(&self, id: ConversationId) -> &Conversation {
        &self.all[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: ConversationId) -> &mut Conversation {
        &mut self.all[id.0 as usize]
    }

    pub(super) fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        self.one_to_one.get(&(a.min(b), a.max(b))).copied()
    }

    pub(super) fn group(&self, name: &str) -> Option<ConversationId> {
        self.groups.get(name).copied()
    }

    /// Without members. `None`: `conversations_max` are known.
    pub(super) fn open(&mut self, kind: Kind) -> Option<ConversationId> {
        if self.all.len() >= self.capacity {
            return None;
        }
        let id = ConversationId(u32::try_from(self.all.len()).expect("conversations_max fits u32"));
        match &kind {
            Kind::OneToOne(a, b) => _ = self.one_to_one.insert((*a, *b), id),
            Kind::Group { name, .. } => _ = self.groups.insert(name.clone(), id),
        }
        self.all.push(Conversation { kind, members: Vec::new(), numbered: 0, durable: 0 });
        Some(id)
    }
}
