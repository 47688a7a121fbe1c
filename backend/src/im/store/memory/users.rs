//! Users: their names, inboxes, devices and memberships.

use super::stream::{Stream, StreamEntry};
use crate::im::store::{ConversationId, DeviceCursor, DeviceNumber, UserId};
use hashbrown::HashTable;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

#[derive(Debug)]
pub(super) struct User {
    pub(super) uid: Box<str>,
    pub(super) stream: Stream,
    /// Longest since its login first.
    devices: Vec<Device>,
    next_device: u32,
    pub(super) conversations: Vec<ConversationId>,
}

#[derive(Debug)]
struct Device {
    name: Box<str>,
    number: DeviceNumber,
    acked: u64,
}

#[derive(Debug)]
pub(super) struct Users {
    all: Vec<User>,
    /// Indexes into `all`, by uid: each name is held once.
    by_uid: HashTable<u32>,
    hasher: RandomState,
    capacity: usize,
    devices_max: usize,
}

impl Users {
    pub(super) fn new(capacity: usize, devices_max: usize) -> Self {
        let (all, by_uid, hasher) = (Vec::new(), HashTable::new(), RandomState::new());
        Self { all, by_uid, hasher, capacity, devices_max }
    }

    pub(super) fn find(&self, uid: &str) -> Option<UserId> {
        let is_it = |index: &u32| &*self.all[*index as usize].uid == uid;
        self.by_uid.find(self.hasher.hash_one(uid), is_it).copied().map(UserId)
    }

    pub(super) fn try_intern(&mut self, uid: &str) -> Option<UserId> {
        if let Some(known) = self.find(uid) {
            return Some(known);
        }
        if self.all.len() >= self.capacity {
            return None;
        }
        let index = u32::try_from(self.all.len()).expect("im.users_max fits u32");
        self.all.push(User {
            uid: uid.into(),
            stream: Stream::default(),
            devices: Vec::new(),
            next_device: 0,
            conversations: Vec::new(),
        });
        let (users, hasher) = (&self.all, &self.hasher);
        let rehash = |index: &u32| hasher.hash_one(&*users[*index as usize].uid);
        self.by_uid.insert_unique(hasher.hash_one(uid), index, rehash);
        Some(UserId(index))
    }

    pub(super) fn get(&self, user: UserId) -> &User {
        &self.all[user.0 as usize]
    }

    pub(super) fn get_mut(&mut self, user: UserId) -> &mut User {
        &mut self.all[user.0 as usize]
    }

    pub(super) fn login(&mut self, user: UserId, device: &str) -> DeviceCursor {
        let devices_max = self.devices_max;
        let user = self.get_mut(user);
        let known = user.devices.iter().position(|it| &*it.name == device);
        let device = if let Some(index) = known {
            user.devices.remove(index)
        } else {
            let number = DeviceNumber(user.next_device);
            user.next_device += 1;
            Device { name: device.into(), number, acked: 0 }
        };
        let forgotten = (user.devices.len() >= devices_max).then(|| user.devices.remove(0).number);
        let cursor = DeviceCursor { device: device.number, acked: device.acked, forgotten };
        user.devices.push(device);
        user.trim();
        cursor
    }

    pub(super) fn on_acked(&mut self, user: UserId, device: DeviceNumber, position: u64) {
        let user = self.get_mut(user);
        if let Some(device) = user.devices.iter_mut().find(|it| it.number == device) {
            device.acked = device.acked.max(position);
            user.trim();
        }
    }

    /// Puts an entry into an inbox; `None` if its only device wrote it.
    pub(super) fn deliver(&mut self, user: UserId, entry: StreamEntry, entries_max: usize) -> Option<u64> {
        let user = self.get_mut(user);
        if let (Some(origin), [only]) = (entry.origin, &user.devices[..])
            && origin == only.number
        {
            return None;
        }
        Some(user.stream.push(entry, entries_max))
    }
}

impl User {
    fn trim(&mut self) {
        if let Some(acked) = self.devices.iter().map(|it| it.acked).min() {
            self.stream.trim(acked);
        }
    }
}
