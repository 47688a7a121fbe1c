//! Faults of settings: each with its place and the fix.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Place that a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table of defaults.
    Default,
    /// The program itself, by its code.
    Program,
    /// A line of the settings file.
    File {
        /// Path as it was given.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Env(String),
    /// `--set` with this key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Program => f.write_str("settings of the program"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

/// One fault of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`. Empty: the text has no such place.
    pub key: String,
    /// Place of the value.
    pub origin: Origin,
    /// Cause, and what is expected instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, message } = self;
        let is_named = key.is_empty() || *origin == Origin::Flag(key.clone());
        if is_named { write!(f, "{origin}: {message}") } else { write!(f, "{origin}: {key}: {message}") }
    }
}

/// Reason why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read settings file {}: {source}", path.display())]
    Read {
        /// Path as it was given.
        path: PathBuf,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// All faults of all sources, in the order of the sources.
    #[error("{}", join(.0))]
    Invalid(Vec<Problem>),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Settings and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// Settings, valid.
    pub config: T,
    /// Renamed keys that were used, one sentence each.
    pub warnings: Vec<String>,
    pub(super) origins: BTreeMap<String, Origin>,
}

impl<T> Loaded<T> {
    /// Returns the place of a value. Keys are `section.key`, `listener.2.address` for the second of a list, `im.webhooks.NAME.url`.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}
