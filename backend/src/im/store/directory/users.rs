//! Users: their names, devices and memberships, and how far their inboxes go.

use super::Changed;
use super::devices::{Device, Devices};
use crate::growth::make_room;
use crate::im::names::Names;
use crate::im::store::dropped::{Dropped, Place};
use crate::im::store::{
    ConversationId, DeviceCursor, DeviceNumber, Login, LoginChange, LoginDenied, LoginRule, UserId, WhoMayAdd,
};
use hashbrown::HashTable;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

/// Invitations of one user.
pub(in crate::im::store) const INVITATIONS_MAX: usize = 64;

/// Numbers of the devices of one user: the last one of 32 bits is the operator's, and a next one has to fit.
const DEVICE_NUMBERS: u32 = u32::MAX - 1;

/// Facts that few users have, so that the others pay a pointer for them.
#[derive(Debug, Default)]
pub(in crate::im::store) struct Rare {
    /// Groups that the user may join, oldest first.
    pub(in crate::im::store) invitations: Vec<ConversationId>,
    /// Groups that the user has left.
    pub(in crate::im::store) parted: Vec<ConversationId>,
    /// The user may have left groups that `parted` does not name.
    pub(in crate::im::store) has_unknown_groups: bool,
    /// Oldest entries of a full inbox, which made room; `None`: none did.
    pub(in crate::im::store) dropped: Option<Dropped>,
    /// Rule for logins; the default admits all.
    pub(in crate::im::store) rule: LoginRule,
}

/// Groups that a user has left and that are noted; of a user with more, all groups are looked through when the user is deleted.
const PARTED_MAX: usize = 1024;

#[derive(Debug)]
pub(in crate::im::store) struct User {
    /// Longest since its login first.
    pub(in crate::im::store) devices: Devices,
    pub(in crate::im::store) next_device: u32,
    conversations: Box<[ConversationId]>,
    pub(in crate::im::store) who_may_add: WhoMayAdd,
    /// `None`: the user has none of these.
    rare: Option<Box<Rare>>,
    /// Entries up to here are gone.
    pub(in crate::im::store) trimmed: u64,
    /// Position up to which entries are removed from the engine.
    pub(in crate::im::store) removed: u64,
    /// The last position that was given.
    pub(in crate::im::store) numbered: u64,
    /// The last position that readers see.
    pub(in crate::im::store) durable_end: u64,
}

/// Texts by number, one behind the other in one allocation.
#[derive(Debug, Default)]
struct Texts {
    bytes: String,
    /// End of each.
    ends: Vec<u32>,
}

impl Texts {
    /// Adds a text, with the next number. `None`: there is no room in 4 GiB.
    fn push(&mut self, text: &str) -> Option<()> {
        let end = u32::try_from(self.bytes.len() + text.len()).ok()?;
        if self.bytes.capacity() - self.bytes.len() < text.len() {
            self.bytes.reserve_exact(text.len().max(self.bytes.len() / 16));
        }
        self.bytes.push_str(text);
        make_room(&mut self.ends);
        self.ends.push(end);
        Some(())
    }

    fn get(&self, number: u32) -> &str {
        let number = number as usize;
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[begin as usize..self.ends[number] as usize]
    }
}

#[derive(Debug)]
pub(in crate::im::store) struct Users {
    all: Vec<User>,
    uids: Texts,
    /// Indexes into `all`, by uid.
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
        let (all, uids, by_uid, hasher) =
            (Vec::new(), Texts::default(), HashTable::new(), RandomState::new());
        Self { all, uids, by_uid, hasher, capacity, reserved, devices_max, logins: 0 }
    }

    pub(in crate::im::store) fn len(&self) -> usize {
        self.all.len()
    }

    pub(in crate::im::store) fn find(&self, uid: &str) -> Option<UserId> {
        let is_it = |index: &u32| self.uids.get(*index) == uid;
        self.by_uid.find(self.hasher.hash_one(uid), is_it).copied().map(UserId::of)
    }

    /// Unknown so far. `None`: there is no room for a user who logs in, or none for others.
    pub(in crate::im::store) fn insert(&mut self, uid: &str, is_login: bool) -> Option<UserId> {
        let reserved = if is_login { 0 } else { self.reserved };
        if self.all.len() >= self.capacity.saturating_sub(reserved) {
            return None;
        }
        let index = u32::try_from(self.all.len()).expect("im.users_max fits u32");
        self.uids.push(uid)?;
        make_room(&mut self.all);
        self.all.push(User {
            devices: Devices::default(),
            next_device: 0,
            conversations: Box::default(),
            who_may_add: WhoMayAdd::AddDefault,
            rare: None,
            trimmed: 0,
            removed: 0,
            numbered: 0,
            durable_end: 0,
        });
        let (uids, hasher) = (&self.uids, &self.hasher);
        let rehash = |index: &u32| hasher.hash_one(uids.get(*index));
        self.by_uid.insert_unique(hasher.hash_one(uid), index, rehash);
        Some(UserId::of(index))
    }

    /// Returns the name of a user.
    pub(in crate::im::store) fn uid(&self, user: UserId) -> &str {
        self.uids.get(user.index())
    }

    /// Reason for which the rule of a user denies a login.
    pub(in crate::im::store) fn denies(&self, login: &Login) -> Option<LoginDenied> {
        let user = self.get(self.find(&login.uid)?);
        user.rare()?.rule.denies(login.issued_s, login.now_ms)
    }

    pub(in crate::im::store) fn get(&self, user: UserId) -> &User {
        &self.all[user.index() as usize]
    }

    pub(in crate::im::store) fn get_mut(&mut self, user: UserId) -> &mut User {
        &mut self.all[user.index() as usize]
    }

    pub(in crate::im::store) fn all_mut(&mut self) -> impl Iterator<Item = &mut User> {
        self.all.iter_mut()
    }

    /// True if the device is known, or a number is left for it: those of forgotten devices are not used again.
    pub(in crate::im::store) fn has_number_for(&self, id: UserId, device: &str) -> bool {
        let user = self.get(id);
        user.next_device < DEVICE_NUMBERS || user.devices.iter().any(|it| it.names.device() == device)
    }

    /// A device is here, and has a number or gets one.
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
        let (user, uid) = (&mut self.all[id.index() as usize], self.uids.get(id.index()));
        let known = user.devices.iter().position(|it| it.names.device() == device);
        let mut device = if let Some(index) = known {
            user.devices.remove(index)
        } else {
            let number = DeviceNumber(user.next_device);
            user.next_device += 1;
            Device::new(Names::new(uid, device), number, platform, (0, login, now_ms))
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
        user.trimmed = user.numbered;
        user.change_rare(|rare| rare.dropped = None);
        changed.push(Changed::User(id));
        user.conversations().to_vec()
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
    /// Returns what few users have; `None`: this one has nothing of it.
    pub(in crate::im::store) fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    /// Changes what few users have.
    pub(in crate::im::store) fn change_rare<T>(&mut self, change: impl FnOnce(&mut Rare) -> T) -> T {
        let rare = self.rare.get_or_insert_default();
        let outcome = change(rare);
        if rare.is_empty() {
            self.rare = None;
        }
        outcome
    }

    /// Returns the groups that the user may join, oldest first.
    pub(in crate::im::store) fn invitations(&self) -> &[ConversationId] {
        self.rare().map_or(&[], |rare| &rare.invitations)
    }

    /// Adds an invitation, which is not there. Returns the oldest one if it made room.
    pub(in crate::im::store) fn invite(&mut self, group: ConversationId) -> Option<ConversationId> {
        self.change_rare(|Rare { invitations, .. }| {
            let oldest = (invitations.len() >= INVITATIONS_MAX).then(|| invitations.remove(0));
            invitations.push(group);
            oldest
        })
    }

    /// Notes that the user has left a group. True: that is new.
    pub(super) fn part(&mut self, group: ConversationId) -> bool {
        self.change_rare(|Rare { parted, has_unknown_groups, .. }| {
            if *has_unknown_groups || parted.contains(&group) {
                return false;
            }
            if parted.len() < PARTED_MAX {
                parted.push(group);
            } else {
                (*parted, *has_unknown_groups) = (Vec::new(), true);
            }
            true
        })
    }

    /// Removes an invitation. False: it is not there.
    pub(in crate::im::store) fn uninvite(&mut self, group: ConversationId) -> bool {
        self.invitations().contains(&group)
            && self.change_rare(|rare| {
                rare.invitations.retain(|it| *it != group);
                true
            })
    }

    /// Changes the rule for logins.
    pub(in crate::im::store) fn rule_logins(&mut self, change: LoginChange) {
        self.change_rare(|Rare { rule, .. }| *rule = rule.changed(change));
    }

    /// Returns the conversations of the user, in the order of the memberships.
    pub(in crate::im::store) fn conversations(&self) -> &[ConversationId] {
        &self.conversations
    }

    /// Adds a conversation of which the user has become a member.
    pub(in crate::im::store) fn join(&mut self, conversation: ConversationId) {
        let mut all = std::mem::take(&mut self.conversations).into_vec();
        all.reserve_exact(1);
        all.push(conversation);
        self.conversations = all.into();
    }

    /// Keeps those conversations of the user that `is_kept`.
    pub(super) fn retain_conversations(&mut self, is_kept: impl Fn(ConversationId) -> bool) {
        let mut all = std::mem::take(&mut self.conversations).into_vec();
        all.retain(|id| is_kept(*id));
        self.conversations = all.into();
    }

    /// Entries that are held.
    pub(in crate::im::store) const fn held(&self) -> u64 {
        self.numbered - self.trimmed
    }

    /// True if the user has no other device.
    pub(in crate::im::store) fn is_only(&self, device: DeviceNumber) -> bool {
        matches!(&*self.devices, [only] if only.number == device)
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
        let dropped = self.rare().and_then(|rare| rare.dropped.as_ref());
        dropped.into_iter().flat_map(move |dropped| dropped.after(position))
    }

    /// The oldest entry of a full inbox, which stands for this, makes room. Its position.
    pub(in crate::im::store) fn drop_oldest(
        &mut self,
        id: UserId,
        place: Place,
        changed: &mut Vec<Changed>,
    ) -> u64 {
        self.trimmed += 1;
        self.note_dropped(self.trimmed, place);
        changed.push(Changed::Inbox(id));
        self.trimmed
    }

    /// Notes the place of an entry that made room.
    pub(in crate::im::store) fn note_dropped(&mut self, position: u64, place: Place) {
        self.change_rare(|rare| rare.dropped.get_or_insert_default().push(position, place));
    }

    fn forget(&mut self, id: UserId, index: usize, changed: &mut Vec<Changed>) -> DeviceNumber {
        let device = self.devices.remove(index);
        changed.extend([Changed::Device(id, device.number), Changed::User(id)]);
        changed.extend(device.confirmed().map(|(of, _)| Changed::Confirmed(id, device.number, of)));
        device.number
    }

    /// Removes entries that every device has.
    fn trim(&mut self) {
        let Some(acked) = self.devices.iter().map(|it| it.acked).min() else { return };
        if self.rare().is_some_and(|rare| rare.dropped.is_some()) {
            self.change_rare(|Rare { dropped, .. }| {
                dropped.iter_mut().for_each(|dropped| dropped.trim(acked));
                dropped.take_if(|dropped| dropped.is_empty());
            });
        }
        self.trimmed = self.trimmed.max(acked.min(self.numbered));
    }

    /// Entries that are gone and were not removed; they count as removed from now on.
    pub(in crate::im::store) fn take_trimmed(&mut self) -> Range<u64> {
        let from = std::mem::replace(&mut self.removed, self.trimmed);
        from + 1..self.trimmed + 1
    }
}

impl Rare {
    fn is_empty(&self) -> bool {
        let Self { invitations, parted, has_unknown_groups, dropped, rule } = self;
        let is_default = *rule == LoginRule::default();
        is_default && invitations.is_empty() && parted.is_empty() && !has_unknown_groups && dropped.is_none()
    }
}
