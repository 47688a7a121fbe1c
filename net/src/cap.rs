//! Watch over a cap: how much is used, and a log line at 80% ([`CapWatch`]).
//!
//! Example: `limits.connections_max = 1000`. The connection that makes 800 causes a line and `is_near`; from below 750 on
//! a line says that all is as usual, and 800 causes a line again.

use moorline_proto::line_limit::LineLimit;
use moorline_proto::time::Instant;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Share of a cap, in percent, from which it counts as near, and below which it counts as usual again.
const NEAR_PERCENT: u128 = 80;
const USUAL_PERCENT: u128 = 75;

/// Watch over one cap. Shared by threads.
#[derive(Debug)]
pub struct CapWatch {
    setting: &'static str,
    used: AtomicUsize,
    max: AtomicUsize,
    is_near: AtomicBool,
    lines: Mutex<LineLimit>,
}

/// A cap and the number that it limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapFigures {
    /// Name of the cap: the last part of its setting.
    pub name: &'static str,
    /// Number that is there.
    pub used: usize,
    /// Number that may be there; 0: no limit.
    pub max: usize,
}

impl CapWatch {
    /// Watches the cap with this setting, such as `limits.connections_max`.
    pub const fn new(setting: &'static str) -> Self {
        Self {
            setting,
            used: AtomicUsize::new(0),
            max: AtomicUsize::new(0),
            is_near: AtomicBool::new(false),
            lines: Mutex::new(LineLimit::new()),
        }
    }

    /// Notes how many there are and may be. Logs that the cap is near, or usual again, at most once in 10 s.
    pub fn note(&self, used: usize, max: usize, now: Instant) {
        self.used.store(used, Ordering::Relaxed);
        self.max.store(max, Ordering::Relaxed);
        let is_from = |percent: u128| used as u128 * 100 >= max as u128 * percent;
        let is_near = max > 0 && is_from(if self.is_near() { USUAL_PERCENT } else { NEAR_PERCENT });
        if is_near == self.is_near() || self.is_near.swap(is_near, Ordering::Relaxed) == is_near {
            return;
        }
        let Some(skipped) = self.lines.lock().unwrap_or_else(PoisonError::into_inner).allow(now) else {
            return;
        };
        let cap = self.setting;
        if is_near {
            tracing::warn!(cap, used, max, skipped, "80% of a cap are used; raise the setting in time");
        } else {
            tracing::info!(cap, used, max, skipped, "less than 75% of a cap are used again");
        }
    }

    /// Returns whether 80% are used, or were and 75% still are.
    pub fn is_near(&self) -> bool {
        self.is_near.load(Ordering::Relaxed)
    }

    /// Returns the figures as last noted.
    pub fn figures(&self) -> CapFigures {
        let name = self.setting.rsplit('.').next().unwrap_or(self.setting);
        let of = |cell: &AtomicUsize| cell.load(Ordering::Relaxed);
        CapFigures { name, used: of(&self.used), max: of(&self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_near_from_80_percent_until_it_is_usual_again() {
        let watch = CapWatch::new("im.users_max");
        let mut look = |used| {
            watch.note(used, 100, Instant::ZERO);
            watch.is_near()
        };
        assert_eq!([79, 80, 76, 74, 80].map(&mut look), [false, true, true, false, true]);
        assert_eq!(watch.figures(), CapFigures { name: "users_max", used: 80, max: 100 });
        watch.note(80, 0, Instant::ZERO);
        assert!(!watch.is_near(), "no limit");
        watch.note(usize::MAX, usize::MAX, Instant::ZERO);
        assert!(watch.is_near());
    }
}
