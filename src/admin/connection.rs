//! One visitor: reads a request, writes the answer, lets the peer close.
//!
//! ```text
//! Reading --head complete or refused--> Writing --all written--> Lingering --peer closed--> gone
//! ```
//! Every state ends at the deadline. Lingering reads and drops what else arrives, because closing
//! over unread bytes would reset the connection and could take the answer with it.

use super::routes::{Reply, Routes};
use mio::net::TcpStream;
use moorline_proto::time::Instant;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// It is closed then, whatever it does.
    pub(super) deadline: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading { received: Vec<u8> },
    Writing { answer: Vec<u8>, written: usize },
    Lingering,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It waits for the socket.
    Waits,
    /// Close it: the peer has its answer or left.
    Ended,
}

impl Connection {
    pub(super) const fn new(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline, state: State::Reading { received: Vec::new() } }
    }

    /// Whether its request was never complete.
    pub(super) const fn is_unasked(&self) -> bool {
        matches!(self.state, State::Reading { .. })
    }

    /// Does what the socket allows now; stops at "would block" only, as edge triggering demands.
    /// Calls `on_answer` when there is an answer, before the peer can hear it.
    pub(super) fn handle_ready(
        &mut self,
        routes: &Routes,
        bytes_max: usize,
        on_answer: impl FnMut(),
    ) -> Progress {
        match self.advance(routes, bytes_max, on_answer) {
            Ok(progress) => progress,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Waits,
            Err(_) => Progress::Ended,
        }
    }

    fn advance(
        &mut self,
        routes: &Routes,
        bytes_max: usize,
        mut on_answer: impl FnMut(),
    ) -> io::Result<Progress> {
        let mut chunk = [0; 2048];
        loop {
            match &mut self.state {
                State::Reading { received } => {
                    let wanted = chunk.len().min(bytes_max - received.len());
                    let count = retry(|| self.stream.read(&mut chunk[..wanted]))?;
                    if count == 0 {
                        return Ok(Progress::Ended);
                    }
                    received.extend_from_slice(&chunk[..count]);
                    if let Reply::Done(answer) = routes.handle(received, bytes_max) {
                        on_answer();
                        self.state = State::Writing { answer, written: 0 };
                    }
                }
                State::Writing { answer, written } if *written < answer.len() => {
                    let count = retry(|| self.stream.write(&answer[*written..]))?;
                    *written += count;
                    if count == 0 {
                        return Ok(Progress::Ended);
                    }
                }
                State::Writing { .. } => {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.state = State::Lingering;
                }
                State::Lingering => {
                    if retry(|| self.stream.read(&mut chunk))? == 0 {
                        return Ok(Progress::Ended);
                    }
                }
            }
        }
    }
}

fn retry(mut operation: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
