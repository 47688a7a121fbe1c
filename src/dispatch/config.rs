//! Settings of a dispatch process: what `dispatch.toml`, `MOORLINE_DISPATCH__*` and `--set` say together.
//!
//! ```toml
//! listen = "0.0.0.0:7300"
//! certificate_file = "dispatch.pem"
//! key_file = "dispatch.key"
//!
//! [gateway.eu-1]
//! endpoint = "tls://eu-1.gw.example:7443"
//! region = "eu"
//! admin = "10.1.0.5:7080"
//! ```

use moorline_net::http::{Address, is_host_name};
use moorline_net::settings::{Key, Kind, Loaded, Rules, Schema, SettingsError, key, units};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Gateways of one process: each is asked every few seconds.
pub const GATEWAYS_MAX: usize = 512;
/// Longest name of a region, in bytes.
pub const REGION_BYTES_MAX: usize = 32;
/// Largest weight.
const WEIGHT_MAX: usize = 10_000;
/// Limit of `names`.
const NAMES_MAX: usize = 16;
/// Longest endpoint: a scheme, a host name of 253 bytes, and a port.
const ENDPOINT_BYTES_MAX: usize = 6 + 253 + 6;

/// Settings of dispatch, for the loader.
pub const SCHEMA: Schema =
    Schema { keys: KEYS, renamed: &[], retired: &[], env_prefix: "MOORLINE_DISPATCH__" };

/// Every setting, in the order in which it is printed.
const KEYS: &[Key] = &[
    key(
        "",
        "listen",
        Kind::Address,
        "\"127.0.0.1:7300\"",
        "Address where clients ask. Without a certificate loopback only. Port 0 takes any free port; the ready line names it.",
    ),
    key(
        "",
        "certificate_file",
        Kind::Path,
        "\"\"",
        "File with the certificate of dispatch and its issuers, in PEM. Empty: plain HTTP.",
    ),
    key("", "key_file", Kind::Path, "\"\"", "File with the key of that certificate, in PEM."),
    key(
        "",
        "names",
        Kind::Texts,
        "[]",
        "Host names by which clients ask, beside IP addresses and `localhost`. Another `Host` is answered 421. At most 16.",
    ),
    key(
        "",
        "admin",
        Kind::Address,
        "\"127.0.0.1:7380\"",
        "Address of health and metrics. Loopback and private addresses only. Port 0 takes any free port.",
    ),
    key("", "lifetime", Kind::Duration, "\"60s\"", "Time for which a client may use an answer. 1s to 1h."),
    key(
        "",
        "poll_interval",
        Kind::Duration,
        "\"2s\"",
        "Time between two questions to a gateway. 100ms to 60s.",
    ),
    key(
        "",
        "poll_timeout",
        Kind::Duration,
        "\"1s\"",
        "Longest wait for an answer of a gateway. 50ms to 10s.",
    ),
    key(
        "",
        "silent_after",
        Kind::Duration,
        "\"6s\"",
        "Age of the last answer from which a gateway counts as silent: it is given to clients only if no other one is ready. At least poll_interval and poll_timeout together.",
    ),
    key(
        "",
        "connections_max",
        Kind::Count,
        "1024",
        "Connections at once. A further one takes the place of the one that is silent for longest. 16 to 100000.",
    ),
    key(
        "",
        "address_rate",
        Kind::Count,
        "20",
        "Questions per second of one address (IPv6: one /64), with ten seconds' worth at once. A further one is answered 429. 0: no limit.",
    ),
    key(
        "gateway.*",
        "endpoint",
        Kind::Text,
        "\"\"",
        "Public address of a gateway as clients write it: tls://host:port, or tcp://host:port.",
    ),
    key(
        "gateway.*",
        "region",
        Kind::Text,
        "\"\"",
        "Region of the gateway: at most 32 letters, digits, `-` and `_`. Empty: it is given only to clients that name no region, or one without a ready gateway.",
    ),
    key(
        "gateway.*",
        "weight",
        Kind::Count,
        "100",
        "Share of newcomers, compared with other gateways that are as full. 1 to 10000.",
    ),
    key(
        "gateway.*",
        "admin",
        Kind::Text,
        "\"\"",
        "Admin address of the gateway, IP:port, or the path of its admin socket.",
    ),
];

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchConfig {
    /// Address for clients.
    pub listen: SocketAddr,
    /// A file with the certificate and its issuers; empty: no TLS.
    pub certificate_file: PathBuf,
    /// A file with the key of that certificate.
    pub key_file: PathBuf,
    /// Host names, beside IP addresses and `localhost`.
    pub names: Vec<String>,
    /// Address of health and metrics.
    pub admin: SocketAddr,
    /// Time for which a client may use an answer.
    #[serde(with = "units::duration")]
    pub lifetime: Duration,
    /// Time between two questions to a gateway.
    #[serde(with = "units::duration")]
    pub poll_interval: Duration,
    /// Longest wait for an answer of a gateway.
    #[serde(with = "units::duration")]
    pub poll_timeout: Duration,
    /// Age of the last answer from which a gateway counts as silent.
    #[serde(with = "units::duration")]
    pub silent_after: Duration,
    /// Connections at once.
    pub connections_max: usize,
    /// Questions per second of one address; 0: no limit.
    pub address_rate: u32,
    /// Gateways, by name.
    pub gateway: BTreeMap<String, GatewayEntry>,
}

/// One gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayEntry {
    /// Public address: `tls://host:port` or `tcp://host:port`.
    pub endpoint: String,
    /// Region; empty: of no region.
    pub region: String,
    /// Share of newcomers.
    pub weight: u32,
    /// Admin address or admin socket.
    pub admin: String,
}

impl DispatchConfig {
    /// Reads and validates: `sets` ("key=value") over `env` over `file` over the defaults.
    ///
    /// # Errors
    /// [`SettingsError`] with every fault.
    pub fn load(
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded<Self>, SettingsError> {
        SCHEMA.load(file, sets, env, check)
    }

    /// Returns whether clients ask over TLS.
    pub fn has_tls(&self) -> bool {
        !self.certificate_file.as_os_str().is_empty()
    }
}

/// Returns whether a text can be the name of a region; the empty one cannot.
pub fn is_region(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=REGION_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_letter)
}

fn check(rules: &mut Rules<'_, DispatchConfig>) {
    const SECOND: Duration = Duration::from_secs(1);
    let config = rules.config();
    let has_key = !config.key_file.as_os_str().is_empty();
    rules.require(config.has_tls() == has_key, "key_file", || {
        "certificate_file and key_file belong together; set both, or leave both empty".into()
    });
    rules.require(config.has_tls() || config.listen.ip().is_loopback(), "listen", || {
        format!(
            "{} is not on this machine, and answers without TLS could be changed on the way; use a loopback address, or \
             set certificate_file and key_file",
            config.listen
        )
    });
    rules.require(is_inside(config.admin), "admin", || {
        format!(
            "{} is public, and the page is for operators; use a loopback or private address",
            config.admin
        )
    });
    let names = &config.names;
    rules.require(names.len() <= NAMES_MAX && names.iter().all(|name| is_host_name(name)), "names", || {
        format!("expected at most {NAMES_MAX} host names without a port, such as \"dispatch.example\"")
    });
    rules.time("lifetime", config.lifetime, SECOND..=SECOND * 3600);
    rules.time("poll_interval", config.poll_interval, SECOND / 10..=SECOND * 60);
    rules.time("poll_timeout", config.poll_timeout, SECOND / 20..=SECOND * 10);
    let floor = config.poll_interval + config.poll_timeout;
    rules.require(config.silent_after >= floor, "silent_after", || {
        format!(
            "less than poll_interval and poll_timeout together; set at least {}",
            units::format_duration(floor)
        )
    });
    rules.count("connections_max", config.connections_max, 16..=100_000);
    rules.count("address_rate", config.address_rate as usize, 0..=1_000_000);
    let count = config.gateway.len();
    rules.require((1..=GATEWAYS_MAX).contains(&count), "gateway", || {
        format!("{count} gateways; name 1 to {GATEWAYS_MAX}, each as [gateway.NAME] with endpoint and admin")
    });
    for (name, entry) in &config.gateway {
        check_gateway(rules, name, entry);
    }
}

fn check_gateway(rules: &mut Rules<'_, DispatchConfig>, name: &str, entry: &GatewayEntry) {
    let GatewayEntry { endpoint, region, weight, admin } = entry;
    rules.require(is_endpoint(endpoint), &format!("gateway.{name}.endpoint"), || {
        format!("`{endpoint}` is not valid; expected tls://host:port or tcp://host:port")
    });
    rules.require(region.is_empty() || is_region(region), &format!("gateway.{name}.region"), || {
        format!("`{region}` is not valid; expected at most {REGION_BYTES_MAX} letters, digits, `-` and `_`")
    });
    rules.count(&format!("gateway.{name}.weight"), *weight as usize, 1..=WEIGHT_MAX);
    rules.require(admin.parse::<Address>().is_ok(), &format!("gateway.{name}.admin"), || {
        format!("`{admin}` is not valid; expected IP:port of the gateway's admin.address, or the path of its admin socket")
    });
}

fn is_endpoint(text: &str) -> bool {
    let place = text.strip_prefix("tls://").or_else(|| text.strip_prefix("tcp://"));
    let parts = place.and_then(|place| place.rsplit_once(':'));
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.:[]".contains(letter);
    text.len() <= ENDPOINT_BYTES_MAX
        && parts.is_some_and(|(host, port)| {
            !host.is_empty() && host.chars().all(is_letter) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// True for loopback and private addresses.
fn is_inside(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(address) => {
            let ip = address.ip();
            ip.is_loopback() || ip.is_private() || ip.is_link_local()
        }
        SocketAddr::V6(address) => {
            let ip = address.ip();
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "[gateway.a]\nendpoint = 'tls://a:1'\nadmin = '127.0.0.1:1'\n";

    fn load(text: &str) -> Result<DispatchConfig, String> {
        let loaded = SCHEMA.load_text(Path::new("d.toml"), text, &[], [], check);
        loaded.map(|loaded| loaded.config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_overrides_defaults() {
        let config = load(&format!("lifetime = '5s'\n{GATEWAY}region = 'eu'\n")).expect("valid");
        assert_eq!((config.lifetime, config.poll_interval), (Duration::from_secs(5), Duration::from_secs(2)));
        let entry = &config.gateway["a"];
        assert_eq!((&*entry.endpoint, &*entry.region, entry.weight), ("tls://a:1", "eu", 100));
        assert!(
            load(&format!("{}{GATEWAY}", SCHEMA.default_toml())).is_ok(),
            "the printed defaults are valid"
        );
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        for (head, entry, expected) in [
            ("listen = '0.0.0.0:1'", "", "d.toml:1: listen: 0.0.0.0:1 is not on this machine"),
            ("key_file = 'k'", "", "d.toml:1: key_file: certificate_file and key_file belong together"),
            ("admin = '8.8.8.8:1'", "", "d.toml:1: admin: 8.8.8.8:1 is public"),
            (
                "silent_after = '2s'",
                "",
                "d.toml:1: silent_after: less than poll_interval and poll_timeout together; set at least 3s",
            ),
            ("lifetime = '2h'", "", "d.toml:1: lifetime: 7200s is out of range"),
            ("names = ['a b']", "", "d.toml:1: names: expected at most 16 host names"),
            ("", "region = 'a b'", "d.toml:5: gateway.a.region: `a b` is not valid"),
            ("", "weight = 0", "d.toml:5: gateway.a.weight: 0 is out of range"),
        ] {
            let said = load(&format!("{head}\n{GATEWAY}{entry}\n")).expect_err(expected);
            assert!(said.contains(expected) && said.lines().count() == 1, "{said}");
        }
        for endpoint in ["a:1", "tls://a", "tls://:1", "tls://a:0", "tls://a b:1", "http://a:1"] {
            let said = load(&GATEWAY.replace("tls://a:1", endpoint)).expect_err(endpoint);
            assert!(said.contains("d.toml:2: gateway.a.endpoint"), "{said}");
        }
        assert!(load("").expect_err("none").contains("gateway: 0 gateways; name 1 to 512"));
    }

    #[test]
    fn the_page_has_the_tables_of_this_program() {
        let page = include_str!("../../docs/dispatch.md");
        let tables = page.split("otherwise settings work as\n").nth(1).expect("the page has the tables");
        let tables = tables.split_once("\n\n").expect("a paragraph").1;
        let tables = tables.split("\n## ").next().expect("a beginning");
        assert_eq!(
            tables.trim(),
            SCHEMA.reference_markdown().trim(),
            "paste the output of `moorline dispatch config doc`"
        );
    }

    #[test]
    fn the_page_has_a_row_for_each_figure() {
        use super::super::figures::{CLIENT_METRICS, POLL_METRICS, STATE_METRICS};
        let page = include_str!("../../docs/dispatch.md");
        for metric in [CLIENT_METRICS, POLL_METRICS, STATE_METRICS].concat() {
            assert!(page.contains(&format!("| `{}", metric.name)), "{} has no row", metric.name);
            let value = metric.label.map_or("", |(_, value)| value);
            assert!(page.contains(value), "{value} of {} is not named", metric.name);
        }
    }
}
