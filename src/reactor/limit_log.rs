//! Log of limits that were reached: one line for all of them, at most every 10 s.

use moorline_proto::time::{Duration, Instant};
use std::fmt::Write;

/// Pause between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// The counters as of the last line.
#[derive(Debug, Default)]
pub(super) struct LimitLog {
    seen: Vec<u64>,
    next: Instant,
}

impl LimitLog {
    /// Returns the line to log: the counters that moved since the last line, and by how much. The counters must
    /// come in the same order each time. The first look only notes them: after a hot restart they go on.
    pub(super) fn look<'a>(
        &mut self,
        now: Instant,
        counters: impl Iterator<Item = (&'a str, u64)>,
    ) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + PAUSE;
        if self.seen.is_empty() {
            self.seen = counters.map(|(_, value)| value).collect();
            return None;
        }
        let mut line = String::new();
        for (index, (name, value)) in counters.enumerate() {
            let before = std::mem::replace(&mut self.seen[index], value);
            if value > before {
                let comma = if line.is_empty() { "" } else { ", " };
                write!(line, "{comma}{name} +{}", value - before).expect("a string takes everything");
            }
        }
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_and_a_calm_none() {
        let at = |seconds| Instant::from_nanos(seconds * 1_000_000_000);
        let mut log = LimitLog::default();
        assert_eq!(log.look(at(0), [("held", 0), ("shed", 0)].into_iter()), None);
        let lines =
            (1..=100).filter_map(|i| log.look(at(i / 10), [("held", i), ("shed", i * 2)].into_iter()));
        assert_eq!(lines.collect::<Vec<_>>(), ["held +100, shed +200"]);
        assert_eq!(log.look(at(30), [("held", 100), ("shed", 201)].into_iter()), Some("shed +1".to_owned()));
        assert_eq!(log.look(at(50), [("held", 100), ("shed", 201)].into_iter()), None);
    }

    #[test]
    fn counters_of_the_process_before_are_no_news() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let mut log = LimitLog::default();
        assert_eq!(log.look(at(0), [("held", 7)].into_iter()), None);
        assert_eq!(log.look(at(10), [("held", 9)].into_iter()), Some("held +2".to_owned()));
    }
}
