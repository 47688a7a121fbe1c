//! Results of a scenario, in a form that adds up over loops and processes.

use crate::integrity::Tally;
use crate::record::{Distributions, Latencies, Metric};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Results of a scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// Faults of messages.
    pub tally: Tally,
    /// Latencies while measuring.
    pub latencies: Distributions,
    /// Lag of the generator itself; open loop only.
    pub lag: Latencies,
    /// Messages that were due while measuring; open loop only.
    pub offered: u64,
    /// Messages that were due and never left, because the server answered too slowly.
    pub unsent: u64,
    /// Deliveries that came again over a new connection, which the protocol allows and clients drop.
    pub repeated: u64,
    /// Longest time without any answer or delivery while measuring.
    pub silence: Duration,
    /// Bytes that the generator keeps per client, without what sockets cost the kernel.
    pub client_bytes: u64,
}

impl Findings {
    /// Adds what another process found.
    pub fn merge(&mut self, other: &Self) {
        self.tally.merge(&other.tally);
        self.latencies.merge(&other.latencies);
        self.lag.merge(&other.lag);
        self.offered += other.offered;
        self.unsent += other.unsent;
        self.repeated += other.repeated;
        self.silence = self.silence.max(other.silence);
        self.client_bytes = self.client_bytes.max(other.client_bytes);
    }
}

/// Counters of a scenario: the whole measuring time, and its last second.
#[derive(Debug)]
pub struct Recorder {
    /// The whole.
    pub findings: Findings,
    main: Metric,
    second: Latencies,
}

impl Recorder {
    /// `main` is the latency that is shown second by second.
    pub fn new(main: Metric) -> Self {
        Self { findings: Findings::default(), main, second: Latencies::default() }
    }

    /// Counts a latency.
    pub fn record(&mut self, metric: Metric, latency: Duration) {
        self.findings.latencies.record(metric, latency);
        if metric == self.main {
            self.second.record(latency);
        }
    }

    /// Main latencies recorded since the last call.
    pub fn take_second(&mut self) -> Latencies {
        let taken = self.second.clone();
        self.second.clear();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_taken_once_and_the_whole_stays() {
        let mut recorder = Recorder::new(Metric::Answer);
        recorder.record(Metric::Answer, Duration::from_millis(1));
        recorder.record(Metric::AnswerRaw, Duration::from_millis(2));
        assert_eq!(recorder.take_second().len(), 1);
        assert!(recorder.take_second().is_empty());
        assert_eq!(recorder.findings.latencies.iter().count(), 2);
    }

    #[test]
    fn findings_add_up_across_processes() {
        let mut one = Findings { offered: 2, silence: Duration::from_millis(5), ..Findings::default() };
        one.tally.lost = 1;
        one.latencies.record(Metric::Deliver, Duration::from_millis(1));
        let sent = serde_json::to_string(&one).unwrap();
        let mut sum = Findings { silence: Duration::from_millis(9), ..Findings::default() };
        sum.merge(&serde_json::from_str(&sent).unwrap());
        sum.merge(&one);
        assert_eq!((sum.offered, sum.tally.lost, sum.silence), (4, 2, Duration::from_millis(9)));
        assert_eq!(sum.latencies.get(Metric::Deliver).unwrap().len(), 2);
    }
}
