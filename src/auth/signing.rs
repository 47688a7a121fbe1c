//! Signs tokens, for trials and tests.
//!
//! Example: `--key-file ed25519.pem` holds `-----BEGIN PRIVATE KEY-----`: the token is signed with EdDSA. Any other file is
//! the secret of HS256, as the gateway reads it.

use super::{AuthError, NameProblem, check_name, crypto, key};
use crate::config::Algorithm;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jsonwebtoken::{EncodingKey, Header};
use key::{Access, KID_BYTES_MAX};
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use serde::Serialize;
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

const PEM_BEGIN: &str = "-----BEGIN ";
const PRIVATE_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PRIVATE_END: &str = "-----END PRIVATE KEY-----";
const PUBLIC_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const ENCRYPTED_BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

const IS_SET: &str = "this is a key set (JWKS), which verifies tokens; give the secret or the private key alone, and its name with --kid";
const IS_PUBLIC: &str = "this is a public key, which verifies tokens; give the private key of the pair";
const IS_ENCRYPTED: &str =
    "this private key is encrypted; decrypt it with: openssl pkey -in FILE -out ed25519.pem";
const IS_OTHER: &str = "no Ed25519 private key in PEM (PKCS #8); make one with: openssl genpkey -algorithm ed25519 -out ed25519.pem";

/// Content of a token.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `sub`.
    pub uid: String,
    /// `did`; `None`: the token is valid for every device.
    pub device: Option<String>,
    /// `aud`; `None`: the token has no audience.
    pub audience: Option<String>,
    /// `kid`, the name of the key; `None`: the token names none.
    pub kid: Option<String>,
    /// Time from now until `exp`.
    pub ttl: Duration,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    did: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Signs a token with the key in `key_file`: an Ed25519 private key in PEM, or an HS256 secret.
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
            problem: problem.to_string().into(),
        })?;
    }
    if let Some(kid) = grant.kid.as_ref().filter(|kid| !key::is_kid(kid)) {
        let problem =
            format!("a kid has at most {KID_BYTES_MAX} bytes, none of them a control character").into();
        return Err(AuthError::Grant { field: "kid", value: kid.clone(), problem });
    }
    crypto::install();
    let (algorithm, key) = read(key_file)?;
    let claims = Claims {
        sub: &grant.uid,
        iat: unix_now_s,
        exp: unix_now_s.saturating_add(grant.ttl.as_secs()),
        did: grant.device.as_deref(),
        aud: grant.audience.as_deref(),
    };
    let header = Header { kid: grant.kid.clone(), ..Header::new(crypto::name(algorithm)) };
    Ok(jsonwebtoken::encode(&header, &claims, &key)?)
}

/// Reads a key and finds its algorithm by the content of the file.
fn read(path: &Path) -> Result<(Algorithm, EncodingKey), AuthError> {
    let refused = |problem: Cow<'static, str>| AuthError::SigningKey { path: path.to_owned(), problem };
    let bytes = key::read(path, Access::Secret).map_err(|error| match error {
        AuthError::Read { source, .. } => refused(source.to_string().into()),
        AuthError::Key { problem, .. } => refused(problem),
        other => other,
    })?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Err(refused(IS_SET.into()));
    }
    if let Some(pem) = str::from_utf8(&bytes).ok().filter(|text| text.contains(PEM_BEGIN)) {
        let key = private_key(pem).map_err(|problem| refused(problem.into()))?;
        return Ok((Algorithm::EdDSA, key));
    }
    let secret = key::secret_of(bytes).map_err(|problem| refused(problem.into()))?;
    Ok((Algorithm::HS256, EncodingKey::from_secret(&secret)))
}

/// Reads an Ed25519 private key: PKCS #8 in PEM, with or without the public key (RFC 5958). Text before and after the
/// markers is ignored, as RFC 7468 has it.
fn private_key(pem: &str) -> Result<EncodingKey, &'static str> {
    let Some((_, rest)) = pem.split_once(PRIVATE_BEGIN) else {
        return Err(match pem {
            _ if pem.contains(PUBLIC_BEGIN) => IS_PUBLIC,
            _ if pem.contains(ENCRYPTED_BEGIN) => IS_ENCRYPTED,
            _ => IS_OTHER,
        });
    };
    let (body, _) = rest.split_once(PRIVATE_END).ok_or(IS_OTHER)?;
    let body: String = body.split_ascii_whitespace().collect();
    let der = BASE64.decode(body).map_err(|_| IS_OTHER)?;
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| IS_OTHER)?;
    Ok(EncodingKey::from_ed_der(&der))
}
