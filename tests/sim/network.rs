//! Network between the parts: connections between clients and the gateway, links between workers
//! and the backend.

use crate::pipe::{Caller, Pipe, PipeId, Place, Way};
use crate::scene::What;
use crate::world::World;
use moorline::router::LinkIndex;

/// Delay between threads, in microseconds.
pub(crate) const MAIL_MICROS: u64 = 300;

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
            Caller::Link(_) => unreachable!("links go to the backend"),
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
            match self.pipes[id].place {
                Place::On(shard, key) => self.reactors[shard].on_readable(&mut self.scene, key),
                Place::Host(link) => self.backend.on_readable(&mut self.scene, link),
                Place::Backlog | Place::Moving | Place::Closed => {}
            }
            return;
        }
        match self.pipes[id].place {
            Place::On(shard, key) if delivery.has_room => {
                self.reactors[shard].on_writable(&mut self.scene, key);
            }
            Place::Host(link) if delivery.has_room => self.backend.on_writable(&mut self.scene, link),
            _ => {}
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
            Caller::Link(worker) => self.workers[worker].on_delivery(&mut self.scene, id, delivery),
            _ => {}
        }
    }

    /// A client that has not heard that its connection broke hears of it: an answer is not waited for in vain.
    pub(crate) fn tell_clients_of_broken_pipes(&mut self) {
        for at in 0..self.clients.len() {
            if let Some(id) = self.clients[at].pipe.filter(|id| self.pipes[*id].is_broken()) {
                self.scene.within(20, What::ClientGone(at, id));
            }
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
                match self.pipes[id].place {
                    Place::On(shard, key) => self.reactors[shard].on_readable(&mut self.scene, key),
                    Place::Host(link) => self.backend.on_readable(&mut self.scene, link),
                    Place::Backlog | Place::Moving | Place::Closed => {}
                }
            }
            _ => {}
        }
    }

    /// Messages of workers start their way, and the links that they wish for.
    pub(crate) fn deliver_mail(&mut self) {
        for worker in 0..self.workers.len() {
            for (shard, batch) in std::mem::take(&mut self.workers[worker].batches) {
                let what = What::DownlinkMail(worker, shard.index());
                for item in batch.items {
                    let lane = &mut self.downlinks[worker][shard.index()];
                    lane.push(&mut self.scene, item, MAIL_MICROS, what);
                }
            }
            for link in std::mem::take(&mut self.workers[worker].wishes) {
                self.connect_link(worker, link);
            }
        }
    }

    /// A SYN to the backend goes out: answered, refused or lost.
    fn connect_link(&mut self, worker: usize, link: LinkIndex) {
        let pipe = self.pipes.len();
        self.pipes.push(Pipe::new(&mut self.scene, Caller::Link(worker)));
        self.workers[worker].on_connecting(link, pipe);
        let refused = self.scene.faults.link_refused;
        let is_away = self.scene.now < self.endpoint_away_until && !self.scene.faults.is_calm;
        if is_away || self.scene.fault(refused) {
            self.scene.coverage.link_refusals += 1;
            return self.scene.within(20, What::LinkLost(worker, pipe));
        }
        if self.scene.fault(refused) {
            self.scene.coverage.link_syns_lost += 1;
            return;
        }
        self.scene.within(20, What::LinkConnected(worker, pipe));
        self.scene.within(20, What::LinkAccepted(pipe));
        let (life, stall) = (self.scene.faults.link_life_ms, self.scene.faults.link_stall);
        if life > 0 && !self.scene.faults.is_calm {
            self.scene.within(2 * life, What::LinkDies(worker, pipe));
        }
        if self.scene.fault(stall) {
            self.scene.within(5_000, What::Stall(pipe));
        }
    }

    /// A turn of the backend, and room that it made in the links.
    pub(crate) fn backend_turn(&mut self) {
        self.backend.turn(&mut self.scene, &mut self.pipes);
        for pipe in std::mem::take(&mut self.backend.unblocked) {
            if let Caller::Link(worker) = self.pipes[pipe].caller {
                self.workers[worker].on_writable(&mut self.scene, pipe);
            }
        }
    }

    pub(crate) fn handle_link(&mut self, what: What) {
        match what {
            What::LinkConnected(worker, pipe) => self.workers[worker].on_connected(&mut self.scene, pipe),
            What::LinkAccepted(pipe) if !self.pipes[pipe].is_broken() => {
                self.backend.accept(&mut self.scene, &mut self.pipes, pipe);
            }
            What::LinkDies(worker, pipe) if !self.scene.faults.is_calm && self.workers[worker].has(pipe) => {
                self.scene.coverage.link_deaths += 1;
                self.pipes[pipe].break_off(&mut self.scene);
                let (silent, away) = (self.scene.faults.link_silent, self.scene.faults.link_away_ms_max);
                if self.scene.random.one_in(2) {
                    self.endpoint_away_until = self.scene.now + self.scene.micros(away * 1_000);
                }
                if self.scene.fault(silent) {
                    self.scene.coverage.link_silent_deaths += 1;
                } else {
                    self.scene.within(1_000, What::LinkLost(worker, pipe));
                }
                // The backend may never hear of it, but for the silence.
                if self.scene.random.one_in(3) {
                    self.scene.within(1_000, What::GatewayGone(pipe));
                }
            }
            What::LinkLost(worker, pipe) => self.workers[worker].on_lost(&mut self.scene, pipe),
            _ => {}
        }
    }

    /// All of the backend but what is durable is gone.
    pub(crate) fn kill_backend(&mut self) {
        self.scene.coverage.backend_deaths += 1;
        self.backend.die(&mut self.scene, &mut self.pipes);
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
