//! The router's orders, performed on sockets and mailboxes.

use super::Worker;
use super::dial::Dial;
use crate::messages::{DownlinkBatch, ITEMS_RUN_MAX};
use crate::metrics::names;
use crate::router::{Connected, Failure, LinkIndex, Load, Output};
use moorline_proto::ids::ShardId;
use moorline_proto::link::NONCE_BYTES;
use std::io;
use std::sync::PoisonError;

impl Worker {
    /// Performs all orders of the router, in order.
    pub(super) fn perform(&mut self) {
        self.make_room();
        // The latest batch comes last: this thread may then run its reactor.
        let (mut last, mut has_others) = (None, false);
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Connect { link, endpoint } => self.connect(link, &endpoint),
                Output::Close(link) => self.hang_up(link),
                Output::Write(link) => self.write(link),
                Output::Deliver { shard, batch } => {
                    if let Some((shard, batch)) = last.replace((shard, batch)) {
                        has_others = true;
                        self.deliver(shard, batch, false);
                    }
                }
                Output::MeasureLoad => self.measure_load(),
            }
        }
        if let Some((shard, batch)) = last {
            let may_run = !has_others && batch.items.len() <= ITEMS_RUN_MAX && self.mailbox.is_empty();
            self.deliver(shard, batch, may_run);
        }
    }

    /// Has a place for the socket of each link: nodes of a cluster may have named others.
    pub(super) fn make_room(&mut self) {
        let links = self.router.links().count();
        self.sockets.resize_with(links, || None);
        self.dials.resize_with(links, Dial::default);
    }

    /// Frames can be exchanged: looks at the user id at the other end of a Unix socket, and has the router greet.
    pub(super) fn greet(&mut self, link: LinkIndex) {
        let Some(socket) = &self.sockets[link.index()] else { return };
        let (mut nonce, is_encrypted) = ([0; NONCE_BYTES], socket.is_encrypted());
        let looked = socket.is_known(&self.peer_uids).and_then(|is_known| {
            getrandom::fill(&mut nonce).map_err(io::Error::from)?;
            Ok((is_known, socket.is_loopback()?))
        });
        match looked {
            Ok((is_known, is_loopback)) => {
                let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner);
                let connected = Connected {
                    trust: credentials.trust.clone(),
                    nonce,
                    is_known: is_known || is_encrypted,
                    is_encrypted,
                    is_loopback,
                    unix_base_nanos: self.unix_base_nanos,
                };
                drop(credentials);
                self.router.handle_link_connected(self.now, link, connected);
            }
            Err(error) => self.lose(link, &error.into()),
        }
    }

    fn write(&mut self, link: LinkIndex) {
        let Some(socket) = &mut self.sockets[link.index()] else { return };
        match socket.write(self.router.link_output(link), &mut self.scratch) {
            Ok(sent) => self.router.handle_link_sent(self.now, link, sent),
            Err(error) => {
                let why = socket.reason(error, &mut self.block, self.now);
                self.lose(link, &why);
            }
        }
    }

    /// The connection of a link is gone, or was never made.
    pub(super) fn lose(&mut self, link: LinkIndex, why: &Failure) {
        self.hang_up(link);
        self.router.handle_link_closed(self.now, link, why);
    }

    fn deliver(&mut self, shard: ShardId, batch: DownlinkBatch, may_run: bool) {
        if let Err(batch) = self.shards[shard.index()].try_deliver(batch, may_run) {
            self.router.handle_batch_refused(shard, batch);
        }
    }

    fn measure_load(&mut self) {
        let Some(registry) = &self.registry else { return };
        let sum = |name| u32::try_from(registry.sum(name)).unwrap_or(u32::MAX);
        self.router.handle_load(Load {
            connections: sum(names::CONNECTIONS),
            sessions: sum(names::SESSIONS),
            detached: sum("detached"),
            queued_bytes: registry.sum("queued_bytes"),
        });
    }
}
