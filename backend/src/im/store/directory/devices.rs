//! Devices of a user.

use crate::im::names::Names;
use crate::im::store::{ConversationId, DeviceInfo, DeviceNumber};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::slice;

#[derive(Debug)]
pub(in crate::im::store) struct Device {
    /// Names of the user and the device, shared with the device's session.
    pub(in crate::im::store) names: Names,
    pub(in crate::im::store) number: DeviceNumber,
    pub(in crate::im::store) platform: u32,
    pub(in crate::im::store) acked: u64,
    /// Grows with each login of anybody; the smallest is forgotten first.
    pub(in crate::im::store) login: u64,
    /// When it came, or went.
    pub(in crate::im::store) seen_ms: u64,
    /// Confirmed seqs of conversations that are read by cursor; `None`: none.
    confirmed: Option<Box<Confirmed>>,
}

/// Confirmed seqs by conversation.
#[derive(Debug, Default)]
struct Confirmed(BTreeMap<ConversationId, u64>);

/// Devices of a user. Most users have one, which takes no list.
#[derive(Debug)]
pub(in crate::im::store) enum Devices {
    One(Device),
    /// None, or several.
    List(Vec<Device>),
}

impl Default for Devices {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Deref for Devices {
    type Target = [Device];

    fn deref(&self) -> &[Device] {
        match self {
            Self::One(device) => slice::from_ref(device),
            Self::List(devices) => devices,
        }
    }
}

impl DerefMut for Devices {
    fn deref_mut(&mut self) -> &mut [Device] {
        match self {
            Self::One(device) => slice::from_mut(device),
            Self::List(devices) => devices,
        }
    }
}

impl Devices {
    /// Adds a device behind the others.
    pub(in crate::im::store) fn push(&mut self, device: Device) {
        *self = match std::mem::take(self) {
            Self::One(first) => Self::List(vec![first, device]),
            Self::List(devices) if devices.is_empty() => Self::One(device),
            Self::List(mut devices) => {
                devices.reserve_exact(1);
                devices.push(device);
                Self::List(devices)
            }
        };
    }

    /// Removes the device at `index`, which is there.
    pub(in crate::im::store) fn remove(&mut self, index: usize) -> Device {
        let mut devices = match std::mem::take(self) {
            Self::One(device) => vec![device],
            Self::List(devices) => devices,
        };
        let removed = devices.remove(index);
        devices.into_iter().for_each(|device| self.push(device));
        removed
    }
}

impl Device {
    /// Returns a device that has confirmed nothing by cursor.
    pub(in crate::im::store) fn new(
        names: Names,
        number: DeviceNumber,
        platform: u32,
        (acked, login, seen_ms): (u64, u64, u64),
    ) -> Self {
        Self { names, number, platform, acked, login, seen_ms, confirmed: None }
    }

    /// Returns the confirmed seqs of conversations that are read by cursor.
    pub(in crate::im::store) fn confirmed(&self) -> impl Iterator<Item = (ConversationId, u64)> + '_ {
        self.confirmed.iter().flat_map(|confirmed| confirmed.0.iter().map(|(id, seq)| (*id, *seq)))
    }

    /// Returns the confirmed seq of a conversation; `None`: none is confirmed.
    pub(in crate::im::store) fn confirmed_of(&self, conversation: ConversationId) -> Option<u64> {
        self.confirmed.as_ref()?.0.get(&conversation).copied()
    }

    /// Notes a confirmed seq. False: a larger one, or this one, was known.
    pub(in crate::im::store) fn confirm(&mut self, conversation: ConversationId, seq: u64) -> bool {
        if self.confirmed_of(conversation).is_some_and(|known| known >= seq) {
            return false;
        }
        self.confirmed.get_or_insert_default().0.insert(conversation, seq);
        true
    }

    pub(in crate::im::store) fn info(&self) -> DeviceInfo {
        let Self { names, number, platform, seen_ms, .. } = self;
        DeviceInfo {
            name: names.device().to_owned(),
            number: *number,
            platform: *platform,
            seen_ms: *seen_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(devices: &Devices) -> Vec<u32> {
        devices.iter().map(|device| device.number.0).collect()
    }

    #[test]
    fn devices_keep_their_order_whether_one_or_several() {
        let mut devices = Devices::default();
        for number in 1..=4 {
            devices.push(Device::new(Names::default(), DeviceNumber(number), 0, (0, 0, 0)));
        }
        assert_eq!((numbers(&devices), devices.remove(1).number.0), (vec![1, 2, 3, 4], 2));
        assert_eq!((devices.remove(0).number.0, numbers(&devices)), (1, vec![3, 4]));
        assert_eq!((devices.remove(1).number.0, numbers(&devices)), (4, vec![3]));
        assert!(matches!(devices, Devices::One(_)));
        assert_eq!((devices.remove(0).number.0, devices.len()), (3, 0));
    }

    #[test]
    fn a_user_with_one_device_needs_no_list() {
        assert_eq!((size_of::<Device>(), size_of::<Devices>()), (56, 56));
    }
}
