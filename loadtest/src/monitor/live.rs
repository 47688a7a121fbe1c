//! The live view: a bar on a terminal, a line a second elsewhere.

use super::Row;
use crate::terminal;
use crate::units;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moorline_usage::notes;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

/// Output of the rows of a run.
#[derive(Debug)]
pub enum Live {
    /// No output.
    Quiet,
    /// A line per row, to standard error.
    Lines {
        /// Connections asked for.
        asked: u32,
    },
    /// A line that is redrawn, to standard error.
    Bar(ProgressBar),
}

impl Live {
    /// A bar where standard error is a terminal, and lines elsewhere. `length` is about how long the run takes.
    pub fn new(is_quiet: bool, asked: u32, length: Duration) -> Self {
        if is_quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { asked };
        }
        let bar = ProgressBar::with_draw_target(Some(length.as_secs().max(1)), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar:.cyan/blue} {elapsed} of about {prefix}\n{msg}");
        bar.set_style(style.expect("the template is valid"));
        bar.set_prefix(format!("{}s", length.as_secs()));
        Self::Bar(bar)
    }

    pub(super) fn show(&self, row: &Row) {
        match self {
            Self::Quiet => {}
            Self::Lines { asked } => terminal::note(line(row, Some(*asked))),
            Self::Bar(bar) => {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds of a run
                let (bar, position, message) = (bar.clone(), row.at_s as u64, line(row, None));
                notes::later(move || {
                    bar.set_position(position);
                    bar.set_message(message);
                });
            }
        }
    }

    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            let bar = bar.clone();
            notes::later(move || bar.finish_and_clear());
        }
    }
}

fn line(row: &Row, asked: Option<u32>) -> String {
    let mut line = format!("{:<8}{:>4.0}s  conns {}", row.phase, row.at_s, units::count(row.active.into()));
    if let Some(asked) = asked {
        line.push('/');
        line.push_str(&units::count(asked.into()));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate fits
    let done = units::count(row.done_per_s.round() as u64);
    let _ = write!(line, "  done {done}/s");
    if row.latency.count > 0 {
        let [p50, p99, max] = [row.latency.p50, row.latency.p99, row.latency.max].map(units::latency);
        let _ = write!(line, "  p50 {p50}  p99 {p99}  max {max}");
    }
    if row.under_way > 0 {
        let _ = write!(line, "  coming {}", units::count(row.under_way.into()));
    }
    if row.dropped > 0 {
        let _ = write!(line, "  dropped {}", units::count(row.dropped.into()));
    }
    if let Some(rss) = row.server_rss {
        let _ = write!(line, "  server {}", units::bytes(rss));
    }
    line
}
