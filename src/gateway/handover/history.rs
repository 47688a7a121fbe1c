//! Conversion of past restarts between the admin address's form and the snapshot's.

use crate::admin::{Restart, Step};
use crate::snapshot::{RestartRecord, StepRecord};
use std::time::Duration;

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Converts nanoseconds to seconds.
#[allow(clippy::cast_precision_loss)] // 53 bits of nanoseconds are 104 days
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Makes the snapshot's record of a restart.
pub(super) fn record_of(restart: &Restart) -> RestartRecord {
    let Restart {
        number,
        unix_ms,
        generation,
        pid,
        verdict,
        problem,
        is_ending: _, // no process comes after one that ends
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
        pid,
    }
}

/// Makes the restart that a snapshot's record describes.
pub(super) fn restart_of(record: &RestartRecord) -> Restart {
    let step = |step: &StepRecord| Step {
        name: step.name.clone(),
        seconds: seconds(step.nanos),
        detail: step.detail.clone(),
    };
    Restart {
        number: record.number,
        unix_ms: record.unix_ms,
        generation: record.generation,
        pid: record.pid,
        verdict: record.verdict.clone(),
        problem: record.problem.clone(),
        is_ending: false,
        sockets: record.sockets,
        pause_seconds: seconds(record.pause_nanos),
        from: record.from.clone(),
        to: record.to.clone(),
        previous_binary: record.previous_binary.clone(),
        steps: record.steps.iter().map(step).collect(),
    }
}
