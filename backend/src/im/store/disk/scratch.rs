//! Folders of the tests of stores, and waiting for a store.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// File system in memory.
const MEMORY: &str = "/dev/shm";
/// Free bytes that it must have: stores have files of 64 MiB, mostly holes, and many tests run at once.
const ROOM: u64 = 4 << 30;
/// Longest wait for a call of a waker: what a test waits for may come without one.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// Returns a path where nothing is yet, for a folder of a test: in memory, if the system has room there, since these tests
/// make and remove tens of thousands of files. `TMPDIR` goes first.
pub(crate) fn path(name: &str) -> PathBuf {
    let has_room =
        rustix::fs::statvfs(MEMORY).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= ROOM);
    let is_writable = rustix::fs::access(MEMORY, rustix::fs::Access::WRITE_OK).is_ok();
    if std::env::var_os("TMPDIR").is_none() && has_room && is_writable {
        return numbered(Path::new(MEMORY), name);
    }
    path_on_disk(name)
}

/// Returns a path where nothing is yet, for a folder of a test that shall meet a real disk.
pub(crate) fn path_on_disk(name: &str) -> PathBuf {
    numbered(&std::env::temp_dir(), name)
}

fn numbered(folder: &Path, name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("moorline-{name}-{}-{number}", std::process::id()))
}

/// Returns a function that ends the next [`wait`] of the calling thread.
pub(crate) fn waker() -> impl Fn() + Send + 'static {
    let thread = std::thread::current();
    move || thread.unpark()
}

/// Waits for a call of a [`waker`] of this thread, at most 1 ms. The caller looks again in either case.
pub(crate) fn wait() {
    std::thread::park_timeout(WAIT_MAX);
}
