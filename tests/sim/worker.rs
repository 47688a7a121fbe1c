//! A worker's loop around a real `Router`: the same order of work as `moorline::worker`, with pipes for sockets
//! and the scene for a clock.
//!
//! alice's shard hands a batch over, which stirs the worker. Its turn gives the router the batch, the bytes that
//! arrived on links, and the time; then it performs the router's orders: bytes into pipes, batches for the shards.

use crate::faults::SECRETS;
use crate::pipe::{Delivery, Pipe, PipeId, Way};
use crate::scene::{Scene, What};
use crate::stranger::Strangers;
use bytes::Bytes;
use moorline::auth::{Judge, Verify};
use moorline::messages::{Admission, Downlink, DownlinkBatch, Uplink, UplinkBatch};
use moorline::router::{
    Balance, Connected, Count, Failure, LinkIndex, LinkSettings, LinkTimes, Load, Output, OverloadLimits,
    ParkingLimits, Router, RouterSettings, Stores, Trust, Unproven,
};
use moorline::snapshot::{Header, Section, SectionKind, Snapshot, SocketRef, Writer};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::ids::ShardId;
use moorline_proto::link::Secrets;
use moorline_proto::message::backend::LinkHello;
use moorline_proto::message::client::Hello;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

/// Time after which an unanswered UP is answered RETRY.
const UP_TIMEOUT: Duration = Duration::from_secs(3);
/// HELLOs judged in one turn.
const LOGINS_PER_TURN: usize = 2;
/// Turns between two moves of a router's state to another process, at least: each is followed by a turn at once.
const RESTART_TURNS_MIN: u64 = 7;
/// One of this many logins is refused for now by a worker that judges itself.
const REFUSED_OF: u64 = 30;

/// The gateway's end of a link.
struct Connection {
    pipe: PipeId,
    is_connected: bool,
    is_writable: bool,
    /// Bytes with this end's kernel.
    arrived: Vec<Bytes>,
    /// The end of the connection, behind the bytes.
    end: Option<Failure>,
}

/// Judges HELLOs by the dice.
struct Dice(Mutex<Random>);

impl Verify for Dice {
    fn verify(&self, hello: &Hello, _unix_now_s: u64) -> Result<Admission, CloseReason> {
        if self.0.lock().expect("one thread").one_in(REFUSED_OF) {
            return Err(CloseReason::Busy);
        }
        Ok(Admission {
            uid: hello.uid.clone(),
            device: hello.device.clone(),
            platform: hello.platform,
            accepts_lz4: hello.accept & ACCEPT_LZ4 != 0,
            resume: hello.resume.clone().map(Box::new),
            ..Admission::default()
        })
    }
}

pub(crate) struct Worker {
    number: usize,
    router: Router,
    settings: RouterSettings,
    judge: Judge,
    /// By link.
    connections: Vec<Option<Connection>>,
    mail: VecDeque<UplinkBatch>,
    /// Times at which turns will come.
    turns: BTreeSet<Instant>,
    turns_done: u64,
    /// Links that are to be connected.
    pub(crate) wishes: Vec<LinkIndex>,
    pub(crate) batches: Vec<(ShardId, DownlinkBatch)>,
}

fn settings(number: usize, scene: &mut Scene) -> RouterSettings {
    let faults = &scene.faults;
    let hello =
        LinkHello { version_min: 1, version_max: 1, node: "g".into(), epoch: 1, ..LinkHello::default() };
    let address =
        |number: usize| SocketAddr::from(([10, 0, 0, u8::try_from(number + 1).expect("few")], 7100)).into();
    RouterSettings {
        number: u16::try_from(number).expect("few workers"),
        endpoints: (0..faults.endpoints).map(address).collect(),
        stores: Stores::default(),
        links_per_endpoint: faults.links_per_endpoint,
        balance: if faults.is_by_hash { Balance::Hash } else { Balance::LeastLoaded },
        link: LinkSettings {
            hello,
            times: LinkTimes::default(),
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            up_timeout: UP_TIMEOUT,
            output_max: faults.link_output_max,
            pending_bytes: 1 << 20,
            body_max: 1 << 20,
        },
        parking: ParkingLimits {
            frames: faults.parked_frames,
            bytes: 1 << 20,
            changes: faults.parked_changes,
        },
        overload: OverloadLimits {
            latency: Duration::from_millis(500),
            queue_frames: faults.overload_frames,
            hold: Duration::from_secs(1),
        },
        compress_min: 200,
        seed: scene.random.next_u64(),
        shard_map: scene.faults.shard_map(),
    }
}

impl Worker {
    pub(crate) fn new(number: usize, scene: &mut Scene) -> Self {
        let settings = settings(number, scene);
        let judge = if scene.faults.is_backend_judge {
            Judge::Backend
        } else {
            Judge::Here(Arc::new(Dice(Mutex::new(Random::new(scene.random.next_u64())))))
        };
        let router = Router::new(settings.clone(), judge.clone(), scene.now);
        Self {
            number,
            connections: router.links().map(|_| None).collect(),
            router,
            settings,
            judge,
            mail: VecDeque::new(),
            turns: BTreeSet::new(),
            turns_done: 0,
            wishes: Vec::new(),
            batches: Vec::new(),
        }
    }

    /// A turn no later than `wait` from now.
    pub(crate) fn wake(&mut self, scene: &mut Scene, wait: Duration) {
        let at = scene.now + wait;
        if self.turns.first().is_none_or(|first| *first > at) {
            self.turns.insert(at);
            scene.at(at, What::WorkerTurn(self.number));
        }
    }

    /// Something woke the poll.
    fn stir(&mut self, scene: &mut Scene) {
        let wait = scene.micros(300);
        self.wake(scene, wait);
    }

    pub(crate) fn on_mail(&mut self, scene: &mut Scene, from: ShardId, items: Vec<Uplink>) {
        self.mail.push_back(UplinkBatch { from, items });
        self.stir(scene);
    }

    /// A pipe was made for this link.
    pub(crate) fn on_connecting(&mut self, link: LinkIndex, pipe: PipeId) {
        let connection =
            Connection { pipe, is_connected: false, is_writable: true, arrived: Vec::new(), end: None };
        self.connections[link.index()] = Some(connection);
    }

    fn at(&mut self, pipe: PipeId) -> Option<&mut Connection> {
        self.connections.iter_mut().flatten().find(|connection| connection.pipe == pipe)
    }

    /// True if a pipe is one of this worker's links still.
    pub(crate) fn has(&self, pipe: PipeId) -> bool {
        self.connections.iter().flatten().any(|connection| connection.pipe == pipe)
    }

    /// The backend's kernel took the connection.
    pub(crate) fn on_connected(&mut self, scene: &mut Scene, pipe: PipeId) {
        let Some(connection) = self.at(pipe) else { return };
        connection.is_connected = true;
        self.stir(scene);
    }

    /// Bytes or the end of the stream arrived.
    pub(crate) fn on_delivery(&mut self, scene: &mut Scene, pipe: PipeId, delivery: Delivery) {
        let Some(connection) = self.at(pipe) else { return };
        if !delivery.bytes.is_empty() {
            connection.arrived.push(delivery.bytes.into());
        }
        if delivery.is_end {
            connection.end = Some(Failure::Closed);
        }
        self.stir(scene);
    }

    /// The connection was refused or broke.
    pub(crate) fn on_lost(&mut self, scene: &mut Scene, pipe: PipeId) {
        let Some(connection) = self.at(pipe) else { return };
        connection.end = Some(Failure::Io(io::ErrorKind::ConnectionReset.into()));
        self.stir(scene);
    }

    /// The backend read, so there is room.
    pub(crate) fn on_writable(&mut self, scene: &mut Scene, pipe: PipeId) {
        let Some(connection) = self.at(pipe) else { return };
        connection.is_writable = true;
        self.stir(scene);
    }

    pub(crate) fn turn(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        // All that are due: the clock may have jumped.
        self.turns = self.turns.split_off(&(scene.now + Duration::from_nanos(1)));
        let before = self.slots();
        for index in 0..self.connections.len() {
            self.finish_connect(scene, index);
        }
        while self.router.takes_batches()
            && let Some(batch) = self.mail.pop_front()
        {
            self.router.handle_uplink(scene.now, batch);
        }
        self.router.handle_logins(scene.now, 1_800_000_000, LOGINS_PER_TURN);
        for link in self.router.links() {
            self.read(scene, pipes, link);
        }
        self.router.handle_timeouts(scene.now);
        self.router.handle_turn_end(scene.now);
        self.perform(scene, pipes);
        self.router.check();
        self.note(scene, &before);
        self.turns_done += 1;
        if scene.faults.is_move_after(self.turns_done, RESTART_TURNS_MIN) {
            self.restart(scene, pipes);
        }
        let can_write = |link: LinkIndex| {
            let connection = self.connections[link.index()].as_ref();
            connection.is_some_and(|one| one.is_writable) && !self.router.link_output(link).is_empty()
        };
        let deadline = self.router.next_deadline();
        if deadline <= scene.now || !self.mail.is_empty() || self.router.links().any(can_write) {
            self.stir(scene);
        } else if deadline < Instant::FAR_FUTURE {
            // A kernel wakes late, never early.
            let late = scene.micros(200);
            self.wake(scene, deadline.saturating_since(scene.now) + late);
        }
    }

    fn finish_connect(&mut self, scene: &mut Scene, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        if std::mem::take(&mut connection.is_connected) {
            let link = LinkIndex(u16::try_from(index).expect("few links"));
            let secrets = Secrets::parse(SECRETS).expect("valid").of("g").to_vec();
            let trust = Trust { secrets, unproven: Unproven::Refuse };
            let connected = Connected {
                trust,
                nonce: Strangers::nonce(scene),
                is_known: false,
                is_encrypted: false,
                is_loopback: false,
                unix_base_nanos: 1_800_000_000_000_000_000,
            };
            self.router.handle_link_connected(scene.now, link, connected);
        }
    }

    fn read(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkIndex) {
        let Some(connection) = &mut self.connections[link.index()] else { return };
        let (arrived, end) = (std::mem::take(&mut connection.arrived), connection.end.take());
        for bytes in arrived {
            self.router.handle_link_bytes(scene.now, link, bytes);
        }
        if let Some(why) = end {
            self.close(scene, pipes, link);
            self.router.handle_link_closed(scene.now, link, &why);
        }
    }

    fn close(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkIndex) {
        if let Some(Connection { pipe, .. }) = self.connections[link.index()].take() {
            pipes[pipe].is_client_open = false;
            pipes[pipe].finish(scene, pipe, Way::Up);
        }
    }

    /// Does what the router has ordered, in its order.
    fn perform(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Connect { link, .. } => self.wishes.push(link),
                Output::Close(link) => {
                    self.wishes.retain(|other| *other != link);
                    self.close(scene, pipes, link);
                }
                Output::Write(link) => self.write(scene, pipes, link),
                Output::Deliver { shard, batch } if scene.fault(50) => {
                    scene.coverage.batches_refused += 1;
                    self.router.handle_batch_refused(shard, batch);
                }
                Output::Deliver { shard, batch } => self.batches.push((shard, batch)),
                Output::MeasureLoad => self.router.handle_load(Load::default()),
            }
        }
    }

    fn write(&mut self, scene: &mut Scene, pipes: &mut [Pipe], link: LinkIndex) {
        let Some(connection) = &mut self.connections[link.index()] else { return };
        let bytes = self.router.link_output(link);
        let sent = if connection.is_writable {
            pipes[connection.pipe].write(scene, connection.pipe, Way::Up, bytes)
        } else {
            0
        };
        connection.is_writable = sent == bytes.len();
        scene.coverage.link_partial_writes += u64::from(sent < bytes.len());
        scene.coverage.links_clogged += u64::from(bytes.len() - sent > 2 * self.settings.link.output_max);
        self.router.handle_link_sent(scene.now, link, sent);
    }

    fn slots(&self) -> Vec<Option<LinkIndex>> {
        self.router.links_of_slots().collect()
    }

    /// Counts slots that left a link that is open still.
    fn note(&self, scene: &mut Scene, before: &[Option<LinkIndex>]) {
        let has_moved = |(before, now): (&Option<LinkIndex>, &Option<LinkIndex>)| {
            before != now && before.is_some_and(|link| self.router.is_open(link))
        };
        let moved = before.iter().zip(&self.slots()).filter(|pair| has_moved(*pair)).count();
        scene.coverage.slot_moves += moved as u64;
    }

    /// The state goes through a snapshot, as to another process. Open links keep their pipes, others begin anew.
    fn restart(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        if self.router.has_items() || self.router.has_logins() {
            return; // a thread that stands still has handed over and judged everything
        }
        let mut section = Section::default();
        let mut name_of = |link: LinkIndex| Ok((SocketRef { fd: link.0.into(), cookie: 1 }, None));
        self.router.freeze(&mut section, &mut name_of).expect("sockets have names");
        let mut writer = Writer::default();
        writer.add(SectionKind::Worker, 0, section);
        let bytes = writer.finish(Header::default()).concat();
        let snapshot = Snapshot::open(bytes.into()).expect("just written");
        let (_, mut records) = snapshot.sections(SectionKind::Worker).expect("whole").remove(0);
        let mut router = Router::new(self.settings.clone(), self.judge.clone(), scene.now);
        let sockets = router.thaw(scene.now, &mut records).expect("just written");
        self.router = router;
        for link in self.router.links() {
            if sockets.iter().all(|socket| socket.link != Some(link)) {
                self.wishes.retain(|other| *other != link);
                self.close(scene, pipes, link);
            }
        }
        scene.coverage.router_restarts += 1;
        self.router.check();
        let mut again = Section::default();
        self.router.freeze(&mut again, &mut name_of).expect("sockets have names");
        assert_eq!(again.len(), records.len(), "what was read is what is written");
    }

    /// Other clients of this worker are not to be read, and other load is shed, than before. These words do not
    /// come from the router, whose own would be rare.
    pub(crate) fn press(&mut self, scene: &mut Scene, is_over: bool) {
        let worker = self.settings.number;
        let mask = |scene: &mut Scene| match scene.index(3) {
            _ if is_over => 0,
            0 => scene.random.next_u64(),
            1 => u64::MAX,
            _ => 0,
        };
        let slots = [(); 4].map(|()| mask(scene));
        let level = if is_over { 0 } else { u8::try_from(scene.index(4)).expect("small") };
        for shard in (0..scene.faults.shards).map(|shard| ShardId(u8::try_from(shard).expect("few shards"))) {
            let items = vec![Downlink::Hold { worker, slots }, Downlink::Overload { worker, level }];
            self.batches.push((shard, DownlinkBatch { items }));
        }
    }

    /// Adds the router's numbers to the coverage.
    pub(crate) fn report(&mut self, scene: &mut Scene) {
        let counters = self.router.counters();
        let seen = &mut scene.coverage;
        assert_eq!(counters[Count::LinkErrors], 0, "worker {}: a backend broke the rules", self.number);
        let rows = [
            (&mut seen.link_resends, Count::Reroutes),
            (&mut seen.timeout_retries, Count::UpTimeouts),
            (&mut seen.late_answers, Count::LateResults),
            (&mut seen.ups_refused, Count::UpsRefused),
            (&mut seen.breaker_trips, Count::BreakerTrips),
            (&mut seen.announces, Count::Announces),
            (&mut seen.logins_announced, Count::LoginsAnnounced),
            (&mut seen.changes_skipped, Count::ChangesSkipped),
            (&mut seen.router_holds, Count::HoldChanges),
            (&mut seen.router_overloads, Count::OverloadChanges),
            (&mut seen.digests, Count::Digests),
            (&mut seen.stale_outcomes, Count::OutcomesStale),
            (&mut seen.pushes_compressed, Count::Compressed),
            (&mut seen.refusals, Count::LoginsRefused),
            (&mut seen.auth_timeouts, Count::LoginsUnjudged),
        ];
        for (row, count) in rows {
            *row += counters[count];
        }
    }

    /// Every slot is live on a link, and nothing waits for the backend.
    pub(crate) fn is_idle(&self) -> bool {
        self.router.is_settled() && self.mail.is_empty() && self.batches.is_empty()
    }
}
