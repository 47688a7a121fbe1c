//! The one table of settings: what each is called, expects, defaults to and means.
//!
//! Everything printed about settings comes from here, and the defaults too. A row without a field in
//! the structs, or a field without a row, fails when the defaults are first built.

use super::load::Retired;
use std::fmt;

/// Advice to whoever used `backend.embedded`.
pub const EMBEDDED_ADVICE: &str = "for development run `moorline dev`, which starts a gateway and a backend; \
                                   otherwise start `moorline backend` and name it in backend.endpoints";

/// Settings of earlier versions.
pub const RETIRED: &[Retired] =
    &[Retired { section: "backend", name: "embedded", harmless: "false", advice: EMBEDDED_ADVICE }];

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The TOML table it stands in.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What a value looks like.
    pub kind: Kind,
    /// The default, as it is written in TOML.
    pub default: &'static str,
    /// What it does, in one or two sentences.
    pub help: &'static str,
}

/// What a value looks like, and how the text of a flag or variable becomes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number.
    Count,
    /// `true` or `false`.
    Switch,
    /// A size in bytes with its unit.
    Size,
    /// A duration with its unit.
    Duration,
    /// IP address and port.
    Address,
    /// A list of IP addresses with ports.
    Addresses,
    /// A list of texts.
    Texts,
    /// A list of whole numbers.
    Counts,
    /// A file's path, from the working directory.
    Path,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Choice(words) => {
                for (i, word) in words.iter().enumerate() {
                    write!(f, "{}\"{word}\"", if i == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
            Self::Count => f.write_str("whole number"),
            Self::Switch => f.write_str("true or false"),
            Self::Size => f.write_str("size, such as \"64KiB\""),
            Self::Duration => f.write_str("duration, such as \"30s\""),
            Self::Address => f.write_str("IP:port, such as \"127.0.0.1:7000\""),
            Self::Addresses => f.write_str("list of IP:port, such as [\"127.0.0.1:7100\"]"),
            Self::Texts => f.write_str("list of texts, such as [\"gw2.example:7000\"]"),
            Self::Counts => f.write_str("list of whole numbers, such as [3, 1]"),
            Self::Path => f.write_str("file path"),
        }
    }
}

/// Every setting of the gateway, in the order in which it is printed.
pub const KEYS: &[Key] = &[
    key(
        "gateway",
        "id",
        Kind::Text,
        "\"\"",
        "Name of this gateway toward backends, unique among them. Empty: host name and process id.",
    ),
    key(
        "gateway",
        "alternates",
        Kind::Texts,
        "[]",
        "Other gateways, host:port, named to clients at login and when this one drains. At most 8.",
    ),
    key(
        "listener",
        "address",
        Kind::Address,
        "\"127.0.0.1:7000\"",
        "Where clients connect. Port 0 takes any free one; the ready line names it.",
    ),
    key(
        "listener",
        "backlog",
        Kind::Count,
        "4096",
        "Connections the system holds until they are accepted, 1 to 65535. The system's own limit (net.core.somaxconn) caps it.",
    ),
    key(
        "listener",
        "uplink",
        Kind::Choice(&["window", "strict"]),
        "\"window\"",
        "window: a client may have 64 SENDs under way, and they may come out of order. strict: one, in order.",
    ),
    key(
        "listener",
        "accept_rate",
        Kind::Count,
        "0",
        "Connections accepted per second, all reactors together; above it newcomers wait in the backlog. 0: no limit.",
    ),
    key(
        "listener",
        "handshakes_max",
        Kind::Count,
        "16384",
        "Connections that are not logged in yet; above it newcomers wait in the backlog. 16 to 1048576.",
    ),
    key(
        "listener",
        "address_connections",
        Kind::Count,
        "0",
        "Connections of one address (of IPv6: one /64); above it a newcomer is closed with throttled. 0: no limit.",
    ),
    key(
        "listener",
        "address_rate",
        Kind::Count,
        "0",
        "Connections per second of one address, after a burst of ten times as many; above it a newcomer is closed with throttled. 0: no limit.",
    ),
    key(
        "listener",
        "kind",
        Kind::Choice(&["tcp"]),
        "\"tcp\"",
        "What clients speak there. tcp: frames over plain TCP.",
    ),
    key(
        "listener",
        "name",
        Kind::Text,
        "\"\"",
        "Name in logs and in the status, and by which a hot restart knows a listener with port 0. At most 64 bytes, unique. Empty: its number, from 1.",
    ),
    key(
        "reactor",
        "count",
        Kind::Count,
        "0",
        "Threads that own client sockets, up to 256. 0: as many as the workers leave cores, at least one.",
    ),
    key(
        "reactor",
        "read_budget",
        Kind::Size,
        "\"64KiB\"",
        "What one connection may be read for in one turn of the loop, so that a loud one does not hold up the others. 4KiB to 16MiB.",
    ),
    key(
        "reactor",
        "accept_budget",
        Kind::Count,
        "64",
        "Connections taken in one turn of the loop, 1 to 4096.",
    ),
    key("worker", "count", Kind::Count, "0", "Threads that own backend links, up to 256. 0: half the cores."),
    key(
        "worker",
        "queue_batches",
        Kind::Count,
        "1024",
        "Batches that may wait in one mailbox between a reactor and a worker, 16 to 65536. A full mailbox makes the sender keep its batch for the next turn.",
    ),
    key(
        "auth",
        "mode",
        Kind::Choice(&["jwt", "dev", "backend"]),
        "\"jwt\"",
        "jwt: a token's signature, expiry and subject are verified. dev: every well-formed HELLO is let in; refused unless the listener is on loopback. backend: the backend is asked, and whoever it does not judge within backend.up_timeout comes back later.",
    ),
    key(
        "auth",
        "algorithm",
        Kind::Choice(&["HS256", "EdDSA"]),
        "\"HS256\"",
        "The one signature algorithm accepted; a token that names another is refused.",
    ),
    key(
        "auth",
        "key_file",
        Kind::Path,
        "\"\"",
        "The verification key. HS256: the secret of at least 32 bytes, raw, or behind the prefix \"base64:\". EdDSA: the public key as PEM. Required in mode jwt.",
    ),
    key("auth", "audience", Kind::Text, "\"\"", "The aud a token must have. Empty: aud is not looked at."),
    key(
        "auth",
        "leeway",
        Kind::Duration,
        "\"30s\"",
        "How far clocks may differ when exp and nbf are checked, up to 5m.",
    ),
    key(
        "heartbeat",
        "min",
        Kind::Duration,
        "\"30s\"",
        "Shortest heartbeat interval a client may promise, 1s or more; a shorter promise counts as this.",
    ),
    key(
        "heartbeat",
        "max",
        Kind::Duration,
        "\"300s\"",
        "Longest interval, up to 1h. A client is closed after one and a half of its promise without a byte.",
    ),
    key(
        "session",
        "keep",
        Kind::Duration,
        "\"120s\"",
        "How long a session waits for its client after the connection is lost, so that the client goes on where it was. 0s: not at all. Up to 1h.",
    ),
    key(
        "session",
        "kept_max",
        Kind::Count,
        "100000",
        "Sessions that wait so, in the whole process; above it the one that waits longest ends. Up to 16777216.",
    ),
    key(
        "session",
        "ticket_ttl",
        Kind::Duration,
        "\"168h\"",
        "How long after its login a ticket to go on with a session is good. 1m to 8760h.",
    ),
    key(
        "session",
        "mobile_max",
        Kind::Count,
        "0",
        "Logins of one user on phones and tablets (iOS, Android); a newer one ends the oldest. 0: no limit but that of 32 in all.",
    ),
    key("session", "desktop_max", Kind::Count, "0", "The same on desktops (Windows, macOS, Linux)."),
    key("session", "web_max", Kind::Count, "0", "The same in browsers."),
    key(
        "drain",
        "grace",
        Kind::Duration,
        "\"10s\"",
        "After TERM, and of `moorline drain`: how long clients have to leave before what remains is closed, up to 1h.",
    ),
    key(
        "handover",
        "timeout",
        Kind::Duration,
        "\"30s\"",
        "Hot restart: how long the check, the start and the warming of the new process may take together, 1s to 10m. What stands still does so for half a second at most before the state moves.",
    ),
    key(
        "handover",
        "pid_file",
        Kind::Text,
        "\"\"",
        "File that names the process that serves, for scripts without a supervisor. Empty: none.",
    ),
    key(
        "limits",
        "connections_max",
        Kind::Count,
        "0",
        "Client connections of the process; over it new ones are closed at once. 0: what the file descriptor limit allows.",
    ),
    key(
        "limits",
        "body_max",
        Kind::Size,
        "\"64KiB\"",
        "A client frame's body; over it the connection is closed with too_large. 1KiB to 1MiB.",
    ),
    key(
        "limits",
        "hello_max",
        Kind::Size,
        "\"4KiB\"",
        "The body of HELLO, 256B to 64KiB and not over body_max. It bounds the token.",
    ),
    key(
        "limits",
        "handshake_timeout",
        Kind::Duration,
        "\"5s\"",
        "From accept to a complete HELLO, 100ms to 5m.",
    ),
    key(
        "limits",
        "downlink_frames",
        Kind::Count,
        "32",
        "Reliable frames sent to one connection and not yet acknowledged, 1 to 1024.",
    ),
    key(
        "limits",
        "downlink_bytes",
        Kind::Size,
        "\"64KiB\"",
        "Their bytes; one frame may always be under way. 1KiB to 16MiB.",
    ),
    key(
        "limits",
        "queue_bytes",
        Kind::Size,
        "\"512KiB\"",
        "Bytes queued for one connection; over it the connection is closed as slow. At least body_max and downlink_bytes, up to 256MiB.",
    ),
    key(
        "limits",
        "queue_frames",
        Kind::Count,
        "4096",
        "Frames queued for one connection; over it the connection is closed as slow. At least downlink_frames, up to 1048576.",
    ),
    key(
        "limits",
        "collapse_bytes",
        Kind::Size,
        "\"256KiB\"",
        "Bytes queued for one connection; over it pushes of the group and bulk lanes become a NOTIFY, which the client follows when it reads again. Half of queue_bytes if that is less.",
    ),
    key(
        "limits",
        "batch_age",
        Kind::Duration,
        "\"0s\"",
        "How long a push of the group or bulk lane may wait for others to the same client, to go out as one BATCH. 0s: a push never waits; pushes that are ready together still go out as one BATCH. Up to 10s.",
    ),
    key("limits", "batch_frames", Kind::Count, "16", "Pushes that end such a wait, 2 to 128."),
    key(
        "limits",
        "retransmit",
        Kind::Choice(&["probe", "classic"]),
        "\"probe\"",
        "When an ack is overdue. probe: ask; send again only if the system has delivered all; close. classic: send again, at most three times; close.",
    ),
    key(
        "limits",
        "frame_rate",
        Kind::Count,
        "1000",
        "Frames per second of one connection, after a burst of twice as many; above it the connection is not read for a while. Judged after each read of at most 64KiB, so one read may exceed it. 0: no limit.",
    ),
    key(
        "limits",
        "user_rate",
        Kind::Count,
        "500",
        "SENDs, REQs and application frames per second of one user, all devices together, after a burst of twice as many; above it they are answered RETRY, and THROTTLE is said. 0: no limit.",
    ),
    key(
        "limits",
        "memory_watermark",
        Kind::Size,
        "\"256MiB\"",
        "Bytes queued for all clients; over it collapse_bytes and queue_bytes count as a quarter, over twice as much new logins are refused. 1MiB or more.",
    ),
    key(
        "limits",
        "compress_min",
        Kind::Size,
        "\"512B\"",
        "Shortest body of a push to two or more receivers that is compressed, once for all of them, toward clients that accept it; pushes to one receiver are not compressed. 0B: no push is compressed.",
    ),
    key(
        "backend",
        "endpoints",
        Kind::Addresses,
        "[\"127.0.0.1:7100\"]",
        "Where backends listen for links, 1 to 64 of them.",
    ),
    key(
        "backend",
        "links_per_worker",
        Kind::Count,
        "1",
        "Links that every worker opens to every endpoint, 1 to 16.",
    ),
    key(
        "backend",
        "up_timeout",
        Kind::Duration,
        "\"3s\"",
        "How long a backend has for its answer; after it the client is told to retry. 50ms to 60s.",
    ),
    key(
        "backend",
        "parked_frames",
        Kind::Count,
        "65536",
        "Frames of one worker that may wait for a link or for credit; over it clients are told to retry. 64 to 1048576.",
    ),
    key(
        "backend",
        "parked_bytes",
        Kind::Size,
        "\"32MiB\"",
        "Bytes of those frames. At least body_max, up to 4GiB.",
    ),
    key(
        "backend",
        "reconnect_min",
        Kind::Duration,
        "\"50ms\"",
        "First pause before a broken link is opened again, 1ms or more; it doubles, with jitter.",
    ),
    key("backend", "reconnect_max", Kind::Duration, "\"5s\"", "Longest pause, up to 5m."),
    key(
        "backend",
        "balance",
        Kind::Choice(&["least_loaded", "hash", "weighted"]),
        "\"least_loaded\"",
        "How users are spread over endpoints. least_loaded: evenly over links, away from slow ones. hash: a user goes to the same endpoint from every gateway. weighted: by backend.weights.",
    ),
    key(
        "backend",
        "weights",
        Kind::Counts,
        "[]",
        "With balance weighted: one weight of 1 to 1000 for each of endpoints, in their order.",
    ),
    key(
        "overload",
        "latency",
        Kind::Duration,
        "\"500ms\"",
        "An average answer of the backend slower than this counts as overload. 1ms to 60s.",
    ),
    key(
        "overload",
        "queue_frames",
        Kind::Count,
        "8192",
        "Frames of one worker that wait for a link; more count as overload. 16 to 1048576.",
    ),
    key(
        "overload",
        "hold",
        Kind::Duration,
        "\"2s\"",
        "How long it must be calm before the next milder level. 100ms to 10m.",
    ),
    key(
        "admin",
        "address",
        Kind::Address,
        "\"127.0.0.1:7080\"",
        "Where health, metrics and status are served, without login: keep it on loopback or behind a firewall. Port 0 takes any free one.",
    ),
    key("admin", "enabled", Kind::Switch, "true", "Whether the admin address is served."),
    key(
        "log",
        "level",
        Kind::Text,
        "\"info\"",
        "error, warn, info, debug or trace; or tracing directives such as \"info,moorline::router=debug\".",
    ),
    key(
        "log",
        "format",
        Kind::Choice(&["text", "json"]),
        "\"text\"",
        "text for people, json for machines. Logs go to stderr.",
    ),
];

const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key { section, name, kind, default, help }
}
