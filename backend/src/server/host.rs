//! The link server's whole state and rules, without thread, socket or clock.
//!
//! [`LinkHost`] is pure: the owner calls one `handle_` method per input, then drains
//! [`LinkHost::poll_output`] until it is empty. One queue holds every output, in the order of causes.
//! [`super::Server`] is one owner, the simulator another.
//!
//! ```text
//! alice sends `hi`: bytes of an UP --handle_link_bytes--> Output::Event(Event::Up) --owner--> handler
//! handler answers:  Outbox::answer_send --handle_turn_end--> Output::Write(link)
//! the owner writes LinkHost::unsent(link) to the socket once, and reports handle_link_sent
//! ```

use super::counters::LinkCounters;
use super::event::{Event, GatewayId, JudgeTo, LinkId, Now};
use super::greeting::{self, Peer, Standing, Visitor};
use super::links::{Link, LinkEnd, Phase};
use super::login_clock::LoginClock;
use super::outbox::Outbox;
use super::slots::{ClusterSide, NodeSlots};
use crate::config::LinkConfig;
use bytes::{Bytes, BytesMut};
use moorline_proto::link::{Kind, Secrets, encode};
use moorline_proto::message::backend::Auth;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// Interval between two [`Event::Tick`], between which deadlines are not looked at.
const TICK: Duration = Duration::from_millis(250);

/// Order to the owner of a [`LinkHost`].
#[derive(Debug)]
pub enum Output {
    /// Give this event to the handler.
    Event(Event),
    /// Have the handler judge a login.
    Auth {
        /// The gateway's question.
        question: Auth,
        /// The right to answer it.
        judge: JudgeTo,
    },
    /// Write [`LinkHost::unsent`] of this link once. Comes at most once per link and turn.
    Write(LinkId),
    /// Close this link's connection; the host has forgotten the link.
    Close {
        /// The link that ended.
        link: LinkId,
        /// The reason for the log.
        end: LinkEnd,
        /// False: the other end had not proven who it is, so that one log line must do for many.
        was_open: bool,
        /// Bytes to write before, as far as the socket takes them at once.
        farewell: Bytes,
    },
    /// Read no more bytes from this link: its credit or its output is used up.
    Pause(LinkId),
    /// Read this link again.
    Resume(LinkId),
    /// Begin another turn at once: the handler asked for it.
    Again,
}

/// Identity of this end, as its HELLO names it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) node: String,
    pub(super) epoch: u64,
    /// Name of the store; empty: there is none.
    pub(super) store: Bytes,
}

/// The server side of all links: gateways, sessions, rooms, credit, leases, output buffers.
#[derive(Debug)]
pub struct LinkHost {
    pub(super) config: LinkConfig,
    pub(super) identity: Identity,
    pub(super) secrets: Secrets,
    pub(super) out: Outbox,
    pub(super) login_clock: LoginClock,
    /// Correlation of the next question whether a gateway's older epoch lives.
    pub(super) next_probe: u64,
    pub(super) cluster: ClusterSide,
    next_tick: Instant,
}

impl LinkHost {
    /// Creates a host without links. `epoch` must be larger than that of every earlier life of `node`.
    pub fn new(config: &LinkConfig, node: String, epoch: u64) -> Self {
        let mut out = Outbox::new(config);
        out.group_rooms.epoch = epoch;
        Self {
            config: config.clone(),
            identity: Identity { node, epoch, store: Bytes::new() },
            secrets: Secrets::default(),
            out,
            login_clock: LoginClock::default(),
            next_probe: 1,
            cluster: ClusterSide::default(),
            next_tick: Instant::ZERO,
        }
    }

    /// Returns what the handler speaks through. Drain the outputs after use.
    pub const fn outbox(&mut self) -> &mut Outbox {
        &mut self.out
    }

    /// Takes the secrets of gateways, instead of those that it had. Open links stay open.
    pub fn handle_secrets(&mut self, secrets: Secrets) {
        self.secrets = secrets;
    }

    /// Takes the name of the store, at most 64 bytes, which HELLO tells from now on; empty: there is none.
    pub fn handle_store(&mut self, store: Bytes) {
        self.identity.store = store;
    }

    /// Takes the slots of this node as they are now: the backend is one of a cluster.
    pub fn handle_slots(&mut self, slots: NodeSlots) {
        self.cluster.set(slots);
    }

    /// Names a new connection; `None`: close it, its user id is not believed. Above `link.visitors_max` connections
    /// without a proof, the one that has been silent longest is closed. Drain the outputs.
    pub fn handle_link_opened(&mut self, now: Now, visitor: Visitor) -> Option<LinkId> {
        if let Peer::Uid(uid) = &visitor.peer
            && !self.config.peer_uids.contains(uid)
        {
            return None;
        }
        if let Some(oldest) = self.out.links.crowded_out() {
            self.close(now, oldest, LinkEnd::Evicted);
        }
        Some(self.out.links.open(now.instant, now.instant + self.config.hello_timeout, visitor))
    }

    /// Learns the DNS names in the certificate that the other end of a connection has shown, which came as
    /// [`Peer::nobody`].
    pub fn handle_link_certified(&mut self, link: LinkId, names: Arc<[String]>) {
        if let Some(state) = self.out.links.get_mut(link) {
            state.visitor.peer = Peer::Certificate(names);
        }
    }

    /// Takes at most one frame from `input`. Drain the outputs, then call again until `input` is empty:
    /// the handler must see the state that the frame's sender saw.
    pub fn handle_link_bytes(&mut self, now: Now, link: LinkId, input: &mut Bytes) {
        let Some(state) = self.out.links.get_mut(link) else { return input.clear() };
        state.last_rx = now.instant;
        let phase = state.phase;
        let end = match state.decoder.decode(input) {
            Ok(None) => return,
            Ok(Some(frame)) => self.handle_frame(now, link, phase, &frame).err(),
            Err(error) => Some(LinkEnd::Protocol(error)),
        };
        if let Some(end) = end {
            self.close(now, link, end);
            input.clear();
            self.admit_waiting(now);
        }
    }

    /// Learns that the socket took the first `count` bytes of [`Self::unsent`].
    pub fn handle_link_sent(&mut self, now: Now, link: LinkId, count: usize) {
        self.out.links.on_sent(link, count, now.instant);
    }

    /// Learns that the socket takes bytes again; the next turn's end writes what waits.
    pub fn handle_link_writable(&mut self, link: LinkId) {
        self.out.links.on_writable(link);
    }

    /// Learns that the connection ended.
    pub fn handle_link_closed(&mut self, now: Now, link: LinkId, end: LinkEnd) {
        self.close(now, link, end);
        self.admit_waiting(now);
    }

    /// Queues known outcomes of pushes, and, four times a second, whatever time has ended.
    pub fn handle_timeouts(&mut self, now: Now) {
        while let Some((session, push, outcome)) = self.out.undelivered.pop_front() {
            self.out.emit(Event::Pushed { session, push, outcome });
        }
        if now.instant < self.next_tick {
            return;
        }
        self.next_tick = now.instant + TICK;
        for (link, end) in self.out.links.overdue(now.instant, &self.config) {
            self.close(now, link, end);
        }
        self.out.links.ping_quiet(now.instant, &self.config);
        for session in self.out.routes.take_expired(now.instant) {
            self.out.end_session(session, 0);
        }
        for gateway in self.out.routes.expired_gateways(now.instant) {
            self.forget_gateway(gateway);
        }
        self.admit_waiting(now);
        self.out.emit(Event::Tick);
    }

    /// Ends a turn: queues one [`Output::Write`] for each link with new bytes.
    pub fn handle_turn_end(&mut self, now: Now) {
        self.cluster.tell(now.instant, &mut self.out);
        self.out.links.flush(now.instant);
    }

    /// Returns the next output, in the order of causes; `None`: all were taken.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.links.poll_output()
    }

    /// Writes the figures of now.
    pub fn count(&self, now: Now, counters: &LinkCounters) {
        let Outbox { routes, links, rooms, .. } = &self.out;
        let unproven = routes.gateways.values().filter(|known| known.standing == Standing::Unproven);
        let unproven = unproven.map(|known| known.links as usize).sum();
        let is_encrypted = |(_, link): &(LinkId, &Link)| {
            matches!((&link.phase, &link.visitor.peer), (Phase::Open(_), Peer::Certificate(_)))
        };
        counters.set_links(links.open_links(), unproven, links.iter().filter(is_encrypted).count());
        let (group_rooms, lost) = self.out.group_rooms();
        counters.set_group_rooms(group_rooms, lost);
        let LinkConfig { links_max, gateways_max, sessions_max, rooms_max, .. } = self.config;
        counters.note_caps(
            now.instant,
            [
                (links.open_links(), links_max),
                (routes.gateways.len(), gateways_max),
                (routes.sessions(), sessions_max),
                (rooms.len(), rooms_max),
            ],
        );
    }

    /// Returns the bytes that wait to be sent on a link.
    pub fn unsent(&self, link: LinkId) -> &[u8] {
        self.out.links.unsent(link)
    }

    /// Returns the time at which the next turn must begin.
    pub fn next_deadline(&self) -> Instant {
        let has_work = !self.out.undelivered.is_empty() || self.out.links.is_dirty();
        if has_work { Instant::ZERO } else { self.next_tick.min(self.cluster.next_deadline()) }
    }

    /// Panics if the parts disagree. For simulators and tests.
    pub fn check(&self) {
        let Outbox { routes, links, .. } = &self.out;
        for (id, gateway) in &routes.gateways {
            let open = links.of_gateway(*id).count();
            assert_eq!(gateway.links as usize, open, "links of {gateway:?}");
            assert!(open > 0 || gateway.lease_until < Instant::FAR_FUTURE, "the lease of {gateway:?}");
        }
        for (link, state) in links.iter() {
            if let Phase::Open(gateway) = state.phase {
                assert!(routes.gateways.contains_key(&gateway), "{link:?} speaks for a gateway that is gone");
            }
        }
        routes.check(|link| links.get(link).map(|state| state.phase));
        self.out.group_rooms.check(links);
        self.out.rooms.check(|session| routes.get(session).map(|known| known.gateway));
    }

    /// Ends a link. Its sessions and its gateway stay until their lease ends.
    pub(super) fn close(&mut self, now: Now, link: LinkId, end: LinkEnd) {
        let Some(phase) = self.out.links.close(link) else { return };
        self.out.rooms.on_link_down(link);
        self.out.on_room_link_down(link);
        let mut farewell = BytesMut::new();
        if let Some(notice) = greeting::farewell(&end) {
            encode(&mut farewell, Kind::Notice, 0, 0, &notice);
        }
        let (was_open, farewell) = (matches!(phase, Phase::Open(_)), farewell.freeze());
        self.out.links.outputs.push_back(Output::Close { link, end, was_open, farewell });
        let Phase::Open(gateway) = phase else { return };
        let lease_until = now.instant + self.config.lease;
        self.out.routes.on_link_down(link, lease_until);
        if let Some(known) = self.out.routes.gateways.get_mut(&gateway) {
            known.links -= 1;
            if known.links == 0 {
                known.lease_until = lease_until;
            }
        }
        self.out.emit(Event::LinkDown { gateway, link });
    }

    /// Ends an older epoch of a gateway: its links, its sessions, itself.
    pub(super) fn retire(&mut self, now: Now, gateway: GatewayId) {
        let links: Vec<LinkId> = self.out.links.of_gateway(gateway).map(|(link, _)| link).collect();
        for link in links {
            self.close(now, link, LinkEnd::Replaced);
        }
        self.forget_gateway(gateway);
    }

    /// Forgets a gateway without links, and all its sessions.
    fn forget_gateway(&mut self, gateway: GatewayId) {
        for session in self.out.routes.sessions_of(gateway) {
            self.out.end_session(session, 0);
        }
        if let Some(gone) = self.out.routes.gateways.remove(&gateway) {
            tracing::info!(gateway = gone.node, epoch = gone.epoch, "gateway gone");
            self.out.emit(Event::GatewayDown { gateway });
        }
    }
}
