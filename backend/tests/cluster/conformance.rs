//! One node over one simulated cell keeps what every store promises, as far as it is built.

use crate::cells::Cells;
use bytes::Bytes;
use moorline_backend::cluster::cell::Life;
use moorline_backend::cluster::store::{ClusterStore, Layout, Output};
use moorline_backend::config::ImConfig;
use moorline_backend::im::conformance;
use moorline_backend::im::store::{
    Command, Completion, ConversationId, Counts, DeviceInfo, Facts, GroupSettings, Member, ReadSet, Relation,
    Store, SweepNeed, Ticket, UserId, WhoMayAdd,
};
use moorline_proto::slots::{NodeId, Slot};
use moorline_proto::time::{Duration, Instant};

/// Checks that need something that a cluster refuses, or does in another way: ADR 0031.
const DIFFERENT: &[&str] = &[
    // Keys are unique in a conversation, and numbers of repetitions that are not marked become voids.
    "seqs_are_dense_and_keys_count_once",
    "keys_are_forgotten",
    // An only device finds its own messages in its inbox, and inboxes and devices have no limits yet.
    "inboxes_wait_for_every_device",
    "full_inboxes_say_where_to_pull",
    "what_is_read_is_told_and_counted",
    "large_groups_are_read_by_cursor",
    "devices_and_profiles_are_kept",
    // Sweeps.
    "a_dissolved_group_is_gone_and_its_seqs_are_not_given_again",
    "the_last_member_ends_a_group",
    "expired_messages_become_voids",
    "a_conversation_may_be_kept_longer_or_shorter",
    "a_deleted_user_leaves_nothing_and_may_come_again",
    // Orders.
    "a_conversation_takes_what_the_operator_allows",
];
/// Checks of the suite.
const CHECKS: usize = 22;

struct OneNode {
    store: ClusterStore,
    cells: Cells,
    now_ms: u64,
}

impl OneNode {
    fn open(config: &ImConfig) -> Self {
        let life = Life { node: NodeId(1), number: 1, address: "a".into(), is_stopping: false };
        let store = ClusterStore::new(life, Layout { cells: 1 }, 0).with_limits(config);
        let mut node = Self { store, cells: Cells::default(), now_ms: 0 };
        while !Slot::all().all(|slot| node.store.owns(slot)) {
            assert!(node.now_ms < 10_000, "the node takes all slots over");
            node.work();
        }
        node
    }

    /// Lets a millisecond pass, and answers each request at once.
    fn work(&mut self) {
        self.now_ms += 1;
        self.store.handle_time(Instant::ZERO + Duration::from_millis(self.now_ms));
        while let Some(output) = self.store.poll_output() {
            let Output::Cell(_, request, body) = output else { panic!("there is no other node") };
            let reply = self.cells.perform(self.now_ms, |_| true, &body);
            self.store.handle_cell(request, Ok(reply));
        }
    }
}

impl Store for OneNode {
    fn prefetch(&mut self, ticket: Ticket, plan: impl FnOnce(&mut ReadSet)) -> bool {
        self.store.prefetch(ticket, plan)
    }

    fn submit(&mut self, ticket: Ticket, command: Command) -> Result<(), Command> {
        self.store.submit(ticket, command)
    }

    fn poll(&mut self) -> Option<(Ticket, Completion)> {
        self.work();
        // Nobody is online here.
        std::iter::from_fn(|| self.store.poll()).find(|(ticket, _)| *ticket != Ticket::UNASKED)
    }

    fn is_broken(&self) -> bool {
        self.store.is_broken()
    }

    fn wants_commit(&self, now_ms: u64) -> bool {
        self.store.wants_commit(now_ms)
    }

    fn last_id(&self) -> u64 {
        self.store.last_id()
    }

    fn sweep_need(&self) -> SweepNeed {
        self.store.sweep_need()
    }

    fn retention_ms(&self) -> u64 {
        self.store.retention_ms()
    }

    fn counts(&self) -> Counts {
        self.store.counts()
    }

    fn name(&self) -> Bytes {
        self.store.name()
    }
}

impl Facts for OneNode {
    fn find_user(&self, uid: &str) -> Option<UserId> {
        self.store.find_user(uid)
    }

    fn try_user(&mut self, uid: &str) -> Option<UserId> {
        self.store.try_user(uid)
    }

    fn uid(&self, user: UserId) -> &str {
        self.store.uid(user)
    }

    fn find(&self, id: &str) -> Option<ConversationId> {
        self.store.find(id)
    }

    fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        self.store.one_to_one(a, b)
    }

    fn write_id(&self, conversation: ConversationId, into: &mut String) {
        self.store.write_id(conversation, into);
    }

    fn is_group(&self, conversation: ConversationId) -> bool {
        self.store.is_group(conversation)
    }

    fn latest(&self, conversation: ConversationId) -> u64 {
        self.store.latest(conversation)
    }

    fn member_count(&self, conversation: ConversationId) -> usize {
        self.store.member_count(conversation)
    }

    fn is_silent(&self, conversation: ConversationId) -> bool {
        self.store.is_silent(conversation)
    }

    fn settings(&self, conversation: ConversationId) -> GroupSettings {
        self.store.settings(conversation)
    }

    fn member(&self, conversation: ConversationId, user: UserId) -> Option<Member> {
        self.store.member(conversation, user)
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
    ) -> impl ExactSizeIterator<Item = Member> + '_ {
        Facts::members(&self.store, conversation, after)
    }

    fn relation(&self, user: UserId, other: UserId) -> Relation {
        self.store.relation(user, other)
    }

    fn who_may_add(&self, user: UserId) -> WhoMayAdd {
        self.store.who_may_add(user)
    }

    fn invitations(&self, user: UserId) -> Vec<ConversationId> {
        self.store.invitations(user)
    }

    fn relations(&self, user: UserId) -> Vec<(UserId, Relation)> {
        self.store.relations(user)
    }

    fn devices(&self, user: UserId) -> Vec<DeviceInfo> {
        self.store.devices(user)
    }
}

#[test]
fn one_node_keeps_what_every_store_promises() {
    let checked = conformance::check_some(OneNode::open, |name| !DIFFERENT.contains(&name));
    assert_eq!(checked, CHECKS - DIFFERENT.len(), "each name in the list is that of a check");
}
