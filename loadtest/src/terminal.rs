//! Output that may be cut off: a closed or full pipe ends nothing, least of all a measurement.

use moorline_usage::notes;
use std::fmt::Display;
use std::io::Write;

/// A line of the report, or a ready line, to standard output, behind the lines about the run.
pub fn print(text: impl Display) {
    notes::flush();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line about the run, to standard error; does not wait for it.
pub fn note(text: impl Display) {
    notes::note(text);
}
