//! Rules that one value alone cannot break: ranges, and values that must fit each other.

use super::{BackendConfig, HandlerKind};
use crate::sql::CellAddress;
use moorline_net::http::is_host_name;
use moorline_net::settings;
use std::net::IpAddr;
use std::time::Duration;

type Rules<'a> = settings::Rules<'a, BackendConfig>;

/// Services at once: each has a thread.
const WEBHOOKS_MAX: usize = 64;
/// Cells of a cluster: each has slots.
const CELLS_MAX: usize = 256;
/// Limit of `api.names`.
const NAMES_MAX: usize = 16;
/// Number of the last node: ids have ten bits for it.
const NODE_MAX: usize = 1023;
/// Limit of every payload, in bytes: the rest of a PUSH needs room in 1 MiB.
pub const PAYLOAD_BYTES_CEILING: usize = 1020 << 10;

/// Checks everything.
pub(super) fn check(rules: &mut Rules<'_>) {
    check_addresses(rules);
    check_counts(rules);
    check_times(rules);
    check_retention(rules);
    check_webhooks(rules);
    check_login_hook(rules);
    check_store(rules);
}

fn check_addresses(rules: &mut Rules<'_>) {
    let BackendConfig { listen, api, handler, link, .. } = rules.config();
    let is_encrypted = link.tls.set().is_some();
    rules.require(is_encrypted || listen.ip().is_none_or(|listen| is_private(listen.ip())), "listen", || {
        format!("{listen} is public and the link is not encrypted; use a loopback or private address, or set link.tls")
    });
    let is_any = !link.tls.is_empty();
    for (key, is_named) in link.tls.needed() {
        rules.require(!is_any || is_named, &format!("link.tls.{key}"), || {
            "ca_file, certificate_file and key_file belong together; set all of them, or leave link.tls empty".into()
        });
    }
    rules.require(!is_any || listen.ip().is_some(), "link.tls.ca_file", || {
        "a Unix socket needs no TLS, because the system tells who is at its other end; leave link.tls empty".into()
    });
    let is_valid = api.names.len() <= NAMES_MAX && api.names.iter().all(|name| is_host_name(name));
    rules.require(is_valid, "api.names", || {
        format!("expected at most {NAMES_MAX} host names without a port, such as \"im.internal\"")
    });
    let Some(listen) = api.listen else { return };
    let [has_certificate, has_key] =
        [&api.certificate_file, &api.key_file].map(|file| !file.as_os_str().is_empty());
    rules.require(has_certificate == has_key, "api.key_file", || {
        "api.certificate_file and api.key_file belong together; set both, or leave both empty".into()
    });
    rules.require(has_certificate || is_private(listen.ip()), "api.listen", || {
        format!(
            "{listen} is public and the API is not encrypted; use a loopback or private address, or set \
             api.certificate_file and api.key_file"
        )
    });
    rules.require(*handler == HandlerKind::Im, "api.listen", || {
        "only the handler \"im\" has the server API; set handler = \"im\", or leave api.listen empty".into()
    });
    let has_token = [&api.token_file, &api.access_file].iter().any(|file| !file.as_os_str().is_empty());
    rules.require(has_token, "api.listen", || {
        "the API needs a token; set api.token_file to a file with a token of at least 16 bytes, or api.access_file"
            .into()
    });
}

fn check_store(rules: &mut Rules<'_>) {
    let BackendConfig { store, im, handler, listen, .. } = rules.config();
    if !store.is_cluster() {
        return;
    }
    rules.require(store.cells.len() <= CELLS_MAX, "store.cells", || {
        format!("expected at most {CELLS_MAX} cells")
    });
    for cell in &store.cells {
        let fault = cell.parse::<CellAddress>().err();
        rules.require(fault.is_none(), "store.cells", || {
            let cause = fault.map(|fault| fault.to_string()).unwrap_or_default();
            format!("{cause} (in a flag or a variable, write the list in brackets: a host may have commas)")
        });
    }
    rules.require(im.folder.as_os_str().is_empty(), "im.folder", || {
        "a node of a cluster keeps nothing on its disk; leave im.folder or store.cells empty".into()
    });
    rules.require(*handler == HandlerKind::Im, "store.cells", || {
        "only the handler \"im\" has a store; set handler = \"im\", or leave store.cells empty".into()
    });
    let is_reachable =
        listen.ip().is_none_or(|listen| !listen.ip().is_unspecified()) || store.address.is_some();
    rules.require(is_reachable, "store.address", || {
        format!("other nodes cannot connect to {listen}; set the address that they use")
    });
    rules.require(im.webhooks.is_empty(), "im.webhooks", || {
        "a node of a cluster calls no webhooks yet; leave im.webhooks or store.cells empty".into()
    });
}

fn check_counts(rules: &mut Rules<'_>) {
    let BackendConfig { link, im, api, node_number, .. } = rules.config();
    rules.count("node_number", usize::from(*node_number), 0..=NODE_MAX);
    rules.count("im.work_share", im.work_share, 1..=100);
    rules.count("im.users_reserved", im.users_reserved, 0..=100);
    for (key, value) in [
        ("link.credit", link.credit as usize),
        ("link.links_max", link.links_max),
        ("link.visitors_max", link.visitors_max),
        ("link.gateways_max", link.gateways_max),
        ("link.sessions_max", link.sessions_max),
        ("link.rooms_max", link.rooms_max),
        ("link.mailbox", link.mailbox),
        ("im.inbox_entries_max", im.inbox_entries_max),
        ("im.idempotency_entries_max", im.idempotency_entries_max),
        ("im.outstanding", im.outstanding),
        ("im.pull_messages_max", im.pull_messages_max),
        ("im.group_members_max", im.group_members_max),
        ("im.fanout_members_max", im.fanout_members_max),
        ("im.first_rank_members", im.first_rank_members),
        ("im.second_rank_members", im.second_rank_members),
        ("im.relations_max", im.relations_max),
        ("im.requests_max", im.requests_max),
        ("im.signal_rate", im.signal_rate),
        ("im.blocks_max", im.blocks_max),
        ("im.devices_max", im.devices_max),
        ("im.users_max", im.users_max),
        ("im.conversations_max", im.conversations_max),
        ("im.members_total_max", im.members_total_max),
        ("api.connections_max", api.connections_max),
    ] {
        // Ids of users, sessions and conversations are 32 bits.
        rules.count(key, value, 1..=u32::MAX as usize);
    }
    for (key, value) in [
        ("link.output_max", link.output_max),
        ("im.payload_max", im.payload_max),
        ("im.signal_max", im.signal_max),
        ("api.body_max", api.body_max),
    ] {
        rules.size(key, size(value), 1..=u64::from(u32::MAX));
    }
    rules.size("im.undelivered_max", size(im.undelivered_max), 16 << 20..=1 << 40);
    rules.count("im.undelivered_files_max", im.undelivered_files_max, 2..=1_000_000);
    rules.size("audit.size_max", size(rules.config().audit.size_max), 64 << 10..=4 << 30);
    rules.require(im.payload_max <= PAYLOAD_BYTES_CEILING, "im.payload_max", || {
        format!("{} is too large: a PUSH body is at most 1MiB; set at most 1020KiB", size(im.payload_max))
    });
    let (first, second) = (im.first_rank_members, im.second_rank_members);
    rules.require(first <= second, "im.second_rank_members", || {
        format!("{second} is below im.first_rank_members, which is {first}; set at least {first}")
    });
    rules.at_least("im.history_max", size(im.history_max), "im.payload_max", size(im.payload_max));
}

fn check_times(rules: &mut Rules<'_>) {
    let BackendConfig { link, im, .. } = rules.config();
    for (key, value) in [
        ("link.stall_timeout", link.stall_timeout),
        ("link.hello_timeout", link.hello_timeout),
        ("link.silence_timeout", link.silence_timeout),
        ("link.lease", link.lease),
        ("im.idempotency_window", im.idempotency_window),
    ] {
        rules.require(!value.is_zero(), key, || "0s is out of range, expected more".into());
    }
}

fn check_retention(rules: &mut Rules<'_>) {
    const MINUTE: Duration = Duration::from_secs(60);
    let retention = rules.config().im.retention;
    if !retention.is_zero() {
        rules.time("im.retention", retention, MINUTE..=MINUTE * 60 * 24 * 36_500);
    }
}

fn check_webhooks(rules: &mut Rules<'_>) {
    let webhooks = &rules.config().im.webhooks;
    rules.require(webhooks.len() <= WEBHOOKS_MAX, "im.webhooks", || {
        format!("{} webhooks are too many: each has a thread; name at most {WEBHOOKS_MAX}", webhooks.len())
    });
    for (name, webhook) in webhooks {
        // It is the name of a file too.
        let is_named = crate::im::names::is_valid(name) && !name.contains('/') && !name.starts_with('.');
        rules.require(is_named, &format!("im.webhooks.{name}"), || {
            "a webhook needs a name that a user can have, without / and not beginning with a dot".into()
        });
        rules.require(is_url(&webhook.url), &format!("im.webhooks.{name}.url"), || {
            format!(
                "`{}` is not http:// or https:// with a host, and a port from 1 to 65535 if any",
                webhook.url
            )
        });
        for (key, is_above) in [
            ("batch_max", webhook.batch_max > 0),
            ("timeout", !webhook.timeout.is_zero()),
            ("give_up_after", !webhook.give_up_after.is_zero()),
        ] {
            rules.require(is_above, &format!("im.webhooks.{name}.{key}"), || "must be above 0".into());
        }
    }
}

fn check_login_hook(rules: &mut Rules<'_>) {
    const SECOND: Duration = Duration::from_secs(1);
    let BackendConfig { login_hook: hook, tokens_file, handler, .. } = rules.config();
    rules.time("login_hook.timeout", hook.timeout, SECOND / 20..=SECOND * 60);
    rules.time("login_hook.cache_time", hook.cache_time, Duration::ZERO..=SECOND * 3600);
    rules.time("login_hook.pause", hook.pause, SECOND / 10..=SECOND * 300);
    rules.count("login_hook.threads", hook.threads, 1..=64);
    rules.count("login_hook.queue_max", hook.queue_max, 1..=65_536);
    rules.count("login_hook.cache_max", hook.cache_max, 1..=10_000_000);
    rules.count("login_hook.failures_max", hook.failures_max, 1..=1000);
    if hook.url.is_empty() {
        return;
    }
    rules.require(is_url(&hook.url), "login_hook.url", || {
        format!("`{}` is not http:// or https:// with a host, and a port from 1 to 65535 if any", hook.url)
    });
    let is_alone = tokens_file.as_os_str().is_empty() && *handler == HandlerKind::Im;
    rules.require(is_alone, "login_hook.url", || {
        "a login hook needs handler = \"im\" and no tokens_file; remove one of them".into()
    });
}

fn is_url(url: &str) -> bool {
    let url: Option<ureq::http::Uri> = url.parse().ok();
    url.is_some_and(|url| {
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        let at = url.authority().and_then(|authority| authority.as_str().rsplit('@').next());
        // An invalid port is treated like a missing one.
        let has_port = url.port_u16().is_some_and(|port| port > 0);
        is_http && url.host().is_some_and(|host| !host.is_empty() && (has_port || at == Some(host)))
    })
}

fn size(bytes: usize) -> settings::units::ByteSize {
    settings::units::ByteSize::new(bytes as u64)
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}
