//! Quotas of users and caps of the store: what one user may make others store in a day, and how full the store is.
//!
//! eve makes 100 groups before noon: her next `im.group.create` is DENIED until the next day, and the metric
//! `quota_refused{quota="groups"}` counts it. What the operator's server does for a user does not count. Counts are in
//! memory: a restart of the backend forgets those of the day.

use super::refusal::{Refused, refuse};
use super::store::{Counts, UserId};
use crate::config::{ImConfig, QuotaConfig};
use crate::server::Now;
use hashbrown::HashMap;
use moorline_net::cap::{CapFigures, CapWatch};
use moorline_proto::message::client::Code;
use moorline_proto::time::{Duration, Instant};

/// Milliseconds of a day (UTC).
const DAY_MS: u64 = 86_400_000;
/// Share of a quota, in percent, from which the log and the metrics name it.
const NEAR_PERCENT: u128 = 80;
/// Time between two log lines about quotas.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Count of one user for a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    Groups,
    Members,
    GroupChanges,
    Conversations,
    Relations,
    Bytes,
}

const QUOTAS: usize = 6;
const NAMES: [&str; QUOTAS] = ["groups", "members", "group_changes", "conversations", "relations", "bytes"];

/// Use of one quota since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaStatus {
    /// Name of the quota: the last part of its setting.
    pub name: &'static str,
    /// Users who reached 80% of it, each once a day.
    pub near: u64,
    /// Requests and messages that were refused.
    pub refused: u64,
}

/// Counts of the day, and figures since the start.
#[derive(Debug)]
pub(super) struct Quotas {
    limits: [u64; QUOTAS],
    day: u64,
    /// Users who used something today.
    used: HashMap<UserId, [u64; QUOTAS]>,
    statuses: [QuotaStatus; QUOTAS],
    /// Figures that the log has.
    logged: [QuotaStatus; QUOTAS],
    log_at: Instant,
    /// Caps of the store.
    caps: [CapWatch; 3],
}

impl Quotas {
    pub(super) fn new(config: &QuotaConfig) -> Self {
        let QuotaConfig { groups, members, group_changes, conversations, relations, bytes } = *config;
        let limits = [groups, members, group_changes, conversations, relations, bytes as u64];
        let statuses = NAMES.map(|name| QuotaStatus { name, near: 0, refused: 0 });
        let (day, used, log_at) = (0, HashMap::new(), Instant::ZERO);
        let caps = ["im.users_max", "im.conversations_max", "im.members_total_max"].map(CapWatch::new);
        Self { limits, day, used, statuses, logged: statuses, log_at, caps }
    }

    /// Charges a user, all or nothing.
    ///
    /// # Errors
    /// A quota of the day would be exceeded: DENIED.
    pub(super) fn charge(&mut self, now: Now, user: UserId, amounts: &[(Quota, u64)]) -> Result<(), Refused> {
        let day = now.unix_ms / DAY_MS;
        if day != self.day {
            (self.day, self.used) = (day, HashMap::new());
        }
        let user = self.used.entry(user).or_default();
        let mut used = *user;
        for (quota, amount) in amounts {
            let (at, limit) = (*quota as usize, self.limits[*quota as usize]);
            used[at] = used[at].saturating_add(*amount);
            if limit > 0 && used[at] > limit {
                self.statuses[at].refused += 1;
                let name = NAMES[at];
                let reason = format!(
                    "you have used up `im.quota.{name}`, which allows {limit} in a day (UTC); try again tomorrow"
                );
                return Err(refuse(Code::Denied, reason));
            }
        }
        for (quota, _) in amounts {
            let (at, limit) = (*quota as usize, self.limits[*quota as usize]);
            let is_near = |used: u64| limit > 0 && is_at(used.into(), limit.into(), NEAR_PERCENT);
            self.statuses[at].near += u64::from(!is_near(user[at]) && is_near(used[at]));
        }
        *user = used;
        Ok(())
    }

    /// Logs which quotas users have come near to, at most once in [`LOG_EVERY`], and which caps the store has come near to.
    pub(super) fn log(&mut self, now: Now, config: &ImConfig, counts: &Counts) {
        for (watch, CapFigures { used, max, .. }) in self.caps.iter().zip(caps(config, counts)) {
            watch.note(used, max, now.instant);
        }
        if self.logged != self.statuses && now.instant >= self.log_at {
            self.log_at = now.instant + LOG_EVERY;
            for (status, logged) in self.statuses.iter().zip(&self.logged).filter(|(a, b)| a != b) {
                let (near, refused) = (status.near - logged.near, status.refused - logged.refused);
                tracing::warn!(
                    quota = status.name,
                    near,
                    refused,
                    "users have come near to a quota of a day, or were refused"
                );
            }
            self.logged = self.statuses;
        }
    }

    pub(super) fn statuses(&self) -> Vec<QuotaStatus> {
        self.statuses.to_vec()
    }
}

/// Returns how full the store is.
pub(super) fn caps(config: &ImConfig, counts: &Counts) -> [CapFigures; 3] {
    [
        ("users_max", counts.users, counts.share_of(config.users_max)),
        ("conversations_max", counts.conversations, counts.share_of(config.conversations_max)),
        ("members_total_max", counts.members, config.members_total_max),
    ]
    .map(|(name, used, max)| CapFigures { name, used, max })
}

fn is_at(used: u128, max: u128, percent: u128) -> bool {
    used * 100 >= max * percent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_ms: u64) -> Now {
        Now { unix_ms, ..Now::default() }
    }

    #[test]
    fn a_quota_is_one_users_and_one_days() {
        let config = QuotaConfig { groups: 5, members: 0, ..ImConfig::default().quota };
        let mut quotas = Quotas::new(&config);
        let (eve, bob, day) = (UserId::of(1), UserId::of(2), at(DAY_MS * 9 + 5));
        for _ in 0..5 {
            quotas
                .charge(day, eve, &[(Quota::Groups, 1), (Quota::Members, 1 << 40)])
                .expect("no quota for members");
        }
        let (code, reason) =
            quotas.charge(day, eve, &[(Quota::Relations, 1), (Quota::Groups, 1)]).expect_err("used up");
        assert!(
            code == Code::Denied && reason.contains("`im.quota.groups`, which allows 5 in a day"),
            "{reason}"
        );
        assert_eq!(quotas.used[&eve][Quota::Relations as usize], 0, "all or nothing");
        quotas.charge(day, bob, &[(Quota::Groups, 5)]).expect("another user");
        let status = quotas.statuses()[0];
        assert_eq!((status.name, status.near, status.refused), ("groups", 2, 1));
        quotas.charge(at(DAY_MS * 10), eve, &[(Quota::Groups, 5)]).expect("another day");
        assert_eq!((quotas.statuses()[0].near, quotas.used.len()), (3, 1), "yesterday is forgotten");
        assert!(quotas.charge(at(DAY_MS * 10), eve, &[(Quota::Bytes, u64::MAX)]).is_err());
    }
}
