//! The parts, the event loop, and the phases of a run: chaos, calm until all is drained, stop.

use crate::backend::{Backend, Device};
use crate::client::{Client, Wish};
use crate::coverage::Coverage;
use crate::gateway::{Mail, Reactor};
use crate::hostile::Hostile;
use crate::network::MAIL_MICROS;
use crate::oracle::Oracle;
use crate::pipe::{Caller, Pipe, PipeId, Way};
use crate::scene::{Lane, Scene, What};
use crate::talk::{DEVICES, USERS};
use crate::worker::Worker;
use moorline::messages::{Downlink, Uplink};
use moorline::shard::Transfer;
use moorline_proto::ids::ShardId;
use moorline_proto::time::{Duration, Instant};

/// After the chaos, all must be drained within this time.
const CALM_MAX: Duration = Duration::from_secs(300);
/// Steps of a run; one that takes more has a part that does not sleep.
const STEPS_MAX: u64 = 400_000;
/// GOAWAY's window at the stop, and what a stopped gateway may take to be empty.
const LEAVE: Duration = Duration::from_secs(1);
const EMPTY_AFTER: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) scene: Scene,
    pub(crate) clients: Vec<Client>,
    pub(crate) hostiles: Vec<Hostile>,
    pub(crate) pipes: Vec<Pipe>,
    pub(crate) reactors: Vec<Reactor>,
    pub(crate) workers: Vec<Worker>,
    /// Connections to the backend are refused before this.
    pub(crate) endpoint_away_until: Instant,
    pub(crate) backend: Backend,
    pub(crate) oracle: Oracle,
    /// By shard, then by worker.
    uplinks: Vec<Vec<Lane<Uplink>>>,
    /// By worker, then by shard.
    pub(crate) downlinks: Vec<Vec<Lane<Downlink>>>,
    /// By old home, then by new home.
    moves: Vec<Vec<Lane<Move>>>,
    pub(crate) talks: u64,
    pub(crate) is_stopping: bool,
    pub(crate) is_listening: bool,
}

/// A connection on its way home.
type Move = (PipeId, Box<Transfer>);

fn lanes<T>(rows: usize, columns: usize) -> Vec<Vec<Lane<T>>> {
    (0..rows).map(|_| (0..columns).map(|_| Lane::default()).collect()).collect()
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut scene = Scene::new(seed, is_traced);
        let plan = format!("{:?}", scene.faults);
        scene.note(|| plan);
        let (shards, workers) = (scene.faults.shards, scene.faults.workers);
        let knows_long_silence = scene.faults.know_long_silence();
        let mut world = Self {
            clients: Vec::new(),
            hostiles: Vec::new(),
            pipes: Vec::new(),
            reactors: (0..shards).map(|number| Reactor::new(number, &mut scene)).collect(),
            workers: (0..workers).map(|number| Worker::new(number, &mut scene)).collect(),
            endpoint_away_until: Instant::ZERO,
            backend: Backend::new(&USERS, &mut scene),
            oracle: Oracle::new(knows_long_silence),
            uplinks: lanes(shards, workers),
            downlinks: lanes(workers, shards),
            moves: lanes(shards, shards),
            talks: 0,
            is_stopping: false,
            is_listening: true,
            scene,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for (uid, device) in DEVICES {
            self.add_client((uid.into(), device.into()));
        }
        for worker in &mut self.workers {
            let wait = self.scene.micros(200_000);
            worker.wake(&mut self.scene, wait);
        }
        for _ in 0..self.scene.faults.hostiles {
            self.scene.within(2_000, What::Hostile);
        }
        self.scene.within(6_000, What::Burst);
        self.scene.within(12_000, What::KickSomebody);
        self.scene.within(12_000, What::Rival);
        self.scene.within(15_000, What::Restart);
        let faults = self.scene.faults.clone();
        let pressure = (0..self.workers.len()).map(|worker| (What::Pressure(worker), faults.pressure_ms));
        let shocks = [
            (What::Storm, faults.storm_ms),
            (What::Suspend, faults.suspend_ms),
            (What::Freeze, faults.freeze_ms),
            (What::BackendDies, faults.backend_life_ms),
        ];
        for (shock, pause) in shocks.into_iter().chain(pressure).filter(|(_, pause)| *pause > 0) {
            self.scene.within(2 * pause, shock);
        }
        self.scene.after(faults.chaos, What::Calm);
    }

    /// Runs to the end; returns what occurred, and a digest of everything that did.
    pub(crate) fn run(mut self) -> (Coverage, u64) {
        let calm_at = self.scene.now + self.scene.faults.chaos;
        loop {
            assert!(self.step(), "heartbeats never end");
            let is_calm = self.scene.faults.is_calm;
            if is_calm && self.scene.coverage.steps.is_multiple_of(16) && self.is_drained() {
                break;
            }
            assert!(self.scene.now <= calm_at + CALM_MAX, "not drained: {}", self.what_is_left());
            assert!(
                self.scene.coverage.steps < STEPS_MAX,
                "some part does not sleep: {}",
                self.what_is_left()
            );
        }
        self.oracle.check(&self.backend.witness.ledger);
        self.stop();
        (std::mem::take(&mut self.scene.coverage), self.scene.digest())
    }

    /// False: nothing is to come.
    fn step(&mut self) -> bool {
        let Some(what) = self.scene.next() else { return false };
        self.handle(what);
        self.deliver_mail();
        true
    }

    fn run_until(&mut self, end: Instant, is_done: impl Fn(&Self) -> bool) {
        while self.scene.now < end && !is_done(self) && self.step() {}
    }

    /// Shocks that come again and again while things go wrong.
    fn shock(&mut self, what: What) {
        let faults = &self.scene.faults;
        let pause = match what {
            What::Burst => 3_000,
            What::KickSomebody => 6_000,
            What::Storm => faults.storm_ms,
            What::Suspend => faults.suspend_ms,
            What::Freeze => faults.freeze_ms,
            What::BackendDies => faults.backend_life_ms,
            _ => faults.pressure_ms,
        };
        if self.scene.faults.is_calm {
            return;
        }
        self.scene.within(2 * pause, what);
        match what {
            What::Burst => {
                let count = 1 + self.scene.random.below(45);
                self.backend.announce(&mut self.scene, count);
            }
            What::KickSomebody => self.backend.kick_somebody(&mut self.scene, &mut self.pipes),
            What::Storm => self.storm(),
            What::Suspend => {
                self.scene.coverage.suspends += 1;
                let time = self.scene.micros(20_000_000);
                self.scene.now += time;
            }
            What::Freeze => {
                self.scene.coverage.freezes += 1;
                let time = self.scene.micros(12_000_000);
                self.scene.frozen_until = self.scene.now + time;
            }
            What::BackendDies => self.kill_backend(),
            What::Pressure(worker) => self.workers[worker].press(&mut self.scene, false),
            _ => unreachable!("no shock"),
        }
    }

    /// Turn of the gateway's process; it waits during a pause.
    fn is_of_gateway(&self, what: What) -> bool {
        if let What::Deliver(pipe, Way::Down) = what {
            return matches!(self.pipes[pipe].caller, Caller::Link(_));
        }
        matches!(
            what,
            What::Turn(_)
                | What::UplinkMail(..)
                | What::DownlinkMail(..)
                | What::WorkerTurn(_)
                | What::Moved(..)
        )
    }

    fn handle(&mut self, what: What) {
        if self.scene.now < self.scene.frozen_until && self.is_of_gateway(what) {
            return self.scene.at(self.scene.frozen_until, what);
        }
        match what {
            What::ClientTimer(at) => {
                self.clients[at].on_timer(&self.scene);
                self.drain(at);
            }
            What::Connected(at, pipe) => self.on_connected(at, pipe),
            What::Flush(at, pipe) => self.clients[at].flush(&mut self.scene, &mut self.pipes, pipe),
            What::Deliver(pipe, way) => self.deliver(pipe, way),
            What::Stall(_) | What::Break(_) | What::ClientGone(..) | What::GatewayGone(_) => {
                self.break_pipe(what);
            }
            What::Accept(shard, pipe) => self.mail(shard, Mail::Accept(pipe)),
            What::Moved(from, to) => {
                for (pipe, transfer) in self.moves[from][to].pop() {
                    self.mail(to, Mail::Move(pipe, transfer));
                }
            }
            What::Turn(shard) => self.turn(shard),
            What::UplinkMail(shard, worker) => {
                let from = ShardId(u8::try_from(shard).expect("few shards"));
                let items = self.uplinks[shard][worker].pop();
                self.workers[worker].on_mail(&mut self.scene, from, items);
            }
            What::DownlinkMail(worker, shard) => {
                for item in self.downlinks[worker][shard].pop() {
                    self.mail(shard, Mail::Downlink(item));
                }
            }
            What::WorkerTurn(worker) => self.workers[worker].turn(&mut self.scene, &mut self.pipes),
            What::LinkConnected(..) | What::LinkAccepted(_) | What::LinkDies(..) | What::LinkLost(..) => {
                self.handle_link(what);
            }
            What::Answer(number) => self.backend.on_answer_due(&mut self.scene, number),
            What::BackendTurn => self.backend_turn(),
            What::Console => self.backend.on_console(&mut self.scene),
            What::Stranger => self.backend.on_stranger(&mut self.scene, &mut self.pipes),
            What::Talk(at) => self.talk(at),
            What::Handled(at, _) if self.clients[at].is_over => {}
            What::Handled(at, token) => {
                self.oracle.on_handled(at, token);
                self.clients[at].core.handled(self.scene.now, token);
                self.drain(at);
            }
            What::Burst
            | What::KickSomebody
            | What::Storm
            | What::Suspend
            | What::Freeze
            | What::BackendDies
            | What::Pressure(_) => self.shock(what),
            What::Login(last) => self.login_again(last),
            What::Rival => self.rival(),
            What::Restart => self.restart(),
            What::Hostile => self.add_hostile(),
            What::HostileSpeaks(at) => self.hostile_speaks(at),
            What::Calm => {
                self.scene.faults.is_calm = true;
                for worker in &mut self.workers {
                    worker.press(&mut self.scene, true);
                }
                self.end_hostiles();
                self.backend.on_calm(&mut self.scene);
                self.tell_clients_of_broken_pipes();
            }
        }
    }

    fn mail(&mut self, shard: usize, mail: Mail) {
        self.reactors[shard].mail.push_back(mail);
        self.reactors[shard].stir(&mut self.scene);
    }

    fn turn(&mut self, shard: usize) {
        let reactor = &mut self.reactors[shard];
        reactor.turn(&mut self.scene, &mut self.pipes);
        for claim in reactor.sockets.claims.drain(..) {
            Oracle::check_claim(&claim, &self.backend.witness.ledger);
        }
        for (worker, items) in reactor.outputs.uplinks.iter_mut().enumerate() {
            for item in items.drain(..) {
                let lane = &mut self.uplinks[shard][worker];
                lane.push(&mut self.scene, item, MAIL_MICROS, What::UplinkMail(shard, worker));
            }
        }
        for (pipe, transfer) in reactor.sockets.leaving.drain(..) {
            let home = transfer.home.index();
            let lane = &mut self.moves[shard][home];
            lane.push(&mut self.scene, (pipe, transfer), MAIL_MICROS, What::Moved(shard, home));
        }
        let forwards = std::mem::take(&mut reactor.outputs.forwards);
        for pipe in std::mem::take(&mut reactor.unblocked) {
            self.on_client_writable(pipe);
        }
        for (home, item) in forwards {
            self.scene.coverage.forwards += 1;
            self.mail(home.index(), Mail::Downlink(item));
        }
    }

    fn on_client_writable(&mut self, pipe: PipeId) {
        if let Caller::Client(at) = self.pipes[pipe].caller
            && self.clients[at].pipe == Some(pipe)
        {
            self.clients[at].write(&mut self.scene, &mut self.pipes);
        }
    }

    /// A client's driver has something to do for its core.
    pub(crate) fn drain(&mut self, at: usize) {
        for wish in self.clients[at].drain(&mut self.scene, &mut self.pipes) {
            match wish {
                Wish::Connect => {
                    let pipe = self.connect(Caller::Client(at));
                    self.clients[at].pipe = Some(pipe);
                }
                Wish::Tell(event) => {
                    self.oracle.on_event(at, &event, &self.backend.witness.ledger);
                    self.hear(at, &event);
                }
            }
        }
    }

    /// Everything accepted is delivered and acked, and nothing is under way.
    fn is_drained(&self) -> bool {
        let devices = || DEVICES.map(|(uid, device)| -> Device { (uid.into(), device.into()) });
        let is_idle = |client: &Client| {
            client.is_over || (client.core.messages_open() == 0 && client.core.sends_open() == 0)
        };
        self.oracle.is_settled()
            && self.clients.iter().all(is_idle)
            && self.workers.iter().all(Worker::is_idle)
            && self.backend.is_idle()
            && devices().iter().all(|device| self.oracle.has_all(device, &self.backend.witness.ledger))
    }

    fn what_is_left(&self) -> String {
        let clients = self.clients.iter().filter(|client| !client.is_over).map(|client| {
            let core = &client.core;
            let caught_up = self.oracle.has_all(&client.device, &self.backend.witness.ledger);
            let (messages, sends) = (core.messages_open(), core.sends_open());
            let missing = self.oracle.missing(&client.device, &self.backend.witness.ledger);
            format!(
                "{:?} {messages} messages {sends} sends caught up {caught_up}, missing {missing:?}",
                client.device
            )
        });
        let workers = self.workers.iter().map(|worker| format!("worker idle {}", worker.is_idle()));
        let lines: Vec<String> = clients.chain(workers).collect();
        let backend = self.backend.what_is_left();
        format!("{lines:#?} {backend} settled {}", self.oracle.is_settled())
    }

    /// Drains, stops, and finds nothing left.
    fn stop(&mut self) {
        self.is_stopping = true;
        for at in 0..self.clients.len() {
            if self.scene.random.one_in(3) {
                self.clients[at].core.logout(self.scene.now);
                self.drain(at);
            }
        }
        for shard in 0..self.reactors.len() {
            self.mail(shard, Mail::Drain(LEAVE));
        }
        self.run_until(self.scene.now + 2 * LEAVE, |_| false);
        self.is_listening = false;
        for shard in 0..self.reactors.len() {
            self.mail(shard, Mail::Stop);
        }
        self.run_until(self.scene.now + EMPTY_AFTER, |world| {
            let is_empty = |reactor: &Reactor| reactor.shard.clients() == 0 && reactor.mail.is_empty();
            world.reactors.iter().all(is_empty)
                && world.backend.sessions() == 0
                && world.workers.iter().all(Worker::is_idle)
        });
        assert_eq!(self.backend.sessions(), 0, "the backend still believes in sessions");
        self.backend.report(&mut self.scene);
        self.workers.iter_mut().for_each(|worker| worker.report(&mut self.scene));
        for reactor in &mut self.reactors {
            reactor.check_empty();
            reactor.report(&mut self.scene);
        }
        for at in 0..self.clients.len() {
            self.clients[at].core.close(self.scene.now);
            self.drain(at);
            assert!(self.clients[at].is_over && self.clients[at].core.sends_open() == 0);
        }
    }
}
