//! The rows of one user.

use super::UserTable;
use moorline_backend::cluster::cell::{ArrivalRow, EntryRow, PUSHED_MAX, PushedRow, RelatedRow, counter_of};
use moorline_backend::im::store::{LoginRule, Relation, WhoMayAdd};
use moorline_proto::message::decode;
use std::collections::BTreeMap;
use std::sync::Arc;

impl UserTable {
    pub(super) fn relate(&mut self, row: &RelatedRow) {
        if row.relation == Relation::default() {
            self.relations.remove(&row.other);
        } else {
            self.relations.insert(row.other, (row.uid.clone(), row.relation));
        }
    }

    pub(super) fn new(uid: Arc<str>) -> Self {
        Self {
            uid,
            profile: None,
            devices: Vec::new(),
            last_gone: 0,
            rule: LoginRule::default(),
            inbox: BTreeMap::new(),
            end: 0,
            trimmed: 0,
            arrived: BTreeMap::new(),
            listing: BTreeMap::new(),
            who_may_add: WhoMayAdd::default(),
            invitations: BTreeMap::new(),
            relations: BTreeMap::new(),
            history: Vec::new(),
            keys: BTreeMap::new(),
            pushes: Vec::new(),
            known_at: BTreeMap::new(),
        }
    }

    /// Puts a message or event behind the end of the stream.
    pub(super) fn arrive(&mut self, row: ArrivalRow) {
        let ArrivalRow { conversation, order, content, position, origin, body, .. } = row;
        assert!(position > self.end, "positions are given once");
        let arrived = self.arrived.entry(conversation).or_default();
        assert!(order > *arrived, "{} has {conversation:?} {arrived} already, and gets {order}", self.uid);
        *arrived = order;
        self.end = position;
        // No conversation has the counter 0.
        if counter_of(conversation.number()) == 0 {
            self.pushes.extend(decode(&body).ok().map(|push| (position, push)));
        }
        self.history.push((conversation, order, position));
        self.inbox.insert(position, EntryRow { position, conversation, content, origin, body });
    }

    /// Keeps keys of pushes, and forgets old ones.
    pub(super) fn keep_keys<'a>(&mut self, rows: impl Iterator<Item = &'a PushedRow>) {
        let mut positions: Vec<_> = self.keys.values().map(|(_, position)| *position).collect();
        positions.sort_unstable();
        let last = positions.len().checked_sub(PUSHED_MAX + 1).map(|at| positions[at]);
        self.keys.retain(|_, (_, position)| Some(*position) > last);
        for row in rows {
            let before = self.keys.insert(row.key, (row.digest, row.position));
            assert_eq!(before, None, "a key is given once");
        }
    }
}
