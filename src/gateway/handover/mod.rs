//! Hot restart: established connections, with everything in flight, go to a new process (`docs/handover.md`).
//!
//! ```text
//!  old process                                     new process
//!  1 check   run BINARY to ask what it reads
//!  2 spawn   clone, exec ─────────────────────────► settings, threads' berths, inherited sockets
//!            ◄──────────────────────────── warm ────┘
//!  3 freeze  every thread stands still
//!  4 move    snapshot in a sealed memfd ──────────► reads all of it, compares every socket's cookie,
//!            ◄──── want FD, for newer sockets ────┘ watches every socket in its own epoll
//!            ◄─────────────────────────── ready ────┘
//!  5 commit  word: 0 -> COMMIT ───────────────────► word: COMMIT -> TOUCHED, and only then the first read
//!            ◄───────────────────────── running ────┘
//!            leaves without touching a socket
//! ```
//!
//! Until the word is TOUCHED the old process can go on as if nothing had happened, and does if anything goes
//! wrong: it kills and reaps the child, swaps COMMIT -> RECLAIMED, and its threads go on.

mod child;
mod parent;
mod supervisor;

pub(super) use child::{Invitation, take_over};
pub(super) use parent::{Outcome, RunSettings, restart};
pub(super) use supervisor::{tell_main_pid, tell_ready};

use crate::admin::{Restart, Step};
use crate::snapshot::{MAJOR_MIN, RestartRecord, StepRecord, VERSION};
use std::time::Duration;

/// Environment variable that makes a process one that takes over: `check`, or its descriptors.
pub(super) const VARIABLE: &str = "MOORLINE_HANDOVER";
/// Value of [`VARIABLE`] for [`check_line`].
pub(super) const CHECK: &str = "check";
/// First word of the line that answers the check.
const CHECK_ANSWER: &str = "moorline-handover";

/// The old process has given the sockets away.
const COMMIT: u32 = 1;
/// The new process has begun to use them: there is no way back.
const TOUCHED: u32 = 2;
/// The old process has them back.
const RECLAIMED: u32 = 3;

/// Returns the answer to the check: the snapshots that this build reads and writes.
pub(super) fn check_line() -> String {
    let (major, minor) = VERSION;
    format!(
        "{CHECK_ANSWER} version={} reads={MAJOR_MIN}-{major} writes={major}.{minor}",
        env!("CARGO_PKG_VERSION")
    )
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss)] // 53 bits of nanoseconds are 104 days
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn record_of(restart: &Restart) -> RestartRecord {
    let Restart {
        number,
        unix_ms,
        generation,
        verdict,
        problem,
        sockets,
        pause_seconds,
        from,
        to,
        previous_binary,
        steps,
    } = restart.clone();
    let step = |Step { name, seconds, detail }| StepRecord { name, nanos: nanos(seconds), detail };
    RestartRecord {
        unix_ms,
        generation,
        verdict,
        problem,
        sockets,
        pause_nanos: nanos(pause_seconds),
        from,
        to,
        previous_binary,
        steps: steps.into_iter().map(step).collect(),
        number,
    }
}

fn restart_of(record: &RestartRecord) -> Restart {
    let step = |step: &StepRecord| Step {
        name: step.name.clone(),
        seconds: seconds(step.nanos),
        detail: step.detail.clone(),
    };
    Restart {
        number: record.number,
        unix_ms: record.unix_ms,
        generation: record.generation,
        verdict: record.verdict.clone(),
        problem: record.problem.clone(),
        sockets: record.sockets,
        pause_seconds: seconds(record.pause_nanos),
        from: record.from.clone(),
        to: record.to.clone(),
        previous_binary: record.previous_binary.clone(),
        steps: record.steps.iter().map(step).collect(),
    }
}
