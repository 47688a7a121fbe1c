//! Presence: devices ask for everybody and watch everybody, whichever node has the sessions. In the end each one that still has the
//! session in which it asked knows who is online.

use crate::world::World;
use moorline_backend::server::SessionId;
use moorline_proto::message::im::{Presence, PresenceResponse};
use std::collections::{BTreeMap, BTreeSet};

/// Presence of others as a device was told.
#[derive(Debug)]
pub(crate) struct Watching {
    session: (usize, SessionId),
    /// Platforms of the users whom the device may see.
    users: BTreeMap<String, Vec<u32>>,
}

impl World {
    /// Takes the answer to a device that watches.
    pub(crate) fn on_presences(&mut self, device: usize, answer: PresenceResponse) {
        let it = &mut self.gateway.devices[device];
        let Some(session) = it.session() else { return };
        // Who may not be seen has no time.
        let seen = answer.presences.into_iter().filter(|it| it.seen_ms > 0);
        let users: BTreeMap<_, _> = seen.map(|it| (it.user, it.platforms)).collect();
        self.coverage.presences_read +=
            users.values().filter(|platforms| !platforms.is_empty()).count() as u64;
        it.watching = Some(Watching { session, users });
    }

    /// Takes news about a user.
    pub(crate) fn on_presence(&mut self, device: usize, presence: Presence) {
        let it = &mut self.gateway.devices[device];
        let session = it.session();
        if let Some(watching) = it.watching.as_mut().filter(|it| Some(it.session) == session)
            && let Some(platforms) = watching.users.get_mut(&presence.user)
        {
            self.coverage.presences_pushed += 1;
            *platforms = presence.platforms;
        }
    }

    /// Returns a user of whom a device thinks something that is not so.
    pub(crate) fn missing_presence(&self) -> Option<String> {
        let mut online = BTreeMap::<&str, BTreeSet<u32>>::new();
        for device in self.gateway.devices.iter().filter(|it| it.session().is_some()) {
            online.entry(&device.uid).or_default().insert(device.platform());
        }
        for device in &self.gateway.devices {
            let watching = device.watching.as_ref().filter(|it| Some(it.session) == device.session());
            for (uid, platforms) in watching.into_iter().flat_map(|it| &it.users) {
                let pair = BTreeSet::from([&device.uid, uid]);
                let is_blocked = self.gateway.blocked.iter().any(|blocked| pair.iter().copied().eq(blocked));
                let really = online.get(&**uid).into_iter().flatten().copied();
                if !is_blocked && !really.eq(platforms.iter().copied()) {
                    return Some(format!("{}/{} sees {uid} on {platforms:?}", device.uid, device.name));
                }
            }
        }
        None
    }
}
