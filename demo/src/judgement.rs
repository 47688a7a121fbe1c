//! The verdict of a run: pass, fail, or too busy to judge. Pure.
//!
//! A fault is proven: a message is missing though a later one came, a byte differs, an answer came twice. A
//! doubt is something that was not finished in time. Faults make a FAIL, whatever else there is; doubts alone
//! say that the machine was too busy, and never that something is lost.

use crate::checker::Verdict;
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

impl Judged {
    pub(crate) fn new(verdict: &Verdict, measured: &Measured, clients: &ClientFigures) -> Self {
        let tally = verdict.tally;
        let mut faults = sentences(&[
            (verdict.lost, "deliveries lost"),
            (tally.duplicated, "deliveries duplicated"),
            (tally.reordered, "deliveries out of order"),
            (tally.corrupted, "messages or places that are not as sent"),
            (tally.failed.saturating_sub(measured.refused), "messages refused"),
            (tally.answered_again, "messages answered more than once"),
        ]);
        if clients.dropped_logins > 0 {
            faults.push(format!(
                "{} connections dropped, the first because {}",
                count(clients.dropped_logins),
                clients.first_drop
            ));
        }
        if tally.sent == measured.before.sent {
            faults.push("nothing was sent: --duration and --rate leave no message".to_owned());
        }
        let mut doubts = sentences(&[
            (verdict.unanswered, "messages unanswered: too busy to judge"),
            (verdict.undelivered, "deliveries not come yet: too busy to judge"),
            (measured.pulled, "deliveries that came only when they were asked for"),
            (
                measured.refused,
                "messages that a client did not take, its outbox was full: try a lower --rate",
            ),
            (clients.slow_logins, "connections ended because one side was too slow"),
        ]);
        let tries = measured.restart_tries;
        match &measured.restart {
            Some(Upgraded::Committed(_)) => {}
            Some(Upgraded::Undone { why, is_slowness }) => {
                let undone =
                    format!("the gateway's restart was undone {tries} times, the last time because {why}");
                if *is_slowness { doubts.push(undone) } else { faults.push(undone) }
            }
            None => doubts.push("the gateway's restart has no verdict".to_owned()),
        }
        if measured.kill.is_none() {
            doubts.push("after the backend was killed, no message was durable in time".to_owned());
        }
        // Words about messages that a client did not take are not faults.
        if !faults.is_empty() {
            faults.extend(verdict.faults.iter().cloned());
        }
        doubts.extend(verdict.doubts.iter().cloned());
        let judgement = match (faults.is_empty(), doubts.is_empty()) {
            (true, true) => Judgement::Pass,
            (true, false) => Judgement::Busy,
            (false, _) => Judgement::Fail,
        };
        Self { judgement, faults, doubts }
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
