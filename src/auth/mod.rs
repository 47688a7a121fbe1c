//! Verification of a HELLO: locally by its token, or by the backend.
//!
//! Owns the verification keys. Driven by workers, one call per login, never by a reactor: a signature
//! check costs tens of microseconds. Reads no clock (the caller passes the time) and does no IO but to read keys, at its start and when it is asked to.
//! The claims of a token: `docs/configuration.md`, "Logging in". For example, a client sends HELLO with `uid = "alice"`:
//! its token must have `sub = "alice"` and not be expired; the result is an [`Admission`].

mod crypto;
mod key;
mod signing;
#[cfg(test)]
mod tests;
mod token;

pub use signing::{Grant, sign};

use crate::config::{AuthConfig, AuthMode};
use crate::messages::Admission;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use moorline_proto::message::client::Hello;
use std::path::PathBuf;
use std::sync::Arc;

/// Verifies HELLOs.
pub trait Verify: Send + Sync {
    /// Returns the verified identity.
    ///
    /// # Errors
    /// [`CloseReason::AuthFailed`] or [`CloseReason::TokenExpired`]; details are logged at debug level, without the
    /// token.
    fn verify(&self, hello: &Hello, unix_now_s: u64) -> Result<Admission, CloseReason>;

    /// Reads the keys and rules of other settings, and leaves those in force until [`Prepared::apply`].
    ///
    /// # Errors
    /// [`AuthError`]: nothing has changed.
    fn prepare(&self, config: &AuthConfig) -> Result<Prepared, AuthError> {
        let _ = config;
        Ok(Prepared::new(|| ()))
    }
}

/// Keys and rules that were read and are not in force yet.
pub struct Prepared(Box<dyn FnOnce() + Send>);

impl Prepared {
    fn new(apply: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(apply))
    }

    /// Puts them in force: the next login is verified with them. Sessions stay.
    pub fn apply(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

/// Failure to make a verifier or a token.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The key file cannot be read.
    #[error("cannot read auth.key_file {}: {source}", path.display())]
    Read {
        /// Key file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The key file does not hold a key of the configured algorithm.
    #[error("auth.key_file {}: {problem}", path.display())]
    Key {
        /// Key file.
        path: PathBuf,
        /// Cause, and the expected content.
        problem: std::borrow::Cow<'static, str>,
    },
    /// A token cannot be signed with this file.
    #[error("cannot sign with --key-file {}: {problem}", path.display())]
    SigningKey {
        /// Key file.
        path: PathBuf,
        /// Cause, and the expected content.
        problem: std::borrow::Cow<'static, str>,
    },
    /// The token could not be made.
    #[error("cannot sign the token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// The token would be refused by every gateway.
    #[error("{field} {value:?}: {problem}")]
    Grant {
        /// Name of the value: `uid`, `device` or `kid`.
        field: &'static str,
        /// Requested value.
        value: String,
        /// Rule that the value breaks.
        problem: std::borrow::Cow<'static, str>,
    },
}

/// Place where HELLOs are verified.
#[derive(Clone)]
pub enum Judge {
    /// In this process.
    Here(Arc<dyn Verify>),
    /// In the backend that owns the user ([B-4.1]).
    Backend,
}

impl Judge {
    /// Reads the keys and rules of other settings. Where the backend verifies, there are none.
    ///
    /// # Errors
    /// [`AuthError`]: nothing has changed.
    pub fn prepare(&self, config: &AuthConfig) -> Result<Prepared, AuthError> {
        match self {
            Self::Here(verifier) => verifier.prepare(config),
            Self::Backend => Ok(Prepared::new(|| ())),
        }
    }
}

/// Makes the verifier that the settings name. Reads the key file, and logs a warning if tokens are not verified.
///
/// # Errors
/// [`AuthError`].
pub fn judge(config: &AuthConfig) -> Result<Judge, AuthError> {
    match config.mode {
        AuthMode::Jwt => Ok(Judge::Here(Arc::new(token::JwtVerifier::new(config)?))),
        AuthMode::Dev => {
            tracing::warn!(
                "auth.mode = \"dev\": TOKENS ARE NOT VERIFIED, every client can log in as any user"
            );
            Ok(Judge::Here(Arc::new(DevVerifier)))
        }
        AuthMode::Backend => Ok(Judge::Backend),
    }
}

/// Admits every well-formed HELLO. The settings allow this on loopback listeners only.
struct DevVerifier;

impl Verify for DevVerifier {
    fn verify(&self, hello: &Hello, _unix_now_s: u64) -> Result<Admission, CloseReason> {
        admit(hello)
    }
}

/// Checks the names in a HELLO, alike in all modes, and nothing else.
pub(crate) fn admit(hello: &Hello) -> Result<Admission, CloseReason> {
    for (field, name, bytes_max) in
        [("uid", &hello.uid, UID_BYTES_MAX), ("device", &hello.device, DEVICE_BYTES_MAX)]
    {
        if let Err(problem) = check_name(name, bytes_max) {
            tracing::debug!(field, %problem, "login refused");
            return Err(CloseReason::AuthFailed);
        }
    }
    Ok(Admission {
        uid: hello.uid.clone(),
        device: hello.device.clone(),
        platform: hello.platform,
        accepts_lz4: hello.accept & ACCEPT_LZ4 != 0,
        resume: hello.resume.clone().map(Box::new),
        ..Admission::default()
    })
}

/// Reason why a text is not a user or device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text is longer than 64 bytes.
    #[error("is over 64 bytes")]
    Long,
    /// The text has a `:`, which separates names in conversation ids.
    #[error("contains ':'")]
    Colon,
    /// The text has a control character.
    #[error("contains a control character")]
    Control,
}

/// Checks a user id that a backend names.
pub(crate) fn check_uid(uid: &str) -> Result<(), NameProblem> {
    check_name(uid, UID_BYTES_MAX)
}

fn check_name(name: &str, bytes_max: usize) -> Result<(), NameProblem> {
    match name {
        "" => Err(NameProblem::Empty),
        _ if name.len() > bytes_max => Err(NameProblem::Long),
        _ if name.contains(':') => Err(NameProblem::Colon),
        _ if name.contains(char::is_control) => Err(NameProblem::Control),
        _ => Ok(()),
    }
}
