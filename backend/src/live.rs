//! Parts of a running backend that can be replaced while it serves: tokens of clients, callers of the server API,
//! secrets of gateways, certificates.
//!
//! Example: the operator adds a token to the file of `api.access_file` and sends HUP. [`Live::reload`] reads the
//! settings' files, and only if all of them are valid, the next request is judged by the new list.

use crate::api::SharedAccess;
use crate::api::access::Access;
use crate::api::tls::{self as api_tls, ApiTls};
use crate::config::BackendConfig;
use crate::error::BackendError;
use crate::server::tls::{self as link_tls, SharedTls};
use crate::tokens::Tokens;
use moorline_net::audit::AuditLog;
use moorline_net::hidden_memory::hide_memory;
use moorline_net::settings::changed_keys;
use moorline_net::tls::MutualFiles;
use moorline_proto::link::Secrets;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Tokens of clients that can be replaced.
pub(crate) type SharedTokens = Arc<RwLock<Arc<Tokens>>>;

/// Secrets of gateways that replace those read at the start; `None`: no reload has succeeded yet.
pub(crate) type SharedSecrets = Arc<Mutex<Option<Secrets>>>;

/// The replaceable parts of one backend.
#[derive(Debug)]
pub struct Live {
    config: Mutex<BackendConfig>,
    /// `None`: the API is off.
    pub(crate) access: Option<SharedAccess>,
    /// `None`: the API is not encrypted.
    pub(crate) api_tls: Option<ApiTls>,
    /// `None`: the backend verifies no logins by a list.
    pub(crate) tokens: Option<SharedTokens>,
    /// Taken by the link server when the next gateway connects.
    pub(crate) secrets: SharedSecrets,
    /// Read by the link server when a gateway connects.
    pub(crate) link_tls: SharedTls,
    pub(crate) audit: AuditLog,
}

/// Result of [`Live::reload`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that changed and are in force.
    pub taken: Vec<String>,
    /// Settings that changed and need a restart.
    pub kept: Vec<String>,
}

impl Live {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`BackendError`]: a file is not valid, or the audit log cannot be opened.
    pub fn new(config: &BackendConfig) -> Result<Self, BackendError> {
        let audit = &config.audit;
        let audit =
            if audit.file.as_os_str().is_empty() {
                AuditLog::default()
            } else {
                AuditLog::start(&audit.file, audit.size_max as u64).map_err(|cause| {
                    BackendError::ReadConfig { what: "audit.file", path: audit.file.clone(), cause }
                })?
            };
        let shared = |access| Arc::new(RwLock::new(Arc::new(access)));
        let tokens = read_tokens(config)?.map(|tokens| Arc::new(RwLock::new(Arc::new(tokens))));
        let access = config.api.listen.map(|_| Access::read(&config.api)).transpose()?;
        let api_tls = config.api.listen.and(ApiTls::read(&config.api).transpose()).transpose()?;
        let secrets = SharedSecrets::default();
        let link_tls = link_tls::load(&config.link)?;
        if api_tls.is_some() || link_tls.is_some() {
            hide_memory();
        }
        let link_tls = Arc::new(RwLock::new(link_tls));
        let config = Mutex::new(config.clone());
        Ok(Self { access: access.map(shared), api_tls, tokens, secrets, link_tls, audit, config })
    }

    /// Puts the replaceable parts of other settings in force, all or none. Their files are read again, also if the
    /// settings name the same ones.
    ///
    /// # Errors
    /// [`BackendError`]: nothing has changed.
    pub fn reload(&self, new: &BackendConfig) -> Result<Reloaded, BackendError> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = config.clone();
        if self.tokens.is_some() && !new.tokens_file.as_os_str().is_empty() {
            next.tokens_file.clone_from(&new.tokens_file);
        }
        (next.api.token_file, next.api.access_file) =
            (new.api.token_file.clone(), new.api.access_file.clone());
        if self.api_tls.is_some() && !new.api.certificate_file.as_os_str().is_empty() {
            (next.api.certificate_file, next.api.key_file) =
                (new.api.certificate_file.clone(), new.api.key_file.clone());
        }
        next.link.secrets_file.clone_from(&new.link.secrets_file);
        next.link.tls.clone_from(&new.link.tls);
        next.validate()?;
        let link_tls = link_tls::load(&next.link)?;
        let secrets = crate::secrets::load(&next)?;
        let tokens = read_tokens(&next)?;
        let access = self.access.as_ref().map(|_| Access::read(&next.api)).transpose()?;
        let certificates = self.api_tls.as_ref().map(|_| api_tls::certificates(&next.api)).transpose()?;
        // Everything is valid: from here on nothing fails.
        if link_tls.is_some() {
            hide_memory();
        }
        if let (Some(tls), Some(certificates)) = (&self.api_tls, certificates) {
            tls.put(certificates);
        }
        if let (Some(place), Some(tokens)) = (&self.tokens, tokens) {
            *place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        }
        if let (Some(place), Some(access)) = (&self.access, access) {
            *place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
        }
        *self.link_tls.write().unwrap_or_else(PoisonError::into_inner) = link_tls;
        *self.secrets.lock().unwrap_or_else(PoisonError::into_inner) = Some(secrets);
        let reloaded = Reloaded { taken: changed_keys(&*config, &next), kept: changed_keys(&next, new) };
        *config = next;
        Ok(reloaded)
    }

    /// Files of links, as the last reload left them.
    pub(crate) fn link_files(&self) -> (PathBuf, MutualFiles) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        (config.link.secrets_file.clone(), config.link.tls.clone())
    }

    /// The audit log of the backend.
    pub const fn audit(&self) -> &AuditLog {
        &self.audit
    }
}

fn read_tokens(config: &BackendConfig) -> Result<Option<Tokens>, BackendError> {
    let file = &config.tokens_file;
    (!file.as_os_str().is_empty()).then(|| Tokens::load(file)).transpose()
}
