//! Number of sockets that this machine gives to this process and, by inheritance, to each child.

use moorline::sys::limits;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Kept for everything that is not one of the many.
const RESERVED: u64 = 400;

/// Held by a test that opens very many: there is one at a time.
static MANY: Mutex<()> = Mutex::new(());

/// The right to open many sockets, and how many of the `wanted` there are. Says so when it is fewer.
pub(crate) fn many(wanted: usize) -> (MutexGuard<'static, ()>, usize) {
    let held = MANY.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = limits::raise_open_files();
    let room = usize::try_from(limit.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
    let given = wanted.min(room);
    println!("{given} of {wanted} connections (open-files limit {limit}, {RESERVED} kept for others)");
    assert!(given >= 100, "the open-files limit {limit} leaves no room for a test with many connections");
    (held, given)
}
