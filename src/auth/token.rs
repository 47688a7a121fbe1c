//! JSON web tokens: verification against one algorithm and one key, and signing for tests and trials.

use super::{AuthError, NameProblem, Verify, admit, check_name, crypto, key};
use crate::config::{Algorithm, AuthConfig};
use crate::messages::Admission;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use moorline_proto::message::client::Hello;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Limit of a token, in bytes: the limit of a HELLO.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Verifies signature, time, subject, device and audience.
pub(super) struct JwtVerifier {
    key: DecodingKey,
    validation: Validation,
    leeway_s: u64,
}

/// Claims of a token. Times may have fractions (RFC 7519, NumericDate).
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    did: Option<String>,
}

impl JwtVerifier {
    pub(super) fn new(config: &AuthConfig) -> Result<Self, AuthError> {
        crypto::install();
        let key = key::verifying(config.algorithm, &config.key_file)?;
        // One algorithm only: a token cannot choose, so "none" and an HMAC with a public key as secret fail.
        let mut validation = Validation::new(match config.algorithm {
            Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
        });
        // Times are checked here, against the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = !config.audience.is_empty();
        validation.set_required_spec_claims(&["exp", "sub"]);
        if validation.validate_aud {
            validation.set_required_spec_claims(&["exp", "sub", "aud"]);
            validation.set_audience(&[&config.audience]);
        }
        Ok(Self { key, validation, leeway_s: config.leeway.as_secs() })
    }

    fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Long);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| Refusal::Jwt(error.into_kind()))?;
        // No extension is understood here, and a critical one must be (RFC 7515, 4.1.11).
        if data.header.crit.is_some() { Err(Refusal::Critical) } else { Ok(data.claims) }
    }

    #[allow(clippy::cast_precision_loss)] // seconds of this era are exact in an f64
    fn check(&self, hello: &Hello, unix_now_s: u64) -> Result<(), Refusal> {
        let claims = self.claims(&hello.token)?;
        let (now, leeway) = (unix_now_s as f64, self.leeway_s as f64);
        if claims.sub != hello.uid {
            return Err(Refusal::Subject);
        }
        if claims.did.is_some_and(|device| device != hello.device) {
            return Err(Refusal::Device);
        }
        if claims.nbf.is_some_and(|from| from > now + leeway) {
            return Err(Refusal::Early);
        }
        if claims.exp + leeway <= now { Err(Refusal::Expired) } else { Ok(()) }
    }
}

impl Verify for JwtVerifier {
    fn verify(&self, hello: &Hello, unix_now_s: u64) -> Result<Admission, CloseReason> {
        let admission = admit(hello)?;
        self.check(hello, unix_now_s).map_err(|refusal| {
            tracing::debug!(uid = %admission.uid, %refusal, "login refused");
            refusal.reason()
        })?;
        Ok(admission)
    }
}

/// Reason to refuse a token, for the log; the client learns the close reason only.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the token is over 64 KiB")]
    Long,
    #[error("the token does not verify: {0:?}")]
    Jwt(ErrorKind),
    #[error("the token has a critical header extension")]
    Critical,
    #[error("sub is not HELLO's uid")]
    Subject,
    #[error("did is not HELLO's device")]
    Device,
    #[error("nbf is in the future")]
    Early,
    #[error("the token has expired")]
    Expired,
}

impl Refusal {
    const fn reason(&self) -> CloseReason {
        match self {
            Self::Expired => CloseReason::TokenExpired,
            Self::Long | Self::Jwt(_) | Self::Critical | Self::Subject | Self::Device | Self::Early => {
                CloseReason::AuthFailed
            }
        }
    }
}

/// Claims of a token that is signed here.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `sub`.
    pub uid: String,
    /// `did`; `None`: the token is valid for every device.
    pub device: Option<String>,
    /// `aud`; `None`: the token has no audience.
    pub audience: Option<String>,
    /// Time from now until `exp`.
    pub ttl: Duration,
}

#[derive(Serialize)]
struct SignedClaims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    did: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Signs an HS256 token with the secret in `key_file`: for trials and tests.
///
/// # Errors
/// [`AuthError`].
pub fn sign(key_file: &Path, grant: &Grant, unix_now_s: u64) -> Result<String, AuthError> {
    let names =
        [("uid", Some(&grant.uid), UID_BYTES_MAX), ("device", grant.device.as_ref(), DEVICE_BYTES_MAX)];
    for (field, value, bytes_max) in names {
        let Some(value) = value else { continue };
        check_name(value, bytes_max).map_err(|problem: NameProblem| AuthError::Grant {
            field,
            value: value.clone(),
            problem,
        })?;
    }
    crypto::install();
    let secret = key::secret(key_file)?;
    let claims = SignedClaims {
        sub: &grant.uid,
        iat: unix_now_s,
        exp: unix_now_s.saturating_add(grant.ttl.as_secs()),
        did: grant.device.as_deref(),
        aud: grant.audience.as_deref(),
    };
    let header = Header::new(jsonwebtoken::Algorithm::HS256);
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret))?)
}
