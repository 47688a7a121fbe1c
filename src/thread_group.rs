//! A thread and its loops: reactors, or workers.
//!
//! There are as many loops as threads, unless the number of threads was lowered by a hot restart: loops stay as long
//! as their users may (`docs/handover.md`), and share the threads that are left. Between two turns the thread
//! pauses if it is asked to ([`crate::pause`]).
//!
//! Each loop has a [`Baton`]. The thread holds it during a turn and during a pause, and not while it waits in the poll:
//! then a thread that hands something over may run a turn of the loop itself.

use crate::failpoint;
use crate::pause::{Frozen, Order, PausePoint, Question};
use crate::snapshot::{Section, StoredBodies};
use crate::sys::sockets;
use bytes::Bytes;
use mio::{Events, Poll};
use moorline_net::baton::{Baton, TryRun, Turn};
use moorline_proto::time::Instant;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

/// Waits for events that may fail one after the other: the system refuses one when it has no memory. The next one ends the
/// thread, and with it the process.
const WAIT_FAILURES_MAX: u32 = 8;
/// Pause after a wait that failed.
const WAIT_PAUSE: Duration = Duration::from_millis(10);

/// An event loop that a thread runs turn by turn.
pub trait EventLoop: Send + 'static {
    /// Most events that one turn takes.
    const EVENTS_MAX: usize;

    /// Lets senders run the loop while its thread sleeps.
    fn set_event_loop(&self, event_loop: Weak<dyn TryRun>);
    /// Until when the loop may sleep; `None`: a turn is due now. From then on senders wake or run it.
    fn sleep_until(&mut self) -> Option<Instant>;
    /// Runs a turn; `None`: no poll came before it. False, and false again in every further turn: the loop has ended.
    fn turn(&mut self, events: Option<&Events>) -> bool;
    /// Time of the loop's clock.
    fn clock(&self) -> Instant;
    /// Takes all mail and hands over what follows. Reads no socket, and writes only to a socket that it closes.
    /// True if there was or is anything.
    fn step(&mut self) -> bool;
    /// Adds the bodies that wait here. `with_partials`: also the beginnings of frames that are not whole yet.
    fn queued_bodies(&mut self, with_partials: bool, found: &mut Vec<Bytes>);
    /// Writes everything down. No message is under way then.
    ///
    /// # Errors
    /// A socket that cannot be named.
    fn freeze(&mut self, out: &mut Section) -> io::Result<()>;
    /// Goes on; Unix nanoseconds at the gateway's own time zero.
    fn resume(&mut self, unix_base_nanos: u64);
}

/// A loop, and the time up to which its thread sleeps.
#[derive(Debug)]
struct Seat<U> {
    event_loop: U,
    wakes_at: Instant,
}

impl<U: EventLoop> Seat<U> {
    /// Declares the loop asleep, and returns for how long its thread may sleep.
    fn fall_asleep(&mut self) -> Duration {
        let Some(until) = self.event_loop.sleep_until() else { return Duration::ZERO };
        self.wakes_at = until;
        until.saturating_since(self.event_loop.clock())
    }
}

impl<U: EventLoop> Turn for Seat<U> {
    fn run_for_sender(&mut self) -> bool {
        if !self.event_loop.turn(None) {
            return false; // its own thread sees the end
        }
        // Moments are compared, and not times to wait: those also depend on how long a turn took.
        self.event_loop.sleep_until().is_some_and(|until| until >= self.wakes_at)
    }
}

/// A loop of a thread, with the poll that watches its sockets.
#[derive(Debug)]
struct Member<U> {
    number: u32,
    poll: Poll,
    baton: Arc<Baton<Seat<U>>>,
}

/// The loops of one thread, by number.
#[derive(Debug)]
pub struct ThreadGroup<U> {
    members: Vec<Member<U>>,
    events: Events,
    point: PausePoint,
    place: &'static str,
}

impl<U: EventLoop> ThreadGroup<U> {
    /// One that is asked at `point` to pause. Each loop comes with its number and the poll that watches its sockets.
    /// `place`: its failpoint.
    pub fn new(loops: Vec<(u32, Poll, U)>, point: PausePoint, place: &'static str) -> Self {
        let member = |(number, poll, event_loop)| {
            let baton = Arc::new(Baton::new(Seat { event_loop, wakes_at: Instant::FAR_FUTURE }));
            let weak: Weak<Baton<Seat<U>>> = Arc::downgrade(&baton);
            baton.hold().event_loop.set_event_loop(weak);
            Member { number, poll, baton }
        };
        let members = loops.into_iter().map(member).collect();
        Self { members, events: Events::with_capacity(U::EVENTS_MAX), point, place }
    }

    /// Runs until all loops have ended. A pause that was asked for before the start comes before the first turn: a main
    /// thread that gives up during that pause ends the thread, which has touched no socket.
    ///
    /// # Errors
    /// The system's, when polling fails again and again: the process cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        if self.point.try_pause() && !self.obey() {
            return Ok(());
        }
        let mut failures = 0;
        while !self.members.is_empty() {
            match self.turn() {
                Ok(()) => failures = 0,
                Err(error) if failures < WAIT_FAILURES_MAX => {
                    failures += 1;
                    tracing::warn!(%error, failures, "cannot wait for events; trying again in 10 ms");
                    std::thread::park_timeout(WAIT_PAUSE);
                }
                Err(error) => return Err(error),
            }
            if let Some(Question { with_partials, reply }) = self.point.question() {
                let mut found = Vec::new();
                for Member { baton, .. } in &self.members {
                    baton.hold().event_loop.queued_bodies(with_partials, &mut found);
                }
                reply.try_send(found).ok(); // a main thread that has given up does not wait
            }
            if self.point.try_pause() {
                failpoint::reach(self.place);
                self.obey();
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let sleep = |member: &Member<U>| member.baton.hold().fall_asleep();
        let mut timeout = self.members.iter().map(sleep).min().unwrap_or_default();
        if self.members.len() > 1 && !timeout.is_zero() {
            self.wait(timeout)?;
            timeout = Duration::ZERO;
        }
        let (events, mut outcome) = (&mut self.events, Ok(()));
        self.members.retain_mut(|Member { poll, baton, .. }| {
            if let Err(error) = poll.poll(events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                outcome = Err(error);
                return true; // the events are those of the turn before
            }
            baton.hold().event_loop.turn(Some(events))
        });
        outcome
    }

    /// Waits until one of several loops has something to do.
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let polls: Vec<RawFd> = self.members.iter().map(|member| member.poll.as_raw_fd()).collect();
        sockets::wait_readable(&polls, timeout)
    }

    /// Obeys the main thread between two turns, until it says to run again. False: the main thread has ended.
    fn obey(&mut self) -> bool {
        // Held through the pause, so that no sender runs a loop.
        let mut held = Vec::new();
        for Member { number, baton, .. } in &self.members {
            held.push((*number, baton.hold()));
        }
        while let Some(order) = self.point.wait() {
            // A main thread that has given up does not wait for the reply.
            match order {
                Order::Step(reply) => _ = reply.send(step(&mut held)),
                Order::Freeze(reply, stored) => _ = reply.send(freeze(&mut held, &stored)),
                Order::Resume(unix_base_nanos) => {
                    held.iter_mut().for_each(|(_, seat)| seat.event_loop.resume(unix_base_nanos));
                    return true;
                }
            }
        }
        false
    }
}

/// A loop that its thread holds, with its number.
type Held<'a, U> = (u32, MutexGuard<'a, Seat<U>>);

fn step<U: EventLoop>(held: &mut [Held<'_, U>]) -> bool {
    held.iter_mut().fold(false, |is_busy, (_, seat)| seat.event_loop.step() | is_busy)
}

fn freeze<U: EventLoop>(held: &mut [Held<'_, U>], stored: &Arc<StoredBodies>) -> io::Result<Frozen> {
    let one = |(number, seat): &mut Held<'_, U>| {
        let mut section = Section::with_stored(Arc::clone(stored));
        seat.event_loop.freeze(&mut section).map(|()| (*number, section))
    };
    held.iter_mut().map(one).collect()
}

#[cfg(test)]
mod tests;
