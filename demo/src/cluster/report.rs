//! The figures of a run with a cluster, for people and for machines.

use super::acts::{Loss, Measured, Survived};
use crate::checker::Verdict;
use crate::judgement::{Judged, Judgement};
use crate::latency::Quantiles;
use crate::number::{count, millis};
use crate::report::{
    ClientFigures, IntegrityFigures, MessageFigures, SizeFigures, write_head, write_judged, write_pace,
    write_times,
};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Version of the JSON form; it grows when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Everything a run found out; printed as a block of text, or serialised.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterReport {
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
    clients: ClientFigures,
    /// Servers that were killed, in order.
    survived: Vec<Survived>,
    /// Connections of the gateway that was killed.
    cut_off: u64,
    /// Folder of the logs; `None`: they were not kept.
    logs: Option<PathBuf>,
}

/// Material of a report.
pub(super) struct Parts {
    pub(super) seed: u64,
    pub(super) size: SizeFigures,
    pub(super) measured: Measured,
    pub(super) verdict: Verdict,
    pub(super) durable: Quantiles,
    pub(super) delivered: Quantiles,
    pub(super) clients: ClientFigures,
}

impl ClusterReport {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { seed, size, measured, verdict, durable, delivered, clients } = parts;
        let Judged { judgement, faults, doubts } = Judged::of_cluster(&verdict, &measured, &clients);
        Self {
            schema: SCHEMA,
            is_pass: judgement == Judgement::Pass,
            judgement,
            reasons: faults,
            doubts,
            seed,
            messages: MessageFigures::new(
                verdict.tally,
                measured.before,
                measured.chat,
                measured.until_drained,
            ),
            send_to_durable: durable,
            send_to_delivered: delivered,
            integrity: IntegrityFigures::new(&verdict, measured.pulled),
            size,
            clients,
            survived: measured.survived,
            cut_off: measured.cut_off,
            logs: None,
        }
    }

    pub(super) fn with_logs(mut self, logs: Option<PathBuf>) -> Self {
        self.logs = logs;
        self
    }

    /// The verdict of the run.
    pub const fn judgement(&self) -> Judgement {
        self.judgement
    }
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_head(f, &self.size, &self.messages)?;
        write_times(f, &self.send_to_durable, &self.send_to_delivered)?;
        writeln!(f, "{}", self.integrity)?;
        for Survived { loss, longest_ms } in &self.survived {
            let what = match loss {
                Loss::Gateway => {
                    format!("of a gateway: its {} clients went to the others", count(self.cut_off))
                }
                Loss::Node => "of a node: the others took its slots".to_owned(),
                Loss::Primary => "of the primary: a standby took its place".to_owned(),
            };
            writeln!(f, "kill -9     {what}; the slowest message was durable after {}", millis(*longest_ms))?;
        }
        writeln!(
            f,
            "            nothing that was killed came back; the times in the table are of before each kill"
        )?;
        writeln!(
            f,
            "encrypted   TLS 1.3 on {} connections at the end, by a certificate of this run",
            count(self.size.encrypted as u64)
        )?;
        writeln!(
            f,
            "clients     late by {} at p99 (part of the times above)   other logins lost {}   seed {}",
            millis(self.clients.lag_p99_ms),
            (self.clients.dropped_logins + self.clients.slow_logins).saturating_sub(self.cut_off),
            self.seed
        )?;
        writeln!(f, "size        {}", self.size.why)?;
        write_pace(f, self.size.pace)?;
        if let Some(logs) = &self.logs {
            writeln!(f, "logs        {}", logs.display())?;
        }
        write_judged(f, self.judgement, &self.reasons, &self.doubts)
    }
}
