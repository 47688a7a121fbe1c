//! Metrics of the backend, as OpenMetrics text.

use super::Counters;
use crate::im::{Status, WebhookStatus};
use crate::server::LinkFigures;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Media type of the page.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type OfWebhook = fn(&WebhookStatus) -> u64;

/// Names of the figures of webhooks, and of their label: the present one, and the one of version 0.1, which is listed until
/// the next release.
const WEBHOOK_NAMES: [&str; 2] = ["webhook", "service"];

#[derive(Debug)]
struct Figures(Status, Counters);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Status {
            users,
            conversations,
            sessions,
            committing,
            stored,
            repeated,
            refused,
            put_off,
            requests,
            acked,
            replaced,
            commits,
            stalls,
            takes_writes,
            ref webhooks,
            ..
        } = self.0;
        for (name, help, value) in [
            ("users", "Users that are known.", users),
            ("conversations", "Conversations that are known.", conversations),
            ("sessions", "Logins that stand.", sessions),
            ("committing", "Batches that are being made durable.", committing),
            ("takes_writes", "1 while the store takes writes.", usize::from(takes_writes)),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in [
            ("stored", "Messages stored.", stored),
            ("repeated", "Messages answered with an earlier result.", repeated),
            ("refused", "Messages and requests refused.", refused),
            ("put_off", "Messages and requests put off, the store being busy.", put_off),
            ("requests", "Requests.", requests),
            ("acked", "Pushes that were acknowledged, by session.", acked),
            (
                "replaced",
                "Pushes whose place a NOTIFY took, a device having ended its sessions before it acknowledged them.",
                replaced,
            ),
            ("commits", "Commits that became durable.", commits),
            ("stalls", "Commits that had to wait, the storage engine being behind.", stalls),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let links = self.1.links.read();
        encode_links(links, &mut encoder)?;
        super::limits::encode(&mut encoder, &self.0, &links.caps)?;
        encode_others(&self.1, &mut encoder)?;
        encode_node(&self.1, links, &mut encoder)?;
        encode_webhooks(&mut encoder, webhooks)?;
        let (name, help) = ("log_lines_dropped", "Log lines dropped instead of waiting for their reader.");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, lines) in [
            ("queue_full", self.1.dropped_lines.queue_full()),
            ("write_failed", self.1.dropped_lines.write_failed()),
        ] {
            ConstCounter::new(lines).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

fn encode_webhooks(
    encoder: &mut DescriptorEncoder<'_>,
    webhooks: &[WebhookStatus],
) -> Result<(), fmt::Error> {
    let counters: [(_, _, OfWebhook); 3] = [
        ("delivered", "Messages that the endpoint of a webhook took.", |it| it.delivered),
        ("failed", "Deliveries to the endpoint that failed; each is tried again.", |it| it.failed),
        ("given_up", "Messages that were given up.", |it| it.given_up),
    ];
    for prefix in WEBHOOK_NAMES {
        for (name, help, value) in counters {
            let name = format!("{prefix}_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for webhook in webhooks {
                let labels = [(prefix, &*webhook.name)];
                ConstCounter::new(value(webhook)).encode(family.encode_family(&labels)?)?;
            }
        }
        let (name, help) = (format!("{prefix}_failing"), "1 while the endpoint of a webhook fails.");
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for webhook in webhooks {
            let labels = [(prefix, &*webhook.name)];
            ConstGauge::new(i64::from(webhook.is_failing)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_links(figures: LinkFigures, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let LinkFigures { links, unproven, encrypted, strangers, evicted, refused, .. } = figures;
    let LinkFigures { group_rooms, group_rooms_lost, .. } = figures;
    for (name, help, value) in [
        ("links", "Links of gateways that are open.", links),
        ("links_unproven", "Links of gateways that proved nothing.", unproven),
        ("links_encrypted", "Links of gateways over TLS.", encrypted),
        ("group_rooms", "Large groups that have a room in the gateways.", group_rooms),
    ] {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    for (name, help, value) in [
        ("link_strangers", "Connections to the link port that never became links.", strangers),
        ("link_evicted", "Strangers that were closed for a newer one.", evicted),
        ("link_refused", "Strangers whose HELLO or proof was refused.", refused),
        (
            "group_rooms_lost",
            "Rooms of large groups that were given up: a link ended or was full.",
            group_rooms_lost,
        ),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

fn encode_node(
    counters: &Counters,
    links: LinkFigures,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let Some(node) = &counters.node else { return Ok(()) };
    let peers = ("node_peers", "Links to other nodes that are open.", links.peers);
    for (name, help, value) in node.gauges().into_iter().chain([peers]) {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    let lost = ("node_messages_lost", "Messages to other nodes that were dropped.", links.peers_lost);
    for (name, help, value) in node.counters().into_iter().chain([lost]) {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

fn encode_others(counters: &Counters, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let hook = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let Counters { audit, hook: of_hook, undelivered, .. } = counters;
    for (name, help, value) in [
        ("audit_lines_dropped", "Lines of the audit log that were dropped.", audit.dropped()),
        ("login_hook_asked", "Logins about which login_hook.url was asked.", hook(&of_hook.asked)),
        ("login_hook_cached", "Logins judged as they were judged before.", hook(&of_hook.cached)),
        ("login_hook_failed", "Questions to login_hook.url without a judgement.", hook(&of_hook.failed)),
        (
            "login_hook_turned_away",
            "Logins that may come back later: login_hook.url fails, or too many wait for it.",
            hook(&of_hook.turned_away),
        ),
        (
            "undelivered_removed",
            "Files of given-up deliveries that were removed for newer ones.",
            hook(&undelivered.removed),
        ),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    for (name, help, value) in [
        ("undelivered_bytes", "Bytes of deliveries that were given up.", hook(&undelivered.bytes)),
        ("undelivered_files", "Files of deliveries that were given up.", hook(&undelivered.files)),
    ] {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    Ok(())
}

pub(super) fn page(status: &Status, counters: &Counters) -> String {
    let mut registry = Registry::with_prefix("moorline_backend");
    registry.register_collector(Box::new(Figures(status.clone(), counters.clone())));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a String takes every write");
    page
}
