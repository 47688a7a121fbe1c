//! Keys from files. A secret is never logged, printed or put into an error.

use super::AuthError;
use crate::config::Algorithm;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::VerifyingKey;
use jsonwebtoken::DecodingKey;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Limit of a key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;
/// Shortest HS256 secret, in bytes: the size of the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// DER of the `SubjectPublicKeyInfo` of every Ed25519 key, up to the key itself (RFC 8410, 4).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Reads the key that verifies tokens of `algorithm`.
pub(super) fn verifying(algorithm: Algorithm, path: &Path) -> Result<DecodingKey, AuthError> {
    match algorithm {
        Algorithm::HS256 => secret(path).map(|secret| DecodingKey::from_secret(&secret)),
        Algorithm::EdDSA => {
            let key = ed25519_public_key(&read(path)?).ok_or_else(|| {
                refused(
                    path,
                    "no Ed25519 public key in PEM; expected -----BEGIN PUBLIC KEY----- of an Ed25519 key",
                )
            })?;
            Ok(DecodingKey::from_ed_der(&key))
        }
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
    let key = der.strip_prefix(&ED25519_PREFIX)?.try_into().ok()?;
    VerifyingKey::from_bytes(&key).is_ok().then_some(key)
}

/// Reads an HS256 secret: raw, or base64 after `base64:`. White space after a text is removed; other bytes are the
/// secret as they are.
pub(super) fn secret(path: &Path) -> Result<Vec<u8>, AuthError> {
    let mut bytes = read(path)?;
    if bytes.starts_with(b"-----BEGIN") {
        return Err(refused(path, "this is PEM, which HS256 does not use; set auth.algorithm = \"EdDSA\""));
    }
    if bytes.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n')) {
        bytes.truncate(bytes.trim_ascii_end().len());
    }
    if let Some(encoded) = bytes.strip_prefix(b"base64:") {
        let text = str::from_utf8(encoded).unwrap_or("").trim();
        bytes = BASE64
            .decode(text)
            .map_err(|_| refused(path, "the text after base64: is not standard base64"))?;
    }
    if bytes.len() < SECRET_BYTES_MIN {
        return Err(refused(
            path,
            "an HS256 secret has at least 32 bytes; make one with: head -c 32 /dev/urandom > hs256.key",
        ));
    }
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, AuthError> {
    let failed = |source| AuthError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(refused(path, "the file is over 16 KiB, which no key is"));
    }
    Ok(bytes)
}

fn refused(path: &Path, problem: &'static str) -> AuthError {
    AuthError::Key { path: path.to_owned(), problem }
}
