//! Threads that have their memory before they need it.
//!
//! glibc gives a thread memory of its own, an arena, at its first allocation. If the system has no memory map left just then,
//! the allocation fails, however little it asks for, and that ends the process. A thread that is started early and has
//! its first work late must therefore allocate early: in a hot restart everything is made before the new process serves.
//!
//! Each thread begins with a reserve, too: memory that its arena keeps, so that a system that refuses more for a moment
//! ends nothing. Nobody has written to the reserve, so it takes addresses and no pages.
//!
//! The standard library asks the system for the key of a thread's hash tables when the thread makes its first one, and
//! panics if it is refused. So that is drawn early as well.

use std::hash::RandomState;
use std::hint::black_box;
use std::io;
use std::thread::{Builder, JoinHandle};

/// Bytes of the reserve: a read block, a buffer of the cryptography, and what a few messages take.
const RESERVE_BYTES: usize = 192 << 10;

/// Takes a reserve into the arena of this thread, and draws the key of its hash tables.
///
/// glibc maps a large block alone, and unmaps it when it is freed. From then on it takes blocks of this size out of the
/// arena, and keeps twice as much there.
pub fn reserve() {
    for _ in 0..2 {
        drop(black_box(Vec::<u8>::with_capacity(RESERVE_BYTES)));
    }
    black_box(RandomState::new());
}

/// Starts a thread of this name, which takes its reserve before it runs `run`, as [`reserve`] says.
///
/// # Errors
/// The system's: no thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        reserve();
        run()
    })
}
