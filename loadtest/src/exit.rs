//! Exit codes: one per kind of result, so that scripts need not read text.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// The exit code of `moorload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for was done and nothing was lost, duplicated or reordered.
    Pass,
    /// The arguments make no sense.
    Usage,
    /// Exit code: this machine does not allow a run of this size, or the target is not loopback.
    Preflight,
    /// Exit code: the target does not answer.
    Unreachable,
    /// A message or a connection was lost, or a message duplicated, reordered or refused.
    Integrity,
    /// The generator itself was late: the figures say nothing about the server.
    Saturated,
    /// An expectation was not met.
    Unexpected,
    /// Stopped by a signal; the report was written.
    Interrupted,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Usage => 1,
            Self::Preflight => 2,
            Self::Unreachable => 3,
            Self::Integrity => 4,
            Self::Saturated => 5,
            Self::Unexpected => 99,
            Self::Interrupted => 130,
        }
    }

    /// The one with this number.
    pub fn of_code(code: u8) -> Option<Self> {
        let all = [
            Self::Pass,
            Self::Usage,
            Self::Preflight,
            Self::Unreachable,
            Self::Integrity,
            Self::Saturated,
            Self::Unexpected,
            Self::Interrupted,
        ];
        all.into_iter().find(|exit| exit.code() == code)
    }

    /// The word in the report.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Usage => "USAGE",
            Self::Preflight => "PREFLIGHT",
            Self::Unreachable => "UNREACHABLE",
            Self::Integrity => "FAIL integrity",
            Self::Saturated => "INVALID generator saturated",
            Self::Unexpected => "FAIL expectation",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Reason why a run has no report.
#[derive(Debug, Error)]
pub enum Failure {
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
    /// The machine or the safety rules do not allow it.
    #[error("{0}")]
    Preflight(String),
    /// The target does not answer.
    #[error("cannot reach {target}: {why}")]
    Unreachable {
        /// Address as given.
        target: String,
        /// The last error.
        why: String,
    },
    /// A server that should be measured did not start.
    #[error("{program} did not start: {why}")]
    Start {
        /// Path of the program.
        program: PathBuf,
        /// Last lines of its output.
        why: String,
    },
    /// A process of this run failed.
    #[error("{why}")]
    Part {
        /// Exit code of the process.
        exit: Exit,
        /// In its words.
        why: String,
    },
    /// A file of the run could not be written or read.
    #[error("{path}: {why}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        why: String,
    },
    /// The loop's own system calls failed.
    #[error("{operation}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// Cause, from the system.
        source: io::Error,
    },
}

impl Failure {
    /// For `map_err`.
    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }

    /// For `map_err`.
    pub fn file(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, why: error.to_string() }
    }

    /// Reason that a process gave for its end.
    pub fn of_part(code: u8, why: String) -> Self {
        Self::Part { exit: Exit::of_code(code).unwrap_or(Exit::Preflight), why }
    }

    /// Exit code.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Part { exit, .. } => *exit,
            Self::Preflight(_) | Self::Io { .. } | Self::File { .. } => Exit::Preflight,
            Self::Unreachable { .. } | Self::Start { .. } => Exit::Unreachable,
        }
    }
}
