//! Devices of users, at the owner of the user: logins, acks, and the end of a device.
//!
//! bob has lost his pad and removes it: the owner of his slot forgets the device, and his inbox waits for its acks no more. The number
//! of the pad is never given again, so a late ack of it is nobody's. Whom the operator has banned is refused by the rule in the slot.

use super::caps::By;
use super::ops::{Build, Done};
use super::questions::Question;
use super::slot::User;
use crate::cluster::cell::{CursorRow, DeviceRow};
use crate::im::names::Names;
use crate::im::store::{
    DeviceCursor, DeviceInfo, DeviceNumber, LoggedIn, LoginChange, Origin, Refusal, Ticket, UserId,
};
use moorline_proto::slots::Slot;
use std::sync::Arc;

/// A login that waits for its slot.
#[derive(Clone, Debug)]
pub(super) struct NewLogin {
    pub(super) uid: Arc<str>,
    pub(super) device: Arc<str>,
    /// Platform as the client names it.
    pub(super) platform: u32,
    /// Unix time in milliseconds.
    pub(super) now_ms: u64,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    pub(super) issued_s: u64,
}

impl User {
    pub(super) fn device(&mut self, name: &str) -> Option<&mut DeviceRow> {
        self.devices.iter_mut().find(|device| *device.name == *name)
    }

    /// Position up to which every device has everything; 0: there is no device.
    fn trimmed(&self) -> u64 {
        self.devices.iter().map(|device| device.acked).min().unwrap_or(0)
    }

    /// Takes an ack, and the time at which the device went. Returns the position up to which the device has everything. `None`: the
    /// device is unknown, or nothing changes.
    fn ack(&mut self, device: DeviceNumber, position: u64, gone_ms: u64) -> Option<u64> {
        let end = self.end;
        let known = self.devices.iter_mut().find(|known| known.number == device)?;
        let has_acked = position > known.acked && position <= end;
        let has_gone = gone_ms > known.seen_ms;
        known.seen_ms = known.seen_ms.max(gone_ms);
        if has_acked {
            known.acked = position;
        }
        (has_acked || has_gone).then_some(known.acked)
    }

    /// The device that was seen longest ago.
    fn oldest(&self) -> Option<DeviceNumber> {
        self.devices.iter().min_by_key(|device| (device.seen_ms, device.number)).map(|device| device.number)
    }
}

/// Devices as users see them, longest since they came or went first.
pub(super) fn infos<'a>(devices: impl Iterator<Item = &'a DeviceRow>) -> Vec<DeviceInfo> {
    let info = |DeviceRow { number, name, platform, seen_ms, .. }: &DeviceRow| {
        let (number, platform, seen_ms) = (*number, *platform, *seen_ms);
        DeviceInfo { name: name.to_string(), number, platform, seen_ms }
    };
    let mut devices: Vec<_> = devices.map(info).collect();
    devices.sort_by_key(|device| (device.seen_ms, device.number));
    devices
}

impl Build<'_> {
    /// Logs a device in. False: it has to wait for this transaction.
    pub(super) fn log_in(&mut self, slot: Slot, ticket: Ticket, login: &NewLogin) -> bool {
        let NewLogin { uid, device, platform, now_ms, issued_s } = login;
        let Ok(user) = self.user_of(slot, uid, By::Login) else {
            self.done.push(Done::Full(ticket));
            return true;
        };
        let devices_max = self.limits.devices;
        let Some(owned) = self.slots.get_mut(&slot) else { return true };
        let Some(known) = owned.users.get_mut(&user) else { return true };
        known.is_used = true;
        if let Some(denied) = known.rule.denies(*issued_s, *now_ms) {
            self.done.push(Done::Denied(ticket, user, denied));
            return true;
        }
        let mut forgotten = None;
        let (number, acked, is_new) = if let Some(device) = known.device(device) {
            // Written with the time at which the device goes: a crowd of logins does not reach the cell.
            device.seen_ms = device.seen_ms.max(*now_ms);
            (device.number, device.acked, false)
        } else {
            if known.devices.len() >= devices_max {
                forgotten = known.oldest();
                if forgotten.is_some_and(|number| self.is_new_device(user, number)) {
                    return false;
                }
            }
            let Some(owned) = self.slots.get_mut(&slot) else { return true };
            let Some(known) = owned.users.get_mut(&user) else { return true };
            known.is_used = true;
            let newest = known.devices.iter().map(|device| device.number.0).max().unwrap_or(0);
            let number = DeviceNumber(newest.max(known.last_gone) + 1);
            let (name, platform, seen_ms) = (device.clone(), *platform, *now_ms);
            let row = DeviceRow { number, name, platform, acked: 0, seen_ms };
            known.devices.push(row.clone());
            self.transaction.devices.push((user, row));
            self.transaction.fence(slot, owned.epoch);
            (number, 0, true)
        };
        if let Some(forgotten) = forgotten {
            self.remove_device(slot, user, forgotten);
        }
        let cursor = DeviceCursor { device: number, acked, is_new, forgotten };
        let logged_in = LoggedIn { user, names: Names::new(uid, device), cursor };
        self.done.push(Done::LoggedIn(ticket, logged_in));
        true
    }

    pub(super) fn on_acked(&mut self, slot: Slot, (user, device): Origin, position: u64, gone_ms: u64) {
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let Some(known) = owned.users.get_mut(&user) else { return };
        known.is_used = true;
        if let Some(acked) = known.ack(device, position, gone_ms) {
            let (trimmed, seen_ms, is_gone) = (known.trimmed(), gone_ms, false);
            self.transaction.fence(slot, owned.epoch);
            self.transaction.cursors.push(CursorRow { user, device, acked, trimmed, seen_ms, is_gone });
        }
    }

    /// Forgets a device, if the user has it.
    pub(super) fn remove_device(&mut self, slot: Slot, user: UserId, device: DeviceNumber) {
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let Some(known) = owned.users.get_mut(&user) else { return };
        known.is_used = true;
        let Some(at) = known.devices.iter().position(|known| known.number == device) else { return };
        known.devices.remove(at);
        known.last_gone = known.last_gone.max(device.0);
        let (acked, trimmed, seen_ms, is_gone) = (0, known.trimmed(), 0, true);
        self.transaction.fence(slot, owned.epoch);
        self.transaction.cursors.push(CursorRow { user, device, acked, trimmed, seen_ms, is_gone });
        self.done.push(Done::Removed((user, device)));
    }

    /// Changes the rule for logins of a user. Sessions that it denies end when it is durable.
    pub(super) fn rule_logins(
        &mut self,
        slot: Slot,
        user: UserId,
        change: LoginChange,
    ) -> Result<(), Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let known = owned.users.get_mut(&user).ok_or(Refusal::Moved)?;
        known.is_used = true;
        let rule = known.rule.changed(change);
        if rule != known.rule {
            known.rule = rule;
            self.transaction.fence(slot, owned.epoch);
            self.transaction.rules.retain(|(known, _)| *known != user);
            self.transaction.rules.push((user, rule));
        }
        self.done.push(Done::Ruled(user, rule));
        Ok(())
    }

    fn is_new_device(&self, user: UserId, device: DeviceNumber) -> bool {
        self.transaction.devices.iter().any(|(known, row)| (*known, row.number) == (user, device))
    }

    /// True for the end of a device that has come in this transaction: the statement would not find it.
    pub(super) fn is_of_new_device(&self, question: &Question) -> bool {
        matches!(question, Question::RemoveDevice { user, device } if self.is_new_device(*user, *device))
    }
}
