//! A reactor's loop around a real `Shard`: the same order of work as `moorline::reactor`, with pipes
//! for sockets and the scene for a clock.

use crate::logins::Logins;
use crate::pipe::{Pipe, PipeId, Read};
use crate::scene::{Scene, What};
use crate::sockets::{Simulated, Sockets};
use crate::tap::{DOWNLINK_FRAMES, HEARTBEAT_S};
use moorline::messages::{Downlink, Uplink};
use moorline::shard::{
    Count, DrainOrder, Executor, Moved, Output, Outputs, Settings, Shard, Transfer, note_fanout,
};
use moorline::snapshot::{Header, Section, SectionKind, Snapshot, Writer};
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::time::{Duration, Instant};
use moorline_proto::window::WindowLimits;
use std::collections::{BTreeSet, VecDeque};

/// Time that a slice of a fan-out takes.
const SLICE_TOOK: Duration = Duration::from_micros(150);
/// Frames that may wait for one client.
const QUEUE_FRAMES: usize = 128;
/// Moves of which one is written again, to compare: that costs as much as the move.
const AGAIN: u64 = 4;

pub(crate) enum Mail {
    Accept(PipeId),
    Move(PipeId, Box<Transfer>),
    Downlink(Downlink),
    Drain(Duration),
    Stop,
}

pub(crate) struct Reactor {
    number: usize,
    pub(crate) shard: Shard,
    pub(crate) outputs: Outputs,
    executor: Executor,
    pub(crate) sockets: Sockets,
    pub(crate) mail: VecDeque<Mail>,
    /// Times of the turns to come.
    turns: BTreeSet<Instant>,
    /// Clients that have room to write again.
    pub(crate) unblocked: Vec<PipeId>,
    logins: Logins,
    settings: Settings,
    turns_done: u64,
}

pub(crate) fn settings(number: usize, scene: &mut Scene) -> Settings {
    Settings {
        shard: ShardId(u8::try_from(number).expect("few shards")),
        shard_map: scene.faults.shard_map(),
        workers: scene.faults.workers,
        downlink: WindowLimits {
            frames_max: u16::try_from(DOWNLINK_FRAMES).expect("small"),
            bytes_max: 64 << 10,
        },
        queue_bytes_max: 64 << 10,
        queue_frames_max: QUEUE_FRAMES,
        heartbeat_s: HEARTBEAT_S,
        devices_max: 8,
        unix_base_nanos: 1_800_000_000_000_000_000,
        seed: scene.random.next_u64(),
        session_keep: scene.faults.keep,
        kept_max: scene.faults.kept,
        frame_timeout: Duration::from_secs(20),
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
            executor: Executor::default(),
            sockets: Sockets::new(number),
            mail: VecDeque::new(),
            turns: BTreeSet::new(),
            unblocked: Vec::new(),
            logins: Logins::default(),
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
        if self.sockets.set_ready(key) {
            self.stir(scene);
        }
    }

    pub(crate) fn on_writable(&mut self, scene: &mut Scene, key: ConnKey) {
        if self.sockets.set_writable(key) {
            self.executor.handle_writable(key);
            self.stir(scene);
        }
    }

    pub(crate) fn turn(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        // All that are due: the clock may have jumped.
        self.turns = self.turns.split_off(&(scene.now + Duration::from_nanos(1)));
        while let Some(mail) = self.mail.pop_front() {
            self.on_mail(scene, pipes, mail);
            self.perform(scene, pipes);
        }
        for _ in 0..self.sockets.ready.len() {
            let key = self.sockets.ready.pop_front().expect("counted");
            self.read(scene, pipes, key);
            self.perform(scene, pipes);
        }
        self.fire(scene, pipes);
        self.shard.check();
        self.write(scene, pipes);
        self.shard.check();
        self.sockets.check(pipes);
        self.outputs.uplinks.iter().flatten().for_each(|item| self.logins.on_uplink(item));
        self.turns_done += 1;
        if scene.faults.is_move_after(self.turns_done, 1) {
            self.restart(scene);
        }
        if !self.sockets.ready.is_empty() || self.executor.is_waiting() {
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
        self.executor = Executor::default();
        while let Some(output) = outputs.poll_output() {
            match output {
                Output::PauseReads(key) => assert!(self.sockets.is_paused(key), "{key:?} is paused"),
                Output::Write(key) if self.sockets.is_writable(key) => self.executor.handle_writable(key),
                // The kernel will tell when the socket is writable.
                Output::Write(key) => self.shard.handle_sent(key, 0, &mut self.outputs),
                other => panic!("{other:?} was performed before"),
            }
        }
        let with_sockets: BTreeSet<ConnKey> = self.shard.with_sockets().collect();
        assert!(with_sockets.into_iter().eq(self.sockets.keys()), "every socket belongs to a connection");
        scene.coverage.restarts += 1;
        if scene.coverage.restarts.is_multiple_of(AGAIN) {
            let mut again = Section::default();
            self.shard.freeze(&mut again);
            assert_eq!(again.len(), records.len(), "what was read is what is written");
        }
    }

    fn on_mail(&mut self, scene: &mut Scene, pipes: &mut [Pipe], mail: Mail) {
        let now = scene.now;
        match mail {
            Mail::Accept(pipe) => {
                let key = self.shard.handle_accepted(now).expect("room");
                self.sockets.attach(pipes, key, pipe);
            }
            Mail::Move(pipe, transfer) => {
                scene.coverage.moves += 1;
                match self.shard.handle_moved(now, transfer, &mut self.outputs) {
                    Moved::Here(key) => {
                        self.perform(scene, pipes);
                        self.sockets.attach(pipes, key, pipe);
                    }
                    Moved::On(transfer) => {
                        scene.coverage.moves_on += 1;
                        self.sockets.leaving.push((pipe, transfer));
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

    fn read(&mut self, scene: &mut Scene, pipes: &mut [Pipe], key: ConnKey) {
        let Some((pipe, read, has_room)) = self.sockets.read(scene, pipes, key) else { return };
        if has_room {
            self.unblocked.push(pipe);
        }
        match read {
            Read::Bytes(bytes) => {
                self.shard.handle_received(scene.now, key, bytes.into(), &mut self.outputs);
            }
            Read::Blocked => {}
            Read::Ended => self.shard.handle_peer_closed(scene.now, key, &mut self.outputs),
        }
    }

    /// Deadlines: nothing happens before one, nothing is due after all were fired.
    fn fire(&mut self, scene: &Scene, pipes: &[Pipe]) {
        let counts = |outputs: &Outputs| {
            // Digests belong to no timer.
            let is_timed = |item: &&Uplink| !matches!(item, Uplink::Digest { .. });
            let count = |items: &Vec<Uplink>| items.iter().filter(is_timed).count();
            let uplinks: Vec<usize> = outputs.uplinks.iter().map(count).collect();
            (uplinks, outputs.iter().count())
        };
        let (before, deadline) = (counts(&self.outputs), self.shard.next_deadline());
        self.shard.handle_timeouts(scene.now, &mut self.outputs);
        loop {
            if self.shard.has_fanout(scene.now) {
                self.shard.handle_fanout(scene.now, &mut self.outputs);
                note_fanout(&mut self.shard, SLICE_TOOK);
            } else if self.shard.next_deadline() == Some(Instant::ZERO) {
                self.shard.handle_timeouts(scene.now, &mut self.outputs);
            } else {
                break;
            }
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
                    && let Some(pipe) = self.sockets.pipe(*key)
                {
                    pipes[pipe].tap.check_silence(scene.now);
                }
            }
        }
        for output in self.outputs.iter() {
            if let Output::FinalBytes(key, _) = output {
                pipes[self.sockets.pipe(*key).expect("open")].tap.check_silence(scene.now);
            }
        }
    }

    /// Performs the shard's outputs; writes wait for [`Self::write`].
    fn perform(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let mut sockets = Simulated { sockets: &mut self.sockets, scene, pipes };
        self.executor.perform(sockets.scene.now, &mut self.shard, &mut self.outputs, &mut sockets);
    }

    /// Performs the shard's outputs, and writes.
    fn write(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let mut sockets = Simulated { sockets: &mut self.sockets, scene, pipes };
        self.executor.write(sockets.scene.now, &mut self.shard, &mut self.outputs, &mut sockets);
    }

    /// Adds the shard's numbers to the coverage.
    pub(crate) fn report(&mut self, scene: &mut Scene) {
        let counters = self.shard.counters();
        let closes = |reason: CloseReason| counters.closes()[reason as usize];
        let seen = &mut scene.coverage;
        seen.kicks_by_newer_login += counters[Count::Replaced];
        seen.detaches += counters[Count::Detaches];
        seen.resumes += counters[Count::Resumes];
        seen.takeovers += counters[Count::Takeovers];
        seen.resumes_refused += counters[Count::ResumesRefused];
        seen.sessions_given_up += counters[Count::DetachedExpired];
        seen.pushes_again += counters[Count::PushesAgain];
        seen.sends_replayed += counters[Count::SendsReplayed];
        seen.collapsed_pushes += counters[Count::PushesCollapsed];
        seen.rate_holds += counters[Count::RatePauses];
        seen.backpressure_holds += counters[Count::BackpressurePauses];
        seen.shed_uplinks += counters[Count::Shed];
        seen.shed_logins += counters[Count::LoginsShed];
        seen.user_refusals += counters[Count::UserRefusals];
        seen.ack_probes += counters[Count::AckProbes];
        seen.early_sends += counters[Count::SendsEarly];
        seen.heartbeat_timeouts += closes(CloseReason::HeartbeatTimeout);
        seen.handshake_timeouts += closes(CloseReason::HandshakeTimeout);
        seen.incomplete_closes += closes(CloseReason::Incomplete);
        seen.unpacked_bytes += counters[Count::UnpackedBytes];
        seen.ack_timeouts += closes(CloseReason::AckTimeout);
        seen.slow_closes += closes(CloseReason::Slow);
        let bad = CloseReason::ALL.iter().filter(|reason| (3500..3520).contains(&reason.code()));
        seen.bad_input_closes += bad.map(|reason| closes(*reason)).sum::<u64>();
    }

    /// After a stop: nothing is left.
    pub(crate) fn check_empty(&mut self) {
        let counters = self.shard.counters().clone();
        for count in [Count::Connections, Count::Sessions, Count::Users, Count::Timers] {
            assert_eq!(counters[count], 0, "{count:?} of shard {} are left", self.number);
        }
        self.logins.check_empty();
        assert!(self.sockets.is_empty() && self.mail.is_empty(), "sockets or mail are left");
    }
}
