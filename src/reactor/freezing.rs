//! A reactor that stands still, is written down, and goes on in another process (`docs/handover.md`).

use super::{Reactor, ReactorParts, Streams};
use crate::crew::Unit;
use crate::freeze;
use crate::shard::{Outputs, Settings, Shard};
use crate::snapshot::{Item, Records, Section, SnapshotError, SocketRef, SocketsRecord};
use crate::sys::sockets;
use crossbeam_channel::Sender;
use mio::{Poll, Registry};
use moorline_net::stream::Stream;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::{Duration, Instant};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

/// Gives a connection's socket, watched by the reactor's poll.
pub type TakeWatched<'a> = dyn FnMut(&Registry, ConnKey, &SocketRef) -> io::Result<Stream> + 'a;

/// Descriptors in one record.
const SOCKETS_PER_RECORD: usize = 4096;

impl Unit for Reactor {
    fn poll_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn timeout(&mut self) -> Duration {
        self.time_to_wait()
    }

    fn turn(&mut self, timeout: Duration) -> io::Result<bool> {
        self.run_turn(timeout)
    }

    fn resume(&mut self, unix_base_nanos: u64) {
        self.now = (self.clock)();
        self.newcomers = None;
        self.shard.handle_thawed(unix_base_nanos);
    }

    fn step(&mut self) -> bool {
        let mut is_busy = self.is_handing_over();
        while let Some(mail) = self.inbox.try_recv() {
            is_busy = true;
            self.handle_one_mail(self.now, mail);
            self.release();
        }
        self.apply_holds();
        self.check_send_queues(self.now);
        self.release();
        self.half_close();
        self.hand_over();
        is_busy || self.is_handing_over()
    }

    fn freeze(&mut self, out: &mut Section) -> io::Result<()> {
        let Self {
            poll: _,
            shard,
            listener: _, // the gateway's, like its door
            clock: _,
            inbox: _, // empty, like what would be handed over
            reactors: _,
            outboxes: _,
            board: _,
            limit_log: _,
            read_budget: _,
            accept_budget: _,
            streams,
            outputs: _,
            ready: _, // every socket is looked at anew
            leaving: _,
            read_block: _,
            write_block: _,
            turns: _,
            now: _,
            is_stopping: _,
            events: _,
            newcomers,
        } = self;
        shard.freeze(out);
        let keys: Vec<ConnKey> = shard.with_sockets().collect();
        for keys in keys.chunks(SOCKETS_PER_RECORD) {
            let mut record = SocketsRecord::default();
            for key in keys {
                let stream = streams.get(*key).ok_or(io::ErrorKind::NotConnected)?;
                let is_known = newcomers.as_ref().is_some_and(|newcomers| !newcomers.contains(key));
                let (fd, cookie) = if is_known { (stream.as_raw_fd(), 0) } else { sockets::name_of(stream)? };
                record.keys.push(key.as_u64());
                record.fds.push(fd);
                record.cookies.push(cookie);
            }
            out.put(Item::Sockets(record));
        }
        Ok(())
    }
}

impl Reactor {
    pub(super) fn list(&mut self, reply: &Sender<Vec<(ConnKey, RawFd)>>) {
        let fd_of = |key: ConnKey| Some((key, self.streams.get(key)?.as_raw_fd()));
        let all = self.shard.with_sockets().filter_map(fd_of).collect();
        if reply.try_send(all).is_ok() {
            self.newcomers = Some(HashSet::new());
        }
    }

    /// A connection got its socket.
    pub(super) fn note_newcomer(&mut self, key: ConnKey) {
        if self.newcomers.is_some() && !freeze::is_shared() {
            self.newcomers = None; // nobody asks any more
        }
        if let Some(newcomers) = &mut self.newcomers {
            newcomers.insert(key);
        }
    }

    fn is_handing_over(&self) -> bool {
        !self.leaving.is_empty()
            || !self.outputs.forwards.is_empty()
            || self.outboxes.iter().any(super::Outbox::is_waiting)
            || self.outputs.uplinks.iter().any(|items| !items.is_empty())
    }

    /// This socket is nobody's any more.
    pub fn unwatch(&self, socket: &mut Stream) {
        socket.deregister(self.poll.registry()).ok(); // it may be gone already
    }

    /// The gateway's time stood still: Unix time did not.
    pub const fn handle_thawed(&mut self, unix_base_nanos: u64) {
        self.shard.handle_thawed(unix_base_nanos);
    }

    /// A reactor that goes on where another process's was. Its sockets are watched, and not yet read or written.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn thaw(
        poll: Poll,
        settings: Settings,
        parts: ReactorParts,
        now: Instant,
        records: &mut Records,
        take: &mut TakeWatched<'_>,
    ) -> Result<Self, SnapshotError> {
        let mut outputs = Outputs::new(settings.workers);
        let mut sockets = Vec::new();
        let keep = |item| match item {
            Item::Sockets(record) => {
                sockets.push(record);
                Ok(())
            }
            _ => Err(SnapshotError::Unknown { section: "a shard's section".into() }),
        };
        let shard = Shard::thaw(settings.clone(), now, records, &mut outputs, keep)?;
        let problem = |error: io::Error| records.contradiction(format!("a socket: {error}"));
        let mut reactor = Self::new(poll, settings, parts).map_err(problem)?;
        (reactor.shard, reactor.outputs, reactor.now) = (shard, outputs, now);
        let mut streams = Streams::default();
        for SocketsRecord { keys, fds, cookies } in sockets {
            for ((key, fd), cookie) in keys.into_iter().zip(fds).zip(cookies) {
                let key = ConnKey::from_u64(key);
                let socket =
                    take(reactor.poll.registry(), key, &SocketRef { fd, cookie }).map_err(problem)?;
                reactor.listener.readmit(&socket, now);
                streams.insert(key, socket);
            }
        }
        reactor.streams = streams;
        let has_socket = |key: &ConnKey| reactor.streams.get(*key).is_some();
        if let Some(key) = reactor.shard.with_sockets().find(|key| !has_socket(key)) {
            return Err(records.contradiction(format!("{key:?} has no socket")));
        }
        reactor.apply_holds();
        Ok(reactor)
    }
}
