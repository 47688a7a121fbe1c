//! Facts of other nodes' conversations and users, and of the own ones, as [`crate::im::Im`] reads them.
//!
//! Names never change, so they may be kept. The rest of a conversation is as new as the completion or prefetch that brought
//! it; the owner of the conversation judges again.

use super::questions::HeadRow;
use crate::cluster::cell::{Content, ConversationRow, Deliver, Passage};
use crate::im::names;
use crate::im::store::rules::relations::{Both, Counts};
use crate::im::store::{
    ConversationId, DeviceInfo, GroupSettings, Member, Relation, Role, UserId, WhoMayAdd,
};
use hashbrown::HashMap;
use std::sync::Arc;

/// Conversations, users and relations that are kept; at the limit all are forgotten, and read again when needed.
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
    /// Settings, as far as known.
    pub(super) settings: GroupSettings,
    /// Something has changed since: what is asked for is read again.
    pub(super) is_stale: bool,
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
    /// Relations of two users to each other, by the id of their conversation; of who makes nothing of the other one, none.
    pairs: HashMap<Arc<str>, Vec<(UserId, Relation)>>,
    /// Relations of users, and their numbers.
    relations: HashMap<UserId, Vec<(UserId, Relation)>>,
    relation_counts: HashMap<UserId, Counts>,
    /// Rules of users that are not the default.
    who_may_add: HashMap<UserId, WhoMayAdd>,
    devices: HashMap<UserId, Vec<DeviceInfo>>,
    /// Groups to which users are invited, oldest invitation first.
    invitations: HashMap<UserId, Vec<ConversationId>>,
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

    pub(super) fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member> {
        let members = &self.head(conversation)?.members;
        let at = members.binary_search_by_key(&user, |member| member.user).ok()?;
        members.get(at).copied()
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

    /// Returns what a user makes of another one.
    pub(super) fn relation(&self, user: UserId, other: UserId) -> Relation {
        let pair = self.id_of_two(user, other).and_then(|id| self.pairs.get(&id));
        let of_user = pair.into_iter().flatten().find(|(known, _)| *known == user);
        of_user.map(|(_, relation)| *relation).unwrap_or_default()
    }

    /// Relations of a user to others.
    pub(super) fn relations(&self, user: UserId) -> &[(UserId, Relation)] {
        self.relations.get(&user).map_or(&[], |all| all)
    }

    pub(super) fn relation_counts(&self, user: UserId) -> Counts {
        self.relation_counts.get(&user).copied().unwrap_or_default()
    }

    pub(super) fn who_may_add(&self, user: UserId) -> WhoMayAdd {
        self.who_may_add.get(&user).copied().unwrap_or_default()
    }

    pub(super) fn learn_who_may_add(&mut self, user: UserId, who_may_add: WhoMayAdd) {
        if who_may_add == WhoMayAdd::default() {
            self.who_may_add.remove(&user);
        } else {
            self.who_may_add.insert(user, who_may_add);
        }
    }

    pub(super) fn devices(&self, user: UserId) -> Vec<DeviceInfo> {
        self.devices.get(&user).cloned().unwrap_or_default()
    }

    pub(super) fn learn_devices(&mut self, user: UserId, devices: Vec<DeviceInfo>) {
        self.devices.insert(user, devices);
    }

    /// Returns the groups to which a user is invited, oldest invitation first.
    pub(super) fn invitations(&self, user: UserId) -> Vec<ConversationId> {
        self.invitations.get(&user).cloned().unwrap_or_default()
    }

    /// Takes the groups to which a user is invited, oldest invitation first, with their ids.
    pub(super) fn learn_invitations(&mut self, user: UserId, groups: Vec<(ConversationId, Arc<str>)>) {
        for (group, id) in &groups {
            if !self.heads.contains_key(group) {
                self.learn_head(*group, id, true, 0, 0);
            }
        }
        self.invitations.insert(user, groups.into_iter().map(|(group, _)| group).collect());
    }

    /// Takes what two users make of each other.
    pub(super) fn learn_pair(&mut self, id: Arc<str>, pair: Vec<(UserId, Relation)>) {
        if pair.is_empty() {
            self.pairs.remove(&id);
        } else {
            self.pairs.insert(id, pair);
        }
    }

    /// Takes what two users make of each other.
    pub(super) fn learn_related(&mut self, user: UserId, other: UserId, relations: Both<Relation>) {
        if let Some(id) = self.id_of_two(user, other) {
            let mut pair = vec![(user, relations.own), (other, relations.theirs)];
            pair.retain(|(_, relation)| *relation != Relation::default());
            self.learn_pair(id, pair);
        }
    }

    /// Takes the relations of a user to others.
    pub(super) fn learn_relations(&mut self, user: UserId, all: Vec<(UserId, Arc<str>, Relation)>) {
        all.iter().for_each(|(other, uid, _)| self.learn_user(*other, uid));
        self.relations.insert(user, all.into_iter().map(|(other, _, relation)| (other, relation)).collect());
    }

    pub(super) fn learn_counts(&mut self, user: UserId, counts: Counts) {
        self.relation_counts.insert(user, counts);
    }

    /// Takes a conversation with all its members. One that is gone is forgotten.
    pub(super) fn learn(&mut self, row: &ConversationRow, latest: u64) {
        for member in &row.members {
            self.learn_user(member.member.user, &member.uid);
        }
        if self.learn_without_members(row, latest) {
            let members = row.members.iter().map(|it| it.member).collect();
            if let Some(head) = self.heads.get_mut(&row.conversation) {
                head.members = members;
            }
        }
    }

    /// Takes a conversation, and the membership of one user. One that is gone is forgotten.
    pub(super) fn learn_one(&mut self, row: &ConversationRow, latest: u64, user: Option<UserId>) {
        if !self.learn_without_members(row, latest) {
            return;
        }
        let (Some(user), Some(head)) = (user, self.heads.get_mut(&row.conversation)) else { return };
        let at = head.members.binary_search_by_key(&user, |member| member.user);
        match (at, row.member(user)) {
            (Ok(at), Some(it)) => head.members[at] = it.member,
            (Ok(at), None) => _ = head.members.remove(at),
            (Err(at), Some(it)) => head.members.insert(at, it.member),
            (Err(_), None) => {}
        }
    }

    /// False: the conversation is gone, or nobody has said anything in it yet.
    fn learn_without_members(&mut self, row: &ConversationRow, latest: u64) -> bool {
        let conversation = row.conversation;
        if row.is_dissolved {
            self.dissolve(&row.id, conversation);
            return false;
        }
        if !row.is_group && latest == 0 {
            return false; // two users who have a relation
        }
        self.ids.insert(row.id.clone(), conversation);
        let head = self.learn_head(conversation, &row.id, row.is_group, latest, row.members.len());
        head.settings.clone_from(&row.settings);
        head.is_stale = false;
        true
    }

    /// Nobody finds the conversation by its id any more. What is told of it last still names it.
    fn dissolve(&mut self, id: &str, conversation: ConversationId) {
        self.ids.remove(id);
        if let Some(head) = self.heads.get_mut(&conversation) {
            (head.count, head.is_stale) = (0, true);
            head.members.clear();
        }
    }

    /// Takes what a DELIVER says of its conversation.
    pub(super) fn learn_delivered(&mut self, deliver: &Deliver) {
        let Deliver { conversation, id, is_group, content, members, user, visible_from, .. } = deliver;
        if matches!(deliver.passage, Passage::Relates(..) | Passage::Invited) {
            return;
        }
        let latest = if let Content::Message(seq) = content { *seq } else { 0 };
        let head = self.learn_head(*conversation, id, *is_group, latest, *members);
        head.is_stale |= !matches!(content, Content::Message(_));
        if deliver.passage == Passage::Enters {
            self.ids.insert(id.clone(), *conversation);
        }
        let Some(head) = self.heads.get_mut(conversation) else { return };
        match (head.members.binary_search_by_key(user, |member| member.user), deliver.passage) {
            (Ok(at), Passage::Leaves) => _ = head.members.remove(at),
            (Ok(at), Passage::Enters) => head.members[at] = Member::new(*user, Role::Member, *visible_from),
            (Err(at), Passage::Enters | Passage::Stays) => {
                head.members.insert(at, Member::new(*user, Role::Member, *visible_from));
            }
            (Ok(_), Passage::Stays)
            | (Err(_), Passage::Leaves)
            | (_, Passage::Relates(..) | Passage::Invited) => {}
        }
    }

    /// Takes what the answer to a question says of its conversation. One that is gone is forgotten.
    pub(super) fn learn_head_row(&mut self, row: &HeadRow) {
        let HeadRow { conversation, id, is_group, is_dissolved, members, latest } = row;
        if *is_dissolved {
            return self.dissolve(id, *conversation);
        }
        self.ids.insert(id.clone(), *conversation);
        let head = self.learn_head(*conversation, id, *is_group, *latest, *members);
        head.is_stale |= is_group;
    }

    /// Notes that a conversation has changed.
    pub(super) fn touch(&mut self, conversation: ConversationId) {
        if let Some(head) = self.heads.get_mut(&conversation) {
            head.is_stale = true;
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
            let settings = GroupSettings::default();
            Head {
                id: id.clone(),
                is_group,
                latest,
                count,
                settings,
                is_stale: is_group,
                members: Vec::new(),
            }
        });
        (head.latest, head.count) = (head.latest.max(latest), count);
        head
    }

    /// Forgets everything if there is too much. Call it while no completion waits that covers facts.
    pub(super) fn trim(&mut self) {
        // Lists are long, and asked for again each time.
        self.relations.clear();
        self.invitations.clear();
        self.devices.clear();
        let relations = self.pairs.len() + self.relation_counts.len() + self.who_may_add.len();
        if self.heads.len() + self.uids.len() + relations > KNOWN_MAX {
            *self = Self::default();
        }
    }
}
