//! Conversations: their members and messages.

use crate::im::store::membership::{Kind, Member};
use crate::im::store::{ConversationId, Page, PageLimits, Refusal, UserId};
use bytes::Bytes;
use hashbrown::HashMap;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) kind: Kind,
    /// By user.
    pub(super) members: Vec<Member>,
    /// Seqs 1 to this are dropped.
    pub(super) dropped: u64,
    /// From seq `dropped + 1` on, encoded.
    pub(super) messages: VecDeque<Bytes>,
}

impl Conversation {
    pub(super) fn latest(&self) -> u64 {
        self.dropped + self.messages.len() as u64
    }

    pub(super) fn message(&self, seq: u64) -> Option<&Bytes> {
        let index = seq.checked_sub(self.dropped + 1)?;
        self.messages.get(usize::try_from(index).ok()?)
    }

    pub(super) fn member(&self, user: UserId) -> Option<Member> {
        let index = self.members.binary_search_by_key(&user, |member| member.user).ok()?;
        Some(self.members[index])
    }

    /// True: the user was no member before.
    pub(super) fn try_join(&mut self, user: UserId, members_max: usize) -> Result<bool, Refusal> {
        let Err(index) = self.members.binary_search_by_key(&user, |member| member.user) else {
            return Ok(false);
        };
        if self.members.len() >= members_max {
            return Err(Refusal::GroupFull);
        }
        self.members.insert(index, Member { user, visible_from: self.latest() + 1 });
        Ok(true)
    }

    pub(super) fn leave(&mut self, user: UserId) {
        if let Ok(index) = self.members.binary_search_by_key(&user, |member| member.user) {
            self.members.remove(index);
        }
    }

    pub(super) fn page(&self, visible_from: u64, range: (u64, u64), limits: PageLimits) -> Page {
        let (from, to) = (range.0.max(1), range.1.min(self.latest()));
        let mut page = Page { latest: self.latest(), ..Page::default() };
        let first = from.max(visible_from).max(self.dropped + 1);
        if from < first && from <= to {
            page.voids.push((from, to.min(first - 1)));
        }
        let mut bytes = 0;
        for seq in first..=to {
            let body = self.message(seq).expect("between the dropped and the latest");
            bytes += body.len();
            let is_full = page.messages.len() >= limits.messages || bytes > limits.bytes;
            if is_full && !page.messages.is_empty() {
                page.more = true;
                break;
            }
            page.messages.push(body.clone());
        }
        page
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
    pub(super) fn new(capacity: usize) -> Self {
        let (one_to_one, groups) = (HashMap::new(), HashMap::new());
        Self { all: Vec::new(), one_to_one, groups, capacity }
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

    /// `None`: `conversations_max` are known.
    pub(super) fn open_one_to_one(&mut self, a: UserId, b: UserId) -> Option<ConversationId> {
        let (first, second) = (a.min(b), a.max(b));
        let members = if first == second { &[first][..] } else { &[first, second][..] };
        let id = self.open(Kind::OneToOne(first, second), members)?;
        self.one_to_one.insert((first, second), id);
        Some(id)
    }

    /// `members` is sorted, without repetition. `None`: `conversations_max` are known.
    pub(super) fn open_group(
        &mut self,
        name: &str,
        creator: UserId,
        members: &[UserId],
    ) -> Option<ConversationId> {
        let id = self.open(Kind::Group { name: name.into(), creator }, members)?;
        self.groups.insert(name.into(), id);
        Some(id)
    }

    fn open(&mut self, kind: Kind, members: &[UserId]) -> Option<ConversationId> {
        if self.all.len() >= self.capacity {
            return None;
        }
        let members = members.iter().map(|user| Member { user: *user, visible_from: 1 }).collect();
        let id = ConversationId(u32::try_from(self.all.len()).expect("conversations_max fits u32"));
        self.all.push(Conversation { kind, members, dropped: 0, messages: VecDeque::new() });
        Some(id)
    }
}
