//! Log lines on standard error, as text for people or JSON for machines.

use super::Failure;
use crate::config::{LogFormat, log_level};
use moorline_net::log::LogWriter;
use std::io;
use std::sync::Arc;
use tracing_subscriber::{EnvFilter, reload};

/// Puts a log level in force.
pub(super) type SetLevel = Box<dyn Fn(&str) -> Result<(), String>>;

/// Starts logging for the whole process, once. No thread that logs waits for standard error.
pub(super) fn start(level: &str, format: LogFormat) -> Result<(LogWriter, SetLevel), Failure> {
    let filter =
        log_level::parse(level).map_err(|problem| Failure::Usage(format!("log level: {problem}")))?;
    let cannot_start =
        |error: &dyn ToString| Failure::Failed(format!("cannot start logging: {}", error.to_string()));
    let writer = LogWriter::start(io::stderr()).map_err(|error| cannot_start(&error))?;
    // A log file at the process's file size limit is a full disk, and no reason to end.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())
        .map_err(|error| cannot_start(&error))?;
    let lines = writer.clone();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || lines.clone());
    let (started, set_level): (_, SetLevel) = match format {
        LogFormat::Text => {
            let lines = lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter_reloading();
            let filter = lines.reload_handle();
            (lines.try_init(), Box::new(move |level| replace(level, |new| filter.reload(new))))
        }
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            let filter = lines.reload_handle();
            (lines.try_init(), Box::new(move |level| replace(level, |new| filter.reload(new))))
        }
    };
    started.map_err(|error| cannot_start(&error))?;
    writer.log_panics();
    Ok((writer, set_level))
}

fn replace(level: &str, put: impl FnOnce(EnvFilter) -> Result<(), reload::Error>) -> Result<(), String> {
    let filter = log_level::parse(level)?;
    put(filter).map_err(|error| format!("cannot change the log level: {error}"))
}
