//! Hot restart: established connections, with everything in flight, move to a new process (`docs/handover.md`).
//!
//! ```text
//!  old process (parent)                            new process (child)
//!  1 check   run BINARY to ask what it reads
//!  2 spawn   the guard, which starts ─────────────► settings, epolls, inherited sockets
//!            ◄──────────────────────────── warm ────┘
//!  3 freeze  all threads are paused
//!  4 move    snapshot in a sealed memfd ──────────► reads all of it, compares every socket's cookie,
//!            ◄──── want FD, for newer sockets ────┘ watches every socket in its own epoll
//!            ◄─────────────────────────── ready ────┘
//!  5 commit  word: OPEN -> COMMITTED ─────────────► word: COMMITTED -> TOUCHED, and only then the first read
//!            ◄───────────────────────── running ────┘
//!            leaves without touching a socket
//! ```
//!
//! The rules of both sides are tables without IO, [`parent`] and [`child`]. [`upgrade`] and [`takeover`] drive them:
//! they perform an action, and its result, or the next message, is the next input. The tests print the tables as
//! `docs/handover.md` has them, and join both in every order of messages, deaths and deadlines.
//!
//! Between both processes stands a guard ([`guard`]) up to the commit.
//!
//! Until the word is TOUCHED the old process can serve on as if nothing had happened, and does after any problem: it
//! swaps COMMITTED -> RECLAIMED, kills and reaps the child, and resumes its threads. A child that has swapped first is
//! never killed, however slow it is.

mod bodies;
mod channel;
mod check;
mod child;
mod commit_word;
mod guard;
mod history;
mod new_process;
mod parent;
mod previous;
mod run_settings;
mod supervisor;
mod takeover;
#[cfg(test)]
mod tests;
mod upgrade;

pub(super) use check::check_line;
use guard::OLD;
pub(super) use guard::run_if_asked;
pub(super) use run_settings::RunSettings;
pub(super) use supervisor::{PidFile, notify_main_pid, notify_ready, notify_reloading, notify_stopping};
pub(super) use takeover::{HandoverFds, take_over};
pub(super) use upgrade::{ENDING, Outcome, restart};

/// Environment variable of a process that a gateway starts for a hot restart: [`CHECK`], or the numbers of the
/// descriptors that it inherits.
pub(super) const VARIABLE: &str = "MOORLINE_HANDOVER";
/// Value of [`VARIABLE`] in a process that only answers the check ([`check_line`]).
pub(super) const CHECK: &str = "check";
