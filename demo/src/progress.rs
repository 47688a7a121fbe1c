//! The line of progress: once a second, always on the same line of a terminal.

use moorline_proto::time::{Duration, Instant};
use moorline_usage::notes;
use std::io::{self, IsTerminal as _};

const EVERY: Duration = Duration::from_secs(1);
/// Goes to the line's start and clears it.
const CLEAR: &str = "\r\x1b[K";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Screen {
    Terminal,
    Lines,
}

/// Progress on standard error; when that is closed or full, progress is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    screen: Screen,
    next: Instant,
    is_line_open: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let screen = if io::stderr().is_terminal() { Screen::Terminal } else { Screen::Lines };
        Self { screen, next: Instant::ZERO, is_line_open: false }
    }

    /// Time of the next line.
    pub(crate) const fn deadline(&self) -> Instant {
        self.next
    }

    /// Shows the line if it is time for one.
    pub(crate) fn show(&mut self, now: Instant, line: impl FnOnce() -> String) {
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        match self.screen {
            Screen::Lines => self.say(&line()),
            Screen::Terminal => {
                self.is_line_open = true;
                notes::write(format!("{CLEAR}{}", line()));
            }
        }
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, line: &str) {
        let clear = if std::mem::take(&mut self.is_line_open) { CLEAR } else { "" };
        notes::note(format!("{clear}{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_line_open {
            notes::write(CLEAR.to_owned());
        }
        notes::flush();
    }
}
