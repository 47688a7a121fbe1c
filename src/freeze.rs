//! Standing still: how reactors and workers stop between two turns, so that their state can be written down
//! (`docs/handover.md`).
//!
//! ```text
//! main                         each thread
//!  wants = true, wake ───────►  end of turn: waits for orders, touches no socket
//!  Step, round after round ──►  takes its mail, hands over what follows from it
//!  (nobody had anything to do)
//!  Freeze ───────────────────►  writes its state down
//!  Resume, or the process ends
//! ```
//!
//! Steps go to one thread after the other, so a round in which nobody had anything to do proves that no message
//! is under way.

use crate::snapshot::Section;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// A child process has inherited this one's sockets.
static IS_SHARED: AtomicBool = AtomicBool::new(false);

/// Whether another process holds the sockets too: then closing one does not end its connection.
pub fn is_shared() -> bool {
    IS_SHARED.load(Ordering::Relaxed)
}

/// From now on another process holds them too, or does not any more.
pub fn set_shared(is_shared: bool) {
    IS_SHARED.store(is_shared, Ordering::Relaxed);
}

/// What a thread's units wrote down, by number.
pub type Frozen = Vec<(u32, Section)>;

/// What a thread that stands still is asked.
#[derive(Debug)]
pub enum Order {
    /// Take your mail and hand over what follows; answer whether there was, or is, anything.
    Step(Sender<bool>),
    /// Write your state down.
    Freeze(Sender<io::Result<Frozen>>),
    /// Go on. Unix nanoseconds at the gateway's own time zero, which stood still.
    Resume(u64),
}

/// A thread's end.
#[derive(Debug)]
pub struct Post {
    stance: Arc<AtomicU8>,
    orders: Receiver<Order>,
}

/// The main thread's end.
#[derive(Clone, Debug)]
pub struct Conductor {
    stance: Arc<AtomicU8>,
    orders: Sender<Order>,
}

/// Orders that may wait for a thread: one, and a Resume behind it.
const ORDERS_MAX: usize = 4;

const MOVES: u8 = 0;
const WANTED: u8 = 1;
const STANDS: u8 = 2;

/// Both ends.
pub fn post() -> (Conductor, Post) {
    let (sender, orders) = bounded(ORDERS_MAX);
    let stance = Arc::new(AtomicU8::new(MOVES));
    (Conductor { stance: Arc::clone(&stance), orders: sender }, Post { stance, orders })
}

impl Post {
    /// Whether the thread must stand still now: then it takes orders up to [`Order::Resume`].
    pub fn is_called(&self) -> bool {
        self.stance.load(Ordering::Relaxed) == WANTED && swap(&self.stance, WANTED, STANDS)
    }

    /// Waits for the next order; `None`: go on.
    pub fn wait(&self) -> Option<Order> {
        let order = self.orders.recv().ok();
        if matches!(order, None | Some(Order::Resume(_))) {
            self.stance.store(MOVES, Ordering::SeqCst);
        }
        order
    }
}

/// A thread's state that can stand still.
pub trait Stand {
    /// Where it is told to.
    fn post(&self) -> &Post;
    /// Takes all mail and hands over what follows. Reads no socket, and writes only to a socket that it closes.
    /// Whether there was or is anything.
    fn step(&mut self) -> bool;
    /// Writes everything down. No message is under way then.
    ///
    /// # Errors
    /// A socket that cannot be named.
    fn freeze(&mut self) -> io::Result<Frozen>;
    /// Goes on; Unix nanoseconds at the gateway's own time zero.
    fn resume(&mut self, unix_base_nanos: u64);

    /// Between two turns: does what the main thread says until it says to go on.
    fn stand_still(&mut self) {
        while let Some(order) = self.post().wait() {
            // A main thread that has given up does not wait for the reply.
            match order {
                Order::Step(reply) => _ = reply.send(self.step()),
                Order::Freeze(reply) => _ = reply.send(self.freeze()),
                Order::Resume(unix_base_nanos) => return self.resume(unix_base_nanos),
            }
        }
    }
}

impl Conductor {
    /// The thread shall stand still after this turn; wake it.
    pub fn call(&self) {
        swap(&self.stance, MOVES, WANTED);
    }

    /// Whether it stands still.
    pub fn stands(&self) -> bool {
        self.stance.load(Ordering::SeqCst) == STANDS
    }

    /// It need not stand still any more.
    pub fn dismiss(&self, unix_base_nanos: u64) {
        if !swap(&self.stance, WANTED, MOVES) && self.stands() {
            self.orders.try_send(Order::Resume(unix_base_nanos)).ok();
        }
    }

    /// Gives an order to a thread that stands still. False: it takes none.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}

fn swap(stance: &AtomicU8, from: u8, to: u8) -> bool {
    stance.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}
