//! The gateway's ends of the pipes, as the shipped executor uses sockets.

use crate::pipe::{Pipe, PipeId, Place, Read, Way};
use crate::scene::Scene;
use crate::tap::Claims;
use moorline::shard::{self, Shard, Transfer, Written};
use moorline_proto::ids::ConnKey;
use std::collections::{BTreeMap, VecDeque};

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 64 << 10;

struct Stream {
    pipe: PipeId,
    is_writable: bool,
    is_ready: bool,
    is_paused: bool,
}

/// The open sockets of one reactor.
pub(crate) struct Sockets {
    reactor: usize,
    streams: BTreeMap<ConnKey, Stream>,
    /// Connections that may have bytes to read.
    pub(crate) ready: VecDeque<ConnKey>,
    /// Connections on their way to another reactor.
    pub(crate) leaving: Vec<(PipeId, Box<Transfer>)>,
    /// SENDACKs on the wire, for the backend to confirm.
    pub(crate) claims: Claims,
}

impl Sockets {
    pub(crate) fn new(reactor: usize) -> Self {
        let (streams, ready, leaving, claims) = (BTreeMap::new(), VecDeque::new(), Vec::new(), Claims::new());
        Self { reactor, streams, ready, leaving, claims }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = ConnKey> {
        self.streams.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    pub(crate) fn pipe(&self, key: ConnKey) -> Option<PipeId> {
        self.streams.get(&key).map(|stream| stream.pipe)
    }

    pub(crate) fn is_paused(&self, key: ConnKey) -> bool {
        self.streams[&key].is_paused
    }

    pub(crate) fn is_writable(&self, key: ConnKey) -> bool {
        self.streams[&key].is_writable
    }

    /// Notes that a socket may have bytes to read. False: there is no such socket.
    pub(crate) fn set_ready(&mut self, key: ConnKey) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        if !std::mem::replace(&mut stream.is_ready, true) {
            self.ready.push_back(key);
        }
        true
    }

    /// Notes that a socket has room. False: that was known, or there is no such socket.
    pub(crate) fn set_writable(&mut self, key: ConnKey) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        !std::mem::replace(&mut stream.is_writable, true)
    }

    /// Attaches a pipe to a connection. An edge follows the registration of a socket that is ready.
    pub(crate) fn attach(&mut self, pipes: &mut [Pipe], key: ConnKey, pipe: PipeId) {
        pipes[pipe].place = Place::On(self.reactor, key);
        let is_ready = pipes[pipe].is_readable();
        if is_ready {
            self.ready.push_back(key);
        }
        let older = self.streams.insert(key, Stream { pipe, is_writable: true, is_ready, is_paused: false });
        assert!(older.is_none(), "a key is given once");
    }

    /// Reads once. True beside the bytes: the client, who waited for room, may write again.
    pub(crate) fn read(
        &mut self,
        scene: &mut Scene,
        pipes: &mut [Pipe],
        key: ConnKey,
    ) -> Option<(PipeId, Read, bool)> {
        let stream = self.streams.get_mut(&key)?;
        stream.is_ready = false;
        if stream.is_paused {
            return None;
        }
        let pipe = &mut pipes[stream.pipe];
        let (read, has_room) = pipe.read(scene);
        if let Read::Bytes(bytes) = &read {
            pipe.tap.hear_up(scene.now, bytes, &mut scene.coverage);
            stream.is_ready = pipe.is_readable();
            if stream.is_ready {
                self.ready.push_back(key);
            }
        }
        Some((stream.pipe, read, has_room))
    }

    /// Panics unless the last frame of a connection ends its pipe.
    pub(crate) fn check(&self, pipes: &mut [Pipe]) {
        for stream in self.streams.values() {
            let pipe = &mut pipes[stream.pipe];
            assert!(!pipe.tap.is_over() || pipe.is_finished(Way::Down), "nothing follows the last frame");
        }
    }
}

/// A reactor's sockets together with the pipes and the scene.
pub(crate) struct Simulated<'a> {
    pub(crate) sockets: &'a mut Sockets,
    pub(crate) scene: &'a mut Scene,
    pub(crate) pipes: &'a mut [Pipe],
}

impl Simulated<'_> {
    /// Writes to a pipe; answers how many bytes its kernel took.
    fn send(&mut self, id: PipeId, bytes: &[u8]) -> usize {
        let pipe = &mut self.pipes[id];
        let sent = pipe.write(self.scene, id, Way::Down, bytes);
        pipe.tap.hear_down(&bytes[..sent], &mut self.scene.coverage, &mut self.sockets.claims);
        sent
    }
}

impl shard::Sockets for Simulated<'_> {
    fn write(&mut self, key: ConnKey, shard: &Shard) -> Written {
        let Some(Stream { pipe, is_writable, .. }) = self.sockets.streams.get(&key) else {
            return Written::Nothing;
        };
        let (pipe, is_writable) = (*pipe, *is_writable);
        if !is_writable {
            return Written::Blocked;
        }
        let bytes_max = [1, 40, WRITE_BYTES][self.scene.index(3)];
        let mut bytes = Vec::new();
        shard.gather(key, &mut bytes, bytes_max);
        if bytes.is_empty() {
            return Written::Nothing;
        }
        let sent = self.send(pipe, &bytes);
        let is_writable = sent == bytes.len();
        self.sockets.streams.get_mut(&key).expect("just seen").is_writable = is_writable;
        if is_writable && sent < bytes_max { Written::Fully(sent) } else { Written::Partly(sent) }
    }

    fn write_final(&mut self, key: ConnKey, bytes: &[u8]) {
        let pipe = self.sockets.pipe(key).expect("a socket that is to be closed is open");
        self.send(pipe, bytes);
    }

    fn set_code(&mut self, _key: ConnKey, _code: u32) {}

    fn half_close(&mut self, key: ConnKey) {
        if let Some(pipe) = self.sockets.pipe(key) {
            self.pipes[pipe].finish(self.scene, pipe, Way::Down);
        }
    }

    fn close(&mut self, key: ConnKey) {
        if let Some(Stream { pipe, .. }) = self.sockets.streams.remove(&key) {
            self.pipes[pipe].place = Place::Closed;
            self.pipes[pipe].finish(self.scene, pipe, Way::Down);
        }
    }

    fn reattach(&mut self, from: ConnKey, to: ConnKey) -> bool {
        let stream = self.sockets.streams.remove(&from).expect("it has just said HELLO");
        self.sockets.attach(self.pipes, to, stream.pipe);
        true
    }

    fn move_away(&mut self, key: ConnKey, transfer: Box<Transfer>) {
        if let Some(Stream { pipe, .. }) = self.sockets.streams.remove(&key) {
            self.pipes[pipe].place = Place::Moving;
            self.sockets.leaving.push((pipe, transfer));
        }
    }

    fn set_paused(&mut self, key: ConnKey, is_paused: bool) {
        let Some(stream) = self.sockets.streams.get_mut(&key) else { return };
        stream.is_paused = is_paused;
        if !is_paused {
            self.sockets.set_ready(key);
        }
    }

    fn undelivered(&self, key: ConnKey) -> Option<usize> {
        Some(self.pipes[self.sockets.pipe(key)?].undelivered())
    }
}
