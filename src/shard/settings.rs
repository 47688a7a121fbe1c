//! What a shard must know of the configuration.

use crate::config::Config;
use moorline_proto::ids::ShardId;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::window::WindowLimits;

/// Sessions of one user on this gateway.
const DEVICES_MAX: usize = 32;
/// How long a closing connection may take to hear its last frame.
const LINGER: Duration = Duration::from_secs(2);

/// Limits and identity of one shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which one.
    pub shard: ShardId,
    /// Of how many.
    pub shards: usize,
    /// Workers that uplinks are spread over.
    pub workers: usize,
    /// Largest frame body, in bytes.
    pub body_bytes_max: u32,
    /// Largest frame body before the login, in bytes.
    pub hello_bytes_max: u32,
    /// Time for HELLO to arrive, and again for it to be judged.
    pub handshake_timeout: Duration,
    /// Reliable frames in flight toward one session.
    pub downlink: WindowLimits,
    /// Bytes that may wait for one client, in its socket queue and again behind its window.
    pub queue_bytes_max: usize,
    /// Frames that may wait likewise.
    pub queue_frames_max: usize,
    /// Bounds of the heartbeat interval, in seconds.
    pub heartbeat_s: (u16, u16),
    /// Sessions of one user; one more is refused.
    pub devices_max: usize,
    /// How long a closing connection may take to hear its last frame.
    pub linger: Duration,
    /// Changes when sessions are lost: the start of the gateway in Unix nanoseconds.
    pub epoch: u64,
    /// Unix nanoseconds at monotonic zero.
    pub unix_base_nanos: u64,
    /// For session ids and jitter.
    pub seed: u64,
}

impl Settings {
    /// From the configuration, for shard `shard` of `shards`.
    pub fn new(
        config: &Config,
        shard: ShardId,
        shards: usize,
        workers: usize,
        clock: ClockBase,
        seed: u64,
    ) -> Self {
        let seconds = |duration: Duration| u16::try_from(duration.as_secs()).unwrap_or(u16::MAX);
        let limits = &config.limits;
        Self {
            shard,
            shards,
            workers,
            body_bytes_max: limits.body_max.as_u32(),
            hello_bytes_max: limits.hello_max.as_u32(),
            handshake_timeout: limits.handshake_timeout,
            downlink: WindowLimits {
                frames_max: u16::try_from(limits.downlink_frames).unwrap_or(u16::MAX),
                bytes_max: limits.downlink_bytes.as_u32(),
            },
            queue_bytes_max: limits.queue_bytes.as_usize(),
            queue_frames_max: limits.queue_frames,
            heartbeat_s: (seconds(config.heartbeat.min), seconds(config.heartbeat.max)),
            devices_max: DEVICES_MAX,
            linger: LINGER,
            epoch: clock.epoch,
            unix_base_nanos: clock.unix_base_nanos,
            seed,
        }
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

/// How this process's monotonic clock relates to the calendar.
#[derive(Clone, Copy, Debug)]
pub struct ClockBase {
    /// The start of the gateway, in Unix nanoseconds.
    pub epoch: u64,
    /// Unix nanoseconds at monotonic zero.
    pub unix_base_nanos: u64,
}
