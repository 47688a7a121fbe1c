//! The part of the configuration that a shard needs.

use super::bucket::Fill;
use super::flight::Batching;
use crate::config::{Config, Retransmit, Uplink};
use crate::shard_map::ShardMap;
use moorline_proto::dedupe::WINDOW_FRAMES;
use moorline_proto::ids::ShardId;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::window::WindowLimits;
use std::sync::Arc;

/// Sessions of one user on this gateway.
const DEVICES_MAX: usize = 32;
/// Longest time until a closing connection has written its last frame.
const LINGER: Duration = Duration::from_secs(2);
/// Slots that a snapshot may name whatever the limits are now: a table of 40 MiB.
const SLOTS_ALWAYS: usize = 1 << 20;
/// Slots beside those of connections and detached sessions: connections that are closing.
const SLOTS_CLOSING: usize = 1 << 16;

/// Limits and identity of one shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of the shard.
    pub shard: ShardId,
    /// Owning shards of users.
    pub shard_map: ShardMap,
    /// Workers that uplinks are spread over.
    pub workers: usize,
    /// Largest frame body, in bytes.
    pub body_bytes_max: u32,
    /// Largest frame body before the login, in bytes.
    pub hello_bytes_max: u32,
    /// Longest time until HELLO arrives, and again until it is judged.
    pub handshake_timeout: Duration,
    /// Longest time until a frame that has begun is complete.
    pub frame_timeout: Duration,
    /// Reliable frames in flight toward one session.
    pub downlink: WindowLimits,
    /// Bytes that may wait for one client in its socket's queue, and again behind its window.
    pub queue_bytes_max: usize,
    /// Frames that may wait likewise.
    pub queue_frames_max: usize,
    /// Bounds of the heartbeat interval, in seconds.
    pub heartbeat_s: (u16, u16),
    /// Sessions of one user; one more is refused.
    pub devices_max: usize,
    /// Logins of one user on mobile, desktop and web devices; 0: no limit of their own.
    pub devices_of_kind: [usize; 3],
    /// Longest time until a closing connection has written its last frame.
    pub linger: Duration,
    /// Changes when sessions are lost: the start of the gateway in Unix nanoseconds.
    pub epoch: u64,
    /// Unix nanoseconds at monotonic zero.
    pub unix_base_nanos: u64,
    /// Seed of the jitter.
    pub seed: u64,
    /// Cids that may be ahead of the answers; 1: strict.
    pub uplink_window: u32,
    /// Time that a detached session waits for its client; zero: sessions end with their connections.
    pub session_keep: Duration,
    /// Time that a session may outlive its token; zero: no limit.
    pub session_max: Duration,
    /// Detached sessions of this shard at most.
    pub kept_max: usize,
    /// Validity of a resumption token, from WELCOME on.
    pub ticket_ttl: Duration,
    /// Key of the resumption tokens.
    pub ticket_key: [u8; 32],
    /// Bytes queued for one client above which pushes of the lanes that may wait become a NOTIFY.
    pub collapse_bytes_max: usize,
    /// Longest time that a push of the group or bulk lane waits for others; zero: it does not wait.
    pub batch_age: Duration,
    /// Number of pushes that ends such a wait.
    pub batch_frames: usize,
    /// Shortest batch that is compressed, in bytes; 0: batches are not compressed.
    pub compress_min: usize,
    /// Reaction to an overdue ack.
    pub retransmit: Retransmit,
    /// Frames per second of one connection; 0: no limit.
    pub frame_rate: u32,
    /// Uplink frames per second of one user; 0: no limit.
    pub user_rate: u32,
    /// Bytes queued for all clients of this shard above which limits shrink.
    pub memory_bytes_max: usize,
    /// Other gateways, for WELCOME and GOAWAY.
    pub alternates: Arc<[String]>,
    /// Slots that a snapshot may name: the table is as long as its highest slot.
    pub thaw_slots_max: usize,
}

/// Returns the number of slots that a gateway with these limits can have used, at least [`SLOTS_ALWAYS`]: the limits may have
/// been larger before.
fn thaw_slots_max(config: &Config) -> usize {
    let clients = config.limits.connections_max.saturating_add(config.session.kept_max);
    clients.saturating_add(SLOTS_CLOSING).max(SLOTS_ALWAYS)
}

impl Settings {
    /// The settings of one shard, from the configuration.
    pub fn new(
        config: &Config,
        shard: ShardId,
        shard_map: ShardMap,
        workers: usize,
        birth: Birth,
        seed: u64,
    ) -> Self {
        let seconds = |duration: Duration| u16::try_from(duration.as_secs()).unwrap_or(u16::MAX);
        let limits = &config.limits;
        let shards = shard_map.shards();
        Self {
            shard,
            shard_map,
            workers,
            body_bytes_max: limits.body_max.as_u32(),
            hello_bytes_max: limits.hello_max.as_u32(),
            handshake_timeout: limits.handshake_timeout,
            frame_timeout: limits.frame_timeout,
            downlink: WindowLimits {
                frames_max: u16::try_from(limits.downlink_frames).unwrap_or(u16::MAX),
                bytes_max: limits.downlink_bytes.as_u32(),
            },
            queue_bytes_max: limits.queue_bytes.as_usize(),
            queue_frames_max: limits.queue_frames,
            heartbeat_s: (seconds(config.heartbeat.min), seconds(config.heartbeat.max)),
            devices_max: DEVICES_MAX,
            devices_of_kind: [config.session.mobile_max, config.session.desktop_max, config.session.web_max],
            linger: LINGER,
            epoch: birth.epoch,
            unix_base_nanos: birth.unix_base_nanos,
            seed,
            uplink_window: match config.listeners[0].uplink {
                Uplink::Window => WINDOW_FRAMES,
                Uplink::Strict => 1,
            },
            session_keep: config.session.keep,
            session_max: config.auth.session_max,
            kept_max: config.session.kept_max.div_ceil(shards),
            ticket_ttl: config.session.ticket_ttl,
            ticket_key: birth.ticket_key,
            collapse_bytes_max: limits.collapse_bytes.as_usize().min(limits.queue_bytes.as_usize() / 2),
            batch_age: limits.batch_age,
            batch_frames: limits.batch_frames,
            compress_min: limits.compress_min.as_usize(),
            retransmit: limits.retransmit,
            frame_rate: u32::try_from(limits.frame_rate).unwrap_or(u32::MAX),
            user_rate: u32::try_from(limits.user_rate).unwrap_or(u32::MAX),
            memory_bytes_max: limits.memory_watermark.as_usize().div_ceil(shards),
            alternates: config.gateway.alternates.clone().into(),
            thaw_slots_max: thaw_slots_max(config),
        }
    }

    /// Takes over the limits that clients are not told at their login.
    pub(super) fn reload(&mut self, new: &Self) {
        self.hello_bytes_max = new.hello_bytes_max;
        self.handshake_timeout = new.handshake_timeout;
        self.queue_bytes_max = new.queue_bytes_max;
        self.queue_frames_max = new.queue_frames_max;
        self.devices_of_kind = new.devices_of_kind;
        self.session_max = new.session_max;
        self.ticket_ttl = new.ticket_ttl;
        self.collapse_bytes_max = new.collapse_bytes_max;
        self.batch_age = new.batch_age;
        self.batch_frames = new.batch_frames;
        self.frame_rate = new.frame_rate;
        self.user_rate = new.user_rate;
        self.memory_bytes_max = new.memory_bytes_max;
    }

    pub(super) const fn batching(&self) -> Batching {
        Batching { age: self.batch_age, frames: self.batch_frames }
    }

    /// Rate limit of one connection's frames.
    pub(super) const fn frame_fill(&self) -> Fill {
        Fill { rate: self.frame_rate }
    }

    /// Rate limit of one user's uplinks.
    pub(super) const fn user_fill(&self) -> Fill {
        Fill { rate: self.user_rate }
    }

    /// End of a session whose token expires at this Unix time; `None`: the session has no end.
    pub(super) fn session_end(&self, expires_s: Option<u64>) -> Option<Instant> {
        let expires_s = expires_s.filter(|_| !self.session_max.is_zero())?;
        let end_s = expires_s.saturating_add(self.session_max.as_secs());
        let since_base = end_s.saturating_mul(1_000_000_000).saturating_sub(self.unix_base_nanos);
        Some(Instant::from_nanos(since_base))
    }

    /// Unix milliseconds at `now`.
    pub(super) fn unix_millis(&self, now: Instant) -> u64 {
        self.unix_nanos(now) / 1_000_000
    }

    /// Unix nanoseconds at `now`.
    pub(super) fn unix_nanos(&self, now: Instant) -> u64 {
        self.unix_base_nanos.saturating_add(now.as_nanos())
    }
}

impl Default for Settings {
    /// The only shard with one worker, by the defaults of the configuration.
    fn default() -> Self {
        let birth = Birth { epoch: 1, unix_base_nanos: 0, ticket_key: [1; 32] };
        Self::new(&Config::default(), ShardId(0), ShardMap::new(1), 1, birth, 1)
    }
}

/// Facts that a process has from its start.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// The start of the gateway, in Unix nanoseconds.
    pub epoch: u64,
    /// Unix nanoseconds at monotonic zero.
    pub unix_base_nanos: u64,
    /// Key of the resumption tokens [P-3.10]: random, and lost with the sessions.
    pub ticket_key: [u8; 32],
}
