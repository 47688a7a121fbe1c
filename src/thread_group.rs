//! A thread and its loops: reactors, or workers.
//!
//! There are as many loops as threads, unless the number of threads was lowered by a hot restart: loops stay as long
//! as their users may (`docs/handover.md`), and share the threads that are left. Between two turns the thread
//! pauses if it is asked to ([`crate::pause`]).

use crate::failpoint;
use crate::pause::{Frozen, Order, PausePoint};
use crate::snapshot::{Section, StoredBodies};
use crate::sys::sockets;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

/// An event loop that a thread runs turn by turn.
pub trait EventLoop: Send + 'static {
    /// Descriptor of the loop's epoll.
    fn poll_fd(&self) -> RawFd;
    /// For how long the next turn may wait. From then on senders wake it.
    fn timeout(&mut self) -> Duration;
    /// Runs a turn, which waits for events for at most `timeout`. False: the loop has ended.
    ///
    /// # Errors
    /// The system's, when polling fails: the process cannot go on.
    fn turn(&mut self, timeout: Duration) -> io::Result<bool>;
    /// Takes all mail and hands over what follows. Reads no socket, and writes only to a socket that it closes.
    /// True if there was or is anything.
    fn step(&mut self) -> bool;
    /// Writes everything down. No message is under way then.
    ///
    /// # Errors
    /// A socket that cannot be named.
    fn freeze(&mut self, out: &mut Section) -> io::Result<()>;
    /// Goes on; Unix nanoseconds at the gateway's own time zero.
    fn resume(&mut self, unix_base_nanos: u64);
}

/// The loops of one thread, by number.
#[derive(Debug)]
pub struct ThreadGroup<U> {
    loops: Vec<(u32, U)>,
    point: PausePoint,
    place: &'static str,
}

impl<U: EventLoop> ThreadGroup<U> {
    /// One that is asked at `point` to pause. `place`: its failpoint.
    pub const fn new(loops: Vec<(u32, U)>, point: PausePoint, place: &'static str) -> Self {
        Self { loops, point, place }
    }

    /// The loops.
    pub fn loops(&mut self) -> impl Iterator<Item = &mut U> {
        self.loops.iter_mut().map(|(_, event_loop)| event_loop)
    }

    /// Runs until all loops have ended. A pause that was asked for before the start comes before the first turn: a main
    /// thread that gives up during that pause ends the thread, which has touched no socket.
    ///
    /// # Errors
    /// The system's, when polling fails: the process cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        if self.point.try_pause() && !self.obey() {
            return Ok(());
        }
        while !self.loops.is_empty() {
            self.turn()?;
            if self.point.try_pause() {
                failpoint::reach(self.place);
                self.obey();
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut timeout =
            self.loops.iter_mut().map(|(_, event_loop)| event_loop.timeout()).min().unwrap_or_default();
        if self.loops.len() > 1 && !timeout.is_zero() {
            self.wait(timeout)?;
            timeout = Duration::ZERO;
        }
        let mut outcome = Ok(());
        self.loops.retain_mut(|(_, event_loop)| {
            event_loop.turn(timeout).unwrap_or_else(|error| {
                outcome = Err(error);
                false
            })
        });
        outcome
    }

    /// Waits until one of several loops has something to do.
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let polls: Vec<RawFd> = self.loops.iter().map(|(_, event_loop)| event_loop.poll_fd()).collect();
        sockets::wait_readable(&polls, timeout)
    }
}

impl<U: EventLoop> ThreadGroup<U> {
    /// Obeys the main thread between two turns, until it says to run again. False: the main thread has ended.
    fn obey(&mut self) -> bool {
        while let Some(order) = self.point.wait() {
            // A main thread that has given up does not wait for the reply.
            match order {
                Order::Step(reply) => _ = reply.send(self.step()),
                Order::Freeze(reply, stored) => _ = reply.send(self.freeze(&stored)),
                Order::Resume(unix_base_nanos) => {
                    self.loops().for_each(|event_loop| event_loop.resume(unix_base_nanos));
                    return true;
                }
            }
        }
        false
    }

    fn step(&mut self) -> bool {
        self.loops.iter_mut().fold(false, |is_busy, (_, event_loop)| event_loop.step() | is_busy)
    }

    fn freeze(&mut self, stored: &Arc<StoredBodies>) -> io::Result<Frozen> {
        let one = |(number, event_loop): &mut (u32, U)| {
            let mut section = Section::with_stored(Arc::clone(stored));
            event_loop.freeze(&mut section).map(|()| (*number, section))
        };
        self.loops.iter_mut().map(one).collect()
    }
}
