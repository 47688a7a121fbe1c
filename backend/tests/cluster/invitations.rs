//! Judgement of invitations: who was added or has joined was allowed to, and each invitation is where it has to be.

use crate::gateway::Gateway;
use crate::world::{GROUP, PRIVATE, World};
use moorline_backend::config::WhoMayWrite;
use moorline_backend::im::store::{RelationChange, UserId};
use moorline_proto::message::client::Push;
use moorline_proto::message::{decode, im};
use prost::Message;
use std::collections::BTreeSet;

/// A group while its events are played.
#[derive(Default)]
struct Group {
    members: BTreeSet<String>,
    invited: BTreeSet<String>,
    is_by_invitation: bool,
}

impl Group {
    fn change(&mut self, changed: &im::GroupChanged) {
        self.members.insert(changed.by.clone());
        self.members.extend(changed.added.iter().cloned());
        changed.added.iter().for_each(|uid| _ = self.invited.remove(uid));
        changed.removed.iter().for_each(|uid| _ = self.members.remove(uid));
        if let Some(settings) = &changed.settings {
            self.is_by_invitation = settings.by_invitation;
        }
    }
}

impl World {
    /// Plays all events of groups.
    pub(crate) fn check_invitations(&mut self) {
        let friends = self.friends_ever();
        let is_for_friends = self.config.who_may_write == WhoMayWrite::Friends;
        let uid = |user: &UserId| self.cells.users[user].uid.to_string();
        let (mut invited, mut joined) = (0, 0);
        for table in self.cells.conversations.values().filter(|table| table.row.is_group) {
            let id = &table.row.id;
            let mut group = Group::default();
            if **id == *GROUP {
                group.members.extend(Gateway::uids().into_iter().take(Gateway::seeded()));
            }
            for (order, told) in &table.told {
                let Some(event) = &told.event else { continue };
                let push = Push::decode(event.clone()).expect("a Push");
                let happened: im::Happened = decode(&push.happened).expect("an event");
                match happened.what {
                    Some(im::happened::What::Group(changed)) => {
                        let is_join = changed.added == [changed.by.clone()] && !group.members.is_empty();
                        if is_join && group.is_by_invitation && !group.members.contains(&changed.by) {
                            let by = &changed.by;
                            assert!(
                                group.invited.contains(by),
                                "{by} joins {id} at {order} without invitation"
                            );
                            joined += 1;
                        }
                        let by_others = changed.added.iter().filter(|uid| **uid != changed.by);
                        for uid in by_others.filter(|uid| is_for_friends || **uid == *PRIVATE) {
                            let pair = BTreeSet::from([uid.clone(), changed.by.clone()]);
                            // Whoever was a member already was not added.
                            let may = group.members.contains(uid) || friends.contains(&pair);
                            assert!(may, "{} adds {uid} to {id} at {order}", changed.by);
                        }
                        group.change(&changed);
                    }
                    Some(im::happened::What::Invited(by)) => {
                        assert!(group.members.contains(&by.by), "{} is not in {id} at {order}", by.by);
                        for uid in told.users.iter().map(uid) {
                            assert!(!group.members.contains(&uid), "{uid} is in {id} at {order}");
                            group.invited.insert(uid);
                            invited += 1;
                        }
                    }
                    Some(im::happened::What::Dissolved(_)) => group.members.clear(),
                    _ => {}
                }
                if group.members.is_empty() {
                    group = Group::default();
                }
            }
            // Who has declined is not invited any more, and nobody was told of that.
            for user in &table.invited {
                assert!(group.invited.contains(&uid(user)), "{} is invited to {id}", uid(user));
                let list = &self.cells.users[user].invitations;
                assert!(list.contains_key(&table.row.conversation), "{id} in the list of {}", uid(user));
            }
        }
        self.coverage.invited += invited;
        self.coverage.joined_by_invitation += joined;
        for device in &self.gateway.devices {
            if let Some(rule) = device.requests.who_may_add {
                assert_eq!(i32::from(self.cells.who_may_add(&device.uid)), rule, "rule of {}", device.uid);
            }
        }
    }

    /// Users who were friends at some time.
    fn friends_ever(&self) -> BTreeSet<BTreeSet<String>> {
        let mut friends = BTreeSet::new();
        for table in self.cells.conversations.values().filter(|table| !table.row.is_group) {
            let mut asked = BTreeSet::new();
            for told in table.told.values() {
                let Some(event) = &told.event else { continue };
                let push = Push::decode(event.clone()).expect("a Push");
                let happened: im::Happened = decode(&push.happened).expect("an event");
                let Some(im::happened::What::Relation(changed)) = happened.what else { continue };
                match changed.change() {
                    RelationChange::Befriend if asked.contains(&changed.user) => {
                        friends.insert(BTreeSet::from([changed.user.clone(), changed.by.clone()]));
                    }
                    RelationChange::Befriend => _ = asked.insert(changed.by.clone()),
                    RelationChange::Unfriend => asked.clear(),
                    RelationChange::Block | RelationChange::Unblock => {}
                }
            }
        }
        friends
    }
}
