//! Reads of simulated cells.

use super::{Cells, ConversationTable};
use moorline_backend::cluster::cell::{
    ConversationRow, Ends, INVITATIONS_MAX, ListedState, Load, Loaded, UNREAD_MAX, UserState,
};
use moorline_backend::im::store::rules::relations::{Both, Counts};
use moorline_backend::im::store::{ConversationId, LAST_BYTES_MAX, Relation, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Cells {
    pub(super) fn load(&self, load: &Load) -> Loaded {
        match load {
            Load::Name(uid) => Loaded::Name(uid.clone(), self.uids.get(uid).copied()),
            Load::User(uid) => Loaded::User(self.uids.get(uid).and_then(|user| self.user(*user))),
            Load::UserNumber(user) => Loaded::User(self.user(*user)),
            Load::Conversation(id) => {
                Loaded::Conversation(self.ids.get(id).and_then(|of| self.conversation(*of)).map(Box::new))
            }
            Load::ConversationNumber(of) => Loaded::Conversation(self.conversation(*of).map(Box::new)),
            Load::Key(conversation, sender, key) => {
                let table = self.conversations.get(conversation);
                Loaded::Key(table.and_then(|table| table.keys.get(&(*sender, *key))).copied())
            }
            Load::Stream(user, after, to, limit) => {
                let inbox = self.users.get(user).map(|user| &user.inbox);
                let rows = inbox.into_iter().flat_map(|inbox| inbox.range(after + 1..=*to.max(after)));
                Loaded::Stream(rows.take(*limit).map(|(_, row)| row.clone()).collect())
            }
            Load::Bodies(entries) => {
                let mut heads = BTreeMap::new();
                let bodies = entries.iter().filter_map(|(of, content)| {
                    heads.insert(*of, self.conversation(*of)?);
                    Some((*of, *content, self.conversations.get(of)?.body(*content)?))
                });
                let bodies = bodies.collect();
                Loaded::Bodies(bodies, heads.into_values().collect())
            }
            Load::Profiles(uids) => {
                let of = |uid: &Arc<str>| self.users.get(self.uids.get(uid)?)?.profile.clone();
                Loaded::Profiles(uids.iter().filter_map(|uid| Some((uid.clone(), of(uid)?))).collect())
            }
            Load::Listing(user, after, limit) => {
                let listing = self.users.get(user).map(|user| &user.listing);
                let mut all: Vec<_> = listing.into_iter().flatten().collect();
                all.sort_by_key(|(_, (_, since))| std::cmp::Reverse(*since));
                if !after.is_empty() {
                    let Some(at) = all.iter().position(|(_, (id, _))| id == after) else {
                        return Loaded::Listing(None);
                    };
                    all.drain(..=at);
                }
                Loaded::Listing(Some(all.into_iter().take(*limit).map(|(of, _)| *of).collect()))
            }
            Load::Listed(user, conversations) => {
                Loaded::Listed(conversations.iter().filter_map(|of| self.listed(*user, *of)).collect())
            }
            Load::Page(of, from, to, limit) => {
                let messages = self.conversations.get(of).map(|table| &table.messages);
                let range = *from..(*to + 1).max(*from);
                let rows = messages.into_iter().flat_map(|messages| messages.range(range.clone()));
                let rows = rows.filter(|(_, row)| !row.body.is_empty());
                Loaded::Page(rows.take(*limit).map(|(seq, row)| (*seq, row.body.clone())).collect())
            }
            load => self.people(load),
        }
    }

    /// Reads users, and what they make of each other.
    fn people(&self, load: &Load) -> Loaded {
        match load {
            Load::Contacts(uids) => {
                let contact = |uid: &Arc<str>| {
                    let user = *self.uids.get(uid)?;
                    Some((uid.clone(), user, self.users[&user].who_may_add))
                };
                Loaded::Contacts(uids.iter().filter_map(contact).collect())
            }
            Load::Pairs(ids) => Loaded::Pairs(ids.iter().map(|id| (id.clone(), self.pair(id))).collect()),
            Load::Relations(user) => {
                let all = self.users.get(user).into_iter().flat_map(|account| &account.relations);
                let all = all.map(|(other, (uid, relation))| (*other, uid.clone(), *relation));
                Loaded::Relations(*user, all.collect())
            }
            Load::RelationCounts(uid) => {
                Loaded::RelationCounts(self.uids.get(uid).map(|user| (*user, self.counts(*user))))
            }
            Load::Settings(user) => self.settings(*user),
            Load::Pushed(user, key) => {
                let keys = self.users.get(user).map(|account| &account.keys);
                Loaded::Pushed(keys.and_then(|keys| keys.get(key)).map(|(digest, _)| *digest))
            }
            Load::Devices(uids) => {
                let users = uids.iter().filter_map(|uid| self.uids.get(uid));
                let of = |user: &UserId| {
                    let user = *user;
                    self.users[&user].devices.iter().map(move |device| (user, device.clone()))
                };
                Loaded::Devices(users.flat_map(of).collect())
            }
            Load::InvitedTo(user, groups) => {
                let group = |of: &ConversationId| {
                    let table = self.conversations.get(of)?;
                    let is_invited = !table.row.is_dissolved && table.invited.contains(user);
                    is_invited.then(|| (*of, table.row.id.clone()))
                };
                Loaded::InvitedTo(*user, groups.iter().filter_map(group).collect())
            }
            Load::Invited(group, users) => {
                let invited = self.conversations.get(group).map(|table| &table.invited);
                Loaded::Invited(
                    invited.into_iter().flatten().filter(|it| users.contains(it)).copied().collect(),
                )
            }
            load => unreachable!("{load:?} is read elsewhere"),
        }
    }

    fn user(&self, user: UserId) -> Option<Box<UserState>> {
        let table = self.users.get(&user)?;
        let (uid, devices, last_gone) = (table.uid.clone(), table.devices.clone(), table.last_gone);
        let arrived = table.arrived.iter().map(|(of, seq)| (*of, *seq)).collect();
        let rule = table.rule;
        Some(Box::new(UserState { user, uid, devices, last_gone, rule, end: table.end, arrived }))
    }

    fn conversation(&self, of: ConversationId) -> Option<(ConversationRow, Ends)> {
        let table = self.conversations.get(&of)?;
        Some((table.row.clone(), table.ends))
    }

    fn settings(&self, user: UserId) -> Loaded {
        let account = self.users.get(&user);
        let rule = account.map(|account| account.who_may_add).unwrap_or_default();
        let mut groups: Vec<_> = account.into_iter().flat_map(|account| &account.invitations).collect();
        groups.sort_by_key(|(_, position)| **position);
        let old = groups.len().saturating_sub(INVITATIONS_MAX);
        Loaded::Settings(user, rule, groups.into_iter().skip(old).map(|(group, _)| *group).collect())
    }

    fn counts(&self, user: UserId) -> Counts {
        let mut sum = Counts::default();
        for (_, relation) in self.users[&user].relations.values() {
            let one = Counts::of(*relation);
            sum.relations += one.relations;
            sum.requests += one.requests;
            sum.blocks += one.blocks;
        }
        sum
    }

    /// Returns the relations of the two users of a conversation to each other; of who makes nothing of the other one, none.
    pub(crate) fn pair(&self, id: &str) -> Vec<(UserId, Relation)> {
        let table = self.ids.get(id).and_then(|of| self.conversations.get(of));
        let members = table.into_iter().flat_map(|table| &table.row.members);
        let pair = members.map(|it| (it.member.user, it.relation));
        pair.filter(|(_, relation)| *relation != Relation::default()).collect()
    }

    fn listed(&self, user: UserId, of: ConversationId) -> Option<ListedState> {
        let ConversationTable { row, messages, .. } = self.conversations.get(&of)?;
        let own = row.member(user)?.member;
        let latest = messages.last_key_value().map_or(0, |(seq, _)| *seq);
        let last = messages.get(&latest).filter(|_| latest >= own.first_visible());
        let from = (own.read + 1).max(own.first_visible());
        let unread = messages.range(from..).filter(|(_, it)| it.is_counted);
        let unread = unread.take(usize::try_from(UNREAD_MAX).expect("small")).count();
        let peer = row.members.iter().map(|it| it.member).find(|member| !row.is_group && member.user != user);
        Some(ListedState {
            conversation: of,
            id: row.id.clone(),
            latest,
            members: row.members.len(),
            own,
            peer,
            relations: {
                let of = |is_own| row.members.iter().find(|it| (it.member.user == user) == is_own);
                let relation = |is_own| of(is_own).map(|it| it.relation).unwrap_or_default();
                Both { own: relation(true), theirs: relation(false) }
            },
            unread: unread as u64,
            last: last
                .map(|it| it.body.clone())
                .filter(|body| !body.is_empty() && body.len() <= LAST_BYTES_MAX),
        })
    }
}
