//! Output that may be cut off: a closed pipe ends nothing, least of all a measurement.

use std::fmt::Display;
use std::io::Write;

/// A line of the report, or a ready line, to standard output.
pub fn print(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line about the run, to standard error.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
