//! Limits that the system sets for this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Raises the soft limit of open files to the hard limit, and returns the limit that holds then.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Returns the number of descriptors that this process may still open.
///
/// # Errors
/// `/proc` cannot be read, for want of a descriptor.
pub fn free_files() -> std::io::Result<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open =
        super::sockets::open_fds()?.into_iter().filter(|fd| u64::try_from(*fd).is_ok_and(|fd| fd < soft));
    Ok(soft.saturating_sub(open.count() as u64))
}

/// Least stack of the main thread, in bytes. Other threads have stacks of their own.
const STACK_BYTES_MIN: u64 = 512 << 10;

/// Refuses a limit of the stack with which the system would end this process in the middle of its work.
///
/// # Errors
/// The limit, with its name and what to set.
pub fn check_stack() -> Result<(), String> {
    match getrlimit(Resource::RLIMIT_STACK) {
        Ok((soft, _)) if soft < STACK_BYTES_MIN => Err(format!(
            "cannot run with a stack of {} KiB (RLIMIT_STACK): set it to {} KiB or more (ulimit -s, LimitSTACK=)",
            soft >> 10,
            STACK_BYTES_MIN >> 10
        )),
        _ => Ok(()),
    }
}

/// Has a write beyond the limit of a file's length (RLIMIT_FSIZE) fail; the system would end this process otherwise.
#[allow(unsafe_code)]
pub fn survive_file_limit() {
    // SAFETY: no handler runs.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.ok();
}

/// Ignores the signals that are for the serving process of a service.
#[allow(unsafe_code)]
pub fn ignore_signals() {
    for one in super::signals::listened() {
        // SAFETY: no handler runs.
        unsafe { nix::libc::signal(one, nix::libc::SIG_IGN) };
    }
}

/// Returns the number of processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
