//! Users: their names, devices and memberships, and how far their inboxes go. The entries are on disk.

use super::DiskError;
use super::tables::{Change, DeviceRecord, InboxRecord, Tables, UserRecord, numbers, pair, place};
use crate::config::ImConfig;
use crate::im::store::dropped::Dropped;
use crate::im::store::{ConversationId, DeviceCursor, DeviceNumber, UserId};
use hashbrown::HashTable;
use prost::Message;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

#[derive(Debug)]
pub(super) struct User {
    pub(super) uid: Box<str>,
    /// Longest since its login first.
    devices: Vec<Device>,
    next_device: u32,
    pub(super) conversations: Vec<ConversationId>,
    /// Entries up to here are gone.
    pub(super) trimmed: u64,
    /// The last position that was given.
    numbered: u64,
    /// The last position that readers see.
    pub(super) durable_end: u64,
    /// Few users ever have any.
    dropped: Option<Box<Dropped>>,
}

#[derive(Debug)]
struct Device {
    name: Box<str>,
    number: DeviceNumber,
    acked: u64,
    login: u64,
}

#[derive(Debug)]
pub(super) struct Users {
    all: Vec<User>,
    /// Indexes into `all`, by uid: each name is held once.
    by_uid: HashTable<u32>,
    hasher: RandomState,
    capacity: usize,
    devices_max: usize,
    /// Logins ever.
    logins: u64,
}

impl Users {
    pub(super) fn load(tables: &Tables, config: &ImConfig) -> Result<Self, DiskError> {
        let (all, by_uid, hasher) = (Vec::new(), HashTable::new(), RandomState::new());
        let mut loaded =
            Self { all, by_uid, hasher, capacity: usize::MAX, devices_max: config.devices_max, logins: 0 };
        Tables::all(&tables.users, "a user", |key, record: UserRecord| {
            let number = u32::try_from(loaded.all.len()).unwrap_or(u32::MAX);
            if numbers(key)?.0 != number || loaded.find(&record.uid).is_some() {
                return Err(DiskError::Damaged { what: "a user", problem: format!("number {number}") });
            }
            loaded.insert(&record.uid);
            let end = Tables::last(&tables.streams, number)?.unwrap_or(0);
            let user = loaded.all.last_mut().expect("just inserted");
            (user.numbered, user.durable_end) = (end, end);
            Ok(())
        })?;
        loaded.capacity = config.users_max;
        let unknown = || DiskError::Damaged { what: "a user's record", problem: "of nobody".into() };
        Tables::all(&tables.inboxes, "an inbox", |key, record: InboxRecord| {
            let user = loaded.all.get_mut(numbers(key)?.0 as usize).ok_or_else(unknown)?;
            user.trimmed = record.trimmed;
            user.numbered = user.numbered.max(record.trimmed);
            user.durable_end = user.numbered;
            for pair in record.dropped.chunks_exact(2) {
                let conversation = ConversationId(u32::try_from(pair[1]).map_err(|_| unknown())?);
                user.dropped.get_or_insert_default().push(pair[0], conversation);
            }
            Ok(())
        })?;
        let mut logins = 0;
        Tables::all(&tables.devices, "a device", |key, record: DeviceRecord| {
            let (user, number) = numbers(key)?;
            let number = u32::try_from(number).map_err(|_| unknown())?;
            let user = loaded.all.get_mut(user as usize).ok_or_else(unknown)?;
            logins = logins.max(record.login);
            user.next_device = user.next_device.max(number + 1);
            let DeviceRecord { name, acked, login } = record;
            user.devices.push(Device { name: name.into(), number: DeviceNumber(number), acked, login });
            Ok(())
        })?;
        loaded.logins = logins;
        for user in &mut loaded.all {
            user.devices.sort_unstable_by_key(|device| device.login);
            // Entries may have been trimmed later than it was written down.
            user.trimmed = user.trimmed.min(user.numbered);
        }
        Ok(loaded)
    }

    pub(super) fn knows(&self, user: UserId) -> bool {
        (user.0 as usize) < self.all.len()
    }

    pub(super) fn find(&self, uid: &str) -> Option<UserId> {
        let is_it = |index: &u32| &*self.all[*index as usize].uid == uid;
        self.by_uid.find(self.hasher.hash_one(uid), is_it).copied().map(UserId)
    }

    pub(super) fn try_intern(
        &mut self,
        uid: &str,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) -> Option<UserId> {
        if let Some(known) = self.find(uid) {
            return Some(known);
        }
        if self.all.len() >= self.capacity {
            return None;
        }
        let user = self.insert(uid);
        let record = UserRecord { uid: uid.to_owned() };
        changes.push(put(&tables.users, user.0.to_be_bytes().to_vec(), &record));
        Some(user)
    }

    fn insert(&mut self, uid: &str) -> UserId {
        let index = u32::try_from(self.all.len()).expect("im.users_max fits u32");
        self.all.push(User {
            uid: uid.into(),
            devices: Vec::new(),
            next_device: 0,
            conversations: Vec::new(),
            trimmed: 0,
            numbered: 0,
            durable_end: 0,
            dropped: None,
        });
        let (users, hasher) = (&self.all, &self.hasher);
        let rehash = |index: &u32| hasher.hash_one(&*users[*index as usize].uid);
        self.by_uid.insert_unique(hasher.hash_one(uid), index, rehash);
        UserId(index)
    }

    pub(super) fn get(&self, user: UserId) -> &User {
        &self.all[user.0 as usize]
    }

    pub(super) fn get_mut(&mut self, user: UserId) -> &mut User {
        &mut self.all[user.0 as usize]
    }

    pub(super) fn login(
        &mut self,
        id: UserId,
        device: &str,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) -> DeviceCursor {
        self.logins += 1;
        let (login, devices_max) = (self.logins, self.devices_max);
        let user = self.get_mut(id);
        let known = user.devices.iter().position(|it| &*it.name == device);
        let mut device = if let Some(index) = known {
            user.devices.remove(index)
        } else {
            let number = DeviceNumber(user.next_device);
            user.next_device += 1;
            Device { name: device.into(), number, acked: 0, login }
        };
        device.login = login;
        let forgotten = (user.devices.len() >= devices_max).then(|| user.devices.remove(0).number);
        if let Some(forgotten) = forgotten {
            changes.push(removed(&tables.devices, pair(id.0, forgotten.0)));
        }
        let cursor = DeviceCursor { device: device.number, acked: device.acked, forgotten };
        changes.push(device.change(id, tables));
        user.devices.push(device);
        user.trim(id, tables, changes);
        cursor
    }

    pub(super) fn on_acked(
        &mut self,
        id: UserId,
        device: DeviceNumber,
        position: u64,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) {
        let user = self.get_mut(id);
        let Some(device) = user.devices.iter_mut().find(|it| it.number == device) else { return };
        if position > device.acked {
            device.acked = position;
            changes.push(device.change(id, tables));
            user.trim(id, tables, changes);
        }
    }

    /// The next position of a user's stream.
    pub(super) fn number(&mut self, user: UserId) -> u64 {
        let user = self.get_mut(user);
        user.numbered += 1;
        user.numbered
    }

    /// The oldest entry of a full inbox, of this conversation, makes room.
    pub(super) fn drop_oldest(
        &mut self,
        id: UserId,
        conversation: ConversationId,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) {
        let user = self.get_mut(id);
        user.trimmed += 1;
        user.dropped.get_or_insert_default().push(user.trimmed, conversation);
        changes.push(removed(&tables.streams, place(id.0, user.trimmed)));
        changes.push(user.inbox_change(id, tables));
    }
}

impl User {
    /// Entries that are held.
    pub(super) const fn held(&self) -> u64 {
        self.numbered - self.trimmed
    }

    /// Whether the user has no other device.
    pub(super) fn is_only(&self, device: DeviceNumber) -> bool {
        matches!(&self.devices[..], [only] if only.number == device)
    }

    pub(super) fn dropped_after(&self, position: u64) -> impl Iterator<Item = (u64, ConversationId)> + '_ {
        self.dropped.iter().flat_map(move |dropped| dropped.after(position))
    }

    fn trim(&mut self, id: UserId, tables: &Tables, changes: &mut Vec<Change>) {
        let Some(acked) = self.devices.iter().map(|it| it.acked).min() else { return };
        let (from, to) = (self.trimmed + 1, acked.min(self.numbered));
        let had_dropped = self.dropped.is_some();
        if let Some(dropped) = &mut self.dropped {
            dropped.trim(acked);
            if dropped.is_empty() {
                self.dropped = None;
            }
        }
        if from > to && !had_dropped {
            return;
        }
        changes.extend((from..=to).map(|position| removed(&tables.streams, place(id.0, position))));
        self.trimmed = self.trimmed.max(to);
        changes.push(self.inbox_change(id, tables));
    }

    fn inbox_change(&self, id: UserId, tables: &Tables) -> Change {
        let dropped = self.dropped_after(0).flat_map(|(position, of)| [position, of.0.into()]).collect();
        let record = InboxRecord { trimmed: self.trimmed, dropped };
        put(&tables.inboxes, id.0.to_be_bytes().to_vec(), &record)
    }
}

impl Device {
    fn change(&self, user: UserId, tables: &Tables) -> Change {
        let record = DeviceRecord { name: self.name.to_string(), acked: self.acked, login: self.login };
        put(&tables.devices, pair(user.0, self.number.0), &record)
    }
}

fn put(table: &fjall::Keyspace, key: Vec<u8>, record: &impl Message) -> Change {
    Change { table: table.clone(), key, value: Some(record.encode_to_vec().into()) }
}

fn removed(table: &fjall::Keyspace, key: Vec<u8>) -> Change {
    Change { table: table.clone(), key, value: None }
}
