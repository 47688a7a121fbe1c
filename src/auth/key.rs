//! Verification keys from a file: one secret, one public key, or a set of keys (JWKS, RFC 7517). A secret is never
//! logged, printed or put into an error.
//!
//! Example: the set has the keys `2026-05` and `2026-06`. A token whose header names `2026-06` is verified with that
//! key and with its algorithm; one that names `2026-04` is refused.

use super::AuthError;
use crate::config::Algorithm;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use jsonwebtoken::DecodingKey;
use moorline_net::secret_file::{self, SecretFileError};
use serde::Deserialize;
use std::borrow::Cow;
use std::path::Path;

/// Limit of a key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 256 << 10;
/// Limit of the keys in a set.
const KEYS_MAX: usize = 64;
/// Limit of the name of a key, in bytes.
pub(super) const KID_BYTES_MAX: usize = 256;
/// Shortest HS256 secret, in bytes: the size of the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
const SECRET_SHORT: &str =
    "an HS256 secret has at least 32 bytes; make one with: head -c 32 /dev/urandom > hs256.key";

/// DER of the `SubjectPublicKeyInfo` of every Ed25519 key, up to the key itself (RFC 8410, 4).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A verification key.
pub(super) struct Key {
    /// Name of the key; `None`: it has none.
    kid: Option<String>,
    /// The one algorithm of its signatures.
    pub(super) algorithm: Algorithm,
    pub(super) verifying: DecodingKey,
}

/// The keys that verify tokens.
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// The file holds one key without a name, which verifies tokens of any name.
    is_one: bool,
}

impl KeySet {
    /// Reads a key of `algorithm`, or a set of keys, each with its own.
    pub(super) fn read(algorithm: Algorithm, path: &Path) -> Result<Self, AuthError> {
        let bytes = read(path, Access::of(algorithm))?;
        if bytes.trim_ascii_start().starts_with(b"{") {
            let keys = set_of(&bytes).map_err(|problem| refused(path, problem))?;
            return Ok(Self { keys, is_one: false });
        }
        let key = match algorithm {
            Algorithm::HS256 => DecodingKey::from_secret(&secret_of(bytes).map_err(|it| refused(path, it))?),
            Algorithm::EdDSA => {
                let problem =
                    "no Ed25519 public key in PEM; expected -----BEGIN PUBLIC KEY----- of an Ed25519 key";
                DecodingKey::from_ed_der(&ed25519_public_key(&bytes).ok_or_else(|| refused(path, problem))?)
            }
        };
        Ok(Self { keys: vec![Key { kid: None, algorithm, verifying: key }], is_one: true })
    }

    /// The key for a token that names `kid` in its header. A token without a name is verified with the key without
    /// a name, or with the only key.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (&self.keys[..], kid) {
            ([only], None) => Some(only),
            ([only], Some(_)) if self.is_one => Some(only),
            (keys, kid) => keys.iter().find(|key| key.kid.as_deref() == kid),
        }
    }

    /// Names of the keys, for the log.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.keys.iter().map(|key| key.kid.as_deref().unwrap_or("(no kid)")).collect();
        names.join(", ")
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    crv: Option<String>,
    /// The secret of an `oct` key.
    k: Option<String>,
    /// The public key of an `OKP` key.
    x: Option<String>,
}

/// Reads a set. Keys of other kinds are left out with a warning: a set of a single sign-on has keys for others, too.
fn set_of(bytes: &[u8]) -> Result<Vec<Key>, Cow<'static, str>> {
    // The error of the parser may quote a secret.
    let place = |error: serde_json::Error| {
        format!("not a key set (JWKS) at line {} column {}", error.line(), error.column())
    };
    let Jwks { keys: given } = serde_json::from_slice(bytes).map_err(place)?;
    if given.len() > KEYS_MAX {
        return Err(format!("{} keys, expected at most {KEYS_MAX}", given.len()).into());
    }
    let mut keys: Vec<Key> = Vec::new();
    for (number, jwk) in (1..).zip(given) {
        let name = jwk.kid.clone().unwrap_or_else(|| "without kid".to_owned());
        if !is_kid(&name) {
            return Err(format!(
                "key {number}: kid has at most {KID_BYTES_MAX} bytes, none of them a control character"
            )
            .into());
        }
        let Some(key) = key_of(jwk).map_err(|problem| format!("key {number} ({name}): {problem}"))? else {
            tracing::warn!(kid = name, "left out a key that is not for HS256 or EdDSA signatures");
            continue;
        };
        if keys.iter().any(|other| other.kid == key.kid) {
            return Err(format!("two keys have the name {name}; each needs a kid of its own").into());
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(
            "no key of the set is for HS256 (kty \"oct\") or EdDSA (kty \"OKP\", crv \"Ed25519\")".into()
        );
    }
    Ok(keys)
}

/// True for a text that may name a key.
pub(super) fn is_kid(name: &str) -> bool {
    name.len() <= KID_BYTES_MAX && !name.contains(char::is_control)
}

/// `None`: a key for something else.
fn key_of(jwk: Jwk) -> Result<Option<Key>, &'static str> {
    let Jwk { kty, kid, alg, r#use, crv, k, x } = jwk;
    if r#use.is_some_and(|usage| usage != "sig") {
        return Ok(None);
    }
    let decoded = |text: Option<String>| BASE64_URL.decode(text.unwrap_or_default().trim_end_matches('='));
    match (&*kty, crv.as_deref(), alg.as_deref()) {
        ("oct", _, None | Some("HS256")) => {
            let secret = decoded(k).map_err(|_| "k is not base64url")?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err("an HS256 secret has at least 32 bytes");
            }
            Ok(Some(Key { kid, algorithm: Algorithm::HS256, verifying: DecodingKey::from_secret(&secret) }))
        }
        ("OKP", Some("Ed25519"), None | Some("EdDSA" | "Ed25519")) => {
            let public: Option<[u8; 32]> = decoded(x).ok().and_then(|x| x.try_into().ok());
            let public = public.ok_or("x is not an Ed25519 public key in base64url")?;
            Ok(Some(Key { kid, algorithm: Algorithm::EdDSA, verifying: DecodingKey::from_ed_der(&public) }))
        }
        _ => Ok(None),
    }
}

/// Reads an Ed25519 public key in PEM: between the markers, base64 of a fixed prefix and the key's 32 bytes.
/// Text before and after the markers is ignored, as RFC 7468 has it. `None`: not such a key.
fn ed25519_public_key(pem: &[u8]) -> Option<[u8; 32]> {
    let text = str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    let der = BASE64.decode(body).ok()?;
    der.strip_prefix(&ED25519_PREFIX)?.try_into().ok()
}

/// Reads an HS256 secret: raw, or base64 after `base64:`. White space after a text is removed; other bytes are the
/// secret as they are.
pub(super) fn secret_of(mut bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    if bytes.starts_with(b"-----BEGIN") {
        return Err("this is PEM, which HS256 does not use; set auth.algorithm = \"EdDSA\"");
    }
    if bytes.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n')) {
        bytes.truncate(bytes.trim_ascii_end().len());
    }
    if let Some(encoded) = bytes.strip_prefix(b"base64:") {
        let text = str::from_utf8(encoded).unwrap_or("").trim();
        bytes = BASE64.decode(text).map_err(|_| "the text after base64: is not standard base64")?;
    }
    if bytes.len() < SECRET_BYTES_MIN { Err(SECRET_SHORT) } else { Ok(bytes) }
}

/// Readers that a key file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The file's owner and a group.
    Secret,
    /// Everybody may read the file.
    Public,
}

impl Access {
    const fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::HS256 => Self::Secret,
            Algorithm::EdDSA => Self::Public,
        }
    }
}

pub(super) fn read(path: &Path, access: Access) -> Result<Vec<u8>, AuthError> {
    let file = secret_file::read(path, KEY_FILE_BYTES_MAX).map_err(|error| match error {
        SecretFileError::Read { path, cause } => AuthError::Read { path, source: cause },
        error => refused(path, error.to_string()),
    })?;
    if let Some(warning) = file.warning.filter(|_| access == Access::Secret) {
        tracing::warn!("{warning}");
    }
    Ok(file.bytes)
}

fn refused(path: &Path, problem: impl Into<Cow<'static, str>>) -> AuthError {
    AuthError::Key { path: path.to_owned(), problem: problem.into() }
}
