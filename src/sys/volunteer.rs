//! A process that volunteers to be the kernel's first choice when memory is short (`oom_score_adj`, proc(5)).
//!
//! For example, the new process of a hot restart takes as much memory as the old one while that still serves. Without this
//! the kernel would end the larger of both, which is the one with all connections.

use std::fs;
use std::io;

const FILE: &str = "/proc/self/oom_score_adj";
/// The score of a process that is ended first.
const FIRST: &str = "1000";

/// Score of this process before it volunteered.
#[derive(Debug)]
pub struct Volunteer {
    before: String,
}

impl Volunteer {
    /// Has the kernel end this process first.
    ///
    /// # Errors
    /// `/proc` cannot be written.
    pub fn step_forward() -> io::Result<Self> {
        let before = fs::read_to_string(FILE)?.trim().to_owned();
        fs::write(FILE, FIRST)?;
        Ok(Self { before })
    }

    /// Takes the score of before back.
    ///
    /// # Errors
    /// `/proc` cannot be written.
    pub fn step_back(&self) -> io::Result<()> {
        fs::write(FILE, &self.before)
    }
}
