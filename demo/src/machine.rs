//! Limits of the machine for this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files when the limit cannot be read.
const OPEN_FILES_DEFAULT: u64 = 1024;

/// Raises the soft limit of open files to the hard one; returns the limit that holds then.
pub(crate) fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return OPEN_FILES_DEFAULT };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Processors this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
