//! Settings, keys and limits that are read again while the gateway serves, by HUP or by order.
//!
//! Example: the operator adds a key to the file of `auth.key_file` and sets `limits.user_rate = 100`. Both are read
//! and checked; then the workers verify with the new keys, and the reactors judge by the new rate. A faulty file
//! changes nothing.

use super::assembly::Gateway;
use super::tls::Fresh;
use super::trust;
use crate::config::{Config, SettingsError};
use std::cell::RefCell;
use std::fmt;
use std::sync::PoisonError;

/// Reads all sources of the settings again.
pub type Reread = Box<dyn Fn() -> Result<Config, SettingsError>>;
/// Puts a log level in force.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String>>;

/// Access to what a reload reads and changes outside of the gateway.
pub struct Sources {
    /// Reads all sources of the settings again.
    pub reread: Reread,
    /// Puts a log level in force.
    pub set_log_level: SetLogLevel,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// Settings of a reload that changed: those in force, and those that need a restart.
pub(super) type Changes = (Vec<String>, Vec<String>);

/// The settings in force, and how they are read again.
#[derive(Debug)]
pub(super) struct Reloading {
    pub(super) config: RefCell<Config>,
    sources: Sources,
}

impl Reloading {
    pub(super) const fn new(config: Config, sources: Sources) -> Self {
        Self { config: RefCell::new(config), sources }
    }

    /// Reads everything again, then puts in force what can change, all or none.
    ///
    /// # Errors
    /// The reason why nothing was changed.
    pub(super) fn reload(&self, gateway: &Gateway) -> Result<Changes, String> {
        let new = super::fit_to_memory((self.sources.reread)().map_err(|error| error.to_string())?);
        let old = self.config.borrow().clone();
        let next = old.reloaded(&new);
        let rules = gateway.judge.prepare(&next.auth).map_err(|error| error.to_string())?;
        let in_force = gateway.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let credentials = trust::credentials(&next, &gateway.node, &gateway.clock, Some(&in_force))
            .map_err(|error| error.to_string())?;
        let identity = gateway.identity.as_ref();
        let fresh =
            identity.map(|_| Fresh::read(&next, gateway.clock.unix_nanos() / 1_000_000_000)).transpose();
        let fresh = fresh.map_err(|error| error.to_string())?.flatten();
        if next.log.level != old.log.level {
            (self.sources.set_log_level)(&next.log.level)?;
        }
        // From here on nothing fails.
        rules.apply();
        if let (Some(identity), Some(fresh)) = (identity, fresh) {
            identity.put(fresh);
        }
        *gateway.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        gateway.set_limits(&next);
        gateway.status.set_grace(&next);
        let changes = (old.changed_keys(&next), next.changed_keys(&new));
        *self.config.borrow_mut() = next;
        Ok(changes)
    }
}
