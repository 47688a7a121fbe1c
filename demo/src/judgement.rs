//! The verdict of a run: pass, fail, or too busy to judge. Pure.
//!
//! A fault is proven: a message is missing though a later one came, a byte differs, an answer came twice. A
//! doubt is something that was not finished in time. Faults make a FAIL, whatever else there is; doubts alone
//! say that the machine was too busy, and never that something is lost.

use crate::checker::Verdict;
use crate::cluster;
use crate::number::count;
use crate::play::Measured;
use crate::report::ClientFigures;
use crate::upgrade::Upgraded;
use serde::Serialize;

/// Verdict of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Everything arrived once, in order, unaltered, and was answered once.
    Pass,
    /// At least one fault is proven.
    Fail,
    /// No fault is proven, and not everything was finished.
    Busy,
}

/// A verdict and its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) judgement: Judgement,
    /// Proven faults, the numbers first.
    pub(crate) faults: Vec<String>,
    /// Things that were not finished, the numbers first.
    pub(crate) doubts: Vec<String>,
}

/// Counts that any demo is judged by, beside those of the checker.
struct Counts<'a> {
    /// Messages that were sent before the chat.
    before: u64,
    /// Messages that a client did not take.
    refused: u64,
    /// Deliveries that came only when they were asked for.
    pulled: u64,
    /// Connections that were dropped and should not have been.
    dropped: u64,
    clients: &'a ClientFigures,
}

impl Judged {
    /// Judges the demo of one gateway and one backend.
    pub(crate) fn new(verdict: &Verdict, measured: &Measured, clients: &ClientFigures) -> Self {
        let mut judged = Self::of_messages(
            verdict,
            &Counts {
                before: measured.before.sent,
                refused: measured.refused,
                pulled: measured.pulled,
                dropped: clients.dropped_logins,
                clients,
            },
        );
        let tries = measured.restart_tries;
        match &measured.restart {
            Some(Upgraded::Committed(_)) => {}
            Some(Upgraded::Undone { why, is_slowness }) => {
                let undone =
                    format!("the gateway's restart was undone {tries} times, the last time because {why}");
                if *is_slowness { judged.doubts.push(undone) } else { judged.faults.push(undone) }
            }
            None => judged.doubts.push("the gateway's restart has no verdict".to_owned()),
        }
        if measured.kill.is_none() {
            judged.doubts.push("after the backend was killed, no message was durable in time".to_owned());
        }
        judged.conclude(verdict)
    }

    /// Judges the demo of a cluster: the connections of the gateway that was killed had to be dropped.
    pub(crate) fn of_cluster(
        verdict: &Verdict,
        measured: &cluster::Measured,
        clients: &ClientFigures,
    ) -> Self {
        let counts = Counts {
            before: measured.before.sent,
            refused: measured.refused,
            pulled: measured.pulled,
            dropped: clients.dropped_logins.saturating_sub(measured.cut_off),
            clients,
        };
        Self::of_messages(verdict, &counts).conclude(verdict)
    }

    fn of_messages(verdict: &Verdict, counts: &Counts<'_>) -> Self {
        let (tally, clients) = (verdict.tally, counts.clients);
        let mut faults = sentences(&[
            (verdict.lost, "deliveries lost"),
            (tally.duplicated, "deliveries duplicated"),
            (tally.reordered, "deliveries out of order"),
            (tally.corrupted, "messages or places that are not as sent"),
            (tally.failed.saturating_sub(counts.refused), "messages refused"),
            (tally.answered_again, "messages answered more than once"),
        ]);
        if counts.dropped > 0 {
            faults.push(format!(
                "{} connections dropped, the first because {}",
                count(counts.dropped),
                clients.first_drop
            ));
        }
        if tally.sent == counts.before {
            faults.push("nothing was sent: --duration and --rate leave no message".to_owned());
        }
        let doubts = sentences(&[
            (verdict.unanswered, "messages unanswered: too busy to judge"),
            (verdict.undelivered, "deliveries not come yet: too busy to judge"),
            (counts.pulled, "deliveries that came only when they were asked for"),
            (counts.refused, "messages that a client did not take, its outbox was full: try a lower --rate"),
            (clients.slow_logins, "connections ended because one side was too slow"),
        ]);
        Self { judgement: Judgement::Pass, faults, doubts }
    }

    /// Adds the checker's words, and decides.
    fn conclude(mut self, verdict: &Verdict) -> Self {
        // Words about messages that a client did not take are not faults.
        if !self.faults.is_empty() {
            self.faults.extend(verdict.faults.iter().cloned());
        }
        self.doubts.extend(verdict.doubts.iter().cloned());
        self.judgement = match (self.faults.is_empty(), self.doubts.is_empty()) {
            (true, true) => Judgement::Pass,
            (true, false) => Judgement::Busy,
            (false, _) => Judgement::Fail,
        };
        self
    }
}

/// The numbers above 0, in words.
fn sentences(numbers: &[(u64, &str)]) -> Vec<String> {
    let positive = numbers.iter().filter(|(number, _)| *number > 0);
    positive.map(|(number, what)| format!("{} {what}", count(*number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Tally;
    use crate::play::Killed;
    use crate::size::Pace;
    use crate::upgrade::Restarted;
    use std::time::Duration;

    /// A change of a run, and words that its reason holds.
    type Case = (fn(&mut Run), &'static str);

    struct Run {
        verdict: Verdict,
        measured: Measured,
        clients: ClientFigures,
    }

    /// A run without a fault, changed by `change`, and its judgement.
    fn judged(change: impl FnOnce(&mut Run)) -> Judged {
        let tally = Tally { sent: 10_000, stored: 10_000, delivered: 28_000, ..Tally::default() };
        let (faults, doubts) = (Vec::new(), Vec::new());
        let mut run = Run {
            verdict: Verdict { lost: 0, undelivered: 0, unanswered: 0, tally, faults, doubts },
            measured: Measured {
                pace: Pace { rate: 500, calibrated: None },
                before: Tally::default(),
                rss_before: 0,
                rss_idle: 0,
                gateway_cpu: Duration::ZERO,
                backend_cpu: Duration::ZERO,
                chat: Duration::from_secs(20),
                until_drained: Duration::from_secs(20),
                refused: 0,
                pulled: 0,
                secure: 100,
                restart: Some(Upgraded::Committed(Restarted { pause_ms: 1.0, sockets: 2 })),
                restart_tries: 1,
                kill: Some(Killed { silent_ms: 1.0 }),
            },
            clients: ClientFigures {
                lag_p99_ms: 0.0,
                dropped_logins: 0,
                first_drop: String::new(),
                slow_logins: 0,
            },
        };
        change(&mut run);
        Judged::new(&run.verdict, &run.measured, &run.clients)
    }

    #[test]
    fn a_run_without_fault_and_doubt_passes() {
        let judged = judged(|_| ());
        assert_eq!(judged.judgement, Judgement::Pass, "{judged:?}");
    }

    #[test]
    fn each_proven_fault_alone_fails_and_is_named() {
        let faults: [Case; 9] = [
            (|run| run.verdict.lost = 1, "1 deliveries lost"),
            (|run| run.verdict.tally.duplicated = 1, "duplicated"),
            (|run| run.verdict.tally.reordered = 1, "out of order"),
            (|run| run.verdict.tally.corrupted = 1, "not as sent"),
            (|run| run.verdict.tally.failed = 1, "refused"),
            (|run| run.verdict.tally.answered_again = 1, "answered more than once"),
            (|run| run.measured.before.sent = 10_000, "nothing was sent"),
            (|run| run.clients.dropped_logins = 1, "1 connections dropped"),
            (
                |run| {
                    let why = "the new process ended".into();
                    run.measured.restart = Some(Upgraded::Undone { why, is_slowness: false });
                },
                "undone 1 times, the last time because the new process ended",
            ),
        ];
        for (change, named) in faults {
            let judged = judged(change);
            assert_eq!(judged.judgement, Judgement::Fail, "{named}: {judged:?}");
            assert!(judged.faults.iter().any(|fault| fault.contains(named)), "{named}: {judged:?}");
        }
    }

    #[test]
    fn a_cluster_may_drop_the_connections_of_the_gateway_that_was_killed_and_no_others() {
        let tally = Tally { sent: 100, stored: 100, delivered: 280, ..Tally::default() };
        let (faults, doubts) = (Vec::new(), Vec::new());
        let verdict = Verdict { lost: 0, undelivered: 0, unanswered: 0, tally, faults, doubts };
        let measured = cluster::Measured {
            pace: Pace { rate: 10, calibrated: None },
            before: Tally::default(),
            survived: Vec::new(),
            cut_off: 33,
            chat: Duration::from_secs(3),
            until_drained: Duration::from_secs(3),
            refused: 0,
            pulled: 0,
            secure: 100,
        };
        let judged = |dropped_logins, verdict: &Verdict| {
            let first_drop = "socket".to_owned();
            let clients = ClientFigures { lag_p99_ms: 0.1, dropped_logins, first_drop, slow_logins: 0 };
            Judged::of_cluster(verdict, &measured, &clients)
        };
        assert_eq!(judged(33, &verdict).judgement, Judgement::Pass);
        let more = judged(34, &verdict);
        assert!(
            more.judgement == Judgement::Fail && more.faults[0].starts_with("1 connections dropped"),
            "{more:?}"
        );
        let lost = Verdict { lost: 1, ..verdict.clone() };
        assert_eq!(judged(33, &lost).judgement, Judgement::Fail);
        let open = Verdict { unanswered: 1, ..verdict };
        assert_eq!(judged(33, &open).judgement, Judgement::Busy);
    }

    #[test]
    fn each_doubt_alone_is_busy_and_never_says_lost() {
        let doubts: [Case; 8] = [
            (|run| run.verdict.unanswered = 1, "1 messages unanswered: too busy to judge"),
            (|run| run.verdict.undelivered = 11, "11 deliveries not come yet"),
            (|run| run.measured.pulled = 1, "only when they were asked for"),
            (|run| (run.measured.refused, run.verdict.tally.failed) = (2, 2), "--rate"),
            (|run| run.clients.slow_logins = 1, "too slow"),
            (|run| run.measured.restart = None, "no verdict"),
            (
                |run| {
                    let why = "worker-0 did not stand still in time".into();
                    run.measured.restart = Some(Upgraded::Undone { why, is_slowness: true });
                    run.measured.restart_tries = 5;
                },
                "undone 5 times, the last time because worker-0 did not stand still in time",
            ),
            (|run| run.measured.kill = None, "no message was durable in time"),
        ];
        for (change, named) in doubts {
            let judged = judged(change);
            assert_eq!(judged.judgement, Judgement::Busy, "{named}: {judged:?}");
            assert!(judged.doubts.iter().any(|doubt| doubt.contains(named)), "{named}: {judged:?}");
            assert!(!format!("{judged:?}").contains("lost"), "{judged:?}");
        }
    }

    #[test]
    fn a_real_loss_on_a_busy_machine_fails() {
        let judged = judged(|run| (run.verdict.lost, run.verdict.unanswered) = (3, 100));
        assert_eq!(judged.judgement, Judgement::Fail);
        assert!(judged.faults[0].starts_with("3 deliveries lost"), "{judged:?}");
    }
}
