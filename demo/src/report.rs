//! The figures of one run, for people and for machines.

use crate::checker::Verdict;
use crate::latency::Quantiles;
use crate::number::{count, mebibytes, millis, rate, ratio};
use crate::play::{Killed, Measured, Restarted};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Version of the JSON form; grows when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Everything a run found out; printed as a block of text, or serialised.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    is_pass: bool,
    /// Why it is no pass.
    reasons: Vec<String>,
    seed: u64,
    size: SizeFigures,
    messages: MessageFigures,
    send_to_durable: Quantiles,
    send_to_delivered: Quantiles,
    integrity: IntegrityFigures,
    gateway: GatewayFigures,
    backend: BackendFigures,
    clients: ClientFigures,
    restart: Option<Restarted>,
    kill: Option<Killed>,
    admin: String,
    /// Where the logs are, if they were kept.
    logs: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct SizeFigures {
    pub(crate) connections: u32,
    pub(crate) users: usize,
    pub(crate) groups: usize,
    pub(crate) why: String,
}

/// A message is one send; its deliveries are counted apart.
#[derive(Clone, Copy, Debug, Serialize)]
struct MessageFigures {
    sent: u64,
    durable: u64,
    deliveries: u64,
    chat_seconds: f64,
    sent_per_second: f64,
    delivered_per_second: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct IntegrityFigures {
    lost: u64,
    duplicated: u64,
    reordered: u64,
    corrupted: u64,
    unanswered: u64,
    failed: u64,
    answered_again: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct GatewayFigures {
    bytes_per_connection: u64,
    rss_before_bytes: u64,
    rss_idle_bytes: u64,
    cpu_seconds: f64,
    cpu_seconds_per_million_messages: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct BackendFigures {
    cpu_seconds: f64,
    cpu_seconds_per_million_messages: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ClientFigures {
    /// How late a message left, against the schedule.
    pub(crate) lag_p99_ms: f64,
    pub(crate) lost_logins: u64,
}

/// What a report is made of.
pub(crate) struct Parts {
    pub(crate) seed: u64,
    pub(crate) size: SizeFigures,
    pub(crate) measured: Measured,
    pub(crate) verdict: Verdict,
    pub(crate) durable: Quantiles,
    pub(crate) delivered: Quantiles,
    pub(crate) clients: ClientFigures,
    pub(crate) admin: String,
}

impl Report {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { seed, size, measured, verdict, durable, delivered, clients, admin } = parts;
        let tally = verdict.tally;
        let integrity = IntegrityFigures {
            lost: verdict.lost,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            corrupted: tally.corrupted,
            unanswered: verdict.unanswered,
            failed: tally.failed,
            answered_again: tally.answered_again,
        };
        let mut reasons = reasons(&integrity, tally.sent, measured.refused, verdict.faults);
        if clients.lost_logins > 0 {
            reasons.push(format!("{} connections dropped", count(clients.lost_logins)));
        }
        if measured.restart.is_none() && tally.sent > 0 {
            reasons.push("the gateway did not restart in the middle of the chat".into());
        }
        if measured.kill.is_none() && tally.sent > 0 {
            reasons.push("the backend was killed and did not store anything again".into());
        }
        let per_million = |cpu: Duration| cpu.as_secs_f64() * 1e6 * ratio(1, tally.stored);
        let grown = measured.rss_idle.saturating_sub(measured.rss_before);
        Self {
            schema: SCHEMA,
            is_pass: reasons.is_empty(),
            reasons,
            seed,
            messages: MessageFigures {
                sent: tally.sent,
                durable: tally.stored,
                deliveries: tally.delivered,
                chat_seconds: measured.chat.as_secs_f64(),
                sent_per_second: rate(tally.sent, measured.chat),
                delivered_per_second: rate(tally.delivered, measured.until_drained),
            },
            send_to_durable: durable,
            send_to_delivered: delivered,
            integrity,
            gateway: GatewayFigures {
                bytes_per_connection: grown / u64::from(size.connections.max(1)),
                rss_before_bytes: measured.rss_before,
                rss_idle_bytes: measured.rss_idle,
                cpu_seconds: measured.gateway_cpu.as_secs_f64(),
                cpu_seconds_per_million_messages: per_million(measured.gateway_cpu),
            },
            backend: BackendFigures {
                cpu_seconds: measured.backend_cpu.as_secs_f64(),
                cpu_seconds_per_million_messages: per_million(measured.backend_cpu),
            },
            size,
            clients,
            restart: measured.restart,
            kill: measured.kill,
            admin,
            logs: None,
        }
    }

    pub(crate) fn with_logs(mut self, logs: PathBuf) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Whether everything arrived once, in order, unaltered, and was answered once.
    pub const fn is_pass(&self) -> bool {
        self.is_pass
    }
}

/// Everything that speaks against a pass, the numbers first.
fn reasons(integrity: &IntegrityFigures, sent: u64, refused: u64, faults: Vec<String>) -> Vec<String> {
    let numbers = [
        (integrity.lost, "deliveries lost"),
        (integrity.duplicated, "deliveries duplicated"),
        (integrity.reordered, "deliveries out of order"),
        (integrity.corrupted, "messages or places that are not as sent"),
        (
            integrity.unanswered,
            "messages without answer by the end: if this machine is too slow for them, try a lower --rate",
        ),
        (integrity.failed, "messages not stored"),
        (integrity.answered_again, "messages answered more than once"),
        (refused, "messages that a client would not take: more than it can get rid of, try a lower --rate"),
    ];
    let told = numbers.into_iter().filter(|(number, _)| *number > 0);
    let mut reasons: Vec<String> = told.map(|(number, what)| format!("{} {what}", count(number))).collect();
    if sent == 0 {
        reasons.push("nothing was sent: --duration and --rate leave no message".to_owned());
    }
    reasons.extend(faults);
    reasons
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, integrity, gateway, backend, clients, .. } = self;
        let verdict = if self.is_pass { "PASS" } else { "FAIL" };
        let (connections, users) = (count(self.size.connections.into()), count(self.size.users as u64));
        let groups = count(self.size.groups as u64);
        writeln!(
            f,
            "chat {:.0}s   connections {connections}   users {users}   groups {groups}   sent {:.0}/s   delivered {:.0}/s",
            messages.chat_seconds, messages.sent_per_second, messages.delivered_per_second,
        )?;
        writeln!(f, "{:<18}{:>9}{:>9}{:>9}{:>9}{:>11}", "", "p50", "p99", "p99.9", "max", "count")?;
        let lines =
            [("send > durable", &self.send_to_durable), ("send > delivered", &self.send_to_delivered)];
        for (name, told) in lines {
            let times = [told.p50_ms, told.p99_ms, told.p999_ms, told.max_ms].map(millis);
            let [p50, p99, p999, max] = &times;
            writeln!(f, "{name:<18}{p50:>9}{p99:>9}{p999:>9}{max:>9}{:>11}", count(told.count))?;
        }
        writeln!(
            f,
            "integrity   lost {}   duplicated {}   reordered {}   corrupted {}   unanswered {}",
            integrity.lost,
            integrity.duplicated,
            integrity.reordered,
            integrity.corrupted,
            integrity.unanswered
        )?;
        if let Some(Restarted { pause_ms, sockets }) = self.restart {
            writeln!(
                f,
                "restart     in the middle of it: a new process, {} sockets moved, stood still for {pause_ms:.1} ms, dropped {}",
                count(sockets),
                clients.lost_logins
            )?;
        }
        if let Some(Killed { silent_ms }) = self.kill {
            writeln!(
                f,
                "kill -9     of the backend, later: the next message was durable after {silent_ms:.0} ms; the times above are of before"
            )?;
        }
        writeln!(
            f,
            "memory      gateway {} bytes per idle connection, one-time growth included: {} without clients, {} with {connections}",
            count(gateway.bytes_per_connection),
            mebibytes(gateway.rss_before_bytes),
            mebibytes(gateway.rss_idle_bytes),
        )?;
        writeln!(
            f,
            "cpu         gateway {:.0} s, backend {:.0} s per million messages, each with its {:.1} deliveries",
            gateway.cpu_seconds_per_million_messages,
            backend.cpu_seconds_per_million_messages,
            ratio(messages.deliveries, messages.durable),
        )?;
        writeln!(
            f,
            "clients     late by {} at p99 (part of the times above)   logins lost {}   seed {}",
            millis(clients.lag_p99_ms),
            clients.lost_logins,
            self.seed
        )?;
        writeln!(f, "size        {}", self.size.why)?;
        writeln!(f, "admin       http://{} while it ran", self.admin)?;
        if let Some(logs) = &self.logs {
            writeln!(f, "logs        {}", logs.display())?;
        }
        for reason in &self.reasons {
            writeln!(f, "FAIL        {reason}")?;
        }
        writeln!(f, "{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Tally;

    fn report(lost: u64, tally: Tally) -> Report {
        let measured = Measured {
            rss_before: 5 << 20,
            rss_idle: (5 << 20) + 1_000 * 300,
            gateway_cpu: Duration::from_millis(500),
            backend_cpu: Duration::from_millis(100),
            chat: Duration::from_secs(2),
            until_drained: Duration::from_secs(4),
            refused: 0,
            restart: Some(Restarted { pause_ms: 12.34, sockets: 1_003 }),
            kill: Some(Killed { silent_ms: 345.6 }),
        };
        let size = SizeFigures { connections: 1_000, users: 910, groups: 60, why: "it fits".into() };
        Report::new(Parts {
            seed: 7,
            size,
            measured,
            verdict: Verdict { lost, unanswered: 0, tally, faults: Vec::new() },
            durable: Quantiles::default(),
            delivered: Quantiles::default(),
            clients: ClientFigures { lag_p99_ms: 0.5, lost_logins: 0 },
            admin: "127.0.0.1:1".into(),
        })
    }

    const GOOD: Tally = Tally {
        sent: 10_000,
        stored: 10_000,
        repeated: 0,
        failed: 0,
        answered_again: 0,
        delivered: 28_000,
        duplicated: 0,
        reordered: 0,
        corrupted: 0,
    };

    #[test]
    fn figures_are_computed_from_what_was_measured() {
        let report = report(0, GOOD);
        let text = report.to_string();
        for part in [
            "connections 1,000",
            "sent 5000/s",
            "delivered 7000/s",
            "gateway 300 bytes per idle connection",
            "gateway 50 s, backend 10 s per million messages, each with its 2.8 deliveries",
            "1,003 sockets moved, stood still for 12.3 ms, dropped 0",
            "the next message was durable after 346 ms",
            "size        it fits",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(report.is_pass() && text.ends_with("\nPASS\n"), "{text}");
        let json = serde_json::to_value(&report).expect("serialises");
        assert_eq!(json["gateway"]["bytes_per_connection"], 300);
        assert_eq!(json["is_pass"], true);
    }

    #[test]
    fn each_fault_alone_is_a_fail_and_is_named() {
        let faults: [(u64, Tally, &str); 7] = [
            (1, GOOD, "1 deliveries lost"),
            (0, Tally { duplicated: 1, ..GOOD }, "duplicated"),
            (0, Tally { reordered: 1, ..GOOD }, "out of order"),
            (0, Tally { corrupted: 1, ..GOOD }, "not as sent"),
            (0, Tally { failed: 1, ..GOOD }, "not stored"),
            (0, Tally { answered_again: 1, ..GOOD }, "answered more than once"),
            (0, Tally::default(), "nothing was sent"),
        ];
        for (lost, tally, named) in faults {
            let report = report(lost, tally);
            let text = report.to_string();
            assert!(!report.is_pass() && text.contains(named) && text.ends_with("\nFAIL\n"), "{text}");
        }
    }
}
