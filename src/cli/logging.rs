//! Where log lines go: standard error, as text for people or JSON for machines.

use super::Failure;
use crate::config::LogFormat;
use std::io;
use tracing_subscriber::EnvFilter;

/// Starts logging for the whole process, once.
pub(super) fn start(level: &str, format: LogFormat) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(level).map_err(|error| Failure::Usage(format!("log level {level:?}: {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Otherwise a line that nobody reads ends the thread that wrote it.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| Failure::Failed(format!("cannot start logging: {error}")))
}
