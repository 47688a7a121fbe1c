//! Part of one process: a job on the first line of standard input, orders on the next ones, news on
//! standard output.

use super::Word;
use crate::exit::{Exit, Failure};
use crate::fleet::{Order, Overseer, Second, Stop};
use crate::job::Job;
use moorline_proto::time::Instant;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// The longest job or order, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Does one part of a run for the process at the other end of the standard streams.
pub fn serve(stop: &Stop) -> Result<Exit, Failure> {
    let job = read_job()?;
    let stdin = std::io::stdin();
    fcntl(stdin.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|errno| Failure::io("read orders without waiting")(errno.into()))?;
    match job.run(&mut Pipe { unread: Vec::new() }, stop) {
        Ok(part) => {
            say(&Word::Done(Box::new(part)))?;
            Ok(Exit::Pass)
        }
        Err(failure) => {
            say(&Word::Failed { exit: failure.exit().code(), why: failure.to_string() })?;
            Ok(failure.exit())
        }
    }
}

/// Byte by byte: what follows the line belongs to the loop.
fn read_job() -> Result<Job, Failure> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let mut stdin = std::io::stdin().lock();
    while line.last() != Some(&b'\n') && line.len() < LINE_BYTES_MAX {
        match unbuffered(&mut stdin, &mut byte) {
            Ok(0) => break,
            Ok(_) => line.push(byte[0]),
            Err(error) => return Err(Failure::io("read the job")(error)),
        }
    }
    serde_json::from_slice(&line)
        .map_err(|error| Failure::Usage(format!("`moorload worker` is started by moorload only: {error}")))
}

/// `Stdin` has a buffer of its own, which would swallow orders that epoll then does not report.
fn unbuffered(stdin: &mut std::io::StdinLock<'_>, buffer: &mut [u8]) -> std::io::Result<usize> {
    nix::unistd::read(stdin.as_fd(), buffer).map_err(Into::into)
}

fn say(word: &Word) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(word).expect("words are plain data");
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).map_err(Failure::io("talk to the coordinator"))
}

struct Pipe {
    unread: Vec<u8>,
}

impl Overseer for Pipe {
    fn on_begin(&mut self) -> Result<(), Failure> {
        say(&Word::Began)
    }

    fn on_second(&mut self, second: Second) -> Result<Option<Order>, Failure> {
        say(&Word::Second(Box::new(second)))?;
        Ok(None)
    }

    fn on_gathered(&mut self, _now: Instant) -> Result<Option<Order>, Failure> {
        say(&Word::Gathered)?;
        Ok(None)
    }

    fn orders(&self) -> Option<RawFd> {
        Some(std::io::stdin().as_raw_fd())
    }

    fn take_orders(&mut self) -> Result<Vec<Order>, Failure> {
        let mut stdin = std::io::stdin().lock();
        let (mut buffer, mut is_over) = ([0; 256], false);
        loop {
            match unbuffered(&mut stdin, &mut buffer) {
                Ok(0) => {
                    is_over = true;
                    break;
                }
                Ok(len) => self.unread.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(Failure::io("read orders")(error)),
            }
        }
        let end = self.unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unread.drain(..end).collect();
        let orders = lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        // Nobody wants the rest any more.
        Ok(orders.chain(is_over.then_some(Order::Stop)).collect())
    }
}
