//! Signals of long-running commands. TERM, INT and QUIT end, HUP reads the settings again, USR1 opens log files again,
//! USR2 is the gateway's hot restart. The system would end a process by any other one; those are named in the log and
//! passed over.

use moorline_usage::signals::without_meaning;
use nix::libc::SIGRTMIN;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use std::borrow::Cow;

/// Returns the signals that every long-running command listens for.
pub fn listened() -> impl Iterator<Item = i32> {
    [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2].into_iter().chain(without_meaning())
}

/// Name of a signal, such as SIGHUP or SIGRTMIN+3.
pub fn name(signal: i32) -> Cow<'static, str> {
    match Signal::try_from(signal) {
        Ok(known) => known.as_str().into(),
        Err(_) => format!("SIGRTMIN+{}", signal - SIGRTMIN()).into(),
    }
}

/// Says in the log that a signal has no meaning for this command.
pub fn pass_over(signal: i32) {
    tracing::info!(signal = &*name(signal), "passed over a signal that has no meaning here");
}
