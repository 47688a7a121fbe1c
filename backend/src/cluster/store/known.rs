//! Facts of other nodes' conversations and users, and of the own ones, as [`crate::im::Im`] reads them.
//!
//! Names never change, so they may be kept. The rest of a conversation is as new as the completion or prefetch that brought
//! it; the owner of the conversation judges again.

use crate::cluster::cell::{ConversationRow, Deliver};
use crate::im::names;
use crate::im::store::{ConversationId, Member, Role, UserId};
use hashbrown::HashMap;
use std::sync::Arc;

/// Conversations and users that are kept; at the limit all are forgotten, and read again when needed.
pub(super) const KNOWN_MAX: usize = 262_144;

/// A conversation.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) id: Arc<str>,
    pub(super) is_group: bool,
    /// Newest durable seq that this node has heard of.
    pub(super) latest: u64,
    /// Number of members.
    pub(super) count: usize,
    /// Members that are known here, in the order of their numbers.
    pub(super) members: Vec<Member>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KnownFacts {
    uids: HashMap<UserId, Arc<str>>,
    users: HashMap<Arc<str>, UserId>,
    ids: HashMap<Arc<str>, ConversationId>,
    heads: HashMap<ConversationId, Head>,
}

impl KnownFacts {
    pub(super) fn user(&self, uid: &str) -> Option<UserId> {
        self.users.get(uid).copied()
    }

    pub(super) fn uid(&self, user: UserId) -> Option<&Arc<str>> {
        self.uids.get(&user)
    }

    pub(super) fn conversation(&self, id: &str) -> Option<ConversationId> {
        self.ids.get(id).copied()
    }

    pub(super) fn head(&self, conversation: ConversationId) -> Option<&Head> {
        self.heads.get(&conversation)
    }

    /// Id of the conversation of two users whose names are known.
    pub(super) fn id_of_two(&self, a: UserId, b: UserId) -> Option<Arc<str>> {
        let mut id = String::new();
        names::write_one_to_one(&mut id, self.uid(a)?, self.uid(b)?);
        Some(id.into())
    }

    pub(super) fn learn_user(&mut self, user: UserId, uid: &str) {
        if !self.uids.contains_key(&user) {
            let uid: Arc<str> = uid.into();
            self.uids.insert(user, uid.clone());
            self.users.insert(uid, user);
        }
    }

    pub(super) fn learn(&mut self, row: &ConversationRow, latest: u64) {
        for member in &row.members {
            self.learn_user(member.user, &member.uid);
        }
        let members = row.members.iter();
        let members = members.map(|it| Member::new(it.user, Role::Member, it.visible_from)).collect();
        let (conversation, count) = (row.conversation, row.members.len());
        self.learn_head(conversation, &row.id, row.is_group, latest, count).members = members;
    }

    /// Takes what a DELIVER says of its conversation.
    pub(super) fn learn_delivered(&mut self, deliver: &Deliver) {
        let Deliver { conversation, id, is_group, seq, members, user, visible_from, .. } = deliver;
        let head = self.learn_head(*conversation, id, *is_group, *seq, *members);
        if let Err(at) = head.members.binary_search_by_key(user, |member| member.user) {
            head.members.insert(at, Member::new(*user, Role::Member, *visible_from));
        }
    }

    pub(super) fn learn_head(
        &mut self,
        conversation: ConversationId,
        id: &Arc<str>,
        is_group: bool,
        latest: u64,
        count: usize,
    ) -> &mut Head {
        let head = self.heads.entry(conversation).or_insert_with(|| {
            self.ids.insert(id.clone(), conversation);
            Head { id: id.clone(), is_group, latest, count, members: Vec::new() }
        });
        (head.latest, head.count) = (head.latest.max(latest), count);
        head
    }

    /// Forgets everything if there is too much. Call it while no completion waits that covers facts.
    pub(super) fn trim(&mut self) {
        if self.heads.len() + self.uids.len() > KNOWN_MAX {
            *self = Self::default();
        }
    }
}
