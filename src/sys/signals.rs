//! Signals of long-running commands. TERM, INT and QUIT end, HUP reads the settings again, USR1 opens log files again,
//! USR2 is the gateway's hot restart. The system would end a process by any other one; those are named in the log and
//! passed over.

use nix::sys::signal::Signal;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
};

/// Signals that every long-running command listens for.
pub const LISTENED: [i32; 10] =
    [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO];

/// Name of a signal, such as SIGHUP.
pub fn name(signal: i32) -> &'static str {
    Signal::try_from(signal).map_or("an unknown signal", Signal::as_str)
}

/// Says in the log that a signal has no meaning for this command.
pub fn pass_over(signal: i32) {
    tracing::info!(signal = name(signal), "passed over a signal that has no meaning here");
}
