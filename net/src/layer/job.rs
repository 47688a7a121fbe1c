//! The arithmetic of handshakes, as jobs for threads that serve nobody else.
//!
//! Allocations stay with their thread: the job's memory is the owner's, and the thread frees what it allocates, except a
//! handshake in the middle. Otherwise the owner would free a thread's small blocks and make lasting things of them, and
//! these would keep whole pages of past handshakes in memory, 7 KiB each: with 15,000 connections that was 1 MiB.
//!
//! Run-through: a client's 1,500 bytes of ClientHello go into a job. The thread begins a handshake with them, which comes
//! back in the job's memory, with 1,900 bytes for the client.

use crate::tls::{Client, Established, Handshake, HandshakeError, Progress, Records, Server};
use bytes::Bytes;
use std::sync::Arc;

/// Room for what answers a Finished, in bytes: a ticket. What answers a ClientHello is too long to become something small.
const ANSWER_BYTES: usize = 512;

/// A handshake that this end begins: its settings, and the name that the server has to have.
pub(super) type Dial = Box<(Arc<Client>, String)>;

/// The arithmetic of one step of a handshake, for a thread that serves nobody else. Its memory belongs to the owner's thread,
/// and comes back with the result.
#[derive(Debug)]
pub struct Job(pub(super) Box<Work>);

#[derive(Debug)]
pub(super) struct Work {
    pub(super) handshake: Begun,
    /// Bytes of the peer; behind the handshake, those that belong to the records.
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    pub(super) outcome: Result<Next, HandshakeError>,
}

#[derive(Debug)]
pub(super) enum Begun {
    /// Not yet, by the peer, which has sent these bytes.
    ByPeer(Bytes),
    /// Not yet, by this end.
    Dial(Dial),
    Already(Box<Handshake>),
    /// A thread has it.
    Away,
}

/// The result of a [`Job`].
#[derive(Debug)]
pub struct JobResult(pub(super) Box<Work>);

#[derive(Debug)]
pub(super) enum Next {
    /// No thread has looked yet.
    Nothing,
    More(Box<Handshake>),
    Done(Finished),
}

/// A handshake that has ended well.
#[derive(Debug)]
pub struct Finished {
    pub(super) records: Records,
    /// DNS names in the peer's certificate, in lower case; empty without one.
    pub peer_names: Vec<String>,
    /// The client came with a ticket.
    pub is_resumed: bool,
}

impl Job {
    pub(super) fn new(handshake: Begun, input: Vec<u8>) -> Self {
        let output = Vec::with_capacity(if input.is_empty() { 0 } else { ANSWER_BYTES });
        Self(Box::new(Work { handshake, input, output, outcome: Ok(Next::Nothing) }))
    }

    /// Does the arithmetic: up to a millisecond. `server`: for an opening that a peer began.
    pub fn run(self, server: Option<&Server>) -> JobResult {
        let Self(mut work) = self;
        work.outcome = work.advance(server);
        JobResult(work)
    }
}

impl Work {
    fn advance(&mut self, server: Option<&Server>) -> Result<Next, HandshakeError> {
        let (mut handshake, hello) = match (std::mem::replace(&mut self.handshake, Begun::Away), server) {
            (Begun::Already(handshake), _) => (handshake, Bytes::new()),
            (Begun::Dial(dial), _) => (Box::new(dial.0.handshake(&dial.1)?), Bytes::new()),
            (Begun::ByPeer(hello), Some(server)) => (Box::new(server.handshake()?), hello),
            (Begun::ByPeer(_), None) | (Begun::Away, _) => return Err(HandshakeError::Ended),
        };
        let input = if hello.is_empty() { &self.input } else { &hello[..] };
        Ok(match handshake.advance(input, &mut self.output)? {
            Progress::Done(done) => {
                let Established { records, leftover, peer_names, is_resumed, .. } = *done;
                self.input.clear();
                self.input.extend_from_slice(&leftover);
                Next::Done(Finished { records, peer_names, is_resumed })
            }
            Progress::More => {
                self.input.clear();
                Next::More(handshake)
            }
        })
    }
}

impl JobResult {
    /// Returns the handshake that has ended well.
    pub const fn finished(&self) -> Option<&Finished> {
        match &self.0.outcome {
            Ok(Next::Done(done)) => Some(done),
            _ => None,
        }
    }
}
