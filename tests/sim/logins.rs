//! Checks a shard's messages to the workers: logins begin and end once, newer ones have
//! larger versions, a device is logged in once, every push has one outcome.

use crate::backend::{Device, KICKED_BY_NAME};
use moorline::messages::{Downlink, PushRef, Target, Uplink};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::Outcome;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// By connection: its device, and its version.
    live: BTreeMap<ConnKey, (Device, u64)>,
    /// The newest of each device.
    versions: BTreeMap<Device, u64>,
    /// Devices kicked by name, up to this version.
    kicked: BTreeMap<Device, u64>,
    /// Correlation and life of the link of pushes without an outcome.
    pushes: BTreeSet<Name>,
}

/// Worker, link, life of that link, number there, connection.
type Name = (u16, u16, u32, u64, ConnKey);

const fn name(ticket: &PushRef, key: ConnKey) -> Name {
    (ticket.worker, ticket.link, ticket.link_generation, ticket.correlation, key)
}

impl Logins {
    pub(crate) fn on_downlink(&mut self, item: &Downlink) {
        match item {
            Downlink::Push(push) => {
                // What is said in rooms nobody asks after.
                let Some(ticket) = &push.ticket else { return };
                for target in &push.targets {
                    let Target::Connection(key) = target else { panic!("the backend names connections") };
                    assert!(self.pushes.insert(name(ticket, *key)), "a push is named once");
                }
            }
            Downlink::Kick { target: Target::Device(uid, device), login_version, .. } => {
                let up_to = self.kicked.entry((uid.to_string(), device.to_string())).or_default();
                *up_to = (*up_to).max(*login_version);
            }
            _ => {}
        }
    }

    pub(crate) fn on_uplink(&mut self, item: &Uplink) {
        match item {
            Uplink::ConnUp { login, .. } => {
                let device = (login.uid.clone(), login.device.clone());
                let older = self.versions.insert(device.clone(), login.login_version);
                assert!(older < Some(login.login_version), "versions of a device rise");
                let older = self.live.values().find(|(other, _)| *other == device);
                assert_eq!(older, None, "a device is logged in once");
                self.live.insert(ConnKey::from_u64(login.handle), (device, login.login_version));
            }
            Uplink::ConnDown { key, code, .. } => {
                let (device, version) = self.live.remove(key).expect("what ends was logged in");
                let is_by_name = *code == KICKED_BY_NAME;
                let up_to = self.kicked.get(&device).copied().unwrap_or(0);
                assert!(!is_by_name || version <= up_to, "the kick of {up_to} hit {version}");
            }
            Uplink::Up { key, .. } => {
                assert!(self.live.contains_key(key), "{key:?} speaks, which is not logged in");
            }
            Uplink::Pushed { ticket, key, outcome: Outcome::Queued } => {
                assert!(self.pushes.contains(&name(ticket, *key)), "{ticket:?} waits after its end");
            }
            Uplink::Pushed { ticket, key, .. } => {
                assert!(
                    self.pushes.remove(&name(ticket, *key)),
                    "an outcome of {ticket:?}, which has none to come"
                );
            }
            Uplink::Login { .. } | Uplink::Announced { .. } | Uplink::Digest { .. } | Uplink::Held { .. } => {
            }
        }
    }

    pub(crate) fn check_empty(&self) {
        assert!(self.live.is_empty(), "{:?} are still logged in", self.live);
        assert!(self.pushes.is_empty(), "{:?} have no outcome", self.pushes);
    }
}
