//! A process that volunteers to be the kernel's first choice when memory is short (`oom_score_adj`, proc(5)).
//!
//! For example, the new process of a hot restart takes as much memory as the old one while that still serves. Without this
//! the kernel would end the larger of both, which is the one with all connections.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

const FILE: &str = "/proc/self/oom_score_adj";
/// The score of a process that is ended first.
const FIRST: &str = "1000";

/// Score of this process before it volunteered.
#[derive(Debug)]
pub struct Volunteer {
    /// Stays open: a process that hides its memory may not open it again.
    file: File,
    before: String,
}

impl Volunteer {
    /// Has the kernel end this process first.
    ///
    /// # Errors
    /// `/proc` cannot be written.
    pub fn step_forward() -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(FILE)?;
        let mut before = String::new();
        file.read_to_string(&mut before)?;
        let mut volunteer = Self { file, before: before.trim().to_owned() };
        volunteer.set(FIRST)?;
        Ok(volunteer)
    }

    /// Takes the score of before back.
    ///
    /// # Errors
    /// `/proc` cannot be written.
    pub fn step_back(mut self) -> io::Result<()> {
        let before = std::mem::take(&mut self.before);
        self.set(&before)
    }

    fn set(&mut self, score: &str) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(score.as_bytes())
    }
}
