//! Rules that one value alone cannot break: ranges, and values that must fit each other.
//!
//! Reports every broken rule at once, each with the origin of the value it blames.

use super::{
    AuthMode, BackendConfig, Balance, Config, HANDSHAKE_THREADS_MAX, LISTENERS_MAX, LinkTlsConfig, Plain,
    REACTORS_MAX, WORKERS_MAX, format_duration, log_level,
};
use moorline_net::http::is_host_name;
use moorline_net::proxy::Trusted;
use moorline_net::settings::{self, path_of};
use moorline_net::tls::{CERTIFICATES_MAX, is_name_of_server};
use moorline_net::upgrade::Origins;
use moorline_proto::frame::{BATCH_FRAMES_MAX, BODY_BYTES_CEILING};
use std::time::Duration;

type Rules<'a> = settings::Rules<'a, Config>;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Limit of `gateway.id` and `auth.audience`, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Limit of `admin.names`.
const NAMES_MAX: usize = 16;

/// Limit of a listener's name, in bytes.
const LISTENER_NAME_BYTES_MAX: usize = 64;

/// Checks everything.
pub(super) fn check(rules: &mut Rules<'_>) {
    let config = rules.config();
    check_identity(rules, config);
    check_listeners(rules, config);
    check_tls(rules, config);
    check_threads(rules, config);
    check_times(rules, config);
    check_limits(rules, config);
    check_protection(rules, config);
    check_backend(rules, config);
}

/// Warnings about lawful settings.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.auth.mode == AuthMode::Dev {
        warnings.push(
            "auth.mode = \"dev\": TOKENS ARE NOT VERIFIED, anyone who reaches the listener is let in as \
             anybody; set auth.mode = \"jwt\" for anything but development"
                .to_owned(),
        );
    }
    if config.admin.enabled && !config.admin.address.ip().is_loopback() {
        warnings.push(format!(
            "admin.address {} is not on loopback: health and metrics are readable without login by all who reach it",
            config.admin.address
        ));
    }
    warnings
}

fn check_identity(rules: &mut Rules<'_>, config: &Config) {
    for (key, text) in [("gateway.id", &config.gateway.id), ("auth.audience", &config.auth.audience)] {
        rules.require(text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control), key, || {
            format!("expected at most {NAME_BYTES_MAX} bytes without control characters")
        });
    }
    let auth = &config.auth;
    match auth.mode {
        AuthMode::Dev => {
            for listener in &config.listeners {
                rules.require(listener.address.ip().is_loopback(), "auth.mode", || {
                    format!(
                        "\"dev\" lets anybody in, so listener.address must be on loopback and not {}; use \
                         auth.mode = \"jwt\" with auth.key_file, or a 127.0.0.1 listener",
                        listener.address
                    )
                });
            }
        }
        AuthMode::Backend => {}
        AuthMode::Jwt => rules.require(!auth.key_file.as_os_str().is_empty(), "auth.key_file", || {
            "mode \"jwt\" needs a key file; name one, or for development on this machine only use \
             auth.mode = \"dev\""
                .to_owned()
        }),
    }
    let level = log_level::parse(&config.log.level);
    rules.require(level.is_ok(), "log.level", || level.err().unwrap_or_default());
}

fn check_listeners(rules: &mut Rules<'_>, config: &Config) {
    let listeners = &config.listeners;
    rules.require(listeners.len() <= LISTENERS_MAX, "listener.address", || {
        format!("{} listeners, expected at most {LISTENERS_MAX}", listeners.len())
    });
    for (index, listener) in listeners.iter().enumerate() {
        let key = |name: &str| path_of("listener", index, name);
        let earlier = &listeners[..index];
        rules.count(&key("backlog"), listener.backlog as usize, 1..=65_535);
        rules.range(&key("accept_rate"), &listener.accept_rate, &(0..=1 << 24), ToString::to_string);
        rules.count(&key("handshakes_max"), listener.handshakes_max, 16..=1 << 20);
        rules.count(&key("address_handshakes"), listener.address_handshakes, 0..=1 << 20);
        rules.count(&key("address_connections"), listener.address_connections, 0..=1 << 24);
        rules.range(&key("address_rate"), &listener.address_rate, &(0..=1 << 20), ToString::to_string);
        let address = listener.address;
        let is_taken = address.port() != 0 && earlier.iter().any(|other| other.address == address);
        rules.require(!is_taken, &key("address"), || format!("two listeners have the address {address}"));
        let name = &listener.name;
        let is_name =
            name.len() <= LISTENER_NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
        let is_unique = name.is_empty() || earlier.iter().all(|other| other.name != *name);
        rules.require(is_name && is_unique, &key("name"), || {
            format!("expected at most {LISTENER_NAME_BYTES_MAX} visible ASCII characters that no other listener has")
        });
        rules.require(listener.uplink == listeners[0].uplink, &key("uplink"), || {
            "all listeners must have the same uplink: a session may be resumed at any of them".to_owned()
        });
        let networks = &listener.proxy_trusted;
        if let Err(error) = Trusted::parse(networks) {
            rules.require(false, &key("proxy_trusted"), || error.to_string());
        }
        let is_private = listener.kind.has_tls() || address.ip().is_loopback() || !networks.is_empty();
        rules.require(is_private || listener.plain == Plain::Accepted, &key("kind"), || {
            format!(
                "a listener at {address} without TLS shows tokens and messages to the network; use kind \"tls\" or \
                 \"wss\", or a loopback address, or proxy_trusted behind a load balancer, or plain = \"accepted\""
            )
        });
    }
}

fn check_tls(rules: &mut Rules<'_>, config: &Config) {
    let tls = &config.tls;
    let (certificates, keys) = (tls.certificates.len(), tls.keys.len());
    rules.require(certificates <= CERTIFICATES_MAX, "tls.certificates", || {
        format!("{certificates} files, expected at most {CERTIFICATES_MAX}")
    });
    rules.require(certificates == keys, "tls.keys", || {
        format!(
            "{keys} keys for {certificates} certificates; each certificate needs its key, in the same order"
        )
    });
    let has_tls = config.listeners.iter().any(|listener| listener.kind.has_tls());
    rules.require(!has_tls || certificates > 0, "tls.certificates", || {
        "a listener of kind tls or wss needs a certificate; name the file of one, and the file of its key in tls.keys"
            .to_owned()
    });
    let default = &tls.default;
    rules.require(
        default.as_os_str().is_empty() || tls.certificates.contains(default),
        "tls.default",
        || format!("{} is none of tls.certificates", default.display()),
    );
    rules.count("tls.handshake_threads", tls.handshake_threads, 0..=HANDSHAKE_THREADS_MAX);
    rules.count("tls.handshake_queue", tls.handshake_queue, 16..=65_536);
    if let Err(error) = Origins::parse(&config.websocket.origins) {
        rules.require(false, "websocket.origins", || error.to_string());
    }
}

fn check_threads(rules: &mut Rules<'_>, config: &Config) {
    rules.count("reactor.count", config.reactor.count, 0..=REACTORS_MAX);
    rules.size("reactor.read_budget", config.reactor.read_budget, 4 * KIB..=16 * MIB);
    rules.count("reactor.accept_budget", config.reactor.accept_budget, 1..=4096);
    rules.count("worker.count", config.worker.count, 0..=WORKERS_MAX);
    rules.count("worker.queue_batches", config.worker.queue_batches, 16..=65_536);
}

fn check_times(rules: &mut Rules<'_>, config: &Config) {
    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);
    let heartbeat = &config.heartbeat;
    rules.time("auth.leeway", config.auth.leeway, Duration::ZERO..=SECOND * 300);
    rules.time("auth.ttl_max", config.auth.ttl_max, Duration::ZERO..=HOUR * 8760);
    rules.time("auth.session_max", config.auth.session_max, Duration::ZERO..=HOUR * 8760);
    rules.time("heartbeat.min", heartbeat.min, SECOND..=HOUR);
    rules.time("heartbeat.max", heartbeat.max, SECOND..=HOUR);
    rules.require(heartbeat.min <= heartbeat.max, "heartbeat.min", || {
        let (min, max) = (format_duration(heartbeat.min), format_duration(heartbeat.max));
        format!("{min} is more than heartbeat.max = {max}")
    });
    // WELCOME carries both in whole seconds.
    for (key, value) in [("heartbeat.min", heartbeat.min), ("heartbeat.max", heartbeat.max)] {
        rules.require(value.subsec_nanos() == 0, key, || "expected whole seconds".to_owned());
    }
    rules.time("handover.timeout", config.handover.timeout, Duration::from_secs(1)..=HOUR / 6);
    let quiesce = Duration::from_millis(10)..=Duration::from_secs(10);
    rules.time("handover.quiesce_timeout", config.handover.quiesce_timeout, quiesce);
    rules.time("handover.pause_max", config.handover.pause_max, Duration::from_millis(100)..=HOUR / 12);
    rules.time("drain.grace", config.drain.grace, Duration::ZERO..=HOUR);
    let handshake = Duration::from_millis(100)..=SECOND * 300;
    rules.time("limits.handshake_timeout", config.limits.handshake_timeout, handshake);
    rules.time("limits.frame_timeout", config.limits.frame_timeout, SECOND..=HOUR);
    rules.time("session.keep", config.session.keep, Duration::ZERO..=HOUR);
    rules.time("session.ticket_ttl", config.session.ticket_ttl, SECOND * 60..=HOUR * 8760);
    rules.time("overload.latency", config.overload.latency, Duration::from_millis(1)..=SECOND * 60);
    rules.time("overload.hold", config.overload.hold, Duration::from_millis(100)..=SECOND * 600);
}

fn check_limits(rules: &mut Rules<'_>, config: &Config) {
    let limits = &config.limits;
    rules.size("limits.body_max", limits.body_max, KIB..=u64::from(BODY_BYTES_CEILING));
    rules.size("limits.hello_max", limits.hello_max, 256..=64 * KIB);
    rules.at_least("limits.body_max", limits.body_max, "limits.hello_max", limits.hello_max);
    rules.count("limits.downlink_frames", limits.downlink_frames, 1..=1024);
    rules.size("limits.downlink_bytes", limits.downlink_bytes, KIB..=16 * MIB);
    rules.size("limits.queue_bytes", limits.queue_bytes, KIB..=256 * MIB);
    rules.at_least("limits.queue_bytes", limits.queue_bytes, "limits.body_max", limits.body_max);
    rules.at_least("limits.queue_bytes", limits.queue_bytes, "limits.downlink_bytes", limits.downlink_bytes);
    rules.count("limits.queue_frames", limits.queue_frames, 1..=1 << 20);
    rules.at_least(
        "limits.queue_frames",
        limits.queue_frames,
        "limits.downlink_frames",
        limits.downlink_frames,
    );
}

fn check_protection(rules: &mut Rules<'_>, config: &Config) {
    let limits = &config.limits;
    rules.count("session.kept_max", config.session.kept_max, 0..=1 << 24);
    let session = &config.session;
    rules.count("session.mobile_max", session.mobile_max, 0..=32);
    rules.count("session.desktop_max", session.desktop_max, 0..=32);
    rules.count("session.web_max", session.web_max, 0..=32);
    rules.size("limits.collapse_bytes", limits.collapse_bytes, KIB..=256 * MIB);
    rules.time("limits.batch_age", limits.batch_age, Duration::ZERO..=Duration::from_secs(10));
    rules.count("limits.batch_frames", limits.batch_frames, 2..=BATCH_FRAMES_MAX);
    rules.count("limits.frame_rate", limits.frame_rate, 0..=1 << 20);
    rules.count("limits.user_rate", limits.user_rate, 0..=1 << 20);
    rules.size("limits.memory_watermark", limits.memory_watermark, MIB..=1 << 40);
    rules.size("limits.compress_min", limits.compress_min, 0..=u64::from(BODY_BYTES_CEILING));
    rules.count("overload.queue_frames", config.overload.queue_frames, 16..=1 << 20);
    rules.size("audit.size_max", config.audit.size_max, 64 * KIB..=4096 * MIB);
    let names = &config.admin.names;
    let is_valid = names.len() <= NAMES_MAX && names.iter().all(|name| is_host_name(name));
    rules.require(is_valid, "admin.names", || {
        format!("expected at most {NAMES_MAX} host names without a port, such as \"gw1.internal\"")
    });
    let alternates = &config.gateway.alternates;
    let is_named = |name: &String| is_host_port(name);
    rules.require(alternates.len() <= 8 && alternates.iter().all(is_named), "gateway.alternates", || {
        format!("expected at most 8 entries host:port of at most {NAME_BYTES_MAX} bytes")
    });
}

fn check_backend(rules: &mut Rules<'_>, config: &Config) {
    let backend = &config.backend;
    rules.require((1..=64).contains(&backend.endpoints.len()), "backend.endpoints", || {
        format!("{} endpoints, expected 1 to 64", backend.endpoints.len())
    });
    for (i, endpoint) in backend.endpoints.iter().enumerate() {
        let has_port = endpoint.port() != Some(0);
        rules.require(has_port, "backend.endpoints", || format!("{endpoint} has no port"));
        rules.require(!backend.endpoints[..i].contains(endpoint), "backend.endpoints", || {
            format!("{endpoint} stands twice")
        });
    }
    rules.count("backend.links_per_worker", backend.links_per_worker, 1..=16);
    let minute = Duration::from_secs(60);
    rules.time("backend.up_timeout", backend.up_timeout, Duration::from_millis(50)..=minute);
    rules.count("backend.parked_frames", backend.parked_frames, 64..=1 << 20);
    rules.size("backend.parked_bytes", backend.parked_bytes, KIB..=4096 * MIB);
    rules.at_least("backend.parked_bytes", backend.parked_bytes, "limits.body_max", config.limits.body_max);
    rules.size("backend.pending_bytes", backend.pending_bytes, KIB..=4096 * MIB);
    rules.at_least("backend.pending_bytes", backend.pending_bytes, "limits.body_max", config.limits.body_max);
    rules.time("backend.reconnect_min", backend.reconnect_min, Duration::from_millis(1)..=minute);
    rules.time("backend.reconnect_max", backend.reconnect_max, Duration::from_millis(1)..=minute * 5);
    rules.require(backend.reconnect_min <= backend.reconnect_max, "backend.reconnect_min", || {
        let (min, max) = (format_duration(backend.reconnect_min), format_duration(backend.reconnect_max));
        format!("{min} is more than backend.reconnect_max = {max}")
    });
    check_link_tls(rules, backend);
    let weights = &backend.weights;
    let has_weights = backend.balance == Balance::Weighted;
    rules.require(!has_weights || weights.len() == backend.endpoints.len(), "backend.weights", || {
        let (weights, endpoints) = (weights.len(), backend.endpoints.len());
        format!("{weights} weights for {endpoints} endpoints, expected one for each")
    });
    rules.require(weights.iter().all(|weight| (1..=1000).contains(weight)), "backend.weights", || {
        "expected weights of 1 to 1000".to_owned()
    });
}

fn check_link_tls(rules: &mut Rules<'_>, backend: &BackendConfig) {
    let LinkTlsConfig { files, server_name } = &backend.tls;
    let is_any = !files.is_empty() || !server_name.is_empty();
    for (key, is_named) in files.needed() {
        rules.require(!is_any || is_named, &format!("backend.tls.{key}"), || {
            "ca_file, certificate_file and key_file belong together; set all of them, or leave backend.tls empty"
                .to_owned()
        });
    }
    if !is_any {
        return;
    }
    rules.require(
        server_name.is_empty() || is_name_of_server(server_name),
        "backend.tls.server_name",
        || format!("{server_name:?} is not a DNS name or an IP address"),
    );
    for endpoint in backend.endpoints.iter().filter(|_| server_name.is_empty()) {
        let is_named = endpoint.host().is_none_or(|host| is_name_of_server(&host));
        rules.require(is_named, "backend.endpoints", || {
            format!("the host of {endpoint} cannot stand in a certificate; set backend.tls.server_name")
        });
    }
}

/// True if it names a gateway: host:port, short enough to be told to clients.
pub fn is_host_port(name: &str) -> bool {
    let is_port = |port: &str| port.parse().is_ok_and(|port: u16| port > 0);
    let is_host = |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    name.len() <= NAME_BYTES_MAX
        && name.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
}
