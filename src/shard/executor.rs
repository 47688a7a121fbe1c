//! Execution of a shard's [`Outputs`], written once: the reactor runs it on sockets, the simulator on pipes.
//!
//! Example: bob's shard takes three pushes for bob from the mailbox and one heartbeat from his socket. It
//! emits `Write(bob)` once. [`Executor::perform`] notes it; [`Executor::write`] at the end of the turn
//! gathers the three PUSHes and the PONG, and writes them with one system call.

use super::{Output, Outputs, Shard, Transfer};
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;

/// Writes to one connection in one turn.
const WRITES_MAX: usize = 4;

/// The sockets of one shard's connections. A method whose key has no socket does nothing.
pub trait Sockets {
    /// Gathers the next bytes of a connection and writes them once.
    fn write(&mut self, key: ConnKey, shard: &Shard) -> Written;
    /// Writes as many of `bytes` as the socket takes at once.
    fn write_final(&mut self, key: ConnKey, bytes: &[u8]);
    /// Notes the close code of the connection's last frame.
    fn set_code(&mut self, key: ConnKey, code: u32);
    /// Shuts the writing half down.
    fn half_close(&mut self, key: ConnKey);
    /// Closes the socket.
    fn close(&mut self, key: ConnKey);
    /// Gives the socket of `from` to `to`. False: there is no such socket, or it is broken.
    fn reattach(&mut self, from: ConnKey, to: ConnKey) -> bool;
    /// Takes the socket out, for the shard that `transfer` names.
    fn move_away(&mut self, key: ConnKey, transfer: Box<Transfer>);
    /// Stops reading the socket, or reads it again.
    fn set_paused(&mut self, key: ConnKey, is_paused: bool);
    /// Bytes that the peer has not received; `None`: there is no such socket.
    fn undelivered(&self, key: ConnKey) -> Option<usize>;
}

/// The outcome of one [`Sockets::write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was no socket, or nothing to write.
    Nothing,
    /// The socket takes nothing for now.
    Blocked,
    /// The socket took this number of bytes, and another write may do more at once.
    Partly(usize),
    /// The socket took this number of bytes, and they were all.
    Fully(usize),
    /// The connection is broken.
    Failed,
}

/// Performs the outputs of one shard. Its only state are the writes that wait for the end of the turn.
#[derive(Debug, Default)]
pub struct Executor {
    writes: Vec<ConnKey>,
}

impl Executor {
    /// Performs all outputs in order. Writes are noted for [`Self::write`].
    pub fn perform(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        outputs: &mut Outputs,
        sockets: &mut impl Sockets,
    ) {
        while let Some(output) = outputs.poll_output() {
            match output {
                Output::Write(key) => self.writes.push(key),
                Output::FinalBytes(key, bytes) => sockets.write_final(key, &bytes),
                Output::Ending(key, code) => sockets.set_code(key, code),
                Output::HalfClose(key) => sockets.half_close(key),
                Output::Close(key) => sockets.close(key),
                Output::Reattach { from, to } => {
                    if !sockets.reattach(from, to) {
                        shard.handle_peer_closed(now, to, outputs);
                    }
                }
                Output::Move(key, transfer) => sockets.move_away(key, transfer),
                Output::PauseReads(key) => sockets.set_paused(key, true),
                Output::ResumeReads(key) => sockets.set_paused(key, false),
                Output::CheckSendQueue(key) => {
                    if let Some(undelivered) = sockets.undelivered(key) {
                        shard.handle_send_queue(now, key, undelivered, outputs);
                    }
                }
            }
        }
    }

    /// Performs all outputs, then writes once to each connection that has bytes, then performs what follows
    /// from the writes. A connection with more than a turn's share of bytes is written again in the next turn.
    pub fn write(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        outputs: &mut Outputs,
        sockets: &mut impl Sockets,
    ) {
        self.perform(now, shard, outputs, sockets);
        let mut writes = std::mem::take(&mut self.writes);
        for key in writes.drain(..) {
            self.write_to(now, key, shard, outputs, sockets);
        }
        writes.append(&mut self.writes);
        self.writes = writes;
        self.perform(now, shard, outputs, sockets);
    }

    /// Writes what a connection has, up to its share of one turn.
    pub fn write_to(
        &mut self,
        now: Instant,
        key: ConnKey,
        shard: &mut Shard,
        outputs: &mut Outputs,
        sockets: &mut impl Sockets,
    ) {
        for _ in 0..WRITES_MAX {
            match sockets.write(key, shard) {
                Written::Nothing => return,
                Written::Blocked => return shard.handle_sent(key, 0, outputs),
                Written::Fully(sent) => return shard.handle_sent(key, sent, outputs),
                Written::Partly(sent) => shard.handle_sent(key, sent, outputs),
                Written::Failed => return shard.handle_peer_closed(now, key, outputs),
            }
        }
        self.writes.push(key);
    }

    /// The socket of a connection takes bytes again.
    pub fn handle_writable(&mut self, key: ConnKey) {
        self.writes.push(key);
    }

    /// Returns whether a connection waits to be written.
    pub const fn is_waiting(&self) -> bool {
        !self.writes.is_empty()
    }
}
