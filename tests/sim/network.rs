//! Network between the parts: connections between clients and the gateway, links between workers
//! and the backend.

use crate::bridge::Heard;
use crate::pipe::{Caller, Delivery, Pipe, PipeId, Place, Way};
use crate::scene::What;
use crate::world::World;

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
            Caller::Link(worker) => self.hear_link(worker, id, delivery),
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
                match self.pipes[id].place {
                    Place::On(shard, key) => self.reactors[shard].on_readable(&mut self.scene, key),
                    Place::Host(link) => self.backend.on_readable(&mut self.scene, link),
                    Place::Backlog | Place::Moving | Place::Closed => {}
                }
            }
            _ => {}
        }
    }

    /// Messages of workers and backend start their way.
    pub(crate) fn deliver_mail(&mut self) {
        for worker in 0..self.workers.len() {
            for (shard, item) in std::mem::take(&mut self.workers[worker].to_shards) {
                let lane = &mut self.downlinks[worker][shard.index()];
                let what = What::DownlinkMail(worker, shard.index());
                lane.push(&mut self.scene, item, MAIL_MICROS, what);
            }
            for item in std::mem::take(&mut self.workers[worker].to_backend) {
                self.bridges[worker].say(item);
            }
            self.bridges[worker].flush(&mut self.scene, &mut self.pipes);
        }
    }

    /// A turn of the backend, and room that it made in the links.
    pub(crate) fn backend_turn(&mut self) {
        self.backend.turn(&mut self.scene, &mut self.pipes);
        // What a bridge holds back goes out with the mail.
        self.backend.unblocked.clear();
    }

    pub(crate) fn handle_link(&mut self, what: What) {
        match what {
            What::LinkComes(worker) => {
                let pipe = self.pipes.len();
                let caller = Caller::Link(worker);
                self.pipes.push(Pipe::new(&mut self.scene, caller));
                self.bridges[worker].connect(pipe);
                self.scene.within(20, What::LinkAccepted(pipe));
                let (life, stall) = (self.scene.faults.link_life_ms, self.scene.faults.link_stall);
                if life > 0 && !self.scene.faults.is_calm {
                    self.scene.within(2 * life, What::LinkDies(worker, pipe));
                }
                if self.scene.fault(stall) {
                    self.scene.within(5_000, What::Stall(pipe));
                }
            }
            What::LinkAccepted(pipe) if !self.pipes[pipe].is_broken() => {
                self.backend.accept(&mut self.scene, &mut self.pipes, pipe);
            }
            What::LinkDies(worker, pipe)
                if !self.scene.faults.is_calm && self.bridges[worker].pipe == Some(pipe) =>
            {
                self.scene.coverage.link_deaths += 1;
                self.pipes[pipe].break_off(&mut self.scene);
                // Bytes that arrived are read before another link can be made.
                if let Place::Host(link) = self.pipes[pipe].place {
                    self.backend.on_readable(&mut self.scene, link);
                }
                self.scene.within(1_000, What::LinkLost(worker, pipe));
                // The backend may never hear of it, but for the silence.
                if self.scene.random.one_in(3) {
                    self.scene.within(1_000, What::GatewayGone(pipe));
                }
            }
            What::LinkLost(worker, pipe) if self.bridges[worker].pipe == Some(pipe) => {
                self.lose_link(worker, pipe);
            }
            _ => {}
        }
    }

    /// The gateway's end of a link has ended.
    fn lose_link(&mut self, worker: usize, pipe: PipeId) {
        self.pipes[pipe].is_client_open = false;
        self.pipes[pipe].finish(&mut self.scene, pipe, Way::Up);
        if std::mem::take(&mut self.bridges[worker]).is_open {
            self.workers[worker].on_link_down(&mut self.scene);
        }
        let away = self.scene.faults.link_away_ms_max;
        self.scene.within(away, What::LinkComes(worker));
    }

    fn hear_link(&mut self, worker: usize, pipe: PipeId, delivery: Delivery) {
        if self.bridges[worker].pipe != Some(pipe) {
            return;
        }
        for heard in self.bridges[worker].hear(delivery.bytes) {
            match heard {
                Heard::Opened => self.workers[worker].on_link_up(),
                Heard::Item(item) => self.workers[worker].handle_backend(&mut self.scene, item),
            }
        }
        if delivery.is_end {
            self.lose_link(worker, pipe);
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
