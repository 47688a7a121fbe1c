//! Other nodes that watch users whose sessions are here.
//!
//! Node 1 watches alice, whose slot is this node's, for a client of bob: it asks every 20 s, and is told at once when a change of hers
//! has lasted. An answer that gets lost is repaired by the next question; a node that asks no more is forgotten.

use super::Im;
use super::presence::DEBOUNCE;
use super::store::{Online, PresenceQuestion, Store, UserId, Whereabouts};
use crate::server::Now;
use moorline_proto::slots::NodeId;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Time for which a question watches its users.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// Users whom other nodes watch; the presence of further ones is told by the next question only.
const WATCHED_MAX: usize = 262_144;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Onlookers {
    watched: HashMap<UserId, Watched>,
    /// Users whose change is to be told, by the time for it.
    due: BTreeMap<Instant, BTreeSet<UserId>>,
    /// Questions that came since the last end of a turn.
    asked: Vec<PresenceQuestion>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Nodes, each with the time up to which it watches.
    by: BTreeMap<NodeId, Instant>,
    /// Platforms that the nodes were told.
    told: Vec<u32>,
    is_due: bool,
}

impl Onlookers {
    /// Takes questions, to be answered at the end of the turn.
    pub(super) fn ask(&mut self, questions: Vec<PresenceQuestion>) {
        self.asked.extend(questions);
    }

    /// Notes that a session of `user` came or went.
    pub(super) fn on_change(&mut self, now: Now, user: UserId) {
        if let Some(watched) = self.watched.get_mut(&user)
            && !watched.is_due
        {
            watched.is_due = true;
            self.due.entry(now.instant + DEBOUNCE).or_default().insert(user);
        }
    }

    /// Notes that a node watches a user who is online on these platforms. Returns the platforms to tell: a change that has
    /// not lasted yet is not told.
    fn watch(&mut self, now: Now, node: NodeId, user: UserId, platforms: Vec<u32>) -> Vec<u32> {
        if self.watched.len() >= WATCHED_MAX && !self.watched.contains_key(&user) {
            self.watched.retain(|_, watched| watched.by.values().any(|until| *until > now.instant));
            if self.watched.len() >= WATCHED_MAX {
                return platforms;
            }
        }
        let watched =
            self.watched.entry(user).or_insert_with(|| Watched { told: platforms, ..Watched::default() });
        watched.by.insert(node, now.instant + WATCHED_FOR);
        watched.told.clone()
    }

    /// Takes users whose change has lasted, each with the nodes that watch the user.
    fn take_changes(
        &mut self,
        now: Now,
        platforms: impl Fn(UserId) -> Option<Vec<u32>>,
    ) -> Vec<(Online, Vec<NodeId>)> {
        let mut changes = Vec::new();
        while let Some(first) = self.due.first_entry()
            && *first.key() <= now.instant
        {
            for user in first.remove() {
                let Some(watched) = self.watched.get_mut(&user) else { continue };
                watched.is_due = false;
                watched.by.retain(|_, until| *until > now.instant);
                let platforms = platforms(user);
                let Some(platforms) = platforms.filter(|_| !watched.by.is_empty()) else {
                    self.watched.remove(&user);
                    continue;
                };
                if watched.told != platforms {
                    watched.told.clone_from(&platforms);
                    let nodes = watched.by.keys().copied().collect();
                    changes.push((Online { user, platforms, seen_ms: now.unix_ms }, nodes));
                }
            }
        }
        changes
    }
}

/// Answers the questions of this turn, and tells nodes of changes that have lasted.
pub(super) fn tell<S: Store>(im: &mut Im<S>, now: Now) {
    for PresenceQuestion { node, request, users } in std::mem::take(&mut im.presences.onlookers.asked) {
        let facts = &im.storage.store;
        let is_here = |user: &UserId| facts.whereabouts(*user) == Whereabouts::Here;
        if request != 0 && !users.iter().all(is_here) {
            im.storage.store.answer_presences(node, request, None);
            continue;
        }
        let users: Vec<_> = users.into_iter().filter(is_here).collect();
        let online = users.into_iter().map(|user| {
            let seen_ms = facts.devices(user).iter().map(|device| device.seen_ms).max().unwrap_or(0);
            let platforms = im.sessions.platforms(user);
            let platforms = if request == 0 {
                im.presences.onlookers.watch(now, node, user, platforms)
            } else {
                platforms
            };
            Online { user, platforms, seen_ms }
        });
        let online: Vec<_> = online.collect();
        im.storage.store.answer_presences(node, request, Some(online));
    }
    let facts = &im.storage.store;
    let platforms =
        |user| (facts.whereabouts(user) == Whereabouts::Here).then(|| im.sessions.platforms(user));
    for (online, nodes) in im.presences.onlookers.take_changes(now, platforms) {
        for node in nodes {
            im.storage.store.answer_presences(node, 0, Some(vec![online.clone()]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: UserId = UserId::of(0);
    const NODE: NodeId = NodeId(2);

    fn at(secs: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_secs(secs), unix_ms: secs * 1_000 }
    }

    #[test]
    fn a_change_that_has_lasted_is_told_once_and_one_that_was_undone_never() {
        let mut onlookers = Onlookers::default();
        onlookers.on_change(at(0), ANN);
        assert!(onlookers.due.is_empty(), "no node watches her");
        assert_eq!(onlookers.watch(at(0), NODE, ANN, vec![1]), [1]);
        onlookers.on_change(at(10), ANN);
        assert_eq!(onlookers.watch(at(11), NODE, ANN, vec![]), [1], "the change has not lasted yet");
        assert!(onlookers.take_changes(at(14), |_| Some(vec![])).is_empty());
        let told = onlookers.take_changes(at(15), |_| Some(vec![]));
        assert_eq!(told, [(Online { user: ANN, platforms: vec![], seen_ms: 15_000 }, vec![NODE])]);
        onlookers.on_change(at(20), ANN);
        assert!(onlookers.take_changes(at(25), |_| Some(vec![])).is_empty(), "as before");
    }

    #[test]
    fn a_node_that_asks_no_more_and_a_user_who_has_moved_are_forgotten() {
        let mut onlookers = Onlookers::default();
        for (time, whose) in [(61, Some(vec![1])), (10, None)] {
            onlookers.watch(at(0), NODE, ANN, vec![]);
            onlookers.on_change(at(time - 5), ANN);
            assert!(onlookers.take_changes(at(time), |_| whose.clone()).is_empty());
            assert!(onlookers.watched.is_empty() && onlookers.due.is_empty());
        }
    }
}
