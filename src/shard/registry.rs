//! Users and their sessions. A user belongs to one shard only, so this table is authoritative.

use super::session::{NO_NEXT, Session};
use crate::shard_map::UserKey;
use hashbrown::HashTable;
use moorline_proto::ids::Pin;
use moorline_proto::random::mix;
use slab::Slab;

/// The sessions, and a table from uid to the first of a user's chain of sessions.
#[derive(Debug)]
pub(super) struct Registry {
    key: UserKey,
    sessions: Slab<Session>,
    users: HashTable<u32>,
}

impl Registry {
    /// No sessions; `key` is that of the sessions' pins.
    pub(super) const fn new(key: UserKey) -> Self {
        Self { key, sessions: Slab::new(), users: HashTable::new() }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Session> {
        self.sessions.get(slot as usize)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.get_mut(slot as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().map(|(_, session)| session)
    }

    /// Adds a session at the head of its user's chain.
    pub(super) fn insert(&mut self, mut session: Session) -> u32 {
        let pin = session.pin;
        let head = self.head(session.uid(), pin);
        session.next_of_user = head.unwrap_or(NO_NEXT);
        let slot = u32::try_from(self.sessions.insert(session)).expect("sessions are bounded by SLOTS_MAX");
        let Self { sessions, users, .. } = self;
        if let Some(head) = head {
            let entry = users.find_mut(hash(pin), |slot| *slot == head).expect("the head was just found");
            *entry = slot;
        } else {
            users.insert_unique(hash(pin), slot, |slot| hash(sessions[*slot as usize].pin));
        }
        slot
    }

    /// Reserves memory for this number of further sessions.
    pub(super) fn reserve(&mut self, sessions: usize) {
        let Self { sessions: known, users, .. } = self;
        known.reserve(sessions);
        users.reserve(sessions, |slot| hash(known[*slot as usize].pin));
    }

    /// Removes a session.
    pub(super) fn remove(&mut self, slot: u32) -> Session {
        let session = self.sessions.remove(slot as usize);
        let head = self.users.find_entry(hash(session.pin), |head| *head == slot);
        match (head, session.next_of_user) {
            (Ok(head), NO_NEXT) => drop(head.remove()),
            (Ok(mut head), next) => *head.get_mut() = next,
            (Err(_), next) => self.unlink(&session, slot, next),
        }
        if self.sessions.is_empty() {
            self.sessions.shrink_to_fit();
            self.users = HashTable::new();
        }
        session
    }

    fn unlink(&mut self, session: &Session, slot: u32, next: u32) {
        let mut at = self.head(session.uid(), session.pin).expect("a session that heads no chain is in one");
        while self.sessions[at as usize].next_of_user != slot {
            at = self.sessions[at as usize].next_of_user;
        }
        self.sessions[at as usize].next_of_user = next;
    }

    /// Slots of a user's sessions, newest first.
    pub(super) fn of_user(&self, uid: &str) -> Vec<u32> {
        let mut slots = Vec::new();
        let mut at = self.head(uid, self.key.pin(uid)).unwrap_or(NO_NEXT);
        while at != NO_NEXT {
            slots.push(at);
            at = self.sessions[at as usize].next_of_user;
        }
        slots
    }

    /// The worker of a user who has a session here.
    pub(super) fn worker_of(&self, uid: &str, pin: Pin) -> Option<u8> {
        self.head(uid, pin).map(|slot| self.sessions[slot as usize].worker)
    }

    /// Slot of one device's session.
    pub(super) fn of_device(&self, uid: &str, device: &str) -> Option<u32> {
        self.of_user(uid).into_iter().find(|slot| self.sessions[*slot as usize].device() == device)
    }

    fn head(&self, uid: &str, pin: Pin) -> Option<u32> {
        self.users.find(hash(pin), |slot| self.sessions[*slot as usize].uid() == uid).copied()
    }

    /// Panics unless every session is in exactly the chain of its user.
    pub(super) fn check(&self) {
        let mut chained = 0;
        for head in &self.users {
            let uid = self.sessions[*head as usize].uid();
            for slot in self.of_user(uid) {
                assert_eq!(self.sessions[slot as usize].uid(), uid, "a chain holds one user");
                chained += 1;
            }
        }
        assert_eq!(chained, self.sessions.len(), "every session is in a chain");
    }
}

/// Hash of the table. The pin's bits also choose the shard, so they are mixed again.
const fn hash(pin: Pin) -> u64 {
    mix(pin.0 as u64)
}

#[cfg(test)]
mod tests {
    use super::super::session::Names;
    use super::*;
    use moorline_proto::random::Random;

    #[test]
    fn agrees_with_a_plain_list_under_random_use() {
        let (mut registry, mut random, mut list) = (Registry::new(UserKey::NONE), Random::new(1), Vec::new());
        for _ in 0..5_000 {
            if random.one_in(2) && !list.is_empty() {
                let at = usize::try_from(random.below(list.len() as u64)).expect("small");
                let (slot, uid, device): (u32, String, String) = list.swap_remove(at);
                let gone = registry.remove(slot);
                assert_eq!((gone.uid(), gone.device()), (uid.as_str(), device.as_str()));
            } else {
                let (uid, device) = (format!("u{}", random.below(20)), format!("d{}", random.next_u64()));
                let names = Names { uid: &uid, device: &device, platform: 0 };
                let slot = registry.insert(Session::new(names, Pin::of(&uid), 0, 1));
                list.push((slot, uid, device));
            }
            registry.check();
            let uid = format!("u{}", random.below(20));
            assert_eq!(registry.of_user(&uid).len(), list.iter().filter(|entry| entry.1 == uid).count());
            if let Some((slot, uid, device)) = list.first() {
                assert_eq!(registry.of_device(uid, device), Some(*slot));
            }
        }
    }
}
