//! What happens between the parts: connections between clients and the gateway, links between workers
//! and the backend.

use crate::pipe::{Caller, Pipe, PipeId, Place, Way};
use crate::scene::What;
use crate::world::World;

/// Delays between threads, and on a link, in microseconds.
pub(crate) const MAIL_MICROS: u64 = 300;
const LINK_MICROS: u64 = 5_000;

impl World {
    /// A SYN goes out: answered, refused or lost.
    pub(crate) fn connect(&mut self, caller: Caller) -> PipeId {
        let id = self.pipes.len();
        let mut pipe = Pipe::new(&mut self.scene, caller);
        let is_refused = !self.is_listening || self.scene.fault(20);
        if is_refused {
            pipe.place = Place::Closed;
        }
        self.pipes.push(pipe);
        let shard = self.scene.index(self.reactors.len());
        match caller {
            _ if self.scene.fault(40) => {} // lost
            Caller::Client(at) if is_refused => self.scene.within(20, What::ClientGone(at, id)),
            Caller::Client(at) => {
                self.scene.within(20, What::Connected(at, id));
                self.scene.within(20, What::Accept(shard, id));
            }
            Caller::Hostile(_) if is_refused => {}
            Caller::Hostile(_) => self.scene.within(20, What::Accept(shard, id)),
        }
        if !self.scene.faults.is_calm && matches!(caller, Caller::Client(_)) {
            let knife = self.scene.faults.knife;
            if self.scene.fault(knife) {
                self.pipes[id].sharpen(&mut self.scene);
            }
            let (life, stall) = (self.scene.faults.life_ms, self.scene.faults.stall);
            self.scene.within(2 * life, What::Break(id));
            if self.scene.random.one_in(stall) {
                self.scene.within(5_000, What::Stall(id));
            }
        }
        id
    }

    pub(crate) fn on_connected(&mut self, at: usize, pipe: PipeId) {
        if self.clients[at].pipe == Some(pipe) && !self.pipes[pipe].is_broken() {
            self.clients[at].core.handle_connected(self.scene.now);
            self.drain(at);
        }
    }

    pub(crate) fn deliver(&mut self, id: PipeId, way: Way) {
        let delivery = self.pipes[id].deliver(&mut self.scene, id, way);
        if delivery.is_cut
            && let Caller::Client(at) = self.pipes[id].caller
        {
            self.break_now(at, id);
        }
        if way == Way::Up {
            if let Place::On(shard, key) = self.pipes[id].place {
                self.reactors[shard].on_readable(&mut self.scene, key);
            }
            return;
        }
        if delivery.has_room
            && let Place::On(shard, key) = self.pipes[id].place
        {
            self.reactors[shard].on_writable(&mut self.scene, key);
        }
        match self.pipes[id].caller {
            Caller::Client(at) if self.clients[at].pipe == Some(id) => {
                if !delivery.bytes.is_empty() {
                    self.clients[at].core.handle_bytes(self.scene.now, delivery.bytes.into());
                    self.drain(at);
                }
                if delivery.is_end && self.clients[at].pipe == Some(id) {
                    self.clients[at].on_gone(&mut self.scene, &mut self.pipes);
                    self.drain(at);
                }
            }
            Caller::Hostile(at) if delivery.is_end => self.hostile_leaves(at),
            _ => {}
        }
    }

    /// Nobody is told that this connection is gone.
    pub(crate) fn cut_silently(&mut self, id: PipeId) {
        self.pipes[id].break_off(&mut self.scene);
    }

    pub(crate) fn break_pipe(&mut self, what: What) {
        match what {
            What::Stall(id) if !self.scene.faults.is_calm => {
                self.scene.coverage.stalls += 1;
                let longest = self.scene.faults.stall_ms_max;
                let time = self.scene.micros(longest * 1000);
                self.pipes[id].stall(&mut self.scene, time);
            }
            What::Break(id) if !self.scene.faults.is_calm && !self.pipes[id].is_over() => {
                self.scene.coverage.resets += 1;
                self.pipes[id].break_off(&mut self.scene);
                let who = self.scene.index(3);
                let Caller::Client(at) = self.pipes[id].caller else { return };
                if who != 0 {
                    self.scene.within(1_000, What::ClientGone(at, id));
                }
                if who != 1 {
                    self.scene.within(1_000, What::GatewayGone(id));
                }
            }
            What::ClientGone(at, id) if self.clients[at].pipe == Some(id) => {
                self.clients[at].on_gone(&mut self.scene, &mut self.pipes);
                self.drain(at);
            }
            What::GatewayGone(id) => {
                self.pipes[id].tell_gateway();
                if let Place::On(shard, key) = self.pipes[id].place {
                    self.reactors[shard].on_readable(&mut self.scene, key);
                }
            }
            _ => {}
        }
    }

    /// What workers and backend have to say sets off.
    pub(crate) fn deliver_mail(&mut self) {
        for worker in 0..self.workers.len() {
            for (shard, item) in std::mem::take(&mut self.workers[worker].to_shards) {
                let lane = &mut self.downlinks[worker][shard.index()];
                let what = What::DownlinkMail(worker, shard.index());
                lane.push(&mut self.scene, item, MAIL_MICROS, what);
            }
            for item in std::mem::take(&mut self.workers[worker].to_backend) {
                let lane = &mut self.to_backend[worker];
                lane.push(&mut self.scene, item, LINK_MICROS, What::ToBackend(worker));
            }
        }
        for (worker, item) in std::mem::take(&mut self.backend.out) {
            // Said into a dead link: lost.
            if self.workers[worker].has_link() {
                let lane = &mut self.from_backend[worker];
                lane.push(&mut self.scene, item, LINK_MICROS, What::FromBackend(worker));
            }
        }
    }

    pub(crate) fn handle_link(&mut self, what: What) {
        match what {
            What::ToBackend(worker) => {
                for item in self.to_backend[worker].pop() {
                    let generation = self.workers[worker].generation;
                    self.backend.handle(&mut self.scene, worker, generation, item);
                }
            }
            What::FromBackend(worker) => {
                for item in self.from_backend[worker].pop() {
                    self.workers[worker].handle_backend(&mut self.scene, item);
                }
            }
            What::LinkComes(worker) => {
                self.workers[worker].on_link_up();
                let life = self.scene.faults.link_life_ms;
                if life > 0 && !self.scene.faults.is_calm {
                    self.scene.within(2 * life, What::LinkDies(worker));
                }
            }
            What::LinkDies(worker) if !self.scene.faults.is_calm && self.workers[worker].has_link() => {
                self.scene.coverage.link_deaths += 1;
                // Some of what was under way arrives at the backend all the same.
                let arrives = self.scene.index(4);
                for item in self.to_backend[worker].pop().into_iter().take(arrives) {
                    let generation = self.workers[worker].generation;
                    self.backend.handle(&mut self.scene, worker, generation, item);
                }
                self.cut_link(worker);
            }
            _ => {}
        }
    }

    fn cut_link(&mut self, worker: usize) {
        self.to_backend[worker].cut();
        self.from_backend[worker].cut();
        self.backend.on_link_down(worker);
        self.workers[worker].on_link_down(&mut self.scene);
        let away = self.scene.faults.link_away_ms_max;
        self.scene.within(away, What::LinkComes(worker));
    }

    /// All of the backend but what is durable is gone.
    pub(crate) fn kill_backend(&mut self) {
        self.scene.coverage.backend_deaths += 1;
        for worker in 0..self.workers.len() {
            if self.workers[worker].has_link() {
                self.cut_link(worker);
            }
        }
        self.backend.die(&self.scene);
    }

    /// Every client loses its connection in this moment.
    pub(crate) fn storm(&mut self) {
        self.scene.coverage.storms += 1;
        for at in 0..self.clients.len() {
            let Some(id) = self.clients[at].pipe.filter(|id| !self.pipes[*id].is_broken()) else { continue };
            self.break_now(at, id);
        }
    }

    /// Both ends hear of it at once.
    fn break_now(&mut self, at: usize, id: PipeId) {
        self.scene.coverage.resets += 1;
        self.pipes[id].break_off(&mut self.scene);
        self.scene.within(20, What::ClientGone(at, id));
        self.scene.within(20, What::GatewayGone(id));
    }
}
