//! Settings of a backend process (TOML; an unknown key is an error).
//!
//! ```toml
//! listen = "127.0.0.1:7100"   # loopback or private: the link is not encrypted
//! handler = "im"              # or "echo", "acker"
//! tokens_file = ""            # who may log in, for gateways that ask
//!
//! [link]
//! credit = 65536              # unanswered UPs per link
//!
//! [im]
//! folder = ""                 # where messages are stored; empty: in memory
//! payload_max = "60KiB"
//! inbox_entries_max = 10000
//! idempotency_window = "7d"
//! ```

mod units;

use crate::error::BackendError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which handler answers the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandlerKind {
    /// The reference IM backend.
    #[default]
    Im,
    /// [`crate::echo::Mode::Echo`].
    Echo,
    /// [`crate::echo::Mode::Acker`].
    Acker,
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendConfig {
    /// Where gateways connect. Loopback or private addresses only; port 0: the system's choice.
    pub listen: SocketAddr,
    /// Who answers.
    pub handler: HandlerKind,
    /// This backend's name in its link HELLO, for logs.
    pub node: String,
    /// Number of this node in message ids, 0..=1023; unique among backends of one installation.
    pub node_number: u16,
    /// List of `uid token` lines that judges logins of gateways with `auth.mode = "backend"`. Empty:
    /// all of those are refused.
    pub tokens_file: PathBuf,
    /// The link.
    pub link: LinkConfig,
    /// The IM backend.
    pub im: ImConfig,
    /// The server API of the IM backend.
    pub api: ApiConfig,
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7100)),
            handler: HandlerKind::Im,
            node: "backend".into(),
            node_number: 0,
            tokens_file: PathBuf::new(),
            link: LinkConfig::default(),
            im: ImConfig::default(),
            api: ApiConfig::default(),
        }
    }
}

/// Limits and times of the link (`docs/backend.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkConfig {
    /// Unanswered UPs accepted per link. Over it the link is not read until answers went out.
    pub credit: u32,
    /// Links at once; a further one is closed at once.
    pub links_max: usize,
    /// Gateways at once; a link of a further one is closed.
    pub gateways_max: usize,
    /// Sessions at once; a further login is kicked with BUSY.
    pub sessions_max: usize,
    /// Rooms with a member at once; a further one cannot be entered.
    pub rooms_max: usize,
    /// Bytes that may wait to be written to one link. Over it pushes fail with FULL and the link is
    /// not read.
    #[serde(with = "units::bytes")]
    pub output_max: usize,
    /// How long a link may stay over `output_max` before it is closed.
    #[serde(with = "units::duration")]
    pub stall_timeout: Duration,
    /// How long a new link may take to say HELLO.
    #[serde(with = "units::duration")]
    pub hello_timeout: Duration,
    /// A link silent for so long is dead; a PING goes out after a third of it.
    #[serde(with = "units::duration")]
    pub silence_timeout: Duration,
    /// How long sessions are kept without a link that speaks for them.
    #[serde(with = "units::duration")]
    pub lease: Duration,
    /// Messages that may wait in the mailbox for other threads.
    pub mailbox: usize,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            credit: 65_536,
            links_max: 1024,
            gateways_max: 256,
            sessions_max: 4_000_000,
            rooms_max: 1_000_000,
            output_max: 8 << 20,
            stall_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(15),
            lease: Duration::from_secs(30),
            mailbox: 4096,
        }
    }
}

/// The server API (`docs/server-api.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Where it listens. Loopback or private addresses only; port 0: the system's choice. Without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// A file with the token that questions must carry: text of at least 16 bytes, without the space around it.
    pub token_file: PathBuf,
    /// Connections at once; a further one is answered 503.
    pub connections_max: usize,
    /// Bytes of a question.
    #[serde(with = "units::bytes")]
    pub body_max: usize,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { listen: None, token_file: PathBuf::new(), connections_max: 64, body_max: 1 << 20 }
    }
}

/// When a message counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityPoint {
    /// The disk has it (fsync).
    #[default]
    Disk,
    /// The system has it: it survives the end of the process, not that of the machine.
    System,
}

/// Who may write to whom, one to one; a block forbids it always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhoMayWrite {
    /// Everybody to everybody.
    #[default]
    Anyone,
    /// Friends to each other.
    Friends,
}

/// Limits of the IM backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImConfig {
    /// Where everything is stored. Empty: in memory, gone with the process.
    pub folder: PathBuf,
    /// When a SEND is answered.
    pub durability: DurabilityPoint,
    /// Largest message payload; over it: TOO_LARGE. Must leave room for the rest of a PUSH under the
    /// gateway's body limit.
    #[serde(with = "units::bytes")]
    pub payload_max: usize,
    /// Entries a user's inbox keeps for devices that have not acked them.
    pub inbox_entries_max: usize,
    /// How long a message key is remembered.
    #[serde(with = "units::duration")]
    pub idempotency_window: Duration,
    /// Message keys that the memory store remembers; over it the oldest is forgotten early. About 120 bytes each.
    pub idempotency_entries_max: usize,
    /// Pushes without ack per device.
    pub outstanding: usize,
    /// Bytes of pushes without ack per device; one push is always allowed. Must stay well below the
    /// gateway's `limits.queue_bytes`: over that a device that does not ack is closed at every login.
    #[serde(with = "units::bytes")]
    pub outstanding_bytes: usize,
    /// Messages in one answer to im.pull; larger wishes are capped.
    pub pull_messages_max: usize,
    /// Members of a group.
    pub group_members_max: usize,
    /// A group with more members than this puts its messages into no inbox: they are pushed to whoever is online, and
    /// pulled by the others.
    pub fanout_members_max: usize,
    /// So does one whose messages would make more inbox entries than this in an hour.
    pub fanout_entries_per_hour: u64,
    /// Who may write to whom, one to one.
    pub who_may_write: WhoMayWrite,
    /// How long after it was stored a message may be taken back.
    #[serde(with = "units::duration")]
    pub recall_window: Duration,
    /// Friends, requests and blocks of one user.
    pub relations_max: usize,
    /// Devices remembered per user; over it the one longest away is forgotten.
    pub devices_max: usize,
    /// Users known at once.
    pub users_max: usize,
    /// Conversations known at once.
    pub conversations_max: usize,
    /// Bytes of messages the memory store keeps; over it the oldest message is dropped.
    #[serde(with = "units::bytes")]
    pub history_max: usize,
    /// Users that are answered by an HTTP endpoint, by uid.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceConfig>,
}

/// An HTTP endpoint that gets what users say to a service (`docs/server-api.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where it is: `http://` or `https://`.
    pub url: String,
    /// A file with the secret that deliveries are signed with: text, better of 16 bytes or more, without the space around it. Empty:
    /// they are not signed.
    pub secret_file: PathBuf,
    /// How long one delivery may take.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Messages of one delivery.
    pub batch_max: usize,
    /// For how long a delivery is tried again before it is written down and given up.
    #[serde(with = "units::duration")]
    pub give_up_after: Duration,
}

impl ServiceConfig {
    fn validate(&self, name: &str) -> Result<(), &'static str> {
        // It is the name of a file too.
        if !crate::im::names::is_valid(name) || name.contains('/') || name.starts_with('.') {
            return Err(
                "a service needs a name that a user can have, without / and not beginning with a dot",
            );
        }
        let url: Option<ureq::http::Uri> = self.url.parse().ok();
        let is_url = url.is_some_and(|url| {
            let is_http = matches!(url.scheme_str(), Some("http" | "https"));
            let at = url.authority().and_then(|authority| authority.as_str().rsplit('@').next());
            // A port that is none is not told apart from none.
            let has_port = url.port_u16().is_some_and(|port| port > 0);
            is_http && url.host().is_some_and(|host| !host.is_empty() && (has_port || at == Some(host)))
        });
        if !is_url {
            return Err("url must be http:// or https:// with a host, and a port from 1 to 65535 if any");
        }
        if self.batch_max == 0 || self.timeout.is_zero() || self.give_up_after.is_zero() {
            return Err("batch_max, timeout and give_up_after must be above 0");
        }
        Ok(())
    }
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            secret_file: PathBuf::new(),
            timeout: Duration::from_secs(5),
            batch_max: 64,
            give_up_after: Duration::from_secs(86_400),
        }
    }
}

impl Default for ImConfig {
    fn default() -> Self {
        Self {
            folder: PathBuf::new(),
            durability: DurabilityPoint::Disk,
            payload_max: 60 << 10,
            inbox_entries_max: 10_000,
            idempotency_window: Duration::from_secs(7 * 86_400),
            idempotency_entries_max: 2_000_000,
            outstanding: 64,
            outstanding_bytes: 128 << 10,
            pull_messages_max: 500,
            group_members_max: 10_000,
            fanout_members_max: 200,
            fanout_entries_per_hour: 100_000,
            who_may_write: WhoMayWrite::Anyone,
            recall_window: Duration::from_secs(86_400),
            relations_max: 5000,
            devices_max: 32,
            users_max: 10_000_000,
            conversations_max: 10_000_000,
            history_max: 1 << 30,
            services: BTreeMap::new(),
        }
    }
}

impl BackendConfig {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`BackendError`]: the file, its syntax, or a value.
    pub fn load(path: &Path) -> Result<Self, BackendError> {
        let text = std::fs::read_to_string(path).map_err(|cause| BackendError::ReadConfig {
            what: "the configuration",
            path: path.to_owned(),
            cause,
        })?;
        Self::parse(&text)
    }

    /// Reads and validates TOML text.
    ///
    /// # Errors
    /// [`BackendError`]: its syntax, or a value.
    pub fn parse(text: &str) -> Result<Self, BackendError> {
        let config = Self::read(text)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads TOML text, of which other settings may still change something; see [`Self::validate`].
    ///
    /// # Errors
    /// [`BackendError`]: its syntax, an unknown key, or a value of another kind.
    pub fn read(text: &str) -> Result<Self, BackendError> {
        Ok(toml::from_str(text)?)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`BackendError::InvalidConfig`] with the first bad one.
    pub fn validate(&self) -> Result<(), BackendError> {
        let wrong = |key, reason: &str| Err(BackendError::InvalidConfig { key, reason: reason.into() });
        if !is_private(self.listen.ip()) {
            return wrong("listen", "the link is not encrypted: use a loopback or private address");
        }
        if self.api.listen.is_some_and(|listen| !is_private(listen.ip())) {
            return wrong("api.listen", "the API is not encrypted: use a loopback or private address");
        }
        if self.api.listen.is_some() && self.handler != HandlerKind::Im {
            return wrong("api.listen", "only the handler im has the server API");
        }
        if self.api.listen.is_some() && self.api.token_file.as_os_str().is_empty() {
            return wrong(
                "api.listen",
                "the API needs api.token_file, a file with a token of at least 16 bytes",
            );
        }
        if self.node_number > 1023 {
            return wrong("node_number", "must be 0..=1023");
        }
        for (key, value) in [
            ("link.credit", self.link.credit as usize),
            ("link.links_max", self.link.links_max),
            ("link.gateways_max", self.link.gateways_max),
            ("link.sessions_max", self.link.sessions_max),
            ("link.rooms_max", self.link.rooms_max),
            ("link.output_max", self.link.output_max),
            ("link.mailbox", self.link.mailbox),
            ("im.payload_max", self.im.payload_max),
            ("im.inbox_entries_max", self.im.inbox_entries_max),
            ("im.idempotency_entries_max", self.im.idempotency_entries_max),
            ("im.outstanding", self.im.outstanding),
            ("im.pull_messages_max", self.im.pull_messages_max),
            ("im.group_members_max", self.im.group_members_max),
            ("im.fanout_members_max", self.im.fanout_members_max),
            ("im.relations_max", self.im.relations_max),
            ("api.connections_max", self.api.connections_max),
            ("api.body_max", self.api.body_max),
            ("im.devices_max", self.im.devices_max),
            ("im.users_max", self.im.users_max),
            ("im.conversations_max", self.im.conversations_max),
        ] {
            // Ids of users, sessions and conversations are 32 bits.
            if value == 0 || u32::try_from(value).is_err() {
                return wrong(key, "must be from 1 to 4294967295");
            }
        }
        for (key, value) in [
            ("link.stall_timeout", self.link.stall_timeout),
            ("link.hello_timeout", self.link.hello_timeout),
            ("link.silence_timeout", self.link.silence_timeout),
            ("link.lease", self.link.lease),
            ("im.idempotency_window", self.im.idempotency_window),
        ] {
            if value.is_zero() {
                return wrong(key, "must be longer than 0");
            }
        }
        if self.im.history_max < self.im.payload_max {
            return wrong("im.history_max", "must be at least im.payload_max");
        }
        if self.im.payload_max > PAYLOAD_BYTES_CEILING {
            return wrong("im.payload_max", "must be at most 1020KiB: a PUSH body is at most 1 MiB");
        }
        self.validate_services()
    }

    fn validate_services(&self) -> Result<(), BackendError> {
        let wrong = |reason: String| Err(BackendError::InvalidConfig { key: "im.services", reason });
        if self.im.services.len() > SERVICES_MAX {
            return wrong("at most 64 services: each has a thread".into());
        }
        for (name, service) in &self.im.services {
            if let Err(reason) = service.validate(name) {
                return wrong(format!("{name:?}: {reason}"));
            }
        }
        Ok(())
    }
}

/// Each has a thread.
const SERVICES_MAX: usize = 64;

/// No configuration may allow a larger payload, in bytes: the rest of a PUSH needs room in 1 MiB.
pub const PAYLOAD_BYTES_CEILING: usize = 1020 << 10;

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_overrides_defaults_and_units_are_read() {
        let text = "listen = '10.0.0.1:0'\nhandler = 'acker'\n[link]\ncredit = 7\nlease = '250ms'\n[im]\npayload_max = '1KiB'\n";
        let config = BackendConfig::parse(text).expect("valid");
        assert_eq!((config.handler, config.link.credit), (HandlerKind::Acker, 7));
        assert_eq!((config.link.lease, config.im.payload_max), (Duration::from_millis(250), 1024));
        assert_eq!(config.im.outstanding, ImConfig::default().outstanding);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = toml::to_string(&BackendConfig::default()).expect("serialises");
        assert!(text.contains("idempotency_window = \"7d\"") && text.contains("history_max = \"1GiB\""));
        assert_eq!(BackendConfig::parse(&text).expect("parses"), BackendConfig::default());
    }

    #[test]
    fn unknown_keys_and_public_addresses_are_refused() {
        let unknown = BackendConfig::parse("[link]\ncredits = 1").expect_err("unknown key");
        assert!(unknown.to_string().contains("credits"), "{unknown}");
        let public = BackendConfig::parse("listen = '0.0.0.0:7100'").expect_err("not private");
        assert!(public.to_string().starts_with("`listen`"), "{public}");
        assert!(BackendConfig::parse("[im]\noutstanding = 0").is_err());
        assert!(BackendConfig::parse("[im]\npayload_max = '2MiB'").is_err());
        assert!(BackendConfig::parse("[link]\nlease = '5 parsecs'").is_err());
        let refused = |text: &str| BackendConfig::parse(text).expect_err(text).to_string();
        assert!(refused("[im]\npayload_max = 60000").contains("`60000` is no size"));
        assert!(refused("[link]\nsilence_timeout = '0s'").starts_with("`link.silence_timeout`"));
        assert!(refused("[im]\nidempotency_window = '0s'").starts_with("`im.idempotency_window`"));
        for (service, problem) in [
            ("'../out'.url = 'http://a/'", "without /"),
            ("desk.url = 'http://'", "with a host"),
            ("desk.url = 'http://a b/'", "with a host"),
            ("desk.url = 'http://a:99999/'", "with a host"),
            ("desk = {url = 'http://a/', timeout = '0s'}", "above 0"),
        ] {
            let said = refused(&format!("[im.services]\n{service}"));
            assert!(said.contains(problem), "{service}: {said}");
        }
        let api = |text: &str| BackendConfig::parse(&format!("{text}\n[api]\nlisten = '127.0.0.1:0'"));
        let no_token = api("").expect_err("no token").to_string();
        assert!(no_token.contains("api.token_file"), "{no_token}");
        let public = BackendConfig::parse("[api]\nlisten = '0.0.0.0:7200'\ntoken_file = 't'");
        assert!(public.expect_err("not private").to_string().starts_with("`api.listen`"));
    }
}
