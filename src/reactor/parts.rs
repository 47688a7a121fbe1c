//! The parts of a reactor, and the messages to it.

use super::stream::Socket;
use super::{Door, OpeningRules};
use crate::messages::{DownlinkBatch, UplinkBatch};
use crate::metrics::CounterSet;
use crate::shard::{DrainOrder, Settings, Transfer};
use mio::net::TcpListener;
use moorline_net::cap::CapWatch;
use moorline_net::clock::Clock;
use moorline_net::layer::{JobResult, OpeningKind};
use moorline_net::mailbox::{Receiver, Sender};
use moorline_net::stream::Stream;
use moorline_proto::ids::ConnKey;
use std::os::fd::RawFd;
use std::sync::Arc;

/// A message to a reactor.
#[derive(Debug)]
pub enum ReactorMail {
    /// Messages from a worker.
    Downlink(DownlinkBatch),
    /// A logged-in connection arrives from another shard.
    Move(Socket, Box<Transfer>),
    /// The result of a handshake's arithmetic.
    Handshaken(ConnKey, JobResult),
    /// A connection that waited at a listener which is closed, or has another kind now; the listener by whose limits it is
    /// judged, by number.
    Newcomer(Stream, OpeningKind, usize),
    /// Lists all open sockets. Sockets attached after this message are recorded, so that the snapshot can mark
    /// them as not yet inherited.
    List(crossbeam_channel::Sender<Vec<(ConnKey, RawFd)>>),
    /// Ask the clients to leave, and accept no connection.
    Drain(DrainOrder),
    /// Accept connections again: the socket listens.
    Undrain,
    /// Take over the limits of these settings that may change while the shard serves.
    Reload(Box<Settings>),
    /// Close all connections, then end.
    Stop,
}

/// The fixed parts of a reactor, beside its shard's settings.
#[derive(Debug)]
pub struct ReactorParts {
    /// The listening sockets by number, shared with the other reactors.
    pub listeners: Vec<TcpListener>,
    /// Rules for the exchange before the first frame.
    pub openings: OpeningRules,
    /// Admission limits, shared with the other reactors.
    pub door: Arc<Door>,
    /// Reads the clock.
    pub clock: Clock,
    /// This reactor's mailbox.
    pub inbox: Receiver<ReactorMail>,
    /// Mailboxes of all reactors, by shard.
    pub reactors: Vec<Sender<ReactorMail>>,
    /// Mailboxes of all workers.
    pub workers: Vec<Sender<UplinkBatch>>,
    /// CounterSet on which the counters are published.
    pub counter_set: Arc<CounterSet>,
    /// Cap on this reactor's sessions that wait for their clients.
    pub kept: Arc<CapWatch>,
    /// Bytes read from one connection in one turn at most.
    pub read_budget: usize,
    /// Connections accepted in one turn at most.
    pub accept_budget: usize,
}
