//! JSON web tokens: verification against a set of keys.

use super::{AuthError, Prepared, Verify, admit, crypto, key};
use crate::config::{Algorithm, AuthConfig};
use crate::messages::Admission;
use jsonwebtoken::Validation;
use jsonwebtoken::errors::ErrorKind;
use key::KeySet;
use moorline_proto::error::CloseReason;
use moorline_proto::message::client::Hello;
use serde::Deserialize;
use std::sync::{Arc, PoisonError, RwLock};

/// Limit of a token, in bytes: the limit of a HELLO.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Verifies signature, time, subject, device and audience. Its keys and rules can be replaced while workers use it.
pub(super) struct JwtVerifier {
    rules: Arc<RwLock<Arc<Rules>>>,
}

/// Keys and settings in force.
struct Rules {
    keys: KeySet,
    audience: String,
    leeway_s: u64,
    /// Longest lifetime of a token, in seconds; 0: no limit.
    ttl_max_s: u64,
}

/// Claims of a token. Times may have fractions (RFC 7519, NumericDate).
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    did: Option<String>,
}

impl JwtVerifier {
    pub(super) fn new(config: &AuthConfig) -> Result<Self, AuthError> {
        crypto::install();
        Ok(Self { rules: Arc::new(RwLock::new(Arc::new(Rules::read(config)?))) })
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Rules {
    fn read(config: &AuthConfig) -> Result<Self, AuthError> {
        let keys = KeySet::read(config.algorithm, &config.key_file)?;
        tracing::info!(keys = keys.names(), "read the keys of logins");
        let (audience, leeway_s) = (config.audience.clone(), config.leeway.as_secs());
        Ok(Self { keys, audience, leeway_s, ttl_max_s: config.ttl_max.as_secs() })
    }

    /// Returns what is checked by the library: signature and audience.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        // One algorithm only: a token cannot choose, so "none" and an HMAC with a public key as secret fail.
        let mut validation = Validation::new(crypto::name(algorithm));
        // Times are checked here, against the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = !self.audience.is_empty();
        validation.set_required_spec_claims(&["exp", "sub"]);
        if validation.validate_aud {
            validation.set_required_spec_claims(&["exp", "sub", "aud"]);
            validation.set_audience(&[&self.audience]);
        }
        validation
    }

    fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Long);
        }
        let jwt = |error: jsonwebtoken::errors::Error| Refusal::Jwt(error.into_kind());
        // The header only chooses among the keys; the signature covers it.
        let kid = jsonwebtoken::decode_header(token).map_err(jwt)?.kid;
        let key = self.keys.find(kid.as_deref()).ok_or(Refusal::UnknownKey)?;
        let data = jsonwebtoken::decode::<Claims>(token, &key.verifying, &self.validation(key.algorithm));
        let data = data.map_err(jwt)?;
        // No extension is understood here, and a critical one must be (RFC 7515, 4.1.11).
        if data.header.crit.is_some() { Err(Refusal::Critical) } else { Ok(data.claims) }
    }

    /// Returns the time of the token's issue and its expiry, in Unix seconds; an issue of 0 is not known.
    #[allow(clippy::cast_precision_loss)] // seconds of this era are exact in an f64
    fn check(&self, hello: &Hello, unix_now_s: u64) -> Result<(u64, u64), Refusal> {
        let claims = self.claims(&hello.token)?;
        let (now, leeway) = (unix_now_s as f64, self.leeway_s as f64);
        if claims.sub != hello.uid {
            return Err(Refusal::Subject);
        }
        if claims.did.is_some_and(|device| device != hello.device) {
            return Err(Refusal::Device);
        }
        if [claims.nbf, claims.iat].into_iter().flatten().any(|from| from > now + leeway) {
            return Err(Refusal::Early);
        }
        if claims.exp + leeway <= now {
            return Err(Refusal::Expired);
        }
        let lifetime = claims.exp - claims.iat.unwrap_or(now).min(now);
        if self.ttl_max_s > 0 && lifetime > self.ttl_max_s as f64 {
            return Err(Refusal::Lasting);
        }
        Ok((seconds(claims.iat.unwrap_or(0.0)), seconds(claims.exp)))
    }
}

/// Whole seconds of a time; what is out of range is at the end of the range.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the cast saturates
fn seconds(time: f64) -> u64 {
    time as u64
}

impl Verify for JwtVerifier {
    fn verify(&self, hello: &Hello, unix_now_s: u64) -> Result<Admission, CloseReason> {
        let admission = admit(hello)?;
        let (issued_s, expires_s) = self.rules().check(hello, unix_now_s).map_err(|refusal| {
            tracing::debug!(uid = %admission.uid, %refusal, "login refused");
            refusal.reason()
        })?;
        Ok(Admission { issued_s, expires_s, ..admission })
    }

    fn prepare(&self, config: &AuthConfig) -> Result<Prepared, AuthError> {
        let (rules, place) = (Arc::new(Rules::read(config)?), Arc::clone(&self.rules));
        Ok(Prepared::new(move || *place.write().unwrap_or_else(PoisonError::into_inner) = rules))
    }
}

/// Reason to refuse a token, for the log; the client learns the close reason only.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the token is over 64 KiB")]
    Long,
    #[error("the token does not verify: {0:?}")]
    Jwt(ErrorKind),
    #[error("no key has the name that the token's header has (kid)")]
    UnknownKey,
    #[error("the token has a critical header extension")]
    Critical,
    #[error("sub is not HELLO's uid")]
    Subject,
    #[error("did is not HELLO's device")]
    Device,
    #[error("nbf or iat is in the future")]
    Early,
    #[error("the token is valid for longer than auth.ttl_max")]
    Lasting,
    #[error("the token has expired")]
    Expired,
}

impl Refusal {
    const fn reason(&self) -> CloseReason {
        match self {
            Self::Expired => CloseReason::TokenExpired,
            Self::Long
            | Self::Jwt(_)
            | Self::UnknownKey
            | Self::Critical
            | Self::Subject
            | Self::Device
            | Self::Early
            | Self::Lasting => CloseReason::AuthFailed,
        }
    }
}
