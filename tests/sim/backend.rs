//! The backend's process: the loop of `moorline_backend::server::Server` around the shipped `LinkHost` and the
//! shipped `Im`, with pipes for sockets, and dice that make it answer RETRY, late, or after the chaos only.
//!
//! alice's SEND arrives as bytes of an UP on a pipe: `turn` reads them, `LinkHost` gives an event, `Im` stores the
//! message and queues an answer, the witness notes it in the ledger, and the turn's end writes one block of bytes.

use crate::console::Console;
use crate::faults::{CONSOLE_UID, SECRETS};
use crate::pipe::{Pipe, PipeId, Place, Read, Way};
use crate::scene::{Scene, What};
use crate::stranger::Strangers;
use crate::witness::Witness;
use bytes::{Bytes, BytesMut};
use moorline_backend::config::{ImConfig, LinkConfig};
use moorline_backend::im::store::Memory;
use moorline_backend::im::{self, Im};
use moorline_backend::server::{
    Event, Kick, LinkEnd, LinkHost, LinkId, Now, Output, Peer, SessionId, Visitor,
};
use moorline_proto::error::CloseReason;
use moorline_proto::link::{Kind, LinkDecoder, NONCE_BYTES, Secrets, encode};
use moorline_proto::message::backend;
use moorline_proto::message::client::Code;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Close code of a kick that names a device.
pub(crate) const KICKED_BY_NAME: u32 = 4501;
/// Name of the group that everybody is in, and of its room.
pub(crate) const GROUP: &str = "group:g";

/// uid and device.
pub(crate) type Device = (String, String);

/// One accepted connection.
#[allow(clippy::struct_excessive_bools)] // readiness as an edge-triggered poll tells it
struct Socket {
    pipe: PipeId,
    is_ready: bool,
    is_writable: bool,
    is_paused: bool,
    /// HELLO was answered.
    is_greeted: bool,
    /// Hears the gateway's greeting, for the strangers.
    ear: LinkDecoder,
    /// Frames that no `LinkHost` would send, written before its next bytes.
    injected: BytesMut,
}

pub(crate) struct Backend {
    im_config: ImConfig,
    link_config: LinkConfig,
    host: LinkHost,
    im: Im<Memory>,
    /// Number of the process's life; the epoch of its HELLO.
    life: u64,
    sockets: BTreeMap<LinkId, Socket>,
    ready: VecDeque<LinkId>,
    pub(crate) console: Console,
    strangers: Strangers,
    pub(crate) witness: Witness,
    /// Times at which turns will come.
    turns: BTreeSet<Instant>,
    /// Gateways' ends that have room to write again.
    pub(crate) unblocked: Vec<PipeId>,
    /// Answers that wait for their time.
    late: BTreeMap<u64, im::Output>,
    last_late: u64,
    is_again: bool,
}

fn now(scene: &Scene) -> Now {
    Now { instant: scene.now, unix_ms: 1_800_000_000_000 + scene.now.as_nanos() / 1_000_000 }
}

fn host(config: &LinkConfig, life: u64) -> LinkHost {
    let mut host = LinkHost::new(config, "b".into(), life);
    host.handle_secrets(Secrets::parse(SECRETS).expect("valid"));
    // What is durable outlives the process, so each life has the same store.
    host.handle_store(Bytes::from_static(b"store"));
    host
}

impl Backend {
    pub(crate) fn new(users: &[&str], scene: &mut Scene) -> Self {
        // Fewer or more than fit the window at the gateway; fewer than its queue. What acknowledges them all, in one
        // turn, must fit the gateway's output: else it takes a backend that reads for one that does not.
        let most = if scene.faults.link_output_max < 1_000 { 24 } else { 96 };
        let outstanding = [8, 64, 96][scene.index(3)].min(most);
        // Groups are small here, and of each rank.
        let ranks = ImConfig { first_rank_members: 2, second_rank_members: 4, ..ImConfig::default() };
        // Every other one is large enough for a room.
        let fanout_members_max = [1, ranks.fanout_members_max][scene.index(2)];
        let im_config = ImConfig { outstanding, fanout_members_max, ..ranks };
        let link_config = scene.faults.link_config();
        let mut backend = Self {
            host: host(&link_config, 1),
            im: Im::new(im_config.clone(), 1, Memory::new(&im_config)),
            im_config,
            link_config,
            life: 1,
            sockets: BTreeMap::new(),
            ready: VecDeque::new(),
            console: Console::default(),
            strangers: Strangers::default(),
            witness: Witness::new(users),
            turns: BTreeSet::new(),
            unblocked: Vec::new(),
            late: BTreeMap::new(),
            last_late: 0,
            is_again: false,
        };
        // As the operator's server makes users: a group has no member whom nobody knows.
        let now = now(scene);
        for user in users {
            let call = im::ApiCall::Request {
                user: (*user).to_owned(),
                method: "im.devices".into(),
                payload: Bytes::new(),
            };
            backend.im.handle_api(now, call, im::ApiReply::new(|answer| assert_eq!(answer.code, Code::Ok)));
        }
        backend.console.create_group(users);
        while !backend.console.has_group() {
            backend.turn(scene, &mut []);
        }
        scene.after(Console::PAUSE, What::Console);
        scene.after(Strangers::PAUSE, What::Stranger);
        backend
    }

    /// The process dies, and another one takes its place with what is durable.
    pub(crate) fn die(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        for (_, socket) in std::mem::take(&mut self.sockets) {
            pipes[socket.pipe].place = Place::Closed;
            pipes[socket.pipe].finish(scene, socket.pipe, Way::Down);
        }
        self.ready.clear();
        self.late.clear();
        let empty = Im::new(self.im_config.clone(), 1, Memory::new(&self.im_config));
        let store = std::mem::replace(&mut self.im, empty).into_store();
        self.im = Im::new(self.im_config.clone(), 1, store);
        self.life += 1;
        self.host = host(&self.link_config, self.life);
        self.witness.on_death();
        self.console.on_backend_death();
        self.strangers.on_backend_death();
        self.stir(scene);
    }

    /// A connection was accepted.
    pub(crate) fn accept(&mut self, scene: &mut Scene, pipes: &mut [Pipe], pipe: PipeId) {
        let visitor = Visitor { peer: Peer::Network, nonce: Strangers::nonce(scene) };
        let link = self.host.handle_link_opened(now(scene), visitor).expect("few links");
        pipes[pipe].place = Place::Host(link);
        let (is_ready, is_writable, is_paused, is_greeted) = (false, true, false, false);
        let injected = BytesMut::new();
        let ear = LinkDecoder::new();
        let socket = Socket { pipe, is_ready, is_writable, is_paused, is_greeted, ear, injected };
        self.sockets.insert(link, socket);
        if pipes[pipe].is_readable() {
            self.on_readable(scene, link);
        }
    }

    pub(crate) fn on_readable(&mut self, scene: &mut Scene, link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        if !std::mem::replace(&mut socket.is_ready, true) && !socket.is_paused {
            self.ready.push_back(link);
        }
        self.stir(scene);
    }

    pub(crate) fn on_writable(&mut self, scene: &mut Scene, link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        socket.is_writable = true;
        self.host.handle_link_writable(link);
        self.stir(scene);
    }

    /// Something woke the poll.
    pub(crate) fn stir(&mut self, scene: &mut Scene) {
        let wait = scene.micros(300);
        self.wake(scene, wait);
    }

    fn wake(&mut self, scene: &mut Scene, wait: Duration) {
        let at = scene.now + wait;
        if self.turns.first().is_none_or(|first| *first > at) {
            self.turns.insert(at);
            scene.at(at, What::BackendTurn);
        }
    }

    /// One turn of the loop, in the order of the shipped server.
    pub(crate) fn turn(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        // All that are due: the clock may have jumped.
        self.turns = self.turns.split_off(&(scene.now + Duration::from_nanos(1)));
        self.is_again = false;
        self.feed_console(scene, pipes);
        for _ in 0..self.ready.len() {
            let Some(link) = self.ready.pop_front() else { break };
            self.read(scene, pipes, link);
        }
        if scene.now >= self.host.next_deadline() {
            self.host.handle_timeouts(now(scene));
            self.perform(scene, pipes, true);
        }
        self.im.handle_turn_end(now(scene));
        self.relay(scene);
        self.perform(scene, pipes, false);
        self.host.handle_turn_end(now(scene));
        self.perform(scene, pipes, false);
        self.host.check();
        if self.is_again || !self.ready.is_empty() || self.console.has_bytes() || self.strangers.has_bytes() {
            self.stir(scene);
        } else {
            let late = scene.micros(200);
            let wait = self.host.next_deadline().saturating_since(scene.now) + late;
            self.wake(scene, wait);
        }
    }

    /// The console's link has no pipe: its bytes are here at once.
    fn feed_console(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        if self.console.needs_link() {
            let visitor = Visitor { peer: Peer::Uid(CONSOLE_UID), nonce: [0; NONCE_BYTES] };
            let link = self.host.handle_link_opened(now(scene), visitor).expect("few links");
            self.console.connect(link);
        }
        if let Some((link, bytes)) = self.console.take_bytes() {
            self.feed(scene, pipes, link, bytes);
        }
        while let Some((link, bytes)) = self.strangers.take_bytes() {
            self.feed(scene, pipes, link, bytes);
        }
    }

    /// A stranger comes to the link port.
    pub(crate) fn on_stranger(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        if scene.faults.is_calm {
            return;
        }
        scene.after(Strangers::PAUSE, What::Stranger);
        let visitor = Visitor { peer: Peer::Network, nonce: Strangers::nonce(scene) };
        let link = self.host.handle_link_opened(now(scene), visitor).expect("everybody may come in");
        self.perform(scene, pipes, false);
        self.strangers.connect(scene, link);
        self.stir(scene);
    }

    fn read(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        if socket.is_paused {
            return; // stays ready for the time after
        }
        let id = socket.pipe;
        let (read, has_room) = pipes[id].read(scene);
        if has_room {
            self.unblocked.push(id);
        }
        socket.is_ready = pipes[id].is_readable();
        match read {
            Read::Bytes(bytes) => {
                if socket.is_ready {
                    self.ready.push_back(link);
                }
                if let Some(socket) = self.sockets.get_mut(&link).filter(|socket| !socket.is_greeted) {
                    self.strangers.hear_gateway(&mut socket.ear, &bytes);
                }
                self.feed(scene, pipes, link, bytes.into());
            }
            Read::Blocked => {}
            Read::Ended => {
                self.host.handle_link_closed(now(scene), link, LinkEnd::Closed);
                self.perform(scene, pipes, false);
            }
        }
    }

    fn feed(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkId, mut input: Bytes) {
        while !input.is_empty() {
            self.host.handle_link_bytes(now(scene), link, &mut input);
            self.perform(scene, pipes, false);
        }
    }

    /// Does what the link host asks for, in its order.
    fn perform(&mut self, scene: &mut Scene, pipes: &mut [Pipe], is_overdue: bool) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Event(event) => {
                    if let Event::LinkUp { link, .. } = &event {
                        assert!(!self.strangers.is_on(*link), "a stranger has a link");
                    }
                    if let Event::LinkUp { link, .. } = &event
                        && let Some(socket) = self.sockets.get_mut(link)
                    {
                        socket.is_greeted = true;
                    }
                    if !matches!(event, Event::Up(_) | Event::Pushed { .. } | Event::Tick) {
                        scene.note(|| format!("  host: {event:?}"));
                    }
                    self.witness.on_event(scene, &event, is_overdue);
                    self.handle(scene, event);
                    self.relay(scene);
                }
                Output::Auth { question, judge } => {
                    let lost = scene.faults.auth_lost;
                    if scene.fault(lost) {
                        scene.note(|| "  a login is never judged".into());
                    } else if scene.fault(30) {
                        self.host.outbox().refuse(judge, CloseReason::Busy, "told by the dice");
                    } else {
                        self.host.outbox().admit(judge, &question.uid);
                    }
                }
                Output::Write(link) => self.write(scene, pipes, link),
                Output::Close { link, end, .. } => self.close(scene, pipes, link, &end),
                Output::Pause(link) => self.set_paused(scene, link, true),
                Output::Resume(link) => self.set_paused(scene, link, false),
                Output::Again => self.is_again = true,
            }
        }
    }

    /// Gives an event to `Im`, unless the dice say RETRY.
    fn handle(&mut self, scene: &mut Scene, mut event: Event) {
        let retry = scene.faults.retry;
        if let Event::Up(up) = &mut event
            && self.witness.is_honest(up.session)
            && up.reply.is_some()
            && scene.fault(retry)
        {
            let reply = up.reply.take().expect("just seen");
            scene.coverage.backend_retries += 1;
            self.witness.on_put_off(&reply);
            return self.host.outbox().answer(reply, Code::Retry, Bytes::new());
        }
        self.im.handle(now(scene), event);
    }

    /// Performs what `Im` says, some answers later than others.
    fn relay(&mut self, scene: &mut Scene) {
        while let Some(output) = self.im.poll_output() {
            let is_delayable = self.witness.on_output(scene, &output);
            let (lost, late) = (scene.faults.lost, scene.faults.late);
            if is_delayable && scene.fault(lost) {
                scene.note(|| "  an answer stays away until the calm".into());
                self.hold_back(output);
            } else if is_delayable && scene.fault(late) {
                let number = self.hold_back(output);
                let wait = scene.micros(5_000_000);
                scene.after(wait, What::Answer(number));
            } else if let Some(sessions) = self.tell(output) {
                self.im.reuse(sessions);
            }
        }
    }

    /// No user of the simulation is behind an endpoint.
    fn tell(&mut self, output: im::Output) -> Option<Vec<SessionId>> {
        output.perform(self.host.outbox(), &mut |call| unreachable!("{call:?}"))
    }

    fn hold_back(&mut self, output: im::Output) -> u64 {
        self.last_late += 1;
        self.late.insert(self.last_late, output);
        self.last_late
    }

    /// An answer's time has come. Nothing is left of those of an earlier life of the backend.
    pub(crate) fn on_answer_due(&mut self, scene: &mut Scene, number: u64) {
        if let Some(output) = self.late.remove(&number) {
            self.tell(output);
            self.stir(scene);
        }
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn on_calm(&mut self, scene: &mut Scene) {
        for (_, output) in std::mem::take(&mut self.late) {
            self.tell(output);
        }
        self.stir(scene);
    }

    fn write(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkId) {
        let bytes = self.host.unsent(link);
        if self.console.is_on(link) {
            self.console.hear(bytes);
            let count = bytes.len();
            return self.host.handle_link_sent(now(scene), link, count);
        }
        if self.strangers.is_on(link) {
            let bytes = Bytes::copy_from_slice(bytes);
            self.host.handle_link_sent(now(scene), link, bytes.len());
            return self.strangers.hear(link, &bytes);
        }
        let Some(socket) = self.sockets.get_mut(&link).filter(|socket| socket.is_writable) else { return };
        let injected = pipes[socket.pipe].write(scene, socket.pipe, Way::Down, &socket.injected);
        _ = socket.injected.split_to(injected);
        let count = if socket.injected.is_empty() {
            pipes[socket.pipe].write(scene, socket.pipe, Way::Down, bytes)
        } else {
            0
        };
        socket.is_writable = count == bytes.len();
        self.host.handle_link_sent(now(scene), link, count);
    }

    fn close(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkId, end: &LinkEnd) {
        scene.note(|| format!("  link {link:?}: {end}"));
        if self.strangers.is_on(link) {
            scene.coverage.strangers_refused += u64::from(matches!(end, LinkEnd::Refused { .. }));
            return self.strangers.on_closed(link, end);
        }
        match end {
            LinkEnd::Stalled => scene.coverage.stalled_links += 1,
            LinkEnd::Silent => scene.coverage.silent_links += 1,
            LinkEnd::Replaced => scene.coverage.newer_epochs += 1,
            LinkEnd::Closed | LinkEnd::Io(_) | LinkEnd::NoHello | LinkEnd::Evicted => {}
            LinkEnd::Refused { .. }
            | LinkEnd::Protocol(_)
            | LinkEnd::Tls(_)
            | LinkEnd::RefusedHere(_)
            | LinkEnd::NotConnected(_)
            | LinkEnd::PeerUnproven
            | LinkEnd::OtherNode(_) => panic!("{link:?}: {end}"),
        }
        if let Some(socket) = self.sockets.remove(&link) {
            pipes[socket.pipe].place = Place::Closed;
            pipes[socket.pipe].finish(scene, socket.pipe, Way::Down);
        } else {
            self.console.on_closed(link);
        }
    }

    fn set_paused(&mut self, scene: &mut Scene, link: LinkId, is_paused: bool) {
        if is_paused {
            let is_full = self.host.unsent(link).len() >= self.link_config.output_max;
            *if is_full { &mut scene.coverage.output_pauses } else { &mut scene.coverage.credit_pauses } += 1;
        }
        if let Some(socket) = self.sockets.get_mut(&link) {
            socket.is_paused = is_paused;
            if !is_paused && socket.is_ready {
                self.ready.push_back(link);
            }
        } else if self.console.is_on(link) {
            self.console.is_paused = is_paused;
        }
    }

    /// The system speaks to the group, several times.
    pub(crate) fn announce(&mut self, scene: &mut Scene, count: u64) {
        for _ in 0..count {
            self.console.announce(&mut scene.random);
        }
        self.stir(scene);
    }

    /// The console's clock.
    pub(crate) fn on_console(&mut self, scene: &mut Scene) {
        self.console.on_pause_over(scene);
        self.stir(scene);
        scene.after(Console::PAUSE, What::Console);
    }

    /// Ends a login of somebody, by its handle or by name.
    pub(crate) fn kick_somebody(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let Some((session, login)) = self.witness.somebody(scene) else { return };
        scene.coverage.kicks_by_backend += 1;
        let may_reconnect = scene.random.one_in(2);
        if scene.random.one_in(3) {
            let reason = "told by the backend";
            let kick = Kick { code: CloseReason::Kicked.code(), may_reconnect, reason };
            self.host.outbox().kick(session, kick);
            return self.stir(scene);
        }
        // A kick that means an older login must not hit this one.
        let login_version = login.version - u64::from(scene.random.one_in(3));
        let (uid, device) = login.device;
        let kick = match scene.index(2) {
            0 => {
                backend::Kick { handle: login.handle, code: CloseReason::Kicked.code(), ..Default::default() }
            }
            _ => backend::Kick { uid, device, code: KICKED_BY_NAME, ..Default::default() },
        };
        self.inject(scene, pipes, &backend::Kick { login_version, may_reconnect, ..kick });
    }

    /// Says what `LinkHost` cannot say, between two of its frames on some link.
    fn inject(&mut self, scene: &mut Scene, pipes: &mut [Pipe], kick: &backend::Kick) {
        let host = &self.host;
        let is_between = |link: &LinkId, socket: &Socket| socket.is_greeted && host.unsent(*link).is_empty();
        let mut links = self.sockets.iter_mut().filter(|(link, socket)| is_between(link, socket));
        let Some((_, socket)) = links.next() else { return };
        encode(&mut socket.injected, Kind::Kick, 0, 0, kick);
        let count = pipes[socket.pipe].write(scene, socket.pipe, Way::Down, &socket.injected);
        _ = socket.injected.split_to(count);
    }

    pub(crate) fn sessions(&self) -> usize {
        self.witness.sessions()
    }

    /// Nothing is under way from or to it, and the console's room is as it should be.
    pub(crate) fn is_idle(&self) -> bool {
        self.late.is_empty() && self.ready.is_empty() && self.witness.is_idle() && self.console.is_idle()
    }

    pub(crate) fn what_is_left(&self) -> String {
        let (late, ready) = (self.late.len(), self.ready.len());
        let (witness, console) = (self.witness.is_idle(), self.console.is_idle());
        format!("backend {late} late {ready} ready, pushes settled {witness}, console in its room {console}")
    }

    /// Adds the link host's numbers to the coverage.
    pub(crate) fn report(&mut self, scene: &mut Scene) {
        scene.coverage.room_repairs += self.host.outbox().room_repairs();
    }
}
