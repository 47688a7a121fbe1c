//! Table of gateways, of their sessions, and of the link that speaks for each session. Pure.
//!
//! [`super::Outbox`] asks the table for a session's link; frames and leases change it. Names of users belong to the
//! handler. Example: link 3 dies, and its session 9 waits without a link until the lease ends or an ANNOUNCE on link 5
//! names it.

use super::event::{GatewayId, LinkId, SessionId};
use super::greeting::{Probe, Standing};
use super::links::Phase;
use crate::growth::make_room_in_slab;
use hashbrown::{DefaultHashBuilder, HashTable};
use moorline_proto::message::backend::Stats;
use moorline_proto::slots::{NodeId, Slot, SlotSet};
use moorline_proto::time::Instant;
use slab::Slab;
use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;

/// An epoch of a gateway process.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) node: String,
    pub(super) epoch: u64,
    /// Reason to believe the name; the best that one of its links had.
    pub(super) standing: Standing,
    /// True if the process reads notices.
    pub(super) knows_notices: bool,
    /// Question whether its process lives; `None`: no newer process asks for its name.
    pub(super) probe: Option<Probe>,
    /// Earliest time of the next notice that its name is asked for.
    pub(super) next_notice: Instant,
    pub(super) links: u32,
    /// Time at which the gateway is forgotten if it has no link by then.
    pub(super) lease_until: Instant,
    /// Load figures that the gateway sent last; `None`: it has sent none.
    pub(super) load: Option<Stats>,
    /// Number of the node, if it is another node of the cluster and no gateway.
    pub(super) peer: Option<NodeId>,
}

#[derive(Debug)]
pub(super) struct Session {
    generation: NonZeroU32,
    pub(super) gateway: GatewayId,
    /// Name of the session at its gateway.
    pub(super) handle: u64,
    pub(super) login_version: u64,
    /// Link that spoke for the session last; it may be one of [`Routes::dead_links`].
    link: LinkId,
    /// Number of the announcement that chose the link; 0: the gateway numbers none. Gateways count to 2^32.
    announcement: u32,
    /// Slot of the user in a cluster.
    pub(super) slot: Slot,
}

/// Returns the number of an announcement as a session keeps it.
fn capped(announcement: u64) -> u32 {
    u32::try_from(announcement).unwrap_or(u32::MAX)
}

impl Session {
    fn is_named(&self, gateway: GatewayId, handle: u64) -> bool {
        self.gateway == gateway && self.handle == handle
    }
}

/// Effect of a login.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    New(SessionId),
    Again(SessionId),
    /// A later announcement has moved the session to another link: this one was read too late.
    Overtaken,
    /// `link.sessions_max` sessions are known.
    TableFull,
}

#[derive(Debug)]
pub(super) struct Routes {
    pub(super) gateways: BTreeMap<GatewayId, Gateway>,
    next_gateway: u32,
    sessions: Slab<Session>,
    /// Slots of `sessions`, by gateway and handle: each name is held once.
    by_handle: HashTable<u32>,
    hasher: DefaultHashBuilder,
    next_generation: NonZeroU32,
    /// Links that died, each with the time at which its sessions are forgotten unless they were announced again.
    dead_links: BTreeMap<LinkId, Instant>,
    sessions_max: usize,
    /// The largest version of a login.
    newest: u64,
}

impl Routes {
    pub(super) fn new(sessions_max: usize) -> Self {
        Self {
            gateways: BTreeMap::new(),
            next_gateway: 0,
            sessions: Slab::new(),
            by_handle: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            next_generation: NonZeroU32::MIN,
            dead_links: BTreeMap::new(),
            sessions_max,
            newest: 0,
        }
    }

    pub(super) fn find(&self, gateway: GatewayId, handle: u64) -> Option<SessionId> {
        let is_it =
            |slot: &u32| self.sessions.get(*slot as usize).is_some_and(|it| it.is_named(gateway, handle));
        let slot = *self.by_handle.find(self.hasher.hash_one((gateway, handle)), is_it)?;
        Some(SessionId { slot, generation: self.sessions[slot as usize].generation.get() })
    }

    /// Number of sessions.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(id.slot()).filter(|session| session.generation.get() == id.generation)
    }

    /// Returns the link that speaks for a session; `None`: it died.
    pub(super) fn link_of(&self, session: &Session) -> Option<LinkId> {
        let is_dead = !self.dead_links.is_empty() && self.dead_links.contains_key(&session.link);
        (!is_dead).then_some(session.link)
    }

    pub(super) fn gateway_named(&self, node: &str) -> Option<(GatewayId, &Gateway)> {
        let found = self.gateways.iter().find(|(_, gateway)| gateway.node == node);
        found.map(|(id, gateway)| (*id, gateway))
    }

    pub(super) fn add_gateway(&mut self, node: String, epoch: u64, standing: Standing) -> GatewayId {
        let id = GatewayId(self.next_gateway);
        self.next_gateway = self.next_gateway.wrapping_add(1);
        let lease_until = Instant::FAR_FUTURE;
        let gateway = Gateway {
            node,
            epoch,
            standing,
            knows_notices: false,
            probe: None,
            next_notice: Instant::ZERO,
            links: 0,
            lease_until,
            load: None,
            peer: None,
        };
        self.gateways.insert(id, gateway);
        id
    }

    /// Returns the gateways without a link whose lease has ended.
    pub(super) fn expired_gateways(&self, now: Instant) -> Vec<GatewayId> {
        let expired = self.gateways.iter().filter(|(_, it)| it.links == 0 && it.lease_until <= now);
        expired.map(|(id, _)| *id).collect()
    }

    /// Version of a login among those of its device on all gateways. A known session keeps its version. A login that
    /// happens now is later than all others. A login that is announced, because its link or this process is new, has the
    /// version that its gateway gave, on the clock of this host.
    pub(super) fn version_of(&mut self, gateway: GatewayId, handle: u64, given: u64, is_now: bool) -> u64 {
        if let Some(session) = self.find(gateway, handle).and_then(|id| self.get(id)) {
            return session.login_version;
        }
        let version = if is_now { given.max(self.newest.saturating_add(1)) } else { given };
        self.newest = self.newest.max(version);
        version
    }

    /// Adds a session, or moves a known one, to a link, as the announcement of this number says (0: without number).
    pub(super) fn on_login(
        &mut self,
        gateway: GatewayId,
        (link, announcement, user_slot): (LinkId, u64, Slot),
        handle: u64,
        version: u64,
    ) -> Login {
        let announcement = capped(announcement);
        if let Some(id) = self.find(gateway, handle) {
            let session = &mut self.sessions[id.slot()];
            if announcement != 0 && announcement < session.announcement {
                return Login::Overtaken;
            }
            session.announcement = announcement;
            session.link = link;
            return Login::Again(id);
        }
        if self.sessions.len() >= self.sessions_max {
            return Login::TableFull;
        }
        let generation = self.next_generation;
        self.next_generation = generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        make_room_in_slab(&mut self.sessions);
        let slot = self.sessions.insert(Session {
            generation,
            gateway,
            handle,
            login_version: version,
            link,
            announcement,
            slot: user_slot,
        });
        let generation = generation.get();
        let id = SessionId { slot: u32::try_from(slot).expect("sessions_max fits u32"), generation };
        let Self { by_handle, sessions, hasher, .. } = self;
        let hash = |session: &Session| hasher.hash_one((session.gateway, session.handle));
        by_handle.insert_unique(hash(&sessions[slot]), id.slot, |slot| hash(&sessions[*slot as usize]));
        Login::New(id)
    }

    pub(super) fn on_logout(&mut self, id: SessionId) {
        let Some(session) = self.get(id) else { return };
        let hash = self.hasher.hash_one((session.gateway, session.handle));
        if let Ok(entry) = self.by_handle.find_entry(hash, |slot| *slot == id.slot) {
            entry.remove();
        }
        self.sessions.remove(id.slot());
    }

    /// Has the sessions of a dead link wait for another link, until `until`.
    pub(super) fn on_link_down(&mut self, link: LinkId, until: Instant) {
        self.dead_links.insert(link, until);
    }

    /// Takes the sessions without a link whose lease has ended.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<SessionId> {
        let is_over = |link: &LinkId| self.dead_links.get(link).is_some_and(|until| *until <= now);
        if !self.dead_links.keys().any(is_over) {
            return Vec::new();
        }
        let expired = self.select(|session| is_over(&session.link));
        self.dead_links.retain(|_, until| *until > now);
        expired
    }

    /// Returns the sessions of a gateway in these slots that no announcement after this one has named.
    pub(super) fn sessions_in(
        &self,
        gateway: GatewayId,
        slots: &SlotSet,
        announcement: u64,
    ) -> Vec<SessionId> {
        let announcement = capped(announcement);
        self.select(|session| {
            session.gateway == gateway && session.announcement <= announcement && slots.contains(session.slot)
        })
    }

    pub(super) fn sessions_of(&self, gateway: GatewayId) -> Vec<SessionId> {
        self.select(|session| session.gateway == gateway)
    }

    /// Panics if a session has no gateway, no name, or the link of another gateway.
    pub(super) fn check(&self, phase_of: impl Fn(LinkId) -> Option<Phase>) {
        assert_eq!(self.sessions.len(), self.by_handle.len(), "one name per session");
        for (slot, session) in &self.sessions {
            let Session { gateway, handle, generation, .. } = session;
            let named = self.find(*gateway, *handle).expect("a session has a name");
            assert_eq!((named.slot(), named.generation), (slot, generation.get()));
            assert!(self.gateways.contains_key(gateway), "{session:?} has no gateway");
            if let Some(link) = self.link_of(session) {
                assert_eq!(phase_of(link), Some(Phase::Open(*gateway)), "the link of {session:?}");
            }
        }
    }

    fn select(&self, wanted: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let chosen = self.sessions.iter().filter(|(_, session)| wanted(session));
        chosen
            .map(|(slot, session)| SessionId {
                slot: u32::try_from(slot).expect("sessions_max fits u32"),
                generation: session.generation.get(),
            })
            .collect()
    }
}
