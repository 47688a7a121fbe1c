//! Severity of a run: drawn once per seed, so that seeds differ in kind and not only in luck.

use moorline::config::Retransmit;
use moorline::shard_map::{Pins, ShardMap, UserKey};
use moorline_backend::config::LinkConfig;
use moorline_proto::random::Random;
use moorline_proto::time::Duration;

/// Rates are "once in n"; 0: never.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// The drain: nothing goes wrong any more.
    pub(crate) is_calm: bool,
    pub(crate) shards: usize,
    /// Number of shards before the growth.
    pub(crate) first_shards: usize,
    pub(crate) workers: usize,
    /// Time during which faults occur.
    pub(crate) chaos: Duration,
    /// Longest life of a connection.
    pub(crate) life_ms: u64,
    /// Connections that stand still for a while.
    pub(crate) stall: u64,
    pub(crate) stall_ms_max: u64,
    /// Bytes that one direction of a connection holds.
    pub(crate) room: usize,
    /// Deliveries that are cut small.
    pub(crate) cut: u64,
    /// Answers that the backend gives late, or as RETRY, or never.
    pub(crate) late: u64,
    pub(crate) retry: u64,
    pub(crate) lost: u64,
    /// Time between deaths of a link; 0: it lives.
    pub(crate) link_life_ms: u64,
    pub(crate) link_away_ms_max: u64,
    /// Bytes that one direction of a link holds.
    pub(crate) link_room: usize,
    /// Links that stand still for a while.
    pub(crate) link_stall: u64,
    /// Connections to the backend that are refused, or whose SYN is lost.
    pub(crate) link_refused: u64,
    /// Links that break without a word to either end.
    pub(crate) link_silent: u64,
    /// Addresses of the backend, and links of each worker to each.
    pub(crate) endpoints: usize,
    pub(crate) links_per_endpoint: usize,
    /// Slots go to endpoints by hash.
    pub(crate) is_by_hash: bool,
    /// The backend judges logins, and forgets to answer once in this many.
    pub(crate) is_backend_judge: bool,
    pub(crate) auth_lost: u64,
    /// Limits of the gateway's end of links.
    pub(crate) link_output_max: usize,
    pub(crate) parked_frames: usize,
    pub(crate) parked_changes: usize,
    pub(crate) overload_frames: usize,
    /// Limits of the backend's end of links.
    pub(crate) credit: u32,
    pub(crate) output_max: usize,
    pub(crate) stall_timeout: Duration,
    pub(crate) lease: Duration,
    /// Messages that an application sits on for seconds.
    pub(crate) slow_application: u64,
    /// Pause between two things an application says.
    pub(crate) talk_ms: u64,
    pub(crate) hostiles: u64,
    /// Time that detached sessions wait for their clients.
    pub(crate) keep: Duration,
    /// Frames per second of a connection, uplinks per second of a user; 0: any number.
    pub(crate) frame_rate: u32,
    pub(crate) user_rate: u32,
    /// Bytes queued for one client above which pushes that may wait become NOTIFYs.
    pub(crate) collapse_bytes: usize,
    pub(crate) retransmit: Retransmit,
    /// Longest wait of pushes for company.
    pub(crate) batch_age: Duration,
    /// Connections that break behind an exact byte.
    pub(crate) knife: u64,
    /// Times between: all connections break; the machine sleeps; the gateway stands still; the backend
    /// dies; workers hold and shed. 0: never.
    pub(crate) storm_ms: u64,
    pub(crate) suspend_ms: u64,
    pub(crate) freeze_ms: u64,
    pub(crate) backend_life_ms: u64,
    pub(crate) pressure_ms: u64,
    /// Sessions of a shard that may wait for their clients.
    pub(crate) kept: usize,
    /// Turns of a reactor's loop after which its state moves to another process; 0: never; 1: after each turn of one stretch in
    /// [`RESTART_STRETCHES`].
    pub(crate) restart_turns: u64,
}

/// Turns of a stretch.
const STRETCH_TURNS: u64 = 64;
/// Stretches of which one moves a state after each turn. To move costs many times what a turn does.
const RESTART_STRETCHES: u64 = 8;

/// User id of the console, which is on the backend's machine.
pub(crate) const CONSOLE_UID: u32 = 7;
/// The gateway's line in both lists of secrets.
pub(crate) const SECRETS: &str = "g a-secret-of-thirty-two-bytes-at-least";

/// A client asks four times, and waits two seconds for each answer.
const ASKING_MS: u64 = 8_000;

impl Faults {
    /// Owning shards: in half of the seeds there were fewer shards once.
    pub(crate) fn shard_map(&self) -> ShardMap {
        let key = UserKey::new([5; 16], if self.is_by_hash { Pins::KeyedButSlot } else { Pins::Keyed });
        ShardMap::new(self.first_shards.min(self.shards)).with_key(key).grown_to(self.shards)
    }

    /// True if a state moves to another process after this many turns of its loop, at least `least`.
    pub(crate) fn is_move_after(&self, turns: u64, least: u64) -> bool {
        let every = self.restart_turns.max(least);
        let is_stretch = every != 1 || (turns / STRETCH_TURNS).is_multiple_of(RESTART_STRETCHES);
        self.restart_turns > 0 && turns.is_multiple_of(every) && is_stretch
    }

    /// Limits of the backend's end of links.
    pub(crate) fn link_config(&self) -> LinkConfig {
        let &Self { credit, output_max, stall_timeout, lease, .. } = self;
        let peer_uids = vec![CONSOLE_UID];
        LinkConfig { credit, output_max, stall_timeout, lease, peer_uids, ..LinkConfig::default() }
    }

    pub(crate) fn new(random: &mut Random) -> Self {
        let mut pick =
            |choices: &[u64]| choices[usize::try_from(random.below(choices.len() as u64)).expect("small")];
        Self {
            is_calm: false,
            shards: usize::try_from(pick(&[2, 2, 3])).expect("small"),
            first_shards: usize::try_from(pick(&[1, 2, 3])).expect("small"),
            workers: usize::try_from(pick(&[1, 2])).expect("small"),
            chaos: Duration::from_millis(pick(&[3_000, 5_000, 7_500])),
            life_ms: pick(&[1_500, 4_000, 20_000, 100_000]),
            stall: pick(&[0, 2, 4]),
            stall_ms_max: pick(&[300, 3_000, 8_000]),
            room: usize::try_from(pick(&[48, 300, 4_000, 100_000])).expect("small"),
            cut: pick(&[0, 2, 6]),
            late: pick(&[0, 10, 40]),
            retry: pick(&[0, 8, 30]),
            lost: pick(&[0, 30, 100]),
            link_life_ms: pick(&[0, 1_500, 6_000]),
            link_away_ms_max: pick(&[100, 1_000, 5_000]),
            link_room: usize::try_from(pick(&[600, 20_000, 1_000_000])).expect("small"),
            link_stall: pick(&[0, 1, 3]),
            link_refused: pick(&[0, 3, 10]),
            link_silent: pick(&[0, 0, 0, 3]),
            endpoints: usize::try_from(pick(&[1, 2])).expect("small"),
            links_per_endpoint: usize::try_from(pick(&[1, 1, 2])).expect("small"),
            is_by_hash: pick(&[0, 0, 1]) == 1,
            is_backend_judge: pick(&[0, 1]) == 1,
            auth_lost: pick(&[0, 10]),
            link_output_max: usize::try_from(pick(&[250, 4_000, 4 << 20])).expect("small"),
            parked_frames: usize::try_from(pick(&[3, 1_000])).expect("small"),
            parked_changes: usize::try_from(pick(&[2, 1_000])).expect("small"),
            overload_frames: usize::try_from(pick(&[4, 1_000])).expect("small"),
            credit: u32::try_from(pick(&[3, 64, 65_536])).expect("small"),
            output_max: usize::try_from(pick(&[1_500, 100_000, 8 << 20])).expect("small"),
            stall_timeout: Duration::from_millis(pick(&[700, 10_000])),
            lease: Duration::from_millis(pick(&[1_200, 4_000, 12_000])),
            slow_application: pick(&[0, 8, 30]),
            talk_ms: pick(&[300, 700, 1_500]),
            hostiles: pick(&[0, 1, 3]),
            frame_rate: u32::try_from(pick(&[0, 20, 200])).expect("small"),
            user_rate: u32::try_from(pick(&[0, 3, 50])).expect("small"),
            collapse_bytes: usize::try_from(pick(&[300, 4_000, 32_000])).expect("small"),
            retransmit: [Retransmit::Probe, Retransmit::Classic]
                [usize::try_from(pick(&[0, 1])).expect("small")],
            keep: Duration::from_millis(pick(&[0, 3_000, 60_000])),
            batch_age: Duration::from_millis(pick(&[0, 50, 2_000])),
            knife: pick(&[0, 2, 4]),
            storm_ms: pick(&[0, 0, 3_000]),
            suspend_ms: pick(&[0, 0, 0, 4_000]),
            freeze_ms: pick(&[0, 0, 3_000]),
            backend_life_ms: pick(&[0, 0, 4_000]),
            pressure_ms: pick(&[0, 0, 1_500]),
            kept: usize::try_from(pick(&[1, 2, 100, 100])).expect("small"),
            restart_turns: pick(&[0, 0, 0, 50, 50, 50, 7, 1]),
        }
    }

    /// True if a client may hear nothing of a message for longer than it goes on asking: because the gateway
    /// stands still or does not read, or because a stalled connection comes on top of a backend that is away.
    pub(crate) fn know_long_silence(&self) -> bool {
        let stalls_ms = if self.stall == 0 { 0 } else { self.stall_ms_max };
        let stands_still = [self.freeze_ms, self.suspend_ms, self.pressure_ms].iter().any(|pause| *pause > 0);
        let is_unnoticed = self.link_silent > 0 || self.link_stall > 0;
        stands_still || is_unnoticed || stalls_ms + self.link_away_ms_max >= ASKING_MS
    }
}
