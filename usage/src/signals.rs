//! Signals by which the system ends a process, and which mean nothing to any program here.

use nix::libc::{
    SIGALRM, SIGIO, SIGPROF, SIGPWR, SIGRTMAX, SIGRTMIN, SIGSTKFLT, SIGSYS, SIGTRAP, SIGVTALRM, SIGXCPU,
};

/// Returns their numbers. Programs listen for them, so that nobody is ended by a timer, a monitor or a container manager.
///
/// Not among them: HUP, INT, QUIT, TERM, USR1 and USR2, which have a meaning; those by which the processor or the program
/// itself tells of a defect (ABRT, BUS, FPE, ILL, SEGV); those of a terminal's job control.
pub fn without_meaning() -> impl Iterator<Item = i32> {
    [SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT, SIGSYS, SIGTRAP, SIGXCPU]
        .into_iter()
        .chain(SIGRTMIN()..=SIGRTMAX())
}
