//! A run over several processes, because one may not hold that many sockets.
//!
//! The coordinator gives each process its part of the job, lets traffic begin in all of them at one
//! moment, gathers what they tell every second, and adds up what they found.
//!
//! ```text
//! coordinator                      worker (moorload worker, lines of JSON over pipes)
//!   job ───────────────────────────►
//!   ◄──────────────────────── began      the first has looked at the server before anybody connects
//!   ◄───────────────────── gathered      its clients are in
//!   go at this moment ─────────────►     once all are
//!   ◄─────────────── second, second      ...
//!   stop ──────────────────────────►     only to end early; so does the end of the pipe
//!   ◄──────────────────────── done
//! ```

mod coordinator;
mod worker;

pub use coordinator::run;
pub use worker::serve;

use crate::fleet::Second;
use crate::job::Part;
use serde::{Deserialize, Serialize};

/// Message from a worker process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Began,
    Gathered,
    Second(Box<Second>),
    Done(Box<Part>),
    Failed { exit: u8, why: String },
}
