//! What a reactor is made of, and what it is told.

use super::Door;
use crate::handoff::{DownlinkBatch, UplinkBatch};
use crate::metrics::Board;
use crate::shard::{DrainOrder, Transfer};
use mio::net::TcpListener;
use moorline_net::mailbox::{Receiver, Sender};
use moorline_net::stream::Stream;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;
use std::os::fd::RawFd;
use std::sync::Arc;

/// What arrives in a reactor's mailbox.
#[derive(Debug)]
pub enum ReactorMail {
    /// From a worker.
    Downlink(DownlinkBatch),
    /// A logged-in connection comes home.
    Move(Stream, Box<Transfer>),
    /// A newcomer that waited at an address that is not listened at any more.
    Newcomer(Stream),
    /// Name the sockets that are here. Those that come later are told apart from now on.
    List(crossbeam_channel::Sender<Vec<(ConnKey, RawFd)>>),
    /// Ask the clients to leave; let nobody in.
    Drain(DrainOrder),
    /// Let clients in again: the socket listens.
    Undrain,
    /// Close all connections, then end.
    Stop,
}

/// The fixed parts of a reactor, beside its shard's settings.
#[derive(Debug)]
pub struct ReactorParts {
    /// The listening socket, shared with the other reactors.
    pub listener: TcpListener,
    /// Who may come in, shared with the other reactors.
    pub door: Arc<Door>,
    /// Reads the clock.
    pub clock: fn() -> Instant,
    /// This reactor's mailbox.
    pub inbox: Receiver<ReactorMail>,
    /// Mailboxes of all reactors, by shard.
    pub reactors: Vec<Sender<ReactorMail>>,
    /// Mailboxes of all workers.
    pub workers: Vec<Sender<UplinkBatch>>,
    /// Where the numbers are published.
    pub board: Arc<Board>,
    /// Bytes read from one connection before others have their turn.
    pub read_budget: usize,
    /// Connections accepted in one turn.
    pub accept_budget: usize,
}
