//! A thread group with one loop, which notes the threads that run it.

use super::*;
use crate::pause::{self, PauseHandle};
use crate::sys::clock;
use crossbeam_channel::{Receiver as Results, Sender as Notes, unbounded};
use moorline_net::mailbox::{Receiver, Sender, mailbox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, ThreadId};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sleep of a loop without a deadline.
const LONG: Duration = Duration::from_secs(600);

enum Mail {
    /// Notes the thread that takes it.
    Note,
    /// Wants a turn this much later.
    Wait(Duration),
    Stop,
}

struct Noting {
    inbox: Receiver<Mail>,
    notes: Notes<ThreadId>,
    deadline: Option<Instant>,
    now: Instant,
    /// Turns of the loop's own thread.
    own_turns: Arc<AtomicUsize>,
    is_stopped: bool,
}

impl EventLoop for Noting {
    const EVENTS_MAX: usize = 8;

    fn set_event_loop(&self, event_loop: Weak<dyn TryRun>) {
        self.inbox.set_event_loop(event_loop);
    }

    fn sleep_until(&mut self) -> Option<Instant> {
        self.inbox.try_sleep().then(|| self.deadline.unwrap_or(self.now + LONG))
    }

    fn turn(&mut self, events: Option<&Events>) -> bool {
        self.inbox.awake();
        self.own_turns.fetch_add(usize::from(events.is_some()), Ordering::Relaxed);
        self.now = clock::now();
        if self.deadline.take_if(|deadline| *deadline <= self.now).is_some() {
            self.notes.send(thread::current().id()).ok();
        }
        while let Some(mail) = self.inbox.try_recv() {
            match mail {
                Mail::Note => _ = self.notes.send(thread::current().id()),
                Mail::Wait(time) => self.deadline = Some(self.now + time),
                Mail::Stop => self.is_stopped = true,
            }
        }
        !self.is_stopped
    }

    fn clock(&self) -> Instant {
        clock::now()
    }

    fn step(&mut self) -> bool {
        false
    }

    fn queued_bodies(&mut self, _with_partials: bool, _found: &mut Vec<Bytes>) {}

    fn freeze(&mut self, _out: &mut Section) -> io::Result<()> {
        Ok(())
    }

    fn resume(&mut self, _unix_base_nanos: u64) {}
}

struct World {
    mail: Sender<Mail>,
    notes: Results<ThreadId>,
    pause: PauseHandle,
    own_turns: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<()>>,
}

impl World {
    fn start() -> Self {
        let poll = Poll::new().expect("epoll");
        let (mail, inbox) = mailbox(1024, crate::reactor::waker(poll.registry()).expect("eventfd"));
        let ((sender, notes), (pause, point)) = (unbounded(), pause::pause());
        let own_turns = Arc::<AtomicUsize>::default();
        let noting = Noting {
            inbox,
            notes: sender,
            deadline: None,
            now: clock::now(),
            own_turns: Arc::clone(&own_turns),
            is_stopped: false,
        };
        let group = ThreadGroup::new(vec![(0, poll, noting)], point, "");
        Self { mail, notes, pause, own_turns, thread: thread::spawn(move || group.run()) }
    }

    fn send(&self, mail: Mail) {
        assert!(self.mail.try_send_and_run(mail).is_ok(), "there is room");
    }

    fn note(&self) -> ThreadId {
        self.notes.recv_timeout(PATIENCE).expect("a note")
    }

    /// Sends notes until this thread has taken one: then the loop's own thread sleeps.
    fn await_sleep(&self) {
        let until = clock::now() + PATIENCE;
        loop {
            self.send(Mail::Note);
            if self.note() == thread::current().id() {
                return;
            }
            assert!(clock::now() < until, "the loop's own thread never sleeps");
        }
    }

    fn stop(self) {
        self.send(Mail::Stop);
        self.thread.join().expect("no panic").expect("polls");
    }
}

#[test]
fn a_sender_runs_a_loop_that_sleeps() {
    let world = World::start();
    world.await_sleep();
    // Again and again, while the loop's own thread sleeps on.
    for _ in 0..100 {
        world.send(Mail::Note);
        assert_eq!(world.note(), thread::current().id());
    }
    world.stop();
}

#[test]
fn the_thread_of_a_loop_wakes_for_a_deadline_that_a_sender_brought() {
    let world = World::start();
    world.await_sleep();
    world.send(Mail::Wait(Duration::from_millis(1)));
    assert_eq!(world.note(), world.thread.thread().id(), "it would have slept for ten minutes");
    world.stop();
}

/// A turn takes its time, so each one that is run by a sender ends nearer to the deadline than the one before.
#[test]
fn a_deadline_that_stays_wakes_no_thread() {
    let world = World::start();
    world.await_sleep();
    let begun = world.own_turns.load(Ordering::Relaxed);
    world.send(Mail::Wait(Duration::from_secs(300))); // earlier than it would have woken
    // The loop's own thread takes that deadline in a turn of its own, which may come late.
    let until = clock::now() + PATIENCE;
    while world.own_turns.load(Ordering::Relaxed) == begun {
        assert!(clock::now() < until, "the loop's own thread does not take the deadline");
        thread::park_timeout(Duration::from_millis(1));
    }
    world.await_sleep();
    let before = world.own_turns.load(Ordering::Relaxed);
    for _ in 0..100 {
        world.send(Mail::Note);
        assert_eq!(world.note(), thread::current().id());
    }
    assert_eq!(world.own_turns.load(Ordering::Relaxed), before);
    world.stop();
}

#[test]
fn no_sender_runs_a_loop_that_is_paused() {
    let world = World::start();
    world.await_sleep();
    world.pause.request();
    world.mail.wake().expect("eventfd");
    let until = clock::now() + PATIENCE;
    while !world.pause.is_paused() {
        assert!(clock::now() < until, "it does not pause");
        thread::yield_now();
    }
    // Paused, it may still be on its way to hold its loops; a step is answered when it has.
    let (reply, answer) = crossbeam_channel::bounded(1);
    assert!(world.pause.order(Order::Step(reply)));
    answer.recv_timeout(PATIENCE).expect("an answer");
    world.send(Mail::Note);
    assert!(world.notes.is_empty(), "it was run while it was paused");
    world.pause.resume(0);
    assert_eq!(world.note(), world.thread.thread().id());
    world.stop();
}

#[test]
fn two_senders_and_the_own_thread_lose_nothing() {
    const EACH: usize = 20_000;
    let world = World::start();
    let send = || {
        for _ in 0..EACH {
            while world.mail.try_send_and_run(Mail::Note).is_err() {
                thread::yield_now();
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(send);
        scope.spawn(send);
    });
    (0..2 * EACH).for_each(|_| _ = world.note());
    world.stop();
}
