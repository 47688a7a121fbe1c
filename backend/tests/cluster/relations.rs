//! Judgement of relations: all changes, played one after the other, give what two users make of each other, and say which messages
//! and read marks may be there.

use crate::cells::ConversationTable;
use crate::world::World;
use moorline_backend::config::WhoMayWrite;
use moorline_backend::im::store::rules;
use moorline_backend::im::store::{Friendship, Relation, RelationChange, UserId};
use moorline_proto::message::client::Push;
use moorline_proto::message::{decode, im};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Relations of two users to each other, while the changes are played.
#[derive(Debug, Default)]
struct Pair(BTreeMap<String, Relation>);

impl Pair {
    fn of(&mut self, uid: &str) -> &mut Relation {
        self.0.entry(uid.to_owned()).or_default()
    }

    fn is_blocked(&self) -> bool {
        self.0.values().any(|relation| relation.is_blocked)
    }

    fn are_friends(&self) -> bool {
        self.0.values().filter(|relation| relation.friendship == Friendship::Friends).count() == 2
    }

    /// Plays a change. Returns those who are told.
    fn change(&mut self, changed: &im::RelationChanged) -> BTreeSet<String> {
        let (by, other) = (&changed.by, &changed.user);
        let both = BTreeSet::from([by.clone(), other.clone()]);
        let before = (*self.of(by), *self.of(other));
        let told = match changed.change() {
            RelationChange::Befriend => {
                assert!(!self.is_blocked(), "{by} asks {other} in spite of a block");
                let has_asked = self.of(other).friendship == Friendship::Asked;
                let (own, theirs) = if has_asked {
                    (Friendship::Friends, Friendship::Friends)
                } else {
                    (Friendship::Asked, Friendship::WasAsked)
                };
                (self.of(by).friendship, self.of(other).friendship) = (own, theirs);
                both
            }
            RelationChange::Unfriend => {
                (self.of(by).friendship, self.of(other).friendship) = (Friendship::None, Friendship::None);
                both
            }
            RelationChange::Block => {
                self.of(by).is_blocked = true;
                BTreeSet::from([by.clone()])
            }
            RelationChange::Unblock => {
                self.of(by).is_blocked = false;
                BTreeSet::from([by.clone()])
            }
        };
        let after = (*self.of(by), *self.of(other));
        assert_ne!(before, after, "{by} and {other} are told of a change only");
        told
    }
}

impl World {
    /// Plays all changes of relations.
    pub(crate) fn check_relations(&mut self) {
        let is_for_friends = self.config.who_may_write == WhoMayWrite::Friends;
        let mut lists = BTreeMap::<UserId, BTreeMap<UserId, Relation>>::new();
        let uid = |user: &UserId| self.cells.users[user].uid.to_string();
        let (mut untold, mut between_friends) = (0, 0);
        for table in self.cells.conversations.values().filter(|table| !table.row.is_group) {
            let id = &table.row.id;
            let recalls = recalls(table);
            let mut pair = Pair::default();
            let is_own = table.row.members.len() == 1;
            for (order, told) in &table.told {
                let users: BTreeSet<String> = told.users.iter().map(uid).collect();
                let Some(event) = &told.event else {
                    let may_be = recalls.contains(order) || is_own;
                    assert!(may_be || !pair.is_blocked(), "{order} of {id} stands in spite of a block");
                    let are_friends = pair.are_friends();
                    let is_of_operator = rules::is_operator(told.origin.1);
                    let may_be = may_be || is_of_operator;
                    assert!(may_be || !is_for_friends || are_friends, "{order} of {id} is not of a friend");
                    between_friends += u64::from(is_for_friends && are_friends);
                    continue;
                };
                let push = Push::decode(event.clone()).expect("a Push");
                let happened: im::Happened = decode(&push.happened).expect("an event");
                match happened.what {
                    Some(im::happened::What::Relation(changed)) => {
                        assert_eq!(pair.change(&changed), users, "receivers of {order} in {id}");
                    }
                    Some(im::happened::What::Read(_)) => {
                        let may_tell =
                            !is_own && !pair.is_blocked() && (!is_for_friends || pair.are_friends());
                        assert_eq!(users.len(), 1 + usize::from(may_tell), "a mark {order} in {id}");
                        untold += u64::from(!may_tell && !is_own);
                    }
                    _ => {}
                }
            }
            let of = |user: UserId| table.row.members.iter().find(|it| it.member.user != user);
            for it in &table.row.members {
                let user = it.member.user;
                assert_eq!(it.relation, *pair.of(&it.uid), "{} in {id}", it.uid);
                if let Some(other) = of(user).filter(|_| it.relation != Relation::default()) {
                    lists.entry(user).or_default().insert(other.member.user, it.relation);
                }
            }
        }
        for (user, account) in &self.cells.users {
            let list = account.relations.iter();
            let list: BTreeMap<_, _> = list.map(|(other, (_, relation))| (*other, *relation)).collect();
            assert_eq!(list, lists.remove(user).unwrap_or_default(), "relations of {}", account.uid);
            for (other, (name, _)) in &account.relations {
                assert_eq!(**name, *uid(other), "a name in the list of {}", account.uid);
            }
        }
        self.coverage.marks_untold += untold;
        self.coverage.messages_of_friends += between_friends;
    }
}

/// Orders of the messages that take others back.
fn recalls(table: &ConversationTable) -> BTreeSet<u64> {
    let is_recall = |seq: u64, body: &[u8]| {
        let push = Push::decode(body).expect("a Push");
        let happened: Option<im::Happened> = decode(&push.happened).ok();
        matches!(happened.and_then(|it| it.what), Some(im::happened::What::Recalled(of)) if of.seq != seq)
    };
    let recalls = table.messages.iter().filter(|(seq, message)| is_recall(**seq, &message.body));
    recalls.map(|(_, message)| message.order).collect()
}
