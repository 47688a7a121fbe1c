//! Memory that nobody else reads: no core file, and no other process of this user.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Keeps the memory of this process out of core files and from other processes of its user, from now on: it holds keys.
/// `/proc/PID` is root's then. Takes effect at once; what the system refuses is logged.
pub fn hide_memory() {
    let refused = |error| tracing::warn!(%error, "the memory of this process, with its keys, may come into a core file");
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        refused(error);
    }
    if let Err(error) = prctl::set_dumpable(false) {
        refused(error);
    }
}
