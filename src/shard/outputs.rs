//! Everything that a shard asks of its owner, in the order of causes.
//!
//! Example: a client resumes its session while its old socket still looks alive. The shard emits
//! `FinalBytes(session, KICK)`, `Close(session)`, `Reattach { from: newcomer, to: session }` and
//! `Write(session)`. The owner performs them in this order, so that the KICK reaches the old socket and
//! WELCOME the new one.

use super::Transfer;
use crate::messages::{Downlink, Uplink};
use moorline_proto::ids::{ConnKey, ShardId};
use std::collections::VecDeque;

/// One operation on the socket of a connection. A key carries a generation: an operation whose connection
/// is gone does nothing.
#[derive(Debug)]
pub enum Output {
    /// The connection has bytes to write. The owner gathers them with [`super::Shard::gather`] when it
    /// writes, at the latest at the end of its turn; so several writes of one turn are one.
    Write(ConnKey),
    /// Bytes to write, as far as the socket takes them at once. [`Output::Close`] follows.
    FinalBytes(ConnKey, Box<[u8]>),
    /// The connection ends, and its last frame has this close code: for what stands between the socket and the frames.
    Ending(ConnKey, u32),
    /// The last byte is written: shut the writing half down.
    HalfClose(ConnKey),
    /// Close the socket. Its session may remain, and may get another socket.
    Close(ConnKey),
    /// The socket of `from` belongs to `to` from now on.
    Reattach {
        /// Connection that the socket was accepted for.
        from: ConnKey,
        /// Connection of the session that its client resumed.
        to: ConnKey,
    },
    /// Hand the socket over to another shard.
    Move(ConnKey, Box<Transfer>),
    /// Stop reading the socket: TCP slows its client down.
    PauseReads(ConnKey),
    /// Read the socket again.
    ResumeReads(ConnKey),
    /// Find out how many bytes the peer has not received, and answer with
    /// [`super::Shard::handle_send_queue`].
    CheckSendQueue(ConnKey),
}

const _: () = assert!(size_of::<Output>() <= 32, "one of these is queued for each write");

/// The outputs of one shard: operations on sockets in one ordered queue, and beside it batches for other
/// threads. The contract between a shard and its owner is in `docs/architecture.md`, "The contract of a pure
/// core".
#[derive(Debug, Default)]
pub struct Outputs {
    queue: VecDeque<Output>,
    /// One batch for each worker, in order.
    pub uplinks: Vec<Vec<Uplink>>,
    /// Messages for users whom another shard may own, in order.
    pub forwards: Vec<(ShardId, Downlink)>,
}

impl Outputs {
    /// No outputs, and an empty batch for each of `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { uplinks: (0..workers).map(|_| Vec::new()).collect(), ..Self::default() }
    }

    /// Takes the next operation; `None`: all were taken.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    /// The operations not yet taken, the next one first.
    pub fn iter(&self) -> impl Iterator<Item = &Output> {
        self.queue.iter()
    }

    pub(super) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }
}
