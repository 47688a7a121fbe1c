//! Settings of a backend process: what `backend.toml`, `MOORLINE_BACKEND__*` and `--set` say together.
//!
//! The loader is [`moorline_net::settings`], the table of keys [`SCHEMA`].
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

mod keys;
#[cfg(test)]
mod tests;
mod validate;

pub use keys::{ENV_PREFIX, SCHEMA};
pub use validate::PAYLOAD_BYTES_CEILING;

use moorline_net::settings::{Loaded, Rules, SettingsError, units};
use moorline_net::tls::MutualFiles;
use moorline_proto::link::LinkAddress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Handler that answers the gateway.
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

/// Gateways that are believed without a proof, over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unproven {
    /// No gateway.
    #[default]
    Refuse,
    /// Those on this machine: every local user can read and write as anybody.
    Loopback,
    /// All that reach the address, as in earlier versions.
    Private,
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Listening address for gateways: a Unix socket, or a loopback or private address; port 0: the system's choice.
    #[serde(with = "units::text")]
    pub listen: LinkAddress,
    /// Handler of the backend.
    pub handler: HandlerKind,
    /// This backend's name in its link HELLO, for logs.
    pub node: String,
    /// Number of this node in message ids, 0..=1023; unique among backends of one installation.
    pub node_number: u16,
    /// List of `uid token` lines that judges logins of gateways with `auth.mode = "backend"`. Empty:
    /// all of those are refused.
    pub tokens_file: PathBuf,
    /// Logins that a service of the operator judges.
    pub login_hook: LoginHookConfig,
    /// The link.
    pub link: LinkConfig,
    /// The IM backend.
    pub im: ImConfig,
    /// The cells of a cluster.
    pub store: StoreConfig,
    /// The server API of the IM backend.
    pub api: ApiConfig,
    /// The audit log.
    pub audit: AuditConfig,
}

impl Default for BackendConfig {
    /// The defaults of [`SCHEMA`].
    fn default() -> Self {
        SCHEMA.defaults()
    }
}

/// A service of the operator that judges logins of gateways with `auth.mode = "backend"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginHookConfig {
    /// Address of the service. Empty: there is none.
    pub url: String,
    /// A file with the secret that signs questions. Empty: they are not signed.
    pub secret_file: PathBuf,
    /// Longest time from the gateway's question to the answer.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Questions under way.
    pub threads: usize,
    /// Questions that wait for a thread.
    pub queue_max: usize,
    /// Time that a judgement is kept; 0: not at all.
    #[serde(with = "units::duration")]
    pub cache_time: Duration,
    /// Judgements that are kept.
    pub cache_max: usize,
    /// Failures in a row after which the service is left alone.
    pub failures_max: usize,
    /// For how long.
    #[serde(with = "units::duration")]
    pub pause: Duration,
}

/// Limits and times of the link (`docs/backend.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// Unanswered UPs accepted per link. Over it the link is not read until answers went out.
    pub credit: u32,
    /// List of `node secret` lines; empty: no gateway has a secret.
    pub secrets_file: PathBuf,
    /// Gateways that are believed without a proof, over TCP.
    pub unproven: Unproven,
    /// User ids that are believed on the Unix socket; empty: the one of this process.
    pub peer_uids: Vec<u32>,
    /// Links of gateways at once; a further one is closed.
    pub links_max: usize,
    /// Connections at once that have not proven who they are; a further one closes the oldest silent one.
    pub visitors_max: usize,
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
    /// Time that a link may stay over `output_max` before it is closed.
    #[serde(with = "units::duration")]
    pub stall_timeout: Duration,
    /// Longest time until the HELLO of a new link.
    #[serde(with = "units::duration")]
    pub hello_timeout: Duration,
    /// Silence after which a link is dead; a PING goes out after a third of it.
    #[serde(with = "units::duration")]
    pub silence_timeout: Duration,
    /// Time that sessions are kept without a link that speaks for them.
    #[serde(with = "units::duration")]
    pub lease: Duration,
    /// Messages that may wait in the mailbox for other threads.
    pub mailbox: usize,
    /// Files for TLS of links.
    pub tls: MutualFiles,
}

impl Default for LinkConfig {
    fn default() -> Self {
        BackendConfig::default().link
    }
}

/// Cells of a cluster, which keep what `im.folder` keeps for one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Connection strings of the cells. Empty: the backend is of no cluster.
    pub cells: Vec<String>,
    /// A file with the password of the databases' user. Empty: it needs none.
    pub password_file: PathBuf,
    /// Address where the other nodes connect. `None`: `listen`.
    #[serde(with = "units::optional_address")]
    pub address: Option<SocketAddr>,
}

impl StoreConfig {
    /// Returns whether the backend is a node of a cluster.
    pub const fn is_cluster(&self) -> bool {
        !self.cells.is_empty()
    }
}

/// The server API (`docs/server-api.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Listening address of the server API. Without TLS loopback or private addresses only; port 0: the system's choice.
    /// `None`: the API is off.
    #[serde(with = "units::optional_address")]
    pub listen: Option<SocketAddr>,
    /// A file with the certificate of the API and its issuers; empty: no TLS.
    pub certificate_file: PathBuf,
    /// A file with the key of that certificate.
    pub key_file: PathBuf,
    /// A file with the token that questions must carry: text of at least 16 bytes, without the space around it.
    pub token_file: PathBuf,
    /// A file with several tokens, each with scopes and a rate.
    pub access_file: PathBuf,
    /// Connections at once; a further one is answered 503.
    pub connections_max: usize,
    /// Bytes of a question.
    #[serde(with = "units::bytes")]
    pub body_max: usize,
    /// Host names by which the API is asked, beside IP addresses and `localhost`.
    pub names: Vec<String>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        BackendConfig::default().api
    }
}

/// The audit log of changes through the server API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// The file. Empty: there is none.
    pub file: PathBuf,
    /// Bytes of the file, and again of the one before it.
    #[serde(with = "units::bytes")]
    pub size_max: usize,
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

/// Rule for writing one to one; a block always forbids it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhoMayWrite {
    /// Everybody to everybody.
    #[default]
    Anyone,
    /// Friends to each other.
    Friends,
}

/// Rule for deleting an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhoMayDelete {
    /// The operator, by the server API.
    #[default]
    Operator,
    /// Users their own, too.
    User,
}

/// Quotas of one user for a day; 0: no quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaConfig {
    /// Groups that the user makes.
    pub groups: u64,
    /// Memberships that the user makes.
    pub members: u64,
    /// Changes of groups.
    pub group_changes: u64,
    /// Conversations with another user that the user begins.
    pub conversations: u64,
    /// Requests to be friends.
    pub relations: u64,
    /// Bytes of messages, profiles and texts.
    #[serde(with = "units::bytes")]
    pub bytes: usize,
}

/// Limits of the IM backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImConfig {
    /// Folder of the store. Empty: in memory, gone with the process.
    pub folder: PathBuf,
    /// When a SEND is answered.
    pub durability: DurabilityPoint,
    /// Largest message payload; over it: TOO_LARGE. Must leave room for the rest of a PUSH under the
    /// gateway's body limit.
    #[serde(with = "units::bytes")]
    pub payload_max: usize,
    /// Entries a user's inbox keeps for devices that have not acked them.
    pub inbox_entries_max: usize,
    /// Time that a message key is remembered.
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
    /// Messages of a group with fewer members than this go with those between two users: first, and shed last.
    pub first_rank_members: usize,
    /// Messages of a group with fewer members than this go second; those of larger groups go last.
    pub second_rank_members: usize,
    /// So does one whose messages would make more inbox entries than this in an hour.
    pub fanout_entries_per_hour: u64,
    /// A group whose messages go into no inbox has a room in the gateways until it has had no message for this long; 0: there are
    /// no such rooms.
    #[serde(with = "units::duration")]
    pub room_idle: Duration,
    /// Rule for writing one to one.
    pub who_may_write: WhoMayWrite,
    /// Rule for making a user a member of a group; a user may be stricter.
    pub who_may_add: WhoMayWrite,
    /// Rule for seeing whether a user is online.
    pub who_may_see: WhoMayWrite,
    /// Largest payload of a signal.
    #[serde(with = "units::bytes")]
    pub signal_max: usize,
    /// Signals of one user in one room in a second.
    pub signal_rate: usize,
    /// Percent of the backend's time for one user.
    pub work_share: usize,
    /// Time after storing in which a message may be recalled.
    #[serde(with = "units::duration")]
    pub recall_window: Duration,
    /// Friends of one user and requests that the user has made.
    pub relations_max: usize,
    /// Requests that wait for one user.
    pub requests_max: usize,
    /// Blocks of one user.
    pub blocks_max: usize,
    /// Devices remembered per user; over it the one longest away is forgotten.
    pub devices_max: usize,
    /// Users known at once.
    pub users_max: usize,
    /// Percent of `users_max` for users who log in.
    pub users_reserved: usize,
    /// Conversations known at once.
    pub conversations_max: usize,
    /// Memberships of all conversations together.
    pub members_total_max: usize,
    /// Bytes of messages the memory store keeps; over it the oldest message is dropped.
    #[serde(with = "units::bytes")]
    pub history_max: usize,
    /// Time for which messages are kept; zero: for ever.
    #[serde(with = "units::duration")]
    pub retention: Duration,
    /// Rule for deleting an account.
    pub who_may_delete: WhoMayDelete,
    /// Free bytes of the disk below which only small writes pass; 0: no floor.
    #[serde(with = "units::bytes")]
    pub disk_floor: usize,
    /// Bytes of deliveries that were given up; over it the oldest file goes.
    #[serde(with = "units::bytes")]
    pub undelivered_max: usize,
    /// Files of deliveries that were given up.
    pub undelivered_files_max: usize,
    /// Quotas of one user for a day.
    pub quota: QuotaConfig,
    /// Users that are answered by an HTTP endpoint, by uid.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub webhooks: BTreeMap<String, WebhookConfig>,
}

/// An HTTP endpoint that gets what users say to a service (`docs/server-api.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Address of the endpoint: `http://` or `https://`.
    pub url: String,
    /// A file with the secret that deliveries are signed with: text, better of 16 bytes or more, without the space around it. Empty:
    /// they are not signed.
    pub secret_file: PathBuf,
    /// Longest time of one delivery.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Messages of one delivery.
    pub batch_max: usize,
    /// For how long a delivery is tried again before it is written down and given up.
    #[serde(with = "units::duration")]
    pub give_up_after: Duration,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        SCHEMA.defaults_of("im.webhooks.*")
    }
}

impl Default for ImConfig {
    fn default() -> Self {
        BackendConfig::default().im
    }
}

impl BackendConfig {
    /// Reads and validates: `sets` ("section.key=value") over `env` over `file` over the defaults. Of `env` only names with
    /// [`ENV_PREFIX`] are looked at.
    ///
    /// # Errors
    /// [`SettingsError`] with every fault, each with its place.
    pub fn load(
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded<Self>, SettingsError> {
        SCHEMA.load(file, sets, env, validate::check)
    }

    /// Checks the rules between values of settings that a program made up itself.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] with every broken rule.
    pub fn validate(&self) -> Result<(), SettingsError> {
        Rules::check(self, validate::check)
    }
}
