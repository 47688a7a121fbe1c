//! Who a HELLO is from: local verification of its token, or a word that the backend is to be asked.
//!
//! Owns the verification key. Driven by workers, one call per login, never by a reactor: a signature
//! check costs tens of microseconds. Reads no clock (the caller tells the time) and talks to nobody.
//! What a token must say: `docs/configuration.md`, "Logging in".

mod crypto;
mod key;
#[cfg(test)]
mod tests;
mod token;

pub use token::{Grant, sign};

use crate::config::{AuthConfig, AuthMode};
use crate::handoff::Admission;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use moorline_proto::message::client::Hello;
use std::path::PathBuf;
use std::sync::Arc;

/// Judges a HELLO.
pub trait Verify: Send + Sync {
    /// Who it is, or why not: [`CloseReason::AuthFailed`] or [`CloseReason::TokenExpired`].
    ///
    /// # Errors
    /// The reason to close with; details are logged at debug level, without the token.
    fn verify(&self, hello: &Hello, unix_now_s: u64) -> Result<Admission, CloseReason>;
}

/// Why there is no verifier: the key file.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It cannot be read.
    #[error("cannot read auth.key_file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds no key of the configured algorithm.
    #[error("auth.key_file {}: {problem}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong and what is expected.
        problem: &'static str,
    },
    /// The token could not be made.
    #[error("cannot sign the token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// The token would be refused by every gateway.
    #[error("{field} {value:?}: {problem}")]
    Grant {
        /// uid or device.
        field: &'static str,
        /// What was asked for.
        value: String,
        /// Which rule it breaks.
        problem: NameProblem,
    },
}

/// Who judges HELLOs.
#[derive(Clone)]
pub enum Judge {
    /// This process.
    Here(Arc<dyn Verify>),
    /// The backend that speaks for the user ([B-4.1]).
    Backend,
}

/// Who judges, by the settings. Reads the key file; says loudly when nothing is verified.
///
/// # Errors
/// [`AuthError`].
pub fn judge(config: &AuthConfig) -> Result<Judge, AuthError> {
    match config.mode {
        AuthMode::Jwt => Ok(Judge::Here(Arc::new(token::JwtVerifier::new(config)?))),
        AuthMode::Dev => {
            tracing::warn!("auth.mode = \"dev\": TOKENS ARE NOT VERIFIED, anyone is let in as anybody");
            Ok(Judge::Here(Arc::new(DevVerifier)))
        }
        AuthMode::Backend => Ok(Judge::Backend),
    }
}

/// Lets every well-formed HELLO in. Settings allow it on loopback listeners only.
struct DevVerifier;

impl Verify for DevVerifier {
    fn verify(&self, hello: &Hello, _unix_now_s: u64) -> Result<Admission, CloseReason> {
        admit(hello)
    }
}

/// Checks the names that HELLO claims, the same in all modes, and nothing else.
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
    })
}

/// Why a text is no user or device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// It has no byte.
    #[error("is empty")]
    Empty,
    /// It is over 64 bytes.
    #[error("is over 64 bytes")]
    Long,
    /// It has a `:`, which separates names in conversation ids.
    #[error("contains ':'")]
    Colon,
    /// It has a control character.
    #[error("contains a control character")]
    Control,
}

/// Whether a backend may name a user so.
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
