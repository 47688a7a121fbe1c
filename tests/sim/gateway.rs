//! A reactor's loop around a real `Shard`: the same order of work as `moorline::reactor`, with pipes
//! for sockets and the scene for a clock.

use crate::logins::Logins;
use crate::pipe::{Pipe, PipeId, Place, Read, Way};
use crate::scene::{Scene, What};
use crate::tap::{Claims, DOWNLINK_FRAMES, HEARTBEAT_S};
use moorline::handoff::{Downlink, Uplink};
use moorline::shard::{Count, DrainOrder, Moved, Outputs, Settings, Shard, Transfer};
use moorline::snapshot::{Header, Section, SectionKind, Snapshot, Writer};
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::time::{Duration, Instant};
use moorline_proto::window::WindowLimits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes gathered for one write, and writes to one connection in one turn.
const WRITE_BYTES: usize = 64 << 10;
const WRITES_MAX: usize = 4;
/// Frames that may wait for one client.
const QUEUE_FRAMES: usize = 128;

pub(crate) enum Mail {
    Accept(PipeId),
    Move(PipeId, Box<Transfer>),
    Downlink(Downlink),
    Drain(Duration),
    Stop,
}

struct Stream {
    pipe: PipeId,
    is_writable: bool,
    is_ready: bool,
    is_held: bool,
}

pub(crate) struct Reactor {
    number: usize,
    pub(crate) shard: Shard,
    pub(crate) outputs: Outputs,
    pub(crate) mail: VecDeque<Mail>,
    streams: BTreeMap<ConnKey, Stream>,
    ready: VecDeque<ConnKey>,
    /// When turns will come.
    turns: BTreeSet<Instant>,
    /// Clients that have room to write again.
    pub(crate) unblocked: Vec<PipeId>,
    /// Connections on their way to another reactor.
    pub(crate) leaving: Vec<(PipeId, Box<Transfer>)>,
    logins: Logins,
    /// SENDACKs on the wire, for the backend to confirm.
    pub(crate) claims: Claims,
    settings: Settings,
    turns_done: u64,
}

pub(crate) fn settings(number: usize, scene: &mut Scene) -> Settings {
    Settings {
        shard: ShardId(u8::try_from(number).expect("few shards")),
        homes: scene.faults.homes(),
        workers: scene.faults.workers,
        downlink: WindowLimits {
            frames_max: u16::try_from(DOWNLINK_FRAMES).expect("small"),
            bytes_max: 64 << 10,
        },
        queue_bytes_max: 64 << 10,
        queue_frames_max: QUEUE_FRAMES,
        heartbeat_s: HEARTBEAT_S,
        devices_max: 8,
        unix_base_nanos: 1_700_000_000_000_000_000,
        seed: scene.random.next_u64(),
        session_keep: scene.faults.keep,
        kept_max: scene.faults.kept,
        frame_rate: scene.faults.frame_rate,
        user_rate: scene.faults.user_rate,
        collapse_bytes_max: scene.faults.collapse_bytes,
        retransmit: scene.faults.retransmit,
        batch_age: scene.faults.batch_age,
        batch_frames: 8,
        compress_min: 200,
        ..Settings::default()
    }
}

impl Reactor {
    pub(crate) fn new(number: usize, scene: &mut Scene) -> Self {
        let settings = settings(number, scene);
        Self {
            number,
            outputs: Outputs::new(settings.workers),
            shard: Shard::new(settings.clone(), scene.now),
            settings,
            turns_done: 0,
            mail: VecDeque::new(),
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            turns: BTreeSet::new(),
            unblocked: Vec::new(),
            leaving: Vec::new(),
            logins: Logins::default(),
            claims: Claims::new(),
        }
    }

    /// A turn no later than `wait` from now.
    pub(crate) fn wake(&mut self, scene: &mut Scene, wait: Duration) {
        let at = scene.now + wait;
        if self.turns.first().is_none_or(|first| *first > at) {
            self.turns.insert(at);
            scene.at(at, What::Turn(self.number));
        }
    }

    /// Something woke the poll.
    pub(crate) fn stir(&mut self, scene: &mut Scene) {
        let wait = scene.micros(300);
        self.wake(scene, wait);
    }

    pub(crate) fn on_readable(&mut self, scene: &mut Scene, key: ConnKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !std::mem::replace(&mut stream.is_ready, true) {
            self.ready.push_back(key);
        }
        self.stir(scene);
    }

    pub(crate) fn on_writable(&mut self, scene: &mut Scene, key: ConnKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !std::mem::replace(&mut stream.is_writable, true) {
            self.outputs.transmits.push(key);
            self.stir(scene);
        }
    }

    pub(crate) fn turn(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        // All that are due: the clock may have jumped.
        self.turns = self.turns.split_off(&(scene.now + Duration::from_nanos(1)));
        while let Some(mail) = self.mail.pop_front() {
            self.on_mail(scene, pipes, mail);
            self.release(scene, pipes);
        }
        for (key, transfer) in self.outputs.moves.drain(..) {
            if let Some(stream) = self.streams.remove(&key) {
                pipes[stream.pipe].place = Place::Moving;
                self.leaving.push((stream.pipe, transfer));
            }
        }
        for _ in 0..self.ready.len() {
            let key = self.ready.pop_front().expect("counted");
            self.read(scene, pipes, key);
        }
        self.fire(scene, pipes);
        self.shard.check();
        self.perform(scene, pipes);
        self.shard.check();
        self.outputs.uplinks.iter().flatten().for_each(|item| self.logins.on_uplink(item));
        self.turns_done += 1;
        if scene.faults.restart_turns > 0 && self.turns_done.is_multiple_of(scene.faults.restart_turns) {
            self.restart(scene);
        }
        if !self.ready.is_empty() || !self.outputs.transmits.is_empty() {
            self.stir(scene);
        } else if let Some(deadline) = self.shard.next_deadline() {
            // A kernel wakes late, never early.
            let late = scene.micros(200);
            self.wake(scene, deadline.saturating_since(scene.now) + late);
        }
    }

    /// The state goes through a snapshot, as to another process. Everything else is the kernel's, and stays.
    fn restart(&mut self, scene: &mut Scene) {
        let mut section = Section::default();
        self.shard.freeze(&mut section);
        let mut writer = Writer::default();
        writer.add(SectionKind::Shard, 0, section);
        let bytes = writer.finish(Header::default()).concat();
        let snapshot = Snapshot::open(bytes.into()).expect("just written");
        let (_, mut records) = snapshot.sections(SectionKind::Shard).expect("whole").remove(0);
        let mut outputs = Outputs::new(self.settings.workers);
        let nothing_else = |item| panic!("{item:?} is no shard's");
        let thawed = Shard::thaw(self.settings.clone(), scene.now, &mut records, &mut outputs, nothing_else);
        self.shard = thawed.expect("just written");
        self.shard.check();
        // The kernel would tell when the others are writable.
        let is_writable = |key: &ConnKey| self.streams[key].is_writable;
        self.outputs.transmits = outputs.transmits.into_iter().filter(is_writable).collect();
        for (key, is_held) in outputs.holds {
            assert!(is_held && self.streams[&key].is_held, "{key:?} is held");
        }
        let with_sockets: BTreeSet<ConnKey> = self.shard.with_sockets().collect();
        assert!(with_sockets.iter().eq(self.streams.keys()), "every socket is somebody's");
        scene.coverage.restarts += 1;
        let mut again = Section::default();
        self.shard.freeze(&mut again);
        assert_eq!(again.len(), records.len(), "what was read is what is written");
    }

    fn on_mail(&mut self, scene: &mut Scene, pipes: &mut [Pipe], mail: Mail) {
        let now = scene.now;
        match mail {
            Mail::Accept(pipe) => {
                let key = self.shard.handle_accepted(now).expect("room");
                self.attach(pipes, key, pipe);
            }
            Mail::Move(pipe, transfer) => {
                scene.coverage.moves += 1;
                match self.shard.handle_moved(now, transfer, &mut self.outputs) {
                    Moved::Seat(key) => {
                        self.release(scene, pipes);
                        self.attach(pipes, key, pipe);
                    }
                    Moved::On(transfer) => {
                        scene.coverage.moves_on += 1;
                        self.leaving.push((pipe, transfer));
                    }
                    Moved::Full => panic!("there is room"),
                }
            }
            Mail::Downlink(downlink) => {
                self.logins.on_downlink(&downlink);
                self.shard.handle_downlink(now, downlink, &mut self.outputs);
            }
            Mail::Drain(window) => {
                self.shard.handle_drain(now, &DrainOrder::within(window), &mut self.outputs);
            }
            Mail::Stop => self.shard.handle_stop(now, &mut self.outputs),
        }
    }

    /// An edge follows the registration of a socket that is ready.
    fn attach(&mut self, pipes: &mut [Pipe], key: ConnKey, pipe: PipeId) {
        pipes[pipe].place = Place::On(self.number, key);
        let is_ready = pipes[pipe].is_readable();
        if is_ready {
            self.ready.push_back(key);
        }
        let older = self.streams.insert(key, Stream { pipe, is_writable: true, is_ready, is_held: false });
        assert!(older.is_none(), "a key is given once");
    }

    fn read(&mut self, scene: &mut Scene, pipes: &mut [Pipe], key: ConnKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.is_held {
            stream.is_ready = false;
            return;
        }
        let pipe = &mut pipes[stream.pipe];
        let (read, has_room) = pipe.read(scene);
        if has_room {
            self.unblocked.push(stream.pipe);
        }
        match read {
            Read::Bytes(bytes) => {
                pipe.tap.hear_up(scene.now, &bytes, &mut scene.coverage);
                stream.is_ready = pipe.is_readable();
                if stream.is_ready {
                    self.ready.push_back(key);
                }
                self.shard.handle_received(scene.now, key, bytes.into(), &mut self.outputs);
            }
            Read::Blocked => stream.is_ready = false,
            Read::Ended => {
                stream.is_ready = false;
                self.shard.handle_peer_closed(scene.now, key, &mut self.outputs);
            }
        }
    }

    /// Deadlines: nothing happens before one, nothing is due after all were fired.
    fn fire(&mut self, scene: &Scene, pipes: &[Pipe]) {
        let counts = |outputs: &Outputs| {
            // Digests belong to no timer.
            let is_timed = |item: &&Uplink| !matches!(item, Uplink::Digest { .. });
            let count = |items: &Vec<Uplink>| items.iter().filter(is_timed).count();
            let uplinks: Vec<usize> = outputs.uplinks.iter().map(count).collect();
            (uplinks, outputs.transmits.len(), outputs.half_closes.len(), outputs.closes.len())
        };
        let (before, deadline) = (counts(&self.outputs), self.shard.next_deadline());
        self.shard.handle_timeouts(scene.now, &mut self.outputs);
        while self.shard.next_deadline() == Some(Instant::ZERO) {
            self.shard.handle_timeouts(scene.now, &mut self.outputs);
        }
        if deadline.is_none_or(|deadline| deadline > scene.now) {
            assert_eq!(counts(&self.outputs), before, "a timer fired before {deadline:?}");
        }
        let next = self.shard.next_deadline();
        assert!(next.is_none_or(|next| next > scene.now), "{next:?} is overdue at {:?}", scene.now);
        for (items, from) in self.outputs.uplinks.iter().zip(before.0) {
            for item in &items[from..] {
                if let Uplink::ConnDown { key, code, .. } = item
                    && *code == CloseReason::HeartbeatTimeout.code()
                    && let Some(stream) = self.streams.get(key)
                {
                    pipes[stream.pipe].tap.check_silence(scene.now);
                }
            }
        }
        for (key, _) in &self.outputs.last_words {
            pipes[self.streams[key].pipe].tap.check_silence(scene.now);
        }
    }

    /// Sockets that are given up, and those that get another seat.
    fn release(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        for (key, bytes) in self.outputs.last_words.drain(..) {
            let pipe = &mut pipes[self.streams[&key].pipe];
            let sent = pipe.write(scene, self.streams[&key].pipe, Way::Down, &bytes);
            pipe.tap.hear_down(&bytes[..sent], &mut scene.coverage, &mut self.claims);
        }
        for key in self.outputs.closes.drain(..) {
            if let Some(stream) = self.streams.remove(&key) {
                pipes[stream.pipe].place = Place::Closed;
                pipes[stream.pipe].finish(scene, stream.pipe, Way::Down);
            }
        }
        for (from, seat) in std::mem::take(&mut self.outputs.grafts) {
            let stream = self.streams.remove(&from).expect("it has just said HELLO");
            self.attach(pipes, seat, stream.pipe);
        }
        for (key, is_held) in self.outputs.holds.drain(..) {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.is_held = is_held;
            if !is_held && !std::mem::replace(&mut stream.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    fn perform(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        self.release(scene, pipes);
        let mut transmits = std::mem::take(&mut self.outputs.transmits);
        for key in transmits.drain(..) {
            self.transmit(scene, pipes, key);
        }
        transmits.append(&mut self.outputs.transmits);
        self.outputs.transmits = transmits;
        for key in self.outputs.half_closes.drain(..) {
            if let Some(stream) = self.streams.get(&key) {
                pipes[stream.pipe].finish(scene, stream.pipe, Way::Down);
            }
        }
        self.release(scene, pipes);
        for stream in self.streams.values() {
            let pipe = &mut pipes[stream.pipe];
            assert!(!pipe.tap.is_over() || pipe.is_finished(Way::Down), "nothing follows the last frame");
        }
    }

    fn transmit(&mut self, scene: &mut Scene, pipes: &mut [Pipe], key: ConnKey) {
        let bytes_max = [1, 40, WRITE_BYTES][scene.index(3)];
        let mut block = Vec::new();
        for _ in 0..WRITES_MAX {
            let Some(stream) = self.streams.get_mut(&key) else { return };
            if !stream.is_writable {
                return self.shard.handle_sent(key, 0, &mut self.outputs);
            }
            block.clear();
            self.shard.gather(key, &mut block, bytes_max);
            if block.is_empty() {
                return;
            }
            let pipe = &mut pipes[stream.pipe];
            let sent = pipe.write(scene, stream.pipe, Way::Down, &block);
            pipe.tap.hear_down(&block[..sent], &mut scene.coverage, &mut self.claims);
            stream.is_writable = sent == block.len();
            let is_writable = stream.is_writable;
            self.shard.handle_sent(key, sent, &mut self.outputs);
            if block.len() < bytes_max && is_writable {
                return;
            }
        }
        self.outputs.transmits.push(key);
    }

    /// Adds the shard's numbers to the coverage.
    pub(crate) fn report(&mut self, scene: &mut Scene) {
        let tally = self.shard.tally();
        let closes = |reason: CloseReason| tally.closes()[reason as usize];
        let seen = &mut scene.coverage;
        seen.kicks_by_newer_login += tally[Count::Replaced];
        seen.detaches += tally[Count::Detaches];
        seen.resumes += tally[Count::Resumes];
        seen.takeovers += tally[Count::Takeovers];
        seen.resumes_refused += tally[Count::ResumesRefused];
        seen.sessions_given_up += tally[Count::KeptInVain];
        seen.pushes_again += tally[Count::PushesAgain];
        seen.sends_replayed += tally[Count::SendsReplayed];
        seen.collapsed_pushes += tally[Count::PushesCollapsed];
        seen.rate_holds += tally[Count::RateHolds];
        seen.backpressure_holds += tally[Count::BackpressureHolds];
        seen.shed_uplinks += tally[Count::Shed];
        seen.shed_logins += tally[Count::LoginsShed];
        seen.user_refusals += tally[Count::UserRefusals];
        seen.ack_probes += tally[Count::AckProbes];
        seen.early_sends += tally[Count::SendsEarly];
        seen.heartbeat_timeouts += closes(CloseReason::HeartbeatTimeout);
        seen.handshake_timeouts += closes(CloseReason::HandshakeTimeout);
        seen.ack_timeouts += closes(CloseReason::AckTimeout);
        seen.slow_closes += closes(CloseReason::Slow);
        let bad = CloseReason::ALL.iter().filter(|reason| (3500..3520).contains(&reason.code()));
        seen.bad_input_closes += bad.map(|reason| closes(*reason)).sum::<u64>();
    }

    /// After a stop: nothing is left.
    pub(crate) fn check_empty(&mut self) {
        let tally = self.shard.tally().clone();
        for count in [Count::Connections, Count::Sessions, Count::Users, Count::Timers] {
            assert_eq!(tally[count], 0, "{count:?} of shard {} are left", self.number);
        }
        self.logins.check_empty();
        assert!(self.streams.is_empty() && self.mail.is_empty(), "streams or mail are left");
    }
}
