//! Devices that end their session each time before they acknowledge the next entry of their stream.
//!
//! Example: a client of bob fails while it reads message 7. It comes back, is pushed message 7, and fails again. After
//! 3 such sessions the backend pushes one entry at a time, so that only the entry that is at fault stays unacknowledged.
//! After 6 sessions a NOTIFY takes the place of message 7: the client pulls the message when its application asks for
//! it, and everything behind message 7 goes on.

use super::store::Origin;
use moorline_proto::line_limit::LineLimit;
use std::collections::HashMap;

/// Sessions without progress after which entries are pushed one at a time.
const ALONE_AFTER: u8 = 3;
/// Sessions without progress after which a NOTIFY takes the place of the entry.
const REPLACED_AFTER: u8 = 6;
/// Devices that are watched. Beyond that an arbitrary one is forgotten, and begins to be counted anew.
const SUSPECTS_MAX: usize = 4096;

/// Way in which a session is pushed its first entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Caution {
    /// All entries that the window has room for.
    #[default]
    None,
    /// One at a time.
    Alone,
    /// One at a time, and the first of them as a NOTIFY.
    Replaced,
}

/// Devices whose last sessions acknowledged nothing.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    devices: HashMap<Origin, Suspect>,
    /// Log lines about devices whose next entry is replaced.
    pub(super) lines: LineLimit,
}

#[derive(Debug)]
struct Suspect {
    /// Position up to which the device has acknowledged its stream.
    acked: u64,
    /// Sessions that ended there.
    ends: u8,
}

impl Suspects {
    /// Notes that a session has ended. `is_unacked`: entries were pushed that the device did not acknowledge.
    pub(super) fn on_ended(&mut self, device: Origin, acked: u64, is_unacked: bool) {
        if !is_unacked {
            self.devices.remove(&device);
            return;
        }
        if !self.devices.contains_key(&device)
            && self.devices.len() >= SUSPECTS_MAX
            && let Some(&other) = self.devices.keys().next()
        {
            self.devices.remove(&other);
        }
        let suspect = self.devices.entry(device).or_insert(Suspect { acked, ends: 0 });
        if suspect.acked != acked {
            *suspect = Suspect { acked, ends: 0 };
        }
        suspect.ends = suspect.ends.saturating_add(1);
    }

    /// Returns how to push to a device that logs in and has acknowledged its stream up to `acked`.
    pub(super) fn caution(&self, device: Origin, acked: u64) -> Caution {
        match self.devices.get(&device).filter(|suspect| suspect.acked == acked) {
            Some(suspect) if suspect.ends >= REPLACED_AFTER => Caution::Replaced,
            Some(suspect) if suspect.ends >= ALONE_AFTER => Caution::Alone,
            _ => Caution::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::{DeviceNumber, UserId};
    use super::*;

    #[test]
    fn sessions_without_progress_make_cautious_and_progress_forgets_them() {
        let (mut suspects, phone) = (Suspects::default(), (UserId::of(1), DeviceNumber(2)));
        let caution_after = |suspects: &mut Suspects, ends: u8| {
            (0..ends).for_each(|_| suspects.on_ended(phone, 6, true));
            suspects.caution(phone, 6)
        };
        assert_eq!(caution_after(&mut suspects, 2), Caution::None);
        assert_eq!(caution_after(&mut suspects, 1), Caution::Alone);
        assert_eq!(caution_after(&mut suspects, 3), Caution::Replaced);
        assert_eq!(suspects.caution(phone, 7), Caution::None, "another entry is next");
        suspects.on_ended(phone, 7, true);
        assert_eq!(suspects.caution(phone, 7), Caution::None);
        suspects.on_ended(phone, 7, false);
        assert!(suspects.devices.is_empty());
    }

    #[test]
    fn the_number_of_watched_devices_has_a_limit() {
        let mut suspects = Suspects::default();
        for number in 0..2 * u32::try_from(SUSPECTS_MAX).expect("small") {
            suspects.on_ended((UserId::of(number), DeviceNumber(0)), 1, true);
        }
        assert_eq!(suspects.devices.len(), SUSPECTS_MAX);
    }
}
