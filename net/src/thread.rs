//! Threads that have their memory before they need it.
//!
//! glibc gives a thread memory of its own, an arena, at its first allocation. If the system has no memory map left just then,
//! the allocation fails, however little it asks for, and that ends the process. A thread that is started early and has
//! its first work late must therefore allocate early: in a hot restart everything is made before the new process serves.

use std::hint::black_box;
use std::io;
use std::thread::{Builder, JoinHandle};

/// Bytes of the first allocation.
const FIRST_BYTES: usize = 64;

/// Starts a thread of this name, which allocates before it runs `run`.
///
/// # Errors
/// The system's: no thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        drop(black_box(Vec::<u8>::with_capacity(FIRST_BYTES)));
        run()
    })
}
