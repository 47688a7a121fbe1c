//! The figures of one run, for people and for machines.

use crate::checker::{Tally, Verdict};
use crate::judgement::{Judged, Judgement};
use crate::latency::Quantiles;
use crate::number::{count, mebibytes, millis, rate, ratio};
use crate::observer::Observer;
use crate::play::{Killed, Measured};
use crate::roster::Roster;
use crate::size::{Pace, Size};
use crate::upgrade::{Restarted, Upgraded};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Version of the JSON form; it grows when a field changes its meaning or goes.
const SCHEMA: u32 = 2;

/// Everything a run found out; printed as a block of text, or serialised.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    is_pass: bool,
    judgement: Judgement,
    /// Faults that are proven.
    reasons: Vec<String>,
    /// Things that could not be judged.
    doubts: Vec<String>,
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
    /// Folder of the logs; `None`: they were not kept.
    logs: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct SizeFigures {
    pub(crate) connections: u32,
    /// Connections over TLS 1.3 that stood at the end.
    pub(crate) encrypted: usize,
    pub(crate) users: usize,
    pub(crate) groups: usize,
    pub(crate) pace: Pace,
    pub(crate) why: String,
}

impl SizeFigures {
    /// The size of a run, with the connections over TLS at its end and the pace of its chat.
    pub(crate) fn of(size: Size, roster: &Roster, encrypted: usize, pace: Pace) -> Self {
        let Size { connections, rate_max: _, why } = size;
        let (users, groups) = (roster.users.len(), roster.groups().count());
        Self { connections, encrypted, users, groups, pace, why }
    }
}

/// A message is one send; its deliveries are counted apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct MessageFigures {
    sent: u64,
    durable: u64,
    deliveries: u64,
    chat_seconds: f64,
    sent_per_second: f64,
    delivered_per_second: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct IntegrityFigures {
    lost: u64,
    undelivered: u64,
    pulled: u64,
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

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ClientFigures {
    /// Delay of a message against the schedule when it left.
    pub(crate) lag_p99_ms: f64,
    /// Logins that were lost for another reason than slowness, and the first reason.
    pub(crate) dropped_logins: u64,
    pub(crate) first_drop: String,
    /// Logins that were lost because one side was too slow for the other.
    pub(crate) slow_logins: u64,
}

impl ClientFigures {
    /// Figures that the clients have noted.
    pub(crate) fn of(observer: &Observer) -> Self {
        Self {
            lag_p99_ms: observer.lag.quantiles().p99_ms,
            dropped_logins: observer.dropped_logins,
            first_drop: observer.first_drop.clone(),
            slow_logins: observer.slow_logins,
        }
    }
}

/// Material of a report.
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

impl MessageFigures {
    /// Figures of a chat: what was counted since `before`.
    pub(crate) fn new(tally: Tally, before: Tally, chat: Duration, until_drained: Duration) -> Self {
        let (sent, durable) = (tally.sent - before.sent, tally.stored - before.stored);
        let deliveries = tally.delivered - before.delivered;
        Self {
            sent,
            durable,
            deliveries,
            chat_seconds: chat.as_secs_f64(),
            sent_per_second: rate(sent, chat),
            delivered_per_second: rate(deliveries, until_drained),
        }
    }
}

impl IntegrityFigures {
    pub(crate) const fn new(verdict: &Verdict, pulled: u64) -> Self {
        let tally = verdict.tally;
        Self {
            lost: verdict.lost,
            undelivered: verdict.undelivered,
            pulled,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            corrupted: tally.corrupted,
            unanswered: verdict.unanswered,
            failed: tally.failed,
            answered_again: tally.answered_again,
        }
    }
}

impl Report {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { seed, size, measured, verdict, durable, delivered, clients, admin } = parts;
        let Judged { judgement, faults, doubts } = Judged::new(&verdict, &measured, &clients);
        let integrity = IntegrityFigures::new(&verdict, measured.pulled);
        let messages =
            MessageFigures::new(verdict.tally, measured.before, measured.chat, measured.until_drained);
        let restart = match measured.restart {
            Some(Upgraded::Committed(restarted)) => Some(restarted),
            Some(Upgraded::Undone { .. }) | None => None,
        };
        let per_million = |cpu: Duration| cpu.as_secs_f64() * 1e6 * ratio(1, messages.durable);
        let grown = measured.rss_idle.saturating_sub(measured.rss_before);
        Self {
            schema: SCHEMA,
            is_pass: judgement == Judgement::Pass,
            judgement,
            reasons: faults,
            doubts,
            seed,
            messages,
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
            restart,
            kill: measured.kill,
            admin,
            logs: None,
        }
    }

    pub(crate) fn with_logs(mut self, logs: Option<PathBuf>) -> Self {
        self.logs = logs;
        self
    }

    /// The verdict of the run.
    pub const fn judgement(&self) -> Judgement {
        self.judgement
    }

    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "size        {}", self.size.why)?;
        write_pace(f, self.size.pace)?;
        writeln!(f, "admin       http://{} while it ran", self.admin)?;
        if let Some(logs) = &self.logs {
            writeln!(f, "logs        {}", logs.display())?;
        }
        write_judged(f, self.judgement, &self.reasons, &self.doubts)
    }
}

/// Writes the first line of a report.
pub(crate) fn write_head(
    f: &mut fmt::Formatter<'_>,
    size: &SizeFigures,
    messages: &MessageFigures,
) -> fmt::Result {
    let (connections, users) = (count(size.connections.into()), count(size.users as u64));
    let groups = count(size.groups as u64);
    writeln!(
        f,
        "chat {:.0}s   connections {connections}   users {users}   groups {groups}   sent {:.0}/s   delivered {:.0}/s",
        messages.chat_seconds, messages.sent_per_second, messages.delivered_per_second,
    )
}

/// Writes the table of times.
pub(crate) fn write_times(
    f: &mut fmt::Formatter<'_>,
    durable: &Quantiles,
    delivered: &Quantiles,
) -> fmt::Result {
    writeln!(f, "{:<18}{:>9}{:>9}{:>9}{:>9}{:>11}", "", "p50", "p99", "p99.9", "max", "count")?;
    for (name, told) in [("send > durable", durable), ("send > delivered", delivered)] {
        let times = [told.p50_ms, told.p99_ms, told.p999_ms, told.max_ms].map(millis);
        let [p50, p99, p999, max] = &times;
        writeln!(f, "{name:<18}{p50:>9}{p99:>9}{p999:>9}{max:>9}{:>11}", count(told.count))?;
    }
    Ok(())
}

/// Writes the rate, if the demo has found it.
pub(crate) fn write_pace(f: &mut fmt::Formatter<'_>, pace: Pace) -> fmt::Result {
    let Pace { rate, calibrated: Some(calibrated) } = pace else { return Ok(()) };
    let (rate, calibrated) = (count(rate.into()), count(calibrated.into()));
    writeln!(f, "rate        {rate} messages a second, after a short run with {calibrated}")
}

/// Writes reasons and the verdict.
pub(crate) fn write_judged(
    f: &mut fmt::Formatter<'_>,
    judgement: Judgement,
    reasons: &[String],
    doubts: &[String],
) -> fmt::Result {
    for reason in reasons {
        writeln!(f, "FAIL        {reason}")?;
    }
    for doubt in doubts {
        writeln!(f, "BUSY        {doubt}")?;
    }
    match judgement {
        Judgement::Pass => writeln!(f, "PASS"),
        Judgement::Fail => writeln!(f, "FAIL"),
        Judgement::Busy => {
            writeln!(f, "BUSY: this machine was too busy to judge; nothing is proven to be wrong")
        }
    }
}

impl fmt::Display for IntegrityFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "integrity   lost {}   undelivered {}   duplicated {}   reordered {}   corrupted {}   unanswered {}",
            self.lost, self.undelivered, self.duplicated, self.reordered, self.corrupted, self.unanswered
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, integrity, gateway, backend, clients, .. } = self;
        let connections = count(self.size.connections.into());
        write_head(f, &self.size, messages)?;
        write_times(f, &self.send_to_durable, &self.send_to_delivered)?;
        writeln!(f, "{integrity}")?;
        writeln!(
            f,
            "encrypted   TLS 1.3 on {} connections at the end, by a certificate of this run",
            count(self.size.encrypted as u64)
        )?;
        if let Some(Restarted { pause_ms, sockets }) = self.restart {
            writeln!(
                f,
                "restart     in the middle of it: a new process, {} sockets moved, stood still for {pause_ms:.1} ms, dropped {}",
                count(sockets),
                clients.dropped_logins
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
            clients.dropped_logins + clients.slow_logins,
            self.seed
        )?;
        self.write_verdict(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_computed_from_what_was_measured() {
        let restarted = Restarted { pause_ms: 12.34, sockets: 1_003 };
        let before = Tally { sent: 500, stored: 500, delivered: 1_400, ..Tally::default() };
        let tally = Tally { sent: 10_500, stored: 10_500, delivered: 29_400, ..Tally::default() };
        let measured = Measured {
            pace: Pace { rate: 5_000, calibrated: Some(15_000) },
            before,
            rss_before: 5 << 20,
            rss_idle: (5 << 20) + 1_000 * 300,
            gateway_cpu: Duration::from_millis(500),
            backend_cpu: Duration::from_millis(100),
            chat: Duration::from_secs(2),
            until_drained: Duration::from_secs(4),
            refused: 0,
            pulled: 0,
            secure: 1_000,
            restart: Some(Upgraded::Committed(restarted)),
            restart_tries: 1,
            kill: Some(Killed { silent_ms: 345.6 }),
        };
        let pace = measured.pace;
        let size = SizeFigures {
            connections: 1_000,
            encrypted: 1_000,
            users: 910,
            groups: 60,
            pace,
            why: "it fits".into(),
        };
        let (faults, doubts) = (Vec::new(), Vec::new());
        let report = Report::new(Parts {
            seed: 7,
            size,
            measured,
            verdict: Verdict { lost: 0, undelivered: 0, unanswered: 0, tally, faults, doubts },
            durable: Quantiles::default(),
            delivered: Quantiles::default(),
            clients: ClientFigures {
                lag_p99_ms: 0.5,
                dropped_logins: 0,
                first_drop: String::new(),
                slow_logins: 0,
            },
            admin: "127.0.0.1:1".into(),
        });
        let text = report.to_string();
        for part in [
            "connections 1,000",
            "sent 5000/s",
            "delivered 7000/s",
            "gateway 300 bytes per idle connection",
            "gateway 50 s, backend 10 s per million messages, each with its 2.8 deliveries",
            "TLS 1.3 on 1,000 connections at the end",
            "1,003 sockets moved, stood still for 12.3 ms, dropped 0",
            "the next message was durable after 346 ms",
            "size        it fits",
            "rate        5,000 messages a second, after a short run with 15,000",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(report.judgement() == Judgement::Pass && text.ends_with("\nPASS\n"), "{text}");
        let json = serde_json::to_value(&report).expect("serialises");
        assert_eq!(json["gateway"]["bytes_per_connection"], 300);
        assert_eq!((&json["is_pass"], &json["judgement"]), (&true.into(), &"pass".into()));
    }
}
