//! Settings that a serving gateway takes over from settings that were read again.

use super::{AuthConfig, Config, LimitsConfig, ListenerConfig, LogConfig, SessionConfig, TlsConfig};

impl Config {
    /// Returns these settings with the values of `new` that take effect without a restart: keys and rules of logins,
    /// limits that clients are not told at their login, the log level. [`Self::changed_keys`]
    /// of both tells the difference.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        let mut next = self.clone();
        next.drain.clone_from(&new.drain);
        next.backend.secrets_file.clone_from(&new.backend.secrets_file);
        next.backend.tls.clone_from(&new.backend.tls);
        next.auth = AuthConfig { mode: self.auth.mode, ..new.auth.clone() };
        next.session =
            SessionConfig { keep: self.session.keep, kept_max: self.session.kept_max, ..new.session.clone() };
        next.limits = LimitsConfig {
            connections_max: self.limits.connections_max,
            body_max: self.limits.body_max,
            downlink_frames: self.limits.downlink_frames,
            downlink_bytes: self.limits.downlink_bytes,
            retransmit: self.limits.retransmit,
            compress_min: self.limits.compress_min,
            ..new.limits.clone()
        };
        next.tls = TlsConfig {
            handshake_threads: self.tls.handshake_threads,
            handshake_queue: self.tls.handshake_queue,
            ..new.tls.clone()
        };
        next.log = LogConfig { format: self.log.format, ..new.log.clone() };
        if self.listeners.len() == new.listeners.len() {
            // Addresses are counted from the start, or not at all.
            let counts = |it: &ListenerConfig| it.address_connections > 0 || it.address_rate > 0;
            let counts_addresses = self.listeners.iter().any(counts);
            for (next, new) in next.listeners.iter_mut().zip(&new.listeners) {
                (next.accept_rate, next.handshakes_max) = (new.accept_rate, new.handshakes_max);
                if counts_addresses {
                    next.address_connections = new.address_connections;
                    next.address_rate = new.address_rate;
                }
            }
        }
        next
    }

    /// Returns the names of the settings that differ.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        moorline_net::settings::changed_keys(self, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthMode;
    use std::time::Duration;

    #[test]
    fn what_a_serving_gateway_cannot_change_stays_and_is_named() {
        let old = Config::default();
        let mut new = old.clone();
        new.auth.key_file = "other.key".into();
        new.auth.mode = AuthMode::Backend;
        new.limits.user_rate = 7;
        new.limits.body_max = moorline_net::settings::units::ByteSize::new(1 << 20);
        new.listeners[0].accept_rate = 9;
        new.listeners[0].address_rate = 9;
        new.listeners[0].address = "127.0.0.1:1".parse().expect("an address");
        new.backend.secrets_file = "other.secrets".into();
        new.log.level = "debug".into();
        new.drain.grace = Duration::from_secs(1);
        let next = old.reloaded(&new);
        assert_eq!(
            old.changed_keys(&next),
            [
                "auth.key_file",
                "backend.secrets_file",
                "drain.grace",
                "limits.user_rate",
                "listener.accept_rate",
                "log.level"
            ]
        );
        assert_eq!(
            next.changed_keys(&new),
            ["auth.mode", "limits.body_max", "listener.address", "listener.address_rate"]
        );
        let mut counting = old;
        counting.listeners[0].address_connections = 5;
        assert_eq!(counting.reloaded(&new).listeners[0].address_rate, 9);
    }
}
