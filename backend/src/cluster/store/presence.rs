//! Presence of users whose slots other nodes own.
//!
//! bob asks for alice, whose slot is node 2's: node 2 is asked for her sessions, and its answer goes to the [`crate::im::Im`] here. While bob
//! watches her, node 2 is asked again and again, and tells changes by itself (`im/onlookers.rs`). Without an answer in [`PEER_WAIT`] bob is
//! answered RETRY; a watcher is told nothing until her node answers again.

use super::{ClusterStore, Home, Output, PEER_WAIT, PeerMessage};
use crate::cluster::cell::slot_of;
use crate::im::store::{Completion, Online, PresenceQuestion, Refusal, Ticket, UserId};
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;
use std::collections::{BTreeMap, HashMap};

/// Questions of clients under way; further ones are answered RETRY.
const QUESTIONS_MAX: usize = 4096;
/// Users of one message.
const USERS_MAX: usize = 256;

/// Questions under way.
#[derive(Debug, Default)]
pub(super) struct Presences {
    /// Parts by number, with the time at which the wait ends.
    parts: BTreeMap<u64, (Ticket, Instant)>,
    /// Reads: parts that are missing, and what was found. `None`: a part has failed.
    reads: HashMap<Ticket, (usize, Option<Vec<Online>>)>,
}

impl Presences {
    /// End of the first wait.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.parts.values().map(|(_, until)| *until).min()
    }
}

/// Questions and answers of a node.
pub(super) struct Watching<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Watching<'_> {
    /// Users by the nodes that know their sessions; `None`: at least one node is not known.
    fn by_node(&self, users: &[UserId]) -> (BTreeMap<NodeId, Vec<UserId>>, bool) {
        let (mut nodes, mut is_whole) = (BTreeMap::<_, Vec<_>>::new(), true);
        for user in users {
            match self.store.home(slot_of(user.number()), true) {
                Home::At(node) => nodes.entry(node).or_default().push(*user),
                Home::Here | Home::Nowhere => is_whole = false,
            }
        }
        (nodes, is_whole)
    }

    /// Asks other nodes for users.
    pub(super) fn read(&mut self, ticket: Ticket, users: &[UserId]) {
        let (nodes, is_whole) = self.by_node(users);
        if !is_whole || self.store.presences.parts.len() + nodes.len() > QUESTIONS_MAX {
            let refused = Completion::Presences(Err(Refusal::Moved));
            return self.store.done.push_back((ticket, refused));
        }
        self.store.presences.reads.insert(ticket, (nodes.len(), Some(Vec::new())));
        for (node, users) in nodes {
            self.store.last_request += 1;
            let request = self.store.last_request;
            self.store.presences.parts.insert(request, (ticket, self.store.now + PEER_WAIT));
            self.store.status.presences_asked += users.len() as u64;
            self.store.out.push_back(Output::Peer(node, PeerMessage::AskOnline(request, users)));
        }
    }

    /// Asks other nodes to tell of users, for a while.
    pub(super) fn watch(&mut self, users: &[UserId]) {
        for (node, users) in self.by_node(users).0 {
            self.store.status.presences_asked += users.len() as u64;
            for users in users.chunks(USERS_MAX) {
                self.store.out.push_back(Output::Peer(node, PeerMessage::AskOnline(0, users.to_vec())));
            }
        }
    }

    /// Takes a question of another node.
    pub(super) fn on_question(&mut self, node: NodeId, request: u64, users: Vec<UserId>) {
        self.store.arrived.asked.push(PresenceQuestion { node, request, users });
    }

    /// Takes what another node says. `None`: it has not the sessions of all these users.
    pub(super) fn on_answer(&mut self, request: u64, online: Option<Vec<Online>>) {
        if request == 0 {
            return self.store.arrived.online.extend(online.into_iter().flatten());
        }
        let Some((ticket, _)) = self.store.presences.parts.remove(&request) else { return };
        let Some((missing, found)) = self.store.presences.reads.get_mut(&ticket) else { return };
        *missing -= 1;
        *found = match (found.take(), online) {
            (Some(mut found), Some(online)) => {
                found.extend(online);
                Some(found)
            }
            _ => None,
        };
        if *missing == 0
            && let Some((_, found)) = self.store.presences.reads.remove(&ticket)
        {
            let found = found.ok_or(Refusal::Moved);
            self.store.done.push_back((ticket, Completion::Presences(found)));
        }
    }

    /// Ends waits.
    pub(super) fn end_waits(&mut self) {
        let now = self.store.now;
        let due = self.store.presences.parts.iter().filter(|(_, (_, until))| *until <= now);
        for request in due.map(|(request, _)| *request).collect::<Vec<_>>() {
            self.store.status.presences_unanswered += 1;
            self.on_answer(request, None);
        }
    }

    /// Tells another node of users.
    pub(super) fn answer(&mut self, node: NodeId, request: u64, online: Option<Vec<Online>>) {
        let told = online.as_ref().map_or(0, Vec::len);
        if told > 0 || request != 0 {
            self.store.status.presences_told += told as u64;
            self.store.out.push_back(Output::Peer(node, PeerMessage::Online(request, online)));
        }
    }
}
