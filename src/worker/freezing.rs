//! A worker in a thread group, and the sockets of its links in a snapshot (`docs/handover.md`).

use super::Worker;
use super::socket::Socket;
use super::token::Source;
use crate::router::{self, LinkSocket};
use crate::snapshot::{LayerRecord, Records, Section, SnapshotError, SocketRef};
use crate::sys::sockets;
use crate::thread_group::EventLoop;
use bytes::Bytes;
use mio::Events;
use moorline_net::baton::TryRun;
use moorline_net::layer::{FrozenLayer, Layer};
use moorline_net::stream::Stream;
use moorline_proto::time::Instant;
use std::io;
use std::sync::Weak;

/// Gives the socket that a snapshot names.
pub(super) type TakeSocket<'a> = dyn FnMut(&SocketRef) -> io::Result<Stream> + 'a;

impl EventLoop for Worker {
    const EVENTS_MAX: usize = super::turn::EVENTS_PER_TURN;

    fn set_event_loop(&self, event_loop: Weak<dyn TryRun>) {
        self.mailbox.set_event_loop(event_loop);
    }

    fn sleep_until(&mut self) -> Option<Instant> {
        self.time_of_waking()
    }

    fn turn(&mut self, events: Option<&Events>) -> bool {
        self.run_turn(events)
    }

    fn clock(&self) -> Instant {
        self.clock.now()
    }

    fn resume(&mut self, unix_base_nanos: u64) {
        self.unix_base_nanos = unix_base_nanos;
        // Behind a restart that was undone, or in the process that takes over: only this process seals from here on.
        self.sockets.iter_mut().flatten().filter_map(Socket::layer).for_each(Layer::resume);
    }

    fn step(&mut self) -> bool {
        let mut is_busy = self.router.has_items() || self.router.has_logins();
        while let Some(batch) = self.mailbox.try_recv() {
            is_busy = true;
            self.router.handle_uplink(self.now, batch);
        }
        self.router.handle_logins(self.now, self.clock.unix_seconds(), usize::MAX);
        self.router.hand_over();
        self.perform();
        is_busy || self.router.has_items()
    }

    fn queued_bodies(&mut self, _with_partials: bool, found: &mut Vec<Bytes>) {
        router::queued_bodies(&self.router, found);
    }

    fn freeze(&mut self, out: &mut Section) -> io::Result<()> {
        let sockets = &mut self.sockets;
        self.router.freeze(out, &mut |link| {
            let socket = sockets[link.index()].as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let name = sockets::name_of(socket.stream())?.into();
            let frozen = socket.layer().map(Layer::freeze).transpose().map_err(io::Error::other)?;
            Ok((name, frozen.map(|frozen| LayerRecord::new(0, frozen))))
        })
    }
}

impl Worker {
    /// Continues the worker that wrote `records`, over the sockets that `take` gives.
    ///
    /// # Errors
    /// The records contradict each other, or a socket is not there.
    pub fn thaw(
        &mut self,
        records: &mut Records,
        now: Instant,
        take: &mut TakeSocket<'_>,
    ) -> Result<(), SnapshotError> {
        self.now = now;
        let sockets = self.router.thaw(now, records)?;
        self.make_room();
        for LinkSocket { link, socket, layer } in sockets {
            let layer = layer.map(|record| FrozenLayer::try_from(record).and_then(Layer::thaw)).transpose();
            // A link of which the handshake was not done is not written down.
            let layer =
                layer.map_err(|problem| records.contradiction(format!("TLS of a link: {problem}")))?;
            let adopt = || {
                let layer = layer.map(|layer| layer.unwrap_or_else(Layer::closed));
                let stream = take(&socket)?;
                if let Some(link) = link {
                    let token = Source::Link(link).into();
                    self.sockets[link.index()] = Some(Socket::adopt(stream, layer, &self.epoll, token)?);
                    self.note_adopted(link);
                }
                Ok::<_, io::Error>(())
            };
            adopt().map_err(|error| records.contradiction(format!("a link: {error}")))?;
        }
        // Nobody may see zeros before the first turn.
        self.counter_set.publish(self.router.counters().cells());
        Ok(())
    }
}
