//! Metrics of limits: how full the store is, quotas of users, work and signals.

use crate::im::{ClockStatus, DiskStatus, QuotaStatus, SignalStatus, Status, WorkStatus};
use moorline_net::cap::CapFigures;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};
use std::fmt;

/// Encodes the figures of limits. `link_caps`: those of the link port.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    status: &Status,
    link_caps: &[CapFigures],
) -> Result<(), fmt::Error> {
    let Status { members, limited, caps, quotas, work, signals, disk, clock, .. } = status;
    let ClockStatus { steps, ahead_ms, behind_ms } = *clock;
    let DiskStatus { free, is_low, put_off: disk_put_off } = *disk;
    let WorkStatus { units, put_off, waiting } = *work;
    for (name, help, value) in [
        ("members", "Memberships of all conversations.", *members),
        ("conversations_limited", "Conversations that are limited or frozen by order.", *limited),
        ("work_waiting", "Large requests that wait for their turn.", waiting),
        ("disk_free_bytes", "Free bytes of the disk of im.folder; 0: not known.", whole(free.unwrap_or(0))),
        ("clock_ahead_ms", "Milliseconds that the times in ids are ahead of the clock.", whole(ahead_ms)),
        ("clock_behind_ms", "Milliseconds that the times in ids are behind the clock.", whole(behind_ms)),
        ("erasing", "Deletions of which messages are still to be removed.", status.erasing),
        (
            "retention_behind_seconds",
            "Seconds by which the retention clock is behind the machine's.",
            whole(status.retention_behind_s),
        ),
        ("disk_low", "1 while only small writes pass: the disk is below im.disk_floor.", usize::from(is_low)),
    ] {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    for (name, help, value) in [
        ("work_units", "Estimated work of users, in microseconds of one processor.", units),
        ("work_put_off", "Messages and requests put off: the user's share of time was used up.", put_off),
        ("clock_steps", "Times that the clock was seen to be set, by a second or more.", steps),
        ("swept", "Messages removed by retention and deletion.", status.swept),
        ("disk_put_off", "Messages and requests put off: the disk is below im.disk_floor.", disk_put_off),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    let SignalStatus { passed, too_large, too_many, refused } = *signals;
    let outcomes =
        [("passed", passed), ("too_large", too_large), ("too_many", too_many), ("refused", refused)];
    counters(encoder, "signals", "Signals, by what became of them.", "outcome", outcomes.into_iter())?;
    let near = quotas.iter().map(|QuotaStatus { name, near, .. }| (*name, *near));
    counters(encoder, "quota_near", "Users who have reached 80% of a quota of a day.", "quota", near)?;
    let refused = quotas.iter().map(|QuotaStatus { name, refused, .. }| (*name, *refused));
    let help = "Requests and messages refused because of a quota of a day.";
    counters(encoder, "quota_refused", help, "quota", refused)?;
    let caps = || caps.iter().chain(link_caps);
    let used = caps().map(|CapFigures { name, used, .. }| (*name, *used));
    gauges(encoder, "cap_used", "Number of what a cap limits.", used)?;
    let max = caps().map(|CapFigures { name, max, .. }| (*name, *max));
    gauges(encoder, "cap_max", "The cap. At 80% of it the log has a line.", max)
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl Iterator<Item = (&'static str, u64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (of, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&[(label, of)])?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'static str, usize)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (of, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&[("cap", of)])?)?;
    }
    Ok(())
}

/// The figures of limits, as `/v1/status` has them.
pub(super) fn json(status: &Status, link_caps: &[CapFigures]) -> Value {
    let Status { members, caps, quotas, work, signals, disk, clock, .. } = status;
    let SignalStatus { passed, too_large, too_many, refused } = signals;
    let caps: Vec<_> = caps
        .iter()
        .chain(link_caps)
        .map(|it| json!({ "name": it.name, "used": it.used, "max": it.max }))
        .collect();
    let quotas: Vec<_> =
        quotas.iter().map(|it| json!({ "name": it.name, "near": it.near, "refused": it.refused })).collect();
    json!({
        "members": members, "conversations_limited": status.limited, "caps": caps, "quotas": quotas,
        "work_units": work.units, "work_put_off": work.put_off, "work_waiting": work.waiting,
        "clock": { "steps": clock.steps, "ahead_ms": clock.ahead_ms, "behind_ms": clock.behind_ms },
        "swept": status.swept, "erasing": status.erasing,
        "retention_behind_seconds": status.retention_behind_s,
        "disk": { "free": disk.free, "is_low": disk.is_low, "put_off": disk.put_off },
        "signals": { "passed": passed, "too_large": too_large, "too_many": too_many, "refused": refused },
    })
}
