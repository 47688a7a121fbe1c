//! Users: their names, devices and memberships, and how far their inboxes go.

use super::Changed;
use crate::im::store::dropped::{Dropped, Place};
use crate::im::store::{
    ConversationId, DeviceCursor, DeviceInfo, DeviceNumber, Login, LoginChange, LoginDenied, LoginRule,
    UserId, WhoMayAdd,
};
use hashbrown::HashTable;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

/// Invitations of one user.
pub(in crate::im::store) const INVITATIONS_MAX: usize = 64;

/// Groups that a user has left.
#[derive(Debug, Default)]
pub(in crate::im::store) struct Parted(pub(in crate::im::store) Vec<ConversationId>);

/// Groups that a user has left and that are noted; of a user with more, all groups are looked through when the user is deleted.
const PARTED_MAX: usize = 1024;

#[derive(Debug)]
pub(in crate::im::store) struct User {
    pub(in crate::im::store) uid: Arc<str>,
    /// Longest since its login first.
    pub(in crate::im::store) devices: Vec<Device>,
    pub(in crate::im::store) next_device: u32,
    pub(in crate::im::store) conversations: Vec<ConversationId>,
    pub(in crate::im::store) who_may_add: WhoMayAdd,
    /// Groups that the user may join, oldest first; few users have any.
    pub(in crate::im::store) invitations: Vec<ConversationId>,
    /// Groups that the user has left; few users have many.
    pub(in crate::im::store) parted: Option<Box<Parted>>,
    /// The user may have left groups that `parted` does not name.
    pub(in crate::im::store) has_unknown_groups: bool,
    /// Entries up to here are gone.
    pub(in crate::im::store) trimmed: u64,
    /// Position up to which entries are removed from the engine.
    pub(in crate::im::store) removed: u64,
    /// The last position that was given.
    pub(in crate::im::store) numbered: u64,
    /// The last position that readers see.
    pub(in crate::im::store) durable_end: u64,
    /// Few users ever have any.
    pub(in crate::im::store) dropped: Option<Box<Dropped>>,
    /// Rule for logins; `None`: all are admitted.
    pub(in crate::im::store) rule: Option<Box<LoginRule>>,
}

#[derive(Debug)]
pub(in crate::im::store) struct Device {
    pub(in crate::im::store) name: Arc<str>,
    pub(in crate::im::store) number: DeviceNumber,
    pub(in crate::im::store) platform: u32,
    pub(in crate::im::store) acked: u64,
    /// Grows with each login of anybody; the smallest is forgotten first.
    pub(in crate::im::store) login: u64,
    /// When it came, or went.
    pub(in crate::im::store) seen_ms: u64,
    /// Confirmed seqs of conversations that are read by cursor.
    pub(in crate::im::store) confirmed: BTreeMap<ConversationId, u64>,
}

#[derive(Debug)]
pub(in crate::im::store) struct Users {
    all: Vec<User>,
    /// Indexes into `all`, by uid: each name is held once.
    by_uid: HashTable<u32>,
    hasher: RandomState,
    pub(in crate::im::store) capacity: usize,
    /// The part of `capacity` that is for logins only.
    pub(in crate::im::store) reserved: usize,
    devices_max: usize,
    /// Logins ever.
    pub(in crate::im::store) logins: u64,
}

impl Users {
    pub(super) fn new(capacity: usize, reserved: usize, devices_max: usize) -> Self {
        let (all, by_uid, hasher) = (Vec::new(), HashTable::new(), RandomState::new());
        Self { all, by_uid, hasher, capacity, reserved, devices_max, logins: 0 }
    }

    pub(in crate::im::store) fn len(&self) -> usize {
        self.all.len()
    }

    pub(in crate::im::store) fn find(&self, uid: &str) -> Option<UserId> {
        let is_it = |index: &u32| &*self.all[*index as usize].uid == uid;
        self.by_uid.find(self.hasher.hash_one(uid), is_it).copied().map(UserId)
    }

    /// Unknown so far. `None`: there is no room for a user who logs in, or none for others.
    pub(in crate::im::store) fn insert(&mut self, uid: &str, is_login: bool) -> Option<UserId> {
        let reserved = if is_login { 0 } else { self.reserved };
        if self.all.len() >= self.capacity.saturating_sub(reserved) {
            return None;
        }
        let index = u32::try_from(self.all.len()).expect("im.users_max fits u32");
        self.all.push(User {
            uid: uid.into(),
            devices: Vec::new(),
            next_device: 0,
            conversations: Vec::new(),
            who_may_add: WhoMayAdd::AddDefault,
            invitations: Vec::new(),
            parted: None,
            has_unknown_groups: false,
            trimmed: 0,
            removed: 0,
            numbered: 0,
            durable_end: 0,
            dropped: None,
            rule: None,
        });
        let (users, hasher) = (&self.all, &self.hasher);
        let rehash = |index: &u32| hasher.hash_one(&*users[*index as usize].uid);
        self.by_uid.insert_unique(hasher.hash_one(uid), index, rehash);
        Some(UserId(index))
    }

    /// Reason for which the rule of a user denies a login.
    pub(in crate::im::store) fn denies(&self, login: &Login) -> Option<LoginDenied> {
        let rule = self.get(self.find(&login.uid)?).rule.as_deref()?;
        rule.denies(login.issued_s, login.now_ms)
    }

    pub(in crate::im::store) fn get(&self, user: UserId) -> &User {
        &self.all[user.0 as usize]
    }

    pub(in crate::im::store) fn get_mut(&mut self, user: UserId) -> &mut User {
        &mut self.all[user.0 as usize]
    }

    pub(in crate::im::store) fn all_mut(&mut self) -> impl Iterator<Item = &mut User> {
        self.all.iter_mut()
    }

    /// A device is here.
    pub(in crate::im::store) fn login(
        &mut self,
        id: UserId,
        device: &str,
        platform: u32,
        now_ms: u64,
        changed: &mut Vec<Changed>,
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
            let (name, confirmed) = (device.into(), BTreeMap::new());
            Device { name, number, platform, acked: 0, login, seen_ms: now_ms, confirmed }
        };
        (device.login, device.platform, device.seen_ms) = (login, platform, now_ms);
        let forgotten = (user.devices.len() >= devices_max).then(|| user.forget(id, 0, changed));
        changed.push(Changed::Device(id, device.number));
        let cursor =
            DeviceCursor { device: device.number, acked: device.acked, is_new: known.is_none(), forgotten };
        user.devices.push(device);
        user.trim();
        cursor
    }

    /// Notes that the device has everything up to `position`. False: that was known, or the device is unknown.
    pub(in crate::im::store) fn on_acked(&mut self, id: UserId, device: DeviceNumber, position: u64) -> bool {
        let user = self.get_mut(id);
        match user.device_mut(device) {
            Some(device) if position > device.acked => device.acked = position,
            _ => return false,
        }
        user.trim();
        true
    }

    /// Removes everything from a user but name, memberships and the rule for logins. Returns the memberships.
    pub(super) fn empty(&mut self, id: UserId, changed: &mut Vec<Changed>) -> Vec<ConversationId> {
        let user = self.get_mut(id);
        while !user.devices.is_empty() {
            user.forget(id, 0, changed);
        }
        user.who_may_add = WhoMayAdd::AddDefault;
        (user.trimmed, user.dropped) = (user.numbered, None);
        changed.push(Changed::User(id));
        std::mem::take(&mut user.conversations)
    }

    /// Removes the device from the user.
    pub(in crate::im::store) fn remove_device(
        &mut self,
        id: UserId,
        device: DeviceNumber,
        changed: &mut Vec<Changed>,
    ) {
        let user = self.get_mut(id);
        if let Some(index) = user.devices.iter().position(|it| it.number == device) {
            user.forget(id, index, changed);
            user.trim();
        }
    }
}

impl User {
    /// Adds an invitation, which is not there. Returns the oldest one if it made room.
    pub(in crate::im::store) fn invite(&mut self, group: ConversationId) -> Option<ConversationId> {
        let oldest = (self.invitations.len() >= INVITATIONS_MAX).then(|| self.invitations.remove(0));
        self.invitations.push(group);
        oldest
    }

    /// Notes that the user has left a group. True: that is new.
    pub(super) fn part(&mut self, group: ConversationId) -> bool {
        if self.has_unknown_groups {
            return false;
        }
        let Parted(parted) = &mut **self.parted.get_or_insert_default();
        if parted.contains(&group) {
            return false;
        }
        if parted.len() < PARTED_MAX {
            parted.push(group);
        } else {
            (self.parted, self.has_unknown_groups) = (None, true);
        }
        true
    }

    /// Removes an invitation. False: it is not there.
    pub(in crate::im::store) fn uninvite(&mut self, group: ConversationId) -> bool {
        let before = self.invitations.len();
        self.invitations.retain(|it| *it != group);
        self.invitations.len() < before
    }

    /// Changes the rule for logins.
    pub(in crate::im::store) fn rule_logins(&mut self, change: LoginChange) {
        let mut rule = self.rule.as_deref().copied().unwrap_or_default();
        match change {
            LoginChange::ValidFrom(0) => rule.valid_from_s = 0,
            LoginChange::ValidFrom(from_s) => rule.valid_from_s = rule.valid_from_s.max(from_s),
            LoginChange::BannedUntil(until_s) => rule.banned_until_s = until_s,
        }
        self.rule = (rule != LoginRule::default()).then(|| Box::new(rule));
    }

    /// Entries that are held.
    pub(in crate::im::store) const fn held(&self) -> u64 {
        self.numbered - self.trimmed
    }

    /// True if the user has no other device.
    pub(in crate::im::store) fn is_only(&self, device: DeviceNumber) -> bool {
        matches!(&self.devices[..], [only] if only.number == device)
    }

    pub(in crate::im::store) fn device(&self, number: DeviceNumber) -> Option<&Device> {
        self.devices.iter().find(|it| it.number == number)
    }

    pub(in crate::im::store) fn device_mut(&mut self, number: DeviceNumber) -> Option<&mut Device> {
        self.devices.iter_mut().find(|it| it.number == number)
    }

    pub(in crate::im::store) fn dropped_after(
        &self,
        position: u64,
    ) -> impl Iterator<Item = (u64, Place)> + '_ {
        self.dropped.iter().flat_map(move |dropped| dropped.after(position))
    }

    /// The oldest entry of a full inbox, which stands for this, makes room. Its position.
    pub(in crate::im::store) fn drop_oldest(
        &mut self,
        id: UserId,
        place: Place,
        changed: &mut Vec<Changed>,
    ) -> u64 {
        self.trimmed += 1;
        self.dropped.get_or_insert_default().push(self.trimmed, place);
        changed.push(Changed::Inbox(id));
        self.trimmed
    }

    fn forget(&mut self, id: UserId, index: usize, changed: &mut Vec<Changed>) -> DeviceNumber {
        let device = self.devices.remove(index);
        changed.extend([Changed::Device(id, device.number), Changed::User(id)]);
        changed.extend(device.confirmed.keys().map(|of| Changed::Confirmed(id, device.number, *of)));
        device.number
    }

    /// Removes entries that every device has.
    fn trim(&mut self) {
        let Some(acked) = self.devices.iter().map(|it| it.acked).min() else { return };
        if let Some(dropped) = &mut self.dropped {
            dropped.trim(acked);
            if dropped.is_empty() {
                self.dropped = None;
            }
        }
        self.trimmed = self.trimmed.max(acked.min(self.numbered));
    }

    /// Entries that are gone and were not removed; they count as removed from now on.
    pub(in crate::im::store) fn take_trimmed(&mut self) -> Range<u64> {
        let from = std::mem::replace(&mut self.removed, self.trimmed);
        from + 1..self.trimmed + 1
    }
}

impl Device {
    pub(in crate::im::store) fn info(&self) -> DeviceInfo {
        let Self { name, number, platform, seen_ms, .. } = self;
        DeviceInfo { name: name.to_string(), number: *number, platform: *platform, seen_ms: *seen_ms }
    }
}
